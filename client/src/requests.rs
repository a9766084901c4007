//! Requests without an outcome: those that wait for a connection, and those that were sent.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use ringpost_protocol::{
    Code, Content,
    limits::MAX_LEGS,
    message::{ClientMessage, Leg, Reply, Request, RequestFlags},
    time::{Time, TimerId, Wheel},
};
use slotmap::{DefaultKey, SlotMap};

use crate::{
    Error,
    output::{Completion, Info, Output, RequestKey},
};

#[derive(Debug)]
struct Open {
    token: u64,
    /// On the wire; 0 while it waits for a connection.
    number: u64,
    /// Its place among those that wait.
    place: u64,
    flags: RequestFlags,
    /// What was sent, to send it again if the broker never saw it; `None` while it waits, and without a session.
    sent: Option<Request>,
    deadline: Time,
    timer: TimerId,
    /// Of a broadcast: legs that it has (0: not told yet), and legs that ended.
    expected: u32,
    ended: u32,
}

/// All requests without an outcome.
#[derive(Debug)]
pub(crate) struct Requests {
    open: SlotMap<DefaultKey, Open>,
    /// Sent ones by number. Never iterated.
    by_number: HashMap<u64, DefaultKey, FixedState>,
    /// Unsent ones, in the order they were made in.
    waiting: BTreeMap<u64, (DefaultKey, Request)>,
    places: u64,
    /// Sends in the order of their numbers, from the first that is open; those behind it that ended otherwise are
    /// skipped when their turn comes.
    sends: VecDeque<(u64, DefaultKey)>,
    /// One for each open request.
    timers: Wheel<DefaultKey>,
    /// The next request's number on the wire.
    next_number: u64,
    grace: Duration,
    /// Whether what was sent is kept.
    keeps: bool,
    /// Whether a server asks for its own clients. It is told of legs before they end, and that the rest of them have
    /// ended, however many those are, is said once.
    for_peer: bool,
    /// The server treats everything as durable that can be: so does the client.
    pub(crate) durable_all: bool,
}

/// Requests that wait are numbered upwards from here. Those that were sent and wait again go before them, in the order of
/// their numbers, which never reach this.
const FIRST_PLACE: u64 = 1 << 63;

impl Requests {
    pub(crate) fn new(grace: Duration, keeps: bool, for_peer: bool) -> Self {
        Self {
            open: SlotMap::new(),
            by_number: HashMap::with_hasher(FixedState::default()),
            waiting: BTreeMap::new(),
            places: FIRST_PLACE,
            sends: VecDeque::new(),
            timers: Wheel::new(),
            next_number: 1,
            grace,
            keeps,
            for_peer,
            durable_all: false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn sent(&self) -> usize {
        self.by_number.len()
    }

    /// The server says from where on numbers are free. Numbers never go back within a session.
    pub(crate) fn number_from(&mut self, number: u64) {
        self.next_number = self.next_number.max(number);
    }

    pub(crate) fn next_deadline(&self) -> Time {
        self.timers.next_deadline().unwrap_or(Time::NEVER)
    }

    /// Takes a request and gives the message to send at once.
    pub(crate) fn send(
        &mut self,
        mut request: Request,
        token: u64,
        deadline: Time,
    ) -> (RequestKey, ClientMessage) {
        request.number = self.next_number;
        self.next_number += 1;
        self.make_durable(&mut request);
        let key = self.insert(&request, token, 0, deadline, deadline + self.grace);
        self.track_sent(key, &request);
        (RequestKey(key), ClientMessage::Request(request))
    }

    /// Takes a request that has to wait for a connection.
    pub(crate) fn wait(&mut self, request: Request, token: u64, deadline: Time) -> RequestKey {
        self.places += 1;
        let key = self.insert(&request, token, self.places, deadline, deadline);
        self.waiting.insert(self.places, (key, request));
        RequestKey(key)
    }

    /// Sends all that waits, in order; a request's timeout is what is left of it. What this server does not take ends.
    pub(crate) fn send_waiting(
        &mut self,
        max_payload: Option<u32>,
        now: Time,
        outputs: &mut VecDeque<Output>,
    ) {
        while let Some((_, (key, mut request))) = self.waiting.pop_first() {
            let Some(open) = self.open.get_mut(key) else { continue };
            if let Err(error) = check_payload(&request.content, max_payload) {
                self.end(key, &error, outputs);
                continue;
            }
            request.number = self.next_number;
            self.next_number += 1;
            request.timeout_ms = millis(open.deadline.since(now)).max(1);
            if self.durable_all {
                make_durable(&mut request);
                open.flags = request.flags;
            }
            open.number = request.number;
            self.timers.cancel(open.timer);
            open.timer = self.timers.insert(open.deadline + self.grace, key);
            self.track_sent(key, &request);
            outputs.push_back(Output::Send(ClientMessage::Request(request)));
        }
    }

    fn make_durable(&self, request: &mut Request) {
        if self.durable_all {
            make_durable(request);
        }
    }

    fn insert(
        &mut self,
        request: &Request,
        token: u64,
        place: u64,
        deadline: Time,
        ring: Time,
    ) -> DefaultKey {
        let (number, flags) = (request.number, request.flags);
        let timers = &mut self.timers;
        self.open.insert_with_key(|key| Open {
            token,
            number,
            place,
            flags,
            sent: None,
            deadline,
            timer: timers.insert(ring, key),
            expected: 0,
            ended: 0,
        })
    }

    fn track_sent(&mut self, key: DefaultKey, request: &Request) {
        self.by_number.insert(request.number, key);
        if request.flags.has(RequestFlags::SEND) {
            self.sends.push_back((request.number, key));
        }
        if self.keeps
            && let Some(open) = self.open.get_mut(key)
        {
            open.sent = Some(request.clone());
        }
    }

    /// The broker never saw this one: the same again, under its number, with what is left of its time.
    pub(crate) fn repeat(&mut self, number: u64, now: Time, outputs: &mut VecDeque<Output>) {
        let Some(open) = self.by_number.get(&number).and_then(|key| self.open.get_mut(*key)) else { return };
        if let Some(request) = &mut open.sent {
            request.timeout_ms = millis(open.deadline.since(now)).max(1);
            outputs.push_back(Output::Send(ClientMessage::Request(request.clone())));
        }
    }

    /// Nobody knows what became of this one.
    pub(crate) fn lose(&mut self, number: u64, error: &Error, outputs: &mut VecDeque<Output>) {
        if let Some(key) = self.by_number.get(&number).copied() {
            self.end(key, error, outputs);
        }
    }

    /// The broker knows nothing of what was sent. What has attempts left goes before all that waits, with one attempt
    /// less, for it may have run; the rest ends. What is durable was never accepted, so it goes with all its attempts;
    /// or it stays, if the broker has a log and is still to be asked for it.
    pub(crate) fn send_again(&mut self, asks: bool, error: &Error, outputs: &mut VecDeque<Output>) {
        let mut again = Vec::new();
        for (_, key) in self.sent_in_order() {
            let Some(open) = self.open.get_mut(key) else { continue };
            let durable = open.flags.has(RequestFlags::DURABLE);
            if durable && asks {
                continue;
            }
            match open.sent.take().filter(|request| request.max_attempts > 1 || durable) {
                Some(request) if !request.flags.has(RequestFlags::BROADCAST) => again.push((key, request)),
                _ => self.end(key, error, outputs),
            }
        }
        let open = &self.open;
        self.sends.retain(|(number, key)| open.get(*key).is_some_and(|open| open.number == *number));
        for (key, mut request) in again {
            if !request.flags.has(RequestFlags::DURABLE) {
                request.max_attempts -= 1;
            }
            self.wait_again(key, request);
        }
        let open = &self.open;
        self.sends.retain(|(number, key)| open.get(*key).is_some_and(|open| open.number == *number));
    }

    /// Whether a durable request was sent that has no outcome.
    pub(crate) fn has_durable(&self) -> bool {
        self.open.values().any(|open| open.number != 0 && open.flags.has(RequestFlags::DURABLE))
    }

    /// Whether this one is durable.
    pub(crate) fn is_durable(&self, number: u64) -> bool {
        let open = self.by_number.get(&number).and_then(|key| self.open.get(*key));
        open.is_some_and(|open| open.flags.has(RequestFlags::DURABLE))
    }

    /// A leaving server has refused this one, or given up on it: as long as it has attempts left, it waits for the next
    /// server. `false` if it has none.
    pub(crate) fn hold_back(&mut self, reply: &Reply) -> bool {
        let Some(&key) = self.by_number.get(&reply.number) else { return false };
        let Some(open) = self.open.get_mut(key) else { return false };
        let left = |request: &Request| u16::from(request.max_attempts.max(1)).saturating_sub(reply.attempt);
        let again = |request: &Request| left(request) > 0 && !request.flags.has(RequestFlags::BROADCAST);
        let Some(mut request) = open.sent.take_if(|request| again(request)) else { return false };
        // What is durable was not accepted, so it goes with all its attempts; how many that are may be the next server's word.
        if !request.flags.has(RequestFlags::DURABLE) {
            request.max_attempts = left(&request) as u8;
        }
        // They are in the order of numbers.
        if let Ok(place) = self.sends.binary_search_by_key(&reply.number, |(number, _)| *number) {
            self.sends.remove(place);
            self.forget_ended_sends();
        }
        self.wait_again(key, request);
        true
    }

    /// Takes one back that was sent: it goes before all that was made later.
    fn wait_again(&mut self, key: DefaultKey, request: Request) {
        let Some(open) = self.open.get_mut(key) else { return };
        self.by_number.remove(&open.number);
        (open.place, open.number) = (open.number, 0);
        self.waiting.insert(open.place, (key, request));
    }

    fn remove(&mut self, key: DefaultKey) -> Option<Open> {
        let open = self.open.remove(key)?;
        self.timers.cancel(open.timer);
        if open.number == 0 {
            self.waiting.remove(&open.place);
        } else {
            self.by_number.remove(&open.number);
        }
        if open.flags.has(RequestFlags::SEND) {
            self.forget_ended_sends();
        }
        Some(open)
    }

    /// Refused sends are followed by no `accepted` that would sweep them out, if all of them are refused.
    fn forget_ended_sends(&mut self) {
        while self.sends.front().is_some_and(|(_, key)| !self.open.contains_key(*key)) {
            self.sends.pop_front();
        }
    }

    /// All sends up to this number were accepted, but those that ended before.
    pub(crate) fn accepted(&mut self, upto: u64, outputs: &mut VecDeque<Output>) {
        while let Some(&(number, key)) = self.sends.front()
            && number <= upto
        {
            self.sends.pop_front();
            if let Some(open) = self.remove(key) {
                outputs.push_back(Output::Complete(completion(open.token, Ok(Content::default()), true)));
            }
        }
    }

    /// How many handlers a broadcast asked. `false` if that is more than there can be.
    pub(crate) fn legs(&mut self, number: u64, expected: u32, outputs: &mut VecDeque<Output>) -> bool {
        if expected > MAX_LEGS {
            return false;
        }
        let Some(&key) = self.by_number.get(&number) else { return true };
        let Some(open) = self.open.get_mut(key) else { return true };
        if !open.flags.has(RequestFlags::BROADCAST) {
            return true;
        }
        open.expected = open.expected.max(expected);
        if self.for_peer && expected > 0 {
            outputs.push_back(Output::Legs { token: open.token, expected: open.expected });
        }
        if open.expected == 0 {
            self.end(key, &Error::new(Code::NoHandler, "nobody handles this action"), outputs);
        }
        true
    }

    /// An outcome from the broker. `Ok(false)` if nobody waits for it any more, `Err` if it claims too many legs.
    pub(crate) fn reply(&mut self, reply: Reply, outputs: &mut VecDeque<Output>) -> Result<bool, Error> {
        let Some(&key) = self.by_number.get(&reply.number) else { return Ok(false) };
        let Some(open) = self.open.get_mut(key) else { return Ok(false) };
        let mut last = true;
        let leg = reply.leg.filter(|_| open.flags.has(RequestFlags::BROADCAST));
        if let Some(Leg { expected, .. }) = leg {
            if expected > MAX_LEGS {
                return Err(too_many_legs(expected));
            }
            open.expected = open.expected.max(expected);
            open.ended += 1;
            last = open.ended >= open.expected;
        }
        let token = open.token;
        if last {
            self.remove(key);
        }
        outputs.push_back(Output::Complete(Completion {
            token,
            info: info_of(&reply),
            leg,
            last,
            result: result_of(reply),
        }));
        Ok(true)
    }

    /// The token of a sent request.
    pub(crate) fn token(&self, number: u64) -> Option<u64> {
        self.by_number.get(&number).and_then(|key| self.open.get(*key)).map(|open| open.token)
    }

    /// Ends a request here. The number to cancel at the broker, if it has it and it ends with its requester.
    pub(crate) fn cancel(
        &mut self,
        key: RequestKey,
        error: &Error,
        outputs: &mut VecDeque<Output>,
    ) -> Option<u64> {
        let open = self.open.get(key.0)?;
        // What was only sent goes on by itself, and so does what is durable: giving up waiting does not end it.
        let stays = open.flags.has(RequestFlags::SEND) || open.flags.has(RequestFlags::DURABLE);
        let number = (open.number != 0 && !stays).then_some(open.number);
        self.end(key.0, error, outputs);
        number
    }

    /// Whether the request has no outcome yet.
    pub(crate) fn is_open(&self, key: RequestKey) -> bool {
        self.open.contains_key(key.0)
    }

    /// Ends those whose time is over.
    pub(crate) fn expire(&mut self, now: Time, outputs: &mut VecDeque<Output>) {
        while let Some(key) = self.timers.expire(now) {
            let Some(open) = self.open.get(key) else { continue };
            let error = if open.number == 0 && open.place < FIRST_PLACE {
                Error::new(
                    Code::Timeout,
                    "the server was lost or left, and there was no other within the timeout; it may have run",
                )
            } else if open.number == 0 {
                Error::new(
                    Code::Timeout,
                    "there was no connection within the timeout; the request was not sent",
                )
            } else if open.flags.has(RequestFlags::SEND) {
                Error::new(
                    Code::Timeout,
                    "the server did not accept it within the timeout; it may run all the same",
                )
            } else {
                Error::new(Code::Timeout, "no reply within the timeout")
            };
            self.end(key, &error, outputs);
        }
    }

    /// The connection is gone: what was sent ends, in the order of numbers.
    pub(crate) fn lose_sent(&mut self, error: &Error, outputs: &mut VecDeque<Output>) {
        for (_, key) in self.sent_in_order() {
            self.end(key, error, outputs);
        }
        self.sends.clear();
    }

    /// Gives up on what waits, in the order it was made in.
    pub(crate) fn give_up_waiting(&mut self, error: &Error, outputs: &mut VecDeque<Output>) {
        while let Some((_, (key, _))) = self.waiting.first_key_value() {
            self.end(*key, error, outputs);
        }
    }

    /// Numbers that were sent and have no outcome, rising; `all`, or only of those that end with their requester.
    pub(crate) fn sent_numbers(&self, all: bool) -> impl Iterator<Item = u64> + '_ {
        let stays = |open: &Open| open.flags.has(RequestFlags::SEND) || open.flags.has(RequestFlags::DURABLE);
        let wanted = move |key: &DefaultKey| self.open.get(*key).is_some_and(|open| all || !stays(open));
        self.sent_in_order().into_iter().filter(move |(_, key)| wanted(key)).map(|(number, _)| number)
    }

    fn sent_in_order(&self) -> Vec<(u64, DefaultKey)> {
        let mut sent: Vec<_> = self
            .open
            .iter()
            .filter(|(_, open)| open.number != 0)
            .map(|(key, open)| (open.number, key))
            .collect();
        sent.sort_unstable();
        sent
    }

    /// Ends a request with an error; of a broadcast, each leg that has not ended.
    fn end(&mut self, key: DefaultKey, error: &Error, outputs: &mut VecDeque<Output>) {
        let Some(open) = self.remove(key) else { return };
        let missing = if self.for_peer { 1 } else { open.expected.saturating_sub(open.ended).max(1) };
        outputs.extend(
            (1..=missing)
                .map(|count| Output::Complete(completion(open.token, Err(error.clone()), count == missing))),
        );
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(
            self.open.len(),
            self.waiting.len() + self.by_number.len(),
            "each request waits or was sent"
        );
        assert_eq!(self.open.len(), self.timers.len(), "each request has a timer");
        for (key, open) in &self.open {
            if open.number == 0 {
                assert_eq!(self.waiting.get(&open.place).map(|(key, _)| *key), Some(key));
            } else {
                assert!(open.number < self.next_number, "numbers rise");
                assert_eq!(self.by_number.get(&open.number), Some(&key));
            }
            assert!(open.expected == 0 || open.ended < open.expected, "its last leg ends a broadcast");
        }
        let first = self.sends.front();
        assert!(first.is_none_or(|(_, key)| self.open.contains_key(*key)), "the first send is open");
        assert!(
            self.sends.iter().is_sorted_by_key(|(number, _)| *number),
            "sends are in the order of numbers"
        );
    }
}

/// The server would do it, and what becomes of the request over a lost connection depends on it. It waits as long as before.
fn make_durable(request: &mut Request) {
    if request.becomes_durable() {
        request.flags = request.flags.with(RequestFlags::DURABLE);
        request.ttl_ms = request.ttl_ms.max(request.timeout_ms);
    }
}

/// An error for a payload that the server does not take.
pub(crate) fn check_payload(content: &Content, max_payload: Option<u32>) -> Result<(), Error> {
    let length = content.payload().len();
    match max_payload {
        Some(max) if length > max as usize => Err(Error::new(
            Code::TooLarge,
            format!("{length} bytes of data; this server takes at most {max}"),
        )),
        _ => Ok(()),
    }
}

pub(crate) fn too_many_legs(expected: u32) -> Error {
    Error::new(
        Code::Malformed,
        format!("the server claims {expected} legs of a broadcast; at most {MAX_LEGS} can be"),
    )
}

/// Whole milliseconds, rounded up, as the wire has them.
pub(crate) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u32::MAX)
}

fn completion(token: u64, result: Result<Content, Error>, last: bool) -> Completion {
    Completion { token, result, info: Info::default(), leg: None, last }
}

/// The reply, or the error that came in its place.
pub(crate) fn result_of(reply: Reply) -> Result<Content, Error> {
    match reply.code {
        None => Ok(reply.content),
        Some(code) => Err(Error::from_reply(code, &reply)),
    }
}

pub(crate) fn info_of(reply: &Reply) -> Info {
    let known = |ms: u32| (ms != u32::MAX).then_some(ms);
    Info {
        received_at_ms: reply.received_at_ms,
        delivered_after_ms: known(reply.delivered_after_ms),
        handled_after_ms: known(reply.handled_after_ms),
        attempt: reply.attempt,
    }
}
