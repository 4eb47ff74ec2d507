//! Watches request bodies: the registry must accept bytes, and respond after the last one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Body;
use tokio::time::Instant;

use crate::wait::WaitCredit;
use imgsync_oci::retry;

/// Bodies up to this size in bytes are sent in one piece and not watched.
pub(super) const MAX_UNWATCHED_BODY_BYTES: usize = 64 << 10;
/// Chunk size of larger bodies, so that progress is visible on a slow line.
const WATCHED_CHUNK_BYTES: usize = 32 << 10;
/// Minimum rate of an upload in bytes per second, averaged over the stall timeout.
pub(super) const MIN_SEND_BYTES_PER_SECOND: u64 = 128;
/// Bytes that may be in the buffers of this machine and the network when the last one was handed over.
const MAX_BUFFERED_BYTES: u64 = 4 << 20;
/// Buffered bytes for which each further stall timeout is granted: 17 KiB per second with the default.
const BUFFERED_BYTES_PER_STALL: u64 = 1 << 20;
/// Rate in bytes per second at which a registry may verify or move what it received before it responds.
const MIN_COMMIT_BYTES_PER_SECOND: u64 = 20 << 20;

/// Progress of a request body.
#[derive(Debug, Clone, Copy)]
pub struct SendProgress {
    /// Bytes accepted by the connection. Never decreases.
    pub bytes: u64,
    /// Whether all bytes were accepted.
    pub is_complete: bool,
    /// Whether the next bytes are delayed on this side: by the source, or by the bandwidth limit.
    pub is_locally_stalled: bool,
}

/// Returns, with a description, when the other side accepts bytes too slowly or does not respond after the last one.
/// Calls `sent` about twenty times per stall timeout.
pub(super) async fn wait_until_stalled(stall: Duration, sent: impl Fn() -> SendProgress) -> String {
    let start = sent();
    let mut last = start;
    let mut credit = WaitCredit::new(stall, MIN_SEND_BYTES_PER_SECOND);
    let mut at = Instant::now();
    let mut all_since = start.is_complete.then_some(at);
    loop {
        tokio::time::sleep((stall / 20).max(Duration::from_millis(1))).await;
        let (now, next) = (sent(), Instant::now());
        let moved = now.bytes.saturating_sub(last.bytes);
        match (now.is_complete, all_since) {
            (true, None) => all_since = Some(next),
            (true, Some(since)) => {
                let limit = answer_limit(stall, now.bytes.saturating_sub(start.bytes));
                if since.elapsed() >= limit {
                    return format!(
                        "the target did not respond within {} after the last byte",
                        retry::format_duration(limit)
                    );
                }
            }
            (false, _) => {
                all_since = None;
                let waited = if now.is_locally_stalled || last.is_locally_stalled { Duration::ZERO } else { next - at };
                credit.record(waited, moved);
                if credit.is_exhausted() {
                    return format!("the target accepted no bytes, or too few, for {}", retry::format_duration(stall));
                }
            }
        }
        (last, at) = (now, next);
    }
}

/// Returns the time limit for the response after the last of this many bytes.
fn answer_limit(stall: Duration, sent: u64) -> Duration {
    let buffered = stall.mul_f64(sent.min(MAX_BUFFERED_BYTES) as f64 / BUFFERED_BYTES_PER_STALL as f64);
    stall + buffered + Duration::from_secs(sent / MIN_COMMIT_BYTES_PER_SECOND)
}

/// Creates a body from bytes in memory, with a function that returns its progress.
pub(super) fn watch_body(bytes: Bytes) -> (Body, impl Fn() -> SendProgress) {
    let (total, taken) = (bytes.len() as u64, Arc::new(AtomicU64::new(0)));
    let counter = taken.clone();
    let pieces = futures_util::stream::unfold((bytes, counter), |(mut rest, counter)| async move {
        if rest.is_empty() {
            return None;
        }
        let piece = rest.split_to(rest.len().min(WATCHED_CHUNK_BYTES));
        counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Some((Ok::<_, std::convert::Infallible>(piece), (rest, counter)))
    });
    let sent = move || {
        let bytes = taken.load(Ordering::Relaxed);
        SendProgress { bytes, is_complete: bytes >= total, is_locally_stalled: false }
    };
    (Body::wrap_stream(pieces), sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_millis(200);

    fn at(bytes: u64, is_complete: bool, is_locally_stalled: bool) -> SendProgress {
        SendProgress { bytes, is_complete, is_locally_stalled }
    }

    #[tokio::test]
    async fn a_target_that_takes_nothing_or_a_byte_now_and_then_is_given_up() {
        assert!(wait_until_stalled(STALL, || at(7, false, false)).await.contains("accepted no bytes"));
        let taken = AtomicU64::new(0);
        let drip = || at(taken.fetch_add(1, Ordering::Relaxed) / 10, false, false);
        assert!(wait_until_stalled(STALL, drip).await.contains("accepted no bytes"));
    }

    #[tokio::test]
    async fn a_local_stall_is_not_counted_against_the_target() {
        let held = wait_until_stalled(STALL, || at(7, false, true));
        assert!(tokio::time::timeout(3 * STALL, held).await.is_err());
        let taken = AtomicU64::new(0);
        let flows = wait_until_stalled(STALL, || at(taken.fetch_add(1000, Ordering::Relaxed), false, false));
        assert!(tokio::time::timeout(3 * STALL, flows).await.is_err());
    }

    #[tokio::test]
    async fn an_answer_must_follow_the_last_byte() {
        assert!(wait_until_stalled(STALL, || at(7, true, false)).await.contains("did not respond"));
    }

    #[test]
    fn the_answer_may_take_longer_by_what_was_really_sent() {
        let limit = |sent| answer_limit(Duration::from_secs(60), sent).as_secs();
        assert_eq!([limit(0), limit(1 << 20), limit(4 << 20)], [60, 120, 300]);
        assert_eq!(limit(1 << 30), 300 + 51);
    }
}
