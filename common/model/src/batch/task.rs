//! Tasks, their states and results.

use serde::{Deserialize, Serialize};

use super::{BatchId, TagLocator};
use imgsync_oci::error::{Error, ErrorKind};
use imgsync_oci::{Digest, DigestTagHints, RegistryName};

/// Maximum length of the message of a [`Failure`], in bytes.
pub const MAX_ERROR_BYTES: usize = 350;

/// A task before it has an index: one source tag to one target tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// Index of the rule in the configuration.
    pub rule: u32,
    /// The tag to copy.
    pub source: TagLocator,
    /// Digest of the source tag, if the listing contained it.
    pub digest: Option<Digest>,
    /// The tag to write.
    pub target: TagLocator,
    /// What the listing showed of digest tags.
    pub digest_tags: DigestTagHints,
}

impl TaskSpec {
    /// Returns the digest by which the source is read, if it is an image that was named by digest: the source tag is the
    /// pinned tag of that digest, and need not exist.
    pub fn pinned_digest(&self) -> Option<&Digest> {
        self.digest.as_ref().filter(|digest| digest.is_pinned_by(&self.source.tag))
    }
}

/// A task of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its index in the batch, from 0, without gaps.
    pub index: u32,
    /// What to copy.
    pub spec: TaskSpec,
}

/// A task in one run of its batch: referenced by messages and leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskRef {
    /// The batch.
    pub batch: BatchId,
    /// Number of times that the task was requeued.
    pub run: u32,
    /// The index of the task.
    pub index: u32,
}

/// State of a task. Only a ledger changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Planned, not yet queued.
    New,
    /// In the queue.
    Queued,
    /// Leased by a worker.
    Running,
    /// Failed with a transient error; in the queue, delayed.
    Retry,
    /// Ended: copied.
    Copied,
    /// Ended: the target was up to date.
    Unchanged,
    /// Ended: failed permanently.
    Failed,
    /// Ended: cancelled on request.
    Cancelled,
}

/// Result of a task: how it ended, with the failure if it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskResult {
    /// The image was copied.
    Copied,
    /// The target was up to date.
    Unchanged,
    /// The task failed.
    Failed(Failure),
    /// The task was cancelled on request.
    Cancelled,
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Kind of the error.
    pub kind: ErrorKind,
    /// The message, safe to print, at most [`MAX_ERROR_BYTES`] bytes.
    pub error: String,
    /// The registry that answered with the error, if the error says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryName>,
    /// Number of attempts.
    pub attempts: u32,
}

impl TaskState {
    /// All states, in the order of their codes.
    pub const ALL: [TaskState; 8] = [
        TaskState::New,
        TaskState::Queued,
        TaskState::Running,
        TaskState::Retry,
        TaskState::Copied,
        TaskState::Unchanged,
        TaskState::Failed,
        TaskState::Cancelled,
    ];

    /// Returns whether the task has ended.
    pub fn is_terminal(self) -> bool {
        match self {
            TaskState::New | TaskState::Queued | TaskState::Running | TaskState::Retry => false,
            TaskState::Copied | TaskState::Unchanged | TaskState::Failed | TaskState::Cancelled => true,
        }
    }

    /// Returns the word used in JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::New => "new",
            TaskState::Queued => "queued",
            TaskState::Running => "running",
            TaskState::Retry => "retry",
            TaskState::Copied => "copied",
            TaskState::Unchanged => "unchanged",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
        }
    }

    /// Returns the code that stores use, in four bits. Part of their formats: never renumbered.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Returns the state of a [`TaskState::code`].
    pub fn from_code(code: u8) -> Option<TaskState> {
        TaskState::ALL.get(usize::from(code)).copied()
    }
}

impl TaskResult {
    /// Returns the state of a task with this result.
    pub fn state(&self) -> TaskState {
        match self {
            TaskResult::Copied => TaskState::Copied,
            TaskResult::Unchanged => TaskState::Unchanged,
            TaskResult::Failed(_) => TaskState::Failed,
            TaskResult::Cancelled => TaskState::Cancelled,
        }
    }
}

impl Failure {
    /// Creates the failure of a task's final error. Prefers the hint where message and hint do not both fit.
    pub fn from_error(error: &Error, attempts: u32) -> Failure {
        let words = error.to_string();
        let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        let hint = truncate(&hint, MAX_ERROR_BYTES.saturating_sub(words.len()).max(MAX_ERROR_BYTES / 2));
        let words = truncate(&words, MAX_ERROR_BYTES - hint.len());
        Failure { kind: error.kind(), error: words + &hint, registry: error.registry().cloned(), attempts }
    }

    /// Creates a failure from a message, which is truncated and must be safe to print.
    pub fn new(kind: ErrorKind, words: &str, attempts: u32) -> Failure {
        Failure { kind, error: truncate(words, MAX_ERROR_BYTES), registry: None, attempts }
    }
}

/// Truncates a text to at most `most` bytes, the end of them then `…`.
fn truncate(text: &str, most: usize) -> String {
    const CUT: &str = "…";
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most - CUT.len()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    format!("{}{CUT}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_keep_their_codes() {
        for (code, state) in TaskState::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(state.code()), code);
            assert_eq!(TaskState::from_code(state.code()), Some(state));
        }
        assert_eq!(TaskState::from_code(8), None);
    }

    #[test]
    fn the_state_of_a_result_is_terminal() {
        let failed = TaskResult::Failed(Failure::new(ErrorKind::Denied, "no", 1));
        let results = [TaskResult::Copied, TaskResult::Unchanged, failed, TaskResult::Cancelled];
        let states = results.map(|result| result.state());
        assert_eq!(states, TaskState::ALL[4..]);
        assert!(TaskState::ALL.into_iter().all(|state| state.is_terminal() == states.contains(&state)));
    }

    #[test]
    fn a_failure_is_cut_at_a_character() {
        let failure = Failure::new(ErrorKind::Refused, &"é".repeat(400), 2);
        assert!(failure.error.len() <= MAX_ERROR_BYTES && failure.error.ends_with("é…"));
        assert_eq!(Failure::new(ErrorKind::Refused, "short", 1).error, "short");
        let error = Error::new(ErrorKind::Denied, "writing x", "401").with_hint("log in");
        assert_eq!(Failure::from_error(&error, 1).error, "writing x: 401 (log in)");
        let registry: RegistryName = "r.example:5000".parse().unwrap();
        let failure = Failure::from_error(&error.with_registry(&registry), 1);
        assert_eq!(failure.registry, Some(registry), "the registry that answered");
    }

    #[test]
    fn what_to_do_is_kept_of_a_long_failure() {
        let failed = |detail: usize, hint: usize| {
            let error = Error::new(ErrorKind::Denied, "writing x", "d".repeat(detail)).with_hint("a".repeat(hint));
            Failure::from_error(&error, 1).error
        };
        let cut = failed(900, 100);
        assert!(cut.len() == MAX_ERROR_BYTES && cut.ends_with(&format!("d… ({})", "a".repeat(100))), "{cut}");
        assert_eq!(failed(100, 200).len(), "writing x: ".len() + 100 + " ()".len() + 200, "both fit");
        let both = failed(900, 900);
        assert!(both.len() == MAX_ERROR_BYTES && both.contains("d… (a") && both.ends_with("a…"), "{both}");
        assert!(failed(20, 900).starts_with(&format!("writing x: {} (a", "d".repeat(20))));
    }
}
