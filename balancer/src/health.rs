//! Whether an instance gets connections, by what probes and sessions have seen of it. Pure.
//!
//! ```text
//!             `fall` failures, one after the other
//!      Up ────────────────────────────────────────────> Down
//!       ^                                                │
//!       └───────────────────────────────────────────────┘
//!             `rise` probes passed, one after the other; then slow start
//! ```
//!
//! Failures of probes and of sessions (no connection, or one that ended before the instance said a word) are counted
//! apart: an instance that can be connected to and then ends every connection passes probes that only connect, and these
//! must not hide what sessions see. Sessions that get an answer take back what sessions have seen, probes that pass take
//! back what probes have seen.

use std::time::Duration;

use ringpost_protocol::time::Time;

use crate::{choice::mix, config::Health as Probing};

/// The parts in which a weight is counted, so that slow start has steps.
pub(crate) const WHOLE: u32 = 256;
/// The least part of its weight that an instance has which has just come back.
const LEAST_PART: u32 = WHOLE / 16;
/// Probes come up to so much earlier or later, in per cent: those of many balancers must not come at once.
const JITTER_PERCENT: u64 = 20;

/// By which rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) probing: Probing,
    pub(crate) interval: Duration,
    pub(crate) rise: u32,
    pub(crate) fall: u32,
    pub(crate) slow_start: Duration,
}

/// Something that was seen of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observation {
    /// A probe went well. Without probes: the time for one has come.
    ProbePassed,
    /// A probe did not.
    ProbeFailed,
    /// A session got an answer.
    Served,
    /// A session could not be connected, or the instance ended it before it said anything.
    Failed,
}

/// An instance that comes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Up,
    Down,
}

/// What is known of one instance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    down: bool,
    /// Of probes, one after the other: failures while up, passes while down.
    probes: u32,
    /// Failures of sessions, one after the other.
    sessions: u32,
    /// When it came back.
    back_since: Option<Time>,
}

impl Health {
    pub(crate) fn is_up(&self) -> bool {
        !self.down
    }

    /// Takes in what was seen.
    pub(crate) fn observe(&mut self, seen: Observation, rules: &Rules, now: Time) -> Option<Change> {
        match (self.down, seen) {
            (false, Observation::ProbePassed) => self.probes = 0,
            (false, Observation::ProbeFailed) => self.probes += 1,
            (false, Observation::Served) => self.sessions = 0,
            (false, Observation::Failed) => self.sessions += 1,
            (true, Observation::ProbePassed) => self.probes += 1,
            (true, Observation::ProbeFailed) => self.probes = 0,
            // Sessions from before.
            (true, Observation::Served | Observation::Failed) => {}
        }
        let change = match self.down {
            false if self.probes >= rules.fall || self.sessions >= rules.fall => Change::Down,
            true if self.probes >= rules.rise => Change::Up,
            _ => return None,
        };
        let back_since = (change == Change::Up).then_some(now);
        *self = Self { down: change == Change::Down, probes: 0, sessions: 0, back_since };
        Some(change)
    }

    /// The part of its weight that it has now, of [`WHOLE`].
    pub(crate) fn part(&self, rules: &Rules, now: Time) -> u32 {
        let Some(since) = self.back_since else { return WHOLE };
        let (passed, needed) = (now.since(since).as_micros(), rules.slow_start.as_micros());
        if passed >= needed {
            return WHOLE;
        }
        let part = u128::from(WHOLE) * passed / needed;
        u32::try_from(part).unwrap_or(WHOLE).max(LEAST_PART)
    }
}

/// When the next probe is due, by a number that is drawn for it.
pub(crate) fn pause(rules: &Rules, drawn: u64) -> Duration {
    let interval = u64::try_from(rules.interval.as_micros()).unwrap_or(u64::MAX / 200);
    let spread = interval / 100 * JITTER_PERCENT;
    let earliest = interval - spread;
    Duration::from_micros(earliest + mix(drawn) % (2 * spread + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        probing: Probing::Connect,
        interval: Duration::from_secs(2),
        rise: 2,
        fall: 3,
        slow_start: Duration::from_secs(10),
    };

    fn observe(health: &mut Health, seen: &[Observation]) -> Vec<Option<Change>> {
        seen.iter().map(|seen| health.observe(*seen, &RULES, Time::ZERO)).collect()
    }

    /// Down after `fall` failures in a row, up after `rise` passes in a row; one that differs begins the count anew.
    #[test]
    fn rise_and_fall() {
        use Observation::{ProbeFailed as Fails, ProbePassed as Passes};
        let mut health = Health::default();
        assert_eq!(observe(&mut health, &[Fails, Fails, Passes, Fails, Fails]), [None; 5]);
        assert_eq!(observe(&mut health, &[Fails]), [Some(Change::Down)]);
        assert_eq!(observe(&mut health, &[Passes, Fails, Passes]), [None; 3]);
        assert!(!health.is_up());
        assert_eq!(observe(&mut health, &[Passes]), [Some(Change::Up)]);
        assert!(health.is_up());
    }

    /// Probes that pass do not hide sessions that fail, nor the other way about.
    #[test]
    fn sessions_and_probes_count_apart() {
        use Observation::{Failed, ProbeFailed, ProbePassed, Served};
        let mut health = Health::default();
        let seen = [Failed, ProbePassed, Failed, ProbePassed, Failed];
        assert_eq!(observe(&mut health, &seen), [None, None, None, None, Some(Change::Down)]);
        let mut health = Health::default();
        let seen = [ProbeFailed, Served, ProbeFailed, Served, ProbeFailed];
        assert_eq!(observe(&mut health, &seen), [None, None, None, None, Some(Change::Down)]);
        let mut health = Health::default();
        assert_eq!(observe(&mut health, &[Failed, Failed, Served, Failed, Failed]), [None; 5]);
    }

    /// Who comes back has a small part of its weight, which grows to the whole; who was never away has all of it.
    #[test]
    fn slow_start() {
        let at = |seconds: u64| Time::from_micros(seconds * 1_000_000);
        let mut health = Health::default();
        assert_eq!(health.part(&RULES, at(5)), WHOLE);
        for seen in [Observation::Failed; 3] {
            health.observe(seen, &RULES, at(5));
        }
        health.observe(Observation::ProbePassed, &RULES, at(8));
        health.observe(Observation::ProbePassed, &RULES, at(10));
        let parts = [10, 12, 15, 20, 30].map(|seconds| health.part(&RULES, at(seconds)));
        assert_eq!(parts, [WHOLE / 16, WHOLE / 5, WHOLE / 2, WHOLE, WHOLE]);
        let at_once = Rules { slow_start: Duration::ZERO, ..RULES };
        assert_eq!(health.part(&at_once, at(10)), WHOLE);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A pause is at most a fifth off, and never the same for long.
        #[test]
        fn jitter(drawn in any::<u64>(), millis in 1..100_000u64) {
            let rules = Rules { interval: Duration::from_millis(millis), ..RULES };
            let pause = pause(&rules, drawn);
            prop_assert!(pause >= rules.interval * 4 / 5 && pause <= rules.interval * 6 / 5, "{pause:?}");
        }
    }
}
