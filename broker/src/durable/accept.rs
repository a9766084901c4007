//! The way in: a durable request's checks, its record, and what follows once that is stable.

use std::time::Duration;

use ringpost_protocol::{
    Code,
    message::{Request as Asked, RequestFlags, ServerMessage},
};

use super::{DEFAULT_MAX_ATTEMPTS, DEFAULT_TTL, Durable, Gate, Payload, Places};
use crate::{
    Broker, ConnId, Speaks,
    broker::Drain,
    slab::Key,
    state::{Request, RequestState, Session, Timer},
};

impl Broker {
    /// Takes a durable request in, as far as its record: it is accepted and dispatched when that is stable.
    pub(crate) fn accept_durable(
        &mut self,
        conn: ConnId,
        session_key: Key<Session>,
        speaks: Speaks,
        asked: &mut Asked,
    ) {
        if let Err((code, message)) = self.may_be_durable(asked) {
            return self.refuse(conn, session_key, asked, code, message);
        }
        let keyed = match self.key_of(asked) {
            Ok(keyed) => keyed,
            Err((code, message)) => return self.refuse(conn, session_key, asked, code, message),
        };
        if self.is_over_memory(asked.content.uncounted_len()) {
            return self.refuse_for_memory(conn, session_key, asked);
        }
        if let Some((name, Some(first))) = keyed {
            return self.join(session_key, speaks, asked, (name, first));
        }
        let number = asked.number;
        let Some(key) = self.insert_durable(session_key, speaks, asked, RequestState::Logging) else {
            return;
        };
        if let Some((name, None)) = keyed {
            self.first_under(name, key);
        }
        self.log_request(key);
        self.wait_behind(Gate::Accept { request: key, session: session_key, number });
    }

    /// Puts a durable request into all tables.
    pub(super) fn insert_durable(
        &mut self,
        session_key: Key<Session>,
        speaks: Speaks,
        asked: &mut Asked,
        state: RequestState,
    ) -> Option<Key<Request>> {
        let most = self.config.max_ttl;
        let ttl = |ms: u32| Duration::from_millis(u64::from(ms)).min(most);
        let ttl = if asked.ttl_ms == 0 { DEFAULT_TTL.min(most) } else { ttl(asked.ttl_ms) };
        // Who did not ask for durability waits no longer than for a plain request, and cannot say that it has the reply.
        let made = asked.flags.has(RequestFlags::MADE_DURABLE).then(|| self.deadline(asked, speaks));
        let ttl = made.as_ref().map_or(ttl, |deadline| deadline.at.since(self.now.mono));
        let ends_with = made.map_or(Code::Expired, |deadline| deadline.ends_with);
        // Nothing of the timeout is in the log: it only ends the requester's own waiting.
        let (number, flags) = (asked.number, asked.flags);
        let content = std::mem::take(&mut asked.content);
        let key = self.requests.next_key();
        let timer = self.timers.insert(self.now.mono + ttl, Timer::Request(key));
        let session = self.sessions.get_mut(session_key)?;
        session.open.insert(number, key);
        session.unstable.push_back(number);
        session.durable += 1;
        let (name, instance) = (session.name.clone(), session.speaker.instance);
        let max_attempts = if asked.max_attempts == 0 { DEFAULT_MAX_ATTEMPTS } else { asked.max_attempts };
        let action = self.action_for(content.name());
        let has_payload = !matches!(state, RequestState::Joined);
        // A send that joins another has no record, and nobody is told of it.
        let is_logged = has_payload || !flags.has(RequestFlags::SEND);
        self.durable_count += u64::from(is_logged);
        let count = if is_logged { self.durable_count } else { 0 };
        self.requests.insert(Request {
            session: session_key,
            number,
            action,
            flags,
            max_attempts: u16::from(max_attempts),
            attempt: 0,
            count,
            received: self.now,
            deadline: self.now.mono + ttl,
            ends_with,
            timer,
            delivered_after_ms: u32::MAX,
            kept: None,
            content_bytes: content.len() as u32,
            state,
        });
        if !content.tag().is_empty() {
            self.keep_tag(key, session_key, number, content.tag());
        }
        self.keep(key, content);
        let expires_ms = self.now.wall_ms.saturating_add(ttl.as_millis() as u64);
        if let Some(kept) = self.requests.get(key).and_then(|request| self.kept.get_mut(request.kept?)) {
            kept.durable = Some(Box::new(Durable {
                dialect: u8::from(speaks == Speaks::Json),
                expires_ms,
                session: name,
                instance,
                places: Places::default(),
                ..Durable::default()
            }));
        }
        if has_payload {
            self.set_payload(key, Payload::New);
        }
        self.forget_action_if_unused(action);
        Some(key)
    }

    fn may_be_durable(&self, asked: &Asked) -> Result<(), (Code, String)> {
        let refusal = |code, message: &str| Err((code, message.to_owned()));
        if asked.flags.has(RequestFlags::BROADCAST) {
            return refusal(
                Code::Unsupported,
                "a broadcast cannot be durable: send it plain, or send to one handler",
            );
        }
        if self.drain != Drain::No {
            return refusal(
                Code::Draining,
                "the server is leaving and takes no new requests: connect to another",
            );
        }
        if self.recovering {
            return refusal(Code::Recovering, super::RECOVERING);
        }
        let Some(journal) = &self.journal else {
            return refusal(
                Code::DurableUnavailable,
                "this server keeps no log, so it cannot promise durability: send it without `durable`, or start the \
                 server with `--data-dir DIR`",
            );
        };
        journal.may_take(asked.content.len())?;
        if self.requests.is_full() {
            return refusal(Code::Overloaded, "the server holds as many requests as it can: try again later");
        }
        Ok(())
    }

    /// The request's record is stable, or that of what was sent before it: it is accepted, and waits for a handler.
    pub(super) fn accepted_at_last(&mut self, key: Key<Request>, session: Key<Session>, number: u64) {
        if let Some(stable) = self.sessions.get_mut(session)
            && stable.unstable.front() == Some(&number)
        {
            stable.unstable.pop_front();
            self.tell_durable_accepted(key, session, number);
        }
        match self.requests.get(key).map(|request| (&request.state, request.wants_reply())) {
            Some((RequestState::Logging, _)) => self.admit_at_last(key),
            Some((RequestState::Joined, false)) => self.joined_send_accepted(key),
            _ => {}
        }
        self.close_if_session_finished(session);
    }

    fn tell_durable_accepted(&mut self, key: Key<Request>, session_key: Key<Session>, number: u64) {
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        let conn = session.listens();
        if conn.and_then(|conn| self.connection(conn)).is_some_and(|conn| conn.speaks == Speaks::Json) {
            let tag = self.requests.get(key).map(|request| self.tag_of(request)).unwrap_or_default();
            // Older clients stop listening for the reply when they see this; they do not ask for durability.
            let asked = |request: &Request| !request.flags.has(RequestFlags::MADE_DURABLE);
            let asked = self.requests.get(key).is_some_and(asked);
            if let Some(conn) = conn.filter(|_| asked && !tag.is_empty()) {
                self.send(conn, ServerMessage::Accepted { upto: number, tag });
            }
        } else if let Some(session) = self.sessions.get_mut(session_key) {
            session.accepted = session.accepted.max(Some(number));
            self.accepted.push(session_key);
        }
    }

    /// Lets a request wait for a handler that had to wait for what its session sent before.
    fn admit_at_last(&mut self, key: Key<Request>) {
        self.payload_is_logged(key);
        let Some(name) = self.kept_of(key).map(|kept| kept.content.name().to_vec()) else { return };
        let action = self.action_for(&name);
        let Some(request) = self.requests.get_mut(key) else { return };
        request.action = action;
        let session = request.session;
        let handled = self.is_handled(action, session);
        let Some(request) = self.requests.get(key) else { return };
        if !handled && !request.is_durable() {
            let message = format!("the last handler of `{}` is gone", String::from_utf8_lossy(&name));
            self.end_with_error(key, Code::NoHandler, message);
            self.forget_action_if_unused(action);
        } else if request.flags.has(RequestFlags::BROADCAST) {
            self.start_broadcast(key);
        } else {
            self.enqueue(action, key, false);
            self.dispatch(action);
            if self.requests.get(key).is_some_and(Request::is_queued) {
                self.drop_payload_if_over(key);
            }
        }
    }
}
