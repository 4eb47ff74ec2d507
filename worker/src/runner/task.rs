//! Runs one task: leased, with the lease renewed while it runs, copied, and recorded in the ledger.

mod attempt;
mod copy_slot;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use imgsync_model::batch::{
    BatchId, BatchOptions, BlobBytes, Failure, Message, MessageTarget, RequestCounts, Route, RuleOptions, TagLocator,
    TaskRef, TaskResult,
};
use imgsync_model::event::{TaskCompletion, TaskEvent};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::panics::catch_panic;
use imgsync_oci::{Digest, RegistryName, Tag, retry};
use imgsync_registry::{Context, TrafficCounters};
use imgsync_store::{
    CacheScope, CachedTag, ClaimResult, FinishReply, LeaseGuard, LeaseStatus, ProvenanceUpdate, RescheduleReply,
    RunningTask, TagRecord, TaskHolder, Usage,
};
use jiff::Timestamp;
use tokio::sync::RwLockReadGuard;
use tracing::Instrument as _;

use self::copy_slot::CopySlot;
pub(super) use self::copy_slot::CopySlots;
use super::in_flight::InFlightMessage;
use super::{Runner, Shutdown, longest_delay_within};
use crate::copy::{CopyOutcome, CopyReport, ObservedDigests, TransferStats};
use crate::telemetry::task_log::task_span;

/// Interval at which a lease is renewed; also the delay until a cancelled batch stops.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);
/// Time after the start of its last task when a message is acknowledged.
const ACKNOWLEDGE_DELAY: Duration = Duration::from_secs(1);
/// Longest delay of a message whose task another worker holds: not until the lease must have expired, but so that the
/// next holder is soon there.
const LEASED_ELSEWHERE_DELAY: Duration = Duration::from_secs(10);
/// Delay of a task whose registry is unreachable from here.
const UNREACHABLE_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Losses after which a task runs exclusively: it, or a task that ran beside it, may have killed its workers.
const EXCLUSIVE_AFTER_LOSSES: u32 = 3;
/// Losses after which the task itself is blamed, and fails.
const FAIL_AFTER_LOSSES: u32 = 6;

/// What happens to the message of a task.
pub(super) enum Disposition {
    /// Finished: recorded in the ledger, or rescheduled with its own message.
    Done,
    /// Not started; redeliver after this delay.
    Requeue(Duration),
    /// Rescheduled together with its whole route: a registry's rate limit holds it for this long.
    RateLimited { registry: Option<RegistryName>, wait: Duration },
    /// Rescheduled: this registry is unreachable from here.
    Unreachable { registry: RegistryName, why: String },
}

/// A successful attempt: what to record of it.
pub(super) struct CompletedCopy {
    pub(super) outcome: CopyOutcome,
    pub(super) bytes: BlobBytes,
    /// Entries for the digest cache.
    pub(super) tags: Vec<(Tag, CachedTag)>,
    /// Digest of the target tag, if the tag was put.
    pub(super) put: Option<Digest>,
    /// Lease of the target tag, if the tag was or could have been written: held until that is recorded.
    pub(super) lease: Option<LeaseGuard>,
    /// Whether the tag, which may have been partial, is complete now.
    pub(super) is_whole: bool,
    /// Report of the image, if it is only collected for an archive.
    pub(super) collected: Option<CopyReport>,
}

impl CompletedCopy {
    /// Creates the result of an attempt that found source and target equal and wrote nothing. `observed` is to be
    /// cached.
    fn unchanged(target: &Tag, observed: Option<ObservedDigests>, now: Timestamp) -> CompletedCopy {
        let cached = observed.map(|ObservedDigests { source, target: digest }| {
            (target.clone(), CachedTag { source, target: digest, seen_at: now, referrers_at: None })
        });
        CompletedCopy {
            outcome: CopyOutcome::Unchanged,
            bytes: BlobBytes::default(),
            tags: cached.into_iter().collect(),
            put: None,
            lease: None,
            is_whole: false,
            collected: None,
        }
    }

    /// Creates the result of a finished copy.
    fn from_report(
        report: CopyReport,
        target: &Tag,
        prior: PriorState,
        lease: Option<LeaseGuard>,
        now: Timestamp,
    ) -> CompletedCopy {
        let TransferStats { copied, mounted, reused } = report.bytes;
        let put = report.tag_put.then(|| report.digest.clone());
        let cached = CachedTag {
            // The next run compares with the HEAD digest; the content is read if it differs.
            source: report.source_head_digest.unwrap_or(report.source_digest),
            target: report.digest,
            seen_at: prior.seen_at.unwrap_or(now),
            referrers_at: if report.referrers_checked { Some(now) } else { prior.referrers_checked_at },
        };
        // With their digests at the source: the next listing shows changes.
        let digest_tags = report
            .digest_tags
            .into_iter()
            .map(|(tag, source)| (tag, CachedTag { target: source.clone(), source, seen_at: now, referrers_at: None }));
        CompletedCopy {
            outcome: report.outcome,
            bytes: BlobBytes { copied, mounted, reused },
            tags: digest_tags.chain([(target.clone(), cached)]).collect(),
            put,
            lease,
            is_whole: false,
            collected: None,
        }
    }
}

/// State of a target tag before the copy.
#[derive(Default)]
struct PriorState {
    /// When it was last seen at the target, if the target was not asked now.
    seen_at: Option<Timestamp>,
    /// When its referrers were last checked.
    referrers_checked_at: Option<Timestamp>,
}

/// Lists a task as running until dropped.
struct RunningTaskGuard<'a> {
    runner: &'a Runner,
    task_ref: TaskRef,
}

impl<'a> RunningTaskGuard<'a> {
    fn new(runner: &'a Runner, task_ref: TaskRef, doing: RunningTask) -> RunningTaskGuard<'a> {
        runner.running().insert(task_ref, doing);
        RunningTaskGuard { runner, task_ref }
    }
}

impl Drop for RunningTaskGuard<'_> {
    fn drop(&mut self) {
        self.runner.running().remove(&self.task_ref);
    }
}

/// A task leased by this worker.
pub(super) struct LeasedTask<'a> {
    route: &'a Route,
    pub(super) message: &'a Message,
    pub(super) task_ref: TaskRef,
    pub(super) target: &'a TagLocator,
    pub(super) holder: TaskHolder<'a>,
    attempts: u32,
    options: &'a BatchOptions,
    rule: RuleOptions,
    pub(super) context: Context,
    /// Traffic counters of source and target.
    pub(super) traffic: (Arc<TrafficCounters>, Arc<TrafficCounters>),
    started: Instant,
    copy_slot: CopySlot,
}

impl LeasedTask<'_> {
    /// Returns the scope of the target tag in the digest cache.
    fn cache_scope(&self) -> CacheScope {
        CacheScope { repository: (*self.target.repository).clone(), options: self.rule.fingerprint().into() }
    }

    /// Returns the digest of the rule options, as stored in a partial mark.
    fn options_digest(&self) -> Digest {
        Digest::sha256(self.rule.fingerprint().as_bytes())
    }

    /// Returns what the attempt has cost, whatever its outcome.
    pub(super) fn usage(&self, bytes: BlobBytes) -> Usage {
        let requests =
            RequestCounts { source: self.traffic.0.snapshot().requests, target: self.traffic.1.snapshot().requests };
        Usage { bytes, requests, time: self.started.elapsed().saturating_sub(self.copy_slot.waited()) }
    }
}

impl Runner {
    /// Runs one task of a message, which is acknowledged soon after its last task is leased. An error comes from the
    /// ledger and leaves the task's state unknown.
    pub(super) async fn run_task(
        &self,
        delivered: &InFlightMessage,
        task_ref: TaskRef,
        target: &TagLocator,
        is_last: bool,
        stop: &Shutdown,
    ) -> Result<Disposition> {
        let message = &delivered.message;
        // Acquired before the lease: if the exclusive task kills the process, waiting tasks must not count as lost.
        let shared_slot = tokio::select! {
            guard = self.exclusive.read() => guard,
            () = stop.abort.cancelled() => return Ok(Disposition::Requeue(Duration::ZERO)),
        };
        let started = self.store.claim_task(task_ref, message.chunk, &self.settings.name, self.lease_ttl).await?;
        let (token, attempts, losses) = match started {
            ClaimResult::Claimed { token, attempts, losses } => (token, attempts, losses),
            // Redelivered while it runs here: the broker considered it lost.
            ClaimResult::AlreadyOwned { .. } if self.running().contains_key(&task_ref) => {
                return Ok(Disposition::Requeue(LEASED_ELSEWHERE_DELAY));
            }
            ClaimResult::AlreadyOwned { token, attempts } => (token, attempts, 0),
            ClaimResult::AlreadyDone | ClaimResult::Cancelled | ClaimResult::StaleRun | ClaimResult::Paused => {
                return Ok(Disposition::Done);
            }
            ClaimResult::NotInPlan => {
                tracing::info!("the store has lost the task of a message for {target}: skipped, it is planned again");
                return Ok(Disposition::Done);
            }
            ClaimResult::HeldBy { until } => {
                return Ok(Disposition::Requeue(time_until(until, self.clock.now()).min(LEASED_ELSEWHERE_DELAY)));
            }
            ClaimResult::Unknown => {
                self.warn(&format!("the store no longer has batch {}: run it again", task_ref.batch));
                return Ok(Disposition::Done);
            }
        };
        let running = RunningTask {
            batch: task_ref.batch,
            index: task_ref.index,
            source: message.source.to_string(),
            target: target.to_string(),
            since: self.clock.now(),
        };
        let _listed = RunningTaskGuard::new(self, task_ref, running.clone());
        let held = async {
            self.events.emit_task(TaskEvent::Started {
                task: task_ref,
                source: running.source,
                target: running.target,
            });
            Ok(self.run_leased(delivered, task_ref, target, (token, attempts, losses), shared_slot, stop).await)
        };
        let operation = format!("copying {}", message.source);
        let mut held = std::pin::pin!(catch_panic(&operation, held.instrument(task_span(&task_ref))));
        // A shorter task is acknowledged when it ends, along with the next take: saves the broker a step.
        let disposition = tokio::select! {
            disposition = &mut held => disposition,
            // Concurrently: no copy waits for the broker.
            () = tokio::time::sleep(ACKNOWLEDGE_DELAY), if is_last => tokio::join!(held, self.acknowledge(delivered)).0,
        };
        match disposition {
            Ok(Ok(disposition)) => Ok(disposition),
            Ok(Err(error)) => {
                // The ledger has no result; the next holder of the task provides one.
                self.emit_end(task_ref, TaskCompletion::Requeued);
                Err(error)
            }
            Err(panic) => self.record_panic(task_ref, token, attempts, &panic).await,
        }
    }

    /// Records a panic outside of the copy.
    async fn record_panic(&self, task_ref: TaskRef, token: u64, attempts: u32, panic: &Error) -> Result<Disposition> {
        let result = TaskResult::Failed(Failure::from_error(panic, attempts + 1));
        let holder = TaskHolder { worker: &self.settings.name, token };
        // It may have panicked after its result was counted.
        self.finish(task_ref, holder, result, Usage::default()).await
    }

    /// Runs a leased task.
    async fn run_leased(
        &self,
        delivered: &InFlightMessage,
        task_ref: TaskRef,
        target: &TagLocator,
        (token, attempts, losses): (u64, u32, u32),
        shared_slot: RwLockReadGuard<'_, ()>,
        stop: &Shutdown,
    ) -> Result<Disposition> {
        let InFlightMessage { route, message, .. } = delivered;
        let (options, rule, unreadable) = match self.read_options(task_ref.batch, message.rule).await {
            Ok((options, rule)) => (options, rule, None),
            // If the store is unavailable, the state is unknown.
            Err(error) if retry::is_transient(&error) || error.kind() == ErrorKind::NotFound => return Err(error),
            // The protections of the target are unknown: write nothing.
            Err(error) => (Arc::default(), RuleOptions::default(), Some(error)),
        };
        let task = LeasedTask {
            route,
            message,
            task_ref,
            target,
            holder: TaskHolder { worker: &self.settings.name, token },
            attempts,
            rule,
            options: &options,
            context: Context {
                cancel: stop.abort.child_token(),
                events: self.events.transfers().clone(),
                ..Context::default()
            },
            traffic: (TrafficCounters::new(), TrafficCounters::new()),
            started: Instant::now(),
            copy_slot: CopySlot::new(delivered, stop),
        };
        if let Some(error) = unreadable {
            return self.record_attempt(&task, stop, Err(error)).await;
        }
        if losses >= FAIL_AFTER_LOSSES {
            let detail =
                format!("its worker died {losses} times while running it, the last times with no other task running");
            let error = Error::new(ErrorKind::Local, format!("copying {}", message.source), detail);
            let error = error.with_hint("please report this, with the image's name");
            return self.record_attempt(&task, stop, Err(error)).await;
        }
        let _suspect = match losses >= EXCLUSIVE_AFTER_LOSSES {
            true => match self.suspect_slot.try_lock() {
                Ok(guard) => Some(guard),
                // Another task is waiting to run exclusively, or does. Waiting beside it would mean dying with it.
                Err(_) => {
                    self.reschedule(&task, LEASED_ELSEWHERE_DELAY, false, task.usage(BlobBytes::default())).await?;
                    self.emit_end(task_ref, TaskCompletion::Requeued);
                    return Ok(Disposition::Done);
                }
            },
            false => None,
        };
        let lost = AtomicBool::new(false);
        let attempt = {
            // Boxed, here and below: a copy is a deep nest of futures, and thread stacks are small.
            let work: BoxFuture<'_, Result<CompletedCopy>> =
                Box::pin(self.run_isolating_suspects(&task, losses, shared_slot));
            let operation = format!("copying {}", message.source);
            tokio::select! {
                attempt = catch_panic(&operation, work) => attempt,
                () = self.renew_lease_loop(&task, &lost) => unreachable!("a lease is kept until the work has ended"),
            }
        };
        if lost.load(Ordering::Relaxed) {
            // Another worker holds it, or it has finished: there is nothing to record.
            self.emit_end(task_ref, TaskCompletion::Requeued);
            return Ok(Disposition::Done);
        }
        self.record_attempt(&task, stop, attempt).await
    }

    /// Reads the options of a batch and of one of its rules.
    async fn read_options(&self, batch: BatchId, rule: u32) -> Result<(Arc<BatchOptions>, RuleOptions)> {
        let options = self.batch_options(batch).await?;
        let rule = options.rule(rule)?.clone();
        Ok((options, rule))
    }

    /// Copies alongside other tasks, or exclusively after too many losses.
    async fn run_isolating_suspects(
        &self,
        task: &LeasedTask<'_>,
        losses: u32,
        shared_slot: RwLockReadGuard<'_, ()>,
    ) -> Result<CompletedCopy> {
        if losses < EXCLUSIVE_AFTER_LOSSES {
            let attempt = self.attempt_copy(task).await;
            drop(shared_slot);
            return attempt;
        }
        drop(shared_slot);
        self.warn(&format!("{}: {losses} workers died while running it; it now runs exclusively", task.message.source));
        let _alone = tokio::select! {
            guard = self.exclusive.write() => guard,
            () = task.context.cancel.cancelled() => {
                return Err(Error::cancelled(format!("copying {}", task.message.source)));
            }
        };
        self.attempt_copy(task).await
    }

    /// Renews the lease until dropped. Cancels the work if the lease is lost or the batch was stopped.
    async fn renew_lease_loop(&self, task: &LeasedTask<'_>, lost: &AtomicBool) {
        let cancel = &task.context.cancel;
        loop {
            tokio::time::sleep(RENEW_INTERVAL).await;
            match self.store.renew(task.task_ref, task.holder, self.lease_ttl).await {
                Ok(LeaseStatus::Held { .. }) => {}
                Ok(LeaseStatus::Lost) => {
                    lost.store(true, Ordering::Relaxed);
                    cancel.cancel();
                }
                Ok(LeaseStatus::BatchStopped) => cancel.cancel(),
                // The lease may expire; then the gate prevents the tag from being put.
                Err(error) => self.warn_repeated("cannot renew a lease", &error),
            }
        }
    }

    /// Records an attempt in the ledger.
    async fn record_attempt(
        &self,
        task: &LeasedTask<'_>,
        stop: &Shutdown,
        attempt: Result<CompletedCopy>,
    ) -> Result<Disposition> {
        let CompletedCopy { outcome, bytes, tags, put, lease, is_whole, .. } = match attempt {
            Ok(CompletedCopy { collected: Some(report), .. }) => return self.keep_collected(task, &report).await,
            Ok(completed) => completed,
            Err(error) => return self.record_failure(task, stop, error).await,
        };
        let record = async {
            let Some(lease) = &lease else {
                return match tags.is_empty() {
                    true => Ok(()),
                    false => self.store.cache_tags(&task.cache_scope(), tags).await,
                };
            };
            let (source, target) = (&task.message.source, task.target);
            let provenance = put.as_ref().map(|digest| ProvenanceUpdate { source, target, digest });
            let complete = is_whole.then_some(&target.tag);
            let record = TagRecord { provenance, scope: &task.cache_scope(), tags, complete };
            if !self.store.record_tag(lease.fence(), record).await? {
                // Another task may have written the tag since.
                tracing::info!("{target} is not recorded: the tag lease was lost");
            }
            Ok(())
        };
        let (result, read) = match outcome {
            CopyOutcome::Copied => (TaskResult::Copied, task.traffic.0.snapshot().received),
            CopyOutcome::Unchanged => (TaskResult::Unchanged, 0),
        };
        let completion = TaskCompletion::Finished { result: result.clone(), bytes: bytes.copied, read };
        // Concurrently: the store may be far away.
        let finish = self.store.finish(task.task_ref, task.holder, result, task.usage(bytes));
        let (recorded, reply) = tokio::join!(record, finish);
        drop(lease);
        self.emit_finished(task.task_ref, reply?, completion);
        // The task has finished all the same: on redelivery the ledger knows.
        recorded.map(|()| Disposition::Done)
    }

    async fn record_failure(&self, task: &LeasedTask<'_>, stop: &Shutdown, error: Error) -> Result<Disposition> {
        let LeasedTask { task_ref, holder, attempts, .. } = *task;
        let usage = task.usage(BlobBytes::default());
        if error.is_cancelled() && (stop.abort.is_cancelled() || task.copy_slot.is_given_back()) {
            // This worker shuts down, the task does not: any worker may take it.
            self.reschedule(task, Duration::ZERO, false, usage).await?;
            self.emit_end(task_ref, TaskCompletion::Requeued);
            return Ok(Disposition::Done);
        }
        if error.is_cancelled() {
            return self.finish(task_ref, holder, TaskResult::Cancelled, usage).await;
        }
        let tries = attempts + error.attempts();
        if error.kind() == ErrorKind::RateLimited
            && let Some(wait) = error.retry_after()
        {
            // The wait is longer than a slot may be held: no attempt is counted.
            self.record_rate_limit(task, error.registry(), wait).await?;
            let reply =
                self.reschedule_with_message_delay(task, (wait, longest_delay_within(wait)), false, usage).await?;
            self.emit_rescheduled(task_ref, reply, &error, wait);
            return Ok(Disposition::RateLimited { registry: error.registry().cloned(), wait });
        }
        if self.settings.in_cluster
            && error.is_connect_error()
            && let Some(registry) = error.registry()
        {
            // Another machine may reach the registry: no attempt is counted.
            let (registry, why) = (registry.clone(), error.message().to_owned());
            let reply = self.reschedule(task, UNREACHABLE_RETRY_DELAY, false, usage).await?;
            self.emit_rescheduled(task_ref, reply, &error, UNREACHABLE_RETRY_DELAY);
            return Ok(Disposition::Unreachable { registry, why });
        }
        if retry::is_transient(&error) && tries < self.settings.max_attempts {
            let wait = Duration::from_secs(1 << attempts.min(6));
            let reply = self.reschedule(task, wait, true, usage).await?;
            self.emit_rescheduled(task_ref, reply, &error, wait);
            return Ok(Disposition::Done);
        }
        let result = TaskResult::Failed(Failure::from_error(&error, tries));
        self.finish(task_ref, holder, result, usage).await
    }

    /// Records the result of a task that transferred nothing.
    async fn finish(
        &self,
        task_ref: TaskRef,
        holder: TaskHolder<'_>,
        result: TaskResult,
        usage: Usage,
    ) -> Result<Disposition> {
        let reply = self.store.finish(task_ref, holder, result.clone(), usage).await?;
        self.emit_finished(task_ref, reply, TaskCompletion::Finished { result, bytes: 0, read: 0 });
        Ok(Disposition::Done)
    }

    /// Reschedules a task: publishes its message with a delay, then tells the ledger. Without a delay, or if the queue
    /// fails, the task returns to the plan and the batch leader publishes it.
    async fn reschedule(
        &self,
        task: &LeasedTask<'_>,
        wait: Duration,
        counts: bool,
        usage: Usage,
    ) -> Result<RescheduleReply> {
        self.reschedule_with_message_delay(task, (wait, wait), counts, usage).await
    }

    /// Reschedules a task with a message that returns before the ledger's delay is over.
    async fn reschedule_with_message_delay(
        &self,
        task: &LeasedTask<'_>,
        (mut wait, message_wait): (Duration, Duration),
        counts: bool,
        usage: Usage,
    ) -> Result<RescheduleReply> {
        if !wait.is_zero() {
            let targets = vec![MessageTarget { index: task.task_ref.index, locator: task.target.clone() }];
            let message = Message { targets, run: task.task_ref.run, ..task.message.clone() };
            if let Err(error) = self.queue.publish_delayed(task.route, &message, message_wait).await {
                self.warn_repeated("the queue is unavailable", &error);
                wait = Duration::ZERO;
            }
        }
        self.store.reschedule(task.task_ref, task.holder, wait, counts, usage).await
    }

    /// Shares a registry's rate limit with other workers. An error that names no registry holds both endpoints.
    async fn record_rate_limit(
        &self,
        task: &LeasedTask<'_>,
        registry: Option<&RegistryName>,
        wait: Duration,
    ) -> Result<()> {
        let route = task.options.route(task.message.source.repository.endpoint(), task.target.repository.endpoint());
        for (endpoint, pulls) in [(route.source, true), (route.target, false)] {
            let Some(endpoint) =
                endpoint.registry().filter(|endpoint| registry.is_none_or(|registry| registry == *endpoint))
            else {
                continue;
            };
            // A quota was reported to the store when it was observed, and covers less than the whole registry; pull
            // accounts are limited individually.
            if registry.is_some() && pulls && self.client.rate_limit_hold(endpoint, false).is_none() {
                continue;
            }
            let until = self.clock.now().checked_add(wait).unwrap_or(Timestamp::MAX);
            for account in self.client.accounts(endpoint, false).await {
                self.store.block_until(&account, until).await?;
            }
        }
        Ok(())
    }

    /// Emits a result if the ledger counted it.
    fn emit_finished(&self, task_ref: TaskRef, reply: FinishReply, completion: TaskCompletion) {
        self.emit_end(task_ref, if reply == FinishReply::Counted { completion } else { TaskCompletion::Stale });
    }

    /// Emits the rescheduling of a task if the ledger accepted it.
    fn emit_rescheduled(&self, task_ref: TaskRef, reply: RescheduleReply, error: &Error, wait: Duration) {
        let completion = match reply {
            RescheduleReply::Scheduled { .. } => TaskCompletion::Rescheduled { error: error.to_string(), wait },
            RescheduleReply::Stale => TaskCompletion::Stale,
        };
        self.emit_end(task_ref, completion);
    }

    pub(super) fn emit_end(&self, task_ref: TaskRef, completion: TaskCompletion) {
        self.events.emit_task(TaskEvent::Ended { task: task_ref, completion });
    }
}

fn time_until(until: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO).max(Duration::from_millis(100))
}
