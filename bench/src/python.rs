//! Row 8: a handler and a requester in Python, processes of their own, of Ringpost's SDK and of nats-py, each on asyncio
//! and on uvloop. What each runs is `bench/python/load.py`.
//!
//! Server and both clients share all cores of the machine, and nothing is pinned: what counts is what a request costs all of
//! them together. The clients run in a virtual environment that is made for it; what pip cannot get is not measured.

mod environment;

use std::{
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, ensure};
use ringpost_cli::load::{CpuMeter, Server};
use serde::Deserialize;

use self::environment::Environment;
use crate::{
    contest::{Plan, Side},
    idle::resident,
};

/// The numbers of requests in flight that are measured.
const IN_FLIGHT: [u32; 2] = [64, 1];
/// What the clients run.
const LOAD: &str = include_str!("../python/load.py");

/// A kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ringpost's SDK, with bytes.
    Ringpost,
    /// The same with JSON.
    RingpostJson,
    /// nats-py, with bytes.
    Nats,
}

impl Kind {
    /// As the report shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ringpost => "Ringpost",
            Self::RingpostJson => "Ringpost, JSON",
            Self::Nats => "nats-py",
        }
    }

    /// As `load.py` calls it.
    fn argument(self) -> &'static str {
        match self {
            Self::Ringpost => "ringpost",
            Self::RingpostJson => "ringpost-json",
            Self::Nats => "nats",
        }
    }
}

/// Which client, on which event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contender {
    /// Which client.
    pub kind: Kind,
    /// Whether its event loop is uvloop's, or asyncio's own.
    pub uvloop: bool,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// Replies in a second.
    pub requests_per_second: f64,
    /// The median of the time that a request took.
    pub p50_us: f64,
    /// The time that one in a hundred exceeded.
    pub p99_us: f64,
    /// Processor time of server, handler and requester for each request.
    pub cpu_us: [f64; 3],
    /// Resident memory of handler and requester at the end.
    pub resident_bytes: [u64; 2],
}

/// What one contender did with so many requests in flight.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Who it was.
    pub contender: Contender,
    /// How many requests were in flight.
    pub in_flight: u32,
    /// Its runs.
    pub runs: Vec<Run>,
}

/// The moments at which memory is looked at, as `load.py` calls them.
pub const MOMENTS: [&str; 3] = ["connected", "concurrent", "many"];

/// Resident memory of one contender's handler and requester, at each of the [`MOMENTS`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grown {
    /// Whose it is.
    pub contender: Contender,
    /// Handler's and requester's.
    pub resident_bytes: [[u64; 2]; MOMENTS.len()],
}

/// Everything that was measured in Python.
#[derive(Debug, Clone, PartialEq)]
pub struct Python {
    /// The versions of interpreter and packages.
    pub versions: String,
    /// All measurements.
    pub measured: Vec<Measured>,
    /// What memory they take, once each.
    pub grown: Vec<Grown>,
}

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The ringpost program.
    pub ringpost: PathBuf,
    /// The nats-server program, if it is there.
    pub nats: Option<PathBuf>,
    /// A Python interpreter, 3.11 or later.
    pub python: PathBuf,
    /// The wheel of the SDK.
    pub wheel: PathBuf,
}

/// Measures all contenders in turns.
///
/// # Errors
/// An environment that cannot be made, a server that does not start, a client that fails: SDKs are measured only while they
/// work.
pub fn measure(programs: &Programs, plan: Plan, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Python> {
    let environment = Environment::make(&programs.python, &programs.wheel, tell)?;
    let contenders: Vec<_> = [Kind::Ringpost, Kind::RingpostJson, Kind::Nats]
        .into_iter()
        .filter(|kind| *kind != Kind::Nats || (programs.nats.is_some() && environment.has_nats))
        .flat_map(|kind| [false, true].map(|uvloop| Contender { kind, uvloop }))
        .filter(|contender| !contender.uvloop || environment.has_uvloop)
        .collect();
    let mut measured: Vec<_> = IN_FLIGHT
        .into_iter()
        .flat_map(|in_flight| contenders.iter().map(move |contender| (in_flight, *contender)))
        .map(|(in_flight, contender)| Measured { contender, in_flight, runs: Vec::new() })
        .collect();
    for _ in 0..plan.runs {
        for one in &mut measured {
            let Contender { kind, uvloop } = one.contender;
            let run = measure_one(&side_of(kind, programs), &environment, one.contender, one.in_flight, plan)
                .with_context(|| format!("row 8, {}, {} in flight", kind.name(), one.in_flight))?;
            let event_loop = if uvloop { "uvloop" } else { "asyncio" };
            let rate = run.requests_per_second;
            tell(&format!(
                "row 8, {} in flight, {} on {event_loop}: {rate:.0}/s",
                one.in_flight,
                kind.name()
            ));
            one.runs.push(run);
        }
    }
    let mut grown = Vec::new();
    for contender in contenders {
        let name = contender.kind.name();
        let resident_bytes = grow(&side_of(contender.kind, programs), &environment, contender)
            .with_context(|| format!("the memory of {name}"))?;
        grown.push(Grown { contender, resident_bytes });
    }
    Ok(Python { versions: environment.versions.clone(), measured, grown })
}

fn side_of(kind: Kind, programs: &Programs) -> Side {
    match (kind, &programs.nats) {
        (Kind::Nats, Some(nats)) => Side::Nats(nats.clone()),
        _ => Side::Ringpost(programs.ringpost.clone()),
    }
}

/// Looks at the memory of a handler and a requester, at each of the [`MOMENTS`].
fn grow(
    side: &Side,
    environment: &Environment,
    contender: Contender,
) -> anyhow::Result<[[u64; 2]; MOMENTS.len()]> {
    let server = Server::spawn(side.command(), None)?;
    let client = |role: &str| Client::spawn(load(environment, contender, role, &server));
    let mut handler = client("handle")?;
    handler.hear("ready")?;
    let mut requester = client("grow")?;
    let mut resident_bytes = [[0; 2]; MOMENTS.len()];
    for (moment, bytes) in MOMENTS.into_iter().zip(&mut resident_bytes) {
        requester.hear(moment)?;
        *bytes = [resident(handler.pid())?, resident(requester.pid())?];
        requester.go_on()?;
    }
    Ok(resident_bytes)
}

/// The client in its role, for this server.
fn load(environment: &Environment, contender: Contender, role: &str, server: &Server) -> Command {
    let mut command = Command::new(&environment.python);
    command.args(["-c", LOAD, role, "--client", contender.kind.argument()]);
    command.args(["--loop", if contender.uvloop { "uvloop" } else { "asyncio" }]);
    command.args(["--port", &server.address().port().to_string()]);
    command
}

/// What a requester says at its end.
#[derive(Debug, Deserialize)]
struct Said {
    requests: u64,
    elapsed_seconds: f64,
    p50_ns: u64,
    p99_ns: u64,
}

fn measure_one(
    side: &Side,
    environment: &Environment,
    contender: Contender,
    in_flight: u32,
    plan: Plan,
) -> anyhow::Result<Run> {
    let server = Server::spawn(side.command(), None)?;
    let client = |role: &str| {
        let mut command = load(environment, contender, role, &server);
        command.args(["--in-flight", &in_flight.to_string()]);
        command.args(["--seconds", &plan.duration.as_secs_f64().to_string()]);
        Client::spawn(command)
    };
    let mut handler = client("handle")?;
    handler.hear("ready")?;
    let mut requester = client("request")?;
    requester.hear("measuring")?;
    let meters = [server.pid(), handler.pid(), requester.pid()].map(CpuMeter::start);
    requester.hear("measured")?;
    let used = meters.map(|meter| meter.and_then(|meter| meter.used()));
    let resident_bytes = [resident(handler.pid())?, resident(requester.pid())?];
    let said: Said = serde_json::from_str(&requester.line()?).context("what the requester said")?;
    ensure!(said.requests > 0, "there was no reply");
    let mut cpu_us = [0.0; 3];
    for (cpu_us, used) in cpu_us.iter_mut().zip(used) {
        *cpu_us = used?.as_secs_f64() * 1e6 / said.requests as f64;
    }
    Ok(Run {
        requests_per_second: said.requests as f64 / said.elapsed_seconds,
        p50_us: said.p50_ns as f64 / 1e3,
        p99_us: said.p99_ns as f64 / 1e3,
        cpu_us,
        resident_bytes,
    })
}

/// A process in Python. It is killed when this is dropped.
struct Client {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// A handler runs until this ends.
    input: Option<ChildStdin>,
}

impl Client {
    fn spawn(mut command: Command) -> anyhow::Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting Python")?;
        let output = child.stdout.take().context("a process with a pipe has it")?;
        let input = child.stdin.take();
        Ok(Self { child, lines: BufReader::new(output).lines(), input })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets a requester go on that has said where it is.
    fn go_on(&mut self) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("a process with a pipe has it")?;
        Ok(input.write_all(b"\n")?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        Ok(self.lines.next().context("it ended, and said nothing more on its output")??)
    }

    fn hear(&mut self, word: &str) -> anyhow::Result<()> {
        let line = self.line()?;
        ensure!(line == word, "{word:?} was to be said, not {line:?}");
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The wheel in a folder, if there is exactly one; or the wheel itself.
///
/// # Errors
/// No wheel, or several.
pub fn find_wheel(path: &Path) -> anyhow::Result<PathBuf> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let entries =
        path.read_dir().with_context(|| format!("{}: `make wheel` puts one there", path.display()))?;
    let paths: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    let mut wheels =
        paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheels.next().with_context(|| format!("no wheel in {}: `make wheel`", path.display()))?;
    ensure!(wheels.next().is_none(), "several wheels in {}: name one", path.display());
    Ok(wheel)
}
