//! The part about durable requests.

use std::fmt::{self, Write};

use ringpost_cli::load::Outcome;

use super::{failures, spread_of};
use crate::{
    contest::{OWN, PEER},
    durable::{Durable, Load, Measured, Policy},
    spread::Spread,
};

/// How many times the peer's rate must be reached, synced and with 256 in flight, and what is aimed at.
const MUST: f64 = 20.0;
const AIM: f64 = 50.0;

/// Writes goals and figures.
pub(super) fn write(out: &mut dyn Write, durable: &Durable) -> fmt::Result {
    writeln!(out, "\n## Durable requests (row 6)\n")?;
    writeln!(
        out,
        "128 B, on {}. Ringpost: request logged, accepted, handled, reply logged, delivered. JetStream: published and \
         stored, nothing more; where Ringpost never syncs, it does so every two minutes. Redis: pushed to a list and in its \
         append-only file (appendfsync always, everysec, no), nothing more.\n",
        durable.file_system
    )?;
    write_goals(out, durable)?;
    writeln!(
        out,
        "\n| sync | in flight | side | requests/s | server CPU µs/request | p50 µs | p99 µs | errors |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|")?;
    for Measured { policy, load, sides } in &durable.measured {
        for (name, outcomes) in sides {
            let spread = |digits: usize, value: &dyn Fn(&Outcome) -> Option<f64>| {
                spread_of(outcomes, value)
                    .map_or_else(|| "–".to_owned(), |spread| format!("{spread:.digits$}"))
            };
            writeln!(
                out,
                "| {} | {} | {name} | {} | {} | {} | {} | {} |",
                policy.name(),
                load.in_flight(),
                spread(0, &|outcome| Some(outcome.requests_per_second)),
                spread(2, &|outcome| outcome.server_cpu.map(|share| share.us_per_request)),
                spread(0, &|outcome| Some(outcome.latency.p50_us)),
                spread(0, &|outcome| Some(outcome.latency.p99_us)),
                outcomes.iter().map(failures).sum::<u64>()
            )?;
        }
    }
    Ok(())
}

fn write_goals(out: &mut dyn Write, durable: &Durable) -> fmt::Result {
    let clean =
        |measured: &Measured| measured.sides.iter().flat_map(|(_, all)| all).all(|one| failures(one) == 0);
    let judged = |clean: bool, reached: &str| {
        if clean { reached.to_owned() } else { "no: there were errors".to_owned() }
    };
    if let Some(measured) = synced(durable, Load::DEEP) {
        let rate = |side| median(measured, side, |outcome| outcome.requests_per_second);
        if let Some((own, peer)) = rate(OWN).zip(rate(PEER)) {
            let ratio = own / peer;
            let reached = if ratio >= AIM {
                "aim"
            } else if ratio >= MUST {
                "must"
            } else {
                "no"
            };
            writeln!(
                out,
                "- synced, {} in flight: {own:.0}/s, JetStream {peer:.0}/s, {ratio:.1}×; must ≥ {MUST}×, aim ≥ {AIM}×; \
                 reached: {}",
                measured.load.in_flight(),
                judged(clean(measured), reached)
            )?;
        }
    }
    let spread = |values: &[f64]| {
        Spread::over(values.iter().copied()).map_or_else(|| "–".to_owned(), |spread| format!("{spread}"))
    };
    if let Some(measured) = synced(durable, Load::SERIAL)
        && let Some((p50, bound)) =
            median(measured, OWN, |outcome| outcome.latency.p50_us).zip(durable.serial_bound_us())
    {
        writeln!(
            out,
            "- synced, one after the other: p50 {p50:.0} µs; must ≤ {bound:.0} µs, which is two fdatasyncs (each with its \
             write {} µs) and the plain round trip ({} µs); reached: {}",
            spread(&durable.sync_us),
            spread(&durable.plain_us),
            judged(clean(measured), if p50 <= bound { "must" } else { "no" })
        )?;
    }
    Ok(())
}

/// The measurements of a load with a sync before each acceptance.
fn synced(durable: &Durable, load: Load) -> Option<&Measured> {
    durable.measured.iter().find(|measured| measured.policy == Policy::Always && measured.load == load)
}

fn median(measured: &Measured, side: &str, figure: impl Fn(&Outcome) -> f64) -> Option<f64> {
    Some(spread_of(measured.of(side)?, |outcome| Some(figure(outcome)))?.median)
}
