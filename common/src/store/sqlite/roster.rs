//! [`Roster`] beside SQLite: one process runs tasks with this store, so what it says of itself is kept in its memory;
//! its traffic is in the file.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;

use super::SqliteStore;
use super::rows::after;
use crate::batch::Lane;
use crate::error::Result;
use crate::store::{Heartbeat, LANE_KEPT, Roster};

/// Times are in milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Present {
    workers: BTreeMap<String, (i64, Heartbeat)>,
    lanes: BTreeMap<Lane, i64>,
}

impl SqliteStore {
    fn present(&self) -> std::sync::MutexGuard<'_, Present> {
        self.0.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Roster for SqliteStore {
    async fn beat(&self, heartbeat: Heartbeat, holds: Duration) -> Result<()> {
        let until = after(self.now(), holds);
        self.present().workers.insert(heartbeat.worker.clone(), (until, heartbeat));
        Ok(())
    }

    async fn leave(&self, worker: &str) -> Result<()> {
        self.present().workers.remove(worker);
        Ok(())
    }

    async fn workers(&self) -> Result<Vec<Heartbeat>> {
        let now = self.now();
        let mut present = self.present();
        present.workers.retain(|_, (until, _)| *until > now);
        Ok(present.workers.values().map(|(_, heartbeat)| heartbeat.clone()).collect())
    }

    async fn note_lanes(&self, lanes: &[Lane]) -> Result<()> {
        let until = after(self.now(), LANE_KEPT);
        self.present().lanes.extend(lanes.iter().map(|lane| (lane.clone(), until)));
        Ok(())
    }

    async fn lanes_by_age(&self) -> Result<Vec<(Lane, Duration)>> {
        let now = self.now();
        let mut present = self.present();
        present.lanes.retain(|_, until| *until > now);
        let age = |until: &i64| Duration::from_millis((after(now, LANE_KEPT) - until).max(0).unsigned_abs());
        Ok(present.lanes.iter().map(|(lane, until)| (lane.clone(), age(until))).collect())
    }

    async fn note_traffic(&self, machine: &str, month: &str, bytes: u64) -> Result<u64> {
        let (machine, month) = (machine.to_owned(), month.to_owned());
        self.write("noting the traffic of this machine".to_owned(), move |connection| {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX / 4);
            let sql = "INSERT INTO traffic (machine, month, bytes) VALUES (?1, ?2, ?3)
                       ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes RETURNING bytes";
            let moved: i64 = connection.prepare_cached(sql)?.query_row((machine, month, bytes), |row| row.get(0))?;
            Ok(moved.unsigned_abs())
        })
        .await
    }
}
