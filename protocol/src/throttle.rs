//! Keeps floods out of the log: of the same complaint one line a second, with the number of those left out.

use std::time::Duration;

use crate::time::Time;

/// The least time between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// For one cause of lines.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When there may be the next line.
    next: Time,
    left_out: u64,
}

impl Throttle {
    /// Asks for a line. `Some` if there may be one now, with the number of those left out since the last.
    pub fn line(&mut self, now: Time) -> Option<u64> {
        if now < self.next {
            self.left_out += 1;
            return None;
        }
        self.next = now + PAUSE;
        Some(std::mem::take(&mut self.left_out))
    }

    /// When those left out are to be told, if there are any.
    pub fn deadline(&self) -> Option<Time> {
        (self.left_out > 0).then_some(self.next)
    }

    /// Those left out, if it is time to tell them: the flood may be over, and no line of its own will.
    pub fn rest(&mut self, now: Time) -> Option<u64> {
        if self.deadline()? > now { None } else { self.line(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first line passes, one a second of the others, and in the end each was told or counted.
    #[test]
    fn counts_what_it_leaves_out() {
        let at = Time::from_micros;
        let mut throttle = Throttle::default();
        assert_eq!((throttle.line(at(5)), throttle.deadline()), (Some(0), None));
        assert_eq!((throttle.line(at(6)), throttle.line(at(1_000_004))), (None, None));
        assert_eq!(throttle.line(at(1_000_005)), Some(2));
        assert_eq!(throttle.line(at(1_000_006)), None);
        assert_eq!((throttle.deadline(), throttle.rest(at(2_000_000))), (Some(at(2_000_005)), None));
        assert_eq!((throttle.rest(at(2_000_005)), throttle.rest(at(9_000_000))), (Some(1), None));
    }
}
