//! The client without futures: for bindings to other languages, and for what is faster without a task per request.
//!
//! [`Client`] takes requests, registrations and answers from any thread and returns at once; one task of the runtime
//! moves the bytes. What comes back is given to a [`CompletionSink`] in batches, by that task: the requests of many
//! callers leave in shared writes, and the outcomes of a shared read come in one call.
//!
//! The futures of [`crate::Client`] are one such sink.
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//! use ringpost::{Address, raw};
//!
//! struct Printer;
//!
//! impl raw::CompletionSink for Printer {
//!     fn complete(&self, _client: &raw::Client, batch: &mut Vec<raw::Completion>) {
//!         for end in batch.drain(..) {
//!             println!("request {}: {:?}", end.token, end.result);
//!         }
//!     }
//!     fn deliver(&self, _client: &raw::Client, _batch: &mut Vec<raw::Delivery>) {}
//!     fn notice(&self, _client: &raw::Client, _notice: raw::Notice) {}
//! }
//!
//! # async fn example() -> Result<(), ringpost::Error> {
//! let client = raw::Client::new(raw::ClientConfig::default(), Address::parse("localhost")?, Arc::new(Printer))?;
//! client.start();
//! let content = raw::Content::from_parts(b"greet", b"", b"", b"\"you\"");
//! client.request(raw::RequestSpec { content, ..raw::RequestSpec::default() }, 1)?;
//! client.drain(Duration::from_secs(10));
//! client.ended().await;
//! # Ok(()) }
//! ```

mod dial;
mod driver;
mod halves;
mod reading;
mod shared;
mod socket;

use std::{io, os::fd::BorrowedFd, sync::Arc, time::Duration};

use bytes::Bytes;
use ringpost_client::Error;
pub use ringpost_client::{
    ClientConfig, Completion, Counters, Delivery, DeliveryKey, Event, Info, RegistrationId, RequestKey,
    RequestSpec, Unclaimed, UnclaimedKey,
};
pub use ringpost_protocol::{
    BadHeaders, Content, Headers, encode_headers,
    message::{RequestFlags, Verdict},
    secure::SecureKey,
};
use ringpost_protocol::{Code, time::Time};
use tokio::runtime::Handle;

pub(crate) use self::shared::ROOM_BYTES;
use self::{driver::Driver, shared::Shared};
use crate::Address;

/// Takes what comes back. Called by the client's own task, or within [`Client::read`], one call at a time, with no lock held
/// that a call of the client needs but [`Client::read`]: it may make all others. It must neither block nor panic: while it runs
/// nothing is sent or received, and a panic ends the client.
pub trait CompletionSink: Send + Sync + 'static {
    /// Requests and legs that ended. Take them out of the batch; its memory is used again.
    fn complete(&self, client: &Client, batch: &mut Vec<Completion>);

    /// Requests for handlers. Each of them must be answered with [`Client::answer`] at some time.
    fn deliver(&self, client: &Client, batch: &mut Vec<Delivery>);

    /// Anything else that happened. The cancellation of a delivery comes behind the delivery, and what a handler says
    /// before the outcome.
    fn notice(&self, client: &Client, notice: Notice);

    /// A sink that watches the client's socket says so here.
    fn watcher(&self) -> Option<&dyn Watcher> {
        None
    }
}

/// A sink with a thread of its own that waits for descriptors anyway, as event loops do. It watches the client's socket, and
/// calls [`Client::read`] whenever that is readable: what came is then handed out by that very thread, which the client's task
/// would have to wake otherwise. The task still reads when the client's next deadline comes, for a thread that is busy: so
/// pings are answered, and nothing that was in time is taken for late.
pub trait Watcher {
    /// A connection is open: watch its socket, level-triggered, until [`Watcher::unwatch`].
    ///
    /// # Errors
    /// What the system says against it. The connection is given up then.
    fn watch(&self, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// The connection ends, or its stream did: its descriptor may soon be another's.
    fn unwatch(&self, socket: BorrowedFd<'_>);
}

/// What a [`CompletionSink`] is told beside completions and deliveries.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// A handler is at work on the request with this token, and says this.
    Progress {
        /// What the application called the request.
        token: u64,
        /// What the handler says.
        content: Content,
    },
    /// Nobody waits for the answer to this delivery any more. It must be answered all the same.
    CancelDelivery(DeliveryKey),
    /// An outcome that was kept for an earlier process; see [`ClientConfig::max_unclaimed`]. [`Client::claim`] it once it
    /// is in safe hands.
    Unclaimed(Unclaimed),
    /// The actions that have handlers now: JSON text of an array of strings.
    Receivers(Bytes),
    /// The broker took a registration; again after each reconnect.
    Registered(RegistrationId),
    /// The broker refused a registration, which is forgotten.
    RegistrationFailed(RegistrationId, Error),
    /// Nothing more will be delivered for this registration.
    Deregistered(RegistrationId),
    /// Something happened to the connection.
    Event(Event),
}

/// What a client that was drained could not finish before its deadline, or because its connection was lost meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Drained {
    /// Requests that ended with the client instead of with their outcome.
    pub requests: usize,
    /// Requests that handlers held: what they answer goes nowhere.
    pub handlers: usize,
    /// Bytes, of the last answers for example, that the server did not take.
    pub unsent_bytes: usize,
}

impl Drained {
    /// Whether nothing was cut off.
    pub fn is_complete(&self) -> bool {
        *self == Self::default()
    }
}

pub(crate) fn no_random_bytes(error: getrandom::Error) -> Error {
    Error::new(Code::Connect, format!("the system gives no random bytes: {error}"))
}

/// Several calls as one: see [`Client::batch`].
#[derive(Debug)]
pub struct Calls<'a> {
    core: &'a mut ringpost_client::Client,
    now: Time,
    unsent_bytes: usize,
}

impl Calls<'_> {
    /// As [`Client::request`].
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn request(&mut self, spec: RequestSpec, token: u64) -> Result<RequestKey, Error> {
        self.core.request(spec, token, self.now)
    }

    /// As [`Client::answer`].
    pub fn answer(&mut self, key: DeliveryKey, verdict: Verdict, content: Content) -> bool {
        self.core.answer(key, verdict, content, self.now)
    }

    /// As [`Client::has_room`], of what was said before this batch.
    pub fn has_room(&self) -> bool {
        self.unsent_bytes < ROOM_BYTES
    }
}

/// A connection that is kept, without futures. Clones share it.
///
/// Dropping it closes nothing: call [`Client::close`] or [`Client::drain`].
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

impl Client {
    /// Spawns the task that moves the bytes, on the current tokio runtime. It does nothing before [`Client::start`].
    ///
    /// [`ClientConfig::instance`] may be left 0: it is drawn here.
    ///
    /// # Errors
    /// [`Code::Unsupported`] outside a tokio runtime; [`Code::Connect`] if the system gives no random bytes.
    pub fn new(config: ClientConfig, address: Address, sink: Arc<dyn CompletionSink>) -> Result<Self, Error> {
        Self::with_key(config, address, None, sink)
    }

    /// The same, with a secure key if there is one: then only a server that has it too is spoken to.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_key(
        mut config: ClientConfig,
        address: Address,
        key: Option<SecureKey>,
        sink: Arc<dyn CompletionSink>,
    ) -> Result<Self, Error> {
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(
                Code::Unsupported,
                "a client needs a tokio runtime with IO and time: create it inside of one",
            )
        })?;
        while config.instance == 0 {
            config.instance = getrandom::u64().map_err(no_random_bytes)?;
        }
        let client = Self { shared: Arc::new(Shared::new(config)) };
        runtime.spawn(driver::run(Driver::new(client.clone(), key, sink), address));
        Ok(client)
    }

    /// Begins to connect; without effect if it has begun.
    pub fn start(&self) {
        self.shared.with(|client, now| client.start(now));
    }

    /// Reads what has come, without waiting, and hands it to the sink before it returns; for a sink that is a [`Watcher`]. The
    /// socket stays readable while it has more.
    pub fn read(&self) {
        if let Some(watched) = self.shared.reading.order().as_mut() {
            watched.read(self, &self.shared);
        }
    }

    /// Makes a request; its outcome comes to the sink under this token.
    ///
    /// It never waits. A caller that can outrun the network asks [`Client::has_room`] first, or holds its number of
    /// open requests within bounds.
    ///
    /// # Errors
    /// As [`ringpost_client::Client::request`]: nothing comes to the sink then.
    pub fn request(&self, spec: RequestSpec, token: u64) -> Result<RequestKey, Error> {
        self.shared.with(|client, now| client.request(spec, token, now))
    }

    /// Makes several calls as one: nobody comes in between, and what they lead to leaves in one write, by this very thread
    /// if the client's own task sleeps. For those who gather what many callers want, outside of that task's runtime; `calls`
    /// must not call the client itself.
    ///
    /// ```no_run
    /// # fn example(client: &ringpost::raw::Client, specs: Vec<ringpost::raw::RequestSpec>) {
    /// client.batch(|calls| {
    ///     for (token, spec) in (0..).zip(specs) {
    ///         if let Err(error) = calls.request(spec, token) {
    ///             println!("request {token} was not made: {error}");
    ///         }
    ///     }
    /// });
    /// # }
    /// ```
    pub fn batch<T>(&self, calls: impl FnOnce(&mut Calls<'_>) -> T) -> T {
        self.shared.with_and_write(|core, now, unsent_bytes| calls(&mut Calls { core, now, unsent_bytes }))
    }

    /// Ends a request; it completes with [`Code::Cancelled`], unless it ended before.
    pub fn cancel(&self, key: RequestKey) -> bool {
        self.shared.with(|client, now| client.cancel(key, now))
    }

    /// Whether less than 4 MiB of what was said on this connection is unsent.
    pub fn has_room(&self) -> bool {
        self.shared.has_room()
    }

    /// Waits for that. Others may take the room before the caller does.
    pub async fn room(&self) {
        self.shared.room().await;
    }

    /// Answers a delivery. `false` if it is not held any more.
    pub fn answer(&self, key: DeliveryKey, verdict: Verdict, content: Content) -> bool {
        self.shared.with(|client, now| client.answer(key, verdict, content, now))
    }

    /// Says that a handler is still at work. `false` if nobody waits for it.
    pub fn progress(&self, key: DeliveryKey, content: Content) -> bool {
        self.shared.with(|client, _| client.progress(key, content))
    }

    /// Offers to handle an action, holding at most `credit` requests at once (0: the server's default).
    ///
    /// # Errors
    /// As [`ringpost_client::Client::register`]. The broker's own word comes as a [`Notice`].
    pub fn register(&self, action: &str, credit: u32) -> Result<RegistrationId, Error> {
        self.shared.with(|client, _| client.register(action, credit))
    }

    /// Handles an action no more; deliveries may still come until [`Notice::Deregistered`].
    pub fn deregister(&self, id: RegistrationId) {
        self.shared.with(|client, _| client.deregister(id));
    }

    /// Changes how many requests a registration holds at once.
    pub fn set_credit(&self, id: RegistrationId, credit: u32) {
        self.shared.with(|client, _| client.set_credit(id, credit));
    }

    /// Says that an outcome of [`Notice::Unclaimed`] is in safe hands. `false` if that is not news.
    pub fn claim(&self, key: UnclaimedKey) -> bool {
        self.shared.with(|client, now| client.claim(key, now))
    }

    /// Whether to be told the receivers.
    pub fn watch_receivers(&self, watch: bool) {
        self.shared.with(|client, _| client.watch_receivers(watch));
    }

    /// Takes nothing new, finishes what is open, then closes; after `deadline` it closes anyway. Called again, the
    /// earlier end counts. [`Client::ended`] tells when that is over, and [`Client::drained`] what was cut off.
    pub fn drain(&self, deadline: Duration) {
        self.shared.with(|client, now| client.drain(now + deadline, now));
    }

    /// What was cut off, after [`Client::drain`].
    pub fn drained(&self) -> Drained {
        self.shared.drained()
    }

    /// Closes at once.
    pub fn close(&self) {
        self.shared.with(|client, _| client.close());
    }

    /// Waits until the client is closed, everything was given to the sink, and the socket is gone.
    pub async fn ended(&self) {
        self.shared.ended().await;
    }

    /// Requests without an outcome.
    pub fn open_requests(&self) -> usize {
        self.shared.with(|client, _| client.open_requests())
    }

    /// What was dropped or ignored so far.
    pub fn counters(&self) -> Counters {
        self.shared.with(|client, _| client.counters())
    }
}
