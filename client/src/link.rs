//! The state of the connection: which phase it is in, when it was last heard, when to try again.

use std::time::Duration;

use ringpost_protocol::time::Time;

use crate::Error;

/// How long a server may take to answer the hello.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which a ping is sent, unless the server's welcome says otherwise.
const DEFAULT_PING_INTERVAL: Duration = Duration::from_secs(5);
/// A connection is lost after this many ping intervals of silence.
const LOST_AFTER_INTERVALS: u32 = 3;
/// The pause between two tries grows to this many reconnect intervals.
const MAX_GROWTH: u32 = 10;
/// Below this, trying again would be a busy loop.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// Beyond this nobody means what they say, and arithmetic with jitter comes near its end.
const MAX_PAUSE: Duration = Duration::from_secs(u32::MAX as u64);

/// Where the connection stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// Not started.
    Idle,
    /// The driver is opening a connection.
    Dialing,
    /// The hello was sent; the welcome must come until then.
    Greeting { until: Time },
    /// Welcomed: requests and deliveries flow.
    Ready,
    /// Between two tries.
    Pausing { until: Time },
    /// Over, for this reason.
    Closed(Error),
}

/// The end of the connection that the server has announced.
///
/// The ping behind the client's own goaway is a fence: when its pong is here, everything that the server delivered
/// before it knew is here too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Farewell {
    pub(crate) fence: u64,
    pub(crate) passed: bool,
    /// When the server stops waiting.
    pub(crate) until: Time,
}

/// What the server's silence calls for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    Fine,
    Ping,
    Lost,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) phase: Phase,
    /// Counts connections, from 1.
    pub(crate) connection: u32,
    /// Whether a server ever said welcome.
    pub(crate) was_ready: bool,
    /// Tries that failed in a row.
    pub(crate) failures: u32,
    pub(crate) farewell: Option<Farewell>,
    pub(crate) max_payload: Option<u32>,
    ping_interval: Duration,
    last_heard: Time,
    check_at: Time,
    pings: u64,
    jitter: u64,
}

impl Link {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            phase: Phase::Idle,
            connection: 0,
            was_ready: false,
            failures: 0,
            farewell: None,
            max_payload: None,
            ping_interval: DEFAULT_PING_INTERVAL,
            last_heard: Time::ZERO,
            check_at: Time::NEVER,
            pings: 0,
            jitter: seed,
        }
    }

    /// Whether there is a connection to write on.
    pub(crate) fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Greeting { .. } | Phase::Ready)
    }

    /// Whether new requests may leave now.
    pub(crate) fn takes_requests(&self) -> bool {
        self.phase == Phase::Ready && self.farewell.is_none()
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }

    pub(crate) fn greet(&mut self, now: Time) {
        self.connection += 1;
        self.farewell = None;
        self.phase = Phase::Greeting { until: now + GREETING_TIMEOUT };
    }

    pub(crate) fn ready(&mut self, ping_interval_ms: u32, max_payload: u32, now: Time) {
        self.phase = Phase::Ready;
        (self.was_ready, self.failures) = (true, 0);
        self.max_payload = (max_payload > 0).then_some(max_payload);
        self.ping_interval = match ping_interval_ms {
            0 => DEFAULT_PING_INTERVAL,
            ms => Duration::from_millis(u64::from(ms)).max(MIN_PAUSE),
        };
        self.last_heard = now;
        self.check_at = now + self.ping_interval;
    }

    pub(crate) fn heard(&mut self, now: Time) {
        self.last_heard = now;
    }

    /// What the server's silence calls for now. The check moves on only when it is due, not with each message heard.
    pub(crate) fn check(&mut self, now: Time) -> Liveness {
        if self.phase != Phase::Ready || now < self.check_at {
            return Liveness::Fine;
        }
        let lost_at = self.last_heard + self.ping_interval * LOST_AFTER_INTERVALS;
        if now >= lost_at {
            return Liveness::Lost;
        }
        if now < self.last_heard + self.ping_interval {
            self.check_at = self.last_heard + self.ping_interval;
            return Liveness::Fine;
        }
        self.check_at = (now + self.ping_interval).min(lost_at);
        Liveness::Ping
    }

    /// How long a server may be silent.
    pub(crate) fn patience(&self) -> Duration {
        self.ping_interval * LOST_AFTER_INTERVALS
    }

    /// The number of the next ping.
    pub(crate) fn ping(&mut self) -> u64 {
        self.pings += 1;
        self.pings
    }

    /// Begins the pause before the next try, and says how long it is.
    pub(crate) fn pause(&mut self, interval: Duration, now: Time) -> Duration {
        let growth = 1u32.checked_shl(self.failures.saturating_sub(1)).unwrap_or(MAX_GROWTH).min(MAX_GROWTH);
        let pause = interval.max(MIN_PAUSE).saturating_mul(growth).min(MAX_PAUSE);
        let pause = pause.mul_f64(0.8 + 0.4 * self.random_fraction());
        self.phase = Phase::Pausing { until: now + pause };
        pause
    }

    /// From 0 up to, not including, 1. (splitmix64, Steele and others, 2014.)
    fn random_fraction(&mut self) -> f64 {
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.jitter;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn next_deadline(&self) -> Time {
        match self.phase {
            Phase::Greeting { until } | Phase::Pausing { until } => until,
            Phase::Ready => self.farewell.map_or(self.check_at, |farewell| self.check_at.min(farewell.until)),
            Phase::Idle | Phase::Dialing | Phase::Closed(_) => Time::NEVER,
        }
    }
}
