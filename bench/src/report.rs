//! Results as Markdown: the goals at the top, every figure with its spread below, and how to get them again.

mod balancer;
mod durable;
mod python;
mod recovery;
mod secure;

use std::fmt::{self, Write};

use ringpost_cli::load::{Machine, Outcome};

use crate::{
    balancer::Balancers,
    contest::{Measured, OWN, PEER, Plan},
    durable::Durable,
    idle::Idle,
    neighbours::Pairs,
    python::Python,
    recovery::Recovery,
    secure::Secure,
    spread::{Confidence, Spread},
};

/// What each idle connection may cost.
const MAX_IDLE_BYTES: f64 = 8192.0;
/// How much longer the others' p99 may become by one misbehaving client.
const MAX_P99_RATIO: f64 = 1.1;

/// What is written beside the figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circumstances {
    /// The machine.
    pub machine: Machine,
    /// The state of the source.
    pub commit: String,
    /// The command, as it was given.
    pub command: String,
    /// Each side's version, as its program tells it.
    pub versions: Vec<String>,
}

/// All that was measured; a part that was not asked for is empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results {
    /// The rows.
    pub rows: Vec<Measured>,
    /// The memory of idle connections.
    pub idle: Vec<Idle>,
    /// Misbehaving clients.
    pub neighbours: Vec<Pairs>,
    /// Durable requests.
    pub durable: Option<Durable>,
    /// Starting with a log.
    pub recovery: Option<Recovery>,
    /// The load balancer.
    pub balancers: Option<Balancers>,
    /// A secure key.
    pub secure: Option<Secure>,
    /// Row 8.
    pub python: Option<Python>,
}

/// Writes the whole report.
///
/// # Errors
/// Those of the writer.
pub fn write(
    out: &mut dyn Write,
    circumstances: &Circumstances,
    plan: Plan,
    results: &Results,
) -> fmt::Result {
    let Circumstances { machine, commit, command, versions } = circumstances;
    writeln!(out, "# Figures\n")?;
    writeln!(
        out,
        "Written by `ringpost-bench`; medians of {} runs, with the least and the greatest.\n",
        plan.runs
    )?;
    writeln!(out, "- machine: {machine}")?;
    writeln!(out, "- versions: {}", versions.join("; "))?;
    writeln!(out, "- commit: {commit}")?;
    writeln!(out, "- command: `{command}`")?;
    let seconds = plan.duration.as_secs_f64();
    match plan.cores {
        Some(cores) => writeln!(
            out,
            "- {seconds} s each, the sides in turns; server on core {}, load generator on core {}",
            cores.server, cores.load
        )?,
        None => writeln!(out, "- {seconds} s each, the sides in turns; nothing pinned")?,
    }
    let Results { rows, idle, neighbours, durable, recovery, balancers, secure, python } = results;
    if rows.iter().any(|row| row.of(OWN).is_some()) {
        write_goals(out, rows)?;
    }
    if let Some(python) = python {
        python::write(out, python)?;
    }
    if let Some(durable) = durable {
        durable::write(out, durable)?;
    }
    if let Some(recovery) = recovery {
        recovery::write(out, recovery)?;
    }
    if let Some(balancers) = balancers {
        balancer::write(out, balancers)?;
    }
    if let Some(secure) = secure {
        secure::write(out, secure)?;
    }
    if !idle.is_empty() {
        write_idle(out, idle)?;
    }
    if !neighbours.is_empty() {
        write_neighbours(out, neighbours)?;
    }
    if !rows.is_empty() {
        write_figures(out, rows)?;
    }
    Ok(())
}

fn write_goals(out: &mut dyn Write, measured: &[Measured]) -> fmt::Result {
    writeln!(out, "\n## Goals\n")?;
    writeln!(out, "| row | work | figure | Ringpost | NATS | ratio | must | aim | reached |")?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
    for row_measured in measured {
        let Measured { row, sides } = row_measured;
        let figure = row.figure;
        let median = |side| Some(spread_of(row_measured.of(side)?, |outcome| figure.of(outcome))?.median);
        let (own, peer) = (median(OWN), median(PEER));
        let value = |median: Option<f64>| median.map_or_else(|| "–".to_owned(), |value| figure.value(value));
        let ratio = own.zip(peer).map_or_else(|| "–".to_owned(), |(own, peer)| format!("{:.2}×", own / peer));
        let clean = sides.iter().flat_map(|(_, outcomes)| outcomes).all(|outcome| failures(outcome) == 0);
        let reaches = |goal: f64| own.and_then(|own| figure.reaches(goal, own, peer));
        let reached = match (clean, reaches(row.must), reaches(row.aim)) {
            (false, ..) => "no: there were errors",
            (true, _, Some(true)) => "aim",
            (true, Some(true), _) => "must",
            (true, Some(false), _) => "no",
            (true, None, _) => "– (no peer)",
        };
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {ratio} | {} | {} | {reached} |",
            row.number,
            row.work,
            figure.name(),
            value(own),
            value(peer),
            figure.goal(row.must),
            figure.goal(row.aim)
        )?;
    }
    Ok(())
}

fn write_idle(out: &mut dyn Write, idle: &[Idle]) -> fmt::Result {
    writeln!(out, "\n## Idle connections\n")?;
    writeln!(
        out,
        "Resident memory of the server; each connection has said something and was answered. At most 8 KiB each.\n"
    )?;
    writeln!(out, "| dialect | connections | server before | server with them | each | reached |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for idle in idle {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let reached = if idle.each() <= MAX_IDLE_BYTES { "must" } else { "no" };
        writeln!(
            out,
            "| {} | {} | {:.1} MiB | {:.1} MiB | {:.0} B | {reached} |",
            idle.speaks.name(),
            idle.connections,
            mib(idle.before),
            mib(idle.with),
            idle.each()
        )?;
    }
    Ok(())
}

fn write_neighbours(out: &mut dyn Write, neighbours: &[Pairs]) -> fmt::Result {
    writeln!(out, "\n## One client that misbehaves\n")?;
    writeln!(
        out,
        "16 requesters × 1 in flight, 4 handlers, 128 B, without and with one more client, in turns. The ratio is that of \
         the p99 in each pair: at most 1.10; behind its spread, where its median lies in 95 of 100 cases. Errors are those of \
         the well-behaved.\n"
    )?;
    writeln!(
        out,
        "| the client | p99 µs without | p99 µs with | ratio | its median | p50 µs without | p50 µs with | errors | reached |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
    for pairs in neighbours {
        let spread = |figure: &dyn Fn(&(Outcome, Outcome)) -> f64| {
            Spread::over(pairs.outcomes.iter().map(figure))
                .map_or_else(|| "–".to_owned(), |spread| format!("{spread}"))
        };
        let (ratio, confidence) = (Spread::over(pairs.p99_ratios()), Confidence::over(pairs.p99_ratios()));
        let errors: u64 =
            pairs.outcomes.iter().map(|(without, with)| failures(without) + failures(with)).sum();
        let reached = match ratio {
            _ if errors > 0 => "no: there were errors",
            Some(ratio) if ratio.median <= MAX_P99_RATIO => "must",
            _ => "no",
        };
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {errors} | {reached} |",
            pairs.misbehaviour.name(),
            spread(&|(without, _)| without.latency.p99_us),
            spread(&|(_, with)| with.latency.p99_us),
            ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")),
            confidence.map_or_else(|| "–".to_owned(), |its| format!("{:.2}–{:.2}", its.least, its.greatest)),
            spread(&|(without, _)| without.latency.p50_us),
            spread(&|(_, with)| with.latency.p50_us),
        )?;
    }
    Ok(())
}

fn write_figures(out: &mut dyn Write, measured: &[Measured]) -> fmt::Result {
    writeln!(out, "\n## All figures\n")?;
    writeln!(
        out,
        "Where the load generator keeps its core busy (1.0), the server could do more than is shown.\n"
    )?;
    writeln!(
        out,
        "| row | side | requests/s | server CPU µs/request | p50 µs | p99 µs | p99.9 µs | load generator cores | errors |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
    for Measured { row, sides } in measured {
        for (name, outcomes) in sides {
            let spread = |digits: usize, value: &dyn Fn(&Outcome) -> Option<f64>| {
                spread_of(outcomes, value)
                    .map_or_else(|| "–".to_owned(), |spread| format!("{spread:.digits$}"))
            };
            writeln!(
                out,
                "| {} | {name} | {} | {} | {} | {} | {} | {} | {} |",
                row.number,
                spread(0, &|outcome| Some(outcome.requests_per_second)),
                spread(2, &|outcome| outcome.server_cpu.map(|share| share.us_per_request)),
                spread(0, &|outcome| Some(outcome.latency.p50_us)),
                spread(0, &|outcome| Some(outcome.latency.p99_us)),
                spread(0, &|outcome| Some(outcome.latency.p999_us)),
                spread(2, &|outcome| Some(outcome.load_cpu.cores)),
                outcomes.iter().map(failures).sum::<u64>()
            )?;
        }
    }
    Ok(())
}

fn failures(outcome: &Outcome) -> u64 {
    outcome.errors + outcome.unanswered
}

/// `None` if one of the outcomes lacks the figure.
fn spread_of(outcomes: &[Outcome], value: impl Fn(&Outcome) -> Option<f64>) -> Option<Spread> {
    Spread::over(outcomes.iter().map(value).collect::<Option<Vec<_>>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idle::Speaks;

    /// An idle connection may cost 8 KiB, and not a byte more.
    #[test]
    fn idle_connections_are_judged() {
        let written = |with| {
            let mut text = String::new();
            let idle = Idle { speaks: Speaks::Json, connections: 10, before: 1 << 20, with };
            write_idle(&mut text, &[idle]).unwrap();
            text
        };
        assert!(written((1 << 20) + 81_920).contains("| 8192 B | must |"));
        assert!(written((1 << 20) + 81_930).contains("| 8193 B | no |"));
    }
}
