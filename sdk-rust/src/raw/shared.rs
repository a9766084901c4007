//! What callers on any thread and the client's own task share: the core, and what it wants sent or handed out.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Buf;
use ringpost_client::{Client, ClientConfig, Completion, Cut, Delivery, Output};
use ringpost_protocol::{Outgoing, Segment, frame::encode_client, message::ServerMessage, time::Time};
use tokio::sync::{Notify, watch};

use super::{CompletionSink, Drained, Notice, halves::WriteHalf, reading::Reading, socket::WRITE_SEGMENTS};

/// Unsent bytes over which callers are asked to wait.
pub(crate) const ROOM_BYTES: usize = 4 << 20;
/// Send buffers that are kept for the next turn.
const SPARE_BUFFERS: usize = 2;
/// A buffer that grew beyond this is not kept.
const SPARE_BYTES: usize = 1 << 20;

/// Outputs on their way to the sink, in batches.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// What handlers said meanwhile. It comes before the outcomes, as it did on the wire: nobody listens behind them.
    pub(super) progress: Vec<Notice>,
    pub(super) completions: Vec<Completion>,
    pub(super) deliveries: Vec<Delivery>,
    pub(super) notices: Vec<Notice>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.progress.is_empty()
            && self.completions.is_empty()
            && self.deliveries.is_empty()
            && self.notices.is_empty()
    }

    /// Gives all of it to the sink.
    pub(super) fn hand_out(&mut self, client: &super::Client, sink: &dyn CompletionSink) {
        for progress in self.progress.drain(..) {
            sink.notice(client, progress);
        }
        if !self.completions.is_empty() {
            sink.complete(client, &mut self.completions);
            self.completions.clear();
        }
        if !self.deliveries.is_empty() {
            sink.deliver(client, &mut self.deliveries);
            self.deliveries.clear();
        }
        for notice in self.notices.drain(..) {
            sink.notice(client, notice);
        }
    }
}

/// How a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    /// What was to be sent leaves first.
    InOrder,
    /// The server is silent.
    AtOnce,
}

/// What the core wants done to the connection itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    pub(super) connect: bool,
    pub(super) disconnect: Option<Parting>,
}

impl Wanted {
    /// Takes what is to be done now. The next connection has to wait for the end of the one before it: where both are
    /// wanted, it stays.
    fn take_next(&mut self) -> Self {
        let ends = self.disconnect.is_some();
        let now = Self { connect: self.connect && !ends, disconnect: self.disconnect };
        *self = Self { connect: self.connect && ends, disconnect: None };
        now
    }
}

/// The task sleeps until then, or until it is woken.
#[derive(Debug, Clone, Copy)]
struct Asleep {
    until: Time,
    /// Whether new bytes are a reason to wake it: while the socket takes none, they are not.
    can_write: bool,
}

#[derive(Debug)]
struct State {
    client: Client,
    outgoing: Outgoing,
    batch: Batch,
    wanted: Wanted,
    /// `None` while the task is awake and will look by itself.
    asleep: Option<Asleep>,
    /// The open connection, for callers that write themselves.
    socket: Option<Arc<WriteHalf>>,
    /// What such a caller began to write and the socket did not take.
    unwritten: VecDeque<Segment>,
    /// Bytes of the last goodbye that the server did not take.
    unsent_bytes: usize,
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    wake: Notify,
    /// Callers that wait for room are told here.
    room: Notify,
    /// Taken before `state`, and never while that is held.
    pub(super) reading: Reading,
    origin: Instant,
    ended: watch::Sender<bool>,
}

/// What the task finds at the start of a turn.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) wanted: Wanted,
    pub(super) closed: bool,
    /// Tasks that may be about to speak: those with open requests and deliveries, and those that get an outcome now.
    pub(super) speakers: usize,
}

impl Shared {
    pub(super) fn new(config: ClientConfig) -> Self {
        Self {
            state: Mutex::new(State {
                client: Client::new(config),
                outgoing: Outgoing::new(),
                batch: Batch::default(),
                wanted: Wanted::default(),
                asleep: None,
                socket: None,
                unwritten: VecDeque::new(),
                unsent_bytes: 0,
                spare: Vec::new(),
            }),
            wake: Notify::new(),
            room: Notify::new(),
            reading: Reading::default(),
            origin: Instant::now(),
            ended: watch::Sender::new(false),
        }
    }

    pub(super) fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    /// The instant of a point in the core's time; far ahead for "never".
    pub(super) fn instant(&self, time: Time) -> Instant {
        let far = std::time::Duration::from_secs(86_400 * 365);
        self.origin + time.since(Time::ZERO).min(far)
    }

    /// A panic while the lock was held would be a bug here; what it protects is still the best there is.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the core, and wakes the task if there is something for it to do that it does not know of.
    pub(super) fn with<T>(&self, call: impl FnOnce(&mut Client, Time) -> T) -> T {
        let now = self.now();
        let mut state = self.lock();
        let result = call(&mut state.client, now);
        state.settle();
        let wake = state.must_wake();
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        result
    }

    /// The same for a caller that has a thread of its own and gathers its calls: what they lead to it writes itself, if the
    /// task sleeps and the socket takes it. Waking the task for that costs more than the writing, and time.
    pub(super) fn with_and_write<T>(&self, call: impl FnOnce(&mut Client, Time, usize) -> T) -> T {
        let now = self.now();
        let mut state = self.lock();
        let unsent_bytes = state.outgoing.len();
        let result = call(&mut state.client, now, unsent_bytes);
        state.settle();
        state.write();
        let wake = state.must_wake();
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        result
    }

    /// Where callers may write, until what is given here is dropped.
    pub(super) fn lend(&self, socket: Option<Arc<WriteHalf>>) -> Lent<'_> {
        self.lock().socket = socket;
        Lent(self)
    }

    /// Gives the core what was received: the messages that a read completed, or none.
    pub(super) fn receive(&self, messages: &mut Vec<ServerMessage>) {
        let now = self.now();
        let mut state = self.lock();
        if messages.is_empty() {
            state.client.heard(now);
        }
        for message in messages.drain(..) {
            state.client.received(message, now);
        }
        state.settle();
    }

    /// The same by another thread than the task's, which hands out what comes of it itself, and writes it. `batch` must be
    /// empty.
    pub(super) fn receive_and_write(&self, messages: &mut Vec<ServerMessage>, batch: &mut Batch) {
        let now = self.now();
        let mut state = self.lock();
        state.client.heard(now);
        for message in messages.drain(..) {
            state.client.received(message, now);
        }
        state.settle();
        state.write();
        mem::swap(&mut state.batch, batch);
        let wake = state.must_wake();
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Whether the core's next deadline is over.
    pub(super) fn is_due(&self) -> bool {
        let now = self.now();
        self.lock().client.next_deadline().is_some_and(|deadline| deadline <= now)
    }

    /// A turn of the task: lets time pass, and takes what there is to do. `batch` must be empty.
    pub(super) fn turn(&self, batch: &mut Batch) -> Turn {
        let now = self.now();
        let mut state = self.lock();
        state.asleep = None;
        if state.client.next_deadline().is_some_and(|deadline| deadline <= now) {
            state.client.handle_timeout(now);
            state.settle();
        }
        mem::swap(&mut state.batch, batch);
        Turn {
            wanted: state.wanted.take_next(),
            closed: state.client.closed().is_some(),
            speakers: state.client.open_requests() + state.client.held_deliveries() + batch.completions.len(),
        }
    }

    /// Takes what is to be written, and gives back buffers that were.
    pub(super) fn take_outgoing(&self, into: &mut impl Extend<Segment>, written: &mut Vec<Vec<u8>>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        while let Some(mut buffer) = written.pop() {
            if state.spare.len() < SPARE_BUFFERS && buffer.capacity() <= SPARE_BYTES {
                buffer.clear();
                state.spare.push(buffer);
            }
        }
        into.extend(state.unwritten.drain(..));
        into.extend(std::iter::from_fn(|| state.outgoing.pop(|| state.spare.pop().unwrap_or_default())));
        // There is room now. Wakers are the application's: they are called without the lock.
        drop(guard);
        self.room.notify_waiters();
    }

    /// The socket is gone: what was to be written on it is nobody's.
    pub(super) fn discard_outgoing(&self) {
        let mut state = self.lock();
        state.outgoing.clear();
        state.unwritten.clear();
        drop(state);
        self.room.notify_waiters();
    }

    /// Until when the task may sleep; `None` if there is something to do first. `can_write`: whether the socket would
    /// take bytes.
    pub(super) fn may_sleep(&self, can_write: bool) -> Option<Time> {
        let mut state = self.lock();
        let idle = state.batch.is_empty()
            && state.wanted == Wanted::default()
            && (!can_write || (state.outgoing.is_empty() && state.unwritten.is_empty()));
        let until = state.client.next_deadline().unwrap_or(Time::NEVER);
        state.asleep = idle.then_some(Asleep { until, can_write });
        idle.then_some(until)
    }

    /// There is something for the task that it must be told of.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until a caller has something for the task.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn has_room(&self) -> bool {
        self.lock().outgoing.len() < ROOM_BYTES
    }

    pub(super) async fn room(&self) {
        loop {
            // `notify_waiters` reaches a future from its creation on, so that asking after it misses nothing.
            let told = self.room.notified();
            if self.has_room() {
                return;
            }
            told.await;
        }
    }

    /// So many bytes could not be written before the connection ended.
    pub(super) fn left_unsent(&self, bytes: usize) {
        self.lock().unsent_bytes = bytes;
    }

    pub(super) fn drained(&self) -> Drained {
        let state = self.lock();
        let Cut { requests, deliveries } = state.client.cut();
        Drained { requests, handlers: deliveries, unsent_bytes: state.unsent_bytes }
    }

    /// The task is over.
    pub(super) fn end(&self) {
        self.discard_outgoing();
        self.ended.send_replace(true);
    }

    pub(super) async fn ended(&self) {
        // The sender lives as long as `self`: the only result is "it is so".
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

impl State {
    /// Sorts what the core wants.
    fn settle(&mut self) {
        while let Some(output) = self.client.poll_output() {
            let notice = match output {
                Output::Send(message) => {
                    encode_client(&message, &mut self.outgoing);
                    continue;
                }
                Output::Complete(completion) => {
                    self.batch.completions.push(completion);
                    continue;
                }
                Output::Deliver(delivery) => {
                    self.batch.deliveries.push(delivery);
                    continue;
                }
                Output::Connect => {
                    self.wanted.connect = true;
                    continue;
                }
                Output::Disconnect => {
                    // A connection that was wanted but not yet begun is not wanted any more.
                    self.wanted = Wanted { connect: false, disconnect: Some(Parting::InOrder) };
                    continue;
                }
                Output::Abort => {
                    self.wanted = Wanted { connect: false, disconnect: Some(Parting::AtOnce) };
                    continue;
                }
                Output::Unclaimed(unclaimed) => Notice::Unclaimed(unclaimed),
                // Only links between servers are told; each leg says it.
                Output::Legs { .. } => continue,
                Output::Progress { token, content } => {
                    self.batch.progress.push(Notice::Progress { token, content });
                    continue;
                }
                Output::CancelDelivery(key) => Notice::CancelDelivery(key),
                Output::Receivers(list) => Notice::Receivers(list),
                Output::Registered(id) => Notice::Registered(id),
                Output::RegistrationFailed(id, error) => Notice::RegistrationFailed(id, error),
                Output::Deregistered(id) => Notice::Deregistered(id),
                Output::Event(event) => Notice::Event(event),
                // Said to servers only, and this is none.
                Output::Peer(_) => continue,
            };
            self.batch.notices.push(notice);
        }
    }

    /// Writes what there is, if that is the caller's to do: while the task sleeps and has written all that it had, nobody
    /// else writes, and the lock keeps callers in order. What the socket does not take the task goes on with.
    fn write(&mut self) {
        let (Some(Asleep { can_write: true, .. }), Some(socket)) = (self.asleep, &self.socket) else {
            return;
        };
        if !self.unwritten.is_empty() {
            return;
        }
        let spare = &mut self.spare;
        while let Some(segment) = self.outgoing.pop(|| spare.pop().unwrap_or_default()) {
            self.unwritten.push_back(segment);
        }
        // An error is the task's to find too.
        while !self.unwritten.is_empty() && write_once(socket, &mut self.unwritten, spare).is_ok() {}
    }

    /// Whether the task sleeps over something; if so it is taken for awake from now on.
    fn must_wake(&mut self) -> bool {
        let Some(Asleep { until, can_write }) = self.asleep else { return false };
        let due = (can_write && !(self.outgoing.is_empty() && self.unwritten.is_empty()))
            || !self.batch.is_empty()
            || self.wanted != Wanted::default()
            || self.client.next_deadline().is_some_and(|deadline| deadline < until);
        if due {
            self.asleep = None;
        }
        due
    }
}

/// One write of the segments; those that the socket took are gone, and their buffers among the spare ones.
fn write_once(
    socket: &WriteHalf,
    segments: &mut VecDeque<Segment>,
    spare: &mut Vec<Vec<u8>>,
) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); WRITE_SEGMENTS];
    let mut used = 0;
    for (slice, segment) in slices.iter_mut().zip(&*segments) {
        *slice = IoSlice::new(segment.as_ref());
        used += 1;
    }
    let mut written = socket.write_now(&slices[..used])?;
    if written == 0 && !segments.is_empty() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    while let Some(first) = segments.pop_front() {
        if written < first.as_ref().len() {
            segments.push_front(behind(first, written));
            break;
        }
        written -= first.as_ref().len();
        if let Segment::Owned(mut buffer) = first
            && spare.len() < SPARE_BUFFERS
            && buffer.capacity() <= SPARE_BYTES
        {
            buffer.clear();
            spare.push(buffer);
        }
    }
    Ok(())
}

/// A segment without its first bytes.
fn behind(segment: Segment, written: usize) -> Segment {
    match segment {
        _ if written == 0 => segment,
        Segment::Owned(mut buffer) => {
            buffer.drain(..written);
            Segment::Owned(buffer)
        }
        Segment::Shared(mut bytes) => {
            bytes.advance(written);
            Segment::Shared(bytes)
        }
    }
}

/// While it is there, others than the task may write on the connection, and read from it.
#[derive(Debug)]
pub(super) struct Lent<'a>(&'a Shared);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.0.lock().socket = None;
        drop(self.0.reading.take_back());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        sync::{Arc, Weak},
        task::{Context, Wake},
    };

    use super::*;

    /// A connection that is wanted in place of another one is not forgotten over the end of that one: so it is when
    /// the task comes late, and the pause between the two is over already.
    #[test]
    fn the_next_connection_waits_for_the_end_of_this_one() {
        let mut wanted = Wanted { connect: true, disconnect: Some(Parting::InOrder) };
        assert_eq!(wanted.take_next(), Wanted { connect: false, disconnect: Some(Parting::InOrder) });
        assert_eq!(wanted.take_next(), Wanted { connect: true, disconnect: None });
        assert_eq!(wanted.take_next(), Wanted::default());
    }

    /// Whatever a waker does when it is called, the client's lock is free.
    #[test]
    fn wakers_may_call_the_client() {
        struct Caller(Weak<Shared>);
        impl Wake for Caller {
            fn wake(self: Arc<Self>) {
                let shared = self.0.upgrade().unwrap();
                assert!(shared.state.try_lock().is_ok());
            }
        }
        let shared = Arc::new(Shared::new(ClientConfig::default()));
        shared.lock().outgoing.tail().resize(ROOM_BYTES, 0);
        let waker = Arc::new(Caller(Arc::downgrade(&shared))).into();
        let mut room = pin!(shared.room());
        assert!(room.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        shared.take_outgoing(&mut Vec::new(), &mut Vec::new());
        assert!(room.poll(&mut Context::from_waker(&waker)).is_ready());
    }
}
