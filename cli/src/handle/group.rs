//! A process and all that it starts, as one process group that can be ended as a whole.

use std::{
    io,
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use tokio::{io::unix::AsyncFd, process::Child};

/// A process group whose leader has not been waited for: so long the kernel gives its number to nobody else, and the
/// signals below reach no stranger.
///
/// Dropping it kills the whole group at once.
#[derive(Debug)]
pub(super) struct Group {
    id: Pid,
    /// Becomes readable when the leader ends, without waiting for it as waitpid(2) would (Linux 5.3).
    leader: AsyncFd<OwnedFd>,
    over: bool,
}

impl Group {
    /// The group of a child that was started as the leader of one.
    pub(super) fn led_by(child: &Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or(Errno::SRCH)?;
        let leader = AsyncFd::new(pidfd_open(id, PidfdFlags::empty())?)?;
        Ok(Self { id, leader, over: false })
    }

    /// Waits until the leader has ended.
    pub(super) async fn leader_ended(&self) -> io::Result<()> {
        self.leader.readable().await.map(drop)
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
            Err(error) => tracing::warn!(group = %self.id, ?signal, %error, "a command could not be signalled"),
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
