//! Who takes part in a history, and what can happen in it.

use std::sync::Arc;

use ringpost_broker::{Read, log::OperationId};
use ringpost_client::{DeliveryKey, UnclaimedKey};

use super::SECOND;
use crate::sim::{json_peer::JsonPeer, limits::Limits, network::End, peer::Peer, rng::Rng, run::Plan};

/// What handlers are like.
#[derive(Debug, Clone)]
pub(crate) struct Habits {
    pub(crate) seed: u64,
    pub(crate) work: u64,
    pub(crate) stuck: u64,
    pub(crate) never: u64,
}

impl Habits {
    pub(crate) fn of(&self, token: u64, what: u64) -> Rng {
        Rng::of(self.seed, [token, what, 0xab])
    }

    /// How long an attempt is worked on; `None` for ever.
    pub(crate) fn work(&self, token: u64, attempt: u16) -> Option<u64> {
        let mut rng = self.of(token, 2 + u64::from(attempt));
        if !rng.chance(self.stuck) {
            return Some(rng.between(10, self.work));
        }
        if rng.chance(self.never) { None } else { Some(rng.between(SECOND, 30 * SECOND)) }
    }
}

/// What a client wants the world to do.
pub(crate) enum Wish {
    Dial,
    Send { link: usize, bytes: Vec<u8> },
    HangUp { link: Option<usize> },
    Work { delivery: DeliveryKey, after: u64 },
    Claim { key: UnclaimedKey, after: u64 },
}

#[derive(Debug)]
pub(crate) enum Event {
    /// Something from the script.
    Step(usize),
    /// A process's try to connect comes to its end.
    Dialed {
        process: usize,
    },
    /// Bytes arrive.
    Piece {
        link: usize,
        to: End,
        bytes: Vec<u8>,
    },
    /// An end learns that the link is gone.
    Gone {
        link: usize,
        to: End,
    },
    ProcessTimer {
        process: usize,
    },
    ServerTimer {
        boot: u64,
    },
    /// A handler comes to its end.
    Work {
        process: usize,
        delivery: DeliveryKey,
    },
    JsonWork {
        process: usize,
        link: usize,
        delivery: String,
        token: u64,
    },
    /// Another process comes to a seat.
    Return {
        seat: usize,
        session: Session,
    },
    /// A link's client must have said something whole by now.
    Mute {
        link: usize,
    },
    /// An operation of the log goes on.
    Disk {
        boot: u64,
        id: OperationId,
    },
    /// A starting server has read its log.
    Recovered {
        boot: u64,
    },
    /// A read of the log comes to its end.
    Read {
        boot: u64,
        read: Read,
    },
    /// The disk has space again.
    Space,
    /// The application takes what an earlier process of its session has left.
    Claim {
        process: usize,
        key: UnclaimedKey,
    },
    DrainOver {
        boot: u64,
    },
    BrokerDies {
        boot: u64,
    },
    BrokerReturns,
    /// All clients go.
    CloseAll,
    /// Nothing but dead letters must be left in the log.
    Audit,
    /// Nothing must be left.
    Inspect,
}

/// The session of the next process in a seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    Same,
    Another,
}

/// Whose turn an event is: one that stands still takes it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    World,
    Server,
    Process(usize),
}

/// Ordered by time, then by when it was planned: the earliest first out of a heap.
pub(super) struct Planned {
    pub(super) at: u64,
    pub(super) order: u64,
    pub(super) event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// A client's process.
pub(crate) struct Process {
    pub(crate) seat: usize,
    pub(crate) party: Party,
    pub(crate) alive: bool,
    /// Until when it stands still.
    pub(crate) hangs_until: u64,
    /// By how much its clock is ahead.
    pub(crate) ahead: u64,
    pub(super) timer: Option<u64>,
    pub(crate) rng: Rng,
}

pub(crate) enum Party {
    Client(Box<Peer>),
    Json(JsonPeer),
}

/// A client's place: at most one process at a time acts for it.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    pub(crate) process: Option<usize>,
    pub(super) processes: u64,
    pub(super) links: u64,
    /// The session's name has this number behind it.
    pub(super) session: u64,
    pub(crate) unreachable_until: u64,
    /// What its clients may do, if not everything.
    pub(crate) limits: Option<Arc<Limits>>,
    /// An earlier process lives, and has the same session's name.
    pub(crate) contested: bool,
}

impl Seat {
    pub(super) fn new(plan: &Plan, seat: usize) -> Self {
        let mut rng = Rng::of(plan.seed, [seat as u64, 0, 3]);
        let limited = rng.chance(plan.settings.limited);
        Self { limits: limited.then(|| Arc::new(Limits::draw(&mut rng))), ..Self::default() }
    }
}
