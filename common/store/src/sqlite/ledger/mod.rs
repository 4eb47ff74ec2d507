//! [`Ledger`] in SQLite: each call is one function over a connection, within a transaction of its own or of a group.

mod batch_row;
pub(super) mod batch_tx;
mod lifecycle;
mod plan;
mod queries;
mod tasks;
mod timeline;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

use self::tasks::OwnedTaskHolder;
use super::SqliteStore;
use super::rows::deadline_ms;
use crate::{
    AppendResult, Batch, BatchState, BatchTimeline, ClaimResult, EmptyRule, FailedTask, FinishReply, LeaseStatus,
    Ledger, ListingFailure, NewBatch, PlanBlock, PlanCompletion, PlanSegment, PlanSize, PruneRecord, ReclaimScope,
    Reclaimed, RecordCounts, RequeueFilter, RescheduleReply, TaskHolder, TaskRow, Usage,
};
use imgsync_model::batch::{BatchId, ChunkMark, TaskRef, TaskResult, TaskState};
use imgsync_oci::Digest;
use imgsync_oci::error::Result;

/// Statements that run for each task and that SQLite would prepare each time if they were written in another way.
#[cfg(test)]
pub(super) fn statements_of_a_task() -> [String; 2] {
    [batch_tx::CHUNK_OF_TASK.to_owned(), timeline::delete_faster_tasks()]
}

/// Finishes a task as copied, within a call of a test.
#[cfg(test)]
pub(super) fn finish_copied(
    group: &super::write_group::WriteGroup<'_>,
    task_ref: TaskRef,
    holder: TaskHolder<'_>,
) -> Result<FinishReply, super::error::SqliteError> {
    let (holder, result) = (OwnedTaskHolder::new(holder), TaskResult::Copied);
    Ok(tasks::finish(group, Timestamp::now().as_millisecond(), task_ref, &holder, &result, Usage::default())?.0)
}

#[async_trait]
impl Ledger for SqliteStore {
    async fn create(&self, batch: NewBatch) -> Result<()> {
        let now = self.now();
        self.write(format!("creating batch {}", batch.id), move |c| plan::create(c, now, &batch)).await
    }

    async fn append(&self, batch: BatchId, segment: PlanSegment) -> Result<AppendResult> {
        let operation = format!("adding {} to batch {batch}", segment.key);
        let now = self.now();
        // Encoding takes longer than writing: keep it off the writer thread.
        let packed = super::run_blocking(move || Ok(plan::EncodedSegment::new(segment))).await?;
        self.write(operation, move |c| plan::append(c, now, batch, &packed)).await
    }

    async fn segment_keys(&self, batch: BatchId) -> Result<Vec<String>> {
        self.read(format!("reading batch {batch}"), move |c| plan::segment_keys(c, batch)).await
    }

    async fn record_listing_failure(&self, batch: BatchId, unlisted: ListingFailure) -> Result<()> {
        self.write(format!("recording in batch {batch}"), move |c| plan::record_listing_failure(c, batch, &unlisted))
            .await
    }

    async fn record_empty_rule(&self, batch: BatchId, rule: EmptyRule) -> Result<()> {
        self.write(format!("recording in batch {batch}"), move |c| plan::record_empty_rule(c, batch, &rule)).await
    }

    async fn record_pruned(&self, batch: BatchId, pruned: PruneRecord) -> Result<()> {
        self.write(format!("recording in batch {batch}"), move |c| plan::record_pruned(c, batch, &pruned)).await
    }

    async fn record_notification(&self, batch: BatchId, target: &str) -> Result<()> {
        let target = target.to_owned();
        self.write(format!("recording in batch {batch}"), move |c| plan::record_notification(c, batch, &target)).await
    }

    async fn sent_notifications(&self, batch: BatchId) -> Result<Vec<String>> {
        self.read(format!("reading batch {batch}"), move |c| queries::sent_notifications(c, batch)).await
    }

    async fn complete_plan(&self, batch: BatchId, at_least: PlanSize) -> Result<PlanCompletion> {
        let now = self.now();
        let operation = format!("completing the plan of batch {batch}");
        let (completion, is_ended) =
            self.write(operation, move |c| plan::complete_plan(c, now, batch, at_least)).await?;
        self.count_ended(is_ended);
        Ok(completion)
    }

    async fn add_usage(&self, batch: BatchId, usage: Usage) -> Result<()> {
        let now = self.now();
        self.write(format!("adding the usage of batch {batch}"), move |c| plan::add_usage(c, now, batch, usage)).await
    }

    async fn list_unpublished(&self, batch: BatchId, from: u32, at_least: usize) -> Result<Vec<PlanBlock>> {
        self.read(format!("reading batch {batch}"), move |c| plan::list_unpublished(c, batch, from, at_least)).await
    }

    async fn mark_published(&self, batch: BatchId, task_refs: Vec<TaskRef>) -> Result<()> {
        let now = self.now();
        self.write(format!("marking published tasks of batch {batch}"), move |c| {
            plan::mark_published(c, now, batch, &task_refs)
        })
        .await
    }

    async fn claim_task(
        &self,
        task_ref: TaskRef,
        _chunk: Option<ChunkMark>,
        worker: &str,
        lease: Duration,
    ) -> Result<ClaimResult> {
        let (now, worker) = (self.now(), worker.to_owned());
        let until = deadline_ms(now, lease);
        self.write_tasks(task_ref.batch, claiming_operation(task_ref), move |group| {
            tasks::claim(group, now, task_ref, &worker, until)
        })
        .await
    }

    async fn renew(&self, task_ref: TaskRef, holder: TaskHolder<'_>, lease: Duration) -> Result<LeaseStatus> {
        let until = deadline_ms(self.now(), lease);
        let operation = format!("renewing the lease of task {} of batch {}", task_ref.index, task_ref.batch);
        let holder = OwnedTaskHolder::new(holder);
        self.write_tasks(task_ref.batch, operation, move |group| tasks::renew(group, task_ref, &holder, until)).await
    }

    async fn finish(
        &self,
        task_ref: TaskRef,
        holder: TaskHolder<'_>,
        result: TaskResult,
        usage: Usage,
    ) -> Result<FinishReply> {
        let now = self.now();
        let operation = format!("finishing task {} of batch {}", task_ref.index, task_ref.batch);
        let holder = OwnedTaskHolder::new(holder);
        let (reply, is_ended) = self
            .write_tasks(task_ref.batch, operation, move |group| {
                tasks::finish(group, now, task_ref, &holder, &result, usage)
            })
            .await?;
        self.count_ended(is_ended);
        Ok(reply)
    }

    async fn reschedule(
        &self,
        task_ref: TaskRef,
        holder: TaskHolder<'_>,
        wait: Duration,
        counts: bool,
        usage: Usage,
    ) -> Result<RescheduleReply> {
        let now = self.now();
        let operation = format!("rescheduling task {} of batch {}", task_ref.index, task_ref.batch);
        let holder = OwnedTaskHolder::new(holder);
        self.write_tasks(task_ref.batch, operation, move |group| {
            tasks::reschedule(group, now, task_ref, &holder, wait, counts, usage)
        })
        .await
    }

    async fn batch_state(&self, batch: BatchId) -> Result<Option<BatchState>> {
        self.read_rows(format!("reading batch {batch}"), 1, move |c| {
            Ok(batch_row::BatchRow::find(c, batch)?.map(|entry| entry.state))
        })
        .await
    }

    async fn count_publishable(&self, batch: BatchId) -> Result<u64> {
        let publishable = move |c: &_| {
            let entry = batch_row::BatchRow::find(c, batch)?.filter(|entry| entry.state == BatchState::Running);
            Ok(entry.map_or(0, |entry| entry.count_in_state(TaskState::New).unsigned_abs()))
        };
        self.read_rows(format!("reading batch {batch}"), 1, publishable).await
    }

    async fn task_states(&self, batch: BatchId, tasks: &[u32]) -> Result<Vec<TaskState>> {
        let (tasks, count) = (tasks.to_vec(), tasks.len());
        let states = move |c: &_| {
            let mut tx = batch_tx::BatchTx::open(c, batch)?;
            tasks.into_iter().map(|task| Ok(tx.state(task)?.unwrap_or(TaskState::New))).collect()
        };
        self.read_rows(format!("reading batch {batch}"), count, states).await
    }

    async fn pause(&self, batch: BatchId) -> Result<BatchState> {
        let change = move |c: &_| lifecycle::transition(c, batch, BatchState::Running, BatchState::Paused);
        self.write(format!("pausing batch {batch}"), change).await
    }

    async fn resume(&self, batch: BatchId) -> Result<BatchState> {
        let change = move |c: &_| lifecycle::transition(c, batch, BatchState::Paused, BatchState::Running);
        self.write(format!("resuming batch {batch}"), change).await
    }

    async fn cancel(&self, batch: BatchId) -> Result<BatchState> {
        let now = self.now();
        let stop = move |c: &_| lifecycle::stop(c, now, batch, BatchState::Cancelled);
        self.write(format!("cancelling batch {batch}"), stop).await
    }

    async fn requeue(&self, batch: BatchId, filter: RequeueFilter) -> Result<u64> {
        let now = self.now();
        self.write(format!("requeuing batch {batch}"), move |c| lifecycle::requeue(c, now, batch, &filter)).await
    }

    async fn reclaim(&self, batch: BatchId, scope: ReclaimScope) -> Result<Reclaimed> {
        let now = self.now();
        self.write(format!("reclaiming lost tasks of batch {batch}"), move |c| lifecycle::reclaim(c, now, batch, scope))
            .await
    }

    async fn remove_before(&self, time: Timestamp) -> Result<u64> {
        let (now, time) = (self.now(), time.as_millisecond());
        self.write("removing old batches", move |c| lifecycle::remove_before(c, now, time)).await
    }

    fn ended_batches(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.ended_batches.subscribe())
    }

    async fn batch(&self, batch: BatchId) -> Result<Option<Batch>> {
        self.read_rows(format!("reading batch {batch}"), 1, move |c| queries::find_batch(c, batch)).await
    }

    async fn batches_before(&self, before: Option<BatchId>, limit: usize) -> Result<Vec<Batch>> {
        self.read("listing batches", move |c| queries::batches(c, before, limit)).await
    }

    async fn newest_batches(&self, rules: &[Digest], before: Option<BatchId>, each: usize) -> Result<Vec<Batch>> {
        let rules = rules.to_vec();
        self.read("listing batches of rules", move |c| queries::newest_batches(c, &rules, before, each)).await
    }

    async fn count_records(&self, batches: &[BatchId]) -> Result<Vec<RecordCounts>> {
        let batches = batches.to_vec();
        self.read("counting records of batches", move |c| queries::count_records(c, &batches)).await
    }

    async fn find_unfinished(&self, rules: &Digest) -> Result<Option<BatchId>> {
        let rules = rules.clone();
        self.read("looking for an unfinished batch", move |c| queries::find_unfinished(c, &rules)).await
    }

    async fn find_batches(&self, prefix: &str) -> Result<Vec<BatchId>> {
        let prefix = prefix.to_ascii_lowercase();
        self.read("looking for a batch", move |c| queries::find_batches(c, &prefix)).await
    }

    async fn listing_failures(&self, batch: BatchId) -> Result<Vec<ListingFailure>> {
        self.read(format!("reading batch {batch}"), move |c| queries::listing_failures(c, batch)).await
    }

    async fn empty_rules(&self, batch: BatchId) -> Result<Vec<EmptyRule>> {
        self.read(format!("reading batch {batch}"), move |c| queries::empty_rules(c, batch)).await
    }

    async fn prune_records(&self, batch: BatchId) -> Result<Vec<PruneRecord>> {
        self.read(format!("reading batch {batch}"), move |c| queries::prune_records(c, batch)).await
    }

    async fn failures(&self, batch: BatchId, from: u32, limit: usize) -> Result<Vec<FailedTask>> {
        self.read(format!("reading batch {batch}"), move |c| queries::failures(c, batch, from, limit)).await
    }

    async fn tasks(&self, batch: BatchId, state: Option<TaskState>, from: u32, limit: usize) -> Result<Vec<TaskRow>> {
        self.read(format!("reading batch {batch}"), move |c| queries::tasks(c, batch, state, from, limit)).await
    }

    async fn timeline(&self, batch: BatchId) -> Result<BatchTimeline> {
        self.read(format!("reading batch {batch}"), move |c| timeline::read_timeline(c, batch)).await
    }
}

fn claiming_operation(task_ref: TaskRef) -> String {
    format!("claiming task {} of batch {}", task_ref.index, task_ref.batch)
}
