//! The smallest part of a failing script that still breaks the same rule, as far as time allows.
//!
//! First what comes after the failure goes; then whole clients and whole kinds of steps; then halves, quarters, … of what
//! is left, down to single steps (delta debugging: Zeller and Hildebrandt, 2002).

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    rules::Rule,
    run::{Plan, run},
    script::Step,
};

/// Leaves out all of a failing plan's script that the failure does not need. The plan itself if it does not fail.
pub fn shrink(plan: &Plan, time: Duration) -> Plan {
    let Err(failure) = run(plan) else { return plan.clone() };
    let mut shrinking =
        Shrinking { rule: failure.violation.rule, until: Instant::now() + time, best: plan.clone() };
    let (from, at) = (plan.script.first().map_or(0, |step| step.at), failure.at);
    // A history begins at one second.
    shrinking.attempt(|step| step.at + 1_000_000 <= at.max(from));
    for seat in plan.script.iter().map(|step| step.seat).collect::<BTreeSet<_>>() {
        shrinking.attempt(|step| step.seat != seat);
    }
    for name in plan.script.iter().map(|step| step.deed.name()).collect::<BTreeSet<_>>() {
        shrinking.attempt(|step| step.deed.name() != name);
    }
    shrinking.chunks();
    shrinking.best
}

struct Shrinking {
    rule: Rule,
    until: Instant,
    best: Plan,
}

impl Shrinking {
    /// Keeps only those steps, if the same rule is broken without the others.
    fn attempt(&mut self, keep: impl Fn(&Step) -> bool) -> bool {
        let smaller = self.best.with_only(keep);
        if smaller.script.len() == self.best.script.len() || Instant::now() > self.until {
            return false;
        }
        let same = run(&smaller).is_err_and(|failure| failure.violation.rule == self.rule);
        if same {
            self.best = smaller;
        }
        same
    }

    fn chunks(&mut self) {
        let mut size = self.best.script.len() / 2;
        while size > 0 && Instant::now() < self.until {
            let mut from = 0;
            let mut any = false;
            while from < self.best.script.len() {
                let out: BTreeSet<_> =
                    self.best.script.iter().skip(from).take(size).map(|step| step.index).collect();
                if self.attempt(|step| !out.contains(&step.index)) { any = true } else { from += size }
            }
            // Once more with the same size only where it still finds something at the end.
            size = if any && size == 1 { 1 } else { size / 2 };
        }
    }
}
