//! What the broker has promised of durable requests, and whether it may say what it says: the gate above all.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_broker::{ConnId, Input, Output, log::SyncPolicy};
use ringpost_protocol::{
    Code,
    message::{
        Answer, ClientMessage, Deliver, OpenState, Reply, Request, RequestFlags, ServerMessage, Target,
        Verdict as Answered,
    },
};

use super::{
    disk::Disk,
    view::{Logged, Outcome, View},
};
use crate::sim::{
    peer::number_in,
    rules::{Verdict, ensure},
};

/// Attempts of a request that names none.
const DEFAULT_MAX_ATTEMPTS: u8 = 5;
/// Records have milliseconds, and so have timers.
pub(super) const SLACK_MICROS: u64 = 5000;

/// A durable request, as the broker was told of it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) named: bool,
    instance: u64,
    pub(super) send: bool,
    max_attempts: u16,
    /// When it was heard last.
    pub(super) heard: u64,
    /// When its time is over at the earliest, counted from when it was heard first.
    pub(super) over_at: u64,
    /// It was not taken.
    refused: bool,
    /// Its client was told that nothing is known of it.
    forgotten: bool,
    pub(super) cancelled: bool,
    /// A handler has answered it, …
    answered: bool,
    /// … with a reply.
    pub(super) handled: bool,
    /// When its client had its outcome.
    pub(super) acknowledged: Option<u64>,
}

/// Who speaks on a connection.
#[derive(Debug, Clone, Default)]
struct Talker {
    who: Bytes,
    named: bool,
    instance: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) count: u64,
    token: u64,
    attempt: u16,
    conn: ConnId,
    delivery: u64,
}

/// A promise: this request is there, whatever happens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promise {
    pub(super) token: u64,
    pub(super) at: u64,
}

#[derive(Debug)]
pub(crate) struct Book {
    pub(super) policy: SyncPolicy,
    /// Connections that came, for names of those that have none.
    connections: u64,
    talkers: BTreeMap<ConnId, Talker>,
    /// By the number that its requester put into it.
    pub(super) asked: BTreeMap<u64, Asked>,
    pub(super) numbers: BTreeMap<(Bytes, u64), u64>,
    /// What the log's counts stand for.
    pub(super) tokens: BTreeMap<u64, u64>,
    pub(super) promised: BTreeMap<u64, Promise>,
    /// What requesters were told, by count.
    pub(super) outcomes: BTreeMap<u64, Outcome>,
    /// Counts whose end is synced.
    pub(super) finished: BTreeSet<u64>,
    /// Counts that were dead letters.
    pub(super) buried: BTreeSet<u64>,
    /// Counts that could not be read back.
    pub(super) damaged: BTreeSet<u64>,
    /// Which request handlers were given under each count.
    given: BTreeMap<u64, u64>,
    /// How often each count was delivered, and how often beyond its attempts it may be.
    pub(super) deliveries: BTreeMap<u64, u64>,
    pub(super) spared: BTreeMap<u64, u64>,
    /// What handlers had of earlier boots, by boot and delivery; and the boot of what each of them says it holds.
    former: BTreeMap<(u64, u64), Held>,
    returning: BTreeMap<ConnId, u64>,
    boot: u64,
    /// Of this boot: what handlers hold, what they answered, and the sequences of outcomes.
    pub(super) held: BTreeMap<u64, Held>,
    answers: BTreeMap<(ConnId, u64), (Held, Answered)>,
    sequences: BTreeMap<Bytes, BTreeMap<u64, u64>>,
    /// Which process speaks under a session's name.
    instances: BTreeMap<Bytes, u64>,
    /// The last attempts of this boot, by count.
    pub(super) begun: BTreeMap<u64, BTreeSet<u16>>,
    draining: bool,
}

impl Book {
    pub(super) fn new(policy: SyncPolicy) -> Self {
        Self {
            policy,
            connections: 0,
            talkers: BTreeMap::new(),
            asked: BTreeMap::new(),
            numbers: BTreeMap::new(),
            tokens: BTreeMap::new(),
            promised: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            finished: BTreeSet::new(),
            buried: BTreeSet::new(),
            damaged: BTreeSet::new(),
            given: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            spared: BTreeMap::new(),
            former: BTreeMap::new(),
            returning: BTreeMap::new(),
            boot: 0,
            held: BTreeMap::new(),
            answers: BTreeMap::new(),
            sequences: BTreeMap::new(),
            instances: BTreeMap::new(),
            begun: BTreeMap::new(),
            draining: false,
        }
    }

    /// Another process: connections begin anew.
    pub(super) fn process_begins(&mut self) {
        self.talkers.clear();
        self.returning.clear();
        self.draining = false;
    }

    /// Another boot has its log: deliveries and sequences begin anew.
    pub(super) fn begin_anew(&mut self, boot: u64) {
        let answered = std::mem::take(&mut self.answers).into_values().map(|(held, _)| held);
        let had = std::mem::take(&mut self.held).into_values().chain(answered);
        self.former.extend(had.map(|held| ((self.boot, held.delivery), held)));
        self.boot = boot;
        self.sequences.clear();
        self.begun.clear();
    }

    /// The core is told something.
    pub(super) fn heard(&mut self, input: &Input, time: u64) {
        match input {
            Input::Opened { conn, .. } => {
                self.connections += 1;
                let who = format!("\0{}", self.connections).into();
                self.talkers.insert(*conn, Talker { who, ..Talker::default() });
            }
            Input::Message { conn, message } => self.heard_message(*conn, message, time),
            Input::Drain { .. } => {
                self.draining = true;
                self.spare(|_| true);
            }
            _ => {}
        }
    }

    fn heard_message(&mut self, conn: ConnId, message: &ClientMessage, time: u64) {
        match message {
            ClientMessage::Hello(hello) => {
                if let Some(talker) = self.talkers.get_mut(&conn) {
                    talker.instance = hello.speaker.instance;
                    talker.named = !hello.session.is_empty();
                    if talker.named {
                        talker.who = hello.session.clone();
                        // What was told to an earlier process, a later one does not acknowledge.
                        if self.instances.insert(talker.who.clone(), talker.instance) != Some(talker.instance)
                        {
                            self.sequences.remove(&talker.who);
                        }
                    }
                }
            }
            ClientMessage::Request(request) if request.flags.has(RequestFlags::DURABLE) => {
                self.asks(conn, request, time);
            }
            // A session that was forgotten counts anew: the number is no durable request's any more.
            ClientMessage::Request(request) => {
                if let Some(talker) = self.talkers.get(&conn) {
                    self.numbers.remove(&(talker.who.clone(), request.number));
                }
            }
            ClientMessage::Answer(answer) => self.answers(conn, answer),
            ClientMessage::Acknowledge(Target::Number(sequence)) => self.acknowledges(conn, *sequence, time),
            ClientMessage::Resume(resume) => {
                self.returning.insert(conn, resume.held_boot);
                self.acknowledges(conn, resume.sequence, time);
            }
            ClientMessage::Goaway => self.spare(|held| held.conn == conn),
            _ => {}
        }
    }

    fn asks(&mut self, conn: ConnId, request: &Request, time: u64) {
        let (Some(talker), Some(token)) = (self.talkers.get(&conn), number_in(request.content.payload()))
        else {
            return;
        };
        let max_attempts =
            if request.max_attempts == 0 { DEFAULT_MAX_ATTEMPTS } else { request.max_attempts };
        self.numbers.insert((talker.who.clone(), request.number), token);
        let ttl = u64::from(request.ttl_ms) * 1000;
        let known = self.asked.get(&token);
        self.asked.insert(
            token,
            Asked {
                named: talker.named,
                instance: talker.instance,
                send: request.flags.has(RequestFlags::SEND),
                max_attempts: max_attempts.into(),
                heard: time,
                over_at: known.map_or(time + ttl, |known| known.over_at),
                refused: false,
                forgotten: false,
                cancelled: known.is_some_and(|known| known.cancelled),
                answered: known.is_some_and(|known| known.answered),
                handled: known.is_some_and(|known| known.handled),
                acknowledged: known.and_then(|known| known.acknowledged),
            },
        );
    }

    fn answers(&mut self, conn: ConnId, answer: &Answer) {
        let Some(held) = self.held.remove(&answer.delivery) else { return };
        if let Some(asked) = self.asked.get_mut(&held.token) {
            asked.answered = true;
            asked.handled |= answer.verdict == Answered::Reply;
        }
        self.answers.insert((conn, answer.sequence), (held, answer.verdict));
    }

    fn acknowledges(&mut self, conn: ConnId, sequence: u64, time: u64) {
        let Some(talker) = self.talkers.get(&conn) else { return };
        for token in self.sequences.get(&talker.who).into_iter().flat_map(|told| told.range(..=sequence)) {
            if let Some(asked) = self.asked.get_mut(token.1) {
                asked.acknowledged.get_or_insert(time);
            }
        }
    }

    /// Attempts that end now do not count.
    fn spare(&mut self, which: impl Fn(&Held) -> bool) {
        for held in self.held.values().filter(|held| which(held)) {
            *self.spared.entry(held.count).or_default() += 1;
        }
    }

    /// The core says something: may it?
    pub(super) fn said(&mut self, output: &Output, disk: &mut Disk, time: u64) -> Verdict {
        let Output::Send { conn, message } = output else { return Ok(()) };
        match message {
            ServerMessage::Accepted { upto, .. } => self.accepts(*conn, *upto, disk, time),
            ServerMessage::Deliver(deliver) if deliver.flags.has(RequestFlags::DURABLE) => {
                self.delivers(*conn, deliver, disk)
            }
            ServerMessage::Reply(reply) => self.replies(*conn, reply, disk, time),
            ServerMessage::Acknowledge { sequence } => self.settles(*conn, *sequence, disk),
            ServerMessage::Resumed { open, attached, .. } => {
                self.resumes(*conn, open, disk, time)?;
                self.attaches(*conn, attached)
            }
            _ => Ok(()),
        }
    }

    /// A handler goes on with what it held when the broker died, under other numbers.
    fn attaches(&mut self, conn: ConnId, attached: &[(u64, u64)]) -> Verdict {
        let Some(boot) = self.returning.get(&conn).copied() else { return Ok(()) };
        for &(before, delivery) in attached {
            let held = self.former.get(&(boot, before)).cloned();
            let Some(held) = held else {
                ensure!(false, Invented, "{before} of boot {boot} goes on, and no handler had it");
                continue;
            };
            self.begun.entry(held.count).or_default().insert(held.attempt);
            self.held.insert(delivery, Held { conn, delivery, ..held });
        }
        Ok(())
    }

    /// Takes note of what the log's counts stand for.
    pub(super) fn learn(&mut self, view: &View) {
        for (count, logged) in &view.living {
            if let Some(token) = logged.token {
                self.tokens.insert(*count, token);
            }
            if logged.dead {
                self.buried.insert(*count);
            }
        }
    }

    /// The newest request in a log that carries a token.
    fn find<'a>(&self, view: &'a View, token: u64) -> Option<(u64, &'a Logged)> {
        let carries = |count: &u64| self.tokens.get(count) == Some(&token);
        view.living.iter().rev().find(|(count, _)| carries(count)).map(|(count, logged)| (*count, logged))
    }

    fn accepts(&mut self, conn: ConnId, upto: u64, disk: &mut Disk, time: u64) -> Verdict {
        let Some(talker) = self.talkers.get(&conn).cloned() else { return Ok(()) };
        let view = disk.reliable()?;
        self.learn(view);
        let range = (talker.who.clone(), 0)..=(talker.who.clone(), upto);
        for token in self.numbers.range(range).map(|(_, token)| *token).collect::<Vec<_>>() {
            let Some(asked) = self.asked.get(&token) else { continue };
            if asked.instance != talker.instance || asked.refused || asked.forgotten {
                continue;
            }
            let known = self.tokens.iter().any(|(_, known)| *known == token);
            ensure!(known, Gate, "{token} is accepted, and its record is not where it survives: {asked:?}");
            if let Some((count, _)) = self.find(view, token) {
                self.promised.entry(count).or_insert(Promise { token, at: time });
            }
        }
        Ok(())
    }

    fn delivers(&mut self, conn: ConnId, deliver: &Deliver, disk: &mut Disk) -> Verdict {
        let (count, attempt) = (deliver.request_id.count, deliver.attempt);
        let token = number_in(deliver.content.payload()).unwrap_or_default();
        let Some(asked) = self.asked.get(&token) else {
            ensure!(false, Invented, "{count} is delivered with {token}, which nobody asked");
            return Ok(());
        };
        let max = asked.max_attempts;
        ensure!(!self.finished.contains(&count), Settled, "{count} ({token}) is delivered, and it was done");
        let told = self.outcomes.get(&count);
        ensure!(told.is_none(), Settled, "{count} ({token}) is delivered after its outcome {told:?}");
        let view = disk.reliable()?;
        self.learn(view);
        let logged = view.living.get(&count).filter(|_| self.tokens.get(&count) == Some(&token));
        ensure!(logged.is_some(), Gate, "{count} ({token}) is delivered, and is not where it survives");
        // A crash may take a request that a handler has seen; its id is never another's.
        let first = *self.given.entry(count).or_insert(token);
        ensure!(first == token, Attempts, "{token} is delivered under the id that {first} had: {count}");
        ensure!(attempt > 0 && attempt <= max, Attempts, "attempt {attempt} of {max} of {token}");
        let times = self.deliveries.entry(count).or_default();
        *times += 1;
        let (times, spared) = (*times, self.spared.get(&count).copied().unwrap_or_default());
        ensure!(
            times <= u64::from(max) + spared,
            Attempts,
            "{token} is delivered {times} times; it has {max} attempts, and {spared} did not count"
        );
        self.begun.entry(count).or_default().insert(attempt);
        self.held.insert(deliver.delivery, Held { count, token, attempt, conn, delivery: deliver.delivery });
        if self.draining {
            *self.spared.entry(count).or_default() += 1;
        }
        Ok(())
    }

    fn replies(&mut self, conn: ConnId, reply: &Reply, disk: &mut Disk, time: u64) -> Verdict {
        let Some(who) = self.talkers.get(&conn).map(|talker| talker.who.clone()) else { return Ok(()) };
        let Some(token) = self.numbers.get(&(who.clone(), reply.number)).copied() else { return Ok(()) };
        let code = reply.code.map_or(0, Code::number);
        let outcome = Outcome { code, number: number_in(reply.content.payload()) };
        let view = disk.reliable()?;
        self.learn(view);
        let logged = self.find(view, token).filter(|(_, logged)| logged.outcome == Some(outcome));
        let Some((count, _)) = logged else { return self.refuses(token, reply, disk, time) };
        self.sequences.entry(who).or_default().insert(reply.sequence, token);
        self.promised.entry(count).or_insert(Promise { token, at: time });
        let first = *self.outcomes.entry(count).or_insert(outcome);
        ensure!(first == outcome, OneOutcome, "{token} has the outcome {outcome:?}; it was {first:?}");
        let Some(asked) = self.asked.get(&token) else { return Ok(()) };
        let cause = match reply.code {
            None | Some(Code::Remote | Code::Unsupported) => true,
            Some(Code::Expired) => time + SLACK_MICROS >= asked.over_at,
            Some(Code::HandlerLost) => reply.attempt >= asked.max_attempts,
            Some(Code::Cancelled) => asked.cancelled,
            Some(Code::DurableUnavailable) => self.damaged.contains(&count),
            Some(_) => false,
        };
        ensure!(cause, Truth, "{token} ends with {reply:?}: {asked:?}");
        Ok(())
    }

    /// A reply for a durable request that is no outcome in the log: it was not taken, or the gate was not kept.
    fn refuses(&mut self, token: u64, reply: &Reply, disk: &mut Disk, time: u64) -> Verdict {
        let refusal = matches!(
            reply.code,
            Some(
                Code::StorageFull
                    | Code::DurableUnavailable
                    | Code::Draining
                    | Code::Overloaded
                    | Code::Recovering
                    | Code::Forbidden
            )
        );
        let seen = disk.seen()?;
        self.learn(seen);
        // A send may have ended already, and the record of that not be there yet.
        let ended = |asked: &Asked| asked.send && (asked.answered || time + SLACK_MICROS >= asked.over_at);
        let unknown = self.find(seen, token).is_none() || self.asked.get(&token).is_some_and(ended);
        // One that was done may be sent again by a client that has not heard so, and is refused then.
        if refusal && unknown {
            if let Some(asked) = self.asked.get_mut(&token) {
                asked.refused = true;
            }
            return Ok(());
        }
        let done = self.finished.iter().find(|count| self.tokens.get(count) == Some(&token));
        ensure!(done.is_none(), Settled, "{token} was done, and its outcome is told again: {reply:?}");
        ensure!(false, Gate, "{token} is answered with what does not survive: {reply:?}");
        Ok(())
    }

    /// A handler is told that its answer has had its effect for good.
    fn settles(&mut self, conn: ConnId, sequence: u64, disk: &mut Disk) -> Verdict {
        let Some((held, verdict)) = self.answers.get(&(conn, sequence)) else { return Ok(()) };
        let (view, count) = (disk.reliable()?, held.count);
        let send = self.asked.get(&held.token).is_some_and(|asked| asked.send);
        let done = view.done.contains(&count) || self.finished.contains(&count);
        let settled = view.living.get(&count).is_some_and(|logged| match (send, verdict) {
            (false, _) => logged.outcome.is_some(),
            (true, Answered::Reply) => false,
            (true, _) => logged.dead || logged.failed >= held.attempt,
        });
        let (token, attempt, logged) = (held.token, held.attempt, view.living.get(&count));
        ensure!(
            done || settled,
            Gate,
            "the answer to {token} (attempt {attempt}) is acknowledged, and does not survive: {logged:?}"
        );
        Ok(())
    }

    /// A client that comes back is told what is known of what it has open.
    fn resumes(&mut self, conn: ConnId, open: &[(u64, OpenState)], disk: &mut Disk, time: u64) -> Verdict {
        let Some(who) = self.talkers.get(&conn).map(|talker| talker.who.clone()) else { return Ok(()) };
        let view = disk.reliable()?;
        self.learn(view);
        for (number, state) in open {
            let Some(token) = self.numbers.get(&(who.clone(), *number)).copied() else { continue };
            if !matches!(state, OpenState::Lost | OpenState::NeverSeen) {
                continue;
            }
            // A send that was answered, or whose time is over, may be done or a dead letter, if not on the disk yet.
            let ended =
                |asked: &Asked| asked.send && (asked.answered || time + SLACK_MICROS >= asked.over_at);
            let ended = self.asked.get(&token).is_some_and(ended);
            let lives = self.find(view, token).filter(|(count, logged)| {
                self.promised.contains_key(count) && !logged.dead && !ended && !self.finished.contains(count)
            });
            ensure!(lives.is_none(), Kept, "{token} is said to be {state:?}, and lives: {lives:?}");
            if let Some(asked) = self.asked.get_mut(&token) {
                asked.forgotten = true;
            }
        }
        Ok(())
    }
}
