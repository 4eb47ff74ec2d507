//! Cluster queue: RabbitMQ (3.10 and later).
//!
//! Queues: a quorum queue for each route; another one beside it for high priority, once it was used; four for delayed
//! messages; one for dead letters; one for refused messages. Any process that needs a queue declares it; the arguments
//! never change, because a broker refuses to declare a queue again with others.
//!
//! Two connections: one publishes, one consumes and acknowledges, because a broker that is low on memory blocks
//! connections that publish. A broken connection, channel or queue is reopened by the next call that needs it.

mod alarm;
mod connection;
mod consume;
mod nodes;
mod publish;
mod stream;
mod topology;

pub(crate) use topology::{MAX_REFUSED_BYTES, MAX_REFUSED_MESSAGES};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use rand::Rng as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::connection::{ManagedConnection, QUEUE_RESPONSE_TIMEOUT};
use super::{DeadLetter, Delivery, PublishResult, RETRY_DELAYS, RouteFilter, TaskQueue};
use imgsync_model::batch::{Message, Route, SigningKey};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret_url::{SecretUrl, join_urls};
use imgsync_store::WorkerRegistry;
use imgsync_store::outage::ServerHealth;

/// Timeout of opening a connection to a node: TCP, TLS and the handshake of AMQP. A frozen node accepts TCP, and says
/// nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the routes read from the worker registry are cached.
const ROUTES_CACHE_TTL: Duration = Duration::from_secs(1);
/// Default timeout of publisher confirms.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// Backoff of a queue that fails: initial and maximum. A queue of which the leader froze has another one after ten seconds.
const QUEUE_BACKOFF: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(5 * 60)];
/// Backoff of a queue whose leader moves: each request closes the connection meanwhile, and it is over in a second.
const LEADER_CHANGE_BACKOFF: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// Maximum number of reconnects while polling all queues.
const MAX_RECONNECTS: usize = 2;
/// How long a cancelled receive waits for the broker's response.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Delay before an empty queue is polled again: initial and maximum.
const IDLE_POLL_DELAY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// Maximum of that delay for a queue without recent publishing. Many workers that poll many routes, of which few have
/// messages, would keep the broker busy with that alone.
const QUIET_POLL_DELAY: Duration = Duration::from_secs(10);
/// How long after publishing a route may have more messages soon: delayed retries are not announced.
const RECENT_PUBLISH_WINDOW: Duration = Duration::from_secs(2 * 60);
/// How long to wait for capacity in a full queue.
const CAPACITY_POLL_INTERVAL: Duration = Duration::from_millis(500);

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
    pub max_route_messages: u32,
    /// Timeout of publisher confirms. A broker that is low on memory does not confirm until it recovers.
    pub confirm_timeout: Duration,
}

impl Default for RabbitSettings {
    fn default() -> RabbitSettings {
        RabbitSettings {
            name: "imgsync".to_owned(),
            key: None,
            ca: None,
            retry_delays: RETRY_DELAYS,
            max_route_messages: 100_000,
            confirm_timeout: CONFIRM_TIMEOUT,
        }
    }
}

/// A [`TaskQueue`] in RabbitMQ. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct RabbitQueue(Arc<Inner>);

struct Inner {
    worker_registry: Arc<dyn WorkerRegistry>,
    settings: RabbitSettings,
    publish_connection: ManagedConnection,
    consume_connection: ManagedConnection,
    route_table: Mutex<RouteTable>,
    refused: Mutex<(u64, Option<String>)>,
    health: ServerHealth,
    _alarms: AbortOnDropHandle<()>,
}

/// The queue of a route, and when publishing to it was last announced.
struct RouteQueue {
    route: Route,
    /// Whether it is the queue for high priority.
    is_urgent: bool,
    announced_at: Option<Instant>,
}

/// A queue that was empty when polled.
struct IdleQueue {
    since: Instant,
    /// Delay before it is polled again, unless it is announced meanwhile.
    pause: Duration,
    /// Fraction of the delay, so that many workers do not poll at the same moment.
    jitter: f64,
}

/// Routes that are polled, and whether only for high priority.
type PollScope = (RouteFilter, bool);

/// Routes by queue name.
#[derive(Default)]
struct RouteTable {
    queues: BTreeMap<String, RouteQueue>,
    refreshed_at: Option<Instant>,
    /// Where the next turn starts.
    next_turn: usize,
    /// Queues that this process has announced, and when.
    announced: HashMap<String, Instant>,
    /// Locks held by the one consumer that polls for all that wait for the same routes and priorities.
    poll_locks: Vec<(PollScope, Weak<tokio::sync::Mutex<()>>)>,
    /// Queues that failed.
    backoffs: HashMap<String, Backoff>,
    /// Queues that were empty when last polled.
    idle: HashMap<String, IdleQueue>,
    /// The latest message version that was delayed for a newer worker.
    newer_version: Option<u64>,
}

/// Pause of a queue that failed.
struct Backoff {
    /// Consecutive failures.
    times: u32,
    /// Time of the last failure.
    since: Instant,
    /// When to poll again.
    until: Instant,
}

impl RouteTable {
    /// Returns whether a queue has failed too recently to be polled.
    fn is_backing_off(&self, queue: &str) -> bool {
        self.backoffs.get(queue).is_some_and(|backoff| backoff.until > Instant::now())
    }

    /// Backs off from a queue that failed, with an initial and a maximum delay. `asked` is when it was asked: the failures
    /// of several slots that asked at the same time count once. Returns how long the queue is left alone.
    fn back_off(&mut self, queue: &str, asked: Instant, [first, most]: [Duration; 2]) -> Duration {
        let now = Instant::now();
        let known = self.backoffs.entry(queue.to_owned()).or_insert(Backoff { times: 0, since: asked, until: now });
        if known.times > 0 && asked < known.since {
            return known.until.saturating_duration_since(now);
        }
        known.until = now + (first * 2_u32.saturating_pow(known.times)).min(most);
        known.since = now;
        known.times = (known.times + 1).min(10);
        known.until - now
    }

    /// Records a response of a queue, and whether it was empty.
    fn record_poll(&mut self, queue: &str, is_empty: bool) {
        self.backoffs.remove(queue);
        if !is_empty {
            self.idle.remove(queue);
            return;
        }
        let pause = self.idle.get(queue).map_or(IDLE_POLL_DELAY[0], |idle| (idle.pause * 2).min(QUIET_POLL_DELAY));
        let jitter = rand::rng().random_range(0.5..=1.0);
        self.idle.insert(queue.to_owned(), IdleQueue { since: Instant::now(), pause, jitter });
    }

    /// Returns when to poll an empty queue again; `None` if it is not known to be empty.
    fn next_poll_at(&self, queue: &str, known: &RouteQueue) -> Option<Instant> {
        let idle = self.idle.get(queue)?;
        let is_recent = known.announced_at.is_some_and(|at| at.elapsed() < RECENT_PUBLISH_WINDOW);
        let most = if is_recent { IDLE_POLL_DELAY[1] } else { QUIET_POLL_DELAY };
        Some(idle.since + idle.pause.min(most).mul_f64(idle.jitter))
    }
}

impl RabbitQueue {
    /// Connects to the broker by the URLs of its nodes, of which there is at least one. An error names what is wrong
    /// with the address, the user or the virtual host.
    pub async fn connect(
        urls: &[SecretUrl],
        worker_registry: Arc<dyn WorkerRegistry>,
        settings: RabbitSettings,
    ) -> Result<RabbitQueue> {
        imgsync_tls::install_tls_provider();
        let health = ServerHealth::new(format!("the broker {}", join_urls(urls)));
        let publish_connection = ManagedConnection::new(urls, &settings, true, &health)?;
        let consume_connection = ManagedConnection::new(urls, &settings, false, &health)?;
        let alarms = tokio::spawn(alarm::report_alarms(worker_registry.clone(), health.subscribe()));
        let queue = RabbitQueue(Arc::new(Inner {
            worker_registry,
            publish_connection,
            consume_connection,
            health,
            _alarms: AbortOnDropHandle::new(alarms),
            settings,
            route_table: Mutex::default(),
            refused: Mutex::default(),
        }));
        queue.0.consume_connection.get_or_connect().await?;
        queue.0.publish_connection.get_or_connect().await?;
        Ok(queue)
    }

    /// Returns the health of the broker, as the connections of this process find it.
    pub fn health(&self) -> &ServerHealth {
        &self.0.health
    }

    /// Returns the nodes to which connections are open now, each once.
    pub fn connected_nodes(&self) -> BTreeSet<String> {
        [&self.0.consume_connection, &self.0.publish_connection]
            .into_iter()
            .filter_map(ManagedConnection::node)
            .collect()
    }

    /// Returns the number of refused messages, and why the last one was: no valid signature, or not decodable.
    pub fn refused(&self) -> (u64, Option<String>) {
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn route_table(&self) -> std::sync::MutexGuard<'_, RouteTable> {
        self.0.route_table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refreshes the route table from the worker registry.
    async fn refresh_routes(&self) -> Result<()> {
        let is_fresh = self.route_table().refreshed_at.is_some_and(|at| at.elapsed() < ROUTES_CACHE_TTL);
        if is_fresh {
            return Ok(());
        }
        let routes = self.0.worker_registry.queues_by_age().await?;
        let mut known = self.route_table();
        let now = Instant::now();
        let route_queue = |(route, is_urgent, age)| {
            (
                topology::queue_name(&route, is_urgent),
                RouteQueue { route, is_urgent, announced_at: now.checked_sub(age) },
            )
        };
        known.queues = routes.into_iter().map(route_queue).collect();
        let RouteTable { queues: routes, idle, backoffs, .. } = &mut *known;
        idle.retain(|queue, _| routes.contains_key(queue));
        backoffs.retain(|queue, _| routes.contains_key(queue));
        known.refreshed_at = Some(now);
        Ok(())
    }
}

impl RabbitQueue {
    /// Receives in a task of its own, so that dropping this call does not drop a message that the broker is about to
    /// deliver; that message is requeued.
    async fn receive_detached(
        &self,
        routes: &RouteFilter,
        only_urgent: bool,
        cancel: &CancellationToken,
    ) -> Result<Option<Delivery>> {
        let stop = cancel.child_token();
        let _stops = stop.clone().drop_guard();
        let (queue, routes) = (self.clone(), routes.clone());
        let mut taking = tokio::spawn(async move { queue.receive_one(&routes, only_urgent, &stop).await });
        let stopped = async {
            cancel.cancelled().await;
            tokio::time::sleep(STOP_TIMEOUT).await;
        };
        tokio::select! {
            taken = &mut taking => {
                taken.unwrap_or_else(|error| Err(Error::new(ErrorKind::Local, "receiving a task", error.to_string())))
            }
            // The broker does not respond: a message that it still delivers is requeued.
            () = stopped => Ok(None),
        }
    }
}

#[async_trait]
impl TaskQueue for RabbitQueue {
    async fn publish(&self, block: &[(Route, Message)]) -> Result<PublishResult> {
        self.publish_block(block).await
    }

    async fn publish_delayed(&self, route: &Route, message: &Message, wait: Duration) -> Result<()> {
        self.announce_queues([(route, message.priority.is_urgent())]).await?;
        self.publish_one(
            &self.address_after(topology::queue_name(route, message.priority.is_urgent()), wait),
            &message.encode(),
            None,
        )
        .await
    }

    async fn wait_for_capacity(&self) {
        tokio::time::sleep(CAPACITY_POLL_INTERVAL).await;
    }

    async fn receive(&self, routes: &RouteFilter, cancel: &CancellationToken) -> Result<Option<Delivery>> {
        self.receive_detached(routes, false, cancel).await
    }

    async fn receive_urgent(&self, routes: &RouteFilter, cancel: &CancellationToken) -> Result<Option<Delivery>> {
        self.receive_detached(routes, true, cancel).await
    }

    async fn is_alive(&self) -> bool {
        let Ok(connection) = self.0.consume_connection.get_or_connect().await else { return false };
        // A connection can outlive a broker that hangs.
        connection.create_channel("checking that it responds").await.is_ok()
    }

    async fn count_ready(&self, routes: &[Route]) -> Result<Vec<u64>> {
        self.refresh_routes().await?;
        // Only few routes have a queue for high priority.
        let queues: Vec<(usize, &Route, bool)> = {
            let known = self.route_table();
            let urgent = |route: &Route| known.queues.contains_key(&topology::queue_name(route, true));
            let both = |(at, route)| [Some((at, route, false)), urgent(route).then_some((at, route, true))];
            routes.iter().enumerate().flat_map(both).flatten().collect()
        };
        let mut waiting = vec![0; routes.len()];
        let mut busy = Vec::new();
        let mut channel = None;
        for (at, route, is_urgent) in queues {
            let (live, here) = match channel.take() {
                Some(open) => open,
                None => {
                    let live = self.0.consume_connection.get_or_connect().await?;
                    let here = live.create_channel("inspecting queues").await?;
                    (live, here)
                }
            };
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
            let name = topology::queue_name(route, is_urgent);
            let declared = here.queue_declare(name.as_str().into(), passive, FieldTable::default());
            let operation = || format!("inspecting {name} at the broker {}", live.node());
            let Ok(declared) = tokio::time::timeout(QUEUE_RESPONSE_TIMEOUT, declared).await else {
                live.retire();
                return Err(unreachable_error(&operation(), "the queue does not respond"));
            };
            match declared {
                Ok(queue) => {
                    if queue.message_count() > 0 {
                        waiting[at] += u64::from(queue.message_count());
                        busy.push((route, is_urgent));
                    }
                    channel = Some((live, here));
                }
                // The broker closes a channel that declares a missing queue passively.
                Err(error) if connection::is_not_found(&error) => {}
                Err(error) => return Err(connection::broker_error(&operation(), &error)),
            }
        }
        if let Some((_, channel)) = channel {
            let _ = channel.close(200, "done".into()).await;
        }
        // If the store lost a route that is not empty, nobody would consume from it.
        self.announce_queues(busy).await?;
        Ok(waiting)
    }

    async fn receive_dead_letter(&self, _cancel: &CancellationToken) -> Result<Option<DeadLetter>> {
        self.next_dead_letter().await
    }
}

impl fmt::Debug for RabbitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RabbitQueue({})", self.0.consume_connection.name())
    }
}

fn unreachable_error(operation: &str, detail: &str) -> Error {
    Error::new(ErrorKind::Unreachable, operation, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_that_ask_a_queue_at_the_same_time_back_off_from_it_once() {
        let mut known = RouteTable::default();
        let pause = |known: &RouteTable| known.backoffs["w"].until - known.backoffs["w"].since;
        let asked = Instant::now();
        for _ in 0..20 {
            known.back_off("w", asked, QUEUE_BACKOFF);
        }
        assert_eq!(pause(&known), QUEUE_BACKOFF[0]);
        assert!(known.is_backing_off("w"));
        known.back_off("w", Instant::now(), QUEUE_BACKOFF);
        assert_eq!(pause(&known), QUEUE_BACKOFF[0] * 2, "it failed again after the pause");
        for _ in 0..20 {
            known.back_off("w", Instant::now(), QUEUE_BACKOFF);
        }
        assert_eq!(pause(&known), QUEUE_BACKOFF[1]);
        known.record_poll("w", true);
        assert!(!known.is_backing_off("w"));
    }

    #[test]
    fn an_idle_queue_is_polled_less_and_less_and_at_once_when_it_is_announced() {
        let mut known = RouteTable::default();
        let route = Route::anonymous("gcr.io".parse().unwrap(), "docker.io".parse().unwrap());
        let route_queue = |announced_at| RouteQueue { route: route.clone(), is_urgent: false, announced_at };
        let (quiet, recent) = (route_queue(None), route_queue(Some(Instant::now())));
        assert_eq!(known.next_poll_at("w", &quiet), None, "of a new one nothing is known");
        let pause =
            |known: &RouteTable, its: &RouteQueue| known.next_poll_at("w", its).unwrap() - known.idle["w"].since;
        known.record_poll("w", true);
        assert!(pause(&known, &quiet) <= IDLE_POLL_DELAY[0]);
        for _ in 0..20 {
            known.record_poll("w", true);
        }
        assert!((QUIET_POLL_DELAY / 2..=QUIET_POLL_DELAY).contains(&pause(&known, &quiet)));
        assert!(pause(&known, &recent) <= IDLE_POLL_DELAY[1], "something was published there just now");
        known.record_poll("w", false);
        assert_eq!(known.next_poll_at("w", &quiet), None, "there was a message, and there may be more");
    }
}
