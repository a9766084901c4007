//! Runs the simulation: one seed, or many.
//!
//! ```text
//! simulate --seed 42 [--trace]            one history, with all that happens in it
//! simulate --seed 42 --only 3,17,20-25    only these steps of its script
//! simulate --seed 42 --shrink             the fewest steps that still fail
//! simulate --seeds 10000 [--from N]       that many, on all cores; stops at the first that fails, and shrinks it
//! simulate … --profile lossy              all seeds in this profile, whatever they would draw
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use ringpost_tests::{
    search::search,
    sim::{Plan, Profile, report, run, shrink},
};

const USAGE: &str = "usage: simulate --seed N [--trace] [--shrink] [--only STEPS] [--profile NAME]
       simulate --seeds COUNT [--from N] [--profile NAME]";

/// How long to look for the fewest steps.
const SHRINK_TIME: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let text = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let number = |name: &str| text(name)?.parse::<u64>().ok();
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    let profile = text("--profile").map(|name| profile(&name));
    if matches!(profile, Some(None)) {
        eprintln!("no such profile; there are {:?}", Profile::ALL);
        return ExitCode::from(2);
    }
    let profile = profile.flatten();
    let plan =
        |seed| profile.map_or_else(|| Plan::from_seed(seed), |profile| Plan::of_profile(seed, profile));
    match (number("--seed"), number("--seeds")) {
        (Some(seed), None) => {
            let mut plan = plan(seed);
            if let Some(only) = text("--only") {
                let Some(only) = steps(&only) else {
                    eprintln!("{USAGE}");
                    return ExitCode::from(2);
                };
                plan = plan.with_only(|step| only.contains(&step.index));
            }
            one(plan, flag("--trace"), flag("--shrink"))
        }
        (None, Some(0)) => {
            eprintln!("--seeds 0 would run nothing, and prove nothing: give a count of at least 1");
            ExitCode::from(2)
        }
        (None, Some(count)) => many(plan, number("--from").unwrap_or(1), count),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn one(mut plan: Plan, trace: bool, smaller: bool) -> ExitCode {
    if smaller {
        plan = shrink(&plan, SHRINK_TIME);
    }
    (plan.trace, plan.trace_all) = (true, trace);
    match run(&plan) {
        Ok(outcome) => {
            println!("seed {}, {:?}: all holds", plan.seed, plan.profile);
            println!("{:?}", plan.settings);
            println!("{outcome:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{:?}", plan.settings);
            println!("{}", report(&plan, &failure));
            ExitCode::FAILURE
        }
    }
}

fn many(plan: impl Fn(u64) -> Plan + Sync, from: u64, count: u64) -> ExitCode {
    let found = search(from, count, Duration::MAX, &plan, |done| {
        if done % 5000 == 0 {
            eprintln!("{done} seeds");
        }
    });
    println!("{} seeds from {from}: {:?}", found.seeds, found.endings);
    println!("{:?}", found.profiles);
    let Some(plan) = found.failed else { return ExitCode::SUCCESS };
    println!("seed {} fails; looking for the fewest steps that do", plan.seed);
    one(plan, false, true)
}

fn profile(name: &str) -> Option<Profile> {
    Profile::ALL.into_iter().find(|profile| format!("{profile:?}").eq_ignore_ascii_case(name))
}

/// `3,17,20-25`.
fn steps(text: &str) -> Option<BTreeSet<usize>> {
    let mut steps = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        steps.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(steps)
}
