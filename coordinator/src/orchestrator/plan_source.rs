//! What the plan of a batch is made from, and whether the store still has all of it.

use std::sync::atomic::AtomicBool;

use imgsync_model::batch::{BatchId, BatchOptions, TaskSpec, TaskState};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_store::{AppendResult, Batch, PlanCompletion, PlanSegment, PlanSize, TaskRow};
use tokio::sync::Notify;

use super::backend::Backend;

/// What the plan of a batch is made from.
pub(super) enum PlanSource<'a> {
    /// It is complete.
    Complete,
    /// The rules.
    Rules(BatchOptions),
    /// The images that a batch has copied or found unchanged.
    Verification(&'a Batch),
}

/// Whether the plan of a batch was made complete, and whether the store has lost that.
#[derive(Default)]
pub(super) struct PlanWatch {
    pub(super) is_complete: AtomicBool,
    pub(super) was_lost: Notify,
}

impl PlanWatch {
    /// Compares a batch, read after `was_complete` was, with what is known of its plan.
    pub(super) fn compare(&self, was_complete: bool, batch: &Batch) {
        if was_complete && batch.plan_completed_at.is_none() && batch.ended_at.is_none() {
            self.was_lost.notify_one();
        }
    }
}

/// Adds what the batch `of` has copied or found unchanged to the plan, and makes it complete.
pub(super) async fn plan_verification(backend: &Backend, id: BatchId, of: &Batch) -> Result<()> {
    while let PlanCompletion::Incomplete(_) = append_verification(backend, id, of).await? {
        tracing::warn!("batch {id}: the store has lost a part of the plan that it had acknowledged: adding it again");
    }
    Ok(())
}

async fn append_verification(backend: &Backend, id: BatchId, of: &Batch) -> Result<PlanCompletion> {
    const PAGE: usize = 2_000;
    let store = &backend.store;
    let (mut from, mut acknowledged) = (0, PlanSize::default());
    loop {
        let rows = store.tasks(of.id, None, from, PAGE).await?;
        let Some(last) = rows.last() else { break };
        let key = format!("part {from}");
        from = last.task.index + 1;
        let is_there = |row: &TaskRow| matches!(row.state, TaskState::Copied | TaskState::Unchanged);
        // The digest of the former listing is out of date, unless it is the name of the image.
        let planned =
            |row: TaskRow| (TaskSpec { digest: row.task.spec.pinned_digest().cloned(), ..row.task.spec }, None);
        let tasks: Vec<_> = rows.into_iter().filter(is_there).map(planned).collect();
        if !tasks.is_empty() {
            let number = tasks.len() as u64;
            match store.append(id, PlanSegment { key, listed_at: backend.clock.now(), tasks }).await? {
                AppendResult::Appended(_) => {
                    acknowledged.segments += 1;
                    acknowledged.tasks += number;
                }
                // It may have been smaller: the batch `of` goes on.
                AppendResult::AlreadyPlanned => acknowledged.segments += 1,
                // Cancelled meanwhile.
                AppendResult::Closed(_) => {}
            }
        }
    }
    store.complete_plan(id, acknowledged).await
}

/// Describes the loss of the end of a plan.
pub(super) fn lost_completion_warning(id: BatchId) -> String {
    format!(
        "batch {id}: the store has lost the end of the plan that it had acknowledged, as after a failover: listing again \
         to add what is missing"
    )
}

/// Returns the error of a batch whose plan is incomplete and cannot be made again.
pub(super) fn plan_lost(id: BatchId) -> Error {
    let detail = "the store has lost the end of its plan, as after a failover, and this process has not listed it";
    Error::new(ErrorKind::Local, format!("watching batch {id}"), detail)
        .with_hint("run the rules again: images at the target are not copied again")
}
