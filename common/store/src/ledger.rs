//! The ledger: batches, their plans, and the state of each task.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::plan::{PlanBlock, PlanCompletion, PlanSegment, PlanSize};
use super::{BatchTimeline, Fence, PruneRecord, StoreReplication};
use imgsync_model::batch::{
    BatchId, BlobBytes, ChunkMark, Failure, RequestCounts, Task, TaskCounts, TaskRef, TaskResult, TaskState,
};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{Digest, RegistryName};

/// TTL of a lease. Renew it three times per TTL.
pub const LEASE_TTL: Duration = Duration::from_secs(30);

/// A batch to be created.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Batch id.
    pub id: BatchId,
    /// Digest of its rules. Batches of the same rules supersede each other.
    pub rules: Digest,
    /// Rule options for the workers, by rule number. JSON without secrets.
    pub options: String,
    /// The unfinished batch that this one replaces.
    pub supersedes: Option<BatchId>,
    /// The lease under which it is created, unless another one excludes others. If it is lost, nothing is created.
    pub fence: Option<Fence>,
}

/// State of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    /// Tasks are published and started.
    Running,
    /// No task starts until the batch is resumed.
    Paused,
    /// Stopped by a user.
    Cancelled,
    /// Replaced by a later batch of the same rules.
    Superseded,
    /// All tasks have ended and the plan is complete.
    Done,
}

/// Result of [`Ledger::append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendResult {
    /// Added to the plan. The tasks have consecutive indexes from this one on.
    Appended(u32),
    /// Already in the plan.
    AlreadyPlanned,
    /// The batch accepts no more tasks; its state.
    Closed(BatchState),
}

/// The holder of a task's lease: a worker and the fencing token from [`Ledger::claim_task`]. The store compares both,
/// so that a store restored from a backup, which may issue a token twice, does not mistake one worker for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskHolder<'a> {
    /// Worker name, unique to one process.
    pub worker: &'a str,
    /// Fencing token.
    pub token: u64,
}

/// Result of claiming a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimResult {
    /// Claimed: acknowledge the delivery. If the worker dies, its lease expires and the leader returns the task to the
    /// plan.
    Claimed {
        /// Fencing token of the lease.
        token: u64,
        /// Attempts counted so far.
        attempts: u32,
        /// Lost leases in this run: a lease expired, and another worker or the leader took the task. Identifies tasks
        /// that crash their workers.
        losses: u32,
    },
    /// This worker already holds the task: a redelivery. If it is running, return the delivery with a delay; else
    /// continue as with `Claimed`.
    AlreadyOwned {
        /// Fencing token of the lease.
        token: u64,
        /// Attempts counted so far.
        attempts: u32,
    },
    /// The task has ended: acknowledge.
    AlreadyDone,
    /// The batch was cancelled or superseded, and the task is counted as cancelled: acknowledge.
    Cancelled,
    /// Another worker holds the lease: return the delivery with a delay until the lease expires.
    HeldBy {
        /// Expiry of that lease.
        until: Timestamp,
    },
    /// The task was requeued since this message was published: acknowledge.
    StaleRun,
    /// The store has lost the task that the message is about, and may have another one at its index: acknowledge. The
    /// coordinator that lists the batch adds the lost task again.
    NotInPlan,
    /// The batch is paused, and the task went back to the plan: acknowledge.
    Paused,
    /// Unknown task: acknowledge, and report that the store has lost the batch.
    Unknown,
}

/// Status of a task's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseStatus {
    /// Held and renewed.
    Held {
        /// Expiry unless renewed.
        until: Timestamp,
    },
    /// Another worker holds the task, or it has ended: stop, write nothing.
    Lost,
    /// The batch was cancelled or superseded, and the task is counted as cancelled: stop, write nothing.
    BatchStopped,
}

/// Result of [`Ledger::finish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReply {
    /// The result was recorded and counted.
    Counted,
    /// Not counted: another worker holds the lease, or the batch was stopped.
    Stale,
    /// Not counted: the task has already ended.
    AlreadyDone,
}

/// Result of [`Ledger::reschedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RescheduleReply {
    /// Rescheduled.
    Scheduled {
        /// Attempts counted so far, including this one if it counts.
        attempts: u32,
    },
    /// Nothing changed: another worker holds the lease, or the task has ended.
    Stale,
}

/// Bytes, requests and time used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of blobs.
    pub bytes: BlobBytes,
    /// Requests to registries.
    pub requests: RequestCounts,
    /// Time that workers spent, to the millisecond.
    pub time: Duration,
}

/// Selects failed tasks to requeue: those that match every field that is set. The default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequeueFilter {
    /// Matches tasks that failed with this kind of error.
    pub kind: Option<ErrorKind>,
    /// Matches tasks with this registry as source or target.
    pub registry: Option<RegistryName>,
}

impl RequeueFilter {
    /// Returns whether the filter matches a failed task.
    pub fn selects(&self, failed: &FailedTask) -> bool {
        let planned = &failed.task.spec;
        let endpoints = [planned.source.repository.endpoint(), planned.target.repository.endpoint()];
        self.kind.is_none_or(|kind| failed.failure.kind == kind)
            && self
                .registry
                .as_ref()
                .is_none_or(|registry| endpoints.into_iter().any(|endpoint| endpoint.registry() == Some(registry)))
    }
}

/// Which tasks [`Ledger::reclaim`] returns to the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReclaimScope {
    /// Tasks whose lease expired at least this long ago.
    ExpiredLeases {
        /// Grace period.
        grace: Duration,
    },
    /// Expired leases, tasks whose messages are missing from an empty queue, and retries overdue by this long.
    EmptyQueue {
        /// Grace period.
        grace: Duration,
    },
    /// All unfinished tasks: no other process uses this store, and the queue is gone. None counts as a lost lease.
    Everything,
}

/// Number of tasks that [`Ledger::reclaim`] returned to the plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Tasks with a lease.
    pub leased: u64,
    /// Tasks that were queued.
    pub queued: u64,
}

/// A batch: state, counters and usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Batch id.
    pub id: BatchId,
    /// Current state.
    pub state: BatchState,
    /// Number of times that failed tasks were requeued.
    pub run: u32,
    /// Digest of its rules.
    pub rules: Digest,
    /// Rule options, as in [`NewBatch::options`].
    pub options: String,
    /// The batch that this one replaced.
    pub supersedes: Option<BatchId>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its plan was complete and its total final.
    pub plan_completed_at: Option<Timestamp>,
    /// When its last task ended.
    pub ended_at: Option<Timestamp>,
    /// Task counts.
    pub counts: TaskCounts,
    /// Waiting tasks that are in the queue.
    pub queued: u64,
    /// Waiting tasks that are due for a retry later.
    pub retrying: u64,
    /// Bytes, requests and time used.
    pub usage: Usage,
}

/// A rule that selected no tag although its sources were listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptyRule {
    /// Rule number.
    pub rule: u32,
    /// The sources that the rule reads.
    pub from: String,
    /// Number of repositories listed.
    pub repositories: u64,
    /// Number of tags listed.
    pub tags: u64,
    /// Why no tag was selected: tags dropped per stage. Safe to print.
    pub reason: String,
}

/// A repository, or a pattern of repositories, that could not be listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListingFailure {
    /// Repository or pattern.
    pub repository: String,
    /// Kind of error.
    pub kind: ErrorKind,
    /// Error message, safe to print.
    pub error: String,
}

/// Numbers of records of a batch besides its tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// Repositories and patterns that could not be listed.
    pub unlisted: u64,
    /// Prune records.
    pub pruned: u64,
}

/// A failed task and its error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedTask {
    /// The task. Not every store keeps its digest.
    pub task: Task,
    /// The error.
    pub failure: Failure,
}

/// A task with its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRow {
    /// The task. The digests of tasks that the listing shows as unchanged are only in the digest cache.
    pub task: Task,
    /// Current state.
    pub state: TaskState,
    /// Run number.
    pub run: u32,
    /// Attempts counted in this run.
    pub attempts: u32,
}

/// Batches, their plans, and the state of each task.
///
/// # Contract
/// - **Only the ledger moves task states**, and it moves the counters in the same step: every reader always sees counts
///   that add up to the total and agree with the states.
/// - **Each task is counted once**, however often it is delivered, started and finished: only the holder of its lease,
///   by worker name and fencing token, moves it. The tokens of a task only grow, and are never below the store's time
///   in microseconds. The lease decides, not the queue's redelivery flag.
/// - **Acknowledged writes are durable**: a call that returned survives a kill of the process. A call that fails or is
///   dropped may have taken effect; every call may be repeated.
/// - An expired lease stays valid until another worker or [`Ledger::reclaim`] takes the task.
/// - A batch ends when its plan is complete and its last task has ended: it becomes [`BatchState::Done`], or stays
///   cancelled or superseded, and gets an `ended_at`.
/// - Calls about an unknown batch fail with [`ErrorKind::NotFound`] unless their result type has a variant for it.
/// - [`Ledger::timeline`] changes in the same steps as the counters: a call that does not count leaves no trace in it.
/// - All times are those of the store's own clock.
#[async_trait]
pub trait Ledger: Send + Sync {
    // Plan.

    /// Creates a batch and, in the same step, stops the batch that it supersedes as [`Ledger::cancel`] does. Repeating
    /// the call changes nothing.
    ///
    /// # Errors
    /// `Unreachable` if the lease of its fence is lost.
    async fn create(&self, batch: NewBatch) -> Result<()>;

    /// Adds the tasks of a repository to the plan, all or none. They may start at once. A repository whose key is
    /// already in the plan is left unchanged.
    async fn append(&self, batch: BatchId, segment: PlanSegment) -> Result<AppendResult>;

    /// Returns the keys of the repositories in the plan. An interrupted listing resumes without these.
    async fn segment_keys(&self, batch: BatchId) -> Result<Vec<String>>;

    /// Records that a repository could not be listed. The last record of a repository wins.
    async fn record_listing_failure(&self, batch: BatchId, unlisted: ListingFailure) -> Result<()>;

    /// Records the prune outcome of a target tag whose source is gone, also after the batch has ended. The last record
    /// of a tag wins.
    async fn record_pruned(&self, batch: BatchId, pruned: PruneRecord) -> Result<()>;

    /// Records that a rule selected no tag. The last record of a rule wins.
    async fn record_empty_rule(&self, batch: BatchId, rule: EmptyRule) -> Result<()>;

    /// Records that a notification of the batch's end was sent, as a string of the caller's choice: one target, or all
    /// of them.
    async fn record_notification(&self, batch: BatchId, target: &str) -> Result<()>;

    /// Returns the recorded notifications in order.
    async fn sent_notifications(&self, batch: BatchId) -> Result<Vec<String>>;

    /// Marks the plan as complete, which makes the total final, unless the store has fewer segments or tasks than
    /// `at_least`: those whose [`Ledger::append`] was acknowledged, and those found there when listing began.
    async fn complete_plan(&self, batch: BatchId, at_least: PlanSize) -> Result<PlanCompletion>;

    /// Adds the usage of a listing. It counts once, however often the call to the store was retried.
    async fn add_usage(&self, batch: BatchId, usage: Usage) -> Result<()>;

    /// Returns tasks to be published from an index on, in whole chunks: as many as hold this number of tasks, and at
    /// least one if there is any. None if the batch is not running.
    async fn list_unpublished(&self, batch: BatchId, from: u32, at_least: usize) -> Result<Vec<PlanBlock>>;

    /// Marks tasks as published, after the queue has confirmed them. Skips tasks that moved on or were requeued since.
    async fn mark_published(&self, batch: BatchId, task_refs: Vec<TaskRef>) -> Result<()>;

    // Tasks.

    /// Claims a task for a worker, with a lease of this TTL. A worker name belongs to one process. With the mark of a
    /// chunk, from the message, only a task of that chunk is claimed.
    async fn claim_task(
        &self,
        task_ref: TaskRef,
        chunk: Option<ChunkMark>,
        worker: &str,
        lease: Duration,
    ) -> Result<ClaimResult>;

    /// Renews the lease of a task for this TTL from now.
    async fn renew(&self, task_ref: TaskRef, holder: TaskHolder<'_>, lease: Duration) -> Result<LeaseStatus>;

    /// Checks and renews the lease of a task right before a tag is put.
    async fn check(&self, task_ref: TaskRef, holder: TaskHolder<'_>, lease: Duration) -> Result<LeaseStatus> {
        self.renew(task_ref, holder, lease).await
    }

    /// Records the result of a task.
    async fn finish(
        &self,
        task_ref: TaskRef,
        holder: TaskHolder<'_>,
        result: TaskResult,
        usage: Usage,
    ) -> Result<FinishReply>;

    /// Reschedules a task. With a delay it is a retry: publish its delayed message first, so that a worker that dies in
    /// between leaves a held task and a message that is absorbed. Without a delay the task returns to the plan, and the
    /// leader of the batch publishes it. `counts` says whether this was an attempt.
    async fn reschedule(
        &self,
        task_ref: TaskRef,
        holder: TaskHolder<'_>,
        wait: Duration,
        counts: bool,
        usage: Usage,
    ) -> Result<RescheduleReply>;

    // Batch state.

    /// Returns the state of a batch, or `None` if the batch is unknown. Cheap: called about once a second.
    async fn batch_state(&self, batch: BatchId) -> Result<Option<BatchState>>;

    /// Returns how many tasks of a batch may be published now: none unless it is running. Cheap: called many times a
    /// second.
    async fn count_publishable(&self, batch: BatchId) -> Result<u64>;

    /// Returns the states of tasks. Cheap for tasks with nearby indexes: called many times a second.
    async fn task_states(&self, batch: BatchId, tasks: &[u32]) -> Result<Vec<TaskState>>;

    /// Pauses a batch: no task starts from now on. Returns the state afterwards; a batch that has ended keeps its
    /// state.
    async fn pause(&self, batch: BatchId) -> Result<BatchState>;

    /// Resumes a paused batch. Returns the state afterwards.
    async fn resume(&self, batch: BatchId) -> Result<BatchState>;

    /// Cancels a batch: all unfinished tasks count as cancelled, and the batch has ended. Running tasks are no longer
    /// counted; their workers learn of it when they renew or check. Returns the state afterwards.
    async fn cancel(&self, batch: BatchId) -> Result<BatchState>;

    /// Requeues failed tasks: they return to the plan in a new run with no attempts counted. Returns their number. A
    /// finished batch is running again; one that was cancelled or superseded fails with [`ErrorKind::Invalid`].
    async fn requeue(&self, batch: BatchId, filter: RequeueFilter) -> Result<u64>;

    /// Returns lost tasks to the plan.
    async fn reclaim(&self, batch: BatchId, scope: ReclaimScope) -> Result<Reclaimed>;

    /// Removes batches created before a time that have ended or were left unfinished and have no held task. Returns
    /// their number.
    async fn remove_before(&self, time: Timestamp) -> Result<u64>;

    // Queries.

    /// Counts the batches whose last task or plan this process has ended: a hint to read a batch again, not a promise.
    /// `None` if workers in other processes end them.
    fn ended_batches(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// Returns whether the store has replicas, so that a failover may lose confirmed writes.
    fn has_replicas(&self) -> bool {
        false
    }

    /// Returns what is known of the servers of the store; `None` if it has only this machine.
    async fn replication(&self) -> Result<Option<StoreReplication>> {
        Ok(None)
    }

    /// Starts to watch for lost writes if the store may lose some.
    fn watch_for_write_losses(&self) {}

    /// Counts how often the store was found to have lost writes that it had confirmed, as after a failover. `None` in a
    /// store that loses none.
    fn write_losses(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// Returns a batch.
    async fn batch(&self, batch: BatchId) -> Result<Option<Batch>>;

    /// Returns batches, newest first.
    async fn batches(&self, limit: usize) -> Result<Vec<Batch>> {
        self.batches_before(None, limit).await
    }

    /// Returns batches older than this one, newest first; the newest ones if `None`. The batch need not exist.
    async fn batches_before(&self, before: Option<BatchId>, limit: usize) -> Result<Vec<Batch>>;

    /// Returns the newest batches of each of these rules, at most `each`, in one read: in the order of the rules, newest
    /// first. With `before`, only batches older than that one.
    async fn newest_batches(&self, rules: &[Digest], before: Option<BatchId>, each: usize) -> Result<Vec<Batch>>;

    /// Returns the newest batch of these rules that is running or paused.
    async fn find_unfinished(&self, rules: &Digest) -> Result<Option<BatchId>>;

    /// Returns batches by id prefix, newest first, at most a few.
    async fn find_batches(&self, prefix: &str) -> Result<Vec<BatchId>>;

    /// Counts the records of several batches in one read, in their order: none for a batch that does not exist.
    async fn count_records(&self, batches: &[BatchId]) -> Result<Vec<RecordCounts>>;

    /// Returns the repositories that could not be listed.
    async fn listing_failures(&self, batch: BatchId) -> Result<Vec<ListingFailure>>;

    /// Returns the rules that selected no tag, in order.
    async fn empty_rules(&self, batch: BatchId) -> Result<Vec<EmptyRule>>;

    /// Returns the prune outcomes of target tags, ordered by outcome and target.
    async fn prune_records(&self, batch: BatchId) -> Result<Vec<PruneRecord>>;

    /// Returns failed tasks from an index on.
    async fn failures(&self, batch: BatchId, from: u32, limit: usize) -> Result<Vec<FailedTask>>;

    /// Returns tasks of one state, or of all, from an index on.
    async fn tasks(&self, batch: BatchId, state: Option<TaskState>, from: u32, limit: usize) -> Result<Vec<TaskRow>>;

    /// Returns the timeline of a batch.
    async fn timeline(&self, batch: BatchId) -> Result<BatchTimeline>;

    /// Returns the one batch with this id prefix.
    async fn resolve(&self, prefix: &str) -> Result<BatchId> {
        let found = self.find_batches(prefix).await?;
        let operation = format!("looking for batch {}", sanitize(prefix));
        match found.as_slice() {
            [one] => Ok(*one),
            [] => Err(Error::new(ErrorKind::NotFound, operation, "no batch id starts with it")
                .with_hint("`imgsync batch list` lists the batches")),
            several => {
                let ids: Vec<_> = several.iter().map(BatchId::to_string).collect();
                Err(Error::new(
                    ErrorKind::Invalid,
                    operation,
                    format!("several batch ids start with it: {}", ids.join(", ")),
                ))
            }
        }
    }
}

impl BatchState {
    /// All states in the order of their codes.
    pub const ALL: [BatchState; 5] =
        [BatchState::Running, BatchState::Paused, BatchState::Cancelled, BatchState::Superseded, BatchState::Done];

    /// Returns the name used in JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            BatchState::Running => "running",
            BatchState::Paused => "paused",
            BatchState::Cancelled => "cancelled",
            BatchState::Superseded => "superseded",
            BatchState::Done => "done",
        }
    }

    /// Returns whether its tasks must stop.
    pub fn is_stopped(self) -> bool {
        matches!(self, BatchState::Cancelled | BatchState::Superseded)
    }

    /// Returns whether tasks may still be left to do.
    pub fn is_live(self) -> bool {
        matches!(self, BatchState::Running | BatchState::Paused)
    }
}

const START_LEASE_LOST: &str = "this process was suspended or cut off from the store for too long: another one may have created a \
                                batch of the same rules meanwhile";

/// Returns the error of a batch that is not created, because the lease that excludes others was lost.
pub(crate) fn start_lease_lost(batch: BatchId) -> Error {
    Error::new(ErrorKind::Unreachable, format!("creating batch {batch}"), START_LEASE_LOST)
        .with_hint("run the rules again")
}

/// Whether a batch was not created because the lease that excludes others was lost: it can be created anew, if nobody
/// else has done so.
pub fn is_start_lease_lost(error: &Error) -> bool {
    error.message() == START_LEASE_LOST
}

impl fmt::Display for BatchState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.bytes += other.bytes;
        self.requests += other.requests;
        self.time += other.time;
    }
}
