//! Which cores a process may use, and how much of them it did use.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, anyhow};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Does something while this thread stays on `core`, if one is given. Threads and processes that it starts stay there
/// for good.
///
/// # Errors
/// When this process may not use the core, and those of the work.
pub fn on_core<T>(core: Option<usize>, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let Some(core) = core else { return work() };
    let before = sched_getaffinity(None).context("sched_getaffinity")?;
    if core >= CpuSet::MAX_CPU || !before.is_set(core) {
        return Err(anyhow!("core {core} is not one that this process may use"));
    }
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one).with_context(|| format!("pinning to core {core}"))?;
    let outcome = work();
    let restored = sched_setaffinity(None, &before).context("ending the pinning");
    outcome.and_then(|value| restored.map(|()| value))
}

/// Measures the CPU time of a process, all its threads together, from `start` to `used`.
#[derive(Debug)]
pub struct CpuMeter {
    pid: u32,
    start: Sample,
}

impl CpuMeter {
    /// Begins to measure a process of this machine.
    ///
    /// # Errors
    /// When it is not there.
    pub fn start(pid: u32) -> anyhow::Result<Self> {
        Ok(Self { pid, start: Sample::take(pid)? })
    }

    /// Time used since the start. To the nanosecond but for the running tick, unless a thread ended meanwhile: then
    /// to 10 ms, from the counters that outlive threads.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn used(&self) -> anyhow::Result<Duration> {
        let end = Sample::take(self.pid)?;
        let kept = self.start.threads_ns.keys().all(|thread| end.threads_ns.contains_key(thread));
        if kept && !end.threads_ns.is_empty() {
            let sum = |sample: &Sample| sample.threads_ns.values().sum::<u64>();
            return Ok(Duration::from_nanos(sum(&end).saturating_sub(sum(&self.start))));
        }
        Ok(end.process.saturating_sub(self.start.process))
    }
}

#[derive(Debug)]
struct Sample {
    /// By thread, from /proc/PID/task/TID/schedstat; empty where the kernel has none (CONFIG_SCHED_INFO).
    threads_ns: BTreeMap<u32, u64>,
    /// utime and stime of /proc/PID/stat, which count ended threads too.
    process: Duration,
}

impl Sample {
    fn take(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path)
            .with_context(|| format!("{path} (does the server's process still run?)"))?;
        let process =
            process_time(&stat).with_context(|| format!("{path} is not as proc(5) describes it"))?;
        let mut threads_ns = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let thread =
                entry.file_name().to_string_lossy().parse().context("the name of a thread's folder")?;
            // A thread may end between the listing and the reading: then it is one that ended.
            if let Ok(text) = fs::read_to_string(entry.path().join("schedstat"))
                && let Some(run_ns) = text.split_whitespace().next()
            {
                threads_ns.insert(thread, run_ns.parse().context("schedstat's first number")?);
            }
        }
        Ok(Self { threads_ns, process })
    }
}

/// utime and stime: fields 14 and 15, in ticks of 10 ms (USER_HZ is 100 on every architecture that we run on). The
/// second field is the name in parentheses, which may hold anything.
fn process_time(stat: &str) -> Option<Duration> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(10 * ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The process's name does not confuse the reading of its times.
    #[test]
    fn reads_stat() {
        let stat = "42 (a) b) R 1 42 42 0 -1 4194304 99 0 0 0 150 50 7 7 20 0 1 0 100 1000 10 0";
        assert_eq!(process_time(stat), Some(Duration::from_secs(2)));
        assert_eq!(process_time("42 (a) R 1"), None);
    }

    /// Work on a core happens there, and the thread is free again afterwards.
    #[test]
    fn pins_and_releases() {
        let before = sched_getaffinity(None).unwrap();
        let core = (0..CpuSet::MAX_CPU).find(|&core| before.is_set(core)).unwrap();
        let within = on_core(Some(core), || Ok(sched_getaffinity(None)?)).unwrap();
        assert_eq!((within.count(), within.is_set(core)), (1, true));
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        assert!(on_core(Some(CpuSet::MAX_CPU), || Ok(())).is_err());
    }

    /// Time that this process spends is seen.
    #[test]
    fn sees_own_time() {
        let meter = CpuMeter::start(std::process::id()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while meter.used().unwrap().is_zero() {
            assert!(std::time::Instant::now() < deadline, "spinning, yet no time was used");
        }
    }
}
