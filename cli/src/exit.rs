//! How a command ends: well, or with a message and one of the exit codes.
//!
//! | code | when |
//! |---|---|
//! | 0 | all is well |
//! | 1 | the handler answered an error |
//! | 2 | the command line is not understood |
//! | 3 | nobody could take the request: `noHandler`, `overloaded`, `handlerLost`, … |
//! | 4 | time is over, or the request was cancelled |
//! | 65 | bad input: not JSON, too large, a reserved name, …; a damaged log |
//! | 69 | no connection, or it was lost; an address that cannot be listened on |
//! | 71 | the system does not offer what the server needs |
//! | 74 | reading or writing failed |
//! | 75, 77, 78 | session taken; not allowed; configuration |
//! | 130, 143 | ended by SIGINT, SIGTERM |
//!
//! Those of requests are [`ringpost_protocol::Code::exit_code`]'s.

use std::{fmt, io, process::ExitCode};

use ringpost_server::{ConfigError, StartError};

use crate::output;

/// What a command comes to.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// The command line is not understood.
const USAGE: u8 = 2;
/// The data that the user gave is not what it should be.
pub(crate) const BAD_DATA: u8 = 65;
/// The system does not offer what is needed.
pub(crate) const NOT_USABLE: u8 = 71;
/// Reading or writing failed.
const IO: u8 = 74;
/// The configuration cannot be used.
pub(crate) const CONFIGURATION: u8 = 78;

/// Why a command does not end well: what the user is told, and the exit code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: u8,
    /// Empty if there is nothing to say, or it was said.
    message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The command line cannot be meant so.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// Ends with this code without another word.
    pub(crate) fn quiet(code: u8) -> Self {
        Self::new(code, "")
    }

    /// Standard output cannot be written. A reader that went away wants no more and no complaint.
    pub(crate) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::quiet(0);
        }
        Self::new(IO, format!("standard output cannot be written: {error}"))
    }

    /// Something of the system's failed.
    pub(crate) fn system(what: &str, error: &io::Error) -> Self {
        Self::new(IO, format!("{what}: {error}"))
    }

    /// Adds to what the user is told.
    #[must_use]
    pub(crate) fn with(mut self, more: &str) -> Self {
        self.message.push_str(more);
        self
    }

    /// Tells the user and gives the code.
    pub(crate) fn report(self) -> ExitCode {
        if !self.message.is_empty() {
            output::note(format_args!("ringpost: {}", self.message));
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<ringpost_balancer::StartError> for Failure {
    fn from(error: ringpost_balancer::StartError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<ringpost_balancer::ConfigError> for Failure {
    fn from(error: ringpost_balancer::ConfigError) -> Self {
        Self::new(CONFIGURATION, error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(CONFIGURATION, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A closed pipe is no failure; any other trouble with it is one.
    #[test]
    fn broken_pipe_is_quiet() {
        assert_eq!(Failure::output(&io::ErrorKind::BrokenPipe.into()), Failure::quiet(0));
        assert_eq!(Failure::output(&io::ErrorKind::StorageFull.into()).code, IO);
    }
}
