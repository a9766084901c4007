//! Runs the simulation: one seed with its trace, or many.
//!
//! ```text
//! simulate --seed 42 [--trace]      one history
//! simulate --seeds 10000 [--from N] that many, one after the other
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]

use std::{collections::BTreeMap, process::ExitCode};

use ringpost_tests::sim::{Plan, run};

const USAGE: &str = "usage: simulate --seed N [--trace] | simulate --seeds COUNT [--from N]";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    let trace = arguments.iter().any(|argument| argument == "--trace");
    match (value("--seed"), value("--seeds")) {
        (Some(seed), None) => {
            let plan = Plan { trace, ..Plan::from_seed(seed) };
            println!("{plan:?}");
            println!("{:?}", run(&plan));
        }
        (None, Some(count)) => many(value("--from").unwrap_or(1), count),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn many(from: u64, count: u64) {
    let mut endings = BTreeMap::new();
    for seed in from..from + count {
        let outcome = std::panic::catch_unwind(|| run(&Plan::from_seed(seed))).unwrap_or_else(|_| {
            eprintln!("seed {seed} failed. Replay it: cargo run -p ringpost-tests --bin simulate -- --seed {seed} --trace");
            std::process::exit(1);
        });
        for (ending, times) in outcome.endings {
            *endings.entry(ending).or_insert(0) += times;
        }
        if (seed - from + 1).is_multiple_of(1000) {
            eprintln!("{} seeds", seed - from + 1);
        }
    }
    println!("{count} seeds from {from}: {endings:?}");
}
