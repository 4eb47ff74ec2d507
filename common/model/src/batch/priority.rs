//! Priority of tasks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Priority of a rule's tasks, relative to other batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Has its own queue on each route, which workers poll first, and a slot of its own.
    High,
    /// Shares the queue of a route evenly with others.
    #[default]
    Normal,
    /// Has a quarter of a normal batch's share.
    Low,
}

impl Priority {
    /// All priorities, highest first.
    pub const ALL: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

    /// Returns whether messages go through the urgent queues.
    pub fn is_urgent(self) -> bool {
        self == Priority::High
    }

    /// Returns the weight of a batch among those that share a queue.
    pub fn weight(self) -> u64 {
        match self {
            Priority::High | Priority::Normal => 4,
            Priority::Low => 1,
        }
    }

    /// Returns the word used in configurations, JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::High => "high",
            Priority::Normal => "normal",
            Priority::Low => "low",
        }
    }

    /// Returns whether it is the default, which messages and options omit.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
    pub fn is_normal(&self) -> bool {
        *self == Priority::Normal
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Priority, String> {
        let found = Priority::ALL.into_iter().find(|priority| priority.as_str() == text);
        found.ok_or_else(|| {
            format!("invalid priority `{}`: use high, normal or low", imgsync_oci::sanitize::sanitize(text))
        })
    }
}
