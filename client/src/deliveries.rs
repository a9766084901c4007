//! Requests that this client's handlers hold, and those that wait for their turn under the task interval.

use std::{collections::VecDeque, time::Duration};

use foldhash::fast::FixedState;
use hashbrown::{HashMap, hash_map::Entry};
use ringpost_protocol::{
    Code, Content,
    message::{Answer, ClientMessage, Progress, RequestFlags, Verdict},
    time::Time,
};

use crate::{
    Error,
    former::{Former, Formers},
    output::{Delivery, DeliveryKey, Output},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for the task interval.
    Waiting,
    /// The handler has it.
    Handed,
    /// The handler has it and was told that nobody waits.
    Cancelled,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    state: State,
    durable: bool,
    /// What the application calls it, if it was delivered on an earlier connection.
    attached: Option<DeliveryKey>,
}

/// An answer to a durable delivery that the broker has not acknowledged.
#[derive(Debug)]
struct Unacknowledged {
    sequence: u64,
    delivery: u64,
    verdict: Verdict,
    content: Content,
}

/// The deliveries of the present connection, and durable ones of the last.
#[derive(Debug)]
pub(crate) struct Deliveries {
    /// Never iterated but for sorting: its order means nothing.
    held: HashMap<u64, Held, FixedState>,
    /// The numbers that deliveries of an earlier connection have on this one. Never iterated.
    attached: HashMap<DeliveryKey, u64, FixedState>,
    former: Formers,
    /// In the order of their sequences.
    unacknowledged: VecDeque<Unacknowledged>,
    /// Whether a later connection may go on with what is durable: the session has a name.
    keeps: bool,
    waiting: VecDeque<(Time, Delivery)>,
    interval: Duration,
    /// Under the interval, the next one may be handed out from then on.
    free_at: Time,
    /// Answers of this session.
    answers: u64,
}

impl Deliveries {
    pub(crate) fn new(interval: Duration, keeps: bool) -> Self {
        Self {
            held: HashMap::with_hasher(FixedState::default()),
            attached: HashMap::with_hasher(FixedState::default()),
            former: Formers::default(),
            unacknowledged: VecDeque::new(),
            keeps,
            waiting: VecDeque::new(),
            interval,
            free_at: Time::ZERO,
            answers: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len() + self.former.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.former.is_empty()
    }

    /// Whether any is the present connection's.
    pub(crate) fn has_connected(&self) -> bool {
        !self.held.is_empty()
    }

    /// Those whose answer somebody waits for.
    pub(crate) fn wanted(&self) -> usize {
        self.held.values().filter(|held| held.state != State::Cancelled).count() + self.former.len()
    }

    /// Takes a delivery and hands it out, or keeps it until the task interval allows.
    ///
    /// # Errors
    /// [`Code::Malformed`] if the broker gave this number to another delivery that is still held.
    pub(crate) fn take(
        &mut self,
        delivery: Delivery,
        now: Time,
        outputs: &mut VecDeque<Output>,
    ) -> Result<(), Error> {
        let number = delivery.key.delivery;
        let handed = self.interval.is_zero() || (self.waiting.is_empty() && now >= self.free_at);
        let state = if handed { State::Handed } else { State::Waiting };
        let durable = self.keeps && delivery.message.flags.has(RequestFlags::DURABLE);
        match self.held.entry(number) {
            Entry::Vacant(entry) => entry.insert(Held { state, durable, attached: None }),
            Entry::Occupied(_) => {
                return Err(Error::new(Code::Malformed, format!("the server used delivery {number} twice")));
            }
        };
        if handed {
            self.free_at = now + self.interval;
            outputs.push_back(Output::Deliver(delivery));
        } else {
            self.waiting.push_back((now, delivery));
        }
        Ok(())
    }

    /// Hands out what waited, if its time has come.
    pub(crate) fn release(&mut self, now: Time, outputs: &mut VecDeque<Output>) {
        while now >= self.free_at
            && let Some((since, mut delivery)) = self.waiting.pop_front()
        {
            self.free_at = now + self.interval;
            if let Some(held) = self.held.get_mut(&delivery.key.delivery) {
                held.state = State::Handed;
            }
            let left = &mut delivery.message.time_left_ms;
            if *left != u32::MAX {
                let waited_ms = u32::try_from(now.since(since).as_millis()).unwrap_or(u32::MAX);
                *left = left.saturating_sub(waited_ms);
            }
            outputs.push_back(Output::Deliver(delivery));
        }
    }

    pub(crate) fn next_deadline(&self) -> Time {
        if self.waiting.is_empty() { Time::NEVER } else { self.free_at }
    }

    /// The broker does not want an answer any more, except as the sign that the slot is free again.
    pub(crate) fn cancel(&mut self, key: DeliveryKey, outputs: &mut VecDeque<Output>) {
        // Who cancels an answered one does not want its answer again either.
        self.unacknowledged.retain(|answer| answer.delivery != key.delivery);
        let Some(held) = self.held.get_mut(&key.delivery) else { return };
        match held.state {
            State::Waiting => {
                self.waiting.retain(|(_, delivery)| delivery.key != key);
                self.held.remove(&key.delivery);
                let answer = self.answer_unheld(key, Verdict::Cancelled, Content::default());
                outputs.push_back(answer);
            }
            State::Handed => {
                held.state = State::Cancelled;
                outputs.push_back(Output::CancelDelivery(held.attached.unwrap_or(key)));
            }
            // Cancelled twice: nobody is left to tell.
            State::Cancelled => {}
        }
    }

    /// The message for a handler's answer; `None` if the delivery is not held any more, or was not handed out yet: nobody
    /// can have an answer to it then.
    pub(crate) fn answer(&mut self, key: DeliveryKey, verdict: Verdict, content: Content) -> Option<Output> {
        let held = match self.held.entry(key.delivery) {
            Entry::Occupied(entry) if entry.get().state != State::Waiting => entry.remove(),
            _ => return None,
        };
        if let Some(attached) = held.attached {
            self.attached.remove(&attached);
        }
        if held.durable && held.state == State::Handed {
            let (sequence, delivery, content) = (self.answers + 1, key.delivery, content.clone());
            self.unacknowledged.push_back(Unacknowledged { sequence, delivery, verdict, content });
        }
        Some(self.answer_unheld(key, verdict, content))
    }

    /// A handler's answer to a delivery of an earlier connection, which no connection has now. `false` if there is none.
    pub(crate) fn answer_former(&mut self, key: DeliveryKey, verdict: Verdict, content: Content) -> bool {
        self.former.answer(key, verdict, content)
    }

    /// Whether a handler is at work on a delivery that no connection has now.
    pub(crate) fn holds_former(&self, key: DeliveryKey) -> bool {
        self.former.holds(key)
    }

    /// What a delivery is called on this connection, if it was delivered on an earlier one.
    pub(crate) fn attached(&self, key: DeliveryKey) -> Option<u64> {
        self.attached.get(&key).copied()
    }

    /// The broker has the effect of all answers up to this one.
    pub(crate) fn acknowledged(&mut self, sequence: u64) {
        while self.unacknowledged.front().is_some_and(|answer| answer.sequence <= sequence) {
            self.unacknowledged.pop_front();
        }
    }

    /// A broker says welcome. The boot and the numbers of deliveries that it may take back, if it is not the one that knows
    /// that they were lost.
    pub(crate) fn welcomed(&mut self, boot: u64, outputs: &mut VecDeque<Output>) -> (u64, Vec<u64>) {
        if self.former.boot == boot || self.former.is_empty() {
            self.forget_former(outputs);
            return (0, Vec::new());
        }
        (self.former.boot, self.former.numbers())
    }

    /// The broker has taken these back, under other numbers on this connection; it does not want the rest.
    pub(crate) fn resumed(&mut self, attached: &[(u64, u64)], outputs: &mut VecDeque<Output>) {
        for (former, number) in attached.iter().copied() {
            let Some((key, state)) = self.former.remove(former) else { continue };
            if self.held.contains_key(&number) {
                // A server that speaks the protocol gives each its own.
                outputs.extend((state == Former::Held).then_some(Output::CancelDelivery(key)));
                continue;
            }
            self.held.insert(number, Held { state: State::Handed, durable: true, attached: Some(key) });
            self.attached.insert(key, number);
            if let Former::Answered(verdict, content) = state {
                let now = DeliveryKey { connection: key.connection, delivery: number };
                outputs.extend(self.answer(now, verdict, content));
            }
        }
        self.forget_former(outputs);
    }

    /// Nobody will take these back.
    pub(crate) fn forget_former(&mut self, outputs: &mut VecDeque<Output>) {
        outputs.extend(self.former.clear().into_iter().map(Output::CancelDelivery));
    }

    /// The message for an answer to a delivery that was never taken.
    pub(crate) fn answer_unheld(&mut self, key: DeliveryKey, verdict: Verdict, content: Content) -> Output {
        self.answers += 1;
        let answer = Answer { delivery: key.delivery, sequence: self.answers, verdict, content };
        Output::Send(ClientMessage::Answer(answer))
    }

    /// The message for how many handlers a broadcast asked here; `None` if the delivery is not held, or nobody waits for it.
    pub(crate) fn legs(&self, key: DeliveryKey, expected: u32) -> Option<Output> {
        self.is_wanted(key).then(|| Output::Send(ClientMessage::Legs { delivery: key.delivery, expected }))
    }

    /// The message for the outcome of one of them, behind which the delivery is still held; `None` as for [`Deliveries::legs`].
    pub(crate) fn leg(&mut self, key: DeliveryKey, verdict: Verdict, content: Content) -> Option<Output> {
        self.is_wanted(key).then(|| {
            self.answers += 1;
            let answer = Answer { delivery: key.delivery, sequence: self.answers, verdict, content };
            Output::Send(ClientMessage::Leg(answer))
        })
    }

    /// Whether a handler has it, and somebody waits for the answer.
    fn is_wanted(&self, key: DeliveryKey) -> bool {
        self.held.get(&key.delivery).is_some_and(|held| held.state == State::Handed)
    }

    /// The message for a handler's progress; `None` if the delivery is not held, or nobody waits for it.
    pub(crate) fn progress(&mut self, key: DeliveryKey, content: Content) -> Option<Output> {
        self.is_wanted(key).then(|| {
            let progress = Progress { number: key.delivery, content, ..Progress::default() };
            Output::Send(ClientMessage::Progress(progress))
        })
    }

    /// The connection to this boot is gone: handlers are told, and their answers will not be held any more; but those of durable
    /// requests go on, for the broker may have been restarted.
    pub(crate) fn lose(&mut self, connection: u32, boot: u64, outputs: &mut VecDeque<Output>) {
        if self.held.is_empty() && self.unacknowledged.is_empty() {
            return;
        }
        let handed = self.held.iter().filter(|(_, held)| held.state == State::Handed);
        let mut handed: Vec<(u64, Held)> = handed.map(|(number, held)| (*number, *held)).collect();
        handed.sort_unstable_by_key(|(number, _)| *number);
        // What was not taken back before this connection broke is of an older boot.
        self.forget_former(outputs);
        self.former.boot = boot;
        for (delivery, held) in handed {
            let key = held.attached.unwrap_or(DeliveryKey { connection, delivery });
            if held.durable {
                self.former.insert(delivery, key, Former::Held);
            } else {
                outputs.push_back(Output::CancelDelivery(key));
            }
        }
        for answer in self.unacknowledged.drain(..) {
            let key = DeliveryKey { connection, delivery: answer.delivery };
            self.former.insert(answer.delivery, key, Former::Answered(answer.verdict, answer.content));
        }
        self.held.clear();
        self.attached.clear();
        self.waiting.clear();
    }

    pub(crate) fn check_invariants(&self) {
        let waiting = self.held.values().filter(|held| held.state == State::Waiting).count();
        assert_eq!(waiting, self.waiting.len(), "each waiting delivery is held as waiting, and no other");
        for (_, delivery) in &self.waiting {
            let held = self.held.get(&delivery.key.delivery);
            assert!(held.is_some_and(|held| held.state == State::Waiting));
        }
        for (key, number) in &self.attached {
            let held = self.held.get(number);
            assert!(held.is_some_and(|held| held.attached == Some(*key)), "what was taken back is held");
        }
        assert!(self.unacknowledged.iter().is_sorted_by_key(|answer| answer.sequence), "answers in order");
    }
}
