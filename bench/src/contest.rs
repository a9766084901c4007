//! Measuring rows on both sides in one run: in turns, each time with a fresh server, so that what the machine does
//! meanwhile meets both alike.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail};
use ringpost_cli::load::{self, Options, Outcome, Server};

use crate::{
    nats::Nats,
    rows::{Clients, Row},
    sdk::{self, AsyncNats, RingpostSdk},
};

/// The name of the side that is judged.
pub const OWN: &str = "Ringpost";
/// The name of the one that it is compared with.
pub const PEER: &str = "NATS";

/// One of those that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// The `ringpost` program at this path.
    Ringpost(PathBuf),
    /// The `nats-server` program at this path.
    Nats(PathBuf),
    /// The `redis-server` program at this path. It has no requests: it is only compared with what logs them.
    Redis(PathBuf),
}

impl Side {
    /// Its name in results.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ringpost(_) => OWN,
            Self::Nats(_) => PEER,
            Self::Redis(_) => "Redis",
        }
    }

    /// A server on a free port of the loopback address. NATS gets one thread for Go code, since it gets one core. Redis has to
    /// be told a port.
    pub(crate) fn command(&self) -> Command {
        match self {
            Self::Ringpost(path) => {
                let mut command = Command::new(path);
                command.args(["serve", "--listen", "127.0.0.1:0"]);
                command
            }
            Self::Nats(path) => {
                let mut command = Command::new(path);
                command.args(["--addr", "127.0.0.1", "--port", "-1"]).env("GOMAXPROCS", "1");
                command
            }
            Self::Redis(path) => {
                let mut command = Command::new(path);
                command.args(["--bind", "127.0.0.1", "--save", ""]);
                command
            }
        }
    }

    fn run(&self, clients: Clients, options: &Options) -> anyhow::Result<Outcome> {
        match (self, clients) {
            (Self::Ringpost(_), Clients::Raw(_)) => load::run(options, &mut |_| {}),
            (Self::Nats(_), Clients::Raw(_)) => load::run_with::<Nats>(options, &mut |_| {}),
            (Self::Ringpost(_), Clients::Sdk) => sdk::run::<RingpostSdk>(options),
            (Self::Nats(_), Clients::Sdk) => sdk::run::<AsyncNats>(options),
            (Self::Redis(_), _) => bail!("Redis has no requests"),
        }
    }

    /// What the program says its version is.
    ///
    /// # Errors
    /// When it cannot be started, or says that it failed.
    pub fn version(&self) -> anyhow::Result<String> {
        let (Self::Ringpost(path) | Self::Nats(path) | Self::Redis(path)) = self;
        let output = Command::new(path)
            .arg("--version")
            .output()
            .with_context(|| format!("starting {} (is it built, is the path right?)", path.display()))?;
        anyhow::ensure!(output.status.success(), "{} --version: {}", path.display(), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// How often and how long to measure, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Measurements of each row on each side.
    pub runs: u32,
    /// The length of each.
    pub duration: Duration,
    /// The cores of server and load generator. `None`: wherever the kernel puts them.
    pub cores: Option<Cores>,
}

/// Which core runs what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cores {
    /// The server's.
    pub server: usize,
    /// The load generator's.
    pub load: usize,
}

/// All measurements of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The row.
    pub row: Row,
    /// Each side's name with the outcomes of its runs.
    pub sides: Vec<(&'static str, Vec<Outcome>)>,
}

impl Measured {
    /// The outcomes of a side, if it was measured.
    pub fn of(&self, name: &str) -> Option<&[Outcome]> {
        self.sides.iter().find(|(side, _)| *side == name).map(|(_, outcomes)| outcomes.as_slice())
    }
}

/// Measures rows: in each run every row, in each row every side.
///
/// `tell` gets a line for people now and then.
///
/// # Errors
/// A server that does not start, or does not survive its load.
pub fn measure(
    rows: &[Row],
    sides: &[Side],
    plan: Plan,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Measured>> {
    let empty = || sides.iter().map(|side| (side.name(), Vec::new())).collect();
    let mut all: Vec<_> = rows.iter().map(|&row| Measured { row, sides: empty() }).collect();
    for run in 1..=plan.runs {
        for measured in &mut all {
            for (side, (name, outcomes)) in sides.iter().zip(&mut measured.sides) {
                let row = &measured.row;
                let outcome = measure_once(row, side, plan)
                    .with_context(|| format!("run {run}, row {}, {name}", row.number))?;
                tell(&line(run, row, name, &outcome));
                outcomes.push(outcome);
            }
        }
    }
    Ok(all)
}

fn measure_once(row: &Row, side: &Side, plan: Plan) -> anyhow::Result<Outcome> {
    let server = Server::spawn(side.command(), plan.cores.map(|cores| cores.server))?;
    let base = Options {
        server_pid: Some(server.pid()),
        duration: plan.duration,
        pin: plan.cores.map(|cores| cores.load),
        ..Options::new(SocketAddr::from((Ipv4Addr::LOCALHOST, server.address().port())))
    };
    side.run(row.clients, &row.options(base))
}

fn line(run: u32, row: &Row, name: &str, outcome: &Outcome) -> String {
    let cpu = outcome
        .server_cpu
        .map_or_else(String::new, |share| format!("{:.2} µs server CPU, ", share.us_per_request));
    format!(
        "run {run}, row {} ({} in flight), {name:<8} {:>9.0}/s, {cpu}p50 {:.0} µs, {} errors, load generator {:.2} cores",
        row.number,
        outcome.options.in_flight,
        outcome.requests_per_second,
        outcome.latency.p50_us,
        outcome.errors + outcome.unanswered,
        outcome.load_cpu.cores,
    )
}
