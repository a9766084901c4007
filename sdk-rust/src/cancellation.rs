//! How a handler learns that nobody waits for it any more.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// Tells whether a request was cancelled: by its requester, by its timeout, or because a connection is gone.
///
/// Clones tell the same; hand one to whatever does the work.
#[derive(Debug, Clone, Default)]
pub struct Cancellation {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    cancelled: AtomicBool,
    notify: Notify,
}

impl Cancellation {
    pub(crate) fn cancel(&self) {
        self.inner.cancelled.store(true, Ordering::Release);
        self.inner.notify.notify_waiters();
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.load(Ordering::Acquire)
    }

    /// Completes when nobody waits for the answer any more. It may be dropped and asked for again.
    pub async fn cancelled(&self) {
        let notified = self.inner.notify.notified();
        // `notify_waiters` reaches a future from its creation on, so that asking after it misses nothing.
        if !self.is_cancelled() {
            notified.await;
        }
    }
}
