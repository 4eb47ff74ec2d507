//! A connection that is made anew when it is needed and gone.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lapin::options::ConfirmSelectOptions;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use rand::Rng as _;

use super::{RabbitSettings, topology, unreachable};
use crate::config::SecretUrl;
use crate::error::{Class, Error, Result};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a peer may be silent, in seconds, before it counts as gone; named in the URL, that holds.
const HEARTBEAT: u16 = 20;
/// Channels that take messages: each waits for the answer to one question at a time.
pub(super) const CHANNELS: usize = 6;
/// The shortest and the longest pause between two attempts to connect.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

/// One of the two connections.
pub(super) struct Line {
    url: SecretUrl,
    settings: RabbitSettings,
    publishes: bool,
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Option<Arc<Live>>,
    /// Attempts that failed in a row, the last one's error, and when to try again.
    failed: Option<(u32, String, Instant)>,
}

/// A connection while it lives.
pub(super) struct Live {
    name: String,
    connection: Connection,
    channels: Vec<tokio::sync::Mutex<Channel>>,
    /// Queues of lanes that were declared on it.
    declared: Mutex<HashSet<String>>,
}

impl Line {
    pub(super) fn new(url: &SecretUrl, settings: &RabbitSettings, publishes: bool) -> Line {
        Line { url: url.clone(), settings: settings.clone(), publishes, state: Default::default() }
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
        if let Some((_, detail, again)) = &state.failed
            && *again > Instant::now()
        {
            return Err(unreachable(&tried, detail));
        }
        let made = match tokio::time::timeout(CONNECT, self.connect()).await {
            Ok(Ok(live)) => Ok(live),
            Ok(Err(error)) => Err(self.explain(&tried, &error)),
            Err(_) => Err(unreachable(&tried, "no answer in time")),
        };
        match made {
            Ok(live) => {
                let live = Arc::new(live);
                *state = State { live: Some(live.clone()), failed: None };
                Ok(live)
            }
            Err(error) => {
                let failures = state.failed.as_ref().map_or(0, |(failures, ..)| *failures) + 1;
                let pause = (PAUSES[0] * 2_u32.saturating_pow(failures.min(6) - 1)).min(PAUSES[1]);
                let jittered = rand::rng().random_range(pause / 2..=pause);
                state.failed = Some((failures, error.detail().to_owned(), Instant::now() + jittered));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> lapin::Result<Live> {
        let uri: std::result::Result<AMQPUri, _> = self.url.expose().as_str().parse();
        let mut uri = uri.map_err(|error| lapin::Error::from(ErrorKind::AuthProviderError(error.to_string())))?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let what = if self.publishes { "publishes" } else { "takes" };
        let name = format!("{} {what}", self.settings.name);
        let options = ConnectionProperties::default().with_connection_name(name.into());
        let tls = OwnedTLSConfig { identity: None, cert_chain: self.settings.ca.clone() };
        let runtime = lapin::runtime::default_runtime()?;
        let connection = Connection::connect_uri_with_config(uri, options, tls, runtime).await?;
        let first = connection.create_channel().await?;
        topology::declare(&first, &self.settings).await?;
        let mut channels = vec![first];
        match self.publishes {
            true => channels[0].confirm_select(ConfirmSelectOptions::default()).await?,
            false => {
                while channels.len() < CHANNELS {
                    channels.push(connection.create_channel().await?);
                }
            }
        }
        let channels = channels.into_iter().map(tokio::sync::Mutex::new).collect();
        Ok(Live { name: self.name(), connection, channels, declared: Mutex::default() })
    }

    pub(super) fn explain(&self, tried: &str, error: &lapin::Error) -> Error {
        explain(tried, error)
    }
}

impl Live {
    /// Whether it and all of its channels live.
    fn is_whole(&self) -> bool {
        let lives = |channel: &tokio::sync::Mutex<Channel>| {
            channel.try_lock().map_or(true, |channel| channel.status().connected())
        };
        self.connection.status().connected() && self.channels.iter().all(lives)
    }

    /// A channel of one's own.
    pub(super) async fn channel(&self, tried: &str) -> Result<Channel> {
        let tried = format!("{tried} at the broker {}", self.name);
        self.connection.create_channel().await.map_err(|error| explain(&tried, &error))
    }

    /// The channels, each to be used by one at a time.
    pub(super) fn channels(&self) -> &[tokio::sync::Mutex<Channel>] {
        &self.channels
    }

    /// Whether the broker has told us to wait: it is out of memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Whether a lane's queue was declared on this connection.
    pub(super) fn is_declared(&self, queue: &str) -> bool {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).contains(queue)
    }

    pub(super) fn note_declared(&self, queue: &str, is_there: bool) {
        let mut declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        match is_there {
            true => _ = declared.insert(queue.to_owned()),
            false => _ = declared.remove(queue),
        }
    }
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
        ErrorKind::ProtocolError(_) if is_soft(error, &AMQPSoftError::PRECONDITIONFAILED) => {
            Error::new(Class::Invalid, tried, text)
                .hint("a queue is there with other arguments: delete it, if it is imgsync's (tasks in it are planned again), and tune queues by policies")
        }
        ErrorKind::ProtocolError(_) if is_soft(error, &AMQPSoftError::ACCESSREFUSED) => {
            Error::new(Class::Denied, tried, text)
                .hint("check user and password in the broker's URL (amqp://user:password@host:5672/vhost), and that the user may configure, write and read in that virtual host")
        }
        ErrorKind::ProtocolError(error) if text.contains("NOT_ALLOWED") || text.contains("vhost") => {
            let _ = error;
            Error::new(Class::Denied, tried, text)
                .hint("check the virtual host in the broker's URL (amqp://user:password@host:5672/vhost), and whether the user may use it")
        }
        ErrorKind::AuthProviderError(_) => Error::new(Class::Invalid, tried, text),
        ErrorKind::InvalidProtocolVersion(_) | ErrorKind::ParsingError(_) => {
            Error::new(Class::BadAnswer, tried, text).hint("is that a RabbitMQ server's AMQP port?")
        }
        ErrorKind::IOError(error) => {
            // A broker that does not know the user closes the connection without a word, some versions of it.
            Error::new(Class::Unreachable, tried, error.to_string())
                .hint("check that RabbitMQ is running there, user and password, and whether a firewall is in between")
        }
        _ => Error::new(Class::Unreachable, tried, text),
    }
}
