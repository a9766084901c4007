//! Durable requests: the row of the table of figures that needs a disk, and what the disk itself takes.
//!
//! Ringpost logs a request, accepts it, has it handled, and logs the reply before it goes out. JetStream, beside it, only
//! takes what is published, and so does Redis with its append-only file. All do it on the same disk, with the same load, in
//! turns, each time with an empty folder.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    time::Instant,
};

use anyhow::Context;
use ringpost_cli::load::{self, Disk, Options, Outcome, Server, on_core};

use crate::{
    contest::{Plan, Side},
    jetstream::JetStream,
    redis::Redis,
    spread::Spread,
};

/// What is promised of what was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It was synced before.
    Always,
    /// It is synced within a second.
    Interval,
    /// Ringpost and Redis: it is synced when the system likes. JetStream: within its default, two minutes.
    Never,
}

impl Policy {
    /// All of them, the strictest first.
    pub const ALL: [Self; 3] = [Self::Always, Self::Interval, Self::Never];

    /// As `ringpost serve --sync` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Interval => "interval:1s",
            Self::Never => "never",
        }
    }

    /// As a configuration of nats-server has it.
    fn of_jetstream(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Interval => "\"1s\"",
            Self::Never => "\"2m\"",
        }
    }
}

impl Policy {
    /// As Redis's `appendfsync` has it.
    fn of_redis(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Interval => "everysec",
            Self::Never => "no",
        }
    }
}

/// A load of so many requests in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    requesters: u32,
    each: u32,
    handlers: u32,
}

impl Load {
    /// One request after the other.
    pub const SERIAL: Self = Self { requesters: 1, each: 1, handlers: 1 };
    /// 256 in flight.
    pub const DEEP: Self = Self { requesters: 16, each: 16, handlers: 4 };
    /// All that are measured.
    pub const ALL: [Self; 3] = [Self::SERIAL, Self { requesters: 4, each: 16, handlers: 4 }, Self::DEEP];

    /// How many requests it keeps in flight.
    pub fn in_flight(self) -> u32 {
        self.requesters * self.each
    }

    pub(crate) fn on(self, server: &Server, plan: Plan) -> Options {
        Options {
            server_pid: Some(server.pid()),
            requesters: self.requesters,
            in_flight: self.each,
            handlers: self.handlers,
            duration: plan.duration,
            pin: plan.cores.map(|cores| cores.load),
            ..Options::new(SocketAddr::from((Ipv4Addr::LOCALHOST, server.address().port())))
        }
    }
}

/// All measurements of one load under one policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The policy.
    pub policy: Policy,
    /// The load.
    pub load: Load,
    /// Each side's name with the outcomes of its runs.
    pub sides: Vec<(&'static str, Vec<Outcome>)>,
}

impl Measured {
    /// The outcomes of a side, if it was measured.
    pub fn of(&self, name: &str) -> Option<&[Outcome]> {
        self.sides.iter().find(|(side, _)| *side == name).map(|(_, outcomes)| outcomes.as_slice())
    }
}

/// All that was measured of durable requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Durable {
    /// What the data lay on.
    pub file_system: String,
    /// What one small write and its fdatasync took, in microseconds: the median of each run.
    pub sync_us: Vec<f64>,
    /// The way there and back of a plain request, one after the other: the median of each run. Of Ringpost only.
    pub plain_us: Vec<f64>,
    /// By policy and load.
    pub measured: Vec<Measured>,
}

impl Durable {
    /// What a durable request, one after the other, may take at the median: two fdatasyncs and the plain way there and back.
    pub fn serial_bound_us(&self) -> Option<f64> {
        let median = |values: &[f64]| Some(Spread::over(values.iter().copied())?.median);
        Some(2.0 * median(&self.sync_us)? + median(&self.plain_us)?)
    }
}

/// Measures all loads under all policies on all sides, and the disk, in each run.
///
/// # Errors
/// No disk; a server that does not start, or does not survive its load.
pub fn measure(sides: &[Side], plan: Plan, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Durable> {
    let empty = || sides.iter().map(|side| (side.name(), Vec::new())).collect();
    let mut durable = Durable {
        file_system: Disk::temporary()?.file_system().to_owned(),
        sync_us: Vec::new(),
        plain_us: Vec::new(),
        measured: Policy::ALL
            .into_iter()
            .flat_map(|policy| Load::ALL.map(|load| Measured { policy, load, sides: empty() }))
            .collect(),
    };
    for run in 1..=plan.runs {
        let sync_us = on_core(plan.cores.map(|cores| cores.server), sync_us)?;
        tell(&format!("run {run}, a write and its fdatasync: p50 {sync_us:.0} µs"));
        durable.sync_us.push(sync_us);
        for side in sides.iter().filter(|side| matches!(side, Side::Ringpost(_))) {
            let plain = measure_plain(side, plan).with_context(|| format!("run {run}, plain requests"))?;
            tell(&line(run, "plain", Load::SERIAL, side.name(), &plain));
            durable.plain_us.push(plain.latency.p50_us);
        }
        for Measured { policy, load, sides: measured } in &mut durable.measured {
            for (side, (name, outcomes)) in sides.iter().zip(measured) {
                let outcome = measure_once(side, *policy, *load, plan).with_context(|| {
                    format!("run {run}, {}, {} in flight, {name}", policy.name(), load.in_flight())
                })?;
                tell(&line(run, policy.name(), *load, name, &outcome));
                outcomes.push(outcome);
            }
        }
    }
    Ok(durable)
}

fn measure_plain(side: &Side, plan: Plan) -> anyhow::Result<Outcome> {
    let server = Server::spawn(side.command(), plan.cores.map(|cores| cores.server))?;
    load::run(&Load::SERIAL.on(&server, plan), &mut |_| {})
}

fn measure_once(side: &Side, policy: Policy, load: Load, plan: Plan) -> anyhow::Result<Outcome> {
    // Kept longer than the server: it is removed when this is dropped.
    let disk = Disk::temporary()?;
    let core = plan.cores.map(|cores| cores.server);
    let server = match side {
        Side::Ringpost(_) => Server::spawn(logging(side.command(), policy, disk.path()), core)?,
        Side::Nats(_) => Server::spawn(storing(side.command(), policy, disk.path())?, core)?,
        Side::Redis(_) => {
            let address = free_address()?;
            Server::spawn_at(appending(side.command(), policy, disk.path(), address.port()), core, address)?
        }
    };
    let options = load.on(&server, plan);
    match side {
        Side::Ringpost(_) => load::run(&Options { durable: true, ..options }, &mut |_| {}),
        Side::Nats(_) => load::run_with::<JetStream>(&options, &mut |_| {}),
        Side::Redis(_) => load::run_with::<Redis>(&options, &mut |_| {}),
    }
}

/// Ringpost with a log.
fn logging(mut command: Command, policy: Policy, folder: &Path) -> Command {
    command.arg("--data-dir").arg(folder).args(["--sync", policy.name()]);
    command
}

/// NATS with JetStream. How it syncs can only be said in a file.
fn storing(mut command: Command, policy: Policy, folder: &Path) -> anyhow::Result<Command> {
    let file = folder.join("nats.conf");
    let store = serde_json::to_string(&folder.join("store"))?;
    let text =
        format!("jetstream {{\n  store_dir: {store}\n  sync_interval: {}\n}}\n", policy.of_jetstream());
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    command.arg("--config").arg(file);
    Ok(command)
}

/// Redis with its append-only file, which is never rewritten meanwhile.
fn appending(mut command: Command, policy: Policy, folder: &Path, port: u16) -> Command {
    command.arg("--port").arg(port.to_string()).arg("--dir").arg(folder);
    command.args(["--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"]);
    command.args(["--appendfsync", policy.of_redis()]);
    command
}

/// Where nobody listens now.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The median of what a small write to a file that has its blocks, and its fdatasync, take.
fn sync_us() -> anyhow::Result<f64> {
    /// A record of a request of 128 bytes is not much longer, and neither is what the disk writes at least.
    const WRITE_BYTES: usize = 512;
    const WRITES: usize = 200;
    let disk = Disk::temporary()?;
    let file = File::create_new(disk.path().join("synced"))?;
    // As a log does it, so that no sync has to write where the file lies as well.
    file.write_all_at(&vec![0; WRITE_BYTES * WRITES], 0)?;
    file.sync_all()?;
    let write = |index: usize| {
        let begun = Instant::now();
        file.write_all_at(&[1; WRITE_BYTES], (index * WRITE_BYTES) as u64)?;
        file.sync_data()?;
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    };
    let times = (0..WRITES).map(write).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Spread::over(times).context("no writes")?.median)
}

fn line(run: u32, policy: &str, load: Load, name: &str, outcome: &Outcome) -> String {
    format!(
        "run {run}, row 6 ({policy}, {} in flight), {name:<8} {:>9.0}/s, p50 {:.0} µs, {} errors",
        load.in_flight(),
        outcome.requests_per_second,
        outcome.latency.p50_us,
        outcome.errors + outcome.unanswered,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A serial durable request may take two syncs and the plain way, by their medians; without both there is no bound.
    #[test]
    fn serial_bound() {
        let durable = |sync_us: &[f64], plain_us: &[f64]| Durable {
            file_system: "ext4".to_owned(),
            sync_us: sync_us.to_vec(),
            plain_us: plain_us.to_vec(),
            measured: Vec::new(),
        };
        assert_eq!(durable(&[100.0, 900.0, 200.0], &[50.0]).serial_bound_us(), Some(450.0));
        assert_eq!(durable(&[100.0], &[]).serial_bound_us(), None);
    }

    /// The loads have the numbers of requests in flight that the row names.
    #[test]
    fn in_flight() {
        assert_eq!(Load::ALL.map(Load::in_flight), [1, 64, 256]);
    }
}
