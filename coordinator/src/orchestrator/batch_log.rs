//! Log lines of a batch that `serve` leads: its start, and its end with counts and duration.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use imgsync_model::batch::{BatchId, BatchOptions};
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::retry::format_duration;
use imgsync_registry::event::{Event, Events};
use imgsync_store::{Batch, BatchState, Store};

/// Logs the start and the end of a batch, each once.
pub(super) struct BatchLog {
    id: BatchId,
    /// Message logged when this process starts leading the batch.
    beginning: String,
    has_started: AtomicBool,
    has_ended: AtomicBool,
    events: Events,
}

impl BatchLog {
    /// Creates the log of a batch without writing to it.
    pub(super) fn new(batch: &Batch, events: &Events) -> BatchLog {
        let id = batch.id;
        // Options that cannot be decoded are reported by the leader.
        let title = BatchOptions::decode(&batch.options, "").map_or_else(|_| String::new(), |options| options.title);
        let beginning = match batch.counts.ended() {
            0 => format!("batch {id} started: {title}"),
            ended => format!(
                "batch {id} resumed: {title} ({} of {} done before)",
                group_digits(ended),
                pluralize(batch.counts.total, "task", "tasks")
            ),
        };
        let (has_started, has_ended) = (AtomicBool::new(false), AtomicBool::new(false));
        BatchLog { id, beginning, has_started, has_ended, events: events.clone() }
    }

    /// Logs the start of the batch, the first time this process leads it.
    pub(super) fn begin(&self) {
        if !self.has_started.swap(true, Ordering::Relaxed) {
            self.events.emit(Event::Notice { message: self.beginning.clone() });
        }
    }

    /// Logs the end of the batch, if it has ended and this process led it.
    pub(super) async fn end(&self, store: &dyn Store) -> Result<()> {
        if !self.has_started.load(Ordering::Relaxed) || self.has_ended.load(Ordering::Relaxed) {
            return Ok(());
        }
        let batch = match store.batch(self.id).await {
            // A batch that was tampered with cannot be read; its leader has reported that.
            Err(error) if error.kind() == ErrorKind::Insecure => return Ok(()),
            batch => batch?.filter(|batch| batch.ended_at.is_some()),
        };
        let Some(batch) = batch else { return Ok(()) };
        let unlisted = store.count_records(&[self.id]).await?.first().copied().unwrap_or_default().unlisted;
        if !self.has_ended.swap(true, Ordering::Relaxed) {
            let message = ending(&batch, unlisted);
            let is_good = batch.state == BatchState::Done && batch.counts.failed == 0 && unlisted == 0;
            self.events.emit(if is_good { Event::Notice { message } } else { Event::Warning { message } });
        }
        Ok(())
    }
}

/// Formats the end of a batch with counts and duration.
fn ending(batch: &Batch, unlisted: u64) -> String {
    let counts = &batch.counts;
    let how = match batch.state {
        BatchState::Cancelled => "was cancelled",
        BatchState::Superseded => "was superseded",
        BatchState::Done | BatchState::Running | BatchState::Paused => "ended",
    };
    let mut line = format!("batch {} {how}: {} copied, {} unchanged", batch.id, counts.copied, counts.unchanged);
    for (count, what) in [(counts.failed, "failed"), (counts.cancelled, "cancelled")] {
        if count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    if unlisted > 0 {
        line.push_str(&format!(", {} not listed", pluralize(unlisted, "repository", "repositories")));
    }
    let lasted = batch.ended_at.map(|ended| ended.duration_since(batch.created_at));
    let lasted = lasted.and_then(|lasted| Duration::try_from(lasted).ok()).unwrap_or_default();
    format!("{line}, in {}", format_duration(lasted))
}
