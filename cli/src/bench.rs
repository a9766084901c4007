//! `ringpost bench`: load on a server, and figures.

use std::{
    ffi::OsString,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::process::CommandExt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
    value_parser,
};
use ringpost_protocol::Code;
use ringpost_server::Sync;
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity},
};

use crate::{
    args,
    client::{self, ServerArgs},
    exit::{Failure, Outcome},
    load::{self, Dialect, Phase, Progress},
    output::{self, note},
    signals::Stop,
};

/// Open files of a run beside its connections: those of runtime, epoll, the server's pipe and /proc, with some to spare.
const OTHER_OPEN_FILES: u64 = 32;
/// A free port that only this machine can reach.
const ANY_PORT: &str = "127.0.0.1:0";

const EXAMPLES: &str = "\
Examples:
  ringpost bench --spawn
  ringpost bench --spawn --requesters 64 --in-flight 1 --handlers 8
  ringpost bench --spawn --durable --sync interval:1s --requesters 4
  ringpost bench --server-pid $(pidof ringpost) --size 1024 --duration 10s --json

Each requester keeps its number of requests in flight; handlers echo. With one request in flight \
in all, the latency is the way there and back; with many, it is the time that a request waits \
behind the others. The load comes from one thread that stays on one processor; a server started \
with --spawn stays on another one.

Durable requests are accepted when they are logged. A server started for them has its data in a \
temporary folder, in the first of $TMPDIR, /var/tmp and the working directory that is on a disk; \
say which policy it has with --sync. Another server has its own policy.

Ctrl-C ends it early: it prints the figures so far, and ends with 130.

It ends with 1 if requests failed: such figures mean nothing.";

/// Put load on a server, and measure requests per second, latency, and the server's processor time
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// Connections that send requests
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..))]
    requesters: u32,

    /// Requests that each of them keeps in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=65536))]
    in_flight: u32,

    /// Connections that handle them
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u32).range(1..))]
    handlers: u32,

    /// Size of a request's data, and of its reply's
    #[arg(long, value_name = "SIZE", default_value = "128", value_parser = args::size)]
    size: u64,

    /// How long to measure
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = args::some_duration)]
    duration: Duration,

    /// How long to put load on the server before the measuring begins
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = args::duration)]
    warm_up: Duration,

    /// What to speak: frames as the SDKs do, or JSON lines
    #[arg(
        long,
        default_value = "binary",
        value_parser = PossibleValuesParser::new(["binary", "json"]).try_map(|text| text.parse::<Dialect>())
    )]
    dialect: Dialect,

    /// Request durably: what is accepted is logged, and replies are kept until they are acknowledged
    #[arg(long)]
    durable: bool,

    /// When the started server syncs its log: `always` before a request is accepted, `interval:7s`, or `never` [default: always]
    #[arg(long, value_name = "POLICY", requires_all = ["durable", "spawn"], value_parser = sync)]
    sync: Option<String>,

    /// The action to request
    #[arg(long, default_value = "bench", value_parser = args::own_action)]
    action: String,

    /// Print a JSON object instead of a table
    #[arg(long)]
    json: bool,

    /// Start a server for it, on a free port and a processor of its own
    #[arg(long, conflicts_with = "server_pid")]
    spawn: bool,

    /// The server's process on this machine: its processor time is measured
    #[arg(long, value_name = "PID", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    server_pid: Option<u32>,
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs, server: &ServerArgs) -> Outcome {
    if args.durable && args.dialect == Dialect::Json {
        return Err(Failure::usage(
            "--durable speaks the binary dialect: leave out --dialect json".to_owned(),
        ));
    }
    let connections = u64::from(args.requesters) + u64::from(args.handlers);
    let what = format!("a load of {connections} connections (--requesters and --handlers)");
    client::open_files(connections + OTHER_OPEN_FILES, &what)?;
    let cores = Cores::choose(args.server_pid)?;
    // Kept until the end, and longer than the server: its data.
    let disk = if args.spawn && args.durable { Some(own_disk()?) } else { None };
    let mut arguments = disk.as_ref().map_or_else(Vec::new, |disk| storage(disk, args.sync.as_deref()));
    arguments.extend(server.key_arguments());
    // Kept until the end: dropping it ends the server.
    let spawned =
        if args.spawn { Some(spawn_server_with(cores.server, ANY_PORT, &arguments)?) } else { None };
    let address = match &spawned {
        Some(server) => server.address(),
        None => resolve(server)?,
    };
    // A server of our own knows nothing of the environment's key.
    let secure_key = match server.key_arguments().is_empty() && args.spawn {
        true => Ok(None),
        false => server.secure_key(),
    };
    let secure_key = secure_key.map_err(|error| server.failure("the load", &error))?;
    let options = load::Options {
        secure_key,
        server_pid: spawned.as_ref().map(load::Server::pid).or(args.server_pid),
        dialect: args.dialect,
        durable: args.durable,
        action: args.action.clone(),
        requesters: args.requesters,
        in_flight: args.in_flight,
        handlers: args.handlers,
        size: usize::try_from(args.size).unwrap_or(usize::MAX),
        warm_up: args.warm_up,
        duration: args.duration,
        pin: cores.load,
        ..load::Options::new(address)
    };
    let (outcome, interrupted) = measure(options)?;
    if args.json {
        let text = serde_json::to_vec(&outcome).map_err(|error| Failure::system("JSON", &error.into()))?;
        output::line(&text)?;
    } else {
        output::with(|out| load::print_table(&outcome, out))?;
    }
    if outcome.errors + outcome.unanswered > 0 {
        let message = format!("{} requests failed and {} had no answer", outcome.errors, outcome.unanswered);
        return Err(Failure::new(interrupted.unwrap_or(Code::Remote.exit_code()), message));
    }
    interrupted.map_or(Ok(()), |code| Err(Failure::quiet(code)))
}

/// Runs the load to its end or until a signal, whose exit code it gives then.
fn measure(options: load::Options) -> Outcome<(load::Outcome, Option<u8>)> {
    client::block_on(async {
        let mut stop = Stop::listen()?;
        let asked = Arc::new(AtomicBool::new(false));
        let stopped = asked.clone();
        // Signals are waited for on this thread, which started the server and must stay, the load has another one.
        let load = move || load::run_until(&options, &stopped, &mut show);
        let mut running = tokio::task::spawn_blocking(load);
        let mut interrupted = None;
        let ended = tokio::select! {
            ended = &mut running => ended,
            code = stop.next() => {
                interrupted = Some(code);
                asked.store(true, Ordering::Relaxed);
                running.await
            }
        };
        let crashed = |error: tokio::task::JoinError| Failure::system("the load's thread", &error.into());
        let outcome = ended.map_err(crashed)?.map_err(|error| match interrupted {
            Some(code) => Failure::quiet(code),
            None => failure(&error),
        })?;
        match interrupted {
            // It was not measured yet: there are no figures.
            Some(code) if outcome.requests == 0 => Err(Failure::quiet(code)),
            _ => Ok((outcome, interrupted)),
        }
    })
}

fn show(progress: Progress) {
    let phase = match progress.phase {
        Phase::WarmUp => "warming up",
        Phase::Measure => "measuring",
        Phase::Drain => "waiting for the last replies",
    };
    note(format_args!(
        "{phase:<12} {:>5.1} s  {:>10.0} requests/s  {} errors",
        progress.elapsed.as_secs_f64(),
        progress.requests_per_second,
        progress.errors
    ));
}

/// What keeps a load generator from its work.
pub(crate) fn failure(error: &anyhow::Error) -> Failure {
    Failure::new(Code::Connect.exit_code(), format!("no load could be put on the server: {error:#}"))
}

/// A place for the log of a server of our own.
fn own_disk() -> Outcome<load::Disk> {
    let disk = load::Disk::temporary().map_err(|error| {
        Failure::new(
            Code::DurableUnavailable.exit_code(),
            format!("no place for the server's log: {error:#}"),
        )
    })?;
    note(format_args!("the server's log is in {}, {}", disk.path().display(), disk.file_system()));
    Ok(disk)
}

/// What a server is told of its log.
fn storage(disk: &load::Disk, sync: Option<&str>) -> Vec<OsString> {
    let mut arguments = vec!["--data-dir".into(), disk.path().into()];
    if let Some(sync) = sync {
        arguments.extend(["--sync".into(), sync.into()]);
    }
    arguments
}

/// A policy as the server is told it, once it is known to be one.
fn sync(text: &str) -> Result<String, String> {
    text.parse::<Sync>().map(|_| text.to_owned())
}

/// A server in a process of its own, which ends with this one.
pub(crate) fn spawn_server(core: Option<usize>) -> Outcome<load::Server> {
    spawn_server_with(core, ANY_PORT, &[])
}

/// The same at an address, with more arguments.
pub(crate) fn spawn_server_with(
    core: Option<usize>,
    listen: &str,
    arguments: &[OsString],
) -> Outcome<load::Server> {
    let mut command = own_command()?;
    command.args(["serve", "--listen", listen, "--log", "warn"]).arg("--parent");
    command.arg(std::process::id().to_string());
    command.args(arguments);
    // A terminal's Ctrl-C is meant for this process, which ends the server when it is done.
    command.process_group(0);
    // What is set for another server is not meant for this one.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("RINGPOST_")) {
            command.env_remove(name);
        }
    }
    load::Server::spawn(command, core).map_err(|error| {
        Failure::new(Code::Connect.exit_code(), format!("no server could be started: {error:#}"))
    })
}

/// This program again.
pub(crate) fn own_command() -> Outcome<Command> {
    crate::own_command().map_err(|error| Failure::system("the path of this program is not known", &error))
}

/// The first of the server's addresses that takes a connection: a name may stand for several.
fn resolve(server: &ServerArgs) -> Outcome<SocketAddr> {
    let address = server.address();
    let failed = |error: &std::io::Error| {
        let what = format!("cannot connect to {address}: {error}");
        server.failure("the load", &ringpost::Error::new(Code::Connect, what))
    };
    let found = (address.host.as_str(), address.port).to_socket_addrs().map_err(|error| failed(&error))?;
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for candidate in found {
        match TcpStream::connect_timeout(&candidate, server.connect_timeout) {
            Ok(_) => return Ok(candidate),
            Err(error) => last = error,
        }
    }
    Err(failed(&last))
}

/// Which processor does what. With a single one nothing is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cores {
    /// For the load generator.
    pub(crate) load: Option<usize>,
    /// For a server of our own.
    pub(crate) server: Option<usize>,
}

impl Cores {
    /// Two of those that this process may use. The load keeps off the one that a server of somebody else's is pinned to.
    pub(crate) fn choose(server_pid: Option<u32>) -> Outcome<Self> {
        let ours = sched_getaffinity(None)
            .map_err(|error| Failure::system("the processors are not known", &error.into()))?;
        let theirs = match server_pid.and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            Some(pid) => Some(sched_getaffinity(Some(pid)).map_err(|error| {
                Failure::usage(format!(
                    "the process {pid}, given as the server's, cannot be looked at: {error}"
                ))
            })?),
            None => None,
        };
        Ok(Self::among(&ours, theirs.as_ref()))
    }

    fn among(ours: &CpuSet, theirs: Option<&CpuSet>) -> Self {
        let taken = theirs.filter(|cores| cores.count() == 1);
        let mut free = (0..CpuSet::MAX_CPU)
            .filter(|&core| ours.is_set(core) && !taken.is_some_and(|taken| taken.is_set(core)));
        match (free.next(), free.next()) {
            (load, None) if taken.is_none() || load.is_none() => Self { load: None, server: None },
            (load, server) => Self { load, server },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cores: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        cores.iter().for_each(|&core| set.set(core));
        set
    }

    /// Load and server never share a processor unless there is only one, and then nothing is pinned.
    #[test]
    fn processors() {
        let cores = |load, server| Cores { load, server };
        assert_eq!(Cores::among(&set(&[2, 5, 7]), None), cores(Some(2), Some(5)));
        assert_eq!(Cores::among(&set(&[3]), None), cores(None, None));
        assert_eq!(Cores::among(&set(&[0, 1]), Some(&set(&[0]))), cores(Some(1), None));
        assert_eq!(Cores::among(&set(&[0, 1]), Some(&set(&[0, 1]))), cores(Some(0), Some(1)));
        assert_eq!(Cores::among(&set(&[0]), Some(&set(&[0]))), cores(None, None));
    }
}
