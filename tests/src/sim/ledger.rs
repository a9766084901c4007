//! What every requester asked, what it was told, and whether that can be: the view from outside.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_protocol::Code;

use super::{
    rules::{Verdict, ensure},
    script::{Kind, PATIENCE},
};

/// What a handler said to one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    Reply,
    Error,
    Cancelled,
}

/// A request, as its requester knows it.
#[derive(Debug)]
struct Asked {
    process: usize,
    kind: Kind,
    at: u64,
    timeout: u64,
    /// Its client comes back to its session: a broken connection is no excuse.
    resumes: bool,
    /// It is kept for so long, whatever happens.
    durable: Option<u64>,
    /// Its client may not ask for it.
    forbidden: bool,
    /// Something happened for which it may be lost.
    excused: bool,
    /// Its way to its requester was disturbed: it may come late.
    disturbed: bool,
    cancelled: bool,
    /// Answers by the number that their handler put into them.
    answers: BTreeMap<u64, Said>,
    legs: BTreeSet<u32>,
    /// Its requester has died: nobody is left to be told.
    vanished: bool,
    ended: bool,
    leaped: u64,
    stood_still: u64,
}

/// What a requester was told.
#[derive(Debug)]
pub(crate) enum Told {
    /// A reply, with the number that its handler put into it.
    Reply(Option<u64>),
    /// An accepted send.
    Accepted,
    /// A handler's own error, with its number.
    Remote(Option<u64>),
    /// An error of the broker or of the client.
    Error(Code),
}

/// What a requester asks, for the book.
pub(crate) struct Entry {
    pub(crate) token: u64,
    pub(crate) process: usize,
    pub(crate) kind: Kind,
    pub(crate) timeout: u64,
    pub(crate) resumes: bool,
    pub(crate) durable: Option<u64>,
    pub(crate) forbidden: bool,
}

/// The book of all requests.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    asked: BTreeMap<u64, Asked>,
    answers: u64,
    /// The server leaves, and forgets sessions whose client is away: nobody can come back to it.
    pub(crate) server_leaves: bool,
    /// How often each ending was seen.
    pub(crate) endings: BTreeMap<String, u64>,
    /// Durable requests of clients that come back, and that ended with a word that none of them may hear once accepted.
    pub(crate) refused: BTreeMap<u64, Code>,
    /// Sessions that the broker has forgotten, and whose clients do not know yet.
    forgotten: BTreeSet<Bytes>,
    /// By how much clocks have jumped ahead, all together, in microseconds.
    leaped: u64,
    /// For how long processes have stood still, all together.
    stood_still: u64,
}

/// How late an end may be seen: the client's grace, two ticks, and the longest way through the network.
const SLACK_MICROS: u64 = 1_500_000;

impl Ledger {
    pub(crate) fn asks(&mut self, entry: &Entry, now: u64) {
        let asked = Asked {
            process: entry.process,
            kind: entry.kind,
            at: now,
            timeout: entry.timeout,
            resumes: entry.resumes,
            durable: entry.durable,
            forbidden: entry.forbidden,
            excused: false,
            disturbed: false,
            cancelled: false,
            answers: BTreeMap::new(),
            legs: BTreeSet::new(),
            vanished: false,
            ended: false,
            leaped: self.leaped,
            stood_still: self.stood_still,
        };
        assert!(self.asked.insert(entry.token, asked).is_none(), "tokens are given once");
    }

    pub(crate) fn cancels(&mut self, token: u64) {
        if let Some(asked) = self.asked.get_mut(&token) {
            asked.cancelled = true;
        }
    }

    /// A handler answers. The number goes into the answer, so that it can be known again.
    pub(crate) fn answers(&mut self, token: u64, said: Said) -> u64 {
        self.answers += 1;
        let number = self.answers;
        if let Some(asked) = self.asked.get_mut(&token) {
            asked.answers.insert(number, said);
        }
        number
    }

    /// What a process has open may be lost: the broker cannot know it any more.
    pub(crate) fn excuse(&mut self, process: usize) {
        self.open_of(process, |asked| asked.excused = true);
    }

    /// The outcome of this one made room for others.
    pub(crate) fn excuse_one(&mut self, token: u64) {
        if let Some(asked) = self.asked.get_mut(&token) {
            asked.excused = true;
        }
    }

    /// What comes to this process may come late.
    pub(crate) fn disturb(&mut self, process: usize) {
        self.open_of(process, |asked| asked.disturbed = true);
    }

    /// A process dies: nobody is left to be told.
    pub(crate) fn vanish(&mut self, process: usize) {
        self.open_of(process, |asked| asked.vanished = true);
    }

    fn open_of(&mut self, process: usize, change: impl Fn(&mut Asked)) {
        self.asked.values_mut().filter(|asked| asked.process == process && !asked.ended).for_each(change);
    }

    pub(crate) fn forgotten(&mut self, session: Bytes) {
        self.forgotten.insert(session);
    }

    /// A client that was there before is welcomed as a new one.
    pub(crate) fn is_unknown(&mut self, process: usize, session: &Bytes) -> Verdict {
        let forgotten = session.is_empty() || self.forgotten.remove(session) || self.server_leaves;
        ensure!(forgotten, Resume, "the session of process {process} is not known any more");
        self.excuse(process);
        Ok(())
    }

    pub(crate) fn leaps(&mut self, by: u64) {
        self.leaped += by;
    }

    pub(crate) fn stands_still(&mut self, by: u64) {
        self.stood_still += by;
    }

    /// The requester is told something: it must be true, and the end must come once.
    pub(crate) fn told(
        &mut self,
        token: u64,
        told: &Told,
        leg: Option<(u32, u32)>,
        last: bool,
        now: u64,
    ) -> Verdict {
        let (leaped, stood_still) = (self.leaped, self.stood_still);
        let Some(asked) = self.asked.get_mut(&token) else {
            ensure!(false, Truth, "{told:?} is told of {token}, which nobody asked");
            return Ok(());
        };
        ensure!(!asked.ended, Once, "request {token} has ended, and again with {told:?}: {asked:?}");
        asked.is_true(token, told)?;
        let waited = now - asked.at;
        if let Told::Error(Code::Timeout | Code::Expired) = told {
            let expires = asked.durable.filter(|_| matches!(told, Told::Error(Code::Expired)));
            let time = expires.unwrap_or(asked.timeout);
            let early = waited + 1000 + (leaped - asked.leaped) < time;
            ensure!(!early, Timeout, "request {token} timed out after {waited} µs: {asked:?}");
        }
        let patience = asked.timeout + SLACK_MICROS + (stood_still - asked.stood_still);
        let late = waited > patience && !asked.disturbed;
        ensure!(!late, Timeout, "request {token} ended only after {waited} µs: {asked:?}");
        if let Some((index, expected)) = leg {
            let fits = asked.kind == Kind::Broadcast && index < expected;
            ensure!(fits, Broadcast, "leg {index} of {expected}: {asked:?}");
            ensure!(asked.legs.insert(index), Broadcast, "leg {index} of {token} ends twice");
            let all = asked.legs.len() as u32 == expected;
            ensure!(all == last, Broadcast, "the last leg of {token} ends it, and no earlier one: {asked:?}");
        }
        if let Told::Error(code) = told
            && asked.durable.is_some()
            && asked.resumes
            && !matches!(code, Code::Timeout | Code::Expired | Code::HandlerLost | Code::Cancelled)
        {
            self.refused.insert(token, *code);
        }
        asked.ended = last;
        let name = match told {
            Told::Reply(_) => "reply".to_owned(),
            Told::Accepted => "accepted".to_owned(),
            Told::Remote(_) => "remote".to_owned(),
            Told::Error(code) => code.to_string(),
        };
        *self.endings.entry(name).or_default() += 1;
        Ok(())
    }

    /// Whether the outcome of this leg is the last that a JSON requester gets: it must count for itself.
    pub(crate) fn legs_end(&self, token: u64, leg: Option<(u32, u32)>) -> bool {
        let ended = self.asked.get(&token).map_or(0, |asked| asked.legs.len() as u32);
        leg.is_none_or(|(_, expected)| ended + 1 >= expected)
    }

    /// A process gets an outcome that an earlier one of its session has left: somebody must have given it.
    pub(crate) fn left_behind(&self, number: Option<u64>) -> Verdict {
        let said = |asked: &Asked| number.and_then(|number| asked.answers.get(&number)).is_some();
        ensure!(self.asked.values().any(said), Truth, "nobody gave the answer {number:?} that was left");
        Ok(())
    }

    /// At the end, everything has ended.
    pub(crate) fn finish(&self) -> Verdict {
        for (token, asked) in &self.asked {
            ensure!(asked.ended || asked.vanished, Once, "request {token} never ended: {asked:?}");
        }
        Ok(())
    }
}

impl Asked {
    fn is_true(&self, token: u64, told: &Told) -> Verdict {
        let said = |number: &Option<u64>| number.and_then(|number| self.answers.get(&number));
        let leaks = matches!(
            told,
            Told::Reply(_)
                | Told::Remote(_)
                | Told::Accepted
                | Told::Error(Code::NoHandler | Code::HandlerLost)
        );
        ensure!(!(self.forbidden && leaks), Forbidden, "request {token} is told {told:?}: {self:?}");
        match told {
            Told::Reply(number) => {
                let given = said(number) == Some(&Said::Reply) && self.kind != Kind::Send;
                ensure!(given, Truth, "no handler gave request {token} the reply {number:?}: {self:?}");
            }
            Told::Remote(number) => {
                let given = said(number) == Some(&Said::Error);
                ensure!(given, Truth, "no handler gave request {token} the error {number:?}: {self:?}");
            }
            Told::Accepted => ensure!(self.kind == Kind::Send, Truth, "{token} is accepted: {self:?}"),
            Told::Error(code) => {
                let excused = self.excused || !self.resumes;
                let durable = self.durable.is_some();
                let cause = match code {
                    Code::Cancelled => self.cancelled,
                    Code::ConnectionLost | Code::Connect | Code::SessionTaken => excused,
                    Code::Timeout if durable && self.resumes => self.timeout < PATIENCE,
                    Code::Forbidden => self.forbidden,
                    Code::NoHandler => !durable,
                    Code::StorageFull | Code::DurableUnavailable | Code::Recovering => durable,
                    Code::Timeout | Code::Expired | Code::HandlerLost => true,
                    Code::Overloaded | Code::Draining => true,
                    _ => false,
                };
                ensure!(cause, Truth, "request {token} ends with {code}: {self:?}");
            }
        }
        Ok(())
    }
}
