//! Takes tasks from the queue, copies, and tells the ledger: take → start → copy → finish; a message is
//! acknowledged a second after its last task has begun, or at the end of a shorter one.

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

/// How many ask the queue at the same time: over a long line an answer takes as long as a small task.
const TAKERS: usize = 4;
/// From so many slots on, a worker has one more, for tasks of high priority alone.
pub const URGENT_SLOT_FROM: usize = 4;
/// How long to wait before asking a queue again that failed.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// How long a delivery is held whose tasks have not all begun: those of one message run one after another. Brokers end the
/// channel of who holds one for too long (30 minutes is common): before that the message goes back for later.
const LONGEST_HELD: Duration = Duration::from_secs(10 * 60);
/// When such a message comes back, should its worker have died meanwhile.
const COMES_BACK: Duration = Duration::from_secs(5 * 60);
/// How long a message waits that its worker has no way for: another may have one.
const OUT_OF_REACH_WAIT: Duration = Duration::from_secs(1);

/// Batches whose options are remembered: of those of a year a worker needs the last few.
const MAX_BATCHES: usize = 64;

/// What a worker is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name, of this process alone.
    pub name: String,
    /// Tasks at once.
    pub slots: usize,
    /// Tries of a task that fails in passing, those within it counted.
    pub attempts: u32,
    /// Whether others may reach a registry that this worker cannot: then its tasks go back, and no attempt is spent.
    pub others_may_reach: bool,
}

/// When a worker ends.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Takes no more; what runs may end.
    pub drain: CancellationToken,
    /// What runs is stopped too, and given back.
    pub abort: CancellationToken,
}

/// A worker.
#[derive(Clone)]
pub struct Runner {
    queue: Arc<dyn TaskQueue>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    client: Client,
    copier: Copier,
    settings: Settings,
    /// How long a task is held without word from its worker.
    lease: Duration,
    events: Events,
    serving: Serving,
    options: Arc<Mutex<GenerationalCache<BatchId, Arc<Options>>>>,
    running: Arc<Mutex<HashMap<Ticket, Doing>>>,
    /// Held by all tasks that run, and alone by one that ended its workers before.
    alone: Arc<RwLock<()>>,
    /// Held by the one that is to run alone.
    suspect: Arc<tokio::sync::Mutex<()>>,
}

impl Runner {
    /// A worker that has not begun.
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

    /// Holds tasks for so long without word from it, in place of [`LEASE`].
    #[must_use]
    pub fn with_lease(self, lease: Duration) -> Runner {
        Runner { lease, ..self }
    }

    /// Works until told to stop. Returns when nothing runs any more.
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

    /// Takes until told to stop, one at a time: what comes, or what is urgent.
    async fn take(&self, slots: &Arc<Semaphore>, tasks: &TaskTracker, only_urgent: bool, stop: &Stop) {
        let mut changes = self.serving.changes();
        // A slot first, then a delivery: nothing is taken that has to wait.
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
                // There are other lanes to take from.
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
                            // Its tasks are another's once their leases have expired.
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

    /// What it is doing.
    pub fn doing(&self) -> Vec<Doing> {
        let mut doing: Vec<Doing> = self.running().values().cloned().collect();
        doing.sort_by_key(|doing| (doing.since, doing.index));
        doing
    }

    /// Does what a message asks for, and lets go of it.
    async fn deliver(&self, delivery: Delivery, stop: &Stop) {
        if self.settings.others_may_reach && !self.serving.may_serve(&delivery.lane, &self.client).await {
            return self.give_back(delivery, OUT_OF_REACH_WAIT).await;
        }
        if let Some((registry, hold)) = lanes::own_hold(&delivery.lane, &self.client) {
            self.park(&delivery.lane, hold.wait, &format!("{registry} {}", hold.why));
            // For whoever may begin it first: nobody takes it from a lane that is left alone.
            return self.give_back(delivery, OUT_OF_REACH_WAIT).await;
        }
        let delivered = Delivered::new(delivery);
        let mut work = std::pin::pin!(self.work(&delivered, stop));
        let (left, wait) = tokio::select! {
            left = &mut work => left,
            () = tokio::time::sleep(LONGEST_HELD) => match delivered.take() {
                Some(delivery) => {
                    self.give_back(delivery, COMES_BACK).await;
                    // What is left comes back with the message.
                    work.await;
                    return;
                }
                None => work.await,
            }
        };
        match delivered.take() {
            Some(delivery) if left.is_empty() => {
                if let Err(error) = delivery.acknowledge().await {
                    // It will be delivered again, and the ledger knows what was done.
                    self.warn_of("the queue does not answer", &error);
                }
            }
            Some(mut delivery) => {
                delivery.message.targets = left;
                self.give_back(delivery, wait).await;
            }
            None if left.is_empty() => {}
            // Without an answer of the queue its lease runs out, and a sweep puts it back.
            None => {
                let message = Message { targets: left, ..delivered.message.clone() };
                if let Err(error) = self.queue.publish_later(&delivered.lane, &message, wait).await {
                    self.warn_of("the queue does not answer", &error);
                }
            }
        }
    }

    /// Does the tasks of a message. Says which are to come back with it, and after how long: those that could not be begun,
    /// and those of which nothing is known. What was begun and put off has a message of its own.
    async fn work(&self, delivered: &Delivered, stop: &Stop) -> (Vec<MessageTarget>, Duration) {
        let Delivered { lane, message, .. } = delivered;
        let mut left = Vec::new();
        let mut wait = Duration::ZERO;
        for (at, (ticket, target)) in message.tickets().zip(&message.targets).enumerate() {
            // With its last task under way the message has done its work, unless some of it is to come back.
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
                // The ledger does not answer: the message comes back, and nothing was counted twice.
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

    /// Leaves a lane alone, and says so where that is new.
    fn park(&self, lane: &Lane, wait: Duration, why: &str) {
        if self.serving.park(lane, wait, why) {
            self.warn(&format!("{why}: nothing of {lane} is begun before {} ({})", lanes::moment(wait), seconds(wait)));
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, Doing>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The options of a batch, read once.
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

    /// Warns of an error of the queue or the store, which all tasks meet at the same time.
    fn warn_of(&self, what: &str, error: &Error) {
        let (kind, message) = (format!("{what}: {}", error.class()), format!("{what}: {error}"));
        self.events.emit(Event::RepeatedWarning { kind, message });
    }

    fn warn(&self, message: &str) {
        self.events.emit(Event::Warning { message: message.to_owned() });
    }
}

/// How long a message waits of a lane that is left alone for so long: queues that know a few delays only are not to keep it
/// beyond that, and one that is back sooner is not taken.
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
