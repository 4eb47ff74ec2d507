//! Metrics of a coordinator about its cluster. A scrape of `/metrics` reads them from store and broker, at most every
//! few seconds.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use imgsync_common::batch::Lane;
use imgsync_common::error::Result;
use imgsync_common::registry::Client;
use imgsync_common::repeated;
use imgsync_common::store::{Batch, Control, Heartbeat};
use imgsync_worker::metrics::{MAX_REGISTRIES, Metrics, Refresh};
use imgsync_worker::runner::store_holds;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::crew::whether_unserved;
use super::house::House;
use super::rule_figures::{Found, RuleFigures, Rules, WatchedRule, last_ended, outcomes, seconds};
use crate::notify::notifications;

/// A scrape reuses metrics that are not older than this.
const FRESH: Duration = Duration::from_secs(5);
/// Timeout of reading store and broker; after it the metrics keep their values.
const PATIENCE: Duration = Duration::from_secs(8);
/// Maximum number of batches, the newest, that are counted.
const BATCHES: usize = 1_000;
/// Maximum number of routes with a label of their own, the longest queues first; the rest is `other`.
const MAX_LANES: usize = 100;
/// A route in which nothing was published for this long is ignored: its queue is empty or gone.
const QUIET: Duration = Duration::from_secs(24 * 60 * 60);

type Gauges = Family<[(&'static str, String); 1], Gauge>;

/// Metrics of the cluster.
#[derive(Clone, Default)]
struct Figures {
    store_up: Gauge,
    broker_up: Gauge,
    broker_blocked: Gauge,
    open_tasks: Gauge,
    tasks: Gauges,
    batches: Gauges,
    last_end: Gauge<f64, AtomicU64>,
    last_good_end: Gauge<f64, AtomicU64>,
    last_tasks: Gauges,
    last_unlisted: Gauge,
    last_empty_rules: Gauge,
    workers: Gauge,
    slots: Gauge,
    busy: Gauge,
    refused: Gauge,
    lanes: Gauges,
    unserved: Gauge,
    holds: Family<[(&'static str, String); 1], Gauge<f64, AtomicU64>>,
    rules: RuleFigures,
}

impl Figures {
    fn register(&self, registry: &mut Registry) {
        registry.register("store_up", "Whether the store answers", self.store_up.clone());
        registry.register("broker_up", "Whether the broker answers", self.broker_up.clone());
        registry.register(
            "broker_blocked",
            "Whether the broker takes no messages: it is short of memory or disk",
            self.broker_blocked.clone(),
        );
        registry.register("open_tasks", "Tasks of live batches that have not ended", self.open_tasks.clone());
        registry.register("batch_tasks", "Tasks of live batches, by where they are", self.tasks.clone());
        registry.register("batches", "Batches that are known, by state", self.batches.clone());
        let help = "When the last batch ended";
        registry.register_with_unit("last_batch_end_timestamp", help, Unit::Seconds, self.last_end.clone());
        let help = "When the last batch ended in which all was listed and nothing failed";
        registry.register_with_unit("last_good_batch_end_timestamp", help, Unit::Seconds, self.last_good_end.clone());
        registry.register(
            "last_batch_tasks",
            "Tasks of the batch that ended last, by outcome",
            self.last_tasks.clone(),
        );
        registry.register("last_batch_unlisted", "What could not be listed in it", self.last_unlisted.clone());
        registry.register("last_batch_empty_rules", "Rules that chose no tag in it", self.last_empty_rules.clone());
        registry.register("notifications", "Notifications of batches' ends, by result", notifications());
        registry.register("workers", "Workers that live", self.workers.clone());
        registry.register("worker_slots", "Tasks that all workers can do at a time", self.slots.clone());
        registry.register("busy_slots", "Tasks that workers are at", self.busy.clone());
        registry.register("workers_refused_messages", "Messages that living workers refused", self.refused.clone());
        registry.register("lane_messages", "Messages that wait in the queue of a lane", self.lanes.clone());
        registry.register("lanes_unserved", "Lanes with messages that no worker serves", self.unserved.clone());
        let help = "For how long a registry asked to be left alone, or has no pulls left";
        registry.register_with_unit("registry_hold", help, Unit::Seconds, self.holds.clone());
        self.rules.register(registry);
    }

    /// Reads store and broker and updates the metrics.
    async fn look(&self, house: &House, client: &Client, rules: &[WatchedRule], found: &mut Found) -> Result<()> {
        self.store_up.set(0);
        self.broker_up.set(0);
        let (batches, workers) = (house.store.batches(BATCHES).await?, house.store.workers().await?);
        let lanes = house.store.lanes_by_age().await?;
        let lanes: Vec<Lane> = lanes.into_iter().filter(|(_, age)| *age < QUIET).map(|(lane, _)| lane).collect();
        self.count_batches(&batches);
        found.keep(&batches);
        if let Some(at) = found.last_good(batches.iter(), &*house.store).await? {
            self.last_good_end.set(seconds(at));
        }
        self.rules.look(rules, &batches, &*house.store, found).await?;
        if let Some(last) = last_ended(batches.iter()) {
            self.last_unlisted.set(number(house.store.unlisted(last.id).await?.len()));
            self.last_empty_rules.set(number(house.store.empty_rules(last.id).await?.len()));
        }
        self.count_workers(&workers);
        self.holds.clear();
        let holds = store_holds(&lanes, &*house.store, client).await?;
        for ((registry, _), hold) in holds.into_iter().take(MAX_REGISTRIES) {
            let gauge = self.holds.get_or_create_owned(&[("registry", registry.to_string())]);
            gauge.set(gauge.get().max(hold.wait.as_secs_f64()));
        }
        self.broker_blocked.set(house.store.broker_alarm().await?.is_some().into());
        self.store_up.set(1);
        let waiting = house.queue.waiting(&lanes).await?;
        self.broker_up.set(1);
        self.count_lanes(lanes.iter().zip(waiting).collect(), &workers);
        Ok(())
    }

    fn count_batches(&self, batches: &[Batch]) {
        let live: Vec<&Batch> = batches.iter().filter(|batch| batch.control.is_live()).collect();
        let sum = |count: &dyn Fn(&Batch) -> u64| live.iter().map(|batch| count(batch)).sum::<u64>();
        self.open_tasks.set(whole(sum(&|batch| batch.counts.open())));
        let parts = [
            ("planned", sum(&|batch| batch.counts.waiting.saturating_sub(batch.queued + batch.retrying))),
            ("queued", sum(&|batch| batch.queued)),
            ("retrying", sum(&|batch| batch.retrying)),
            ("leased", sum(&|batch| batch.counts.running)),
        ];
        for (state, count) in parts {
            self.tasks.get_or_create(&[("state", state.to_owned())]).set(whole(count));
        }
        for control in Control::ALL {
            let count = batches.iter().filter(|batch| batch.control == control).count();
            self.batches.get_or_create(&[("state", control.as_str().to_owned())]).set(number(count));
        }
        if let Some(last) = last_ended(batches.iter()) {
            self.last_end.set(last.ended_at.map_or(0.0, seconds));
            for (outcome, count) in outcomes(last) {
                self.last_tasks.get_or_create(&[("outcome", outcome.to_owned())]).set(whole(count));
            }
        }
    }

    fn count_workers(&self, workers: &[Heartbeat]) {
        self.workers.set(number(workers.len()));
        self.slots.set(workers.iter().map(|worker| i64::from(worker.slots)).sum());
        self.busy.set(number(workers.iter().map(|worker| worker.running.len()).sum()));
        self.refused.set(whole(workers.iter().map(|worker| worker.refused).sum()));
    }

    fn count_lanes(&self, mut lanes: Vec<(&Lane, u64)>, workers: &[Heartbeat]) {
        let unserved =
            lanes.iter().filter(|(lane, waiting)| *waiting > 0 && whether_unserved(workers, lane).is_some()).count();
        self.unserved.set(number(unserved));
        lanes.sort_by_key(|(_, waiting)| std::cmp::Reverse(*waiting));
        self.lanes.clear();
        for (lane, waiting) in lanes.iter().take(MAX_LANES) {
            self.lanes.get_or_create(&[("lane", lane.to_string())]).set(whole(*waiting));
        }
        if let Some(rest) = lanes.get(MAX_LANES..).filter(|rest| !rest.is_empty()) {
            let rest = rest.iter().map(|(_, waiting)| waiting).sum();
            self.lanes.get_or_create(&[("lane", "other".to_owned())]).set(whole(rest));
        }
    }
}

/// Creates the coordinator's metrics, with those of its cluster, and the function that refreshes the latter. Rate limit
/// holds are those of the credentials of `client`.
pub fn of(house: &House, client: Client, rules: Rules) -> (Arc<Metrics>, Refresh) {
    let figures = Figures::default();
    let metrics = Metrics::new("imgsync", |registry| figures.register(registry));
    let (house, looked) = (house.clone(), Arc::new(Mutex::new((None::<Instant>, Found::default()))));
    let refresh: Refresh = Arc::new(move || {
        let (figures, house, client, looked) = (figures.clone(), house.clone(), client.clone(), looked.clone());
        let rules = rules.get().map(|rules| rules()).unwrap_or_default();
        Box::pin(async move {
            let mut looked = looked.lock().await;
            let (looked_at, found) = &mut *looked;
            if looked_at.is_some_and(|at| at.elapsed() < FRESH) {
                return;
            }
            match tokio::time::timeout(PATIENCE, figures.look(&house, &client, &rules, found)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => repeated::warn(&format!("figures: {}", error.class()), &error.to_string()),
                Err(_) => {
                    let line = format!("store and broker did not answer within {} s", PATIENCE.as_secs());
                    repeated::warn("figures: no answer", &line);
                }
            }
            *looked_at = Some(Instant::now());
        })
    });
    (metrics, refresh)
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
