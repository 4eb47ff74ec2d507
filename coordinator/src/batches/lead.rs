//! Leading a batch: one coordinator at a time feeds it, and puts back what was lost between.
//!
//! Who leads holds the name [`leader`] of the batch. It may lose it at any moment: all that it does is safe to be done by
//! two at a time for a while.

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

/// The term of a leader's lease, which it renews for as long as it leads: another takes over this long after it was killed.
pub(super) const LEADER_TERM: Duration = Duration::from_secs(15);
/// How long to wait where another leads, or the broker is away.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How many queued tasks are looked at to find the lanes that they are in.
const SAMPLE: usize = 1_000;

/// How a batch is looked after.
#[derive(Debug, Clone, Copy)]
pub struct Care {
    /// How often leases that have run out are looked for.
    pub leases_every: Duration,
    /// How long after its end a lease counts as lost: its holder may renew it still.
    pub leases_grace: Duration,
    /// How often messages that the queue has lost are looked for.
    pub sweep_every: Duration,
    /// How long after its time a message counts as lost.
    pub grace: Duration,
}

impl Default for Care {
    fn default() -> Care {
        Care {
            // A lease of 30 s that was just renewed: another worker has the task within 45 s.
            leases_every: Duration::from_secs(4),
            leases_grace: Duration::from_secs(4),
            sweep_every: Duration::from_secs(15),
            grace: Duration::from_secs(30),
        }
    }
}

/// Leads batches, one call a batch.
#[derive(Clone)]
pub struct Leader {
    house: House,
    /// Of this process alone in a cluster.
    name: Arc<str>,
    care: Care,
    events: Events,
}

impl Leader {
    /// One who leads under this name.
    pub fn new(house: &House, name: &str, care: Care, events: Events) -> Leader {
        Leader { house: house.clone(), name: name.into(), care, events }
    }

    /// Leads a batch until it has ended or this is told to stop; while another leads it, waits. `more` tells of an addition
    /// to the plan. An error is the store's, and no passing one.
    pub async fn lead(&self, id: BatchId, more: &Notify, stop: &CancellationToken) -> Result<()> {
        self.lead_telling(id, more, stop, &|| {}).await
    }

    /// Leads a batch as [`Leader::lead`] does, and calls `leads` each time that this process begins to.
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
                    // The next leader need not wait.
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

    /// Everything that leading is, at the same time, until the first of it ends.
    async fn led(&self, id: BatchId, more: &Notify, stop: &CancellationToken) -> Result<Led> {
        let Some(batch) = self.house.store.batch(id).await? else { return Ok(Led::Ended) };
        let mut feeder = Feeder::new(&self.house, &batch).await?;
        tokio::select! {
            fed = feeder.feed(more, stop) => fed.map(|()| Led::Stopped),
            swept = self.sweep_leases(id) => swept,
            swept = self.sweep_queue(id) => swept,
        }
    }

    /// Puts back what was lost with its worker: its message was acknowledged when it began, so that nobody else does. Ends
    /// when the batch is gone.
    async fn sweep_leases(&self, id: BatchId) -> Result<Led> {
        let Care { leases_every, leases_grace: grace, .. } = self.care;
        // Where the store was away, those who live renew their leases first.
        tokio::time::sleep(grace).await;
        loop {
            let before = self.house.clock.now();
            tokio::time::sleep(leases_every).await;
            // The same where this process was frozen, or its machine asleep.
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

    /// Puts back what the queue has lost. Ends when the batch has.
    async fn sweep_queue(&self, id: BatchId) -> Result<Led> {
        let grace = self.care.grace;
        loop {
            let Some(batch) = self.lives_for(id, self.care.sweep_every).await? else { return Ok(Led::Ended) };
            // A broker that is away has lost nothing yet.
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

    /// Waits for so long, and returns the batch as it stands then; none as soon as it has ended.
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

    /// Whether the queue has lost what the ledger thinks it has: nothing waits in the lanes of what is queued, and still
    /// does not after a while, in which no worker has taken any of it either.
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
        // What a worker has just taken is queued until it says that it has begun.
        tokio::time::sleep(self.care.grace.min(Duration::from_secs(5))).await;
        let now = self.house.store.batch(batch.id).await?;
        let stands_still = now.is_some_and(|now| now.counts == batch.counts && now.control == batch.control);
        let waiting = self.house.queue.waiting(&lanes).await?;
        Ok(stands_still && waiting.iter().all(|waiting| *waiting == 0))
    }

    /// Gives another life to messages that the broker gave up on: how often a task is lost is counted by the ledger, which
    /// lets it fail. Goes on until told to stop.
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

    /// Warns of an error that all batches that are led meet, again and again while its cause lasts.
    fn warn_repeatedly(&self, error: &Error) {
        let kind = format!("leading: {}", error.class());
        self.events.emit(Event::RepeatedWarning { kind, message: format!("{error}; trying again") });
    }

    fn warn(&self, message: &str) {
        tracing::info!("{message}");
        self.events.emit(Event::Warning { message: message.to_owned() });
    }
}

/// Stops a batch whose plan or options are not what was written with our key: nothing more of it is begun, and its report
/// says why.
pub(super) async fn stop_altered(house: &House, id: BatchId, error: &Error) {
    if error.class() != Class::Insecure {
        return;
    }
    let words = error.advice().map_or_else(|| error.to_string(), |advice| format!("{error} ({advice})"));
    let unlisted = Unlisted { repository: format!("the plan of batch {id}"), class: error.class(), error: words };
    // Where the store does not answer either, there is nothing to stop.
    let _ = house.store.note_unlisted(id, unlisted).await;
    let _ = house.store.cancel(id).await;
}

/// Who leads under this name and says so: one that was killed holds the name for a while, and leads nothing. To tell, one
/// must see it say so again, which takes some seconds.
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

/// Why a batch is not led any more.
enum Led {
    /// It has ended.
    Ended,
    /// Another leads it.
    Lost,
    /// This one was told to stop.
    Stopped,
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}
