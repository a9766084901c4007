//! What crosses from the client to Python: one queue, and one descriptor that tells an event loop of it.
//!
//! The client's thread puts in and never touches the interpreter; Python takes everything out at once. An eventfd is written
//! only when the queue was empty: however much comes before Python has looked, it is woken once.
//!
//! While there is a connection, most of what comes is read by the event loop's own thread, within [`Queue::take`]: to be woken
//! by the client's thread after that was woken itself takes longer than all the rest of a request. So the descriptor is that
//! of an epoll with both in it, the eventfd and the socket.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ringpost::raw::{self, Completion, CompletionSink, Content, Delivery, Notice, Watcher};
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
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
    waiting: Mutex<Waiting>,
    bell: OwnedFd,
    /// Of the bell, and of the client's socket while there is one.
    both: OwnedFd,
}

#[derive(Debug, Default)]
struct Waiting {
    arrivals: Arrivals,
    /// Whether the bell has been rung since it was last read.
    rung: bool,
    /// Python is about to take everything out: nobody needs to tell it.
    taking: bool,
}

impl Queue {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&both, bell.as_fd())?;
        Ok(Self { waiting: Mutex::default(), bell, both })
    }

    /// Readable while something waits.
    pub(crate) fn fd(&self) -> RawFd {
        self.both.as_raw_fd()
    }

    /// Puts something in, from any thread.
    pub(crate) fn push(&self, put: impl FnOnce(&mut Arrivals)) {
        let mut waiting = self.lock();
        let was_empty = waiting.arrivals.is_empty();
        put(&mut waiting.arrivals);
        if was_empty && !waiting.arrivals.is_empty() && !waiting.taking {
            self.ring(&mut waiting);
        }
    }

    /// Reads what has come on the client's socket, and takes everything out. `into` must be empty; its memory is used again.
    pub(crate) fn take(&self, client: &raw::Client, into: &mut Arrivals) {
        self.lock().taking = true;
        client.read();
        let mut waiting = self.lock();
        waiting.taking = false;
        if mem::take(&mut waiting.rung) {
            match rustix::io::read(&self.bell, &mut [0; 8]) {
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(error) => tracing::error!(%error, "reading an eventfd"),
            }
        }
        mem::swap(&mut waiting.arrivals, into);
    }

    /// With the lock: so a bell that has been rung is known to be.
    fn ring(&self, waiting: &mut Waiting) {
        waiting.rung = true;
        // It can only fail because the counter is full: then it is readable already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watch(both: &OwnedFd, descriptor: BorrowedFd<'_>) -> rustix::io::Result<()> {
    epoll::add(both, descriptor, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
}

/// The event loop reads.
impl Watcher for Queue {
    fn watch(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        Ok(watch(&self.both, socket)?)
    }

    fn unwatch(&self, socket: BorrowedFd<'_>) {
        if let Err(error) = epoll::delete(&self.both, socket) {
            tracing::error!(%error, "unwatching a socket");
        }
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

    fn watcher(&self) -> Option<&dyn Watcher> {
        Some(self)
    }
}

fn move_all<T>(from: &mut Vec<T>, to: &mut Vec<T>) {
    if to.is_empty() {
        mem::swap(from, to);
    } else {
        to.append(from);
    }
}
