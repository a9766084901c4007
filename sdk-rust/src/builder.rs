//! What can be said about a client before it connects.

use std::{fmt, future::Future, mem, sync::Arc, time::Duration};

use bytes::Bytes;
use ringpost_client::{ClientConfig, Error, Event};
use ringpost_protocol::{Code, encode_headers, limits::MAX_SESSION_BYTES, secure::SecureKey};
use tokio::runtime::Handle;

use crate::{
    Address, Client, HandlerError, HandlerOptions, Reply, Request,
    client::Inner,
    handler::{Function, Handler},
    hub::{Hub, HubSink, OnEvent},
    key::GivenKey,
    raw::{self, no_random_bytes},
};

/// Options of a [`Client`]. Those of the reference's client:
///
/// | the reference's | here | default |
/// |---|---|---|
/// | `host`, `port` | [`Client::builder`]`("host:port")`, [`host`](Self::host), [`port`](Self::port) | `:8888` |
/// | `reconnect` | [`reconnect`](Self::reconnect) | `true` |
/// | `reconnectInterval` | [`reconnect_interval`](Self::reconnect_interval) | 1 s |
/// | `taskInterval` | [`task_interval`](Self::task_interval) | 0 |
/// | `action`, `requestHandler` | [`handler`](Self::handler), or [`action`](Self::action) and [`request_handler`](Self::request_handler) | – |
/// | `autoStart` | [`auto_start`](Self::auto_start) | `true` |
/// | `defaultRequestTimeout` | [`default_request_timeout`](Self::default_request_timeout) | 10 s |
/// | `receivers` | [`receivers`](Self::receivers), [`Client::receivers`] | `false` |
///
/// Its own: [`session`](Self::session), [`unclaimed_replies`](Self::unclaimed_replies),
/// [`retry_initial`](Self::retry_initial), [`max_reconnects`](Self::max_reconnects), [`max_pending`](Self::max_pending),
/// [`on_event`](Self::on_event), [`secure_key`](Self::secure_key).
#[must_use = "a client is made by `connect`"]
pub struct ClientBuilder {
    address: Result<Address, Error>,
    key: Option<GivenKey>,
    config: ClientConfig,
    sdk: (&'static str, &'static str),
    auto_start: bool,
    on_event: Option<OnEvent>,
    action: Option<String>,
    request_handler: Option<Planned>,
    handlers: Vec<(String, Planned)>,
}

/// Unclaimed replies that may wait here to be taken; the broker keeps the rest until the next connection.
const MAX_UNCLAIMED: usize = 65_536;

#[derive(Clone)]
struct Planned {
    options: HandlerOptions,
    handler: Arc<dyn Handler>,
}

impl Planned {
    fn new<F, Fut>(options: HandlerOptions, function: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, HandlerError>> + Send + 'static,
    {
        Self { options, handler: Arc::new(Function { function, stop_on_cancel: options.stop_on_cancel }) }
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("address", &self.address)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    pub(crate) fn new(address: &str) -> Self {
        Self {
            address: Address::parse(address),
            key: None,
            config: ClientConfig { retry_initial: false, ..ClientConfig::default() },
            sdk: ("ringpost-rust", env!("CARGO_PKG_VERSION")),
            auto_start: true,
            on_event: None,
            action: None,
            request_handler: None,
            handlers: Vec::new(),
        }
    }

    /// The server's host: a name or an address, without port.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        let host = host.into();
        match &mut self.address {
            Ok(address) => address.host = host,
            bad => *bad = Address::parse(&host),
        }
        self
    }

    /// The server's port.
    pub fn port(mut self, port: u16) -> Self {
        if let Ok(address) = &mut self.address {
            address.port = port;
        }
        self
    }

    /// Whether to connect again when the connection is lost.
    pub fn reconnect(mut self, reconnect: bool) -> Self {
        self.config.reconnect = reconnect;
        self
    }

    /// The pause before connecting again, ± 20 %; while tries fail it doubles, up to ten times this.
    pub fn reconnect_interval(mut self, interval: Duration) -> Self {
        self.config.reconnect_interval = interval;
        self
    }

    /// How many tries may fail in a row; one more, and the client is closed. Without it, it never gives up.
    pub fn max_reconnects(mut self, tries: u32) -> Self {
        self.config.max_reconnects = Some(tries);
        self
    }

    /// Whether [`connect`](Self::connect) goes on trying when the server cannot be reached at first, instead of
    /// failing: off for requesters, who want to know, and worth switching on for a service that only handles. Why it does
    /// not connect is told by [`Event::ReconnectIn`], see [`on_event`](Self::on_event).
    pub fn retry_initial(mut self, retry: bool) -> Self {
        self.config.retry_initial = retry;
        self
    }

    /// The least time between two requests given to handlers.
    pub fn task_interval(mut self, interval: Duration) -> Self {
        self.config.task_interval = interval;
        self
    }

    /// How long requests wait for their outcome unless they say so themselves.
    pub fn default_request_timeout(mut self, timeout: Duration) -> Self {
        self.config.default_request_timeout = timeout;
        self
    }

    /// How many requests may wait while there is no connection; more fail with [`Code::Overloaded`].
    pub fn max_pending(mut self, requests: usize) -> Self {
        self.config.max_pending = requests;
        self
    }

    /// Whether to be told the receivers from the start; [`Client::receivers`] asks for it later too.
    pub fn receivers(mut self, watch: bool) -> Self {
        self.config.watch_receivers = watch;
        self
    }

    /// The session's name, at most 255 bytes. Without it, a random one; a client that does not
    /// [`reconnect`](Self::reconnect) has none then, and what it has open ends with its connection. A later connection
    /// under the same name takes the session over: the earlier client is closed with [`Code::SessionTaken`].
    pub fn session(mut self, name: impl Into<String>) -> Self {
        self.config.session = name.into().into();
        self
    }

    /// Whether to be given the replies that the broker kept for an earlier process of this [`session`](Self::session),
    /// which must have a name: [`Client::unclaimed_replies`]. Without it, the broker lets go of them with the first
    /// request.
    ///
    /// The broker keeps them for its `--session-linger`, up to `--outcome-limit`. Plain requests that still ran when this
    /// process came are called back, since nobody waits for them any more.
    pub fn unclaimed_replies(mut self, wanted: bool) -> Self {
        self.config.max_unclaimed = if wanted { MAX_UNCLAIMED } else { 0 };
        self
    }

    /// The secure key that the server has too: with one, nothing is said to who has not proven to have it, and nobody in
    /// between can read or change what is said. Its text, as `ringpost keygen` wrote it, or any passphrase; or a
    /// [`SecureKey`](crate::SecureKey), which several clients may share: to hash a passphrase takes 0.2 s and 64 MiB.
    ///
    /// Without it, the one in the file that the environment's `RINGPOST_SECURE_KEY_FILE` names, or else that of
    /// `RINGPOST_SECURE_KEY`, if one of them is set; see [`plain`](Self::plain).
    pub fn secure_key(mut self, key: impl Into<GivenKey>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Without a secure key, also where the environment has one: for a server that has none.
    pub fn plain(mut self) -> Self {
        self.key = Some(GivenKey::nothing());
        self
    }

    /// Called with all that happens to the connection, also while [`connect`](Self::connect) waits for it. It runs in the
    /// client's own task: it must be short. [`Client::events`] is a stream of the same.
    pub fn on_event(mut self, callback: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Box::new(callback));
        self
    }

    /// Whether [`connect`](Self::connect) connects; if not, [`Client::start`] does.
    pub fn auto_start(mut self, start: bool) -> Self {
        self.auto_start = start;
        self
    }

    /// The action of the [`request_handler`](Self::request_handler). Alone it registers nothing.
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.action = Some(action.into());
        self
    }

    /// Handles the [`action`](Self::action).
    pub fn request_handler<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, HandlerError>> + Send + 'static,
    {
        self.request_handler = Some(Planned::new(HandlerOptions::default(), handler));
        self
    }

    /// Handles an action; call it again for further ones.
    pub fn handler<F, Fut>(self, action: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, HandlerError>> + Send + 'static,
    {
        self.handler_with(action, HandlerOptions::default(), handler)
    }

    /// Handles an action, with options.
    pub fn handler_with<F, Fut>(
        mut self,
        action: impl Into<String>,
        options: HandlerOptions,
        handler: F,
    ) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, HandlerError>> + Send + 'static,
    {
        self.handlers.push((action.into(), Planned::new(options, handler)));
        self
    }

    /// Connects, and waits until the server has said welcome and taken all handlers.
    ///
    /// With `auto_start(false)` it gives the client at once; requests made before [`Client::start`] wait for it.
    ///
    /// # Errors
    /// * [`Code::Connect`]: the server cannot be reached (and `retry_initial` is off).
    /// * [`Code::Unauthorized`]: the server needs a secure key, or has another one (and `retry_initial` is off).
    /// * [`Code::Malformed`], [`Code::ReservedName`]: a bad address, secure key, session or action.
    /// * [`Code::Unsupported`]: not within a tokio runtime, or the server speaks another version.
    /// * Whatever the server says against the connection or a handler.
    pub async fn connect(self) -> Result<Client, Error> {
        let auto_start = self.auto_start;
        let key = self.resolved_key().await?;
        let (client, mut registrations) = self.build(key)?;
        if auto_start {
            client.start().await?;
            for registration in &mut registrations {
                registration.taken().await?;
            }
        }
        Ok(client)
    }

    /// The client without futures, which gives what comes back to a sink of its own: for bindings to other languages,
    /// see [`raw`]. It does not connect before [`raw::Client::start`]. Handlers, `on_event` and `auto_start` are this
    /// layer's own, and nothing to that one. To be awaited within the tokio runtime that is to move the bytes.
    ///
    /// # Errors
    /// * [`Code::Malformed`]: a bad address, secure key or session.
    /// * [`Code::Unsupported`]: not within a tokio runtime.
    /// * [`Code::Connect`] if the system gives no random bytes.
    pub async fn build_raw(self, sink: Arc<dyn raw::CompletionSink>) -> Result<raw::Client, Error> {
        let key = self.resolved_key().await?;
        let (config, address) = self.settled()?;
        raw::Client::with_key(config, address, key, sink)
    }

    /// What this client tells the server about itself: the name of the SDK and its version. For bindings.
    pub fn sdk(mut self, name: &'static str, version: &'static str) -> Self {
        self.sdk = (name, version);
        self
    }

    /// The key that was given, or the environment's.
    async fn resolved_key(&self) -> Result<Option<SecureKey>, Error> {
        match self.key.clone().or_else(GivenKey::from_environment) {
            Some(given) => given.key().await,
            None => Ok(None),
        }
    }

    /// Checks the options that concern the connection, and draws what is random.
    fn settled(mut self) -> Result<(ClientConfig, Address), Error> {
        let address = self.address?;
        if self.config.session.len() > MAX_SESSION_BYTES {
            let message = format!("a session's name must not be longer than {MAX_SESSION_BYTES} bytes");
            return Err(Error::new(Code::Malformed, message));
        }
        if self.config.max_unclaimed > 0 && self.config.session.is_empty() {
            let message =
                "unclaimed_replies needs a session with a name, to which the next process can come back";
            return Err(Error::new(Code::Malformed, message));
        }
        let (name, seed) = random_name_and_seed()?;
        // Nobody comes back to a session whose client does not reconnect: the broker need not wait for it.
        if self.config.session.is_empty() && self.config.reconnect {
            self.config.session = name;
        }
        self.config.seed = seed;
        let (sdk, version) = self.sdk;
        self.config.headers = encode_headers([("client", sdk), ("version", version)])
            .map_err(|error| Error::new(Code::Malformed, error.to_string()))?;
        Ok((self.config, address))
    }

    fn build(mut self, key: Option<SecureKey>) -> Result<(Client, Vec<crate::Registration>), Error> {
        let mut handlers = mem::take(&mut self.handlers);
        match (self.action.take(), self.request_handler.take()) {
            (Some(action), Some(planned)) => handlers.push((action, planned)),
            (None, Some(_)) => {
                return Err(Error::new(Code::Malformed, "a request_handler needs an action to handle"));
            }
            (_, None) => {}
        }
        let on_event = self.on_event.take();
        let (config, address) = self.settled()?;
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(
                Code::Unsupported,
                "a client needs a tokio runtime with IO and time: connect inside of one",
            )
        })?;
        let patience = match config.default_request_timeout {
            Duration::ZERO => ClientConfig::default().default_request_timeout,
            timeout => timeout,
        };
        let hub = Arc::new(Hub::new(runtime, on_event));
        let raw = raw::Client::with_key(config, address, key, Arc::new(HubSink(hub.clone())))?;
        let client = Client::new(Inner { raw, hub, patience });
        let registrations = handlers
            .into_iter()
            .map(|(action, planned)| client.register(&action, planned.options, planned.handler))
            .collect::<Result<_, _>>()?;
        Ok((client, registrations))
    }
}

/// A session's name of 128 random bits in hexadecimal, and a seed for the jitter.
fn random_name_and_seed() -> Result<(Bytes, u64), Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(no_random_bytes)?;
    let name = format!("{:032x}", u128::from_be_bytes(random));
    let seed = getrandom::u64().map_err(no_random_bytes)?;
    Ok((name.into(), seed))
}
