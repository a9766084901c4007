//! Connections and sessions: whose requests are open, and what a client that comes back is told.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_broker::{ConnId, Speaks};
use ringpost_protocol::{Code, message::OpenState};

use super::{Model, RequestKey, SessionKey, Unsettled};
use crate::sim::rules::{Verdict, ensure};

#[derive(Debug)]
pub(super) struct Connection {
    /// Never the same for two connections, as the core's numbers are.
    pub(super) serial: u64,
    pub(super) speaks: Speaks,
    pub(super) session: Option<SessionKey>,
    /// The core has said that it is closed.
    pub(super) closing: bool,
    /// What it had is gone.
    pub(super) ended: bool,
    pub(super) leaving: bool,
    pub(super) clogged: bool,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) name: Bytes,
    pub(super) conn: Option<ConnId>,
    /// It outlives its connections.
    pub(super) outlives: bool,
    /// Outcomes may be sent.
    pub(super) caught_up: bool,
    /// The tick at which it is forgotten.
    pub(super) linger_until: Option<u64>,
    pub(super) epoch: u64,
    /// A process took it over that knew nothing of its past.
    anew: bool,
    /// The last outcome that the client had when it came back.
    received: u64,
    pub(super) next_number: u64,
    /// All that it ever asked, by number.
    pub(super) requests: BTreeMap<u64, RequestKey>,
    /// The last first dispatch to each action.
    pub(super) dispatched: BTreeMap<Bytes, u64>,
}

impl Model {
    pub(super) fn opened(&mut self, conn: ConnId, speaks: Speaks) {
        let serial = self.next();
        self.connections.insert(
            conn,
            Connection {
                serial,
                speaks,
                session: None,
                closing: false,
                ended: false,
                leaving: false,
                clogged: false,
            },
        );
        if speaks == Speaks::Json {
            self.hello(conn, &Bytes::new());
        }
    }

    pub(super) fn hello(&mut self, conn: ConnId, name: &Bytes) {
        if let Some(older) =
            self.by_name.get(name).and_then(|key| self.sessions.get(key)).and_then(|session| session.conn)
        {
            self.end_connection(older);
        }
        let key = match self.by_name.get(name) {
            Some(key) => *key,
            None => self.new_session(conn, name),
        };
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.conn = Some(conn);
        session.epoch += 1;
        session.caught_up = session.epoch == 1;
        session.linger_until = None;
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.session = Some(key);
        }
    }

    fn new_session(&mut self, conn: ConnId, name: &Bytes) -> SessionKey {
        let key = self.next();
        let binary =
            self.connections.get(&conn).is_some_and(|connection| connection.speaks == Speaks::Binary);
        self.sessions.insert(
            key,
            Session {
                name: name.clone(),
                conn: None,
                outlives: binary && !name.is_empty(),
                caught_up: true,
                linger_until: None,
                epoch: 0,
                anew: false,
                received: 0,
                next_number: 1,
                requests: BTreeMap::new(),
                dispatched: BTreeMap::new(),
            },
        );
        if !name.is_empty() {
            self.by_name.insert(name.clone(), key);
        }
        key
    }

    pub(super) fn session_of(&self, conn: ConnId) -> Option<SessionKey> {
        self.connections.get(&conn)?.session
    }

    /// Whether outcomes reach the session's client now.
    pub(super) fn listens(&self, key: SessionKey) -> bool {
        self.sessions.get(&key).is_some_and(|session| {
            let on = session.conn.and_then(|conn| self.connections.get(&conn));
            session.caught_up && on.is_some_and(|connection| !connection.ended && !connection.closing)
        })
    }

    pub(super) fn half_closed(&mut self, conn: ConnId) {
        let goes_on = self
            .connections
            .get(&conn)
            .is_some_and(|connection| connection.speaks == Speaks::Json || connection.leaving);
        if goes_on { self.lose_handlers(conn) } else { self.end_connection(conn) }
    }

    pub(super) fn leaving(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.leaving = true;
        }
        for key in self.handlers_of(conn) {
            self.retire(key);
        }
    }

    /// What a connection had is gone; its session may go on.
    pub(super) fn end_connection(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(&conn).filter(|connection| !connection.ended) else {
            return;
        };
        connection.ended = true;
        let (session, leaving) = (connection.session.take(), connection.leaving);
        if let Some(session) = session.and_then(|key| self.sessions.get_mut(&key)) {
            session.conn = None;
        }
        self.lose_handlers(conn);
        let Some(key) = session else { return };
        let away = self.sessions.values().filter(|session| session.linger_until.is_some()).count();
        let open = self.open_of(key).next().is_some();
        let linger = self.due_at(self.config.session_linger);
        let crowded = away >= self.config.max_sessions_away && !open;
        match self.sessions.get_mut(&key) {
            Some(session) if session.outlives && !leaving && !self.draining && !crowded => {
                session.linger_until = Some(linger);
            }
            _ => self.end_session(key),
        }
    }

    /// Nobody remembers the session.
    pub(super) fn end_session(&mut self, key: SessionKey) {
        for request in self.open_of(key).collect::<Vec<_>>() {
            self.abandon(request);
        }
        if let Some(session) = self.sessions.remove(&key)
            && self.by_name.get(&session.name) == Some(&key)
        {
            self.by_name.remove(&session.name);
            self.forgotten.push(session.name);
        }
    }

    pub(super) fn open_of(&self, key: SessionKey) -> impl Iterator<Item = RequestKey> + '_ {
        let requests = self.sessions.get(&key).into_iter().flat_map(|session| session.requests.values());
        requests.copied().filter(|key| self.requests.get(key).is_some_and(|request| request.is_open()))
    }

    /// A request from a client that knows nothing of the session's past.
    pub(super) fn begin_anew(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(&key).filter(|session| !session.caught_up) {
            (session.caught_up, session.anew) = (true, true);
            self.abandon_all_but(key, &[]);
        }
    }

    fn abandon_all_but(&mut self, key: SessionKey, wanted: &[u64]) {
        let given_up = |request: &RequestKey| {
            self.requests
                .get(request)
                .is_some_and(|request| !request.send && !wanted.contains(&request.number))
        };
        for request in self.open_of(key).filter(given_up).collect::<Vec<_>>() {
            self.abandon(request);
        }
    }

    pub(super) fn resume(&mut self, conn: ConnId, boot: u64, sequence: u64, open: &[u64]) {
        let Some(key) = self.session_of(conn) else { return };
        let known = boot == self.config.boot;
        if let Some(session) = self.sessions.get_mut(&key).filter(|session| !session.caught_up && known) {
            (session.caught_up, session.received) = (true, sequence);
            self.abandon_all_but(key, open);
            self.unsettled = Unsettled::Resume { bytes: 0 };
        }
    }

    pub(super) fn resumed(&mut self, conn: ConnId, open: &[(u64, OpenState)]) -> Verdict {
        let Some(session) = self.session_of(conn).and_then(|key| self.sessions.get(&key)) else {
            ensure!(false, Resume, "{conn} has no session to resume");
            return Ok(());
        };
        // Two living processes under one name do not know of each other, and their numbers may be the same: from then on
        // nobody can say whose a number is.
        for (number, state) in open {
            let request = session.requests.get(number).and_then(|key| Some((*key, self.requests.get(key)?)));
            let right = match (state, request) {
                (OpenState::NeverSeen, request) => request.is_none(),
                (_, None) => false,
                (OpenState::Running, Some((_, request))) => {
                    let incomplete = self.outcomes_are_tight() && request.legs.len() > 1;
                    request.is_open() || request.send || incomplete
                }
                (OpenState::Outcome, Some((key, request))) => {
                    // Of a broadcast, some of the outcomes may have made room for others.
                    let whole = !self.outcomes_are_tight() || request.legs.len() == 1;
                    let unknown = request.unknown_to(session.received).filter(|_| whole);
                    self.due.extend(unknown.map(|leg| (key, leg)));
                    // Of a broadcast, some legs may have ended.
                    !request.is_open() || request.legs.len() > 1
                }
                (OpenState::Lost, Some((_, request))) => {
                    self.dropped.push(request.token);
                    !request.is_open() && self.outcomes_are_tight()
                }
            };
            let right = right || session.anew;
            ensure!(right, Resume, "number {number} is said to be {state:?}, and is {request:?}");
        }
        Ok(())
    }

    /// Outcomes that are kept may have to make room for others.
    fn outcomes_are_tight(&self) -> bool {
        self.config.outcome_limit_bytes < ringpost_broker::Config::default().outcome_limit_bytes
    }

    pub(super) fn accepted(&mut self, conn: ConnId, upto: u64) -> Verdict {
        let next = self
            .session_of(conn)
            .and_then(|key| self.sessions.get(&key))
            .map_or(0, |session| session.next_number);
        ensure!(upto < next, Truth, "{conn} is told that {upto} is accepted; it asked up to {next}");
        Ok(())
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
        let away: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.linger_until.is_some())
            .map(|(key, _)| *key)
            .collect();
        for key in away {
            self.end_session(key);
        }
    }

    pub(super) fn end_all(&mut self, code: Code) {
        let open: Vec<_> =
            self.requests.iter().filter(|(_, request)| request.is_open()).map(|(key, _)| *key).collect();
        for key in open {
            self.decide_all(key, code);
        }
    }
}
