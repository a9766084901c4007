//! The requests that one requester waits for.

/// Open requests by their number, with the time each was sent.
///
/// Numbers rise by one, and a slot is found by the number's low bits. A slot that a slow request still holds is
/// passed over, so that the table stays as small as twice what is in flight however far others run ahead.
#[derive(Debug)]
pub(super) struct Window {
    slots: Vec<Slot>,
    next: u64,
    open: usize,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    number: u64,
    sent_ns: u64,
}

/// No request has this number.
const FREE: u64 = 0;

impl Window {
    /// For at most `in_flight` open requests.
    pub(super) fn new(in_flight: u32) -> Self {
        let slots = (2 * in_flight as usize).next_power_of_two();
        Self { slots: vec![Slot { number: FREE, sent_ns: 0 }; slots], next: 1, open: 0 }
    }

    /// How many are open.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Opens a request and returns its number.
    #[inline]
    pub(super) fn send(&mut self, now_ns: u64) -> u64 {
        debug_assert!(self.open < self.slots.len());
        let mask = self.slots.len() - 1;
        loop {
            let number = self.next;
            self.next += 1;
            let slot = &mut self.slots[number as usize & mask];
            if slot.number == FREE {
                *slot = Slot { number, sent_ns: now_ns };
                self.open += 1;
                return number;
            }
        }
    }

    /// Ends a request: when it was sent, or `None` if no such request is open.
    #[inline]
    pub(super) fn end(&mut self, number: u64) -> Option<u64> {
        let mask = self.slots.len() - 1;
        let slot = &mut self.slots[number as usize & mask];
        if slot.number != number || number == FREE {
            return None;
        }
        slot.number = FREE;
        self.open -= 1;
        Some(slot.sent_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request ends once, whatever the others do meanwhile; strangers' numbers are refused.
    #[test]
    fn slow_request_is_kept() {
        let mut window = Window::new(2);
        let slow = window.send(7);
        for now in 0..100 {
            let quick = window.send(now);
            assert_eq!(window.open(), 2);
            assert_eq!(window.end(quick), Some(now));
            assert_eq!(window.end(quick), None);
        }
        assert_eq!(window.end(0), None);
        assert_eq!(window.end(slow + 4), None);
        assert_eq!((window.end(slow), window.open()), (Some(7), 0));
    }
}
