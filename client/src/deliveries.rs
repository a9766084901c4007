//! Requests that this client's handlers hold, and those that wait for their turn under the task interval.

use std::{collections::VecDeque, time::Duration};

use foldhash::fast::FixedState;
use hashbrown::{HashMap, hash_map::Entry};
use ringpost_protocol::{
    Code, Content,
    message::{Answer, ClientMessage, Progress, Verdict},
    time::Time,
};

use crate::{
    Error,
    output::{Delivery, DeliveryKey, Output},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Waits for the task interval.
    Waiting,
    /// The handler has it.
    Handed,
    /// The handler has it and was told that nobody waits.
    Cancelled,
}

/// The deliveries of the present connection.
#[derive(Debug)]
pub(crate) struct Deliveries {
    /// Never iterated but for sorting: its order means nothing.
    held: HashMap<u64, Held, FixedState>,
    waiting: VecDeque<(Time, Delivery)>,
    interval: Duration,
    /// Under the interval, the next one may be handed out from then on.
    free_at: Time,
    /// Answers of this session.
    answers: u64,
}

impl Deliveries {
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            held: HashMap::with_hasher(FixedState::default()),
            waiting: VecDeque::new(),
            interval,
            free_at: Time::ZERO,
            answers: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Those whose answer somebody waits for.
    pub(crate) fn wanted(&self) -> usize {
        self.held.values().filter(|state| **state != Held::Cancelled).count()
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
        let state = if handed { Held::Handed } else { Held::Waiting };
        match self.held.entry(number) {
            Entry::Vacant(entry) => entry.insert(state),
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
            self.held.insert(delivery.key.delivery, Held::Handed);
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
        match self.held.get_mut(&key.delivery) {
            Some(Held::Waiting) => {
                self.waiting.retain(|(_, delivery)| delivery.key != key);
                self.held.remove(&key.delivery);
                let answer = self.answer_unheld(key, Verdict::Cancelled, Content::default());
                outputs.push_back(answer);
            }
            Some(state @ Held::Handed) => {
                *state = Held::Cancelled;
                outputs.push_back(Output::CancelDelivery(key));
            }
            // Answered before the cancel came, or cancelled twice: nobody is left to tell.
            Some(Held::Cancelled) | None => {}
        }
    }

    /// The message for a handler's answer; `None` if the delivery is not held any more, or was not handed out yet: nobody
    /// can have an answer to it then.
    pub(crate) fn answer(&mut self, key: DeliveryKey, verdict: Verdict, content: Content) -> Option<Output> {
        match self.held.entry(key.delivery) {
            Entry::Occupied(entry) if *entry.get() != Held::Waiting => entry.remove(),
            _ => return None,
        };
        Some(self.answer_unheld(key, verdict, content))
    }

    /// The message for an answer to a delivery that was never taken.
    pub(crate) fn answer_unheld(&mut self, key: DeliveryKey, verdict: Verdict, content: Content) -> Output {
        self.answers += 1;
        let answer = Answer { delivery: key.delivery, sequence: self.answers, verdict, content };
        Output::Send(ClientMessage::Answer(answer))
    }

    /// The message for a handler's progress; `None` if the delivery is not held, or nobody waits for it.
    pub(crate) fn progress(&mut self, key: DeliveryKey, content: Content) -> Option<Output> {
        (self.held.get(&key.delivery) == Some(&Held::Handed)).then(|| {
            let progress = Progress { number: key.delivery, content, ..Progress::default() };
            Output::Send(ClientMessage::Progress(progress))
        })
    }

    /// The connection is gone: handlers are told, and their answers will not be held any more.
    pub(crate) fn lose(&mut self, connection: u32, outputs: &mut VecDeque<Output>) {
        let mut handed: Vec<u64> = self
            .held
            .iter()
            .filter(|(_, state)| **state == Held::Handed)
            .map(|(number, _)| *number)
            .collect();
        handed.sort_unstable();
        outputs.extend(
            handed.into_iter().map(|delivery| Output::CancelDelivery(DeliveryKey { connection, delivery })),
        );
        self.held.clear();
        self.waiting.clear();
    }

    pub(crate) fn check_invariants(&self) {
        let waiting = self.held.values().filter(|state| **state == Held::Waiting).count();
        assert_eq!(waiting, self.waiting.len(), "each waiting delivery is held as waiting, and no other");
        for (_, delivery) in &self.waiting {
            assert_eq!(self.held.get(&delivery.key.delivery), Some(&Held::Waiting));
        }
    }
}
