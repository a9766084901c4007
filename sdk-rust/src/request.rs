//! Requests: how they are built, and the futures of their outcomes.

use std::{
    borrow::Cow,
    future::{Future, IntoFuture},
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use ringpost_client::{Completion, Error, RequestKey, RequestSpec};
use ringpost_protocol::{
    Code, Content, Span, encode_headers, limits::MAX_MAX_PAYLOAD_BYTES, message::RequestFlags,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::sleep;

use crate::{Reply, client::Inner, raw::ROOM_BYTES, reply::to_json, waiters::OnProgress};

/// What is asked for; the parameter of [`RequestBuilder`] and [`RequestFuture`].
pub trait Kind: sealed::Sealed {
    /// What a future of this kind gives.
    type Value;

    #[doc(hidden)]
    const FLAGS: RequestFlags;

    /// The value from the last completion and, of a broadcast, those before it.
    #[doc(hidden)]
    fn value(last: Completion, before: Vec<Completion>) -> Result<Self::Value, Error>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::One {}
    impl Sealed for super::Every {}
    impl Sealed for super::Accepted {}
}

/// A request with one reply.
#[derive(Debug)]
pub enum One {}

impl Kind for One {
    type Value = Reply;
    const FLAGS: RequestFlags = RequestFlags(0);

    fn value(last: Completion, _before: Vec<Completion>) -> Result<Reply, Error> {
        reply(last)
    }
}

/// A request that wants no reply; its future gives when the broker has accepted it.
#[derive(Debug)]
pub enum Accepted {}

impl Kind for Accepted {
    type Value = ();
    const FLAGS: RequestFlags = RequestFlags::SEND;

    fn value(last: Completion, _before: Vec<Completion>) -> Result<(), Error> {
        last.result.map(drop)
    }
}

/// A request to every handler of the action, with a reply or an error from each.
#[derive(Debug)]
pub enum Every {}

impl Kind for Every {
    type Value = Vec<Result<Reply, Error>>;
    const FLAGS: RequestFlags = RequestFlags::BROADCAST;

    fn value(last: Completion, before: Vec<Completion>) -> Result<Self::Value, Error> {
        let mut legs = before;
        // No leg ended at the broker: it is the broadcast itself that failed.
        if last.leg.is_none() && legs.iter().all(|leg| leg.leg.is_none()) {
            return Err(match last.result {
                Err(error) => error,
                Ok(_) => {
                    Error::new(Code::Malformed, "the server replied to a broadcast without naming a leg")
                }
            });
        }
        legs.push(last);
        legs.sort_by_key(|leg| leg.leg.map_or(u32::MAX, |leg| leg.index));
        Ok(legs.into_iter().map(reply).collect())
    }
}

fn reply(completion: Completion) -> Result<Reply, Error> {
    completion.result.map(|content| Reply::received(&content, completion.info))
}

/// A request to be made: await it, or say more about it first.
///
/// Nothing is sent before it is awaited (or turned into its future and polled).
#[must_use = "a request is made when it is awaited"]
pub struct RequestBuilder<K> {
    inner: Arc<Inner>,
    /// The action's name, then the data.
    buffer: Vec<u8>,
    name_bytes: usize,
    options: Cow<'static, [u8]>,
    headers: Vec<(String, String)>,
    spec: RequestSpec,
    on_progress: Option<OnProgress>,
    error: Option<Error>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kind> RequestBuilder<K> {
    pub(crate) fn with_json<T: Serialize + ?Sized>(inner: &Arc<Inner>, action: &str, data: &T) -> Self {
        let mut builder = Self::new(inner, action, 128);
        if let Err(error) = serde_json::to_writer(&mut builder.buffer, data) {
            let message = format!("the request's data cannot be written as JSON: {error}");
            builder.error = Some(Error::new(Code::Malformed, message));
        }
        builder
    }

    pub(crate) fn with_bytes(inner: &Arc<Inner>, action: &str, data: &[u8]) -> Self {
        let mut builder = Self::new(inner, action, data.len());
        builder.buffer.extend_from_slice(data);
        builder
    }

    fn new(inner: &Arc<Inner>, action: &str, data_bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(action.len() + data_bytes);
        buffer.extend_from_slice(action.as_bytes());
        Self {
            inner: inner.clone(),
            buffer,
            name_bytes: action.len(),
            options: Cow::Borrowed(&[]),
            headers: Vec::new(),
            spec: RequestSpec { flags: K::FLAGS, ..RequestSpec::default() },
            on_progress: None,
            error: None,
            kind: PhantomData,
        }
    }

    /// How long the broker may keep it. A plain request's is at least its timeout.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.spec.ttl = ttl;
        self
    }

    /// How long to wait for the outcome, with all that comes before it: a connection, and room to send. The handler is
    /// told. Without it, the client's default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.spec.timeout = timeout;
        self
    }

    /// Deliveries at most: more than one lets it go to another handler when one dies over it.
    pub fn max_attempts(mut self, max_attempts: u8) -> Self {
        self.spec.max_attempts = max_attempts;
        self
    }

    /// It must survive crashes of the broker and of handlers.
    pub fn durable(mut self) -> Self {
        self.spec.flags = self.spec.flags.with(RequestFlags::DURABLE);
        self
    }

    /// Of all durable requests to this action under this key only the first runs, until its ttl ends; the others get its
    /// outcome. So what may have been accepted can be asked for again. The key is 1 to 255 bytes long, and it is for durable
    /// requests and sends only: others are refused with it.
    pub fn idempotency_key(self, key: impl Into<String>) -> Self {
        self.header("idempotency-key", key)
    }

    /// Options for the handler, as JSON text.
    pub fn options<T: Serialize + ?Sized>(mut self, options: &T) -> Self {
        match to_json("the request's options", options) {
            Ok(text) => self.options = Cow::Owned(text),
            Err(error) => self.error = Some(error),
        }
        self
    }

    /// A header for the handler, behind those that are there; keys may repeat.
    pub fn header(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((key.into(), value.into()));
        self
    }

    /// Called with what the handler says while it is at work. It runs in the client's own task: it must be short.
    pub fn on_progress(mut self, callback: impl Fn(Bytes) + Send + Sync + 'static) -> Self {
        self.spec.flags = self.spec.flags.with(RequestFlags::PROGRESS);
        self.on_progress = Some(Arc::new(callback));
        self
    }

    fn finish(mut self) -> (Arc<Inner>, Result<RequestSpec, Error>, Option<OnProgress>) {
        let content = match self.error.take() {
            Some(error) => Err(error),
            None => content(self.buffer, self.name_bytes, &self.options, &self.headers),
        };
        let spec = content.map(|content| RequestSpec { content, ..self.spec });
        (self.inner, spec, self.on_progress)
    }
}

impl RequestBuilder<One> {
    /// Makes the request, and reads the reply's data as JSON.
    ///
    /// # Errors
    /// Those of the request, and [`Code::Malformed`] if the data is not of this type.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        self.await?.data()
    }
}

/// Name and data are in the buffer already; options and headers are rare and go behind them.
fn content(
    mut buffer: Vec<u8>,
    name_bytes: usize,
    options: &[u8],
    headers: &[(String, String)],
) -> Result<Content, Error> {
    let data_end = buffer.len();
    if data_end - name_bytes > MAX_MAX_PAYLOAD_BYTES as usize {
        let message = format!("{} bytes of data; no server takes more than 1 GiB", data_end - name_bytes);
        return Err(Error::new(Code::TooLarge, message));
    }
    let mut append = |part: &[u8]| {
        let start = buffer.len();
        buffer.extend_from_slice(part);
        Span::new(start, buffer.len())
    };
    let options = append(options);
    let mut header_span = Span::default();
    if !headers.is_empty() {
        let pairs = headers.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let encoded = encode_headers(pairs).map_err(|error| Error::new(Code::TooLarge, error.to_string()))?;
        header_span = append(&encoded);
    }
    let (name, data) = (Span::new(0, name_bytes), Span::new(name_bytes, data_end));
    Ok(Content::from_spans(buffer.into(), name, Span::default(), options, header_span, data))
}

impl<K: Kind> IntoFuture for RequestBuilder<K> {
    type Output = Result<K::Value, Error>;
    type IntoFuture = RequestFuture<K>;

    fn into_future(self) -> RequestFuture<K> {
        let (inner, spec, on_progress) = self.finish();
        RequestFuture { inner, stage: Stage::Unsent { spec: Some(spec), on_progress }, kind: PhantomData }
    }
}

/// A request on its way. It is sent when it is first polled. Dropping it cancels the request: the broker and the
/// handler are told; only what was sent without the wish for a reply goes on.
#[must_use = "a request is made when its future is polled"]
pub struct RequestFuture<K> {
    inner: Arc<Inner>,
    stage: Stage,
    kind: PhantomData<fn() -> K>,
}

type WaitForRoom = Pin<Box<dyn Future<Output = Result<RequestSpec, Error>> + Send>>;

enum Stage {
    Unsent {
        spec: Option<Result<RequestSpec, Error>>,
        on_progress: Option<OnProgress>,
    },
    /// Too much is unsent: it waits for room, and only then for its reply.
    Crowded {
        room: WaitForRoom,
        on_progress: Option<OnProgress>,
    },
    Waiting {
        token: u64,
        key: RequestKey,
    },
    Done,
}

impl<K: Kind> Future for RequestFuture<K> {
    type Output = Result<K::Value, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let (spec, on_progress) = match &mut this.stage {
                Stage::Unsent { spec, on_progress } => {
                    let (spec, on_progress) = (spec.take(), on_progress.take());
                    this.stage = Stage::Done;
                    let Some(spec) = spec.transpose()? else { return Poll::Pending };
                    if !this.inner.raw.has_room() {
                        this.stage = Stage::Crowded { room: this.inner.room(spec), on_progress };
                        continue;
                    }
                    (spec, on_progress)
                }
                Stage::Crowded { room, on_progress } => {
                    let (spec, on_progress) = (ready!(room.as_mut().poll(cx)), on_progress.take());
                    this.stage = Stage::Done;
                    (spec?, on_progress)
                }
                Stage::Waiting { token, .. } => {
                    let (last, before) = ready!(this.inner.hub.waiters.poll(*token, cx));
                    this.stage = Stage::Done;
                    return Poll::Ready(K::value(last, before));
                }
                Stage::Done => return Poll::Pending,
            };
            return match this.inner.ask(spec, on_progress, cx) {
                Ok((token, key)) => {
                    this.stage = Stage::Waiting { token, key };
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(error)),
            };
        }
    }
}

fn no_room() -> Error {
    let message = format!(
        "the request was not sent: for its whole timeout this client had more than {} MiB that the server or the network \
         did not take; ask for less at once, or give it more time",
        ROOM_BYTES >> 20
    );
    Error::new(Code::Timeout, message)
}

impl Inner {
    /// Waits until there is room for a request, and gives it with what is left of its timeout.
    fn room(&self, mut spec: RequestSpec) -> WaitForRoom {
        let timeout = if spec.timeout.is_zero() { self.patience } else { spec.timeout };
        let began = Instant::now();
        let over = {
            // Any executor may poll the future, but its timer belongs to this runtime.
            let _entered = self.hub.runtime.enter();
            sleep(timeout)
        };
        let client = self.raw.clone();
        Box::pin(async move {
            tokio::select! {
                biased;
                () = client.room() => {}
                () = over => return Err(no_room()),
            }
            spec.timeout = timeout.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
            Ok(spec)
        })
    }

    /// Makes the request, for the future that is being polled.
    fn ask(
        &self,
        spec: RequestSpec,
        on_progress: Option<OnProgress>,
        cx: &Context<'_>,
    ) -> Result<(u64, RequestKey), Error> {
        let waiters = &self.hub.waiters;
        let token = waiters.enter(cx, on_progress);
        match self.raw.request(spec, token) {
            Ok(key) => Ok((token, key)),
            Err(error) => {
                waiters.leave(token);
                Err(error)
            }
        }
    }
}

impl<K> Drop for RequestFuture<K> {
    fn drop(&mut self) {
        if let Stage::Waiting { token, key } = self.stage
            && self.inner.hub.waiters.leave(token)
        {
            self.inner.raw.cancel(key);
        }
    }
}
