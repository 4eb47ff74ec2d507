//! In-process worker of an embedded coordinator.

use std::time::Duration;

use imgsync_registry::Client;
use imgsync_store::{HEARTBEAT_TTL, Heartbeat};
use imgsync_worker::copy::Copier;
use imgsync_worker::monthly_quota::MonthlyQuota;
use imgsync_worker::runner::{ArchiveTargets, RouteSelector, Runner, RunnerSettings, Shutdown, WorkerScope};
use imgsync_worker::task_events::TaskEvents;
use jiff::Timestamp;

use super::backend::Backend;

/// Interval between heartbeats. The embedded store keeps them in memory.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Slot count from which a worker compares as many tags again as it copies images. Who sets fewer wants few requests at
/// a time.
const MIN_SLOTS_TO_COMPARE_AHEAD: usize = 4;

/// In-process worker.
pub struct LocalWorker {
    /// Queue and store.
    pub backend: Backend,
    /// Registry client.
    pub client: Client,
    /// Copies images.
    pub copier: Copier,
    /// Worker name, unique among processes.
    pub name: String,
    /// Maximum number of concurrent tasks.
    pub slots: usize,
    /// Maximum attempts of a task that fails with a transient error.
    pub attempts: u32,
    /// Monthly quota of this machine, in bytes.
    pub monthly_quota: Option<u64>,
    /// Receives events.
    pub events: TaskEvents,
    /// Archives that tasks collect images for, if this process writes any.
    pub archives: Option<ArchiveTargets>,
}

impl LocalWorker {
    /// Runs tasks until `stop` is cancelled and all running tasks have ended.
    pub async fn run(&self, stop: &Shutdown) {
        let serving = RouteSelector::new(WorkerScope::default());
        let traffic = self.monthly_quota.map(MonthlyQuota::new);
        let store = &*self.backend.store;
        let refresh_quota = async {
            match &traffic {
                Some(traffic) => traffic.enforce_loop(store, &self.client, &serving, &self.events).await,
                None => std::future::pending().await,
            }
        };
        let record_quota = async || {
            if let Some(traffic) = &traffic {
                traffic.report_usage(store, &self.client, &serving, &self.events).await;
            }
        };
        record_quota().await;
        let worker = self.runner(&serving);
        tokio::select! {
            () = worker.run(stop) => {}
            () = refresh_quota => unreachable!("it goes on until dropped"),
            () = self.send_heartbeats(&worker, &serving, stop) => unreachable!("it goes on until dropped"),
        }
        record_quota().await;
        let _ = store.deregister(&self.name).await;
    }

    async fn send_heartbeats(&self, worker: &Runner, serving: &RouteSelector, stop: &Shutdown) {
        let started_at = Timestamp::now();
        loop {
            let heartbeat = Heartbeat {
                worker: self.name.clone(),
                host: imgsync_worker::host_name(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at,
                config_hash: None,
                slots: u32::try_from(self.slots).unwrap_or(u32::MAX),
                draining: stop.drain.is_cancelled(),
                running: worker.running_tasks(),
                unserved: serving.unserved_routes(),
                refused: 0,
                refusal_reason: None,
                broker_nodes: Vec::new(),
                store_master: None,
            };
            let _ = self.backend.store.heartbeat(heartbeat, HEARTBEAT_TTL).await;
            tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        }
    }

    fn runner(&self, serving: &RouteSelector) -> Runner {
        let settings = RunnerSettings {
            name: self.name.clone(),
            slots: self.slots,
            compared_ahead: if self.slots < MIN_SLOTS_TO_COMPARE_AHEAD { 0 } else { self.slots },
            max_attempts: self.attempts,
            in_cluster: false,
        };
        let runner = Runner::new(
            self.backend.queue.clone(),
            self.backend.store.clone(),
            self.backend.clock.clone(),
            (self.client.clone(), self.copier.clone()),
            settings,
            serving.clone(),
            self.events.clone(),
        );
        match &self.archives {
            Some(archives) => runner.with_archives(archives.clone()),
            None => runner,
        }
    }
}

impl std::fmt::Debug for LocalWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalWorker({})", self.name)
    }
}
