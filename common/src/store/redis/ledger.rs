//! [`Ledger`] in Redis: each change is one script.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::signed::SegmentPlace;
use super::{Call, PlanEnd, RedisStore, damaged, millis, time};
use crate::batch::{BatchId, Failure, MAX_CHUNK_TASKS, TaskState, Ticket, Verdict, encode_chunk};
use crate::error::{Class, Error, Result};
use crate::image::Digest;
use crate::store::{
    Appended, Batch, Block, Control, Course, EmptyRule, FailedTask, Finished, Ledger, NewBatch, Pruned, RequestId,
    RequeueFilter, Retried, Sealed, Spent, Standing, Start, Sweep, Swept, TaskHolder, TaskRow, Unlisted,
};

/// Tasks per script call.
const AT_ONCE: usize = 1_000;

#[async_trait]
impl Ledger for RedisStore {
    async fn create(&self, batch: NewBatch) -> Result<()> {
        let tried = format!("making batch {}", batch.id);
        self.note_version(&tried).await?;
        let before = batch.supersedes.map(|before| before.to_string()).unwrap_or_default();
        let mut call = Call::on(self.base(batch.id)).key(self.key("batches"));
        if let Some(before) = batch.supersedes {
            call = call.key(self.base(before));
        }
        let tag = self.options_tag(batch.id, &batch.rules, &batch.options);
        let call = call.arg(batch.id).arg(batch.rules).arg(batch.options).arg(before).arg(tag);
        self.script::<i64>(&tried, &self.0.scripts.create, call).await.map(drop)
    }

    async fn append(&self, batch: BatchId, sealed: Sealed) -> Result<Appended> {
        let tried = format!("adding {} to batch {batch}", sealed.key);
        let packed = tokio::task::spawn_blocking(move || Packed::of(sealed))
            .await
            .map_err(|error| Error::new(Class::Local, &tried, error.to_string()))?;
        let answer: Vec<i64> = match self.signing_key() {
            None => self.script(&tried, &self.0.scripts.append, packed.call(self, batch, None)).await?,
            Some(_) => self.append_signed(&tried, batch, &packed).await?,
        };
        match answer.as_slice() {
            [0, first, ..] => Ok(Appended::At(u32::try_from(*first).map_err(|_| damaged(&tried, "no such index"))?)),
            [1, ..] => Ok(Appended::Already),
            [2, code, ..] => Ok(Appended::Stopped(control(&tried, *code)?)),
            _ => Err(gone(&tried)),
        }
    }

    async fn sealed(&self, batch: BatchId) -> Result<Vec<String>> {
        let tried = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.exists(self.base(batch)).hkeys(format!("{}:k", self.base(batch)));
        let (there, mut keys): (bool, Vec<String>) = self.query(&tried, &pipe).await?;
        if !there {
            return Err(gone(&tried));
        }
        keys.sort_unstable();
        Ok(keys)
    }

    async fn note_pruned(&self, batch: BatchId, pruned: Pruned) -> Result<()> {
        let text = serde_json::to_string(&pruned).unwrap_or_default();
        self.note(batch, ":g", &format!("{} {}", pruned.target, pruned.source), text).await
    }

    async fn note_empty_rule(&self, batch: BatchId, rule: EmptyRule) -> Result<()> {
        let text = serde_json::to_string(&rule).unwrap_or_default();
        self.note(batch, ":e", &rule.rule.to_string(), text).await
    }

    async fn note_unlisted(&self, batch: BatchId, unlisted: Unlisted) -> Result<()> {
        let text = serde_json::to_string(&unlisted).unwrap_or_default();
        self.note(batch, ":u", &unlisted.repository, text).await
    }

    async fn note_told(&self, batch: BatchId, told: &str) -> Result<()> {
        self.note(batch, ":n", told, String::new()).await
    }

    async fn told(&self, batch: BatchId) -> Result<Vec<String>> {
        let tried = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.exists(self.base(batch)).hkeys(format!("{}:n", self.base(batch)));
        let (there, mut told): (bool, Vec<String>) = self.query(&tried, &pipe).await?;
        if !there {
            return Err(gone(&tried));
        }
        told.sort_unstable();
        Ok(told)
    }

    async fn seal_all(&self, batch: BatchId) -> Result<()> {
        let tried = format!("sealing batch {batch}");
        done(&tried, self.script(&tried, &self.0.scripts.seal, Call::on(self.base(batch))).await?)
    }

    async fn spend(&self, batch: BatchId, spent: Spent) -> Result<()> {
        let tried = format!("counting in batch {batch}");
        let call = Call::on(self.base(batch)).key(self.request_key(RequestId::generate()));
        done(&tried, self.script(&tried, &self.0.scripts.spend, with(call, spent)).await?)
    }

    async fn unpublished(&self, batch: BatchId, from: u32, at_least: usize) -> Result<Vec<Block>> {
        self.look_unpublished(batch, from, at_least).await
    }

    async fn published(&self, batch: BatchId, tickets: Vec<Ticket>) -> Result<()> {
        let tried = format!("marking in batch {batch}");
        for tickets in tickets.chunks(AT_ONCE) {
            let mut call = Call::on(self.base(batch));
            for ticket in tickets.iter().filter(|ticket| ticket.batch == batch) {
                call = call.arg(ticket.index).arg(ticket.run);
            }
            done(&tried, self.script(&tried, &self.0.scripts.published, call).await?)?;
        }
        Ok(())
    }

    async fn start(&self, ticket: Ticket, worker: &str, lease: Duration) -> Result<Start> {
        let tried = format!("starting task {} of batch {}", ticket.index, ticket.batch);
        let call = Call::on(self.base(ticket.batch)).arg(ticket.index).arg(ticket.run).arg(worker).arg(millis(lease));
        let answer: Vec<i64> = self.script(&tried, &self.0.scripts.start, call).await?;
        let value = |at: usize| answer.get(at).copied().unwrap_or_default();
        let small = |at| u32::try_from(value(at)).unwrap_or_default();
        Ok(match answer.first() {
            Some(0) => Start::Go { epoch: value(1).unsigned_abs(), attempts: small(2), losses: small(3) },
            Some(1) => Start::Own { epoch: value(1).unsigned_abs(), attempts: small(2) },
            Some(2) => Start::AlreadyDone,
            Some(3) => Start::Cancelled,
            Some(4) => Start::HeldBy { until: time(value(1)) },
            Some(5) => Start::StaleRun,
            Some(6) => Start::Paused,
            _ => Start::Unknown,
        })
    }

    async fn renew(&self, ticket: Ticket, holder: TaskHolder<'_>, lease: Duration) -> Result<Standing> {
        let tried = format!("holding task {} of batch {}", ticket.index, ticket.batch);
        let call = Call::on(self.base(ticket.batch)).arg(ticket.index).arg(lease_owner(holder)).arg(millis(lease));
        let answer: Vec<i64> = self.script(&tried, &self.0.scripts.renew, call).await?;
        Ok(match answer.as_slice() {
            [0, until] => Standing::Held { until: time(*until) },
            [2, ..] => Standing::Stop,
            _ => Standing::Lost,
        })
    }

    async fn finish(&self, ticket: Ticket, holder: TaskHolder<'_>, verdict: Verdict, spent: Spent) -> Result<Finished> {
        let tried = format!("finishing task {} of batch {}", ticket.index, ticket.batch);
        let failure = match &verdict {
            Verdict::Failed(failure) => kept(failure),
            _ => Vec::new(),
        };
        let state = verdict.outcome().state().code();
        let call =
            Call::on(self.base(ticket.batch)).arg(ticket.index).arg(lease_owner(holder)).arg(state).bytes(failure);
        Ok(finished(self.script(&tried, &self.0.scripts.finish, with(call, spent)).await?))
    }

    async fn retry_later(
        &self,
        ticket: Ticket,
        holder: TaskHolder<'_>,
        wait: Duration,
        counts: bool,
        spent: Spent,
    ) -> Result<Retried> {
        let tried = format!("putting off task {} of batch {}", ticket.index, ticket.batch);
        // A delay below a millisecond is still a delay.
        let wait = if wait.is_zero() { 0 } else { millis(wait).max(1) };
        let call = Call::on(self.base(ticket.batch))
            .arg(ticket.index)
            .arg(lease_owner(holder))
            .arg(wait)
            .arg(u8::from(counts));
        let answer: Vec<i64> = self.script(&tried, &self.0.scripts.retry, with(call, spent)).await?;
        Ok(match answer.as_slice() {
            [0, attempts] => Retried::Waits { attempts: u32::try_from(*attempts).unwrap_or_default() },
            _ => Retried::Stale,
        })
    }

    async fn control(&self, batch: BatchId) -> Result<Option<Control>> {
        let tried = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.hget(self.base(batch), "control");
        let (code,): (Option<i64>,) = self.query(&tried, &pipe).await?;
        code.map(|code| control(&tried, code)).transpose()
    }

    async fn publishable(&self, batch: BatchId) -> Result<u64> {
        let tried = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        let fields = ["control".to_owned(), format!("s{}", TaskState::New.code())];
        pipe.cmd("HMGET").arg(self.base(batch)).arg(&fields[..]);
        let ((code, new),): ((Option<i64>, Option<u64>),) = self.query(&tried, &pipe).await?;
        let is_running = code.is_some_and(|code| control(&tried, code).is_ok_and(|is| is == Control::Running));
        Ok(new.filter(|_| is_running).unwrap_or_default())
    }

    async fn states(&self, batch: BatchId, tasks: &[u32]) -> Result<Vec<TaskState>> {
        self.look_states(batch, tasks).await
    }

    async fn pause(&self, batch: BatchId) -> Result<Control> {
        self.change(format!("pausing batch {batch}"), batch, Control::Running, Control::Paused).await
    }

    async fn resume(&self, batch: BatchId) -> Result<Control> {
        self.change(format!("resuming batch {batch}"), batch, Control::Paused, Control::Running).await
    }

    async fn cancel(&self, batch: BatchId) -> Result<Control> {
        let tried = format!("cancelling batch {batch}");
        let code: i64 = self.script(&tried, &self.0.scripts.cancel, Call::on(self.base(batch))).await?;
        match code {
            -1 => Err(gone(&tried)),
            code => control(&tried, code),
        }
    }

    async fn requeue(&self, batch: BatchId, filter: RequeueFilter) -> Result<u64> {
        let tried = format!("requeuing batch {batch}");
        let entry = self.batch(batch).await?.ok_or_else(|| gone(&tried))?;
        if entry.control.is_stopped() {
            return Err(stopped(&tried, entry.control));
        }
        let run = entry.run + 1;
        let (mut from, mut requeued) = (0, 0);
        loop {
            let failed = self.failures(batch, from, AT_ONCE).await?;
            let Some(last) = failed.last() else { return Ok(requeued) };
            from = last.task.index.saturating_add(1);
            let mut call = Call::on(self.base(batch)).arg(run);
            for failed in failed.iter().filter(|failed| filter.selects(failed)) {
                call = call.arg(failed.task.index);
            }
            match self.script::<i64>(&tried, &self.0.scripts.requeue, call).await? {
                -1 => return Err(gone(&tried)),
                -2 => return Err(stopped(&tried, Control::Cancelled)),
                more => requeued += more.unsigned_abs(),
            }
        }
    }

    async fn sweep(&self, batch: BatchId, sweep: Sweep) -> Result<Swept> {
        let tried = format!("sweeping batch {batch}");
        let (what, grace) = match sweep {
            Sweep::Leases { grace } => (0, grace),
            Sweep::QueueIsEmpty { grace } => (1, grace),
            Sweep::Everything => (2, Duration::ZERO),
        };
        let call = Call::on(self.base(batch)).arg(what).arg(millis(grace));
        let (leased, queued): (i64, i64) = self.script(&tried, &self.0.scripts.sweep, call).await?;
        match leased {
            -1 => Err(gone(&tried)),
            leased => Ok(Swept { leased: leased.unsigned_abs(), queued: queued.unsigned_abs() }),
        }
    }

    async fn remove_before(&self, before: Timestamp) -> Result<u64> {
        let tried = "removing old batches";
        let mut pipe = redis::pipe();
        pipe.zrange(self.key("batches"), 0, -1);
        // Ids are in order of creation.
        let (ids,): (Vec<String>,) = self.query(tried, &pipe).await?;
        let mut removed = 0;
        for id in ids {
            let Ok(batch) = id.parse::<BatchId>() else { continue };
            let call = Call::on(self.base(batch)).key(self.key("batches")).arg(&id).arg(before.as_millisecond());
            match self.script::<i64>(tried, &self.0.scripts.remove, call).await? {
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

    async fn batch(&self, batch: BatchId) -> Result<Option<Batch>> {
        self.look_batch(batch).await
    }

    async fn batches(&self, limit: usize) -> Result<Vec<Batch>> {
        let mut pipe = redis::pipe();
        let last = isize::try_from(limit).unwrap_or(isize::MAX) - 1;
        pipe.zrevrange(self.key("batches"), 0, last);
        let (ids,): (Vec<String>,) = self.query("listing batches", &pipe).await?;
        let ids: Vec<BatchId> = ids.iter().filter_map(|id| id.parse().ok()).collect();
        self.look_batches(&ids).await
    }

    async fn unfinished(&self, rules: &Digest) -> Result<Option<BatchId>> {
        let mut pipe = redis::pipe();
        pipe.smembers(self.key(&format!("live:{rules}")));
        let (ids,): (Vec<String>,) = self.query("looking for an unfinished batch", &pipe).await?;
        let mut ids: Vec<BatchId> = ids.iter().filter_map(|id| id.parse().ok()).collect();
        ids.sort_unstable();
        let live = self.look_batches(&ids).await?.into_iter().rev().find(|batch| batch.control.is_live());
        Ok(live.map(|batch| batch.id))
    }

    async fn find(&self, prefix: &str) -> Result<Vec<BatchId>> {
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

    async fn pruned(&self, batch: BatchId) -> Result<Vec<Pruned>> {
        let tried = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.exists(self.base(batch)).hvals(format!("{}:g", self.base(batch)));
        let (there, texts): (bool, Vec<String>) = self.query(&tried, &pipe).await?;
        if !there {
            return Err(gone(&tried));
        }
        let read = |text: &String| serde_json::from_str(text).map_err(|error| damaged(&tried, &error.to_string()));
        let mut pruned: Vec<Pruned> = texts.iter().map(read).collect::<Result<_>>()?;
        pruned.sort_by(|a, b| (a.outcome, &a.target, &a.source).cmp(&(b.outcome, &b.target, &b.source)));
        Ok(pruned)
    }

    async fn empty_rules(&self, batch: BatchId) -> Result<Vec<EmptyRule>> {
        let tried = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.exists(self.base(batch)).hvals(format!("{}:e", self.base(batch)));
        let (there, texts): (bool, Vec<String>) = self.query(&tried, &pipe).await?;
        if !there {
            return Err(gone(&tried));
        }
        let read = |text: &String| serde_json::from_str(text).map_err(|error| damaged(&tried, &error.to_string()));
        let mut rules: Vec<EmptyRule> = texts.iter().map(read).collect::<Result<_>>()?;
        rules.sort_by_key(|rule| rule.rule);
        Ok(rules)
    }

    async fn unlisted(&self, batch: BatchId) -> Result<Vec<Unlisted>> {
        let tried = format!("reading batch {batch}");
        let mut pipe = redis::pipe();
        pipe.exists(self.base(batch)).hvals(format!("{}:u", self.base(batch)));
        let (there, texts): (bool, Vec<String>) = self.query(&tried, &pipe).await?;
        if !there {
            return Err(gone(&tried));
        }
        let read = |text: &String| serde_json::from_str(text).map_err(|error| damaged(&tried, &error.to_string()));
        let mut unlisted: Vec<Unlisted> = texts.iter().map(read).collect::<Result<_>>()?;
        unlisted.sort_by(|a, b| a.repository.cmp(&b.repository));
        Ok(unlisted)
    }

    async fn failures(&self, batch: BatchId, from: u32, limit: usize) -> Result<Vec<FailedTask>> {
        self.look_failures(batch, from, limit).await
    }

    async fn tasks(&self, batch: BatchId, state: Option<TaskState>, from: u32, limit: usize) -> Result<Vec<TaskRow>> {
        self.look_tasks(batch, state, from, limit).await
    }

    async fn course(&self, batch: BatchId) -> Result<Course> {
        self.look_course(batch).await
    }
}

impl RedisStore {
    /// Sets a field in one of a batch's hashes.
    async fn note(&self, batch: BatchId, part: &str, field: &str, text: String) -> Result<()> {
        let tried = format!("noting in batch {batch}");
        let call = Call::on(self.base(batch)).arg(part).arg(field).arg(text);
        done(&tried, self.script(&tried, &self.0.scripts.note, call).await?)
    }

    /// Adds chunks whose signatures cover their positions, one repository at a time. If another process takes a
    /// position meanwhile, signs them for the next one.
    async fn append_signed(&self, tried: &str, batch: BatchId, packed: &Packed) -> Result<Vec<i64>> {
        let mut ends = self.0.ends.lock().await;
        let mut end = ends.get(&batch).copied().unwrap_or_default();
        loop {
            let call = packed.call(self, batch, Some(end));
            let answer: Vec<i64> = self.script(tried, &self.0.scripts.append, call).await?;
            let after = match answer.as_slice() {
                [0, ..] => PlanEnd {
                    tasks: packed.segments.iter().fold(end.tasks, |sum, (tasks, ..)| sum.saturating_add(*tasks)),
                    segments: end.segments + packed.segments.len() as u64,
                },
                [3, tasks, segments] => PlanEnd {
                    tasks: u32::try_from(*tasks).map_err(|_| damaged(tried, "no such index"))?,
                    segments: segments.unsigned_abs(),
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

    async fn change(&self, tried: String, batch: BatchId, from: Control, to: Control) -> Result<Control> {
        let call = Call::on(self.base(batch)).arg(from as u8).arg(to as u8);
        match self.script::<i64>(&tried, &self.0.scripts.change, call).await? {
            -1 => Err(gone(&tried)),
            code => control(&tried, code),
        }
    }
}

/// A repository's tasks as script arguments.
struct Packed {
    key: String,
    /// Per chunk: number of tasks, encoded plan, task states.
    segments: Vec<(u32, Vec<u8>, Vec<u8>)>,
    /// Position and encoding of each failure.
    failures: Vec<(usize, Vec<u8>)>,
}

impl Packed {
    fn of(sealed: Sealed) -> Packed {
        let (tasks, verdicts): (Vec<_>, Vec<_>) = sealed.tasks.into_iter().unzip();
        let state = |verdict: &Option<Verdict>| match verdict {
            None => TaskState::New,
            Some(verdict) => verdict.outcome().state(),
        };
        let failures = verdicts.iter().enumerate().filter_map(|(at, verdict)| match verdict {
            Some(Verdict::Failed(failure)) => Some((at, kept(failure))),
            _ => None,
        });
        let segments = tasks.chunks(MAX_CHUNK_TASKS).zip(verdicts.chunks(MAX_CHUNK_TASKS)).map(|(tasks, verdicts)| {
            let plan = encode_chunk(sealed.listed_at, tasks, |at| state(&verdicts[at]) != TaskState::Unchanged);
            let states = verdicts.iter().map(|verdict| b'0' + state(verdict).code()).collect();
            (tasks.len() as u32, plan, states)
        });
        Packed { segments: segments.collect(), failures: failures.collect(), key: sealed.key }
    }

    /// Builds the script call for chunks at a fixed position, or at any.
    fn call(&self, store: &RedisStore, batch: BatchId, place: Option<PlanEnd>) -> Call {
        let call = Call::on(store.base(batch)).arg(&self.key).arg(self.segments.len()).arg(self.failures.len());
        let mut call = match place {
            None => call.arg(-1).arg(-1),
            Some(PlanEnd { tasks, segments }) => call.arg(tasks).arg(segments),
        };
        let PlanEnd { tasks: mut first, segments: mut number } = place.unwrap_or_default();
        for (tasks, plan, states) in &self.segments {
            let place = SegmentPlace { batch, number, first, tasks: *tasks };
            call = call.arg(tasks).bytes(store.seal_segment(place, plan.clone())).bytes(states.clone());
            (first, number) = (first.saturating_add(*tasks), number + 1);
        }
        for (at, failure) in &self.failures {
            call = call.arg(at).bytes(failure.clone());
        }
        call
    }
}

/// Encodes a failure.
fn kept(failure: &Failure) -> Vec<u8> {
    format!("{}|{}|{}", failure.class, failure.attempts, failure.error).into_bytes()
}

fn with(call: Call, spent: Spent) -> Call {
    let Spent { bytes, requests, time } = spent;
    let call = call.arg(bytes.copied).arg(bytes.mounted).arg(bytes.reused).arg(requests.source).arg(requests.target);
    call.arg(millis(time))
}

/// Returns the owner string that scripts compare with a lease.
fn lease_owner(holder: TaskHolder<'_>) -> String {
    format!("{}|{}", holder.token, holder.worker)
}

fn finished(answer: i64) -> Finished {
    match answer {
        0 => Finished::Counted,
        2 => Finished::AlreadyDone,
        _ => Finished::Stale,
    }
}

pub(super) fn control(tried: &str, code: i64) -> Result<Control> {
    let control = usize::try_from(code).ok().and_then(|code| Control::ALL.get(code)).copied();
    control.ok_or_else(|| damaged(tried, "a batch has a state that there is not"))
}

fn done(tried: &str, answer: i64) -> Result<()> {
    match answer {
        0 => Err(gone(tried)),
        _ => Ok(()),
    }
}

pub(super) fn gone(tried: &str) -> Error {
    Error::new(Class::NotFound, tried, "there is no such batch")
        .hint("imgsync batch list shows those that there are; if the store was emptied, run the rules again")
}

fn stopped(tried: &str, control: Control) -> Error {
    Error::new(Class::Invalid, tried, format!("it was {control}")).hint("run its rules again")
}
