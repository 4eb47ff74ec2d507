//! Takes tasks from the queue, copies images and records results in the ledger: take → start → copy → finish. A message
//! is acknowledged a second after its last task has started, or when a shorter task ends.

mod delivered;
mod gate;
mod lanes;
mod task;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use imgsync_common::batch::{BatchId, Lane, Message, MessageTarget, Options, Ticket};
use imgsync_common::caught::caught;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Event, Events};
use imgsync_common::generational::GenerationalCache;
use imgsync_common::queue::{Delivery, RETRY_DELAYS, TaskQueue};
use imgsync_common::registry::Client;
use imgsync_common::retry::seconds;
use imgsync_common::store::{Clock, Doing, LEASE, Store};
use tokio::sync::{RwLock, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::delivered::Delivered;
pub use self::lanes::{Allowed, Holds, Serving, moment, store_holds};

use crate::copy::Copier;

/// Concurrent consumer loops: over a slow connection a queue request takes as long as a small task.
const TAKERS: usize = 4;
/// Slot count from which a worker has one extra slot, for high-priority tasks only.
pub const URGENT_SLOT_FROM: usize = 4;
/// Delay before a failed queue is asked again.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// Longest time a delivery stays unacknowledged; the tasks of one message run one after another. Brokers close the
/// channel of a consumer that exceeds their limit (commonly 30 minutes), so the message is requeued before that.
const LONGEST_HELD: Duration = Duration::from_secs(10 * 60);
/// Delay until such a message is redelivered, in case its worker has died meanwhile.
const COMES_BACK: Duration = Duration::from_secs(5 * 60);
/// Delay of a message whose route this worker cannot serve: another worker may.
const OUT_OF_REACH_WAIT: Duration = Duration::from_secs(1);

/// Batches whose options are cached: a worker needs the last few, whatever its uptime.
const MAX_BATCHES: usize = 64;

/// Configuration of a runner.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the worker, unique to this process.
    pub name: String,
    /// Maximum concurrent tasks.
    pub slots: usize,
    /// Maximum attempts of a task with transient errors, including retries within an attempt.
    pub attempts: u32,
    /// Whether other workers may reach a registry that this one cannot: then its tasks are requeued without counting an
    /// attempt.
    pub others_may_reach: bool,
}

/// Shutdown of a worker.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Stops taking tasks; running tasks may finish.
    pub drain: CancellationToken,
    /// Also stops running tasks, and requeues them.
    pub abort: CancellationToken,
}

/// Runs tasks from the queue.
#[derive(Clone)]
pub struct Runner {
    queue: Arc<dyn TaskQueue>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    client: Client,
    copier: Copier,
    settings: Settings,
    /// Time until the lease of a task expires unless renewed.
    lease: Duration,
    events: Events,
    serving: Serving,
    options: Arc<Mutex<GenerationalCache<BatchId, Arc<Options>>>>,
    running: Arc<Mutex<HashMap<Ticket, Doing>>>,
    /// Read-locked by every running task, write-locked by a task that runs exclusively because its workers died before.
    alone: Arc<RwLock<()>>,
    /// Held by the one task that may run exclusively.
    suspect: Arc<tokio::sync::Mutex<()>>,
}

impl Runner {
    /// Creates a runner that is not started.
    pub fn new(
        queue: Arc<dyn TaskQueue>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        (client, copier): (Client, Copier),
        settings: Settings,
        serving: Serving,
        events: Events,
    ) -> Runner {
        Runner {
            queue,
            store,
            clock,
            client,
            copier,
            settings,
            lease: LEASE,
            events,
            serving,
            options: Arc::new(Mutex::new(GenerationalCache::new(MAX_BATCHES))),
            running: Arc::default(),
            alone: Arc::default(),
            suspect: Arc::default(),
        }
    }

    /// Sets the lease time of tasks, in place of [`LEASE`].
    #[must_use]
    pub fn with_lease(self, lease: Duration) -> Runner {
        Runner { lease, ..self }
    }

    /// Runs tasks until shutdown. Returns when no task is running.
    pub async fn run(&self, stop: &Stop) {
        let slots = Arc::new(Semaphore::new(self.settings.slots.max(1)));
        let tasks = TaskTracker::new();
        let takers = TAKERS.min(self.settings.slots.max(1));
        let take_any = (0..takers).map(|_| self.take(&slots, &tasks, false, stop));
        let urgent = Arc::new(Semaphore::new(1));
        let take_urgent = async {
            if self.settings.slots >= URGENT_SLOT_FROM {
                self.take(&urgent, &tasks, true, stop).await;
            }
        };
        tokio::join!(futures_util::future::join_all(take_any), take_urgent);
        tasks.close();
        tasks.wait().await;
    }

    /// Takes deliveries until shutdown: any, or only high-priority ones.
    async fn take(&self, slots: &Arc<Semaphore>, tasks: &TaskTracker, only_urgent: bool, stop: &Stop) {
        let mut changes = self.serving.changes();
        // Acquire the slot first, so that no delivery waits for one.
        while let Some(slot) = free_slot(slots, stop).await {
            changes.mark_unchanged();
            let (lanes, until) = self.serving.lanes();
            let Some(lanes) = lanes else {
                drop(slot);
                tokio::select! {
                    _ = changes.changed() => {}
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = stop.drain.cancelled() => {}
                }
                continue;
            };
            let taking = match only_urgent {
                true => self.queue.take_urgent(&lanes, &stop.drain),
                false => self.queue.take(&lanes, &stop.drain),
            };
            let taken = tokio::select! {
                taken = taking => taken,
                // The routes to take from have changed.
                _ = changes.changed() => continue,
                () = tokio::time::sleep_until(until.into()) => continue,
            };
            match taken {
                Ok(Some(delivery)) => {
                    let (runner, stop) = (self.clone(), stop.clone());
                    tasks.spawn(async move {
                        let delivered = async {
                            runner.deliver(delivery, &stop).await;
                            Ok(())
                        };
                        if let Err(panic) = caught("taking a delivery", delivered).await {
                            // Its tasks go to other workers when their leases expire.
                            runner.warn(&panic.to_string());
                        }
                        drop(slot);
                    });
                }
                Ok(None) => break,
                Err(error) => {
                    self.warn_of("the queue does not answer", &error);
                    tokio::select! {
                        () = tokio::time::sleep(QUEUE_PAUSE) => {}
                        () = stop.drain.cancelled() => break,
                    }
                }
            }
        }
    }

    /// Returns the running tasks.
    pub fn doing(&self) -> Vec<Doing> {
        let mut doing: Vec<Doing> = self.running().values().cloned().collect();
        doing.sort_by_key(|doing| (doing.since, doing.index));
        doing
    }

    /// Runs the tasks of a delivery, then acknowledges or requeues it.
    async fn deliver(&self, delivery: Delivery, stop: &Stop) {
        if self.settings.others_may_reach && !self.serving.may_serve(&delivery.lane, &self.client).await {
            return self.give_back(delivery, OUT_OF_REACH_WAIT).await;
        }
        if let Some((registry, hold)) = lanes::own_hold(&delivery.lane, &self.client) {
            self.park(&delivery.lane, hold.wait, &format!("{registry} {}", hold.why));
            // Requeue for another worker: nobody takes from a held route.
            return self.give_back(delivery, OUT_OF_REACH_WAIT).await;
        }
        let delivered = Delivered::new(delivery);
        let mut work = std::pin::pin!(self.work(&delivered, stop));
        let (left, wait) = tokio::select! {
            left = &mut work => left,
            () = tokio::time::sleep(LONGEST_HELD) => match delivered.take() {
                Some(delivery) => {
                    self.give_back(delivery, COMES_BACK).await;
                    // The remaining tasks are redelivered with the message.
                    work.await;
                    return;
                }
                None => work.await,
            }
        };
        match delivered.take() {
            Some(delivery) if left.is_empty() => {
                if let Err(error) = delivery.acknowledge().await {
                    // It is redelivered, and the ledger knows the results.
                    self.warn_of("the queue does not answer", &error);
                }
            }
            Some(mut delivery) => {
                delivery.message.targets = left;
                self.give_back(delivery, wait).await;
            }
            None if left.is_empty() => {}
            // If the queue fails, the leases expire and the tasks are reclaimed.
            None => {
                let message = Message { targets: left, ..delivered.message.clone() };
                if let Err(error) = self.queue.publish_later(&delivered.lane, &message, wait).await {
                    self.warn_of("the queue does not answer", &error);
                }
            }
        }
    }

    /// Runs the tasks of a message. Returns the targets to redeliver and the delay: tasks that could not start, and
    /// tasks whose state is unknown. A rescheduled task has its own message.
    async fn work(&self, delivered: &Delivered, stop: &Stop) -> (Vec<MessageTarget>, Duration) {
        let Delivered { lane, message, .. } = delivered;
        let mut left = Vec::new();
        let mut wait = Duration::ZERO;
        for (at, (ticket, target)) in message.tickets().zip(&message.targets).enumerate() {
            // When its last task runs, the message can be acknowledged, unless some tasks are to be redelivered.
            let is_last = left.is_empty() && at + 1 == message.targets.len();
            let time = match self.task(delivered, ticket, &target.place, is_last, stop).await {
                Ok(task::Ended::Done) => continue,
                Ok(task::Ended::Later(time)) => time,
                Ok(task::Ended::Throttled { registry, wait: time }) => {
                    let who = registry.as_ref().map_or_else(|| "a registry".to_owned(), ToString::to_string);
                    let hold = registry.as_ref().and_then(|registry| self.client.hold(registry, true));
                    let why = hold.map_or_else(|| "asked to be left alone".to_owned(), |hold| hold.why);
                    self.park(lane, time, &format!("{who} {why}"));
                    continue;
                }
                Ok(task::Ended::OutOfReach { registry, why }) => {
                    self.serving.lost_reach(&registry, lane, &why);
                    continue;
                }
                // The ledger is unavailable: redeliver the message; nothing is counted twice.
                Err(error) => {
                    self.warn_of("the ledger does not answer", &error);
                    QUEUE_PAUSE
                }
            };
            left.push(target.clone());
            wait = wait.max(time);
        }
        (left, wait)
    }

    /// Holds a route, and warns if that is new.
    fn park(&self, lane: &Lane, wait: Duration, why: &str) {
        if self.serving.park(lane, wait, why) {
            self.warn(&format!("{why}: nothing of {lane} is begun before {} ({})", lanes::moment(wait), seconds(wait)));
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, Doing>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the options of a batch, cached.
    async fn options(&self, batch: BatchId) -> Result<Arc<Options>> {
        if let Some(options) = self.options.lock().unwrap_or_else(PoisonError::into_inner).get(&batch) {
            return Ok(options.clone());
        }
        let tried = format!("reading the options of batch {batch}");
        let Some(found) = self.store.batch(batch).await? else {
            return Err(Error::new(Class::NotFound, tried, "the store does not have the batch"));
        };
        let options = Arc::new(Options::decode(&found.options, &format!("batch {batch}"))?);
        self.options.lock().unwrap_or_else(PoisonError::into_inner).insert(batch, options.clone());
        Ok(options)
    }

    /// Warns about an error of the queue or store; all tasks hit the same one, so repetitions are merged.
    fn warn_of(&self, what: &str, error: &Error) {
        let (kind, message) = (format!("{what}: {}", error.class()), format!("{what}: {error}"));
        self.events.emit(Event::RepeatedWarning { kind, message });
    }

    fn warn(&self, message: &str) {
        self.events.emit(Event::Warning { message: message.to_owned() });
    }
}

/// Returns the longest delay of the queue that does not exceed `wait`: a message must not stay queued after its route
/// is released, and one that returns early is not taken.
fn not_after(wait: Duration) -> Duration {
    RETRY_DELAYS.into_iter().rfind(|delay| *delay <= wait).unwrap_or(wait)
}

async fn free_slot(slots: &Arc<Semaphore>, stop: &Stop) -> Option<tokio::sync::OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        () = stop.drain.cancelled() => None,
        slot = slots.clone().acquire_owned() => slot.ok(),
    }
}
