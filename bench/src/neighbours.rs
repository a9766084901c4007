//! What one client that misbehaves does to the others: the same load with and without it, in turns, and the ratio of
//! the well-behaved clients' p99 in each pair.

use std::{path::Path, time::Duration};

use anyhow::Context;
use ringpost_cli::load::{self, Options, Outcome, Server, on_core};

use crate::{
    contest::{Plan, Side},
    misbehaviour::{Misbehaving, Misbehaviour},
    spread::Spread,
};

/// The well-behaved: 16 requesters with one request in flight, 4 handlers, 128 B.
const REQUESTERS: u32 = 16;

/// So many pairs are measured in a run, each side for a quarter of the run's time: a p99 jumps about on a machine that is not
/// alone, and many short pairs say more than few long ones.
const PAIRS: u32 = 8;

/// How long the load runs before it counts; the server is warm.
const WARM_UP: Duration = Duration::from_millis(200);

/// Pairs of measurements.
#[derive(Debug, Clone, PartialEq)]
pub struct Pairs {
    /// What the one client does.
    pub misbehaviour: Misbehaviour,
    /// Without it, and with it.
    pub outcomes: Vec<(Outcome, Outcome)>,
}

impl Pairs {
    /// How many times longer the p99 was with the client, pair by pair.
    pub fn p99_ratios(&self) -> impl Iterator<Item = f64> + '_ {
        self.outcomes.iter().map(|(without, with)| with.latency.p99_us / without.latency.p99_us)
    }
}

/// Measures some pairs for each misbehaviour in each run, against one server; every other pair begins with the client, so
/// that whatever drifts meets both alike.
///
/// # Errors
/// A server that does not start, or does not survive; a client that could not misbehave.
pub fn measure(ringpost: &Path, plan: Plan, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Pairs>> {
    let mut all: Vec<_> = Misbehaviour::ALL
        .into_iter()
        .map(|misbehaviour| Pairs { misbehaviour, outcomes: Vec::new() })
        .collect();
    for run in 1..=plan.runs {
        for pairs in &mut all {
            let what = format!("run {run}, one client that {}", pairs.misbehaviour.name());
            let side = Side::Ringpost(ringpost.to_owned());
            let server = Server::spawn(side.command(), plan.cores.map(|cores| cores.server))?;
            for pair in 0..PAIRS {
                let once = |present: bool| {
                    measure_once(&server, present.then_some(pairs.misbehaviour), plan)
                        .with_context(|| format!("{what}: {present}"))
                };
                let (without, with) = if pair % 2 == 0 {
                    (once(false)?, once(true)?)
                } else {
                    let with = once(true)?;
                    (once(false)?, with)
                };
                pairs.outcomes.push((without, with));
            }
            if let Some(ratio) = Spread::over(pairs.p99_ratios()) {
                tell(&format!("{what}: p99 {ratio:.2} times as long so far"));
            }
        }
    }
    Ok(all)
}

fn measure_once(server: &Server, misbehaviour: Option<Misbehaviour>, plan: Plan) -> anyhow::Result<Outcome> {
    let core = plan.cores.map(|cores| cores.load);
    let options = Options {
        server_pid: Some(server.pid()),
        requesters: REQUESTERS,
        in_flight: 1,
        warm_up: WARM_UP,
        duration: plan.duration / 4,
        pin: core,
        ..Options::new(server.address())
    };
    let client = misbehaviour
        .map(|misbehaviour| on_core(core, || Ok(Misbehaving::start(misbehaviour, server.address()))))
        .transpose()?;
    let outcome = load::run(&options, &mut |_| {})?;
    client.map_or(Ok(()), Misbehaving::end)?;
    Ok(outcome)
}
