//! [`Schedules`] in SQLite.

use async_trait::async_trait;

use super::SqliteStore;
use super::rows::{timestamp, to_sql_integer};
use crate::{LastRun, Schedules};
use imgsync_model::batch::BatchId;
use imgsync_oci::error::Result;

#[async_trait]
impl Schedules for SqliteStore {
    async fn record_schedule_run(&self, name: &str, last_run: LastRun) -> Result<()> {
        let (name, at) = (name.to_owned(), last_run.at.as_millisecond());
        let skipped = to_sql_integer(last_run.skipped);
        self.write("recording the last run of a schedule", move |connection| {
            connection
                .prepare_cached("REPLACE INTO schedule (name, last_run_at, batch, skipped) VALUES (?1, ?2, ?3, ?4)")?
                .execute((name, at, last_run.batch.map(|batch| batch.as_bytes().to_vec()), skipped))?;
            Ok(())
        })
        .await
    }

    async fn schedule_runs(&self) -> Result<Vec<(String, LastRun)>> {
        self.read("reading the last runs of schedules", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT name, last_run_at, batch, skipped FROM schedule ORDER BY name")?;
            let rows = statement.query_map([], |row| {
                let batch = row.get::<_, Option<[u8; 16]>>(2)?.map(BatchId::from_bytes);
                let skipped = u64::try_from(row.get::<_, i64>(3)?).unwrap_or_default();
                Ok((row.get(0)?, LastRun { at: timestamp(row.get(1)?), batch, skipped }))
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}
