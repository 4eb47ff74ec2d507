//! The queue of a cluster: RabbitMQ (3.10 and later).
//!
//! A quorum queue for each lane, another beside it for what is urgent, once there was something, four for messages that wait, one for those that the broker gave up on, one for those that
//! were refused. All are declared by whoever needs them; their arguments never change, for a broker refuses to declare a
//! queue again with others.
//!
//! Two connections: one publishes, one takes and acknowledges, for a broker that runs out of memory stops connections that
//! publish. Whatever breaks, a connection, a channel, a queue, is made anew by the next call that needs it.

mod alarm;
mod line;
mod publish;
mod stream;
mod take;
mod topology;

pub(crate) use topology::{KEPT, KEPT_BYTES};

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use rand::Rng as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::line::Line;
use super::{Dead, Delivery, Lanes, Published, RETRY_DELAYS, TaskQueue};
use crate::batch::{Lane, Message, SigningKey};
use crate::config::SecretUrl;
use crate::error::{Class, Error, Result};
use crate::outage::ServerHealth;
use crate::store::Roster;

/// How long the lanes that the roster has are good for.
const LANES_HOLD: Duration = Duration::from_secs(1);
/// How long a broker may take to confirm.
const CONFIRM: Duration = Duration::from_secs(30);
/// How long a queue that fails is left alone: at first, and at the most.
const RESTS: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(5 * 60)];
/// The same for a queue whose leader moves: each question closes the connection meanwhile, and it is over in a second.
const LEADER_RESTS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// How often a look at all queues connects anew before it gives up.
const RECONNECTS: usize = 2;
/// How long a taker that is told to stop waits for the broker's answer.
const STOPS: Duration = Duration::from_secs(2);
/// How long a queue in which nothing waits is not asked again: at first, and at the most.
const IDLE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// The same at the most, where nothing was published for some time. Many workers that ask about many lanes of which few
/// have anything would keep the broker busy with that alone.
const QUIET_IDLE: Duration = Duration::from_secs(10);
/// How long after something was published a lane may have more soon: what waits to be tried again is not told of.
const LIVELY: Duration = Duration::from_secs(2 * 60);
/// How long to wait for room in a queue that is full.
const ROOM: Duration = Duration::from_millis(500);

/// How a queue is used.
#[derive(Clone)]
pub struct RabbitSettings {
    /// Who connects, for those who look at the broker.
    pub name: String,
    /// Messages are signed with it, and others refused.
    pub key: Option<SigningKey>,
    /// A certificate to trust besides the system's, as PEM.
    pub ca: Option<String>,
    /// The waits that are offered, shortest first.
    pub retry_delays: [Duration; 4],
    /// The most messages in a lane. Must be the same for all that use a broker.
    pub lane_length: u32,
    /// How long a broker may take to confirm what is published. One that is short of memory takes as long as it is.
    pub confirm_within: Duration,
}

impl Default for RabbitSettings {
    fn default() -> RabbitSettings {
        RabbitSettings {
            name: "imgsync".to_owned(),
            key: None,
            ca: None,
            retry_delays: RETRY_DELAYS,
            lane_length: 100_000,
            confirm_within: CONFIRM,
        }
    }
}

/// A [`TaskQueue`] in RabbitMQ. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct RabbitQueue(Arc<Shared>);

struct Shared {
    roster: Arc<dyn Roster>,
    settings: RabbitSettings,
    publishing: Line,
    taking: Line,
    lanes: Mutex<Known>,
    refused: Mutex<(u64, Option<String>)>,
    health: ServerHealth,
    _alarms: AbortOnDropHandle<()>,
}

/// A lane's queue, and when it was last said that messages are published in it.
struct KnownLane {
    lane: Lane,
    /// Whether it is the one for what is urgent.
    is_urgent: bool,
    noted_at: Option<Instant>,
}

/// A queue in which nothing waited.
struct Idle {
    since: Instant,
    /// How long not to ask again, unless it is told of meanwhile.
    pause: Duration,
    /// What part of that, so that many that wait do not ask at the same moment.
    part: f64,
}

/// Lanes that are looked at, and whether only for what is urgent.
type Looked = (Lanes, bool);

/// The lanes by the names of their queues.
#[derive(Default)]
struct Known {
    lanes: BTreeMap<String, KnownLane>,
    read_at: Option<Instant>,
    /// Where to begin the next turn.
    turn: usize,
    /// Queues that this process has noted, and when.
    noted: HashMap<String, Instant>,
    /// Held by those who look for all who wait for the same lanes, for all of these or for what is urgent.
    watches: Vec<(Looked, Weak<tokio::sync::Mutex<()>>)>,
    /// Queues that failed: how often in a row, and when they may be asked again.
    resting: HashMap<String, (u32, Instant)>,
    /// Queues in which nothing waited when they were last asked.
    idle: HashMap<String, Idle>,
    /// The version of messages that was last left for a newer worker.
    newer: Option<u64>,
}

impl Known {
    /// Whether a queue has failed too recently to be asked again.
    fn rests(&self, queue: &str) -> bool {
        self.resting.get(queue).is_some_and(|(_, until)| *until > Instant::now())
    }

    /// A queue has failed: it rests for the first of these at first, and for the second at the most.
    fn let_rest(&mut self, queue: &str, [first, most]: [Duration; 2]) {
        let (times, until) = self.resting.entry(queue.to_owned()).or_insert((0, Instant::now()));
        *until = Instant::now() + (first * 2_u32.saturating_pow(*times)).min(most);
        *times = (*times + 1).min(10);
    }

    /// A queue has answered, and whether there was a message.
    fn note_answer(&mut self, queue: &str, is_empty: bool) {
        self.resting.remove(queue);
        if !is_empty {
            self.idle.remove(queue);
            return;
        }
        let pause = self.idle.get(queue).map_or(IDLE[0], |idle| (idle.pause * 2).min(QUIET_IDLE));
        let part = rand::rng().random_range(0.5..=1.0);
        self.idle.insert(queue.to_owned(), Idle { since: Instant::now(), pause, part });
    }

    /// When a queue is to be asked again in which nothing waited; now, where that is not known.
    fn ask_again(&self, queue: &str, known: &KnownLane) -> Option<Instant> {
        let idle = self.idle.get(queue)?;
        let is_lively = known.noted_at.is_some_and(|at| at.elapsed() < LIVELY);
        let most = if is_lively { IDLE[1] } else { QUIET_IDLE };
        Some(idle.since + idle.pause.min(most).mul_f64(idle.part))
    }
}

impl RabbitQueue {
    /// Connects. An error says what is wrong with the address, the user or the virtual host.
    pub async fn connect(url: &SecretUrl, roster: Arc<dyn Roster>, settings: RabbitSettings) -> Result<RabbitQueue> {
        crate::registry::install_tls_provider();
        let health = ServerHealth::new(format!("the broker {url}"));
        let alarms = tokio::spawn(alarm::tell_roster(roster.clone(), health.subscribe()));
        let queue = RabbitQueue(Arc::new(Shared {
            roster,
            publishing: Line::new(url, &settings, true, &health),
            taking: Line::new(url, &settings, false, &health),
            health,
            _alarms: AbortOnDropHandle::new(alarms),
            settings,
            lanes: Mutex::default(),
            refused: Mutex::default(),
        }));
        queue.0.taking.live().await?;
        queue.0.publishing.live().await?;
        Ok(queue)
    }

    /// Whether the broker answers now.
    pub async fn is_alive(&self) -> bool {
        self.0.taking.live().await.is_ok()
    }

    /// Returns how the broker stands, as the connections of this process find it.
    pub fn health(&self) -> &ServerHealth {
        &self.0.health
    }

    /// How many messages were refused, and why the last was: not signed with our key, or not to be understood.
    pub fn refused(&self) -> (u64, Option<String>) {
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lanes that there are.
    async fn read_lanes(&self) -> Result<()> {
        let is_fresh = self.known().read_at.is_some_and(|at| at.elapsed() < LANES_HOLD);
        if is_fresh {
            return Ok(());
        }
        let lanes = self.0.roster.queues_by_age().await?;
        let mut known = self.known();
        let now = Instant::now();
        let noted = |(lane, is_urgent, age)| {
            (topology::queue_of(&lane, is_urgent), KnownLane { lane, is_urgent, noted_at: now.checked_sub(age) })
        };
        known.lanes = lanes.into_iter().map(noted).collect();
        let Known { lanes, idle, resting, .. } = &mut *known;
        idle.retain(|queue, _| lanes.contains_key(queue));
        resting.retain(|queue, _| lanes.contains_key(queue));
        known.read_at = Some(now);
        Ok(())
    }
}

impl RabbitQueue {
    /// Takes in a task of its own: who drops this call does not drop what the broker is about to give. It is given back then.
    async fn take_apart(
        &self,
        lanes: &Lanes,
        only_urgent: bool,
        cancel: &CancellationToken,
    ) -> Result<Option<Delivery>> {
        let stop = cancel.child_token();
        let _stops = stop.clone().drop_guard();
        let (queue, lanes) = (self.clone(), lanes.clone());
        let mut taking = tokio::spawn(async move { queue.take_one(&lanes, only_urgent, &stop).await });
        let stopped = async {
            cancel.cancelled().await;
            tokio::time::sleep(STOPS).await;
        };
        tokio::select! {
            taken = &mut taking => {
                taken.unwrap_or_else(|error| Err(Error::new(Class::Local, "taking a task", error.to_string())))
            }
            // The broker does not answer: what it may still give is given back.
            () = stopped => Ok(None),
        }
    }
}

#[async_trait]
impl TaskQueue for RabbitQueue {
    async fn publish(&self, block: &[(Lane, Message)]) -> Result<Published> {
        self.publish_block(block).await
    }

    async fn publish_later(&self, lane: &Lane, message: &Message, wait: Duration) -> Result<()> {
        self.note([(lane, message.priority.is_urgent())]).await?;
        self.publish_one(
            &self.address(topology::queue_of(lane, message.priority.is_urgent()), wait),
            &message.encode(),
            None,
        )
        .await
    }

    async fn room(&self) {
        tokio::time::sleep(ROOM).await;
    }

    async fn take(&self, lanes: &Lanes, cancel: &CancellationToken) -> Result<Option<Delivery>> {
        self.take_apart(lanes, false, cancel).await
    }

    async fn take_urgent(&self, lanes: &Lanes, cancel: &CancellationToken) -> Result<Option<Delivery>> {
        self.take_apart(lanes, true, cancel).await
    }

    async fn waiting(&self, lanes: &[Lane]) -> Result<Vec<u64>> {
        self.read_lanes().await?;
        // A queue for what is urgent is there for few.
        let queues: Vec<(usize, &Lane, bool)> = {
            let known = self.known();
            let urgent = |lane: &Lane| known.lanes.contains_key(&topology::queue_of(lane, true));
            let both = |(at, lane)| [Some((at, lane, false)), urgent(lane).then_some((at, lane, true))];
            lanes.iter().enumerate().flat_map(both).flatten().collect()
        };
        let mut waiting = vec![0; lanes.len()];
        let mut busy = Vec::new();
        let tried = format!("looking at queues at the broker {}", self.0.taking.name());
        let mut channel = None;
        for (at, lane, is_urgent) in queues {
            let here = match channel.take() {
                Some(channel) => channel,
                None => self.0.taking.live().await?.channel("looking at queues").await?,
            };
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
            let name = topology::queue_of(lane, is_urgent);
            match here.queue_declare(name.as_str().into(), passive, FieldTable::default()).await {
                Ok(queue) => {
                    if queue.message_count() > 0 {
                        waiting[at] += u64::from(queue.message_count());
                        busy.push((lane, is_urgent));
                    }
                    channel = Some(here);
                }
                // The broker closes a channel that asks for a queue that is not there.
                Err(error) if line::is_missing(&error) => {}
                Err(error) => return Err(line::explain(&tried, &error)),
            }
        }
        if let Some(channel) = channel {
            let _ = channel.close(200, "done".into()).await;
        }
        // Should the store have lost a lane that is not empty, nobody would take from it.
        self.note(busy).await?;
        Ok(waiting)
    }

    async fn take_dead(&self, _cancel: &CancellationToken) -> Result<Option<Dead>> {
        self.next_dead().await
    }
}

impl fmt::Debug for RabbitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RabbitQueue({})", self.0.taking.name())
    }
}

fn unreachable(tried: &str, detail: &str) -> Error {
    Error::new(Class::Unreachable, tried, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_in_which_nothing_waits_is_asked_less_and_less_and_at_once_when_it_is_told_of() {
        let mut known = Known::default();
        let lane = Lane::anonymous("gcr.io".parse().unwrap(), "docker.io".parse().unwrap());
        let noted = |noted_at| KnownLane { lane: lane.clone(), is_urgent: false, noted_at };
        let (quiet, lively) = (noted(None), noted(Some(Instant::now())));
        assert_eq!(known.ask_again("w", &quiet), None, "of a new one nothing is known");
        let pause = |known: &Known, its: &KnownLane| known.ask_again("w", its).unwrap() - known.idle["w"].since;
        known.note_answer("w", true);
        assert!(pause(&known, &quiet) <= IDLE[0]);
        for _ in 0..20 {
            known.note_answer("w", true);
        }
        assert!((QUIET_IDLE / 2..=QUIET_IDLE).contains(&pause(&known, &quiet)));
        assert!(pause(&known, &lively) <= IDLE[1], "something was published there just now");
        known.note_answer("w", false);
        assert_eq!(known.ask_again("w", &quiet), None, "there was a message, and there may be more");
    }
}
