//! [`Schedules`] in Redis: a hash from schedule name to the time in milliseconds since 1970, the batch, and the number of
//! skipped runs.

use async_trait::async_trait;

use super::{RedisStore, timestamp};
use crate::{LastRun, Schedules};
use imgsync_oci::error::Result;

#[async_trait]
impl Schedules for RedisStore {
    async fn record_schedule_run(&self, name: &str, last_run: LastRun) -> Result<()> {
        let batch = last_run.batch.map(|batch| batch.to_string()).unwrap_or_default();
        let mut pipe = redis::pipe();
        pipe.hset(
            self.key("schedules"),
            name,
            format!("{} {batch} {}", last_run.at.as_millisecond(), last_run.skipped),
        )
        .ignore();
        self.query::<()>("recording the last run of a schedule", &pipe).await
    }

    async fn schedule_runs(&self) -> Result<Vec<(String, LastRun)>> {
        let mut pipe = redis::pipe();
        pipe.hgetall(self.key("schedules"));
        let (texts,): (Vec<(String, String)>,) = self.query("reading the last runs of schedules", &pipe).await?;
        let read = |(name, text): (String, String)| {
            let mut fields = text.split(' ');
            // An unreadable entry counts as never started.
            let at = timestamp(fields.next()?.parse().ok()?);
            let batch = fields.next()?.parse().ok();
            let skipped = fields.next().and_then(|skipped| skipped.parse().ok()).unwrap_or_default();
            Some((name, LastRun { at, batch, skipped }))
        };
        let mut known: Vec<(String, LastRun)> = texts.into_iter().filter_map(read).collect();
        known.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(known)
    }
}
