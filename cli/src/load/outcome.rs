//! What a run has measured, for programs and for people.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{Machine, Options};

/// The figures of a run, with what is needed to repeat it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was spoken.
    pub protocol: String,
    /// Replies per second while it was measured.
    pub requests_per_second: f64,
    /// Replies while it was measured.
    pub requests: u64,
    /// How long it was measured.
    pub elapsed_seconds: f64,
    /// What went wrong, from the beginning to the end: requests that ended with an error, replies that nobody had
    /// asked for, payloads that were not those of the request.
    pub errors: u64,
    /// The same by what it was.
    pub error_counts: BTreeMap<String, u64>,
    /// Requests that had no outcome at the end, though they were waited for.
    pub unanswered: u64,
    /// From sending a request to its reply.
    pub latency: Latency,
    /// The server's processor time, if its process was known.
    pub server_cpu: Option<Share>,
    /// The load generator's own.
    pub load_cpu: Share,
    /// What was asked for.
    pub options: Options,
    /// Where it ran.
    pub machine: Machine,
}

/// A distribution of latencies, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the replies came in this time.
    pub p50_us: f64,
    /// 90 % of them.
    pub p90_us: f64,
    /// 99 % of them.
    pub p99_us: f64,
    /// 99.9 % of them.
    pub p999_us: f64,
    /// All of them.
    pub max_us: f64,
}

impl Latency {
    /// From latencies in nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1000.0;
        Self {
            p50_us: us(histogram.value_at_quantile(0.5)),
            p90_us: us(histogram.value_at_quantile(0.9)),
            p99_us: us(histogram.value_at_quantile(0.99)),
            p999_us: us(histogram.value_at_quantile(0.999)),
            max_us: us(histogram.max()),
        }
    }
}

/// Processor time of a process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Microseconds for each reply; 0 where there was none.
    pub us_per_request: f64,
    /// How many cores it kept busy.
    pub cores: f64,
}

impl Share {
    /// Time that was used while so many requests were replied to.
    pub fn new(used: Duration, elapsed: Duration, requests: u64) -> Self {
        let us = used.as_secs_f64() * 1e6;
        let us_per_request = if requests == 0 { 0.0 } else { us / requests as f64 };
        Self { us_per_request, cores: used.as_secs_f64() / elapsed.as_secs_f64() }
    }
}

/// Writes an outcome as a table for people.
///
/// # Errors
/// Those of the writer.
pub fn print_table(outcome: &Outcome, out: &mut dyn Write) -> io::Result<()> {
    let Outcome { options, latency, .. } = outcome;
    let mut row = |name: &str, value: String| writeln!(out, "{name:<14} {value}");
    row("protocol", outcome.protocol.clone())?;
    row(
        "load",
        format!(
            "{} requesters × {} in flight, {} handlers, {} bytes, {:.1} s{}",
            options.requesters,
            options.in_flight,
            options.handlers,
            options.size,
            outcome.elapsed_seconds,
            if options.durable { ", durable" } else { "" }
        ),
    )?;
    row("requests/s", format!("{:.0}", outcome.requests_per_second))?;
    row("errors", outcome.errors.to_string())?;
    for (reason, count) in &outcome.error_counts {
        row("", format!("{count} × {reason}"))?;
    }
    row("unanswered", outcome.unanswered.to_string())?;
    row(
        "latency µs",
        format!(
            "p50 {:.1}   p90 {:.1}   p99 {:.1}   p99.9 {:.1}   max {:.1}",
            latency.p50_us, latency.p90_us, latency.p99_us, latency.p999_us, latency.max_us
        ),
    )?;
    let share =
        |share: &Share| format!("{:.2} µs per request, {:.2} cores", share.us_per_request, share.cores);
    row("server CPU", outcome.server_cpu.as_ref().map_or("not known (no process id)".to_owned(), share))?;
    row("load CPU", share(&outcome.load_cpu))?;
    row("load pinned", options.pin.map_or("no".to_owned(), |core| format!("to core {core}")))?;
    row("machine", outcome.machine.to_string())
}
