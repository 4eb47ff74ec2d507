//! A batch with its owner, as the store knows them, and the status that follows. Reports, the dashboard and commands show
//! it.

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_store::{Batch, BatchState, RecordCounts, Store, leader_lease_name, listing_lease_name};
use serde::Serialize;

/// Name of the leader lease of `serve` ([`leader_lease_name`]): all batches that no other process leads.
pub const GLOBAL_LEADER: &str = "all batches";

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
    /// All statuses.
    pub const ALL: [BatchStatus; 6] = [
        BatchStatus::Running,
        BatchStatus::Paused,
        BatchStatus::Cancelled,
        BatchStatus::Superseded,
        BatchStatus::Done,
        BatchStatus::Interrupted,
    ];

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
            (_, None) => format!(
                "its listing was interrupted: `{command}` resumes it, and in a cluster `imgsync serve` with its rules does"
            ),
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

/// Returns whether a batch ended with everything listed, nothing failed or cancelled, and no problem of pruning.
pub async fn is_good(store: &dyn Store, batch: &Batch, records: RecordCounts) -> Result<bool> {
    let has_ended = batch.state == BatchState::Done && batch.ended_at.is_some();
    if !has_ended || batch.counts.failed + batch.counts.cancelled + records.unlisted > 0 {
        return Ok(false);
    }
    Ok(records.pruned == 0 || !has_prune_problems(store, batch.id).await?)
}

/// Returns whether tags of a batch could not be removed.
pub async fn has_prune_problems(store: &dyn Store, batch: BatchId) -> Result<bool> {
    let pruned = or_removed(store.prune_records(batch).await)?;
    Ok(pruned.iter().any(|record| record.outcome.needs_attention()))
}

/// Returns no records of a batch that was removed meanwhile.
pub fn or_removed<T: Default>(read: Result<T>) -> Result<T> {
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(T::default()),
        read => read,
    }
}
