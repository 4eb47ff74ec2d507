//! [`WorkerRegistry`] beside SQLite: only one process runs tasks with this store, so the registry is in memory; the
//! traffic of the machine is in the file.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;

use super::SqliteStore;
use super::rows::deadline_ms;
use crate::{BrokerAlarm, Heartbeat, IdempotencyKey, ROUTE_RETENTION, RouteThroughput, WorkerRegistry};
use imgsync_model::batch::{BatchId, Route};
use imgsync_oci::error::Result;

/// Times are in milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct WorkerPresence {
    workers: BTreeMap<String, (i64, Heartbeat)>,
    queues: BTreeMap<(Route, bool), i64>,
    throughput: BTreeMap<BatchId, (i64, Vec<RouteThroughput>)>,
    alarm: Option<(i64, BrokerAlarm)>,
}

impl SqliteStore {
    fn presence(&self) -> std::sync::MutexGuard<'_, WorkerPresence> {
        self.0.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl WorkerRegistry for SqliteStore {
    async fn heartbeat(&self, heartbeat: Heartbeat, ttl: Duration) -> Result<()> {
        let until = deadline_ms(self.now(), ttl);
        self.presence().workers.insert(heartbeat.worker.clone(), (until, heartbeat));
        Ok(())
    }

    async fn deregister(&self, worker: &str) -> Result<()> {
        self.presence().workers.remove(worker);
        Ok(())
    }

    async fn workers(&self) -> Result<Vec<Heartbeat>> {
        let now = self.now();
        let mut present = self.presence();
        present.workers.retain(|_, (until, _)| *until > now);
        Ok(present.workers.values().map(|(_, heartbeat)| heartbeat.clone()).collect())
    }

    async fn record_queues(&self, routes: &[Route], urgent: &[Route]) -> Result<()> {
        let until = deadline_ms(self.now(), ROUTE_RETENTION);
        let kinds = routes.iter().map(|route| (route, false)).chain(urgent.iter().map(|route| (route, true)));
        self.presence().queues.extend(kinds.map(|(route, is_urgent)| ((route.clone(), is_urgent), until)));
        Ok(())
    }

    async fn queues_by_age(&self) -> Result<Vec<(Route, bool, Duration)>> {
        let now = self.now();
        let mut present = self.presence();
        present.queues.retain(|_, until| *until > now);
        let age =
            |until: &i64| Duration::from_millis((deadline_ms(now, ROUTE_RETENTION) - until).max(0).unsigned_abs());
        Ok(present.queues.iter().map(|((route, is_urgent), until)| (route.clone(), *is_urgent, age(until))).collect())
    }

    async fn exchange_throughput(
        &self,
        batch: BatchId,
        throughput: Vec<RouteThroughput>,
        ttl: Duration,
    ) -> Result<Vec<RouteThroughput>> {
        let now = self.now();
        let mut present = self.presence();
        present.throughput.retain(|other, (until, _)| *until > now && *other != batch);
        let others = present.throughput.values().flat_map(|(_, throughput)| throughput.clone()).collect();
        if !throughput.is_empty() {
            present.throughput.insert(batch, (deadline_ms(now, ttl), throughput));
        }
        Ok(others)
    }

    async fn set_broker_alarm(&self, alarm: Option<BrokerAlarm>, ttl: Duration) -> Result<()> {
        let until = deadline_ms(self.now(), ttl);
        self.presence().alarm = alarm.map(|alarm| (until, alarm));
        Ok(())
    }

    async fn broker_alarm(&self) -> Result<Option<BrokerAlarm>> {
        let now = self.now();
        Ok(self.presence().alarm.clone().filter(|(until, _)| *until > now).map(|(_, alarm)| alarm))
    }

    async fn check_writes(&self) -> Result<()> {
        self.write(format!("writing to the store {}", self.0.name), |connection| {
            let sql = "INSERT INTO counter (name, value) VALUES ('write checks', 1)
                       ON CONFLICT DO UPDATE SET value = value + 1";
            connection.prepare_cached(sql)?.execute([])?;
            Ok(())
        })
        .await
    }

    async fn add_traffic(&self, machine: &str, month: &str, bytes: u64, _: IdempotencyKey) -> Result<u64> {
        // Writes are atomic: a failed call took no effect, so there is no request id to keep.
        let (machine, month) = (machine.to_owned(), month.to_owned());
        self.write("adding to the traffic of this machine".to_owned(), move |connection| {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX / 4);
            let sql = "INSERT INTO traffic (machine, month, bytes) VALUES (?1, ?2, ?3)
                       ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes RETURNING bytes";
            let moved: i64 = connection.prepare_cached(sql)?.query_row((machine, month, bytes), |row| row.get(0))?;
            Ok(moved.unsigned_abs())
        })
        .await
    }
}
