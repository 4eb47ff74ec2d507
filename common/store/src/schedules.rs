//! Last runs of schedules. See [`Schedules`].

use async_trait::async_trait;
use jiff::Timestamp;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::Result;

/// Last run of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRun {
    /// Reference for the next run: when it was last started, or first seen. To the millisecond.
    pub at: Timestamp,
    /// The batch that was started.
    pub batch: Option<BatchId>,
    /// Scheduled runs skipped since then.
    pub skipped: u64,
}

/// Last runs of schedules, so that missed runs are caught up.
///
/// # Contract
/// The last record of a name wins.
#[async_trait]
pub trait Schedules: Send + Sync {
    /// Records that a schedule was started, or seen for the first time.
    async fn record_schedule_run(&self, name: &str, last_run: LastRun) -> Result<()>;

    /// Returns the last runs by schedule name.
    async fn schedule_runs(&self) -> Result<Vec<(String, LastRun)>>;
}
