//! What is said, in both dialects: the messages of a client and those of a server.
//!
//! The codecs ([`crate::frame`], [`crate::json`]) turn bytes into these and these into bytes; the cores know nothing
//! else. Fields that only one dialect can carry say so.

mod peer;

use bytes::Bytes;
use smallvec::SmallVec;

pub use self::peer::{Ended, Forward, PeerMessage, Run, Runs};
use crate::{Code, Content};

/// JSON's `clientId` as it was written, kept beside a request; empty in the binary dialect.
pub type Tag = SmallVec<[u8; 40]>;

/// A request's stable identity across attempts, reconnects and restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RequestId {
    /// The boot of the broker that accepted it.
    pub boot: u64,
    /// Its count within that boot, from 1.
    pub count: u64,
}

/// Which request or registration is meant: binary clients number them, JSON clients name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The number that the client gave it.
    Number(u64),
    /// An action's name, or a `clientId` as it was written.
    Name(Bytes),
}

/// How a request wants to be treated. The bits are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestFlags(pub u8);

impl RequestFlags {
    /// No reply is wanted.
    pub const SEND: Self = Self(1);
    /// To every handler of the action.
    pub const BROADCAST: Self = Self(2);
    /// Must survive crashes.
    pub const DURABLE: Self = Self(4);
    /// The requester wants the handler's progress messages.
    pub const PROGRESS: Self = Self(8);
    /// From a server only: it treats the request as durable, though nobody asked for that (`--durable all`).
    pub const MADE_DURABLE: Self = Self(16);
    /// All bits that a client of version 1 may set.
    pub const KNOWN: Self = Self(15);

    /// Whether all bits of `other` are set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With the bits of `other` added.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Who speaks under a session's name. A name alone does not say it: two processes may have the same, and what one client
/// said on an earlier connection may arrive after what it says on a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Speaker {
    /// Random for each client, for as long as it lives; 0 only where the session has no name.
    pub instance: u64,
    /// Which of the instance's connections this is, from 1: a higher one is later.
    pub connection: u32,
}

/// The first message of a client.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hello {
    /// The session's name: the user's own, or random; empty for a session that ends with its connection.
    pub session: Bytes,
    /// Who comes, and for the how manieth time.
    pub speaker: Speaker,
    /// Whether it wants to be told the receivers, now and on change.
    pub watch_receivers: bool,
    /// The server's own name, of a server that comes as a peer; `None` for an ordinary client.
    pub peer: Option<Bytes>,
    /// Free-form facts about the client (`client`, `version`), encoded headers.
    pub headers: Bytes,
}

/// The server's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Welcome {
    /// The server's own name.
    pub server_id: Bytes,
    /// Random at each start of the server.
    pub boot: u64,
    /// Which connection of its session this is, from 1.
    pub epoch: u64,
    /// Another one than before: the session was made anew, or was another instance's meanwhile, and nothing is known of
    /// what was open. Unique within the boot.
    pub tenure: u64,
    /// The lowest number that the session's next request may have.
    pub next_number: u64,
    /// The longest payload in bytes.
    pub max_payload: u32,
    /// Silence after which the server sends a ping, in milliseconds.
    pub ping_interval_ms: u32,
    /// The server treats every request and send as durable, but for broadcasts.
    pub durable_all: bool,
    /// Facts about the server, encoded headers.
    pub headers: Bytes,
}

/// A client offers to handle an action.
#[derive(Debug, Clone, PartialEq)]
pub struct Register {
    /// The client's number for this registration; 0 in JSON, where the name stands for it.
    pub registration: u32,
    /// How many requests it will hold at once; 0 for the server's default.
    pub credit: u32,
    /// The action's name.
    pub action: Bytes,
    /// JSON only: the session that the registering connection names.
    pub session: Bytes,
}

/// A request, as it comes from the requester.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Request {
    /// The requester's number, rising within its session; 0 in JSON, where the broker numbers.
    pub number: u64,
    /// How it wants to be treated.
    pub flags: RequestFlags,
    /// Deliveries at most; 0 for the default.
    pub max_attempts: u8,
    /// How long the broker may keep it, in milliseconds; 0 for the default.
    pub ttl_ms: u32,
    /// How long the requester waits, in milliseconds; 0 for the default.
    pub timeout_ms: u32,
    /// Action (as the name), tag, options, headers and payload.
    pub content: Content,
}

impl Request {
    /// Whether `--durable all` makes it durable: it is not yet, and neither a broadcast nor one of the server's own
    /// actions, which stay plain.
    pub fn becomes_durable(&self) -> bool {
        let flags = self.flags;
        !flags.has(RequestFlags::DURABLE)
            && !flags.has(RequestFlags::BROADCAST)
            && !self.content.name().starts_with(b"$")
    }
}

/// A request on its way to a handler.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Deliver {
    /// The broker's number of this delivery: the handler's answer names it.
    pub delivery: u64,
    /// The handler's registration that it is for.
    pub registration: u32,
    /// [`RequestFlags`] of the request.
    pub flags: RequestFlags,
    /// Which delivery of the request this is, from 1.
    pub attempt: u16,
    /// Time until the requester stops waiting, in milliseconds; `u32::MAX` for no end.
    pub time_left_ms: u32,
    /// When the broker received the request, in milliseconds since the Unix epoch.
    pub received_at_ms: u64,
    /// The request's stable identity.
    pub request_id: RequestId,
    /// As the requester sent it.
    pub content: Content,
}

/// What a handler says to a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Handled: the content is the reply.
    #[default]
    Reply,
    /// Failed: the payload is the message, the name the handler's own code.
    Error,
    /// It stopped because it was told to.
    Cancelled,
    /// Durable only: try again after this many milliseconds.
    Retry(u32),
    /// Durable only: never try this one again.
    Reject,
    /// From a peer: the request ended there with this code, which is not its handler's own error. The payload is the
    /// message.
    Failed(Code),
    /// From a peer: the request has not run there, and will not, for this reason. The payload is the message.
    Declined(Code),
}

/// A handler's answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// The delivery that is answered.
    pub delivery: u64,
    /// Counts the answers of this handler's session, from 1; 0 in JSON.
    pub sequence: u64,
    /// What it says.
    pub verdict: Verdict,
    /// The reply, or the error.
    pub content: Content,
}

/// What became of a request, on its way to the requester.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reply {
    /// The request.
    pub number: u64,
    /// JSON's `clientId` of the request.
    pub tag: Tag,
    /// Counts the outcomes sent to this session, from 1.
    pub sequence: u64,
    /// `None`: the content is the reply. Else what went wrong, with the message in the payload.
    pub code: Option<Code>,
    /// For a broadcast: which leg, and how many there are.
    pub leg: Option<Leg>,
    /// The last attempt's number; 0 if it was never delivered.
    pub attempt: u16,
    /// When the broker received the request, in milliseconds since the Unix epoch.
    pub received_at_ms: u64,
    /// Milliseconds from then to the last delivery; `u32::MAX` if there was none.
    pub delivered_after_ms: u32,
    /// Milliseconds from receipt to the handler's answer; `u32::MAX` if there was none.
    pub handled_after_ms: u32,
    /// The reply's options, headers and payload, or the error.
    pub content: Content,
}

/// One handler's part of a broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leg {
    /// From 0.
    pub index: u32,
    /// How many handlers were asked.
    pub expected: u32,
}

/// A handler's word that it is still at work.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    /// The delivery, or towards the requester the request's number.
    pub number: u64,
    /// JSON's `clientId`, towards a JSON requester.
    pub tag: Tag,
    /// What it wants to tell the requester; may be empty.
    pub content: Content,
}

/// A client that came back tells what it has open.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resume {
    /// The boot that it knew.
    pub boot: u64,
    /// The last outcome that it received.
    pub sequence: u64,
    /// Numbers of its requests without an outcome, rising.
    pub open: Vec<u64>,
    /// The boot that made the deliveries which follow.
    pub held_boot: u64,
    /// Durable deliveries that its handlers still hold, or have answered without a word that the answer was taken.
    pub held: Vec<u64>,
    /// Whether it takes the outcomes, too, that are kept for earlier processes under this name.
    pub unclaimed: bool,
}

/// What the broker knows of an open number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenState {
    /// It has it, and the outcome will come.
    Running,
    /// The outcome is known and follows.
    Outcome,
    /// It never saw it: send it again.
    NeverSeen,
    /// It may have run, and what became of it is not known any more.
    Lost,
}

/// What an [`ErrorReport`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The whole connection, which is closed after it.
    Connection,
    /// A registration that was refused.
    Registration,
    /// An answer to a delivery that the handler does not hold.
    Delivery,
}

/// Something went wrong that is not the outcome of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorReport {
    /// What it is about.
    pub scope: Scope,
    /// The registration or delivery; 0 for the connection.
    pub number: u64,
    /// What went wrong.
    pub code: Code,
    /// For people: what happened, to what, what to do.
    pub message: String,
}

/// Everything that a client can say.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientMessage {
    /// First of all.
    Hello(Hello),
    /// Handle an action.
    Register(Register),
    /// Handle it no more; what is held may still be answered.
    Deregister(Target),
    /// Change a registration's credit.
    Credit {
        /// The registration.
        registration: u32,
        /// How many requests it will hold at once, from now on.
        credit: u32,
    },
    /// A request or send.
    Request(Request),
    /// The outcome is not wanted any more.
    Cancel(Target),
    /// A handler's answer.
    Answer(Answer),
    /// From a peer: how many of its handlers a broadcast asked. Before the first [`ClientMessage::Leg`] of the delivery.
    Legs {
        /// The delivery.
        delivery: u64,
        /// How many.
        expected: u32,
    },
    /// From a peer: what one of the handlers answered that a broadcast asked there. The delivery goes on; the last leg is an
    /// ordinary answer.
    Leg(Answer),
    /// A handler is still at work.
    Progress(Progress),
    /// Outcomes up to this sequence need not be kept (binary), or the one of this request (JSON).
    Acknowledge(Target),
    /// Back after a reconnect.
    Resume(Resume),
    /// Whether to be told the receivers.
    WatchReceivers(bool),
    /// Are you there?
    Ping(u64),
    /// I am.
    Pong(u64),
    /// No more requests and no more deliveries, please; the connection ends when all is answered.
    Goaway,
    /// From another server, on a link.
    Peer(Box<PeerMessage>),
}

/// Everything that a server can say.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerMessage {
    /// The answer to the hello.
    Welcome(Welcome),
    /// A registration holds.
    Registered {
        /// The client's number for it.
        registration: u32,
    },
    /// A request for a handler.
    Deliver(Deliver),
    /// A handler's work is not wanted any more.
    Cancel {
        /// The delivery.
        delivery: u64,
        /// JSON: the requester's `clientId`.
        tag: Tag,
    },
    /// All requests up to this number were accepted, but those that got an error before this message.
    Accepted {
        /// The highest such number.
        upto: u64,
        /// JSON only: the one request that it is about.
        tag: Tag,
    },
    /// How many handlers a broadcast asked.
    Legs {
        /// The request.
        number: u64,
        /// How many.
        expected: u32,
    },
    /// What the durable request was whose reply follows: for a process that did not make it.
    Asked {
        /// The request.
        number: u64,
        /// JSON's `clientId` of the request.
        tag: Tag,
        /// The action (as the name) and the request's headers.
        content: Content,
    },
    /// What became of a request.
    Reply(Reply),
    /// A handler is still at work.
    Progress(Progress),
    /// Answers up to this sequence are settled and need not be sent again.
    Acknowledge {
        /// The sequence of the last such answer.
        sequence: u64,
    },
    /// What the broker knows of a returning client's open numbers, in their order, and of the deliveries that it holds.
    Resumed {
        /// Each open number with its state.
        open: Vec<(u64, OpenState)>,
        /// Deliveries whose answer is not wanted any more.
        forgotten: Vec<u64>,
        /// Deliveries that the handler goes on with: as it knew them, and what they are called now.
        attached: Vec<(u64, u64)>,
    },
    /// The actions that have handlers: JSON text of an array of strings.
    Receivers(Bytes),
    /// Something went wrong.
    Error(ErrorReport),
    /// Are you there?
    Ping(u64),
    /// I am.
    Pong(u64),
    /// The server is leaving: finish, connect elsewhere.
    Goaway {
        /// How long it will wait for that, in milliseconds.
        grace_ms: u32,
        /// For people.
        reason: String,
    },
    /// To another server, on a link.
    Peer(Box<PeerMessage>),
}
