//! What each request may become: its attempts and their order, its outcomes, its time.

use ringpost_broker::ConnId;
use ringpost_protocol::{
    Code,
    message::{Deliver, RequestId, Verdict as Answered},
    time::Time,
};

use bytes::Bytes;

use super::{Asked, Delivery, HandlerKey, Model, RequestKey, SessionKey, Unsettled};
use crate::sim::{
    peer::number_in,
    rules::{Verdict, ensure},
};

#[derive(Debug)]
pub(super) struct Request {
    pub(super) token: u64,
    pub(super) session: SessionKey,
    pub(super) number: u64,
    pub(super) action: Bytes,
    pub(super) send: bool,
    pub(super) broadcast: bool,
    max_attempts: u32,
    pub(super) attempts: u32,
    pub(super) bytes: usize,
    pub(super) forbidden: bool,
    pub(super) deadline: Time,
    id: Option<RequestId>,
    /// When it began to wait again after a lost attempt, by count of what was heard.
    lost_at: Option<u64>,
    cancelled: bool,
    /// One, or of a broadcast one for each handler.
    pub(super) legs: Vec<Leg>,
}

/// One request to one handler.
#[derive(Debug)]
pub(super) struct Leg {
    /// Of a broadcast, the one it is for.
    pub(super) handler: Option<HandlerKey>,
    pub(super) state: State,
    pub(super) outcome: Option<Outcome>,
    /// The serial of the connection on which the outcome was last said.
    pub(super) said_on: Option<u64>,
    /// The outcome's place among all of its session.
    pub(super) sequence: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It has just come, and may yet be refused.
    Fresh,
    Waiting,
    Held,
    Ended,
}

/// What a requester is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A handler's reply, with the number in it.
    Reply(Option<u64>),
    /// A handler's error.
    Remote(Option<u64>),
    /// An error of the broker's own.
    Error(Code),
}

impl From<Code> for Outcome {
    fn from(code: Code) -> Self {
        Self::Error(code)
    }
}

impl Request {
    pub(super) fn is_open(&self) -> bool {
        self.legs.iter().any(|leg| leg.state != State::Ended)
    }

    pub(super) fn waiting_leg(&self, handler: HandlerKey) -> Option<usize> {
        self.legs.iter().position(|leg| leg.handler == Some(handler) && leg.state == State::Waiting)
    }

    /// Legs with an outcome that a client does not have which has all up to this sequence.
    pub(super) fn unknown_to(&self, sequence: u64) -> impl Iterator<Item = usize> + '_ {
        let unknown = move |leg: &Leg| leg.sequence == 0 || leg.sequence > sequence;
        self.legs.iter().enumerate().filter(move |(_, leg)| unknown(leg)).map(|(index, _)| index)
    }

    pub(super) fn waits_for(&self) -> impl Iterator<Item = HandlerKey> + '_ {
        self.legs.iter().filter(|leg| leg.state == State::Waiting).filter_map(|leg| leg.handler)
    }
}

impl Model {
    pub(super) fn asked(&mut self, conn: ConnId, asked: Asked) -> Verdict {
        let Some(session_key) = self.session_of(conn) else { return Ok(()) };
        self.begin_anew(session_key);
        let key = self.next();
        let Some(session) = self.sessions.get_mut(&session_key) else { return Ok(()) };
        let number = if asked.number == 0 { session.next_number } else { asked.number };
        session.next_number = number + 1;
        session.requests.insert(number, key);
        if let Some(earlier) =
            self.by_token.insert(asked.token, key).and_then(|earlier| self.requests.get(&earlier))
        {
            // Only after its session was forgotten, or another one's, and for what it could have attempts for.
            let again = !earlier.is_open() && asked.max_attempts < earlier.max_attempts;
            ensure!(again, Once, "{asked:?} was asked before: {earlier:?}");
        }
        let handlers = if asked.broadcast { self.handlers_for(&asked.action) } else { Vec::new() };
        let leg = |handler| Leg { handler, state: State::Fresh, outcome: None, said_on: None, sequence: 0 };
        let mut legs: Vec<_> = handlers.into_iter().map(|handler| leg(Some(handler))).collect();
        if legs.is_empty() {
            legs.push(leg(None));
        }
        let deadline = self.now + asked.timeout;
        self.deadlines.insert((self.due_at(asked.timeout), key));
        self.requests.insert(
            key,
            Request {
                token: asked.token,
                session: session_key,
                number,
                action: asked.action,
                send: asked.send,
                broadcast: asked.broadcast,
                max_attempts: asked.max_attempts.max(1),
                attempts: 0,
                bytes: asked.bytes,
                forbidden: asked.forbidden,
                deadline,
                id: None,
                lost_at: None,
                cancelled: false,
                legs,
            },
        );
        self.unsettled = Unsettled::Request(key);
        Ok(())
    }

    /// Nothing more was said to a new request: what was neither refused nor dispatched waits, within the bounds.
    pub(super) fn settle_request(&mut self, key: RequestKey) -> Verdict {
        let Some(request) = self.requests.get_mut(&key) else { return Ok(()) };
        let mut waits = false;
        for leg in request.legs.iter_mut().filter(|leg| leg.state == State::Fresh) {
            leg.state = State::Waiting;
            waits = true;
        }
        if !waits {
            return Ok(());
        }
        let (action, broadcast) = (request.action.clone(), request.broadcast);
        ensure!(!request.forbidden, Forbidden, "{request:?} waits");
        let nobody = self.handlers_for(&action).is_empty();
        ensure!(!nobody, Truth, "{:?} waits, and nobody handles {action:?}", self.requests.get(&key));
        if broadcast {
            self.waiting_legs.insert(key);
            return self.legs_are_bounded(key);
        }
        self.waiting.entry(action.clone()).or_default().insert(key);
        let (count, bytes) = self.waiting_for(&action);
        let (most, most_bytes) = (self.config.queue_limit, self.config.queue_limit_bytes);
        ensure!(count <= most, Bounds, "{count} wait for {action:?}; at most {most} may");
        ensure!(bytes <= most_bytes, Bounds, "{bytes} bytes wait for {action:?}; at most {most_bytes} may");
        let all: usize = self.waiting.keys().map(|action| self.waiting_for(action).1).sum();
        let memory = self.config.memory_bytes;
        ensure!(all <= memory, Bounds, "{all} bytes wait; at most {memory} may");
        Ok(())
    }

    fn legs_are_bounded(&self, key: RequestKey) -> Verdict {
        let most = self.config.leg_queue_limit;
        for handler in self.requests.get(&key).into_iter().flat_map(Request::waits_for) {
            let waiting = self
                .waiting_legs
                .iter()
                .filter(|key| {
                    self.requests.get(key).is_some_and(|request| request.waiting_leg(handler).is_some())
                })
                .count();
            ensure!(waiting <= most, Bounds, "{waiting} legs wait for one handler; at most {most} may");
        }
        Ok(())
    }

    pub(super) fn waiting_for(&self, action: &Bytes) -> (usize, usize) {
        let waiting = self.waiting.get(action).into_iter().flatten();
        waiting
            .filter_map(|key| self.requests.get(key))
            .fold((0, 0), |(count, bytes), request| (count + 1, bytes + request.bytes))
    }

    pub(super) fn dispatched(&mut self, conn: ConnId, deliver: &Deliver) -> Verdict {
        let handler = self.registration(conn, deliver.registration, deliver.content.name());
        let Some(handler) = handler else {
            ensure!(false, Credit, "{deliver:?} goes to {conn}, which has not registered for it");
            return Ok(());
        };
        let token = number_in(deliver.content.payload()).unwrap_or_default();
        let found = self.by_token.get(&token).and_then(|key| Some((*key, self.requests.get(key)?)));
        let Some((key, request)) = found else {
            ensure!(false, AfterEnd, "{deliver:?} was never asked");
            return Ok(());
        };
        ensure!(request.is_open(), AfterEnd, "attempt {} of {request:?}, which has ended", deliver.attempt);
        let leg = if request.broadcast {
            let free = |leg: &Leg| {
                leg.handler == Some(handler) && leg.state != State::Held && leg.state != State::Ended
            };
            request.legs.iter().position(free)
        } else {
            Some(0)
        };
        let Some(leg) = leg else {
            ensure!(false, Broadcast, "{deliver:?} has no leg of {request:?} to be");
            return Ok(());
        };
        let held = request.legs[leg].state == State::Held;
        ensure!(!held, Overlap, "attempt {} of {request:?}, which is held already", deliver.attempt);
        if !request.broadcast {
            self.is_next_attempt(request, deliver)?;
            self.is_in_order(key, request)?;
            self.is_paced()?;
        }
        let broadcast = request.broadcast;
        self.takes(handler, deliver.delivery, !broadcast)?;
        self.note_dispatch(key, leg, deliver);
        let delivery = Delivery { handler, request: key, leg, current: true, overdue: None };
        let twice = self.deliveries.insert(deliver.delivery, delivery).is_some();
        ensure!(!twice, Overlap, "delivery {} is used twice", deliver.delivery);
        Ok(())
    }

    fn note_dispatch(&mut self, key: RequestKey, leg: usize, deliver: &Deliver) {
        let Some(request) = self.requests.get_mut(&key) else { return };
        // Broadcasts are not paced, but the first of them counts.
        if !request.broadcast || request.legs[leg].state == State::Fresh {
            self.last_dispatch = Some(self.now);
        }
        request.legs[leg].state = State::Held;
        request.attempts += 1;
        request.id = Some(deliver.request_id);
        let (first, broadcast) = (request.attempts == 1, request.broadcast);
        let (session, number, action) = (request.session, request.number, request.action.clone());
        if first
            && !broadcast
            && let Some(session) = self.sessions.get_mut(&session)
        {
            session.dispatched.insert(action.clone(), number);
        }
        self.no_longer_waits(key);
    }

    fn is_next_attempt(&self, request: &Request, deliver: &Deliver) -> Verdict {
        let (attempt, most) = (u32::from(deliver.attempt), request.max_attempts);
        let next = request.attempts + 1;
        ensure!(attempt == next && next <= most, Attempts, "attempt {attempt} of {request:?}");
        let same = request.id.is_none_or(|id| id == deliver.request_id);
        ensure!(same, Attempts, "{request:?} comes as {:?}", deliver.request_id);
        Ok(())
    }

    fn is_in_order(&self, key: RequestKey, request: &Request) -> Verdict {
        if request.attempts > 0 {
            return Ok(());
        }
        let before =
            self.sessions.get(&request.session).and_then(|session| session.dispatched.get(&request.action));
        let rises = before.is_none_or(|before| *before < request.number);
        ensure!(rises, Order, "{request:?} comes after {before:?} of its session");
        // One whose time is over, or its session's, may have ended in this very moment.
        let lost = |other: &Request| {
            let remembered = self
                .sessions
                .get(&other.session)
                .is_some_and(|session| session.linger_until.is_none_or(|until| until > self.tick()));
            let lost = other.lost_at.is_some_and(|lost_at| lost_at < self.last_heard);
            lost && remembered && other.deadline > self.now
        };
        let lost_before = self
            .waiting
            .get(&request.action)
            .into_iter()
            .flatten()
            .find(|other| **other != key && self.requests.get(other).is_some_and(lost));
        let lost_before = lost_before.and_then(|key| self.requests.get(key));
        ensure!(lost_before.is_none(), Order, "{request:?} goes before {lost_before:?}, which was lost");
        Ok(())
    }

    fn is_paced(&self) -> Verdict {
        let interval = self.config.dispatch_interval;
        if let Some(last) = self.last_dispatch.filter(|_| !interval.is_zero()) {
            let pause = self.now.since(last);
            ensure!(pause >= interval, Pace, "{pause:?} between two dispatches; {interval:?} are wanted");
        }
        Ok(())
    }

    pub(super) fn called_back(&mut self, conn: ConnId, delivery: u64) -> Verdict {
        let overdue = self.due_at(self.config.stuck_after);
        let found = self.deliveries.get_mut(&delivery);
        ensure!(
            found.is_some(),
            Truth,
            "delivery {delivery} is called back from {conn}, which does not hold it"
        );
        let Some(found) = found else { return Ok(()) };
        found.overdue.get_or_insert(overdue);
        let (request, leg, current) = (found.request, found.leg, std::mem::take(&mut found.current));
        if current && let Some(request) = self.requests.get_mut(&request) {
            // Why, is told to the requester next; if there is one.
            request.legs[leg].state = State::Ended;
        }
        if current && self.requests.get(&request).is_some_and(|request| !request.send) {
            self.owe(request, leg);
        }
        Ok(())
    }

    pub(super) fn cancelled(&mut self, conn: ConnId, number: Option<u64>, token: Option<u64>) {
        let Some(session) = self.session_of(conn).and_then(|key| self.sessions.get(&key)) else { return };
        let by_number = number.and_then(|number| session.requests.get(&number));
        let Some(key) = by_number.or(token.and_then(|token| self.by_token.get(&token))).copied() else {
            return;
        };
        if let Some(request) = self.requests.get_mut(&key).filter(|request| request.is_open()) {
            request.cancelled = true;
            self.decide_all(key, Code::Cancelled);
        }
    }

    pub(super) fn answered(&mut self, conn: ConnId, delivery: u64, answered: Answered, number: Option<u64>) {
        let held_here = self.deliveries.get(&delivery).is_some_and(|delivery| {
            let holds = |key: &HandlerKey| *key == delivery.handler;
            self.handlers_of(conn).iter().any(holds)
        });
        if !held_here {
            self.late.extend(number);
            return;
        }
        let Some(released) = self.deliveries.remove(&delivery) else { return };
        let mut gone = false;
        self.change(released.handler, |handler| {
            handler.held.remove(&delivery);
            handler.stuck = false;
            gone = handler.retired && handler.held.is_empty();
        });
        if gone {
            self.handlers.remove(&released.handler);
        }
        let open = self
            .requests
            .get(&released.request)
            .is_some_and(|request| request.legs[released.leg].state != State::Ended);
        if !released.current || !open {
            self.late.extend(number);
            return;
        }
        let outcome = match answered {
            Answered::Reply => Outcome::Reply(number),
            Answered::Cancelled => Outcome::Remote(None),
            // The last two are a peer's words: from a client they are errors like others.
            Answered::Error
            | Answered::Retry(_)
            | Answered::Reject
            | Answered::Failed(_)
            | Answered::Declined(_) => Outcome::Remote(number),
        };
        self.decide(released.request, released.leg, outcome);
    }

    /// A handler is gone that held an attempt.
    pub(super) fn attempt_lost(&mut self, key: RequestKey, leg: usize) {
        let heard = self.last_heard;
        let Some(request) = self.requests.get_mut(&key) else { return };
        if request.broadcast || request.attempts >= request.max_attempts {
            return self.decide(key, leg, Code::HandlerLost.into());
        }
        request.legs[leg].state = State::Waiting;
        request.lost_at = Some(heard);
        let action = request.action.clone();
        self.waiting.entry(action).or_default().insert(key);
    }

    pub(super) fn decide_all(&mut self, key: RequestKey, code: Code) {
        let legs = self.requests.get(&key).map_or(0, |request| request.legs.len());
        for leg in 0..legs {
            self.decide(key, leg, code.into());
        }
    }

    /// What becomes of a leg is clear. If it was clear before, that holds.
    pub(super) fn decide(&mut self, key: RequestKey, leg: usize, outcome: Outcome) {
        let Some(request) = self.requests.get_mut(&key) else { return };
        let Some(entry) = request.legs.get_mut(leg).filter(|leg| leg.state != State::Ended) else { return };
        entry.state = State::Ended;
        entry.outcome = Some(outcome);
        let wants_reply = !request.send;
        for delivery in self.deliveries.values_mut() {
            if (delivery.request, delivery.leg) == (key, leg) {
                delivery.current = false;
            }
        }
        self.no_longer_waits(key);
        if wants_reply {
            self.owe(key, leg);
        }
    }

    /// If its requester listens, it is to be told within this turn.
    fn owe(&mut self, key: RequestKey, leg: usize) {
        if self.requests.get(&key).is_some_and(|request| self.listens(request.session)) {
            self.due.push((key, leg));
        }
    }

    pub(super) fn no_longer_waits(&mut self, key: RequestKey) {
        let Some(request) = self.requests.get(&key) else { return };
        if request.legs.iter().any(|leg| leg.state == State::Waiting) {
            return;
        }
        self.waiting_legs.remove(&key);
        if let Some(waiting) = self.waiting.get_mut(&request.action) {
            waiting.remove(&key);
        }
    }

    /// Nobody wants to know what becomes of it.
    pub(super) fn abandon(&mut self, key: RequestKey) {
        let Some(request) = self.requests.get_mut(&key) else { return };
        for leg in &mut request.legs {
            leg.state = State::Ended;
        }
        for delivery in self.deliveries.values_mut().filter(|delivery| delivery.request == key) {
            delivery.current = false;
        }
        self.no_longer_waits(key);
    }

    /// Its time is over: it has ended by now. If its client is away, nobody was told.
    pub(super) fn time_over(&mut self, key: RequestKey) -> Verdict {
        let Some(request) = self.requests.get(&key).filter(|request| request.is_open()) else {
            return Ok(());
        };
        let told = self.listens(request.session) && !request.send;
        ensure!(!told, Timeout, "{request:?} is open after its time");
        self.abandon(key);
        Ok(())
    }
}
