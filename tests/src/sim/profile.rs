//! What kind of history a seed stands for, and the settings that go with it.

use std::time::Duration;

use ringpost_broker::{Config, Policy, log::SyncPolicy};

use super::{durable::LogSettings, rng::Rng};

/// A coherent scenario. All faults at once, all the time, would hide what each of them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Profile {
    /// Nothing goes wrong.
    Calm,
    /// Links break, at any byte, and go dark; connecting fails.
    Lossy,
    /// Clients die and come back, are taken over; the broker dies and comes back, or leaves in good order.
    Crashy,
    /// More is asked than can be handled, and all bounds are small.
    Overload,
    /// Clients read slowly, processes hang, handlers are stuck.
    Slow,
    /// Clocks jump, and links break.
    Clocks,
    /// Few sessions and few outcomes are remembered, for a short time.
    Forgetful,
    /// Handlers come and go and change their credit.
    Restless,
    /// Requests that must survive, and a broker and a disk that fail at any point.
    Durable,
    /// A little of everything.
    Mixed,
}

impl Profile {
    /// All there are.
    pub const ALL: [Self; 10] = [
        Self::Calm,
        Self::Lossy,
        Self::Crashy,
        Self::Overload,
        Self::Slow,
        Self::Clocks,
        Self::Forgetful,
        Self::Restless,
        Self::Durable,
        Self::Mixed,
    ];
}

/// What holds throughout a history.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Clients with the real core.
    pub clients: usize,
    /// Of these, how many have a session without a name.
    pub unnamed: usize,
    /// Clients that know only the JSON table.
    pub json_clients: usize,
    /// Requests and the like.
    pub asks: u64,
    /// For how long new things happen, in microseconds.
    pub length: u64,
    /// The longest pause between two things that one client does, in microseconds.
    pub pause: u64,
    /// Faults in a history.
    pub faults: u64,
    /// Bytes that wait to be sent on one connection at most.
    pub outbound_limit: usize,
    /// Bytes that are under way on one connection at most.
    pub socket_bytes: usize,
    /// The longest that quick work takes, in microseconds.
    pub work: u64,
    /// Thousandths of deliveries that are sat on far beyond their time, …
    pub stuck: u64,
    /// … and of these, the thousandths that are never answered.
    pub never: u64,
    /// Thousandths of payloads that are large.
    pub large: u64,
    /// Thousandths of clients that may not do everything.
    pub limited: u64,
    /// Thousandths of connections that have a secure key.
    pub secure: u64,
    /// How its log is kept, if it has one.
    pub log: Option<LogSettings>,
    /// The broker's.
    pub config: Config,
}

impl Settings {
    pub(crate) fn draw(profile: Profile, rng: &mut Rng) -> Self {
        let clients = rng.between(2, 6) as usize;
        let mut settings = Self {
            clients,
            unnamed: usize::from(rng.chance(150)),
            json_clients: rng.below(3) as usize,
            asks: rng.between(40, 250),
            length: rng.between(500_000, 4_000_000),
            pause: 100_000,
            faults: 0,
            outbound_limit: 64 << 20,
            socket_bytes: 1 << 20,
            work: 20_000,
            stuck: 5,
            never: 100,
            large: 10,
            limited: 0,
            secure: 0,
            log: None,
            config: Config {
                boot: 1,
                hash_seed: rng.next(),
                policy: if rng.chance(500) { Policy::RoundRobin } else { Policy::LeastBusy },
                stuck_after: Duration::from_millis(rng.between(500, 5000)),
                session_linger: Duration::from_secs(20),
                ..Config::default()
            },
        };
        if rng.chance(100) {
            settings.config.dispatch_interval = Duration::from_micros(rng.between(100, 5000));
        }
        settings.apply(profile, rng);
        // Last: what was drawn before stays what it was.
        settings.limited = if rng.chance(250) { rng.pick(&[200, 500, 1000]) } else { 0 };
        settings.secure = if rng.chance(100) { rng.pick(&[300, 1000]) } else { 0 };
        settings
    }

    fn apply(&mut self, profile: Profile, rng: &mut Rng) {
        match profile {
            Profile::Calm => {}
            Profile::Lossy | Profile::Clocks => self.faults = rng.between(3, 25),
            Profile::Crashy => self.faults = rng.between(2, 10),
            Profile::Overload => {
                self.overload(rng);
                self.faults = rng.below(4);
            }
            Profile::Slow => {
                self.slow(rng);
                self.faults = rng.between(2, 15);
            }
            Profile::Forgetful => {
                self.forget(rng);
                self.faults = rng.between(3, 20);
            }
            Profile::Durable => self.endure(rng),
            Profile::Restless => self.faults = rng.between(10, 60),
            Profile::Mixed => {
                if rng.chance(300) {
                    self.overload(rng);
                }
                if rng.chance(300) {
                    self.slow(rng);
                }
                if rng.chance(300) {
                    self.forget(rng);
                }
                self.faults = rng.between(3, 25);
            }
        }
    }

    fn overload(&mut self, rng: &mut Rng) {
        self.asks += 150;
        self.pause = 5000;
        self.length = rng.between(100_000, 1_000_000);
        self.large = 100;
        self.config.queue_limit = rng.between(1, 10) as usize;
        self.config.queue_limit_bytes = rng.pick(&[500, 40_000, 64 << 20]);
        self.config.memory_bytes = rng.pick(&[20_000, 100_000, 1 << 30]);
        self.config.leg_queue_limit = rng.between(1, 3) as usize;
        self.config.max_actions = rng.between(1, 3) as usize;
    }

    fn slow(&mut self, rng: &mut Rng) {
        self.stuck = rng.pick(&[20, 100, 300]);
        self.never = rng.pick(&[100, 500]);
        self.large = 200;
        self.outbound_limit = rng.pick(&[20_000, 100_000, 64 << 20]);
        self.socket_bytes = rng.pick(&[4096, 16_384]);
        self.config.window_bytes = self.outbound_limit / 4;
    }

    fn forget(&mut self, rng: &mut Rng) {
        self.config.max_sessions_away = rng.pick(&[0, 1, 2]);
        self.config.session_linger = Duration::from_millis(rng.pick(&[20, 200, 2000]));
        self.config.outcome_limit_bytes = rng.pick(&[400, 2000, 20_000]);
    }

    fn endure(&mut self, rng: &mut Rng) {
        let policies = [
            SyncPolicy::Always,
            SyncPolicy::Always,
            SyncPolicy::Always,
            SyncPolicy::Interval(Duration::from_millis(rng.between(10, 1000))),
            SyncPolicy::Never,
        ];
        let segment_bytes = rng.pick(&[4096, 4096, 16_384, 65_536]);
        let queue_memory_bytes = rng.pick(&[0, 100, 1000, 256 << 20, 256 << 20]);
        self.log = Some(LogSettings {
            policy: rng.pick(&policies),
            segment_bytes,
            max_disk: u64::from(segment_bytes) * rng.pick(&[4, 8, 100]),
            latency: rng.pick(&[200, 2000, 20_000]),
            queue_memory_bytes,
            recovery: rng.pick(&[0, 0, 20_000, 2_000_000]),
            bad_reads: rng.pick(&[0, 0, 100, 500]),
        });
        self.config.queue_memory_bytes = queue_memory_bytes;
        (self.json_clients, self.large) = (usize::from(rng.chance(300)), 0);
        self.asks = rng.between(10, 150);
        self.faults = rng.between(1, 12);
        self.work = rng.pick(&[5000, 20_000, 300_000]);
        self.config.handle_timeout = Duration::from_millis(rng.between(500, 5000));
        self.config.session_linger = Duration::from_secs(60);
        self.config.dead_ttl = Duration::from_secs(600);
    }
}
