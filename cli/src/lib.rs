//! The `ringpost` command, as a library: [`main`] takes the command line and gives the exit code.
//!
//! A file for each command holds its options, its help and what it does. Results go to standard output and nothing else
//! does; what is told beside them goes to standard error. How commands end stands in `exit`.
//!
//! [`load`] is the load generator behind `ringpost bench`, for benches of other crates too.

#![forbid(unsafe_code)]

mod args;
mod balance;
mod bench;
mod client;
mod control;
mod dead;
mod demo;
mod doctor;
mod exit;
mod handle;
mod json;
mod keygen;
pub mod load;
mod log;
mod logs;
mod output;
mod receivers;
mod request;
mod send;
mod serve;
mod signals;
mod stats;
mod topology;

use std::{
    ffi::OsString,
    process::{Command as Process, ExitCode},
    sync::OnceLock,
};

use clap::ArgMatches;

use crate::{
    args::{Cli, Command},
    exit::Outcome,
};

/// Runs the command line `args`, whose first element is the program's own name, and gives the exit code.
///
/// It sets up logging for the whole process, unless the caller has done so, and some commands catch SIGINT and SIGTERM.
pub fn main<A>(args: impl IntoIterator<Item = A>) -> ExitCode
where
    A: Into<OsString> + Clone,
{
    let line: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let (cli, matches) = match Cli::read(&line) {
        Ok(read) => read,
        Err(error) => {
            // Help and version are errors to the parser too. Where they cannot be written, nobody reads them.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(&cli, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Like [`main`], in a program that is not the command itself, such as a Python interpreter: `again` is the command line,
/// without arguments, that starts the command again. Some commands do so. The first call's counts.
pub fn main_within<A>(again: Vec<OsString>, args: impl IntoIterator<Item = A>) -> ExitCode
where
    A: Into<OsString> + Clone,
{
    AGAIN.get_or_init(|| again);
    main(args)
}

/// How to start this command again, where that is not by starting this program.
static AGAIN: OnceLock<Vec<OsString>> = OnceLock::new();

/// The command, to be started again.
fn own_command() -> std::io::Result<Process> {
    if let Some([program, arguments @ ..]) = AGAIN.get().map(Vec::as_slice) {
        let mut command = Process::new(program);
        command.args(arguments);
        return Ok(command);
    }
    std::env::current_exe().map(Process::new)
}

fn run(cli: &Cli, matches: &ArgMatches) -> Outcome {
    let server = &cli.server;
    cli.logs.start(match cli.command {
        Command::Serve(_) | Command::Balance(_) => "info",
        _ => "warn",
    })?;
    match &cli.command {
        Command::Serve(args) => serve::run(args, matches.subcommand_matches("serve")),
        Command::Balance(args) => {
            let given = args::flag_for_clients(matches, false).map(|_| server.connect_timeout);
            balance::run(args, given)
        }
        Command::Handle(args) => handle::run(args, server),
        Command::Request(args) => request::run(args, server),
        Command::Send(args) => send::run(args, server),
        Command::Receivers(args) => receivers::run(args, server),
        Command::Stats(args) => stats::run(args, server),
        Command::Actions(args) => control::actions(args, server),
        Command::Topology(args) => topology::run(args, server),
        Command::Connections(args) => control::connections(args, server),
        Command::Queue(args) => control::queue(args, server),
        Command::Dead(args) => dead::run(args, server),
        Command::Log(args) => log::run(args),
        Command::Keygen(args) => keygen::run(args),
        Command::Doctor(args) => doctor::run(args, server),
        Command::Demo(args) => demo::run(args),
        Command::Bench(args) => bench::run(args, server),
    }
}
