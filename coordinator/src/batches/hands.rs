//! In-process worker of an embedded coordinator.

use std::time::Duration;

use imgsync_common::event::Events;
use imgsync_common::registry::Client;
use imgsync_common::store::{HEARTBEAT, Heartbeat};
use imgsync_worker::copy::Copier;
use imgsync_worker::runner::{Allowed, Runner, Serving, Settings, Stop};
use imgsync_worker::traffic::Traffic;
use jiff::Timestamp;

use super::house::House;

/// Interval between heartbeats. The embedded store keeps them in memory.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// In-process worker.
pub struct Hands {
    /// Queue and store.
    pub house: House,
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
    pub traffic: Option<u64>,
    /// Receives events.
    pub events: Events,
}

impl Hands {
    /// Runs tasks until `stop` is cancelled and all running tasks have ended.
    pub async fn work(&self, stop: &Stop) {
        let serving = Serving::new(Allowed::default());
        let traffic = self.traffic.map(Traffic::new);
        let store = &*self.house.store;
        let keep = async {
            match &traffic {
                Some(traffic) => traffic.keep(store, &self.client, &serving, &self.events).await,
                None => std::future::pending().await,
            }
        };
        let note = async || {
            if let Some(traffic) = &traffic {
                traffic.note(store, &self.client, &serving, &self.events).await;
            }
        };
        note().await;
        let worker = self.runner(&serving);
        tokio::select! {
            () = worker.run(stop) => {}
            () = keep => unreachable!("it goes on until dropped"),
            () = self.beat(&worker, &serving, stop) => unreachable!("it goes on until dropped"),
        }
        note().await;
        let _ = store.leave(&self.name).await;
    }

    async fn beat(&self, worker: &Runner, serving: &Serving, stop: &Stop) {
        let started_at = Timestamp::now();
        loop {
            let heartbeat = Heartbeat {
                worker: self.name.clone(),
                host: imgsync_worker::host_name(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at,
                slots: u32::try_from(self.slots).unwrap_or(u32::MAX),
                draining: stop.drain.is_cancelled(),
                running: worker.doing(),
                unserved: serving.unserved(),
                refused: 0,
                refused_why: None,
            };
            let _ = self.house.store.beat(heartbeat, HEARTBEAT).await;
            tokio::time::sleep(BEAT_EVERY).await;
        }
    }

    fn runner(&self, serving: &Serving) -> Runner {
        let settings =
            Settings { name: self.name.clone(), slots: self.slots, attempts: self.attempts, others_may_reach: false };
        Runner::new(
            self.house.queue.clone(),
            self.house.store.clone(),
            self.house.clock.clone(),
            (self.client.clone(), self.copier.clone()),
            settings,
            serving.clone(),
            self.events.clone(),
        )
    }
}

impl std::fmt::Debug for Hands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hands({})", self.name)
    }
}
