//! Clocks for stores that have none of their own, with a manual one for tests.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

/// How far a time may lie ahead of a clock and still count as now: the clocks of machines differ and are adjusted.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(5 * 60);
/// The latest that a lease, a block or a retry may end: no registry is blocked for longer than 24 hours. A later
/// deadline was written by a wrong clock, and counts as expired.
pub const MAX_DEADLINE_AHEAD: Duration = Duration::from_secs(25 * 60 * 60);

/// Returns whether a time lies in the future, so that it was written by a wrong clock and says nothing.
pub fn is_in_future(then: Timestamp, now: Timestamp) -> bool {
    Duration::try_from(then.duration_since(now)).is_ok_and(|ahead| ahead > CLOCK_TOLERANCE)
}

/// Returns the time since `then`, or [`Duration::MAX`] if `then` lies in the future.
pub fn age(then: Timestamp, now: Timestamp) -> Duration {
    match is_in_future(then, now) {
        true => Duration::MAX,
        false => Duration::try_from(now.duration_since(then)).unwrap_or(Duration::ZERO),
    }
}

/// Returns [`MAX_DEADLINE_AHEAD`] from now, in milliseconds since 1970.
pub(crate) fn latest_deadline_ms(now: i64) -> i64 {
    now.saturating_add(i64::try_from(MAX_DEADLINE_AHEAD.as_millis()).unwrap_or(i64::MAX))
}

/// Source of the time for leases and ages.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns the current time.
    fn now(&self) -> Timestamp;
}

/// The system clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that stands still until it is advanced, for tests.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// Creates a clock at this time, to the millisecond.
    pub fn starting_at(time: Timestamp) -> ManualClock {
        ManualClock(AtomicI64::new(time.as_millisecond()))
    }

    /// Sets the clock back.
    pub fn set_back(&self, by: Duration) {
        self.0.fetch_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX / 4), Ordering::SeqCst);
    }

    /// Advances the clock.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX / 4), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.0.load(Ordering::SeqCst)).unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_in_the_future_is_of_unknown_age_and_one_that_is_a_little_ahead_is_now() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        assert_eq!(age(at(-60), now), Duration::from_secs(60));
        assert_eq!((age(at(60), now), is_in_future(at(300), now)), (Duration::ZERO, false));
        assert_eq!((age(at(301), now), is_in_future(at(301), now)), (Duration::MAX, true));
        assert_eq!(age(at(400 * 86_400), now), Duration::MAX);
    }
}
