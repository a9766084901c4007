//! A client across its connections: what it has open, and the outcomes that are kept until it has them.
//!
//! ```text
//!          hello                    connection lost                 linger over
//! (none) ─────────> attached ─────────────────────────> away ───────────────────> (none)
//!                    ^   │ every outcome gets the        │ requests go on, outcomes are kept
//!                    │   │ next sequence and is kept     │
//!                    │   │ until acknowledged            │
//!                    │   └──────── hello of a later connection: sessionTaken for the older one
//!                    └── hello; then `resume` ── states, kept outcomes, acceptance ──┘
//! ```
//!
//! A name does not say who speaks under it, so the hello does ([`Speaker`]). What is open belongs to one instance: another
//! one begins a new tenure, and cannot ask for it by number. A hello that an instance said on an earlier connection than the
//! last one that was heard of it comes late, and is refused.
//!
//! A session outlives its connection if it has a name and its client speaks the binary dialect. Handlers do not: what
//! they hold is lost with the connection, but when that is lost with the broker.

mod open_states;

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use ringpost_protocol::{
    Code,
    limits::{MAX_SESSION_BYTES, MIN_COUNTED_BYTES},
    message::{OpenState, Reply, Resume, ServerMessage, Speaker},
};

use crate::{
    Broker, ConnId, Speaks,
    broker::Drain,
    slab::Key,
    state::{Request, Session, Timer},
};

/// What a kept outcome costs beside its content: its place in the line.
const OUTCOME_BYTES: usize = std::mem::size_of::<Reply>();
/// Kept outcomes share buffers of this size. A larger one is cheaper to fill, and pinned longer by what is left in it.
const CHUNK_BYTES: usize = 8 << 10;

/// How many instances are remembered that had a session before. More than two fight over one only by mistake.
pub(crate) const MAX_FORMER: usize = 8;

/// The outcomes that a session's client may not have got, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    kept: VecDeque<Reply>,
    bytes: usize,
    /// Of these, what lies in large buffers that are counted where they are shared.
    counted_bytes: usize,
    /// The sequence of the last one, kept or not.
    last: u64,
    /// The sequence of the last one that had to make room.
    dropped: u64,
}

impl Outcomes {
    /// Bytes that it keeps, without those of large contents that are counted once for all.
    pub(crate) fn uncounted_bytes(&self) -> usize {
        self.bytes - self.counted_bytes
    }

    /// The sequence of an outcome that is kept elsewhere.
    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Keeps a copy of an outcome. How many older ones had to make room.
    fn keep(&mut self, reply: &Reply, limit_bytes: usize, chunk: &mut BytesMut) -> u64 {
        let mut reply = reply.clone();
        if reply.content.len() <= CHUNK_BYTES / 4 {
            if chunk.capacity() < reply.content.len() {
                *chunk = BytesMut::with_capacity(CHUNK_BYTES);
            }
            reply.content.detach_into(chunk);
        } else {
            reply.content.detach(MIN_COUNTED_BYTES);
        }
        self.bytes += OUTCOME_BYTES + reply.content.len();
        self.counted_bytes += reply.content.len() - reply.content.uncounted_len();
        self.kept.push_back(reply);
        let before = self.kept.len();
        while self.bytes > limit_bytes {
            let Some(oldest) = self.pop() else { break };
            self.dropped = oldest.sequence;
        }
        (before - self.kept.len()) as u64
    }

    fn acknowledge(&mut self, sequence: u64) {
        while self.kept.front().is_some_and(|oldest| oldest.sequence <= sequence) {
            self.pop();
        }
        if self.kept.is_empty() && self.kept.capacity() > 64 {
            self.kept = VecDeque::new();
        }
    }

    fn pop(&mut self) -> Option<Reply> {
        let oldest = self.kept.pop_front()?;
        self.bytes -= OUTCOME_BYTES + oldest.content.len();
        self.counted_bytes -= oldest.content.len() - oldest.content.uncounted_len();
        Some(oldest)
    }

    fn clear(&mut self) {
        (self.kept, self.bytes, self.counted_bytes) = (VecDeque::new(), 0, 0);
    }

    /// What the client does not know by now, it will never get: as if a last outcome had had to make room.
    fn end_unheard(&mut self) {
        self.dropped = self.next_sequence();
    }

    pub(crate) fn check_invariants(&self, limit_bytes: usize) {
        let bytes: usize = self.kept.iter().map(|reply| OUTCOME_BYTES + reply.content.len()).sum();
        assert!(bytes == self.bytes && bytes <= limit_bytes, "bytes of kept outcomes");
        let sequences = self.kept.iter().map(|reply| reply.sequence);
        assert!(
            sequences.clone().is_sorted_by(|one, next| one < next)
                && sequences.max().unwrap_or(0) <= self.last,
            "kept outcomes are in the order of their sequences"
        );
    }
}

/// What a connection is told of the session that it has entered.
pub(crate) struct Entry {
    pub(crate) epoch: u64,
    pub(crate) tenure: u64,
    /// The lowest number that its next request may have.
    pub(crate) next_number: u64,
}

impl Session {
    /// Whether all that it has open has an outcome that was sent.
    fn is_idle(&self) -> bool {
        self.open.len() == self.durable_outcomes.len()
    }

    /// Whether this instance was heard on that connection before, or on a later one.
    fn has_heard(&self, speaker: Speaker) -> bool {
        let known = [&self.speaker].into_iter().chain(&self.former);
        known
            .into_iter()
            .any(|known| known.instance == speaker.instance && known.connection >= speaker.connection)
    }

    /// The session gets to another instance, with the next tenure.
    pub(crate) fn hand_over(&mut self, speaker: Speaker, tenure: u64) {
        if self.epoch > 0 {
            self.former.push(self.speaker);
        }
        self.former.retain(|former| former.instance != speaker.instance);
        if self.former.len() > MAX_FORMER {
            self.former.remove(0);
        }
        self.tenure = tenure;
    }

    /// The connection that outcomes can be sent on now.
    pub(crate) fn listens(&self) -> Option<ConnId> {
        self.conn.filter(|_| self.caught_up)
    }
}

impl Broker {
    /// Whether a hello was said before one that has been heard: its client has given up on the connection.
    pub(crate) fn is_late(&self, name: &Bytes, speaker: Speaker) -> bool {
        let session = self.session_by_name.get(name).and_then(|key| self.sessions.get(*key));
        session.is_some_and(|session| session.has_heard(speaker))
    }

    /// Gives a connection the session of that name, a new one if there is none.
    pub(crate) fn enter_session(&mut self, conn: ConnId, name: &Bytes, speaker: Speaker) -> Entry {
        self.take_from_other(name);
        let speaks = self.connection(conn).map(|connection| connection.speaks);
        let owner = self.connection(conn).map(|connection| connection.granted.clone());
        let key = match self.session_by_name.get(name).copied() {
            Some(key) => key,
            None => self.new_session(name, speaks == Some(Speaks::Binary)),
        };
        if let Some(connection) = self.connection_mut(conn) {
            connection.session = Some(key);
        }
        let Some(session) = self.sessions.get_mut(key) else {
            return Entry { epoch: 1, tenure: 0, next_number: 1 };
        };
        session.conn = Some(conn);
        session.owner = owner;
        // Its name may have been a JSON client's before.
        session.outlives = speaks == Some(Speaks::Binary) && !name.is_empty();
        session.returns = session.epoch > 0 && session.speaker.instance == speaker.instance;
        if !session.returns {
            self.tenure_count += 1;
            session.hand_over(speaker, self.tenure_count);
        }
        session.speaker = speaker;
        session.epoch += 1;
        session.caught_up = session.epoch == 1;
        session.heir = false;
        if std::mem::take(&mut session.away) {
            self.detached -= 1;
        }
        if let Some(linger) = session.linger.take() {
            self.timers.cancel(linger);
        }
        Entry { epoch: session.epoch, tenure: session.tenure, next_number: session.next_number }
    }

    pub(crate) fn new_session(&mut self, name: &Bytes, outlives: bool) -> Key<Session> {
        // A copy: the name must not pin the buffer that the hello came in.
        let name = Bytes::copy_from_slice(name);
        let key = self.sessions.insert(Session {
            name: name.clone(),
            conn: None,
            outlives: outlives && !name.is_empty(),
            speaker: Speaker::default(),
            former: Vec::new(),
            tenure: 0,
            returns: false,
            caught_up: true,
            outcomes: Outcomes::default(),
            away: false,
            linger: None,
            durable: 0,
            owner: None,
            heir: false,
            epoch: 0,
            next_number: 1,
            open: self.table(),
            by_tag: self.table(),
            unstable: VecDeque::new(),
            durable_outcomes: BTreeMap::new(),
            accepted: None,
        });
        if !name.is_empty() {
            self.session_by_name.insert(name, key);
        }
        key
    }

    /// A session belongs to the newest connection that names it; the older one is told, and loses it for good.
    fn take_from_other(&mut self, name: &Bytes) {
        let taken = self.session_by_name.get(name).and_then(|taken| self.sessions.get(*taken));
        if let Some(older) = taken.and_then(|session| session.conn) {
            self.counters.sessions_taken += 1;
            let message = "another connection has taken this session over".to_owned();
            self.refuse_connection(older, Code::SessionTaken, message);
            self.end_connection(older);
        }
    }

    /// JSON: an `init` names the session, which has none yet. It ends with its connection all the same.
    pub(crate) fn name_session(&mut self, conn: ConnId, name: &Bytes) {
        let Some(key) = self.connection(conn).and_then(|connection| connection.session) else { return };
        let unnamed = self.sessions.get(key).is_some_and(|session| session.name.is_empty());
        if name.is_empty() || !unnamed || name.len() > MAX_SESSION_BYTES {
            return;
        }
        self.take_from_other(name);
        let away = self.session_by_name.get(name).copied();
        let name = Bytes::copy_from_slice(name);
        if let Some(session) = self.sessions.get_mut(key) {
            session.name = name.clone();
            self.session_by_name.insert(name, key);
        }
        if let Some(away) = away {
            self.inherit(key, away);
            self.end_session(away);
        }
    }

    /// The connection is gone. What its session has open goes on, if the client can come back for it.
    pub(crate) fn leave_session(&mut self, key: Key<Session>, ends_here: bool) {
        let crowded = self.detached >= self.config.max_sessions_away;
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.conn = None;
        if !session.outlives || ends_here || self.drain != Drain::No {
            return self.end_all_plain(key);
        }
        if crowded && session.open.is_empty() {
            self.counters.sessions_forgotten += 1;
            return self.end_session(key);
        }
        let linger = self.timers.insert(self.now.mono + self.config.session_linger, Timer::Linger(key));
        session.linger = Some(linger);
        session.away = true;
        self.detached += 1;
    }

    /// The client has been away for long: of its session, only what is durable is kept.
    pub(crate) fn linger_over(&mut self, key: Key<Session>) {
        self.counters.sessions_forgotten += 1;
        if let Some(session) = self.sessions.get_mut(key) {
            session.linger = None;
        }
        self.end_all_plain(key);
    }

    /// Ends what does not outlive the client, and the session if that was all.
    fn end_all_plain(&mut self, key: Key<Session>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.durable == 0 || session.name.is_empty() {
            return self.end_session(key);
        }
        if !std::mem::replace(&mut session.away, true) {
            self.detached += 1;
        }
        self.drop_outcomes(key);
        if let Some(session) = self.sessions.get_mut(key) {
            session.outcomes.end_unheard();
        }
        self.abandon_those(key, |_, _| true);
    }

    pub(crate) fn drop_outcomes(&mut self, key: Key<Session>) {
        if let Some(session) = self.sessions.get_mut(key) {
            self.kept_bytes -= session.outcomes.uncounted_bytes();
            session.outcomes.clear();
        }
    }

    /// Forgets a session. What it has open is called back from the handlers; durable requests go on without it.
    pub(crate) fn end_session(&mut self, key: Key<Session>) {
        self.abandon_those(key, |_, _| true);
        self.finish_decided(key);
        let Some(session) = self.sessions.remove(key) else { return };
        self.kept_bytes -= session.outcomes.uncounted_bytes();
        self.detached -= usize::from(session.away);
        if let Some(linger) = session.linger {
            self.counters.sessions_forgotten += 1;
            self.timers.cancel(linger);
        }
        if self.session_by_name.get(&session.name) == Some(&key) {
            self.session_by_name.remove(&session.name);
        }
    }

    pub(crate) fn forget_detached_sessions(&mut self) {
        let away = |(key, session): (Key<Session>, &Session)| {
            (session.conn.is_none() && session.durable == 0).then_some(key)
        };
        for key in self.sessions.iter().filter_map(away).collect::<Vec<_>>() {
            self.end_session(key);
        }
    }

    /// Calls back the plain requests of a session that somebody waits for, but for those with these numbers, which rise.
    pub(crate) fn abandon_all_but(&mut self, key: Key<Session>, wanted: &[u64]) {
        self.abandon_those(key, |number, request| {
            wanted.binary_search(&number).is_err() && request.wants_reply()
        });
    }

    fn abandon_those(&mut self, key: Key<Session>, unwanted: impl Fn(u64, &Request) -> bool) {
        let Some(session) = self.sessions.get(key) else { return };
        let unwanted = |number: u64, key: Key<Request>| {
            let plain = |request: &&Request| !request.is_durable();
            self.requests.get(key).filter(plain).is_some_and(|request| unwanted(number, request))
        };
        let open = session.open.iter().filter(|(number, request)| unwanted(**number, **request));
        let mut requests: Vec<_> = open.map(|(number, request)| (*number, *request)).collect();
        // The table's order is random; what follows from it must not be.
        requests.sort_unstable();
        for (_, request) in requests {
            self.abandon(request);
        }
    }

    /// The client is back: what is known of each number that it has open, then the outcomes that it did not get, then
    /// how far its requests were accepted.
    pub(crate) fn resume(&mut self, conn: ConnId, resume: &mut Resume) {
        let Some(key) = self.connection(conn).and_then(|connection| connection.session) else { return };
        resume.open.sort_unstable();
        let (attached, forgotten) = self.reattach(conn, resume);
        let session = self.sessions.get(key).filter(|session| !session.caught_up);
        if resume.boot != self.config.boot && session.is_some_and(|session| session.durable > 0) {
            return self.resume_durable(conn, key, resume, (attached, forgotten));
        }
        // Another instance's numbers say nothing here. One that wants it may have what is kept.
        let may_ask = |session: &Session| session.returns || resume.unclaimed && resume.open.is_empty();
        let known = resume.boot == self.config.boot && session.is_some_and(may_ask);
        if !known {
            let open = resume.open.iter().map(|number| (*number, OpenState::Lost)).collect();
            return self.send(conn, ServerMessage::Resumed { open, forgotten, attached });
        }
        self.counters.sessions_resumed += 1;
        // What the client does not ask for any more, it gave up while it was away.
        self.abandon_all_but(key, &resume.open);
        self.acknowledge_durable(key, resume.sequence);
        let Some(session) = self.sessions.get_mut(key) else { return };
        self.kept_bytes -= session.outcomes.uncounted_bytes();
        session.outcomes.acknowledge(resume.sequence);
        self.kept_bytes += session.outcomes.uncounted_bytes();
        session.caught_up = true;
        session.heir = resume.unclaimed;
        if !resume.unclaimed {
            // What an earlier process was sent, and did not acknowledge, is not for this one.
            self.take_sequences_back(key, |broker, session, request| !broker.concerns(session, request));
        }
        let decided = self.decided_numbers(key);
        let Some(session) = self.sessions.get(key) else { return };
        let open = self.open_states(session, resume, &decided);
        let lost = open.iter().filter(|(_, state)| *state == OpenState::Lost);
        let lost: Vec<_> = lost.filter_map(|(number, _)| session.open.get(number).copied()).collect();
        self.send(conn, ServerMessage::Resumed { open, forgotten, attached });
        self.replay(conn, key);
        // Its requester has given them up by now.
        for request in lost {
            self.abandon(request);
        }
    }

    /// Sends all outcomes that the client did not acknowledge, in the order of their sequences, then how far its requests
    /// were accepted.
    pub(crate) fn replay(&mut self, conn: ConnId, key: Key<Session>) {
        self.give_sequences(key);
        let Some(session) = self.sessions.get(key) else { return };
        let mut replayed: Vec<_> = session.outcomes.kept.iter().cloned().collect();
        replayed.extend(session.durable_outcomes.values().filter_map(|request| self.durable_reply(*request)));
        replayed.sort_by_key(|reply| reply.sequence);
        let asked = |reply: &Reply| session.open.get(&reply.number).and_then(|request| self.asked(*request));
        let replayed: Vec<_> = replayed.into_iter().map(|reply| (asked(&reply), reply)).collect();
        let upto = session.unstable.front().copied().unwrap_or(session.next_number) - 1;
        self.counters.outcomes_replayed += replayed.len() as u64;
        for (asked, reply) in replayed {
            if let Some(asked) = asked {
                self.send(conn, asked);
            }
            self.send(conn, ServerMessage::Reply(reply));
        }
        if upto > 0 {
            self.send(conn, ServerMessage::Accepted { upto, tag: Default::default() });
        }
    }

    /// A request from a connection that did not resume what its session had: another instance, which knows nothing of the
    /// older one's requests and could not tell their outcomes from those of its own.
    pub(crate) fn begin_anew(&mut self, key: Key<Session>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.caught_up = true;
        session.heir = false;
        self.drop_outcomes(key);
        self.take_sequences_back(key, |_, _, _| true);
        self.abandon_all_but(key, &[]);
    }

    pub(crate) fn acknowledge(&mut self, conn: ConnId, sequence: u64) {
        let key = self.connection(conn).and_then(|connection| connection.session);
        #[cfg(feature = "planted-bugs")]
        let told = key.map(|key| self.told_of_durable(key, sequence)).unwrap_or_default();
        if let Some(key) = key {
            self.acknowledge_durable(key, sequence);
        }
        if let Some(session) = key.and_then(|key| self.sessions.get_mut(key)) {
            #[cfg(feature = "planted-bugs")]
            if self.config.is_planted(crate::PlantedBug::LeakedOutcome) {
                return session.outcomes.acknowledge(sequence);
            }
            self.kept_bytes -= session.outcomes.uncounted_bytes();
            session.outcomes.acknowledge(sequence);
            #[cfg(feature = "planted-bugs")]
            for reply in told {
                session.outcomes.keep(&reply, self.config.outcome_limit_bytes, &mut self.chunk);
            }
            self.kept_bytes += session.outcomes.uncounted_bytes();
        }
    }

    /// What [`crate::PlantedBug::OutcomeReplayed`] keeps.
    #[cfg(feature = "planted-bugs")]
    fn told_of_durable(&self, key: Key<Session>, sequence: u64) -> Vec<Reply> {
        let session =
            self.sessions.get(key).filter(|_| self.config.is_planted(crate::PlantedBug::OutcomeReplayed));
        let told = session.into_iter().flat_map(|session| session.durable_outcomes.range(..=sequence));
        told.filter_map(|(_, request)| self.durable_reply(*request)).collect()
    }

    /// Sends an outcome to its session's client, and keeps it until the client has acknowledged it.
    pub(crate) fn put_out(&mut self, key: Key<Session>, mut reply: Reply) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        reply.sequence = session.outcomes.next_sequence();
        if session.outlives {
            let limit = self.config.outcome_limit_bytes;
            self.kept_bytes -= session.outcomes.uncounted_bytes();
            self.counters.outcomes_dropped += session.outcomes.keep(&reply, limit, &mut self.chunk);
            self.kept_bytes += session.outcomes.uncounted_bytes();
        }
        if let Some(conn) = session.listens() {
            #[cfg(feature = "planted-bugs")]
            if self.config.is_planted(crate::PlantedBug::DoubleOutcome) && reply.code.is_none() {
                self.send(conn, ServerMessage::Reply(reply.clone()));
            }
            self.send(conn, ServerMessage::Reply(reply));
        }
    }

    /// Whether a session's client is to be told nothing more, as far as is known now. Durable sends that were accepted go on
    /// without a word.
    pub(crate) fn has_told_all(&self, session: &Session) -> bool {
        let told = |key: &Key<Request>| {
            let sent = || self.durable(*key).and_then(|durable| durable.decided?.sequence).is_some();
            self.requests.get(*key).is_some_and(|it| it.is_durable() && (!it.wants_reply() || sent()))
        };
        session.is_idle()
            || session.durable > 0 && session.unstable.is_empty() && session.open.values().all(told)
    }

    pub(crate) fn close_if_session_finished(&mut self, key: Key<Session>) {
        if let Some(conn) = self.sessions.get(key).and_then(|session| session.conn) {
            self.close_if_finished(conn);
        }
    }
}
