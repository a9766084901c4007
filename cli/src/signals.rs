//! SIGINT and SIGTERM, for commands that end in good order; and the end of the process that started this one.

use std::io;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{self, SignalKind};

use crate::exit::{Failure, Outcome};

/// Signals that ask to end. From its creation on they do not end the process by themselves.
#[derive(Debug)]
pub(crate) struct Stop {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl Stop {
    /// Within a runtime only.
    pub(crate) fn listen() -> Outcome<Self> {
        let signal =
            |kind| unix::signal(kind).map_err(|error| Failure::system("signals cannot be caught", &error));
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next one, and gives the exit code of a process that it ended: 128 and its number, as shells have
    /// it. May be dropped and called again without losing any.
    pub(crate) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 128 + 2,
            _ = self.terminate.recv() => 128 + 15,
        }
    }
}

/// Ends this process as if by SIGTERM when the process `parent`, which started it, ends in whatever way: so that
/// nothing is left behind even when that one is killed. The kernel looks at the thread that started this process: it
/// must live as long as its process.
pub(crate) fn end_with(parent: u32) -> Outcome {
    let failed = |error: io::Error| Failure::system("the parent's end cannot be watched", &error);
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| failed(error.into()))?;
    // It may have ended before that, and then nobody would tell.
    if getppid().map(Pid::as_raw_nonzero).map(|id| id.get().cast_unsigned()) == Some(parent) {
        return Ok(());
    }
    Err(Failure::new(crate::exit::NOT_USABLE, format!("the parent process {parent} has ended")))
}
