//! Takes tasks from the queue, copies, and tells the ledger: take → start → copy → finish → acknowledge.

mod gate;
mod task;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_common::batch::{BatchId, Lane, Options};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Event, Events};
use imgsync_common::queue::{Delivery, Lanes, TaskQueue};
use imgsync_common::registry::Client;
use imgsync_common::store::{Clock, Store};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::copy::Copier;

/// How long to wait before asking a queue again that failed.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// How long it waits for a task before it looks at the lanes again.
const LANES_HOLD: Duration = Duration::from_secs(3600);

/// What a worker is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name, of this process alone.
    pub name: String,
    /// Under which name it holds target tags while they are written. Of this process alone in a cluster; where one process
    /// at a time runs with a store, always the same, so that what a killed one held is not waited for.
    pub holds_tags_as: String,
    /// Tasks at once.
    pub slots: usize,
    /// Tries of a task that fails in passing, those within it counted.
    pub attempts: u32,
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
    events: Events,
    options: Arc<Mutex<HashMap<BatchId, Arc<Options>>>>,
    /// Lanes of registries that asked to be left alone, and until when.
    parked: Arc<Mutex<HashMap<Lane, Instant>>>,
}

impl Runner {
    /// A worker that has not begun.
    pub fn new(
        queue: Arc<dyn TaskQueue>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        (client, copier): (Client, Copier),
        settings: Settings,
        events: Events,
    ) -> Runner {
        Runner {
            queue,
            store,
            clock,
            client,
            copier,
            settings,
            events,
            options: Arc::default(),
            parked: Arc::default(),
        }
    }

    /// Works until told to stop. Returns when nothing runs any more.
    pub async fn run(&self, stop: &Stop) {
        let slots = Arc::new(Semaphore::new(self.settings.slots.max(1)));
        let running = TaskTracker::new();
        // A slot first, then a delivery: nothing is taken that has to wait.
        while let Some(slot) = free_slot(&slots, stop).await {
            let (lanes, until) = self.lanes();
            let taken = tokio::select! {
                taken = self.queue.take(&lanes, &stop.drain) => taken,
                // A lane may be taken from again.
                () = tokio::time::sleep_until(until.into()) => {
                    drop(slot);
                    continue;
                }
            };
            match taken {
                Ok(Some(delivery)) => {
                    let (runner, stop) = (self.clone(), stop.clone());
                    running.spawn(async move {
                        runner.deliver(delivery, &stop).await;
                        drop(slot);
                    });
                }
                Ok(None) => break,
                Err(error) => {
                    self.warn(&format!("the queue does not answer: {error}"));
                    tokio::select! {
                        () = tokio::time::sleep(QUEUE_PAUSE) => {}
                        () = stop.drain.cancelled() => break,
                    }
                }
            }
        }
        running.close();
        running.wait().await;
    }

    /// Does what a message asks for, and lets go of it.
    async fn deliver(&self, mut delivery: Delivery, stop: &Stop) {
        let tickets: Vec<_> = delivery.message.tickets().collect();
        let mut left = Vec::new();
        let mut wait = Duration::ZERO;
        for (ticket, target) in tickets.into_iter().zip(delivery.message.targets.clone()) {
            match self.task(&delivery.message, ticket, &target.place, stop).await {
                Ok(task::Ended::Done) => {}
                Ok(task::Ended::Later(time)) => {
                    left.push(target);
                    wait = wait.max(time);
                }
                Ok(task::Ended::Throttled(time)) => {
                    self.parked().insert(delivery.lane.clone(), Instant::now() + time);
                    left.push(target);
                    wait = wait.max(time);
                }
                // The ledger does not answer: the message comes back, and nothing was counted twice.
                Err(error) => {
                    self.warn(&format!("the ledger does not answer: {error}"));
                    left.push(target);
                    wait = wait.max(QUEUE_PAUSE);
                }
            }
        }
        let let_go = match left.is_empty() {
            true => delivery.acknowledge().await,
            false => {
                delivery.message.targets = left;
                delivery.give_back_after(wait).await
            }
        };
        if let Err(error) = let_go {
            // It will be delivered again, and the ledger knows what was done.
            self.warn(&format!("the queue does not answer: {error}"));
        }
    }

    /// The lanes to take from now, and until when that holds: those of a registry that asked to be left alone are not
    /// among them.
    fn lanes(&self) -> (Lanes, Instant) {
        let mut parked = self.parked();
        let now = Instant::now();
        parked.retain(|_, until| *until > now);
        let until = parked.values().min().copied().unwrap_or(now + LANES_HOLD);
        match parked.is_empty() {
            true => (Lanes::All, until),
            false => (Lanes::Except(parked.keys().cloned().collect()), until),
        }
    }

    fn parked(&self) -> std::sync::MutexGuard<'_, HashMap<Lane, Instant>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
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
        let options: Options = serde_json::from_str(&found.options)
            .map_err(|error| Error::new(Class::Invalid, tried, error.to_string()).because(error))?;
        let options = Arc::new(options);
        let mut known = self.options.lock().unwrap_or_else(PoisonError::into_inner);
        // Of the batches of a year a worker needs the last few.
        if known.len() > 64 {
            known.clear();
        }
        known.insert(batch, options.clone());
        Ok(options)
    }

    fn warn(&self, message: &str) {
        tracing::warn!("{message}");
        self.events.emit(Event::Warning { message: message.to_owned() });
    }
}

async fn free_slot(slots: &Arc<Semaphore>, stop: &Stop) -> Option<tokio::sync::OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        () = stop.drain.cancelled() => None,
        slot = slots.clone().acquire_owned() => slot.ok(),
    }
}
