//! The command line as a whole, and how the values that several commands share are read.

use std::time::Duration;

use clap::{Parser, Subcommand};
use ringpost_protocol::limits::{check_name, check_own_name};
use ringpost_server::units;

use crate::{
    bench, client::ServerArgs, demo, doctor, handle, logs::LogArgs, receivers, request, send, serve, stats,
};

const EXAMPLES: &str = "\
A first request, with three terminals:
  ringpost serve
  ringpost handle greet -- sh -c 'read name; echo \"\\\"hello $name\\\"\"'
  ringpost request greet '\"you\"'

`ringpost demo` shows all of it in a few seconds.

Exit codes: 0 all is well, 1 the handler answered an error, 2 usage, 3 no handler or too busy, \
4 time over, 65 bad input, 69 no connection, 71 the system lacks what the server needs, \
74 reading or writing failed, 78 configuration.";

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

/// What to do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub(crate) enum Command {
    Serve(serve::ServeArgs),
    Handle(handle::HandleArgs),
    Request(request::RequestArgs),
    Send(send::SendArgs),
    Receivers(receivers::ReceiversArgs),
    Stats(stats::StatsArgs),
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
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
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
            "ringpost handle a --echo --concurrency 3",
            "ringpost handle a --reply {}",
            "ringpost handle a -- jq .x",
            "ringpost request a {} --ttl 10s --timeout 10s --broadcast --header k=v --options {}",
            "ringpost --server 127.0.0.1:1 request a -",
            "ringpost request $sys.stats null --server localhost",
            "ringpost send a {}",
            "ringpost receivers --watch --json",
            "ringpost stats --json",
            "ringpost doctor --json",
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
            "ringpost serve --listen here",
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
