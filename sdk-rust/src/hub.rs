//! Where the client's own task meets the futures: outcomes to those who wait, requests to handlers, news to watchers.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    task::Waker,
    time::Instant,
};

use bytes::Bytes;
use foldhash::fast::FixedState;
use ringpost_client::{Completion, Delivery, DeliveryKey, Error, Event, RegistrationId};
use tokio::{
    runtime::Handle,
    sync::{broadcast, watch},
};

use crate::{
    Cancellation, HandlerOptions, Request,
    handler::{Handler, unknown_action},
    raw::{self, CompletionSink, Notice},
    unclaimed::UnclaimedQueue,
    waiters::Waiters,
};

/// Events that a slow listener may lag behind by; older ones it misses.
const KEPT_EVENTS: usize = 64;

/// Where the connection stands.
#[derive(Debug, Clone)]
pub(crate) enum LinkState {
    Connecting,
    Connected,
    Closed(Error),
}

/// What the broker said to a registration.
#[derive(Debug, Clone)]
pub(crate) enum RegistrationState {
    Asked,
    Live,
    Refused(Error),
    Gone,
}

struct Registered {
    handler: Arc<dyn Handler>,
    state: watch::Sender<RegistrationState>,
}

/// Called with what happens to the connection.
pub(crate) type OnEvent = Box<dyn Fn(&Event) + Send + Sync>;

/// The actions that have handlers.
pub(crate) type ReceiversList = Arc<[String]>;

pub(crate) struct Hub {
    pub(crate) waiters: Waiters,
    pub(crate) link: watch::Sender<LinkState>,
    /// `None` until the first list.
    pub(crate) receivers: watch::Sender<Option<ReceiversList>>,
    pub(crate) events: broadcast::Sender<Event>,
    /// The application's own ear for events.
    on_event: Option<OnEvent>,
    pub(crate) unclaimed: UnclaimedQueue,
    pub(crate) runtime: Handle,
    handlers: RwLock<BTreeMap<RegistrationId, Registered>>,
    /// Keys are the server's own numbers: no stranger chooses them to spoil the hashing.
    held: Mutex<HashMap<DeliveryKey, Cancellation, FixedState>>,
    wakers: Mutex<Vec<Waker>>,
}

impl Hub {
    pub(crate) fn new(runtime: Handle, on_event: Option<OnEvent>) -> Self {
        Self {
            waiters: Waiters::default(),
            link: watch::Sender::new(LinkState::Connecting),
            receivers: watch::Sender::new(None),
            events: broadcast::Sender::new(KEPT_EVENTS),
            on_event,
            unclaimed: UnclaimedQueue::default(),
            runtime,
            handlers: RwLock::default(),
            held: Mutex::default(),
            wakers: Mutex::default(),
        }
    }

    /// Registers a handler. The lock is held over it, so that no delivery finds it missing.
    pub(crate) fn register(
        &self,
        client: &raw::Client,
        action: &str,
        options: HandlerOptions,
        handler: Arc<dyn Handler>,
    ) -> Result<(RegistrationId, watch::Receiver<RegistrationState>), Error> {
        let mut handlers = self.handlers.write().unwrap_or_else(PoisonError::into_inner);
        let id = client.register(action, options.concurrency.max(1))?;
        let (state, watcher) = watch::channel(RegistrationState::Asked);
        handlers.insert(id, Registered { handler, state });
        Ok((id, watcher))
    }

    /// A delivery was answered.
    pub(crate) fn released(&self, key: DeliveryKey) {
        self.held().remove(&key);
    }

    fn held(&self) -> MutexGuard<'_, HashMap<DeliveryKey, Cancellation, FixedState>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registration_is(&self, id: RegistrationId, state: RegistrationState) {
        if matches!(state, RegistrationState::Live) {
            let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(registered) = handlers.get(&id) {
                registered.state.send_replace(state);
            }
            return;
        }
        let gone = self.handlers.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(registered) = gone {
            registered.state.send_replace(state);
        }
    }

    fn happened(&self, event: Event) {
        let link = match &event {
            Event::Connected { .. } => Some(LinkState::Connected),
            Event::Closed(reason) => Some(LinkState::Closed(reason.clone())),
            Event::Disconnected(_) | Event::ReconnectIn { .. } => Some(LinkState::Connecting),
            // With a goaway the connection still stands.
            _ => None,
        };
        if let Some(link) = link {
            self.link.send_replace(link);
        }
        if let Some(on_event) = &self.on_event {
            // It is the user's, and must not take the client's own task with it.
            let called = catch_unwind(AssertUnwindSafe(|| on_event(&event)));
            if called.is_err() {
                tracing::error!("a client's event callback panicked");
            }
        }
        // An error only says that nobody listens.
        let _ = self.events.send(event);
    }

    fn receivers_are(&self, list: &Bytes) {
        match serde_json::from_slice::<Vec<String>>(list) {
            Ok(list) => {
                self.receivers.send_replace(Some(list.into()));
            }
            Err(error) => {
                tracing::warn!(%error, "the server's list of receivers is no JSON array of strings")
            }
        }
    }
}

/// The sink needs to share itself with the tasks of handlers.
pub(crate) struct HubSink(pub(crate) Arc<Hub>);

impl CompletionSink for HubSink {
    fn complete(&self, _client: &raw::Client, batch: &mut Vec<Completion>) {
        let scratch = || self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wakers = mem::take(&mut *scratch());
        self.0.waiters.complete(batch, &mut wakers);
        *scratch() = wakers;
    }

    fn deliver(&self, client: &raw::Client, batch: &mut Vec<Delivery>) {
        let hub = &self.0;
        let now = Instant::now();
        let handlers = hub.handlers.read().unwrap_or_else(PoisonError::into_inner);
        for delivery in batch.drain(..) {
            let Some(registered) = handlers.get(&delivery.registration) else {
                let (verdict, content) = unknown_action(&delivery.action);
                client.answer(delivery.key, verdict, content);
                continue;
            };
            let cancellation = Cancellation::default();
            hub.held().insert(delivery.key, cancellation.clone());
            let request = Request::new(delivery, client.clone(), cancellation, now);
            registered.handler.clone().spawn(request, hub.clone(), &hub.runtime);
        }
    }

    fn notice(&self, _client: &raw::Client, notice: Notice) {
        let hub = &self.0;
        match notice {
            Notice::CancelDelivery(key) => {
                let cancellation = hub.held().get(&key).cloned();
                if let Some(cancellation) = cancellation {
                    cancellation.cancel();
                }
            }
            Notice::Progress { token, content } => hub.waiters.progress(token, &content),
            Notice::Unclaimed(unclaimed) => hub.unclaimed.push(unclaimed),
            Notice::Receivers(list) => hub.receivers_are(&list),
            Notice::Registered(id) => hub.registration_is(id, RegistrationState::Live),
            Notice::RegistrationFailed(id, error) => {
                hub.registration_is(id, RegistrationState::Refused(error))
            }
            Notice::Deregistered(id) => hub.registration_is(id, RegistrationState::Gone),
            Notice::Event(event) => hub.happened(event),
        }
    }
}
