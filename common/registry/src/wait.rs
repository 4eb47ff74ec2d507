//! Measures and limits the time spent waiting for other parties.
//!
//! A deadline must not count delays that imgsync imposes itself: the bandwidth limit, the rate limit of a registry, or
//! a blob that another copy is transferring. [`WaitClock`] excludes such time. [`WaitCredit`] is the deadline: waiting
//! spends it, and bytes earn it back up to the initial limit, so that a stalled stream and a dripping one end alike.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use tokio::time::Instant;

/// How often a clock that may be paused is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Measures how long an operation waits for others. It is paused while imgsync itself delays the operation. Clones
/// share the clock.
#[derive(Debug, Clone, Default)]
pub struct WaitClock(Arc<WaitClockState>);

#[derive(Debug, Default)]
struct WaitClockState {
    paused: Mutex<PauseState>,
    received: AtomicU64,
    sent: AtomicU64,
}

#[derive(Debug, Default)]
struct PauseState {
    /// Number of current pauses.
    holders: usize,
    since: Option<Instant>,
    total: Duration,
}

/// Pauses a [`WaitClock`] until it is dropped.
#[derive(Debug)]
pub struct ClockPause(WaitClock);

impl WaitClock {
    /// Pauses the clock until the guard is dropped.
    pub fn pause(&self) -> ClockPause {
        let mut paused = self.lock();
        if paused.holders == 0 {
            paused.since = Some(Instant::now());
        }
        paused.holders += 1;
        drop(paused);
        ClockPause(self.clone())
    }

    /// Returns the total time that the clock was paused.
    pub fn total_pause(&self) -> Duration {
        let paused = self.lock();
        paused.total + paused.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Waits until the clock has run for this long, not counting pauses.
    pub async fn run_for(&self, time: Duration) {
        let (began, paused) = (Instant::now(), self.total_pause());
        loop {
            let left = time.saturating_sub(began.elapsed().saturating_sub(self.total_pause() - paused));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.clamp(POLL_INTERVAL, 10 * POLL_INTERVAL)).await;
        }
    }

    /// Excludes time that was spent in a pause of another clock.
    pub fn exclude(&self, time: Duration) {
        self.lock().total += time;
    }

    /// Records bytes of a blob that were received.
    pub fn record_received(&self, bytes: u64) {
        self.0.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Records bytes of a blob that the other side accepted.
    pub fn record_sent(&self, bytes: u64) {
        self.0.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes transferred so far, in the busier direction.
    pub fn bytes_moved(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed).max(self.0.sent.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, PauseState> {
        self.0.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ClockPause {
    fn drop(&mut self) {
        let mut paused = self.0.lock();
        paused.holders = paused.holders.saturating_sub(1);
        if paused.holders == 0
            && let Some(since) = paused.since.take()
        {
            paused.total += since.elapsed();
        }
    }
}

/// Waiting-time budget: waiting spends it and bytes earn it back, never above its limit.
#[derive(Debug, Clone)]
pub struct WaitCredit {
    limit: Duration,
    remaining: Duration,
    /// Bytes that earn one second.
    rate: u64,
}

impl WaitCredit {
    /// Creates a credit of `limit` that `rate` bytes a second keep from shrinking.
    pub fn new(limit: Duration, rate: u64) -> WaitCredit {
        WaitCredit { limit, remaining: limit, rate: rate.max(1) }
    }

    /// Returns how long to wait at most for the next byte.
    pub fn remaining(&self) -> Duration {
        self.remaining
    }

    /// Records a wait and the bytes that arrived.
    pub fn record(&mut self, waited: Duration, bytes: u64) {
        // More than this many seconds fill any credit.
        let earned = Duration::from_secs_f64((bytes as f64 / self.rate as f64).min(self.limit.as_secs_f64()));
        self.remaining = (self.remaining + earned).saturating_sub(waited).min(self.limit);
    }

    /// Raises the limit and the remaining credit.
    pub fn extend(&mut self, by: Duration) {
        self.limit = self.limit.saturating_add(by);
        self.remaining = self.remaining.saturating_add(by);
    }

    /// Returns whether the credit is used up.
    pub fn is_exhausted(&self) -> bool {
        self.remaining.is_zero()
    }
}

/// Sleeps. Returns false if it was cancelled.
pub async fn sleep(delay: Duration, cancel: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(delay) => true,
        () = cancel.cancelled() => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn bytes_at_the_minimum_rate_keep_a_credit_and_fewer_spend_it() {
        let mut credit = WaitCredit::new(60 * SECOND, 128);
        for _ in 0..1000 {
            credit.record(SECOND, 128);
        }
        assert_eq!(credit.remaining(), 60 * SECOND);
        let waits = (1..).find(|_| {
            credit.record(4 * SECOND, 1);
            credit.is_exhausted()
        });
        assert_eq!(waits, Some(16));
    }

    #[test]
    fn a_claim_or_a_fast_start_earns_no_more_than_the_limit() {
        let mut credit = WaitCredit::new(60 * SECOND, 1);
        credit.record(SECOND, u64::MAX);
        assert_eq!(credit.remaining(), 60 * SECOND);
        credit.record(61 * SECOND, 0);
        assert!(credit.is_exhausted());
    }

    #[tokio::test]
    async fn a_clock_stands_still_while_anything_pauses_it() {
        let step = Duration::from_millis(20);
        let clock = WaitClock::default();
        let first = clock.pause();
        tokio::time::sleep(step).await;
        let second = clock.pause();
        tokio::time::sleep(step).await;
        drop(first);
        tokio::time::sleep(step).await;
        assert!(clock.total_pause() >= 3 * step);
        drop(second);
        let paused = clock.total_pause();
        tokio::time::sleep(step).await;
        assert_eq!(clock.total_pause(), paused);
        clock.exclude(SECOND);
        assert_eq!(clock.total_pause(), paused + SECOND);
    }
}
