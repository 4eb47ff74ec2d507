//! Broker connections that are reopened on demand.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapin::message::BasicGetMessage;
use lapin::options::{BasicGetOptions, ConfirmSelectOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use rand::Rng as _;
use rustls::ClientConfig;
use tokio_util::task::AbortOnDropHandle;

use super::{RabbitSettings, alarm, stream, topology, unreachable};
use crate::config::SecretUrl;
use crate::error::{Class, Error, Result};
use crate::outage::{OutageKind, ServerHealth};

/// Timeout of opening a connection.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// Heartbeat timeout in seconds: a peer silent for longer counts as gone. A value in the URL takes precedence.
const HEARTBEAT: u16 = 20;
/// How long a usable queue may take to respond.
const ANSWER: Duration = Duration::from_secs(10);
/// A broker that is killed moments after a queue was declared may lose half of it, and never elects a leader for it.
pub(super) const LEADERLESS: &str = "if `rabbitmq-queues quorum_status` says that the queue has no leader, and none comes back, delete the queue: what was in it is planned again";
/// Example of a broker's URL.
const URL: &str = "amqp://user:password@host:5672/vhost";
/// Number of channels that consume from a queue: each has one request in flight.
const SEATS: usize = 4;
/// Backoff between attempts to connect: initial and maximum.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

/// One of the two connections, opened on demand.
pub(super) struct Line {
    url: SecretUrl,
    settings: RabbitSettings,
    publishes: bool,
    health: ServerHealth,
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Option<Arc<Live>>,
    failed: Option<Failed>,
}

/// Consecutive failures to connect.
struct Failed {
    /// Number of attempts.
    times: u32,
    /// Kind of the last error.
    class: Class,
    detail: String,
    hint: Option<String>,
    /// When to try again.
    again: Instant,
}

/// An open connection.
pub(super) struct Live {
    name: String,
    settings: RabbitSettings,
    connection: Connection,
    /// Channel for declarations; on a publishing connection also the one that publishes.
    first: tokio::sync::Mutex<Channel>,
    rows: Mutex<HashMap<String, Arc<Row>>>,
    /// Queues that were declared on this connection.
    declared: Mutex<HashSet<String>>,
    /// Listens for alarms on a publishing connection.
    _alarms: Option<AbortOnDropHandle<()>>,
}

/// Channels that consume from one queue. A channel ends with its queue, or when a delivery is unacknowledged for too
/// long, and all its deliveries end with it: so each queue has its own.
type Row = [tokio::sync::Mutex<Option<Channel>>; SEATS];

impl Line {
    pub(super) fn new(url: &SecretUrl, settings: &RabbitSettings, publishes: bool, health: &ServerHealth) -> Line {
        let (url, settings, health) = (url.clone(), settings.clone(), health.clone());
        Line { url, settings, publishes, health, state: Default::default() }
    }

    /// Returns the broker's address, without the password.
    pub(super) fn name(&self) -> String {
        self.url.to_string()
    }

    /// Returns the connection; reopens it if it is gone. Failed attempts back off, so as not to overload a broker that
    /// is recovering.
    pub(super) async fn live(&self) -> Result<Arc<Live>> {
        let tried = format!("connecting to the broker {}", self.url);
        let mut state = self.state.lock().await;
        if let Some(live) = state.live.as_ref().filter(|live| live.is_whole()) {
            return Ok(live.clone());
        }
        state.live = None;
        if let Some(failed) = state.failed.as_ref().filter(|failed| failed.again > Instant::now()) {
            let error = Error::new(failed.class, &tried, &failed.detail);
            return Err(failed.hint.iter().fold(error, |error, hint| error.hint(hint)));
        }
        match tokio::time::timeout(CONNECT, self.connect(&tried)).await {
            Ok(Ok(live)) => {
                let live = Arc::new(live);
                *state = State { live: Some(live.clone()), failed: None };
                self.health.recover(OutageKind::Away);
                Ok(live)
            }
            Ok(Err(error)) => Err(self.note_failure(&mut state, error)),
            Err(_) => Err(self.note_failure(&mut state, unreachable(&tried, "no answer in time"))),
        }
    }

    fn note_failure(&self, state: &mut State, error: Error) -> Error {
        self.health.fail(OutageKind::Away, error.detail(), error.advice());
        state.note_failure(error)
    }

    async fn connect(&self, tried: &str) -> Result<Live> {
        // The parser's own message may contain the password.
        let uri: std::result::Result<AMQPUri, _> = self.url.expose().as_str().parse();
        let uri = uri.map_err(|_| Error::new(Class::Invalid, tried, "this is no URL of a broker").hint(URL))?;
        let tls = stream::tls(self.settings.ca.as_deref())?;
        self.open(uri, tls).await.map_err(|error| explain(tried, &error))
    }

    async fn open(&self, mut uri: AMQPUri, tls: Arc<ClientConfig>) -> lapin::Result<Live> {
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let what = if self.publishes { "publishes" } else { "takes" };
        let name = format!("{} {what}", self.settings.name);
        let options = ConnectionProperties::default().with_connection_name(name.into());
        let connection = stream::open(uri, options, tls).await?;
        let alarms = self.publishes.then(|| alarm::listen(&connection, &self.health));
        let first = connection.create_channel().await?;
        topology::declare(&first, &self.settings).await?;
        if self.publishes {
            first.confirm_select(ConfirmSelectOptions::default()).await?;
        }
        Ok(Live {
            name: self.name(),
            settings: self.settings.clone(),
            connection,
            first: tokio::sync::Mutex::new(first),
            rows: Mutex::default(),
            declared: Mutex::new(topology::standing(&self.settings).into_iter().collect()),
            _alarms: alarms,
        })
    }
}

impl State {
    /// Records a failed attempt, and when to try again.
    fn note_failure(&mut self, error: Error) -> Error {
        let times = self.failed.as_ref().map_or(0, |failed| failed.times) + 1;
        let pause = (PAUSES[0] * 2_u32.saturating_pow(times.min(6) - 1)).min(PAUSES[1]);
        let jittered = rand::rng().random_range(pause / 2..=pause);
        self.failed = Some(Failed {
            times,
            class: error.class(),
            detail: error.detail().to_owned(),
            hint: error.advice().map(str::to_owned),
            again: Instant::now() + jittered,
        });
        error
    }
}

impl Live {
    /// Returns whether the connection is usable. Consuming channels are reopened as needed.
    pub(super) fn is_whole(&self) -> bool {
        let first_lives = || self.first.try_lock().map_or(true, |channel| channel.status().connected());
        self.connection.status().connected() && first_lives()
    }

    /// Returns whether the connection is open.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Opens a new channel.
    pub(super) async fn channel(&self, tried: &str) -> Result<Channel> {
        let tried = format!("{tried} at the broker {}", self.name);
        self.connection.create_channel().await.map_err(|error| explain(&tried, &error))
    }

    /// Locks the publishing channel.
    pub(super) async fn first(&self) -> tokio::sync::MutexGuard<'_, Channel> {
        self.first.lock().await
    }

    /// Gets the next message of a queue, if one is ready. Declares the queue if it is missing.
    pub(super) async fn get(&self, queue: &str, tried: &str) -> Result<Option<BasicGetMessage>> {
        let row = lock(&self.rows).entry(queue.to_owned()).or_default().clone();
        let mut seat = free_seat(&row).await;
        let mut again = true;
        loop {
            // Taken out of the pool: if this call is dropped, the channel closes, and the broker requeues what it
            // delivers.
            let channel = match seat.take().filter(|channel| channel.status().connected()) {
                Some(channel) => Ok(channel),
                None => self.connection.create_channel().await,
            };
            let channel = channel.map_err(|error| explain(tried, &error))?;
            let got = async {
                self.declare_once(&channel, queue).await?;
                channel.basic_get(queue.into(), BasicGetOptions::default()).await
            };
            match tokio::time::timeout(ANSWER, got).await {
                Ok(Ok(got)) => {
                    *seat = Some(channel);
                    return Ok(got);
                }
                // The queue was deleted since it was declared, or the channel ended meanwhile.
                Ok(Err(error)) if again && self.connection.status().connected() => {
                    tracing::debug!("taking from {queue}: {error}");
                    self.note_declared(queue, false);
                    again = false;
                }
                Ok(Err(error)) => return Err(explain(tried, &error)),
                Err(_) => return Err(unreachable(tried, "the queue does not answer").hint(LEADERLESS)),
            }
        }
    }

    /// Returns whether the broker responds at all.
    pub(super) async fn answers(&self) -> bool {
        let channel = tokio::time::timeout(ANSWER, self.connection.create_channel()).await;
        matches!(channel, Ok(Ok(_)))
    }

    /// Declares a queue, unless it was declared on this connection.
    pub(super) async fn declare_once(&self, channel: &Channel, queue: &str) -> lapin::Result<()> {
        if lock(&self.declared).contains(queue) {
            return Ok(());
        }
        match topology::is_of_lane(queue) {
            true => topology::declare_lane(channel, queue, &self.settings).await?,
            false => topology::declare(channel, &self.settings).await?,
        }
        self.note_declared(queue, true);
        Ok(())
    }

    /// Returns whether the broker blocks publishing: it is low on memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Records whether a queue exists.
    pub(super) fn note_declared(&self, queue: &str, is_there: bool) {
        let mut declared = lock(&self.declared);
        match is_there {
            true => _ = declared.insert(queue.to_owned()),
            false => _ = declared.remove(queue),
        }
    }
}

/// Locks an idle channel of a pool, or waits for a random one.
async fn free_seat(row: &Row) -> tokio::sync::MutexGuard<'_, Option<Channel>> {
    for seat in row {
        if let Ok(seat) = seat.try_lock() {
            return seat;
        }
    }
    let any = rand::rng().random_range(0..SEATS);
    row[any].lock().await
}

/// A panic elsewhere leaves these consistent: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether the error means that a queue or an exchange does not exist.
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::NOTFOUND)
}

fn is_soft(error: &lapin::Error, wanted: &AMQPSoftError) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(soft) if soft == wanted))
}

/// Converts an error of the client or the broker, with a hint.
pub(super) fn explain(tried: &str, error: &lapin::Error) -> Error {
    let text: String = error.to_string().chars().take(300).collect();
    match error.kind() {
        ErrorKind::ProtocolError(_) if text.contains("inequivalent arg") => Error::new(Class::Invalid, tried, text).hint(
            "a queue or an exchange is there with other arguments: delete it if it is imgsync's (what was in it is planned again), and tune queues by policies",
        ),
        ErrorKind::ProtocolError(_) if is_soft(error, &AMQPSoftError::ACCESSREFUSED) => Error::new(Class::Denied, tried, text).hint(format!(
            "check user and password in the broker's URL ({URL}), and that the user may configure, write and read in that virtual host"
        )),
        ErrorKind::ProtocolError(broker) if *broker.kind() == AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
            Error::new(Class::Denied, tried, text).hint(format!(
                "check the virtual host in the broker's URL ({URL}), and whether the user may use it"
            ))
        }
        ErrorKind::InvalidProtocolVersion(_) | ErrorKind::ParsingError(_) => {
            Error::new(Class::BadAnswer, tried, text).hint("is that RabbitMQ's port for AMQP (5672, or 5671 with TLS)?")
        }
        ErrorKind::IOError(io) if is_of_certificates(io) => Error::new(Class::Insecure, tried, io.to_string())
            .hint("name the authority that signed the broker's certificate by `cluster: {ca: FILE}`, and the broker by the name that the certificate is for"),
        ErrorKind::IOError(io) => Error::new(Class::Unreachable, tried, io.to_string())
            .hint("check that RabbitMQ is running there, that the port is the right one (amqp:// and amqps:// have their own), and whether a firewall is in between"),
        _ => Error::new(Class::Unreachable, tried, text),
    }
}

fn is_of_certificates(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}
