//! Points in time for the pure cores, which never read a clock themselves: a driver reads it once per turn.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

/// A point on a monotonic clock, in microseconds since an origin that the driver chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The origin.
    pub const ZERO: Self = Self(0);
    /// Later than all others.
    pub const NEVER: Self = Self(u64::MAX);

    /// The point `micros` microseconds after the origin.
    pub fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the origin.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// What both of a machine's clocks showed at the start of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// The monotonic clock: deadlines are reckoned by it.
    pub mono: Time,
    /// The wall clock in milliseconds since the Unix epoch: only shown and stored, never compared.
    pub wall_ms: u64,
}

const LEVELS: usize = 6;
const SLOTS: usize = 64;
const SLOT_BITS: u32 = 6;
const NONE: u32 = u32::MAX;
/// The list of timers that are due. Behind all slots of all levels.
const DUE: u16 = (LEVELS * SLOTS) as u16;
const FREE: u16 = DUE + 1;
const TICK_MICROS: u64 = 1000;

/// Names a timer of a [`Wheel`], until it fires or is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerId {
    index: u32,
    generation: u32,
}

/// Many timers: a hierarchical wheel (Varghese and Lauck, 1987) of 6 levels with 64 slots each, in ticks of 1 ms.
///
/// Inserting and cancelling take constant time and, once it has grown to its working size, no allocation. Timers
/// fire at or up to one tick after their deadline, never before; those of one tick in the order they were inserted
/// in, except that a timer set far ahead comes behind those that were set later for the same tick.
#[derive(Debug)]
pub struct Wheel<T> {
    nodes: Vec<Node<T>>,
    free: u32,
    heads: [u32; LEVELS * SLOTS + 1],
    tails: [u32; LEVELS * SLOTS + 1],
    occupied: [u64; LEVELS],
    elapsed: u64,
    len: usize,
}

#[derive(Debug)]
struct Node<T> {
    item: T,
    when: u64,
    prev: u32,
    next: u32,
    generation: u32,
    list: u16,
}

impl<T: Copy> Default for Wheel<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel that stands at [`Time::ZERO`].
    pub fn new() -> Self {
        Self {
            nodes: Vec::new(),
            free: NONE,
            heads: [NONE; LEVELS * SLOTS + 1],
            tails: [NONE; LEVELS * SLOTS + 1],
            occupied: [0; LEVELS],
            elapsed: 0,
            len: 0,
        }
    }

    /// Timers that have neither fired nor been cancelled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets a timer.
    pub fn insert(&mut self, deadline: Time, item: T) -> TimerId {
        let when = deadline.micros().div_ceil(TICK_MICROS);
        let index = if self.free == NONE {
            self.nodes.push(Node { item, when, prev: NONE, next: NONE, generation: 0, list: FREE });
            (self.nodes.len() - 1) as u32
        } else {
            let index = self.free;
            let node = &mut self.nodes[index as usize];
            self.free = node.next;
            (node.item, node.when) = (item, when);
            index
        };
        self.len += 1;
        self.link(index);
        TimerId { index, generation: self.nodes[index as usize].generation }
    }

    /// Takes a timer back. `None` if it fired or was cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        let node = self.nodes.get(id.index as usize)?;
        if node.generation != id.generation || node.list == FREE {
            return None;
        }
        Some(self.remove(id.index))
    }

    /// When to call [`Wheel::expire`] next; at the latest then a timer is due or has come closer.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.heads[usize::from(DUE)] != NONE {
            return Some(Time::from_micros(self.elapsed * TICK_MICROS));
        }
        self.next_slot().map(|(_, _, tick)| Time::from_micros(tick.saturating_mul(TICK_MICROS)))
    }

    /// The next timer that is due at `now`. Call it until it returns `None`.
    pub fn expire(&mut self, now: Time) -> Option<T> {
        let now = now.micros() / TICK_MICROS;
        loop {
            let due = self.heads[usize::from(DUE)];
            if due != NONE {
                return Some(self.remove(due));
            }
            match self.next_slot() {
                Some((level, slot, tick)) if tick <= now => {
                    self.elapsed = tick;
                    self.cascade(level, slot);
                }
                _ => {
                    self.elapsed = self.elapsed.max(now);
                    return None;
                }
            }
        }
    }

    /// Moves a slot's timers to where they belong now that its time has come.
    fn cascade(&mut self, level: usize, slot: usize) {
        let list = level * SLOTS + slot;
        let mut index = self.heads[list];
        (self.heads[list], self.tails[list]) = (NONE, NONE);
        self.occupied[level] &= !(1 << slot);
        while index != NONE {
            let next = self.nodes[index as usize].next;
            self.link(index);
            index = next;
        }
    }

    /// The first slot with timers in it, and the tick at which it begins.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        for level in 0..LEVELS {
            if self.occupied[level] == 0 {
                continue;
            }
            let shift = SLOT_BITS * level as u32;
            let here = (self.elapsed >> shift) as usize % SLOTS;
            let ahead = self.occupied[level].rotate_right(here as u32).trailing_zeros() as usize;
            let slot = (here + ahead) % SLOTS;
            let turn = (SLOTS as u64) << shift;
            let mut tick = self.elapsed - self.elapsed % turn + ((slot as u64) << shift);
            if tick <= self.elapsed {
                // Only the top level wraps: its slots behind us belong to the next turn.
                tick += turn;
            }
            return Some((level, slot, tick));
        }
        None
    }

    fn list_for(&self, when: u64) -> u16 {
        if when <= self.elapsed {
            return DUE;
        }
        let furthest = self.elapsed + (1 << (SLOT_BITS * LEVELS as u32)) - 1;
        let when = when.min(furthest);
        let level = ((63 - ((self.elapsed ^ when) | 63).leading_zeros()) / SLOT_BITS).min(LEVELS as u32 - 1);
        let slot = (when >> (SLOT_BITS * level)) as usize % SLOTS;
        (level as usize * SLOTS + slot) as u16
    }

    fn link(&mut self, index: u32) {
        let list = self.list_for(self.nodes[index as usize].when);
        let at = usize::from(list);
        let tail = self.tails[at];
        let node = &mut self.nodes[index as usize];
        (node.list, node.prev, node.next) = (list, tail, NONE);
        if tail == NONE {
            self.heads[at] = index;
        } else {
            self.nodes[tail as usize].next = index;
        }
        self.tails[at] = index;
        if list != DUE {
            self.occupied[at / SLOTS] |= 1 << (at % SLOTS);
        }
    }

    fn remove(&mut self, index: u32) -> T {
        let node = &mut self.nodes[index as usize];
        let (item, prev, next, at) = (node.item, node.prev, node.next, usize::from(node.list));
        node.list = FREE;
        node.generation = node.generation.wrapping_add(1);
        node.next = self.free;
        self.free = index;
        self.len -= 1;
        if prev == NONE {
            self.heads[at] = next
        } else {
            self.nodes[prev as usize].next = next
        }
        if next == NONE {
            self.tails[at] = prev
        } else {
            self.nodes[next as usize].prev = prev
        }
        if self.heads[at] == NONE && at < LEVELS * SLOTS {
            self.occupied[at / SLOTS] &= !(1 << (at % SLOTS));
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Time {
        Time::from_micros(ms * 1000)
    }

    /// Timers fire at their tick, not before it, and in order.
    #[test]
    fn fires_in_order() {
        let mut wheel = Wheel::new();
        wheel.insert(ms(70), 'c');
        wheel.insert(ms(5), 'a');
        let cancelled = wheel.insert(ms(6), 'x');
        wheel.insert(Time::from_micros(6500), 'b');
        assert_eq!(wheel.cancel(cancelled), Some('x'));
        assert_eq!(wheel.cancel(cancelled), None);
        assert_eq!(wheel.next_deadline(), Some(ms(5)));
        assert_eq!(wheel.expire(ms(4)), None);
        assert_eq!(wheel.expire(ms(5)), Some('a'));
        assert_eq!(wheel.expire(Time::from_micros(6900)), None);
        assert_eq!(wheel.expire(ms(7)), Some('b'));
        assert_eq!(wheel.expire(ms(1000)), Some('c'));
        assert_eq!(wheel.expire(ms(1000)), None);
        assert_eq!((wheel.next_deadline(), wheel.len()), (None, 0));
    }

    proptest! {
        /// Beside a sorted map, over random insertions, cancellations and jumps: the same timers fire at each time,
        /// none early, and the wheel never asks to be woken later than the next one is due.
        #[test]
        fn agrees_with_a_sorted_map(steps in prop::collection::vec((0u8..4, 0u64..5_000_000_000), 1..400)) {
            let mut wheel = Wheel::new();
            let mut model: BTreeMap<(u64, usize), TimerId> = BTreeMap::new();
            let mut now = 0u64;
            for (number, (what, value)) in steps.into_iter().enumerate() {
                match what {
                    0 | 1 => {
                        let when = now.saturating_add(if what == 0 { value % 200 } else { value }).saturating_sub(20);
                        model.insert((when, number), wheel.insert(ms(when), (when, number)));
                    }
                    2 => if let Some((&key, &id)) = model.iter().nth(value as usize % model.len().max(1)) {
                        model.remove(&key);
                        prop_assert_eq!(wheel.cancel(id), Some(key));
                    },
                    _ => {
                        now += if value % 3 == 0 { value } else { value % 1000 };
                        let mut fired = Vec::new();
                        while let Some(key) = wheel.expire(ms(now)) { fired.push(key); }
                        let later = model.split_off(&(now + 1, 0));
                        fired.sort_unstable();
                        prop_assert_eq!(fired, model.keys().copied().collect::<Vec<_>>());
                        model = later;
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
                if let Some(((first, _), _)) = model.iter().next() {
                    prop_assert!(wheel.next_deadline() <= Some(ms((*first).max(now))));
                }
                prop_assert_eq!(wheel.next_deadline().is_some(), !model.is_empty());
            }
        }
    }
}
