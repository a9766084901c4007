//! The load generator: one thread that plays requesters and handlers at once, over raw sockets, and measures.
//!
//! It owns the traffic (how many connections, how many requests in flight on each), the clock and the figures. It
//! never touches an SDK: requests are patched templates and replies are read just as far as honesty asks, so that one
//! core of it can keep a server on another core busy. What it says on the wire is a [`Wire`]'s business.
//!
//! * [`Options`] → [`run`] → [`Outcome`]; [`run_with`] does the same over a protocol of the caller's, and [`run_until`]
//!   can be ended early.
//! * [`on_core`], [`CpuMeter`], [`Latency`], [`Share`]: how it pins and measures, for whoever puts a load of another kind.
//! * [`Disk`]: a temporary folder for a durable server, on a file system that really has a disk.
//! * [`Server`]: a server process of one's own, pinned, that listens on a free port and ends with its owner.
//! * [`print_table`]: the outcome for people; as a serde structure it is for programs.
//!
//! The traffic is closed-loop: each requester keeps its number of requests in flight and sends the next one when a
//! reply comes. So latencies at depth say how long a request waits behind the others, and throughput is the server's.

mod binary;
mod connection;
mod cpu;
mod disk;
mod engine;
mod json;
mod machine;
mod outcome;
mod records;
mod spawn;
mod window;
pub mod wire;

use std::{net::SocketAddr, sync::atomic::AtomicBool, time::Duration};

use anyhow::{bail, ensure};
use ringpost_protocol::secure::SecureKey;
use serde::{Deserialize, Serialize};

pub use binary::Binary;
pub use cpu::{CpuMeter, on_core};
pub use disk::Disk;
pub use json::Json;
pub use machine::Machine;
pub use outcome::{Latency, Outcome, Share, print_table};
pub use spawn::Server;
pub use wire::Wire;

/// How long handlers and requesters may take to be greeted, and the last replies to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which of Ringpost's dialects is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Frames, as the SDKs speak them.
    #[default]
    Binary,
    /// JSON objects, a line each.
    Json,
}

impl std::str::FromStr for Dialect {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "binary" => Ok(Self::Binary),
            "json" => Ok(Self::Json),
            other => bail!("there is no dialect {other:?}: use binary or json"),
        }
    }
}

/// What to measure: enough, with the [`Machine`], to do it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Where the server listens.
    pub server: SocketAddr,
    /// The server's process on this machine; with it its CPU is measured.
    pub server_pid: Option<u32>,
    /// What the server speaks; [`run_with`] does not look at it.
    pub dialect: Dialect,
    /// The action that is requested.
    pub action: String,
    /// Connections that send requests, at least 1.
    pub requesters: u32,
    /// Requests that each of them keeps in flight, 1 to 65536.
    pub in_flight: u32,
    /// Connections that handle the action, at least 1. Each echoes.
    pub handlers: u32,
    /// Bytes of a request's and its reply's payload, which is JSON text. At least 1 where the dialect is JSON.
    pub size: usize,
    /// Whether requests are durable: accepted when they are logged, their replies kept until they are acknowledged. In
    /// the binary dialect only; [`run_with`] does not look at it.
    #[serde(default)]
    pub durable: bool,
    /// The secure key of the server, if it has one: then all goes through records. [`run_with`] does not look at it.
    #[serde(skip)]
    pub secure_key: Option<SecureKey>,
    /// Traffic before the measuring begins.
    pub warm_up: Duration,
    /// How long to measure.
    pub duration: Duration,
    /// The core that the load generator stays on, if any.
    pub pin: Option<usize>,
}

impl Options {
    /// The first row of the project's table of figures, for five seconds: 16 × 64 in flight, 4 handlers, 128 bytes.
    pub fn new(server: SocketAddr) -> Self {
        Self {
            server,
            server_pid: None,
            dialect: Dialect::Binary,
            action: "bench".to_owned(),
            requesters: 16,
            in_flight: 64,
            handlers: 4,
            size: 128,
            durable: false,
            secure_key: None,
            warm_up: Duration::from_millis(500),
            duration: Duration::from_secs(5),
            pin: None,
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.requesters >= 1, "at least one requester is needed");
        ensure!(self.handlers >= 1, "at least one handler is needed, or nobody answers");
        ensure!((1..=1 << 16).contains(&self.in_flight), "in flight: 1 to 65536 requests are possible");
        ensure!(!self.duration.is_zero(), "the duration must be longer than nothing");
        ensure!(
            self.size <= ringpost_protocol::limits::MAX_MAX_PAYLOAD_BYTES as usize,
            "payloads of {} bytes are beyond every server's limit",
            self.size
        );
        ringpost_protocol::limits::check_own_name(self.action.as_bytes())?;
        Ok(())
    }
}

/// What a run has come to: reported once a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Time since the phase began.
    pub elapsed: Duration,
    /// Replies per second since the last report.
    pub requests_per_second: f64,
    /// Errors since the beginning.
    pub errors: u64,
}

/// The parts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Traffic that does not count.
    WarmUp,
    /// Traffic that counts.
    Measure,
    /// Nothing new is sent; the last replies come in.
    Drain,
}

/// Puts load on a Ringpost server, in the dialect of the options.
///
/// # Errors
/// Options that make no sense, a server that cannot be reached, closes a connection, refuses the handlers or breaks
/// its protocol. A request that ends with an error is no error here: it is counted in [`Outcome::errors`].
pub fn run(options: &Options, on_progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Outcome> {
    run_until(options, &AtomicBool::new(false), on_progress)
}

/// As [`run`]; when `stop` becomes true, the run ends early with the figures so far.
///
/// # Errors
/// As [`run`].
pub fn run_until(
    options: &Options,
    stop: &AtomicBool,
    on_progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Outcome> {
    match options.dialect {
        Dialect::Binary => run_on_core::<Binary>(options, stop, on_progress),
        Dialect::Json => run_on_core::<Json>(options, stop, on_progress),
    }
}

/// Puts the same load on a server that speaks the protocol `W`.
///
/// # Errors
/// As [`run`].
pub fn run_with<W: Wire>(
    options: &Options,
    on_progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Outcome> {
    run_on_core::<W>(options, &AtomicBool::new(false), on_progress)
}

fn run_on_core<W: Wire>(
    options: &Options,
    stop: &AtomicBool,
    on_progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Outcome> {
    options.check()?;
    cpu::on_core(options.pin, || engine::run::<W>(options, stop, on_progress))
}

#[cfg(test)]
mod tests;
