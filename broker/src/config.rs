use std::time::Duration;

use ringpost_protocol::limits::DEFAULT_MAX_PAYLOAD_BYTES;

/// How the next handler of an action is chosen among those that have credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one that holds the fewest requests; among equals, the one that has waited longest.
    LeastBusy,
}

/// A fault, planted to see whether the simulation finds it.
#[cfg(feature = "planted-bugs")]
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// An answer does not give the slot back.
    LostCredit,
    /// A reply is sent twice.
    DoubleOutcome,
    /// An outcome that was acknowledged still counts as kept.
    LeakedOutcome,
    /// A handler that was served stays the first in line.
    WrongFairness,
    /// The answer that comes after the timeout is delivered too.
    LateReplyDelivered,
    /// What a lost handler held is not given to another one.
    LostAttempt,
    /// The newest that waits goes first.
    LastFirst,
    /// Time runs out after half of it.
    EarlyTimeout,
    /// A queue takes what comes.
    UnboundedQueue,
    /// One leg more is told than there are.
    WrongLegs,
    /// A client that comes back is told that what runs was never seen.
    WrongResume,
    /// The outcome of a durable request goes out before its record is stable.
    AnsweredEarly,
    /// That a durable request is done is not logged.
    DoneNotLogged,
    /// Some of what was accepted is not put back after a restart.
    AcceptanceLost,
    /// The outcome of a durable request is sent again after it was acknowledged.
    OutcomeReplayed,
    /// A request that is only in the log is copied forward as it is in memory: without its payload.
    MovedUnread,
    /// What a connection may not ask is asked all the same.
    ForbiddenAsked,
    /// Everybody is told of all receivers.
    ReceiversShown,
}

#[cfg(feature = "planted-bugs")]
impl Config {
    pub(crate) fn is_planted(&self, bug: PlantedBug) -> bool {
        self.planted_bug == Some(bug)
    }
}

/// Everything about the broker that can be set. Random values come from the driver.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server's own name, told to clients.
    pub server_id: String,
    /// Random at each start: makes delivery and request ids unique across restarts.
    pub boot: u64,
    /// The log's own id, or 0 without one: makes the ids of durable requests unique and stable over restarts.
    pub log_id: u64,
    /// Keys the hash tables, so that nobody outside can choose names that collide.
    pub hash_seed: u64,
    /// How handlers are chosen.
    pub policy: Policy,
    /// The least time between two dispatches; zero for none.
    pub dispatch_interval: Duration,
    /// The longest payload in bytes: told to clients. The codecs enforce it.
    pub max_payload: u32,
    /// Requests that may wait for credit in one action's queue.
    pub queue_limit: usize,
    /// Bytes that may wait in one action's queue.
    pub queue_limit_bytes: usize,
    /// Bytes of messages that may be held: see [`Broker::memory_used`](crate::Broker::memory_used).
    pub memory_bytes: usize,
    /// Bytes of durable requests without an outcome that are kept in memory; beyond it they are only in the log, and are read
    /// back when their turn is near.
    pub queue_memory_bytes: usize,
    /// Bytes of requests that may go out to one connection's handlers until the driver says that the connection can take
    /// more: see [`Output::Full`](crate::Output::Full). Default: no bound.
    pub window_bytes: usize,
    /// Legs of broadcasts that may wait for one handler.
    pub leg_queue_limit: usize,
    /// Actions that one connection may register.
    pub max_actions: usize,
    /// The credit of a handler that named none.
    pub default_credit: u32,
    /// The timeout of a request that names none.
    pub default_timeout: Duration,
    /// The same in the JSON dialect, where neither ttl nor timeout is given.
    pub default_json_timeout: Duration,
    /// The longest ttl and timeout: longer ones are cut to it.
    pub max_ttl: Duration,
    /// Silence on a binary connection after which it is sent a ping. It counts as lost after three times that.
    pub ping_interval: Duration,
    /// Treats every request and send as durable, but for broadcasts. Needs a log.
    pub durable_all: bool,
    /// How long a handler may have a durable request without an answer or a word of progress; then another gets it.
    pub handle_timeout: Duration,
    /// How long, after a restart, what a handler held waits for that handler to come back; then another gets it.
    pub reattach: Duration,
    /// How long an attempt at a durable request stays with a peer that nothing is heard from; then it is lost, and the next
    /// one begins. The end of a peer's attempt that was made here is kept for twice that.
    pub peer_lost: Duration,
    /// How long dead letters are kept, …
    pub dead_ttl: Duration,
    /// … and how many: beyond it the oldest are dropped.
    pub dead_limit: usize,
    /// Idempotency keys that are remembered; more are refused.
    pub idempotency_limit: usize,
    /// A handler that has not answered this long after it was called back gets nothing more until it answers.
    pub stuck_after: Duration,
    /// How long a session without a connection is remembered.
    pub session_linger: Duration,
    /// Sessions without a connection that are remembered; more are forgotten at once unless something is open in them.
    pub max_sessions_away: usize,
    /// Bytes of outcomes kept for one session until its client has acknowledged them. Beyond it the oldest are dropped:
    /// they cannot be sent again after a reconnect.
    pub outcome_limit_bytes: usize,
    /// Changes of the receivers that are closer together than this become one message.
    pub receivers_interval: Duration,
    /// See [`PlantedBug`].
    #[cfg(feature = "planted-bugs")]
    #[doc(hidden)]
    pub planted_bug: Option<PlantedBug>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server_id: "ringpost".into(),
            boot: 0,
            log_id: 0,
            hash_seed: 0,
            policy: Policy::default(),
            dispatch_interval: Duration::ZERO,
            max_payload: DEFAULT_MAX_PAYLOAD_BYTES,
            queue_limit: 65_536,
            queue_limit_bytes: 64 << 20,
            memory_bytes: 1 << 30,
            queue_memory_bytes: 256 << 20,
            window_bytes: usize::MAX,
            leg_queue_limit: 16,
            max_actions: 1024,
            default_credit: 64,
            default_timeout: Duration::from_secs(10),
            default_json_timeout: Duration::from_secs(60),
            max_ttl: Duration::from_secs(7 * 24 * 3600),
            ping_interval: Duration::from_secs(5),
            durable_all: false,
            handle_timeout: Duration::from_secs(60),
            reattach: Duration::from_secs(5),
            peer_lost: Duration::from_secs(60),
            dead_ttl: Duration::from_secs(7 * 24 * 3600),
            dead_limit: 10_000,
            idempotency_limit: 1_000_000,
            stuck_after: Duration::from_secs(30),
            session_linger: Duration::from_secs(60),
            max_sessions_away: 16_384,
            outcome_limit_bytes: 1 << 20,
            receivers_interval: Duration::from_millis(20),
            #[cfg(feature = "planted-bugs")]
            planted_bug: None,
        }
    }
}
