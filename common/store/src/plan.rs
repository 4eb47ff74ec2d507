//! Parts of a batch's plan, as they are added to the ledger and read from it.

use imgsync_model::batch::{ChunkMark, Task, TaskResult, TaskSpec};
use jiff::Timestamp;

/// The tasks of one repository, added to the plan once its listing is complete.
#[derive(Debug, Clone)]
pub struct PlanSegment {
    /// Identifies the repository within the batch: rule number and repository.
    pub key: String,
    /// When the repository was listed.
    pub listed_at: Timestamp,
    /// Its tasks in order. A task may already have a result: `Unchanged` if the listing shows it, `Failed` if it
    /// collides with another task.
    pub tasks: Vec<(TaskSpec, Option<TaskResult>)>,
}

/// Number of segments and tasks in a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlanSize {
    /// Segments.
    pub segments: u64,
    /// Tasks of all segments.
    pub tasks: u64,
}

/// Result of [`Ledger::complete_plan`](crate::Ledger::complete_plan).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanCompletion {
    /// The plan is complete.
    Complete,
    /// The store has lost acknowledged segments: the plan is smaller than expected and stays incomplete. Add what is
    /// missing, and complete it again.
    Incomplete(PlanSize),
}

/// A chunk of the plan with tasks to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanBlock {
    /// Index of the first task of the chunk. Continue with the next index.
    pub first: u32,
    /// When its tasks were listed.
    pub listed_at: Timestamp,
    /// Mark of the chunk for the messages of its tasks. `None` in a store that loses no writes.
    pub mark: Option<ChunkMark>,
    /// Tasks to be published, each with its run, in the form that
    /// [`Message::for_tasks`](imgsync_model::batch::Message::for_tasks) accepts.
    pub tasks: Vec<(u32, Task)>,
}
