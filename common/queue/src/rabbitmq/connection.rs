//! Broker connections that are reopened on demand.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use lapin::message::BasicGetMessage;
use lapin::options::{BasicGetOptions, ConfirmSelectOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind as LapinErrorKind};
use rand::Rng as _;
use tokio_util::task::AbortOnDropHandle;

use super::nodes::{BrokerNode, BrokerNodes, EXAMPLE_URL, FailedRound};
use super::{CONNECT_TIMEOUT, RabbitSettings, alarm, stream, topology, unreachable_error};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret_url::{SecretUrl, join_urls};
use imgsync_store::log_throttle;
use imgsync_store::outage::{OutageKind, ServerHealth};
use imgsync_tls::with_dates;

/// Heartbeat timeout in seconds. A peer that is silent for twice as long counts as gone. A value in the URL takes
/// precedence.
const HEARTBEAT_SECONDS: u16 = 10;
/// How long a usable queue may take to respond.
pub(super) const QUEUE_RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node may take to open a channel, when one of its queues does not respond.
const NODE_RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A broker that is killed moments after a queue was declared may lose half of it, and never elects a leader for it.
pub(super) const LEADERLESS_QUEUE_HINT: &str = "if `rabbitmq-queues quorum_status` keeps reporting no leader for the \
                                                queue, delete it: its messages are published again";
/// Hint for a node that opens connections but declares no queue.
const NO_QUORUM_HINT: &str = "a node without a majority of its cluster declares no queues: see `rabbitmqctl \
                              cluster_status`, and set `cluster_partition_handling = pause_minority`";
/// Number of channels that consume from a queue: each has one request in flight.
const CHANNELS_PER_QUEUE: usize = 4;
/// Backoff after a round in which no node accepted a connection: initial and maximum.
const RECONNECT_BACKOFF: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

/// One of the two connections, opened on demand.
pub(super) struct ManagedConnection {
    /// All URLs, without users and passwords.
    name: String,
    nodes: BrokerNodes,
    settings: RabbitSettings,
    publishes: bool,
    health: ServerHealth,
    state: tokio::sync::Mutex<ConnectionState>,
    /// The latest connection.
    latest: Mutex<Weak<LiveConnection>>,
}

#[derive(Default)]
struct ConnectionState {
    live: Option<Arc<LiveConnection>>,
    /// Rank of the node that was tried last.
    last_rank: Option<u64>,
    last_failure: Option<ConnectFailure>,
}

/// Consecutive rounds in which no node accepted a connection.
struct ConnectFailure {
    /// Number of rounds.
    rounds: u32,
    last: FailedRound,
    /// When to try again.
    retry_at: Instant,
}

/// An open connection.
pub(super) struct LiveConnection {
    /// Host and port of the node.
    node: String,
    settings: RabbitSettings,
    connection: Connection,
    /// Channel for declarations; on a publishing connection also the one that publishes.
    control_channel: tokio::sync::Mutex<Channel>,
    channel_pools: Mutex<HashMap<String, Arc<ChannelPool>>>,
    /// Queues that were declared on this connection.
    declared: Mutex<HashSet<String>>,
    /// Whether calls use another connection from now on.
    is_retired: AtomicBool,
    /// Listens for alarms on a publishing connection.
    alarms: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// Channels that consume from one queue. A channel ends with its queue, or when a delivery is unacknowledged for too
/// long, and all its deliveries end with it: so each queue has its own.
type ChannelPool = [tokio::sync::Mutex<Option<Channel>>; CHANNELS_PER_QUEUE];

impl ManagedConnection {
    pub(super) fn new(
        urls: &[SecretUrl],
        settings: &RabbitSettings,
        publishes: bool,
        health: &ServerHealth,
    ) -> Result<ManagedConnection> {
        let (settings, health) = (settings.clone(), health.clone());
        let (name, nodes) = (join_urls(urls), BrokerNodes::new(urls)?);
        Ok(ManagedConnection {
            name,
            nodes,
            settings,
            publishes,
            health,
            state: Default::default(),
            latest: Mutex::default(),
        })
    }

    /// Returns the addresses of the broker, without passwords.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the node to which the connection is open.
    pub(super) fn node(&self) -> Option<String> {
        let live = lock(&self.latest).upgrade()?;
        live.is_usable().then(|| live.node.clone())
    }

    fn purpose(&self) -> &'static str {
        if self.publishes { "publishing" } else { "consuming" }
    }

    /// Returns the connection. If it is gone, tries each node once, beginning with the one after that of the last
    /// connection. After a round without success, calls fail at once for a while, so as not to overload a broker that
    /// is recovering.
    pub(super) async fn get_or_connect(&self) -> Result<Arc<LiveConnection>> {
        let mut state = self.state.lock().await;
        if let Some(live) = state.live.as_ref().filter(|live| live.is_usable()) {
            return Ok(live.clone());
        }
        state.live = None;
        if let Some(failed) = state.last_failure.as_ref().filter(|failed| failed.retry_at > Instant::now()) {
            return Err(failed.last.to_error());
        }
        let mut failures = Vec::new();
        let mut nodes = self.nodes.resolve(state.last_rank).await.into_iter().peekable();
        while let Some(node) = nodes.next() {
            // Before the attempt: if this call is dropped, the next one goes on with the next node.
            state.last_rank = Some(node.rank);
            match self.connect(&node).await {
                Ok(live) => {
                    let live = Arc::new(live);
                    state.live = Some(live.clone());
                    state.last_failure = None;
                    *lock(&self.latest) = Arc::downgrade(&live);
                    self.health.record_connection(self.purpose(), &node.name);
                    self.health.record_recovery(OutageKind::Unreachable);
                    return Ok(live);
                }
                Err(error) => {
                    if let Some(next) = nodes.peek() {
                        let line = format!("broker node {}: {}; trying {}", node.name, error.message(), next.name);
                        log_throttle::info(&format!("broker node {}", node.name), &line);
                    }
                    failures.push((node.name, error));
                }
            }
        }
        let failed = FailedRound::new(failures);
        let error = failed.to_error();
        self.health.record_failure(OutageKind::Unreachable, error.message(), error.hint());
        state.record_failed_round(failed);
        Err(error)
    }

    /// Opens a connection to a node, and declares there what belongs to no route.
    async fn connect(&self, node: &BrokerNode) -> Result<LiveConnection> {
        let operation = format!("connecting to the broker {}", node.name);
        let failed = |error: lapin::Error| broker_error(&operation, &error);
        let address = node.address.clone().map_err(|error| unreachable_error(&operation, &error))?;
        let tls = stream::tls_config(self.settings.ca.as_deref())?;
        let mut uri = node.uri.clone();
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        let what = if self.publishes { "publishes" } else { "takes" };
        let name = format!("{} {what}", self.settings.name);
        let options = ConnectionProperties::default().with_connection_name(name.into());
        let open = stream::open(uri, address, options, tls);
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, open).await {
            Ok(connection) => connection.map_err(failed)?,
            Err(_) => return Err(unreachable_error(&operation, "timed out")),
        };
        let alarms = self.publishes.then(|| alarm::watch_connection(&connection, &self.health));
        let declare = async {
            let first = connection.create_channel().await?;
            topology::declare_static(&first, &self.settings).await?;
            if self.publishes {
                first.confirm_select(ConfirmSelectOptions::default()).await?;
            }
            Ok(first)
        };
        // A node that is cut off from the others accepts connections, and no declarations.
        let first = match tokio::time::timeout(QUEUE_RESPONSE_TIMEOUT, declare).await {
            Ok(first) => first.map_err(failed)?,
            Err(_) => {
                return Err(unreachable_error(&operation, "declaring the queues timed out").with_hint(NO_QUORUM_HINT));
            }
        };
        Ok(LiveConnection {
            node: node.name.clone(),
            settings: self.settings.clone(),
            connection,
            control_channel: tokio::sync::Mutex::new(first),
            channel_pools: Mutex::default(),
            declared: Mutex::new(topology::static_queues(&self.settings).into_iter().collect()),
            is_retired: AtomicBool::new(false),
            alarms: Mutex::new(alarms),
        })
    }
}

impl ConnectionState {
    /// Records a round without success, and when to try again.
    fn record_failed_round(&mut self, last: FailedRound) {
        let rounds = self.last_failure.as_ref().map_or(0, |failed| failed.rounds) + 1;
        let most = (RECONNECT_BACKOFF[0] * 2_u32.saturating_pow(rounds.min(6) - 1)).min(RECONNECT_BACKOFF[1]);
        // Full jitter: clients that lost the same node come back at different moments.
        let retry_at = Instant::now() + rand::rng().random_range(Duration::ZERO..=most);
        self.last_failure = Some(ConnectFailure { rounds, last, retry_at });
    }
}

impl LiveConnection {
    /// Returns whether the connection is usable. Consuming channels are reopened as needed.
    pub(super) fn is_usable(&self) -> bool {
        let first_lives = || self.control_channel.try_lock().map_or(true, |channel| channel.status().connected());
        self.connection.status().connected() && !self.is_retired() && first_lives()
    }

    /// Returns whether the connection was given up.
    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// Gives up a connection on which the broker leaves a request unanswered: the next call connects to the next node.
    /// The connection closes when the calls that still use it have ended. A channel alone would not do: the node may be
    /// cut off from its cluster, and it closes the connection by itself only after a minute.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
        // The connection that follows reports alarms.
        lock(&self.alarms).take();
    }

    /// Returns host and port of the node.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// Returns whether the connection is open.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Opens a new channel.
    pub(super) async fn create_channel(&self, operation: &str) -> Result<Channel> {
        let operation = format!("{operation} at the broker {}", self.node);
        match tokio::time::timeout(QUEUE_RESPONSE_TIMEOUT, self.connection.create_channel()).await {
            Ok(channel) => channel.map_err(|error| broker_error(&operation, &error)),
            Err(_) => {
                self.retire();
                Err(unreachable_error(&operation, "the node does not respond"))
            }
        }
    }

    /// Locks the publishing channel.
    pub(super) async fn control_channel(&self) -> tokio::sync::MutexGuard<'_, Channel> {
        self.control_channel.lock().await
    }

    /// Gets the next message of a queue, if one is ready. Declares the queue if it is missing. If the queue does not
    /// respond, the connection is given up.
    pub(super) async fn get_message(&self, queue: &str, operation: &str) -> Result<Option<BasicGetMessage>> {
        let row = lock(&self.channel_pools).entry(queue.to_owned()).or_default().clone();
        let mut permit = lock_free_channel(&row).await;
        let mut again = true;
        loop {
            // Taken out of the pool: if this call is dropped, the channel closes, and the broker requeues what it
            // delivers.
            let pooled = permit.take().filter(|channel| channel.status().connected());
            let got = async {
                let channel = match pooled {
                    Some(channel) => channel,
                    None => self.connection.create_channel().await?,
                };
                self.ensure_declared(&channel, queue).await?;
                let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await?;
                Ok((channel, got))
            };
            match tokio::time::timeout(QUEUE_RESPONSE_TIMEOUT, got).await {
                Ok(Ok((channel, got))) => {
                    *permit = Some(channel);
                    return Ok(got);
                }
                // The queue was deleted since it was declared, or the channel ended meanwhile.
                Ok(Err(error)) if again && self.connection.status().connected() => {
                    tracing::debug!("consuming from {queue}: {error}");
                    self.set_declared(queue, false);
                    again = false;
                }
                Ok(Err(error)) => return Err(broker_error(operation, &error)),
                Err(_) => {
                    self.retire();
                    return Err(
                        unreachable_error(operation, "the queue does not respond").with_hint(LEADERLESS_QUEUE_HINT)
                    );
                }
            }
        }
    }

    /// Returns whether the broker responds at all.
    pub(super) async fn is_responsive(&self) -> bool {
        let channel = tokio::time::timeout(NODE_RESPONSE_TIMEOUT, self.connection.create_channel()).await;
        matches!(channel, Ok(Ok(_)))
    }

    /// Declares a queue, unless it was declared on this connection.
    pub(super) async fn ensure_declared(&self, channel: &Channel, queue: &str) -> lapin::Result<()> {
        if lock(&self.declared).contains(queue) {
            return Ok(());
        }
        match topology::is_route_queue(queue) {
            true => topology::declare_route_queue(channel, queue, &self.settings).await?,
            false => topology::declare_static(channel, &self.settings).await?,
        }
        self.set_declared(queue, true);
        Ok(())
    }

    /// Returns whether the broker blocks publishing: it is low on memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Records whether a queue exists.
    pub(super) fn set_declared(&self, queue: &str, is_there: bool) {
        let mut declared = lock(&self.declared);
        match is_there {
            true => _ = declared.insert(queue.to_owned()),
            false => _ = declared.remove(queue),
        }
    }
}

/// Locks an idle channel of a pool, or waits for a random one.
async fn lock_free_channel(row: &ChannelPool) -> tokio::sync::MutexGuard<'_, Option<Channel>> {
    for permit in row {
        if let Ok(permit) = permit.try_lock() {
            return permit;
        }
    }
    let any = rand::rng().random_range(0..CHANNELS_PER_QUEUE);
    row[any].lock().await
}

/// A panic elsewhere leaves these consistent: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether the error means that a queue or an exchange does not exist.
pub(super) fn is_not_found(error: &lapin::Error) -> bool {
    is_soft_error(error, &AMQPSoftError::NOTFOUND)
}

fn is_soft_error(error: &lapin::Error, wanted: &AMQPSoftError) -> bool {
    matches!(error.kind(), LapinErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(soft) if soft == wanted))
}

/// Converts an error of the client or the broker, with a hint.
pub(super) fn broker_error(operation: &str, error: &lapin::Error) -> Error {
    let text: String = error.to_string().chars().take(300).collect();
    match error.kind() {
        LapinErrorKind::ProtocolError(_) if text.contains("inequivalent arg") => {
            Error::new(ErrorKind::Invalid, operation, text).with_hint(
                "a queue or exchange exists with other arguments: delete it if it is imgsync's (its messages are \
                 published again); operator policies can change such settings, other policies cannot",
            )
        }
        LapinErrorKind::ProtocolError(_) if is_soft_error(error, &AMQPSoftError::ACCESSREFUSED) => Error::new(
            ErrorKind::Denied,
            operation,
            text,
        )
        .with_hint(format!(
            "check user and password in the broker's URL ({EXAMPLE_URL}), and that the user has configure, write and \
             read permissions on that virtual host"
        )),
        LapinErrorKind::ProtocolError(broker) if *broker.kind() == AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
            Error::new(ErrorKind::Denied, operation, text).with_hint(format!(
                "check the virtual host in the broker's URL ({EXAMPLE_URL}), and that the user has access to it"
            ))
        }
        LapinErrorKind::InvalidProtocolVersion(_) | LapinErrorKind::ParsingError(_) => {
            Error::new(ErrorKind::InvalidResponse, operation, text)
                .with_hint("is that RabbitMQ's port for AMQP (5672, or 5671 with TLS)?")
        }
        LapinErrorKind::IOError(io) if is_certificate_error(io) => {
            Error::new(ErrorKind::Insecure, operation, with_dates(&io.to_string())).with_hint(
                "set `cluster: {ca: FILE}` to the CA that signed the broker's certificate, and use the host \
                        name in the certificate",
            )
        }
        LapinErrorKind::IOError(io) => Error::new(ErrorKind::Unreachable, operation, io.to_string()).with_hint(
            "check that RabbitMQ is running there, that the port is right (amqp:// and amqps:// use \
                        different ports), and that no firewall is in the way",
        ),
        _ => Error::new(ErrorKind::Unreachable, operation, text),
    }
}

fn is_certificate_error(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}
