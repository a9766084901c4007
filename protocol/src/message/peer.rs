//! What servers say to each other of durable requests.
//!
//! A server gives a peer an attempt at a request of its own, and stays its owner: it alone decides. So these messages name an
//! attempt by what outlives connections, restarts, and whoever has dialled whom, and they are the same in both directions.
//!
//! ```text
//! owner                                        peer
//!   │ ── forward ───────────────────────────────> │ a handler of its own gets it
//!   │ <────────────────────────────── working ─── │
//!   │ <──────────────────────────────── ended ─── │ kept there until
//!   │ ── taken, once it is stable ──────────────> │
//!   │ ── withdraw ──────────────────────────────> │ nobody wants it any more
//!
//!   after a link broke:
//!   │ ── abroad: these you have ────────────────> │ what is not among them ends there
//!   │ <──── unknown: of these, those I have not ─ │ the rest goes on; what has ended is told again
//! ```

use super::{RequestFlags, RequestId, Verdict};
use crate::Content;

/// One attempt at a durable request, for all servers and for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Run {
    /// The request, as its owner's log has it.
    pub request: RequestId,
    /// Which attempt, from 1.
    pub attempt: u16,
    /// The last [`Runs::tie`] that the peer had been told when it was given this: the same attempt may be offered twice, if it
    /// was not made the first time. 0 from an owner that was started anew since, and does not know: whichever it was.
    pub tie: u64,
}

/// Of durable requests, between servers.
#[derive(Debug, Clone, PartialEq)]
pub enum PeerMessage {
    /// From the owner: have a handler of yours run this.
    Forward(Forward),
    /// To the owner: what became of it.
    Ended(Ended),
    /// To the owner: a handler is still at work on it.
    Working {
        /// The attempt.
        run: Run,
        /// What the handler wants to tell the requester; may be empty.
        content: Content,
    },
    /// From the owner: it is not wanted any more.
    Withdraw(Run),
    /// From the owner: its end is in the log here, and need not be kept there.
    Taken(Run),
    /// From the owner, when a link has come, or gone while there is another: all attempts that are with the peer as far as the owner knows.
    Abroad(Runs),
    /// The answer to that: those of them that are not there. The others run, or have ended, which is told again.
    Unknown(Runs),
}

/// An attempt on its way to a peer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Forward {
    /// Which attempt it is. With an older tie than that of the last list, it was sent before that list and has come behind it,
    /// on another link: the owner is told by the answer to the list that it is not there.
    pub run: Run,
    /// [`RequestFlags`] of the request.
    pub flags: RequestFlags,
    /// Time until the request expires, in milliseconds.
    pub time_left_ms: u32,
    /// When the owner received the request, in milliseconds since the Unix epoch.
    pub received_at_ms: u64,
    /// Action (as the name), options, headers and payload.
    pub content: Content,
}

/// What became of an attempt at a peer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ended {
    /// Which attempt it was.
    pub run: Run,
    /// What the handler says, or that it ended otherwise.
    pub verdict: Verdict,
    /// The reply, or the error.
    pub content: Content,
}

/// A list of attempts, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Runs {
    /// Rises with each list that the owner tells, within its boot.
    pub tie: u64,
    /// More of the same list follows.
    pub more: bool,
    /// The attempts.
    pub runs: Vec<Run>,
}

impl Runs {
    /// As many as go into one message.
    pub const MOST: usize = 1000;

    /// All of them, as the messages that they take: at least one.
    pub fn split(tie: u64, runs: Vec<Run>) -> impl Iterator<Item = Self> {
        let parts = runs.len().div_ceil(Self::MOST).max(1);
        (0..parts).map(move |part| {
            let from = part * Self::MOST;
            let to = runs.len().min(from + Self::MOST);
            Self { tie, more: part + 1 < parts, runs: runs[from..to].to_vec() }
        })
    }
}
