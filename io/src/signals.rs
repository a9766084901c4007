//! Signals that ask a server for something.

use std::{future::poll_fn, io, mem::MaybeUninit, task::Poll};

use tokio::signal::unix::{Signal as Source, SignalKind, signal};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: leave.
    Terminate,
    /// SIGINT: leave.
    Interrupt,
    /// SIGHUP: read the configuration again.
    Hangup,
}

impl Signal {
    /// Its number, as in the exit code 128 + number of a process that it ended.
    pub fn number(self) -> u8 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }
}

/// Keeps this thread from being ended by SIGPIPE, which splice(2) raises for a connection that is gone. Programs whose
/// `main` is Rust's ignore it already; those that embed this need not.
///
/// # Errors
/// What pthread_sigmask(3) says.
#[allow(unsafe_code, reason = "a set of signals is filled by the system")]
pub fn survive_broken_pipes() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the first call fills the set, the second one changes it, the third one reads it; nothing keeps it.
    let refused = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    if refused == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(refused)) }
}

/// A stream of signals. From its creation on the process no longer ends by them, even after it is dropped.
#[derive(Debug)]
pub struct Signals {
    sources: [(Signal, Source); 3],
}

impl Signals {
    /// Listens for all of them.
    ///
    /// # Errors
    /// When the kernel refuses to install a handler.
    ///
    /// # Panics
    /// Outside of [`crate::ring::run`].
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            sources: [
                (Signal::Terminate, signal(SignalKind::terminate())?),
                (Signal::Interrupt, signal(SignalKind::interrupt())?),
                (Signal::Hangup, signal(SignalKind::hangup())?),
            ],
        })
    }

    /// The next one. May be dropped at any time.
    pub async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            for (name, source) in &mut self.sources {
                if source.poll_recv(context).is_ready() {
                    return Poll::Ready(*name);
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{self, RingConfig};

    /// A signal sent to this process arrives, on a ring's runtime too.
    #[test]
    fn arrives() {
        ring::run(&RingConfig { entries: 8, ..RingConfig::default() }, async {
            let mut signals = Signals::listen().unwrap();
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
            assert_eq!(signals.next().await, Signal::Hangup);
        })
        .unwrap();
    }
}
