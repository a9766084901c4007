//! What an operator asks for that takes more than a turn, because the data that it is about is only in the log.
//!
//! ```text
//! $sys.dead, $sys.queues ── all of it is in memory ──> answered at once
//!     └── else: a request of its own, which waits in line ── the first one: some is read, shown or sent, and so on ──> answered
//! ```
//!
//! One is worked at at a time, and each step reads no more than a queue reads ahead: however much an operator asks for, memory
//! and the turn keep their bounds. It is in the table of requests meanwhile, so it can be cancelled, has a timeout, and a server
//! that leaves waits for it. Who is not waited for any more is shown nothing; what was to be sent again is sent all the same.

use std::collections::VecDeque;

use ringpost_protocol::{
    Code, Content,
    limits::MIN_COUNTED_BYTES,
    message::{Request as Asked, RequestFlags},
};
use serde_json::{Value, json};

use crate::{
    Broker, ConnId, Speaks,
    durable::Payload,
    slab::Key,
    state::{Request, RequestState, Session, Timer},
};

/// That wait; more are refused.
const MOST_WAITING: usize = 64;
/// Dead letters that are sent again in one step.
const STEP: usize = 256;
/// Bytes of data that are read, or sent again, in one step at most: a quarter of what is held of queues if that is less.
const STEP_BYTES: usize = 8 << 20;

/// What there is to do.
#[derive(Debug)]
pub(super) enum Work {
    /// To show these, or as many of them as are still there when they can be.
    Show { shown: Vec<(Key<Request>, Option<Value>)>, how: Shown },
    /// To send these dead letters again, by their counts: those that are at work, and those behind them.
    Resend { at_work: VecDeque<u64>, left: VecDeque<u64>, sent: u64, damaged: u64 },
}

/// As what something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// One dead letter.
    Letter,
    /// What waits in a queue, as a list.
    Queue,
}

impl Work {
    pub(super) fn show(keys: Vec<Key<Request>>, how: Shown) -> Self {
        Self::Show { shown: keys.into_iter().map(|key| (key, None)).collect(), how }
    }

    pub(super) fn resend(counts: impl IntoIterator<Item = u64>) -> Self {
        let left = counts.into_iter().collect();
        Self::Resend { at_work: VecDeque::new(), left, sent: 0, damaged: 0 }
    }
}

/// Work, and who waits for it: nobody if it was a send.
#[derive(Debug)]
pub(crate) struct Inquiry {
    pub(crate) asker: Option<Key<Request>>,
    work: Work,
}

impl Broker {
    /// Puts work in line, and does what can be done of it now.
    pub(super) fn inquire(
        &mut self,
        conn: ConnId,
        session: Key<Session>,
        speaks: Speaks,
        asked: &Asked,
        work: Work,
    ) {
        if self.inquiries.len() >= MOST_WAITING || self.requests.is_full() {
            let message = "the server is busy with what operators asked for before: try again soon";
            return self.refuse(conn, session, asked, Code::Overloaded, message.to_owned());
        }
        let asker = match asked.flags.has(RequestFlags::SEND) {
            true => {
                self.accept_send(session, speaks, asked.number);
                None
            }
            false => Some(self.insert_inquiry(session, speaks, asked)),
        };
        self.inquiries.push_back(Inquiry { asker, work });
        self.go_on_with_inquiries();
        self.close_if_finished(conn);
    }

    fn insert_inquiry(&mut self, session: Key<Session>, speaks: Speaks, asked: &Asked) -> Key<Request> {
        let deadline = self.deadline(asked, speaks);
        let key = self.requests.next_key();
        let timer = self.timers.insert(deadline.at, Timer::Request(key));
        self.request_count += 1;
        self.requests.insert(Request {
            session,
            number: asked.number,
            action: Key::from_raw(u64::MAX),
            flags: RequestFlags::default(),
            max_attempts: 1,
            attempt: 1,
            count: self.request_count,
            received: self.now,
            deadline: deadline.at,
            ends_with: deadline.ends_with,
            timer,
            delivered_after_ms: u32::MAX,
            kept: None,
            content_bytes: 0,
            state: RequestState::Inquiring,
        });
        if let Some(session) = self.sessions.get_mut(session) {
            session.open.insert(asked.number, key);
        }
        if !asked.content.tag().is_empty() {
            self.keep_tag(key, session, asked.number, asked.content.tag());
        }
        key
    }

    /// Does what can be done now of what operators have asked for.
    #[cold]
    pub(crate) fn go_on_with_inquiries(&mut self) {
        while let Some(mut inquiry) = self.inquiries.pop_front() {
            let awaited = inquiry.asker.is_some_and(|asker| self.requests.contains(asker));
            let answer = match &mut inquiry.work {
                Work::Show { .. } if !awaited => continue,
                Work::Show { shown, how } => self.show_some(shown, *how),
                Work::Resend { at_work, left, sent, damaged } => {
                    self.resend_some(at_work, left, (sent, damaged))
                }
            };
            let Some(answer) = answer else { return self.inquiries.push_front(inquiry) };
            if let Some(asker) = inquiry.asker.filter(|_| awaited) {
                let mut content = Content::from_payload(answer.to_string());
                content.count_large(MIN_COUNTED_BYTES, &self.large);
                self.end_plain(asker, None, content, true);
            }
        }
    }

    /// Whether something has to be read first. The next part is asked for when all of the last one has come: one by one, pieces
    /// that are read together would become ever smaller.
    fn has_to_read(&mut self, reads: &Reads) -> bool {
        if !reads.under_way {
            self.read_to_look(&reads.wanted);
        }
        reads.under_way || !reads.wanted.is_empty()
    }

    fn step_bytes(&self) -> usize {
        (self.config.queue_memory_bytes / 4).min(STEP_BYTES)
    }

    /// The answer, once all of them have been shown that are still there.
    fn show_some(&mut self, shown: &mut [(Key<Request>, Option<Value>)], how: Shown) -> Option<Value> {
        let mut reads = Reads::up_to(self.step_bytes());
        for (key, value) in shown.iter_mut().filter(|(_, value)| value.is_none()) {
            match self.payload_of(*key) {
                // Of what is known to be damaged there is nothing to be read.
                Payload::Reading => reads.under_way = true,
                Payload::Stored if !self.is_damaged(*key) => reads.add(*key, self.content_bytes(*key)),
                _ => {
                    let described = match how {
                        Shown::Letter => self.describe_dead(*key, usize::MAX),
                        Shown::Queue => self.describe_waiting(*key),
                    };
                    *value = Some(described.unwrap_or(Value::Null));
                }
            }
        }
        if self.has_to_read(&reads) {
            return None;
        }
        let mut there = shown.iter_mut().filter_map(|(_, value)| value.take()).filter(|it| !it.is_null());
        Some(match how {
            Shown::Letter => there.next().unwrap_or(Value::Null),
            Shown::Queue => there.collect(),
        })
    }

    /// How many were sent, once all of them have been looked at.
    fn resend_some(
        &mut self,
        at_work: &mut VecDeque<u64>,
        left: &mut VecDeque<u64>,
        (sent, damaged): (&mut u64, &mut u64),
    ) -> Option<Value> {
        loop {
            // What is sent again is logged anew: no more of that than the disk keeps up with. It says so when it has.
            if let Some(log) = self.log()
                && log.waiting_bytes() > STEP_BYTES
            {
                log.hurry();
                return None;
            }
            let (mut reads, mut sent_bytes) = (Reads::up_to(self.step_bytes()), 0);
            at_work.extend(left.drain(..left.len().min(STEP - at_work.len())));
            for count in std::mem::take(at_work) {
                let Some(key) = self.dead.get(&count).copied() else { continue };
                let bytes = self.content_bytes(key);
                match self.payload_of(key) {
                    _ if self.is_damaged(key) => *damaged += 1,
                    Payload::Reading => {
                        reads.under_way = true;
                        at_work.push_back(count);
                    }
                    Payload::Stored => {
                        reads.add(key, bytes);
                        at_work.push_back(count);
                    }
                    _ if sent_bytes > STEP_BYTES => at_work.push_back(count),
                    Payload::None | Payload::New | Payload::Held => {
                        *sent += 1;
                        sent_bytes += bytes;
                        self.resend(key);
                    }
                }
            }
            if self.has_to_read(&reads) {
                return None;
            }
            if at_work.is_empty() && left.is_empty() {
                return Some(json!({ "sent": sent, "damaged": damaged }));
            }
            if sent_bytes > 0 {
                // The next step follows when this one has been written.
                return None;
            }
        }
    }

    fn content_bytes(&self, key: Key<Request>) -> usize {
        self.requests.get(key).map_or(0, |request| request.content_bytes as usize)
    }
}

/// What is to be read in one step: up to so many bytes, or one that is longer.
struct Reads {
    wanted: Vec<Key<Request>>,
    left_bytes: usize,
    under_way: bool,
}

impl Reads {
    fn up_to(bytes: usize) -> Self {
        Self { wanted: Vec::new(), left_bytes: bytes, under_way: false }
    }

    fn add(&mut self, key: Key<Request>, bytes: usize) {
        if self.wanted.is_empty() || bytes <= self.left_bytes {
            self.wanted.push(key);
            self.left_bytes = self.left_bytes.saturating_sub(bytes);
        }
    }
}
