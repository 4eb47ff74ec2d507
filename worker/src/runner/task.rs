//! One task: held by a lease that is renewed while it runs, copied, and told to the ledger.

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

/// How often a lease is renewed, which also is how soon a cancelled batch stops.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How long after its last task has begun a message is acknowledged.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_secs(1);
/// How long a message waits whose task another is at: not until the lease must have ended, but so that whoever has it
/// next is there soon after.
const HELD_WAIT: Duration = Duration::from_secs(10);
/// How long a task waits whose registry cannot be reached from here.
const OUT_OF_REACH: Duration = Duration::from_secs(1);
/// A task that was lost so often runs alone: it may be what ended its workers, or one that ran beside that.
const LOSSES_ALONE: u32 = 3;
/// A task that was lost so often is what ended its workers.
const LOSSES_FAIL: u32 = 6;

/// What became of a task.
pub(super) enum Ended {
    /// The ledger has it, or the queue a message of its own.
    Done,
    /// It was not begun, and is to come back after this wait.
    Later(Duration),
    /// It was put off, and so is all of its lane: a registry asked to be left alone for so long.
    Throttled { registry: Option<RegistryName>, wait: Duration },
    /// It was put off: no connection to this registry can be made from here.
    OutOfReach { registry: RegistryName, why: String },
}

/// What a task came to.
enum Came {
    Copied(Box<Copied>),
    /// The ends are equal, and nothing was written. What was seen of both is worth remembering, or was known.
    Equal(Option<Seen>),
    Failed(Error),
}

/// A copy that was made.
struct Copied {
    done: Done,
    before: Before,
    /// The lease of its target tag, where the tag was written or could have been: it is held until that is recorded.
    lease: Option<LeaseGuard>,
    /// Whether the tag, which may have pointed at less than all of its image, does not any more.
    is_whole: bool,
}

/// What was known of a target tag before it was copied.
#[derive(Default)]
struct Before {
    /// When it was last seen at the target, where it was not asked for now.
    seen_at: Option<Timestamp>,
    /// When its referrers were asked for.
    referrers_at: Option<Timestamp>,
}

/// A task's line among those that this worker says it runs, until it is dropped.
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

/// A task that this worker holds.
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
    /// What counts the requests to source and target.
    pub(super) tallies: (Arc<Tally>, Arc<Tally>),
    started: Instant,
}

impl Held<'_> {
    /// The digest cache's name for the target tag.
    fn scope(&self) -> CacheScope {
        CacheScope { home: (*self.target.home).clone(), options: self.rule.fingerprint().into() }
    }

    /// What tells its options from others, in a mark.
    fn fingerprint(&self) -> Digest {
        Digest::sha256(self.rule.fingerprint().as_bytes())
    }

    /// What was spent on it, whatever it came to.
    fn spent(&self, bytes: Bytes) -> Spent {
        let requests = Requests { source: self.tallies.0.read().requests, target: self.tallies.1.read().requests };
        Spent { bytes, requests, time: self.started.elapsed() }
    }
}

impl Runner {
    /// Does one task of a message, which is acknowledged soon after its last one is granted. An error is the ledger's, of which
    /// nothing is known then.
    pub(super) async fn task(
        &self,
        delivered: &Delivered,
        ticket: Ticket,
        target: &Place,
        is_last: bool,
        stop: &Stop,
    ) -> Result<Ended> {
        let message = &delivered.message;
        // Waited for before the task is ours: what ends the one that runs alone must not count as a loss of those that wait.
        let beside = tokio::select! {
            guard = self.alone.read() => guard,
            () = stop.abort.cancelled() => return Ok(Ended::Later(Duration::ZERO)),
        };
        let started = self.store.start(ticket, &self.settings.name, self.lease).await?;
        let (epoch, attempts, losses) = match started {
            Start::Go { epoch, attempts, losses } => (epoch, attempts, losses),
            // Delivered again while it runs here: the broker thought that it was lost.
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
        // A task that ends sooner is acknowledged then, along with the question for the next: a step less for the broker.
        let ended = tokio::select! {
            ended = &mut held => ended,
            // At the same time: no copy waits for the broker.
            () = tokio::time::sleep(ACKNOWLEDGE_AFTER), if is_last => tokio::join!(held, self.acknowledge(delivered)).0,
        };
        match ended {
            Ok(Ok(ended)) => Ok(ended),
            Ok(Err(error)) => {
                // The ledger has no result of it: whoever has it next brings one.
                self.emit_end(ticket, TaskEnd::GivenBack);
                Err(error)
            }
            Err(panic) => self.settle_panic(ticket, epoch, attempts, &panic).await,
        }
    }

    /// Tells the ledger that the program failed at a task, outside of the copy.
    async fn settle_panic(&self, ticket: Ticket, token: u64, attempts: u32, panic: &Error) -> Result<Ended> {
        let (class, failure) = (panic.class(), Failure::of(panic, attempts + 1));
        let error = failure.error.clone();
        let holder = TaskHolder { worker: &self.settings.name, token };
        let finished = self.store.finish(ticket, holder, Verdict::Failed(failure), Spent::default()).await?;
        // It may have panicked after it was counted.
        self.emit_finished(ticket, finished, TaskEnd::Failed { class, error });
        Ok(Ended::Done)
    }

    /// Does a task of which the ledger says that it is ours.
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
            // Of a store that does not answer nothing is known.
            Err(error) if retry::is_passing(&error) || error.class() == Class::NotFound => return Err(error),
            // What protects the target is not known: nothing is written there.
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
                // Another waits to run alone, or does. Waiting with it would be dying with it.
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
            // Boxed, here and below: a copy is a deep nest of futures, and a thread's stack is small.
            let work: BoxFuture<'_, Result<Came>> = Box::pin(self.in_company(&held, losses, beside));
            let tried = format!("copying {}", message.source);
            tokio::select! {
                came = caught(&tried, work) => came.unwrap_or_else(Came::Failed),
                () = self.keep(&held, &lost) => unreachable!("a lease is kept until the work has ended"),
            }
        };
        if lost.load(Ordering::Relaxed) {
            // Another has it, or it has ended: nothing is ours to say.
            self.emit_end(ticket, TaskEnd::GivenBack);
            return Ok(Ended::Done);
        }
        self.settle(&held, stop, came).await
    }

    /// The options of a batch, and those of one of its rules.
    async fn read_options(&self, batch: BatchId, rule: u32) -> Result<(Arc<Options>, RuleOptions)> {
        let options = self.options(batch).await?;
        let rule = options.rule(rule)?.clone();
        Ok((options, rule))
    }

    /// Copies beside others; or with nothing else in this process, what was lost too often.
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

    /// Renews the lease until dropped. Stops the work where the task is another's by now, or its batch was stopped.
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
                // The lease may run out; then the tag will not be put, for that asks once more.
                Err(error) => self.warn_of("a lease could not be renewed", &error),
            }
        }
    }

    /// Tells the ledger how a task ended.
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
                    // What the source says is what the next run compares with: bytes are read where it says otherwise.
                    source: done.source_said.unwrap_or(done.source_digest),
                    target: done.digest,
                    seen_at: before.seen_at.unwrap_or(now),
                    referrers_at: if done.referrers_asked { Some(now) } else { before.referrers_at },
                };
                // As the source has them: that they have changed is told by its next listing.
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
                // Another may have written the tag since: what it points to is not ours to say.
                tracing::info!("{target} is not recorded: its lease was lost");
            }
            Ok(())
        };
        let end = match verdict {
            Verdict::Copied => TaskEnd::Copied { bytes: bytes.copied, read: held.tallies.0.read().received },
            _ => TaskEnd::Unchanged,
        };
        // At the same time: the store may be far away.
        let finish = self.store.finish(held.ticket, held.holder, verdict, held.spent(bytes));
        let (recorded, finished) = tokio::join!(record, finish);
        drop(written);
        let finished = finished?;
        self.emit_finished(held.ticket, finished, end);
        // It has ended all the same: delivered again, it is known to have.
        recorded.map(|()| Ended::Done)
    }

    async fn settle_failure(&self, held: &Held<'_>, stop: &Stop, error: Error) -> Result<Ended> {
        let Held { ticket, holder, attempts, .. } = *held;
        let spent = held.spent(Bytes::default());
        if error.is_cancelled() && stop.abort.is_cancelled() {
            // We are leaving, the task is not: anyone may have it.
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
            // Asked to wait longer than a slot should be held for: no attempt is spent on it.
            self.hold_off(held, error.registry(), wait).await?;
            let retried = self.put_off_until(held, (wait, not_after(wait)), false, spent).await?;
            self.emit_retried(ticket, retried, &error, wait);
            return Ok(Ended::Throttled { registry: error.registry().cloned(), wait });
        }
        if self.settings.others_may_reach
            && error.is_unconnected()
            && let Some(registry) = error.registry()
        {
            // What this machine cannot reach, another may: no attempt is spent on it.
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

    /// Puts a task off: its message waits with the queue, then the ledger says so. Without a wait, or where the queue does not
    /// answer, the task goes back to the plan, and who leads the batch publishes it.
    async fn put_off(&self, held: &Held<'_>, wait: Duration, counts: bool, spent: Spent) -> Result<Retried> {
        self.put_off_until(held, (wait, wait), counts, spent).await
    }

    /// The same, with a message that comes back earlier than the ledger's wait is over.
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

    /// Remembers that a registry wants to be left alone, for this worker and others. An error that does not say which it
    /// was holds for both ends.
    async fn hold_off(&self, held: &Held<'_>, registry: Option<&RegistryName>, wait: Duration) -> Result<()> {
        let lane = held.options.lane(held.message.source.home.end(), held.target.home.end());
        for (end, pulls) in [(lane.source, true), (lane.target, false)] {
            let Some(end) = end.registry().filter(|end| registry.is_none_or(|registry| registry == *end)) else {
                continue;
            };
            // A quota was told to the store when it was heard of, and holds for less than all; several who pull are each
            // for themselves.
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

    /// Tells of a result, as far as the ledger has counted it.
    fn emit_finished(&self, ticket: Ticket, finished: Finished, end: TaskEnd) {
        self.emit_end(ticket, if finished == Finished::Counted { end } else { TaskEnd::Stale });
    }

    /// Tells of a task that is tried again, as far as the ledger lets it wait.
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
