//! The balancer beside HAProxy: rows 9 and 10, a stream, many small messages, what it adds to a message's time, what an idle
//! session costs, and what copying and splicing cost by the message's size.

pub mod load;

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use ringpost_cli::load::{CpuMeter, Server, on_core};
use tempfile::NamedTempFile;

use self::load::{Ends, Load, free_address, listen};
use crate::contest::Plan;

/// The name of the side that is judged.
pub const OWN: &str = "Ringpost";
/// The name of the one that it is compared with.
pub const PEER: &str = "HAProxy";
/// The name of no balancer at all: the clients are connected to the service.
pub const DIRECT: &str = "direct";

/// How long a load runs before it counts.
const WARM_UP: Duration = Duration::from_millis(300);
/// Bytes of the long stream.
const STREAM_BYTES: u64 = 10 << 30;
/// Bytes of a piece of it.
const STREAM_PIECE: usize = 256 << 10;
/// Sessions that are opened to see what one costs.
const IDLE_SESSIONS: usize = 4000;
/// Sizes of messages for which copying and splicing are compared.
pub const SIZES: [usize; 9] =
    [128, 1 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 1 << 20];
/// The ways of carrying bytes, as the command names them.
pub const CARRIERS: [&str; 3] = ["never", "always", "auto"];

/// A row: a load, and what must be reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Its name in results.
    pub name: &'static str,
    /// What is sent.
    pub load: Load,
    /// What of the peer's CPU must not be exceeded, and what is aimed at.
    pub goals: Option<(f64, f64)>,
}

/// All rows but the stream.
pub const ROWS: [Row; 4] = [
    Row {
        name: "9: 64 × 1 in flight, 128 B",
        load: Load { connections: 64, in_flight: 1, size: 128, echo: true },
        goals: Some((0.9, 0.75)),
    },
    Row {
        name: "10: 8 × 4 in flight, 64 KiB",
        load: Load { connections: 8, in_flight: 4, size: 64 << 10, echo: true },
        goals: Some((0.4, 0.3)),
    },
    Row {
        name: "16 × 64 in flight, 128 B",
        load: Load { connections: 16, in_flight: 64, size: 128, echo: true },
        goals: None,
    },
    Row {
        name: "1 × 1 in flight (serial), 128 B",
        load: Load { connections: 1, in_flight: 1, size: 128, echo: true },
        goals: None,
    },
];

/// One of those that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// The `ringpost` program at this path.
    Ringpost(PathBuf),
    /// The `haproxy` program at this path.
    HaProxy(PathBuf),
    /// No balancer.
    Direct,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Messages in a second.
    pub per_second: f64,
    /// The balancer's CPU for each in µs. `None`: there is no balancer.
    pub cpu_us: Option<f64>,
    /// The median of a message's time.
    pub p50_us: f64,
    /// What 99 of 100 do not exceed.
    pub p99_us: f64,
}

/// The measurements of a row by side.
pub type BySide = Vec<(&'static str, Vec<Figures>)>;

/// All measurements.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Balancers {
    /// Each side's version.
    pub versions: Vec<String>,
    /// By row and side.
    pub rows: Vec<(Row, BySide)>,
    /// The long stream by side: GB/s, and CPU in ms for a GB.
    pub stream: Vec<(&'static str, f64, f64)>,
    /// Bytes of resident memory for an idle session, by side.
    pub idle: Vec<(&'static str, f64)>,
    /// By size: CPU in µs for a message, in the order of [`CARRIERS`].
    pub carriers: Vec<(usize, [f64; 3])>,
}

impl Side {
    /// Its name in results.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ringpost(_) => OWN,
            Self::HaProxy(_) => PEER,
            Self::Direct => DIRECT,
        }
    }

    fn version(&self) -> anyhow::Result<Option<String>> {
        let (path, flag) = match self {
            Self::Ringpost(path) => (path, "--version"),
            Self::HaProxy(path) => (path, "-v"),
            Self::Direct => return Ok(None),
        };
        let output = Command::new(path).arg(flag).output().context("asking for a version")?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned))
    }
}

/// A side that runs, between clients and a service.
struct Running {
    server: Option<Server>,
    address: SocketAddr,
    service: std::net::TcpListener,
    _config: Option<NamedTempFile>,
}

impl Running {
    fn start(side: &Side, extra: &[&str], plan: Plan) -> anyhow::Result<Self> {
        let service = listen()?;
        let to = service.local_addr()?;
        let core = plan.cores.map(|cores| cores.server);
        let (server, address, config) = match side {
            Side::Ringpost(path) => {
                let mut command = Command::new(path);
                command.args(["balance", "--listen", "127.0.0.1:0", "--health", "off", "--instance"]);
                command.arg(to.to_string()).args(extra);
                let server = Server::spawn(command, core)?;
                let address = server.address();
                (Some(server), address, None)
            }
            Side::HaProxy(path) => {
                let address = free_address()?;
                let mut config = NamedTempFile::new()?;
                write!(
                    config,
                    "global\n nbthread 1\n maxconn 6000\ndefaults\n mode tcp\n option splice-auto\n timeout connect 5s\n \
                     timeout client 1h\n timeout server 1h\nlisten bench\n bind {address}\n server one {to}\n"
                )?;
                config.flush()?;
                let mut command = Command::new(path);
                command.arg("-db").arg("-f").arg(config.path());
                let server = Server::spawn_at(command, core, address)?;
                // Whether it listens was seen by a connection, which has come through.
                drop(service.accept()?);
                (Some(server), address, Some(config))
            }
            Side::Direct => (None, to, None),
        };
        Ok(Self { server, address, service, _config: config })
    }

    fn measure(&self, load: Load, plan: Plan, time: Duration, most: u64) -> anyhow::Result<Figures> {
        let (carried, used) = on_core(plan.cores.map(|cores| cores.load), || {
            let mut ends = Ends::connect(self.address, &self.service, load)?;
            ends.run(WARM_UP, most)?;
            let meter = self.server.as_ref().map(|server| CpuMeter::start(server.pid())).transpose()?;
            let carried = ends.run(time, most)?;
            Ok((carried, meter.map(|meter| meter.used()).transpose()?))
        })?;
        ensure!(carried.messages > 0, "nothing came through");
        let messages = carried.messages as f64;
        Ok(Figures {
            per_second: messages / carried.elapsed.as_secs_f64(),
            cpu_us: used.map(|used| used.as_secs_f64() * 1e6 / messages),
            p50_us: carried.p50_us,
            p99_us: carried.p99_us,
        })
    }
}

/// Measures everything: in each run every row, in each row every side.
///
/// # Errors
/// A side that does not start, or does not survive its load.
pub fn measure(
    ringpost: &Path,
    haproxy: Option<&Path>,
    plan: Plan,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<Balancers> {
    let mut sides = vec![Side::Ringpost(ringpost.to_owned())];
    sides.extend(haproxy.map(|path| Side::HaProxy(path.to_owned())));
    let with_direct: Vec<_> = sides.iter().cloned().chain([Side::Direct]).collect();
    let versions = sides.iter().map(Side::version).collect::<Result<Vec<_>, _>>()?;
    let mut all = Balancers { versions: versions.into_iter().flatten().collect(), ..Balancers::default() };
    let empty = || with_direct.iter().map(|side| (side.name(), Vec::new())).collect();
    all.rows = ROWS.iter().map(|&row| (row, empty())).collect();
    for run in 1..=plan.runs {
        for (row, measured) in &mut all.rows {
            for (side, (name, figures)) in with_direct.iter().zip(measured) {
                let one = Running::start(side, &[], plan)
                    .and_then(|running| running.measure(row.load, plan, plan.duration, u64::MAX))
                    .with_context(|| format!("run {run}, {}, {name}", row.name))?;
                let cpu = one.cpu_us.map_or_else(String::new, |cpu| format!(", {cpu:.2} µs CPU"));
                tell(&format!(
                    "run {run}, {}, {name}: {:.0}/s{cpu}, p50 {:.0} µs",
                    row.name, one.per_second, one.p50_us
                ));
                figures.push(one);
            }
        }
    }
    for side in &sides {
        let (gigabytes, ms) = stream(side, plan)?;
        tell(&format!("a stream of 10 GiB, {}: {gigabytes:.2} GB/s, {ms:.0} ms CPU/GB", side.name()));
        all.stream.push((side.name(), gigabytes, ms));
        let each = idle(side, plan)?;
        tell(&format!("an idle session, {}: {each:.0} bytes", side.name()));
        all.idle.push((side.name(), each));
    }
    for size in SIZES {
        let mut costs = [0.0; 3];
        for (cost, carrier) in costs.iter_mut().zip(CARRIERS) {
            let load = Load { connections: 8, in_flight: 4, size, echo: true };
            let running = Running::start(&sides[0], &["--splicing", carrier], plan)?;
            *cost = running.measure(load, plan, plan.duration, u64::MAX)?.cpu_us.unwrap_or_default();
        }
        let [copied, spliced, adaptive] = costs;
        tell(&format!("{size} B: copied {copied:.2}, spliced {spliced:.2}, adaptive {adaptive:.2} µs"));
        all.carriers.push((size, costs));
    }
    Ok(all)
}

/// One client sends a long stream to the service: GB/s, and the balancer's CPU for a GB in ms.
fn stream(side: &Side, plan: Plan) -> anyhow::Result<(f64, f64)> {
    let load = Load { connections: 1, in_flight: 16, size: STREAM_PIECE, echo: false };
    let pieces = STREAM_BYTES / STREAM_PIECE as u64;
    let one = Running::start(side, &[], plan)?.measure(load, plan, Duration::from_secs(3600), pieces)?;
    let ms_each = one.cpu_us.unwrap_or_default() / 1e3;
    Ok((one.per_second * STREAM_PIECE as f64 / 1e9, ms_each * 1e9 / STREAM_PIECE as f64))
}

/// Opens many sessions that each have said something, and sees what memory has grown.
fn idle(side: &Side, plan: Plan) -> anyhow::Result<f64> {
    let running = Running::start(side, &[], plan)?;
    let Some(server) = &running.server else { return Ok(0.0) };
    let load = |connections| Load { connections, in_flight: 1, size: 1000, echo: true };
    let mut first = Ends::connect(running.address, &running.service, load(10))?;
    first.run(WARM_UP, 1000)?;
    let before = resident(server.pid())?;
    let mut idle = Ends::connect(running.address, &running.service, load(IDLE_SESSIONS))?;
    idle.run(Duration::from_secs(60), IDLE_SESSIONS as u64)?;
    // Buffers that were handed out for the last message have come back by the next sweep.
    std::thread::sleep(Duration::from_secs(2));
    let grown = resident(server.pid())?.saturating_sub(before);
    Ok(grown as f64 / IDLE_SESSIONS as f64)
}

fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the balancer's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS")?;
    Ok(kib << 10)
}
