//! What happens in a history from outside: what applications do, and what goes wrong. It is written before the history
//! begins, so that parts of it can be left out, and the rest stays as it is.

use super::{
    profile::{Profile, Settings},
    rng::Rng,
    world::LONGEST_TTL,
};

/// Few actions, so that there are always several handlers of one, and sometimes none.
pub(crate) const ACTIONS: [&str; 3] = ["sum", "echo", "jobs"];

const SECOND: u64 = 1_000_000;
/// A requester that waits so long gets an outcome, whatever happens meanwhile.
pub(crate) const PATIENCE: u64 = 100 * SECOND;

/// Something that happens at a certain time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its place in the whole script: what is left out leaves a gap.
    pub index: usize,
    /// When, in microseconds from the start.
    pub at: u64,
    /// To whom: a client's seat, which a later process may take.
    pub seat: usize,
    /// What.
    pub deed: Deed,
}

/// What happens. Times are in microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// A client begins.
    Start,
    /// It asks.
    Ask(Ask),
    /// It cancels one of its open requests.
    Cancel(usize),
    /// It offers to handle an action.
    Register(&'static str, u32),
    /// It takes one of its offers back.
    Deregister(usize),
    /// It changes the credit of one.
    Credit(usize, u32),
    /// Its link breaks: of what is under way, a part arrives, up to any byte.
    Cut,
    /// Nothing arrives on its link any more; one of the two may learn that it is gone.
    Dark {
        /// The client knows.
        client_knows: bool,
        /// The server knows.
        server_knows: bool,
    },
    /// Connecting fails for a while.
    Unreachable(u64),
    /// It does not read for a while.
    Unread(u64),
    /// Its process stands still for a while.
    Hang(u64),
    /// Its process dies, and another one comes after a while, perhaps under the same session; its machine may die with
    /// it, so that nobody is told.
    Crash {
        /// Until the next one comes.
        away: u64,
        /// Under the same session's name.
        same_session: bool,
        /// No end of stream is seen.
        silent: bool,
    },
    /// Another process takes its session while it lives.
    TakeOver,
    /// The broker's process stands still for a while.
    BrokerHang(u64),
    /// The broker dies and comes back after a while, with another boot id and nothing in memory.
    BrokerCrash(u64),
    /// The broker's machine loses its power, and comes back after a while.
    PowerLoss(u64),
    /// The broker's disk is full for a while.
    DiskFull(u64),
    /// The next sync of the broker's log fails.
    SyncFails,
    /// The broker drains for so long at most, and another one comes.
    BrokerLeaves(u64),
    /// The wall clock steps, in milliseconds.
    WallStep(i64),
    /// The broker's monotonic clock jumps ahead, as after a suspend.
    BrokerLeap(u64),
    /// A client's monotonic clock does.
    Leap(u64),
}

/// A request to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// What kind.
    pub kind: Kind,
    /// To whom.
    pub action: &'static str,
    /// How long its requester waits, in microseconds.
    pub timeout: u64,
    /// For how long the broker keeps it, in microseconds, if it is durable.
    pub durable: Option<u64>,
    /// How often it may be tried.
    pub max_attempts: u8,
    /// Bytes beside its number.
    pub padding: usize,
}

/// What a requester asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One reply.
    Request,
    /// None.
    Send,
    /// One from each handler.
    Broadcast,
}

impl Deed {
    /// Its name without its facts: what can be left out together.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Ask(Ask { kind: Kind::Send, durable: Some(_), .. }) => "durable-send",
            Self::Ask(Ask { durable: Some(_), .. }) => "durable-request",
            Self::Ask(Ask { kind: Kind::Request, .. }) => "request",
            Self::Ask(Ask { kind: Kind::Send, .. }) => "send",
            Self::Ask(Ask { kind: Kind::Broadcast, .. }) => "broadcast",
            Self::Cancel(_) => "cancel",
            Self::Register(..) => "register",
            Self::Deregister(_) => "deregister",
            Self::Credit(..) => "credit",
            Self::Cut => "cut",
            Self::Dark { .. } => "dark",
            Self::Unreachable(_) => "unreachable",
            Self::Unread(_) => "unread",
            Self::Hang(_) => "hang",
            Self::Crash { .. } => "crash",
            Self::TakeOver => "take-over",
            Self::BrokerHang(_) => "broker-hang",
            Self::BrokerCrash(_) => "broker-crash",
            Self::PowerLoss(_) => "power-loss",
            Self::DiskFull(_) => "disk-full",
            Self::SyncFails => "sync-fails",
            Self::BrokerLeaves(_) => "broker-leaves",
            Self::WallStep(_) => "wall-step",
            Self::BrokerLeap(_) => "broker-leap",
            Self::Leap(_) => "leap",
        }
    }
}

/// Writes the script of a history.
pub(crate) fn write(profile: Profile, settings: &Settings, rng: &mut Rng) -> Vec<Step> {
    let seats = settings.clients + settings.json_clients;
    let mut steps = Vec::new();
    let mut add = |at, seat, deed| steps.push(Step { index: 0, at, seat, deed });
    for seat in 0..seats {
        let at = rng.below(50_000);
        add(at, seat, Deed::Start);
        if profile == Profile::Durable && rng.chance(400) {
            // What waits for it is there before it comes.
            let late = rng.below(settings.length);
            add(late, seat, Deed::Register(rng.pick(&ACTIONS), rng.between(1, 8) as u32));
            continue;
        }
        add(at + 1, seat, Deed::Register(rng.pick(&ACTIONS), rng.between(1, 8) as u32));
        if rng.chance(300) {
            add(at + 2, seat, Deed::Register(rng.pick(&ACTIONS), rng.between(1, 8) as u32));
        }
    }
    for seat in 0..seats {
        let mut at = rng.below(SECOND / 5);
        for _ in 0..settings.asks / seats as u64 {
            add(at, seat, application(settings, rng));
            // Bursts, then a pause.
            at += if rng.chance(800) { rng.below(200) } else { rng.below(settings.pause) };
            at = if at > settings.length { rng.below(settings.length) } else { at };
        }
    }
    for _ in 0..settings.faults {
        let at = SECOND / 20 + rng.below(settings.length);
        add(at, rng.below(seats as u64) as usize, fault(profile, rng));
    }
    steps.sort_by_key(|step| step.at);
    for (index, step) in steps.iter_mut().enumerate() {
        step.index = index;
    }
    steps
}

fn application(settings: &Settings, rng: &mut Rng) -> Deed {
    match rng.below(100) {
        0..=1 => Deed::Register(rng.pick(&ACTIONS), rng.between(1, 8) as u32),
        2 => Deed::Deregister(rng.below(4) as usize),
        3..=8 => Deed::Cancel(rng.below(8) as usize),
        _ if settings.log.is_some() && rng.chance(800) => durable(rng),
        _ => Deed::Ask(Ask {
            kind: match rng.below(10) {
                0 => Kind::Broadcast,
                1 => Kind::Send,
                _ => Kind::Request,
            },
            action: rng.pick(&ACTIONS),
            timeout: if rng.chance(300) { rng.between(2000, 50_000) } else { rng.between(2000, 3 * SECOND) },
            durable: None,
            max_attempts: rng.between(1, 3) as u8,
            padding: if rng.chance(settings.large) { rng.between(10_000, 40_000) } else { rng.below(200) }
                as usize,
        }),
    }
}

/// Something that must survive. Its requester waits for a while, or until there is an outcome whatever happens.
fn durable(rng: &mut Rng) -> Deed {
    Deed::Ask(Ask {
        kind: if rng.chance(400) { Kind::Send } else { Kind::Request },
        action: rng.pick(&ACTIONS),
        timeout: if rng.chance(300) { rng.between(2000, 3 * SECOND) } else { PATIENCE },
        durable: Some(if rng.chance(200) { rng.between(SECOND / 10, 2 * SECOND) } else { LONGEST_TTL }),
        max_attempts: rng.below(6) as u8,
        padding: rng.below(200) as usize,
    })
}

fn fault(profile: Profile, rng: &mut Rng) -> Deed {
    let among: &[u8] = match profile {
        Profile::Calm | Profile::Restless => &[0],
        Profile::Lossy => &[1, 1, 1, 2, 3],
        Profile::Crashy => &[1, 6, 6, 7, 9, 10],
        Profile::Overload => &[0, 1, 4],
        Profile::Slow => &[4, 4, 5, 8],
        Profile::Clocks => &[1, 11, 12, 13],
        Profile::Forgetful => &[1, 1, 2, 3, 6],
        Profile::Durable => &[0, 1, 2, 3, 6, 6, 8, 9, 9, 9, 10, 14, 14, 14, 14, 15, 16],
        Profile::Mixed => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
    };
    match rng.pick(among) {
        0 => match rng.below(4) {
            0 => Deed::Register(rng.pick(&ACTIONS), rng.between(1, 8) as u32),
            1 => Deed::Deregister(rng.below(4) as usize),
            _ => Deed::Credit(rng.below(4) as usize, rng.between(1, 8) as u32),
        },
        1 => Deed::Cut,
        2 => Deed::Dark { client_knows: rng.chance(300), server_knows: rng.chance(300) },
        3 => Deed::Unreachable(rng.between(1000, SECOND)),
        4 => Deed::Unread(rng.between(1000, 3 * SECOND)),
        5 => {
            let longest = if rng.chance(200) { 20 * SECOND } else { SECOND };
            Deed::Hang(rng.between(1000, longest))
        }
        6 => Deed::Crash {
            away: rng.between(1000, SECOND),
            same_session: rng.chance(700),
            silent: rng.chance(300),
        },
        7 => Deed::TakeOver,
        8 => Deed::BrokerHang(rng.between(1000, SECOND)),
        9 => Deed::BrokerCrash(rng.between(1000, SECOND)),
        10 => Deed::BrokerLeaves(rng.between(1000, SECOND)),
        11 => Deed::WallStep(rng.between(0, 7_200_000) as i64 - 3_600_000),
        12 => Deed::BrokerLeap(rng.between(1000, 10 * SECOND)),
        14 => Deed::PowerLoss(rng.between(1000, SECOND)),
        15 => Deed::DiskFull(rng.between(1000, SECOND)),
        16 => Deed::SyncFails,
        _ => Deed::Leap(rng.between(1000, 10 * SECOND)),
    }
}
