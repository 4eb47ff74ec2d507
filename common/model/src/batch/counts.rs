//! Totals of a batch, as `run --json` prints them.

use serde::{Deserialize, Serialize};

use super::TaskState;

/// Number of tasks by state. `total` is always the sum of all other fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCounts {
    /// All tasks; final once the plan is complete.
    pub total: u64,
    /// Not started, or waiting for a retry.
    pub waiting: u64,
    /// Running on a worker.
    pub running: u64,
    /// Copied.
    pub copied: u64,
    /// Up to date at the target.
    pub unchanged: u64,
    /// Failed permanently.
    pub failed: u64,
    /// Cancelled on request.
    pub cancelled: u64,
}

impl TaskCounts {
    /// Sums the number of tasks in each state.
    pub fn from_states(in_state: impl Fn(TaskState) -> u64) -> TaskCounts {
        let mut counts = TaskCounts::default();
        for state in TaskState::ALL {
            let number = in_state(state);
            counts.total += number;
            *match state {
                TaskState::New | TaskState::Queued | TaskState::Retry => &mut counts.waiting,
                TaskState::Running => &mut counts.running,
                TaskState::Copied => &mut counts.copied,
                TaskState::Unchanged => &mut counts.unchanged,
                TaskState::Failed => &mut counts.failed,
                TaskState::Cancelled => &mut counts.cancelled,
            } += number;
        }
        counts
    }

    /// Returns the number of tasks that have ended.
    pub fn ended(&self) -> u64 {
        self.copied + self.unchanged + self.failed + self.cancelled
    }

    /// Returns the number of tasks that have not ended.
    pub fn unfinished(&self) -> u64 {
        self.waiting + self.running
    }
}

/// Bytes of blobs, by how they reached the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobBytes {
    /// Transferred from source to target.
    pub copied: u64,
    /// Mounted by the target from another of its repositories.
    pub mounted: u64,
    /// Already at the target.
    pub reused: u64,
}

/// Number of requests sent, without those for referrers, digest tags, tokens and redirects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    /// Requests to sources.
    pub source: u64,
    /// Requests to targets.
    pub target: u64,
}

impl std::ops::AddAssign for BlobBytes {
    fn add_assign(&mut self, other: BlobBytes) {
        self.copied += other.copied;
        self.mounted += other.mounted;
        self.reused += other.reused;
    }
}

impl std::ops::AddAssign for RequestCounts {
    fn add_assign(&mut self, other: RequestCounts) {
        self.source += other.source;
        self.target += other.target;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_to_the_total_and_print_under_their_names() {
        let counts = TaskCounts::from_states(|state| 1 << state.code());
        assert_eq!(counts.total, 255);
        assert_eq!(counts.unfinished() + counts.ended(), counts.total);
        let json = serde_json::to_string(&TaskCounts { total: 1, copied: 1, ..TaskCounts::default() }).unwrap();
        assert_eq!(json, r#"{"total":1,"waiting":0,"running":0,"copied":1,"unchanged":0,"failed":0,"cancelled":0}"#);
    }
}
