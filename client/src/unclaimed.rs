//! What the broker kept for an earlier process under this session's name, until the application has taken it.
//!
//! The broker lets go of outcomes by one cumulative acknowledgement, so it must not pass one that nobody has taken yet:
//! `acknowledged < every sequence in untaken, and < left`.

use std::collections::BTreeSet;

/// Names an unclaimed outcome from [`crate::Output::Unclaimed`] to [`crate::Client::claim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnclaimedKey {
    /// Sequences begin anew with each broker's memory of the session.
    life: u32,
    sequence: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// How many may wait to be taken; 0 if none are wanted.
    most: usize,
    life: u32,
    /// Numbers below are those of earlier processes.
    below: u64,
    /// The sequence of the last one that was given out.
    given: u64,
    /// Given out, and not taken yet.
    untaken: BTreeSet<u64>,
    /// The first one that was too many. The broker keeps it, and what is behind it, for the next connection.
    left: Option<u64>,
    /// What was left comes again on this connection.
    again: bool,
    /// Whether more may follow of what the broker keeps.
    replaying: bool,
}

impl Claims {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    pub(crate) fn wanted(&self) -> bool {
        self.most > 0
    }

    /// The broker begins to count anew; numbers below `next_number` were used by others. `None`: as before.
    pub(crate) fn begin(&mut self, next_number: Option<u64>) {
        self.life += 1;
        (self.given, self.left, self.again, self.replaying) = (0, None, false, false);
        self.untaken.clear();
        if let Some(next_number) = next_number.filter(|_| self.wanted()) {
            self.below = next_number;
        }
    }

    /// What is not acknowledged comes again on this connection.
    pub(crate) fn resume(&mut self) {
        (self.again, self.replaying) = (self.left.is_some(), self.below > 1);
    }

    /// All that the broker had kept is here.
    pub(crate) fn replayed(&mut self) {
        self.replaying = false;
        if std::mem::take(&mut self.again) {
            self.left = None;
        }
    }

    /// Whether an outcome for this number is not this process's own.
    pub(crate) fn concern(&self, number: u64) -> bool {
        number < self.below
    }

    /// An outcome came; `None` if it came before, or is too many.
    pub(crate) fn offer(&mut self, sequence: u64) -> Option<UnclaimedKey> {
        if sequence <= self.given {
            return None;
        }
        let waits_for_others = self.left.is_some() && !self.again;
        if waits_for_others {
            return None;
        }
        if self.untaken.len() >= self.most {
            (self.left, self.again) = (Some(sequence), false);
            return None;
        }
        if self.again {
            self.left = Some(sequence.saturating_add(1));
        }
        self.given = sequence;
        self.untaken.insert(sequence);
        Some(UnclaimedKey { life: self.life, sequence })
    }

    /// The application has it. `false` if that is not news.
    pub(crate) fn take(&mut self, key: UnclaimedKey) -> bool {
        key.life == self.life && self.untaken.remove(&key.sequence)
    }

    /// Whether nothing waits to be taken, here or at the broker.
    pub(crate) fn is_settled(&self) -> bool {
        self.untaken.is_empty() && self.left.is_none() && !self.replaying
    }

    /// How far may be acknowledged of what was received up to here.
    pub(crate) fn horizon(&self, received: u64) -> u64 {
        let first_open = self.untaken.first().into_iter().chain(&self.left).min();
        first_open.map_or(received, |first| received.min(first - 1))
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.untaken.len() <= self.most, "no more wait than may");
        assert!(self.untaken.last().is_none_or(|last| *last <= self.given), "what waits was given out");
        assert!(self.left.is_none_or(|left| left > self.given), "what is left was not given out");
    }
}
