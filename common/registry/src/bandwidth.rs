//! Bandwidth limits and byte counts for blobs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Unused bandwidth of up to this long may be used in a burst.
const BURST: Duration = Duration::from_millis(100);

/// Limits bytes per second, over all streams that use it.
#[derive(Debug)]
pub(crate) struct ByteRateLimiter {
    bytes_per_second: f64,
    /// When the bytes let through so far will have been transferred.
    busy_until: Mutex<Option<Instant>>,
}

impl ByteRateLimiter {
    pub(crate) fn new(bytes_per_second: u64) -> ByteRateLimiter {
        ByteRateLimiter { bytes_per_second: bytes_per_second.max(1) as f64, busy_until: Mutex::default() }
    }

    /// Reserves bytes. Returns when the next may follow.
    fn reserve(&self, now: Instant, bytes: u64) -> Instant {
        let mut over_at = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = Duration::try_from_secs_f64(bytes as f64 / self.bytes_per_second).unwrap_or(Duration::MAX / 4);
        let begins = over_at.map_or(now, |at| at.max(now.checked_sub(BURST).unwrap_or(now)));
        let ends = begins.checked_add(takes).unwrap_or(begins);
        *over_at = Some(ends);
        ends
    }
}

/// Bandwidth meter for one registry in one direction. Cheap to clone; clones share counts and limits.
#[derive(Debug, Clone, Default)]
pub struct BandwidthMeter {
    limiters: Vec<Arc<ByteRateLimiter>>,
    bytes_moved: Arc<AtomicU64>,
}

impl BandwidthMeter {
    /// Creates a meter that counts bytes and applies all given limits.
    pub(crate) fn new(
        throttles: impl IntoIterator<Item = Arc<ByteRateLimiter>>,
        moved: &Arc<AtomicU64>,
    ) -> BandwidthMeter {
        BandwidthMeter { limiters: throttles.into_iter().collect(), bytes_moved: moved.clone() }
    }

    /// Counts bytes transferred now. Returns when more may follow.
    pub fn record(&self, bytes: usize) -> Option<Instant> {
        self.bytes_moved.fetch_add(bytes as u64, Ordering::Relaxed);
        let now = Instant::now();
        self.limiters.iter().map(|throttle| throttle.reserve(now, bytes as u64)).max()
    }

    /// Counts bytes transferred, and waits until more may follow.
    pub async fn acquire(&self, bytes: usize) {
        if let Some(until) = self.record(bytes) {
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_share_the_rate_and_idle_time_is_not_credited() {
        let throttle = ByteRateLimiter::new(1000);
        let start = Instant::now();
        let after = |until: Instant| until.saturating_duration_since(start).as_millis();
        assert_eq!(after(throttle.reserve(start, 500)), 500);
        assert_eq!(after(throttle.reserve(start, 500)), 1000, "another stream at the same time");
        let late = start + Duration::from_secs(60);
        let next = throttle.reserve(late, 1000).saturating_duration_since(late);
        assert!(next >= Duration::from_millis(900), "{next:?}");
    }
}
