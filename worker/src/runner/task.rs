//! Runs one task: leased, with the lease renewed while it runs, copied, and recorded in the ledger.

mod attempt;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use imgsync_common::batch::{
    BatchId, Bytes, Failure, Lane, Message, MessageTarget, Options, Place, Requests, RuleOptions, Ticket, Verdict,
};
use imgsync_common::caught::caught;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Event, TaskEnd};
use imgsync_common::image::{Digest, RegistryName};
use imgsync_common::registry::{Context, Tally};
use imgsync_common::retry;
use imgsync_common::store::{
    CacheScope, Doing, Finished, Known, LeaseGuard, Retried, Spent, Standing, Start, TagOrigin, TagRecord, TaskHolder,
};
use jiff::Timestamp;
use tokio::sync::RwLockReadGuard;
use tracing::Instrument as _;

use super::delivered::Delivered;
use super::{Runner, Stop, not_after};
use crate::copy::{Done, Moved, Outcome, Seen};
use crate::log::about;

/// Interval at which a lease is renewed; also the delay until a cancelled batch stops.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Time after the start of its last task when a message is acknowledged.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_secs(1);
/// Longest delay of a message whose task another worker holds: not until the lease must have expired, but so that the
/// next holder is soon there.
const HELD_WAIT: Duration = Duration::from_secs(10);
/// Delay of a task whose registry is unreachable from here.
const OUT_OF_REACH: Duration = Duration::from_secs(1);
/// Losses after which a task runs exclusively: it, or a task that ran beside it, may have killed its workers.
const LOSSES_ALONE: u32 = 3;
/// Losses after which the task itself is blamed, and fails.
const LOSSES_FAIL: u32 = 6;

/// What happens to the message of a task.
pub(super) enum Ended {
    /// Finished: recorded in the ledger, or rescheduled with its own message.
    Done,
    /// Not started; redeliver after this delay.
    Later(Duration),
    /// Rescheduled together with its whole route: a registry's rate limit holds it for this long.
    Throttled { registry: Option<RegistryName>, wait: Duration },
    /// Rescheduled: this registry is unreachable from here.
    OutOfReach { registry: RegistryName, why: String },
}

/// Outcome of one attempt.
enum Came {
    Copied(Box<Copied>),
    /// Source and target are equal; nothing was written. The observed digests, if they are to be cached.
    Equal(Option<Seen>),
    Failed(Error),
}

/// A finished copy.
struct Copied {
    done: Done,
    before: Before,
    /// Lease of the target tag, if the tag was or could have been written: held until that is recorded.
    lease: Option<LeaseGuard>,
    /// Whether the tag, which may have been partial, is complete now.
    is_whole: bool,
}

/// State of a target tag before the copy.
#[derive(Default)]
struct Before {
    /// When it was last seen at the target, if the target was not asked now.
    seen_at: Option<Timestamp>,
    /// When its referrers were last checked.
    referrers_at: Option<Timestamp>,
}

/// Lists a task as running until dropped.
struct Listed<'a> {
    runner: &'a Runner,
    ticket: Ticket,
}

impl<'a> Listed<'a> {
    fn new(runner: &'a Runner, ticket: Ticket, doing: Doing) -> Listed<'a> {
        runner.running().insert(ticket, doing);
        Listed { runner, ticket }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.runner.running().remove(&self.ticket);
    }
}

/// A task leased by this worker.
pub(super) struct Held<'a> {
    lane: &'a Lane,
    pub(super) message: &'a Message,
    pub(super) ticket: Ticket,
    pub(super) target: &'a Place,
    pub(super) holder: TaskHolder<'a>,
    attempts: u32,
    options: &'a Options,
    rule: RuleOptions,
    pub(super) context: Context,
    /// Traffic counters of source and target.
    pub(super) tallies: (Arc<Tally>, Arc<Tally>),
    started: Instant,
}

impl Held<'_> {
    /// Returns the scope of the target tag in the digest cache.
    fn scope(&self) -> CacheScope {
        CacheScope { home: (*self.target.home).clone(), options: self.rule.fingerprint().into() }
    }

    /// Returns the digest of the rule options, as stored in a partial mark.
    fn fingerprint(&self) -> Digest {
        Digest::sha256(self.rule.fingerprint().as_bytes())
    }

    /// Returns what the attempt has cost, whatever its outcome.
    fn spent(&self, bytes: Bytes) -> Spent {
        let requests = Requests { source: self.tallies.0.read().requests, target: self.tallies.1.read().requests };
        Spent { bytes, requests, time: self.started.elapsed() }
    }
}

impl Runner {
    /// Runs one task of a message, which is acknowledged soon after its last task is leased. An error comes from the
    /// ledger and leaves the task's state unknown.
    pub(super) async fn task(
        &self,
        delivered: &Delivered,
        ticket: Ticket,
        target: &Place,
        is_last: bool,
        stop: &Stop,
    ) -> Result<Ended> {
        let message = &delivered.message;
        // Acquired before the lease: if the exclusive task kills the process, waiting tasks must not count as lost.
        let beside = tokio::select! {
            guard = self.alone.read() => guard,
            () = stop.abort.cancelled() => return Ok(Ended::Later(Duration::ZERO)),
        };
        let started = self.store.start(ticket, &self.settings.name, self.lease).await?;
        let (epoch, attempts, losses) = match started {
            Start::Go { epoch, attempts, losses } => (epoch, attempts, losses),
            // Redelivered while it runs here: the broker considered it lost.
            Start::Own { .. } if self.running().contains_key(&ticket) => return Ok(Ended::Later(HELD_WAIT)),
            Start::Own { epoch, attempts } => (epoch, attempts, 0),
            Start::AlreadyDone | Start::Cancelled | Start::StaleRun | Start::Paused => return Ok(Ended::Done),
            Start::HeldBy { until } => return Ok(Ended::Later(time_until(until, self.clock.now()).min(HELD_WAIT))),
            Start::Unknown => {
                self.warn(&format!("the store has lost batch {}: run it again", ticket.batch));
                return Ok(Ended::Done);
            }
        };
        let doing = Doing {
            batch: ticket.batch,
            index: ticket.index,
            source: message.source.to_string(),
            target: target.to_string(),
            since: self.clock.now(),
        };
        let _listed = Listed::new(self, ticket, doing.clone());
        let held = async {
            self.events.emit(Event::TaskStarted { ticket, source: doing.source, target: doing.target });
            Ok(self.hold(delivered, ticket, target, (epoch, attempts, losses), beside, stop).await)
        };
        let tried = format!("copying {}", message.source);
        let mut held = std::pin::pin!(caught(&tried, held.instrument(about(&ticket))));
        // A shorter task is acknowledged when it ends, along with the next take: saves the broker a step.
        let ended = tokio::select! {
            ended = &mut held => ended,
            // Concurrently: no copy waits for the broker.
            () = tokio::time::sleep(ACKNOWLEDGE_AFTER), if is_last => tokio::join!(held, self.acknowledge(delivered)).0,
        };
        match ended {
            Ok(Ok(ended)) => Ok(ended),
            Ok(Err(error)) => {
                // The ledger has no result; the next holder of the task provides one.
                self.emit_end(ticket, TaskEnd::GivenBack);
                Err(error)
            }
            Err(panic) => self.settle_panic(ticket, epoch, attempts, &panic).await,
        }
    }

    /// Records a panic outside of the copy.
    async fn settle_panic(&self, ticket: Ticket, token: u64, attempts: u32, panic: &Error) -> Result<Ended> {
        let (class, failure) = (panic.class(), Failure::of(panic, attempts + 1));
        let error = failure.error.clone();
        let holder = TaskHolder { worker: &self.settings.name, token };
        let finished = self.store.finish(ticket, holder, Verdict::Failed(failure), Spent::default()).await?;
        // It may have panicked after its result was counted.
        self.emit_finished(ticket, finished, TaskEnd::Failed { class, error });
        Ok(Ended::Done)
    }

    /// Runs a leased task.
    async fn hold(
        &self,
        delivered: &Delivered,
        ticket: Ticket,
        target: &Place,
        (epoch, attempts, losses): (u64, u32, u32),
        beside: RwLockReadGuard<'_, ()>,
        stop: &Stop,
    ) -> Result<Ended> {
        let Delivered { lane, message, .. } = delivered;
        let (options, rule, unreadable) = match self.read_options(ticket.batch, message.rule).await {
            Ok((options, rule)) => (options, rule, None),
            // If the store is unavailable, the state is unknown.
            Err(error) if retry::is_passing(&error) || error.class() == Class::NotFound => return Err(error),
            // The protections of the target are unknown: write nothing.
            Err(error) => (Arc::default(), RuleOptions::default(), Some(error)),
        };
        let held = Held {
            lane,
            message,
            ticket,
            target,
            holder: TaskHolder { worker: &self.settings.name, token: epoch },
            attempts,
            rule,
            options: &options,
            context: Context { cancel: stop.abort.child_token(), events: self.events.clone(), ..Context::default() },
            tallies: (Tally::new(), Tally::new()),
            started: Instant::now(),
        };
        if let Some(error) = unreadable {
            return self.settle(&held, stop, Came::Failed(error)).await;
        }
        if losses >= LOSSES_FAIL {
            let detail = format!("the worker that ran it ended {losses} times, the last ones with nothing else to do");
            let error = Error::new(Class::Local, format!("copying {}", message.source), detail);
            return self
                .settle(&held, stop, Came::Failed(error.hint("please report this, with the image's name")))
                .await;
        }
        let _suspect = match losses >= LOSSES_ALONE {
            true => match self.suspect.try_lock() {
                Ok(guard) => Some(guard),
                // Another task is waiting to run exclusively, or does. Waiting beside it would mean dying with it.
                Err(_) => {
                    self.put_off(&held, HELD_WAIT, false, held.spent(Bytes::default())).await?;
                    self.emit_end(ticket, TaskEnd::GivenBack);
                    return Ok(Ended::Done);
                }
            },
            false => None,
        };
        let lost = AtomicBool::new(false);
        let came = {
            // Boxed, here and below: a copy is a deep nest of futures, and thread stacks are small.
            let work: BoxFuture<'_, Result<Came>> = Box::pin(self.in_company(&held, losses, beside));
            let tried = format!("copying {}", message.source);
            tokio::select! {
                came = caught(&tried, work) => came.unwrap_or_else(Came::Failed),
                () = self.keep(&held, &lost) => unreachable!("a lease is kept until the work has ended"),
            }
        };
        if lost.load(Ordering::Relaxed) {
            // Another worker holds it, or it has finished: there is nothing to record.
            self.emit_end(ticket, TaskEnd::GivenBack);
            return Ok(Ended::Done);
        }
        self.settle(&held, stop, came).await
    }

    /// Reads the options of a batch and of one of its rules.
    async fn read_options(&self, batch: BatchId, rule: u32) -> Result<(Arc<Options>, RuleOptions)> {
        let options = self.options(batch).await?;
        let rule = options.rule(rule)?.clone();
        Ok((options, rule))
    }

    /// Copies alongside other tasks, or exclusively after too many losses.
    async fn in_company(&self, held: &Held<'_>, losses: u32, beside: RwLockReadGuard<'_, ()>) -> Result<Came> {
        if losses < LOSSES_ALONE {
            let came = self.copy(held).await;
            drop(beside);
            return came;
        }
        drop(beside);
        self.warn(&format!("{} was lost by its workers {losses} times: it runs alone now", held.message.source));
        let _alone = tokio::select! {
            guard = self.alone.write() => guard,
            () = held.context.cancel.cancelled() => {
                return Err(Error::cancelled(format!("copying {}", held.message.source)));
            }
        };
        self.copy(held).await
    }

    /// Renews the lease until dropped. Cancels the work if the lease is lost or the batch was stopped.
    async fn keep(&self, held: &Held<'_>, lost: &AtomicBool) {
        let cancel = &held.context.cancel;
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.store.renew(held.ticket, held.holder, self.lease).await {
                Ok(Standing::Held { .. }) => {}
                Ok(Standing::Lost) => {
                    lost.store(true, Ordering::Relaxed);
                    cancel.cancel();
                }
                Ok(Standing::Stop) => cancel.cancel(),
                // The lease may expire; then the gate prevents the tag from being put.
                Err(error) => self.warn_of("a lease could not be renewed", &error),
            }
        }
    }

    /// Records the outcome of a task in the ledger.
    async fn settle(&self, held: &Held<'_>, stop: &Stop, came: Came) -> Result<Ended> {
        let now = self.clock.now();
        let (verdict, bytes, tags, written) = match came {
            Came::Failed(error) => return self.settle_failure(held, stop, error).await,
            Came::Equal(seen) => {
                let known = seen.map(|Seen { source, target }| {
                    let known = Known { source, target, seen_at: now, referrers_at: None };
                    (held.target.tag.clone(), known)
                });
                (Verdict::Unchanged, Bytes::default(), known.into_iter().collect(), None)
            }
            Came::Copied(copied) => {
                let Copied { done, before, lease, is_whole } = *copied;
                let verdict = match done.outcome {
                    Outcome::Copied => Verdict::Copied,
                    Outcome::Unchanged => Verdict::Unchanged,
                };
                let Moved { copied, mounted, reused } = done.bytes;
                let put = done.tag_put.then(|| done.digest.clone());
                let known = Known {
                    // The next run compares with the HEAD digest; the content is read if it differs.
                    source: done.source_said.unwrap_or(done.source_digest),
                    target: done.digest,
                    seen_at: before.seen_at.unwrap_or(now),
                    referrers_at: if done.referrers_asked { Some(now) } else { before.referrers_at },
                };
                // With their digests at the source: the next listing shows changes.
                let companions = done.companions.into_iter().map(|(tag, source)| {
                    (tag, Known { target: source.clone(), source, seen_at: now, referrers_at: None })
                });
                let tags: Vec<_> = companions.chain([(held.target.tag.clone(), known)]).collect();
                (verdict, Bytes { copied, mounted, reused }, tags, lease.map(|lease| (lease, put, is_whole)))
            }
        };
        let record = async {
            let Some((lease, put, is_whole)) = &written else {
                return match tags.is_empty() {
                    true => Ok(()),
                    false => self.store.learn(&held.scope(), tags).await,
                };
            };
            let (source, target) = (&held.message.source, held.target);
            let origin = put.as_ref().map(|digest| TagOrigin { source, target, digest });
            let whole = is_whole.then_some(&target.tag);
            let record = TagRecord { origin, scope: &held.scope(), tags, whole };
            if !self.store.record_tag(lease.fence(), record).await? {
                // Another task may have written the tag since.
                tracing::info!("{target} is not recorded: its lease was lost");
            }
            Ok(())
        };
        let end = match verdict {
            Verdict::Copied => TaskEnd::Copied { bytes: bytes.copied, read: held.tallies.0.read().received },
            _ => TaskEnd::Unchanged,
        };
        // Concurrently: the store may be far away.
        let finish = self.store.finish(held.ticket, held.holder, verdict, held.spent(bytes));
        let (recorded, finished) = tokio::join!(record, finish);
        drop(written);
        let finished = finished?;
        self.emit_finished(held.ticket, finished, end);
        // The task has finished all the same: on redelivery the ledger knows.
        recorded.map(|()| Ended::Done)
    }

    async fn settle_failure(&self, held: &Held<'_>, stop: &Stop, error: Error) -> Result<Ended> {
        let Held { ticket, holder, attempts, .. } = *held;
        let spent = held.spent(Bytes::default());
        if error.is_cancelled() && stop.abort.is_cancelled() {
            // This worker shuts down, the task does not: any worker may take it.
            self.put_off(held, Duration::ZERO, false, spent).await?;
            self.emit_end(ticket, TaskEnd::GivenBack);
            return Ok(Ended::Done);
        }
        if error.is_cancelled() {
            let finished = self.store.finish(ticket, holder, Verdict::Cancelled, spent).await?;
            self.emit_finished(ticket, finished, TaskEnd::Cancelled);
            return Ok(Ended::Done);
        }
        let tries = attempts + error.attempts();
        if error.class() == Class::RateLimited
            && let Some(wait) = error.wait()
        {
            // The wait is longer than a slot may be held: no attempt is counted.
            self.hold_off(held, error.registry(), wait).await?;
            let retried = self.put_off_until(held, (wait, not_after(wait)), false, spent).await?;
            self.emit_retried(ticket, retried, &error, wait);
            return Ok(Ended::Throttled { registry: error.registry().cloned(), wait });
        }
        if self.settings.others_may_reach
            && error.is_unconnected()
            && let Some(registry) = error.registry()
        {
            // Another machine may reach the registry: no attempt is counted.
            let (registry, why) = (registry.clone(), error.detail().to_owned());
            let retried = self.put_off(held, OUT_OF_REACH, false, spent).await?;
            self.emit_retried(ticket, retried, &error, OUT_OF_REACH);
            return Ok(Ended::OutOfReach { registry, why });
        }
        if retry::is_passing(&error) && tries < self.settings.attempts {
            let wait = Duration::from_secs(1 << attempts.min(6));
            let retried = self.put_off(held, wait, true, spent).await?;
            self.emit_retried(ticket, retried, &error, wait);
            return Ok(Ended::Done);
        }
        let failure = Failure::of(&error, tries);
        let end = TaskEnd::Failed { class: error.class(), error: failure.error.clone() };
        let finished = self.store.finish(ticket, holder, Verdict::Failed(failure), spent).await?;
        self.emit_finished(ticket, finished, end);
        Ok(Ended::Done)
    }

    /// Reschedules a task: publishes its message with a delay, then tells the ledger. Without a delay, or if the queue
    /// fails, the task returns to the plan and the batch leader publishes it.
    async fn put_off(&self, held: &Held<'_>, wait: Duration, counts: bool, spent: Spent) -> Result<Retried> {
        self.put_off_until(held, (wait, wait), counts, spent).await
    }

    /// Reschedules a task with a message that returns before the ledger's delay is over.
    async fn put_off_until(
        &self,
        held: &Held<'_>,
        (mut wait, message_wait): (Duration, Duration),
        counts: bool,
        spent: Spent,
    ) -> Result<Retried> {
        if !wait.is_zero() {
            let targets = vec![MessageTarget { index: held.ticket.index, place: held.target.clone() }];
            let message = Message { targets, run: held.ticket.run, ..held.message.clone() };
            if let Err(error) = self.queue.publish_later(held.lane, &message, message_wait).await {
                self.warn_of("the queue does not answer", &error);
                wait = Duration::ZERO;
            }
        }
        self.store.retry_later(held.ticket, held.holder, wait, counts, spent).await
    }

    /// Shares a registry's rate limit with other workers. An error that names no registry holds both endpoints.
    async fn hold_off(&self, held: &Held<'_>, registry: Option<&RegistryName>, wait: Duration) -> Result<()> {
        let lane = held.options.lane(held.message.source.home.end(), held.target.home.end());
        for (end, pulls) in [(lane.source, true), (lane.target, false)] {
            let Some(end) = end.registry().filter(|end| registry.is_none_or(|registry| registry == *end)) else {
                continue;
            };
            // A quota was reported to the store when it was observed, and covers less than the whole registry; pull
            // accounts are limited individually.
            if registry.is_some() && pulls && self.client.hold(end, false).is_none() {
                continue;
            }
            let until = self.clock.now().checked_add(wait).unwrap_or(Timestamp::MAX);
            for account in self.client.accounts(end, false).await {
                self.store.hold_off(&account, until).await?;
            }
        }
        Ok(())
    }

    /// Emits a result if the ledger counted it.
    fn emit_finished(&self, ticket: Ticket, finished: Finished, end: TaskEnd) {
        self.emit_end(ticket, if finished == Finished::Counted { end } else { TaskEnd::Stale });
    }

    /// Emits the rescheduling of a task if the ledger accepted it.
    fn emit_retried(&self, ticket: Ticket, retried: Retried, error: &Error, wait: Duration) {
        let end = match retried {
            Retried::Waits { .. } => TaskEnd::Later { error: error.to_string(), wait },
            Retried::Stale => TaskEnd::Stale,
        };
        self.emit_end(ticket, end);
    }

    fn emit_end(&self, ticket: Ticket, end: TaskEnd) {
        self.events.emit(Event::TaskEnded { ticket, end });
    }
}

fn time_until(until: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO).max(Duration::from_millis(100))
}
