//! What a secure key costs: the same load in clear and through records, in turns; and how many handshakes a core makes.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use ringpost_cli::load::{self, CpuMeter, Options, Outcome, Server, on_core};
use ringpost_protocol::{
    frame::Preface,
    secure::{Initiator, Role, SecureKey, ServerHello},
};

use crate::{
    contest::{Plan, Side},
    rows::{Figure, ROWS},
};

/// Connections of one measurement of handshakes.
const CONNECTIONS: u32 = 2000;
/// How long the server may take for one of them.
const PATIENCE: Duration = Duration::from_secs(5);

/// A load that is measured in clear and through records.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// In words.
    pub work: String,
    /// How many times the CPU per request in clear it may be, if that is bounded.
    pub must: Option<f64>,
    /// Its options, but for the server's.
    options: Options,
    /// In clear, and through records.
    pub outcomes: Vec<(Outcome, Outcome)>,
}

impl Load {
    /// How many times more CPU a request took through records, pair by pair.
    pub fn cpu_ratios(&self) -> impl Iterator<Item = f64> + '_ {
        self.outcomes.iter().filter_map(|(clear, secure)| {
            Figure::ServerCpu
                .of(secure)
                .zip(Figure::ServerCpu.of(clear))
                .map(|(secure, clear)| secure / clear)
        })
    }

    /// Bytes of payload that the server opened and sealed for each second of its CPU: each of a request's and of its reply's
    /// is opened once and sealed once.
    pub fn bytes_per_cpu_second(&self) -> impl Iterator<Item = f64> + '_ {
        let passes = 4.0 * self.options.size as f64;
        self.outcomes.iter().filter_map(move |(_, secure)| Some(passes * 1e6 / Figure::ServerCpu.of(secure)?))
    }
}

/// All that was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Secure {
    /// The loads.
    pub loads: Vec<Load>,
    /// Microseconds of the server's CPU for a connection that comes, says its first words, and goes: in clear, and with the
    /// handshake.
    pub connections_us: Vec<(f64, f64)>,
}

/// Measures every load in each run in clear and through records; every other run begins with the records.
///
/// # Errors
/// A server that does not start, or does not survive.
pub fn measure(ringpost: &Path, plan: Plan, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Secure> {
    let bits = [0x5e; 32];
    let folder = tempfile::tempdir().context("a folder for the key")?;
    let file = folder.path().join("key");
    std::fs::write(&file, SecureKey::text_of(&bits).as_bytes())?;
    let bench = Bench { ringpost, key: SecureKey::from_bytes(bits), file: &file, plan };
    let mut secure = Secure { loads: loads(), connections_us: Vec::new() };
    for run in 1..=plan.runs {
        for load in &mut secure.loads {
            let once = |secure| {
                bench
                    .load(&load.options, secure)
                    .with_context(|| format!("run {run}, {}: {secure}", load.work))
            };
            let (clear, through) = in_turns(run, once)?;
            let cpu = |outcome| Figure::ServerCpu.of(outcome).unwrap_or(f64::NAN);
            tell(&format!(
                "run {run}, {}: {:.2} µs of CPU in clear, {:.2} µs through records",
                load.work,
                cpu(&clear),
                cpu(&through)
            ));
            load.outcomes.push((clear, through));
        }
        let (clear, through) = in_turns(run, |secure| bench.connections(secure))?;
        tell(&format!(
            "run {run}, a connection: {clear:.1} µs of CPU in clear, {through:.1} µs with a handshake"
        ));
        secure.connections_us.push((clear, through));
    }
    Ok(secure)
}

/// Rows 1, 2 and 4, and large payloads.
fn loads() -> Vec<Load> {
    let anywhere = Options::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    let bounds = [(1, Some(1.5)), (2, Some(1.15)), (4, None)];
    let rows = ROWS.iter().filter_map(|row| {
        let (_, must) = bounds.into_iter().find(|(number, _)| *number == row.number)?;
        let work = format!("row {}: {}", row.number, row.work);
        Some(Load { work, must, options: row.options(anywhere.clone()), outcomes: Vec::new() })
    });
    let large = Options { requesters: 2, in_flight: 2, handlers: 2, size: 1 << 20, ..anywhere.clone() };
    let work = "2 requesters × 2 in flight, 2 handlers, 1 MiB".to_owned();
    rows.chain([Load { work, must: None, options: large, outcomes: Vec::new() }]).collect()
}

fn in_turns<T>(run: u32, once: impl Fn(bool) -> anyhow::Result<T>) -> anyhow::Result<(T, T)> {
    if run % 2 == 1 {
        Ok((once(false)?, once(true)?))
    } else {
        let secure = once(true)?;
        Ok((once(false)?, secure))
    }
}

struct Bench<'a> {
    ringpost: &'a Path,
    key: SecureKey,
    file: &'a Path,
    plan: Plan,
}

impl Bench<'_> {
    fn server(&self, secure: bool) -> anyhow::Result<Server> {
        let mut command = Side::Ringpost(self.ringpost.to_owned()).command();
        if secure {
            command.arg("--secure-key-file").arg(self.file);
        }
        Server::spawn(command, self.plan.cores.map(|cores| cores.server))
    }

    fn load(&self, options: &Options, secure: bool) -> anyhow::Result<Outcome> {
        let server = self.server(secure)?;
        let options = Options {
            server: server.address(),
            server_pid: Some(server.pid()),
            secure_key: secure.then(|| self.key.clone()),
            duration: self.plan.duration,
            pin: self.plan.cores.map(|cores| cores.load),
            ..options.clone()
        };
        load::run(&options, &mut |_| {})
    }

    /// Connections one after the other. Microseconds of the server's CPU for each.
    fn connections(&self, secure: bool) -> anyhow::Result<f64> {
        let server = self.server(secure)?;
        let come_and_go = || {
            let meter = CpuMeter::start(server.pid())?;
            for _ in 0..CONNECTIONS {
                let mut stream = TcpStream::connect_timeout(&server.address(), PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                if secure {
                    let initiator = Initiator::new(&self.key, Role::Client)?;
                    stream.write_all(initiator.hello())?;
                    stream.read_exact(&mut [0; ServerHello::BYTES])?;
                } else {
                    stream.write_all(&Preface::plain().encode())?;
                    stream.read_exact(&mut [0; Preface::BYTES])?;
                }
            }
            Ok(meter.used()?.as_secs_f64() * 1e6 / f64::from(CONNECTIONS))
        };
        on_core(self.plan.cores.map(|cores| cores.load), come_and_go)
    }
}
