//! What every request was, what became of it, and whether that was right.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_protocol::Code;

/// What a requester asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Send,
    Broadcast,
}

/// What a handler said to one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    Reply,
    Error,
    Cancelled,
}

#[derive(Debug)]
struct Asked {
    kind: Kind,
    max_attempts: u32,
    resumes: bool,
    at: u64,
    timeout: u64,
    deliveries: u32,
    /// Answers by the number that their handler put into them.
    answers: BTreeMap<u64, Said>,
    legs: BTreeSet<u32>,
    ended: Option<u64>,
    cancelled: bool,
}

/// What a requester was told.
#[derive(Debug)]
pub(crate) enum Told {
    /// A reply, with the number that its handler put into it.
    Reply(u64),
    /// An accepted send.
    Accepted,
    /// A handler's own error, with its number.
    Remote(u64),
    /// An error of the broker or of the client.
    Error(Code),
}

/// The book of all requests.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    asked: BTreeMap<u64, Asked>,
    answers: u64,
    /// How often each ending was seen.
    pub(crate) endings: BTreeMap<String, u64>,
    faults: bool,
}

/// How late an end may be seen: the client's grace, two ticks, and the longest way through the network.
const SLACK_MICROS: u64 = 1_500_000;

impl Oracle {
    pub(crate) fn new(faults: bool) -> Self {
        Self { faults, ..Self::default() }
    }

    /// `resumes`: the requester comes back to its session, so that a broken connection loses nothing.
    pub(crate) fn asks(
        &mut self,
        token: u64,
        kind: Kind,
        max_attempts: u32,
        timeout: u64,
        resumes: bool,
        now: u64,
    ) {
        let asked = Asked {
            kind,
            max_attempts,
            resumes,
            at: now,
            timeout,
            deliveries: 0,
            answers: BTreeMap::new(),
            legs: BTreeSet::new(),
            ended: None,
            cancelled: false,
        };
        assert!(self.asked.insert(token, asked).is_none(), "tokens are given once");
    }

    pub(crate) fn cancels(&mut self, token: u64) {
        self.of(token).cancelled = true;
    }

    /// A handler got it. Plain requests run at most as often as they have attempts.
    pub(crate) fn delivered(&mut self, token: u64) {
        let asked = self.of(token);
        asked.deliveries += 1;
        if asked.kind != Kind::Broadcast {
            assert!(
                asked.deliveries <= asked.max_attempts,
                "request {token} ran {} times: {asked:?}",
                asked.deliveries
            );
        }
    }

    /// A handler answers. The number goes into the answer, so that it can be known again.
    pub(crate) fn answers(&mut self, token: u64, said: Said) -> u64 {
        self.answers += 1;
        let number = self.answers;
        self.of(token).answers.insert(number, said);
        number
    }

    /// The requester is told something: it must be true, and the end must come once.
    pub(crate) fn told(&mut self, token: u64, told: &Told, leg: Option<(u32, u32)>, last: bool, now: u64) {
        let faults = self.faults;
        let asked = self.of(token);
        assert!(asked.ended.is_none(), "request {token} ends once, and not again with {told:?}: {asked:?}");
        match told {
            Told::Reply(number) => {
                assert_ne!(asked.kind, Kind::Send, "a send gets no reply");
                assert_eq!(
                    asked.answers.get(number),
                    Some(&Said::Reply),
                    "a reply that some handler gave: {token}"
                );
            }
            Told::Remote(number) => {
                assert_eq!(
                    asked.answers.get(number),
                    Some(&Said::Error),
                    "an error that some handler gave: {token}"
                );
            }
            Told::Accepted => assert_eq!(asked.kind, Kind::Send, "only sends are told"),
            Told::Error(code) => {
                let waited = now - asked.at;
                match code {
                    Code::Timeout | Code::Expired => {
                        assert!(
                            waited + 1000 >= asked.timeout,
                            "request {token} timed out after {waited} µs: {asked:?}"
                        );
                    }
                    Code::Cancelled => assert!(asked.cancelled, "request {token} was not cancelled"),
                    Code::ConnectionLost | Code::Connect => {
                        assert!(
                            faults && !asked.resumes,
                            "request {token}: {code}, though the session goes on"
                        );
                    }
                    // A leg that waits for credit goes with its handler's registration, without any fault.
                    Code::HandlerLost => {
                        assert!(faults || asked.kind == Kind::Broadcast, "request {token}: {code}")
                    }
                    Code::NoHandler | Code::Overloaded | Code::Closed => {}
                    other => panic!("request {token}: {other} cannot happen here"),
                }
            }
        }
        let waited = now - asked.at;
        assert!(
            waited <= asked.timeout + SLACK_MICROS,
            "request {token} ended only after {waited} µs: {asked:?}"
        );
        if let Some((index, expected)) = leg {
            assert!(asked.kind == Kind::Broadcast && index < expected, "leg {index} of {expected}");
            assert!(asked.legs.insert(index), "leg {index} of {token} ends once");
            let all = asked.legs.len() as u32 == expected;
            assert_eq!(all, last, "the last leg ends the broadcast, and no earlier one");
        }
        if last {
            asked.ended = Some(now);
        }
        let name = match told {
            Told::Reply(_) => "reply".to_owned(),
            Told::Accepted => "accepted".to_owned(),
            Told::Remote(_) => "remote".to_owned(),
            Told::Error(code) => code.to_string(),
        };
        *self.endings.entry(name).or_default() += 1;
    }

    /// Whether the outcome of this leg is the last that a JSON requester gets: it must count for itself.
    pub(crate) fn legs_end(&self, token: u64, leg: Option<(u32, u32)>) -> bool {
        let ended = self.asked.get(&token).map_or(0, |asked| asked.legs.len() as u32);
        leg.is_none_or(|(_, expected)| ended + 1 == expected)
    }

    /// At the end, everything has ended.
    pub(crate) fn finish(&self) {
        for (token, asked) in &self.asked {
            assert!(asked.ended.is_some(), "request {token} never ended: {asked:?}");
        }
    }

    fn of(&mut self, token: u64) -> &mut Asked {
        self.asked.get_mut(&token).unwrap_or_else(|| panic!("request {token} was never made"))
    }
}
