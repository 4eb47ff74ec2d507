//! The ledger: batches, their plans, and where each task stands.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Course, Pruned};
use crate::batch::{BatchId, Bytes, Counts, Failure, Planned, Requests, Task, TaskState, Ticket, Verdict};
use crate::error::{Class, Error, Result};
use crate::image::{Digest, RegistryName};
use crate::printable::printable;

/// How long a lease holds unless it is renewed. Renew it three times as often.
pub const LEASE: Duration = Duration::from_secs(30);

/// A batch in the making.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Its id.
    pub id: BatchId,
    /// A digest over its rules: batches of the same rules supersede each other.
    pub rules: Digest,
    /// What workers need to know of the rules, by their numbers. JSON; never a secret.
    pub options: String,
    /// The unfinished batch that it takes the place of.
    pub supersedes: Option<BatchId>,
}

/// What is to become of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// It goes on.
    Running,
    /// No task is begun until it is resumed.
    Paused,
    /// It was stopped.
    Cancelled,
    /// A later batch of the same rules took its place.
    Superseded,
    /// Every task has ended, and no more will come.
    Done,
}

/// The tasks of a repository whose listing ended.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// Names the repository within the batch: the rule's number and the repository.
    pub key: String,
    /// When it was listed.
    pub listed_at: Timestamp,
    /// Its tasks in order, each with its end if it has one already: `Unchanged` if the listing settled it, `Failed` if it
    /// collides with another.
    pub tasks: Vec<(Planned, Option<Verdict>)>,
}

/// What became of a [`Sealed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is in the plan; its tasks have the indexes from this one on.
    At(u32),
    /// It was in the plan before.
    Already,
    /// The batch takes no more.
    Stopped(Control),
}

/// A part of the plan whose tasks are to be given to the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The index at which the part begins. Go on from the next.
    pub first: u32,
    /// When its tasks were listed.
    pub listed_at: Timestamp,
    /// Those that are to be published, each with its run, as [`Message::for_tasks`](crate::batch::Message::for_tasks)
    /// takes them.
    pub tasks: Vec<(u32, Task)>,
}

/// Who holds the lease of a task: a worker, under the fencing token that [`Ledger::start`] gave it. Both are compared, so
/// that a store that was set back and issues a token again does not take one worker for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskHolder<'a> {
    /// The worker's name, which only one process has.
    pub worker: &'a str,
    /// The fencing token.
    pub token: u64,
}

/// The answer to who wants to begin a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// It is yours, under this epoch: acknowledge. Should you end, the lease does, and a sweep puts the task back.
    Go {
        /// Names the lease in all that follows.
        epoch: u64,
        /// How many attempts were counted before.
        attempts: u32,
        /// How often it was lost in this run: its lease ran out under a worker, and another took it over or a sweep put
        /// it back. A task that ends its workers is known by that.
        losses: u32,
    },
    /// You hold it already, under this epoch: it was delivered twice. If you are at work on it, give this delivery back for
    /// a while; else go on with it as with `Go`.
    Own {
        /// Names the lease.
        epoch: u64,
        /// How many attempts were counted before.
        attempts: u32,
    },
    /// It has ended: acknowledge.
    AlreadyDone,
    /// Its batch was cancelled or superseded, and it is counted: acknowledge.
    Cancelled,
    /// Another worker is at it: give the delivery back until its lease must have ended.
    HeldBy {
        /// When that is.
        until: Timestamp,
    },
    /// It was requeued since: acknowledge.
    StaleRun,
    /// Its batch is paused, and it went back to the plan: acknowledge.
    Paused,
    /// There is no such task: acknowledge, and say that the store has lost its batch.
    Unknown,
}

/// Whether a lease holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does, until then.
    Held {
        /// When it ends unless it is renewed.
        until: Timestamp,
    },
    /// The task is another's, or has ended: stop, write nothing.
    Lost,
    /// The batch was cancelled or superseded, and the task is counted as cancelled: stop, write nothing.
    Stop,
}

/// What became of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// It counts.
    Counted,
    /// The lease was another's by now, or the batch was stopped meanwhile: it does not count.
    Stale,
    /// The task had ended before: it does not count.
    AlreadyDone,
}

/// What became of a task that is to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// It waits; so many attempts are counted by now.
    Waits {
        /// This one included if it counts.
        attempts: u32,
    },
    /// The lease was another's by now, or the task has ended: nothing changed.
    Stale,
}

/// What some work cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Bytes of blobs.
    pub bytes: Bytes,
    /// Requests.
    pub requests: Requests,
    /// Time that workers were at it, to the millisecond.
    pub time: Duration,
}

/// Selects the failed tasks to try again: those that match every field that is set. The default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequeueFilter {
    /// Selects tasks that failed with this class.
    pub class: Option<Class>,
    /// Selects tasks with this registry as source or target.
    pub registry: Option<RegistryName>,
}

impl RequeueFilter {
    /// Whether the filter selects a failed task.
    pub fn selects(&self, failed: &FailedTask) -> bool {
        let planned = &failed.task.planned;
        let endpoints = [planned.source.home.end(), planned.target.home.end()];
        self.class.is_none_or(|class| failed.failure.class == class)
            && self
                .registry
                .as_ref()
                .is_none_or(|registry| endpoints.into_iter().any(|endpoint| endpoint.registry() == Some(registry)))
    }
}

/// How much to put back into the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// Tasks whose lease ended this long ago.
    Leases {
        /// How long.
        grace: Duration,
    },
    /// These too: what waits in a queue that was seen to be empty, and retries that were due this long ago.
    QueueIsEmpty {
        /// How long.
        grace: Duration,
    },
    /// All that has not ended: nobody else works with this store, and the queue is gone. None of it counts as lost.
    Everything,
}

/// What a sweep put back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Tasks that were leased.
    pub leased: u64,
    /// Tasks that were with the queue.
    pub queued: u64,
}

/// How a batch stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its id.
    pub id: BatchId,
    /// What is to become of it.
    pub control: Control,
    /// How often tasks of it were requeued.
    pub run: u32,
    /// The digest over its rules.
    pub rules: Digest,
    /// As it was made with.
    pub options: String,
    /// The batch that it took the place of.
    pub supersedes: Option<BatchId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its total became final.
    pub sealed_at: Option<Timestamp>,
    /// When its last task ended.
    pub ended_at: Option<Timestamp>,
    /// Its tasks.
    pub counts: Counts,
    /// Of those that wait, how many are with the queue.
    pub queued: u64,
    /// Of those that wait, how many wait for their time to be tried again.
    pub retrying: u64,
    /// What it cost.
    pub spent: Spent,
}

/// A rule that chose no tag, though all that it reads was listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptyRule {
    /// Its place among the rules.
    pub rule: u32,
    /// What it reads.
    pub from: String,
    /// Repositories that were listed.
    pub repositories: u64,
    /// Tags that were listed in them.
    pub tags: u64,
    /// Why none was chosen: how many were dropped at which stage. Safe to print.
    pub reason: String,
}

/// A repository, or a pattern of them, that could not be listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlisted {
    /// Which.
    pub repository: String,
    /// What kind of failure it was.
    pub class: Class,
    /// In words, safe to print.
    pub error: String,
}

/// A task that failed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedTask {
    /// The task. Its digest is not kept for all.
    pub task: Task,
    /// Why.
    pub failure: Failure,
}

/// A task and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRow {
    /// The task. The digests of those that the listing settled stand in the digest cache only.
    pub task: Task,
    /// Where it stands.
    pub state: TaskState,
    /// Its run.
    pub run: u32,
    /// How many attempts were counted in this run.
    pub attempts: u32,
}

/// Batches, their plans, and where each task stands.
///
/// # Contract
/// - **Task states move here only**, and the counters in the same step: at all times, for every reader, the counts of a
///   batch add up to its total, and agree with the states of its tasks.
/// - **Each task is counted once**, though it may be delivered, started and finished many times: only who holds the lease,
///   as the worker and under the token that it was given to, moves it. Tokens of a task only grow, and are never below
///   the store's time in microseconds. The lease decides, never what the queue says of redelivery.
/// - **What was answered is kept**: a call that returned has been written down, and outlives a kill of the process. A call
///   that fails or is dropped may have been; every call may be made again.
/// - A lease that has run out is still its holder's until another takes it or a sweep puts the task back.
/// - A batch ends by itself when it is sealed and its last task has ended: then it is [`Control::Done`], or stays cancelled
///   or superseded, and has an `ended_at`.
/// - Calls about a batch that is not there fail with [`Class::NotFound`], where their answer has no word for it.
/// - What [`Ledger::course`] tells is added up in the same steps as the counters: a call that does not count leaves no trace
///   in it.
/// - The store's own clock is asked for the time.
#[async_trait]
pub trait Ledger: Send + Sync {
    // The plan.

    /// Makes a batch. What it supersedes is stopped in the same step, as by [`Ledger::cancel`]. Made again, it stays as it
    /// is.
    async fn create(&self, batch: NewBatch) -> Result<()>;

    /// Adds the tasks of a repository to the plan, all or none. They may be begun at once. A repository that is in the
    /// plan already, by its key, is left as it is.
    async fn append(&self, batch: BatchId, sealed: Sealed) -> Result<Appended>;

    /// The keys of the repositories in the plan: a listing that was broken off goes on without these.
    async fn sealed(&self, batch: BatchId) -> Result<Vec<String>>;

    /// Notes that a repository could not be listed; the last word on it stays.
    async fn note_unlisted(&self, batch: BatchId, unlisted: Unlisted) -> Result<()>;

    /// Notes what became of a target tag whose source is gone, also after the batch has ended; the last word on it stays.
    async fn note_pruned(&self, batch: BatchId, pruned: Pruned) -> Result<()>;

    /// Notes that a rule chose no tag at all; the last word on it stays.
    async fn note_empty_rule(&self, batch: BatchId, rule: EmptyRule) -> Result<()>;

    /// Notes that a batch's end was told, in words of who tells: to whom, or that all is told.
    async fn note_told(&self, batch: BatchId, told: &str) -> Result<()>;

    /// What was noted of whom a batch's end was told to, in order.
    async fn told(&self, batch: BatchId) -> Result<Vec<String>>;

    /// The total is final.
    async fn seal_all(&self, batch: BatchId) -> Result<()>;

    /// Adds what was spent on listing. It counts once, however often the store had to be asked.
    async fn spend(&self, batch: BatchId, spent: Spent) -> Result<()>;

    /// Tasks to be published, from an index on: whole parts of the plan, as many as give this number of tasks, and one at
    /// least if there is any. None of a batch that is not running.
    async fn unpublished(&self, batch: BatchId, from: u32, at_least: usize) -> Result<Vec<Block>>;

    /// The queue has confirmed these. Not changed are those that moved on, or were requeued since.
    async fn published(&self, batch: BatchId, tickets: Vec<Ticket>) -> Result<()>;

    // Tasks.

    /// A worker wants to begin a task, and to hold it for so long at first. Worker names are of one process each.
    async fn start(&self, ticket: Ticket, worker: &str, lease: Duration) -> Result<Start>;

    /// Holds on to a task for so long from now.
    async fn renew(&self, ticket: Ticket, holder: TaskHolder<'_>, lease: Duration) -> Result<Standing>;

    /// Asked right before a tag is put; holds on to the task as well.
    async fn check(&self, ticket: Ticket, holder: TaskHolder<'_>, lease: Duration) -> Result<Standing> {
        self.renew(ticket, holder, lease).await
    }

    /// A task has ended.
    async fn finish(&self, ticket: Ticket, holder: TaskHolder<'_>, verdict: Verdict, spent: Spent) -> Result<Finished>;

    /// Puts a task off. With a wait it is a retry: publish its message for as long first, so that a worker that ends in
    /// between leaves a task that is held and a message that is absorbed. Without one it goes back to the plan, and who
    /// leads the batch publishes it. `counts` says whether this was an attempt.
    async fn retry_later(
        &self,
        ticket: Ticket,
        holder: TaskHolder<'_>,
        wait: Duration,
        counts: bool,
        spent: Spent,
    ) -> Result<Retried>;

    // Control.

    /// What is to become of a batch; none if there is no such batch. Cheap: asked every second or so.
    async fn control(&self, batch: BatchId) -> Result<Option<Control>>;

    /// How many tasks of a batch may be published now: none of one that is not running. Cheap: asked many times a second.
    async fn publishable(&self, batch: BatchId) -> Result<u64>;

    /// Where some tasks stand. Cheap for tasks that are near to each other: asked many times a second.
    async fn states(&self, batch: BatchId, tasks: &[u32]) -> Result<Vec<TaskState>>;

    /// No task is begun from now on. Says how the batch stands then: one that has ended stays as it is.
    async fn pause(&self, batch: BatchId) -> Result<Control>;

    /// Goes on after a pause. Says how the batch stands then.
    async fn resume(&self, batch: BatchId) -> Result<Control>;

    /// Stops a batch: all that has not ended counts as cancelled, and the batch has ended. Of a task that runs nothing more
    /// is counted, and its worker is told when it asks. Says how the batch stands then.
    async fn cancel(&self, batch: BatchId) -> Result<Control>;

    /// Failed tasks go back to the plan, in a new run and with no attempts counted. Says how many. A batch that was done
    /// is running again; one that was cancelled or superseded is refused as [`Class::Invalid`].
    async fn requeue(&self, batch: BatchId, filter: RequeueFilter) -> Result<u64>;

    /// Puts back what was lost between.
    async fn sweep(&self, batch: BatchId, sweep: Sweep) -> Result<Swept>;

    /// Removes batches that were made before, have ended or were left unfinished, and are held by nobody. Says how many.
    async fn remove_before(&self, time: Timestamp) -> Result<u64>;

    // Looking.

    /// How a batch stands.
    async fn batch(&self, batch: BatchId) -> Result<Option<Batch>>;

    /// How batches stand, newest first.
    async fn batches(&self, limit: usize) -> Result<Vec<Batch>>;

    /// The newest batch of these rules that is running or paused.
    async fn unfinished(&self, rules: &Digest) -> Result<Option<BatchId>>;

    /// Batches whose ids begin so, newest first, a few at most.
    async fn find(&self, prefix: &str) -> Result<Vec<BatchId>>;

    /// What could not be listed.
    async fn unlisted(&self, batch: BatchId) -> Result<Vec<Unlisted>>;

    /// Rules that chose no tag at all, in their order.
    async fn empty_rules(&self, batch: BatchId) -> Result<Vec<EmptyRule>>;

    /// What became of target tags whose sources are gone, in the order of outcome and target.
    async fn pruned(&self, batch: BatchId) -> Result<Vec<Pruned>>;

    /// Tasks that failed, from an index on.
    async fn failures(&self, batch: BatchId, from: u32, limit: usize) -> Result<Vec<FailedTask>>;

    /// Tasks, of one state or all, from an index on.
    async fn tasks(&self, batch: BatchId, state: Option<TaskState>, from: u32, limit: usize) -> Result<Vec<TaskRow>>;

    /// How a batch went.
    async fn course(&self, batch: BatchId) -> Result<Course>;

    /// The one batch whose id begins so.
    async fn resolve(&self, prefix: &str) -> Result<BatchId> {
        let found = self.find(prefix).await?;
        let tried = format!("looking for batch {}", printable(prefix));
        match found.as_slice() {
            [one] => Ok(*one),
            [] => Err(Error::new(Class::NotFound, tried, "there is none whose id begins so")
                .hint("imgsync batch list shows those that there are")),
            several => {
                let ids: Vec<_> = several.iter().map(BatchId::to_string).collect();
                Err(Error::new(Class::Invalid, tried, format!("several ids begin so: {}", ids.join(", "))))
            }
        }
    }
}

impl Control {
    /// All of them, in the order of their codes.
    pub const ALL: [Control; 5] =
        [Control::Running, Control::Paused, Control::Cancelled, Control::Superseded, Control::Done];

    /// As it is written in JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Control::Running => "running",
            Control::Paused => "paused",
            Control::Cancelled => "cancelled",
            Control::Superseded => "superseded",
            Control::Done => "done",
        }
    }

    /// Whether its tasks are to stop.
    pub fn is_stopped(self) -> bool {
        matches!(self, Control::Cancelled | Control::Superseded)
    }

    /// Whether there may be something to do still.
    pub fn is_live(self) -> bool {
        matches!(self, Control::Running | Control::Paused)
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Spent) {
        self.bytes += other.bytes;
        self.requests += other.requests;
        self.time += other.time;
    }
}
