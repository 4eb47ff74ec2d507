//! Leadership of a batch: one coordinator at a time dispatches it, and requeues tasks whose lease expired or whose
//! message was lost.
//!
//! The leader holds the lease [`leader`] of the batch and may lose it at any moment: everything it does is safe while
//! two processes do it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use imgsync_common::batch::{BatchId, Lane, Options, TaskState};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Event, Events};
use imgsync_common::retry::{is_passing, seconds};
use imgsync_common::store::{Batch, LeaseGuard, Leased, Named, Sweep, Swept, Unlisted, age, leader};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::feed::Feeder;
use super::house::House;

/// TTL of the leader lease, which the leader renews. Another coordinator takes over this long after a crash.
pub(super) const LEADER_TERM: Duration = Duration::from_secs(15);
/// Pause before asking for leadership again while another coordinator leads or the broker is unavailable.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Maximum number of queued tasks, per state, that are read to find their routes.
const SAMPLE: usize = 1_000;

/// Intervals and grace periods for reclaiming lost tasks.
#[derive(Debug, Clone, Copy)]
pub struct Care {
    /// Interval between scans for expired leases.
    pub leases_every: Duration,
    /// Time after its expiry when a lease counts as lost: its holder may still renew it.
    pub leases_grace: Duration,
    /// Interval between scans for messages that the queue has lost.
    pub sweep_every: Duration,
    /// Time after its due time when a message counts as lost.
    pub grace: Duration,
}

impl Default for Care {
    fn default() -> Care {
        Care {
            // After a crash, another worker has the task within 45 s, even if its lease of 30 s was just renewed.
            leases_every: Duration::from_secs(4),
            leases_grace: Duration::from_secs(4),
            sweep_every: Duration::from_secs(15),
            grace: Duration::from_secs(30),
        }
    }
}

/// Leads batches, one call per batch.
#[derive(Clone)]
pub struct Leader {
    house: House,
    /// Holder name in leases, unique to this process.
    name: Arc<str>,
    care: Care,
    events: Events,
}

impl Leader {
    /// Creates a leader that holds leases under `name`.
    pub fn new(house: &House, name: &str, care: Care, events: Events) -> Leader {
        Leader { house: house.clone(), name: name.into(), care, events }
    }

    /// Leads a batch until it has ended or `stop` is cancelled, waiting while another process leads it. `more` signals
    /// new tasks in the plan. Only permanent errors of the store are returned.
    pub async fn lead(&self, id: BatchId, more: &Notify, stop: &CancellationToken) -> Result<()> {
        self.lead_telling(id, more, stop, &|| {}).await
    }

    /// Leads a batch as [`Leader::lead`] does, and calls `leads` each time this process becomes the leader.
    pub(super) async fn lead_telling(
        &self,
        id: BatchId,
        more: &Notify,
        stop: &CancellationToken,
        leads: &(dyn Fn() + Sync),
    ) -> Result<()> {
        let name = leader(&id.to_string());
        let mut said = false;
        while !stop.is_cancelled() {
            match LeaseGuard::try_acquire(self.house.store.clone(), &name, &self.name, LEADER_TERM).await {
                Ok(Leased::Acquired(guard)) => {
                    leads();
                    let led = tokio::select! {
                        led = self.led(id, more, stop) => led,
                        () = guard.lost().cancelled() => Ok(Led::Lost),
                    };
                    guard.release().await;
                    match led {
                        Ok(Led::Ended | Led::Stopped) => return Ok(()),
                        Ok(Led::Lost) => tracing::info!("batch {id}: lost the lead; asking for it again"),
                        Err(error) if is_passing(&error) => self.warn_repeatedly(&error),
                        Err(error) => {
                            stop_altered(&self.house, id, &error).await;
                            return Err(error);
                        }
                    }
                }
                Ok(Leased::HeldBy(holder)) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::info!("batch {id} is led by {holder}");
                    }
                }
                Err(error) if is_passing(&error) => self.warn_repeatedly(&error),
                Err(error) => return Err(error),
            }
            pause(LOOK_AGAIN, stop).await;
        }
        Ok(())
    }

    /// Dispatches and reclaims concurrently until the first of these ends.
    async fn led(&self, id: BatchId, more: &Notify, stop: &CancellationToken) -> Result<Led> {
        let Some(batch) = self.house.store.batch(id).await? else { return Ok(Led::Ended) };
        let mut feeder = Feeder::new(&self.house, &batch).await?;
        tokio::select! {
            fed = feeder.feed(more, stop) => fed.map(|()| Led::Stopped),
            swept = self.sweep_leases(id) => swept,
            swept = self.sweep_queue(id) => swept,
        }
    }

    /// Requeues tasks with an expired lease: their messages are acknowledged, so the broker does not redeliver them.
    /// Returns when the batch is gone.
    async fn sweep_leases(&self, id: BatchId) -> Result<Led> {
        let Care { leases_every, leases_grace: grace, .. } = self.care;
        // After an outage of the store, running workers renew their leases first.
        tokio::time::sleep(grace).await;
        loop {
            let before = self.house.clock.now();
            tokio::time::sleep(leases_every).await;
            // Likewise after this process was suspended.
            if age(before, self.house.clock.now()) > leases_every + grace {
                continue;
            }
            match self.house.store.sweep(id, Sweep::Leases { grace }).await {
                Ok(swept) => self.say_put_back(id, swept),
                Err(error) if error.class() == Class::NotFound => return Ok(Led::Ended),
                Err(error) => return Err(error),
            }
        }
    }

    /// Requeues tasks whose messages the queue has lost. Returns when the batch has ended.
    async fn sweep_queue(&self, id: BatchId) -> Result<Led> {
        let grace = self.care.grace;
        loop {
            let Some(batch) = self.lives_for(id, self.care.sweep_every).await? else { return Ok(Led::Ended) };
            // An unavailable broker has lost nothing yet.
            if matches!(self.queue_is_empty(&batch).await, Ok(true)) {
                let swept = self.house.store.sweep(id, Sweep::QueueIsEmpty { grace }).await?;
                self.say_put_back(id, swept);
            }
        }
    }

    fn say_put_back(&self, id: BatchId, Swept { leased, queued }: Swept) {
        if leased + queued > 0 {
            self.events.emit(Event::PutBack { leased, queued });
            tracing::info!("batch {id}: put back {leased} that their workers lost and {queued} that the queue lost");
        }
    }

    /// Waits for `time` and returns the current batch, or `None` as soon as it has ended.
    async fn lives_for(&self, id: BatchId, time: Duration) -> Result<Option<Batch>> {
        let until = tokio::time::Instant::now() + time;
        loop {
            let batch = self.house.store.batch(id).await?.filter(|batch| batch.ended_at.is_none());
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            if batch.is_none() || left.is_zero() {
                return Ok(batch);
            }
            tokio::time::sleep(LOOK_AGAIN.min(left)).await;
        }
    }

    /// Returns whether the queue has lost messages that the ledger counts as queued: the queues of their routes are
    /// empty, and still are after a pause in which the batch has not moved.
    async fn queue_is_empty(&self, batch: &Batch) -> Result<bool> {
        if batch.queued + batch.retrying == 0 {
            return Ok(false);
        }
        let options = Options::decode(&batch.options, &format!("batch {}", batch.id))?;
        let mut lanes: BTreeSet<Lane> = BTreeSet::new();
        let states = [(TaskState::Queued, batch.queued), (TaskState::Retry, batch.retrying)];
        for (state, _) in states.into_iter().filter(|(_, tasks)| *tasks > 0) {
            for row in self.house.store.tasks(batch.id, Some(state), 0, SAMPLE).await? {
                let planned = row.task.planned;
                lanes.insert(options.lane(planned.source.home.end(), planned.target.home.end()));
            }
        }
        let lanes: Vec<Lane> = lanes.into_iter().collect();
        if self.house.queue.waiting(&lanes).await?.iter().any(|waiting| *waiting > 0) {
            return Ok(false);
        }
        // A task counts as queued until the worker that consumed it has claimed it.
        tokio::time::sleep(self.care.grace.min(Duration::from_secs(5))).await;
        let now = self.house.store.batch(batch.id).await?;
        let stands_still = now.is_some_and(|now| now.counts == batch.counts && now.control == batch.control);
        let waiting = self.house.queue.waiting(&lanes).await?;
        Ok(stands_still && waiting.iter().all(|waiting| *waiting == 0))
    }

    /// Requeues dead letters until `stop` is cancelled. The ledger counts how often a task was lost, and fails it.
    pub async fn mind_the_dead(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            match self.house.queue.take_dead(stop).await {
                Ok(Some(dead)) => {
                    self.warn(&format!("the broker gave up on {} ({}): it is put back", dead.message.source, dead.why));
                    let again = [(dead.lane.clone(), dead.message.clone())];
                    let put_back = self.house.queue.publish(&again).await;
                    if put_back.is_ok_and(|published| published.refused.is_empty()) {
                        let _ = dead.acknowledge().await;
                    }
                }
                Ok(None) => pause(LOOK_AGAIN, stop).await,
                Err(error) => {
                    tracing::info!("{error}; looking again in {}", seconds(LOOK_AGAIN));
                    pause(LOOK_AGAIN, stop).await;
                }
            }
        }
    }

    /// Warns of an error that all led batches meet, repeatedly while its cause lasts.
    fn warn_repeatedly(&self, error: &Error) {
        let kind = format!("leading: {}", error.class());
        self.events.emit(Event::RepeatedWarning { kind, message: format!("{error}; trying again") });
    }

    fn warn(&self, message: &str) {
        tracing::info!("{message}");
        self.events.emit(Event::Warning { message: message.to_owned() });
    }
}

/// Cancels a batch whose plan or options fail authentication with our key, and records the reason in its report.
pub(super) async fn stop_altered(house: &House, id: BatchId, error: &Error) {
    if error.class() != Class::Insecure {
        return;
    }
    let words = error.advice().map_or_else(|| error.to_string(), |advice| format!("{error} ({advice})"));
    let unlisted = Unlisted { repository: format!("the plan of batch {id}"), class: error.class(), error: words };
    // If the store does not respond either, there is nothing to cancel.
    let _ = house.store.note_unlisted(id, unlisted).await;
    let _ = house.store.cancel(id).await;
}

/// Returns the holder of a leader lease if it is running. A process that was killed keeps its lease for a while, so
/// this waits some seconds for the holder to renew.
pub async fn living_leader(house: &House, name: &str, asks: &str) -> Result<Option<String>> {
    let mut seen = None;
    loop {
        match house.store.acquire(name, asks, LEADER_TERM).await? {
            Named::Yours { .. } => {
                house.store.release(name, asks).await?;
                return Ok(None);
            }
            Named::Others { holder, until } if seen.is_some_and(|seen| until > seen) => return Ok(Some(holder)),
            Named::Others { until, .. } => seen = Some(until),
        }
        tokio::time::sleep(LEADER_TERM / 30).await;
    }
}

/// Reason for the end of leading a batch.
enum Led {
    /// The batch has ended.
    Ended,
    /// The lease was lost.
    Lost,
    /// This process was stopped.
    Stopped,
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}
