//! Attempts at durable requests of peers that this server makes for them: guests.
//!
//! A guest waits and runs here as a plain request does that has one attempt. It has no session: its end is told to its owner, over
//! whatever link there is, and kept until the owner has it for good, whatever becomes of links meanwhile. Nothing of it is in this
//! server's log: the owner has it in its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use ringpost_protocol::{
    Code, Content,
    limits::{MIN_COUNTED_BYTES, check_own_name},
    message::{Answer, Ended, Forward, PeerMessage, RequestFlags, Run, Runs, Verdict},
    time::{Now, Time},
};

use crate::{
    Broker, ConnId,
    broker::Drain,
    dispatch::no_handler,
    durable::{Answered, By},
    slab::Key,
    state::{Action, Kept, Request, RequestState, Timer},
};

/// All guests, and what their owners have told of them.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    /// By the name of the owner, and the attempt, with whatever tie.
    all: BTreeMap<(Bytes, Run), Stay>,
    owners: BTreeMap<Bytes, Owner>,
    /// Ends are kept that nobody has taken: they are looked through when this timer comes.
    sweeps: bool,
}

#[derive(Debug)]
struct Stay {
    /// With the tie that it came with: a list with a higher one knows of it.
    run: Run,
    /// The owner was started anew since it came: any list of its knows of it.
    before: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It waits, or a handler has it.
    Running(Key<Request>),
    Ended(Box<Farewell>),
}

impl Stay {
    fn farewell(&self) -> Option<&Farewell> {
        match &self.state {
            State::Ended(farewell) => Some(farewell),
            State::Running(_) => None,
        }
    }
}

/// The end of a guest, until its owner has it.
#[derive(Debug)]
struct Farewell {
    verdict: Verdict,
    content: Content,
    /// The handler is told when its answer is stable.
    answered: Option<Answered>,
    at: Time,
}

/// What an owner has told.
#[derive(Debug, Default)]
struct Owner {
    /// Which start of it.
    instance: u64,
    tie: u64,
    /// The parts of a list that is not complete.
    listed: BTreeSet<Run>,
}

/// What a guest has more than other requests.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The owner's name.
    pub(crate) owner: Bytes,
    pub(crate) run: Run,
    /// As the handler is told, who acts on them: these are the owner's business here.
    pub(crate) flags: RequestFlags,
}

fn place(owner: &Bytes, run: Run) -> (Bytes, Run) {
    (owner.clone(), Run { tie: 0, ..run })
}

impl Guests {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// What an owner has told since it was started. Links of an earlier start of it are closed before it says anything.
    fn owner(&mut self, name: &Bytes, instance: u64) -> &mut Owner {
        let owner = self.owners.entry(name.clone()).or_default();
        if owner.instance != instance {
            *owner = Owner { instance, ..Owner::default() };
            let here = self.all.range_mut((name.clone(), Run::default())..);
            here.take_while(|((owner, _), _)| owner == name).for_each(|(_, stay)| stay.before = true);
        }
        owner
    }

    /// What is here of an owner's attempt.
    fn stay(&self, owner: &Bytes, run: Run) -> Option<&Stay> {
        let stay = self.all.get(&place(owner, run))?;
        (run.tie == 0 || run.tie == stay.run.tie).then_some(stay)
    }

    fn has_ended(&self, owner: &Bytes, run: Run) -> bool {
        self.stay(owner, run).is_some_and(|stay| stay.farewell().is_some())
    }
}

impl Broker {
    /// A peer wants one of its durable requests run.
    pub(crate) fn take_guest(&mut self, conn: ConnId, forward: &mut Forward) {
        let Some(peer) = self.connection(conn).and_then(|connection| connection.peer.as_deref()) else {
            return;
        };
        let (owner, instance) = (peer.server_id.clone(), peer.instance);
        let run = forward.run;
        // What an owner had sent before it told what it has here has been answered by that.
        let fresh = self.guests.owner(&owner, instance).tie <= run.tie;
        let known = self.guests.all.get(&place(&owner, run)).map(|stay| stay.run);
        if !fresh || known == Some(run) {
            self.counters.guests_stale += 1;
            return;
        }
        if let Some(given_up) = known {
            // It is offered anew, so its owner does not want what came of it before.
            self.send_off(&owner, given_up);
        }
        match self.may_stay(conn, forward) {
            Ok(action) => self.let_in(owner, action, forward),
            Err((code, message)) => {
                self.counters.guests_declined += 1;
                let (verdict, content) = (Verdict::Declined(code), Content::from_payload(message));
                self.tell_peer(conn, PeerMessage::Ended(Ended { run, verdict, content }));
            }
        }
    }

    fn may_stay(&mut self, conn: ConnId, forward: &Forward) -> Result<Key<Action>, (Code, String)> {
        let content = &forward.content;
        let name = content.name();
        if check_own_name(name).is_err() {
            return Err((Code::Malformed, "no request can go to an action of that name".to_owned()));
        }
        let limited = self.connection(conn).is_some_and(|connection| connection.granted.limits_requests);
        if let Some(forbidden) = limited.then(|| self.forbids_requesting(conn, name)).flatten() {
            return Err(forbidden);
        }
        if self.drain != Drain::No {
            return Err((Code::Draining, "the peer is leaving".to_owned()));
        }
        let handled = self.action_by_name.get(name).copied();
        let handled = handled
            .and_then(|key| self.actions.get(key).filter(|action| !action.handlers.is_empty()).map(|_| key));
        let Some(action) = handled else {
            return Err((Code::NoHandler, no_handler(&String::from_utf8_lossy(name))));
        };
        if self.requests.is_full()
            || self.deliveries.is_full()
            || self.is_over_memory(content.uncounted_len())
        {
            return Err((Code::Overloaded, "the peer holds as much as it can".to_owned()));
        }
        match self.over_queue_limit(action, content.len()) {
            Some(message) => Err((Code::Overloaded, message)),
            None => Ok(action),
        }
    }

    fn let_in(&mut self, owner: Bytes, action: Key<Action>, forward: &mut Forward) {
        let Forward { run, flags, time_left_ms, received_at_ms, .. } = *forward;
        let mut content = std::mem::take(&mut forward.content);
        content.detach(MIN_COUNTED_BYTES);
        let deadline = self.now.mono + Duration::from_millis(u64::from(time_left_ms));
        let key = self.requests.next_key();
        let timer = self.timers.insert(deadline, Timer::Request(key));
        self.request_count += 1;
        self.counters.guests += 1;
        self.kept_bytes += content.uncounted_len();
        let content_bytes = content.len() as u32;
        let guest = Box::new(Guest { owner: owner.clone(), run, flags });
        let kept = self.kept.insert(Kept { content, guest: Some(guest), ..Kept::default() });
        self.requests.insert(Request {
            session: Key::from_raw(u64::MAX),
            number: 0,
            action,
            flags: RequestFlags::default(),
            // The one attempt that it has here.
            max_attempts: run.attempt,
            attempt: run.attempt - 1,
            count: self.request_count,
            received: Now { mono: self.now.mono, wall_ms: received_at_ms },
            deadline,
            ends_with: Code::Expired,
            timer,
            delivered_after_ms: u32::MAX,
            kept: Some(kept),
            content_bytes,
            state: RequestState::Queued,
        });
        let stay = Stay { run, before: false, state: State::Running(key) };
        self.guests.all.insert(place(&owner, run), stay);
        self.enqueue(action, key, false);
        self.dispatch(action);
    }

    pub(crate) fn guest(&self, request: &Request) -> Option<&Guest> {
        self.kept.get(request.kept?)?.guest.as_deref()
    }

    /// A handler's answer to a guest.
    #[cold]
    pub(crate) fn guest_answered(&mut self, conn: ConnId, key: Key<Request>, answer: &mut Answer) {
        let mut content = std::mem::take(&mut answer.content);
        let verdict = match answer.verdict {
            Verdict::Reply => {
                self.counters.replies += 1;
                Verdict::Reply
            }
            verdict => {
                self.counters.handler_errors += 1;
                if verdict == Verdict::Cancelled {
                    content = Content::from_payload("the handler gave up without being asked to");
                }
                match verdict {
                    Verdict::Retry(_) | Verdict::Reject => verdict,
                    _ => Verdict::Error,
                }
            }
        };
        let Some(guest) = self.forget(key).and_then(|mut ended| ended.guest.take()) else { return };
        let connection = self.connection(conn).map(|connection| connection.count);
        let answered =
            connection.map(|connection| Answered { conn, connection, by: By::Sequence(answer.sequence) });
        self.guest_ended(*guest, verdict, content, answered);
    }

    /// A guest has ended without an answer.
    #[cold]
    pub(crate) fn guest_failed(&mut self, guest: Guest, attempt: u16, code: Code, content: Content) {
        // The handler's own code stands in the name of an error's content: these are words of this server.
        let content = Content::from_payload(content.payload_bytes());
        let verdict =
            if attempt < guest.run.attempt { Verdict::Declined(code) } else { Verdict::Failed(code) };
        self.guest_ended(guest, verdict, content, None);
    }

    fn guest_ended(
        &mut self,
        guest: Guest,
        verdict: Verdict,
        mut content: Content,
        answered: Option<Answered>,
    ) {
        let Guest { owner, run, .. } = guest;
        content.detach(MIN_COUNTED_BYTES);
        if let Some(conn) = self.link_to(&owner) {
            self.tell_peer(conn, PeerMessage::Ended(Ended { run, verdict, content: content.clone() }));
        }
        if matches!(verdict, Verdict::Declined(_) | Verdict::Failed(Code::Draining)) {
            // It is as if it had not been here: whether the owner is told so, or finds out.
            self.guests.all.remove(&place(&owner, run));
            return;
        }
        self.kept_bytes += content.uncounted_len();
        let farewell = Farewell { verdict, content, answered, at: self.now.mono };
        if let Some(stay) = self.guests.all.get_mut(&place(&owner, run)) {
            stay.state = State::Ended(Box::new(farewell));
        }
        if !std::mem::replace(&mut self.guests.sweeps, true) {
            self.timers.insert(self.now.mono + self.config.peer_lost, Timer::Guests);
        }
    }

    /// A handler is at work on a guest.
    #[cold]
    pub(crate) fn guest_progresses(&mut self, key: Key<Request>, content: Content) {
        let guest = self.requests.get(key).and_then(|request| self.guest(request));
        let Some((owner, run)) = guest.map(|guest| (guest.owner.clone(), guest.run)) else { return };
        if let Some(conn) = self.link_to(&owner) {
            self.tell_peer(conn, PeerMessage::Working { run, content });
        }
    }

    /// The owner does not want it any more.
    pub(crate) fn withdrawn(&mut self, conn: ConnId, run: Run) {
        let Some(owner) = self.peer_name(conn) else { return };
        if self.guests.has_ended(&owner, run) {
            // That was told: it is the answer to this, too.
            return self.send_off(&owner, run);
        }
        // One that is not here has ended, which was told; or it came too late, which the owner hears too.
        let Some(run) = self.guests.stay(&owner, run).map(|stay| stay.run) else { return };
        self.send_off(&owner, run);
        let ended = Ended { run, verdict: Verdict::Cancelled, content: Content::default() };
        self.tell_peer(conn, PeerMessage::Ended(ended));
    }

    /// The owner has its end for good.
    pub(crate) fn guest_taken(&mut self, conn: ConnId, run: Run) {
        let Some(owner) = self.peer_name(conn) else { return };
        if self.guests.has_ended(&owner, run) {
            self.send_off(&owner, run);
        }
    }

    /// Lets go of a guest, wherever it is.
    fn send_off(&mut self, owner: &Bytes, run: Run) {
        match self.guests.all.remove(&place(owner, run)).map(|stay| stay.state) {
            Some(State::Running(key)) => {
                self.call_back(key);
                self.forget(key);
            }
            Some(State::Ended(farewell)) => {
                self.kept_bytes -= farewell.content.uncounted_len();
                if let Some(answered) = farewell.answered {
                    self.settled(answered);
                }
            }
            None => {}
        }
    }

    /// The owner tells which of its attempts are here, as far as it knows: no others are wanted.
    pub(crate) fn listed(&mut self, conn: ConnId, list: &Runs) {
        let Some(peer) = self.connection(conn).and_then(|connection| connection.peer.as_deref()) else {
            return;
        };
        let (name, instance) = (peer.server_id.clone(), peer.instance);
        let owner = self.guests.owner(&name, instance);
        if list.tie < owner.tie {
            return;
        }
        if list.tie > owner.tie {
            (owner.tie, owner.listed) = (list.tie, BTreeSet::new());
        }
        owner.listed.extend(list.runs.iter().copied());
        if list.more {
            return;
        }
        let listed = std::mem::take(&mut owner.listed);
        let here = self.guests.all.range((name.clone(), Run::default())..);
        let here = here.take_while(|((owner, _), _)| *owner == name);
        let here: Vec<_> = here.map(|(_, stay)| (stay.run, stay.before)).collect();
        let is_here = |run: &&Run| self.guests.stay(&name, **run).is_some();
        let unknown = listed.iter().filter(|run| !is_here(run)).copied().collect();
        for part in Runs::split(list.tie, unknown) {
            self.tell_peer(conn, PeerMessage::Unknown(part));
        }
        for (run, before) in here {
            if !listed.contains(&run) && !listed.contains(&Run { tie: 0, ..run }) {
                // One that came with this tie was sent behind the list, and has overtaken it on another link.
                if before || run.tie < list.tie {
                    self.send_off(&name, run);
                }
            } else if let Some(farewell) = self.guests.stay(&name, run).and_then(Stay::farewell) {
                let (verdict, content) = (farewell.verdict, farewell.content.clone());
                self.tell_peer(conn, PeerMessage::Ended(Ended { run, verdict, content }));
            }
        }
    }

    /// Ends that nobody has taken for long, nobody will: their owner has given the request to somebody else by now.
    pub(crate) fn sweep_guests(&mut self) {
        let long_ago = self.config.peer_lost * 2;
        let over = |stay: &Stay| stay.farewell().is_some_and(|it| self.now.mono.since(it.at) >= long_ago);
        let over: Vec<_> =
            self.guests.all.iter().filter(|(_, stay)| over(stay)).map(|(name, _)| name.clone()).collect();
        for (owner, run) in over {
            self.counters.guests_unclaimed += 1;
            self.send_off(&owner, run);
        }
        let any = self.guests.all.values().any(|stay| stay.farewell().is_some());
        self.guests.sweeps = any;
        if any {
            self.timers.insert(self.now.mono + self.config.peer_lost, Timer::Guests);
        }
    }

    /// Bytes of ends that are kept for their owners.
    pub(crate) fn guest_bytes(&self) -> usize {
        let ended = self.guests.all.values().filter_map(Stay::farewell);
        ended.map(|farewell| farewell.content.uncounted_len()).sum()
    }

    /// Whether a guest is known by its name.
    pub(crate) fn check_guest(&self, key: Key<Request>, request: &Request) {
        let Some(guest) = self.guest(request) else { return };
        let stay = self.guests.stay(&guest.owner, guest.run);
        let known = stay.is_some_and(|stay| matches!(stay.state, State::Running(known) if known == key));
        assert!(known, "{key:?} is a guest");
    }

    pub(super) fn check_guests(&self) {
        for stay in self.guests.all.values() {
            if let State::Running(key) = stay.state {
                let request = self.requests.get(key);
                assert!(request.is_some_and(|it| self.guest(it).is_some()), "{key:?} is a guest's");
            }
        }
    }
}
