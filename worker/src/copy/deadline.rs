//! The time limit of an image: extended while bytes flow, and paused while imgsync itself holds the image back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry;
use imgsync_registry::Context;
use imgsync_registry::wait::WaitCredit;

use super::{CLEANUP_TIMEOUT, Copier, TagGate};

/// Minimum transfer rate, in bytes per second, that extends an image's time limit. All images in flight share it. Only
/// bytes that are actually transferred count, whatever a manifest claims.
pub(crate) const MIN_COPY_RATE: u64 = 64 << 10;
/// Rate, in bytes per second, at which a target may verify an upload in silence: one second per this many bytes.
const MIN_COMMIT_RATE: u64 = 20 << 20;
/// Interval at which the deadline of an image accounts for transferred bytes.
const DEADLINE_TICK: Duration = Duration::from_secs(1);

impl Copier {
    /// Runs `work` with the time limit. After cancellation it has [`CLEANUP_TIMEOUT`] to clean up.
    pub(super) async fn with_deadline<T>(
        &self,
        context: &Context,
        what: impl Fn() -> String,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let late = AtomicBool::new(false);
        let _in_flight = ImageInFlight::start(&self.images_in_flight);
        let abandoned = async {
            context.cancel.cancelled().await;
            tokio::time::sleep(CLEANUP_TIMEOUT).await;
        };
        let result = tokio::select! {
            biased;
            result = work => result,
            () = self.enforce_deadline(context, &late) => Err(Error::cancelled(what())),
            () = abandoned => Err(Error::cancelled(what())),
        };
        // Stops what still runs for this image.
        context.cancel.cancel();
        match result {
            Err(error) if error.is_cancelled() && late.load(Ordering::Relaxed) => {
                let detail = format!("not finished within {}", retry::format_duration(started.elapsed()));
                Err(Error::new(ErrorKind::TimedOut, what(), detail).with_hint("allow more with --timeout"))
            }
            result => result,
        }
    }

    /// Waits until the image may be transferred, which does not count for its time limit. Returns how long that took.
    pub(super) async fn pass_gate(&self, gate: &dyn TagGate, context: &Context) -> Result<Duration> {
        let began = Instant::now();
        let (_pause, _waiting) = (context.clock.pause(), ImageWaiting::start(&self.images_in_flight));
        gate.before_transfer().await?;
        Ok(began.elapsed())
    }

    /// Cancels the copy when the time limit is used up, then returns after the clean-up time. Transferred bytes extend
    /// the limit; sizes claimed by a manifest do not. Time in which imgsync itself holds requests back does not count.
    async fn enforce_deadline(&self, context: &Context, late: &AtomicBool) {
        let clock = &context.clock;
        let mut credit = WaitCredit::new(self.limits.timeout, MIN_COPY_RATE);
        let (mut at, mut paused, mut flowed) = (Instant::now(), clock.total_pause(), clock.bytes_moved());
        while !credit.is_exhausted() {
            let tick = credit.remaining().clamp(Duration::from_millis(10), DEADLINE_TICK);
            tokio::time::sleep(tick).await;
            let (now, paused_now, flowed_now) = (Instant::now(), clock.total_pause(), clock.bytes_moved());
            let waited = (now - at).saturating_sub(paused_now.saturating_sub(paused));
            let bytes = if self.limits.timeout_is_exact { 0 } else { flowed_now - flowed };
            let sharing = self.images_in_flight.load(Ordering::Relaxed).max(1);
            credit.extend(Duration::from_secs_f64(bytes as f64 / MIN_COMMIT_RATE as f64));
            credit.record(waited, bytes.saturating_mul(sharing));
            (at, paused, flowed) = (now, paused_now, flowed_now);
        }
        late.store(true, Ordering::Relaxed);
        context.cancel.cancel();
        tokio::time::sleep(CLEANUP_TIMEOUT).await;
    }
}

/// Counts an image as in flight until dropped.
struct ImageInFlight<'a>(&'a AtomicU64);

impl ImageInFlight<'_> {
    fn start(count: &AtomicU64) -> ImageInFlight<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        ImageInFlight(count)
    }
}

impl Drop for ImageInFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Does not count an image as in flight until dropped.
struct ImageWaiting<'a>(&'a AtomicU64);

impl ImageWaiting<'_> {
    fn start(count: &AtomicU64) -> ImageWaiting<'_> {
        count.fetch_sub(1, Ordering::Relaxed);
        ImageWaiting(count)
    }
}

impl Drop for ImageWaiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
