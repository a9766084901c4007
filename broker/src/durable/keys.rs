//! Idempotency keys: of all durable requests to one action under one key only the first runs, until its ttl ends.
//!
//! ```text
//! first:   … Delivered ──> Decided ── acknowledged ──> claimed: kept for its key ── ttl over ──> done
//!             ^                 │
//!             │ joins           │ the same outcome
//! later:   Joined ──────────> Decided ── acknowledged, or ttl over ──> done
//! ```
//!
//! A later request has a record of its own, without data, and an outcome of its own, which is a copy: whoever was told that a
//! request is accepted gets an outcome for it, whatever becomes of the others. A later send has neither, because nothing has
//! to be known of it once it is accepted: it is accepted when the first one is stable, and that is all.

use bytes::Bytes;
use ringpost_protocol::{
    Code, Content, Headers, limits::MAX_IDEMPOTENCY_KEY_BYTES, message::Request as Asked,
};

use super::{Decided, Gate, Payload};
use crate::{
    Broker, Speaks,
    slab::Key,
    state::{Request, RequestState, Session, Timer},
};

/// The header that carries the caller's own key, in both dialects.
const HEADER: &str = "idempotency-key";
/// What a request under a key costs in memory beside what is counted as its content: its places in all tables.
const ENTRY_BYTES: usize = 512;

/// What is known of a durable request that has an idempotency key.
#[derive(Debug, Default)]
pub(crate) struct Keyed {
    /// The action, a zero byte, which no action has in it, and the key.
    pub(crate) name: Bytes,
    /// The count of the first request under this key, if it is not this one.
    pub(crate) joins: u64,
    /// Later requests that wait for the outcome of this one.
    pub(crate) joined: Vec<Key<Request>>,
    /// Its requester has the outcome, or wanted none: it is kept for its key, and has no session any more.
    pub(crate) claimed: bool,
}

impl Keyed {
    pub(crate) fn bytes(&self) -> usize {
        ENTRY_BYTES + self.name.len()
    }
}

/// A key with its action, as the table has it, and the first request under it if its ttl has not ended.
pub(super) type Named = (Bytes, Option<Key<Request>>);

/// The caller's own key in a request's headers.
pub(crate) fn idempotency_key(headers: &[u8]) -> Option<&str> {
    Headers::new(headers).filter_map(Result::ok).find(|(key, _)| *key == HEADER).map(|(_, value)| value)
}

/// The same with the action that it is for, as the table has it.
pub(super) fn table_name(content: &Content) -> Option<Bytes> {
    let key = idempotency_key(content.headers())?;
    Some([content.name(), b"\0", key.as_bytes()].concat().into())
}

impl Broker {
    /// Refuses a plain request with a key: nothing is kept of it that a second one could be told.
    #[cold]
    pub(crate) fn check_plain_key(&self, headers: &[u8]) -> Result<(), (Code, String)> {
        match idempotency_key(headers) {
            Some(_) => Err((
                Code::Unsupported,
                "an idempotency key needs a durable request: send it with `durable`, or without the key"
                    .to_owned(),
            )),
            None => Ok(()),
        }
    }

    /// The key of a durable request, if it has one.
    pub(super) fn key_of(&self, asked: &Asked) -> Result<Option<Named>, (Code, String)> {
        if asked.content.headers().is_empty() {
            return Ok(None);
        }
        let Some(name) = table_name(&asked.content) else { return Ok(None) };
        let bytes = name.len() - asked.content.name().len() - 1;
        if !(1..=MAX_IDEMPOTENCY_KEY_BYTES).contains(&bytes) {
            let message =
                format!("an idempotency key of {bytes} bytes: 1 to {MAX_IDEMPOTENCY_KEY_BYTES} are allowed");
            return Err((Code::Malformed, message));
        }
        let first = self.keys.get(&name).copied();
        let first =
            first.filter(|first| self.requests.get(*first).is_some_and(|it| it.deadline > self.now.mono));
        if let Some(request) = first.and_then(|first| self.requests.get(first)) {
            if asked.flags.has(ringpost_protocol::message::RequestFlags::SEND) == request.wants_reply() {
                let (this, first) = match request.wants_reply() {
                    true => ("send", "request"),
                    false => ("request", "send"),
                };
                let message = format!(
                    "a {first} has this idempotency key, and this is a {this}: give it a key of its own"
                );
                return Err((Code::Malformed, message));
            }
        } else if self.keys.len() >= self.config.idempotency_limit {
            let message = format!(
                "{} idempotency keys are remembered, and no more can be: try again later, or give such requests a \
                 shorter ttl (the server's --idempotency-limit)",
                self.keys.len()
            );
            return Err((Code::Overloaded, message));
        }
        Ok(Some((name, first)))
    }

    /// A durable request is the first under its key.
    pub(super) fn first_under(&mut self, name: Bytes, key: Key<Request>) {
        self.set_keyed(key, Keyed { name: name.clone(), ..Keyed::default() });
        self.keys.insert(name, key);
    }

    pub(super) fn set_keyed(&mut self, key: Key<Request>, keyed: Keyed) {
        let bytes = keyed.bytes();
        if let Some(durable) = self.durable_mut(key) {
            durable.keyed = Some(Box::new(keyed));
            self.kept_bytes += bytes;
        }
    }

    /// A durable request has come whose key another one had first: it is accepted, gets what that one gets, and runs never.
    pub(super) fn join(
        &mut self,
        session_key: Key<Session>,
        speaks: Speaks,
        asked: &mut Asked,
        (name, first): (Bytes, Key<Request>),
    ) {
        self.counters.joined_requests += 1;
        let content = &asked.content;
        asked.content = Content::with_tag(content.name(), content.tag(), b"", content.headers(), b"");
        let number = asked.number;
        let Some(key) = self.insert_durable(session_key, speaks, asked, RequestState::Joined) else { return };
        let Some(joins) = self.requests.get(first).map(|first| first.count) else { return };
        self.set_keyed(key, Keyed { name, joins, ..Keyed::default() });
        if self.requests.get(key).is_some_and(Request::wants_reply) {
            self.log_request(key);
        }
        self.wait_behind(Gate::Accept { request: key, session: session_key, number });
        self.wait_for(key, first);
    }

    /// Gives a request the outcome of the first under its key, now or when there is one.
    pub(super) fn wait_for(&mut self, key: Key<Request>, first: Key<Request>) {
        if !self.requests.get(key).is_some_and(Request::wants_reply) {
            return;
        }
        let Some(durable) = self.durable_mut(first) else { return };
        match (durable.decided, durable.keyed.as_deref_mut()) {
            (Some(decided), _) => self.decide_like(key, first, decided),
            (None, Some(keyed)) => {
                let mut joined = std::mem::take(&mut keyed.joined);
                if joined.len() == joined.capacity() {
                    // Those that have ended meanwhile are swept out before the list grows.
                    joined.retain(|key| self.has_joined(*key));
                    joined.reserve(joined.len() + 1);
                }
                joined.push(key);
                if let Some(keyed) = self.durable_mut(first).and_then(|durable| durable.keyed.as_deref_mut())
                {
                    keyed.joined = joined;
                }
            }
            (None, None) => debug_assert!(false, "{first:?} has no key"),
        }
    }

    /// Whether it waits for the outcome of another one: it was not cancelled, nor has its time ended.
    fn has_joined(&self, key: Key<Request>) -> bool {
        self.requests.get(key).is_some_and(|request| matches!(request.state, RequestState::Joined))
    }

    /// The first request under a key is decided: so are those that joined it.
    pub(super) fn decide_joined(&mut self, first: Key<Request>) {
        let Some(durable) = self.durable_mut(first) else { return };
        let Some(decided) = durable.decided else { return };
        let joined = durable.keyed.as_deref_mut().map(|keyed| std::mem::take(&mut keyed.joined));
        for key in joined.unwrap_or_default() {
            self.decide_like(key, first, decided);
        }
    }

    fn decide_like(&mut self, key: Key<Request>, first: Key<Request>, decided: Decided) {
        if !self.has_joined(key) {
            return;
        }
        let Some(content) = self.kept_of(first).map(|kept| kept.content.clone()) else { return };
        let Some(before) = self.requests.get(first) else { return };
        let (attempt, delivered_after_ms, received) =
            (before.attempt, before.delivered_after_ms, before.received);
        let Some(request) = self.requests.get_mut(key) else { return };
        // What happened before it came was at once for it.
        let earlier_ms =
            request.received.mono.since(received.mono).as_millis().min(u128::from(u32::MAX)) as u32;
        let after = |ms: u32| if ms == u32::MAX { ms } else { ms.saturating_sub(earlier_ms) };
        (request.attempt, request.delivered_after_ms) = (attempt, after(delivered_after_ms));
        self.decide_with(key, decided.code, content, after(decided.handled_after_ms), None);
    }

    /// A send under a key that another one had first is accepted: that was all.
    pub(super) fn joined_send_accepted(&mut self, key: Key<Request>) {
        if let Some(ended) = self.forget(key) {
            self.end_session_if_forgotten(ended.session);
            self.close_if_session_finished(ended.session);
        }
    }

    /// Whether a request that is over is still to be kept for its key.
    pub(super) fn outlives_its_requester(&self, key: Key<Request>) -> bool {
        let first = |keyed: &Keyed| keyed.joins == 0 && !keyed.claimed;
        let keyed = self.durable(key).and_then(|durable| durable.keyed.as_deref());
        keyed.is_some_and(first)
            && self.requests.get(key).is_some_and(|request| request.deadline > self.now.mono)
    }

    /// The requester has the outcome, or wanted none: what became of the request is kept until its ttl ends, for those
    /// that come with the same key.
    pub(super) fn claim(&mut self, key: Key<Request>) {
        self.set_payload(key, Payload::None);
        let Some(request) = self.requests.get_mut(key) else { return };
        let (session, number, wants_reply) = (request.session, request.number, request.wants_reply());
        let (deadline, count, before) = (request.deadline, request.count, request.timer);
        (request.state, request.session) = (RequestState::Decided, Key::from_raw(u64::MAX));
        request.timer = self.timers.insert(deadline, Timer::Request(key));
        self.timers.cancel(before);
        self.dead.remove(&count);
        if !wants_reply {
            self.keep_what_was_asked(key);
            self.keep(key, Content::default());
        }
        let mut sequence = None;
        if let Some(durable) = self.durable_mut(key) {
            let timers = [durable.lease.take(), durable.rest.take()];
            durable.failure = None;
            sequence = durable.decided.as_mut().and_then(|decided| decided.sequence.take());
            if let Some(keyed) = durable.keyed.as_deref_mut() {
                keyed.claimed = true;
            }
            timers.into_iter().for_each(|timer| self.stop_timer(timer));
        }
        self.claimed += 1;
        self.log_claimed(key);
        if let (Some(sequence), Some(session)) = (sequence, self.sessions.get_mut(session)) {
            session.durable_outcomes.remove(&sequence);
        }
        let kept = self.requests.get(key).and_then(|request| self.kept.get_mut(request.kept?));
        let tag = kept.map(|kept| std::mem::take(&mut kept.tag)).unwrap_or_default();
        self.detach(session, number, &tag);
    }

    /// The log says that it is kept for its key only.
    pub(super) fn claimed_before(&mut self, key: Key<Request>) {
        let Some(durable) = self.durable_mut(key) else { return };
        let (undecided, places) = (durable.decided.is_none(), durable.places.later_mut());
        let before = if undecided { [places.delivered.take(), places.reply.take()] } else { [None, None] };
        if let Some(keyed) = durable.keyed.as_deref_mut() {
            keyed.claimed = true;
            self.claimed += 1;
        }
        if let Some(log) = self.log() {
            before.into_iter().flatten().for_each(|before| log.died(before));
        }
    }

    /// Forgets a key with the request that was the first under it.
    pub(crate) fn forget_key(&mut self, key: Key<Request>, keyed: &Keyed) {
        self.kept_bytes -= keyed.bytes();
        self.claimed -= usize::from(keyed.claimed);
        if self.keys.get(&keyed.name) == Some(&key) {
            self.keys.remove(&keyed.name);
        }
    }
}
