//! The part about the balancer.

use std::fmt::{self, Write};

use crate::{
    balancer::{Balancers, DIRECT, Figures, OWN, PEER},
    spread::Spread,
};

/// Writes goals and figures.
pub(super) fn write(out: &mut dyn Write, balancers: &Balancers) -> fmt::Result {
    writeln!(out, "\n## The balancer\n")?;
    writeln!(
        out,
        "Clients and service are one thread on the load generator's core, the balancer has the other. HAProxy: one thread, \
         splice-auto. CPU is the balancer's, for a message there and back. {}\n",
        balancers.versions.join("; ")
    )?;
    writeln!(out, "| load | CPU µs, Ringpost | CPU µs, HAProxy | ratio | must | aim | reached |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for (row, sides) in &balancers.rows {
        let cpu = |name| spread(sides, name, |figures| figures.cpu_us);
        let ratio = cpu(OWN).zip(cpu(PEER)).map(|(own, peer)| own.median / peer.median);
        let (must, aim) = row.goals.map_or(("–".to_owned(), "–".to_owned()), |(must, aim)| {
            (format!("≤ {must}×"), format!("≤ {aim}×"))
        });
        let reached = match row.goals.zip(ratio) {
            Some(((_, aim), ratio)) if ratio <= aim => "aim",
            Some(((must, _), ratio)) if ratio <= must => "must",
            Some(_) => "no",
            None => "–",
        };
        let ratio = ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}×"));
        let (own, peer) = (shown(cpu(OWN), 2), shown(cpu(PEER), 2));
        writeln!(out, "| {} | {own} | {peer} | {ratio} | {must} | {aim} | {reached} |", row.name)?;
    }
    writeln!(out, "\n| load | side | messages/s | p50 µs | added to the p50 | p99 µs |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for (row, sides) in &balancers.rows {
        let direct = spread(sides, DIRECT, |figures| Some(figures.p50_us));
        for (name, _) in sides {
            let p50 = spread(sides, name, |figures| Some(figures.p50_us));
            let added = p50.zip(direct).map_or(0.0, |(p50, direct)| p50.median - direct.median);
            let added = if *name == DIRECT { "–".to_owned() } else { format!("{added:.0}") };
            writeln!(
                out,
                "| {} | {name} | {} | {} | {added} | {} |",
                row.name,
                shown(spread(sides, name, |figures| Some(figures.per_second)), 0),
                shown(p50, 0),
                shown(spread(sides, name, |figures| Some(figures.p99_us)), 0),
            )?;
        }
    }
    writeln!(out, "\n| side | a stream of 10 GiB | CPU for a GB | memory of an idle session |")?;
    writeln!(out, "|---|---|---|---|")?;
    for ((name, rate, ms), (_, each)) in balancers.stream.iter().zip(&balancers.idle) {
        writeln!(out, "| {name} | {rate:.2} GB/s | {ms:.0} ms | {each:.0} B |")?;
    }
    writeln!(
        out,
        "\nWhy it is adaptive: CPU µs for a message there and back, 8 × 4 in flight.\n\n| size | copied | spliced | adaptive |"
    )?;
    writeln!(out, "|---|---|---|---|")?;
    for (size, [copied, spliced, adaptive]) in &balancers.carriers {
        writeln!(out, "| {size} B | {copied:.2} | {spliced:.2} | {adaptive:.2} |")?;
    }
    Ok(())
}

fn spread(
    sides: &[(&'static str, Vec<Figures>)],
    name: &str,
    figure: impl Fn(&Figures) -> Option<f64>,
) -> Option<Spread> {
    let (_, figures) = sides.iter().find(|(side, _)| *side == name)?;
    Spread::over(figures.iter().map(figure).collect::<Option<Vec<_>>>()?)
}

fn shown(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(|| "–".to_owned(), |spread| format!("{spread:.digits$}"))
}
