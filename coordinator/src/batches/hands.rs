//! The one worker where all is done in this process.

use std::time::Duration;

use imgsync_common::event::Events;
use imgsync_common::registry::Client;
use imgsync_common::store::{HEARTBEAT, Heartbeat};
use imgsync_worker::copy::Copier;
use imgsync_worker::runner::{Allowed, Runner, Serving, Settings, Stop};
use imgsync_worker::traffic::Traffic;
use jiff::Timestamp;

use super::house::House;

/// How often it says what it does. The store of one process keeps that in memory.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// A worker beside its coordinator.
pub struct Hands {
    /// Queue and store.
    pub house: House,
    /// Registries.
    pub client: Client,
    /// Copies.
    pub copier: Copier,
    /// Of this one alone.
    pub name: String,
    /// Tasks at a time.
    pub slots: usize,
    /// Tries of a task that fails in passing.
    pub attempts: u32,
    /// Bytes that this machine may move in a month.
    pub traffic: Option<u64>,
    /// Who is told.
    pub events: Events,
}

impl Hands {
    /// Works until told to stop. Returns when nothing runs any more.
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
