//! [`Roster`] in Redis.

use std::time::Duration;

use async_trait::async_trait;

use super::{RedisStore, millis};
use crate::batch::Lane;
use crate::error::Result;
use crate::store::{Heartbeat, LANE_KEPT, Roster};

/// What is kept of a heartbeat: until when it holds, in milliseconds since 1970, and the heartbeat.
type Kept = (i64, Heartbeat);

/// A month's traffic is kept for two months, in seconds.
const TRAFFIC_KEPT: i64 = 62 * 24 * 3600;

#[async_trait]
impl Roster for RedisStore {
    async fn beat(&self, heartbeat: Heartbeat, holds: Duration) -> Result<()> {
        let tried = "saying that this worker lives";
        let until = self.now(tried).await? + millis(holds);
        let worker = heartbeat.worker.clone();
        let text = serde_json::to_string(&(until, heartbeat)).unwrap_or_default();
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg(self.worker(&worker)).arg(text).arg("PX").arg(millis(holds) + 1000).ignore();
        pipe.sadd(self.key("workers"), worker).ignore();
        self.query::<()>(tried, &pipe).await
    }

    async fn leave(&self, worker: &str) -> Result<()> {
        let mut pipe = redis::pipe();
        pipe.del(self.worker(worker)).ignore().srem(self.key("workers"), worker).ignore();
        self.query::<()>("saying that this worker has ended", &pipe).await
    }

    async fn workers(&self) -> Result<Vec<Heartbeat>> {
        let tried = "looking for workers";
        let mut pipe = redis::pipe();
        pipe.smembers(self.key("workers"));
        let (mut names,): (Vec<String>,) = self.query(tried, &pipe).await?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        names.sort_unstable();
        let mut pipe = redis::pipe();
        let command = pipe.cmd("MGET");
        for name in &names {
            command.arg(self.worker(name));
        }
        let (texts,): (Vec<Option<String>>,) = self.query(tried, &pipe).await?;
        let now = self.now(tried).await?;
        let (mut living, mut gone) = (Vec::new(), redis::pipe());
        for (name, text) in names.iter().zip(texts) {
            match text.map(|text| serde_json::from_str::<Kept>(&text)) {
                Some(Ok((until, heartbeat))) if until > now => living.push(heartbeat),
                // A newer program's, which this one cannot read.
                Some(Err(_)) => {}
                Some(Ok(_)) | None => _ = gone.srem(self.key("workers"), name).ignore(),
            }
        }
        if !gone.is_empty() {
            self.query::<()>(tried, &gone).await?;
        }
        Ok(living)
    }

    async fn note_lanes(&self, lanes: &[Lane]) -> Result<()> {
        let tried = "noting lanes";
        if lanes.is_empty() {
            return Ok(());
        }
        let now = self.now(tried).await?;
        let key = self.key("lanes");
        let mut pipe = redis::pipe();
        for lane in lanes {
            let text = serde_json::to_string(lane).unwrap_or_default();
            pipe.zadd(&key, text, now + millis(LANE_KEPT)).ignore();
        }
        pipe.cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(now).ignore();
        self.query::<()>(tried, &pipe).await
    }

    async fn lanes_by_age(&self) -> Result<Vec<(Lane, Duration)>> {
        let mut pipe = redis::pipe();
        pipe.cmd("TIME").zrange_withscores(self.key("lanes"), 0, -1);
        let ((seconds, micros), texts): ((i64, i64), Vec<(String, f64)>) =
            self.query("reading the lanes", &pipe).await?;
        let now = self.own_time().unwrap_or(seconds * 1000 + micros / 1000);
        // Kept by when they are to be forgotten.
        let age = |until: f64| Duration::from_millis((now + millis(LANE_KEPT) - until as i64).max(0).unsigned_abs());
        let read = |(text, until): &(String, f64)| Some((serde_json::from_str(text).ok()?, age(*until)));
        let mut lanes: Vec<(Lane, Duration)> = texts.iter().filter_map(read).collect();
        lanes.sort_unstable();
        Ok(lanes)
    }

    async fn note_traffic(&self, machine: &str, month: &str, bytes: u64) -> Result<u64> {
        let key = self.key(&format!("tr:{machine}:{month}"));
        let mut pipe = redis::pipe();
        pipe.incr(&key, bytes).expire(&key, TRAFFIC_KEPT).ignore();
        let (moved,): (u64,) = self.query("noting the traffic of this machine", &pipe).await?;
        Ok(moved)
    }
}

impl RedisStore {
    fn worker(&self, name: &str) -> String {
        self.key(&format!("w:{name}"))
    }
}
