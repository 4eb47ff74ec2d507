//! Live workers, their running tasks, and known routes. See [`WorkerRegistry`].

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::IdempotencyKey;
use imgsync_model::batch::{BatchId, Priority, Route};
use imgsync_oci::error::Result;

/// TTL of a heartbeat. Send one three times per TTL.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(30);
/// How long a route is remembered after its last published message.
pub const ROUTE_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A worker's report about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Worker name, unique to one process.
    pub worker: String,
    /// Host name.
    pub host: String,
    /// Program version.
    pub version: String,
    /// When the process started.
    pub started_at: Timestamp,
    /// Hash of the part of its configuration that workers use (`Config::worker_hash`); `None` without a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<String>,
    /// Maximum number of concurrent tasks.
    pub slots: u32,
    /// Whether it drains: it takes no more tasks, and exits when the running ones have ended.
    #[serde(default)]
    pub draining: bool,
    /// Running tasks.
    #[serde(default)]
    pub running: Vec<RunningTask>,
    /// Routes that it does not serve, and why.
    #[serde(default)]
    pub unserved: Vec<UnservedRoute>,
    /// Number of messages rejected: signed with another key, or not decodable.
    #[serde(default)]
    pub refused: u64,
    /// Reason of the last rejection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal_reason: Option<String>,
    /// Nodes of the broker to which it is connected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broker_nodes: Vec<String>,
    /// The master of the store that it uses, if Sentinels name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_master: Option<String>,
}

/// A task running on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// Batch id.
    pub batch: BatchId,
    /// Task index in the batch.
    pub index: u32,
    /// The source tag.
    pub source: String,
    /// The target tag.
    pub target: String,
    /// When it started.
    pub since: Timestamp,
}

/// A route that a worker does not serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnservedRoute {
    /// The route.
    pub route: Route,
    /// Reason, safe to print.
    pub reason: String,
}

/// A broker alarm: RabbitMQ accepts no messages because it is short of memory or disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerAlarm {
    /// Reason as the broker gives it, safe to print.
    pub reason: String,
    /// When it began, by the clock of the process that was notified.
    pub since: Timestamp,
}

/// Hint for a [`BrokerAlarm`].
pub const BROKER_ALARM_HINT: &str = "`rabbitmq-diagnostics alarms` names the nodes that are short of memory or disk: \
                                     give them more; publishing then resumes by itself";

impl BrokerAlarm {
    /// Returns the alarm as a message with a hint.
    pub fn describe(&self) -> String {
        let since = self.since.strftime("%Y-%m-%d %H:%M:%S UTC");
        format!("the broker has accepted no messages since {since}: {} ({BROKER_ALARM_HINT})", self.reason)
    }
}

/// Throughput of a batch on one route at one priority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteThroughput {
    /// The route.
    pub route: Route,
    /// Priority of its tasks.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// Tasks of the batch that pass the route per second.
    pub per_second: f64,
}

/// Registry of live workers, and of routes that have or had messages.
///
/// # Contract
/// A heartbeat expires unless it is renewed within its TTL. A route is remembered for at least [`ROUTE_RETENTION`]
/// after it was last recorded. A broker alarm expires like a heartbeat. All times are those of the store's clock.
#[async_trait]
pub trait WorkerRegistry: Send + Sync {
    /// Records a heartbeat that expires after this time. The last heartbeat of a worker wins.
    async fn heartbeat(&self, heartbeat: Heartbeat, ttl: Duration) -> Result<()>;

    /// Removes a worker that has ended.
    async fn deregister(&self, worker: &str) -> Result<()>;

    /// Returns the live workers by name.
    async fn workers(&self) -> Result<Vec<Heartbeat>>;

    /// Records that messages are published on these routes.
    async fn record_routes(&self, routes: &[Route]) -> Result<()> {
        self.record_queues(routes, &[]).await
    }

    /// Records routes with messages, and routes with urgent messages: each route has one queue per kind.
    async fn record_queues(&self, routes: &[Route], urgent: &[Route]) -> Result<()>;

    /// Publishes the throughput of a batch for this time, and returns that of the other batches.
    async fn exchange_throughput(
        &self,
        batch: BatchId,
        throughput: Vec<RouteThroughput>,
        ttl: Duration,
    ) -> Result<Vec<RouteThroughput>>;

    /// Returns the known routes in order.
    async fn routes(&self) -> Result<Vec<Route>> {
        Ok(self.routes_by_age().await?.into_iter().map(|(route, _)| route).collect())
    }

    /// Returns the known routes with the time since they were last recorded, rounded down.
    async fn routes_by_age(&self) -> Result<Vec<(Route, Duration)>> {
        let mut routes: BTreeMap<Route, Duration> = BTreeMap::new();
        for (route, _, age) in self.queues_by_age().await? {
            routes.entry(route).and_modify(|its| *its = age.min(*its)).or_insert(age);
        }
        Ok(routes.into_iter().collect())
    }

    /// Returns the queues of known routes in order, with whether a queue is urgent and the time since it was last
    /// recorded.
    async fn queues_by_age(&self) -> Result<Vec<(Route, bool, Duration)>>;

    /// Sets the broker alarm, which expires after this time unless it is set again; `None` clears it.
    async fn set_broker_alarm(&self, alarm: Option<BrokerAlarm>, ttl: Duration) -> Result<()>;

    /// Returns the broker alarm, if any publishing process has set one.
    async fn broker_alarm(&self) -> Result<Option<BrokerAlarm>>;

    /// Writes a probe once, without retries. The error says why the store accepts no writes.
    async fn check_writes(&self) -> Result<()>;

    /// Adds bytes to the traffic of a machine in a month (`2026-11`), and returns the sum of that month. A failed call
    /// may have taken effect; repeated with the same request id, it counts once.
    async fn add_traffic(&self, machine: &str, month: &str, bytes: u64, request: IdempotencyKey) -> Result<u64>;
}
