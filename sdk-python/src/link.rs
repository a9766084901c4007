//! What a connection and its deliveries share: the client below, and what is gathered for it until it is flushed.
//!
//! Many Python callers in one turn of an event loop each have a request or an answer. They are put down here, and reach
//! the client by one call: one lock, one wake-up of its thread, and one write for all of them.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use pyo3::prelude::*;
use ringpost::{
    Error,
    raw::{self, Completion, Content, DeliveryKey, RequestKey, RequestSpec, Verdict},
};

use crate::{delivery::Delivery, failure, queue::Queue, slab::Slab};

/// Gathered bytes over which they are flushed at once.
const GATHERED_BYTES: usize = 1 << 20;
/// Gathered calls at which they are too: were hundreds to leave in one write, both sides would take turns, each idle while the
/// other works.
const GATHERED_CALLS: usize = 32;

/// A request of Python's without an outcome.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// What is told the outcome: a future of whatever kind.
    pub(crate) future: Py<PyAny>,
    /// Called with what the handler says meanwhile.
    pub(crate) on_progress: Option<Py<PyAny>>,
    /// Once it was flushed.
    pub(crate) key: Option<RequestKey>,
    /// Of a broadcast, what came before the last.
    pub(crate) legs: Vec<Completion>,
    pub(crate) kind: Kind,
}

/// What a request is to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Reply,
    Accepted,
    Legs,
}

/// What is gathered.
#[derive(Debug)]
enum Call {
    Request(RequestSpec, u64),
    Answer(DeliveryKey, Verdict, Content),
}

#[derive(Debug, Default)]
struct Gathered {
    calls: Vec<Call>,
    bytes: usize,
}

/// The way from Python into the client. Its locks are only taken by threads that hold the interpreter, for a moment
/// and not over a call of Python's: nobody waits for them.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) raw: raw::Client,
    pub(crate) queue: Arc<Queue>,
    waiting: Mutex<Slab<Waiting>>,
    held: Mutex<Slab<Option<Py<Delivery>>>>,
    gathered: Mutex<Gathered>,
    /// As the last flush saw it.
    room: AtomicBool,
    /// This process is a child of the one that it belongs to: the client's thread does not exist here, and its locks
    /// may never come free.
    forked: AtomicBool,
}

impl Link {
    pub(crate) fn new(raw: raw::Client, queue: Arc<Queue>) -> Self {
        Self {
            raw,
            queue,
            waiting: Mutex::default(),
            held: Mutex::default(),
            gathered: Mutex::default(),
            room: AtomicBool::new(true),
            forked: AtomicBool::new(false),
        }
    }

    pub(crate) fn waiting(&self) -> MutexGuard<'_, Slab<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Slab<Option<Py<Delivery>>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls back for the garbage collector, unless somebody is at work here: then it looks another time.
    pub(crate) fn try_waiting(&self) -> Option<MutexGuard<'_, Slab<Waiting>>> {
        self.waiting.try_lock().ok()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.room.load(Ordering::Relaxed)
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.forked.load(Ordering::Relaxed)
    }

    /// From now on nothing of the client is touched any more.
    pub(crate) fn forked(&self) {
        self.forked.store(true, Ordering::Relaxed);
    }

    /// Refuses to work in a child process.
    pub(crate) fn check(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_forked() { Err(failure::forked(py)) } else { Ok(()) }
    }

    /// Takes a request; gives the token by which to cancel it.
    pub(crate) fn request(&self, spec: RequestSpec, waiting: Waiting) -> u64 {
        let bytes = spec.content.len();
        let (token, alone) = {
            let mut all = self.waiting();
            (all.insert(waiting), all.len() == 1)
        };
        self.gather(Call::Request(spec, token), bytes);
        // Nobody else is about to say something: waiting for more would only take time.
        if alone {
            self.flush();
        }
        token
    }

    /// Takes an answer to a delivery.
    pub(crate) fn answer(&self, key: DeliveryKey, verdict: Verdict, content: Content) {
        let bytes = content.len();
        self.gather(Call::Answer(key, verdict, content), bytes);
    }

    fn gather(&self, call: Call, bytes: usize) {
        let mut gathered = self.gathered();
        gathered.calls.push(call);
        gathered.bytes += bytes;
        let much = gathered.bytes >= GATHERED_BYTES || gathered.calls.len() >= GATHERED_CALLS;
        drop(gathered);
        if much {
            self.flush();
        }
    }

    /// Gives the client what was gathered.
    pub(crate) fn flush(&self) {
        let mut gathered = self.gathered();
        if gathered.calls.is_empty() || self.is_forked() {
            return;
        }
        gathered.bytes = 0;
        let mut calls = mem::take(&mut gathered.calls);
        let mut waiting = self.waiting();
        let mut refused = Vec::new();
        let room = self.raw.batch(|client| {
            for call in calls.drain(..) {
                match call {
                    Call::Request(spec, token) => match client.request(spec, token) {
                        Ok(key) => {
                            if let Some(waiting) = waiting.of(token) {
                                waiting.key = Some(key);
                            }
                        }
                        Err(error) => refused.push(refusal(token, error)),
                    },
                    Call::Answer(key, verdict, content) => {
                        client.answer(key, verdict, content);
                    }
                }
            }
            client.has_room()
        });
        drop(waiting);
        self.room.store(room, Ordering::Relaxed);
        gathered.calls = calls;
        drop(gathered);
        if !refused.is_empty() {
            self.queue.push(|arrivals| arrivals.completions.append(&mut refused));
        }
    }

    /// Gives a request up.
    pub(crate) fn cancel(&self, token: u64) {
        self.flush();
        let waiting = self.waiting().remove(token);
        if let Some(key) = waiting.and_then(|waiting| waiting.key) {
            self.raw.cancel(key);
        }
    }
}

/// A request that the client did not take ends as all others do.
fn refusal(token: u64, error: Error) -> Completion {
    Completion { token, result: Err(error), info: Default::default(), leg: None, last: true }
}
