//! Leadership of a batch: one coordinator at a time dispatches it, and requeues tasks whose lease expired or whose
//! message was lost.
//!
//! The leader holds the lease [`leader_lease_name`] of the batch. A process that was suspended for longer than the lease
//! does nothing more before it has it again. Still, everything a leader does is safe while two processes do it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use imgsync_model::batch::{BatchId, BatchOptions, Route, TaskState};
use imgsync_model::event::TaskEvent;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_oci::retry::{format_duration, is_transient};
use imgsync_oci::sanitize::sanitize;
use imgsync_registry::event::Event;
use imgsync_store::{
    Batch, BatchState, LeaseGuard, LeaseResult, ListingFailure, ReclaimScope, Reclaimed, TryAcquireResult, age,
    leader_lease_name,
};
use imgsync_worker::task_events::TaskEvents;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::dispatch::Dispatcher;

/// TTL of the leader lease, which the leader renews. Another coordinator takes over at most this long, and
/// [`LEADER_RETRY_INTERVAL`], after a crash. It outlasts most failovers of a store that takes three seconds to notice that
/// its master is down; after longer ones, a coordinator is elected again.
pub(crate) const LEADER_LEASE_TTL: Duration = Duration::from_secs(8);
/// Pause before asking for leadership again while another coordinator leads or the broker is unavailable.
pub(super) const LEADER_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long the store may take to respond to a request for leadership. Longer than it takes to connect to a distant one.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// Interval between reads of the batch, and between looks for dead letters.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum number of queued tasks, per state, that are read to find their routes.
const MAX_SAMPLED_TASKS: usize = 1_000;

/// Intervals and grace periods for reclaiming lost tasks.
#[derive(Debug, Clone, Copy)]
pub struct ReclaimPolicy {
    /// Interval between scans for expired leases.
    pub lease_scan_interval: Duration,
    /// Time after its expiry when a lease counts as lost: its holder may still renew it.
    pub lease_grace: Duration,
    /// Interval between scans for messages that the queue has lost.
    pub queue_scan_interval: Duration,
    /// Time after its due time when a message counts as lost.
    pub queue_grace: Duration,
}

impl Default for ReclaimPolicy {
    fn default() -> ReclaimPolicy {
        ReclaimPolicy {
            // After a crash, another worker has the task within 45 s, even if its lease of 30 s was just renewed.
            lease_scan_interval: Duration::from_secs(4),
            lease_grace: Duration::from_secs(4),
            queue_scan_interval: Duration::from_secs(15),
            queue_grace: Duration::from_secs(30),
        }
    }
}

/// Leads batches, one call per batch.
#[derive(Clone)]
pub struct Leader {
    backend: Backend,
    /// Holder name in leases, unique to this process.
    name: Arc<str>,
    reclaim_policy: ReclaimPolicy,
    events: TaskEvents,
    /// Since the leader was created: a failover may also cost it its lease.
    write_losses: WriteLosses,
}

impl Leader {
    /// Creates a leader that holds leases under `name`.
    pub fn new(backend: &Backend, name: &str, reclaim_policy: ReclaimPolicy, events: TaskEvents) -> Leader {
        let write_losses = WriteLosses(backend.store.write_losses());
        Leader { backend: backend.clone(), name: name.into(), reclaim_policy, events, write_losses }
    }

    /// Leads a batch until it has ended or `stop` is cancelled, waiting while another process leads it. `plan_changed` signals
    /// new tasks in the plan. Only permanent errors of the store are returned.
    pub async fn lead_batch(&self, id: BatchId, plan_changed: &Notify, stop: &CancellationToken) -> Result<()> {
        self.lead_batch_with_callback(id, plan_changed, stop, &|| {}).await
    }

    /// Leads a batch as [`Leader::lead_batch`] does, and calls `on_elected` each time this process becomes the leader.
    pub(super) async fn lead_batch_with_callback(
        &self,
        id: BatchId,
        plan_changed: &Notify,
        stop: &CancellationToken,
        on_elected: &(dyn Fn() + Sync),
    ) -> Result<()> {
        let name = leader_lease_name(&id.to_string());
        let mut announced = false;
        while !stop.is_cancelled() {
            match try_acquire_promptly(&self.backend, &name, &self.name).await {
                Ok(TryAcquireResult::Acquired(guard)) => {
                    // The holder that was waited for may have led it to its end.
                    if announced && !self.is_live(id).await {
                        guard.release().await;
                        return Ok(());
                    }
                    on_elected();
                    let end = guard.run(self.run_as_leader(id, plan_changed, stop)).await;
                    let end = end.unwrap_or(Ok(LeadershipEnd::LeaseLost));
                    guard.release().await;
                    match end {
                        Ok(LeadershipEnd::BatchEnded | LeadershipEnd::Stopped) => return Ok(()),
                        Ok(LeadershipEnd::LeaseLost) => {
                            tracing::info!("batch {id}: leadership lost, reacquiring it")
                        }
                        Err(error) if is_transient(&error) => self.warn_repeatedly(&error),
                        Err(error) => {
                            cancel_tampered_batch(&self.backend, id, &error).await;
                            return Err(error);
                        }
                    }
                }
                Ok(TryAcquireResult::HeldBy(holder)) => {
                    if !std::mem::replace(&mut announced, true) {
                        tracing::info!("batch {id} is led by {holder}");
                    }
                }
                Err(error) if is_transient(&error) => self.warn_repeatedly(&error),
                Err(error) => return Err(error),
            }
            pause(LEADER_RETRY_INTERVAL, stop).await;
        }
        Ok(())
    }

    /// Returns whether a batch can have tasks to dispatch; true if the store does not respond.
    async fn is_live(&self, id: BatchId) -> bool {
        self.backend.store.batch_state(id).await.map_or(true, |state| state.is_some_and(BatchState::is_live))
    }

    /// Dispatches and reclaims concurrently until the first of these ends.
    async fn run_as_leader(
        &self,
        id: BatchId,
        plan_changed: &Notify,
        stop: &CancellationToken,
    ) -> Result<LeadershipEnd> {
        let Some(batch) = self.backend.store.batch(id).await? else { return Ok(LeadershipEnd::BatchEnded) };
        let mut dispatcher = Dispatcher::new(&self.backend, &batch).await?;
        tokio::select! {
            fed = dispatcher.run(plan_changed, stop) => fed.map(|()| LeadershipEnd::Stopped),
            reclaimed = self.reclaim_expired_leases(id) => reclaimed,
            reclaimed = self.reclaim_lost_messages(id) => reclaimed,
        }
    }

    /// Requeues tasks with an expired lease: their messages are acknowledged, so the broker does not redeliver them.
    /// Returns when the batch is gone.
    async fn reclaim_expired_leases(&self, id: BatchId) -> Result<LeadershipEnd> {
        let ReclaimPolicy { lease_scan_interval, lease_grace: grace, .. } = self.reclaim_policy;
        let mut losses = self.write_losses.clone();
        // After an outage of the store, running workers renew their leases first.
        tokio::time::sleep(grace).await;
        loop {
            let before = self.backend.clock.now();
            tokio::select! {
                () = tokio::time::sleep(lease_scan_interval) => {}
                () = losses.next() => {}
            }
            // Likewise after this process was suspended.
            if age(before, self.backend.clock.now()) > lease_scan_interval + grace {
                continue;
            }
            match self.backend.store.reclaim(id, ReclaimScope::ExpiredLeases { grace }).await {
                Ok(reclaimed) => self.report_reclaimed(id, reclaimed),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(LeadershipEnd::BatchEnded),
                Err(error) => return Err(error),
            }
        }
    }

    /// Requeues tasks whose messages the queue has lost. Returns when the batch has ended.
    async fn reclaim_lost_messages(&self, id: BatchId) -> Result<LeadershipEnd> {
        let grace = self.reclaim_policy.queue_grace;
        let mut losses = self.write_losses.clone();
        loop {
            let (batch, has_lost_writes) = tokio::select! {
                batch = self.wait_unless_ended(id, self.reclaim_policy.queue_scan_interval) => (batch?, false),
                () = losses.next() => (self.wait_unless_ended(id, Duration::ZERO).await?, true),
            };
            let Some(batch) = batch else { return Ok(LeadershipEnd::BatchEnded) };
            // A store that lost the lease of a task counts it as queued, though its message was acknowledged. Messages
            // that are still there are then there twice, which does no harm.
            // An unavailable broker has lost nothing yet.
            if has_lost_writes || matches!(self.has_lost_messages(&batch).await, Ok(true)) {
                let reclaimed = self.backend.store.reclaim(id, ReclaimScope::EmptyQueue { grace }).await?;
                self.report_reclaimed(id, reclaimed);
            }
        }
    }

    fn report_reclaimed(&self, id: BatchId, Reclaimed { leased: from_workers, queued: from_queue }: Reclaimed) {
        if from_workers + from_queue > 0 {
            self.events.emit_task(TaskEvent::Reclaimed { from_workers, from_queue });
            tracing::info!(
                "batch {id}: requeued {} with an expired lease and {} with a lost message",
                pluralize(from_workers, "task", "tasks"),
                pluralize(from_queue, "task", "tasks")
            );
        }
    }

    /// Waits for `time` and returns the current batch, or `None` as soon as it has ended.
    async fn wait_unless_ended(&self, id: BatchId, time: Duration) -> Result<Option<Batch>> {
        let until = tokio::time::Instant::now() + time;
        loop {
            let batch = self.backend.store.batch(id).await?.filter(|batch| batch.ended_at.is_none());
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            if batch.is_none() || left.is_zero() {
                return Ok(batch);
            }
            tokio::time::sleep(POLL_INTERVAL.min(left)).await;
        }
    }

    /// Returns whether the queue has lost messages that the ledger counts as queued: the queues of their routes are
    /// empty, and still are after a pause in which the batch has not moved.
    async fn has_lost_messages(&self, batch: &Batch) -> Result<bool> {
        if batch.queued + batch.retrying == 0 {
            return Ok(false);
        }
        let options = BatchOptions::decode(&batch.options, &format!("batch {}", batch.id))?;
        let mut routes: BTreeSet<Route> = BTreeSet::new();
        let states = [(TaskState::Queued, batch.queued), (TaskState::Retry, batch.retrying)];
        for (state, _) in states.into_iter().filter(|(_, tasks)| *tasks > 0) {
            for row in self.backend.store.tasks(batch.id, Some(state), 0, MAX_SAMPLED_TASKS).await? {
                let planned = row.task.spec;
                routes
                    .insert(options.route(planned.source.repository.endpoint(), planned.target.repository.endpoint()));
            }
        }
        let routes: Vec<Route> = routes.into_iter().collect();
        if self.backend.queue.count_ready(&routes).await?.iter().any(|waiting| *waiting > 0) {
            return Ok(false);
        }
        // A task counts as queued until the worker that consumed it has claimed it.
        tokio::time::sleep(self.reclaim_policy.queue_grace.min(Duration::from_secs(5))).await;
        let now = self.backend.store.batch(batch.id).await?;
        let stands_still = now.is_some_and(|now| now.counts == batch.counts && now.state == batch.state);
        let waiting = self.backend.queue.count_ready(&routes).await?;
        Ok(stands_still && waiting.iter().all(|waiting| *waiting == 0))
    }

    /// Requeues dead letters until `stop` is cancelled. The ledger counts how often a task was lost, and fails it.
    pub async fn requeue_dead_letters(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            match self.backend.queue.receive_dead_letter(stop).await {
                Ok(Some(dead)) => {
                    self.warn(&format!("dead letter for {} ({}): requeued", dead.message.source, dead.reason));
                    let again = [(dead.route.clone(), dead.message.clone())];
                    let put_back = self.backend.queue.publish(&again).await;
                    if put_back.is_ok_and(|published| published.rejected.is_empty()) {
                        let _ = dead.acknowledge().await;
                    }
                }
                Ok(None) => pause(POLL_INTERVAL, stop).await,
                Err(error) => {
                    tracing::info!("{error}; retrying in {}", format_duration(POLL_INTERVAL));
                    pause(POLL_INTERVAL, stop).await;
                }
            }
        }
    }

    /// Warns of an error that all led batches meet, repeatedly while its cause lasts.
    fn warn_repeatedly(&self, error: &Error) {
        let kind = format!("leading: {}", error.kind());
        self.events.emit(Event::RepeatedWarning { kind, message: format!("{error}; retrying") });
    }

    fn warn(&self, message: &str) {
        tracing::info!("{message}");
        self.events.emit(Event::Warning { message: message.to_owned() });
    }
}

/// Tries to acquire a lease, and gives up a store that does not respond soon: the next call asks again at once, while one
/// that retries waits longer and longer.
pub(super) async fn try_acquire_promptly(backend: &Backend, name: &str, holder: &str) -> Result<TryAcquireResult> {
    let acquire = LeaseGuard::try_acquire(backend.store.clone(), name, holder, LEADER_LEASE_TTL);
    match tokio::time::timeout(ACQUIRE_TIMEOUT, acquire).await {
        Ok(acquired) => acquired,
        Err(_) => {
            let operation = format!("acquiring lease {}", sanitize(name));
            Err(Error::new(ErrorKind::Unreachable, operation, "the store does not respond"))
        }
    }
}

/// Cancels a batch whose plan or options fail authentication with our key, and records the reason in its report.
pub(super) async fn cancel_tampered_batch(backend: &Backend, id: BatchId, error: &Error) {
    if error.kind() != ErrorKind::Insecure {
        return;
    }
    let text = error.hint().map_or_else(|| error.to_string(), |hint| format!("{error} ({hint})"));
    let unlisted = ListingFailure { repository: format!("the plan of batch {id}"), kind: error.kind(), error: text };
    // If the store does not respond either, there is nothing to cancel.
    let _ = backend.store.record_listing_failure(id, unlisted).await;
    let _ = backend.store.cancel(id).await;
}

/// Returns the holder of a leader lease if it is running. A process that was killed keeps its lease for a while, so
/// this waits some seconds for the holder to renew.
pub async fn find_active_leader(backend: &Backend, name: &str, prober: &str) -> Result<Option<String>> {
    let mut seen = None;
    loop {
        match backend.store.acquire(name, prober, LEADER_LEASE_TTL).await? {
            LeaseResult::Acquired { .. } => {
                backend.store.release(name, prober).await?;
                return Ok(None);
            }
            LeaseResult::HeldBy { holder, until } if seen.is_some_and(|seen| until > seen) => return Ok(Some(holder)),
            LeaseResult::HeldBy { until, .. } => seen = Some(until),
        }
        tokio::time::sleep(LEADER_LEASE_TTL / 30).await;
    }
}

/// Losses of the store that were not looked after.
#[derive(Clone)]
struct WriteLosses(Option<watch::Receiver<u64>>);

impl WriteLosses {
    /// Waits for the next loss.
    async fn next(&mut self) {
        let is_loss = match &mut self.0 {
            // Ends only with the store.
            Some(losses) => losses.changed().await.is_ok(),
            None => false,
        };
        if !is_loss {
            std::future::pending::<()>().await;
        }
    }
}

/// Reason for the end of leading a batch.
enum LeadershipEnd {
    /// The batch has ended.
    BatchEnded,
    /// The lease was lost.
    LeaseLost,
    /// This process was stopped.
    Stopped,
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}
