//! Leader service of `imgsync serve`: leads all batches that no `run` leads. Of several coordinators, one leads and the
//! others stand by.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use imgsync_config::Config;
use imgsync_model::batch::BatchId;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_registry::Client;
use imgsync_registry::event::Event;
use imgsync_store::{
    Batch, BatchState, LeaseView, TryAcquireResult, leader_lease_name, listing_lease_name, log_throttle,
};
use imgsync_worker::task_events::TaskEvents;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backend::Backend;
use super::batch_log::BatchLog;
use super::leader::{Leader, ReclaimPolicy, try_acquire_promptly};
use super::leader_holder_name;
use super::provenance::tidy_provenance;
use super::supervise::supervise;
use super::throttle_watch::watch_throttling;
use crate::batch_view::GLOBAL_LEADER;
use crate::notify::{Notifier, deliver, is_within_delivery_window};

/// Interval between attempts to become the leader while another coordinator leads.
const STANDBY_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between looks for new batches.
const BATCH_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Interval between looks whether an ended batch is still being pruned.
const PRUNING_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum number of batches, the newest, that are checked.
const MAX_BATCHES: usize = 1_000;
/// Interval between removals of old batches.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(3600);

/// Configuration of the leader service, which may change while it runs.
#[derive(Debug, Clone)]
pub struct LeaderConfig {
    /// Configuration: how long batches are kept, and the rules whose provenance is kept.
    pub config: Arc<Config>,
    /// Notification targets.
    pub notifier: Arc<Notifier>,
    /// Client whose credentials determine which registry holds are reported.
    pub client: Client,
}

/// The leader's lease, if this process is the leader.
pub type Leadership = Option<LeaseView>;

/// Returns whether this process is the leader. A process that was suspended for longer than its lease is not.
pub fn is_leader(leadership: &Leadership) -> bool {
    leadership.as_ref().is_some_and(LeaseView::is_held)
}

/// Leads all batches until `stop` is cancelled. `batches_changed` signals that there may be new batches or tasks;
/// `leadership` publishes whether this process is the leader.
pub async fn run_leader(
    backend: &Backend,
    reclaim_policy: ReclaimPolicy,
    leader_config: &watch::Receiver<LeaderConfig>,
    (batches_changed, leadership): (&Notify, &watch::Sender<Leadership>),
    events: &TaskEvents,
    stop: &CancellationToken,
) {
    let name = leader_holder_name();
    let lease = leader_lease_name(GLOBAL_LEADER);
    let leader = Leader::new(backend, &name, reclaim_policy, events.clone());
    let tasks = TaskTracker::new();
    let mut stood_by = false;
    while !stop.is_cancelled() {
        match try_acquire_promptly(backend, &lease, &name).await {
            Ok(TryAcquireResult::Acquired(guard)) => {
                stood_by = false;
                leadership.send_replace(Some(guard.view()));
                emit_notice(events, "elected leader");
                let over = stop.child_token();
                let context = (batches_changed, events, &*name);
                let led = guard
                    .run(async {
                        tokio::select! {
                            () = lead_all_batches(backend, &leader, leader_config, context, (&tasks, &over)) => {}
                            () = leader.requeue_dead_letters(&over) => {}
                        }
                    })
                    .await;
                if led.is_none() {
                    emit_notice(events, "no longer leader: the lease was lost");
                }
                leadership.send_replace(None);
                over.cancel();
                guard.release().await;
            }
            Ok(TryAcquireResult::HeldBy(holder)) => {
                if !std::mem::replace(&mut stood_by, true) {
                    emit_notice(events, &format!("standby: {holder} is the leader"));
                }
            }
            Err(error) => {
                let kind = format!("acquiring leadership: {}", error.kind());
                events.emit(Event::RepeatedWarning { kind, message: error.to_string() });
            }
        }
        pause(STANDBY_POLL_INTERVAL, stop).await;
    }
    // Batches and notifications have leases of their own: the next leader need not wait for a slow receiver.
    tasks.close();
    tasks.wait().await;
}

/// State shared by the tasks of all led batches.
#[derive(Clone)]
struct LeaderContext {
    backend: Backend,
    leader: Leader,
    leader_config: watch::Receiver<LeaderConfig>,
    events: TaskEvents,
    name: String,
    /// Batches whose notifications were delivered or given up.
    notified: Arc<Mutex<HashSet<BatchId>>>,
}

impl LeaderContext {
    /// Leads a batch, and sends its notifications once it has ended.
    async fn lead_batch(&self, id: BatchId, log: &BatchLog, stop: &CancellationToken) -> Result<()> {
        let LeaderConfig { notifier, client, .. } = self.leader_config.borrow().clone();
        let (store, more, begin) = (&self.backend.store, Notify::new(), || log.begin());
        let result = tokio::select! {
            result = self.leader.lead_batch_with_callback(id, &more, stop, &begin) => result,
            () = watch_throttling(&**store, id, &client, &notifier, &self.events, &self.name) => Ok(()),
        };
        if let Err(error) = result {
            // A batch that fails authentication was cancelled, which is its end.
            if store.batch_state(id).await?.is_some_and(BatchState::is_live) {
                return Err(error);
            }
            warn(&self.events, &format!("stopped leading batch {id}: {error}"));
        }
        self.wait_for_pruning(id, stop).await?;
        log.end(&**store).await?;
        self.notify(id, stop).await
    }

    /// Waits for the process that has listed a batch: it prunes, which is in reports.
    async fn wait_for_pruning(&self, id: BatchId, stop: &CancellationToken) -> Result<()> {
        let name = listing_lease_name(id);
        while !stop.is_cancelled() && self.backend.store.lease_holder(&name).await?.is_some() {
            pause(PRUNING_POLL_INTERVAL, stop).await;
        }
        Ok(())
    }

    /// Sends the notifications of a batch that has ended until all are delivered.
    async fn notify(&self, id: BatchId, stop: &CancellationToken) -> Result<()> {
        let current = || {
            let LeaderConfig { notifier, config, .. } = &*self.leader_config.borrow();
            (notifier.clone(), config.clone())
        };
        let at = (&self.backend.store, &*self.backend.clock);
        let is_delivered = match deliver(at, id, current, (&self.events, &self.name), stop).await {
            // A batch that was tampered with cannot be reported, however often it is read.
            Err(error) if error.kind() == ErrorKind::Insecure => {
                warn(&self.events, &format!("no notifications for batch {id}: {error}"));
                true
            }
            result => result?,
        };
        if is_delivered {
            self.notified().insert(id);
        }
        Ok(())
    }

    /// Returns whether an ended batch may have notifications to deliver, because its leader was killed or failed to.
    fn needs_notification(&self, batch: &Batch) -> bool {
        !self.leader_config.borrow().notifier.is_empty()
            && is_within_delivery_window(batch, self.backend.clock.now())
            && !self.notified().contains(&batch.id)
    }

    fn notified(&self) -> MutexGuard<'_, HashSet<BatchId>> {
        self.notified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leads each live batch in a task of its own, and notifies of those that have ended. Returns when stopped, before these
/// tasks have ended.
async fn lead_all_batches(
    backend: &Backend,
    leader: &Leader,
    leader_config: &watch::Receiver<LeaderConfig>,
    (batches_changed, events, name): (&Notify, &TaskEvents, &str),
    (tasks, stop): (&TaskTracker, &CancellationToken),
) {
    let context = LeaderContext {
        backend: backend.clone(),
        leader: leader.clone(),
        leader_config: leader_config.clone(),
        events: events.clone(),
        name: name.to_owned(),
        notified: Arc::default(),
    };
    let mut leaders: HashMap<BatchId, JoinHandle<()>> = HashMap::new();
    let mut tidied: Option<tokio::time::Instant> = None;
    while !stop.is_cancelled() {
        leaders.retain(|_, task| !task.is_finished());
        match backend.store.batches(MAX_BATCHES).await {
            Ok(batches) => {
                context.notified().retain(|id| batches.iter().any(|batch| batch.id == *id && batch.ended_at.is_some()));
                for batch in batches {
                    let id = batch.id;
                    let is_live = batch.ended_at.is_none() && batch.state.is_live();
                    if leaders.contains_key(&id) || !(is_live || context.needs_notification(&batch)) {
                        continue;
                    }
                    let (work, stop) = (context.clone(), stop.clone());
                    let log = BatchLog::new(&batch, events);
                    leaders.insert(
                        id,
                        tasks.spawn(async move {
                            match is_live {
                                true => {
                                    let (what, events) = (format!("leading batch {id}"), &work.events);
                                    supervise(&what, events, &stop, async || work.lead_batch(id, &log, &stop).await)
                                        .await;
                                }
                                false => {
                                    let what = format!("sending notifications of batch {id}");
                                    let notify = async || {
                                        work.wait_for_pruning(id, &stop).await?;
                                        work.notify(id, &stop).await
                                    };
                                    supervise(&what, &work.events, &stop, notify).await;
                                }
                            }
                        }),
                    );
                }
            }
            Err(error) => log_throttle::warn(&format!("listing batches: {}", error.kind()), &error.to_string()),
        }
        if tidied.is_none_or(|at| at.elapsed() > CLEANUP_INTERVAL) {
            tidied = Some(tokio::time::Instant::now());
            let config = leader_config.borrow().config.clone();
            let keep = jiff::SignedDuration::try_from(config.batch_retention).unwrap_or(jiff::SignedDuration::MAX);
            if let Ok(before) = backend.clock.now().checked_sub(keep)
                && let Err(error) = backend.store.remove_before(before).await
            {
                tracing::warn!("{error}");
            }
            if let Err(error) = tidy_provenance(&*backend.store, &config, backend.clock.now()).await {
                tracing::warn!("{error}");
            }
        }
        tokio::select! {
            () = batches_changed.notified() => {}
            () = pause(BATCH_POLL_INTERVAL, stop) => {}
        }
    }
}

fn emit_notice(events: &TaskEvents, what: &str) {
    events.emit(Event::Notice { message: what.to_owned() });
}

fn warn(events: &TaskEvents, what: &str) {
    events.emit(Event::Warning { message: what.to_owned() });
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}
