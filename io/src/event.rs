//! Waking a task of the same thread.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Poll, Waker},
};

/// Something that one task waits for and others of the same thread announce.
///
/// It remembers one announcement: set before the wait, the wait ends at once. Only one task may wait.
#[derive(Debug, Default)]
pub struct Event {
    set: Cell<bool>,
    waiting: Cell<bool>,
    /// Kept from wait to wait, so that waiting costs no reference count.
    waker: RefCell<Option<Waker>>,
}

impl Event {
    /// Announces.
    pub fn set(&self) {
        self.set.set(true);
        if self.waiting.replace(false)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// Waits for the next announcement, or takes the one that is there. May be dropped at any time.
    pub async fn wait(&self) {
        poll_fn(|context| {
            if self.set.replace(false) {
                self.waiting.set(false);
                return Poll::Ready(());
            }
            self.waiting.set(true);
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::ring::{self, RingConfig};

    /// An announcement is not lost, whether it comes before the wait or during it, and several are one.
    #[test]
    fn remembers_one_announcement() {
        ring::run(&RingConfig { entries: 8, ..RingConfig::default() }, async {
            let event = Rc::new(Event::default());
            event.set();
            event.set();
            event.wait().await;
            let announcer = event.clone();
            let task = ring::spawn(async move { announcer.set() });
            event.wait().await;
            task.join().await.unwrap();
        })
        .unwrap();
    }
}
