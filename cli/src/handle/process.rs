//! A command as a handler: one process for each request, with the data on its standard input.
//!
//! | the command | becomes |
//! |---|---|
//! | ends with 0, its standard output is JSON | the reply, as it is |
//! | ends with 0, its output is other text | the reply: a JSON string, without the line's end behind it |
//! | ends with 0, no output | the reply `null` |
//! | ends otherwise | an error: the end of its standard error as the message, the exit code as its code |
//! | writes more than the limit | an error; it is killed |
//!
//! Each command leads a process group of its own. When it ends, what it started and left behind is killed; when nobody
//! waits for it any more, its group gets SIGTERM and, after [`GRACE`], SIGKILL.

use std::{
    ffi::OsString,
    future,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use ringpost::{HandlerError, Reply, Request};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
};

use super::{
    capture::{Tail, Whole},
    ending::Ending,
    environment,
    group::Group,
};
use crate::json;

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long output is read that somebody else still holds open when the command has ended: one that left the group.
const LINGER: Duration = Duration::from_millis(500);

/// How much of its standard error becomes the message.
const MAX_MESSAGE_BYTES: usize = 4096;

/// A command to run for each request.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: OsString,
    pub(super) arguments: Vec<OsString>,
    /// Where the server is, for the command's own use.
    pub(super) server: String,
    /// How much it may write.
    pub(super) max_output_bytes: usize,
}

/// How a run came out.
enum End {
    /// The process ended by itself.
    Exited,
    /// It wrote more than it may.
    TooMuch,
    /// Nobody waits for it.
    Unwanted,
}

impl Program {
    /// Runs it on a request.
    ///
    /// When the future is dropped, the process group is killed at once.
    ///
    /// # Errors
    /// All that is not a reply, as the requester is to read it.
    pub(super) async fn run(&self, request: &Request, ending: &Ending) -> Result<Reply, HandlerError> {
        let name = self.name.to_string_lossy();
        let failed = |what: &str, error: std::io::Error| {
            HandlerError::new(format!("the command `{name}` {what}: {error}")).with_code("command")
        };
        let mut child = self.prepared(request).spawn().map_err(|error| failed("cannot be started", error))?;
        // Declared behind the child, dropped before it: see Group.
        let group = Group::led_by(&child).map_err(|error| failed("cannot be watched", error))?;
        let mut output = Whole::new(self.max_output_bytes);
        let mut errors = Tail::new(MAX_MESSAGE_BYTES);
        let end = tokio::select! {
            end = talk(&mut child, &group, request.as_bytes(), &mut output, &mut errors) => {
                end.map_err(|error| failed("cannot be talked to", error))?
            }
            () = unwanted(request, ending) => End::Unwanted,
        };
        if matches!(end, End::Unwanted) {
            group.end(GRACE).await.map_err(|error| failed("cannot be ended", error))?;
        }
        let status = group.reap(&mut child).await.map_err(|error| failed("cannot be waited for", error))?;
        match end {
            End::Exited => outcome(&name, status, output.bytes, &errors),
            End::TooMuch => {
                let limit = self.max_output_bytes;
                let message = format!("the command `{name}` wrote more than {limit} bytes and was killed");
                Err(HandlerError::new(message).with_code("output"))
            }
            End::Unwanted => {
                let message = format!("the command `{name}` was stopped, since nobody waits for it");
                Err(HandlerError::new(message).with_code("stopped"))
            }
        }
    }

    fn prepared(&self, request: &Request) -> Command {
        let mut command = Command::new(&self.name);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        environment::describe(&mut command, request, &self.server);
        command
    }
}

/// Feeds the command and takes what it writes, until it has ended and all is read.
async fn talk(
    child: &mut Child,
    group: &Group,
    data: &[u8],
    output: &mut Whole,
    errors: &mut Tail,
) -> std::io::Result<End> {
    let (input, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let fill_output = async {
        match stdout {
            Some(stdout) => output.fill(stdout).await,
            None => Ok(true),
        }
    };
    let fill_errors = async {
        match stderr {
            Some(stderr) => errors.fill(stderr).await,
            None => Ok(()),
        }
    };
    // Ends early when there is too much output; with all of both otherwise.
    let reading = async {
        let (mut fill_output, mut fill_errors) = (std::pin::pin!(fill_output), std::pin::pin!(fill_errors));
        tokio::select! {
            fits = &mut fill_output => {
                if !fits? { return Ok(End::TooMuch) }
                fill_errors.await?;
            }
            done = &mut fill_errors => {
                done?;
                if !fill_output.await? { return Ok(End::TooMuch) }
            }
        }
        Ok(End::Exited)
    };
    let mut reading = std::pin::pin!(reading);
    tokio::select! {
        end = &mut reading => match end? {
            End::Exited => group.leader_ended().await.map(|()| End::Exited),
            end => Ok(end),
        },
        ended = group.leader_ended() => {
            ended?;
            // What it left behind holds its output open: without it, the end comes at once.
            group.kill();
            tokio::time::timeout(LINGER, reading).await.unwrap_or(Ok(End::Exited))
        }
        never = feed(input, data) => match never {},
    }
}

/// Gives the command its input. Not all read it to its end: that is their business.
async fn feed(input: Option<ChildStdin>, data: &[u8]) -> std::convert::Infallible {
    if let Some(mut input) = input
        && let Err(error) = input.write_all(data).await
    {
        tracing::debug!(%error, "a command did not read all of its input");
    }
    future::pending().await
}

/// Waits until nobody waits for the answer: cancelled, past its deadline, or this handler is ending.
async fn unwanted(request: &Request, ending: &Ending) {
    let deadline = async {
        match request.deadline() {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => future::pending().await,
        }
    };
    tokio::select! {
        () = request.cancelled() => {}
        () = deadline => {}
        () = ending.begun() => {}
    }
}

/// What the requester gets of a command that ended by itself.
fn outcome(name: &str, status: ExitStatus, output: Vec<u8>, errors: &Tail) -> Result<Reply, HandlerError> {
    let said = errors.text();
    if status.success() {
        if !said.is_empty() {
            tracing::info!(command = name, "{said}");
        }
        return reply(name, output);
    }
    let (code, how) = match (status.code(), status.signal()) {
        (Some(code), _) => (code.to_string(), format!("ended with exit code {code}")),
        (None, Some(signal)) => (format!("signal {signal}"), format!("was killed by signal {signal}")),
        (None, None) => ("unknown".to_owned(), "ended".to_owned()),
    };
    tracing::info!(command = name, code, "{said}");
    let silent = || format!("the command `{name}` {how} and wrote nothing to its standard error");
    Err(HandlerError::new(if said.is_empty() { silent() } else { said }).with_code(code))
}

/// JSON as it is, any other text as a JSON string: so that a shell's `echo` is a handler too.
fn reply(name: &str, output: Vec<u8>) -> Result<Reply, HandlerError> {
    if output.trim_ascii().is_empty() {
        return Ok(Reply::bytes("null"));
    }
    if json::check(&output).is_ok() {
        return Ok(Reply::bytes(output.trim_ascii().to_vec()));
    }
    let Ok(text) = String::from_utf8(output) else {
        let message = format!("the command `{name}` wrote something that is not UTF-8 text");
        return Err(HandlerError::new(message).with_code("output"));
    };
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Reply::json(text.strip_suffix('\r').unwrap_or(text))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replied(output: &str) -> Vec<u8> {
        reply("x", output.into()).unwrap().as_bytes().to_vec()
    }

    /// JSON passes as it is, text becomes a string, nothing becomes null.
    #[test]
    fn replies() {
        assert_eq!(replied("{\"a\": 1}\n"), b"{\"a\": 1}");
        assert_eq!(replied("3\n"), b"3");
        assert_eq!(replied("hello \"you\"\n"), br#""hello \"you\"""#);
        assert_eq!(replied("two\nlines\n\n"), br#""two\nlines\n""#);
        assert_eq!(replied("\n"), b"null");
        assert!(reply("x", vec![0xff, 0xfe]).unwrap_err().message().contains("UTF-8"));
    }

    /// A failed command's own words and code reach the requester.
    #[test]
    fn failures() {
        let exited = ExitStatus::from_raw(3 << 8);
        let error = outcome("x", exited, Vec::new(), &Tail::new(10)).unwrap_err();
        assert!(error.message().contains("exit code 3"), "{error}");
        let killed = ExitStatus::from_raw(9);
        let error = outcome("x", killed, b"ignored".to_vec(), &Tail::new(10)).unwrap_err();
        assert!(error.message().contains("killed by signal 9"), "{error}");
    }
}
