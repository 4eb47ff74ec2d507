//! A connection that is made anew when it is needed and gone.

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

/// How long a connection may take to be made.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// How long a peer may be silent, in seconds, before it counts as gone; named in the URL, that holds.
const HEARTBEAT: u16 = 20;
/// How long a queue that can be used may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// A broker that is killed moments after a queue was declared forgets the half of it, and gives it no leader ever after.
pub(super) const LEADERLESS: &str = "if `rabbitmq-queues quorum_status` says that the queue has no leader, and none comes back, delete the queue: what was in it is planned again";
/// What a broker's URL looks like.
const URL: &str = "amqp://user:password@host:5672/vhost";
/// Channels that take from one queue: each waits for the answer to one question at a time.
const SEATS: usize = 4;
/// The shortest and the longest pause between two attempts to connect.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

/// One of the two connections.
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

/// Attempts to connect that failed.
struct Failed {
    /// How many, in a row.
    times: u32,
    /// What came of the last.
    class: Class,
    detail: String,
    hint: Option<String>,
    /// When to try again.
    again: Instant,
}

/// A connection while it lives.
pub(super) struct Live {
    name: String,
    settings: RabbitSettings,
    connection: Connection,
    /// The channel that declares; on a line that publishes, the one that does.
    first: tokio::sync::Mutex<Channel>,
    rows: Mutex<HashMap<String, Arc<Row>>>,
    /// Queues that were declared on it.
    declared: Mutex<HashSet<String>>,
    /// Listens for alarms on a line that publishes.
    _alarms: Option<AbortOnDropHandle<()>>,
}

/// The channels that take from one queue. A channel ends with its queue, or when a delivery was held for too long, and with
/// it all deliveries that it gave: so each queue has its own.
type Row = [tokio::sync::Mutex<Option<Channel>>; SEATS];

impl Line {
    pub(super) fn new(url: &SecretUrl, settings: &RabbitSettings, publishes: bool, health: &ServerHealth) -> Line {
        let (url, settings, health) = (url.clone(), settings.clone(), health.clone());
        Line { url, settings, publishes, health, state: Default::default() }
    }

    /// The broker's address, without the password.
    pub(super) fn name(&self) -> String {
        self.url.to_string()
    }

    /// The connection; made anew if it is gone. Attempts that fail are not made more often than is good for a broker
    /// that comes back.
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
        // The parser's own words could hold the password.
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
    /// Remembers that an attempt failed, and when the next is due.
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
    /// Whether it can be used. Channels that take are made anew by themselves.
    pub(super) fn is_whole(&self) -> bool {
        let first_lives = || self.first.try_lock().map_or(true, |channel| channel.status().connected());
        self.connection.status().connected() && first_lives()
    }

    /// Whether the connection stands.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// A channel of one's own.
    pub(super) async fn channel(&self, tried: &str) -> Result<Channel> {
        let tried = format!("{tried} at the broker {}", self.name);
        self.connection.create_channel().await.map_err(|error| explain(&tried, &error))
    }

    /// The channel that publishes, to be used by one at a time.
    pub(super) async fn first(&self) -> tokio::sync::MutexGuard<'_, Channel> {
        self.first.lock().await
    }

    /// The next message of a queue, if one waits. A queue that is not there is declared.
    pub(super) async fn get(&self, queue: &str, tried: &str) -> Result<Option<BasicGetMessage>> {
        let row = lock(&self.rows).entry(queue.to_owned()).or_default().clone();
        let mut seat = free_seat(&row).await;
        let mut again = true;
        loop {
            // Out of its seat: should this end early, the channel ends, and what it may still be given is given back.
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
                // Deleted since it was declared; or the channel ended meanwhile.
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

    /// Whether the broker answers at all.
    pub(super) async fn answers(&self) -> bool {
        let channel = tokio::time::timeout(ANSWER, self.connection.create_channel()).await;
        matches!(channel, Ok(Ok(_)))
    }

    /// Declares a queue, if that was not done on this connection.
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

    /// Whether the broker has told us to wait: it is out of memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Whether a queue is known to be there.
    pub(super) fn note_declared(&self, queue: &str, is_there: bool) {
        let mut declared = lock(&self.declared);
        match is_there {
            true => _ = declared.insert(queue.to_owned()),
            false => _ = declared.remove(queue),
        }
    }
}

/// A place in a row that nobody uses, else the next to be free of one of them.
async fn free_seat(row: &Row) -> tokio::sync::MutexGuard<'_, Option<Channel>> {
    for seat in row {
        if let Ok(seat) = seat.try_lock() {
            return seat;
        }
    }
    let any = rand::rng().random_range(0..SEATS);
    row[any].lock().await
}

/// A panic elsewhere leaves these whole: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether it says that a queue or an exchange is not there.
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::NOTFOUND)
}

fn is_soft(error: &lapin::Error, wanted: &AMQPSoftError) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(soft) if soft == wanted))
}

/// An error of the client or the broker, for people.
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
