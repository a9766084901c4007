//! How many small writes one turn of the thread has, to know whether they are worth sending together.
//!
//! Through the ring, all writes of a turn leave by one system call, one after the other, which for many is cheaper than a
//! call for each between other work. For one it is dearer: its completion is one more thing to wait for.

use std::cell::Cell;

use ringpost_io::event::Event;

/// Small writes in a turn from which they go together.
const CROWD: u32 = 4;
/// Small writes of one turn that go together at most: each has a buffer until it is done.
const MOST: u32 = 64;

/// What the turns of a thread are like.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Small writes in this one.
    writes: Cell<u32>,
    /// The same in the last one.
    last: Cell<u32>,
    begun: Event,
}

impl Turn {
    /// Counts one more small write. Whether it is to go together with others: if there were enough in the last turn.
    pub(crate) fn goes_together(&self) -> bool {
        if self.writes.replace(self.writes.get().saturating_add(1)) == 0 {
            self.begun.set();
        }
        self.last.get() >= CROWD && self.writes.get() <= MOST
    }

    /// Sees turns end, for ever. Whoever is woken by the first write of a turn runs behind all who were ready then.
    pub(crate) async fn see_ends(&self) {
        loop {
            self.begun.wait().await;
            self.last.set(self.writes.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use ringpost_io::ring::{self, RingConfig};

    use super::*;

    /// Writes go together from the turn behind one that had many of them, until a turn has few.
    #[test]
    fn crowds_are_seen() {
        ring::run(&RingConfig { entries: 8, ..RingConfig::default() }, async {
            let turn = Rc::new(Turn::default());
            let seeing = turn.clone();
            ring::spawn(async move { seeing.see_ends().await });
            for _ in 0..CROWD {
                assert!(!turn.goes_together());
            }
            ring::give_way().await;
            assert!(turn.goes_together());
            for _ in 1..MOST {
                turn.goes_together();
            }
            assert!(!turn.goes_together(), "each of them has a buffer");
            ring::give_way().await;
            assert!(turn.goes_together());
            ring::give_way().await;
            assert!(!turn.goes_together(), "it was alone in the last one");
        })
        .unwrap();
    }
}
