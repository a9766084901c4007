//! Row 8.

use std::fmt::{self, Write};

use crate::{
    python::{Grown, Kind, Measured, Python, Run},
    spread::Spread,
};

/// How many times the peer's rate, and which part of its p50.
const MUST_RATE: f64 = 3.0;
const AIM_RATE: f64 = 5.0;
const MUST_P50: f64 = 0.7;

pub(super) fn write(out: &mut dyn Write, python: &Python) -> fmt::Result {
    writeln!(out, "\n## Row 8: Python ↔ Python\n")?;
    writeln!(
        out,
        "A handler and a requester, each a process, 128 B; server and both on all cores, nothing pinned. {}. Each ratio is to \
         nats-py on the same event loop, in the same run: with 64 in flight of requests/s (must {MUST_RATE} ×, aim {AIM_RATE} \
         ×), with one of p50 (must ≤ {MUST_P50} ×).\n",
        python.versions
    )?;
    writeln!(
        out,
        "| in flight | client | loop | requests/s | p50 µs | p99 µs | CPU µs/request: server | handler | requester | all | \
         handler MiB | requester MiB | ratio | reached |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")?;
    for measured in &python.measured {
        let spread = |digits: usize, figure: &dyn Fn(&Run) -> f64| {
            Spread::over(measured.runs.iter().map(figure))
                .map_or_else(|| "–".to_owned(), |spread| format!("{spread:.digits$}"))
        };
        let mib =
            |place: usize| spread(0, &move |run: &Run| run.resident_bytes[place] as f64 / f64::from(1 << 20));
        let (ratio, reached) = judged(measured, &python.measured);
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {ratio} | {reached} |",
            measured.in_flight,
            measured.contender.kind.name(),
            if measured.contender.uvloop { "uvloop" } else { "asyncio" },
            spread(0, &|run| run.requests_per_second),
            spread(0, &|run| run.p50_us),
            spread(0, &|run| run.p99_us),
            spread(1, &|run| run.cpu_us[0]),
            spread(1, &|run| run.cpu_us[1]),
            spread(1, &|run| run.cpu_us[2]),
            spread(1, &|run| run.cpu_us.iter().sum()),
            mib(0),
            mib(1),
        )?;
    }
    write_memory(out, &python.grown)
}

fn write_memory(out: &mut dyn Write, grown: &[Grown]) -> fmt::Result {
    writeln!(
        out,
        "\nMemory of handler and requester (resident, MiB): with one request behind them, behind 1,000 at once, and behind \
         100,000 more.\n"
    )?;
    writeln!(
        out,
        "| client | loop | handler: 1 | 1,000 at once | 100,000 | requester: 1 | 1,000 at once | 100,000 |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|")?;
    for Grown { contender, resident_bytes } in grown {
        let event_loop = if contender.uvloop { "uvloop" } else { "asyncio" };
        write!(out, "| {} | {event_loop} |", contender.kind.name())?;
        for process in 0..2 {
            for bytes in resident_bytes {
                write!(out, " {:.1} |", bytes[process] as f64 / f64::from(1 << 20))?;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The ratio to the peer on the same loop, and what that reaches.
fn judged(measured: &Measured, all: &[Measured]) -> (String, &'static str) {
    let own = measured.contender;
    let peer = all.iter().find(|other| {
        other.contender.kind == Kind::Nats
            && other.contender.uvloop == own.uvloop
            && other.in_flight == measured.in_flight
    });
    let Some(peer) = peer.filter(|_| own.kind != Kind::Nats) else { return ("–".to_owned(), "–") };
    let serial = measured.in_flight == 1;
    let figure = |measured: &Measured| {
        let one = |run: &Run| if serial { run.p50_us } else { run.requests_per_second };
        Spread::over(measured.runs.iter().map(one)).map_or(f64::NAN, |spread| spread.median)
    };
    let ratio = figure(measured) / figure(peer);
    let reached = match serial {
        true if ratio <= MUST_P50 => "must",
        false if ratio >= AIM_RATE => "aim",
        false if ratio >= MUST_RATE => "must",
        _ => "no",
    };
    (format!("{ratio:.2}×"), reached)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::Contender;

    /// Each client is judged by the peer on its own event loop: by the rate of many, and by the time of one.
    #[test]
    fn judges_by_the_peer_on_the_same_loop() {
        let measured = |kind, uvloop, in_flight, requests_per_second, p50_us| Measured {
            contender: Contender { kind, uvloop },
            in_flight,
            runs: vec![Run {
                requests_per_second,
                p50_us,
                p99_us: 0.0,
                cpu_us: [0.0; 3],
                resident_bytes: [0; 2],
            }],
        };
        let all = [
            measured(Kind::Nats, false, 64, 100.0, 1.0),
            measured(Kind::Nats, true, 64, 200.0, 1.0),
            measured(Kind::Nats, false, 1, 1.0, 100.0),
        ];
        for (one, expected) in [
            (measured(Kind::Ringpost, false, 64, 500.0, 9.0), ("5.00×", "aim")),
            (measured(Kind::Ringpost, true, 64, 600.0, 9.0), ("3.00×", "must")),
            (measured(Kind::Ringpost, true, 64, 598.0, 9.0), ("2.99×", "no")),
            (measured(Kind::Ringpost, false, 1, 9.0, 70.0), ("0.70×", "must")),
            (measured(Kind::Ringpost, false, 1, 9.0, 71.0), ("0.71×", "no")),
            (measured(Kind::Ringpost, true, 1, 9.0, 1.0), ("–", "–")),
        ] {
            let (ratio, reached) = judged(&one, &all);
            assert_eq!((ratio.as_str(), reached), expected);
        }
    }
}
