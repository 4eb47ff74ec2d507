//! Who works, on what, and which lanes there are. See [`Roster`].

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::RequestId;
use crate::batch::{BatchId, Lane, Priority};
use crate::error::Result;

/// How long a heartbeat holds. Beat three times as often.
pub const HEARTBEAT: Duration = Duration::from_secs(30);
/// How long a lane is remembered after messages were last published in it.
pub const LANE_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Its name, of this process alone.
    pub worker: String,
    /// The machine that it runs on.
    pub host: String,
    /// The program's version.
    pub version: String,
    /// When it was started.
    pub started_at: Timestamp,
    /// Tasks at once.
    pub slots: u32,
    /// Whether it takes no more, and ends when what runs has ended.
    #[serde(default)]
    pub draining: bool,
    /// What it is doing.
    #[serde(default)]
    pub running: Vec<Doing>,
    /// Lanes that it leaves alone, and why.
    #[serde(default)]
    pub unserved: Vec<Unserved>,
    /// Messages that it refused: not signed with its key, or not to be understood.
    #[serde(default)]
    pub refused: u64,
    /// Why it refused the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_why: Option<String>,
}

/// A task that a worker is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doing {
    /// Of which batch.
    pub batch: BatchId,
    /// Its index there.
    pub index: u32,
    /// The source tag.
    pub source: String,
    /// The target tag.
    pub target: String,
    /// Since when.
    pub since: Timestamp,
}

/// A lane that a worker leaves alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unserved {
    /// Which.
    pub lane: Lane,
    /// Why, in words, safe to print.
    pub reason: String,
}

/// The broker takes no messages, and why it says so: it is short of memory or disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerAlarm {
    /// In the broker's words, safe to print.
    pub reason: String,
    /// Since when, by the clock of the process that was told.
    pub since: Timestamp,
}

/// What to do about a [`BrokerAlarm`].
pub const BROKER_ALARM_HINT: &str = "`rabbitmq-diagnostics alarms` names the nodes that are short of memory or disk: give \
                                     them more; publishing goes on by itself then";

impl BrokerAlarm {
    /// Returns the alarm in words, with what to do.
    pub fn complaint(&self) -> String {
        let since = self.since.strftime("%Y-%m-%d %H:%M:%S UTC");
        format!("the broker has taken no messages since {since}: {} ({BROKER_ALARM_HINT})", self.reason)
    }
}

/// What a batch feeds: a lane, with a priority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feeding {
    /// The lane.
    pub lane: Lane,
    /// How urgent its tasks are.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// How many of its tasks go through there in a second.
    pub per_second: f64,
}

/// Knows the living workers, and the lanes that have, or had, messages.
///
/// # Contract
/// A heartbeat is forgotten when it has not been renewed for as long as it was to hold. A lane is remembered for
/// [`LANE_KEPT`] after it was last noted, and may be for longer. An alarm of the broker is forgotten like a heartbeat. By the
/// store's clock.
#[async_trait]
pub trait Roster: Send + Sync {
    /// A worker lives, and will say so again before this time is over. The last word stays.
    async fn beat(&self, heartbeat: Heartbeat, holds: Duration) -> Result<()>;

    /// A worker has ended.
    async fn leave(&self, worker: &str) -> Result<()>;

    /// The living workers, by name.
    async fn workers(&self) -> Result<Vec<Heartbeat>>;

    /// Messages are published in these lanes.
    async fn note_lanes(&self, lanes: &[Lane]) -> Result<()> {
        self.note_queues(lanes, &[]).await
    }

    /// Messages are published in these lanes, and urgent ones in those: each has a queue for either.
    async fn note_queues(&self, lanes: &[Lane], urgent: &[Lane]) -> Result<()>;

    /// Says what a batch feeds, for so long, and returns what others do.
    async fn feed_beside(&self, batch: BatchId, feeding: Vec<Feeding>, holds: Duration) -> Result<Vec<Feeding>>;

    /// The lanes that there are, in order.
    async fn lanes(&self) -> Result<Vec<Lane>> {
        Ok(self.lanes_by_age().await?.into_iter().map(|(lane, _)| lane).collect())
    }

    /// The same, each with how long ago it was last noted, or a shorter time.
    async fn lanes_by_age(&self) -> Result<Vec<(Lane, Duration)>> {
        let mut lanes: BTreeMap<Lane, Duration> = BTreeMap::new();
        for (lane, _, age) in self.queues_by_age().await? {
            lanes.entry(lane).and_modify(|its| *its = age.min(*its)).or_insert(age);
        }
        Ok(lanes.into_iter().collect())
    }

    /// The queues of lanes, in order, with whether it is the one for what is urgent, and how long ago it was last noted.
    async fn queues_by_age(&self) -> Result<Vec<(Lane, bool, Duration)>>;

    /// The broker takes no messages, which holds for so long unless it is noted again; none: it takes messages.
    async fn note_broker_alarm(&self, alarm: Option<BrokerAlarm>, holds: Duration) -> Result<()>;

    /// Why the broker takes no messages, as far as any process that publishes has noted it.
    async fn broker_alarm(&self) -> Result<Option<BrokerAlarm>>;

    /// Writes a mark that nobody reads, once and without patience: an error says why the store takes no writes.
    async fn check_writes(&self) -> Result<()>;

    /// A machine has moved so many bytes more in a month (`2026-11`). Returns how many it has moved in that month by now.
    /// A call that failed may have been done: made again with the same request, it counts once.
    async fn note_traffic(&self, machine: &str, month: &str, bytes: u64, request: RequestId) -> Result<u64>;
}
