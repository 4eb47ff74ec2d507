//! Data of report templates: totals and short lists of a batch. docs/reference/reports.md describes each field.
//!
//! Totals are exact. Lists are bounded and count the rest, so that the report of a million tasks is as small as one of
//! a thousand.

use imgsync_model::batch::{BlobBytes, RequestCounts, TaskCounts, TaskState};
use serde::Serialize;

/// Data of a batch for templates.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportData {
    /// Version of imgsync.
    pub version: String,
    /// Names of the rules, or `--report-name`.
    pub name: String,
    /// Batch id.
    pub batch: String,
    /// URL of the batch on the dashboard; empty if it is not known.
    pub url: String,
    /// State: running, paused, cancelled, superseded, done or interrupted.
    pub state: String,
    /// The state, but `failed` or `incomplete` for a batch that is done and in which all or some failed.
    pub outcome: String,
    /// Result of the batch, in one sentence.
    pub headline: String,
    /// Whether all is done: nothing failed, was cancelled, is open or could not be listed.
    pub ok: bool,
    /// Next command; empty if nothing is left to do.
    pub next: String,
    /// Whether the batch compares targets with their sources: unchanged images are identical, and those that are
    /// different count as failed.
    pub verification: bool,
    /// Level of detail, 1 to 3.
    pub level: u8,
    /// Creation time of the batch (RFC 3339).
    pub started: String,
    /// End of its last task; empty before.
    pub ended: String,
    /// Time at which the report was written.
    pub written: String,
    /// Duration in seconds, until now if the batch has not ended.
    pub seconds: f64,
    /// Time that workers spent on tasks, summed over all slots, in seconds.
    pub work_seconds: f64,
    /// Tasks by state.
    pub counts: TaskCounts,
    /// Bytes of blobs.
    pub bytes: BlobBytes,
    /// Requests sent.
    pub requests: RequestCounts,
    /// Outcomes over time.
    pub timeline: ReportTimeline,
    /// Failed images.
    pub failures: ReportFailures,
    /// Repositories and patterns that could not be listed.
    pub unlisted: Truncated<ReportUnlisted>,
    /// Rules that selected no tag.
    pub empty_rules: Truncated<ReportEmptyRule>,
    /// Outcomes of target tags whose source is gone.
    pub pruned: Truncated<ReportPrunedTag>,
    /// Tasks that took longest.
    pub slowest: Vec<ReportSlowTask>,
    /// Totals by rule.
    pub rules: Truncated<ReportRule>,
    /// Totals by source and target registry.
    pub routes: Truncated<ReportRoute>,
    /// Totals by worker; empty if there was only one.
    pub workers: Truncated<ReportWorker>,
    /// Images, at level 3.
    pub images: Truncated<ReportImage>,
}

/// A truncated list.
#[derive(Debug, Clone, Serialize)]
pub struct Truncated<T> {
    /// Number of all items.
    pub total: u64,
    /// First items.
    pub items: Vec<T>,
    /// Number of omitted items.
    pub more: u64,
}

/// Outcomes over time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportTimeline {
    /// Length of a bucket in seconds.
    pub width: f64,
    /// Number of buckets.
    pub length: u32,
    /// Buckets in which something happened.
    pub buckets: Vec<ReportTimelineBucket>,
}

/// Bucket of a batch's time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportTimelineBucket {
    /// Start of the bucket, in seconds after the creation of the batch.
    pub at: f64,
    /// Copied images.
    pub copied: u64,
    /// Unchanged images.
    pub unchanged: u64,
    /// Failed images.
    pub failed: u64,
    /// Cancelled images.
    pub cancelled: u64,
    /// Bytes moved by the tasks that ended in it.
    pub bytes: u64,
}

/// Failures by kind and registries.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportFailures {
    /// Number of failed tasks.
    pub total: u64,
    /// Groups, the largest first.
    pub groups: Vec<ReportFailureGroup>,
    /// Number of omitted groups.
    pub more: u64,
}

/// Failures of one kind between two registries.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportFailureGroup {
    /// Error kind, as in JSON: not_found, denied …
    pub kind: String,
    /// Title of the error kind.
    pub title: String,
    /// Advice on the error kind.
    pub advice: String,
    /// Command that copies the images once the cause is gone.
    pub next: String,
    /// Registry that answered with the errors; empty if several did.
    pub registry: String,
    /// Source registry.
    pub source: String,
    /// Target registry.
    pub target: String,
    /// Number of failures.
    pub count: u64,
    /// First failed images.
    pub images: Vec<ReportFailedImage>,
    /// Number of omitted images.
    pub more: u64,
}

/// A failed image.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportFailedImage {
    /// Source tag.
    pub source: String,
    /// Target tag.
    pub target: String,
    /// Error message.
    pub error: String,
    /// Number of attempts.
    pub attempts: u32,
}

/// A repository or pattern that could not be listed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportUnlisted {
    /// Repository or pattern.
    pub repository: String,
    /// Error kind.
    pub kind: String,
    /// Error message.
    pub error: String,
    /// Advice on the error kind.
    pub advice: String,
}

/// A rule that selected no tag although its sources were listed completely.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportEmptyRule {
    /// Number of the rule in the configuration, from 1.
    pub number: u32,
    /// Its `name`, else its source.
    pub name: String,
    /// Source of the rule.
    pub from: String,
    /// Number of listed repositories.
    pub repositories: u64,
    /// Number of tags listed in them.
    pub tags: u64,
    /// Counts of dropped tags by stage.
    pub reason: String,
}

/// A target tag whose source is gone, or a rule that pruned nothing.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportPrunedTag {
    /// Source tag, or the rule's source.
    pub source: String,
    /// Target tag, or the rule's target.
    pub target: String,
    /// Outcome: removed, left, failed or refused.
    pub outcome: String,
    /// Digest that was removed, or would have been; empty for a refused rule.
    pub digest: String,
    /// Reason; empty for a removed tag.
    pub reason: String,
}

/// One of the tasks that took longest.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportSlowTask {
    /// Source tag.
    pub source: String,
    /// Target tag.
    pub target: String,
    /// State in which it ended.
    pub state: String,
    /// Duration of its last attempt in seconds.
    pub seconds: f64,
    /// Bytes moved in that attempt.
    pub bytes: u64,
    /// Worker that ran it.
    pub worker: String,
}

/// Counts of tasks by outcome.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct OutcomeCounts {
    /// All tasks.
    pub total: u64,
    /// Copied.
    pub copied: u64,
    /// Unchanged.
    pub unchanged: u64,
    /// Failed.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Not ended.
    pub open: u64,
}

/// Totals of a rule.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportRule {
    /// Number of the rule in the configuration, from 1.
    pub number: u32,
    /// Its `name`, else its source.
    pub name: String,
    /// Source of the rule; empty for batches of versions that did not record it.
    pub from: String,
    /// Targets of the rule.
    pub to: Vec<String>,
    /// Counts of its tasks.
    pub counts: OutcomeCounts,
}

/// Totals of the tasks between two registries.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportRoute {
    /// Source registry.
    pub source: String,
    /// Target registry.
    pub target: String,
    /// Counts of their tasks.
    pub counts: OutcomeCounts,
}

/// Totals of a worker.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportWorker {
    /// Name of the worker.
    pub name: String,
    /// Tasks that it ended.
    pub ended: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Bytes that it moved.
    pub bytes: u64,
    /// Time spent on tasks, summed over its slots, in seconds.
    pub seconds: f64,
}

/// An image and its state.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReportImage {
    /// Source tag.
    pub source: String,
    /// Target tag.
    pub target: String,
    /// State of the task.
    pub state: String,
}

impl<T> Default for Truncated<T> {
    fn default() -> Self {
        Truncated { total: 0, items: Vec::new(), more: 0 }
    }
}

impl<T> Truncated<T> {
    /// Truncates a list to `at` items.
    pub(super) fn truncate(mut items: Vec<T>, at: usize) -> Truncated<T> {
        let total = items.len() as u64;
        items.truncate(at);
        Truncated { total, more: total - items.len() as u64, items }
    }
}

impl OutcomeCounts {
    pub(super) fn add(&mut self, state: TaskState) {
        self.total += 1;
        *match state {
            TaskState::Copied => &mut self.copied,
            TaskState::Unchanged => &mut self.unchanged,
            TaskState::Failed => &mut self.failed,
            TaskState::Cancelled => &mut self.cancelled,
            TaskState::New | TaskState::Queued | TaskState::Running | TaskState::Retry => &mut self.open,
        } += 1;
    }
}
