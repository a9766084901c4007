//! `ringpost serve`: a server in this process.

use std::{path::PathBuf, time::Duration};

use clap::{
    ArgMatches, Args,
    builder::{PossibleValuesParser, TypedValueParser},
    parser::ValueSource,
};
use ringpost_protocol::secure::Role;
use ringpost_server::{
    Config, ConfigError, Dispatch, Durable, KeyFile, Listen, Network, Peer, Server, Sync, parse_listens,
};

use crate::{
    args::{duration, size},
    client::key_of_environment,
    exit::{CONFIGURATION, Failure, Outcome},
    output, signals,
};

const EXAMPLES: &str = "\
Examples:
  ringpost serve
  ringpost serve --listen 127.0.0.1:8888 --listen '[::1]:8888' --id server1
  ringpost serve --listen 127.0.0.1:0                    takes a free port
  ringpost serve --listen 10.0.0.5:8888,plain            open to all who can reach it, and meant
  ringpost serve --listen 10.0.0.5:8888 --proxy-from 10.0.0.9
  ringpost serve --config ringpost.toml --max-payload 1MiB
  ringpost serve --id server_1 --listen 127.0.0.1:8887 --peer 127.0.0.1:8886,action=server_1

For each address a line `listening on ADDRESS:PORT` is printed to standard output when clients \
can connect. Logs go to standard error.

Every setting is a flag, an environment variable, and a key of the TOML file given with --config; \
a flag is stronger than the environment, and that is stronger than the file. A variable that is \
empty counts as not set.
  id = \"server1\"
  listen = [\"127.0.0.1:8888\", \"[::1]:8888\"]
  max-payload = \"1MiB\"
  drain-timeout = \"30s\"

With a secure key (`ringpost keygen` makes one), only those who have it too can connect, and nobody \
on the way can read or change what is said. The key comes from files, or is RINGPOST_SECURE_KEY. \
SIGHUP reads the files again, and those that the configuration's file names by then: give both keys \
for a while to change from one to the other.

SIGTERM and SIGINT (Ctrl-C) let what is open come to its end, at most for --drain-timeout: what is \
still open then ends with the code `draining`. After up to a second more for the goodbyes it ends \
with 0. A second signal ends it at once, with 128 and the signal's number.

Exit codes: 2 a flag or variable is not understood, 69 the address cannot be listened on, 71 \
io_uring cannot be used (see `ringpost doctor`), 78 configuration: the file is not understood, or a \
value, wherever it is from, is out of its range.";

/// Run a server
#[derive(Debug, Default, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE", env = "RINGPOST_CONFIG")]
    config: Option<PathBuf>,

    /// The server's own name, told to clients [default: ringpost]
    #[arg(long, value_name = "NAME", env = "RINGPOST_ID")]
    id: Option<String>,

    /// Where to listen; may be given several times, and port 0 takes a free one. Without a word behind it: secure where
    /// there are keys, else plain [default: 127.0.0.1:8888]
    #[arg(
        long,
        value_name = "HOST:PORT[,secure|,plain]",
        env = "RINGPOST_LISTEN",
        value_parser = |text: &str| parse_listens(text).map(Listens)
    )]
    listen: Vec<Listens>,

    /// Networks of balancers (ADDRESS/BITS), from which connections begin with a PROXY header of version 2 [default: none]
    #[arg(long, value_name = "NETWORK", env = "RINGPOST_PROXY_FROM", value_delimiter = ',')]
    proxy_from: Vec<Network>,

    /// A file with a secure key: then who connects must have it. May be given several times; the role is `client` [default],
    /// `peer` or `admin`. Read again at SIGHUP
    #[arg(
        long,
        value_name = "[ROLE:]FILE",
        env = "RINGPOST_SECURE_KEY_FILE",
        value_delimiter = ',',
        global = false
    )]
    secure_key_file: Vec<KeyFile>,

    /// Another server to work with: requests that nobody here can take go to its handlers, and the other way round. May be
    /// given several times (several in the variable: with `;` between them). `action`: a name under which the link answers there
    #[arg(
        long,
        value_name = "HOST:PORT[,key-file=FILE][,action=NAME]",
        env = "RINGPOST_PEER",
        value_delimiter = ';'
    )]
    peer: Vec<Peer>,

    /// Requests at once that go to a peer, or come from it, for each action [default: 256]
    #[arg(long, value_name = "N", env = "RINGPOST_PEER_CREDIT")]
    peer_credit: Option<u32>,

    /// How a handler is chosen: one after the other, or the one that holds the fewest requests [default: round-robin]
    #[arg(
        long,
        env = "RINGPOST_DISPATCH",
        value_parser = PossibleValuesParser::new(["round-robin", "least-busy"]).try_map(|text| text.parse::<Dispatch>())
    )]
    dispatch: Option<Dispatch>,

    /// The least time between two requests given to handlers; 0 for none [default: 0]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_DISPATCH_INTERVAL", value_parser = duration)]
    dispatch_interval: Option<Duration>,

    /// The longest data of a request or reply, up to 1GiB [default: 16MiB]
    #[arg(long, value_name = "SIZE", env = "RINGPOST_MAX_PAYLOAD", value_parser = size)]
    max_payload: Option<u64>,

    /// Requests that may wait for a handler with room, for each action; more are refused [default: 65536]
    #[arg(long, value_name = "N", env = "RINGPOST_QUEUE_LIMIT")]
    queue_limit: Option<usize>,

    /// Bytes that may wait so, for each action [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "RINGPOST_QUEUE_LIMIT_BYTES", value_parser = size)]
    queue_limit_bytes: Option<u64>,

    /// Connections at once [default: 50000, or what the limit of open files allows]
    #[arg(long, value_name = "N", env = "RINGPOST_MAX_CONNECTIONS")]
    max_connections: Option<usize>,

    /// Connections at once that have not said who they are; from half of it on chance decides who comes in [default: 4096]
    #[arg(long, value_name = "N", env = "RINGPOST_MAX_UNAUTHENTICATED")]
    max_unauthenticated: Option<usize>,

    /// The same from one address, or from one /64 of IPv6, but not from --proxy-from [default: 512]
    #[arg(long, value_name = "N", env = "RINGPOST_MAX_UNAUTHENTICATED_PER_ADDRESS")]
    max_unauthenticated_per_address: Option<usize>,

    /// Actions that one connection may handle [default: 1024]
    #[arg(long, value_name = "N", env = "RINGPOST_MAX_ACTIONS")]
    max_actions: Option<usize>,

    /// The longest ttl and timeout: longer ones are cut to it [default: 7d]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_MAX_TTL", value_parser = duration)]
    max_ttl: Option<Duration>,

    /// The timeout of requests that name none (JSON clients: 60s) [default: 10s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_DEFAULT_TIMEOUT", value_parser = duration)]
    default_timeout: Option<Duration>,

    /// Bytes that may wait to be sent on one connection before it is closed as too slow [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "RINGPOST_OUTBOUND_LIMIT", value_parser = size)]
    outbound_limit: Option<u64>,

    /// The time in which a new connection must say its first message [default: 5s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_HANDSHAKE_TIMEOUT", value_parser = duration)]
    handshake_timeout: Option<Duration>,

    /// Silence after which a client is asked whether it is there; after three times that it is lost [default: 5s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_PING_INTERVAL", value_parser = duration)]
    ping_interval: Option<Duration>,

    /// How long to look for more work before sleeping; 0 saves power, and answers later under light load [default: 50us]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_BUSY_POLL", value_parser = duration)]
    busy_poll: Option<Duration>,

    /// Bytes of all messages that are held: half received, waiting, kept, on their way out [default: 1GiB]
    #[arg(long, value_name = "SIZE", env = "RINGPOST_MEMORY", value_parser = size)]
    memory: Option<u64>,

    /// Broadcasts that may wait for one handler with no room; the next is refused there [default: 16]
    #[arg(long, value_name = "N", env = "RINGPOST_LEG_QUEUE_LIMIT")]
    leg_queue_limit: Option<usize>,

    /// A handler that has not answered so long after it was called back gets nothing more until it does [default: 30s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_STUCK_AFTER", value_parser = duration)]
    stuck_after: Option<Duration>,

    /// How long a client may be away before its session, and what it has open, is forgotten [default: 60s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_SESSION_LINGER", value_parser = duration)]
    session_linger: Option<Duration>,

    /// Sessions with nothing open that are remembered while their clients are away [default: 16384]
    #[arg(long, value_name = "N", env = "RINGPOST_MAX_SESSIONS_AWAY")]
    max_sessions_away: Option<usize>,

    /// Bytes of outcomes kept for one session until its client has acknowledged them [default: 1MiB]
    #[arg(long, value_name = "SIZE", env = "RINGPOST_OUTCOME_LIMIT", value_parser = size)]
    outcome_limit: Option<u64>,

    /// Where the log of durable requests is; without it they are refused
    #[arg(long, value_name = "DIR", env = "RINGPOST_DATA_DIR")]
    data_dir: Option<PathBuf>,

    /// Which requests and sends are durable: those that ask for it, or all but broadcasts [default: asked]
    #[arg(
        long,
        env = "RINGPOST_DURABLE",
        value_parser = PossibleValuesParser::new(["asked", "all"]).try_map(|text| text.parse::<Durable>())
    )]
    durable: Option<Durable>,

    /// Bytes of waiting durable requests that are kept in memory; the others are only on the disk [default: a quarter of
    /// --memory]
    #[arg(long, value_name = "SIZE", env = "RINGPOST_QUEUE_MEMORY", value_parser = size)]
    queue_memory: Option<u64>,

    /// When what is logged is synced: `always` before it is accepted, `interval:7s`, or `never` [default: always]
    #[arg(long, value_name = "POLICY", env = "RINGPOST_SYNC")]
    sync: Option<Sync>,

    /// Bytes of one file of the log [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "RINGPOST_SEGMENT_SIZE", value_parser = size)]
    segment_size: Option<u64>,

    /// Bytes that the log may take on the disk before durable requests are refused [default: 8GiB]
    #[arg(long, value_name = "SIZE", env = "RINGPOST_MAX_DISK", value_parser = size)]
    max_disk: Option<u64>,

    /// How long a handler may have a durable request without a word; then another gets it [default: 60s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_HANDLE_TIMEOUT", value_parser = duration)]
    handle_timeout: Option<Duration>,

    /// How long, after a restart, what a handler held waits for it to come back; then another gets it [default: 5s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_REATTACH", value_parser = duration)]
    reattach: Option<Duration>,

    /// How long a durable request stays with a peer that is away; then it is tried elsewhere [default: 60s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_PEER_LOST", value_parser = duration)]
    peer_lost: Option<Duration>,

    /// How long dead letters are kept [default: 7d]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_DEAD_TTL", value_parser = duration)]
    dead_ttl: Option<Duration>,

    /// How many dead letters are kept; beyond it the oldest are dropped [default: 10000]
    #[arg(long, value_name = "N", env = "RINGPOST_DEAD_LIMIT")]
    dead_limit: Option<usize>,

    /// Idempotency keys that are remembered, each until its request's ttl ends; more are refused [default: 1000000]
    #[arg(long, value_name = "N", env = "RINGPOST_IDEMPOTENCY_LIMIT")]
    idempotency_limit: Option<usize>,

    /// How long a leaving server waits for what is open [default: 10s]
    #[arg(long, value_name = "DURATION", env = "RINGPOST_DRAIN_TIMEOUT", value_parser = duration)]
    drain_timeout: Option<Duration>,

    /// End when this process, which started it, ends
    #[arg(long, value_name = "PID", hide = true)]
    parent: Option<u32>,
}

/// What one flag or the variable says: it may be several.
#[derive(Debug, Clone)]
struct Listens(Vec<Listen>);

/// Runs the command. The matches tell by what a value was said.
pub(crate) fn run(args: &ServeArgs, matches: Option<&ArgMatches>) -> Outcome {
    if let Some(parent) = args.parent {
        signals::end_with(parent)?;
    }
    let again = args.clone();
    let reload = move || again.settings(None).map_err(|failure| failure.to_string());
    let ended = Server::run_until_signalled(args.settings(matches)?, reload, |addresses| {
        for address in addresses {
            if output::line(format!("listening on {address}").as_bytes()).is_err() {
                // Clients are served all the same; the log has the address too.
                tracing::debug!("standard output cannot be written");
            }
        }
    })?;
    match ended.exit_code() {
        0 => Ok(()),
        code => Err(Failure::quiet(code)),
    }
}

impl ServeArgs {
    /// The file's settings, or the usual ones, with those of flags and environment over them.
    fn settings(&self, matches: Option<&ArgMatches>) -> Outcome<Config> {
        let mut config = match &self.config {
            Some(path) => Config::from_toml(path)?,
            None => Config::default(),
        };
        replace(&mut config.id, self.id.clone());
        let listens: Vec<Listen> = self.listen.iter().flat_map(|listens| listens.0.clone()).collect();
        replace(&mut config.listen, Some(listens).filter(|listens| !listens.is_empty()));
        let key_files = Some(self.secure_key_file.clone()).filter(|files| !files.is_empty());
        replace(&mut config.secure_key_file, key_files);
        let key = key_of_environment().map_err(|error| Failure::new(CONFIGURATION, error))?;
        config.secure_keys.extend(key.map(|key| (key, Role::Client)));
        replace(
            &mut config.proxy_from,
            Some(self.proxy_from.clone()).filter(|networks| !networks.is_empty()),
        );
        replace(&mut config.peers, Some(self.peer.clone()).filter(|peers| !peers.is_empty()));
        replace(&mut config.peer_credit, self.peer_credit);
        replace(&mut config.dispatch, self.dispatch);
        replace(&mut config.dispatch_interval, self.dispatch_interval);
        replace(&mut config.max_payload, self.max_payload);
        replace(&mut config.queue_limit, self.queue_limit);
        replace(&mut config.queue_limit_bytes, self.queue_limit_bytes);
        replace(&mut config.max_connections, self.max_connections.map(Some));
        replace(&mut config.max_unauthenticated, self.max_unauthenticated);
        replace(&mut config.max_unauthenticated_per_address, self.max_unauthenticated_per_address);
        replace(&mut config.max_actions, self.max_actions);
        replace(&mut config.max_ttl, self.max_ttl);
        replace(&mut config.default_timeout, self.default_timeout);
        replace(&mut config.outbound_limit, self.outbound_limit);
        replace(&mut config.handshake_timeout, self.handshake_timeout);
        replace(&mut config.ping_interval, self.ping_interval);
        replace(&mut config.busy_poll, self.busy_poll);
        replace(&mut config.memory, self.memory);
        replace(&mut config.leg_queue_limit, self.leg_queue_limit);
        replace(&mut config.stuck_after, self.stuck_after);
        replace(&mut config.session_linger, self.session_linger);
        replace(&mut config.max_sessions_away, self.max_sessions_away);
        replace(&mut config.outcome_limit, self.outcome_limit);
        replace(&mut config.data_dir, self.data_dir.clone().map(Some));
        replace(&mut config.durable, self.durable);
        replace(&mut config.queue_memory, self.queue_memory.map(Some));
        replace(&mut config.sync, self.sync);
        replace(&mut config.segment_size, self.segment_size);
        replace(&mut config.max_disk, self.max_disk);
        replace(&mut config.handle_timeout, self.handle_timeout);
        replace(&mut config.reattach, self.reattach);
        replace(&mut config.peer_lost, self.peer_lost);
        replace(&mut config.dead_ttl, self.dead_ttl);
        replace(&mut config.dead_limit, self.dead_limit);
        replace(&mut config.idempotency_limit, self.idempotency_limit);
        replace(&mut config.drain_timeout, self.drain_timeout);
        match config.validate() {
            Ok(()) => Ok(config),
            Err(error) => {
                let variable = variable(&error, matches).map(|name| format!(" (from {name})"));
                Err(Failure::from(error).with(&variable.unwrap_or_default()))
            }
        }
    }
}

/// The variable of the environment that the value which is out of its range is from, if it is.
fn variable(error: &ConfigError, matches: Option<&ArgMatches>) -> Option<String> {
    let ConfigError::OutOfRange { key, .. } = error else { return None };
    let source = matches?.value_source(&key.replace('-', "_"));
    (source == Some(ValueSource::EnvVariable))
        .then(|| format!("RINGPOST_{}", key.to_uppercase().replace('-', "_")))
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

    fn settings(line: &str) -> Outcome<Config> {
        let Command::Serve(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("not serve")
        };
        args.settings(None)
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    /// A flag is stronger than the file, and the file than the default.
    #[test]
    fn precedence() {
        let file = file("id = \"file\"\nqueue-limit = 5\nmax-ttl = \"1h\"");
        let path = file.path().display();
        let config = settings(&format!("ringpost serve --config {path} --id flag --max-ttl 2h")).unwrap();
        assert_eq!((config.id.as_str(), config.queue_limit), ("flag", 5));
        assert_eq!(config.max_ttl, Duration::from_secs(7200));
        assert_eq!(config.max_actions, Config::default().max_actions);
    }

    /// Every flag reaches its setting.
    #[test]
    fn all_flags() {
        let config = settings(
            "ringpost serve --id a --listen 127.0.0.1:1 --listen [::1]:2,plain,127.0.0.1:3 --dispatch least-busy \
             --dispatch-interval 1ms --max-payload 1KiB --queue-limit 1 --queue-limit-bytes 200KiB --max-connections 3 \
             --max-actions 4 --max-ttl 5s --default-timeout 6s --outbound-limit 7MiB --handshake-timeout 8s \
             --ping-interval 9s --drain-timeout 10s --leg-queue-limit 11 --stuck-after 12s --session-linger 13s \
             --max-sessions-away 14 --outcome-limit 15KiB --memory 16MiB --queue-memory 5MiB --busy-poll 60us --data-dir d \
             --sync interval:17s --segment-size 18MiB --max-disk 190MiB --handle-timeout 20s --dead-ttl 21s --dead-limit 22 \
             --idempotency-limit 23 --reattach 24s --peer-lost 27s --durable all --proxy-from 10.0.0.0/8,::1 --max-unauthenticated 25 \
             --max-unauthenticated-per-address 26 --secure-key-file a --secure-key-file admin:b"
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .as_str(),
        )
        .unwrap();
        let mut expected = Config::default();
        expected.id = "a".to_owned();
        expected.listen =
            ["127.0.0.1:1", "[::1]:2,plain", "127.0.0.1:3"].map(|text| text.parse().unwrap()).to_vec();
        expected.secure_key_file = ["a", "admin:b"].map(|text| text.parse().unwrap()).to_vec();
        expected.dispatch = Dispatch::LeastBusy;
        expected.dispatch_interval = Duration::from_millis(1);
        (expected.max_payload, expected.queue_limit, expected.queue_limit_bytes) = (1024, 1, 200 << 10);
        (expected.max_connections, expected.max_actions) = (Some(3), 4);
        let seconds = Duration::from_secs;
        (expected.max_ttl, expected.default_timeout, expected.outbound_limit) =
            (seconds(5), seconds(6), 7 << 20);
        (expected.handshake_timeout, expected.ping_interval) = (seconds(8), seconds(9));
        expected.drain_timeout = seconds(10);
        (expected.leg_queue_limit, expected.max_sessions_away) = (11, 14);
        (expected.stuck_after, expected.session_linger) = (seconds(12), seconds(13));
        expected.busy_poll = Duration::from_micros(60);
        (expected.outcome_limit, expected.memory) = (15 << 10, 16 << 20);
        (expected.handle_timeout, expected.dead_ttl, expected.dead_limit) = (seconds(20), seconds(21), 22);
        (expected.idempotency_limit, expected.reattach) = (23, seconds(24));
        expected.peer_lost = seconds(27);
        expected.queue_memory = Some(5 << 20);
        expected.durable = Durable::All;
        expected.proxy_from = ["10.0.0.0/8", "::1"].map(|text| text.parse().unwrap()).to_vec();
        (expected.max_unauthenticated, expected.max_unauthenticated_per_address) = (25, 26);
        (expected.data_dir, expected.sync) = (Some("d".into()), Sync::Interval(seconds(17)));
        (expected.segment_size, expected.max_disk) = (18 << 20, 190 << 20);
        assert_eq!(config, expected);
    }

    /// No setting of the file is without a flag and a variable: an unknown key's error lists them all. But for what each
    /// secure key may do: that is too much for a flag.
    #[test]
    fn every_key_has_a_flag() {
        let error = Config::from_toml_text("no-such-key = 1").unwrap_err().to_string();
        let (_, listed) = error.split_once("expected one of").unwrap();
        let keys: Vec<_> = listed.lines().next().unwrap().split('`').skip(1).step_by(2).collect();
        assert!(keys.len() > 10, "{error}");
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        for key in keys.into_iter().filter(|key| *key != "key") {
            let argument = serve.get_arguments().find(|argument| argument.get_long() == Some(key));
            let variable = format!("RINGPOST_{}", key.to_uppercase().replace('-', "_"));
            assert_eq!(argument.unwrap().get_env().unwrap(), variable.as_str());
        }
    }

    /// What is wrong is named, wherever it was said.
    #[test]
    fn bad_settings() {
        let file = file("max-payloads = 1");
        let error = settings(&format!("ringpost serve --config {}", file.path().display())).unwrap_err();
        assert!(format!("{error:?}").contains("max-payloads"));
        let error = settings("ringpost serve --durable all").unwrap_err();
        assert!(format!("{error:?}").contains("--data-dir"));
        let error = settings("ringpost serve --max-payload 2GiB").unwrap_err();
        assert!(format!("{error:?}").contains("max-payload"));
    }
}
