//! A process and all that it starts, as one process group that can be ended as a whole.

use std::{io, time::Duration};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
};

/// A process group whose leader has not been waited for: so long the kernel gives its number to nobody else, and the
/// signals below reach no stranger.
///
/// Dropping it kills the whole group at once.
#[derive(Debug)]
pub(super) struct Group {
    id: Pid,
    over: bool,
}

impl Group {
    /// The group of a child that was started as the leader of one.
    pub(super) fn led_by(child: &Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or(Errno::SRCH)?;
        Ok(Self { id, over: false })
    }

    /// Waits until the leader has ended, and leaves it as it is then: its number stays taken.
    pub(super) async fn leader_ended(&self) -> io::Result<()> {
        // Listening begins before the first look, so that no end is missed between the two.
        let mut children = signal(SignalKind::child())?;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(self.id), look)?.is_none() {
            children.recv().await;
        }
        Ok(())
    }

    /// Asks the group to end, gives its leader a while to do so, and kills what is left.
    pub(super) async fn end(&self, grace: Duration) -> io::Result<()> {
        self.signal(Signal::TERM);
        // Whether it ended in time or not, what is left is killed.
        let _ = tokio::time::timeout(grace, self.leader_ended()).await;
        self.kill();
        self.leader_ended().await
    }

    /// Kills the group at once.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Kills what the leader left behind, then waits for the leader itself.
    pub(super) async fn reap(mut self, child: &mut Child) -> io::Result<std::process::ExitStatus> {
        self.kill();
        let status = child.wait().await;
        self.over = true;
        status
    }

    fn signal(&self, signal: Signal) {
        match kill_process_group(self.id, signal) {
            Ok(()) => {}
            // Nobody is left.
            Err(Errno::SRCH) => {}
            Err(error) => {
                tracing::warn!(group = %self.id, ?signal, %error, "a command could not be signalled")
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.over {
            self.kill();
        }
    }
}
