//! The cores of broker and client under a bad network, seed by seed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at what is not right"
)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ringpost_tests::sim::{Plan, run};

/// Many histories: every request ends exactly once and truly, attempts are bounded, nothing is left behind. Runs seeds
/// for a bounded time, at least a hundred; `make simulate SEEDS=…` runs more.
#[test]
fn many_seeds() {
    let begun = Instant::now();
    let first: u64 = std::env::var("RINGPOST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut endings: BTreeMap<String, u64> = BTreeMap::new();
    let mut seed = first;
    while seed < first + 100 || begun.elapsed() < Duration::from_secs(15) && seed < first + 3000 {
        let outcome = std::panic::catch_unwind(|| run(&Plan::from_seed(seed))).unwrap_or_else(|_| {
            panic!("seed {seed} failed: cargo run -p ringpost-tests --bin simulate -- --seed {seed} --trace")
        });
        for (ending, times) in outcome.endings {
            *endings.entry(ending).or_default() += times;
        }
        seed += 1;
    }
    println!("{} seeds: {endings:?}", seed - first);
    for ending in
        ["reply", "remote", "accepted", "timeout", "cancelled", "connectionLost", "handlerLost", "noHandler"]
    {
        assert!(endings.contains_key(ending), "the seeds reach `{ending}`: {endings:?}");
    }
}

/// A seed is a history: run again, it is the same one.
#[test]
fn a_seed_replays() {
    for seed in [3, 4, 5] {
        let plan = Plan::from_seed(seed);
        assert_eq!(run(&plan), run(&plan));
    }
}
