//! The run: connect, warm up, measure, drain. One thread, one epoll.

use std::{
    collections::BTreeMap,
    io,
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token};

use super::{
    Options, Outcome, PATIENCE, Phase, Progress,
    connection::Connection,
    cpu::CpuMeter,
    machine::Machine,
    outcome::{Latency, Share},
    records::Records,
    window::Window,
    wire::{Role, Wire},
};

/// The longest latency that is told from longer ones.
const MAX_LATENCY_NS: u64 = 60_000_000_000;
/// How often progress is told.
const TICK: Duration = Duration::from_secs(1);
/// How long `done` is not asked where nothing happens.
const LOOK: Duration = Duration::from_millis(50);

/// Runs the load over the protocol `W`.
pub(super) fn run<W: Wire>(
    options: &Options,
    stop: &AtomicBool,
    on_progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Outcome> {
    let stopped = |_: &Engine<W>| stop.load(Ordering::Relaxed);
    let mut engine = Engine::<W>::new()?;
    engine.connect(Role::Handler, options.handlers, options)?;
    engine.connect(Role::Requester, options.requesters, options)?;
    engine.start(options)?;
    engine.run_for(Phase::WarmUp, options.warm_up, on_progress, stopped)?;

    engine.tally.latency.reset();
    let server_cpu = options.server_pid.map(CpuMeter::start).transpose()?;
    let load_cpu = CpuMeter::start(std::process::id())?;
    let began = Instant::now();
    engine.run_for(Phase::Measure, options.duration, on_progress, stopped)?;
    let elapsed = began.elapsed();
    let requests = engine.tally.latency.len();
    let share = |meter: CpuMeter| Ok::<_, anyhow::Error>(Share::new(meter.used()?, elapsed, requests));
    let server_cpu = server_cpu.map(share).transpose()?;
    let load_cpu = share(load_cpu)?;
    let latency = Latency::of(&engine.tally.latency);

    engine.tally.sending = false;
    engine.run_for(Phase::Drain, PATIENCE, on_progress, |engine| engine.open_requests() == 0)?;
    engine.connections.iter_mut().try_for_each(Connection::close)?;
    Ok(Outcome {
        protocol: format!("{}{}", W::NAME, if options.secure_key.is_some() { ", secure" } else { "" }),
        requests_per_second: requests as f64 / elapsed.as_secs_f64(),
        requests,
        elapsed_seconds: elapsed.as_secs_f64(),
        errors: engine.tally.errors.values().sum(),
        error_counts: std::mem::take(&mut engine.tally.errors),
        unanswered: engine.open_requests() as u64,
        latency,
        server_cpu,
        load_cpu,
        options: options.clone(),
        machine: Machine::here()?,
    })
}

/// Nanoseconds since the run began.
pub(super) struct Clock(Instant);

impl Clock {
    #[inline]
    pub(super) fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// What is counted, over all connections.
pub(super) struct Tally {
    /// Whether a reply is followed by the next request.
    pub(super) sending: bool,
    /// Connections that the server has greeted.
    pub(super) ready: u32,
    latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    #[inline]
    pub(super) fn replied(&mut self, latency_ns: u64) {
        self.latency.saturating_record(latency_ns);
    }

    #[cold]
    pub(super) fn failed(&mut self, reason: String) {
        /// Distinct reasons that are kept apart; a broken server can make up any number of them.
        const MAX_REASONS: usize = 16;
        let known = self.errors.len() < MAX_REASONS || self.errors.contains_key(&reason);
        *self.errors.entry(if known { reason } else { "other".to_owned() }).or_default() += 1;
    }
}

struct Engine<W> {
    poll: Poll,
    events: Events,
    connections: Vec<Connection<W>>,
    clock: Clock,
    tally: Tally,
}

impl<W: Wire> Engine<W> {
    fn new() -> anyhow::Result<Self> {
        let tally = Tally {
            sending: true,
            ready: 0,
            latency: Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3).context("the histogram's bounds")?,
            errors: BTreeMap::new(),
        };
        Ok(Self {
            poll: Poll::new().context("epoll")?,
            events: Events::with_capacity(1024),
            connections: Vec::new(),
            clock: Clock(Instant::now()),
            tally,
        })
    }

    /// Connects all of a role and waits until the server knows them.
    fn connect(&mut self, role: Role, count: u32, options: &Options) -> anyhow::Result<()> {
        for index in 0..count {
            let mut stream = TcpStream::connect_timeout(&options.server, PATIENCE).with_context(|| {
                format!("connecting to {} (is the server running there?)", options.server)
            })?;
            stream.set_nodelay(true)?;
            let records = match &options.secure_key {
                Some(key) => Some(Records::agree(&mut stream, key)?),
                None => None,
            };
            stream.set_nonblocking(true)?;
            let stream = mio::net::TcpStream::from_std(stream);
            let window = Window::new(if role == Role::Requester { options.in_flight } else { 0 });
            let mut connection =
                Connection::open(stream, role, index, W::new(role, index, options)?, records, window)?;
            let token = Token(self.connections.len());
            // Edge-triggered: writability is told again only after the socket had been full.
            self.poll.registry().register(
                connection.stream(),
                token,
                Interest::READABLE | Interest::WRITABLE,
            )?;
            self.connections.push(connection);
        }
        self.tally.ready = 0;
        let deadline = Instant::now() + PATIENCE;
        while self.tally.ready < count {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "after {PATIENCE:?} the server has greeted only {} of {count} connections ({role:?}, {})",
                self.tally.ready,
                W::NAME
            );
            self.turn(left)?;
        }
        Ok(())
    }

    /// Puts the requests into flight.
    fn start(&mut self, options: &Options) -> anyhow::Result<()> {
        let now_ns = self.clock.now_ns();
        let (_, requesters) = self.connections.split_at_mut(options.handlers as usize);
        for requester in requesters {
            requester.start(options.in_flight, now_ns)?;
        }
        Ok(())
    }

    /// Serves the connections for a time, or until `done`; tells progress once a second.
    fn run_for(
        &mut self,
        phase: Phase,
        duration: Duration,
        on_progress: &mut dyn FnMut(Progress),
        done: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut told = (Duration::ZERO, self.tally.latency.len());
        while !done(self) {
            let elapsed = began.elapsed();
            if elapsed >= told.0 + TICK {
                let replies = self.tally.latency.len();
                let requests_per_second = (replies - told.1) as f64 / (elapsed - told.0).as_secs_f64();
                let errors = self.tally.errors.values().sum();
                on_progress(Progress { phase, elapsed, requests_per_second, errors });
                told = (elapsed, replies);
            }
            let Some(left) = duration.checked_sub(elapsed).filter(|left| !left.is_zero()) else { break };
            self.turn(left.min(told.0 + TICK - elapsed).min(LOOK))?;
        }
        Ok(())
    }

    /// Waits for readiness and serves who has it.
    fn turn(&mut self, timeout: Duration) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error).context("epoll"),
        }
        for event in &self.events {
            let connection = &mut self.connections[event.token().0];
            if event.is_readable() {
                connection.receive(event.is_read_closed(), &self.clock, &mut self.tally)?;
            } else {
                connection.flush()?;
            }
        }
        Ok(())
    }

    fn open_requests(&self) -> usize {
        self.connections.iter().map(Connection::open_requests).sum()
    }
}
