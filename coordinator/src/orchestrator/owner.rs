//! Owner of a batch that has not ended, and the status that follows from it.

use std::time::Duration;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::is_transient;
use imgsync_store::{Batch, BatchState, Store, leader_lease_name, listing_lease_name};
use serde::Serialize;
use tokio::time::Instant;

use super::GLOBAL_LEADER;

/// Interval between reads of a batch that is waited for.
const BATCH_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// A batch is interrupted if it had no owner for this long. Leadership passes between coordinators within some four
/// seconds, in which nobody holds it.
const ABANDONED_AFTER: Duration = Duration::from_secs(6);

/// Status of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatus {
    /// A process lists or leads it.
    Running,
    /// No task is started until the batch is resumed.
    Paused,
    /// Cancelled.
    Cancelled,
    /// A later batch of the same rules superseded it.
    Superseded,
    /// Every task has ended.
    Done,
    /// It has not ended, and the process that listed or led it is gone.
    Interrupted,
}

impl BatchStatus {
    /// Returns the name used in JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            BatchStatus::Running => BatchState::Running.as_str(),
            BatchStatus::Paused => BatchState::Paused.as_str(),
            BatchStatus::Cancelled => BatchState::Cancelled.as_str(),
            BatchStatus::Superseded => BatchState::Superseded.as_str(),
            BatchStatus::Done => BatchState::Done.as_str(),
            BatchStatus::Interrupted => "interrupted",
        }
    }
}

/// A batch with its status and owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchView {
    /// The batch. Running tasks of an interrupted batch that no worker runs count as waiting.
    pub batch: Batch,
    /// Status of the batch.
    pub state: BatchStatus,
    /// Process that lists or leads the batch; `None` if it has ended or has no owner.
    pub owner: Option<String>,
}

impl BatchView {
    /// Loads the owner of a batch and derives its status.
    pub async fn load(store: &dyn Store, mut batch: Batch) -> Result<BatchView> {
        let owner = find_owner(store, &batch).await?;
        let state = match batch.state {
            BatchState::Running if owner.is_none() => BatchStatus::Interrupted,
            BatchState::Running => BatchStatus::Running,
            BatchState::Paused => BatchStatus::Paused,
            BatchState::Cancelled => BatchStatus::Cancelled,
            BatchState::Superseded => BatchStatus::Superseded,
            BatchState::Done => BatchStatus::Done,
        };
        if owner.is_none() && batch.counts.running > 0 {
            let workers = store.workers().await?;
            let running = workers.iter().flat_map(|worker| &worker.running);
            let at_work = running.filter(|doing| doing.batch == batch.id).count() as u64;
            let left = batch.counts.running.saturating_sub(at_work);
            batch.counts.running -= left;
            batch.counts.waiting += left;
        }
        Ok(BatchView { batch, state, owner })
    }

    /// Loads the owners of several batches.
    pub async fn load_all(store: &dyn Store, batches: Vec<Batch>) -> Result<Vec<BatchView>> {
        let mut views = Vec::with_capacity(batches.len());
        for batch in batches {
            views.push(BatchView::load(store, batch).await?);
        }
        Ok(views)
    }

    /// Returns the command that resumes the batch, if it has no owner.
    pub fn resume_command(&self) -> Option<String> {
        let is_left = self.batch.ended_at.is_none() && self.owner.is_none();
        is_left.then(|| resume_command(self.batch.id))
    }

    /// Describes a batch without an owner and how to resume it.
    pub fn notice(&self) -> Option<String> {
        let command = self.resume_command()?;
        Some(match (self.state, self.batch.plan_completed_at) {
            (BatchStatus::Paused, _) => format!("paused, and no coordinator leads it: `{command}` resumes it"),
            (_, None) => format!("its listing was interrupted: `{command}` resumes it"),
            (_, Some(_)) => {
                format!("no coordinator leads it: `{command}` resumes it, and in a cluster `imgsync serve` does")
            }
        })
    }
}

/// Returns the command that resumes a batch.
pub fn resume_command(id: BatchId) -> String {
    format!("imgsync batch resume {id}")
}

/// Returns the process that lists a batch, or leads it once it is listed; `None` if it has ended or has no owner.
pub async fn find_owner(store: &dyn Store, batch: &Batch) -> Result<Option<String>> {
    if batch.ended_at.is_some() || !store.may_have_owners().await? {
        return Ok(None);
    }
    let id = batch.id;
    let holder = match batch.plan_completed_at {
        None => store.lease_holder(&listing_lease_name(id)).await?,
        Some(_) => match store.lease_holder(&leader_lease_name(&id.to_string())).await? {
            Some(holder) => Some(holder),
            None => store.lease_holder(&leader_lease_name(GLOBAL_LEADER)).await?,
        },
    };
    // Holders of a batch's leases have its id in their names, which the caller knows.
    Ok(holder.map(|holder| holder.replacen(&format!(" {id}"), "", 1)))
}

/// Detects that a batch was abandoned by the process that listed or led it.
#[derive(Debug, Default)]
pub struct AbandonmentDetector {
    abandoned_since: Option<Instant>,
}

impl AbandonmentDetector {
    /// Returns whether the batch has had no owner for long enough to be abandoned.
    pub async fn is_abandoned(&mut self, store: &dyn Store, view: &BatchView) -> Result<bool> {
        if view.resume_command().is_none() {
            self.abandoned_since = None;
            return Ok(false);
        }
        let since = *self.abandoned_since.get_or_insert_with(Instant::now);
        Ok(since.elapsed() >= ABANDONED_AFTER || !store.may_have_owners().await?)
    }
}

/// Result of waiting for a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchWaitResult {
    /// The batch has ended.
    Ended(Batch),
    /// The batch has not ended and has no owner any more.
    Abandoned(BatchView),
}

/// Waits until a batch has ended or is abandoned, and passes each state in between to `seen`. Waits through outages of
/// the store.
pub async fn wait_until_over(store: &dyn Store, id: BatchId, mut seen: impl FnMut(&Batch)) -> Result<BatchWaitResult> {
    let mut abandonment = AbandonmentDetector::default();
    loop {
        match load_view(store, id, &mut abandonment).await {
            Ok((view, _)) if view.batch.ended_at.is_some() => return Ok(BatchWaitResult::Ended(view.batch)),
            Ok((view, true)) => return Ok(BatchWaitResult::Abandoned(view)),
            Ok((view, false)) => seen(&view.batch),
            Err(error) if is_transient(&error) => {
                tracing::warn!("{error}; retrying");
                abandonment = AbandonmentDetector::default();
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(BATCH_POLL_INTERVAL).await;
    }
}

/// Returns the owner of a batch, or `None` once it is certain that there is none.
pub(super) async fn confirm_owner(store: &dyn Store, id: BatchId) -> Result<Option<String>> {
    let since = Instant::now();
    loop {
        let batch = load_batch(store, id).await?;
        if let Some(owner) = find_owner(store, &batch).await? {
            return Ok(Some(owner));
        }
        if batch.ended_at.is_some() || since.elapsed() >= ABANDONED_AFTER || !store.may_have_owners().await? {
            return Ok(None);
        }
        tokio::time::sleep(BATCH_POLL_INTERVAL).await;
    }
}

async fn load_view(store: &dyn Store, id: BatchId, abandonment: &mut AbandonmentDetector) -> Result<(BatchView, bool)> {
    let view = BatchView::load(store, load_batch(store, id).await?).await?;
    let is_left = abandonment.is_abandoned(store, &view).await?;
    Ok((view, is_left))
}

async fn load_batch(store: &dyn Store, id: BatchId) -> Result<Batch> {
    let operation = || format!("waiting for batch {id}");
    store.batch(id).await?.ok_or_else(|| Error::new(ErrorKind::NotFound, operation(), "it is no longer in the store"))
}
