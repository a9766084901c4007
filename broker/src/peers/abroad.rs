//! Durable requests of this server at its peers: an attempt that a peer's handler makes, of a request that stays here.
//!
//! ```text
//!             forwarded                    what became of it
//!   Queued ──────────────> Delivered ─────────────────────────────> decided, or the next attempt
//!                           │      ^ a delivery holds the peer's credit
//!        the link breaks    v
//!   Resting, stranded: nobody knows what becomes of it
//!      │ the peer is back: it has it ──> Resting, its lease runs ──> what became of it
//!      │ the peer is back: it has it not ──> Queued, and no attempt was used up
//!      └ it has not come back in `peer_lost` ──> the attempt is lost
//! ```
//!
//! An attempt is named by the request's count and its own number, which outlive links and restarts. Whenever a link to a peer
//! comes, or goes while there is another, the peer is told which attempts it has ([`Runs`]); what is not in that list ends
//! there, and what it has never seen is tried elsewhere. Each list has a higher `tie`, which goes with all that is forwarded
//! after it: what was forwarded before the list and comes behind it, because it took another link, is ignored there, and what
//! was forwarded after it and comes before it is no business of that list.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use ringpost_protocol::{
    Code, Content,
    message::{
        Ended, Forward, PeerMessage, Progress, RequestFlags, RequestId, Run, Runs, ServerMessage, Verdict,
    },
};

use super::SESSION_OF_PEER;
use crate::{
    Broker, ConnId,
    delivery::millis_between,
    durable::{Answered, By},
    slab::Key,
    state::{Delivery, Request, RequestState, Timer},
};

/// What a peer has declined is offered again after this long, to whoever has room then.
const PAUSE_AFTER_DECLINED: Duration = Duration::from_millis(250);

/// All attempts that peers have, and what they were told of them.
#[derive(Debug, Default)]
pub(crate) struct Abroad {
    /// By the request's count and the attempt.
    runs: BTreeMap<(u64, u16), AtPeer>,
    /// The last tie that each peer was told.
    ties: BTreeMap<Bytes, u64>,
}

/// An attempt that a peer has, or may have.
#[derive(Debug)]
struct AtPeer {
    request: Key<Request>,
    /// The peer's name.
    peer: Bytes,
    /// The last tie when it was given away; 0 if that was before this start.
    tie: u64,
    /// Its place in the peer's credit; `None` once the link that it went over is gone.
    delivery: Option<Key<Delivery>>,
}

impl Abroad {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    fn tie(&self, peer: &Bytes) -> u64 {
        self.ties.get(peer).copied().unwrap_or_default()
    }
}

/// The name under which the log has a peer as the one that holds a delivery.
pub(crate) fn session_of_peer(server_id: &[u8]) -> Bytes {
    [SESSION_OF_PEER, server_id].concat().into()
}

impl Broker {
    /// The server at the other end of a link.
    pub(super) fn peer_name(&self, conn: ConnId) -> Option<Bytes> {
        Some(self.connection(conn)?.peer.as_deref()?.server_id.clone())
    }

    /// A link to this server, if there is one.
    pub(super) fn link_to(&self, peer: &[u8]) -> Option<ConnId> {
        [true, false].into_iter().find_map(|dialled| self.find_peer(peer, dialled)).map(|(conn, _)| conn)
    }

    pub(super) fn tell_peer(&mut self, conn: ConnId, message: PeerMessage) {
        self.send(conn, ServerMessage::Peer(Box::new(message)));
    }

    fn run(&self, (count, attempt): (u64, u16), tie: u64) -> Run {
        Run { request: RequestId { boot: self.config.log_id, count }, attempt, tie }
    }

    /// Gives an attempt to a peer, whose handler has credit.
    #[cold]
    pub(crate) fn go_abroad(
        &mut self,
        key: Key<Request>,
        conn: ConnId,
        delivery: Key<Delivery>,
        content: Content,
    ) {
        let (Some(peer), Some(request)) = (self.peer_name(conn), self.requests.get(key)) else { return };
        let (at, tie) = ((request.count, request.attempt), self.abroad.tie(&peer));
        let forward = Forward {
            run: self.run(at, tie),
            flags: request.flags,
            time_left_ms: millis_between(self.now.mono, request.deadline),
            received_at_ms: request.received.wall_ms,
            content,
        };
        self.abroad.runs.insert(at, AtPeer { request: key, peer, tie, delivery: Some(delivery) });
        self.counters.forwarded_durable += 1;
        self.tell_peer(conn, PeerMessage::Forward(forward));
    }

    /// What a peer says of attempts that it has been given.
    pub(crate) fn ended_abroad(&mut self, conn: ConnId, ended: &mut Ended) {
        let Some(peer) = self.peer_name(conn) else { return };
        let run = ended.run;
        let same = |tie: u64| tie == run.tie || tie == 0;
        let Some(AtPeer { request: key, delivery, .. }) = self.take_run(&peer, run, same) else {
            // Told before, or given up since: it is of no use here, and need not be kept there.
            self.counters.late_answers += u64::from(ended.verdict != Verdict::Cancelled);
            return self.tell_peer(conn, PeerMessage::Taken(run));
        };
        let current = self.is_abroad(key, run.attempt, delivery);
        let held = delivery.and_then(|delivery| self.release_any(delivery));
        if current {
            self.settle_abroad(conn, key, ended);
        } else {
            self.counters.late_answers += u64::from(ended.verdict != Verdict::Cancelled);
            self.tell_peer(conn, PeerMessage::Taken(run));
        }
        if let Some(held) = held {
            self.offer_credit(held.handler);
        }
    }

    /// `which`: by the tie with which it was given away.
    fn take_run(&mut self, peer: &Bytes, run: Run, which: impl Fn(u64) -> bool) -> Option<AtPeer> {
        if run.request.boot != self.config.log_id {
            return None;
        }
        let at = (run.request.count, run.attempt);
        self.abroad.runs.get(&at).filter(|it| it.peer == *peer && which(it.tie))?;
        self.abroad.runs.remove(&at)
    }

    /// Whether a request waits for this attempt, and for no later one.
    fn is_abroad(&self, key: Key<Request>, attempt: u16, delivery: Option<Key<Delivery>>) -> bool {
        let Some(request) = self.requests.get(key).filter(|request| request.attempt == attempt) else {
            return false;
        };
        match (&request.state, delivery) {
            (RequestState::Delivered(current), Some(delivery)) => *current == delivery,
            (RequestState::Resting, None) => self.is_stranded(key),
            _ => false,
        }
    }

    fn is_stranded(&self, key: Key<Request>) -> bool {
        self.durable(key).is_some_and(|durable| durable.abroad)
    }

    fn settle_abroad(&mut self, conn: ConnId, key: Key<Request>, ended: &mut Ended) {
        self.no_longer_abroad(key);
        let content = std::mem::take(&mut ended.content);
        let taken = PeerMessage::Taken(ended.run);
        match ended.verdict {
            Verdict::Reply | Verdict::Error | Verdict::Retry(_) | Verdict::Reject => {
                let Some(connection) = self.connection(conn).map(|connection| connection.count) else {
                    return;
                };
                let answered = Answered { conn, connection, by: By::Run(ended.run) };
                self.durable_answered(key, ended.verdict, content, answered);
            }
            Verdict::Declined(_) => {
                self.counters.declined += 1;
                self.attempt_does_not_count(key);
                self.offer_elsewhere(key);
            }
            // The peer has left. That was no fault of the request.
            Verdict::Failed(Code::Draining) => {
                self.attempt_does_not_count(key);
                self.offer_elsewhere(key);
            }
            Verdict::Failed(code) if !is_lost(code) => {
                self.tell_peer(conn, taken);
                self.end_with_content(key, code, content);
            }
            Verdict::Failed(_) | Verdict::Cancelled => {
                self.tell_peer(conn, taken);
                let message = String::from_utf8_lossy(content.payload()).into_owned();
                self.lose_abroad(key, message);
            }
        }
    }

    /// A peer did not take it: it is for a handler of this server that has room, or for whoever has it after a while.
    fn offer_elsewhere(&mut self, key: Key<Request>) {
        let name = self.kept_of(key).map(|kept| kept.content.name());
        let action = name.and_then(|name| self.action_by_name.get(name)).and_then(|it| self.actions.get(*it));
        if action.is_some_and(|action| !action.ready.is_empty()) {
            return self.queue_again(key);
        }
        self.rest(key, PAUSE_AFTER_DECLINED);
    }

    /// The attempt is lost: the next one begins, or that was the last.
    fn lose_abroad(&mut self, key: Key<Request>, message: String) {
        self.counters.lost_attempts += 1;
        self.no_longer_abroad(key);
        match self.requests.get(key) {
            Some(request) if request.attempt < request.max_attempts => self.queue_again(key),
            _ => self.end_with_error(key, Code::HandlerLost, message),
        }
    }

    /// Nothing is waited for at a peer any more.
    fn no_longer_abroad(&mut self, key: Key<Request>) {
        let timers = self.durable_mut(key).map(|durable| {
            durable.abroad = false;
            [durable.lease.take(), durable.rest.take()]
        });
        timers.into_iter().flatten().for_each(|timer| self.stop_timer(timer));
    }

    /// A handler of a peer is still at work.
    pub(crate) fn working_abroad(&mut self, conn: ConnId, run: Run, content: &mut Content) {
        let Some(peer) = self.peer_name(conn) else { return };
        let at = (run.request.count, run.attempt);
        let same = |it: &&AtPeer| it.peer == peer && (it.tie == run.tie || it.tie == 0);
        let Some(it) = self.abroad.runs.get(&at).filter(same) else { return };
        let (key, delivery) = (it.request, it.delivery);
        if run.request.boot != self.config.log_id || !self.is_abroad(key, run.attempt, delivery) {
            return;
        }
        self.lease(key);
        let Some(request) = self.requests.get(key) else { return };
        if request.flags.has(RequestFlags::PROGRESS)
            && let Some(conn) = self.sessions.get(request.session).and_then(|session| session.listens())
        {
            let content = std::mem::take(content);
            let message = Progress { number: request.number, tag: self.tag_of(request), content };
            self.send(conn, ServerMessage::Progress(message));
        }
    }

    /// A delivery to a peer is called back. `false` if it is none of a durable request.
    pub(crate) fn withdraw(&mut self, conn: ConnId, delivery: Key<Delivery>, key: Key<Request>) -> bool {
        let Some(request) = self.requests.get(key).filter(|request| request.is_durable()) else {
            return false;
        };
        let at = (request.count, request.attempt);
        let it = self.abroad.runs.get(&at).filter(|it| it.delivery == Some(delivery));
        let Some(run) = it.map(|it| self.run(at, it.tie)) else { return false };
        self.tell_peer(conn, PeerMessage::Withdraw(run));
        true
    }

    /// What became of a stranded request is decided here: the peer is told, if it is there.
    pub(crate) fn withdraw_stranded(&mut self, key: Key<Request>) {
        if !self.is_stranded(key) {
            return;
        }
        self.no_longer_abroad(key);
        let Some(request) = self.requests.get(key) else { return };
        let at = (request.count, request.attempt);
        let Some(left) = self.abroad.runs.remove(&at) else { return };
        if let Some(conn) = self.link_to(&left.peer) {
            self.tell_peer(conn, PeerMessage::Withdraw(self.run(at, left.tie)));
        }
    }

    // When links come and go.

    /// The link is gone over which a peer was given this: the peer may have it, and may come back. `false` if it is none of
    /// these.
    pub(crate) fn strand(&mut self, key: Key<Delivery>, delivery: &Delivery) -> bool {
        let Some(request) = self.requests.get(delivery.request) else { return false };
        let at = (request.count, request.attempt);
        let attempt = request.attempt;
        if !request.is_durable() || !self.is_abroad(delivery.request, attempt, Some(key)) {
            return false;
        }
        let Some(it) = self.abroad.runs.get_mut(&at) else { return false };
        it.delivery = None;
        self.counters.stranded += 1;
        self.wait_for_peer(delivery.request);
        true
    }

    /// A request was with a peer when this server was stopped: it may still be.
    pub(crate) fn stranded_before(&mut self, key: Key<Request>, attempt: u16, session: &[u8]) {
        let Some(request) = self.requests.get_mut(key) else { return };
        request.attempt = attempt;
        let at = (request.count, attempt);
        let peer = Bytes::copy_from_slice(session.strip_prefix(SESSION_OF_PEER).unwrap_or(session));
        self.abroad.runs.insert(at, AtPeer { request: key, peer, tie: 0, delivery: None });
        self.wait_for_peer(key);
    }

    fn wait_for_peer(&mut self, key: Key<Request>) {
        self.no_longer_abroad(key);
        if let Some(request) = self.requests.get_mut(key) {
            request.state = RequestState::Resting;
        }
        self.rest(key, self.config.peer_lost);
        if let Some(durable) = self.durable_mut(key) {
            durable.abroad = true;
        }
    }

    /// The time of a request's pause is over. Whether it was one that waits for a peer.
    pub(crate) fn peer_is_lost(&mut self, key: Key<Request>) -> bool {
        if !self.is_stranded(key) {
            return false;
        }
        let Some(request) = self.requests.get(key) else { return false };
        let left = self.abroad.runs.remove(&(request.count, request.attempt));
        let message = format!(
            "the server `{}`, which had it, has not come back within {} s (the server's --peer-lost); it may have run",
            left.map(|left| String::from_utf8_lossy(&left.peer).into_owned()).unwrap_or_default(),
            self.config.peer_lost.as_secs()
        );
        self.counters.peers_lost += 1;
        self.lose_abroad(key, message);
        true
    }

    /// The time that a handler has is over for one that a peer says it has. Whether it was one of those.
    pub(crate) fn stranded_lease_over(&mut self, key: Key<Request>) -> bool {
        if !self.is_stranded(key) {
            return false;
        }
        self.withdraw_stranded(key);
        let message = format!(
            "the handler did not answer within {} s (the server's --handle-timeout); it may still run",
            self.config.handle_timeout.as_secs()
        );
        self.lose_abroad(key, message);
        true
    }

    /// Tells a peer on a link which attempts it has, and that it has no others.
    pub(super) fn tell_abroad(&mut self, conn: ConnId, peer: &Bytes) {
        // Those that are called back, and whose end will not be told any more.
        let over: Vec<_> = self.abroad.runs.iter().filter(|(_, it)| it.peer == *peer).collect();
        let over = over.into_iter().filter(|((_, attempt), it)| {
            let held = it.delivery.is_some_and(|delivery| self.deliveries.contains(delivery));
            !held && !self.is_abroad(it.request, *attempt, None)
        });
        for at in over.map(|(at, _)| *at).collect::<Vec<_>>() {
            self.abroad.runs.remove(&at);
        }
        let tie = self.now.wall_ms.max(self.abroad.tie(peer) + 1);
        self.abroad.ties.insert(peer.clone(), tie);
        let with_it = self.abroad.runs.iter().filter(|(_, it)| it.peer == *peer);
        let runs = with_it.map(|(at, it)| self.run(*at, it.tie)).collect();
        for part in Runs::split(tie, runs) {
            self.tell_peer(conn, PeerMessage::Abroad(part));
        }
    }

    /// Of what the peer was said to have, these it has not. What is left runs there, or has ended, which it tells.
    pub(crate) fn unknown_abroad(&mut self, conn: ConnId, unknown: &Runs) {
        let Some(peer) = self.peer_name(conn) else { return };
        if unknown.tie != self.abroad.tie(&peer) {
            return;
        }
        for run in &unknown.runs {
            // What was given away after the list was told is no business of this answer.
            let listed = |tie: u64| tie < unknown.tie;
            let Some(AtPeer { request, delivery, .. }) = self.take_run(&peer, *run, listed) else { continue };
            let current = self.is_abroad(request, run.attempt, delivery);
            let held = delivery.and_then(|delivery| self.release_any(delivery));
            if current {
                // It never got there, or the peer was started anew, which is no fault of the request.
                self.no_longer_abroad(request);
                self.attempt_does_not_count(request);
                self.queue_again(request);
            }
            if let Some(held) = held {
                self.offer_credit(held.handler);
            }
        }
        if unknown.more {
            return;
        }
        let there = self.abroad.runs.values().filter(|it| it.peer == peer && it.delivery.is_none());
        for key in there.map(|it| it.request).collect::<Vec<_>>() {
            let rest = self.durable_mut(key).filter(|durable| durable.abroad).map(|it| it.rest.take());
            if let Some(rest) = rest {
                self.stop_timer(rest);
                self.lease(key);
            }
        }
    }

    /// Whether it would believe this peer what became of an attempt.
    #[cfg(test)]
    pub(crate) fn expects(&self, peer: &str, count: u64, attempt: u16) -> bool {
        self.abroad
            .runs
            .get(&(count, attempt))
            .is_some_and(|it| it.peer == peer.as_bytes() && self.is_abroad(it.request, attempt, it.delivery))
    }

    pub(super) fn check_abroad(&self) {
        for ((count, attempt), it) in &self.abroad.runs {
            if let Some(request) = self.requests.get(it.request).filter(|request| request.count == *count)
                && request.attempt == *attempt
                && self.is_stranded(it.request)
            {
                assert!(it.delivery.is_none(), "{:?} is stranded, and held", it.request);
            }
        }
        for (key, request) in self.requests.iter() {
            let stranded = self.is_stranded(key);
            let known = self.abroad.runs.get(&(request.count, request.attempt));
            assert!(!stranded || known.is_some_and(|it| it.request == key), "{key:?} is at a peer");
            assert!(!stranded || matches!(request.state, RequestState::Resting), "{key:?} rests meanwhile");
            let durable = self.durable(key);
            let timed = durable.is_some_and(|durable| durable.rest.is_some() || durable.lease.is_some());
            assert!(!stranded || timed, "{key:?} is not waited for without end");
        }
    }

    /// Begins a pause, or begins it anew: then it waits for a handler again.
    pub(crate) fn rest(&mut self, key: Key<Request>, pause: Duration) {
        let rest = self.timers.insert(self.now.mono + pause, Timer::Rested(key));
        if let Some(request) = self.requests.get_mut(key) {
            request.state = RequestState::Resting;
        }
        let before = self.durable_mut(key).and_then(|durable| durable.rest.replace(rest));
        self.stop_timer(before);
    }
}

/// Whether an attempt that ended so at a peer may have run there without anybody knowing what it came to.
fn is_lost(code: Code) -> bool {
    matches!(
        code,
        Code::HandlerLost
            | Code::NoHandler
            | Code::Overloaded
            | Code::Recovering
            | Code::ConnectionLost
            | Code::Cancelled
    )
}
