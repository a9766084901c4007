//! Pipes that bytes go through on their way from one connection to another, without a copy in this process: splice(2).
//!
//! What its manual page does not say, and who moves bytes must know:
//!
//! * It blocks on a socket without O_NONBLOCK, whatever its own flags say. An [`Endpoint`] always has that.
//! * `WouldBlock` when filling means that the socket is empty *or* that the pipe is full: drain it before filling again.
//! * A pipe has a number of slots, and a slot holds a piece of what the network card or the loopback brought, however
//!   large or small: sixteen slots may be full with 2 KiB, and may hold more than 64 KiB. Only a count of what went in
//!   and out says what is in it.
//! * Draining into a connection that is gone raises SIGPIPE, which [`crate::signals::survive_broken_pipes`] is for.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

use crate::endpoint::{Endpoint, retry};

/// A pipe. Dropped with bytes in it, they are lost.
#[derive(Debug)]
pub struct Pipe {
    from: OwnedFd,
    into: OwnedFd,
    held: usize,
}

impl Pipe {
    /// Opens one that should hold `bytes`, a power of two of at least a page.
    ///
    /// # Errors
    /// What pipe2(2) and fcntl(2) say: `EMFILE` without descriptors, `EPERM` when this user's pipes hold too many pages
    /// already (`fs.pipe-user-pages-soft`). A pipe that got less than a quarter of what was asked for is
    /// [`io::ErrorKind::OutOfMemory`]: it would be of no use.
    pub fn open(bytes: usize) -> io::Result<Self> {
        let (from, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut has = fcntl_getpipe_size(&into)?;
        if has != bytes {
            match fcntl_setpipe_size(&into, bytes) {
                Ok(set) => has = set,
                // Beyond the soft limit of pages it stays as it is.
                Err(rustix::io::Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if has < bytes / 4 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self { from, into, held: 0 })
    }

    /// Bytes that are in it.
    pub fn held_bytes(&self) -> usize {
        self.held
    }

    /// Takes in up to `most` bytes of what a connection has received, without waiting. `Ok(0)`: the peer has ended its
    /// half.
    ///
    /// # Errors
    /// What splice(2) says; [`io::ErrorKind::WouldBlock`]: the connection has nothing now, or the pipe is full.
    pub fn fill(&mut self, from: &Endpoint, most: usize) -> io::Result<usize> {
        let moved = moved(from.socket(), &self.into, most)?;
        self.held += moved;
        Ok(moved)
    }

    /// Gives a connection what it has room for, without waiting.
    ///
    /// # Errors
    /// What splice(2) says; [`io::ErrorKind::WouldBlock`]: the connection has no room now.
    pub fn drain(&mut self, into: &Endpoint) -> io::Result<usize> {
        let moved = moved(&self.from, into.socket(), self.held)?;
        self.held -= moved;
        Ok(moved)
    }
}

fn moved(from: impl AsFd, into: impl AsFd, most: usize) -> io::Result<usize> {
    retry(|| splice(&from, None, &into, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK))
}
