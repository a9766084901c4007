//! The checks and defaults that turn a client's request into a living one, and the ends that come from the requester's
//! side: cancel, time, its own end.

use std::time::Duration;

use ringpost_protocol::{
    Code, Content,
    limits::{MIN_COUNTED_BYTES, check_name, check_own_name},
    message::{Reply, Request as Asked, RequestFlags, Tag, Target},
    time::Time,
};

use crate::{
    Broker, ConnId, Speaks,
    broker::Drain,
    dispatch::no_handler,
    durable::Gate,
    slab::Key,
    state::{Action, Kept, LegState, Request, RequestState, Session, Timer},
};

/// The key that names the bound, for messages.
const QUEUE_LIMIT: &str = "the server's --queue-limit";

/// When a request ends by itself, and with what.
pub(crate) struct Deadline {
    pub(crate) at: Time,
    pub(crate) ends_with: Code,
}

impl Broker {
    pub(crate) fn request(&mut self, conn: ConnId, asked: &mut Asked) {
        self.counters.requests += 1;
        let Some(connection) = self.connection(conn) else { return };
        let (speaks, Some(session_key)) = (connection.speaks, connection.session) else { return };
        let limited = connection.granted.limits_requests;
        let Some(mut session) = self.sessions.get_mut(session_key) else { return };
        if !session.caught_up {
            self.begin_anew(session_key);
            let Some(anew) = self.sessions.get_mut(session_key) else { return };
            session = anew;
        }
        if asked.number == 0 {
            asked.number = session.next_number;
        } else if asked.number < session.next_number {
            let (number, next) = (asked.number, session.next_number);
            let message =
                format!("request {number}: numbers rise within a session, the next is {next} or more");
            return self.break_off(conn, &message);
        }
        let Some(next_number) = asked.number.checked_add(1) else {
            let message = "request 18446744073709551615: no number could follow it; begin at 1";
            return self.break_off(conn, message);
        };
        session.next_number = next_number;
        let behind = !session.unstable.is_empty();
        let from_peer = || self.is_from_peer(session_key);
        if self.config.durable_all && asked.becomes_durable() && !from_peer() {
            asked.flags = asked.flags.with(RequestFlags::DURABLE).with(RequestFlags::MADE_DURABLE);
        }
        match self.admit(limited.then_some(conn), asked) {
            Ok(Admission::Plain(action)) => self.accept(conn, session_key, action, speaks, behind, asked),
            Ok(Admission::Durable) => self.accept_durable(conn, session_key, speaks, asked),
            Err(Refusal::Internal) => self.answer_control(conn, session_key, speaks, asked),
            Err(Refusal::Error(code, message)) => self.refuse(conn, session_key, asked, code, message),
        }
    }

    /// Whether a request may come in, and the action that it is for. `limited`: its connection, if that may not ask for
    /// everything.
    fn admit(&self, limited: Option<ConnId>, asked: &Asked) -> Result<Admission, Refusal> {
        let name = asked.content.name();
        // Before it can be told what there is, and what state that is in. The server's own actions have a rule of their own.
        if let Some(conn) = limited.filter(|_| !name.starts_with(b"$sys."))
            && let Some((code, message)) = self.forbids_requesting(conn, name)
        {
            return Err(Refusal::Error(code, message));
        }
        if !asked.content.headers().is_empty() && !asked.flags.has(RequestFlags::DURABLE) {
            self.check_plain_key(asked.content.headers())
                .map_err(|(code, message)| Refusal::Error(code, message))?;
        }
        // A known action has been checked when it was registered.
        if let Some(action) = self.action_by_name.get(name)
            && !asked.flags.has(RequestFlags::DURABLE)
            && self.drain == Drain::No
        {
            return Ok(Admission::Plain(*action));
        }
        if let Err(error) = check_name(name) {
            return Err(Refusal::Error(Code::Malformed, error.to_string()));
        }
        if name.starts_with(b"$sys.") {
            return Err(Refusal::Internal);
        }
        let text = String::from_utf8_lossy(name);
        if let Err(error) = check_own_name(name) {
            return Err(Refusal::Error(
                Code::ReservedName,
                format!("no request can go to `{text}`: {error}"),
            ));
        }
        if asked.flags.has(RequestFlags::DURABLE) {
            return Ok(Admission::Durable);
        }
        if self.drain != Drain::No {
            let message = "the server is leaving and takes no new requests: connect to another".to_owned();
            return Err(Refusal::Error(Code::Draining, message));
        }
        Err(Refusal::Error(Code::NoHandler, no_handler(&text)))
    }

    /// Takes a plain request in. `behind`: what its session sent before it is not stable yet.
    #[inline(always)]
    fn accept(
        &mut self,
        conn: ConnId,
        session_key: Key<Session>,
        action_key: Key<Action>,
        speaks: Speaks,
        behind: bool,
        asked: &mut Asked,
    ) {
        if self.requests.is_full() || self.deliveries.is_full() {
            let message = "the server holds as many requests as it can: try again later".to_owned();
            return self.refuse(conn, session_key, asked, Code::Overloaded, message);
        }
        let Some(action) = self.actions.get(action_key) else { return };
        if action.handlers.is_empty()
            && let Some(message) = self.forbids_far(action_key, session_key)
        {
            return self.refuse(conn, session_key, asked, Code::NoHandler, message);
        }
        let broadcast = asked.flags.has(RequestFlags::BROADCAST);
        let at_once = !broadcast
            && !behind
            && action.queue.waiting == 0
            && !action.ready.is_empty()
            && self.may_dispatch();
        // Only where no handler of this server can take it.
        let far = (!at_once && !broadcast && !behind && action.far.is_some() && action.queue.waiting == 0)
            .then(|| self.far_turn(action_key, session_key).filter(|_| self.may_dispatch()))
            .flatten();
        if !(at_once || broadcast || far.is_some())
            && let Some(message) = self.over_queue_limit(action_key, asked.content.len())
        {
            return self.refuse(conn, session_key, asked, Code::Overloaded, message);
        }
        let to_be_kept = !at_once || asked.max_attempts > 1;
        let more_bytes = if to_be_kept { asked.content.uncounted_len() } else { 0 };
        if self.is_over_memory(more_bytes) {
            return self.refuse_for_memory(conn, session_key, asked);
        }
        let deadline = self.deadline(asked, speaks);
        let key = self.requests.next_key();
        let timer = self.timers.insert(deadline.at, Timer::Request(key));
        self.request_count += 1;
        let (number, flags) = (asked.number, asked.flags);
        let content = std::mem::take(&mut asked.content);
        let max_attempts = u16::from(asked.max_attempts.max(1));
        self.requests.insert(Request {
            session: session_key,
            number,
            action: action_key,
            flags,
            max_attempts,
            attempt: 0,
            count: self.request_count,
            received: self.now,
            deadline: deadline.at,
            ends_with: deadline.ends_with,
            timer,
            delivered_after_ms: u32::MAX,
            kept: None,
            content_bytes: content.len() as u32,
            state: if behind { RequestState::Logging } else { RequestState::Queued },
        });
        if let Some(session) = self.sessions.get_mut(session_key) {
            session.open.insert(number, key);
        }
        if flags.has(RequestFlags::SEND) {
            self.accept_send(session_key, speaks, number);
        }
        if !content.tag().is_empty() {
            self.keep_tag(key, session_key, number, content.tag());
        }
        if behind {
            self.keep(key, content);
            self.wait_behind(Gate::Accept { request: key, session: session_key, number });
        } else if at_once {
            self.dispatch_now(action_key, key, Some(content));
        } else if broadcast {
            self.counters.broadcasts += 1;
            self.keep(key, content);
            self.start_broadcast(key);
        } else if let Some(handler) = far {
            self.forward(key, handler, Some(content));
        } else {
            self.keep(key, content);
            self.enqueue(action_key, key, false);
            self.dispatch(action_key);
        }
    }

    /// A send is taken: its requester is told so at the end of the turn.
    pub(crate) fn accept_send(&mut self, key: Key<Session>, speaks: Speaks, number: u64) {
        self.counters.sends += 1;
        // JSON has no word for it: there, a send that is not refused was accepted.
        if speaks == Speaks::Binary
            && let Some(session) = self.sessions.get_mut(key)
            && session.accepted.replace(number).is_none()
        {
            self.accepted.push(key);
        }
    }

    /// Keeps a request's content beyond this turn, without the read buffer that it came in if that is much larger.
    pub(crate) fn keep(&mut self, key: Key<Request>, mut content: Content) {
        content.detach(MIN_COUNTED_BYTES);
        let Some(request) = self.requests.get_mut(key) else { return };
        self.kept_bytes += content.uncounted_len();
        match request.kept.and_then(|kept| self.kept.get_mut(kept)) {
            Some(kept) => {
                self.kept_bytes -= kept.content.uncounted_len();
                kept.content = content;
            }
            None => request.kept = Some(self.kept.insert(Kept { content, ..Kept::default() })),
        }
    }

    pub(crate) fn keep_tag(&mut self, key: Key<Request>, session: Key<Session>, number: u64, tag: &[u8]) {
        let tag = Tag::from_slice(tag);
        if let Some(session) = self.sessions.get_mut(session) {
            session.by_tag.insert(tag.clone(), number);
        }
        if let Some(request) = self.requests.get_mut(key) {
            request.kept = Some(self.kept.insert(Kept { tag, ..Kept::default() }));
        }
    }

    pub(crate) fn over_queue_limit(&mut self, action: Key<Action>, bytes: usize) -> Option<String> {
        #[cfg(feature = "planted-bugs")]
        if self.config.is_planted(crate::PlantedBug::UnboundedQueue) {
            return None;
        }
        let action = self.actions.get(action)?;
        let queue = &action.queue;
        let name = String::from_utf8_lossy(&action.name);
        if queue.waiting >= self.config.queue_limit {
            self.counters.refused_queue_limit += 1;
            return Some(format!(
                "{} requests wait for `{name}` already: no more are kept ({QUEUE_LIMIT})",
                queue.waiting
            ));
        }
        if queue.bytes + bytes > self.config.queue_limit_bytes {
            self.counters.refused_queue_bytes += 1;
            return Some(format!(
                "{} bytes wait for `{name}` already: no more are kept ({QUEUE_LIMIT}-bytes)",
                queue.bytes
            ));
        }
        None
    }

    pub(crate) fn deadline(&self, asked: &Asked, speaks: Speaks) -> Deadline {
        let millis =
            |ms: u32| (ms != 0).then(|| Duration::from_millis(u64::from(ms)).min(self.config.max_ttl));
        let (ttl, timeout) = (millis(asked.ttl_ms), millis(asked.timeout_ms));
        let send = asked.flags.has(RequestFlags::SEND);
        let (after, ends_with) = match (timeout, ttl) {
            // Nobody waits for a send: only its ttl ends it.
            (timeout, Some(ttl)) if send => (ttl.max(timeout.unwrap_or_default()), Code::Expired),
            (Some(timeout), None) if send => (timeout, Code::Expired),
            (None, None) if send => (self.config.default_timeout, Code::Expired),
            // A plain request is of no use beyond its timeout, and a ttl shorter than that is raised to it.
            (Some(timeout), _) => (timeout, Code::Timeout),
            (None, Some(ttl)) if speaks == Speaks::Json => (ttl, Code::Expired),
            (None, None) if speaks == Speaks::Json => (self.config.default_json_timeout, Code::Expired),
            (None, _) => (self.config.default_timeout, Code::Timeout),
        };
        #[cfg(feature = "planted-bugs")]
        let after = if self.config.is_planted(crate::PlantedBug::EarlyTimeout) { after / 2 } else { after };
        Deadline { at: self.now.mono + after, ends_with }
    }

    /// Whether so many bytes more are too many to hold.
    #[inline]
    pub(crate) fn is_over_memory(&self, more_bytes: usize) -> bool {
        self.memory_used() + more_bytes > self.config.memory_bytes / 4 * 3
    }

    #[cold]
    pub(crate) fn refuse_for_memory(&mut self, conn: ConnId, session: Key<Session>, asked: &Asked) {
        self.counters.refused_memory += 1;
        let message = format!(
            "{} bytes of messages are held already, and no more can be: try again later (the server's --memory)",
            self.memory_used()
        );
        self.refuse(conn, session, asked, Code::Overloaded, message);
    }

    /// The first and last word about a request that does not come in.
    pub(crate) fn refuse(
        &mut self,
        conn: ConnId,
        session: Key<Session>,
        asked: &Asked,
        code: Code,
        message: String,
    ) {
        match code {
            Code::NoHandler => self.counters.refused_no_handler += 1,
            Code::Overloaded => self.counters.refused_overloaded += 1,
            Code::Draining => self.counters.refused_draining += 1,
            Code::Recovering => self.counters.refused_recovering += 1,
            Code::DurableUnavailable => self.counters.refused_durable += 1,
            Code::Forbidden => self.counters.refused_forbidden += 1,
            _ => self.counters.refused_malformed += 1,
        }
        let content = Content::from_payload(message);
        self.reply_at_once(session, asked, Some(code), content);
        self.close_if_finished(conn);
    }

    /// Answers a request that never became a living one.
    pub(crate) fn reply_at_once(
        &mut self,
        session: Key<Session>,
        asked: &Asked,
        code: Option<Code>,
        content: Content,
    ) {
        let reply = Reply {
            number: asked.number,
            tag: Tag::from_slice(asked.content.tag()),
            sequence: 0,
            code,
            leg: None,
            attempt: 0,
            received_at_ms: self.now.wall_ms,
            delivered_after_ms: u32::MAX,
            handled_after_ms: if code.is_none() { 0 } else { u32::MAX },
            content,
        };
        self.put_out(session, reply);
    }

    pub(crate) fn cancel(&mut self, conn: ConnId, target: &Target) {
        let Some(key) = self.connection(conn).and_then(|connection| connection.session) else { return };
        let Some(session) = self.sessions.get(key) else { return };
        let number = match target {
            Target::Number(number) => Some(*number),
            Target::Name(tag) => session.by_tag.get(tag.as_ref()).copied(),
        };
        // A number that is not open has its outcome on the way: the reply came first.
        if let Some(request) = number.and_then(|number| session.open.get(&number)).copied() {
            self.counters.cancelled += 1;
            self.call_back(request);
            self.end_with_error(request, Code::Cancelled, "the requester cancelled it".to_owned());
        }
    }

    pub(crate) fn request_timed_out(&mut self, key: Key<Request>) {
        let Some(request) = self.requests.get(key) else { return };
        if matches!(request.state, RequestState::Decided | RequestState::Dead) {
            return self.finish(key);
        }
        let (code, waited) = (request.ends_with, self.now.mono.since(request.received.mono));
        let what = match &request.state {
            RequestState::Logging | RequestState::Queued => "no handler had credit for it",
            RequestState::Inquiring => "the server could not read all of it from its log",
            _ => "the handler has not answered",
        };
        let message = format!("{what} within {} ms", waited.as_millis());
        match code {
            Code::Timeout => self.counters.timeouts += 1,
            _ => self.counters.expired += 1,
        }
        #[cfg(feature = "planted-bugs")]
        if self.config.is_planted(crate::PlantedBug::LateReplyDelivered)
            && let Some(request) = self.requests.get(key)
            && matches!(request.state, RequestState::Delivered(_))
            && request.wants_reply()
        {
            let ended = request.ended(self.tag_of(request));
            return self.send_outcome(ended, Some(code), None, Content::from_payload(message), false);
        }
        self.call_back(key);
        self.end_with_error(key, code, message);
    }

    /// Ends a request whose session is gone: nobody is told but the handler.
    pub(crate) fn abandon(&mut self, key: Key<Request>) {
        self.counters.cancelled += 1;
        self.call_back(key);
        self.drop_held_outcomes(key);
        self.forget(key);
    }

    /// Tells the handlers that hold a request that nobody waits for it any more.
    pub(crate) fn call_back(&mut self, key: Key<Request>) {
        let Some(request) = self.requests.get(key) else { return };
        let held: Vec<_> = match &request.state {
            RequestState::Delivered(delivery) => vec![*delivery],
            RequestState::Broadcast(legs) => legs
                .states
                .iter()
                .filter_map(|leg| match leg {
                    LegState::Delivered(delivery) => Some(*delivery),
                    LegState::Waiting | LegState::Ended => None,
                })
                .collect(),
            _ => return,
        };
        let tag = self.tag_of(request);
        for delivery in held {
            self.call_back_delivery(delivery, tag.clone());
        }
    }
}

/// How a request comes in.
enum Admission {
    Plain(Key<Action>),
    Durable,
}

enum Refusal {
    /// It is one of the server's own actions.
    Internal,
    Error(Code, String),
}
