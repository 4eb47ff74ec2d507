//! JSON bodies of the API's responses, as `schema/openapi.json` describes them.

use imgsync_common::batch::{BatchId, Bytes, Counts, Options, Priority, Requests, TaskState};
use imgsync_common::store::{Course, TaskRow};
use jiff::Timestamp;
use serde::Serialize;

use crate::batches::{BatchState, BatchView};
use crate::report::failure_groups::FailureGroups;

/// A batch.
#[derive(Debug, Clone, Serialize)]
pub(super) struct BatchShape {
    batch: BatchId,
    title: String,
    /// Names of the rules.
    rules: Vec<String>,
    from: Vec<String>,
    to: Vec<String>,
    state: BatchState,
    priority: Priority,
    /// The process that lists or leads it.
    owner: Option<String>,
    /// The command that resumes it, if no process runs it.
    resume: Option<String>,
    run: u32,
    counts: Counts,
    queued: u64,
    retrying: u64,
    bytes: Bytes,
    requests: Requests,
    worker_seconds: f64,
    started: Timestamp,
    sealed: Option<Timestamp>,
    ended: Option<Timestamp>,
    supersedes: Option<BatchId>,
    unlisted: usize,
}

impl BatchShape {
    /// Converts a batch. `unlisted` is the number of repositories and patterns that could not be listed.
    pub(super) fn of(view: &BatchView, unlisted: usize) -> BatchShape {
        let batch = &view.batch;
        // A list shows what it can; commands on a single batch report options that cannot be decoded.
        let options = Options::decode(&batch.options, "a batch").unwrap_or_default();
        let mut to: Vec<String> = options.rules.iter().flat_map(|rule| rule.to.iter().cloned()).collect();
        to.sort();
        to.dedup();
        BatchShape {
            batch: batch.id,
            priority: options.priority(),
            title: options.title,
            rules: options.rules.iter().map(|rule| rule.name.clone()).collect(),
            from: options.rules.into_iter().map(|rule| rule.from).collect(),
            to,
            state: view.state,
            owner: view.owner.clone(),
            resume: view.resume(),
            run: batch.run,
            counts: batch.counts,
            queued: batch.queued,
            retrying: batch.retrying,
            bytes: batch.spent.bytes,
            requests: batch.spent.requests,
            worker_seconds: batch.spent.time.as_secs_f64(),
            started: batch.created_at,
            sealed: batch.sealed_at,
            ended: batch.ended_at,
            supersedes: batch.supersedes,
            unlisted,
        }
    }
}

/// Timeline of a batch: outcomes over time, and the share of each worker.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CourseShape {
    batch: BatchId,
    /// Length of a part.
    part_seconds: f64,
    parts: Vec<PartShape>,
    slowest: Vec<SlowShape>,
    workers: Vec<ShareShape>,
}

#[derive(Debug, Clone, Serialize)]
struct PartShape {
    /// Start of the part, in lengths of a part after the start of the batch.
    number: u32,
    copied: u64,
    unchanged: u64,
    failed: u64,
    cancelled: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Serialize)]
struct SlowShape {
    index: u32,
    seconds: f64,
    bytes: u64,
    worker: String,
}

#[derive(Debug, Clone, Serialize)]
struct ShareShape {
    worker: String,
    ended: u64,
    failed: u64,
    bytes: u64,
    seconds: f64,
}

impl CourseShape {
    pub(super) fn of(batch: BatchId, course: Course) -> CourseShape {
        let part = |part: imgsync_common::store::Part| PartShape {
            number: part.number,
            copied: part.copied,
            unchanged: part.unchanged,
            failed: part.failed,
            cancelled: part.cancelled,
            bytes: part.bytes,
        };
        let slow = |slow: imgsync_common::store::Slow| SlowShape {
            index: slow.index,
            seconds: slow.time.as_secs_f64(),
            bytes: slow.bytes,
            worker: slow.worker,
        };
        let share = |share: imgsync_common::store::Share| ShareShape {
            worker: share.worker,
            ended: share.ended,
            failed: share.failed,
            bytes: share.bytes,
            seconds: share.time.as_secs_f64(),
        };
        CourseShape {
            batch,
            part_seconds: course.width.as_secs_f64(),
            parts: course.parts.into_iter().map(part).collect(),
            slowest: course.slowest.into_iter().map(slow).collect(),
            workers: course.shares.into_iter().map(share).collect(),
        }
    }
}

/// A task and its state.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TaskShape {
    pub(super) index: u32,
    source: String,
    target: String,
    state: TaskState,
    run: u32,
    pub(super) attempts: u32,
}

impl TaskShape {
    pub(super) fn of(row: &TaskRow) -> TaskShape {
        TaskShape {
            index: row.task.index,
            source: row.task.planned.source.to_string(),
            target: row.task.planned.target.to_string(),
            state: row.state,
            run: row.run,
            attempts: row.attempts,
        }
    }
}

/// Failures of a batch, grouped by error kind and registry.
#[derive(Debug, Clone, Serialize)]
pub(super) struct GroupsShape {
    pub(super) batch: BatchId,
    #[serde(flatten)]
    pub(super) groups: FailureGroups,
}
