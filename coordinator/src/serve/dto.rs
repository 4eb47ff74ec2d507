//! JSON bodies of the API's responses, as `schema/openapi.json` describes them.

use imgsync_model::batch::{BatchId, BatchOptions, BlobBytes, Priority, RequestCounts, TaskCounts, TaskState};
use imgsync_store::{BatchTimeline, TaskRow};
use jiff::Timestamp;
use serde::Serialize;

use crate::batch_view::{BatchStatus, BatchView};
use crate::report::failure_groups::FailureGroups;

/// A batch.
#[derive(Debug, Clone, Serialize)]
pub(super) struct BatchResponse {
    batch: BatchId,
    title: String,
    /// Id of the rule of the configuration that it runs, if it runs one alone.
    rule: Option<String>,
    /// Names of the rules.
    rules: Vec<String>,
    from: Vec<String>,
    to: Vec<String>,
    state: BatchStatus,
    priority: Priority,
    /// The process that lists or leads it.
    owner: Option<String>,
    /// The command that resumes it, if no process runs it.
    resume: Option<String>,
    run: u32,
    counts: TaskCounts,
    queued: u64,
    retrying: u64,
    bytes: BlobBytes,
    requests: RequestCounts,
    worker_seconds: f64,
    started: Timestamp,
    planned: Option<Timestamp>,
    ended: Option<Timestamp>,
    supersedes: Option<BatchId>,
    unlisted: u64,
}

impl BatchResponse {
    /// Converts a batch. `unlisted` is the number of repositories and patterns that could not be listed.
    pub(super) fn from_view(view: &BatchView, unlisted: u64, rule: Option<String>) -> BatchResponse {
        let batch = &view.batch;
        // A list shows what it can; commands on a single batch report options that cannot be decoded.
        let options = BatchOptions::decode(&batch.options, "a batch").unwrap_or_default();
        let mut to: Vec<String> = options.rules.iter().flat_map(|rule| rule.to.iter().cloned()).collect();
        to.sort();
        to.dedup();
        BatchResponse {
            batch: batch.id,
            priority: options.priority(),
            rule,
            title: options.title,
            rules: options.rules.iter().map(|rule| rule.name.clone()).collect(),
            from: options.rules.into_iter().map(|rule| rule.from).collect(),
            to,
            state: view.state,
            owner: view.owner.clone(),
            resume: view.resume_command(),
            run: batch.run,
            counts: batch.counts,
            queued: batch.queued,
            retrying: batch.retrying,
            bytes: batch.usage.bytes,
            requests: batch.usage.requests,
            worker_seconds: batch.usage.time.as_secs_f64(),
            started: batch.created_at,
            planned: batch.plan_completed_at,
            ended: batch.ended_at,
            supersedes: batch.supersedes,
            unlisted,
        }
    }
}

/// Timeline of a batch: results over time, and the share of each worker.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TimelineResponse {
    batch: BatchId,
    /// Length of a bucket.
    bucket_seconds: f64,
    buckets: Vec<TimeBucketResponse>,
    slowest: Vec<SlowTaskResponse>,
    workers: Vec<WorkerStatsResponse>,
}

#[derive(Debug, Clone, Serialize)]
struct TimeBucketResponse {
    /// Start of the bucket, in bucket lengths after the start of the batch.
    number: u32,
    copied: u64,
    unchanged: u64,
    failed: u64,
    cancelled: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Serialize)]
struct SlowTaskResponse {
    index: u32,
    seconds: f64,
    bytes: u64,
    worker: String,
}

#[derive(Debug, Clone, Serialize)]
struct WorkerStatsResponse {
    worker: String,
    ended: u64,
    failed: u64,
    bytes: u64,
    seconds: f64,
}

impl TimelineResponse {
    pub(super) fn from_timeline(batch: BatchId, timeline: BatchTimeline) -> TimelineResponse {
        let bucket = |bucket: imgsync_store::TimeBucket| TimeBucketResponse {
            number: bucket.number,
            copied: bucket.copied,
            unchanged: bucket.unchanged,
            failed: bucket.failed,
            cancelled: bucket.cancelled,
            bytes: bucket.bytes,
        };
        let slow = |slow: imgsync_store::SlowTask| SlowTaskResponse {
            index: slow.index,
            seconds: slow.time.as_secs_f64(),
            bytes: slow.bytes,
            worker: slow.worker,
        };
        let share = |share: imgsync_store::WorkerStats| WorkerStatsResponse {
            worker: share.worker,
            ended: share.ended,
            failed: share.failed,
            bytes: share.bytes,
            seconds: share.time.as_secs_f64(),
        };
        TimelineResponse {
            batch,
            bucket_seconds: timeline.bucket_width.as_secs_f64(),
            buckets: timeline.buckets.into_iter().map(bucket).collect(),
            slowest: timeline.slowest.into_iter().map(slow).collect(),
            workers: timeline.workers.into_iter().map(share).collect(),
        }
    }
}

/// A task and its state.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TaskResponse {
    pub(super) index: u32,
    source: String,
    target: String,
    state: TaskState,
    run: u32,
    pub(super) attempts: u32,
}

impl TaskResponse {
    pub(super) fn from_row(row: &TaskRow) -> TaskResponse {
        TaskResponse {
            index: row.task.index,
            source: row.task.spec.source.to_string(),
            target: row.task.spec.target.to_string(),
            state: row.state,
            run: row.run,
            attempts: row.attempts,
        }
    }
}

/// Failures of a batch, grouped by error kind and registry.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FailureGroupsResponse {
    pub(super) batch: BatchId,
    /// All listing failures; `unlisted` has the first of them.
    pub(super) unlisted_total: usize,
    #[serde(flatten)]
    pub(super) groups: FailureGroups,
}
