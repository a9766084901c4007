//! The futures that wait for an outcome: a slot each, used again and again, so that a request allocates nothing here.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use ringpost_client::Completion;
use ringpost_protocol::Content;

/// Called with what a handler says while it is at work.
pub(crate) type OnProgress = Arc<dyn Fn(Bytes) + Send + Sync>;

#[derive(Default)]
struct Slot {
    /// Counts uses: a token of an earlier use means nobody.
    generation: u32,
    waker: Option<Waker>,
    /// Of a broadcast, those that ended before the last.
    legs: Vec<Completion>,
    last: Option<Completion>,
    on_progress: Option<OnProgress>,
}

#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<u32>,
}

/// All slots. Nothing of the application's is called or dropped under their lock. A token is a slot's index in its lower half and the slot's generation in its upper.
#[derive(Default)]
pub(crate) struct Waiters {
    slots: Mutex<Slots>,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for a future that is about to wait.
    pub(crate) fn enter(&self, cx: &Context<'_>, on_progress: Option<OnProgress>) -> u64 {
        let mut slots = self.lock();
        let index = match slots.free.pop() {
            Some(index) => index,
            None => {
                slots.all.push(Slot::default());
                (slots.all.len() - 1) as u32
            }
        };
        let slot = &mut slots.all[index as usize];
        slot.waker = Some(cx.waker().clone());
        slot.on_progress = on_progress;
        token(index, slot.generation)
    }

    /// The last completion with all before it, and the slot is free again; or else the waker is kept.
    pub(crate) fn poll(&self, token: u64, cx: &Context<'_>) -> Poll<(Completion, Vec<Completion>)> {
        let mut slots = self.lock();
        let Some(slot) = slots.of(token) else { return Poll::Pending };
        match slot.last.take() {
            Some(last) => {
                let legs = mem::take(&mut slot.legs);
                let left = slots.leave(token);
                drop(slots);
                drop(left);
                Poll::Ready((last, legs))
            }
            None => {
                if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    let earlier = slot.waker.replace(cx.waker().clone());
                    drop(slots);
                    drop(earlier);
                }
                Poll::Pending
            }
        }
    }

    /// The future does not wait any more. `true` if its outcome had not come.
    pub(crate) fn leave(&self, token: u64) -> bool {
        let mut slots = self.lock();
        let left = slots.leave(token);
        drop(slots);
        left.is_some_and(|slot| slot.last.is_none())
    }

    /// Brings outcomes to those who wait for them. `wakers` is scratch space.
    pub(crate) fn complete(&self, batch: &mut Vec<Completion>, wakers: &mut Vec<Waker>) {
        let mut slots = self.lock();
        for completion in batch.drain(..) {
            let Some(slot) = slots.of(completion.token) else { continue };
            if completion.last {
                slot.last = Some(completion);
                wakers.extend(slot.waker.take());
            } else {
                slot.legs.push(completion);
            }
        }
        drop(slots);
        wakers.drain(..).for_each(Waker::wake);
    }

    /// Brings a handler's word to the one who waits for it.
    pub(crate) fn progress(&self, token: u64, content: &Content) {
        let callback = self.lock().of(token).and_then(|slot| slot.on_progress.clone());
        if let Some(callback) = callback {
            // It is the user's, and must not take the client's own task with it.
            let called = catch_unwind(AssertUnwindSafe(|| callback(content.payload_bytes())));
            if called.is_err() {
                tracing::error!("a request's progress callback panicked");
            }
        }
    }
}

impl Slots {
    fn of(&mut self, token: u64) -> Option<&mut Slot> {
        self.all.get_mut(token as u32 as usize).filter(|slot| slot.generation == (token >> 32) as u32)
    }

    /// Frees a slot. The caller drops what was in it without the lock: callback and waker are the application's, and
    /// what they hold may be a request that wants its own slot freed.
    fn leave(&mut self, token: u64) -> Option<Slot> {
        let slot = self.of(token)?;
        let next = Slot { generation: slot.generation.wrapping_add(1), ..Slot::default() };
        let left = mem::replace(slot, next);
        self.free.push(token as u32);
        Some(left)
    }
}

fn token(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}
