//! The way out: the outcome of a durable request, from its record to the word that nobody needs it any more.

use ringpost_protocol::{
    Code, Content,
    limits::MIN_COUNTED_BYTES,
    message::{PeerMessage, Reply, RequestFlags, Run, ServerMessage, Tag},
};

use super::{Decided, Durable, Gate, Payload};
use crate::{
    Broker, ConnId,
    delivery::millis_between,
    slab::Key,
    state::{Connection, Kept, Request, RequestState, Session, Timer},
};

/// A handler's answer, to be acknowledged when what follows from it is stable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) conn: ConnId,
    /// Which of those that had this number.
    pub(crate) connection: u64,
    pub(crate) by: By,
}

/// What an answer is called where it came from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum By {
    /// A handler's, among its session's. 0 in JSON, which has no word for it.
    Sequence(u64),
    /// A peer's.
    Run(Run),
}

impl Broker {
    /// Decides a durable request: the one outcome that it will ever have. It goes out once its record is stable.
    pub(crate) fn decide(
        &mut self,
        key: Key<Request>,
        code: Option<Code>,
        content: Content,
        answered: Option<Answered>,
    ) {
        let handled = self.requests.get(key).filter(|_| answered.is_some());
        let handled_after_ms =
            handled.map_or(u32::MAX, |request| millis_between(request.received.mono, self.now.mono));
        self.decide_with(key, code, content, handled_after_ms, answered);
    }

    pub(super) fn decide_with(
        &mut self,
        key: Key<Request>,
        code: Option<Code>,
        mut content: Content,
        handled_after_ms: u32,
        answered: Option<Answered>,
    ) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (queued, action, content_bytes) = (request.is_queued(), request.action, request.content_bytes);
        // A send that joined another is over when it is accepted, which it will be.
        let joined_send = matches!(request.state, RequestState::Joined) && !request.wants_reply();
        if matches!(request.state, RequestState::Decided | RequestState::Dead) || joined_send {
            return;
        }
        if let Some(code) = code.filter(|code| !request.wants_reply() && *code != Code::Cancelled) {
            return self.bury(key, code, content.payload(), answered);
        }
        let awaited = self.payload_of(key).is_absent();
        self.withdraw_stranded(key);
        self.set_payload(key, Payload::None);
        let Some(request) = self.requests.get_mut(key) else { return };
        request.state = RequestState::Decided;
        let (deadline, timer, wants_reply) = (request.deadline, request.timer, request.wants_reply());
        self.forget_former(key);
        let timers = self.durable_mut(key).map(|durable| [durable.lease.take(), durable.rest.take()]);
        timers.into_iter().flatten().for_each(|timer| self.stop_timer(timer));
        if !wants_reply {
            return self.finish_send(key, queued, awaited, answered);
        }
        let until = self.now.mono + self.config.session_linger;
        if deadline < until {
            // However late it is, its outcome is to be had for as long as a session without a client: it has yet to become
            // stable, and to arrive.
            self.timers.cancel(timer);
            let timer = self.timers.insert(until, Timer::Request(key));
            if let Some(request) = self.requests.get_mut(key) {
                request.timer = timer;
            }
        }
        self.keep_what_was_asked(key);
        content.count_large(MIN_COUNTED_BYTES, &self.large);
        self.keep(key, content);
        if let Some(durable) = self.durable_mut(key) {
            durable.decided = Some(Decided { code, handled_after_ms, stable: false, sequence: None });
        }
        self.log_outcome(key);
        if queued {
            self.left_queue_durable(action, content_bytes as usize, awaited);
        }
        #[cfg(feature = "planted-bugs")]
        if self.config.is_planted(crate::PlantedBug::AnsweredEarly) {
            return self.outcome_is_stable(key, answered);
        }
        self.wait_behind(Gate::Outcome { request: key, answered });
        self.decide_joined(key);
    }

    /// The request's content makes room for the outcome's: of its own, action and headers stay.
    pub(super) fn keep_what_was_asked(&mut self, key: Key<Request>) {
        let Some(kept) = self.requests.get(key).and_then(|request| self.kept.get_mut(request.kept?)) else {
            return;
        };
        let Kept { content, durable: Some(durable), .. } = kept else { return };
        let asked = Content::from_parts(content.name(), b"", content.headers(), b"");
        self.kept_bytes += asked.len();
        durable.asked = Some(Box::new(asked));
    }

    /// A handler left while it held a durable request: that was no fault of the request.
    pub(crate) fn attempt_does_not_count(&mut self, key: Key<Request>) {
        if let Some(request) = self.requests.get_mut(key).filter(|request| request.is_durable()) {
            request.attempt = request.attempt.saturating_sub(1);
        }
    }

    /// A send needs nothing more once it was handled, or is given up.
    fn finish_send(&mut self, key: Key<Request>, queued: bool, awaited: bool, answered: Option<Answered>) {
        let Some(request) = self.requests.get(key) else { return };
        let (action, content_bytes) = (request.action, request.content_bytes);
        if queued {
            self.left_queue_durable(action, content_bytes as usize, awaited);
        }
        self.finish(key);
        match answered {
            Some(answered) => self.wait_behind(Gate::Settled(answered)),
            // Cancelled: it must not run after all.
            None => self.hurry_log(),
        }
    }

    /// The outcome's record is stable.
    pub(super) fn outcome_is_stable(&mut self, key: Key<Request>, answered: Option<Answered>) {
        self.put_out_stable(key);
        // Behind the reply: that is what somebody waits for.
        if let Some(answered) = answered {
            self.settled(answered);
        }
    }

    fn put_out_stable(&mut self, key: Key<Request>) {
        let Some(decided) = self.durable_mut(key).and_then(|durable| durable.decided.as_mut()) else {
            return;
        };
        decided.stable = true;
        let Some(session) = self.requests.get(key).map(|request| request.session) else { return };
        if self.sessions.contains(session) {
            self.put_out_durable(session, key);
        } else {
            // It had no name: nobody can come back for this.
            self.finish(key);
        }
    }

    /// A handler's answer has had its effect for good. It is told so if it is still there: on another connection the same
    /// sequence is another answer's.
    pub(crate) fn settled(&mut self, answered: Answered) {
        let there = |connection: &Connection| {
            connection.count == answered.connection && connection.speaks == crate::Speaks::Binary
        };
        if !self.connection(answered.conn).is_some_and(there) {
            return;
        }
        let message = match answered.by {
            By::Sequence(0) => return,
            By::Sequence(sequence) => ServerMessage::Acknowledge { sequence },
            By::Run(run) => ServerMessage::Peer(Box::new(PeerMessage::Taken(run))),
        };
        self.send(answered.conn, message);
    }

    /// Sends an outcome, and gives it its place in its session, if the client listens and wants it.
    pub(crate) fn put_out_durable(&mut self, session_key: Key<Session>, key: Key<Request>) {
        let (Some(session), Some(request)) = (self.sessions.get(session_key), self.requests.get(key)) else {
            return;
        };
        // Who is away gets it when it resumes; who began anew did not ask for what was there before.
        let concerned = request.session == session_key && self.concerns(session_key, key);
        let Some(conn) = session.listens().filter(|_| concerned) else { return };
        self.give_sequence(session_key, key);
        if let Some(reply) = self.durable_reply(key) {
            if let Some(asked) = self.asked(key) {
                self.send(conn, asked);
            }
            self.send(conn, ServerMessage::Reply(reply));
        }
        if self.will_not_acknowledge(conn, key) {
            return self.finish(key);
        }
        self.close_if_session_finished(session_key);
    }

    /// JSON clients that did not ask for durability know no word for "I have it".
    fn will_not_acknowledge(&self, conn: ConnId, key: Key<Request>) -> bool {
        let made = |request: &Request| request.flags.has(RequestFlags::MADE_DURABLE);
        self.requests.get(key).is_some_and(made)
            && self.connection(conn).is_some_and(|connection| connection.speaks == crate::Speaks::Json)
    }

    /// A decided request's outcome, as it goes to the requester.
    pub(crate) fn durable_reply(&self, key: Key<Request>) -> Option<Reply> {
        let (request, kept) = (self.requests.get(key)?, self.kept_of(key)?);
        let decided = kept.durable.as_deref()?.decided?;
        Some(Reply {
            number: request.number,
            tag: kept.tag.clone(),
            sequence: decided.sequence?,
            code: decided.code,
            leg: None,
            attempt: request.attempt,
            received_at_ms: request.received.wall_ms,
            delivered_after_ms: request.delivered_after_ms,
            handled_after_ms: decided.handled_after_ms,
            content: kept.content.clone(),
        })
    }

    /// Says what a decided request was, if whoever gets its reply may not know: it is another process than the one that asked.
    pub(crate) fn asked(&self, key: Key<Request>) -> Option<ServerMessage> {
        let (request, kept) = (self.requests.get(key)?, self.kept_of(key)?);
        let (durable, session) = (kept.durable.as_deref()?, self.sessions.get(request.session)?);
        let known = durable.instance == session.speaker.instance && !durable.inherited;
        (!known).then(|| ServerMessage::Asked {
            number: request.number,
            tag: kept.tag.clone(),
            content: durable.asked.as_deref().cloned().unwrap_or_default(),
        })
    }

    /// The session's client has all outcomes up to this one: those of durable requests need not be kept.
    pub(crate) fn acknowledge_durable(&mut self, key: Key<Session>, sequence: u64) {
        while let Some(session) = self.sessions.get_mut(key)
            && let Some(first) = session.durable_outcomes.first_entry()
            && *first.key() <= sequence
        {
            let request = first.remove();
            self.finish(request);
        }
    }

    /// JSON: the client has the outcome of its newest request under this `clientId`.
    pub(crate) fn acknowledge_tag(&mut self, conn: ConnId, tag: &[u8]) {
        let Some(key) = self.connection(conn).and_then(|connection| connection.session) else { return };
        let Some(session) = self.sessions.get(key) else { return };
        let number = session.by_tag.get(&Tag::from_slice(tag));
        let request = number.and_then(|number| session.open.get(number)).copied();
        let decided = |request: &Key<Request>| {
            self.durable(*request).and_then(|durable| durable.decided).is_some_and(|decided| decided.stable)
        };
        if let Some(request) = request.filter(decided) {
            self.finish(request);
        }
    }

    /// Nothing more needs to be known of a durable request.
    pub(crate) fn finish(&mut self, key: Key<Request>) {
        if self.outlives_its_requester(key) {
            return self.claim(key);
        }
        if let Some(request) = self.requests.get(key) {
            self.dead.remove(&request.count);
        }
        let sequence = self.durable(key).and_then(|durable| durable.decided?.sequence);
        self.log_done(key);
        let Some(ended) = self.forget(key) else { return };
        if let Some(session) = self.sessions.get_mut(ended.session) {
            if let Some(sequence) = sequence {
                session.durable_outcomes.remove(&sequence);
            }
            self.end_session_if_forgotten(ended.session);
        }
        self.close_if_session_finished(ended.session);
    }

    /// A durable request is in no table any more.
    #[cold]
    pub(crate) fn forget_durable(&mut self, key: Key<Request>, durable: &Durable) {
        self.kept_bytes -= durable.asked_bytes();
        if let Some(former) = &durable.former {
            self.formers.remove(former);
        }
        [durable.lease, durable.rest].into_iter().for_each(|timer| self.stop_timer(timer));
        if let Some(keyed) = &durable.keyed {
            self.forget_key(key, keyed);
        }
    }

    /// A session whose client stayed away was only kept for what is durable.
    pub(super) fn end_session_if_forgotten(&mut self, key: Key<Session>) {
        let forgotten =
            |session: &Session| session.conn.is_none() && session.linger.is_none() && session.durable == 0;
        if self.sessions.get(key).is_some_and(forgotten) {
            self.end_session(key);
        }
    }
}
