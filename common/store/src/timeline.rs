//! Timeline of a batch: results over time, slowest tasks, and work per worker. Kept with the counters, in a size that
//! does not grow with the batch.

use std::time::Duration;

/// Maximum number of time buckets of a batch.
pub const MAX_TIME_BUCKETS: u32 = 120;
/// Maximum number of slowest tasks kept.
pub const MAX_SLOWEST_TASKS: usize = 20;

/// Timeline of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchTimeline {
    /// Duration of a time bucket. It doubles once the batch has lasted for [`MAX_TIME_BUCKETS`] of them.
    pub bucket_width: Duration,
    /// Time buckets in order, without empty ones.
    pub buckets: Vec<TimeBucket>,
    /// Tasks with the longest last attempts, longest first; at most [`MAX_SLOWEST_TASKS`].
    pub slowest: Vec<SlowTask>,
    /// Work per worker, by worker name.
    pub workers: Vec<WorkerStats>,
}

/// Results within one time bucket of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeBucket {
    /// Start of the bucket after the batch's creation, as a multiple of the width.
    pub number: u32,
    /// Tasks copied. Like the other results, a task that failed and was requeued counts each time it ends.
    pub copied: u64,
    /// Tasks unchanged.
    pub unchanged: u64,
    /// Tasks failed.
    pub failed: u64,
    /// Tasks cancelled.
    pub cancelled: u64,
    /// Bytes moved by tasks that ended or were rescheduled.
    pub bytes: u64,
}

/// One of the slowest tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowTask {
    /// Task index.
    pub index: u32,
    /// Duration of its last attempt.
    pub time: Duration,
    /// Bytes moved in that attempt.
    pub bytes: u64,
    /// The worker that ran it.
    pub worker: String,
}

/// Work done by one worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Worker name.
    pub worker: String,
    /// Tasks that it ended.
    pub ended: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Time spent on tasks, summed over its slots.
    pub time: Duration,
}

/// Returns the time bucket of a moment, and the factor by which buckets must widen to fit it.
pub(super) fn locate_bucket(passed_ms: i64, width_ms: i64) -> (i64, i64) {
    let (passed, width) = (passed_ms.max(0), width_ms.max(1));
    let mut times = 1;
    while passed / (width * times) >= i64::from(MAX_TIME_BUCKETS) {
        times *= 2;
    }
    (passed / (width * times), times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_batch_grow_until_its_time_fits() {
        assert_eq!(locate_bucket(-5, 1000), (0, 1));
        assert_eq!(locate_bucket(119_999, 1000), (119, 1));
        assert_eq!(locate_bucket(120_000, 1000), (60, 2));
        assert_eq!(locate_bucket(1_000_000, 1000), (62, 16));
    }
}
