//! What a client wants done.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use ringpost_protocol::{
    Content,
    message::{ClientMessage, Deliver, Leg, PeerMessage},
};
use slotmap::{DefaultKey, Key};

use crate::{Error, UnclaimedKey};

/// Names a request from [`crate::Client::request`] until its last [`Completion`].
///
/// It is not the request's number on the wire: that is given when the request is sent, which may be much later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestKey(pub(crate) DefaultKey);

impl RequestKey {
    /// The key as a number, unique among the requests of one client: for bindings and logs.
    pub fn number(self) -> u64 {
        self.0.data().as_ffi()
    }
}

/// Names a registration; never given twice by one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistrationId(pub u32);

/// Names a delivery: the broker's number, on one connection.
///
/// A broker that restarted may use a number again, so that an answer to a delivery of an earlier connection must never
/// be taken for one of this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryKey {
    /// Which connection of this client, from 1.
    pub connection: u32,
    /// The broker's number of the delivery.
    pub delivery: u64,
}

/// When things happened to a request, as far as the broker told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Info {
    /// When the broker received the request, in milliseconds since the Unix epoch; 0 if it did not say.
    pub received_at_ms: u64,
    /// Milliseconds from then to the last delivery, if there was one.
    pub delivered_after_ms: Option<u32>,
    /// Milliseconds from receipt to the handler's answer, if there was one.
    pub handled_after_ms: Option<u32>,
    /// The number of the last delivery, from 1; 0 if there was none.
    pub attempt: u16,
}

/// What became of a request, or of one leg of a broadcast.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// What the application called the request.
    pub token: u64,
    /// The reply; for an accepted send, nothing.
    pub result: Result<Content, Error>,
    /// When it happened.
    pub info: Info,
    /// Which leg of a broadcast. `None` for a leg that did not say: it ended here, not at the broker.
    pub leg: Option<Leg>,
    /// Whether the request is over: nothing more comes for this token.
    pub last: bool,
}

/// What became of a request that an earlier process made under this session's name, and did not live to learn.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Unclaimed {
    /// What [`crate::Client::claim`] must name once the application has it.
    pub key: UnclaimedKey,
    /// The request's number: they rise in the order in which that process made its requests.
    pub number: u64,
    /// The reply.
    pub result: Result<Content, Error>,
    /// When it happened.
    pub info: Info,
    /// Which leg of a broadcast.
    pub leg: Option<Leg>,
    /// The action (as the name) and the headers of the request, if it was durable.
    pub asked: Option<Content>,
}

/// A request for one of this client's handlers.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// What the answer must name.
    pub key: DeliveryKey,
    /// The registration that it is for.
    pub registration: RegistrationId,
    /// That registration's action.
    pub action: Arc<str>,
    /// The request. Its `time_left_ms` is of the moment when it is handed out.
    pub message: Deliver,
}

/// Something that happened to the connection.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The server said welcome: requests leave, and registrations are on their way.
    Connected {
        /// The server's own name.
        server_id: Bytes,
        /// Random at each start of the server.
        boot: u64,
        /// Which connection of its session this is, from 1.
        epoch: u64,
        /// With the boot: whether the broker still knows what was open. If either is another than before, it does not.
        tenure: u64,
    },
    /// The connection is gone.
    Disconnected(Error),
    /// The next try to connect comes after this long.
    ReconnectIn {
        /// The pause.
        delay: Duration,
        /// Why the last try failed or the last connection ended.
        reason: Error,
    },
    /// The server is leaving; the client finishes what is open and then connects again.
    Goaway {
        /// How long the server waits.
        grace: Duration,
        /// For people.
        reason: String,
    },
    /// The client is closed for good, and why.
    Closed(Error),
}

/// What the driver is to do. Act on all of them, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Open a connection, then call [`crate::Client::connected`] or [`crate::Client::connect_failed`].
    Connect,
    /// Write this on the open connection.
    Send(ClientMessage),
    /// Write what was to be sent, then close the connection, or give up opening it. No call is expected after it.
    Disconnect,
    /// Close the connection at once: the server is silent, and what was to be sent would reach nobody. No call is
    /// expected after it.
    Abort,
    /// A request or a leg of one has ended.
    Complete(Completion),
    /// An outcome that was kept for an earlier process. [`crate::Client::claim`] it once the application has it.
    Unclaimed(Unclaimed),
    /// How many handlers a broadcast asked. Only a client that comes as a [peer](crate::ClientConfig::peer) is told, before the
    /// first of them completes; if the request ends here, one completion ends all that are left.
    Legs {
        /// What the application called the request.
        token: u64,
        /// How many.
        expected: u32,
    },
    /// A handler is still at work on a request.
    Progress {
        /// What the application called the request.
        token: u64,
        /// What the handler says.
        content: Content,
    },
    /// Hand this to the handler.
    Deliver(Delivery),
    /// The answer to this delivery is not wanted any more: tell the handler. It must be answered all the same.
    CancelDelivery(DeliveryKey),
    /// The actions that have handlers now: JSON text of an array of strings.
    Receivers(Bytes),
    /// The broker took a registration; again after each reconnect.
    Registered(RegistrationId),
    /// The broker refused a registration, which is forgotten.
    RegistrationFailed(RegistrationId, Error),
    /// Nothing more will be delivered for this registration.
    Deregistered(RegistrationId),
    /// Of a server that speaks as a peer: what the other one says of durable requests.
    Peer(Box<PeerMessage>),
    /// Tell whoever is interested.
    Event(Event),
}
