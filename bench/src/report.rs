//! Results as Markdown: the goals at the top, every figure with its spread below, and how to get them again.

use std::fmt::{self, Display, Write};

use ringpost_cli::load::{Machine, Outcome};

use crate::contest::{Measured, OWN, PEER, Plan};

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

/// Writes the whole report.
///
/// # Errors
/// Those of the writer.
pub fn write(
    out: &mut dyn Write,
    circumstances: &Circumstances,
    plan: Plan,
    measured: &[Measured],
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
            "- {seconds} s each, the sides in turns; server on core {}, load generator on core {}\n",
            cores.server, cores.load
        )?,
        None => writeln!(out, "- {seconds} s each, the sides in turns; nothing pinned\n")?,
    }
    if measured.iter().all(|row| row.of(OWN).is_some()) {
        write_goals(out, measured)?;
    }
    write_figures(out, measured)
}

fn write_goals(out: &mut dyn Write, measured: &[Measured]) -> fmt::Result {
    writeln!(out, "## Goals\n")?;
    writeln!(out, "| row | work | figure | Ringpost | NATS | ratio | must | aim | reached |")?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
    for row_measured in measured {
        let Measured { row, sides } = row_measured;
        let figure = row.figure;
        let median = |side| Some(Spread::of(row_measured.of(side)?, |outcome| figure.of(outcome))?.median);
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
                Spread::of(outcomes, value)
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

/// The median of several measurements, with the least and the greatest.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    greatest: f64,
}

impl Spread {
    /// `None` without measurements, or if one of them lacks the figure.
    fn of(outcomes: &[Outcome], value: impl Fn(&Outcome) -> Option<f64>) -> Option<Self> {
        Self::over(outcomes.iter().map(value).collect::<Option<_>>()?)
    }

    fn over(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, least, greatest })
    }
}

impl Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        write!(f, "{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.least, self.greatest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The median is the middle one, or lies between the two middle ones.
    #[test]
    fn spreads() {
        assert_eq!(Spread::over(vec![]), None);
        assert_eq!(
            Spread::over(vec![3.0, 1.0, 2.0]),
            Some(Spread { median: 2.0, least: 1.0, greatest: 3.0 })
        );
        let even = Spread::over(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(format!("{even:.1}"), "2.5 (1.0–4.0)");
    }
}
