//! [`Ledger`] in Redis: each change is one script.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

use super::segment::{SegmentArguments, encode_failure};
use super::{PlanEnd, RedisStore, ScriptCall, corrupt_store, duration_ms, timestamp};
use crate::ledger::start_lease_lost;
use crate::{
    AppendResult, Batch, BatchState, BatchTimeline, ClaimResult, EmptyRule, FailedTask, FinishReply, IdempotencyKey,
    LeaseStatus, Ledger, ListingFailure, NewBatch, PlanBlock, PlanCompletion, PlanSegment, PlanSize, PruneRecord,
    ReclaimScope, Reclaimed, RecordCounts, RequeueFilter, RescheduleReply, StoreReplication, TaskHolder, TaskRow,
    Usage,
};
use imgsync_model::batch::{BatchId, ChunkMark, TaskRef, TaskResult, TaskState};
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};

/// Tasks per script call.
const TASKS_PER_CALL: usize = 1_000;

/// Adds a command that returns the newest ids of a sorted set of batches, below an id if there is one.
fn push_newest(pipe: &mut redis::Pipeline, key: &str, before: Option<BatchId>, limit: usize) {
    let below = before.map_or_else(|| "+".to_owned(), |before| format!("({before}"));
    pipe.cmd("ZRANGE").arg(key).arg(below).arg("-").arg("BYLEX").arg("REV").arg("LIMIT").arg(0).arg(limit);
}

#[async_trait]
impl Ledger for RedisStore {
    async fn create(&self, batch: NewBatch) -> Result<()> {
        let operation = format!("creating batch {}", batch.id);
        self.write_version(&operation).await?;
        let before = batch.supersedes.map(|before| before.to_string()).unwrap_or_default();
        let lease = self.lease_key(batch.fence.as_ref().map_or("", |fence| &fence.name));
        let mut call = ScriptCall::new(self.batch_key(batch.id)).key(self.key("batches")).key(lease);
        if let Some(before) = batch.supersedes {
            call = call.key(self.batch_key(before));
        }
        let tag = self.sign_options(batch.id, &batch.rules, &batch.options);
        let call = call.arg(batch.id).arg(batch.rules).arg(batch.options).arg(before).arg(tag);
        let call = match &batch.fence {
            Some(fence) => call.arg(&fence.holder).arg(fence.token),
            None => call.arg("").arg(""),
        };
        match self.run_script::<i64>(&operation, &self.0.scripts.create_batch, call).await? {
            0 => Err(start_lease_lost(batch.id)),
            _ => Ok(()),
        }
    }

    async fn append(&self, batch: BatchId, segment: PlanSegment) -> Result<AppendResult> {
        let operation = format!("adding {} to batch {batch}", segment.key);
        let packed = tokio::task::spawn_blocking(move || SegmentArguments::from_segment(segment))
            .await
            .map_err(|error| Error::new(ErrorKind::Local, &operation, error.to_string()))?;
        let answer: Vec<i64> = match self.signing_key() {
            None => {
                self.run_script(&operation, &self.0.scripts.append_segment, packed.script_call(self, batch, None))
                    .await?
            }
            Some(_) => self.append_signed(&operation, batch, &packed).await?,
        };
        match answer.as_slice() {
            [0, first, ..] => {
                // A lost segment would be noticed at the end of the plan only.
                self.count_write_soon();
                let first = u32::try_from(*first).map_err(|_| corrupt_store(&operation, "no such index"))?;
                Ok(AppendResult::Appended(first))
            }
            [1, ..] => Ok(AppendResult::AlreadyPlanned),
            [2, code, ..] => Ok(AppendResult::Closed(decode_batch_state(&operation, *code)?)),
            _ => Err(no_such_batch(&operation)),
        }
    }

    async fn segment_keys(&self, batch: BatchId) -> Result<Vec<String>> {
        let operation = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.exists(self.batch_key(batch)).hkeys(format!("{}:repositories", self.batch_key(batch)));
        let (there, mut keys): (bool, Vec<String>) = self.query(&operation, &pipe).await?;
        if !there {
            return Err(no_such_batch(&operation));
        }
        keys.sort_unstable();
        Ok(keys)
    }

    async fn record_pruned(&self, batch: BatchId, pruned: PruneRecord) -> Result<()> {
        let text = serde_json::to_string(&pruned).unwrap_or_default();
        self.set_note(batch, ":pruned", &format!("{} {}", pruned.target, pruned.source), text).await
    }

    async fn record_empty_rule(&self, batch: BatchId, rule: EmptyRule) -> Result<()> {
        let text = serde_json::to_string(&rule).unwrap_or_default();
        self.set_note(batch, ":empty_rules", &rule.rule.to_string(), text).await
    }

    async fn record_listing_failure(&self, batch: BatchId, unlisted: ListingFailure) -> Result<()> {
        let text = serde_json::to_string(&unlisted).unwrap_or_default();
        self.set_note(batch, ":unlisted", &unlisted.repository, text).await
    }

    async fn record_notification(&self, batch: BatchId, targets: &str) -> Result<()> {
        self.set_note(batch, ":notifications", targets, String::new()).await
    }

    async fn sent_notifications(&self, batch: BatchId) -> Result<Vec<String>> {
        let operation = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.exists(self.batch_key(batch)).hkeys(format!("{}:notifications", self.batch_key(batch)));
        let (there, mut targets): (bool, Vec<String>) = self.query(&operation, &pipe).await?;
        if !there {
            return Err(no_such_batch(&operation));
        }
        targets.sort_unstable();
        Ok(targets)
    }

    async fn complete_plan(&self, batch: BatchId, at_least: PlanSize) -> Result<PlanCompletion> {
        let operation = format!("completing the plan of batch {batch}");
        let call = ScriptCall::new(self.batch_key(batch)).arg(at_least.segments).arg(at_least.tasks);
        let answer: Vec<u64> = self.run_script(&operation, &self.0.scripts.complete_plan, call).await?;
        match answer.as_slice() {
            [1, ..] => {
                self.count_write().await;
                Ok(PlanCompletion::Complete)
            }
            [2, segments, tasks] => {
                // Later positions were known only from what is lost.
                self.0.chunks().remove(&batch);
                self.record_lost_plan();
                Ok(PlanCompletion::Incomplete(PlanSize { segments: *segments, tasks: *tasks }))
            }
            _ => Err(no_such_batch(&operation)),
        }
    }

    async fn add_usage(&self, batch: BatchId, usage: Usage) -> Result<()> {
        let operation = format!("adding the usage of batch {batch}");
        let call = ScriptCall::new(self.batch_key(batch)).key(self.request_key(IdempotencyKey::generate()));
        require_batch(
            &operation,
            self.run_script(&operation, &self.0.scripts.add_usage, with_usage(call, usage)).await?,
        )
    }

    async fn list_unpublished(&self, batch: BatchId, from: u32, at_least: usize) -> Result<Vec<PlanBlock>> {
        self.read_unpublished(batch, from, at_least).await
    }

    async fn mark_published(&self, batch: BatchId, task_refs: Vec<TaskRef>) -> Result<()> {
        let operation = format!("marking published tasks of batch {batch}");
        for task_refs in task_refs.chunks(TASKS_PER_CALL) {
            let mut call = ScriptCall::new(self.batch_key(batch));
            for task_ref in task_refs.iter().filter(|task_ref| task_ref.batch == batch) {
                call = call.arg(task_ref.index).arg(task_ref.run);
            }
            require_batch(&operation, self.run_script(&operation, &self.0.scripts.mark_published, call).await?)?;
        }
        Ok(())
    }

    async fn claim_task(
        &self,
        task_ref: TaskRef,
        chunk: Option<ChunkMark>,
        worker: &str,
        lease: Duration,
    ) -> Result<ClaimResult> {
        let operation = format!("claiming task {} of batch {}", task_ref.index, task_ref.batch);
        let call = ScriptCall::new(self.batch_key(task_ref.batch))
            .arg(task_ref.index)
            .arg(task_ref.run)
            .arg(worker)
            .arg(duration_ms(lease));
        let call = match chunk {
            Some(ChunkMark { number, checksum }) => call.arg(number).arg(checksum),
            None => call.arg("").arg(""),
        };
        let answer: Vec<i64> = self.run_script(&operation, &self.0.scripts.claim_task, call).await?;
        let value = |at: usize| answer.get(at).copied().unwrap_or_default();
        let small = |at| u32::try_from(value(at)).unwrap_or_default();
        Ok(match answer.first() {
            Some(0) => ClaimResult::Claimed { token: value(1).unsigned_abs(), attempts: small(2), losses: small(3) },
            Some(1) => ClaimResult::AlreadyOwned { token: value(1).unsigned_abs(), attempts: small(2) },
            Some(2) => ClaimResult::AlreadyDone,
            Some(3) => ClaimResult::Cancelled,
            Some(4) => ClaimResult::HeldBy { until: timestamp(value(1)) },
            Some(5) => ClaimResult::StaleRun,
            Some(6) => ClaimResult::Paused,
            Some(8) => ClaimResult::NotInPlan,
            _ => ClaimResult::Unknown,
        })
    }

    async fn renew(&self, task_ref: TaskRef, holder: TaskHolder<'_>, lease: Duration) -> Result<LeaseStatus> {
        let operation = format!("renewing the lease of task {} of batch {}", task_ref.index, task_ref.batch);
        let call = ScriptCall::new(self.batch_key(task_ref.batch))
            .arg(task_ref.index)
            .arg(lease_owner(holder))
            .arg(duration_ms(lease));
        let answer: Vec<i64> = self.run_script(&operation, &self.0.scripts.renew_task, call).await?;
        Ok(match answer.as_slice() {
            [0, until] => LeaseStatus::Held { until: timestamp(*until) },
            [2, ..] => LeaseStatus::BatchStopped,
            _ => LeaseStatus::Lost,
        })
    }

    async fn finish(
        &self,
        task_ref: TaskRef,
        holder: TaskHolder<'_>,
        result: TaskResult,
        usage: Usage,
    ) -> Result<FinishReply> {
        let operation = format!("finishing task {} of batch {}", task_ref.index, task_ref.batch);
        let failure = match &result {
            TaskResult::Failed(failure) => encode_failure(failure),
            _ => Vec::new(),
        };
        let state = result.state().code();
        let call = ScriptCall::new(self.batch_key(task_ref.batch))
            .arg(task_ref.index)
            .arg(lease_owner(holder))
            .arg(state)
            .bytes(failure);
        Ok(decode_finish_reply(
            self.run_script(&operation, &self.0.scripts.finish_task, with_usage(call, usage)).await?,
        ))
    }

    async fn reschedule(
        &self,
        task_ref: TaskRef,
        holder: TaskHolder<'_>,
        wait: Duration,
        counts: bool,
        usage: Usage,
    ) -> Result<RescheduleReply> {
        let operation = format!("rescheduling task {} of batch {}", task_ref.index, task_ref.batch);
        // A delay below a millisecond is still a delay.
        let wait = if wait.is_zero() { 0 } else { duration_ms(wait).max(1) };
        let call = ScriptCall::new(self.batch_key(task_ref.batch))
            .arg(task_ref.index)
            .arg(lease_owner(holder))
            .arg(wait)
            .arg(u8::from(counts));
        let answer: Vec<i64> =
            self.run_script(&operation, &self.0.scripts.reschedule_task, with_usage(call, usage)).await?;
        Ok(match answer.as_slice() {
            [0, attempts] => RescheduleReply::Scheduled { attempts: u32::try_from(*attempts).unwrap_or_default() },
            _ => RescheduleReply::Stale,
        })
    }

    async fn batch_state(&self, batch: BatchId) -> Result<Option<BatchState>> {
        let operation = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.hget(self.batch_key(batch), "state");
        let (code,): (Option<i64>,) = self.query(&operation, &pipe).await?;
        code.map(|code| decode_batch_state(&operation, code)).transpose()
    }

    async fn count_publishable(&self, batch: BatchId) -> Result<u64> {
        let operation = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        let fields = ["state".to_owned(), format!("s{}", TaskState::New.code())];
        pipe.cmd("HMGET").arg(self.batch_key(batch)).arg(&fields[..]);
        let ((code, new),): ((Option<i64>, Option<u64>),) = self.query(&operation, &pipe).await?;
        let is_running =
            code.is_some_and(|code| decode_batch_state(&operation, code).is_ok_and(|is| is == BatchState::Running));
        Ok(new.filter(|_| is_running).unwrap_or_default())
    }

    async fn task_states(&self, batch: BatchId, tasks: &[u32]) -> Result<Vec<TaskState>> {
        self.read_task_states(batch, tasks).await
    }

    async fn pause(&self, batch: BatchId) -> Result<BatchState> {
        self.transition(format!("pausing batch {batch}"), batch, BatchState::Running, BatchState::Paused).await
    }

    async fn resume(&self, batch: BatchId) -> Result<BatchState> {
        self.transition(format!("resuming batch {batch}"), batch, BatchState::Paused, BatchState::Running).await
    }

    async fn cancel(&self, batch: BatchId) -> Result<BatchState> {
        let operation = format!("cancelling batch {batch}");
        let code: i64 =
            self.run_script(&operation, &self.0.scripts.cancel_batch, ScriptCall::new(self.batch_key(batch))).await?;
        self.count_write().await;
        match code {
            -1 => Err(no_such_batch(&operation)),
            code => decode_batch_state(&operation, code),
        }
    }

    async fn requeue(&self, batch: BatchId, filter: RequeueFilter) -> Result<u64> {
        let operation = format!("requeuing batch {batch}");
        let entry = self.batch(batch).await?.ok_or_else(|| no_such_batch(&operation))?;
        if entry.state.is_stopped() {
            return Err(batch_stopped(&operation, entry.state));
        }
        let run = entry.run + 1;
        let (mut from, mut requeued) = (0, 0);
        loop {
            let failed = self.failures(batch, from, TASKS_PER_CALL).await?;
            let Some(last) = failed.last() else { return Ok(requeued) };
            from = last.task.index.saturating_add(1);
            let mut call = ScriptCall::new(self.batch_key(batch)).arg(run);
            for failed in failed.iter().filter(|failed| filter.selects(failed)) {
                call = call.arg(failed.task.index);
            }
            match self.run_script::<i64>(&operation, &self.0.scripts.requeue_failed, call).await? {
                -1 => return Err(no_such_batch(&operation)),
                -2 => return Err(batch_stopped(&operation, BatchState::Cancelled)),
                more => requeued += more.unsigned_abs(),
            }
        }
    }

    async fn reclaim(&self, batch: BatchId, scope: ReclaimScope) -> Result<Reclaimed> {
        let operation = format!("reclaiming lost tasks of batch {batch}");
        let (what, grace) = match scope {
            ReclaimScope::ExpiredLeases { grace } => (0, grace),
            ReclaimScope::EmptyQueue { grace } => (1, grace),
            ReclaimScope::Everything => (2, Duration::ZERO),
        };
        let call = ScriptCall::new(self.batch_key(batch)).arg(what).arg(duration_ms(grace));
        let (leased, queued): (i64, i64) = self.run_script(&operation, &self.0.scripts.reclaim, call).await?;
        match leased {
            -1 => Err(no_such_batch(&operation)),
            leased => Ok(Reclaimed { leased: leased.unsigned_abs(), queued: queued.unsigned_abs() }),
        }
    }

    async fn remove_before(&self, before: Timestamp) -> Result<u64> {
        let operation = "removing old batches";
        let mut pipe = redis::pipe();
        pipe.zrange(self.key("batches"), 0, -1);
        // Ids are in order of creation.
        let (ids,): (Vec<String>,) = self.query(operation, &pipe).await?;
        let mut removed = 0;
        for id in ids {
            let Ok(batch) = id.parse::<BatchId>() else { continue };
            let call =
                ScriptCall::new(self.batch_key(batch)).key(self.key("batches")).arg(&id).arg(before.as_millisecond());
            match self.run_script::<i64>(operation, &self.0.scripts.remove_batch, call).await? {
                1 => {
                    self.0.chunks().remove(&batch);
                    removed += 1;
                }
                2 => break,
                _ => {}
            }
        }
        Ok(removed)
    }

    fn has_replicas(&self) -> bool {
        self.0.has_replicas.load(Ordering::Relaxed)
    }

    async fn replication(&self) -> Result<Option<StoreReplication>> {
        Ok(Some(self.read_replication().await))
    }

    fn watch_for_write_losses(&self) {
        self.start_write_loss_watch();
    }

    fn write_losses(&self) -> Option<watch::Receiver<u64>> {
        Some(self.subscribe_to_write_losses())
    }

    async fn batch(&self, batch: BatchId) -> Result<Option<Batch>> {
        self.read_batch(batch).await
    }

    async fn batches_before(&self, before: Option<BatchId>, limit: usize) -> Result<Vec<Batch>> {
        let mut pipe = redis::pipe();
        push_newest(&mut pipe, &self.key("batches"), before, limit);
        let (ids,): (Vec<String>,) = self.query("listing batches", &pipe).await?;
        let ids: Vec<BatchId> = ids.iter().filter_map(|id| id.parse().ok()).collect();
        self.read_batches(&ids).await
    }

    async fn newest_batches(&self, rules: &[Digest], before: Option<BatchId>, each: usize) -> Result<Vec<Batch>> {
        if rules.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for rules in rules {
            push_newest(&mut pipe, &self.key(&format!("history:{rules}")), before, each);
        }
        let ids: Vec<Vec<String>> = self.query("listing batches of rules", &pipe).await?;
        let ids: Vec<BatchId> = ids.iter().flatten().filter_map(|id| id.parse().ok()).collect();
        self.read_batches(&ids).await
    }

    async fn find_unfinished(&self, rules: &Digest) -> Result<Option<BatchId>> {
        let mut pipe = redis::pipe();
        pipe.smembers(self.key(&format!("unfinished:{rules}")));
        let (ids,): (Vec<String>,) = self.query("looking for an unfinished batch", &pipe).await?;
        let mut ids: Vec<BatchId> = ids.iter().filter_map(|id| id.parse().ok()).collect();
        ids.sort_unstable();
        let live = self.read_batches(&ids).await?.into_iter().rev().find(|batch| batch.state.is_live());
        Ok(live.map(|batch| batch.id))
    }

    async fn find_batches(&self, prefix: &str) -> Result<Vec<BatchId>> {
        let prefix = prefix.to_ascii_lowercase();
        let mut pipe = redis::pipe();
        pipe.cmd("ZRANGE")
            .arg(self.key("batches"))
            .arg(format!("[{prefix}\u{7f}"))
            .arg(format!("[{prefix}"))
            .arg("BYLEX")
            .arg("REV")
            .arg("LIMIT")
            .arg(0)
            .arg(10);
        let (ids,): (Vec<String>,) = self.query("looking for a batch", &pipe).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    async fn prune_records(&self, batch: BatchId) -> Result<Vec<PruneRecord>> {
        let operation = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.exists(self.batch_key(batch)).hvals(format!("{}:pruned", self.batch_key(batch)));
        let (there, texts): (bool, Vec<String>) = self.query(&operation, &pipe).await?;
        if !there {
            return Err(no_such_batch(&operation));
        }
        let read =
            |text: &String| serde_json::from_str(text).map_err(|error| corrupt_store(&operation, &error.to_string()));
        let mut pruned: Vec<PruneRecord> = texts.iter().map(read).collect::<Result<_>>()?;
        pruned.sort_by(|a, b| (a.outcome, &a.target, &a.source).cmp(&(b.outcome, &b.target, &b.source)));
        Ok(pruned)
    }

    async fn empty_rules(&self, batch: BatchId) -> Result<Vec<EmptyRule>> {
        let operation = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.exists(self.batch_key(batch)).hvals(format!("{}:empty_rules", self.batch_key(batch)));
        let (there, texts): (bool, Vec<String>) = self.query(&operation, &pipe).await?;
        if !there {
            return Err(no_such_batch(&operation));
        }
        let read =
            |text: &String| serde_json::from_str(text).map_err(|error| corrupt_store(&operation, &error.to_string()));
        let mut rules: Vec<EmptyRule> = texts.iter().map(read).collect::<Result<_>>()?;
        rules.sort_by_key(|rule| rule.rule);
        Ok(rules)
    }

    async fn count_records(&self, batches: &[BatchId]) -> Result<Vec<RecordCounts>> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for batch in batches {
            let base = self.batch_key(*batch);
            pipe.hlen(format!("{base}:unlisted")).hlen(format!("{base}:pruned"));
        }
        let counts: Vec<u64> = self.query("counting records of batches", &pipe).await?;
        Ok(counts.chunks_exact(2).map(|pair| RecordCounts { unlisted: pair[0], pruned: pair[1] }).collect())
    }

    async fn listing_failures(&self, batch: BatchId) -> Result<Vec<ListingFailure>> {
        let operation = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.exists(self.batch_key(batch)).hvals(format!("{}:unlisted", self.batch_key(batch)));
        let (there, texts): (bool, Vec<String>) = self.query(&operation, &pipe).await?;
        if !there {
            return Err(no_such_batch(&operation));
        }
        let read =
            |text: &String| serde_json::from_str(text).map_err(|error| corrupt_store(&operation, &error.to_string()));
        let mut unlisted: Vec<ListingFailure> = texts.iter().map(read).collect::<Result<_>>()?;
        unlisted.sort_by(|a, b| a.repository.cmp(&b.repository));
        Ok(unlisted)
    }

    async fn failures(&self, batch: BatchId, from: u32, limit: usize) -> Result<Vec<FailedTask>> {
        self.read_failures(batch, from, limit).await
    }

    async fn tasks(&self, batch: BatchId, state: Option<TaskState>, from: u32, limit: usize) -> Result<Vec<TaskRow>> {
        self.read_tasks(batch, state, from, limit).await
    }

    async fn timeline(&self, batch: BatchId) -> Result<BatchTimeline> {
        self.read_timeline(batch).await
    }
}

impl RedisStore {
    /// Sets a field in one of a batch's hashes.
    async fn set_note(&self, batch: BatchId, part: &str, field: &str, text: String) -> Result<()> {
        let operation = format!("recording in batch {batch}");
        let call = ScriptCall::new(self.batch_key(batch)).arg(part).arg(field).arg(text);
        require_batch(&operation, self.run_script(&operation, &self.0.scripts.set_note, call).await?)
    }

    /// Adds chunks whose signatures cover their positions, one repository at a time. If another process takes a
    /// position meanwhile, signs them for the next one.
    async fn append_signed(&self, operation: &str, batch: BatchId, packed: &SegmentArguments) -> Result<Vec<i64>> {
        let mut ends = self.0.plan_ends.lock().await;
        let mut end = ends.get(&batch).copied().unwrap_or_default();
        loop {
            let call = packed.script_call(self, batch, Some(end));
            let answer: Vec<i64> = self.run_script(operation, &self.0.scripts.append_segment, call).await?;
            let after = match answer.as_slice() {
                [0, ..] => PlanEnd {
                    tasks: packed.chunks.iter().fold(end.tasks, |sum, (tasks, ..)| sum.saturating_add(*tasks)),
                    chunks: end.chunks + packed.chunks.len() as u64,
                },
                [3, tasks, segments] => PlanEnd {
                    tasks: u32::try_from(*tasks).map_err(|_| corrupt_store(operation, "no such index"))?,
                    chunks: segments.unsigned_abs(),
                },
                _ => return Ok(answer),
            };
            // Of many batches, only the last few are being listed.
            ends.insert(batch, after);
            if answer.first() == Some(&0) {
                return Ok(answer);
            }
            end = after;
        }
    }

    async fn transition(
        &self,
        operation: String,
        batch: BatchId,
        from: BatchState,
        to: BatchState,
    ) -> Result<BatchState> {
        let call = ScriptCall::new(self.batch_key(batch)).arg(from as u8).arg(to as u8);
        let code: i64 = self.run_script(&operation, &self.0.scripts.change_state, call).await?;
        self.count_write().await;
        match code {
            -1 => Err(no_such_batch(&operation)),
            code => decode_batch_state(&operation, code),
        }
    }
}

fn with_usage(call: ScriptCall, usage: Usage) -> ScriptCall {
    let Usage { bytes, requests, time } = usage;
    let call = call.arg(bytes.copied).arg(bytes.mounted).arg(bytes.reused).arg(requests.source).arg(requests.target);
    call.arg(duration_ms(time))
}

/// Returns the owner string that scripts compare with a lease.
fn lease_owner(holder: TaskHolder<'_>) -> String {
    format!("{}|{}", holder.token, holder.worker)
}

fn decode_finish_reply(answer: i64) -> FinishReply {
    match answer {
        0 => FinishReply::Counted,
        2 => FinishReply::AlreadyDone,
        _ => FinishReply::Stale,
    }
}

pub(super) fn decode_batch_state(operation: &str, code: i64) -> Result<BatchState> {
    let control = usize::try_from(code).ok().and_then(|code| BatchState::ALL.get(code)).copied();
    control.ok_or_else(|| corrupt_store(operation, "a batch has an unknown state"))
}

fn require_batch(operation: &str, answer: i64) -> Result<()> {
    match answer {
        0 => Err(no_such_batch(operation)),
        _ => Ok(()),
    }
}

pub(super) fn no_such_batch(operation: &str) -> Error {
    Error::new(ErrorKind::NotFound, operation, "there is no such batch")
        .with_hint("`imgsync batch list` lists the batches; if the store was emptied, run the rules again")
}

fn batch_stopped(operation: &str, control: BatchState) -> Error {
    Error::new(ErrorKind::Invalid, operation, format!("it was {control}")).with_hint("run its rules again")
}
