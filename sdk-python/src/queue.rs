//! What crosses from the client's own thread to Python: one queue, and one eventfd that tells an event loop of it.
//!
//! The thread puts in and never touches the interpreter; Python takes everything out at once. The eventfd is written only
//! when the queue was empty: however much comes before Python has looked, it is woken once.

use std::{
    mem,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ringpost::raw::{self, Completion, CompletionSink, Content, Delivery, Notice};
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
};

/// What came beside completions and deliveries.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all of it are notices")]
pub(crate) enum News {
    /// From the client.
    Notice(Notice),
    /// There is room to send again.
    Room,
    /// The client is closed, and its socket is gone. Nothing follows.
    Ended,
}

/// Everything that waits for Python, in the order in which it is to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    /// Tokens, and what handlers said meanwhile.
    pub(crate) progress: Vec<(u64, Content)>,
    pub(crate) completions: Vec<Completion>,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) news: Vec<News>,
}

impl Arrivals {
    fn is_empty(&self) -> bool {
        self.progress.is_empty()
            && self.completions.is_empty()
            && self.deliveries.is_empty()
            && self.news.is_empty()
    }
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    arrivals: Mutex<Arrivals>,
    bell: OwnedFd,
}

impl Queue {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { arrivals: Mutex::default(), bell })
    }

    /// Readable while something waits.
    pub(crate) fn fd(&self) -> RawFd {
        self.bell.as_fd().as_raw_fd()
    }

    /// Puts something in, from any thread.
    pub(crate) fn push(&self, put: impl FnOnce(&mut Arrivals)) {
        let mut arrivals = self.lock();
        let was_empty = arrivals.is_empty();
        put(&mut arrivals);
        let ring = was_empty && !arrivals.is_empty();
        drop(arrivals);
        if ring {
            // It can only fail because the counter is full: then it is readable already.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// Takes everything out. `into` must be empty; its memory is used again.
    pub(crate) fn take(&self, into: &mut Arrivals) {
        // Before the queue is looked at: what comes in between rings again.
        let mut count = [0; 8];
        match rustix::io::read(&self.bell, &mut count) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => tracing::error!(%error, "reading an eventfd"),
        }
        mem::swap(&mut *self.lock(), into);
    }

    fn lock(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client's end of the queue.
impl CompletionSink for Queue {
    fn complete(&self, _client: &raw::Client, batch: &mut Vec<Completion>) {
        self.push(|arrivals| move_all(batch, &mut arrivals.completions));
    }

    fn deliver(&self, _client: &raw::Client, batch: &mut Vec<Delivery>) {
        self.push(|arrivals| move_all(batch, &mut arrivals.deliveries));
    }

    fn notice(&self, _client: &raw::Client, notice: Notice) {
        self.push(|arrivals| match notice {
            Notice::Progress { token, content } => arrivals.progress.push((token, content)),
            notice => arrivals.news.push(News::Notice(notice)),
        });
    }
}

fn move_all<T>(from: &mut Vec<T>, to: &mut Vec<T>) {
    if to.is_empty() {
        mem::swap(from, to);
    } else {
        to.append(from);
    }
}
