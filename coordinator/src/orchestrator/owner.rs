//! Waiting for a batch that another process runs, and detection of batches without an owner.

use std::time::Duration;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::is_transient;
use imgsync_store::{Batch, Store};
use tokio::time::Instant;

use crate::batch_view::{BatchView, find_owner};

/// Interval between reads of a batch that is waited for.
const BATCH_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// A batch is interrupted if it had no owner for this long. Usually, leadership passes between coordinators within some
/// four seconds. After an outage of the store it may take longer; whoever starts the rules then does not wait for that.
const ABANDONED_AFTER: Duration = Duration::from_secs(6);

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
