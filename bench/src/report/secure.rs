//! What a secure key costs, as Markdown.

use std::fmt::{self, Write};

use super::failures;
use crate::{rows::Figure, secure::Secure, spread::Spread};

pub(super) fn write(out: &mut dyn Write, secure: &Secure) -> fmt::Result {
    writeln!(out, "\n## A secure key\n")?;
    writeln!(
        out,
        "The same load in clear and through records, in turns: the server's CPU for each request. The ratio is that of each \
         pair.\n"
    )?;
    writeln!(out, "| work | µs in clear | µs through records | ratio | must | errors | reached |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for load in &secure.loads {
        let cpu = |of: &dyn Fn(usize) -> Option<f64>| {
            Spread::over((0..load.outcomes.len()).filter_map(of))
                .map_or_else(|| "–".to_owned(), |spread| format!("{spread:.2}"))
        };
        let errors: u64 =
            load.outcomes.iter().map(|(clear, through)| failures(clear) + failures(through)).sum();
        let ratio = Spread::over(load.cpu_ratios());
        let reached = match (errors, ratio, load.must) {
            (1.., ..) => "no: there were errors",
            (_, Some(ratio), Some(must)) if ratio.median <= must => "must",
            (_, _, Some(_)) => "no",
            (_, _, None) => "–",
        };
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {errors} | {reached} |",
            load.work,
            cpu(&|at| Figure::ServerCpu.of(&load.outcomes[at].0)),
            cpu(&|at| Figure::ServerCpu.of(&load.outcomes[at].1)),
            ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")),
            load.must.map_or_else(|| "–".to_owned(), |must| format!("≤ {must}×")),
        )?;
    }
    if let Some(bytes) = secure.loads.last().and_then(|load| Spread::over(load.bytes_per_cpu_second())) {
        writeln!(
            out,
            "\nPayloads of 1 MiB: {:.2} GB opened or sealed for each second of the server's CPU ({:.2}–{:.2}), which must be \
             at least 1.",
            bytes.median / 1e9,
            bytes.least / 1e9,
            bytes.greatest / 1e9
        )?;
    }
    let connections = |of: &dyn Fn(&(f64, f64)) -> f64| Spread::over(secure.connections_us.iter().map(of));
    if let (Some(clear), Some(through)) = (connections(&|us| us.0), connections(&|us| us.1)) {
        writeln!(
            out,
            "\nA connection that comes, says its first words and goes: {clear:.1} µs of the server's CPU in clear, \
             {through:.1} µs with the handshake: {:.0} handshakes a second and core.",
            1e6 / through.median
        )?;
    }
    Ok(())
}
