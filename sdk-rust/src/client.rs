//! The client that users hold.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use ringpost_client::{Error, RegistrationId};
use ringpost_protocol::Code;
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    ClientBuilder, Events, HandlerError, HandlerOptions, Receivers, Reply, Request, UnclaimedReplies,
    handler::{Function, Handler},
    hub::{Hub, LinkState, ReceiversList, RegistrationState},
    raw::{self, Drained},
    request::{Accepted, Every, One, RequestBuilder},
};

/// A connection to a Ringpost server that is kept: requests, handlers and news go over it.
///
/// Clones share it and are cheap. When the last clone and the last future of a request are dropped, it closes; a
/// handler that holds a clone therefore keeps it open.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) raw: raw::Client,
    pub(crate) hub: Arc<Hub>,
    /// How long to wait when nobody said anything: the default timeout of requests.
    pub(crate) patience: Duration,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.raw.close();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("link", &*self.inner.hub.link.borrow()).finish_non_exhaustive()
    }
}

impl Client {
    /// Begins a client for the server at `host:port`; see [`ClientBuilder`] for what can be said about it.
    pub fn builder(address: impl AsRef<str>) -> ClientBuilder {
        ClientBuilder::new(address.as_ref())
    }

    /// Connects to the server at `host:port`, with all options as they are by default.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    pub async fn connect(address: impl AsRef<str>) -> Result<Self, Error> {
        Self::builder(address).connect().await
    }

    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// A request to one of the action's handlers, with data as JSON text. Await it for the reply.
    ///
    /// The errors of the future: [`Code::NoHandler`], [`Code::Overloaded`], [`Code::HandlerLost`], [`Code::Remote`]
    /// (the handler's own), [`Code::Timeout`], [`Code::Expired`], [`Code::ConnectionLost`] (it may have run), and for
    /// bad input or a closed client the codes that say so.
    pub fn request<T: Serialize + ?Sized>(&self, action: &str, data: &T) -> RequestBuilder<One> {
        RequestBuilder::with_json(&self.inner, action, data)
    }

    /// Like [`Client::request`], with data as it is.
    pub fn request_bytes(&self, action: &str, data: impl AsRef<[u8]>) -> RequestBuilder<One> {
        RequestBuilder::with_bytes(&self.inner, action, data.as_ref())
    }

    /// A request to every handler of the action. Its future gives each handler's reply or error, in the broker's order;
    /// it fails as a whole only if nobody was asked, or nobody answered before the connection was lost.
    pub fn broadcast<T: Serialize + ?Sized>(&self, action: &str, data: &T) -> RequestBuilder<Every> {
        RequestBuilder::with_json(&self.inner, action, data)
    }

    /// Like [`Client::broadcast`], with data as it is.
    pub fn broadcast_bytes(&self, action: &str, data: impl AsRef<[u8]>) -> RequestBuilder<Every> {
        RequestBuilder::with_bytes(&self.inner, action, data.as_ref())
    }

    /// A request that wants no reply. Its future gives when the broker has accepted it.
    pub fn send<T: Serialize + ?Sized>(&self, action: &str, data: &T) -> RequestBuilder<Accepted> {
        RequestBuilder::with_json(&self.inner, action, data)
    }

    /// Like [`Client::send`], with data as it is.
    pub fn send_bytes(&self, action: &str, data: impl AsRef<[u8]>) -> RequestBuilder<Accepted> {
        RequestBuilder::with_bytes(&self.inner, action, data.as_ref())
    }

    /// Handles an action from now on, and says when the broker has taken the registration.
    ///
    /// # Errors
    /// [`Code::Malformed`] or [`Code::ReservedName`] for the action's name, what the broker says against it, or why
    /// the client is closed.
    pub async fn handle<F, Fut>(&self, action: &str, handler: F) -> Result<Registration, Error>
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, HandlerError>> + Send + 'static,
    {
        self.handle_with(action, HandlerOptions::default(), handler).await
    }

    /// Like [`Client::handle`], with options.
    ///
    /// # Errors
    /// As [`Client::handle`].
    pub async fn handle_with<F, Fut>(
        &self,
        action: &str,
        options: HandlerOptions,
        handler: F,
    ) -> Result<Registration, Error>
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, HandlerError>> + Send + 'static,
    {
        let function = Function { function: handler, stop_on_cancel: options.stop_on_cancel };
        let mut registration = self.register(action, options, Arc::new(function))?;
        registration.taken().await?;
        Ok(registration)
    }

    pub(crate) fn register(
        &self,
        action: &str,
        options: HandlerOptions,
        handler: Arc<dyn Handler>,
    ) -> Result<Registration, Error> {
        let (id, state) = self.inner.hub.register(&self.inner.raw, action, options, handler)?;
        Ok(Registration { id, action: action.to_owned(), client: self.inner.raw.clone(), state })
    }

    /// The actions that have a handler now. The first call asks the broker to tell them from now on, and waits for it.
    ///
    /// # Errors
    /// [`Code::Timeout`] if no list comes within the default request timeout, or why the client is closed.
    pub async fn receivers(&self) -> Result<ReceiversList, Error> {
        self.inner.raw.watch_receivers(true);
        let mut list = self.inner.hub.receivers.subscribe();
        let first = async {
            match list.wait_for(Option::is_some).await {
                Ok(list) => list.clone().unwrap_or_default(),
                // The sender lives in the hub, which is held here.
                Err(_) => Arc::default(),
            }
        };
        tokio::select! {
            biased;
            list = first => Ok(list),
            reason = self.closed() => Err(reason),
            () = tokio::time::sleep(self.inner.patience) => {
                Err(Error::new(Code::Timeout, "the server did not tell its receivers"))
            }
        }
    }

    /// The actions that have a handler: now, and again at each change. Changes close together become one.
    pub fn receivers_changes(&self) -> Receivers {
        self.inner.raw.watch_receivers(true);
        Receivers::new(self.inner.hub.receivers.subscribe(), self.inner.hub.link.subscribe())
    }

    /// What the broker kept for an earlier process of this session. Nothing comes unless the client was built with
    /// [`unclaimed_replies`](ClientBuilder::unclaimed_replies).
    pub fn unclaimed_replies(&self) -> UnclaimedReplies {
        UnclaimedReplies::new(self.inner.hub.clone(), self.inner.raw.clone())
    }

    /// What happens to the connection from now on.
    pub fn events(&self) -> Events {
        Events::new(self.inner.hub.events.subscribe())
    }

    /// Whether requests would leave at once.
    pub fn is_connected(&self) -> bool {
        matches!(*self.inner.hub.link.borrow(), LinkState::Connected)
    }

    /// Begins to connect a client that was built with `auto_start(false)`, and waits for the server's welcome.
    ///
    /// # Errors
    /// [`Code::Connect`] if the server cannot be reached and the client does not go on trying; any other reason for
    /// which it is closed.
    pub async fn start(&self) -> Result<(), Error> {
        self.inner.raw.start();
        let mut link = self.inner.hub.link.subscribe();
        let state = link.wait_for(|state| !matches!(state, LinkState::Connecting)).await;
        match state.as_deref() {
            Ok(LinkState::Closed(reason)) => Err(reason.clone()),
            _ => Ok(()),
        }
    }

    /// Waits until the client is closed, and says why.
    pub async fn closed(&self) -> Error {
        let mut link = self.inner.hub.link.subscribe();
        let state = link.wait_for(|state| matches!(state, LinkState::Closed(_))).await;
        match state.as_deref() {
            Ok(LinkState::Closed(reason)) => reason.clone(),
            _ => Error::new(Code::Closed, "the client was closed"),
        }
    }

    /// Ends in good order: takes no new requests and deliveries, finishes those that are open, sends what handlers
    /// answered, then closes. After `deadline` it closes anyway, as [`close`](Self::close) does, and says what was cut
    /// off. The answer of a handler that ended in time is sent, be it that the server does not take it for 2 s after the
    /// deadline. A connection that breaks meanwhile is made again for the requests that are open.
    ///
    /// `Duration::MAX` waits for handlers however long they take. Called again, the earlier end counts. When its future is
    /// dropped, the draining goes on.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.inner.raw.drain(deadline);
        self.inner.raw.ended().await;
        self.inner.raw.drained()
    }

    /// Ends at once: open requests end with [`Code::Closed`] and are cancelled, handlers are told to stop and their
    /// results are dropped. It gives when the socket is closed.
    ///
    /// When its future is dropped, the closing goes on.
    pub async fn close(&self) {
        self.inner.raw.close();
        self.inner.raw.ended().await;
    }
}

/// A handler's registration. Dropping it changes nothing; the handler stays until [`Registration::deregister`] or the
/// client's end.
#[derive(Debug)]
pub struct Registration {
    id: RegistrationId,
    action: String,
    client: raw::Client,
    state: watch::Receiver<RegistrationState>,
}

impl Registration {
    /// The action that is handled.
    pub fn action(&self) -> &str {
        &self.action
    }

    /// Changes how many requests the handler holds at once, from 1.
    pub fn set_concurrency(&self, concurrency: u32) {
        self.client.set_credit(self.id, concurrency.max(1));
    }

    /// Ends it, and waits until nothing more can be delivered. What the handler holds it still answers.
    pub async fn deregister(mut self) {
        self.client.deregister(self.id);
        // An error says that the registration is gone already.
        let _ = self
            .state
            .wait_for(|state| matches!(state, RegistrationState::Gone | RegistrationState::Refused(_)))
            .await;
    }

    /// Waits for the broker's word.
    pub(crate) async fn taken(&mut self) -> Result<(), Error> {
        match self.state.wait_for(|state| !matches!(state, RegistrationState::Asked)).await.as_deref() {
            Ok(RegistrationState::Refused(error)) => Err(error.clone()),
            Ok(RegistrationState::Gone) | Err(_) => {
                Err(Error::new(Code::Closed, "the client was closed before its handler was registered"))
            }
            Ok(RegistrationState::Live | RegistrationState::Asked) => Ok(()),
        }
    }
}
