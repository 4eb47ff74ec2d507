//! Events of tasks. Libraries never print: progress, terminal view, dashboard, metrics, logs and reports are built on
//! events.

use std::time::Duration;

use crate::batch::{TaskRef, TaskResult};

/// What happens to the tasks of a batch.
#[derive(Debug, Clone)]
pub enum TaskEvent {
    /// Tasks whose workers or messages were lost returned to the plan.
    Reclaimed {
        /// Tasks lost by their workers.
        from_workers: u64,
        /// Tasks lost by the queue.
        from_queue: u64,
    },
    /// The store was found to have lost writes that it had confirmed.
    WritesLost,
    /// A worker started a task.
    Started {
        /// The task.
        task: TaskRef,
        /// The source tag.
        source: String,
        /// The target tag.
        target: String,
    },
    /// A worker finished its work on a task.
    Ended {
        /// The task.
        task: TaskRef,
        /// How it ended.
        completion: TaskCompletion,
    },
}

/// How a worker's work on a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskCompletion {
    /// The ledger recorded a result.
    Finished {
        /// The result.
        result: TaskResult,
        /// Bytes of blobs transferred.
        bytes: u64,
        /// Bytes of blobs read from the source for this task: fewer where another task read them for both.
        read: u64,
    },
    /// The task failed with a transient error and is rescheduled.
    Rescheduled {
        /// The text, safe to print.
        error: String,
        /// Delay until the next attempt.
        wait: Duration,
    },
    /// The task went back to the queue: another worker has it, or may have it.
    Requeued,
    /// The ledger discarded the result: another worker has the task by now, or it had ended before.
    Stale,
}
