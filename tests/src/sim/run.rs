//! A plan, its run, and what is said when it fails.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

use super::{
    profile::{Profile, Settings},
    rng::Rng,
    rules::{Rule, Violation},
    script::{self, Step},
    world::World,
};

/// One history to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Everything random comes from it.
    pub seed: u64,
    /// The kind of history.
    pub profile: Profile,
    /// What holds throughout.
    pub settings: Settings,
    /// What happens from outside.
    pub script: Vec<Step>,
    /// Whether the broker checks itself after each step.
    pub check_invariants: bool,
    /// Whether to note what happens, for a report.
    pub trace: bool,
    /// Whether to keep all notes, not only the last.
    pub trace_all: bool,
}

impl Plan {
    /// The plan that a seed stands for.
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::of(seed, [0x5eed, 0, 0]);
        let profile = rng.pick(&Profile::ALL);
        Self::of_profile(seed, profile)
    }

    /// The plan of a seed in a profile that it would not draw itself.
    pub fn of_profile(seed: u64, profile: Profile) -> Self {
        let settings = Settings::draw(profile, &mut Rng::of(seed, [0x5eed, 1, 0]));
        let script = script::write(profile, &settings, &mut Rng::of(seed, [0x5eed, 2, 0]));
        Self { seed, profile, settings, script, check_invariants: true, trace: false, trace_all: false }
    }

    /// The same with only those steps for which it is so.
    #[must_use]
    pub fn with_only(&self, keep: impl Fn(&Step) -> bool) -> Self {
        let script = self.script.iter().filter(|step| keep(step)).cloned().collect();
        Self { script, ..self.clone() }
    }
}

/// What came out of a history in which everything held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Of everything that happened, in order: two runs of a plan have the same.
    pub fingerprint: u64,
    /// How many requests ended how.
    pub endings: BTreeMap<String, u64>,
    /// Things that happened.
    pub events: u64,
}

/// A history in which something did not hold.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What.
    pub violation: Violation,
    /// When, in microseconds.
    pub at: u64,
    /// What happened before, if the plan was traced.
    pub notes: Vec<String>,
}

/// Runs a plan.
///
/// # Errors
/// [`Failure`] with the first rule that was broken. A panic in a core counts as [`Rule::Invariant`].
pub fn run(plan: &Plan) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(plan);
    let result = quietly(|| world.run());
    result.map_err(|violation| {
        let notes = world.notes.drain(..).collect();
        Box::new(Failure { violation, at: world.now, notes })
    })
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// A panic is a finding like others here: it is caught, and its words are kept instead of printed.
fn quietly<T>(what: impl FnOnce() -> Result<T, Violation>) -> Result<T, Violation> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                PLACE.set(info.location().map(|place| format!(" ({}:{})", place.file(), place.line())));
            } else {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(what));
    QUIET.set(false);
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let what = text.unwrap_or_default() + &PLACE.take().unwrap_or_default();
        Err(Violation { rule: Rule::Invariant, what })
    })
}

thread_local! {
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        write!(f, "at {} µs, broken rule {}", self.at, self.violation)
    }
}

/// All that somebody needs who is to find out why: the last events, the broken rule, the steps, and how to see it again.
pub fn report(plan: &Plan, failure: &Failure) -> String {
    let (seed, profile) = (plan.seed, plan.profile);
    let mut text = format!("seed {seed}, profile {profile:?}\n{failure}\n");
    if plan.script.len() <= 30 {
        text += "the steps:\n";
        for step in &plan.script {
            text += &format!("{:>6} at {:>8} seat {}: {:?}\n", step.index, step.at, step.seat, step.deed);
        }
    }
    let drawn = if Plan::from_seed(seed).profile == profile {
        String::new()
    } else {
        format!(" --profile {profile:?}")
    };
    let only = if plan.script.len() == Plan::of_profile(seed, profile).script.len() {
        String::new()
    } else {
        format!(" --only {}", ranges(&plan.script))
    };
    text += "replay it: cargo run --release -p ringpost-tests --bin simulate -- ";
    text + &format!("--seed {seed}{drawn}{only} --trace")
}

/// The steps' numbers, as `--only` takes them.
fn ranges(script: &[Step]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for step in script {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == step.index => *last = step.index,
            _ => ranges.push((step.index, step.index)),
        }
    }
    let texts: Vec<_> = ranges
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    texts.join(",")
}
