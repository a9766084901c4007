//! Everything about a server that can be set.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ringpost_broker::Policy;
use ringpost_protocol::limits::{
    DEFAULT_MAX_PAYLOAD_BYTES, DEFAULT_PORT, FRAME_OVERHEAD_BYTES, MAX_MAX_PAYLOAD_BYTES,
};
use serde::Deserialize;

use ringpost_protocol::secure::{Role, SecureKey};

use crate::{Listen, ListenerKind, Network, Peer, key_config::KeyConfig, keys::KeyFile, units};

/// How the next handler of an action is chosen among those that have credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Dispatch {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one that holds the fewest requests.
    LeastBusy,
}

impl std::str::FromStr for Dispatch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "round-robin" => Ok(Self::RoundRobin),
            "least-busy" => Ok(Self::LeastBusy),
            _ => Err(format!("`{text}` is neither `round-robin` nor `least-busy`")),
        }
    }
}

/// Which requests are durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Durable {
    /// Those that ask for it.
    #[default]
    Asked,
    /// All, but for broadcasts.
    All,
}

impl std::str::FromStr for Durable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "asked" => Ok(Self::Asked),
            "all" => Ok(Self::All),
            _ => Err(format!("`{text}` is neither `asked` nor `all`")),
        }
    }
}

/// When what was logged is synced, and what a durable request's acceptance means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Sync {
    /// Before it is accepted: it survives the loss of power. One sync serves all who wait.
    #[default]
    Always,
    /// So long after it was accepted: it survives the death of the server at once, and the loss of power after this time.
    Interval(Duration),
    /// Whenever the system likes: it survives the death of the server.
    Never,
}

impl std::str::FromStr for Sync {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => {
                let interval = text.strip_prefix("interval:").ok_or_else(|| {
                    format!("`{text}` is none of `always`, `interval:DURATION` and `never`")
                })?;
                units::parse_duration(interval).map(Self::Interval).map_err(|error| error.to_string())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Sync {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Everything about a server that can be set.
///
/// As TOML its keys are the command's flags: `max-payload = "16MiB"`. What is not given has its default, and a key that
/// does not exist is an error. Durations and sizes are written as [`units`] says.
///
/// ```
/// let config: ringpost_server::Config = ringpost_server::Config::from_toml_text(r#"
///     id = "a"
///     listen = ["127.0.0.1:8888", "[::1]:8888"]
///     dispatch = "least-busy"
///     drain-timeout = "30s"
/// "#)?;
/// assert_eq!(config.listen.len(), 2);
/// # Ok::<(), ringpost_server::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Config {
    /// The server's own name, told to clients; 1 to 255 bytes. Default `ringpost`.
    pub id: String,
    /// Where to listen; port 0 takes a free one. In a file as [`Listen`] is read: `HOST:PORT`, `HOST:PORT,secure` or
    /// `HOST:PORT,plain`; without a word it is secure where there are keys. Default `127.0.0.1:8888`.
    pub listen: Vec<Listen>,
    /// The keys that connections may use, and what may be done with each: in a file a table `[[key]]`. Default: none, and
    /// everybody who can connect may do everything.
    #[serde(rename = "key")]
    pub keys: Vec<KeyConfig>,
    /// More files with secure keys, with which everything may be done that goes with their roles. Default: none.
    pub secure_key_file: Vec<KeyFile>,
    /// Secure keys that are in no file. They stay as long as the server runs.
    #[serde(skip)]
    pub secure_keys: Vec<(SecureKey, Role)>,
    /// Servers to work with: in a file a table `[[peer]]`. Default: none.
    #[serde(rename = "peer")]
    pub peers: Vec<Peer>,
    /// Requests at once that go to a peer, or come from it, for each action. Default 256.
    pub peer_credit: u32,
    /// Networks of balancers: connections from them begin with a header of the PROXY protocol, version 2, and count as
    /// coming from the address that it names. Default: none.
    pub proxy_from: Vec<Network>,
    /// How handlers are chosen. Default round-robin.
    pub dispatch: Dispatch,
    /// The least time between two dispatches. Default 0: none.
    #[serde(with = "units::duration")]
    pub dispatch_interval: Duration,
    /// The longest payload in bytes, up to 1 GiB. Default 16 MiB.
    #[serde(with = "units::size")]
    pub max_payload: u64,
    /// Requests that may wait for credit in one action's queue. Default 65536.
    pub queue_limit: usize,
    /// Bytes that may wait in one action's queue. Default 64 MiB.
    #[serde(with = "units::size")]
    pub queue_limit_bytes: u64,
    /// Connections at once. Default: 50000, or what the limit of open files allows if that is less.
    pub max_connections: Option<usize>,
    /// Connections at once that have not said who they are: no whole first message, no handshake. From half of it on it is
    /// left to chance, more and more, who may come in. Default 4096.
    pub max_unauthenticated: usize,
    /// The same for those from one address (of IPv6: from one /64), but not for addresses in `proxy-from`: behind those, it
    /// is the address that is told that counts. Default 512.
    pub max_unauthenticated_per_address: usize,
    /// Actions that one connection may register. Default 1024.
    pub max_actions: usize,
    /// The longest ttl and timeout: longer ones are cut to it. Default 7 days.
    #[serde(with = "units::duration")]
    pub max_ttl: Duration,
    /// The timeout of a binary client's request that names none. Default 10 s.
    #[serde(with = "units::duration")]
    pub default_timeout: Duration,
    /// How many bytes may wait to be sent on one connection before it is closed as too slow. From half of it on its handlers
    /// get nothing more; if it then reads nothing for three times `ping-interval`, it is closed too. Default 64 MiB.
    #[serde(with = "units::size")]
    pub outbound_limit: u64,
    /// The time in which a new connection must say its first message. Default 5 s.
    #[serde(with = "units::duration")]
    pub handshake_timeout: Duration,
    /// Silence after which a client is asked whether it is there; it is lost after three times that. Default 5 s.
    #[serde(with = "units::duration")]
    pub ping_interval: Duration,
    /// How long the server's thread goes on looking for work after the last it had, before it sleeps: to wake it up takes
    /// 20 to 40 µs, which a message that finds it awake is spared. It gives way to whoever else wants the processor, and looks
    /// more and more rarely where that brings nothing. 0, where power counts more: it sleeps at once. At most 1 s. Default 50 µs.
    #[serde(with = "units::duration")]
    pub busy_poll: Duration,
    /// Bytes of all messages that are held: half received, queued, kept for another attempt or a reconnect, on their way out.
    /// A quarter of it is for large messages that are half received: beyond it they wait, and after 5 s one is given up. Once
    /// the rest is used up, sockets are read only once a second, and requests are refused. At least eight times `max-payload`
    /// and what else a frame can have. Default 1 GiB.
    #[serde(with = "units::size")]
    pub memory: u64,
    /// Broadcasts that may wait for one handler's credit; the next one's leg is refused. Default 16.
    pub leg_queue_limit: usize,
    /// A handler that has not answered this long after it was called back gets nothing more until it answers. Default
    /// 30 s.
    #[serde(with = "units::duration")]
    pub stuck_after: Duration,
    /// How long a client may be away before its session is forgotten, with all that it has open. Default 60 s.
    #[serde(with = "units::duration")]
    pub session_linger: Duration,
    /// Sessions without anything open that are remembered while their clients are away. Default 16384.
    pub max_sessions_away: usize,
    /// Bytes of outcomes that are kept for one session until its client has acknowledged them; beyond it the oldest
    /// cannot be sent again after a reconnect. Default 1 MiB.
    #[serde(with = "units::size")]
    pub outcome_limit: u64,
    /// Where the log of durable requests is. Default: nowhere, and durable requests are refused.
    pub data_dir: Option<PathBuf>,
    /// Which requests and sends are durable: those that ask for it, or all but broadcasts, which needs `data-dir`. Default
    /// `asked`.
    pub durable: Durable,
    /// Bytes of durable requests without an outcome that are kept in memory. Beyond it they are only in the log, and are read
    /// back when their turn is near: what came last first. At most half of `memory`. Default: a quarter of `memory`.
    #[serde(deserialize_with = "units::some_size")]
    pub queue_memory: Option<u64>,
    /// When the log is synced. Default `always`; `interval:7s`, `never`.
    pub sync: Sync,
    /// Bytes of one file of the log: at least the largest request. Default 64 MiB.
    #[serde(with = "units::size")]
    pub segment_size: u64,
    /// Bytes that the log may take on the disk before durable requests are refused; at least four segments. Default 8 GiB.
    #[serde(with = "units::size")]
    pub max_disk: u64,
    /// How long a handler may have a durable request without an answer or a word of progress; then another gets it. Default
    /// 60 s.
    #[serde(with = "units::duration")]
    pub handle_timeout: Duration,
    /// How long, after a restart, what a handler held waits for it to come back; then another gets it. Default 5 s.
    #[serde(with = "units::duration")]
    pub reattach: Duration,
    /// How long an attempt at a durable request stays with a peer that nothing is heard from; then the next one begins.
    #[serde(with = "units::duration")]
    pub peer_lost: Duration,
    /// How long dead letters are kept: durable sends that were given up. Default 7 days.
    #[serde(with = "units::duration")]
    pub dead_ttl: Duration,
    /// How many dead letters are kept: beyond it the oldest are dropped. Default 10000.
    pub dead_limit: usize,
    /// Idempotency keys of durable requests that are remembered, each until its request's ttl ends; requests with further ones
    /// are refused. Default 1000000.
    pub idempotency_limit: usize,
    /// How long a leaving server waits for what is open. Default 10 s.
    #[serde(with = "units::duration")]
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let broker = ringpost_broker::Config::default();
        Self {
            id: broker.server_id,
            listen: vec![SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)).into()],
            keys: Vec::new(),
            secure_key_file: Vec::new(),
            secure_keys: Vec::new(),
            peers: Vec::new(),
            peer_credit: 256,
            proxy_from: Vec::new(),
            dispatch: Dispatch::default(),
            dispatch_interval: broker.dispatch_interval,
            max_payload: u64::from(DEFAULT_MAX_PAYLOAD_BYTES),
            queue_limit: broker.queue_limit,
            queue_limit_bytes: broker.queue_limit_bytes as u64,
            max_connections: None,
            max_unauthenticated: 4096,
            max_unauthenticated_per_address: 512,
            max_actions: broker.max_actions,
            max_ttl: broker.max_ttl,
            default_timeout: broker.default_timeout,
            outbound_limit: 64 << 20,
            handshake_timeout: Duration::from_secs(5),
            ping_interval: broker.ping_interval,
            busy_poll: Duration::from_micros(50),
            memory: broker.memory_bytes as u64,
            leg_queue_limit: broker.leg_queue_limit,
            stuck_after: broker.stuck_after,
            session_linger: broker.session_linger,
            max_sessions_away: broker.max_sessions_away,
            outcome_limit: broker.outcome_limit_bytes as u64,
            data_dir: None,
            durable: Durable::default(),
            queue_memory: None,
            sync: Sync::default(),
            segment_size: 64 << 20,
            max_disk: 8 << 30,
            handle_timeout: broker.handle_timeout,
            reattach: broker.reattach,
            peer_lost: broker.peer_lost,
            dead_ttl: broker.dead_ttl,
            dead_limit: broker.dead_limit,
            idempotency_limit: broker.idempotency_limit,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// A configuration that cannot be used. The command ends with 78.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path} cannot be read: {cause}")]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        cause: std::io::Error,
    },
    /// It is not TOML, or has keys or types that are not known.
    #[error("the configuration{} is not understood: {}", in_file(path.as_deref()), cause.to_string().trim_end())]
    NotUnderstood {
        /// Where it came from, if from a file.
        path: Option<PathBuf>,
        /// Line, column, what is wrong, and what is allowed.
        #[source]
        cause: Box<toml::de::Error>,
    },
    /// A value is out of its range.
    #[error("{key} = {value}: must be {allowed}")]
    OutOfRange {
        /// The key, which is the flag's name too.
        key: &'static str,
        /// The value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
}

fn in_file(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| format!(" {}", path.display()))
}

impl Config {
    /// Whether nothing but the keys is another.
    pub(crate) fn differs_only_in_keys(&self, other: &Self) -> bool {
        let Self { keys, secure_key_file, secure_keys, .. } = self.clone();
        *self == Self { keys, secure_key_file, secure_keys, ..other.clone() }
    }

    /// Reads a TOML file. The values are not checked yet, since flags may still replace them: see
    /// [`Config::validate`].
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`], [`ConfigError::NotUnderstood`].
    pub fn from_toml(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
        toml::from_str(&text).map_err(|cause| ConfigError::NotUnderstood {
            path: Some(path.to_owned()),
            cause: Box::new(cause),
        })
    }

    /// The same from text.
    ///
    /// # Errors
    /// [`ConfigError::NotUnderstood`].
    pub fn from_toml_text(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text)
            .map_err(|cause| ConfigError::NotUnderstood { path: None, cause: Box::new(cause) })
    }

    /// Checks every value. Starting a server does it too.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`], for the first one that is.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let largest_frame = self.max_payload.saturating_add(u64::from(FRAME_OVERHEAD_BYTES));
        check(
            "id",
            format!("{:?}", self.id),
            (1..=255).contains(&self.id.len()) && !self.id.chars().any(char::is_control),
            || "1 to 255 bytes without control characters".into(),
        )?;
        check("listen", "[]", !self.listen.is_empty(), || "at least one address".into())?;
        check(
            "max-payload",
            self.max_payload,
            (1..=u64::from(MAX_MAX_PAYLOAD_BYTES)).contains(&self.max_payload),
            || "1 byte to 1GiB".into(),
        )?;
        check("queue-limit-bytes", self.queue_limit_bytes, self.queue_limit_bytes >= largest_frame, || {
            format!(
                "at least {largest_frame} (max-payload and a frame's other parts), or the largest request could never wait"
            )
        })?;
        check("memory", self.memory, self.memory >= 8 * largest_frame, || {
            format!("at least {} (eight times max-payload and a frame's other parts)", 8 * largest_frame)
        })?;
        check("queue-memory", self.queue_memory(), self.queue_memory() <= self.memory / 2, || {
            format!("at most {} (half of memory)", self.memory / 2)
        })?;
        check("outbound-limit", self.outbound_limit, self.outbound_limit >= 2 * largest_frame, || {
            format!(
                "at least {} (twice max-payload and a frame's other parts), or one large message behind another would \
                 be too much",
                2 * largest_frame
            )
        })?;
        let least = largest_frame + (64 << 10);
        check(
            "segment-size",
            self.segment_size,
            (least..=u64::from(u32::MAX)).contains(&self.segment_size),
            || format!("{least} (the largest request and what is logged with it) to 4GiB"),
        )?;
        let four = self.segment_size.saturating_mul(4);
        check("max-disk", self.max_disk, self.max_disk >= four, || {
            format!("at least {four} (four times segment-size)")
        })?;
        check("max-connections", self.max_connections.unwrap_or(1), self.max_connections != Some(0), || {
            "at least 1".into()
        })?;
        for (key, value) in [
            ("max-actions", self.max_actions),
            ("max-unauthenticated", self.max_unauthenticated),
            ("max-unauthenticated-per-address", self.max_unauthenticated_per_address),
        ] {
            check(key, value, value > 0, || "at least 1".into())?;
        }
        check("peer-credit", self.peer_credit, self.peer_credit > 0, || "at least 1".into())?;
        for peer in &self.peers {
            let valid = peer.validate();
            check("peer", &peer.address, valid.is_ok(), || "HOST:PORT[,key-file=FILE][,action=NAME]".into())?;
        }
        let keyless =
            self.listen.iter().find(|listen| !self.has_keys() && listen.kind == ListenerKind::Secure);
        check("listen", keyless.map(Listen::to_string).unwrap_or_default(), keyless.is_none(), || {
            "plain as long as there is no key: nobody could connect".into()
        })?;
        for (key, value) in [
            ("max-ttl", self.max_ttl),
            ("default-timeout", self.default_timeout),
            ("handshake-timeout", self.handshake_timeout),
            ("ping-interval", self.ping_interval),
            ("stuck-after", self.stuck_after),
            ("handle-timeout", self.handle_timeout),
            ("dead-ttl", self.dead_ttl),
        ] {
            let allowed = Duration::from_millis(1)..=Duration::from_millis(u64::from(u32::MAX - 1));
            check(key, format!("{value:?}"), allowed.contains(&value), || "1ms to 49d".into())?;
        }
        let possible = self.durable == Durable::Asked || self.data_dir.is_some();
        check("durable", "all", possible, || {
            "`asked` without a log: say with `data-dir` (the flag --data-dir DIR) where that is to be".into()
        })?;
        for (key, value) in [
            ("dispatch-interval", self.dispatch_interval),
            ("session-linger", self.session_linger),
            ("reattach", self.reattach),
            ("peer-lost", self.peer_lost),
            ("drain-timeout", self.drain_timeout),
        ] {
            let allowed = value <= Duration::from_secs(86_400);
            check(key, format!("{value:?}"), allowed, || "at most 1d".into())?;
        }
        check(
            "busy-poll",
            format!("{:?}", self.busy_poll),
            self.busy_poll <= Duration::from_secs(1),
            || "at most 1s".into(),
        )?;
        Ok(())
    }

    /// Whether there are any secure keys.
    pub(crate) fn has_keys(&self) -> bool {
        !(self.keys.is_empty() && self.secure_key_file.is_empty() && self.secure_keys.is_empty())
    }

    /// What the core is told of it. Both random numbers are new at each start.
    pub(crate) fn broker(&self, boot: u64, hash_seed: u64) -> ringpost_broker::Config {
        ringpost_broker::Config {
            server_id: self.id.clone(),
            boot,
            hash_seed,
            policy: match self.dispatch {
                Dispatch::RoundRobin => Policy::RoundRobin,
                Dispatch::LeastBusy => Policy::LeastBusy,
            },
            dispatch_interval: self.dispatch_interval,
            max_payload: self.max_payload_bytes(),
            queue_limit: self.queue_limit,
            queue_limit_bytes: usize::try_from(self.queue_limit_bytes).unwrap_or(usize::MAX),
            max_actions: self.max_actions,
            default_timeout: self.default_timeout,
            max_ttl: self.max_ttl,
            ping_interval: self.ping_interval,
            queue_memory_bytes: usize::try_from(self.queue_memory()).unwrap_or(usize::MAX),
            memory_bytes: usize::try_from(self.memory).unwrap_or(usize::MAX),
            window_bytes: usize::try_from(self.outbound_limit / 4).unwrap_or(usize::MAX),
            leg_queue_limit: self.leg_queue_limit,
            stuck_after: self.stuck_after,
            durable_all: self.durable == Durable::All,
            handle_timeout: self.handle_timeout,
            reattach: self.reattach,
            peer_lost: self.peer_lost,
            dead_ttl: self.dead_ttl,
            dead_limit: self.dead_limit,
            idempotency_limit: self.idempotency_limit,
            session_linger: self.session_linger,
            max_sessions_away: self.max_sessions_away,
            outcome_limit_bytes: usize::try_from(self.outcome_limit).unwrap_or(usize::MAX),
            ..ringpost_broker::Config::default()
        }
    }

    /// Bytes of waiting durable requests that are kept in memory.
    pub(crate) fn queue_memory(&self) -> u64 {
        self.queue_memory.unwrap_or(self.memory / 4)
    }

    pub(crate) fn max_payload_bytes(&self) -> u32 {
        u32::try_from(self.max_payload).unwrap_or(MAX_MAX_PAYLOAD_BYTES)
    }
}

fn check(
    key: &'static str,
    value: impl ToString,
    holds: bool,
    allowed: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange { key, value: value.to_string(), allowed: allowed() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key is read, in every notation.
    #[test]
    fn reads_toml() {
        let text = r#"
            id = "a"
            listen = ["127.0.0.1:1", "[::1]:2,plain"]
            proxy-from = ["10.0.0.0/8", "::1"]
            max-unauthenticated = 7
            max-unauthenticated-per-address = 8
            dispatch = "least-busy"
            dispatch-interval = 5
            max-payload = "1MiB"
            queue-limit = 10
            queue-limit-bytes = 2000000
            max-connections = 3
            max-actions = 4
            max-ttl = "1h"
            default-timeout = "2.5s"
            outbound-limit = "8MiB"
            handshake-timeout = "1s"
            ping-interval = "250ms"
            memory = "160MiB"
            queue-memory = "20MiB"
            leg-queue-limit = 5
            stuck-after = "20s"
            session-linger = "30s"
            max-sessions-away = 6
            outcome-limit = "64KiB"
            drain-timeout = "1m"
        "#;
        let config = Config::from_toml_text(text).unwrap();
        config.validate().unwrap();
        assert_eq!((config.dispatch, config.max_payload), (Dispatch::LeastBusy, 1 << 20));
        let (one, other) = (config.listen[0], config.listen[1]);
        assert_eq!((one.kind, other.kind), (ListenerKind::Auto, ListenerKind::Plain));
        assert_eq!(config.proxy_from.len(), 2);
        assert_eq!((config.max_unauthenticated, config.max_unauthenticated_per_address), (7, 8));
        assert_eq!(config.dispatch_interval, Duration::from_millis(5));
        assert_eq!(config.default_timeout, Duration::from_millis(2500));
        assert_eq!((config.session_linger, config.outcome_limit), (Duration::from_secs(30), 64 << 10));
        assert_eq!(config.drain_timeout, Duration::from_secs(60));
        assert_eq!((config.memory, config.queue_memory), (160 << 20, Some(20 << 20)));
        assert_eq!(Config::default().queue_memory(), 256 << 20, "a quarter of memory");
        assert_eq!(Config::from_toml_text("").unwrap(), Config::default());
        Config::default().validate().unwrap();
    }

    /// Names are resolved in a file as they are in a flag.
    #[test]
    fn listens_on_names() {
        let config = Config::from_toml_text("listen = [\"localhost:0\"]").unwrap();
        assert!(config.listen[0].address.ip().is_loopback());
        let error = Config::from_toml_text("listen = [\"here\"]").unwrap_err().to_string();
        assert!(error.contains("here") && error.contains("HOST:PORT"), "{error}");
    }

    /// A wrong key or value is named, with what is allowed.
    #[test]
    fn errors_name_key_and_range() {
        let error = Config::from_toml_text("max-payloads = 1").unwrap_err().to_string();
        assert!(error.contains("max-payloads") && error.contains("`max-payload`"), "{error}");
        assert!(!error.ends_with('\n'), "{error:?}");
        let error = Config::from_toml_text("drain-timeout = \"soon\"").unwrap_err().to_string();
        assert!(error.contains("soon") && error.contains("250ms"), "{error}");
        let error = Config::from_toml(Path::new("/nowhere/ringpost.toml")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/ringpost.toml"), "{error}");
        for (text, expected) in [
            ("max-payload = \"2GiB\"", "max-payload = 2147483648: must be 1 byte to 1GiB"),
            ("listen = []", "listen = []: must be at least one address"),
            ("id = \"\"", "id = \"\": must be 1 to 255 bytes"),
            ("memory = \"20MiB\"", "memory = 20971520: must be at least"),
            ("queue-memory = \"513MiB\"", "queue-memory = 537919488: must be at most 536870912"),
            ("outbound-limit = 1", "outbound-limit = 1: must be at least"),
            ("max-connections = 0", "max-connections = 0: must be at least 1"),
            ("max-unauthenticated = 0", "max-unauthenticated = 0: must be at least 1"),
            ("listen = [\"127.0.0.1:1,secure\"]", "listen = 127.0.0.1:1,secure: must be plain as long as"),
            ("ping-interval = 0", "ping-interval = 0ns: must be 1ms to 49d"),
        ] {
            let error = Config::from_toml_text(text).unwrap().validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
