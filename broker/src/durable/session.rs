//! Durable requests and the sessions they belong to: coming back for them, also after the broker itself was away.

use ringpost_protocol::message::{OpenState, Resume, ServerMessage};

use crate::{
    Broker, ConnId,
    slab::Key,
    state::{Request, Session},
};

impl Broker {
    /// A client comes back to a broker that was restarted meanwhile: of what it has open, only what is in the log is known.
    /// What is not known there was never accepted, or has run long ago; the client tells these apart.
    pub(crate) fn resume_durable(
        &mut self,
        conn: ConnId,
        key: Key<Session>,
        resume: &Resume,
        (attached, forgotten): (Vec<(u64, u64)>, Vec<u64>),
    ) {
        self.counters.sessions_resumed += 1;
        // Whatever was plain in this boot is not what the client speaks of.
        self.drop_outcomes(key);
        self.abandon_all_but(key, &[]);
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.caught_up = true;
        session.heir = resume.unclaimed;
        let decided = self.decided_numbers(key);
        let Some(session) = self.sessions.get(key) else { return };
        // A number may be another process's, which had it when this one's was not in the log.
        let own = |request: Key<Request>| {
            self.durable(request).is_some_and(|durable| durable.instance == session.speaker.instance)
        };
        let state = |number: u64| match session.open.get(&number).filter(|request| own(**request)) {
            Some(_) if decided.binary_search(&number).is_ok() => OpenState::Outcome,
            Some(_) => OpenState::Running,
            None => OpenState::Lost,
        };
        let open = resume.open.iter().map(|number| (*number, state(*number))).collect();
        self.send(conn, ServerMessage::Resumed { open, forgotten, attached });
        self.replay(conn, key);
    }

    /// Whether the outcome of a durable request is for the present client of its session: it asked for it, or takes what others
    /// asked for.
    pub(crate) fn concerns(&self, key: Key<Session>, request: Key<Request>) -> bool {
        self.sessions.get(key).is_some_and(|session| {
            session.heir
                || self.durable(request).is_some_and(|durable| durable.instance == session.speaker.instance)
        })
    }

    /// Numbers of a session's durable requests whose outcome is stable and for its present client, rising.
    pub(crate) fn decided_numbers(&self, key: Key<Session>) -> Vec<u64> {
        let mut decided = self.decided(key);
        decided.retain(|(_, request)| self.concerns(key, *request));
        decided.into_iter().map(|(number, _)| number).collect()
    }

    fn decided(&self, key: Key<Session>) -> Vec<(u64, Key<Request>)> {
        let Some(session) = self.sessions.get(key).filter(|session| session.durable > 0) else {
            return Vec::new();
        };
        let stable = |request: Key<Request>| {
            self.durable(request).and_then(|durable| durable.decided).is_some_and(|decided| decided.stable)
        };
        let open = session.open.iter().map(|(number, request)| (*number, *request));
        let mut decided: Vec<_> = open.filter(|(_, request)| stable(*request)).collect();
        decided.sort_unstable();
        decided
    }

    /// Gives every stable outcome for its present client that has none yet its place in the session.
    pub(crate) fn give_sequences(&mut self, key: Key<Session>) {
        for (_, request) in self.decided(key) {
            let without = |durable: &super::Durable| durable.decided.is_some_and(|it| it.sequence.is_none());
            if self.durable(request).is_some_and(without) && self.concerns(key, request) {
                self.give_sequence(key, request);
            }
        }
    }

    /// What was sent to an earlier process must not be acknowledged by a later one, which never got it.
    pub(crate) fn take_sequences_back(
        &mut self,
        key: Key<Session>,
        of: impl Fn(&Self, Key<Session>, Key<Request>) -> bool,
    ) {
        let Some(session) = self.sessions.get(key) else { return };
        let given = session.durable_outcomes.iter().filter(|(_, request)| of(self, key, **request));
        let given: Vec<_> = given.map(|(sequence, request)| (*sequence, *request)).collect();
        for (sequence, request) in given {
            if let Some(session) = self.sessions.get_mut(key) {
                session.durable_outcomes.remove(&sequence);
            }
            if let Some(decided) = self.durable_mut(request).and_then(|durable| durable.decided.as_mut()) {
                decided.sequence = None;
            }
        }
    }

    pub(super) fn give_sequence(&mut self, key: Key<Session>, request: Key<Request>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let sequence = session.outcomes.next_sequence();
        session.durable_outcomes.insert(sequence, request);
        if let Some(decided) = self.durable_mut(request).and_then(|durable| durable.decided.as_mut()) {
            decided.sequence = Some(sequence);
        }
    }

    /// A session ends that cannot be named again: nobody will ask for its outcomes.
    pub(crate) fn finish_decided(&mut self, key: Key<Session>) {
        for (_, request) in self.decided(key) {
            self.finish(request);
        }
    }

    /// A JSON connection takes the name of a session whose client is gone: the durable requests of that one are answered
    /// on this connection from now on.
    pub(crate) fn inherit(&mut self, heir: Key<Session>, from: Key<Session>) {
        if let Some(heir) = self.sessions.get_mut(heir) {
            heir.heir = true;
        }
        let Some(session) = self.sessions.get(from) else { return };
        let durable = |request: &Key<Request>| self.requests.get(*request).is_some_and(Request::is_durable);
        let mut requests: Vec<_> = session.open.values().copied().filter(durable).collect();
        requests.sort_unstable_by_key(|key| self.requests.get(*key).map(|request| request.number));
        for request_key in requests {
            let Some(request) = self.requests.get_mut(request_key) else { continue };
            let before = request.number;
            let Some(session) = self.sessions.get_mut(heir) else { return };
            let number = session.next_number;
            session.next_number += 1;
            session.open.insert(number, request_key);
            session.durable += 1;
            (request.session, request.number) = (heir, number);
            let tag = self.requests.get(request_key).map(|request| self.tag_of(request)).unwrap_or_default();
            if let Some(session) = self.sessions.get_mut(heir).filter(|_| !tag.is_empty()) {
                session.by_tag.insert(tag, number);
            }
            if let Some(session) = self.sessions.get_mut(from) {
                session.open.remove(&before);
                session.durable -= 1;
                session.durable_outcomes.retain(|_, request| *request != request_key);
            }
            let stable = self.durable_mut(request_key).and_then(|durable| {
                durable.inherited = true;
                let decided = durable.decided.as_mut()?;
                decided.sequence = None;
                Some(decided.stable)
            });
            if stable == Some(true) {
                self.put_out_durable(heir, request_key);
            }
        }
    }
}
