//! What a template is given: a batch in numbers and short lists. docs/reports.md describes it, field by field.
//!
//! The numbers are exact, the lists are bounded, and each says how many more there are: a report of a million tasks is as
//! small as one of a thousand.

use imgsync_common::batch::{Bytes, Counts, Requests, TaskState};
use serde::Serialize;

/// A batch, as templates see it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct View {
    /// Of the program.
    pub version: String,
    /// What was copied, or what `--report-name` calls it.
    pub name: String,
    /// The batch's id.
    pub batch: String,
    /// running, paused, cancelled, superseded, done or interrupted.
    pub state: String,
    /// How it went, in a sentence.
    pub headline: String,
    /// Whether all is done: nothing failed, was cancelled, is open or could not be listed.
    pub ok: bool,
    /// What to type next; empty where nothing is left to do.
    pub next: String,
    /// How much is told, 1 to 3.
    pub level: u8,
    /// When it was made (RFC 3339).
    pub started: String,
    /// When its last task ended; empty before.
    pub ended: String,
    /// When the report was written.
    pub written: String,
    /// How long it took, or takes until now.
    pub seconds: f64,
    /// How long workers were at tasks, all slots added up.
    pub work_seconds: f64,
    /// Tasks by state.
    pub counts: Counts,
    /// Bytes of blobs.
    pub bytes: Bytes,
    /// Requests that were sent.
    pub requests: Requests,
    /// Outcomes over time.
    pub timeline: Timeline,
    /// What failed.
    pub failures: Failures,
    /// What could not be listed.
    pub unlisted: Listed<Unlisted>,
    /// Rules that chose no tag.
    pub empty_rules: Listed<EmptyRule>,
    /// What became of target tags whose source is gone.
    pub pruned: Listed<Pruned>,
    /// The tasks that took longest.
    pub slowest: Vec<Slowest>,
    /// By rule.
    pub rules: Listed<Rule>,
    /// By source and target registry.
    pub lanes: Listed<Lane>,
    /// By worker; empty where one process did it all.
    pub workers: Listed<Worker>,
    /// Every image, at level 3.
    pub images: Listed<Image>,
}

/// A list that is cut.
#[derive(Debug, Clone, Serialize)]
pub struct Listed<T> {
    /// How many there are.
    pub total: u64,
    /// The first of them.
    pub items: Vec<T>,
    /// How many are left out.
    pub more: u64,
}

/// Outcomes over time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Timeline {
    /// How long a part is, in seconds.
    pub width: f64,
    /// How many parts the time has.
    pub length: u32,
    /// Those in which something happened.
    pub parts: Vec<TimelinePart>,
}

/// A part of a batch's time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TimelinePart {
    /// When it begins, in seconds after the batch was made.
    pub at: f64,
    /// Tasks that were copied in it.
    pub copied: u64,
    /// Found unchanged.
    pub unchanged: u64,
    /// Failed.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Bytes moved by the tasks that ended in it.
    pub bytes: u64,
}

/// What failed, by kind and registries.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Failures {
    /// How many tasks failed.
    pub total: u64,
    /// The largest first.
    pub groups: Vec<Group>,
    /// Groups that are left out.
    pub more: u64,
}

/// Failures of one class between two registries.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Group {
    /// The class, as in JSON: not_found, denied …
    pub class: String,
    /// The class in words.
    pub title: String,
    /// What to do about it.
    pub advice: String,
    /// The source registry.
    pub source: String,
    /// The target registry.
    pub target: String,
    /// How many there are.
    pub count: u64,
    /// The first of them.
    pub images: Vec<FailedImage>,
    /// How many are left out.
    pub more: u64,
}

/// An image that failed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FailedImage {
    /// The source tag.
    pub source: String,
    /// The target tag.
    pub target: String,
    /// What happened.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
}

/// A repository, or a pattern, that could not be listed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Unlisted {
    /// Which.
    pub repository: String,
    /// The class of the failure.
    pub class: String,
    /// What happened.
    pub error: String,
    /// What to do about it.
    pub advice: String,
}

/// A rule that chose no tag, though all that it reads was listed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EmptyRule {
    /// Its place in the configuration, from 1.
    pub number: u32,
    /// What it is called: its `name`, else what it reads.
    pub name: String,
    /// What it reads.
    pub from: String,
    /// Repositories that were listed.
    pub repositories: u64,
    /// Tags that were listed in them.
    pub tags: u64,
    /// How many were dropped at which stage.
    pub reason: String,
}

/// A target tag whose source is gone, or a rule of which nothing was removed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Pruned {
    /// The source tag, or what the rule reads.
    pub source: String,
    /// The target tag, or where the rule writes.
    pub target: String,
    /// removed, left, failed or refused.
    pub outcome: String,
    /// What was removed, or would have been; empty where a rule was refused.
    pub digest: String,
    /// Why; empty where it was removed.
    pub reason: String,
}

/// A task that took long.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Slowest {
    /// The source tag.
    pub source: String,
    /// The target tag.
    pub target: String,
    /// How it ended.
    pub state: String,
    /// How long its last attempt took.
    pub seconds: f64,
    /// Bytes that it moved in that.
    pub bytes: u64,
    /// Who did it.
    pub worker: String,
}

/// How many ended how, of some tasks.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Ends {
    /// All.
    pub total: u64,
    /// Copied.
    pub copied: u64,
    /// Found unchanged.
    pub unchanged: u64,
    /// Failed.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Not ended.
    pub open: u64,
}

/// A rule, and what became of its tasks.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Rule {
    /// Its place in the configuration, from 1.
    pub number: u32,
    /// What it is called: its `name`, else what it reads.
    pub name: String,
    /// What it copies; empty for batches of versions that did not note it.
    pub from: String,
    /// Where to.
    pub to: Vec<String>,
    /// Its tasks.
    pub counts: Ends,
}

/// Two registries, and what became of the tasks between them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Lane {
    /// The source registry.
    pub source: String,
    /// The target registry.
    pub target: String,
    /// Its tasks.
    pub counts: Ends,
}

/// A worker, and what it did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// Tasks that it ended.
    pub ended: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Bytes that it moved.
    pub bytes: u64,
    /// How long it was at tasks, all its slots added up.
    pub seconds: f64,
}

/// An image, and what became of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Image {
    /// The source tag.
    pub source: String,
    /// The target tag.
    pub target: String,
    /// Where its task stands.
    pub state: String,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Listed { total: 0, items: Vec::new(), more: 0 }
    }
}

impl<T> Listed<T> {
    /// The first so many of these.
    pub(super) fn cut(mut items: Vec<T>, at: usize) -> Listed<T> {
        let total = items.len() as u64;
        items.truncate(at);
        Listed { total, more: total - items.len() as u64, items }
    }
}

impl Ends {
    pub(super) fn add(&mut self, state: TaskState) {
        self.total += 1;
        *match state {
            TaskState::Copied => &mut self.copied,
            TaskState::Unchanged => &mut self.unchanged,
            TaskState::Failed => &mut self.failed,
            TaskState::Cancelled => &mut self.cancelled,
            TaskState::New | TaskState::Queued | TaskState::Running | TaskState::Retry => &mut self.open,
        } += 1;
    }
}
