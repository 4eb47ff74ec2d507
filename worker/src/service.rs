//! Worker of a cluster: takes tasks, sends heartbeats, and shuts down in order.

use std::sync::Arc;
use std::time::Duration;

use imgsync_common::event::Events;
use imgsync_common::outage::OutageKind;
use imgsync_common::registry::Client;
use imgsync_common::repeated;
use imgsync_common::store::{BlobIndex, BrokerAlarm, Clock, HEARTBEAT, Heartbeat, Leases, Roster, SystemClock};
use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::copy::{Copier, Limits};
use crate::health::Ready;
use crate::runner::{Allowed, Runner, Serving, Settings, Stop};
use crate::traffic::Traffic;

/// Interval of heartbeats.
const BEAT_EVERY: Duration = Duration::from_secs(5);

/// Minimum interval of heartbeats, when the served routes change.
const BEAT_APART: Duration = Duration::from_millis(300);

/// Time `/readyz` waits for the store, and for the broker: its client waits ten seconds.
pub(crate) const CHECK_TIMEOUT: Duration = Duration::from_secs(4);

/// A worker of a cluster.
pub struct Worker {
    cluster: Cluster,
    client: Client,
    serving: Serving,
    runner: Runner,
    name: String,
    slots: usize,
    traffic: Option<Traffic>,
    events: Events,
    started_at: Timestamp,
    figures: Figures,
}

/// Metrics of a worker.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    slots: Gauge,
    unserved: Gauge,
    refused: Gauge,
    draining: Gauge,
}

impl Figures {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("slots", "Tasks at once, at the most", self.slots.clone());
        registry.register("unserved_lanes", "Lanes that this worker leaves alone", self.unserved.clone());
        registry.register("refused_messages", "Messages that were refused since the start", self.refused.clone());
        registry.register(
            "draining",
            "1 where no more is taken, and the process is about to end",
            self.draining.clone(),
        );
    }

    fn set(&self, heartbeat: &Heartbeat) {
        self.slots.set(heartbeat.slots.into());
        self.unserved.set(i64::try_from(heartbeat.unserved.len()).unwrap_or(i64::MAX));
        self.refused.set(i64::try_from(heartbeat.refused).unwrap_or(i64::MAX));
        self.draining.set(heartbeat.draining.into());
    }
}

impl Worker {
    /// Creates a worker that is not started. `name` must be unique to this process.
    pub fn new(
        name: &str,
        cluster: &Cluster,
        client: &Client,
        (slots, attempts): (usize, u32),
        allowed: Allowed,
        events: Events,
    ) -> Worker {
        let store = Arc::new(cluster.store.clone());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (index, leases): (Arc<dyn BlobIndex>, Arc<dyn Leases>) = (store.clone(), store.clone());
        let copier = Copier::new(client.clone(), Limits::default()).among_workers(index, leases, name);
        let settings = Settings { name: name.to_owned(), slots, attempts, others_may_reach: true };
        let serving = Serving::new(allowed);
        let runner = Runner::new(
            Arc::new(cluster.queue.clone()),
            store,
            clock,
            (client.clone(), copier),
            settings,
            serving.clone(),
            events.clone(),
        );
        let (cluster, client, started_at) = (cluster.clone(), client.clone(), Timestamp::now());
        Worker {
            cluster,
            client,
            serving,
            runner,
            name: name.to_owned(),
            slots,
            traffic: None,
            events,
            started_at,
            figures: Figures::default(),
        }
    }

    /// Sets the lease time of tasks, in place of the default of 30 seconds.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Worker {
        self.runner = self.runner.with_lease(lease);
        self
    }

    /// Sets the metrics to update.
    #[must_use]
    pub fn with_figures(mut self, figures: Figures) -> Worker {
        self.figures = figures;
        self
    }

    /// Sets the monthly traffic quota of this machine.
    #[must_use]
    pub fn with_traffic(mut self, traffic: Option<Traffic>) -> Worker {
        self.traffic = traffic;
        self
    }

    /// Runs until shutdown. Returns when no task is running.
    pub async fn run(&self, stop: &Stop) {
        self.note_traffic().await;
        // Routes that cannot be served must be known before the first task is taken.
        let keep = self.serving.keep(&self.cluster.store, &self.client);
        tokio::select! {
            () = self.runner.run(stop) => {}
            () = keep => unreachable!("it goes on until dropped"),
            () = self.beat(&stop.drain) => unreachable!("it goes on until dropped"),
            () = self.keep_traffic() => unreachable!("it goes on until dropped"),
        }
        self.note_traffic().await;
        // Release the shared rate limits and permits for other workers.
        self.client.let_go().await;
        // A store that is unavailable expires the worker by itself.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.cluster.store.leave(&self.name)).await;
    }

    async fn keep_traffic(&self) {
        match &self.traffic {
            Some(traffic) => traffic.keep(&self.cluster.store, &self.client, &self.serving, &self.events).await,
            None => std::future::pending().await,
        }
    }

    async fn note_traffic(&self) {
        if let Some(traffic) = &self.traffic {
            let note = traffic.note(&self.cluster.store, &self.client, &self.serving, &self.events);
            // An unavailable store delays neither start nor exit.
            let _ = tokio::time::timeout(Duration::from_secs(2), note).await;
        }
    }

    async fn beat(&self, drain: &CancellationToken) {
        let mut changes = self.serving.changes();
        loop {
            changes.mark_unchanged();
            let heartbeat = self.heartbeat(drain.is_cancelled());
            self.figures.set(&heartbeat);
            if let Err(error) = self.cluster.store.beat(heartbeat, HEARTBEAT).await {
                repeated::warn("a heartbeat", &error.to_string());
            }
            let _ = tokio::time::timeout(BEAT_EVERY, changes.changed()).await;
            tokio::time::sleep(BEAT_APART).await;
        }
    }

    fn heartbeat(&self, draining: bool) -> Heartbeat {
        let (refused, refused_why) = self.cluster.queue.refused();
        Heartbeat {
            worker: self.name.clone(),
            host: crate::host_name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            slots: u32::try_from(self.slots).unwrap_or(u32::MAX),
            draining,
            running: self.runner.doing(),
            unserved: self.serving.unserved(),
            refused,
            refused_why,
        }
    }
}

/// Checks that the store accepts writes, the broker responds, and the worker is not draining. A broker alarm is only a
/// warning: tasks taken before continue.
pub fn ready(cluster: &Cluster, drain: &CancellationToken) -> Ready {
    let (cluster, drain) = (cluster.clone(), drain.clone());
    Arc::new(move || {
        let (cluster, drain) = (cluster.clone(), drain.clone());
        Box::pin(async move {
            if drain.is_cancelled() {
                return Err("it is about to end".to_owned());
            }
            let broker = async {
                let answers = tokio::time::timeout(CHECK_TIMEOUT, cluster.queue.is_alive()).await;
                if answers == Ok(true) { Ok(()) } else { Err("the broker does not answer".to_owned()) }
            };
            let (store, broker) = tokio::join!(takes_writes(&cluster.store), broker);
            store.and(broker)?;
            let told = cluster.queue.health().outage(OutageKind::Blocked).map(|outage| outage.to_string());
            match told {
                Some(complaint) => Ok(vec![complaint]),
                // Alarms observed by other publishers.
                None => {
                    let alarm = tokio::time::timeout(CHECK_TIMEOUT, cluster.store.broker_alarm()).await;
                    Ok(alarm.ok().and_then(Result::ok).flatten().iter().map(BrokerAlarm::complaint).collect())
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
pub async fn takes_writes(store: &dyn Roster) -> Result<(), String> {
    match tokio::time::timeout(CHECK_TIMEOUT, store.check_writes()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(match error.advice() {
            Some(advice) => format!("the store takes no writes: {error}\nhint: {advice}"),
            None => format!("the store takes no writes: {error}"),
        }),
        Err(_) => Err(format!("the store did not answer within {} s", CHECK_TIMEOUT.as_secs())),
    }
}
