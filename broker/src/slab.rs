//! A table whose keys are never used twice.

use std::{fmt, marker::PhantomData};

const INDEX_BITS: u32 = 24;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const MAX_GENERATION: u64 = u64::MAX >> INDEX_BITS;
const NO_SLOT: u32 = u32::MAX;

/// Names an entry of a [`Slab`], also after the entry is gone: then it leads to nothing, for ever.
pub(crate) struct Key<T> {
    raw: u64,
    of: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    /// The key as a number, for the wire.
    pub(crate) fn raw(self) -> u64 {
        self.raw
    }

    /// A key from a number that a peer sent: whether it leads anywhere is seen when it is used.
    pub(crate) fn from_raw(raw: u64) -> Self {
        Self { raw, of: PhantomData }
    }

    fn index(self) -> usize {
        (self.raw & INDEX_MASK) as usize
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Key<T> {}
impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}
impl<T> Eq for Key<T> {}
impl<T> PartialOrd for Key<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Key<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.raw.cmp(&other.raw)
    }
}
impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.raw)
    }
}

/// A table of up to 2^24 entries with constant-time insertion, look-up and removal.
///
/// A key is 24 bits of place and 40 bits of generation. A place whose generations are used up is left empty, so that
/// a key is never given out twice; the 32-bit generations of common slot maps come round within minutes at the rate
/// at which a busy broker uses its hottest slot.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: u32,
    len: usize,
    /// How many places there can be; fewer in tests of what happens when they run out.
    pub(crate) most: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u64,
    entry: Entry<T>,
}

#[derive(Debug)]
enum Entry<T> {
    Taken(T),
    Free { next: u32 },
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: NO_SLOT, len: 0, most: 1 << INDEX_BITS }
    }
}

impl<T> Slab<T> {
    /// Whether nothing more fits.
    pub(crate) fn is_full(&self) -> bool {
        self.free == NO_SLOT && self.slots.len() >= self.most
    }

    /// The key that the next insertion will give.
    pub(crate) fn next_key(&self) -> Key<T> {
        let (index, generation) = match self.free {
            NO_SLOT => (self.slots.len(), 1),
            free => (free as usize, self.slots[free as usize].generation),
        };
        Key::from_raw(generation << INDEX_BITS | index as u64)
    }

    /// Puts an entry in. The caller has checked [`Slab::is_full`].
    #[inline(always)]
    pub(crate) fn insert(&mut self, entry: T) -> Key<T> {
        assert!(!self.is_full(), "callers refuse what does not fit");
        self.len += 1;
        let index = if self.free == NO_SLOT {
            self.slots.push(Slot { generation: 1, entry: Entry::Taken(entry) });
            self.slots.len() - 1
        } else {
            let index = self.free as usize;
            let slot = &mut self.slots[index];
            if let Entry::Free { next } = slot.entry {
                self.free = next;
            }
            slot.entry = Entry::Taken(entry);
            index
        };
        Key::from_raw(self.slots[index].generation << INDEX_BITS | index as u64)
    }

    pub(crate) fn get(&self, key: Key<T>) -> Option<&T> {
        match self.slots.get(key.index()) {
            Some(Slot { generation, entry: Entry::Taken(entry) }) if *generation == key.raw >> INDEX_BITS => {
                Some(entry)
            }
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        match self.slots.get_mut(key.index()) {
            Some(Slot { generation, entry: Entry::Taken(entry) }) if *generation == key.raw >> INDEX_BITS => {
                Some(entry)
            }
            _ => None,
        }
    }

    pub(crate) fn contains(&self, key: Key<T>) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn remove(&mut self, key: Key<T>) -> Option<T> {
        self.get(key)?;
        let slot = &mut self.slots[key.index()];
        let reusable = slot.generation < MAX_GENERATION;
        let next = if reusable { self.free } else { NO_SLOT };
        let entry = std::mem::replace(&mut slot.entry, Entry::Free { next });
        slot.generation += 1;
        if reusable {
            self.free = key.index() as u32;
        }
        self.len -= 1;
        match entry {
            Entry::Taken(entry) => Some(entry),
            Entry::Free { .. } => None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All entries in the order of their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| match &slot.entry {
            Entry::Taken(entry) => Some((Key::from_raw(slot.generation << INDEX_BITS | index as u64), entry)),
            Entry::Free { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A removed entry's key leads to nothing, also when its place is taken again.
    #[test]
    fn keys_are_never_reused() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!((first.index(), slab.get(first)), (second.index(), None));
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&'b'));
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.get(Key::from_raw(u64::MAX)), None);
    }

    /// A place whose generations are used up is not taken again.
    #[test]
    fn a_worn_out_place_is_left() {
        let mut slab = Slab::default();
        let key = slab.insert('a');
        slab.slots[0].generation = MAX_GENERATION;
        assert_eq!(slab.get(key), None);
        assert_eq!(slab.remove(Key::from_raw(MAX_GENERATION << INDEX_BITS)), Some('a'));
        assert_eq!(slab.insert('b').index(), 1);
        assert_eq!(slab.get(Key::from_raw(0)), None);
    }
}
