//! The part about starting with a log.

use std::fmt::{self, Write};

use crate::{
    recovery::{Pages, Recovery},
    spread::Spread,
};

/// Gigabytes of records that must be read in a second.
const MUST: f64 = 1.0;
const MIB: f64 = (1 << 20) as f64;

/// Writes goals and figures.
pub(super) fn write(out: &mut dyn Write, recovery: &Recovery) -> fmt::Result {
    writeln!(out, "\n## Starting with a log\n")?;
    writeln!(
        out,
        "From the start of the program until it serves durable requests too, less what an empty log takes; records of 1 KiB of data. At least \
         {MUST} GB/s after a crash of the server; from the disk it is the disk's own speed that counts.\n"
    )?;
    writeln!(out, "| the log holds | after | MiB | GB/s | reached |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    for read in &recovery.reads {
        let Some(rate) = Spread::over(read.rates()) else { continue };
        let reached = match read.pages {
            Pages::OnDisk => "–",
            Pages::Cached if rate.median >= MUST => "must",
            Pages::Cached => "no",
        };
        let (content, pages, mib) = (read.content.name(), read.pages.name(), read.bytes as f64 / MIB);
        writeln!(out, "| {content} | {pages} | {mib:.0} | {rate:.2} | {reached} |")?;
    }
    writeln!(
        out,
        "\nThe time to start follows what lives, not what was: 10,000 requests wait while others come and go, then the \
         server is killed. Segments of 20 MiB.\n"
    )?;
    writeln!(out, "| requests that had come and gone | MiB on the disk | ms to start |")?;
    writeln!(out, "|---|---|---|")?;
    for start in &recovery.starts {
        let (mib, ms) = (start.disk_bytes as f64 / MIB, start.seconds * 1e3);
        writeln!(out, "| {} | {mib:.0} | {ms:.0} |", start.requests)?;
    }
    let seconds = recovery.disk.iter().map(|bytes| format!("{:.0}", *bytes as f64 / MIB));
    writeln!(
        out,
        "\nThe disk under the longest of these loads, MiB at one second after the other: {}.",
        seconds.collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::{Content, Read};

    /// A gigabyte in a second is enough, and less is not; from the disk nothing is asked for.
    #[test]
    fn is_judged() {
        let written = |pages, seconds| {
            let read =
                Read { content: Content::Waiting, pages, bytes: 1_000_000_000, seconds: vec![seconds] };
            let mut text = String::new();
            write(&mut text, &Recovery { reads: vec![read], ..Recovery::default() }).unwrap();
            text
        };
        assert!(written(Pages::Cached, 0.99).contains("| must |"));
        assert!(written(Pages::Cached, 1.01).contains("| no |"));
        assert!(written(Pages::OnDisk, 9.0).contains("| – |"));
    }
}
