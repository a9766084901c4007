//! What must hold, by name, so that a failure says which promise was broken.

use std::fmt;

/// A promise that a history can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Every request ends exactly once for its requester: never lost, doubled, hung.
    Once,
    /// An outcome is true: a reply is one that a handler gave to this request, an error has its cause.
    Truth,
    /// Only the answer to the current attempt counts: one that came after the end is never delivered.
    LateReply,
    /// At most `max_attempts` deliveries, numbered from 1, under one request id.
    Attempts,
    /// No attempt while another one of the same request has not been lost.
    Overlap,
    /// Nothing is dispatched that has ended or was never asked.
    AfterEnd,
    /// Round-robin: while a handler has credit, no other of its action is served twice. Least-busy: nobody with credit
    /// holds less than the one that is served.
    Fairness,
    /// A handler gets nothing beyond its credit, while it is stuck or clogged, or after it deregistered.
    Credit,
    /// Credit comes back: nothing waits while a handler of its action has credit.
    IdleCredit,
    /// First dispatches of one session to one action are in the order sent; what was lost goes before what is new.
    Order,
    /// Queues, memory, registrations, waiting legs and kept outcomes stay within their bounds, and nothing is refused
    /// below them.
    Bounds,
    /// A broadcast asks each handler once; its legs are as many as was told, and each ends once.
    Broadcast,
    /// Nothing times out early, and nothing stays open after its time.
    Timeout,
    /// A client that came back is told the truth about what it has open.
    Resume,
    /// Nothing is said on a connection that was closed.
    Silence,
    /// The dispatch interval is kept.
    Pace,
    /// When all is closed, nothing is left.
    Memory,
    /// The gate: no durable request is accepted or delivered, and no outcome told or acknowledged, before its record survives.
    Gate,
    /// What was accepted is there after any crash, until it has ended, and ends only for a reason.
    Kept,
    /// The outcome of a durable request never becomes another, and who waits for it gets it.
    OneOutcome,
    /// What was done stays done: it is not delivered again, nor is its outcome.
    Settled,
    /// Nothing is in the log that nobody asked.
    Invented,
    /// A send that was accepted ends as done or as a dead letter.
    DeadLetters,
    /// Whatever a crash leaves of a log can be read.
    Recovery,
    /// Nothing forbidden reaches a handler, nobody is shown what it may not ask, and nothing is forbidden that is allowed.
    Forbidden,
    /// What a core checks of itself, or a panic.
    Invariant,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A rule that was broken, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub rule: Rule,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// Whether all is right so far.
pub(crate) type Verdict = Result<(), Violation>;

/// Breaks off with a violation unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $rule:ident, $($what:tt)+) => {
        if !$condition {
            return Err($crate::sim::rules::Violation {
                rule: $crate::sim::rules::Rule::$rule,
                what: format!($($what)+),
            });
        }
    };
}
pub(crate) use ensure;
