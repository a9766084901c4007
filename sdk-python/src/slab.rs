//! A table whose places are used again, under keys that are not: a place and how often it was used.

/// Keys of one table never come back, but for 2^32 uses of one place.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    uses: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.places.push(Place { uses: 0, value: None });
                (self.places.len() - 1) as u32
            }
        };
        let slot = &mut self.places[place as usize];
        slot.value = Some(value);
        u64::from(slot.uses) << 32 | u64::from(place)
    }

    pub(crate) fn of(&mut self, key: u64) -> Option<&mut T> {
        self.place(key)?.value.as_mut()
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<T> {
        let place = self.place(key)?;
        let value = place.value.take()?;
        place.uses = place.uses.wrapping_add(1);
        self.free.push(key as u32);
        Some(value)
    }

    fn place(&mut self, key: u64) -> Option<&mut Place<T>> {
        self.places.get_mut(key as u32 as usize).filter(|place| place.uses == (key >> 32) as u32)
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|place| place.value.as_ref())
    }

    /// Everything that is in it, which it is no longer.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        (0..self.places.len() as u64)
            .filter_map(|place| {
                let key = u64::from(self.places[place as usize].uses) << 32 | place;
                self.remove(key)
            })
            .collect()
    }
}
