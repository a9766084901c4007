//! Everything that can be set.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use ringpost_protocol::units;
use serde::{Deserialize, Deserializer, de::Error};

use crate::{Choice, Instance, health::Rules};

/// The port, unless set: that of a server, which it stands in for.
pub const DEFAULT_PORT: u16 = 8888;

/// How instances are asked whether they are well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Health {
    /// By a connection. It works with every service; the system accepts connections for a process that hangs, too.
    #[default]
    Connect,
    /// By a ping of Ringpost's JSON dialect, which wants its pong and nothing else. Servers with a key answer it, too.
    Ping,
    /// Not at all. Sessions that fail are noticed all the same; after `rise` intervals it is tried again.
    Off,
}

/// What becomes of a client when no instance can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WhenDown {
    /// Its connection is reset at once.
    #[default]
    Refuse,
    /// It waits for one, as long as `connect-timeout`.
    Hold,
}

/// What bytes are carried by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Splicing {
    /// Copied while they are few, spliced while they are many.
    #[default]
    Auto,
    /// Always spliced; for measuring.
    Always,
    /// Always copied.
    Never,
}

macro_rules! named {
    ($type:ty, $what:literal, $($name:literal => $value:ident),+) => {
        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($name => Ok(Self::$value),)+
                    _ => Err(format!(concat!("`{}` is no ", $what, ": one of ", $($name, " ",)+ "is"), text)),
                }
            }
        }
    };
}

named!(Health, "kind of health check", "connect" => Connect, "ping" => Ping, "off" => Off);
named!(WhenDown, "answer", "refuse" => Refuse, "hold" => Hold);
named!(Splicing, "way of splicing", "auto" => Auto, "always" => Always, "never" => Never);

/// A balancer's configuration. The keys of the TOML file are the fields' names with hyphens; a key that does not exist is
/// an error. Durations are written as [`units`] says.
///
/// ```
/// use ringpost_balancer::Config;
/// let config = Config::from_toml_text(r#"
///     listen = ["127.0.0.1:8888"]
///     instances = ["localhost:8886", { address = "localhost:8887", weight = 2 }]
///     choice = "least-connections"
/// "#)?;
/// config.validate()?;
/// # Ok::<(), ringpost_balancer::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen. Default `127.0.0.1:8888`.
    #[serde(deserialize_with = "addresses")]
    pub listen: Vec<SocketAddr>,
    /// The servers behind it. SIGHUP reads them again from the file.
    pub instances: Vec<Instance>,
    /// Which of them a connection goes to. Default `round-robin`.
    pub choice: Choice,
    /// How they are asked whether they are well. Default `connect`.
    pub health: Health,
    /// The time between two probes of an instance, a fifth more or less. Default 2 s.
    #[serde(with = "units::duration")]
    pub health_interval: Duration,
    /// How long a probe may take. Default 1 s.
    #[serde(with = "units::duration")]
    pub health_timeout: Duration,
    /// Probes that an instance which is down must pass, one after the other. Default 2.
    pub rise: u32,
    /// Probes or sessions that must fail, one after the other, before it counts as down. Default 3.
    pub fall: u32,
    /// How long an instance that comes back has less than its weight. Default 10 s.
    #[serde(with = "units::duration")]
    pub slow_start: Duration,
    /// How long one instance may take to accept a connection; then the next is tried. Default 2 s.
    #[serde(with = "units::duration")]
    pub connect_timeout: Duration,
    /// What becomes of a client when no instance can be had. Default `refuse`.
    pub when_down: WhenDown,
    /// Whether the sessions of an instance that is found to be down are cut. Default `false`: its clients judge by
    /// themselves.
    pub cut_when_down: bool,
    /// How long a session may be without a byte either way; 0 for ever, which is the default: Ringpost's clients may have
    /// nothing to say for long.
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// Silence after which the system asks whether a peer is still there. Default 30 s.
    #[serde(with = "units::duration")]
    pub keepalive: Duration,
    /// How long sessions may go on when the balancer leaves, or their instance drains; then they are cut. Default 10 s.
    #[serde(with = "units::duration")]
    pub drain_timeout: Duration,
    /// Sessions at once: more wait to be accepted. Default: as many as the limit of open files allows, at most 50000.
    pub max_connections: Option<usize>,
    /// Pipes at once; without one, bytes are copied. Default: a sixteenth of the limit of open files, at most 256.
    pub max_pipes: Option<usize>,
    /// What bytes are carried by. Default `auto`.
    pub splicing: Splicing,
    /// Whether instances are told the client's address by a header of the PROXY protocol, version 2. They must expect it.
    /// Default `false`.
    pub proxy_v2: bool,
    /// The time between two look-ups of an instance's name. Default 30 s.
    #[serde(with = "units::duration")]
    pub resolve_interval: Duration,
    /// Where to tell what is going on, by HTTP. Default: nowhere.
    #[serde(deserialize_with = "address")]
    pub admin: Option<SocketAddr>,
    /// How long the thread looks for more work before it sleeps. Default 0: it sleeps at once.
    #[serde(with = "units::duration")]
    pub busy_poll: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT))],
            instances: Vec::new(),
            choice: Choice::default(),
            health: Health::default(),
            health_interval: seconds(2),
            health_timeout: seconds(1),
            rise: 2,
            fall: 3,
            slow_start: seconds(10),
            connect_timeout: seconds(2),
            when_down: WhenDown::default(),
            cut_when_down: false,
            idle_timeout: Duration::ZERO,
            keepalive: seconds(30),
            drain_timeout: seconds(10),
            max_connections: None,
            max_pipes: None,
            splicing: Splicing::default(),
            proxy_v2: false,
            resolve_interval: seconds(30),
            admin: None,
            busy_poll: Duration::ZERO,
        }
    }
}

fn lookup(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|cause| format!(" ({cause})")).map(|mut all| all.next());
    match found {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(format!("`{text}` is no address: write HOST:PORT, for example 127.0.0.1:8888")),
        Err(cause) => {
            Err(format!("`{text}` is no address{cause}: write HOST:PORT, for example 127.0.0.1:8888"))
        }
    }
}

fn addresses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SocketAddr>, D::Error> {
    Vec::<String>::deserialize(from)?.iter().map(|text| lookup(text).map_err(D::Error::custom)).collect()
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    lookup(&String::deserialize(from)?).map(Some).map_err(D::Error::custom)
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
    /// An instance is the balancer itself: each connection would come back as another one, without end.
    #[error(
        "the instance {instance} is where this balancer itself listens ({listen}): name the servers behind it, and have the \
         balancer listen elsewhere"
    )]
    Itself {
        /// The instance.
        instance: String,
        /// Where the balancer listens.
        listen: SocketAddr,
    },
}

/// Whether an instance is what a balancer on this address would connect to itself by, as far as the words tell. A name other
/// than `localhost` may be anybody's.
fn is_itself(instance: &Instance, listen: SocketAddr) -> bool {
    let Some((host, port)) = instance.parts() else { return false };
    let own = listen.ip().to_canonical();
    // Who listens everywhere listens on the loopback too; and that is where a connection to nowhere in particular goes.
    let on_loopback = own.is_loopback() || own.is_unspecified();
    port == listen.port()
        && match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) => {
                address == own
                    || (own.is_unspecified() && address.is_loopback())
                    || (address.is_unspecified() && on_loopback)
            }
            Err(_) => host.eq_ignore_ascii_case("localhost") && on_loopback,
        }
}

fn in_file(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| format!(" {}", path.display()))
}

impl Config {
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

    /// Checks every value. Starting a balancer does it too.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`], for the first one that is; [`ConfigError::Itself`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        check("listen", "[]", !self.listen.is_empty(), || "at least one address".into())?;
        check("instances", "[]", !self.instances.is_empty(), || {
            "at least one (with flags: --instance HOST:PORT)".into()
        })?;
        for (place, instance) in self.instances.iter().enumerate() {
            if let Err(what) = instance.check() {
                let allowed = "HOST:PORT with values in their ranges".to_owned();
                return Err(ConfigError::OutOfRange { key: "instances", value: what, allowed });
            }
            let twice = self.instances[..place].iter().any(|other| other.address == instance.address);
            check("instances", &instance.address, !twice, || "there only once; give it a weight".into())?;
            if let Some(listen) = self.listen.iter().find(|listen| is_itself(instance, **listen)) {
                return Err(ConfigError::Itself { instance: instance.address.clone(), listen: *listen });
            }
        }
        check("rise", self.rise, self.rise > 0, || "at least 1".into())?;
        check("fall", self.fall, self.fall > 0, || "at least 1".into())?;
        check("max-connections", self.max_connections.unwrap_or(1), self.max_connections != Some(0), || {
            "at least 1".into()
        })?;
        let day = Duration::from_secs(86_400);
        for (key, value) in [
            ("health-interval", self.health_interval),
            ("health-timeout", self.health_timeout),
            ("connect-timeout", self.connect_timeout),
            ("resolve-interval", self.resolve_interval),
        ] {
            let allowed = Duration::from_millis(1)..=day;
            check(key, format!("{value:?}"), allowed.contains(&value), || "1ms to 1d".into())?;
        }
        let second = Duration::from_secs(1);
        check(
            "keepalive",
            format!("{:?}", self.keepalive),
            (second..=day).contains(&self.keepalive),
            || "1s to 1d".into(),
        )?;
        for (key, value, most) in [
            ("slow-start", self.slow_start, day),
            ("drain-timeout", self.drain_timeout, day),
            ("idle-timeout", self.idle_timeout, 49 * day),
            ("busy-poll", self.busy_poll, second),
        ] {
            check(key, format!("{value:?}"), value <= most, || format!("at most {most:?}"))?;
        }
        Ok(())
    }

    /// The same, checked.
    pub(crate) fn validated(self) -> Result<Self, ConfigError> {
        self.validate().map(|()| self)
    }

    /// Whether nothing but the instances is another.
    pub(crate) fn differs_only_in_instances(&self, other: &Self) -> bool {
        *self == Self { instances: self.instances.clone(), ..other.clone() }
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules {
            probing: self.health,
            interval: self.health_interval,
            rise: self.rise,
            fall: self.fall,
            slow_start: self.slow_start,
        }
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
            listen = ["127.0.0.1:1", "localhost:2"]
            instances = ["a:1,weight=2", { address = "b:2", max = 3, drain = true }]
            choice = "client-hash"
            health = "ping"
            health-interval = "1s"
            health-timeout = 500
            rise = 4
            fall = 5
            slow-start = "6s"
            connect-timeout = "7s"
            when-down = "hold"
            cut-when-down = true
            idle-timeout = "8m"
            keepalive = "9s"
            drain-timeout = "10s"
            max-connections = 11
            max-pipes = 12
            splicing = "never"
            proxy-v2 = true
            resolve-interval = "13s"
            admin = "127.0.0.1:14"
            busy-poll = "15us"
        "#;
        let config = Config::from_toml_text(text).unwrap();
        config.validate().unwrap();
        assert_eq!((config.choice, config.health), (Choice::ClientHash, Health::Ping));
        let mut second = Instance::new("b:2");
        (second.max, second.drain) = (Some(3), true);
        assert_eq!(config.instances[1], second);
        assert_eq!(config.instances[0].weight, 2);
        assert_eq!((config.when_down, config.splicing), (WhenDown::Hold, Splicing::Never));
        assert_eq!((config.rise, config.fall, config.max_pipes), (4, 5, Some(12)));
        assert_eq!(
            (config.health_timeout, config.idle_timeout),
            (Duration::from_millis(500), Duration::from_secs(480))
        );
        assert_eq!(config.admin.map(|address| address.port()), Some(14));
        assert_eq!(Config::from_toml_text("").unwrap(), Config::default());
    }

    /// A wrong key or value is named, with what is allowed.
    #[test]
    fn errors_name_key_and_range() {
        for (text, expected) in [
            ("choise = \"a\"", "`choice`"),
            ("choice = \"a\"", "least-connections"),
            ("instances = [1]", "an instance"),
            ("instances = [\"a\"]", "`a` is no HOST:PORT"),
            ("instances = [{ adress = \"a:1\" }]", "`address`"),
            ("listen = [\"here\"]", "HOST:PORT"),
            ("slow-start = \"soon\"", "250ms"),
        ] {
            let error = Config::from_toml_text(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = Config::from_toml(Path::new("/nowhere/balancer.toml")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/balancer.toml"), "{error}");
        let instance = "instances = [\"a:1\"]\n";
        for (text, expected) in [
            ("", "instances = []: must be at least one"),
            ("instances = [\"a:1\", \"a:1,weight=2\"]", "instances = a:1: must be there only once"),
            ("instances = [{ address = \"a:1\", weight = 0 }]", "weight = 0"),
            (&format!("{instance}listen = []"), "listen = []: must be at least one address"),
            (&format!("{instance}rise = 0"), "rise = 0: must be at least 1"),
            (&format!("{instance}health-interval = 0"), "health-interval = 0ns: must be 1ms to 1d"),
            (&format!("{instance}keepalive = 1"), "keepalive = 1ms: must be 1s to 1d"),
            (&format!("{instance}max-connections = 0"), "max-connections = 0: must be at least 1"),
        ] {
            let error = Config::from_toml_text(text).unwrap().validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// A balancer is not its own instance, by whatever words that are known to mean it.
    #[test]
    fn not_its_own_instance() {
        for (listen, instance, itself) in [
            ("127.0.0.1:8888", "127.0.0.1:8888", true),
            ("127.0.0.1:8888", "localhost:8888", true),
            ("0.0.0.0:8888", "127.0.0.1:8888", true),
            ("[::]:8888", "[::1]:8888", true),
            ("[::]:8888", "127.0.0.1:8888", true),
            ("127.0.0.1:8888", "0.0.0.0:8888", true),
            ("192.0.2.1:8888", "[::ffff:192.0.2.1]:8888", true),
            ("127.0.0.1:8888", "127.0.0.1:8889", false),
            ("127.0.0.1:8888", "127.0.0.2:8888", false),
            ("127.0.0.1:8888", "server:8888", false),
            ("192.0.2.1:8888", "localhost:8888", false),
            ("0.0.0.0:8888", "192.0.2.1:8888", false),
        ] {
            let config = Config {
                listen: vec![listen.parse().unwrap()],
                instances: vec![Instance::new(instance)],
                ..Config::default()
            };
            match config.validate() {
                Err(error @ ConfigError::Itself { .. }) => {
                    let said = error.to_string();
                    assert!(itself && said.contains(listen) && said.contains(instance), "{said}");
                }
                other => assert!(!itself && other.is_ok(), "{listen} {instance}: {other:?}"),
            }
        }
    }
}
