//! The handlers of an action that have credit, in the order in which they get requests.

use std::collections::{BTreeSet, VecDeque};

use crate::{Policy, slab::Key, state::Handler};

/// Who is next. A handler stands in it exactly while it has credit and takes requests.
#[derive(Debug)]
pub(crate) enum Ready {
    /// By turn.
    RoundRobin(VecDeque<Key<Handler>>),
    /// By requests held, then by turn: `(held, place, handler)`.
    LeastBusy(BTreeSet<(usize, u64, Key<Handler>)>),
}

impl Ready {
    pub(crate) fn new(policy: Policy) -> Self {
        match policy {
            Policy::RoundRobin => Self::RoundRobin(VecDeque::new()),
            Policy::LeastBusy => Self::LeastBusy(BTreeSet::new()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::RoundRobin(line) => line.is_empty(),
            Self::LeastBusy(order) => order.is_empty(),
        }
    }

    /// Puts a handler behind all that are equal to it. Places rise with every call.
    pub(crate) fn insert(&mut self, handler: Key<Handler>, held: usize, place: u64) {
        match self {
            Self::RoundRobin(line) => line.push_back(handler),
            Self::LeastBusy(order) => {
                order.insert((held, place, handler));
            }
        }
    }

    pub(crate) fn first(&self) -> Option<Key<Handler>> {
        match self {
            Self::RoundRobin(line) => line.front().copied(),
            Self::LeastBusy(order) => order.first().map(|(_, _, handler)| *handler),
        }
    }

    pub(crate) fn remove(&mut self, handler: Key<Handler>, held: usize, place: u64) {
        match self {
            // The one that is removed is nearly always the first: it gets a request.
            Self::RoundRobin(line) if line.front() == Some(&handler) => {
                line.pop_front();
            }
            Self::RoundRobin(line) => {
                if let Some(index) = line.iter().position(|key| *key == handler) {
                    line.remove(index);
                }
            }
            Self::LeastBusy(order) => {
                order.remove(&(held, place, handler));
            }
        }
    }

    /// A handler that stays in it holds more or less than before.
    pub(crate) fn held_changed(&mut self, handler: Key<Handler>, before: usize, after: usize, place: u64) {
        if let Self::LeastBusy(order) = self
            && order.remove(&(before, place, handler))
        {
            order.insert((after, place, handler));
        }
    }
}
