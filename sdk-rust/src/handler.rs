//! What a handler gets, what it answers, and how it is run.

use std::{
    any::Any,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::FutureExt;
use ringpost_client::{Delivery, Error};
use ringpost_protocol::{
    Code, Content,
    message::{RequestFlags, RequestId, Verdict},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::runtime::Handle;

use crate::{
    Cancellation, Reply,
    hub::Hub,
    raw,
    reply::{from_json, optional_json, pairs, to_json},
};

/// A request that this client is to handle.
///
/// Like a [`Reply`], it shares the buffer that it was read into.
#[derive(Debug)]
pub struct Request {
    /// Boxed, since a request moves into its handler, and from there into the future of its task.
    delivery: Box<Delivery>,
    deadline: Option<Instant>,
    cancellation: Cancellation,
    client: raw::Client,
}

impl Request {
    pub(crate) fn new(
        delivery: Delivery,
        client: raw::Client,
        cancellation: Cancellation,
        now: Instant,
    ) -> Self {
        let left = delivery.message.time_left_ms;
        let deadline = (left != u32::MAX).then(|| now + Duration::from_millis(u64::from(left)));
        Self { delivery: Box::new(delivery), deadline, cancellation, client }
    }

    /// The action that it is addressed to.
    pub fn action(&self) -> &str {
        &self.delivery.action
    }

    /// Reads the data as JSON.
    ///
    /// # Errors
    /// [`Code::Malformed`] if it is not JSON, or not of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        from_json("the request's data", self.as_bytes())
    }

    /// The data as it came.
    pub fn as_bytes(&self) -> &[u8] {
        self.delivery.message.content.payload()
    }

    /// The data as it came, sharing the buffer.
    pub fn bytes(&self) -> Bytes {
        self.delivery.message.content.payload_bytes()
    }

    /// Reads the options as JSON; `None` if there are none.
    ///
    /// # Errors
    /// [`Code::Malformed`] if they are not of this type.
    pub fn options<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        optional_json("the request's options", self.options_bytes())
    }

    /// The options as they came: JSON text, or nothing.
    pub fn options_bytes(&self) -> &[u8] {
        self.delivery.message.content.options()
    }

    /// The headers, in the order of their sender.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(self.delivery.message.content.headers())
    }

    /// The first header with this key.
    pub fn header(&self, key: &str) -> Option<&str> {
        self.headers().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// The request's stable identity: the same at each attempt.
    pub fn id(&self) -> RequestId {
        self.delivery.message.request_id
    }

    /// Which delivery of the request this is, from 1.
    pub fn attempt(&self) -> u16 {
        self.delivery.message.attempt
    }

    /// When the broker received the request, by its clock.
    pub fn received_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.delivery.message.received_at_ms)
    }

    /// Whether the requester wants no reply, only that it is done.
    pub fn is_send(&self) -> bool {
        self.delivery.message.flags.has(RequestFlags::SEND)
    }

    /// Whether every handler of the action got it.
    pub fn is_broadcast(&self) -> bool {
        self.delivery.message.flags.has(RequestFlags::BROADCAST)
    }

    /// How long the requester still waits; `None` if there is no end to it.
    pub fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// When the requester stops waiting.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancellation.is_cancelled()
    }

    /// Completes when nobody waits for the answer any more.
    pub async fn cancelled(&self) {
        self.cancellation.cancelled().await;
    }

    /// What tells the cancellation, to hand to whatever does the work.
    pub fn cancellation(&self) -> Cancellation {
        self.cancellation.clone()
    }

    /// Says that the work goes on, with something for the requester as JSON text. For a durable request it extends the
    /// lease. `Ok(false)` if nobody waits any more, or if it is longer than the server takes.
    ///
    /// # Errors
    /// [`Code::Malformed`] if the value cannot be written as JSON.
    pub fn progress<T: Serialize + ?Sized>(&self, data: &T) -> Result<bool, Error> {
        let content = Content::from_payload(to_json("the progress", data)?);
        Ok(self.client.progress(self.delivery.key, content))
    }
}

/// Why a handler did not reply.
///
/// Any error converts into it, so that `?` works in handlers: the requester gets its text, with those of its sources,
/// as [`Code::Remote`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerError {
    verdict: Verdict,
    code: String,
    message: String,
}

impl HandlerError {
    /// An error with a message for the requester.
    pub fn new(message: impl Into<String>) -> Self {
        Self { verdict: Verdict::Error, code: String::new(), message: message.into() }
    }

    /// With a code of the handler's own, at most 255 bytes: requesters read it from
    /// [`Error::handler_code`](crate::Error::handler_code).
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// Durable requests only: not now, try again after this long.
    pub fn retry_after(pause: Duration, message: impl Into<String>) -> Self {
        let ms = u32::try_from(pause.as_millis()).unwrap_or(u32::MAX);
        Self { verdict: Verdict::Retry(ms), ..Self::new(message) }
    }

    /// Durable requests only: never try this one again.
    pub fn reject(message: impl Into<String>) -> Self {
        Self { verdict: Verdict::Reject, ..Self::new(message) }
    }

    /// For the requester.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text =
            text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        Self::new(format!("the handler panicked: {text}")).with_code("panic")
    }

    fn into_answer(self) -> (Verdict, Content) {
        (self.verdict, Content::from_parts(self.code.as_bytes(), b"", b"", self.message.as_bytes()))
    }
}

/// Any error converts, and so does a text: `value.ok_or("no value")?`.
impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error = error.into();
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Many errors already say what their source says.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = error.source();
        }
        Self::new(message)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// How a handler is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandlerOptions {
    /// How many requests it holds at once, from 1. The broker keeps to it: what is more goes to other handlers or waits.
    pub concurrency: u32,
    /// Whether the handler's future is dropped as soon as nobody waits for its answer. Without it, the handler is told
    /// by [`Request::is_cancelled`] and [`Request::cancelled`], and runs to its end.
    pub stop_on_cancel: bool,
}

impl Default for HandlerOptions {
    fn default() -> Self {
        Self { concurrency: 64, stop_on_cancel: false }
    }
}

/// A handler, whatever its types.
pub(crate) trait Handler: Send + Sync {
    /// Runs it on a request, as a task of its own.
    fn spawn(self: Arc<Self>, request: Request, hub: Arc<Hub>, runtime: &Handle);
}

/// A handler that is a function.
pub(crate) struct Function<F> {
    pub(crate) function: F,
    pub(crate) stop_on_cancel: bool,
}

impl<F, Fut> Handler for Function<F>
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, HandlerError>> + Send + 'static,
{
    fn spawn(self: Arc<Self>, request: Request, hub: Arc<Hub>, runtime: &Handle) {
        let answering = Answering::new(&request, hub);
        runtime.spawn(async move {
            // The call itself may panic too, so it happens within.
            let mut work = pin!(AssertUnwindSafe(async { (self.function)(request).await }).catch_unwind());
            let outcome = if self.stop_on_cancel {
                tokio::select! {
                    outcome = &mut work => outcome,
                    () = answering.cancellation.cancelled() => Ok(Err(HandlerError::new("cancelled"))),
                }
            } else {
                work.await
            };
            answering.answer(outcome.unwrap_or_else(|panic| Err(HandlerError::panicked(&*panic))));
        });
    }
}

/// Answers a delivery in any case: a task that is dropped, with its runtime or by a panic, must not leave its requester
/// waiting and its slot taken.
struct Answering {
    key: raw::DeliveryKey,
    client: raw::Client,
    cancellation: Cancellation,
    hub: Arc<Hub>,
    answered: bool,
}

impl Answering {
    fn new(request: &Request, hub: Arc<Hub>) -> Self {
        let (client, cancellation) = (request.client.clone(), request.cancellation.clone());
        Self { key: request.delivery.key, client, cancellation, hub, answered: false }
    }

    fn answer(mut self, outcome: Result<Reply, HandlerError>) {
        self.say(outcome);
    }

    fn say(&mut self, outcome: Result<Reply, HandlerError>) {
        self.answered = true;
        self.hub.released(self.key);
        let (verdict, content) = match outcome {
            // Nobody would read it: only the slot comes back.
            _ if self.cancellation.is_cancelled() => (Verdict::Cancelled, Content::default()),
            Ok(reply) => (Verdict::Reply, reply.into_content()),
            Err(error) => error.into_answer(),
        };
        self.client.answer(self.key, verdict, content);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !self.answered {
            self.say(Err(
                HandlerError::new("the handler was dropped before it answered").with_code("dropped")
            ));
        }
    }
}

/// An error for a delivery that nobody here can take.
pub(crate) fn unknown_action(action: &str) -> (Verdict, Content) {
    HandlerError::new(format!("this client does not handle `{action}` any more"))
        .with_code(Code::NoHandler.text())
        .into_answer()
}
