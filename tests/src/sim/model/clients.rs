//! Connections and sessions: whose requests are open, and what a client that comes back is told.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_broker::{ConnId, Speaks};
use ringpost_protocol::{
    Code,
    message::{ErrorReport, OpenState, Speaker, Welcome},
};

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
    /// Another connection has its session, or had it before this one came.
    taken: bool,
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
    /// The last connection of each instance that came under its name.
    speakers: BTreeMap<u64, u32>,
    /// The instance that has it, …
    instance: u64,
    /// … and what it was told to know that by.
    tenure: Option<u64>,
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
                taken: false,
            },
        );
        if speaks == Speaks::Json {
            self.hello(conn, &Bytes::new(), Speaker::default());
        }
    }

    pub(super) fn hello(&mut self, conn: ConnId, name: &Bytes, speaker: Speaker) {
        let known = self.by_name.get(name).and_then(|key| self.sessions.get(key));
        let last = known.and_then(|session| session.speakers.get(&speaker.instance));
        let (late, older) =
            (last.is_some_and(|last| *last >= speaker.connection), known.and_then(|it| it.conn));
        if late {
            self.mark_taken(conn);
            self.unsettled = Unsettled::Late(conn);
            return;
        }
        if let Some(older) = older {
            self.mark_taken(older);
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
        if session.instance != speaker.instance {
            session.tenure = None;
        }
        session.instance = speaker.instance;
        session.speakers.insert(speaker.instance, speaker.connection);
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.session = Some(key);
        }
    }

    fn mark_taken(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.taken = true;
        }
    }

    /// A hello that came too late gets nothing but its refusal.
    pub(super) fn is_turned_away(&self, conn: ConnId) -> Verdict {
        let away = self.connections.get(&conn).is_none_or(|connection| connection.closing);
        ensure!(away, Truth, "the hello of {conn} came too late, and is not refused");
        Ok(())
    }

    pub(super) fn broken_off(&self, conn: ConnId, report: &ErrorReport) -> Verdict {
        let taken = self.connections.get(&conn).is_some_and(|connection| connection.taken);
        let cause = report.code != Code::SessionTaken || taken;
        ensure!(cause, Truth, "{conn} is told {report:?}, and nobody has taken its session");
        Ok(())
    }

    pub(super) fn welcomed(&mut self, conn: ConnId, welcome: &Welcome) -> Verdict {
        let key = self.session_of(conn);
        let Some(session) = key.and_then(|key| self.sessions.get_mut(&key)) else {
            ensure!(false, Truth, "{conn} is welcomed, and has no session");
            return Ok(());
        };
        let expected = (session.epoch, session.next_number);
        let told = (welcome.epoch, welcome.next_number);
        ensure!(told == expected, Resume, "{conn} is told epoch and next number {told:?}, not {expected:?}");
        let before = session.tenure.replace(welcome.tenure);
        let right = before.map_or(!self.tenures.contains(&welcome.tenure), |before| before == welcome.tenure);
        ensure!(right, Resume, "{conn} is told tenure {}; before it was {before:?}", welcome.tenure);
        self.tenures.insert(welcome.tenure);
        Ok(())
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
                speakers: BTreeMap::new(),
                instance: 0,
                tenure: None,
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
        if let Some(key) = session {
            self.leave_session(key, leaving);
        }
        self.lose_handlers(conn);
    }

    fn leave_session(&mut self, key: SessionKey, leaving: bool) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.conn = None;
        }
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
            session.caught_up = true;
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
        let mut lost = Vec::new();
        for (number, state) in open {
            let request = session.requests.get(number).and_then(|key| Some((*key, self.requests.get(key)?)));
            let right = match (state, request) {
                (OpenState::NeverSeen, request) => request.is_none(),
                (_, None) => false,
                (OpenState::Running | OpenState::Outcome, Some((_, request))) if request.send => {
                    *state == OpenState::Running || !request.is_open()
                }
                (OpenState::Running | OpenState::Outcome, Some((key, request))) => {
                    // What has ended of it follows at once.
                    self.due.extend(request.unknown_to(session.received).map(|leg| (key, leg)));
                    request.is_open() == (*state == OpenState::Running)
                }
                (OpenState::Lost, Some((key, request))) => {
                    self.dropped.push(request.token);
                    lost.push(key);
                    // Of a broadcast, one leg's outcome that made room is enough.
                    self.outcomes_are_tight() && (!request.is_open() || request.broadcast)
                }
            };
            ensure!(right, Resume, "number {number} is said to be {state:?}, and is {request:?}");
        }
        for key in lost {
            self.abandon(key);
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
