//! Takes tasks from the queue, copies images and records results in the ledger: take → start → copy → finish. A message
//! is acknowledged a second after its last task has started, or when a shorter task ends.

mod archives;
mod in_flight;
mod route_selector;
mod tag_gate;
mod task;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::task_events::TaskEvents;
use imgsync_model::batch::{BatchId, BatchOptions, Message, MessageTarget, Route, TaskRef};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::panics::catch_panic;
use imgsync_oci::retry::format_duration;
use imgsync_queue::{Delivery, RETRY_DELAYS, TaskQueue};
use imgsync_registry::Client;
use imgsync_registry::event::Event;
use imgsync_store::{Clock, LEASE_TTL, RunningTask, Store};
use tokio::sync::{RwLock, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::archives::{ArchiveTargets, CollectedArchive, CollectedTask};
use self::in_flight::InFlightMessage;
pub use self::route_selector::{RateLimitHolds, RouteSelector, WorkerScope, format_deadline, load_rate_limit_holds};
use self::task::CopySlots;

use crate::copy::Copier;

/// Concurrent consumer loops: over a slow connection a queue request takes as long as a small task.
const CONSUMER_LOOPS: usize = 4;
/// Slot count from which a worker has one extra slot, for high-priority tasks only.
pub const MIN_SLOTS_FOR_URGENT: usize = 4;
/// Delay before a failed queue is asked again.
const QUEUE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Longest time a delivery stays unacknowledged; the tasks of one message run one after another. Brokers close the
/// channel of a consumer that exceeds their limit (commonly 30 minutes), so the message is requeued before that.
const MAX_UNACKNOWLEDGED: Duration = Duration::from_secs(10 * 60);
/// Delay until such a message is redelivered, in case its worker has died meanwhile.
const REDELIVERY_DELAY: Duration = Duration::from_secs(5 * 60);
/// Delay of a message whose route this worker cannot serve: another worker may.
const UNSERVED_REQUEUE_DELAY: Duration = Duration::from_secs(1);

/// Batches whose options are cached: a worker needs the last few, whatever its uptime.
const MAX_CACHED_BATCHES: usize = 64;

/// Configuration of a runner.
#[derive(Debug, Clone)]
pub struct RunnerSettings {
    /// Name of the worker, unique to this process.
    pub name: String,
    /// Maximum concurrent copies.
    pub slots: usize,
    /// Maximum tasks that are compared, or wait for a slot, beside those that are copied. Over a slow connection, most
    /// of the time of an unchanged tag is the wait for one response.
    pub compared_ahead: usize,
    /// Maximum attempts of a task with transient errors, including retries within an attempt.
    pub max_attempts: u32,
    /// Whether other workers may reach a registry that this one cannot: then its tasks are requeued without counting an
    /// attempt.
    pub in_cluster: bool,
}

/// Shutdown of a worker.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
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
    settings: RunnerSettings,
    /// Time until the lease of a task expires unless renewed.
    lease_ttl: Duration,
    events: TaskEvents,
    routes: RouteSelector,
    options_cache: Arc<Mutex<GenerationalCache<BatchId, Arc<BatchOptions>>>>,
    running: Arc<Mutex<HashMap<TaskRef, RunningTask>>>,
    copy_slots: Arc<CopySlots>,
    /// Read-locked by every running task, write-locked by a task that runs exclusively because its workers died before.
    exclusive: Arc<RwLock<()>>,
    /// Held by the one task that may run exclusively.
    suspect_slot: Arc<tokio::sync::Mutex<()>>,
    /// Archives that tasks collect images for, if the process writes any.
    archives: Option<ArchiveTargets>,
}

impl Runner {
    /// Creates a runner that is not started.
    pub fn new(
        queue: Arc<dyn TaskQueue>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        (client, copier): (Client, Copier),
        settings: RunnerSettings,
        routes: RouteSelector,
        events: TaskEvents,
    ) -> Runner {
        let copy_slots = Arc::new(CopySlots::new(settings.slots));
        Runner {
            queue,
            store,
            clock,
            client,
            copier,
            settings,
            copy_slots,
            lease_ttl: LEASE_TTL,
            events,
            routes,
            options_cache: Arc::new(Mutex::new(GenerationalCache::new(MAX_CACHED_BATCHES))),
            running: Arc::default(),
            exclusive: Arc::default(),
            suspect_slot: Arc::default(),
            archives: None,
        }
    }

    /// Sets the lease time of tasks, in place of [`LEASE_TTL`].
    #[must_use]
    pub fn with_lease(self, lease_ttl: Duration) -> Runner {
        Runner { lease_ttl, ..self }
    }

    /// Runs tasks until shutdown. Returns when no task is running.
    pub async fn run(&self, stop: &Shutdown) {
        let slots = Arc::new(Semaphore::new(self.settings.slots.max(1) + self.settings.compared_ahead));
        let tasks = TaskTracker::new();
        let loops = CONSUMER_LOOPS.min(self.settings.slots.max(1));
        let take_any = (0..loops).map(|_| self.consume(&slots, &tasks, false, stop));
        let urgent = Arc::new(Semaphore::new(1));
        let take_urgent = async {
            if self.settings.slots >= MIN_SLOTS_FOR_URGENT {
                self.consume(&urgent, &tasks, true, stop).await;
            }
        };
        tokio::join!(futures_util::future::join_all(take_any), take_urgent);
        tasks.close();
        tasks.wait().await;
    }

    /// Takes deliveries until shutdown: any, or only high-priority ones.
    async fn consume(&self, slots: &Arc<Semaphore>, tasks: &TaskTracker, only_urgent: bool, stop: &Shutdown) {
        let mut changes = self.routes.subscribe();
        // Acquire the slot first, so that no delivery waits for one.
        while let Some(slot) = acquire_slot(slots, stop).await {
            changes.mark_unchanged();
            let (filter, until) = self.routes.current_filter();
            let Some(filter) = filter else {
                drop(slot);
                tokio::select! {
                    _ = changes.changed() => {}
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = stop.drain.cancelled() => {}
                }
                continue;
            };
            let taking = match only_urgent {
                true => self.queue.receive_urgent(&filter, &stop.drain),
                false => self.queue.receive(&filter, &stop.drain),
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
                            runner.handle_delivery(delivery, only_urgent, &stop).await;
                            Ok(())
                        };
                        if let Err(panic) = catch_panic("handling a delivery", delivered).await {
                            // Its tasks go to other workers when their leases expire.
                            runner.warn(&panic.to_string());
                        }
                        drop(slot);
                    });
                }
                Ok(None) => break,
                Err(error) => {
                    self.warn_repeated("the queue is unavailable", &error);
                    tokio::select! {
                        () = tokio::time::sleep(QUEUE_RETRY_DELAY) => {}
                        () = stop.drain.cancelled() => break,
                    }
                }
            }
        }
    }

    /// Returns the running tasks, the oldest first; no more than there are slots, if some tasks wait for one.
    pub fn running_tasks(&self) -> Vec<RunningTask> {
        let mut running: Vec<RunningTask> = self.running().values().cloned().collect();
        running.sort_by_key(|doing| (doing.since, doing.index));
        if self.settings.compared_ahead > 0 {
            running.truncate(self.settings.slots.max(1));
        }
        running
    }

    /// Runs the tasks of a delivery, in the shared slots or in one of its own, then acknowledges or requeues it.
    async fn handle_delivery(&self, delivery: Delivery, has_own_slot: bool, stop: &Shutdown) {
        if self.settings.in_cluster && !self.routes.can_serve(&delivery.route, &self.client).await {
            return self.requeue_delivery(delivery, UNSERVED_REQUEUE_DELAY).await;
        }
        if let Some((registry, hold)) = route_selector::local_hold(&delivery.route, &self.client) {
            self.hold_route(&delivery.route, hold.wait, &format!("{registry} {}", hold.reason));
            // Requeue for another worker: nobody takes from a held route.
            return self.requeue_delivery(delivery, UNSERVED_REQUEUE_DELAY).await;
        }
        let delivered = InFlightMessage::new(delivery, has_own_slot);
        let mut work = std::pin::pin!(self.run_tasks(&delivered, stop));
        let (left, wait) = tokio::select! {
            left = &mut work => left,
            () = tokio::time::sleep(MAX_UNACKNOWLEDGED) => match delivered.take_delivery() {
                Some(delivery) => {
                    self.requeue_delivery(delivery, REDELIVERY_DELAY).await;
                    // The remaining tasks are redelivered with the message.
                    work.await;
                    return;
                }
                None => work.await,
            }
        };
        match delivered.take_delivery() {
            Some(delivery) if left.is_empty() => {
                if let Err(error) = delivery.acknowledge().await {
                    // It is redelivered, and the ledger knows the results.
                    self.warn_repeated("the queue is unavailable", &error);
                }
            }
            Some(mut delivery) => {
                delivery.message.targets = left;
                self.requeue_delivery(delivery, wait).await;
            }
            None if left.is_empty() => {}
            // If the queue fails, the leases expire and the tasks are reclaimed.
            None => {
                let message = Message { targets: left, ..delivered.message.clone() };
                if let Err(error) = self.queue.publish_delayed(&delivered.route, &message, wait).await {
                    self.warn_repeated("the queue is unavailable", &error);
                }
            }
        }
    }

    /// Runs the tasks of a message. Returns the targets to redeliver and the delay: tasks that could not start, and
    /// tasks whose state is unknown. A rescheduled task has its own message.
    async fn run_tasks(&self, delivered: &InFlightMessage, stop: &Shutdown) -> (Vec<MessageTarget>, Duration) {
        let InFlightMessage { route, message, .. } = delivered;
        let mut left = Vec::new();
        let mut wait = Duration::ZERO;
        for (at, (task_ref, target)) in message.task_refs().zip(&message.targets).enumerate() {
            // When its last task runs, the message can be acknowledged, unless some tasks are to be redelivered.
            let is_last = left.is_empty() && at + 1 == message.targets.len();
            let time = match self.run_task(delivered, task_ref, &target.locator, is_last, stop).await {
                Ok(task::Disposition::Done) => continue,
                Ok(task::Disposition::Requeue(time)) => time,
                Ok(task::Disposition::RateLimited { registry, wait: time }) => {
                    let registry_name = registry.as_ref().map_or_else(|| "a registry".to_owned(), ToString::to_string);
                    let hold = registry.as_ref().and_then(|registry| self.client.rate_limit_hold(registry, true));
                    let why = hold.map_or_else(|| "is rate limiting".to_owned(), |hold| hold.reason);
                    self.hold_route(route, time, &format!("{registry_name} {why}"));
                    continue;
                }
                Ok(task::Disposition::Unreachable { registry, why }) => {
                    self.routes.mark_unreachable(&registry, route, &why);
                    continue;
                }
                // The ledger is unavailable: redeliver the message; nothing is counted twice.
                Err(error) => {
                    self.warn_repeated("the ledger is unavailable", &error);
                    QUEUE_RETRY_DELAY
                }
            };
            left.push(target.clone());
            wait = wait.max(time);
        }
        (left, wait)
    }

    /// Holds a route, and warns if that is new.
    fn hold_route(&self, route: &Route, wait: Duration, why: &str) {
        if self.routes.hold_route(route, wait, why) {
            self.warn(&format!(
                "{why}: no task of {route} starts before {} ({})",
                route_selector::format_deadline(wait),
                format_duration(wait)
            ));
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<TaskRef, RunningTask>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the options of a batch, cached.
    async fn batch_options(&self, batch: BatchId) -> Result<Arc<BatchOptions>> {
        if let Some(options) = self.options_cache.lock().unwrap_or_else(PoisonError::into_inner).get(&batch) {
            return Ok(options.clone());
        }
        let operation = format!("reading the options of batch {batch}");
        let Some(found) = self.store.batch(batch).await? else {
            return Err(Error::new(ErrorKind::NotFound, operation, "the store does not have the batch"));
        };
        let options = Arc::new(BatchOptions::decode(&found.options, &format!("batch {batch}"))?);
        self.options_cache.lock().unwrap_or_else(PoisonError::into_inner).insert(batch, options.clone());
        Ok(options)
    }

    /// Warns about an error of the queue or store; all tasks hit the same one, so repetitions are merged.
    fn warn_repeated(&self, what: &str, error: &Error) {
        let (kind, message) = (format!("{what}: {}", error.kind()), format!("{what}: {error}"));
        self.events.emit(Event::RepeatedWarning { kind, message });
    }

    fn warn(&self, message: &str) {
        self.events.emit(Event::Warning { message: message.to_owned() });
    }
}

/// Returns the longest delay of the queue that does not exceed `wait`: a message must not stay queued after its route
/// is released, and one that returns early is not taken.
fn longest_delay_within(wait: Duration) -> Duration {
    RETRY_DELAYS.into_iter().rfind(|delay| *delay <= wait).unwrap_or(wait)
}

async fn acquire_slot(slots: &Arc<Semaphore>, stop: &Shutdown) -> Option<tokio::sync::OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        () = stop.drain.cancelled() => None,
        slot = slots.clone().acquire_owned() => slot.ok(),
    }
}
