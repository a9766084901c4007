//! Where the payload of a durable request is, as long as that has no outcome: in memory, or only in the log.
//!
//! ```text
//!              over the bound, and not needed next
//! New ─> Held ─────────────────────────────────────> Stored
//!        ^                                             │ its turn is near; its segment is to be emptied; an operator
//!        │  checked                                    v sends it again
//!        └────────────────────────────────────────  Reading ── damaged ──> None: it ends with an error
//!                                                    │  ^
//!                                                    └──┘ out of reach: again, after a pause
//! ```
//!
//! **What is dropped first** is what is needed last: what comes while the bound is reached, or while others before it in its
//! queue are not in memory either; and what a handler has got, which is needed again only if that handler is lost. So the head
//! of a queue stays, and nothing that is dispatched at once is ever read.
//!
//! **What is read ahead.** As a queue's head is consumed, what comes next is read in batches, so that a long queue is read like
//! a file and not request by request. Held are at most three quarters of the bound; the last one is for what is read ahead.
//! Each queue that is served may have [`LEAST_AHEAD`] requests beyond that, or no queue could go on while others are full.
//!
//! What stays in memory of each is its action and headers, which outcomes need.

use ringpost_protocol::Content;

use crate::{
    Broker,
    slab::Key,
    state::{Action, Request},
};

/// Bytes that are read ahead for one queue at most.
const MOST_AHEAD_BYTES: usize = 8 << 20;
/// What each of them counts beside its content: so many small ones are not looked through again and again.
const AHEAD_OVERHEAD_BYTES: usize = 256;
/// Requests that are read ahead for a queue whatever the bound says, …
const LEAST_AHEAD: usize = 16;
/// … as long as they are no longer than this together, or there is only one.
const LEAST_AHEAD_BYTES: usize = 64 << 10;

/// Where a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Payload {
    /// Nowhere: it is decided, or joined another, or was damaged.
    #[default]
    None,
    /// In memory; its record is not stable yet.
    New,
    /// In memory, and in the log.
    Held,
    /// In the log only.
    Stored,
    /// The same, and it is being read.
    Reading,
}

impl Payload {
    pub(crate) fn is_absent(self) -> bool {
        matches!(self, Self::Stored | Self::Reading)
    }
}

/// How much is where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PayloadBytes {
    /// In memory for as long as their records take to be stable: the bound is not for them.
    pub(crate) new: usize,
    /// In memory, or on its way there.
    pub(crate) held: usize,
    /// In the log only, and not being read.
    pub(crate) stored: usize,
}

impl PayloadBytes {
    pub(crate) fn add(&mut self, payload: Payload, bytes: usize) {
        match payload {
            Payload::None => {}
            Payload::New => self.new += bytes,
            Payload::Held | Payload::Reading => self.held += bytes,
            Payload::Stored => self.stored += bytes,
        }
    }

    pub(crate) fn subtract(&mut self, payload: Payload, bytes: usize) {
        match payload {
            Payload::None => {}
            Payload::New => self.new -= bytes,
            Payload::Held | Payload::Reading => self.held -= bytes,
            Payload::Stored => self.stored -= bytes,
        }
    }
}

impl Broker {
    pub(crate) fn payload_of(&self, key: Key<Request>) -> Payload {
        self.durable(key).map_or(Payload::None, |durable| durable.payload)
    }

    pub(super) fn set_payload(&mut self, key: Key<Request>, to: Payload) {
        let Some(request) = self.requests.get(key) else { return };
        let (bytes, queue) = (request.content_bytes as usize, request.is_queued().then_some(request.action));
        let Some(durable) = self.durable_mut(key) else { return };
        let from = std::mem::replace(&mut durable.payload, to);
        if durable.stays && !to.is_absent() {
            durable.stays = false;
            let place = durable.places.request;
            self.may_move_again(key, place);
        }
        self.payload_bytes.subtract(from, bytes);
        self.payload_bytes.add(to, bytes);
        if let Some(action) = queue.and_then(|action| self.actions.get_mut(action)) {
            action.queue.absent += usize::from(to.is_absent());
            action.queue.absent -= usize::from(from.is_absent());
        }
    }

    /// A durable request stands in its action's queue now.
    pub(crate) fn payload_joins_queue(&mut self, key: Key<Request>) {
        let absent = self.payload_of(key).is_absent();
        let action = self.requests.get(key).map(|request| request.action);
        if let Some(action) = action.filter(|_| absent).and_then(|action| self.actions.get_mut(action)) {
            action.queue.absent += 1;
            action.queue.look_after = 0;
        }
    }

    /// A durable request is about to end, and with it all that wait behind it: nobody waits for its payload.
    pub(crate) fn give_up_payload(&mut self, key: Key<Request>) {
        self.set_payload(key, Payload::None);
    }

    /// A durable request is about to leave its action's queue without having been dispatched, if it is in one.
    pub(super) fn payload_leaves_queue(&mut self, key: Key<Request>) {
        let absent = self.payload_of(key).is_absent();
        let queued = self.requests.get(key).filter(|request| absent && request.is_queued());
        if let Some(action) = queued.map(|request| request.action).and_then(|it| self.actions.get_mut(it)) {
            action.queue.absent -= 1;
        }
    }

    /// A durable request that waited ends. If its payload was not here, others may have waited behind it for that: the next
    /// one has its turn.
    pub(super) fn left_queue_durable(&mut self, action: Key<Action>, bytes: usize, absent: bool) {
        self.left_queue(action, bytes);
        if absent {
            self.dispatch(action);
        }
    }

    /// What was new is in the log now.
    pub(super) fn payload_is_logged(&mut self, key: Key<Request>) {
        if self.payload_of(key) == Payload::New {
            self.set_payload(key, Payload::Held);
        }
    }

    /// Whether as much is held as may be without what is read ahead.
    fn is_over_queue_memory(&self) -> bool {
        self.payload_bytes.held > self.config.queue_memory_bytes / 4 * 3
    }

    /// Drops a payload that is not needed next, if there are too many.
    pub(crate) fn drop_payload_if_over(&mut self, key: Key<Request>) {
        let Some(request) = self.requests.get(key) else { return };
        let others = self.actions.get(request.action).is_some_and(|action| action.queue.absent > 0);
        if others || self.is_over_queue_memory() {
            self.drop_payload(key);
        }
    }

    fn drop_payload(&mut self, key: Key<Request>) {
        let Some(request) = self.requests.get(key) else { return };
        let Some(kept) = request.kept.and_then(|kept| self.kept.get_mut(kept)) else { return };
        let droppable =
            |durable: &super::Durable| durable.payload == Payload::Held && durable.places.request.is_some();
        if !kept.durable.as_deref().is_some_and(droppable) {
            return;
        }
        let content = &kept.content;
        let known = self.actions.get(request.action).filter(|action| *action.name == *content.name());
        let rest = match known {
            Some(action) if content.headers().is_empty() => Content::from_name(action.name.clone()),
            _ => Content::from_parts(content.name(), b"", content.headers(), b""),
        };
        self.kept_bytes += rest.uncounted_len();
        self.kept_bytes -= kept.content.uncounted_len();
        kept.content = rest;
        self.set_payload(key, Payload::Stored);
    }

    /// Whether the first request that waits can be dispatched. Sees to it that it can soon be, and those behind it.
    #[cold]
    pub(crate) fn first_is_here(&mut self, action_key: Key<Action>) -> bool {
        let Some(action) = self.actions.get_mut(action_key) else { return false };
        let queue = &mut action.queue;
        let is_stale = |key: &Key<Request>| !self.requests.get(*key).is_some_and(Request::is_queued);
        while queue.line.front().is_some_and(is_stale) {
            queue.line.pop_front();
        }
        let Some(first) = queue.line.front().copied() else { return false };
        let due = queue.look_after == 0;
        queue.look_after = queue.look_after.saturating_sub(1);
        match self.payload_of(first) {
            Payload::Reading => false,
            Payload::Stored => {
                self.read_ahead(action_key);
                false
            }
            Payload::Held | Payload::New | Payload::None => {
                if due {
                    self.read_ahead(action_key);
                }
                true
            }
        }
    }

    /// Asks for what is to be dispatched next and is not in memory, as far as there is room for it.
    fn read_ahead(&mut self, action_key: Key<Action>) {
        let Some(action) = self.actions.get(action_key) else { return };
        let most = (self.config.queue_memory_bytes / 4).min(MOST_AHEAD_BYTES);
        let mut room = self.config.queue_memory_bytes.saturating_sub(self.payload_bytes.held);
        let (mut wanted, mut passed, mut ahead) = (Vec::new(), 0, 0);
        for key in &action.queue.line {
            let Some(request) = self.requests.get(*key).filter(|request| request.is_queued()) else {
                continue;
            };
            let bytes = request.content_bytes as usize;
            let least = passed == 0 || (passed < LEAST_AHEAD && ahead + bytes <= LEAST_AHEAD_BYTES);
            if ahead + bytes > most && !least {
                break;
            }
            if request.is_durable() && self.payload_of(*key) == Payload::Stored {
                if bytes > room && !least {
                    break;
                }
                room = room.saturating_sub(bytes);
                wanted.push(*key);
            }
            passed += 1;
            ahead += bytes + AHEAD_OVERHEAD_BYTES;
        }
        if let Some(action) = self.actions.get_mut(action_key) {
            action.queue.look_after = passed / 2;
        }
        self.read_back(&wanted);
    }
}
