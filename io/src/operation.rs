//! The one way to submit to the ring, and the count of what is in flight on this thread.
//!
//! The count exists because tokio-uring frees the buffers of operations that are still in flight when its driver is
//! dropped, before they are cancelled: the kernel could then write into memory that belongs to somebody else. So
//! [`crate::ring::run`] does not let go of the runtime before the count is zero.

use std::{cell::Cell, io, rc::Rc};

use io_uring::{cqueue, opcode, squeue};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use crate::event::Event;

thread_local! {
    static IN_FLIGHT: Cell<usize> = const { Cell::new(0) };
    static COMPLETED: Cell<usize> = const { Cell::new(0) };
    /// Announced by each completion.
    static COMPLETION: Rc<Event> = Rc::default();
}

/// Operations that this thread's ring has not completed yet.
pub(crate) fn in_flight() -> usize {
    IN_FLIGHT.get()
}

/// Operations of this thread that have completed, visits not among them.
pub(crate) fn completed() -> usize {
    COMPLETED.get()
}

/// Waits until others have completed than when [`completed`] returned `seen`. Only one task may wait.
pub(crate) async fn completed_since(seen: usize) {
    let completion = COMPLETION.with(Rc::clone);
    while completed() == seen {
        completion.wait().await;
    }
}

/// Submits an operation and waits for its completion: what the kernel returned, and the data that was lent to it.
///
/// # Safety
/// Every pointer and descriptor in `entry` must stay valid for as long as `data` exists, wherever it is moved.
#[allow(unsafe_code, reason = "the caller vouches for the pointers in the entry")]
pub(crate) async unsafe fn submit<D: Unpin + 'static>(data: D, entry: squeue::Entry) -> (io::Result<u32>, D) {
    let lent = Lent { data, _token: Token::new() };
    let output = UnsubmittedOneshot::new(lent, TakeBack(std::marker::PhantomData), entry).submit().await;
    COMPLETED.set(COMPLETED.get().wrapping_add(1));
    COMPLETION.with(|completion| completion.set());
    output
}

/// Waits for one visit to the kernel.
pub(crate) async fn visit() {
    let lent = Lent { data: (), _token: Token::new() };
    let nothing = opcode::Nop::new().build();
    let (_, ()) = UnsubmittedOneshot::new(lent, TakeBack(std::marker::PhantomData), nothing).submit().await;
}

/// Data in the kernel's hands. If the operation's future is dropped, tokio-uring keeps it until the completion.
struct Lent<D> {
    data: D,
    _token: Token,
}

struct TakeBack<D>(std::marker::PhantomData<D>);

impl<D> OneshotOutputTransform for TakeBack<D> {
    type Output = (io::Result<u32>, D);
    type StoredData = Lent<D>;

    fn transform_oneshot_output(self, lent: Lent<D>, completion: cqueue::Entry) -> Self::Output {
        let result = completion.result();
        let result = u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()));
        (result, lent.data)
    }
}

/// One operation in flight.
struct Token;

impl Token {
    fn new() -> Self {
        IN_FLIGHT.set(IN_FLIGHT.get() + 1);
        Self
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        IN_FLIGHT.set(IN_FLIGHT.get() - 1);
    }
}
