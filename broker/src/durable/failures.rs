//! What goes wrong with durable requests: handlers that take too long, sends that fail. Another attempt, after a pause; in
//! the end a dead letter, for people to look at.
//!
//! ```text
//! Delivered ── lease over ──> Queued, or the outcome `handlerLost`
//! Delivered ── a send's error ──> Resting ── pause over ──> Queued
//!                    └── attempts used up, rejected, or expired ──> Dead ── sent again ──> Queued
//!                                                                    └── its ttl over, dropped, too many: done
//! ```

use std::time::Duration;

use bytes::Bytes;
use ringpost_protocol::{
    Code, Content,
    message::{Tag, Verdict},
    time::TimerId,
};

use super::{DEFAULT_TTL, Gate, decide::Answered};
use crate::{
    Broker,
    slab::Key,
    state::{Request, RequestState, Session, Timer},
};

/// The pause behind the second failure; behind the first there is none, and each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Of what a handler says about a failure, this much is kept.
const MAX_MESSAGE_BYTES: usize = 1024;

/// The last thing that went wrong with a send.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) message: Bytes,
    /// When the next attempt may begin; of a dead letter, when it was given up. Milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    /// Which attempt it was that failed: the next one may be under way.
    pub(crate) attempt: u16,
    /// Set once it is a dead letter: why.
    pub(crate) dead: Option<Code>,
}

impl Broker {
    /// A handler has failed at a durable send, as it says.
    pub(crate) fn send_failed(
        &mut self,
        key: Key<Request>,
        verdict: Verdict,
        content: &Content,
        answered: Answered,
    ) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (attempt, used_up) = (request.attempt, request.attempt >= request.max_attempts);
        let pause = match verdict {
            Verdict::Reject => return self.bury(key, Code::Remote, content.payload(), Some(answered)),
            _ if used_up => return self.bury(key, Code::Remote, content.payload(), Some(answered)),
            Verdict::Retry(ms) => Duration::from_millis(u64::from(ms)),
            _ => pause_after(attempt),
        };
        request.state = RequestState::Resting;
        let rest = self.timers.insert(self.now.mono + pause, Timer::Rested(key));
        let at_ms = self.now.wall_ms.saturating_add(pause.as_millis() as u64);
        if let Some(durable) = self.durable_mut(key) {
            durable.rest = Some(rest);
            let message = shortened(content.payload());
            durable.failure = Some(Box::new(Failure { message, at_ms, attempt, dead: None }));
        }
        self.counters.retried_sends += 1;
        self.log_failure(key);
        self.wait_behind(Gate::Settled(answered));
        self.drop_payload_if_over(key);
    }

    /// The pause is over: it waits for a handler again, before those that came later.
    pub(crate) fn rested(&mut self, key: Key<Request>) {
        if self.peer_is_lost(key) {
            return;
        }
        let rest = self.durable_mut(key).and_then(|durable| durable.rest.take());
        self.stop_timer(rest);
        self.forget_former(key);
        let rests = |request: &Request| matches!(request.state, RequestState::Resting);
        if self.requests.get(key).is_some_and(rests) {
            self.queue_again(key);
        }
    }

    /// Lets it wait for a handler, before those that came later.
    pub(crate) fn queue_again(&mut self, key: Key<Request>) {
        let Some(name) = self.kept_of(key).map(|kept| kept.content.name().to_vec()) else { return };
        let action = self.action_for(&name);
        self.enqueue(action, key, true);
        self.dispatch(action);
    }

    /// Begins the time that a handler has for a durable request, or begins it anew.
    pub(crate) fn lease(&mut self, key: Key<Request>) {
        let lease = self.timers.insert(self.now.mono + self.config.handle_timeout, Timer::Lease(key));
        let before = self.durable_mut(key).and_then(|durable| durable.lease.replace(lease));
        self.stop_timer(before);
    }

    pub(crate) fn stop_timer(&mut self, timer: Option<TimerId>) {
        if let Some(timer) = timer {
            self.timers.cancel(timer);
        }
    }

    /// A handler has had a durable request for too long without a word: another one gets it.
    pub(crate) fn lease_over(&mut self, key: Key<Request>) {
        if let Some(durable) = self.durable_mut(key) {
            durable.lease = None;
        }
        if self.stranded_lease_over(key) {
            return;
        }
        let Some(request) = self.requests.get(key) else { return };
        let RequestState::Delivered(delivery) = request.state else { return };
        let (used_up, tag) = (request.attempt >= request.max_attempts, self.tag_of(request));
        self.counters.lost_attempts += 1;
        self.call_back_delivery(delivery, tag);
        if used_up {
            let message = format!(
                "the handler did not answer within {} s (the server's --handle-timeout); it may still run",
                self.config.handle_timeout.as_secs()
            );
            return self.end_with_error(key, Code::HandlerLost, message);
        }
        self.queue_again(key);
    }

    /// Makes a send a dead letter: nobody is given it any more, unless an operator sends it again.
    pub(crate) fn bury(&mut self, key: Key<Request>, code: Code, message: &[u8], answered: Option<Answered>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (queued, action, bytes) = (request.is_queued(), request.action, request.content_bytes);
        let (count, session, number, timer) = (request.count, request.session, request.number, request.timer);
        let attempt = request.attempt;
        let awaited = self.payload_of(key).is_absent();
        self.withdraw_stranded(key);
        self.payload_leaves_queue(key);
        self.payload_is_logged(key);
        let Some(request) = self.requests.get_mut(key) else { return };
        request.state = RequestState::Dead;
        request.session = Key::from_raw(u64::MAX);
        self.timers.cancel(timer);
        let timer = self.timers.insert(self.now.mono + self.config.dead_ttl, Timer::Request(key));
        if let Some(request) = self.requests.get_mut(key) {
            request.timer = timer;
        }
        if queued {
            self.left_queue_durable(action, bytes as usize, awaited);
        }
        let at_ms = self.now.wall_ms;
        self.forget_former(key);
        if let Some(durable) = self.durable_mut(key) {
            let timers = [durable.lease.take(), durable.rest.take()];
            let message = shortened(message);
            durable.failure = Some(Box::new(Failure { message, at_ms, attempt, dead: Some(code) }));
            timers.into_iter().for_each(|timer| self.stop_timer(timer));
        }
        self.counters.dead_letters += 1;
        self.log_failure(key);
        self.dead.insert(count, key);
        let tag = self.kept_of(key).map(|kept| kept.tag.clone()).unwrap_or_default();
        self.detach(session, number, &tag);
        match answered {
            Some(answered) => self.wait_behind(Gate::Settled(answered)),
            None => self.hurry_log(),
        }
        self.drop_payload_if_over(key);
        while self.dead.len() > self.config.dead_limit
            && let Some((_, oldest)) = self.dead.pop_first()
        {
            self.finish(oldest);
        }
    }

    /// Its session has nothing to do with a request any more that is kept all the same.
    pub(super) fn detach(&mut self, session_key: Key<Session>, number: u64, tag: &Tag) {
        if let Some(session) = self.sessions.get_mut(session_key)
            && session.open.remove(&number).is_some()
        {
            session.durable -= 1;
            if session.by_tag.get(tag) == Some(&number) {
                session.by_tag.remove(tag);
            }
            self.end_session_if_forgotten(session_key);
        }
        self.close_if_session_finished(session_key);
    }

    /// Whether a dead letter is one because the disk has damaged what was to be sent.
    pub(crate) fn is_damaged(&self, key: Key<Request>) -> bool {
        let failure = self.durable(key).and_then(|durable| durable.failure.as_deref());
        failure.is_some_and(|failure| failure.dead == Some(Code::DurableUnavailable))
    }

    /// Gives a dead letter another life: all its attempts, and the usual ttl. It is logged anew, whole, so its payload has to be
    /// here, and then need not stay.
    pub(crate) fn resend(&mut self, key: Key<Request>) {
        debug_assert!(!self.payload_of(key).is_absent() && !self.is_damaged(key), "{key:?} is whole");
        let ttl = DEFAULT_TTL.min(self.config.max_ttl);
        let timer = self.timers.insert(self.now.mono + ttl, Timer::Request(key));
        let Some(request) = self.requests.get_mut(key) else { return };
        let (before, count) = (std::mem::replace(&mut request.timer, timer), request.count);
        (request.attempt, request.deadline) = (0, self.now.mono + ttl);
        request.state = RequestState::Resting;
        self.timers.cancel(before);
        self.dead.remove(&count);
        let now_ms = self.now.wall_ms;
        if let Some(durable) = self.durable_mut(key) {
            durable.expires_ms = now_ms.saturating_add(ttl.as_millis() as u64);
            let failure = Failure { message: Bytes::new(), at_ms: now_ms, attempt: 0, dead: None };
            durable.failure = Some(Box::new(failure));
        }
        self.log_request(key);
        self.log_failure(key);
        self.hurry_log();
        self.queue_again(key);
        if self.requests.get(key).is_some_and(Request::is_queued) {
            self.drop_payload_if_over(key);
        }
    }
}

fn pause_after(attempt: u16) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        _ => FIRST_PAUSE.saturating_mul(1 << u32::from(attempt - 2).min(16)).min(LONGEST_PAUSE),
    }
}

fn shortened(message: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&message[..message.len().min(MAX_MESSAGE_BYTES)])
}
