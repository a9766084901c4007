//! Instructions of the pure crates per request or message, counted by callgrind, and compared with what was recorded.
//!
//! Time on a shared machine tells nothing about a few per cent; a count of instructions does, and is the same each time.
//! Each piece of [`work`] runs twice in a process of its own under valgrind, for few rounds and for many: the
//! difference is what the additional rounds took, without start-up and first allocations.

use std::{
    collections::BTreeMap,
    env,
    fmt::{self, Write},
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use ringpost_cli::load::Machine;
use serde::{Deserialize, Serialize};

use crate::work;

/// Operations of the short run and of the long one.
const FEW: u32 = 2_000;
const MANY: u32 = 12_000;

/// A difference that is reported as one, as a share.
const TOLERANCE: f64 = 0.03;
/// Differences below this many instructions are the noise of where memory happens to lie.
const LEAST: f64 = 4.0;

/// Counts, and what they depend on beside the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// As `rustc --version` tells it.
    pub compiler: String,
    /// What copies memory is chosen by the processor's abilities.
    pub processor: String,
    /// Instructions for one operation, by the name of the work.
    pub instructions: BTreeMap<String, f64>,
}

impl Record {
    /// Counts everything. `tell` gets a line for people for each piece.
    ///
    /// # Errors
    /// When valgrind or rustc is missing, or a run fails.
    pub fn count(tell: &mut dyn FnMut(&str)) -> anyhow::Result<Self> {
        let names: Vec<_> = work::all().into_iter().map(|work| (work.name, work.operations)).collect();
        let mut instructions = BTreeMap::new();
        for (name, operations) in names {
            let count = |wanted: u32| {
                let rounds = wanted.div_ceil(operations);
                Ok::<_, anyhow::Error>((under_callgrind(&name, rounds)?, u64::from(rounds * operations)))
            };
            let ((few, done), (many, all)) = (count(FEW)?, count(MANY)?);
            let each = many.saturating_sub(few) as f64 / (all - done) as f64;
            let each = (each * 10.0).round() / 10.0;
            tell(&format!("{name:<28} {each:>8.1}"));
            instructions.insert(name, each);
        }
        Ok(Self { compiler: compiler()?, processor: Machine::here()?.processor, instructions })
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When there is none, or it is not one.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("{} (`make instructions-record` makes it)", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no record", path.display()))
    }

    /// Writes a record.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())
    }
}

/// Does a piece of work so many times. This is what runs under callgrind.
///
/// # Errors
/// When there is no such work.
pub fn repeat(name: &str, rounds: u32) -> anyhow::Result<()> {
    let mut work = work::all().into_iter().find(|work| work.name == name);
    let work = work.as_mut().with_context(|| format!("there is no work {name:?}"))?;
    (0..rounds).for_each(|_| (work.run)());
    Ok(())
}

/// Instructions of a process that does a piece of work so many times.
fn under_callgrind(name: &str, rounds: u32) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir()?;
    let counts = folder.path().join("counts");
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", counts.display()))
        .arg(env::current_exe()?)
        .args(["repeat", name, &rounds.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("starting valgrind, which counts the instructions: install it (apt install valgrind)")?;
    if !output.status.success() {
        bail!("{name} under valgrind: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let counts = fs::read_to_string(&counts).context("what callgrind wrote")?;
    total(&counts).with_context(|| format!("callgrind wrote no total for {name}"))
}

/// The count in callgrind's file: its line `summary: N` or `totals: N`.
fn total(counts: &str) -> Option<u64> {
    let total = |line: &str| {
        let count = line.strip_prefix("summary:").or_else(|| line.strip_prefix("totals:"))?;
        count.split_whitespace().next()?.parse().ok()
    };
    counts.lines().find_map(total)
}

fn compiler() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("starting rustc")?;
    ensure!(output.status.success(), "rustc --version: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A record beside what is counted now.
#[derive(Debug)]
pub struct Comparison<'a> {
    /// What was recorded.
    pub recorded: &'a Record,
    /// What is counted.
    pub counted: &'a Record,
}

impl Comparison<'_> {
    /// Every name in either, with both counts.
    fn lines(&self) -> impl Iterator<Item = (&str, Option<f64>, Option<f64>)> {
        let (recorded, counted) = (&self.recorded.instructions, &self.counted.instructions);
        let new = counted.keys().filter(|name| !recorded.contains_key(*name));
        recorded
            .keys()
            .chain(new)
            .map(|name| (name.as_str(), recorded.get(name).copied(), counted.get(name).copied()))
    }

    /// Whether nothing differs by more than 3 %.
    pub fn holds(&self) -> bool {
        self.lines().all(|(_, before, now)| !differs(before, now))
    }
}

/// Fewer instructions count as a difference too: they should be recorded, or a later loss of them goes unnoticed.
fn differs(before: Option<f64>, now: Option<f64>) -> bool {
    let Some((before, now)) = before.zip(now) else { return true };
    let difference = (now - before).abs();
    difference > LEAST && difference > TOLERANCE * before
}

impl fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, before, now) in [
            ("compiler", &self.recorded.compiler, &self.counted.compiler),
            ("processor", &self.recorded.processor, &self.counted.processor),
        ] {
            if before != now {
                writeln!(f, "another {what}: recorded with {before}, counted with {now}\n")?;
            }
        }
        writeln!(f, "| work | recorded | now | difference |")?;
        writeln!(f, "|---|---|---|---|")?;
        for (name, before, now) in self.lines() {
            let shown =
                |count: Option<f64>| count.map_or_else(|| "–".to_owned(), |count| format!("{count:.1}"));
            let mut difference = match before.zip(now) {
                Some((before, now)) => format!("{:+.1} %", 100.0 * (now - before) / before),
                None => "–".to_owned(),
            };
            if differs(before, now) {
                write!(difference, " !")?;
            }
            writeln!(f, "| {name} | {} | {} | {difference} |", shown(before), shown(now))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(counts: &[(&str, f64)]) -> Record {
        let instructions = counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
        Record { compiler: "rustc 1".into(), processor: "one".into(), instructions }
    }

    /// More than 3 % either way, work that is new and work that is gone are differences; less is none.
    #[test]
    fn differences() {
        let holds = |recorded: &[_], counted: &[_]| {
            Comparison { recorded: &record(recorded), counted: &record(counted) }.holds()
        };
        assert!(holds(&[("a", 1000.0)], &[("a", 1029.0)]));
        assert!(!holds(&[("a", 1000.0)], &[("a", 1031.0)]));
        assert!(!holds(&[("a", 1000.0)], &[("a", 969.0)]));
        assert!(holds(&[("a", 60.0)], &[("a", 63.0)]), "three instructions are noise");
        assert!(!holds(&[("a", 1.0)], &[]));
        assert!(!holds(&[], &[("a", 1.0)]));
    }

    /// The table shows what differs, and what else was different.
    #[test]
    fn table() {
        let counted = Record { compiler: "rustc 2".into(), ..record(&[("a", 1100.0)]) };
        let text = Comparison { recorded: &record(&[("a", 1000.0)]), counted: &counted }.to_string();
        assert!(text.contains("| a | 1000.0 | 1100.0 | +10.0 % ! |"), "{text}");
        assert!(text.contains("another compiler") && !text.contains("another processor"), "{text}");
    }

    /// The count is found in what callgrind writes.
    #[test]
    fn reads_callgrind() {
        assert_eq!(total("events: Ir\nsummary: 12345\n\ntotals: 12345\n"), Some(12345));
        assert_eq!(total("events: Ir\n"), None);
    }
}
