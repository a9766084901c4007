//! Reading both clocks at once; sleeping.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringpost_protocol::time::{Now, Time};

/// The clocks of a shard: monotonic since it was made, and the wall's.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that shows [`Time::ZERO`] now.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Reads both. A wall clock before 1970 shows 1970.
    pub fn now(&self) -> Now {
        let mono = self.origin.elapsed().as_micros();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        Now {
            mono: Time::from_micros(u64::try_from(mono).unwrap_or(u64::MAX)),
            wall_ms: u64::try_from(wall).unwrap_or(u64::MAX),
        }
    }

    /// Sleeps until a point on the monotonic clock, rounded up to the millisecond. May be dropped at any time.
    pub async fn sleep_until(&self, time: Time) {
        // A day is soon enough to look again, and far from where adding would overflow.
        let ahead =
            Duration::from_micros(time.micros()).min(self.origin.elapsed() + Duration::from_secs(86_400));
        tokio::time::sleep_until((self.origin + ahead).into()).await;
    }
}

/// Sleeps for a time. May be dropped at any time.
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Waits for something that may be dropped (a sleep, an [`Event`](crate::event::Event), a task's end; never a socket's
/// operation) no longer than a time. `None`: it did not come to its end.
pub async fn within<T>(duration: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(duration, future).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{self, RingConfig};

    /// A sleep ends at or after its time, also one for "never" when it is given up.
    #[test]
    fn sleeps_no_shorter() {
        ring::run(&RingConfig { entries: 8, ..RingConfig::default() }, async {
            let clock = Clock::start();
            let until = clock.now().mono + Duration::from_millis(3);
            clock.sleep_until(until).await;
            assert!(clock.now().mono >= until);
            assert!(within(Duration::from_millis(1), clock.sleep_until(Time::NEVER)).await.is_none());
        })
        .unwrap();
    }
}
