//! Cluster queue: RabbitMQ (3.10 and later).
//!
//! Queues: a quorum queue for each route; another one beside it for high priority, once it was used; four for delayed
//! messages; one for dead letters; one for refused messages. Any process that needs a queue declares it; the arguments
//! never change, because a broker refuses to declare a queue again with others.
//!
//! Two connections: one publishes, one consumes and acknowledges, because a broker that is low on memory blocks
//! connections that publish. A broken connection, channel or queue is reopened by the next call that needs it.

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

/// How long the routes read from the worker registry are cached.
const LANES_HOLD: Duration = Duration::from_secs(1);
/// Default timeout of publisher confirms.
const CONFIRM: Duration = Duration::from_secs(30);
/// Backoff of a queue that fails: initial and maximum.
const RESTS: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(5 * 60)];
/// Backoff of a queue whose leader moves: each request closes the connection meanwhile, and it is over in a second.
const LEADER_RESTS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// Maximum number of reconnects while polling all queues.
const RECONNECTS: usize = 2;
/// How long a cancelled receive waits for the broker's response.
const STOPS: Duration = Duration::from_secs(2);
/// Delay before an empty queue is polled again: initial and maximum.
const IDLE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// Maximum of that delay for a queue without recent publishing. Many workers that poll many routes, of which few have
/// messages, would keep the broker busy with that alone.
const QUIET_IDLE: Duration = Duration::from_secs(10);
/// How long after publishing a route may have more messages soon: delayed retries are not announced.
const LIVELY: Duration = Duration::from_secs(2 * 60);
/// How long to wait for capacity in a full queue.
const ROOM: Duration = Duration::from_millis(500);

/// Settings of a RabbitMQ queue.
#[derive(Clone)]
pub struct RabbitSettings {
    /// Connection name, shown in the broker's management UI.
    pub name: String,
    /// Key that signs messages; unsigned ones are refused.
    pub key: Option<SigningKey>,
    /// An additional CA certificate to trust, as PEM.
    pub ca: Option<String>,
    /// The delays that are offered, shortest first.
    pub retry_delays: [Duration; 4],
    /// Maximum number of messages of a route. Must be the same for all users of a broker.
    pub lane_length: u32,
    /// Timeout of publisher confirms. A broker that is low on memory does not confirm until it recovers.
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

/// A [`TaskQueue`] in RabbitMQ. Cheap to clone; clones share it.
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

/// The queue of a route, and when publishing to it was last announced.
struct KnownLane {
    lane: Lane,
    /// Whether it is the queue for high priority.
    is_urgent: bool,
    noted_at: Option<Instant>,
}

/// A queue that was empty when polled.
struct Idle {
    since: Instant,
    /// Delay before it is polled again, unless it is announced meanwhile.
    pause: Duration,
    /// Fraction of the delay, so that many workers do not poll at the same moment.
    part: f64,
}

/// Routes that are polled, and whether only for high priority.
type Looked = (Lanes, bool);

/// Routes by queue name.
#[derive(Default)]
struct Known {
    lanes: BTreeMap<String, KnownLane>,
    read_at: Option<Instant>,
    /// Where the next turn starts.
    turn: usize,
    /// Queues that this process has announced, and when.
    noted: HashMap<String, Instant>,
    /// Locks held by the one consumer that polls for all that wait for the same routes and priorities.
    watches: Vec<(Looked, Weak<tokio::sync::Mutex<()>>)>,
    /// Queues that failed: consecutive failures, and when to poll again.
    resting: HashMap<String, (u32, Instant)>,
    /// Queues that were empty when last polled.
    idle: HashMap<String, Idle>,
    /// The latest message version that was delayed for a newer worker.
    newer: Option<u64>,
}

impl Known {
    /// Returns whether a queue has failed too recently to be polled.
    fn rests(&self, queue: &str) -> bool {
        self.resting.get(queue).is_some_and(|(_, until)| *until > Instant::now())
    }

    /// Backs off from a queue that failed, with an initial and a maximum delay.
    fn let_rest(&mut self, queue: &str, [first, most]: [Duration; 2]) {
        let (times, until) = self.resting.entry(queue.to_owned()).or_insert((0, Instant::now()));
        *until = Instant::now() + (first * 2_u32.saturating_pow(*times)).min(most);
        *times = (*times + 1).min(10);
    }

    /// Records a response of a queue, and whether it was empty.
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

    /// Returns when to poll an empty queue again; `None` if it is not known to be empty.
    fn ask_again(&self, queue: &str, known: &KnownLane) -> Option<Instant> {
        let idle = self.idle.get(queue)?;
        let is_lively = known.noted_at.is_some_and(|at| at.elapsed() < LIVELY);
        let most = if is_lively { IDLE[1] } else { QUIET_IDLE };
        Some(idle.since + idle.pause.min(most).mul_f64(idle.part))
    }
}

impl RabbitQueue {
    /// Connects to the broker. An error names what is wrong with the address, the user or the virtual host.
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

    /// Returns whether the broker responds now.
    pub async fn is_alive(&self) -> bool {
        self.0.taking.live().await.is_ok()
    }

    /// Returns the health of the broker, as the connections of this process find it.
    pub fn health(&self) -> &ServerHealth {
        &self.0.health
    }

    /// Returns the number of refused messages, and why the last one was: no valid signature, or not decodable.
    pub fn refused(&self) -> (u64, Option<String>) {
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refreshes the route table from the worker registry.
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
    /// Receives in a task of its own, so that dropping this call does not drop a message that the broker is about to
    /// deliver; that message is requeued.
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
            // The broker does not respond: a message that it still delivers is requeued.
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
        // Only few routes have a queue for high priority.
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
                // The broker closes a channel that declares a missing queue passively.
                Err(error) if line::is_missing(&error) => {}
                Err(error) => return Err(line::explain(&tried, &error)),
            }
        }
        if let Some(channel) = channel {
            let _ = channel.close(200, "done".into()).await;
        }
        // If the store lost a route that is not empty, nobody would consume from it.
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
