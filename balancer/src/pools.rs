//! Buffers and pipes, which a session has only while bytes are on their way.

use ringpost_io::pipe::Pipe;
use ringpost_protocol::{throttle::Throttle, time::Time};

use crate::pace::BUFFER_BYTES;

/// Bytes that a pipe is asked to hold. 256 of them are what `fs.pipe-user-pages-soft` leaves a user by default.
const PIPE_BYTES: usize = 256 << 10;
/// Buffers that are kept for the next one.
const KEPT_BUFFERS: usize = 64;

/// A buffer to copy through, of [`BUFFER_BYTES`].
pub(crate) type Buffer = Vec<u8>;

/// What is there to be lent.
#[derive(Debug)]
pub(crate) struct Pools {
    buffers: Vec<Buffer>,
    pipes: Vec<Pipe>,
    /// Pipes that are open, lent ones too.
    open_pipes: usize,
    max_pipes: usize,
    /// The fewest pipes that lay here since they were last trimmed: nobody has needed these.
    least_idle: usize,
    /// Times that there was no pipe to be had.
    no_pipe: u64,
    lines: Throttle,
}

impl Pools {
    pub(crate) fn new(max_pipes: usize) -> Self {
        Self {
            buffers: Vec::new(),
            pipes: Vec::new(),
            open_pipes: 0,
            max_pipes,
            least_idle: 0,
            no_pipe: 0,
            lines: Throttle::default(),
        }
    }

    pub(crate) fn buffer(&mut self) -> Buffer {
        self.buffers.pop().unwrap_or_else(|| vec![0; BUFFER_BYTES])
    }

    pub(crate) fn give_buffer(&mut self, buffer: Buffer) {
        if self.buffers.len() < KEPT_BUFFERS {
            self.buffers.push(buffer);
        }
    }

    /// An empty pipe. `None`: as many are open as may be, or the system has none.
    pub(crate) fn pipe(&mut self, now: impl FnOnce() -> Time) -> Option<Pipe> {
        if let Some(pipe) = self.pipes.pop() {
            self.least_idle = self.least_idle.min(self.pipes.len());
            return Some(pipe);
        }
        let opened = (self.open_pipes < self.max_pipes).then(|| Pipe::open(PIPE_BYTES));
        if let Some(Ok(pipe)) = opened {
            self.open_pipes += 1;
            return Some(pipe);
        }
        self.no_pipe += 1;
        if let Some(Err(error)) = opened
            && let Some(left_out) = self.lines.line(now())
        {
            tracing::warn!(%error, open = self.open_pipes, left_out, "no pipe to splice through: bytes are copied");
        }
        None
    }

    /// Takes a pipe back. One with bytes in it is closed: they were for somebody who is gone.
    pub(crate) fn give_pipe(&mut self, pipe: Pipe) {
        if pipe.held_bytes() == 0 {
            self.pipes.push(pipe);
        } else {
            self.open_pipes -= 1;
        }
    }

    /// Closes pipes that nobody has needed since the last time; all that lie here, if descriptors are scarce.
    pub(crate) fn trim(&mut self, scarce: bool) -> usize {
        let unused = if scarce { self.pipes.len() } else { self.least_idle.min(self.pipes.len()) };
        self.pipes.truncate(self.pipes.len() - unused);
        self.open_pipes -= unused;
        self.least_idle = self.pipes.len();
        unused
    }

    /// Pipes that are open, and those of them that lie here.
    pub(crate) fn pipes(&self) -> (usize, usize) {
        (self.open_pipes, self.pipes.len())
    }

    pub(crate) fn no_pipe(&self) -> u64 {
        self.no_pipe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many pipes as allowed are lent; those that nobody needs are closed at the second trim, all when it must be.
    #[test]
    fn pipes_come_and_go() {
        let now = || Time::ZERO;
        let mut pools = Pools::new(3);
        let lent: Vec<_> = (0..3).map(|_| pools.pipe(now).unwrap()).collect();
        assert!(pools.pipe(now).is_none());
        assert_eq!((pools.pipes(), pools.no_pipe()), ((3, 0), 1));
        lent.into_iter().for_each(|pipe| pools.give_pipe(pipe));
        assert_eq!((pools.trim(false), pools.pipes()), (0, (3, 3)));
        let used = pools.pipe(now).unwrap();
        pools.give_pipe(used);
        assert_eq!((pools.trim(false), pools.pipes()), (2, (1, 1)));
        assert_eq!((pools.trim(true), pools.pipes()), (1, (0, 0)));
    }
}
