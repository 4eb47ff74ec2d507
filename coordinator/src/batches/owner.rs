//! Who is at a batch that has not ended, and what that makes of its state.

use std::time::Duration;

use imgsync_common::batch::BatchId;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::retry::is_passing;
use imgsync_common::store::{Batch, Control, Store, leader, listing};
use serde::Serialize;
use tokio::time::Instant;

use super::SERVE;

/// How often a batch that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A batch is interrupted when nobody was at it for so long: from one coordinator to the next the lead passes within some four
/// seconds, in which nobody holds it.
const CONFIRM: Duration = Duration::from_secs(6);

/// The state of a batch, for people and programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    /// A process lists it or leads it.
    Running,
    /// No task is begun until it is resumed.
    Paused,
    /// It was stopped.
    Cancelled,
    /// A later batch of the same rules took its place.
    Superseded,
    /// Every task has ended.
    Done,
    /// It has not ended, and the process that listed or led it is gone.
    Interrupted,
}

impl BatchState {
    /// As it is written in JSON and reports.
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

/// A batch, and who is at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchView {
    /// The batch. Tasks of an interrupted one that nobody works at count as waiting.
    pub batch: Batch,
    /// Its state.
    pub state: BatchState,
    /// The process that lists or leads it; none where it has ended, or nobody does.
    pub owner: Option<String>,
}

impl BatchView {
    /// Looks who is at a batch.
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

    /// Looks who is at several batches.
    pub async fn of_all(store: &dyn Store, batches: Vec<Batch>) -> Result<Vec<BatchView>> {
        let mut views = Vec::with_capacity(batches.len());
        for batch in batches {
            views.push(BatchView::of(store, batch).await?);
        }
        Ok(views)
    }

    /// The command that goes on with a batch that nobody is at.
    pub fn resume(&self) -> Option<String> {
        let is_left = self.batch.ended_at.is_none() && self.owner.is_none();
        is_left.then(|| resume_command(self.batch.id))
    }

    /// What there is to say of a batch that nobody is at, in words.
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

/// The command that goes on with a batch.
pub fn resume_command(id: BatchId) -> String {
    format!("imgsync batch resume {id}")
}

/// The process that lists a batch, or leads it once it is listed; none where it has ended, or nobody does.
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
    // Leases of a batch have its id in the names of their holders, which is known.
    Ok(holder.map(|holder| holder.replacen(&format!(" {id}"), "", 1)))
}

/// Notices when a batch was left by who listed or led it.
#[derive(Debug, Default)]
pub struct Attendance {
    left: Option<Instant>,
}

impl Attendance {
    /// Whether a batch was left for good, as it is seen now.
    pub async fn is_left(&mut self, store: &dyn Store, view: &BatchView) -> Result<bool> {
        if view.resume().is_none() {
            self.left = None;
            return Ok(false);
        }
        let since = *self.left.get_or_insert_with(Instant::now);
        Ok(since.elapsed() >= CONFIRM || !store.may_have_owners().await?)
    }
}

/// How waiting for a batch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// It has ended.
    Ended(Batch),
    /// It has not, and nobody is at it any more.
    Left(BatchView),
}

/// Waits until a batch has ended, or nobody is at it any more. `seen` is given what is seen of it meanwhile. A store that is
/// away is waited for.
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

/// Who is at a batch, once that is sure.
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
