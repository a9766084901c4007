//! `ringpost-bench`: measures the rows of the table of figures and writes them down.

#![forbid(unsafe_code)]

use std::{
    env, fs,
    io::{self, Write},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ringpost_bench::{
    balancer,
    contest::{self, Cores, Plan, Side},
    durable, idle,
    instructions::{self, Comparison, Record},
    neighbours, python, recovery,
    report::{self, Circumstances, Results},
    rows::{ROWS, Row},
    secure, waiting,
};
use ringpost_cli::load::Machine;

/// Measures Ringpost, and NATS beside it, with the load generator of `ringpost bench`.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Measure the figures; NATS too, if there is a nats-server.
    Rows(Rows),
    /// The same, but NATS must be there.
    Compare(Rows),
    /// Count instructions of the pure crates under callgrind, and compare them with what was recorded.
    Instructions(Instructions),
    /// Let a million durable requests wait: their memory and disk, and the time of a start.
    Waiting {
        /// The ringpost program.
        #[arg(long, default_value = "target/release/ringpost")]
        ringpost: PathBuf,
    },
    /// Do a piece of work so many times: what `instructions` runs under callgrind.
    #[command(hide = true)]
    Repeat { name: String, rounds: u32 },
}

#[derive(Debug, Args)]
struct Instructions {
    /// Record the counts instead of comparing them.
    #[arg(long)]
    record: bool,
    /// Where they are recorded.
    #[arg(long, default_value = "bench/INSTRUCTIONS.json")]
    file: PathBuf,
}

#[derive(Debug, Args)]
struct Rows {
    /// What to measure.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "rows,python,durable,recovery,secure,balancer,idle,neighbours"
    )]
    parts: Vec<Part>,
    /// Which rows.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3,4,5,7")]
    rows: Vec<u8>,
    /// Measurements of each row on each side.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// The ringpost program.
    #[arg(long, default_value = "target/release/ringpost")]
    ringpost: PathBuf,
    /// The nats-server program; without it, the one on the PATH.
    #[arg(long)]
    nats: Option<PathBuf>,
    /// The redis-server program, for row 6; without it, the one on the PATH.
    #[arg(long)]
    redis: Option<PathBuf>,
    /// The haproxy program, for the balancer; without it, the one on the PATH.
    #[arg(long)]
    haproxy: Option<PathBuf>,
    /// The Python SDK's wheel, or the folder that it is in, for row 8; without it, that is not measured.
    #[arg(long)]
    wheel: Option<PathBuf>,
    /// The Python interpreter for row 8.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Measure only one side.
    #[arg(long)]
    only: Option<Only>,
    /// The server's core, where there are two.
    #[arg(long, default_value_t = 1)]
    server_core: usize,
    /// The load generator's core, where there are two.
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// Where to write the results.
    #[arg(long, default_value = "bench/RESULTS.md")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The rows of the table of figures.
    Rows,
    /// Row 8: the SDK for Python, beside nats-py.
    Python,
    /// Row 6: durable requests, under each policy of syncing.
    Durable,
    /// Starting with a log: speed, time over history, the disk under a steady load. Of Ringpost only.
    Recovery,
    /// Rows 9 and 10 and more of the load balancer; HAProxy too, if there is one.
    Balancer,
    /// What a secure key costs: rows 1, 2 and 4, large payloads, handshakes. Of Ringpost only.
    Secure,
    /// The memory of idle connections. Of Ringpost only.
    Idle,
    /// What one misbehaving client does to the others. Of Ringpost only.
    Neighbours,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    Ringpost,
    Nats,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().work {
        Work::Rows(arguments) => run(&arguments, false),
        Work::Compare(arguments) => run(&arguments, true),
        Work::Waiting { ringpost } => {
            writeln!(io::stdout(), "{}", waiting::measure(&ringpost)?)?;
            Ok(())
        }
        Work::Instructions(arguments) => count_instructions(&arguments),
        Work::Repeat { name, rounds } => instructions::repeat(&name, rounds),
    }
}

fn count_instructions(arguments: &Instructions) -> anyhow::Result<()> {
    if arguments.record {
        return counted()?.write(&arguments.file);
    }
    // Before the counting, which takes its time.
    let recorded = Record::read(&arguments.file)?;
    let comparison = Comparison { recorded: &recorded, counted: &counted()? };
    write!(io::stdout(), "{comparison}")?;
    ensure!(
        comparison.holds(),
        "instructions differ by more than 3 % from {}: find out why, or record them by `make instructions-record`",
        arguments.file.display()
    );
    Ok(())
}

fn counted() -> anyhow::Result<Record> {
    telling(|tell| Record::count(tell))
}

/// Lets some work tell its progress on standard error.
fn telling<T>(work: impl FnOnce(&mut dyn FnMut(&str)) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut stderr = io::stderr();
    let mut told = Ok(());
    let outcome = work(&mut |line| {
        if told.is_ok() {
            told = writeln!(stderr, "{line}");
        }
    })?;
    told.context("telling the progress")?;
    Ok(outcome)
}

fn run(arguments: &Rows, needs_nats: bool) -> anyhow::Result<()> {
    let rows = chosen_rows(&arguments.rows)?;
    let sides = sides(arguments, needs_nats)?;
    let machine = Machine::here()?;
    let cores = Cores { server: arguments.server_core, load: arguments.load_core };
    let plan = Plan {
        runs: arguments.runs,
        duration: Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?,
        cores: (machine.cores > 1).then_some(cores),
    };
    let has = |part| arguments.parts.contains(&part);
    let durable_sides = if has(Part::Durable) { durable_sides(arguments, &sides)? } else { Vec::new() };
    let all_sides = if has(Part::Durable) { &durable_sides } else { &sides };
    let circumstances = Circumstances {
        machine,
        commit: commit(),
        command: env::args().collect::<Vec<_>>().join(" "),
        versions: all_sides.iter().map(Side::version).collect::<Result<_, _>>()?,
    };
    let ringpost = &arguments.ringpost;
    let python = if has(Part::Python) { python_programs(arguments, &sides)? } else { None };
    let results = telling(|tell| {
        let mut results = Results::default();
        if has(Part::Rows) {
            results.rows = contest::measure(&rows, &sides, plan, tell)?;
        }
        if let Some(programs) = &python {
            results.python = Some(python::measure(programs, plan, tell)?);
        }
        if has(Part::Durable) {
            results.durable = Some(durable::measure(&durable_sides, plan, tell)?);
        }
        if has(Part::Recovery) {
            results.recovery = Some(recovery::measure(ringpost, plan, tell)?);
        }
        if has(Part::Balancer) {
            let haproxy = arguments.haproxy.clone().or_else(|| on_path("haproxy"));
            if haproxy.is_none() {
                tell("no haproxy on the PATH: the balancer is measured alone");
            }
            results.balancers = Some(balancer::measure(ringpost, haproxy.as_deref(), plan, tell)?);
        }
        if has(Part::Secure) {
            results.secure = Some(secure::measure(ringpost, plan, tell)?);
        }
        if has(Part::Idle) {
            results.idle = idle::measure(ringpost, plan, tell)?;
        }
        if has(Part::Neighbours) {
            results.neighbours = neighbours::measure(ringpost, plan, tell)?;
        }
        Ok(results)
    })?;
    let mut text = String::new();
    report::write(&mut text, &circumstances, plan, &results)?;
    fs::write(&arguments.out, &text).with_context(|| format!("writing {}", arguments.out.display()))?;
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn chosen_rows(numbers: &[u8]) -> anyhow::Result<Vec<Row>> {
    let mut chosen = Vec::new();
    for &number in numbers {
        let before = chosen.len();
        chosen.extend(ROWS.into_iter().filter(|row| row.number == number));
        let known = || ROWS.map(|row| row.number.to_string()).join(", ");
        ensure!(chosen.len() > before, "row {number} is none of those that can be measured: {}", known());
    }
    Ok(chosen)
}

/// Ringpost first: it is the one that is judged.
fn sides(arguments: &Rows, needs_nats: bool) -> anyhow::Result<Vec<Side>> {
    let needs_nats = needs_nats || arguments.only == Some(Only::Nats);
    let mut sides = Vec::new();
    if arguments.only != Some(Only::Nats) {
        sides.push(Side::Ringpost(arguments.ringpost.clone()));
    }
    if arguments.only != Some(Only::Ringpost) {
        match arguments.nats.clone().or_else(|| on_path("nats-server")) {
            Some(path) => sides.push(Side::Nats(path)),
            None if needs_nats => bail!("no nats-server on the PATH: install one, or name it by --nats"),
            None => writeln!(io::stderr(), "no nats-server on the PATH: Ringpost is measured alone")?,
        }
    }
    Ok(sides)
}

/// Of durable requests, Redis too, if there is one.
fn durable_sides(arguments: &Rows, sides: &[Side]) -> anyhow::Result<Vec<Side>> {
    let mut sides = sides.to_vec();
    if arguments.only.is_none() {
        match arguments.redis.clone().or_else(|| on_path("redis-server")) {
            Some(path) => sides.push(Side::Redis(path)),
            None => writeln!(io::stderr(), "no redis-server on the PATH: row 6 is measured without it")?,
        }
    }
    Ok(sides)
}

/// What row 8 needs, if there is a wheel.
fn python_programs(arguments: &Rows, sides: &[Side]) -> anyhow::Result<Option<python::Programs>> {
    let Some(wheel) = &arguments.wheel else {
        writeln!(io::stderr(), "no wheel of the Python SDK is named: row 8 is not measured")?;
        return Ok(None);
    };
    let nats = sides.iter().find_map(|side| match side {
        Side::Nats(path) => Some(path.clone()),
        _ => None,
    });
    Ok(Some(python::Programs {
        ringpost: arguments.ringpost.clone(),
        nats,
        python: arguments.python.clone(),
        wheel: python::find_wheel(wheel)?,
    }))
}

fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The commit that is checked out, and whether there are changes on top of it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (git(&["rev-parse", "--short", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"])) {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => format!("{commit}, with changes"),
        (None, _) => "unknown (not a git checkout)".to_owned(),
    }
}
