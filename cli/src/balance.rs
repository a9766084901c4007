//! `ringpost balance`: a load balancer in this process.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use ringpost_balancer::{Balancer, Choice, Config, ConfigError, Health, Instance, Splicing, WhenDown};
use ringpost_server::parse_listen;

use crate::{
    args::duration,
    exit::{Failure, Outcome},
    output, signals,
};

const EXAMPLES: &str = "\
Examples:
  ringpost balance --listen 127.0.0.1:8888 --instance localhost:8886 --instance localhost:8887
  ringpost balance --instance a:8888,weight=2 --instance b:8888,max=1000 --choice least-connections
  ringpost balance --config balancer.toml --admin 127.0.0.1:8889 --health ping

For each address a line `listening on ADDRESS:PORT` is printed to standard output when clients \
can connect, and `admin on ADDRESS:PORT` for --admin. Logs go to standard error.

Every setting is a flag, an environment variable, and a key of the TOML file given with --config; \
a flag is stronger than the environment, and that is stronger than the file. (--connect-timeout \
has no variable, and is 2s here: how long one instance may take, before the next is tried.)
  listen = [\"127.0.0.1:8888\"]
  instances = [\"localhost:8886\", { address = \"localhost:8887\", weight = 2, drain = false }]
  choice = \"least-connections\"

SIGHUP reads the file again and takes over its instances, unless flags name them; no connection is \
dropped for it. \
SIGTERM and SIGINT (Ctrl-C) accept nothing new and let sessions end, at most for --drain-timeout; \
then they are cut. A second signal ends it at once, with 128 and the signal's number.

Exit codes: 2 a flag or variable is not understood, 69 the address cannot be listened on, 71 \
io_uring cannot be used (see `ringpost doctor`), 78 configuration.";

/// Run a load balancer in front of servers, for any TCP service
///
/// Each connection goes to one of the instances and stays with it. One that cannot be connected to, or that fails its
/// health checks, gets no connections until it is well again; the client does not notice.
#[derive(Debug, Default, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BalanceArgs {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE", env = "RINGPOST_BALANCE_CONFIG")]
    config: Option<PathBuf>,

    /// Where to listen; may be given several times, and port 0 takes a free one [default: 127.0.0.1:8888]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "RINGPOST_BALANCE_LISTEN",
        value_delimiter = ',',
        value_parser = parse_listen
    )]
    listen: Vec<SocketAddr>,

    /// A server behind it: HOST:PORT[,weight=N][,max=N][,drain]; may be given several times (in the variable, with spaces between)
    #[arg(
        long = "instance",
        value_name = "INSTANCE",
        env = "RINGPOST_BALANCE_INSTANCES",
        value_delimiter = ' '
    )]
    instances: Vec<Instance>,

    /// How an instance is chosen for a connection [default: round-robin]
    #[arg(
        long,
        env = "RINGPOST_BALANCE_CHOICE",
        value_parser = PossibleValuesParser::new(["round-robin", "least-connections", "weighted", "client-hash"])
            .try_map(|text| text.parse::<Choice>())
    )]
    choice: Option<Choice>,

    /// How instances are asked whether they are well: by a connection, or by a ping that Ringpost's servers answer
    /// [default: connect]
    #[arg(
        long,
        env = "RINGPOST_BALANCE_HEALTH",
        value_parser = PossibleValuesParser::new(["connect", "ping", "off"]).try_map(|text| text.parse::<Health>())
    )]
    health: Option<Health>,

    /// The time between two probes of an instance, a fifth more or less [default: 2s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_BALANCE_HEALTH_INTERVAL", value_parser = duration)]
    health_interval: Option<Duration>,

    /// How long a probe may take [default: 1s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_BALANCE_HEALTH_TIMEOUT", value_parser = duration)]
    health_timeout: Option<Duration>,

    /// Probes that an instance which is down must pass, one after the other [default: 2]
    #[arg(long, value_name = "N", env = "RINGPOST_BALANCE_RISE")]
    rise: Option<u32>,

    /// Probes or connections that must fail, one after the other, before it counts as down [default: 3]
    #[arg(long, value_name = "N", env = "RINGPOST_BALANCE_FALL")]
    fall: Option<u32>,

    /// How long an instance that comes back has less than its weight [default: 10s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_BALANCE_SLOW_START", value_parser = duration)]
    slow_start: Option<Duration>,

    /// What becomes of a client when no instance can be had: reset, or kept waiting for --connect-timeout [default: refuse]
    #[arg(
        long,
        env = "RINGPOST_BALANCE_WHEN_DOWN",
        value_parser = PossibleValuesParser::new(["refuse", "hold"]).try_map(|text| text.parse::<WhenDown>())
    )]
    when_down: Option<WhenDown>,

    /// Cut the connections of an instance that is found to be down, instead of letting its clients judge [default: false]
    #[arg(long, value_name = "BOOL", env = "RINGPOST_BALANCE_CUT_WHEN_DOWN", num_args = 0..=1, default_missing_value = "true")]
    cut_when_down: Option<bool>,

    /// How long a connection may be without a byte either way; 0 for ever [default: 0]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_BALANCE_IDLE_TIMEOUT", value_parser = duration)]
    idle_timeout: Option<Duration>,

    /// Silence after which the system asks whether a peer is still there [default: 30s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_BALANCE_KEEPALIVE", value_parser = duration)]
    keepalive: Option<Duration>,

    /// How long connections may go on when the balancer leaves, or their instance drains [default: 10s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_BALANCE_DRAIN_TIMEOUT", value_parser = duration)]
    drain_timeout: Option<Duration>,

    /// Clients at once; more wait to be accepted [default: what the limit of open files allows, at most 50000]
    #[arg(long, value_name = "N", env = "RINGPOST_BALANCE_MAX_CONNECTIONS")]
    max_connections: Option<usize>,

    /// Pipes at once; without one, bytes are copied [default: a sixteenth of the limit of open files, at most 256]
    #[arg(long, value_name = "N", env = "RINGPOST_BALANCE_MAX_PIPES")]
    max_pipes: Option<usize>,

    /// What bytes are carried by: copied while few and spliced while many, or always one of them [default: auto]
    #[arg(
        long,
        env = "RINGPOST_BALANCE_SPLICING",
        value_parser = PossibleValuesParser::new(["auto", "always", "never"]).try_map(|text| text.parse::<Splicing>())
    )]
    splicing: Option<Splicing>,

    /// Tell instances the client's address by a PROXY v2 header, which they must expect (`ringpost serve --proxy-from`)
    /// [default: false]
    #[arg(long, value_name = "BOOL", env = "RINGPOST_BALANCE_PROXY_V2", num_args = 0..=1, default_missing_value = "true")]
    proxy_v2: Option<bool>,

    /// The time between two look-ups of an instance's name [default: 30s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_BALANCE_RESOLVE_INTERVAL", value_parser = duration)]
    resolve_interval: Option<Duration>,

    /// Where to tell what is going on, by HTTP: GET /stats (JSON), GET /metrics (Prometheus) [default: nowhere]
    #[arg(long, value_name = "HOST:PORT", env = "RINGPOST_BALANCE_ADMIN", value_parser = parse_listen)]
    admin: Option<SocketAddr>,

    /// How long to look for more work before sleeping; answers a little earlier, and takes the processor [default: 0]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_BALANCE_BUSY_POLL", value_parser = duration)]
    busy_poll: Option<Duration>,

    /// End when this process, which started it, ends
    #[arg(long, value_name = "PID", hide = true)]
    parent: Option<u32>,
}

/// Runs the command.
///
/// `--connect-timeout` is the one that all commands share, if it was given: with another default, since others than the one
/// who set it up wait here.
pub(crate) fn run(args: &BalanceArgs, connect_timeout: Option<Duration>) -> Outcome {
    if let Some(parent) = args.parent {
        signals::end_with(parent)?;
    }
    let again = (args.clone(), connect_timeout);
    let config = args.settings(connect_timeout)?;
    config.validate()?;
    let ended = Balancer::run_until_signalled(
        config,
        move || again.0.settings_again(again.1),
        |listening| {
            let clients = listening.addresses.iter().map(|address| format!("listening on {address}"));
            let admin = listening.admin.map(|address| format!("admin on {address}"));
            for line in clients.chain(admin) {
                if output::line(line.as_bytes()).is_err() {
                    // Clients are served all the same; the log has the address too.
                    tracing::debug!("standard output cannot be written");
                }
            }
        },
    )?;
    match ended.exit_code() {
        0 => Ok(()),
        code => Err(Failure::quiet(code)),
    }
}

impl BalanceArgs {
    /// The settings as they are now; `None` if no instances are read from a file.
    fn settings_again(&self, connect_timeout: Option<Duration>) -> Result<Option<Config>, ConfigError> {
        let from_file = self.config.is_some() && self.instances.is_empty();
        from_file.then(|| self.settings(connect_timeout)).transpose()
    }

    /// The file's settings, or the usual ones, with those of flags and environment over them.
    fn settings(&self, connect_timeout: Option<Duration>) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::from_toml(path)?,
            None => Config::default(),
        };
        replace(&mut config.listen, Some(self.listen.clone()).filter(|listen| !listen.is_empty()));
        replace(
            &mut config.instances,
            Some(self.instances.clone()).filter(|instances| !instances.is_empty()),
        );
        replace(&mut config.choice, self.choice);
        replace(&mut config.health, self.health);
        replace(&mut config.health_interval, self.health_interval);
        replace(&mut config.health_timeout, self.health_timeout);
        replace(&mut config.rise, self.rise);
        replace(&mut config.fall, self.fall);
        replace(&mut config.slow_start, self.slow_start);
        replace(&mut config.connect_timeout, connect_timeout);
        replace(&mut config.when_down, self.when_down);
        replace(&mut config.cut_when_down, self.cut_when_down);
        replace(&mut config.idle_timeout, self.idle_timeout);
        replace(&mut config.keepalive, self.keepalive);
        replace(&mut config.drain_timeout, self.drain_timeout);
        replace(&mut config.max_connections, self.max_connections.map(Some));
        replace(&mut config.max_pipes, self.max_pipes.map(Some));
        replace(&mut config.splicing, self.splicing);
        replace(&mut config.proxy_v2, self.proxy_v2);
        replace(&mut config.resolve_interval, self.resolve_interval);
        replace(&mut config.admin, self.admin.map(Some));
        replace(&mut config.busy_poll, self.busy_poll);
        Ok(config)
    }
}

fn replace<T>(setting: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *setting = value;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::args::{Cli, Command};

    fn settings(line: &str) -> Config {
        let Command::Balance(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!("not balance")
        };
        args.settings(Some(Duration::from_secs(8))).unwrap()
    }

    /// A flag is stronger than the file, and the file than the default.
    #[test]
    fn precedence() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"instances = [\"a:1\"]\nrise = 7\nchoice = \"weighted\"").unwrap();
        let path = file.path().display();
        let config = settings(&format!("ringpost balance --config {path} --choice client-hash"));
        assert_eq!(
            (config.rise, config.choice, config.fall),
            (7, Choice::ClientHash, Config::default().fall)
        );
        assert_eq!(config.instances, [Instance::new("a:1")]);
    }

    /// Every flag reaches its setting: none is the default's afterwards.
    #[test]
    fn all_flags() {
        let config = settings(
            "ringpost balance --listen 127.0.0.1:1 --instance a:1,weight=2 --instance b:2 --choice weighted --health ping \
             --health-interval 3s --health-timeout 4s --rise 5 --fall 6 --slow-start 7s --when-down hold \
             --cut-when-down --idle-timeout 9s --keepalive 11s --drain-timeout 12s --max-connections 13 --max-pipes 14 \
             --splicing never --proxy-v2 --resolve-interval 15s --admin 127.0.0.1:16 --busy-poll 17us",
        );
        config.validate().unwrap();
        let (set, usual) = (format!("{config:#?}"), format!("{:#?}", Config::default()));
        let depth_one =
            |line: &&str| line.starts_with("    ") && !line.starts_with("     ") && line.contains(':');
        let same: Vec<_> =
            set.lines().filter(depth_one).filter(|line| usual.lines().any(|usual| usual == *line)).collect();
        assert!(same.iter().all(|line| line.ends_with('[') || line.ends_with('(')), "{same:?}");
        assert_eq!(config.instances.len(), 2);
        assert_eq!((config.max_pipes, config.busy_poll), (Some(14), Duration::from_micros(17)));
    }

    /// No setting of the file is without a flag and a variable: an unknown key's error lists them all.
    #[test]
    fn every_key_has_a_flag() {
        let error = Config::from_toml_text("no-such-key = 1").unwrap_err().to_string();
        let (_, listed) = error.split_once("expected one of").unwrap();
        let keys: Vec<_> = listed.lines().next().unwrap().split('`').skip(1).step_by(2).collect();
        assert!(keys.len() > 10, "{error}");
        let command = Cli::command();
        let balance = command.find_subcommand("balance").unwrap();
        for key in keys.into_iter().filter(|key| *key != "connect-timeout") {
            let flag = if key == "instances" { "instance" } else { key };
            let argument = balance.get_arguments().find(|argument| argument.get_long() == Some(flag));
            let variable = format!("RINGPOST_BALANCE_{}", key.to_uppercase().replace('-', "_"));
            assert_eq!(argument.unwrap().get_env().unwrap(), variable.as_str());
        }
    }
}
