//! The command line as a whole, and how the values that several commands share are read.

use std::{env, ffi::OsString, time::Duration};

use clap::{
    Arg, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand,
    builder::Resettable,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use ringpost_protocol::limits::{check_name, check_own_name};
use ringpost_server::units;

use crate::{
    balance, bench, client::ServerArgs, control, dead, demo, doctor, handle, keygen, log, logs::LogArgs,
    receivers, request, send, serve, stats, topology,
};

const EXAMPLES: &str = "\
A first request, with three terminals:
  ringpost serve
  ringpost handle shout -- tr a-z A-Z
  ringpost request shout '\"you\"'
The last one prints \"YOU\".

`ringpost demo` shows all of it in a few seconds.

Exit codes: 0 all is well, 1 the handler answered an error, 2 usage, 3 no handler or too busy, \
4 time over, 65 bad input, 69 no connection, 71 the system lacks what the server needs, \
74 reading or writing failed, 75 another process has the session, 77 no secure key, a wrong one, \
or one that may not do that, 78 configuration, 128 and a signal's number when interrupted.

A variable of the environment that is empty counts as not set. One that is not understood is a \
usage error like its flag.";

/// Ringpost: a request/reply message broker.
///
/// Handlers register an action, a name. Requests to that action go to one of its handlers, or to all of them, and the
/// reply comes back.
#[derive(Debug, Parser)]
#[command(name = "ringpost", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    #[command(flatten)]
    pub(crate) logs: LogArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Reads a command line; what each value was said by is in the matches.
    ///
    /// # Errors
    /// What clap prints and exits with; help and version too.
    pub(crate) fn read(line: &[OsString]) -> Result<(Self, ArgMatches), clap::Error> {
        let mut command = definition();
        let matches =
            command.try_get_matches_from_mut(line).map_err(|error| named(error, &mut command, line))?;
        let cli = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        let without_server = match &cli.command {
            Command::Serve(_) | Command::Demo(_) => Some("starts its own"),
            Command::Balance(_) => Some("has --instance for that"),
            Command::Log(_) => Some("reads files"),
            Command::Keygen(_) => Some("talks to nobody"),
            _ => None,
        };
        let its_own =
            |flag: &&str| !(matches!(cli.command, Command::Balance(_)) && *flag == "connect-timeout");
        let flag = flag_for_clients(&matches, !matches!(cli.command, Command::Serve(_))).filter(its_own);
        if let (Some(does), Some(flag)) = (without_server, flag) {
            let message = format!("`--{flag}` is for commands that talk to a server: this one {does}");
            return Err(command.error(ErrorKind::ArgumentConflict, message));
        }
        Ok((cli, matches))
    }
}

/// The command line's definition, in which variables of the environment that are empty are not there.
fn definition() -> clap::Command {
    fn without_empty_variables(command: clap::Command) -> clap::Command {
        command.mut_args(|argument| match argument.get_env().and_then(env::var_os) {
            Some(value) if value.is_empty() => argument.env(Resettable::Reset),
            _ => argument,
        })
    }
    without_empty_variables(Cli::command()).mut_subcommands(without_empty_variables)
}

/// Says so if a value that was not understood is one of the environment's: nobody finds it on the command line.
fn named(mut error: clap::Error, command: &mut clap::Command, line: &[OsString]) -> clap::Error {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidArg) else { return error };
    // An argument has its full name only when its command was built, which parsing does for one of them.
    command.build();
    let find = |command: &clap::Command| {
        command.get_arguments().find(|argument| argument.to_string() == *name).and_then(|argument| {
            let variable = argument.get_env().filter(|variable| env::var_os(variable).is_some())?;
            (!is_given(argument, line)).then(|| variable.to_string_lossy().into_owned())
        })
    };
    if let Some(variable) = find(command).or_else(|| command.get_subcommands().find_map(find)) {
        let hint = format!("the value is that of the environment variable {variable}");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.into()]));
    }
    error
}

/// Whether the argument's flag is on the command line.
fn is_given(argument: &Arg, line: &[OsString]) -> bool {
    argument.get_long().is_some_and(|long| {
        line.iter()
            .filter_map(|word| word.to_str()?.strip_prefix("--")?.strip_prefix(long))
            .any(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// One of the flags that say where the server is, if the user gave it. Variables of the environment are there for other commands.
/// `with_key`: a secure key is one of them.
pub(crate) fn flag_for_clients(matches: &ArgMatches, with_key: bool) -> Option<&'static str> {
    let matches = matches.subcommand().map_or(matches, |(_, matches)| matches);
    let key = [("secure_key_file", "secure-key-file")];
    [("server", "server"), ("connect_timeout", "connect-timeout")]
        .into_iter()
        .chain(key.into_iter().filter(|_| with_key))
        .find(|(id, _)| matches.value_source(id) == Some(ValueSource::CommandLine))
        .map(|(_, flag)| flag)
}

/// What to do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub(crate) enum Command {
    Serve(serve::ServeArgs),
    Balance(balance::BalanceArgs),
    Handle(handle::HandleArgs),
    Request(request::RequestArgs),
    Send(send::SendArgs),
    Receivers(receivers::ReceiversArgs),
    Stats(stats::StatsArgs),
    Actions(control::ActionsArgs),
    Topology(topology::TopologyArgs),
    Connections(control::ConnectionsArgs),
    Queue(control::QueueArgs),
    Log(log::LogFilesArgs),
    Dead(dead::DeadArgs),
    Keygen(keygen::KeygenArgs),
    Doctor(doctor::DoctorArgs),
    Demo(demo::DemoArgs),
    Bench(bench::BenchArgs),
}

/// Reads a duration: `250ms`, `10s`, `1.5h`; milliseconds without a unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).map_err(|error| error.to_string())
}

/// The same, where nothing at all makes no sense.
pub(crate) fn some_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing".to_owned()),
        duration => Ok(duration),
    }
}

/// Reads a size: `64KiB`, `16MiB`; bytes without a unit.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    units::parse_size(text).map_err(|error| error.to_string())
}

/// Reads the name of an action to request: the server's own are allowed.
pub(crate) fn action(text: &str) -> Result<String, String> {
    check_name(text.as_bytes()).map(str::to_owned).map_err(|error| error.to_string())
}

/// Reads the name of an action to handle.
pub(crate) fn own_action(text: &str) -> Result<String, String> {
    check_own_name(text.as_bytes()).map(str::to_owned).map_err(|error| error.to_string())
}

/// Reads a header: `key=value`.
pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as key=value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let line: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        Cli::read(&line).map(|(cli, _)| cli)
    }

    /// The definition is consistent in itself: clap checks it in debug builds.
    #[test]
    fn definition_holds() {
        Cli::command().debug_assert();
    }

    /// Every command is there, and what it needs is asked for.
    #[test]
    fn commands() {
        for line in [
            "ringpost serve --id a --listen 127.0.0.1:0 --listen [::1]:0 --dispatch least-busy --dispatch-interval 5ms \
             --max-payload 1MiB --queue-limit 10",
            "ringpost balance --instance localhost:1 --instance [::1]:2,weight=3 --choice client-hash --connect-timeout 1s",
            "ringpost handle a --echo --concurrency 3",
            "ringpost handle a --reply {}",
            "ringpost handle a -- jq .x",
            "ringpost request a {} --ttl 10s --timeout 10s --broadcast --header k=v --options {}",
            "ringpost --server 127.0.0.1:1 request a -",
            "ringpost request $sys.stats null --server localhost",
            "ringpost send a {}",
            "ringpost send a {} --durable --idempotency-key order-7",
            "ringpost receivers --watch --json",
            "ringpost stats --json",
            "ringpost actions",
            "ringpost topology",
            "ringpost connections --json",
            "ringpost queue list",
            "ringpost queue peek a --count 5",
            "ringpost queue purge a",
            "ringpost queue cancel 0-1",
            "ringpost log verify data",
            "ringpost log dump data --json",
            "ringpost log repair data --allow-loss",
            "ringpost doctor --json",
            "ringpost keygen --out key",
            "ringpost request a {} --secure-key-file key",
            "ringpost serve --secure-key-file a --secure-key-file admin:b",
            "ringpost demo",
            "ringpost bench --requesters 16 --in-flight 64 --handlers 4 --size 128 --duration 5s --dialect json --json \
             --spawn",
            "ringpost bench --server-pid 1 -v --log warn",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
        for line in [
            "ringpost",
            "ringpost handle a",
            "ringpost handle a --echo --reply {}",
            "ringpost handle a --echo -- cat",
            "ringpost handle ping --echo",
            "ringpost handle a --echo --concurrency 0",
            "ringpost request a",
            "ringpost request a {} --timeout soon",
            "ringpost request a {} --timeout 0",
            "ringpost request a {} --header k",
            "ringpost request a {} --idempotency-key order-7",
            "ringpost serve --listen here",
            "ringpost serve --server 127.0.0.1:1",
            "ringpost --server 127.0.0.1:1 serve",
            "ringpost balance --instance here",
            "ringpost balance --server 127.0.0.1:1",
            "ringpost demo --connect-timeout 1s",
            "ringpost log verify",
            "ringpost log verify data --server 127.0.0.1:1",
            "ringpost serve --max-payload lots",
            "ringpost bench --spawn --server-pid 1",
            "ringpost bench --dialect yaml",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    /// Values behind `--` belong to the command, whatever they look like.
    #[test]
    fn command_keeps_its_arguments() {
        let Command::Handle(args) =
            parse("ringpost handle a -- prog --echo -x --concurrency").unwrap().command
        else {
            panic!("not handle")
        };
        assert_eq!(args.command, ["prog", "--echo", "-x", "--concurrency"]);
    }
}
