//! Worker of a cluster: takes tasks, sends heartbeats, and shuts down in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::task_events::TaskEvents;
use imgsync_queue::TaskQueue as _;
use imgsync_registry::Client;
use imgsync_store::log_throttle;
use imgsync_store::outage::{OutageKind, ServerHealth};
use imgsync_store::{BlobIndex, BrokerAlarm, Clock, HEARTBEAT_TTL, Heartbeat, Leases, SystemClock, WorkerRegistry};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::cluster::ClusterConnection;
use crate::copy::{Copier, CopyLimits};
use crate::health::ReadinessCheck;
use crate::monthly_quota::MonthlyQuota;
use crate::runner::{RouteSelector, Runner, RunnerSettings, Shutdown, WorkerScope};

/// Interval of heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// Minimum interval of heartbeats, when the served routes change.
const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(300);

/// Time `/readyz` waits for the store, and for the broker: its client waits ten seconds.
pub(crate) const READY_CHECK_TIMEOUT: Duration = Duration::from_secs(4);

/// A worker of a cluster.
pub struct ClusterWorker {
    cluster: ClusterConnection,
    client: Client,
    routes: RouteSelector,
    runner: Runner,
    name: String,
    slots: usize,
    monthly_quota: Option<MonthlyQuota>,
    events: TaskEvents,
    started_at: Timestamp,
    config_hash: Option<String>,
    metrics: WorkerMetrics,
}

/// Metrics of a worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerMetrics {
    slots: Gauge,
    unserved: Gauge,
    refused: Gauge,
    draining: Gauge,
    broker_reconnects: Counter,
    store_failovers: Counter,
}

impl WorkerMetrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("slots", "Maximum concurrent tasks", self.slots.clone());
        registry.register("unserved_routes", "Routes this worker does not serve", self.unserved.clone());
        registry.register("refused_messages", "Messages refused since the start", self.refused.clone());
        registry.register("draining", "1 while the worker is draining", self.draining.clone());
        let help = "Connections to the broker that replaced a lost one";
        registry.register("broker_reconnects", help, self.broker_reconnects.clone());
        let help = "Times that the master of the store was replaced";
        registry.register("store_failovers", help, self.store_failovers.clone());
    }

    fn update(&self, heartbeat: &Heartbeat, broker: &ServerHealth, store: &ServerHealth) {
        self.store_failovers.inner().store(store.failovers(), Ordering::Relaxed);
        self.broker_reconnects.inner().store(broker.reconnects(), Ordering::Relaxed);
        self.slots.set(heartbeat.slots.into());
        self.unserved.set(i64::try_from(heartbeat.unserved.len()).unwrap_or(i64::MAX));
        self.refused.set(i64::try_from(heartbeat.refused).unwrap_or(i64::MAX));
        self.draining.set(heartbeat.draining.into());
    }
}

impl ClusterWorker {
    /// Creates a worker that is not started. `name` must be unique to this process.
    pub fn new(
        name: &str,
        cluster: &ClusterConnection,
        client: &Client,
        (slots, max_attempts): (usize, u32),
        scope: WorkerScope,
        events: TaskEvents,
    ) -> ClusterWorker {
        let store = Arc::new(cluster.store.clone());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (index, leases): (Arc<dyn BlobIndex>, Arc<dyn Leases>) = (store.clone(), store.clone());
        let copier = Copier::new(client.clone(), CopyLimits::default()).with_leases(index, leases, name);
        let settings =
            RunnerSettings { name: name.to_owned(), slots, compared_ahead: 0, max_attempts, in_cluster: true };
        let routes = RouteSelector::new(scope);
        let runner = Runner::new(
            Arc::new(cluster.queue.clone()),
            store,
            clock,
            (client.clone(), copier),
            settings,
            routes.clone(),
            events.clone(),
        );
        let (cluster, client, started_at) = (cluster.clone(), client.clone(), Timestamp::now());
        ClusterWorker {
            cluster,
            client,
            routes,
            runner,
            name: name.to_owned(),
            slots,
            monthly_quota: None,
            events,
            started_at,
            config_hash: None,
            metrics: WorkerMetrics::default(),
        }
    }

    /// Sets the lease time of tasks, in place of the default of 30 seconds.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> ClusterWorker {
        self.runner = self.runner.with_lease(lease);
        self
    }

    /// Sets the metrics to update.
    #[must_use]
    pub fn with_metrics(mut self, metrics: WorkerMetrics) -> ClusterWorker {
        self.metrics = metrics;
        self
    }

    /// Sets the hash of the configuration, which heartbeats report.
    #[must_use]
    pub fn with_config_hash(mut self, hash: Option<String>) -> ClusterWorker {
        self.config_hash = hash;
        self
    }

    /// Sets the monthly traffic quota of this machine.
    #[must_use]
    pub fn with_monthly_quota(mut self, quota: Option<MonthlyQuota>) -> ClusterWorker {
        self.monthly_quota = quota;
        self
    }

    /// Runs until shutdown. Returns when no task is running.
    pub async fn run(&self, stop: &Shutdown) {
        self.report_traffic().await;
        // Routes that cannot be served must be known before the first task is taken.
        let keep = self.routes.refresh_loop(&self.cluster.store, &self.client);
        tokio::select! {
            () = self.runner.run(stop) => {}
            () = keep => unreachable!("it goes on until dropped"),
            () = self.send_heartbeats(&stop.drain) => unreachable!("it goes on until dropped"),
            () = self.enforce_quota() => unreachable!("it goes on until dropped"),
        }
        self.report_traffic().await;
        // Release the shared rate limits and permits for other workers.
        self.client.release_shared().await;
        // A store that is unavailable expires the worker by itself.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.cluster.store.deregister(&self.name)).await;
    }

    async fn enforce_quota(&self) {
        match &self.monthly_quota {
            Some(traffic) => traffic.enforce_loop(&self.cluster.store, &self.client, &self.routes, &self.events).await,
            None => std::future::pending().await,
        }
    }

    async fn report_traffic(&self) {
        if let Some(traffic) = &self.monthly_quota {
            let report = traffic.report_usage(&self.cluster.store, &self.client, &self.routes, &self.events);
            // An unavailable store delays neither start nor exit.
            let _ = tokio::time::timeout(Duration::from_secs(2), report).await;
        }
    }

    async fn send_heartbeats(&self, drain: &CancellationToken) {
        let mut changes = self.routes.subscribe();
        loop {
            changes.mark_unchanged();
            let heartbeat = self.build_heartbeat(drain.is_cancelled());
            self.metrics.update(&heartbeat, self.cluster.queue.health(), self.cluster.store.health());
            if let Err(error) = self.cluster.store.heartbeat(heartbeat, HEARTBEAT_TTL).await {
                log_throttle::warn("a heartbeat", &error.to_string());
            }
            let _ = tokio::time::timeout(HEARTBEAT_INTERVAL, changes.changed()).await;
            tokio::time::sleep(MIN_HEARTBEAT_INTERVAL).await;
        }
    }

    fn build_heartbeat(&self, draining: bool) -> Heartbeat {
        let (refused, refusal_reason) = self.cluster.queue.refused();
        Heartbeat {
            worker: self.name.clone(),
            host: crate::host_name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            config_hash: self.config_hash.clone(),
            slots: u32::try_from(self.slots).unwrap_or(u32::MAX),
            draining,
            running: self.runner.running_tasks(),
            unserved: self.routes.unserved_routes(),
            refused,
            refusal_reason,
            broker_nodes: self.cluster.queue.connected_nodes().into_iter().collect(),
            store_master: self.cluster.store.health().master(),
        }
    }
}

/// Checks that the store accepts writes, the broker responds, and the worker is not draining. A broker alarm is only a
/// warning: tasks taken before continue.
pub fn readiness_check(cluster: &ClusterConnection, drain: &CancellationToken) -> ReadinessCheck {
    let (cluster, drain) = (cluster.clone(), drain.clone());
    Arc::new(move || {
        let (cluster, drain) = (cluster.clone(), drain.clone());
        Box::pin(async move {
            if drain.is_cancelled() {
                return Err("the worker is draining".to_owned());
            }
            let broker = async {
                let alive = tokio::time::timeout(READY_CHECK_TIMEOUT, cluster.queue.is_alive()).await;
                if alive == Ok(true) { Ok(()) } else { Err("the broker does not answer".to_owned()) }
            };
            let (store, broker) = tokio::join!(check_store_writes(&cluster.store), broker);
            store.and(broker)?;
            let blocked = cluster.queue.health().outage(OutageKind::Blocked).map(|outage| outage.to_string());
            match blocked {
                Some(complaint) => Ok(vec![complaint]),
                // Alarms observed by other publishers.
                None => {
                    let alarm = tokio::time::timeout(READY_CHECK_TIMEOUT, cluster.store.broker_alarm()).await;
                    Ok(alarm.ok().and_then(Result::ok).flatten().iter().map(BrokerAlarm::describe).collect())
                }
            }
        })
    })
}

/// Checks that a store accepts writes.
///
/// # Errors
///
/// The reason and what to do, as text.
pub async fn check_store_writes(store: &dyn WorkerRegistry) -> Result<(), String> {
    match tokio::time::timeout(READY_CHECK_TIMEOUT, store.check_writes()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(match error.hint() {
            Some(hint) => format!("the store refuses writes: {error}\nhint: {hint}"),
            None => format!("the store refuses writes: {error}"),
        }),
        Err(_) => Err(format!("the store did not answer within {} s", READY_CHECK_TIMEOUT.as_secs())),
    }
}
