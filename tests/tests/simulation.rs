//! The cores of broker and client under a bad network, seed by seed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at what is not right"
)]

use std::time::Duration;

use ringpost_tests::{
    search::search,
    sim::{Plan, Profile, report, run, shrink},
};

/// How long to go on beyond the seeds that are run in any case.
const TIME: Duration = Duration::from_secs(40);
/// The same for those with a log.
const DURABLE_TIME: Duration = Duration::from_secs(20);

/// Many histories: every rule of `sim::rules` holds in all of them. Runs seeds for a bounded time; `make simulate
/// SEEDS=…` runs more. A seed that fails is cut down to the steps that it needs, and the command that replays it is told.
#[test]
fn many_seeds() {
    let first: u64 = std::env::var("RINGPOST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let found = search(first, 10_000, TIME, Plan::from_seed, |_| {});
    println!("{} seeds from {first}: {:?}, {:?}", found.seeds, found.endings, found.profiles);
    if let Some(failed) = found.failed {
        let mut small = shrink(&failed, Duration::from_secs(20));
        small.trace = true;
        let failure = run(&small).expect_err("a seed replays");
        panic!("{}", report(&small, &failure));
    }
    for ending in [
        "reply",
        "remote",
        "accepted",
        "timeout",
        "cancelled",
        "connectionLost",
        "handlerLost",
        "noHandler",
        "overloaded",
        "draining",
        "forbidden",
    ] {
        assert!(found.endings.contains_key(ending), "the seeds reach `{ending}`: {:?}", found.endings);
    }
    for profile in Profile::ALL {
        assert!(found.profiles.contains_key(&profile), "{profile:?} is drawn: {:?}", found.profiles);
    }
}

/// Requests that must survive, with a broker and a disk that fail at any point, under each policy of syncing: what was
/// accepted is there after each crash, each requester gets one outcome, and nothing leaves before it is stable.
#[test]
fn crashes_and_restarts() {
    let first: u64 = std::env::var("RINGPOST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let plan = |seed| Plan::of_profile(seed, Profile::Durable);
    let found = search(first, 10_000, DURABLE_TIME, plan, |_| {});
    println!("{} seeds from {first}: {:?}", found.seeds, found.endings);
    if let Some(failed) = found.failed {
        let mut small = shrink(&failed, Duration::from_secs(20));
        small.trace = true;
        let failure = run(&small).expect_err("a seed replays");
        panic!("{}", report(&small, &failure));
    }
    for ending in ["reply", "remote", "accepted", "expired", "storageFull", "recovering"] {
        assert!(found.endings.contains_key(ending), "the seeds reach `{ending}`: {:?}", found.endings);
    }
}

/// A seed is a history: run again, it is the same one.
#[test]
fn a_seed_replays() {
    for profile in Profile::ALL {
        let plan = Plan::of_profile(7, profile);
        let outcomes = [run(&plan), run(&plan)].map(|outcome| outcome.map_err(|failure| failure.to_string()));
        assert_eq!(outcomes[0], outcomes[1]);
        assert!(outcomes[0].is_ok(), "{profile:?}: {:?}", outcomes[0]);
    }
}
