//! The client's own task: it opens connections, moves bytes, lets time pass, and calls the sink.

use std::{
    future::{pending, poll_fn},
    io, mem,
    panic::{self, AssertUnwindSafe},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Instant,
};

use ringpost_client::Error;
use ringpost_protocol::{Code, message::ServerMessage, secure::SecureKey, time::Time};
use tokio::{
    sync::watch,
    time::{Sleep, sleep_until},
};

use super::{
    Client, CompletionSink,
    dial::{Dialed, dial},
    halves::{for_sink, for_task},
    shared::{Batch, Parting, Turn},
    socket::{FAREWELL_TIMEOUT, Receiver, Sender, part},
};
use crate::Address;

/// With more tasks than this that may speak, it is worth letting them do so before a write.
const CROWD: usize = 4;
/// How often a socket is read that a sink watches, before time passes: whoever sends more is not waited for.
const LAST_READS: usize = 64;

/// Runs until the client is closed.
pub(super) async fn run(mut driver: Driver, address: Address) {
    let mut alarm = Alarm::new();
    loop {
        let turn = driver.turn();
        if turn.closed {
            let unsent_bytes = parted(driver.parting.take()).await;
            driver.client.shared.left_unsent(unsent_bytes);
            return;
        }
        if turn.wanted.connect {
            if let Some(dialed) = driver.connect(&address, &mut alarm).await {
                driver.serve(dialed, &mut alarm).await;
            }
            continue;
        }
        driver.sleep(&mut alarm).await;
    }
}

/// What the task works with. It exists before the task does: a runtime that ends before the first poll ends the client
/// too.
pub(super) struct Driver {
    client: Client,
    key: Option<SecureKey>,
    sink: Arc<dyn CompletionSink>,
    batch: Batch,
    messages: Vec<ServerMessage>,
    /// The goodbye of the last connection, which goes on beside everything else.
    parting: Option<Goodbye>,
}

/// Gives the bytes that were not taken, when the connection is gone.
type Goodbye = watch::Receiver<Option<usize>>;

/// Waits until the last connection is gone. A goodbye that was dropped with its runtime has left nothing to wait for.
async fn parted(goodbye: Option<Goodbye>) -> usize {
    let Some(mut goodbye) = goodbye else { return 0 };
    goodbye.wait_for(Option::is_some).await.ok().and_then(|unsent_bytes| *unsent_bytes).unwrap_or(0)
}

impl Driver {
    pub(super) fn new(client: Client, key: Option<SecureKey>, sink: Arc<dyn CompletionSink>) -> Self {
        Self { client, key, sink, batch: Batch::default(), messages: Vec::new(), parting: None }
    }

    /// Lets time pass and hands out what there is. No lock is held while the sink runs but the one of the order.
    fn turn(&mut self) -> Turn {
        let shared = &self.client.shared;
        let mut order = shared.reading.order();
        // What has come in time is not too late because nobody has read it yet.
        if let Some(watched) = &mut *order
            && shared.is_due()
        {
            for _ in 0..LAST_READS {
                if !watched.read(&self.client, shared) {
                    break;
                }
            }
        }
        let turn = shared.turn(&mut self.batch);
        self.batch.hand_out(&self.client, &*self.sink);
        turn
    }

    fn hand_out(&mut self) {
        let _order = self.client.shared.reading.order();
        self.batch.hand_out(&self.client, &*self.sink);
    }

    /// Sleeps without a connection.
    async fn sleep(&self, alarm: &mut Alarm) {
        if let Some(until) = self.client.shared.may_sleep(false) {
            alarm.set(self.client.shared.instant(until));
            tokio::select! {
                () = self.client.shared.woken() => {}
                () = alarm.rings() => {}
            }
        }
    }

    /// Opens a connection; meanwhile time passes, and the client may change its mind.
    ///
    /// The goodbye of the connection before comes first: a server that welcomes the session again would cut that one
    /// off, with the answers that are still on their way.
    async fn connect(&mut self, address: &Address, alarm: &mut Alarm) -> Option<Dialed> {
        let (goodbye, key) = (self.parting.clone(), self.key.clone());
        let mut dialing = pin!(async {
            parted(goodbye).await;
            dial(address, key.as_ref()).await
        });
        loop {
            let turn = self.turn();
            if turn.wanted.disconnect.is_some() {
                return None;
            }
            let shared = &self.client.shared;
            let until = shared.may_sleep(false).unwrap_or(Time::ZERO);
            alarm.set(shared.instant(until));
            tokio::select! {
                biased;
                outcome = &mut dialing => match outcome {
                    Ok(dialed) => return Some(dialed),
                    Err(error) => {
                        tracing::debug!(%address, %error, "no connection");
                        shared.with(|client, now| client.turned_away(error, now));
                        return None;
                    }
                },
                () = shared.woken() => {}
                () = alarm.rings() => {}
            }
        }
    }

    /// Says goodbye beside everything else, for 2 s or, in a client that drains, until its deadline.
    fn part(&mut self, sender: Sender, receiver: Receiver) {
        let shared = &self.client.shared;
        let drained = shared.with(|client, _| client.draining()).map(|until| shared.instant(until));
        let soon = Instant::now() + FAREWELL_TIMEOUT;
        let latest = drained.map_or(soon, |drained| drained.max(soon));
        let (parted, parting) = watch::channel(None);
        self.parting = Some(parting);
        tokio::spawn(async move {
            let unsent_bytes = part(sender, receiver, latest.into()).await;
            parted.send_replace(Some(unsent_bytes));
        });
    }

    /// Speaks on a connection until either side ends it.
    async fn serve(&mut self, dialed: Dialed, alarm: &mut Alarm) {
        let (sealer, opener) = dialed.records.unzip();
        let watched = self.sink.watcher().is_some();
        let halves = if watched { for_sink(dialed.stream) } else { Ok(for_task(dialed.stream)) };
        let (reading, writing) = match halves {
            Ok(halves) => halves,
            Err(error) => return self.unusable(&error),
        };
        let (mut receiver, mut sender) = (Some(Receiver::new(reading, opener)), Sender::new(writing, sealer));
        let lender = self.client.shared.clone();
        let lent = lender.lend(sender.socket());
        if watched
            && let Some(receiver) = receiver.take()
            && let Err(error) = lender.reading.lend(receiver, &self.sink)
        {
            return self.unusable(&error);
        }
        self.client.shared.with(|client, now| client.connected(now));
        let reason = loop {
            let turn = self.turn();
            if let Some(reason) = lender.reading.lost() {
                break reason;
            }
            if turn.speakers > CROWD {
                others_first().await;
            }
            let shared = self.client.shared.clone();
            if turn.wanted.disconnect == Some(Parting::AtOnce) {
                return shared.discard_outgoing();
            }
            if sender.is_idle() || turn.wanted.disconnect.is_some() {
                let (waiting, written) = sender.queues();
                shared.take_outgoing(waiting, written);
            }
            if turn.wanted.disconnect.is_some() {
                let receiver = receiver.or_else(|| lender.reading.take_back());
                drop(lent);
                return match receiver.map(Receiver::returned) {
                    Some(Ok(receiver)) => self.part(sender, receiver),
                    // The runtime ends, or there are no more descriptors: there is no order to part in.
                    _ => shared.discard_outgoing(),
                };
            }
            if let Err(error) = sender.write() {
                break format!("writing to the server: {error}");
            }
            // More may have come while this was written: then the next turn, and no sleep.
            let Some(until) = shared.may_sleep(sender.is_idle()) else { continue };
            alarm.set(shared.instant(until));
            tokio::select! {
                biased;
                got = read(&mut receiver) => match got {
                    Ok((receiver, false)) => break receiver.end().to_owned(),
                    Ok((receiver, true)) => {
                        // What came before bytes that are no frames still counts.
                        let decoded = receiver.decode(&mut self.messages);
                        shared.receive(&mut self.messages);
                        if let Err(error) = decoded {
                            break format!("the server sent what cannot be understood: {error}");
                        }
                    }
                    Err(error) => break format!("reading from the server: {error}"),
                },
                writable = sender.writable() => if let Err(error) = writable {
                    break format!("writing to the server: {error}");
                },
                () = shared.woken() => {}
                () = alarm.rings() => {}
            }
        };
        tracing::debug!(reason, "the connection is lost");
        // What was read before still counts.
        if let Some(mut receiver) = receiver.or_else(|| lender.reading.take_back()) {
            while receiver.has_frames() && receiver.decode(&mut self.messages).is_ok() {}
        }
        self.client.shared.receive(&mut self.messages);
        self.client.shared.discard_outgoing();
        self.client.shared.with(|client, now| client.disconnected(reason, now));
    }

    /// A connection that was opened, and that the system then lets us do nothing with.
    fn unusable(&self, error: &io::Error) {
        let error = Error::new(Code::Connect, format!("watching the connection's socket: {error}"));
        self.client.shared.with(|client, now| client.turned_away(error, now));
    }
}

/// Reads, unless that is a sink's to do.
async fn read(receiver: &mut Option<Receiver>) -> io::Result<(&mut Receiver, bool)> {
    match receiver {
        Some(receiver) => {
            let read = receiver.read().await?;
            Ok((receiver, read))
        }
        None => pending().await,
    }
}

/// However the task ends, also with its runtime: nobody waits for it any longer.
impl Drop for Driver {
    fn drop(&mut self) {
        self.client.close();
        // It may be the sink that panicked. It is still given the rest, but a second panic while the first one unwinds
        // would end the process.
        let rest: [fn(&mut Self); 2] = [Self::hand_out, |driver| {
            driver.turn();
        }];
        for step in rest {
            if panic::catch_unwind(AssertUnwindSafe(|| step(self))).is_err() {
                tracing::error!("the completion sink panicked: it is not given the rest of this batch");
                self.batch = Batch::default();
            }
        }
        self.client.shared.end();
    }
}

/// Lets the tasks run that are ready: those that were just given something, and those beside the one that woke this task.
/// What they say leaves in one write.
///
/// Unlike `yield_now` it does not visit the kernel in between: the order of the scheduler's queue is all that is wanted.
async fn others_first() {
    let mut queued = false;
    poll_fn(|cx| {
        if mem::replace(&mut queued, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A timer that is only set again when it must ring earlier than it would, or has rung.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    rung: bool,
}

impl Alarm {
    fn new() -> Self {
        Self { sleep: Box::pin(sleep_until(Instant::now().into())), rung: true }
    }

    fn set(&mut self, at: Instant) {
        if self.rung || at < self.sleep.deadline().into_std() {
            self.sleep.as_mut().reset(at.into());
            self.rung = false;
        }
    }

    async fn rings(&mut self) {
        self.sleep.as_mut().await;
        self.rung = true;
    }
}
