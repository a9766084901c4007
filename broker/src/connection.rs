//! Who is connected, what they register, and how a connection ends.

use ringpost_protocol::{
    Code,
    limits::{MAX_SESSION_BYTES, NameError, check_own_name},
    message::{ErrorReport, Hello, Register, Scope, ServerMessage, Speaker, Target, Welcome},
};

use crate::{
    Broker, CloseReason, ConnId, Identity, Output, Speaks,
    broker::Drain,
    durable::Journal,
    peers::SESSION_OF_PEER,
    permissions::Granted,
    session::Entry,
    slab::Key,
    state::{Connection, Handler, Request, RequestState, Timer},
};

/// A peer may register so many times what a client may.
const CLIENTS_OF_A_PEER: usize = 64;

impl Broker {
    pub(crate) fn opened(&mut self, conn: ConnId, speaks: Speaks, identity: &mut Identity) {
        self.counters.connections_opened += 1;
        let index = conn.0 as usize;
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, || None);
        }
        debug_assert!(self.connections[index].is_none(), "{conn} was closed before its number is used again");
        self.connections[index] = Some(Connection {
            speaks,
            address: identity.address.take(),
            granted: Granted::new(identity.permissions.take()),
            peer: None,
            count: self.counters.connections_opened,
            session: None,
            handlers: Vec::new(),
            half_closed: false,
            leaving: false,
            closing: false,
            clogged: false,
            window_bytes: self.config.window_bytes,
            receivers_seen: None,
            last_heard: self.now.mono,
            liveness: None,
        });
        if speaks == Speaks::Json {
            self.enter_session(conn, &bytes::Bytes::new(), Speaker::default());
        }
    }

    pub(crate) fn hello(&mut self, conn: ConnId, hello: &Hello) {
        if self.connection(conn).is_none_or(|connection| connection.session.is_some()) {
            return self.break_off(conn, "there is one hello in a connection, its first frame");
        }
        if hello.session.len() > MAX_SESSION_BYTES || std::str::from_utf8(&hello.session).is_err() {
            return self.break_off(conn, "a session's name is UTF-8 and at most 255 bytes long");
        }
        if !hello.session.is_empty() && (hello.speaker.instance == 0 || hello.speaker.connection == 0) {
            return self.break_off(
                conn,
                "a hello with a session's name says which instance speaks, and on which of its connections: neither is 0",
            );
        }
        if let Some(message) = self.forbids_session(conn, &hello.session) {
            self.refuse_connection(conn, Code::Forbidden, message);
            return self.end_connection(conn);
        }
        if self.may_be_in_log(&hello.session, hello.speaker) {
            return self.refuse_as_recovering(conn);
        }
        if self.is_late(&hello.session, hello.speaker) {
            let message =
                "a later connection of this client has the session: this one came too late".to_owned();
            self.refuse_connection(conn, Code::SessionTaken, message);
            return self.end_connection(conn);
        }
        if hello.session.starts_with(SESSION_OF_PEER) {
            return self.break_off(conn, "a session's name does not begin so: that is for other servers");
        }
        if let Some((code, message)) = self.refuses_peer(conn, hello) {
            self.refuse_connection(conn, code, message);
            return self.end_connection(conn);
        }
        let Entry { epoch, tenure, next_number } = self.enter_session(conn, &hello.session, hello.speaker);
        let welcome = Welcome {
            server_id: self.config.server_id.clone().into(),
            boot: self.config.boot,
            epoch,
            tenure,
            next_number,
            max_payload: self.config.max_payload,
            ping_interval_ms: u32::try_from(self.config.ping_interval.as_millis()).unwrap_or(u32::MAX),
            // What comes from a peer was made durable there, or not.
            durable_all: self.config.durable_all && hello.peer.is_none(),
            headers: Default::default(),
        };
        self.send(conn, ServerMessage::Welcome(welcome));
        // On a link of its own the driver speaks itself, and knows whether the peer is there.
        if !self.links.contains_key(&conn) {
            let timer = self.timers.insert(self.now.mono + self.config.ping_interval, Timer::Liveness(conn));
            if let Some(connection) = self.connection_mut(conn) {
                connection.liveness = Some(timer);
            }
        }
        if let Some(server_id) = &hello.peer {
            self.peer_is_there(conn, server_id, hello.speaker);
        }
        if hello.watch_receivers {
            self.watch_receivers(conn, true);
        }
        if self.drain != Drain::No {
            self.send_goaway(conn, 0);
        }
    }

    pub(crate) fn register(&mut self, conn: ConnId, register: &Register) {
        if self.recovering && !register.session.is_empty() {
            return self.refuse_as_recovering(conn);
        }
        let report = |code, message| {
            let number = u64::from(register.registration);
            ServerMessage::Error(ErrorReport { scope: Scope::Registration, number, code, message })
        };
        if let Some(message) = self.forbids_session(conn, &register.session) {
            self.counters.refused_registrations += 1;
            return self.send(conn, report(Code::Forbidden, message));
        }
        self.name_session(conn, &register.session);
        if let Err(error) = check_own_name(&register.action) {
            self.counters.refused_registrations += 1;
            let code = if error == NameError::Reserved { Code::ReservedName } else { Code::Malformed };
            let name = String::from_utf8_lossy(&register.action);
            return self.send(conn, report(code, format!("`{name}` cannot be registered: {error}")));
        }
        if let Some(message) = self.forbids_handling(conn, &register.action) {
            self.counters.refused_registrations += 1;
            return self.send(conn, report(Code::Forbidden, message));
        }
        let credit = if register.credit == 0 { self.config.default_credit } else { register.credit };
        if let Some(handler) = self.registration(conn, register.registration, &register.action) {
            // JSON clients name their registrations by the action: registering again changes the credit.
            if self.connection(conn).is_some_and(|connection| connection.speaks == Speaks::Json) {
                return self.set_credit(handler, credit);
            }
            self.counters.refused_registrations += 1;
            let message = format!("this connection has a registration {} already", register.registration);
            return self.send(conn, report(Code::Malformed, message));
        }
        if self.drain != Drain::No {
            self.counters.refused_registrations += 1;
            let message = "the server is leaving and takes no new handlers: connect to another".to_owned();
            return self.send(conn, report(Code::Draining, message));
        }
        let registered = self.connection(conn).map_or(0, |connection| connection.handlers.len());
        // A peer's registrations are those of all its clients.
        let most =
            self.config.max_actions.saturating_mul(if self.is_peer(conn) { CLIENTS_OF_A_PEER } else { 1 });
        if registered >= most || self.handlers.is_full() {
            self.counters.refused_registrations += 1;
            let message = format!(
                "this connection has {registered} registrations: no more are allowed (the server's --max-actions)"
            );
            return self.send(conn, report(Code::Overloaded, message));
        }
        if register.registration != 0 {
            self.send(conn, ServerMessage::Registered { registration: register.registration });
        }
        self.add_handler(conn, register.registration, credit, &register.action);
        let unasked = |connection: &Connection| {
            connection.speaks == Speaks::Json && connection.receivers_seen.is_none()
        };
        if self.connection(conn).is_some_and(unasked) {
            self.watch_receivers(conn, true);
        }
    }

    /// The handler that this connection registered under that number (binary) or for that action (JSON).
    fn registration(&self, conn: ConnId, registration: u32, action: &[u8]) -> Option<Key<Handler>> {
        self.connection(conn)?.handlers.iter().copied().find(|key| {
            self.handlers.get(*key).is_some_and(|handler| {
                let same_action =
                    || self.actions.get(handler.action).is_some_and(|known| known.name.as_ref() == action);
                !handler.retired
                    && handler.registration == registration
                    && (registration != 0 || same_action())
            })
        })
    }

    pub(crate) fn deregister(&mut self, conn: ConnId, target: &Target) {
        let handler = match target {
            Target::Number(number) => {
                u32::try_from(*number).ok().and_then(|number| self.registration(conn, number, &[]))
            }
            Target::Name(action) => self.registration(conn, 0, action),
        };
        if let Some(handler) = handler {
            self.retire_handler(handler);
        }
    }

    pub(crate) fn credit(&mut self, conn: ConnId, registration: u32, credit: u32) {
        if let Some(handler) = self.registration(conn, registration, &[]) {
            self.set_credit(handler, credit);
        }
    }

    /// The client wants no more deliveries and sends no more requests.
    pub(crate) fn client_leaves(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.leaving = true;
        for handler in connection.handlers.clone() {
            self.retire_handler(handler);
        }
        self.close_if_finished(conn);
    }

    /// The client will say nothing more. What it asked is answered; what its handlers hold can never be.
    ///
    /// In the binary dialect it says goodbye first. An end of stream without that is what the system makes of a client
    /// that crashed or was killed: it is gone.
    pub(crate) fn half_closed(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else { return };
        if connection.speaks == Speaks::Binary && !connection.leaving {
            self.close(conn, CloseReason::Gone);
            return self.end_connection(conn);
        }
        connection.half_closed = true;
        self.lose_handlers(conn);
        self.close_if_finished(conn);
    }

    pub(crate) fn closed(&mut self, conn: ConnId) {
        self.end_connection(conn);
        if self.connections.get_mut(conn.0 as usize).and_then(Option::take).is_some() {
            self.counters.connections_closed += 1;
        }
    }

    /// Ends what a connection had, whether or not its socket is gone already. Its session may outlive it.
    pub(crate) fn end_connection(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.closing = true;
        let said = self.outputs.len();
        self.end_what_it_had(conn);
        // It may have asked its own handlers: what that leads to is for nobody any more.
        let behind = self.outputs.split_off(said);
        let to_others = |output: &Output| !matches!(output, Output::Send { conn: to, .. } if *to == conn);
        self.outputs.extend(behind.into_iter().filter(to_others));
    }

    fn end_what_it_had(&mut self, conn: ConnId) {
        self.receivers.watchers.remove(&conn);
        let peer = self.peer_is_gone(conn);
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.receivers_seen = None;
        let (session, liveness) = (connection.session.take(), connection.liveness.take());
        // A client that said goodbye will not come back for what it left. An end of stream alone says nothing: the
        // system ends the streams of a client that crashed, too.
        let ends_here = connection.leaving;
        if let Some(timer) = liveness {
            self.timers.cancel(timer);
        }
        // The session first: what ends with it must not go to another handler, of those that are lost next.
        if let Some(session) = session {
            self.leave_session(session, ends_here);
        }
        self.lose_handlers(conn);
        if let Some(peer) = peer {
            self.link_is_replaced(&peer);
        }
    }

    /// The client is slow to read: nothing more is given to its handlers.
    pub(crate) fn clog(&mut self, conn: ConnId) {
        self.counters.connections_clogged += 1;
        self.set_clogged(conn, true);
    }

    /// It has caught up.
    pub(crate) fn unclog(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn.0 as usize).and_then(Option::as_mut) {
            connection.window_bytes = self.config.window_bytes;
        }
        self.set_clogged(conn, false);
    }

    /// So many bytes go out to one of its handlers. Who is far behind must not be given all that there is at once.
    #[inline]
    pub(crate) fn use_window(&mut self, conn: ConnId, bytes: usize) {
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.window_bytes = connection.window_bytes.saturating_sub(bytes);
        if connection.window_bytes == 0 {
            self.window_used_up(conn);
        }
    }

    #[cold]
    fn window_used_up(&mut self, conn: ConnId) {
        if self.connection(conn).is_some_and(|connection| !connection.clogged) {
            self.set_clogged(conn, true);
            self.outputs.push_back(Output::Full { conn });
        }
    }

    fn set_clogged(&mut self, conn: ConnId, clogged: bool) {
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.clogged = clogged;
        let handlers = connection.handlers.clone();
        // All of them stand in line before one is given anything: the next one may have the better claim to it.
        for key in &handlers {
            self.displace(*key);
            if let Some(handler) = self.handlers.get_mut(*key) {
                handler.clogged = clogged;
            }
            self.place(*key);
        }
        if !clogged {
            for key in handlers {
                self.offer_credit(key);
            }
        }
    }

    fn lose_handlers(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else { return };
        let handlers = std::mem::take(&mut connection.handlers);
        // First out of the line, all of them: what one held must not be given to the next that is lost.
        for handler in &handlers {
            self.displace(*handler);
        }
        for handler in handlers {
            self.lose_handler(handler);
        }
    }

    /// Closes a connection whose client has nothing more to say, once nothing is open.
    pub(crate) fn close_if_finished(&mut self, conn: ConnId) {
        let Some(connection) = self.connection(conn) else { return };
        let ends = connection.half_closed || (connection.leaving && connection.handlers.is_empty());
        let key = connection.session;
        let session = key.and_then(|session| self.sessions.get(session));
        if ends && session.is_none_or(|session| self.has_told_all(session)) {
            if let Some(key) = key.filter(|_| !connection.closing) {
                self.tell_accepted(key);
            }
            self.close(conn, CloseReason::Finished);
        }
    }

    pub(crate) fn check_liveness(&mut self, conn: ConnId) {
        let interval = self.config.ping_interval;
        let Some(connection) = self.connection(conn) else { return };
        // Who has ended its half is silent, and right to be so.
        if connection.closing || connection.half_closed {
            return;
        }
        let silence = self.now.mono.since(connection.last_heard);
        if silence >= interval * 3 {
            self.counters.connections_silent += 1;
            let message = format!("nothing was heard from this connection for {} s", silence.as_secs());
            let report =
                ErrorReport { scope: Scope::Connection, number: 0, code: Code::ConnectionLost, message };
            self.send(conn, ServerMessage::Error(report));
            self.close(conn, CloseReason::Silent);
            return self.end_connection(conn);
        }
        let next = if silence >= interval {
            self.send(conn, ServerMessage::Ping(self.now.mono.micros()));
            self.now.mono + interval
        } else {
            self.now.mono + (interval - silence)
        };
        let timer = self.timers.insert(next, Timer::Liveness(conn));
        if let Some(connection) = self.connection_mut(conn) {
            connection.liveness = Some(timer);
        }
    }

    pub(crate) fn start_drain(&mut self, grace_ms: u32) {
        if self.drain != Drain::No {
            return;
        }
        self.drain = Drain::Asked;
        // Nobody can come back here any more.
        self.forget_detached_sessions();
        // Peers first: they send nothing more that a client could have had elsewhere.
        for conn in self.peers.clone() {
            self.send_goaway(conn, grace_ms);
        }
        for index in 0..self.connections.len() {
            let conn = ConnId(index as u32);
            if !self.is_peer(conn) {
                self.send_goaway(conn, grace_ms);
            }
        }
    }

    /// Whether anything is open that a leaving server waits for: all that is plain, and of what is durable what a handler
    /// works at, or what is on its way into the log.
    pub(crate) fn has_to_wait(&mut self) -> bool {
        let held = |request: &Request| matches!(request.state, RequestState::Delivered(_));
        let waits = |request: &Request| !request.is_durable() || held(request);
        let logging = self.journal.as_ref().is_some_and(Journal::has_gates);
        // There may be a million that wait for nobody: those that somebody waits for are not looked for each turn.
        if logging || self.awaited.and_then(|key| self.requests.get(key)).is_some_and(waits) {
            return true;
        }
        self.awaited = self.requests.iter().find(|(_, request)| waits(request)).map(|(key, _)| key);
        self.awaited.is_some()
    }

    /// Nobody waits any longer: what is open ends, so that every requester has its outcome.
    pub(crate) fn end_drain(&mut self) {
        // What is durable is in the log, and goes on with the next start.
        let plain = self.requests.iter().filter(|(_, request)| !request.is_durable());
        let mut open: Vec<_> = plain.map(|(key, request)| (request.count, key)).collect();
        open.sort_unstable();
        for (_, request) in open {
            let begun = self.requests.get(request).is_some_and(|request| request.attempt > 0);
            self.call_back(request);
            let message = match begun {
                true => "the server left before it was answered; it may have run",
                false => {
                    "the server left before a handler had room for it; it has not run: send it to another"
                }
            };
            self.end_with_error(request, Code::Draining, message.to_owned());
        }
    }

    fn send_goaway(&mut self, conn: ConnId, grace_ms: u32) {
        let told = |connection: &Connection| {
            connection.speaks == Speaks::Binary && connection.session.is_some() && !connection.closing
        };
        if self.connection(conn).is_some_and(told) {
            let reason = "the server is leaving: finish what is open and connect elsewhere".to_owned();
            self.send(conn, ServerMessage::Goaway { grace_ms, reason });
        }
    }

    /// Tells a client what rule it broke, and closes.
    pub(crate) fn break_off(&mut self, conn: ConnId, message: &str) {
        self.refuse_connection(conn, Code::Malformed, message.to_owned());
        self.end_connection(conn);
    }

    pub(crate) fn refuse_connection(&mut self, conn: ConnId, code: Code, message: String) {
        if self.connection(conn).is_none_or(|connection| connection.closing) {
            return;
        }
        self.counters.connections_refused += 1;
        let report = ErrorReport { scope: Scope::Connection, number: 0, code, message };
        self.send(conn, ServerMessage::Error(report));
        self.close(conn, CloseReason::Refused(code));
    }
}
