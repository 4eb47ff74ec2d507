//! Owner of a batch that has not ended, and the status that follows from it.

use std::time::Duration;

use imgsync_common::batch::BatchId;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::retry::is_passing;
use imgsync_common::store::{Batch, Control, Store, leader, listing};
use serde::Serialize;
use tokio::time::Instant;

use super::SERVE;

/// Interval between reads of a batch that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A batch is interrupted if it had no owner for this long. Leadership passes between coordinators within some four
/// seconds, in which nobody holds it.
const CONFIRM: Duration = Duration::from_secs(6);

/// Status of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
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

impl BatchState {
    /// Returns the name used in JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            BatchState::Running => Control::Running.as_str(),
            BatchState::Paused => Control::Paused.as_str(),
            BatchState::Cancelled => Control::Cancelled.as_str(),
            BatchState::Superseded => Control::Superseded.as_str(),
            BatchState::Done => Control::Done.as_str(),
            BatchState::Interrupted => "interrupted",
        }
    }
}

/// A batch with its status and owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchView {
    /// The batch. Running tasks of an interrupted batch that no worker runs count as waiting.
    pub batch: Batch,
    /// Status of the batch.
    pub state: BatchState,
    /// Process that lists or leads the batch; `None` if it has ended or has no owner.
    pub owner: Option<String>,
}

impl BatchView {
    /// Loads the owner of a batch and derives its status.
    pub async fn of(store: &dyn Store, mut batch: Batch) -> Result<BatchView> {
        let owner = owner(store, &batch).await?;
        let state = match batch.control {
            Control::Running if owner.is_none() => BatchState::Interrupted,
            Control::Running => BatchState::Running,
            Control::Paused => BatchState::Paused,
            Control::Cancelled => BatchState::Cancelled,
            Control::Superseded => BatchState::Superseded,
            Control::Done => BatchState::Done,
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
    pub async fn of_all(store: &dyn Store, batches: Vec<Batch>) -> Result<Vec<BatchView>> {
        let mut views = Vec::with_capacity(batches.len());
        for batch in batches {
            views.push(BatchView::of(store, batch).await?);
        }
        Ok(views)
    }

    /// Returns the command that resumes the batch, if it has no owner.
    pub fn resume(&self) -> Option<String> {
        let is_left = self.batch.ended_at.is_none() && self.owner.is_none();
        is_left.then(|| resume_command(self.batch.id))
    }

    /// Describes a batch without an owner and how to resume it.
    pub fn notice(&self) -> Option<String> {
        let command = self.resume()?;
        Some(match (self.state, self.batch.sealed_at) {
            (BatchState::Paused, _) => format!("it is paused, and nobody runs it: `{command}` goes on with it"),
            (_, None) => format!("its listing was broken off, and nobody runs it: `{command}` goes on with it"),
            (_, Some(_)) => {
                format!("nobody runs it: `{command}` goes on with it, and in a cluster `imgsync serve` does")
            }
        })
    }
}

/// Returns the command that resumes a batch.
pub fn resume_command(id: BatchId) -> String {
    format!("imgsync batch resume {id}")
}

/// Returns the process that lists a batch, or leads it once it is listed; `None` if it has ended or has no owner.
pub async fn owner(store: &dyn Store, batch: &Batch) -> Result<Option<String>> {
    if batch.ended_at.is_some() || !store.may_have_owners().await? {
        return Ok(None);
    }
    let id = batch.id;
    let holder = match batch.sealed_at {
        None => store.held(&listing(id)).await?,
        Some(_) => match store.held(&leader(&id.to_string())).await? {
            Some(holder) => Some(holder),
            None => store.held(&leader(SERVE)).await?,
        },
    };
    // Holders of a batch's leases have its id in their names, which the caller knows.
    Ok(holder.map(|holder| holder.replacen(&format!(" {id}"), "", 1)))
}

/// Detects that a batch was abandoned by the process that listed or led it.
#[derive(Debug, Default)]
pub struct Attendance {
    left: Option<Instant>,
}

impl Attendance {
    /// Returns whether the batch has had no owner for long enough to be abandoned.
    pub async fn is_left(&mut self, store: &dyn Store, view: &BatchView) -> Result<bool> {
        if view.resume().is_none() {
            self.left = None;
            return Ok(false);
        }
        let since = *self.left.get_or_insert_with(Instant::now);
        Ok(since.elapsed() >= CONFIRM || !store.may_have_owners().await?)
    }
}

/// Result of waiting for a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// The batch has ended.
    Ended(Batch),
    /// The batch has not ended and has no owner any more.
    Left(BatchView),
}

/// Waits until a batch has ended or is abandoned, and passes each state in between to `seen`. Waits through outages of
/// the store.
pub async fn until_over(store: &dyn Store, id: BatchId, mut seen: impl FnMut(&Batch)) -> Result<Over> {
    let mut attendance = Attendance::default();
    loop {
        match look(store, id, &mut attendance).await {
            Ok((view, _)) if view.batch.ended_at.is_some() => return Ok(Over::Ended(view.batch)),
            Ok((view, true)) => return Ok(Over::Left(view)),
            Ok((view, false)) => seen(&view.batch),
            Err(error) if is_passing(&error) => {
                tracing::warn!("{error}; looking again");
                attendance = Attendance::default();
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Returns the owner of a batch, or `None` once it is certain that there is none.
pub(super) async fn sure_owner(store: &dyn Store, id: BatchId) -> Result<Option<String>> {
    let since = Instant::now();
    loop {
        let batch = find(store, id).await?;
        if let Some(owner) = owner(store, &batch).await? {
            return Ok(Some(owner));
        }
        if batch.ended_at.is_some() || since.elapsed() >= CONFIRM || !store.may_have_owners().await? {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(store: &dyn Store, id: BatchId, attendance: &mut Attendance) -> Result<(BatchView, bool)> {
    let view = BatchView::of(store, find(store, id).await?).await?;
    let is_left = attendance.is_left(store, &view).await?;
    Ok((view, is_left))
}

async fn find(store: &dyn Store, id: BatchId) -> Result<Batch> {
    let tried = || format!("waiting for batch {id}");
    store.batch(id).await?.ok_or_else(|| Error::new(Class::NotFound, tried(), "it is gone"))
}
