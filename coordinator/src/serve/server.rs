//! The coordinator process: leads batches, starts scheduled rules, runs tasks if there is no cluster, serves HTTP and
//! reloads the configuration, all concurrently.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use imgsync_model::event::TaskEvent;
use imgsync_oci::error::Result;
use imgsync_registry::event::Event;
use imgsync_store::ReclaimScope;
use imgsync_store::log_throttle;
use imgsync_store::outage::{self, HealthEvent, ServerHealth};
use imgsync_worker::health::ReadinessCheck;
use imgsync_worker::runner::Shutdown;
use imgsync_worker::server;
use imgsync_worker::task_events::TaskEvents;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::active_config::{ActiveConfig, ConfigSource, LoadedConfig, ReloadStatus, RuntimeOptions};
use super::app::{AppState, StateConfirmations};
use super::auth::AuthPolicy;
use super::config_watch::watch_config;
use super::event_poller;
use super::event_stream::EventHub;
use super::failure_group_cache::FailureGroupCache;
use super::hooks::{BODY_PERMITS, PushService, UNPROVED_BODY_PERMITS, watch_named_images};
use super::router::router;
use super::rules::RuleCache;
use super::scheduler::Scheduler;
use super::workers::WorkerSamples;
use crate::orchestrator::{Backend, LeaderConfig, LocalWorker, ReclaimPolicy, WatchedRule, run_leader};

/// Interval between requests to the broker.
const BROKER_WATCH_INTERVAL: Duration = Duration::from_secs(5);
/// Batches checked at startup for tasks of a previous process.
const MAX_RECLAIMED_BATCHES: usize = 1_000;
const MAX_CONCURRENT_SEARCHES: usize = 2;
const MAX_CONCURRENT_REPORTS: usize = 2;

/// HTTP listener, authorization policy and extra routes.
#[derive(Debug)]
pub struct HttpBinding {
    /// The bound listener.
    pub listener: TcpListener,
    /// Authorization policy.
    pub auth: AuthPolicy,
    /// Extra routes that need no token: `/metrics`.
    pub extra_routes: Router,
}

/// A long-running coordinator.
pub struct Server {
    backend: Backend,
    config_source: ConfigSource,
    options: RuntimeOptions,
    events: TaskEvents,
    active_config: watch::Sender<Arc<ActiveConfig>>,
}

impl Server {
    /// Creates a coordinator with its initial configuration, without starting it.
    ///
    /// # Errors
    /// `Invalid` if a rule cannot run here.
    pub fn new(
        backend: Backend,
        first: LoadedConfig,
        config_source: ConfigSource,
        options: RuntimeOptions,
        events: TaskEvents,
    ) -> Result<Server> {
        let active_config = watch::Sender::new(Arc::new(ActiveConfig::new(first, &backend, &options, None)?));
        Ok(Server { backend, config_source, options, events, active_config })
    }

    /// Returns a function that lists the rules of the active configuration that have metrics.
    pub fn watched_rules(&self) -> impl Fn() -> Vec<WatchedRule> + Send + Sync + use<> {
        let current = self.active_config.subscribe();
        move || current.borrow().watched_rules()
    }

    /// Runs until `stop` is triggered. The next start resumes interrupted listings; copies in progress may finish
    /// within the drain limit of the [`RuntimeOptions`].
    pub async fn run(&self, binding: HttpBinding, ready: ReadinessCheck, stop: &Shutdown) {
        let drain = &stop.drain;
        let work_available = Arc::new(Notify::new());
        let leadership = watch::Sender::new(None);
        let reload_status = watch::Sender::new(ReloadStatus { at: Timestamp::now(), error: None });
        let (backend, events) = (&self.backend, &self.events);
        let scheduler =
            Scheduler::new(backend, self.active_config.subscribe(), work_available.clone(), events.clone(), drain);
        let app = Arc::new(AppState {
            backend: backend.clone(),
            active_config: self.active_config.subscribe(),
            reload_status: reload_status.subscribe(),
            leadership: leadership.subscribe(),
            scheduler: scheduler.clone(),
            event_hub: Arc::new(EventHub::default()),
            failure_groups: FailureGroupCache::default(),
            rule_cache: RuleCache::default(),
            state_confirmations: StateConfirmations::default(),
            worker_samples: WorkerSamples::default(),
            search_permits: Semaphore::new(MAX_CONCURRENT_SEARCHES),
            report_permits: Semaphore::new(MAX_CONCURRENT_REPORTS),
            hook_permits: Semaphore::new(BODY_PERMITS),
            unproved_hook_permits: Semaphore::new(UNPROVED_BODY_PERMITS),
            push_arrived: Arc::new(Notify::new()),
            auth: binding.auth,
            ready,
            work_available: work_available.clone(),
            started_at: Timestamp::now(),
            stop: drain.clone(),
        });
        if !backend.is_cluster() {
            self.reclaim_all().await;
        }
        let leader_config = watch::Sender::new(self.leader_config());
        let follow = async {
            let mut changes = self.active_config.subscribe();
            loop {
                tokio::select! {
                    _ = changes.changed() => drop(leader_config.send_replace(self.leader_config())),
                    () = drain.cancelled() => break,
                }
            }
        };
        let pushes = PushService {
            backend: backend.clone(),
            active_config: self.active_config.subscribe(),
            scheduler: scheduler.clone(),
            arrived: app.push_arrived.clone(),
            events: events.transfers().clone(),
            stop: drain.clone(),
        };
        let watched = leader_config.subscribe();
        tokio::join!(
            run_leader(backend, ReclaimPolicy::default(), &watched, (&work_available, &leadership), events, drain),
            scheduler.run(leadership.subscribe()),
            pushes.run(leadership.subscribe()),
            watch_named_images(self.active_config.subscribe(), drain),
            self.run_local_workers(stop),
            event_poller::run_poller(&app, drain),
            report_health_events(backend, events, drain),
            watch_broker(backend, drain),
            server::serve(binding.listener, router(app.clone(), binding.extra_routes), drain),
            watch_config(
                &self.config_source,
                (backend, &self.options),
                &self.active_config,
                &reload_status,
                events,
                drain
            ),
            follow,
        );
        let current = self.active_config.borrow().clone();
        current.client.release_shared().await;
    }

    /// Reclaims all tasks: the process that ran them is gone, and so is its queue.
    async fn reclaim_all(&self) {
        match self.backend.store.batches(MAX_RECLAIMED_BATCHES).await {
            Ok(batches) => {
                for batch in batches.iter().filter(|batch| batch.ended_at.is_none()) {
                    if let Err(error) = self.backend.store.reclaim(batch.id, ReclaimScope::Everything).await {
                        super::warn(&self.events, &error.to_string());
                    }
                }
            }
            Err(error) => super::warn(&self.events, &error.to_string()),
        }
    }

    fn leader_config(&self) -> LeaderConfig {
        let current = self.active_config.borrow();
        let config = Arc::new(current.config.clone());
        LeaderConfig { config, notifier: current.notifier.clone(), client: current.client.clone() }
    }

    /// Runs in-process workers if there is no cluster. A reloaded configuration applies to new tasks; running tasks
    /// finish with the one they started with.
    async fn run_local_workers(&self, stop: &Shutdown) {
        if self.backend.is_cluster() {
            return;
        }
        let mut changes = self.active_config.subscribe();
        let generations = TaskTracker::new();
        let mut number = 0;
        while !stop.drain.is_cancelled() {
            let current = changes.borrow_and_update().clone();
            number += 1;
            let generation = Shutdown { drain: stop.drain.child_token(), abort: stop.abort.child_token() };
            let worker = LocalWorker {
                backend: self.backend.clone(),
                client: current.client.clone(),
                copier: current.copier.clone(),
                name: format!("{}-{number}", imgsync_worker::process_name()),
                slots: current.concurrency(),
                attempts: current.attempts(),
                monthly_quota: current.config.monthly_quota,
                events: self.events.clone(),
                archives: None,
            };
            let its = generation.clone();
            generations.spawn(async move {
                worker.run(&its).await;
                worker.client.release_shared().await;
            });
            tokio::select! {
                _ = changes.changed() => generation.drain.cancel(),
                () = stop.drain.cancelled() => {}
            }
        }
        generations.close();
        tokio::select! {
            () = generations.wait() => {}
            () = tokio::time::sleep(self.options.drain) => {
                stop.abort.cancel();
                generations.wait().await;
            }
        }
    }
}

/// Asks the broker regularly whether it responds, until stopped: a coordinator without work would not notice an outage.
/// Those that it meets are recorded in the health of the broker.
async fn watch_broker(backend: &Backend, stop: &CancellationToken) {
    let watch = async {
        while backend.is_cluster() {
            backend.queue.is_alive().await;
            tokio::time::sleep(BROKER_WATCH_INTERVAL).await;
        }
    };
    stop.run_until_cancelled(watch).await;
}

/// Reports which nodes of the broker are used, and outages of broker and store, until stopped.
async fn report_health_events(backend: &Backend, events: &TaskEvents, stop: &CancellationToken) {
    for connection in backend.health.iter().flat_map(ServerHealth::connections) {
        events.emit(Event::Notice { message: connection.to_string() });
    }
    for master in backend.health.iter().filter_map(ServerHealth::master) {
        events.emit(Event::Notice { message: format!("storing on the master {master}") });
    }
    let report_health_event = |event: &HealthEvent| match event {
        HealthEvent::Began(_) => events.emit(Event::Warning { message: event.to_string() }),
        HealthEvent::WritesLost { .. } => {
            events.emit_task(TaskEvent::WritesLost);
            events.emit(Event::Warning { message: event.to_string() });
        }
        HealthEvent::Ended(..) | HealthEvent::FailedOver { .. } => {
            events.emit(Event::Notice { message: event.to_string() });
        }
        HealthEvent::Reconnected(connection) => {
            let events = events.clone();
            let notice = move |line: &str| events.emit(Event::Notice { message: line.to_owned() });
            log_throttle::write(&connection.to_string(), &event.to_string(), notice);
        }
    };
    tokio::select! {
        () = outage::forward_events(&backend.health, report_health_event) => {}
        () = stop.cancelled() => {}
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}
