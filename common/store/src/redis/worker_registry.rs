//! [`WorkerRegistry`] in Redis.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;

use super::{RedisStore, ScriptCall, duration_ms};
use crate::{BrokerAlarm, HEARTBEAT_TTL, Heartbeat, IdempotencyKey, ROUTE_RETENTION, RouteThroughput, WorkerRegistry};
use imgsync_model::batch::{BatchId, Route};
use imgsync_oci::error::Result;

/// Stored broker alarm: its expiry in milliseconds since 1970, and the alarm.
type StoredAlarm = (i64, BrokerAlarm);

/// Stored heartbeat: its expiry in milliseconds since 1970, and the heartbeat.
type StoredHeartbeat = (i64, Heartbeat);

/// TTL of the probe of [`WorkerRegistry::check_writes`], in milliseconds.
const WRITE_CHECK_TTL_MS: i64 = 60_000;
/// Keys of the routes with messages, and of those with urgent messages.
const ROUTE_KEYS: [&str; 2] = ["routes", "urgent_routes"];
/// TTL of the batches' throughput after the last update, in seconds.
const THROUGHPUT_TTL_SECONDS: i64 = 3600;
/// TTL of a month's traffic, in seconds: two months.
const TRAFFIC_TTL_SECONDS: i64 = 62 * 24 * 3600;

#[async_trait]
impl WorkerRegistry for RedisStore {
    async fn heartbeat(&self, heartbeat: Heartbeat, ttl: Duration) -> Result<()> {
        let operation = "sending the heartbeat of this worker";
        let until = self.now(operation).await? + duration_ms(ttl);
        let worker = heartbeat.worker.clone();
        let text = serde_json::to_string(&(until, heartbeat)).unwrap_or_default();
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg(self.worker_key(&worker)).arg(text).arg("PX").arg(duration_ms(ttl) + 1000).ignore();
        pipe.sadd(self.key("workers"), worker).ignore();
        self.query::<()>(operation, &pipe).await
    }

    async fn deregister(&self, worker: &str) -> Result<()> {
        let mut pipe = redis::pipe();
        pipe.del(self.worker_key(worker)).ignore().srem(self.key("workers"), worker).ignore();
        self.query::<()>("deregistering this worker", &pipe).await
    }

    async fn workers(&self) -> Result<Vec<Heartbeat>> {
        let operation = "listing workers";
        let mut pipe = redis::pipe();
        pipe.smembers(self.key("workers"));
        let (mut names,): (Vec<String>,) = self.query(operation, &pipe).await?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        names.sort_unstable();
        let mut pipe = redis::pipe();
        let command = pipe.cmd("MGET");
        for name in &names {
            command.arg(self.worker_key(name));
        }
        let (texts,): (Vec<Option<String>>,) = self.query(operation, &pipe).await?;
        let now = self.now(operation).await?;
        let (mut alive, mut gone) = (Vec::new(), redis::pipe());
        for (name, text) in names.iter().zip(texts) {
            match text.map(|text| serde_json::from_str::<StoredHeartbeat>(&text)) {
                Some(Ok((until, heartbeat))) if until > now => alive.push(heartbeat),
                // Written by a newer program in a format unknown here.
                Some(Err(_)) => {}
                Some(Ok(_)) | None => _ = gone.srem(self.key("workers"), name).ignore(),
            }
        }
        if !gone.is_empty() {
            self.query::<()>(operation, &gone).await?;
        }
        Ok(alive)
    }

    async fn record_queues(&self, routes: &[Route], urgent: &[Route]) -> Result<()> {
        let operation = "recording routes";
        let now = self.now(operation).await?;
        let mut pipe = redis::pipe();
        for (key, routes) in ROUTE_KEYS.iter().zip([routes, urgent]) {
            let key = self.key(key);
            for route in routes {
                let text = serde_json::to_string(route).unwrap_or_default();
                pipe.zadd(&key, text, now + duration_ms(ROUTE_RETENTION)).ignore();
            }
            pipe.cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(now).ignore();
        }
        self.query::<()>(operation, &pipe).await
    }

    async fn queues_by_age(&self) -> Result<Vec<(Route, bool, Duration)>> {
        let mut pipe = redis::pipe();
        pipe.cmd("TIME");
        for key in ROUTE_KEYS {
            pipe.zrange_withscores(self.key(key), 0, -1);
        }
        let ((seconds, micros), routes, urgent): ((i64, i64), Vec<(String, f64)>, Vec<(String, f64)>) =
            self.query("listing routes", &pipe).await?;
        let now = self.clock_override_ms().unwrap_or(seconds * 1000 + micros / 1000);
        // The score is the expiry.
        let age = |until: f64| {
            Duration::from_millis((now + duration_ms(ROUTE_RETENTION) - until as i64).max(0).unsigned_abs())
        };
        let kinds = routes.iter().map(|entry| (entry, false)).chain(urgent.iter().map(|entry| (entry, true)));
        let read = |((text, until), is_urgent): (&(String, f64), bool)| {
            Some((serde_json::from_str(text).ok()?, is_urgent, age(*until)))
        };
        let mut queues: Vec<(Route, bool, Duration)> = kinds.filter_map(read).collect();
        queues.sort_unstable();
        Ok(queues)
    }

    async fn exchange_throughput(
        &self,
        batch: BatchId,
        throughput: Vec<RouteThroughput>,
        ttl: Duration,
    ) -> Result<Vec<RouteThroughput>> {
        let operation = "exchanging the throughput of batches";
        let key = self.key("throughput");
        let mut pipe = redis::pipe();
        pipe.cmd("TIME").hgetall(&key);
        let ((seconds, micros), found): ((i64, i64), HashMap<String, String>) = self.query(operation, &pipe).await?;
        let now = self.clock_override_ms().unwrap_or(seconds * 1000 + micros / 1000);
        let (mut others, mut pipe) = (Vec::new(), redis::pipe());
        for (other, text) in found {
            match serde_json::from_str::<(i64, Vec<RouteThroughput>)>(&text) {
                Ok((until, throughput)) if until > now && until <= now + duration_ms(HEARTBEAT_TTL) => {
                    if other != batch.to_string() {
                        others.extend(throughput);
                    }
                }
                // Written by a newer program in a format unknown here.
                Err(_) => {}
                Ok(_) => _ = pipe.hdel(&key, other).ignore(),
            }
        }
        match throughput.is_empty() {
            true => pipe.hdel(&key, batch.to_string()).ignore(),
            false => {
                let text = serde_json::to_string(&(now + duration_ms(ttl), throughput)).unwrap_or_default();
                pipe.hset(&key, batch.to_string(), text).ignore().expire(&key, THROUGHPUT_TTL_SECONDS).ignore()
            }
        };
        self.query::<()>(operation, &pipe).await?;
        Ok(others)
    }

    async fn set_broker_alarm(&self, alarm: Option<BrokerAlarm>, ttl: Duration) -> Result<()> {
        let (operation, key) = ("recording the broker's alarm", self.key("broker_alarm"));
        let mut pipe = redis::pipe();
        match alarm {
            Some(alarm) => {
                let until = self.now(operation).await? + duration_ms(ttl);
                let text = serde_json::to_string(&(until, alarm)).unwrap_or_default();
                pipe.cmd("SET").arg(key).arg(text).arg("PX").arg(duration_ms(ttl) + 1000).ignore();
            }
            None => _ = pipe.del(key).ignore(),
        }
        self.query::<()>(operation, &pipe).await
    }

    async fn broker_alarm(&self) -> Result<Option<BrokerAlarm>> {
        let operation = "reading the broker's alarm";
        let mut pipe = redis::pipe();
        pipe.get(self.key("broker_alarm"));
        let (text,): (Option<String>,) = self.query(operation, &pipe).await?;
        // Ignore one written by a newer program in another format.
        let Some((until, alarm)) = text.and_then(|text| serde_json::from_str::<StoredAlarm>(&text).ok()) else {
            return Ok(None);
        };
        Ok((until > self.now(operation).await?).then_some(alarm))
    }

    async fn check_writes(&self) -> Result<()> {
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg(self.key("write_check")).arg(1).arg("PX").arg(WRITE_CHECK_TTL_MS).ignore();
        self.query_once(&format!("writing to the store {}", self.0.name), &pipe).await
    }

    async fn add_traffic(&self, machine: &str, month: &str, bytes: u64, request: IdempotencyKey) -> Result<u64> {
        let call = ScriptCall::new(self.key(&format!("traffic:{machine}:{month}"))).key(self.request_key(request));
        let call = call.arg(bytes).arg(TRAFFIC_TTL_SECONDS);
        self.run_script("adding to the traffic of this machine", &self.0.scripts.add_traffic, call).await
    }
}

impl RedisStore {
    fn worker_key(&self, name: &str) -> String {
        self.key(&format!("worker:{name}"))
    }
}
