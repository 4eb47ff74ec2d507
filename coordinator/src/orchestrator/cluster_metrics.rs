//! Metrics of a coordinator about its cluster. A scrape of `/metrics` reads them from store and broker, at most every
//! few seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use imgsync_model::batch::Route;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_registry::Client;
use imgsync_store::outage::ServerHealth;
use imgsync_store::{Batch, BatchState, Heartbeat, StoreReplication, leader_lease_name, log_throttle};
use imgsync_worker::runner::load_rate_limit_holds;
use imgsync_worker::telemetry::metrics::{MAX_REGISTRY_LABELS, Metrics, MetricsRefresh};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::backend::Backend;
use super::coverage::unserved_reasons;
use super::push_metrics;
use super::rule_metrics::{
    EndedBatchCache, RuleMetrics, WatchedRule, WatchedRules, last_ended, outcome_counts, unix_seconds,
};
use crate::batch_view::GLOBAL_LEADER;
use crate::notify::notification_counters;

/// A scrape reuses metrics that are not older than this.
const SCRAPE_CACHE_TTL: Duration = Duration::from_secs(5);
/// A scrape does not wait longer for store and broker. Metrics that come later are those of the next scrape.
const SCRAPE_WAIT: Duration = Duration::from_secs(2);
/// Timeout of reading store and broker; after it the metrics keep their values.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(8);
/// Time limit for the store to respond.
const STORE_TIMEOUT: Duration = Duration::from_secs(6);
/// Time limit for the broker to respond.
const BROKER_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum number of batches, the newest, that are counted.
const MAX_BATCHES: usize = 1_000;
/// Maximum number of routes with a label of their own, the longest queues first; the rest is `other`.
const MAX_ROUTES: usize = 100;
/// A route in which nothing was published for this long is ignored: its queue is empty or gone.
const IDLE_ROUTE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

type GaugeFamily = Family<[(&'static str, String); 1], Gauge>;

/// Metrics of the cluster.
#[derive(Clone, Default)]
struct ClusterMetrics {
    store_up: Gauge,
    broker_up: Gauge,
    broker_blocked: Gauge,
    broker_reconnects: Counter,
    store_failovers: Counter,
    store_sentinels: GaugeFamily,
    store_replicas: GaugeFamily,
    store_replica_lag: GaugeFamily,
    leader_present: Gauge,
    open_tasks: Gauge,
    tasks: GaugeFamily,
    batches: GaugeFamily,
    last_end: Gauge<f64, AtomicU64>,
    last_good_end: Gauge<f64, AtomicU64>,
    last_tasks: GaugeFamily,
    last_unlisted: Gauge,
    last_empty_rules: Gauge,
    workers: Gauge,
    slots: Gauge,
    busy: Gauge,
    refused: Gauge,
    route_messages: GaugeFamily,
    unserved_routes: Gauge,
    rate_limit_holds: Family<[(&'static str, String); 1], Gauge<f64, AtomicU64>>,
    rules: RuleMetrics,
}

impl ClusterMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register("store_up", "Whether the store answers", self.store_up.clone());
        registry.register("broker_up", "Whether the broker answers", self.broker_up.clone());
        registry.register(
            "broker_blocked",
            "Whether the broker blocks publishers because of a memory or disk alarm",
            self.broker_blocked.clone(),
        );
        let help = "Connections to the broker that replaced a lost one";
        registry.register("broker_reconnects", help, self.broker_reconnects.clone());
        let help = "Times that the master of the store was replaced";
        registry.register("store_failovers", help, self.store_failovers.clone());
        let help = "Sentinels of the store by state: configured, answering";
        registry.register("store_sentinels", help, self.store_sentinels.clone());
        let help = "Replicas of the store by state: known to the Sentinels, connected to the master";
        registry.register("store_replicas", help, self.store_replicas.clone());
        let help = "Time since a connected replica last confirmed what it has";
        registry.register_with_unit("store_replica_lag", help, Unit::Seconds, self.store_replica_lag.clone());
        registry.register("leader_present", "Whether a coordinator is the leader", self.leader_present.clone());
        registry.register("open_tasks", "Tasks of live batches that have not ended", self.open_tasks.clone());
        registry.register("batch_tasks", "Tasks of live batches by state", self.tasks.clone());
        registry.register("batches", "Batches by state", self.batches.clone());
        let help = "When the last batch ended";
        registry.register_with_unit("last_batch_end_timestamp", help, Unit::Seconds, self.last_end.clone());
        let help = "When the last batch ended with all repositories listed and nothing failed";
        registry.register_with_unit("last_good_batch_end_timestamp", help, Unit::Seconds, self.last_good_end.clone());
        registry.register(
            "last_batch_tasks",
            "Tasks of the batch that ended last, by outcome",
            self.last_tasks.clone(),
        );
        registry.register(
            "last_batch_unlisted",
            "Repositories that could not be listed in the last batch",
            self.last_unlisted.clone(),
        );
        registry.register(
            "last_batch_empty_rules",
            "Rules that selected no tag in the last batch",
            self.last_empty_rules.clone(),
        );
        push_metrics::register(registry);
        registry.register("notifications", "Notifications of ended batches by result", notification_counters());
        registry.register("workers", "Running workers", self.workers.clone());
        registry.register("worker_slots", "Slots of all workers", self.slots.clone());
        registry.register("busy_slots", "Slots in use", self.busy.clone());
        registry.register("workers_refused_messages", "Messages rejected by running workers", self.refused.clone());
        registry.register("route_messages", "Messages ready in the queue of a route", self.route_messages.clone());
        registry.register(
            "routes_unserved",
            "Routes with messages that no worker serves",
            self.unserved_routes.clone(),
        );
        let help = "Time until requests to a registry may resume (rate limit or quota)";
        registry.register_with_unit("registry_hold", help, Unit::Seconds, self.rate_limit_holds.clone());
        self.rules.register(registry);
    }

    /// Reads store and broker and updates the metrics, with a time limit. Logs a failure.
    async fn refresh_or_warn(
        &self,
        backend: &Backend,
        client: &Client,
        rules: &[WatchedRule],
        ended_batches: &mut EndedBatchCache,
    ) {
        match tokio::time::timeout(REFRESH_TIMEOUT, self.refresh(backend, client, rules, ended_batches)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log_throttle::warn(&format!("metrics: {}", error.kind()), &error.to_string()),
            Err(_) => {
                let line = format!("store and broker did not answer within {} s", REFRESH_TIMEOUT.as_secs());
                log_throttle::warn("metrics: timeout", &line);
            }
        }
    }

    /// Reads store and broker and updates the metrics.
    async fn refresh(
        &self,
        backend: &Backend,
        client: &Client,
        rules: &[WatchedRule],
        ended_batches: &mut EndedBatchCache,
    ) -> Result<()> {
        let broker = async {
            let alive = tokio::time::timeout(BROKER_TIMEOUT, backend.queue.is_alive()).await;
            self.broker_up.set((alive == Ok(true)).into());
            let reconnects = backend.health.iter().map(ServerHealth::reconnects).sum();
            self.broker_reconnects.inner().store(reconnects, Ordering::Relaxed);
            let failovers = backend.health.iter().map(ServerHealth::failovers).sum();
            self.store_failovers.inner().store(failovers, Ordering::Relaxed);
        };
        let store = tokio::time::timeout(STORE_TIMEOUT, self.refresh_from_store(backend, client, rules, ended_batches));
        // At the same time: a store that does not answer hides nothing of the broker.
        let (found, ()) = tokio::join!(store, broker);
        self.store_up.set(matches!(found, Ok(Ok(_))).into());
        let (routes, workers) = found.unwrap_or_else(|_| {
            let limit = format!("no answer within {} s", STORE_TIMEOUT.as_secs());
            Err(Error::new(ErrorKind::Unreachable, "reading metrics from the store", limit))
        })?;
        let waiting = backend.queue.count_ready(&routes).await?;
        self.set_routes(routes.iter().zip(waiting).collect(), &workers);
        Ok(())
    }

    /// Reads the store and updates the metrics. Returns the routes in use and the workers.
    async fn refresh_from_store(
        &self,
        backend: &Backend,
        client: &Client,
        rules: &[WatchedRule],
        ended_batches: &mut EndedBatchCache,
    ) -> Result<(Vec<Route>, Vec<Heartbeat>)> {
        // Before anything that needs the store: the Sentinels are asked apart from it.
        if let Some(replication) = backend.store.replication().await? {
            self.set_replication(&replication);
        }
        let (batches, workers) = (backend.store.batches(MAX_BATCHES).await?, backend.store.workers().await?);
        let routes = backend.store.routes_by_age().await?;
        let routes: Vec<Route> =
            routes.into_iter().filter(|(_, age)| *age < IDLE_ROUTE_TTL).map(|(route, _)| route).collect();
        let leader = backend.store.lease_holder(&leader_lease_name(GLOBAL_LEADER)).await?;
        self.leader_present.set(leader.is_some().into());
        self.set_batches(&batches);
        ended_batches.retain_batches(&batches);
        if let Some(at) = ended_batches.last_good_end(batches.iter(), &*backend.store).await? {
            self.last_good_end.set(unix_seconds(at));
        }
        self.rules.refresh(rules, &batches, &*backend.store, ended_batches).await?;
        if let Some(last) = last_ended(batches.iter()) {
            let records = backend.store.count_records(&[last.id]).await?.first().copied().unwrap_or_default();
            self.last_unlisted.set(gauge_from_usize(records.unlisted as usize));
            self.last_empty_rules.set(gauge_from_usize(backend.store.empty_rules(last.id).await?.len()));
        }
        self.set_workers(&workers);
        self.rate_limit_holds.clear();
        let holds = load_rate_limit_holds(&routes, &*backend.store, client).await?;
        for ((registry, _), hold) in holds.into_iter().take(MAX_REGISTRY_LABELS) {
            let gauge = self.rate_limit_holds.get_or_create_owned(&[("registry", registry.to_string())]);
            gauge.set(gauge.get().max(hold.wait.as_secs_f64()));
        }
        self.broker_blocked.set(backend.store.broker_alarm().await?.is_some().into());
        Ok((routes, workers))
    }

    fn set_batches(&self, batches: &[Batch]) {
        let live: Vec<&Batch> = batches.iter().filter(|batch| batch.state.is_live()).collect();
        let sum = |count: &dyn Fn(&Batch) -> u64| live.iter().map(|batch| count(batch)).sum::<u64>();
        self.open_tasks.set(gauge_from_u64(sum(&|batch| batch.counts.unfinished())));
        let parts = [
            ("planned", sum(&|batch| batch.counts.waiting.saturating_sub(batch.queued + batch.retrying))),
            ("queued", sum(&|batch| batch.queued)),
            ("retrying", sum(&|batch| batch.retrying)),
            ("leased", sum(&|batch| batch.counts.running)),
        ];
        for (state, count) in parts {
            self.tasks.get_or_create(&[("state", state.to_owned())]).set(gauge_from_u64(count));
        }
        for control in BatchState::ALL {
            let count = batches.iter().filter(|batch| batch.state == control).count();
            self.batches.get_or_create(&[("state", control.as_str().to_owned())]).set(gauge_from_usize(count));
        }
        if let Some(last) = last_ended(batches.iter()) {
            self.last_end.set(last.ended_at.map_or(0.0, unix_seconds));
            for (outcome, count) in outcome_counts(last) {
                self.last_tasks.get_or_create(&[("outcome", outcome.to_owned())]).set(gauge_from_u64(count));
            }
        }
    }

    /// Sets what is known; what is not has no series.
    fn set_replication(&self, found: &StoreReplication) {
        let set = |family: &GaugeFamily, label: &'static str, value: &str, count: u64| {
            family.get_or_create_owned(&[(label, value.to_owned())]).set(gauge_from_u64(count));
        };
        set(&self.store_sentinels, "state", "configured", found.sentinels_configured);
        set(&self.store_sentinels, "state", "answering", found.sentinels);
        self.store_replicas.clear();
        self.store_replica_lag.clear();
        if let Some(known) = found.replicas_known {
            set(&self.store_replicas, "state", "known", known);
        }
        if let Some(replicas) = &found.replicas {
            set(&self.store_replicas, "state", "connected", replicas.len() as u64);
            for replica in replicas {
                set(&self.store_replica_lag, "replica", &replica.name, replica.lag.as_secs());
            }
        }
    }

    fn set_workers(&self, workers: &[Heartbeat]) {
        self.workers.set(gauge_from_usize(workers.len()));
        self.slots.set(workers.iter().map(|worker| i64::from(worker.slots)).sum());
        self.busy.set(gauge_from_usize(workers.iter().map(|worker| worker.running.len()).sum()));
        self.refused.set(gauge_from_u64(workers.iter().map(|worker| worker.refused).sum()));
    }

    fn set_routes(&self, mut routes: Vec<(&Route, u64)>, workers: &[Heartbeat]) {
        let unserved =
            routes.iter().filter(|(route, waiting)| *waiting > 0 && unserved_reasons(workers, route).is_some()).count();
        self.unserved_routes.set(gauge_from_usize(unserved));
        routes.sort_by_key(|(_, waiting)| std::cmp::Reverse(*waiting));
        self.route_messages.clear();
        for (route, waiting) in routes.iter().take(MAX_ROUTES) {
            self.route_messages.get_or_create(&[("route", route.to_string())]).set(gauge_from_u64(*waiting));
        }
        if let Some(rest) = routes.get(MAX_ROUTES..).filter(|rest| !rest.is_empty()) {
            let rest = rest.iter().map(|(_, waiting)| waiting).sum();
            self.route_messages.get_or_create(&[("route", "other".to_owned())]).set(gauge_from_u64(rest));
        }
    }
}

/// Creates the coordinator's metrics, with those of its cluster, and the function that refreshes the latter. Rate limit
/// holds are those of the credentials of `client`.
pub fn new_cluster_metrics(backend: &Backend, client: Client, rules: WatchedRules) -> (Arc<Metrics>, MetricsRefresh) {
    let cluster_metrics = ClusterMetrics::default();
    let metrics = Metrics::new("imgsync", |registry| cluster_metrics.register(registry));
    let (backend, cache) = (backend.clone(), Arc::new(Mutex::new((None::<Instant>, EndedBatchCache::default()))));
    let refresh: MetricsRefresh = Arc::new(move || {
        let (cluster_metrics, backend, client, cache) =
            (cluster_metrics.clone(), backend.clone(), client.clone(), cache.clone());
        let rules = rules.get().map(|rules| rules()).unwrap_or_default();
        let refresh = async move {
            // Waited for by all scrapes until it has ended.
            let mut cache = cache.lock().await;
            let (refreshed_at, found) = &mut *cache;
            if refreshed_at.is_some_and(|at| at.elapsed() < SCRAPE_CACHE_TTL) {
                return;
            }
            cluster_metrics.refresh_or_warn(&backend, &client, &rules, found).await;
            *refreshed_at = Some(Instant::now());
        };
        Box::pin(async move {
            // In a task of its own: a scrape that ends earlier does not interrupt it.
            let _ = tokio::time::timeout(SCRAPE_WAIT, tokio::spawn(refresh)).await;
        })
    });
    (metrics, refresh)
}

fn gauge_from_usize(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn gauge_from_u64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
