//! The handlers of an action that have credit, in the order in which they get requests.

use std::collections::{BTreeSet, VecDeque};

use crate::{Policy, slab::Key, state::Handler};

/// Who is next. A handler stands in it exactly while it has credit and takes requests.
#[derive(Debug)]
pub(crate) enum Ready {
    /// By turn.
    RoundRobin(Turns),
    /// By requests held, then by turn: `(held, place, handler)`.
    LeastBusy(BTreeSet<(usize, u64, Key<Handler>)>),
}

impl Ready {
    pub(crate) fn new(policy: Policy) -> Self {
        match policy {
            Policy::RoundRobin => Self::RoundRobin(Turns::default()),
            Policy::LeastBusy => Self::LeastBusy(BTreeSet::new()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::RoundRobin(turns) => turns.line.is_empty(),
            Self::LeastBusy(order) => order.is_empty(),
        }
    }

    /// Puts a handler behind all that are equal to it. Places rise with every call.
    pub(crate) fn insert(&mut self, handler: Key<Handler>, held: usize, place: u64) {
        match self {
            Self::RoundRobin(turns) => turns.line.push_back((place, Some(handler))),
            Self::LeastBusy(order) => {
                order.insert((held, place, handler));
            }
        }
    }

    pub(crate) fn first(&self) -> Option<Key<Handler>> {
        match self {
            Self::RoundRobin(turns) => turns.line.front().and_then(|(_, handler)| *handler),
            Self::LeastBusy(order) => order.first().map(|(_, _, handler)| *handler),
        }
    }

    /// All that stand in it, in the order in which they are next.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Key<Handler>> + '_ {
        let (turns, order) = match self {
            Self::RoundRobin(turns) => (Some(turns), None),
            Self::LeastBusy(order) => (None, Some(order)),
        };
        let turns = turns.into_iter().flat_map(|turns| turns.iter().map(|(_, handler)| handler));
        turns.chain(order.into_iter().flatten().map(|(_, _, handler)| *handler))
    }

    pub(crate) fn remove(&mut self, handler: Key<Handler>, held: usize, place: u64) {
        match self {
            Self::RoundRobin(turns) => turns.remove(place),
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

/// A line that handlers leave from the front, and now and then from its middle, where they leave a gap: a search and no
/// shifting, since an action may have very many handlers, and each of them may come and go as often as it likes.
///
/// The first of the line is never a gap, and gaps are swept out before they are more than half of it.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    line: VecDeque<(u64, Option<Key<Handler>>)>,
    gaps: usize,
}

impl Turns {
    /// All that stand in the line, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Key<Handler>)> + '_ {
        self.line.iter().filter_map(|(place, handler)| handler.map(|handler| (*place, handler)))
    }

    fn remove(&mut self, place: u64) {
        // The one that is removed is nearly always the first: it gets a request.
        if self.line.front().is_some_and(|(first, _)| *first == place) {
            self.line.pop_front();
            while self.gaps > 0 && self.line.front().is_some_and(|(_, handler)| handler.is_none()) {
                self.line.pop_front();
                self.gaps -= 1;
            }
        } else if let Ok(index) = self.line.binary_search_by_key(&place, |(place, _)| *place)
            && self.line[index].1.take().is_some()
        {
            self.gaps += 1;
        }
        if self.gaps > self.line.len() / 2 {
            self.line.retain(|(_, handler)| handler.is_some());
            self.gaps = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever leaves from wherever, the others keep their order, and the line stays short.
    #[test]
    fn gaps_change_no_turn() {
        let mut ready = Ready::new(Policy::RoundRobin);
        let key = Key::from_raw;
        for place in 1..=9 {
            ready.insert(key(place), 0, place);
        }
        for place in [2, 5, 1, 9] {
            ready.remove(key(place), 0, place);
        }
        let mut order = Vec::new();
        while let Some(first) = ready.first() {
            order.push(first.raw());
            ready.remove(first, 0, first.raw());
        }
        assert_eq!(order, [3, 4, 6, 7, 8]);
        assert!(ready.is_empty());
        for place in 10..1000 {
            ready.insert(key(place), 0, place);
            ready.remove(key(place - 1), 0, place - 1);
        }
        let Ready::RoundRobin(turns) = &ready else { panic!("made so") };
        assert_eq!((turns.line.len(), turns.gaps), (1, 0));
    }
}
