//! What a client remembers of its session from one connection to the next, and what it owes the broker: word of how far
//! it has the outcomes, so that the broker need not keep them.

use std::time::Duration;

use ringpost_protocol::{
    message::{Reply, Welcome},
    time::Time,
};

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
    /// The broker never heard of the session, or has forgotten it.
    Unknown,
}

#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Whether it has a name to come back under.
    pub(crate) named: bool,
    /// The boot that welcomed the last connection.
    boot: Option<u64>,
    /// The sequence of the last outcome.
    received: u64,
    acknowledged: u64,
    /// Bytes of outcomes that are not acknowledged.
    bytes: usize,
    acknowledge_at: Option<Time>,
    /// `resume` was sent; until it is answered, nothing else is.
    pub(crate) resuming: bool,
}

impl Session {
    pub(crate) fn new(named: bool) -> Self {
        Self { named, ..Self::default() }
    }

    /// A server welcomes the client.
    pub(crate) fn welcomed(&mut self, welcome: &Welcome) -> Return {
        // The first connection of a session that the broker has just made up has nothing to resume.
        let known = self.named && self.boot == Some(welcome.boot) && welcome.epoch > 1;
        self.boot = Some(welcome.boot);
        (self.bytes, self.acknowledge_at) = (0, None);
        if !known {
            (self.received, self.acknowledged) = (0, 0);
            return Return::Unknown;
        }
        Return::Known
    }

    pub(crate) fn boot(&self) -> u64 {
        self.boot.unwrap_or_default()
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// An outcome came. `false` if it came before.
    pub(crate) fn take(&mut self, reply: &Reply, now: Time) -> bool {
        if reply.sequence != 0 && reply.sequence <= self.received {
            return false;
        }
        self.received = self.received.max(reply.sequence);
        self.bytes += reply.content.len();
        if self.named {
            self.acknowledge_at.get_or_insert(now + ACKNOWLEDGE_AFTER);
        }
        true
    }

    /// The sequence to acknowledge, if it is time for it.
    pub(crate) fn acknowledgement(&mut self, now: Time) -> Option<u64> {
        let at = self.acknowledge_at?;
        let many =
            self.received - self.acknowledged >= ACKNOWLEDGE_OUTCOMES || self.bytes >= ACKNOWLEDGE_BYTES;
        if !many && now < at {
            return None;
        }
        (self.acknowledged, self.bytes, self.acknowledge_at) = (self.received, 0, None);
        Some(self.received)
    }

    /// The connection is gone: acknowledgements go with the next one's `resume`.
    pub(crate) fn lost(&mut self) {
        (self.acknowledge_at, self.resuming) = (None, false);
    }

    pub(crate) fn next_deadline(&self) -> Time {
        self.acknowledge_at.unwrap_or(Time::NEVER)
    }
}
