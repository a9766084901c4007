//! What a client remembers of its session from one connection to the next, and what it owes the broker: word of how far
//! it has the outcomes, so that the broker need not keep them.

use std::time::Duration;

use ringpost_protocol::{
    Content,
    message::{Reply, Welcome},
    time::Time,
};

use crate::unclaimed::Claims;

/// So many outcomes are acknowledged at once, …
const ACKNOWLEDGE_OUTCOMES: u64 = 64;
/// … or so many bytes of them, a small part of what a broker keeps, …
const ACKNOWLEDGE_BYTES: usize = 64 << 10;
/// … or what came in this time.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(50);

/// What the welcome of a new connection means for what is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Return {
    /// The broker may know all of it: ask.
    Known,
    /// The broker knows the session, but as another client's; what it keeps for that one is wanted.
    Heir,
    /// The broker was restarted and knows the session from its log.
    Restarted,
    /// The broker never heard of the session, has forgotten it, or has given it to another client meanwhile.
    Unknown,
}

#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Whether it has a name to come back under.
    pub(crate) named: bool,
    /// The boot that welcomed the last connection, and the tenure that it told. Both the same again: nobody else has had
    /// the session, and the broker has not forgotten it.
    known_as: Option<(u64, u64)>,
    /// The boot of the connection before: what a `resume` speaks of.
    last_boot: Option<u64>,
    /// The sequence of the last outcome.
    received: u64,
    acknowledged: u64,
    /// Bytes of outcomes that are not acknowledged.
    bytes: usize,
    acknowledge_at: Option<Time>,
    /// `resume` was sent; until it is answered, nothing else is.
    pub(crate) resuming: bool,
    /// To a broker that knows the session from its log only.
    pub(crate) restarted: bool,
    /// From where on the broker had no numbers of this session.
    pub(crate) next_number: u64,
    pub(crate) claims: Claims,
    /// What the request was whose outcome comes next: its number, action and headers.
    pub(crate) asked: Option<(u64, Content)>,
}

impl Session {
    /// A session that takes up to `max_unclaimed` outcomes of an earlier process.
    pub(crate) fn new(named: bool, max_unclaimed: usize) -> Self {
        Self { named, claims: Claims::new(if named { max_unclaimed } else { 0 }), ..Self::default() }
    }

    /// A server welcomes the client.
    pub(crate) fn welcomed(&mut self, welcome: &Welcome, durable: bool) -> Return {
        let known_as = Some((welcome.boot, welcome.tenure));
        let known = self.named && self.known_as == known_as;
        self.last_boot = std::mem::replace(&mut self.known_as, known_as).map(|(boot, _)| boot);
        (self.bytes, self.acknowledge_at) = (0, None);
        if !known {
            (self.received, self.acknowledged) = (0, 0);
            let restarted = welcome.epoch > 1 && self.last_boot.is_some_and(|boot| boot != welcome.boot);
            // What a restarted broker has from its log may be this process's own as well.
            self.claims.begin((!restarted).then_some(welcome.next_number));
            if durable && restarted {
                return Return::Restarted;
            }
            self.last_boot = Some(welcome.boot);
            if welcome.epoch == 1 || !self.claims.wanted() {
                return Return::Unknown;
            }
        }
        self.claims.resume();
        if known { Return::Known } else { Return::Heir }
    }

    /// The boot that welcomed the present connection, or the last one.
    pub(crate) fn boot(&self) -> u64 {
        self.known_as.map_or(0, |(boot, _)| boot)
    }

    /// The boot whose connection a `resume` speaks of.
    pub(crate) fn last_boot(&self) -> u64 {
        self.last_boot.unwrap_or_default()
    }

    /// Up to where outcomes are here and taken: the broker need not keep them.
    pub(crate) fn horizon(&self) -> u64 {
        self.claims.horizon(self.received)
    }

    /// Whether a number that a restarted broker does not know was never accepted by it.
    pub(crate) fn never_accepted(&self, number: u64) -> bool {
        self.restarted && number >= self.next_number
    }

    /// An outcome came. `false` if it came before.
    pub(crate) fn take(&mut self, reply: &Reply, now: Time) -> bool {
        if reply.sequence != 0 && reply.sequence <= self.received {
            return false;
        }
        self.received = self.received.max(reply.sequence);
        self.bytes += reply.content.len();
        if self.named {
            self.owe(now);
        }
        true
    }

    /// There may be something to acknowledge soon.
    pub(crate) fn owe(&mut self, now: Time) {
        self.acknowledge_at.get_or_insert(now + ACKNOWLEDGE_AFTER);
    }

    /// The sequence to acknowledge, if it is time for it.
    pub(crate) fn acknowledgement(&mut self, now: Time) -> Option<u64> {
        let at = self.acknowledge_at?;
        let horizon = self.horizon();
        let many = horizon.saturating_sub(self.acknowledged) >= ACKNOWLEDGE_OUTCOMES
            || self.bytes >= ACKNOWLEDGE_BYTES;
        if !many && now < at {
            return None;
        }
        self.last_acknowledgement()
    }

    /// The sequence to acknowledge before the end, if there is one.
    pub(crate) fn last_acknowledgement(&mut self) -> Option<u64> {
        (self.bytes, self.acknowledge_at) = (0, None);
        let horizon = self.horizon();
        let news = horizon > self.acknowledged;
        self.acknowledged = self.acknowledged.max(horizon);
        news.then_some(horizon)
    }

    /// The connection is gone: acknowledgements go with the next one's `resume`.
    pub(crate) fn lost(&mut self) {
        (self.acknowledge_at, self.resuming) = (None, false);
    }

    pub(crate) fn next_deadline(&self) -> Time {
        self.acknowledge_at.unwrap_or(Time::NEVER)
    }
}
