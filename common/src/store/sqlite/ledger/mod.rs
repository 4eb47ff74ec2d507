//! [`Ledger`] in SQLite: each call is one function over a connection, within a transaction of its own or of a group.

mod book;
mod control;
mod course;
mod look;
mod plan;
mod tasks;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use self::tasks::Owner;
use super::SqliteStore;
use super::rows::after;
use crate::batch::{BatchId, TaskState, Ticket, Verdict};
use crate::error::Result;
use crate::image::Digest;
use crate::store::{
    Appended, Batch, Block, Control, Course, EmptyRule, FailedTask, Finished, Ledger, NewBatch, Pruned, RequeueFilter,
    Retried, Sealed, Spent, Standing, Start, Sweep, Swept, TaskHolder, TaskRow, Unlisted,
};

#[async_trait]
impl Ledger for SqliteStore {
    async fn create(&self, batch: NewBatch) -> Result<()> {
        let now = self.now();
        self.write(format!("making batch {}", batch.id), move |c| plan::create(c, now, &batch)).await
    }

    async fn append(&self, batch: BatchId, sealed: Sealed) -> Result<Appended> {
        let tried = format!("adding {} to batch {batch}", sealed.key);
        let now = self.now();
        // Encoding takes longer than writing: keep it off the writer thread.
        let packed = super::blocking(move || Ok(plan::Packed::new(sealed))).await?;
        self.write(tried, move |c| plan::append(c, now, batch, &packed)).await
    }

    async fn sealed(&self, batch: BatchId) -> Result<Vec<String>> {
        self.read(format!("reading batch {batch}"), move |c| plan::sealed(c, batch)).await
    }

    async fn note_unlisted(&self, batch: BatchId, unlisted: Unlisted) -> Result<()> {
        self.write(format!("noting in batch {batch}"), move |c| plan::note_unlisted(c, batch, &unlisted)).await
    }

    async fn note_empty_rule(&self, batch: BatchId, rule: EmptyRule) -> Result<()> {
        self.write(format!("noting in batch {batch}"), move |c| plan::note_empty_rule(c, batch, &rule)).await
    }

    async fn note_pruned(&self, batch: BatchId, pruned: Pruned) -> Result<()> {
        self.write(format!("noting in batch {batch}"), move |c| plan::note_pruned(c, batch, &pruned)).await
    }

    async fn note_told(&self, batch: BatchId, told: &str) -> Result<()> {
        let told = told.to_owned();
        self.write(format!("noting in batch {batch}"), move |c| plan::note_told(c, batch, &told)).await
    }

    async fn told(&self, batch: BatchId) -> Result<Vec<String>> {
        self.read(format!("reading batch {batch}"), move |c| look::told(c, batch)).await
    }

    async fn seal_all(&self, batch: BatchId) -> Result<()> {
        let now = self.now();
        self.write(format!("sealing batch {batch}"), move |c| plan::seal_all(c, now, batch)).await
    }

    async fn spend(&self, batch: BatchId, spent: Spent) -> Result<()> {
        let now = self.now();
        self.write(format!("counting in batch {batch}"), move |c| plan::spend(c, now, batch, spent)).await
    }

    async fn unpublished(&self, batch: BatchId, from: u32, at_least: usize) -> Result<Vec<Block>> {
        self.read(format!("reading batch {batch}"), move |c| plan::unpublished(c, batch, from, at_least)).await
    }

    async fn published(&self, batch: BatchId, tickets: Vec<Ticket>) -> Result<()> {
        let now = self.now();
        self.write(format!("marking in batch {batch}"), move |c| plan::published(c, now, batch, &tickets)).await
    }

    async fn start(&self, ticket: Ticket, worker: &str, lease: Duration) -> Result<Start> {
        let (now, worker) = (self.now(), worker.to_owned());
        let until = after(now, lease);
        self.write(starting(ticket), move |c| tasks::start(c, now, ticket, &worker, until)).await
    }

    async fn renew(&self, ticket: Ticket, holder: TaskHolder<'_>, lease: Duration) -> Result<Standing> {
        let until = after(self.now(), lease);
        let tried = format!("holding task {} of batch {}", ticket.index, ticket.batch);
        let holder = Owner::new(holder);
        self.write(tried, move |c| tasks::renew(c, ticket, &holder, until)).await
    }

    async fn finish(&self, ticket: Ticket, holder: TaskHolder<'_>, verdict: Verdict, spent: Spent) -> Result<Finished> {
        let now = self.now();
        let tried = format!("finishing task {} of batch {}", ticket.index, ticket.batch);
        let holder = Owner::new(holder);
        self.write(tried, move |c| tasks::finish(c, now, ticket, &holder, &verdict, spent)).await
    }

    async fn retry_later(
        &self,
        ticket: Ticket,
        holder: TaskHolder<'_>,
        wait: Duration,
        counts: bool,
        spent: Spent,
    ) -> Result<Retried> {
        let now = self.now();
        let tried = format!("putting off task {} of batch {}", ticket.index, ticket.batch);
        let holder = Owner::new(holder);
        self.write(tried, move |c| tasks::retry_later(c, now, ticket, &holder, wait, counts, spent)).await
    }

    async fn control(&self, batch: BatchId) -> Result<Option<Control>> {
        self.read(
            format!("reading batch {batch}"),
            move |c| Ok(book::Entry::find(c, batch)?.map(|entry| entry.control)),
        )
        .await
    }

    async fn publishable(&self, batch: BatchId) -> Result<u64> {
        let publishable = move |c: &_| {
            let entry = book::Entry::find(c, batch)?.filter(|entry| entry.control == Control::Running);
            Ok(entry.map_or(0, |entry| entry.count(TaskState::New).unsigned_abs()))
        };
        self.read(format!("reading batch {batch}"), publishable).await
    }

    async fn states(&self, batch: BatchId, tasks: &[u32]) -> Result<Vec<TaskState>> {
        let tasks = tasks.to_vec();
        let states = move |c: &_| {
            let mut book = book::Book::open(c, batch)?;
            tasks.into_iter().map(|task| Ok(book.state(task)?.unwrap_or(TaskState::New))).collect()
        };
        self.read(format!("reading batch {batch}"), states).await
    }

    async fn pause(&self, batch: BatchId) -> Result<Control> {
        let change = move |c: &_| control::change(c, batch, Control::Running, Control::Paused);
        self.write(format!("pausing batch {batch}"), change).await
    }

    async fn resume(&self, batch: BatchId) -> Result<Control> {
        let change = move |c: &_| control::change(c, batch, Control::Paused, Control::Running);
        self.write(format!("resuming batch {batch}"), change).await
    }

    async fn cancel(&self, batch: BatchId) -> Result<Control> {
        let now = self.now();
        let stop = move |c: &_| control::stop(c, now, batch, Control::Cancelled);
        self.write(format!("cancelling batch {batch}"), stop).await
    }

    async fn requeue(&self, batch: BatchId, filter: RequeueFilter) -> Result<u64> {
        let now = self.now();
        self.write(format!("requeuing batch {batch}"), move |c| control::requeue(c, now, batch, &filter)).await
    }

    async fn sweep(&self, batch: BatchId, sweep: Sweep) -> Result<Swept> {
        let now = self.now();
        self.write(format!("sweeping batch {batch}"), move |c| control::sweep(c, now, batch, sweep)).await
    }

    async fn remove_before(&self, time: Timestamp) -> Result<u64> {
        let (now, time) = (self.now(), time.as_millisecond());
        self.write("removing old batches", move |c| control::remove_before(c, now, time)).await
    }

    async fn batch(&self, batch: BatchId) -> Result<Option<Batch>> {
        self.read(format!("reading batch {batch}"), move |c| look::batch(c, batch)).await
    }

    async fn batches(&self, limit: usize) -> Result<Vec<Batch>> {
        self.read("listing batches", move |c| look::batches(c, limit)).await
    }

    async fn unfinished(&self, rules: &Digest) -> Result<Option<BatchId>> {
        let rules = rules.clone();
        self.read("looking for an unfinished batch", move |c| look::unfinished(c, &rules)).await
    }

    async fn find(&self, prefix: &str) -> Result<Vec<BatchId>> {
        let prefix = prefix.to_ascii_lowercase();
        self.read("looking for a batch", move |c| look::find(c, &prefix)).await
    }

    async fn unlisted(&self, batch: BatchId) -> Result<Vec<Unlisted>> {
        self.read(format!("reading batch {batch}"), move |c| look::unlisted(c, batch)).await
    }

    async fn empty_rules(&self, batch: BatchId) -> Result<Vec<EmptyRule>> {
        self.read(format!("reading batch {batch}"), move |c| look::empty_rules(c, batch)).await
    }

    async fn pruned(&self, batch: BatchId) -> Result<Vec<Pruned>> {
        self.read(format!("reading batch {batch}"), move |c| look::pruned(c, batch)).await
    }

    async fn failures(&self, batch: BatchId, from: u32, limit: usize) -> Result<Vec<FailedTask>> {
        self.read(format!("reading batch {batch}"), move |c| look::failures(c, batch, from, limit)).await
    }

    async fn tasks(&self, batch: BatchId, state: Option<TaskState>, from: u32, limit: usize) -> Result<Vec<TaskRow>> {
        self.read(format!("reading batch {batch}"), move |c| look::tasks(c, batch, state, from, limit)).await
    }

    async fn course(&self, batch: BatchId) -> Result<Course> {
        self.read(format!("reading batch {batch}"), move |c| course::course(c, batch)).await
    }
}

fn starting(ticket: Ticket) -> String {
    format!("starting task {} of batch {}", ticket.index, ticket.batch)
}
