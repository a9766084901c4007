//! Runs many seeds on all cores, until time is up or one fails.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::sim::{Plan, Profile, run};

/// What came out of many histories.
#[derive(Debug, Default)]
pub struct Found {
    /// How many were run.
    pub seeds: u64,
    /// How many requests ended how.
    pub endings: BTreeMap<String, u64>,
    /// How many histories were of which profile.
    pub profiles: BTreeMap<Profile, u64>,
    /// The one with the lowest seed among those that failed.
    pub failed: Option<Plan>,
}

/// Runs the plans of up to `count` seeds from `from` on, for `time` at most. `progress` hears how many are done.
pub fn search(
    from: u64,
    count: u64,
    time: Duration,
    plan: impl Fn(u64) -> Plan + Sync,
    progress: impl Fn(u64) + Sync,
) -> Found {
    let begun = Instant::now();
    let (next, found) = (AtomicU64::new(from), Mutex::new(Found::default()));
    let end = from.saturating_add(count);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end || begun.elapsed() > time {
                return;
            }
            let plan = plan(seed);
            let result = run(&plan);
            let Ok(mut found) = found.lock() else { return };
            found.seeds += 1;
            *found.profiles.entry(plan.profile).or_default() += 1;
            progress(found.seeds);
            match result {
                Ok(outcome) => {
                    for (ending, times) in outcome.endings {
                        *found.endings.entry(ending).or_default() += times;
                    }
                }
                Err(_) => {
                    // Those that are under way come to their end; no other begins.
                    next.store(end, Ordering::Relaxed);
                    if found.failed.as_ref().is_none_or(|failed| plan.seed < failed.seed) {
                        found.failed = Some(plan);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    found.into_inner().unwrap_or_default()
}
