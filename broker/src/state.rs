//! What the broker remembers: connections, sessions, actions, handlers, requests and deliveries, and how they point at
//! each other.
//!
//! ```text
//! Connection ── session ──> Session ── open ──> Request ── state ──> Delivery ──> Handler ──> Action
//!      └────── handlers ───────────────────────────────────────────────────────────^             │
//!                                                   ^────────────── queue ───────────────────────┘
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use bytes::Bytes;
use foldhash::fast::SeedableRandomState;
use hashbrown::HashMap;
use ringpost_protocol::{
    Code, Content,
    message::{RequestFlags, Speaker, Tag},
    time::{Now, Time, TimerId},
};

use crate::{
    ConnId, ReadId, Speaks,
    broadcast::Branches,
    dispatch::{Far, Ready},
    durable::Durable,
    peers::{Peer, guests::Guest},
    permissions::Granted,
    session::Outcomes,
    slab::Key,
};

/// Tables keyed from outside are hashed with a seed that nobody outside knows.
pub(crate) type Table<K, V> = HashMap<K, V, SeedableRandomState>;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) speaks: Speaks,
    pub(crate) address: Option<Box<SocketAddr>>,
    pub(crate) granted: Granted,
    /// Of a link to another server: see [`crate::peers`].
    pub(crate) peer: Option<Box<Peer>>,
    /// The how-manieth it is. Its number is another's once it is closed; this is not.
    pub(crate) count: u64,
    /// There from the start in JSON, from the hello on in binary.
    pub(crate) session: Option<Key<Session>>,
    /// Its registrations, retired ones included while they hold something.
    pub(crate) handlers: Vec<Key<Handler>>,
    /// It will say nothing more; it is closed once all it asked is answered.
    pub(crate) half_closed: bool,
    /// It wants no more deliveries; it is closed once nothing is open in either direction.
    pub(crate) leaving: bool,
    /// `Close` was put out: nothing more is sent, and what it says is ignored.
    pub(crate) closing: bool,
    /// Much waits to be sent on it, or may: nothing more is given to its handlers.
    pub(crate) clogged: bool,
    /// Bytes that may go out to its handlers before it counts as clogged.
    pub(crate) window_bytes: usize,
    /// The version of the receivers that it was last told; `None` if it does not want to know.
    pub(crate) receivers_seen: Option<u64>,
    pub(crate) last_heard: Time,
    pub(crate) liveness: Option<TimerId>,
}

#[derive(Debug)]
pub(crate) struct Session {
    /// Empty: it cannot be named, and ends with its connection.
    pub(crate) name: Bytes,
    /// `None` while the client is away.
    pub(crate) conn: Option<ConnId>,
    /// Whether it outlives its connections: it has a name, and its client speaks the dialect that can resume.
    pub(crate) outlives: bool,
    /// Who has it, or had it last. Nobody in JSON.
    pub(crate) speaker: Speaker,
    /// The last few that had it before, each with its last connection: what they said on earlier ones may still come.
    pub(crate) former: Vec<Speaker>,
    /// Told to the client, which knows by it that no other instance has had the session, and that it was not forgotten.
    pub(crate) tenure: u64,
    /// Whether the connection before the present one was of the same instance.
    pub(crate) returns: bool,
    /// Whether the client knows all that happened before its present connection, so that outcomes may be sent to it.
    pub(crate) caught_up: bool,
    pub(crate) outcomes: Outcomes,
    /// Its client is away, and it is kept all the same: for a while, or as long as something durable is in it.
    pub(crate) away: bool,
    /// Set while the client is away, until it has been for long.
    pub(crate) linger: Option<TimerId>,
    /// Of the open requests, those that are durable.
    pub(crate) durable: usize,
    /// What the connection may do that has it, or had it last. `None` after a restart.
    pub(crate) owner: Option<Granted>,
    /// Its client takes the outcomes of earlier processes, too.
    pub(crate) heir: bool,
    pub(crate) epoch: u64,
    pub(crate) next_number: u64,
    /// Requests without an outcome, by number.
    pub(crate) open: Table<u64, Key<Request>>,
    /// Numbers of durable requests whose record is not stable yet, rising. What was sent behind them waits for them.
    pub(crate) unstable: VecDeque<u64>,
    /// Durable requests whose outcome was put out and is not acknowledged, by its sequence. Their numbers are among the
    /// open ones all the same.
    pub(crate) durable_outcomes: BTreeMap<u64, Key<Request>>,
    /// JSON: the newest request of each `clientId`, for `cancel`.
    pub(crate) by_tag: Table<Tag, u64>,
    /// `Some(upto)`: an `accepted` is due at the end of the turn, as far as what is [`unstable`](Self::unstable) allows.
    pub(crate) accepted: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Action {
    pub(crate) name: Bytes,
    /// Those that take requests, in the order they registered: by [`Handler::joined`].
    pub(crate) handlers: BTreeMap<u64, Key<Handler>>,
    /// Of these, the ones with credit.
    pub(crate) ready: Ready,
    pub(crate) queue: Queue,
    /// It stands in the line of actions that wait for the dispatch interval.
    pub(crate) paced: bool,
    /// Handlers of peers, if there are any.
    pub(crate) far: Option<Box<Far>>,
    /// Of an action that is for handlers of peers: the one that its name leads to, where requests wait.
    pub(crate) near: Option<Key<Action>>,
}

/// Requests that wait for credit. A request that ends while it waits leaves its key behind; such keys are skipped, and
/// swept out before they are more than half of the line.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) line: VecDeque<Key<Request>>,
    pub(crate) waiting: usize,
    pub(crate) bytes: usize,
    /// Of those that wait, the ones whose payload is not in memory.
    pub(crate) absent: usize,
    /// After so many dispatches it is looked again whether more of them are to be read back.
    pub(crate) look_after: usize,
}

#[derive(Debug)]
pub(crate) struct Handler {
    pub(crate) conn: ConnId,
    pub(crate) action: Key<Action>,
    /// Counts registrations.
    pub(crate) joined: u64,
    pub(crate) registration: u32,
    pub(crate) credit: u32,
    pub(crate) held: Vec<Key<Delivery>>,
    /// Where it stands in its action's [`Ready`]; `None` if it has no credit or is retired.
    pub(crate) place: Option<u64>,
    /// Legs of broadcasts that wait for its credit.
    pub(crate) legs: VecDeque<(Key<Request>, u32)>,
    /// It takes nothing more, and is forgotten with its last answer.
    pub(crate) retired: bool,
    /// It sits on something that it was called back from long ago. It gets nothing until it answers something.
    pub(crate) stuck: bool,
    /// Its connection is slow to read: it gets nothing until that has caught up.
    pub(crate) clogged: bool,
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) session: Key<Session>,
    pub(crate) number: u64,
    pub(crate) action: Key<Action>,
    pub(crate) flags: RequestFlags,
    pub(crate) max_attempts: u16,
    pub(crate) attempt: u16,
    /// Its [`ringpost_protocol::message::RequestId`]'s count.
    pub(crate) count: u64,
    pub(crate) received: Now,
    pub(crate) deadline: Time,
    /// What it ends with when the deadline comes.
    pub(crate) ends_with: Code,
    pub(crate) timer: TimerId,
    pub(crate) delivered_after_ms: u32,
    /// What outlives the turn in which it came, if anything does.
    pub(crate) kept: Option<Key<Kept>>,
    /// Of its content, whether or not that is still here.
    pub(crate) content_bytes: u32,
    pub(crate) state: RequestState,
}

/// The part of a request that most do without: those that are dispatched at once, once, in the binary dialect. It has a
/// table of its own so that [`Request`] stays small.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) tag: Tag,
    pub(crate) durable: Option<Box<Durable>>,
    /// Handlers of peers that have declined it.
    pub(crate) declined: Vec<Key<Handler>>,
    /// It is a durable request of a peer, of which an attempt is made here.
    pub(crate) guest: Option<Box<Guest>>,
    /// Empty once it went to the last handler that it can go to.
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum RequestState {
    /// Its record, or that of what its session sent before it, is not stable yet.
    Logging,
    Queued,
    Delivered(Key<Delivery>),
    Broadcast(Box<Legs>),
    /// Durable: it waits for the outcome of an earlier one under its idempotency key.
    Joined,
    /// Durable: an attempt failed, and the next one has to wait for a while.
    Resting,
    /// Durable: a dead letter.
    Dead,
    /// Durable: its outcome is kept until nobody needs it any more.
    Decided,
    /// An operator's, which the core answers itself, and has not yet.
    Inquiring,
}

#[derive(Debug)]
pub(crate) struct Legs {
    /// Of the states, those that have not ended.
    pub(crate) open: u32,
    /// How many of them are legs of this server's handlers. Each behind those is a branch.
    pub(crate) own: u32,
    pub(crate) states: Vec<LegState>,
    /// Of a broadcast that goes to peers and wants replies.
    pub(crate) branches: Option<Box<Branches>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LegState {
    Waiting,
    Delivered(Key<Delivery>),
    Ended,
}

/// What a handler holds: a slot of its credit, until it answers; the request may have ended before.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) handler: Key<Handler>,
    pub(crate) request: Key<Request>,
    /// Of a broadcast: its place in [`Legs::states`].
    pub(crate) leg: u32,
    /// Its place in [`Handler::held`].
    pub(crate) place: u32,
    /// Set once nobody waits for the answer any more: when the handler counts as stuck.
    pub(crate) overdue: Option<TimerId>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Timer {
    /// A request's time is over.
    Request(Key<Request>),
    /// Peers have had their time to say how many handlers a broadcast asked there.
    Counts(Key<Request>),
    /// A handler has not answered long after it was called back.
    Overdue(Key<Delivery>),
    /// A session's client has been away for too long.
    Linger(Key<Session>),
    /// Look whether a connection is alive.
    Liveness(ConnId),
    /// A handler has had a durable request for too long.
    Lease(Key<Request>),
    /// A durable send that failed may be tried again.
    Rested(Key<Request>),
    /// A part of the log that could not be read may be tried again.
    Reread(ReadId),
    /// The dispatch interval is over.
    Pacing,
    /// Look for ends of guests that nobody takes.
    Guests,
    /// The receivers changed, and enough time has passed since they were last told.
    Receivers,
}
