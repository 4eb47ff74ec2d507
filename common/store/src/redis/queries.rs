//! Queries of batches and tasks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::ledger::{decode_batch_state, no_such_batch};
use super::signed::{ChunkPosition, altered_error};
use super::{RedisStore, corrupt_store, timestamp};
use crate::{Batch, BatchState, FailedTask, PlanBlock, TaskRow, Usage};
use imgsync_model::batch::{
    BatchId, BlobBytes, ChunkMark, Failure, PlanChunk, RequestCounts, Task, TaskCounts, TaskState, chunk_checksum,
};
use imgsync_oci::error::{Error, ErrorKind, Result};

/// Bytes of states per read, two tasks per byte.
const STATE_PAGE_BYTES: u32 = 32 << 10;

/// Maximum gap between two tasks, in bytes of states, that is read along instead of in two ranges.
const MAX_STATE_GAP_BYTES: u32 = 256;

impl RedisStore {
    /// Returns those of these batches that exist.
    pub(super) async fn read_batches(&self, ids: &[BatchId]) -> Result<Vec<Batch>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for id in ids {
            pipe.hgetall(self.batch_key(*id));
        }
        let operation = "reading batches";
        let found: Vec<HashMap<String, String>> = self.query(operation, &pipe).await?;
        let found = ids.iter().zip(found).filter(|(_, fields)| fields.contains_key("state"));
        let read = |(id, fields): (&BatchId, HashMap<String, String>)| {
            let mut batch = decode_batch(operation, *id, &fields)?;
            // A list continues without them; a process that works with the batch reads it alone and fails.
            if !self.verify_options(*id, &batch.rules, &batch.options, fields.get("tag").map(String::as_str)) {
                batch.options.clear();
            }
            Ok(batch)
        };
        found.map(read).collect()
    }

    /// Returns a batch, and verifies its options.
    pub(super) async fn read_batch(&self, id: BatchId) -> Result<Option<Batch>> {
        let operation = format!("reading batch {id}");
        let mut pipe = redis::pipe();
        pipe.hgetall(self.batch_key(id));
        let (fields,): (HashMap<String, String>,) = self.query(&operation, &pipe).await?;
        if !fields.contains_key("state") {
            return Ok(None);
        }
        let batch = decode_batch(&operation, id, &fields)?;
        match self.verify_options(id, &batch.rules, &batch.options, fields.get("tag").map(String::as_str)) {
            true => Ok(Some(batch)),
            false => Err(altered_error(&operation, "the record of its options")),
        }
    }

    /// Returns whether a plan that could not be read may be readable after a second look: where its chunks begin was
    /// known from an earlier read, and a store that lost its latest writes may have other chunks by now.
    fn forget_chunks(&self, id: BatchId, error: &Error) -> bool {
        let may_be_stale = matches!(error.kind(), ErrorKind::Local | ErrorKind::Insecure);
        if may_be_stale {
            // Another reader may have done so while this one read.
            self.0.chunks().remove(&id);
        }
        may_be_stale
    }

    pub(super) async fn read_unpublished(&self, id: BatchId, from: u32, at_least: usize) -> Result<Vec<PlanBlock>> {
        match self.try_read_unpublished(id, from, at_least).await {
            Err(error) if self.forget_chunks(id, &error) => self.try_read_unpublished(id, from, at_least).await,
            found => found,
        }
    }

    async fn try_read_unpublished(&self, id: BatchId, from: u32, at_least: usize) -> Result<Vec<PlanBlock>> {
        let operation = format!("reading batch {id}");
        let batch = self.read_batches(&[id]).await?.pop().ok_or_else(|| no_such_batch(&operation))?;
        let is_new = batch.counts.waiting > batch.queued + batch.retrying;
        if batch.state != BatchState::Running || !is_new {
            return Ok(Vec::new());
        }
        let mut plan = PlanReader::open(self, id, operation, &batch).await?;
        let (mut blocks, mut found, mut from) = (Vec::new(), 0, from);
        while found < at_least.max(1)
            && let Some(index) = plan.next_in_state(Some(TaskState::New), from).await?
        {
            let (first, end) = plan.chunk_of(index)?;
            let began = std::mem::replace(&mut from, end);
            // Whole chunks only, identified by their first index.
            if first < began {
                continue;
            }
            let (chunk, mark) = plan.read_chunk(first).await?;
            let mut new = Vec::new();
            for index in first..end {
                if plan.state(index).await? == TaskState::New {
                    new.push(index);
                }
            }
            let marks = plan.read_run_attempts(&new).await?;
            let mut tasks = Vec::with_capacity(new.len());
            for (index, (run, _)) in new.into_iter().zip(marks) {
                tasks.push((run, plan.task(&chunk, first, index)?));
            }
            found += tasks.len();
            blocks.push(PlanBlock { first, listed_at: chunk.listed_at, mark: Some(mark), tasks });
        }
        Ok(blocks)
    }

    pub(super) async fn read_tasks(
        &self,
        id: BatchId,
        wanted: Option<TaskState>,
        from: u32,
        limit: usize,
    ) -> Result<Vec<TaskRow>> {
        match self.try_read_tasks(id, wanted, from, limit).await {
            Err(error) if self.forget_chunks(id, &error) => self.try_read_tasks(id, wanted, from, limit).await,
            found => found,
        }
    }

    async fn try_read_tasks(
        &self,
        id: BatchId,
        wanted: Option<TaskState>,
        from: u32,
        limit: usize,
    ) -> Result<Vec<TaskRow>> {
        let operation = format!("reading batch {id}");
        let batch = self.read_batches(&[id]).await?.pop().ok_or_else(|| no_such_batch(&operation))?;
        let mut plan = PlanReader::open(self, id, operation, &batch).await?;
        let (mut rows, mut from) = (Vec::new(), from);
        while rows.len() < limit
            && let Some(index) = plan.next_in_state(wanted, from).await?
        {
            let (first, end) = plan.chunk_of(index)?;
            let (chunk, _) = plan.read_chunk(first).await?;
            let mut here = Vec::new();
            for index in index..end {
                let state = plan.state(index).await?;
                if wanted.is_none_or(|wanted| wanted == state) && rows.len() + here.len() < limit {
                    here.push((index, state));
                }
            }
            let indexes: Vec<u32> = here.iter().map(|(index, _)| *index).collect();
            let marks = plan.read_run_attempts(&indexes).await?;
            for ((index, state), (run, attempts)) in here.into_iter().zip(marks) {
                rows.push(TaskRow { task: plan.task(&chunk, first, index)?, state, run, attempts });
            }
            from = end;
        }
        Ok(rows)
    }

    /// Returns task states, with one read per range of nearby tasks.
    pub(super) async fn read_task_states(&self, id: BatchId, tasks: &[u32]) -> Result<Vec<TaskState>> {
        let operation = format!("reading batch {id}");
        let mut bytes: Vec<u32> = tasks.iter().map(|task| task / 2).collect();
        bytes.sort_unstable();
        bytes.dedup();
        let mut pieces: Vec<(u32, u32)> = Vec::new();
        for byte in bytes {
            match pieces.last_mut() {
                Some((_, last)) if byte - *last <= MAX_STATE_GAP_BYTES => *last = byte,
                _ => pieces.push((byte, byte)),
            }
        }
        let mut pipe = redis::pipe();
        let key = format!("{}:states", self.batch_key(id));
        for (first, last) in &pieces {
            pipe.cmd("GETRANGE").arg(&key).arg(*first).arg(*last);
        }
        let found: Vec<Vec<u8>> = if pieces.is_empty() { Vec::new() } else { self.query(&operation, &pipe).await? };
        let state = |task: &u32| {
            let at = pieces.partition_point(|(first, _)| *first <= task / 2).saturating_sub(1);
            let (first, bytes) = (pieces[at].0, &found[at]);
            TaskState::from_code(state_code(bytes, task - 2 * first))
        };
        let states = tasks.iter().map(state).collect::<Option<_>>();
        states.ok_or_else(|| corrupt_store(&operation, "a task has an unknown state"))
    }

    pub(super) async fn read_failures(&self, id: BatchId, from: u32, limit: usize) -> Result<Vec<FailedTask>> {
        let rows = self.read_tasks(id, Some(TaskState::Failed), from, limit).await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let operation = format!("reading batch {id}");
        let mut pipe = redis::pipe();
        let command = pipe.cmd("HMGET").arg(format!("{}:failures", self.batch_key(id)));
        for row in &rows {
            command.arg(row.task.index);
        }
        let (kept,): (Vec<Option<String>>,) = self.query(&operation, &pipe).await?;
        // A task requeued meanwhile has no failure any more.
        let failed = rows.into_iter().zip(kept).filter_map(|(row, kept)| Some((row, kept?)));
        failed
            .map(|(row, kept)| Ok(FailedTask { task: row.task, failure: decode_failure(&operation, &kept)? }))
            .collect()
    }

    /// Returns the first indexes of a plan's chunks, up to a total.
    async fn chunks(&self, id: BatchId, operation: &str, total: u32) -> Result<Arc<Vec<u32>>> {
        let known = self.0.chunks().get(&id).cloned().unwrap_or_default();
        // From the last known one on: a store that lost its latest writes has another there, or none.
        let kept = known.len().saturating_sub(1);
        let mut more = self.read_chunk_starts(id, operation, kept).await?;
        let mut all: Vec<u32> = known[..kept].to_vec();
        if known.last() != more.first() && !known.is_empty() {
            all.clear();
            more = self.read_chunk_starts(id, operation, 0).await?;
        }
        all.extend(more);
        all.retain(|first| *first < total || total == 0);
        let all = Arc::new(all);
        self.0.chunks().insert(id, all.clone());
        Ok(all)
    }

    async fn read_chunk_starts(&self, id: BatchId, operation: &str, from: usize) -> Result<Vec<u32>> {
        let mut pipe = redis::pipe();
        pipe.cmd("GETRANGE").arg(format!("{}:chunk_starts", self.batch_key(id))).arg(from * 4).arg(-1);
        let (bytes,): (Vec<u8>,) = self.query(operation, &pipe).await?;
        Ok(bytes.chunks_exact(4).map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]])).collect())
    }
}

/// Reads a plan and its task states page by page.
struct PlanReader<'a> {
    store: &'a RedisStore,
    id: BatchId,
    operation: String,
    total: u32,
    chunk_starts: Arc<Vec<u32>>,
    /// First task index of the loaded page of states, and its bytes.
    states: Option<(u32, Vec<u8>)>,
}

impl<'a> PlanReader<'a> {
    async fn open(store: &'a RedisStore, id: BatchId, operation: String, batch: &Batch) -> Result<PlanReader<'a>> {
        let total = u32::try_from(batch.counts.total).unwrap_or(u32::MAX);
        let chunk_starts = store.chunks(id, &operation, total).await?;
        Ok(PlanReader { store, id, operation, total, chunk_starts, states: None })
    }

    /// Returns the next task in this state, from an index on.
    async fn next_in_state(&mut self, wanted: Option<TaskState>, from: u32) -> Result<Option<u32>> {
        let (total, mut index) = (self.total, from);
        while index < total {
            let Some(wanted) = wanted else { return Ok(Some(index)) };
            let (first, bytes) = self.load_page(index).await?;
            let end = (first + 2 * STATE_PAGE_BYTES).min(total);
            // Most tasks are in other states: scan the bytes without an await per task.
            let found = (index..end).find(|index| state_code(bytes, index - first) == wanted.code());
            if found.is_some() {
                return Ok(found);
            }
            index = end;
        }
        Ok(None)
    }

    async fn state(&mut self, index: u32) -> Result<TaskState> {
        let (first, bytes) = self.load_page(index).await?;
        let code = state_code(bytes, index - first);
        TaskState::from_code(code).ok_or_else(|| corrupt_store(&self.operation, "a task has an unknown state"))
    }

    /// Returns the page of states with a task, and the index of its first task.
    async fn load_page(&mut self, index: u32) -> Result<(u32, &[u8])> {
        let start = index / (2 * STATE_PAGE_BYTES) * (2 * STATE_PAGE_BYTES);
        if self.states.as_ref().is_none_or(|(first, _)| *first != start) {
            let mut pipe = redis::pipe();
            let key = format!("{}:states", self.store.batch_key(self.id));
            pipe.cmd("GETRANGE").arg(key).arg(start / 2).arg(start / 2 + STATE_PAGE_BYTES - 1);
            let (bytes,): (Vec<u8>,) = self.store.query(&self.operation, &pipe).await?;
            self.states = Some((start, bytes));
        }
        Ok(self.states.as_ref().map_or((start, &[]), |(first, bytes)| (*first, bytes)))
    }

    /// Returns the first index and the end of a task's chunk.
    fn chunk_of(&self, index: u32) -> Result<(u32, u32)> {
        let after = self.chunk_starts.partition_point(|first| *first <= index);
        let first = after.checked_sub(1).and_then(|at| self.chunk_starts.get(at)).copied();
        let first = first.ok_or_else(|| corrupt_store(&self.operation, "a chunk of the plan is missing"))?;
        Ok((first, self.chunk_starts.get(after).copied().unwrap_or(self.total)))
    }

    async fn read_chunk(&self, first: u32) -> Result<(PlanChunk, ChunkMark)> {
        let number = self.chunk_starts.partition_point(|other| *other < first);
        let mut pipe = redis::pipe();
        pipe.hget(format!("{}:chunks", self.store.batch_key(self.id)), number);
        let (bytes,): (Option<Vec<u8>>,) = self.store.query(&self.operation, &pipe).await?;
        let bytes = bytes.ok_or_else(|| corrupt_store(&self.operation, "a chunk of the plan is missing"))?;
        let (first, end) = self.chunk_of(first)?;
        let position = ChunkPosition { batch: self.id, number: number as u64, first, tasks: end - first };
        let chunk = self.store.verify_chunk(&self.operation, position, &bytes)?;
        if chunk.tasks.len() != (end - first) as usize {
            return Err(corrupt_store(&self.operation, "a chunk of the plan has another length"));
        }
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Ok((chunk, ChunkMark::new(number, first, chunk_checksum(&bytes))))
    }

    fn task(&self, chunk: &PlanChunk, first: u32, index: u32) -> Result<Task> {
        let planned = chunk.tasks.get((index - first) as usize).cloned();
        Ok(Task {
            index,
            spec: planned.ok_or_else(|| corrupt_store(&self.operation, "a chunk of the plan is too short"))?,
        })
    }

    /// Returns run and attempts of tasks; most tasks have none.
    async fn read_run_attempts(&self, indexes: &[u32]) -> Result<Vec<(u32, u32)>> {
        if indexes.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        let command = pipe.cmd("HMGET").arg(format!("{}:attempts", self.store.batch_key(self.id)));
        for index in indexes {
            command.arg(*index);
        }
        let (marks,): (Vec<Option<String>>,) = self.store.query(&self.operation, &pipe).await?;
        let read = |mark: &str| {
            let (run, attempts) = mark.split_once('|')?;
            Some((run.parse().ok()?, attempts.parse().ok()?))
        };
        Ok(marks.iter().map(|mark| mark.as_deref().and_then(read).unwrap_or((0, 0))).collect())
    }
}

/// Returns a state code from a page, two per byte. States not written yet are new.
fn state_code(bytes: &[u8], at: u32) -> u8 {
    let byte = bytes.get(at as usize / 2).copied().unwrap_or(0);
    if at.is_multiple_of(2) { byte >> 4 } else { byte & 0xf }
}

fn decode_batch(operation: &str, id: BatchId, fields: &HashMap<String, String>) -> Result<Batch> {
    let number = |name: &str| fields.get(name).and_then(|text| text.parse::<i64>().ok());
    let amount = |name: &str| number(name).unwrap_or_default().unsigned_abs();
    let in_state = |state: TaskState| amount(&format!("s{}", state.code()));
    let rules = fields.get("rules").and_then(|text| text.parse().ok());
    Ok(Batch {
        id,
        state: decode_batch_state(operation, number("state").unwrap_or(-1))?,
        run: u32::try_from(amount("run")).unwrap_or(u32::MAX),
        rules: rules.ok_or_else(|| corrupt_store(operation, "the rules digest of a batch is invalid"))?,
        options: fields.get("options").cloned().unwrap_or_default(),
        supersedes: fields.get("supersedes").and_then(|text| text.parse().ok()),
        created_at: timestamp(number("created_at").unwrap_or_default()),
        plan_completed_at: number("planned_at").map(timestamp),
        ended_at: number("ended_at").map(timestamp),
        counts: TaskCounts::from_states(in_state),
        queued: in_state(TaskState::Queued),
        retrying: in_state(TaskState::Retry),
        usage: Usage {
            bytes: BlobBytes { copied: amount("copied"), mounted: amount("mounted"), reused: amount("reused") },
            requests: RequestCounts { source: amount("source_requests"), target: amount("target_requests") },
            time: Duration::from_millis(amount("millis")),
        },
    })
}

fn decode_failure(operation: &str, kept: &str) -> Result<Failure> {
    let read = || {
        let (kind, rest) = kept.split_once('|')?;
        let (attempts, rest) = rest.split_once('|')?;
        let (registry, error) = rest.split_once('|')?;
        let kind = serde_json::from_value(kind.into()).ok()?;
        Some(Failure { kind, error: error.into(), registry: registry.parse().ok(), attempts: attempts.parse().ok()? })
    };
    read().ok_or_else(|| corrupt_store(operation, "a failure record cannot be decoded"))
}
