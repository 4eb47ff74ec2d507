//! Queue depth: the tasks that a route drains in some seconds, shared among the batches that dispatch to it. A new
//! batch waits no longer than that.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A queue holds what its route drains in this time.
const QUEUE_HORIZON: Duration = Duration::from_secs(10);
/// Window over which the drain rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(30);
/// Minimum window of a rate, so that a few tasks that end at once do not make a deep queue.
const MIN_RATE_WINDOW: Duration = Duration::from_secs(5);
/// Window of the rate that predicts when a queue runs low. Over a longer window a new or accelerating batch seems
/// slower than it is, and workers run idle.
const RECENT_WINDOW: Duration = Duration::from_secs(1);
/// Minimum tasks in a queue, however few slots serve it.
pub(super) const MIN_DEPTH: u64 = 20;
/// Maximum tasks in a queue, so that the broker's memory does not grow with the plan.
pub(crate) const MAX_DEPTH: u64 = 2_000;
/// Minimum share of a batch in a queue.
const MIN_SHARE: u64 = 10;

/// Number of tasks drained by a route, and how fast.
#[derive(Debug)]
pub(super) struct DrainRate {
    since: Instant,
    /// Drained tasks by time.
    passed: VecDeque<(Instant, u64)>,
}

impl DrainRate {
    pub(super) fn new(now: Instant) -> DrainRate {
        DrainRate { since: now, passed: VecDeque::new() }
    }

    pub(super) fn add(&mut self, now: Instant, tasks: u64) {
        if tasks > 0 {
            self.passed.push_back((now, tasks));
        }
        while self.passed.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW) {
            self.passed.pop_front();
        }
    }

    /// Returns whether too little time has passed to conclude that nothing drains.
    pub(super) fn is_new(&self, now: Instant) -> bool {
        now.duration_since(self.since) < MIN_RATE_WINDOW
    }

    /// Returns the recent rate in tasks per second.
    pub(super) fn recent_per_second(&self, now: Instant) -> f64 {
        let recent = self.passed.iter().rev().take_while(|(at, _)| now.duration_since(*at) <= RECENT_WINDOW);
        let tasks: u64 = recent.map(|(_, tasks)| tasks).sum();
        let measured = now.duration_since(self.since).clamp(RECENT_WINDOW / 20, RECENT_WINDOW);
        tasks as f64 / measured.as_secs_f64()
    }

    /// Returns the rate in tasks per second.
    pub(super) fn per_second(&self, now: Instant) -> f64 {
        let recent = self.passed.iter().filter(|(at, _)| now.duration_since(*at) <= RATE_WINDOW);
        let tasks: u64 = recent.map(|(_, tasks)| tasks).sum();
        let measured = now.duration_since(self.since).clamp(MIN_RATE_WINDOW, RATE_WINDOW);
        tasks as f64 / measured.as_secs_f64()
    }
}

/// Returns the depth of a queue that drains `per_second` tasks a second and is served by `slots` slots.
pub(super) fn queue_depth(per_second: f64, slots: u64) -> u64 {
    let least = (2 * slots).clamp(MIN_DEPTH, MAX_DEPTH);
    // Rates of other batches are not trusted beyond being numbers.
    let drains = if per_second.is_finite() { per_second.max(0.0) * QUEUE_HORIZON.as_secs_f64() } else { 0.0 };
    (drains as u64).clamp(least, MAX_DEPTH)
}

/// Returns a batch's share of a queue of this depth, by its weight among all batches that dispatch to it.
pub(super) fn batch_share(depth: u64, weight: u64, of_all: u64) -> u64 {
    (depth * weight / of_all.max(weight).max(1)).max(MIN_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_holds_what_its_route_drains_in_ten_seconds_within_twice_its_slots_and_2000() {
        for (per_second, slots, expected) in [
            (0.0, 0, 20),
            (0.0, 30, 60),
            (10.0, 20, 100),
            (3.0, 20, 40),
            (1_000.0, 20, 2_000),
            (0.0, 5_000, 2_000),
            (f64::NAN, 4, 20),
            (-7.0, 4, 20),
            (f64::INFINITY, 4, 20),
        ] {
            assert_eq!(queue_depth(per_second, slots), expected, "{per_second} a second, {slots} slots");
        }
    }

    #[test]
    fn batches_share_a_queue_by_weight_and_each_has_some() {
        assert_eq!(batch_share(100, 4, 4), 100);
        assert_eq!(batch_share(100, 4, 8), 50);
        assert_eq!(batch_share(100, 1, 5), 20);
        assert_eq!(batch_share(100, 4, 400), 10);
        assert_eq!(batch_share(100, 4, 0), 100, "who has not told the others yet");
    }

    #[test]
    fn a_burst_makes_no_deep_queue_and_a_steady_drain_does() {
        let began = Instant::now();
        let at = |millis: u64| began + Duration::from_millis(millis);
        let mut burst = DrainRate::new(began);
        burst.add(at(50), 20);
        assert_eq!(queue_depth(burst.per_second(at(60)), 20), 40);
        // A queue that drains at once doubles each time.
        let mut steady = DrainRate::new(began);
        let mut with_queue = queue_depth(0.0, 20);
        for look in 1..=8 {
            steady.add(at(look * 50), with_queue);
            with_queue = queue_depth(steady.per_second(at(look * 50)), 20);
        }
        assert_eq!(with_queue, 2_000);
        assert!(steady.per_second(at(60_000)) < 1.0, "what is long ago does not count");
    }

    #[test]
    fn a_batch_that_has_just_begun_is_as_fast_as_it_is() {
        let began = Instant::now();
        let at = |millis: u64| began + Duration::from_millis(millis);
        let mut rate = DrainRate::new(began);
        for look in 1..=40 {
            rate.add(at(look * 50), 150);
        }
        assert_eq!(rate.per_second(at(2_000)), 1_200.0, "over the five seconds that make a deep queue");
        assert!(
            (3_000.0..3_200.0).contains(&rate.recent_per_second(at(2_000))),
            "{}",
            rate.recent_per_second(at(2_000))
        );
        assert_eq!(rate.recent_per_second(at(3_500)), 0.0);
    }
}
