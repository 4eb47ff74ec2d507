//! How a batch went: outcomes over time, what took longest, who did how much. Kept with the counters, in a size that does
//! not grow with the batch.

use std::time::Duration;

/// The most parts that the time of a batch is cut into.
pub const MAX_PARTS: u32 = 120;
/// How many of the slowest tasks are kept.
pub const MAX_SLOWEST: usize = 20;

/// How a batch went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Course {
    /// How long each part of `parts` is. It doubles when the batch has lasted for [`MAX_PARTS`] of them.
    pub width: Duration,
    /// In order; parts in which nothing happened are left out.
    pub parts: Vec<Part>,
    /// The tasks whose last attempt took longest, longest first; [`MAX_SLOWEST`] at most.
    pub slowest: Vec<Slow>,
    /// Who did how much, in the order of their names.
    pub shares: Vec<Share>,
}

/// What happened in a part of a batch's time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Part {
    /// From this multiple of the width after the batch was made.
    pub number: u32,
    /// Tasks that ended so. One that failed and was requeued is counted each time that it ends.
    pub copied: u64,
    /// Likewise.
    pub unchanged: u64,
    /// Likewise.
    pub failed: u64,
    /// Likewise.
    pub cancelled: u64,
    /// Bytes that tasks had moved when they ended, or were put off.
    pub bytes: u64,
}

/// A task that took long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slow {
    /// Its index.
    pub index: u32,
    /// How long its last attempt took.
    pub time: Duration,
    /// Bytes that it moved in that.
    pub bytes: u64,
    /// Who did it.
    pub worker: String,
}

/// What one worker did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// Its name.
    pub worker: String,
    /// Tasks that it ended.
    pub ended: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Bytes that it moved.
    pub bytes: u64,
    /// How long it was at tasks, all its slots added up.
    pub time: Duration,
}

/// In which part of a batch's time a moment is, and how many times wider the parts must be for that.
pub(super) fn part_of(passed_ms: i64, width_ms: i64) -> (i64, i64) {
    let (passed, width) = (passed_ms.max(0), width_ms.max(1));
    let mut times = 1;
    while passed / (width * times) >= i64::from(MAX_PARTS) {
        times *= 2;
    }
    (passed / (width * times), times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_batch_grow_until_its_time_fits() {
        assert_eq!(part_of(-5, 1000), (0, 1));
        assert_eq!(part_of(119_999, 1000), (119, 1));
        assert_eq!(part_of(120_000, 1000), (60, 2));
        assert_eq!(part_of(1_000_000, 1000), (62, 16));
    }
}
