//! Requests that must survive: on stable storage before they are accepted, and so is what becomes of them.
//!
//! ```text
//!           record stable           a handler has credit          answer, or time is over
//! Logging ────────────────> Queued ──────────────────────> Delivered ────────────────────> Decided
//!    │ accepted                ^  <── attempt lost, or ──────┘                                 │ record stable:
//!    │                         │      a send that failed: after a pause (Resting)              │ the outcome goes out
//!    └─ what the session sends                                                                 v
//!       behind it waits here too: order                                       acknowledged, or ttl over: done
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `accept` | the way in: checks, the request's record, and what waits for that to be stable |
//! | `decide` | the way out: the outcome's record, who gets it, and when nothing is left to be known |
//! | `failures` | leases, failed sends, dead letters |
//! | `keys` | idempotency keys: what comes a second time, and what is kept for it |
//! | `journal` | what is written to the log, and what waits for it |
//! | `payload` | what is kept in memory of those that wait, and when it is read back from the log |
//! | `readback` | reading it back: what is asked of the disk, what is checked, what becomes of it if it is damaged |
//! | `put_off` | what cannot be read for now |
//! | `session` | coming back for it, also after the broker was away |
//! | `reattach` | handlers that come back after a restart with what they held |
//! | `compact` | keeping the log short |
//! | `recovering` | the time in which the log is still being read |
//! | `restore`, `revive` | the way back: from the records of a log to what was there before the restart |
//!
//! A durable request is in the same tables as a plain one, and its dispatch and delivery are the same. It differs in what
//! ends it: not its requester's end, nor its timeout, nor the end of its last handler; only an outcome that is in the log.

mod accept;
mod compact;
mod decide;
mod failures;
mod journal;
mod keys;
mod payload;
mod put_off;
mod readback;
mod reattach;
mod recovering;
mod restore;
mod revive;
mod session;

use std::time::Duration;

use bytes::Bytes;
use ringpost_protocol::{Code, Content, time::TimerId};

pub use self::restore::Restore;
pub(crate) use self::{
    decide::{Answered, By},
    failures::Failure,
    journal::{Gate, Journal},
    keys::Keyed,
    payload::{Payload, PayloadBytes},
    reattach::{Former, Formers},
    recovering::MESSAGE as RECOVERING,
};
use crate::{Broker, log::Location, slab::Key, state::Request};

/// How long the broker keeps a durable request that names no ttl.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Attempts of a durable request that names none.
pub(crate) const DEFAULT_MAX_ATTEMPTS: u8 = 5;

/// What is known of a durable request beside what all requests have.
///
/// There may be very many that only wait: what those have no use for is in boxes of its own.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    /// 1 if it came in the JSON dialect.
    pub(crate) dialect: u8,
    /// When its ttl ends, in milliseconds since the Unix epoch: deadlines have to outlive the monotonic clock.
    pub(crate) expires_ms: u64,
    /// The name of its session: that is forgotten only after it.
    pub(crate) session: Bytes,
    /// Which process of that session made it.
    pub(crate) instance: u64,
    /// Its session has become a JSON connection's, which nothing tells apart from the one before.
    pub(crate) inherited: bool,
    pub(crate) places: Places,
    pub(crate) payload: Payload,
    /// Compaction has found its record damaged, and leaves it where it is as long as its handler may answer.
    pub(crate) stays: bool,
    /// Ends when the handler that has it has had it for too long.
    pub(crate) lease: Option<TimerId>,
    /// Ends when a send that failed may be tried again.
    pub(crate) rest: Option<TimerId>,
    /// What its handler had when the broker died, as long as it waits for that handler.
    pub(crate) former: Option<Box<Former>>,
    /// It is stranded at a peer: see [`crate::peers::abroad`].
    pub(crate) abroad: bool,
    /// What went wrong last with a send.
    pub(crate) failure: Option<Box<Failure>>,
    /// Set if it has an idempotency key.
    pub(crate) keyed: Option<Box<Keyed>>,
    /// Its action and headers, once its content has made room for the outcome's.
    pub(crate) asked: Option<Box<Content>>,
    /// What became of it, once that is decided. The content is the request's own no more, but the outcome's.
    pub(crate) decided: Option<Decided>,
}

/// Where those of its records lie that a restart needs.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) request: Option<Location>,
    /// Those of one that has been with a handler, or is decided.
    later: Option<Box<LaterPlaces>>,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct LaterPlaces {
    /// That of the last attempt.
    pub(crate) delivered: Option<Location>,
    /// That of its outcome, or of what went wrong last.
    pub(crate) reply: Option<Location>,
    /// That it is kept for its key only.
    pub(crate) claimed: Option<Location>,
}

impl LaterPlaces {
    pub(crate) fn is_some(&self) -> bool {
        self.delivered.or(self.reply).or(self.claimed).is_some()
    }
}

impl Places {
    /// Those behind the request's own.
    pub(crate) fn later(&self) -> LaterPlaces {
        self.later.as_deref().copied().unwrap_or_default()
    }

    pub(crate) fn later_mut(&mut self) -> &mut LaterPlaces {
        self.later.get_or_insert_default()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = Location> + use<> {
        let LaterPlaces { delivered, reply, claimed } = self.later();
        [self.request, delivered, reply, claimed].into_iter().flatten()
    }
}

/// The outcome of a durable request, but for its content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decided {
    /// `None` for a reply.
    pub(crate) code: Option<Code>,
    pub(crate) handled_after_ms: u32,
    /// Whether its record is stable.
    pub(crate) stable: bool,
    /// Its place among the outcomes of its session, once it was given one in this boot.
    pub(crate) sequence: Option<u64>,
}

impl Durable {
    /// Whether it is over, and kept for its idempotency key.
    pub(crate) fn is_claimed(&self) -> bool {
        self.keyed.as_ref().is_some_and(|keyed| keyed.claimed)
    }

    pub(crate) fn asked_bytes(&self) -> usize {
        self.asked.as_ref().map_or(0, |asked| asked.len())
    }

    /// Bytes that are counted beside those of the content.
    pub(crate) fn bytes(&self) -> usize {
        self.asked_bytes() + self.keyed.as_ref().map_or(0, |keyed| keyed.bytes())
    }
}

impl Broker {
    pub(crate) fn durable(&self, key: Key<Request>) -> Option<&Durable> {
        self.kept_of(key)?.durable.as_deref()
    }

    pub(crate) fn durable_mut(&mut self, key: Key<Request>) -> Option<&mut Durable> {
        self.kept.get_mut(self.requests.get(key)?.kept?)?.durable.as_deref_mut()
    }
}
