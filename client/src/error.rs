//! The one shape of error that users of a client see.

use std::{borrow::Cow, fmt};

use ringpost_protocol::{
    Code,
    limits::NameError,
    message::{ErrorReport, Reply},
};

/// What went wrong: a code of the table, a message for people, and for a handler's error its own code.
///
/// It is small and cheap to clone: one connection's end may end many requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    code: Code,
    message: Cow<'static, str>,
    handler_code: Option<Box<str>>,
}

impl Error {
    /// An error with a message that says what happened, to what, and what to do.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), handler_code: None }
    }

    /// With the code that a handler gave its error.
    #[must_use]
    pub fn with_handler_code(mut self, code: &str) -> Self {
        self.handler_code = (!code.is_empty()).then(|| code.into());
        self
    }

    /// Which family of error: match on this.
    pub fn kind(&self) -> Code {
        self.code
    }

    /// The kind as a text, as JSON has it: `noHandler`, `timeout`, …
    pub fn code(&self) -> &'static str {
        self.code.text()
    }

    /// For people. If the handler answered an error ([`Code::Remote`]), this is its message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The handler's own code, where it gave one.
    pub fn handler_code(&self) -> Option<&str> {
        self.handler_code.as_deref()
    }

    /// What a command that ends with this error exits with.
    pub fn exit_code(&self) -> u8 {
        self.code.exit_code()
    }

    /// The error in a reply from the broker.
    pub(crate) fn from_reply(code: Code, reply: &Reply) -> Self {
        let text = String::from_utf8_lossy(reply.content.payload());
        let message =
            if text.is_empty() { Cow::Borrowed(code.text()) } else { Cow::Owned(text.into_owned()) };
        Self::new(code, message).with_handler_code(&String::from_utf8_lossy(reply.content.name()))
    }

    /// What a request that was never sent ends with when the client gives up for this reason.
    pub(crate) fn for_unsent(&self) -> Self {
        match self.code {
            Code::ConnectionLost => {
                Self::new(Code::Connect, format!("not connected, and not trying again: {}", self.message))
            }
            _ => self.clone(),
        }
    }
}

impl From<ErrorReport> for Error {
    fn from(report: ErrorReport) -> Self {
        Self::new(report.code, report.message)
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        let code = if error == NameError::Reserved { Code::ReservedName } else { Code::Malformed };
        Self::new(code, error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.handler_code {
            Some(own) => write!(f, "{} ({own}): {}", self.code, self.message),
            None => write!(f, "{}: {}", self.code, self.message),
        }
    }
}

impl std::error::Error for Error {}
