//! The load of the rows that measure SDKs: a client of the SDK that requests, and one that handles, each as its guide
//! shows it. What is measured is the SDKs, not the raw protocols.
//!
//! Both clients live on one thread with a tokio runtime, on the load's core, whatever the SDK: then all that differs is
//! what the SDKs make of it. Each request in flight is a task that asks, waits for the reply, checks it, and asks again.

mod nats;
mod own;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use ringpost_cli::load::{CpuMeter, Latency, Machine, Options, Outcome, Share, on_core, wire};
use tokio::{runtime, time};

pub use nats::AsyncNats;
pub use own::RingpostSdk;

/// How long replies may take to come after the last request.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_LATENCY_NS: u64 = 60_000_000_000;

/// A client of an SDK that sends requests.
pub trait Sdk: Clone + Send + Sync + 'static {
    /// The SDK's name, as results show it.
    const NAME: &'static str;
    /// What keeps a handler there.
    type Handler;

    /// A client that echoes the requests to an action, `concurrency` of them at once.
    fn handle(
        server: SocketAddr,
        action: &str,
        concurrency: u32,
    ) -> impl Future<Output = anyhow::Result<Self::Handler>>;

    /// A client to send requests with.
    fn connect(server: SocketAddr) -> impl Future<Output = anyhow::Result<Self>>;

    /// Sends a request, and waits for its reply.
    fn request(
        &self,
        action: &'static str,
        payload: &Bytes,
    ) -> impl Future<Output = anyhow::Result<Bytes>> + Send;
}

/// The action that is requested.
const ACTION: &str = "bench";

/// Puts load on a server through an SDK: of the options, all but dialect, action, and the numbers of clients.
///
/// # Errors
/// A server that cannot be reached; a request that fails, or whose reply is not its payload: SDKs are measured only
/// while they work.
pub fn run<S: Sdk>(options: &Options) -> anyhow::Result<Outcome> {
    on_core(options.pin, || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(drive::<S>(options))
    })
}

async fn drive<S: Sdk>(options: &Options) -> anyhow::Result<Outcome> {
    let handler = S::handle(options.server, ACTION, options.in_flight).await?;
    let requester = S::connect(options.server).await?;
    let shared = Arc::new(Shared::new(options)?);
    let tasks: Vec<_> =
        (0..options.in_flight).map(|_| tokio::spawn(ask(requester.clone(), shared.clone()))).collect();
    time::sleep(options.warm_up).await;

    shared.latency().reset();
    let server_cpu = options.server_pid.map(CpuMeter::start).transpose()?;
    let load_cpu = CpuMeter::start(std::process::id())?;
    let began = Instant::now();
    time::sleep(options.duration).await;
    let elapsed = began.elapsed();
    let latency = shared.latency().clone();
    let requests = latency.len();
    let server_cpu = server_cpu.map(|meter| meter.used()).transpose()?;
    let server_cpu = server_cpu.map(|used| Share::new(used, elapsed, requests));
    let load_cpu = Share::new(load_cpu.used()?, elapsed, requests);

    shared.over.store(true, Ordering::Relaxed);
    let deadline = time::Instant::now() + PATIENCE;
    for task in tasks {
        match time::timeout_at(deadline, task).await {
            Ok(ended) => ended.context("a task of the load")??,
            Err(_) => bail!("a request of {} had no reply {PATIENCE:?} after the last was sent", S::NAME),
        }
    }
    ensure!(requests > 0, "{} got no reply", S::NAME);
    drop(handler);
    Ok(Outcome {
        protocol: S::NAME.to_owned(),
        requests_per_second: requests as f64 / elapsed.as_secs_f64(),
        requests,
        elapsed_seconds: elapsed.as_secs_f64(),
        errors: 0,
        error_counts: Default::default(),
        unanswered: 0,
        latency: Latency::of(&latency),
        server_cpu,
        load_cpu,
        options: options.clone(),
        machine: Machine::here()?,
    })
}

/// What the tasks share. They are on one thread: nobody waits for the lock.
struct Shared {
    payload: Bytes,
    over: AtomicBool,
    latency: Mutex<Histogram<u64>>,
}

impl Shared {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let latency = Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3)?;
        Ok(Self {
            payload: wire::payload(options.size).into(),
            over: AtomicBool::new(false),
            latency: Mutex::new(latency),
        })
    }

    fn latency(&self) -> std::sync::MutexGuard<'_, Histogram<u64>> {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request after the other.
async fn ask<S: Sdk>(requester: S, shared: Arc<Shared>) -> anyhow::Result<()> {
    while !shared.over.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let reply = requester.request(ACTION, &shared.payload).await?;
        ensure!(reply == shared.payload, "{}: the reply's payload is not the request's", S::NAME);
        shared.latency().saturating_record(sent.elapsed().as_nanos() as u64);
    }
    Ok(())
}
