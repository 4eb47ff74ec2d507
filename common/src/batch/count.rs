//! What is added up over a batch, as `run --json` prints it.

use serde::{Deserialize, Serialize};

use super::TaskState;

/// How many tasks stand where. `total` is always the sum of all that follow it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All tasks; final once the batch is sealed.
    pub total: u64,
    /// Not begun, or waiting to be tried again.
    pub waiting: u64,
    /// With a worker.
    pub running: u64,
    /// Copied.
    pub copied: u64,
    /// Found the same at the target.
    pub unchanged: u64,
    /// Failed for good.
    pub failed: u64,
    /// Stopped on request.
    pub cancelled: u64,
}

impl Counts {
    /// From how many tasks are in each state.
    pub fn of(in_state: impl Fn(TaskState) -> u64) -> Counts {
        let mut counts = Counts::default();
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

    /// How many have ended, in whichever way.
    pub fn ended(&self) -> u64 {
        self.copied + self.unchanged + self.failed + self.cancelled
    }

    /// How many have not.
    pub fn open(&self) -> u64 {
        self.waiting + self.running
    }
}

/// Bytes of blobs, by how they came to be at the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// Moved from source to target.
    pub copied: u64,
    /// Taken by the target from another of its repositories.
    pub mounted: u64,
    /// There already.
    pub reused: u64,
}

/// Requests that were sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// To sources.
    pub source: u64,
    /// To targets.
    pub target: u64,
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        self.copied += other.copied;
        self.mounted += other.mounted;
        self.reused += other.reused;
    }
}

impl std::ops::AddAssign for Requests {
    fn add_assign(&mut self, other: Requests) {
        self.source += other.source;
        self.target += other.target;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_to_the_total_and_print_under_their_names() {
        let counts = Counts::of(|state| 1 << state.code());
        assert_eq!(counts.total, 255);
        assert_eq!(counts.open() + counts.ended(), counts.total);
        let json = serde_json::to_string(&Counts { total: 1, copied: 1, ..Counts::default() }).unwrap();
        assert_eq!(json, r#"{"total":1,"waiting":0,"running":0,"copied":1,"unchanged":0,"failed":0,"cancelled":0}"#);
    }
}
