//! The simulation is worth what it finds: faults are planted in the broker's core, one at a time, and each must be found,
//! for the right reason. The core's own checks are off, so that it is the model beside it that finds them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at what is not right"
)]

use std::time::Duration;

use ringpost_broker::PlantedBug;
use ringpost_tests::{
    search::search,
    sim::{Deed, Plan, Profile, Rule, run, shrink},
};

/// Within so many seeds a fault must show.
const SEEDS: u64 = 400;

/// Plants a fault, looks for it, and cuts the history in which it shows down to what it needs.
#[track_caller]
fn is_found(bug: PlantedBug, rules: &[Rule]) {
    is_found_in(bug, rules, Plan::from_seed);
}

#[track_caller]
fn is_found_in(bug: PlantedBug, rules: &[Rule], plan: impl Fn(u64) -> Plan + Sync) {
    let sound = plan;
    let plan = |seed| {
        let mut plan = sound(seed);
        plan.settings.config.planted_bug = Some(bug);
        plan.check_invariants = false;
        plan
    };
    let found = search(1, SEEDS, Duration::MAX, plan, |_| {});
    let failed = found.failed.unwrap_or_else(|| panic!("{bug:?} shows in none of {SEEDS} seeds"));
    let small = shrink(&failed, Duration::from_secs(3));
    let failure = run(&small).expect_err("a seed replays, and what was cut down still fails");
    println!(
        "{bug:?}: seed {}, {} of {} steps, {}",
        failed.seed,
        small.script.len(),
        failed.script.len(),
        failure.violation
    );
    assert!(rules.contains(&failure.violation.rule), "{bug:?} breaks {rules:?}, not {}", failure.violation);
    assert!(run(&sound(failed.seed)).is_ok(), "without the fault, seed {} holds", failed.seed);
}

/// A slot that does not come back with the answer: requests wait while a handler is idle. With several handlers of an
/// action it may first be seen that the others get more than their share.
#[test]
fn lost_credit() {
    let one_handler = |seed| {
        let plan = Plan::from_seed(seed);
        let first = plan.script.iter().find(|step| matches!(step.deed, Deed::Register(..)));
        let first = first.map(|step| step.index);
        plan.with_only(|step| Some(step.index) == first || !matches!(step.deed, Deed::Register(..)))
    };
    is_found_in(PlantedBug::LostCredit, &[Rule::IdleCredit], one_handler);
    is_found(PlantedBug::LostCredit, &[Rule::IdleCredit, Rule::Fairness]);
}

/// A reply that is sent twice.
#[test]
fn double_outcome() {
    is_found(PlantedBug::DoubleOutcome, &[Rule::Once]);
}

/// Outcomes that count as kept for ever.
#[test]
fn leaked_outcome() {
    is_found(PlantedBug::LeakedOutcome, &[Rule::Memory]);
}

/// A handler that keeps its place in line when it is served.
#[test]
fn wrong_fairness() {
    is_found(PlantedBug::WrongFairness, &[Rule::Fairness]);
}

/// A reply that is delivered after the timeout was.
#[test]
fn late_reply_delivered() {
    is_found(PlantedBug::LateReplyDelivered, &[Rule::LateReply]);
}

/// An attempt that goes down with its handler, and is not made again.
#[test]
fn lost_attempt() {
    is_found(PlantedBug::LostAttempt, &[Rule::IdleCredit, Rule::Once]);
}

/// A queue whose newest goes first.
#[test]
fn last_first() {
    is_found(PlantedBug::LastFirst, &[Rule::Order]);
}

/// A timeout at half of its time.
#[test]
fn early_timeout() {
    is_found(PlantedBug::EarlyTimeout, &[Rule::Timeout]);
}

/// A queue without a bound.
#[test]
fn unbounded_queue() {
    is_found(PlantedBug::UnboundedQueue, &[Rule::Bounds]);
}

/// More legs told than asked.
#[test]
fn wrong_legs() {
    is_found(PlantedBug::WrongLegs, &[Rule::Broadcast]);
}

/// A client that is asked to send again what runs.
#[test]
fn wrong_resume() {
    is_found(PlantedBug::WrongResume, &[Rule::Resume]);
}

/// Histories in which nobody may do everything.
fn limited(seed: u64) -> Plan {
    let mut plan = Plan::from_seed(seed);
    plan.settings.limited = 1000;
    plan
}

/// A request that its client may not make, and that is taken all the same.
#[test]
fn forbidden_asked() {
    is_found_in(PlantedBug::ForbiddenAsked, &[Rule::Forbidden], limited);
}

/// A list of receivers with names in it that its reader may not ask.
#[test]
fn receivers_shown() {
    is_found_in(PlantedBug::ReceiversShown, &[Rule::Forbidden], limited);
}

/// Looks for a fault in histories with a log, crashes and restarts.
#[track_caller]
fn is_found_in_the_log(bug: PlantedBug, rules: &[Rule]) {
    is_found_in(bug, rules, |seed| Plan::of_profile(seed, Profile::Durable));
}

/// An outcome that its requester has before it would survive.
#[test]
fn answered_early() {
    is_found_in_the_log(PlantedBug::AnsweredEarly, &[Rule::Gate]);
}

/// A request whose end is not in the log: it comes back after a restart, or stays in the log for ever.
#[test]
fn done_not_logged() {
    is_found_in_the_log(PlantedBug::DoneNotLogged, &[Rule::Settled, Rule::Memory]);
}

/// A request that was accepted, is in the log, and is forgotten by the restart: its client is told that it is not known, or
/// the log keeps what nobody knows.
#[test]
fn acceptance_lost() {
    is_found_in_the_log(PlantedBug::AcceptanceLost, &[Rule::Kept, Rule::Memory]);
}

/// A request that is only in the log, and of which compaction copies what is in memory: it comes to its handler without its
/// data, or is taken for damaged.
#[test]
fn moved_unread() {
    is_found_in_the_log(PlantedBug::MovedUnread, &[Rule::Invented]);
}

/// An outcome that comes again although its acknowledgement was stable, or when its record has been buried.
#[test]
fn outcome_replayed() {
    is_found_in_the_log(PlantedBug::OutcomeReplayed, &[Rule::Settled, Rule::Gate]);
}
