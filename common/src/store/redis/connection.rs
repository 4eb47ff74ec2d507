//! The connection to Redis: one for all calls of a store, replaced when it is of no use any more.
//!
//! The client's own manager replaces a connection that was dropped. It keeps one to a server that has become a replica or
//! does not answer any more, and cannot be told to look again whom to connect to.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::io::tcp::socket2::TcpKeepalive;
use ::redis::{AsyncConnectionConfig, IntoConnectionInfo as _, RedisConnectionInfo, RedisResult};
use rand::Rng as _;
use tokio::time::Instant;

use super::fault::Fault;
use super::server;
use crate::config::SecretUrl;

/// How long an answer is waited for: machines may be far apart.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is waited for, and then as long for the server to say who it is.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long what was sent may go unacknowledged by the other machine before the connection is made anew: one whose own
/// address has changed would wait for a quarter of an hour. A slow server is no reason: its machine acknowledges.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// The pause after the first connection that failed or did not last. It doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before a connection: a failover takes seconds.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// After a connection that was good for so long the next is opened at once.
const LASTING: Duration = Duration::from_secs(5);

/// A connection that is open.
#[derive(Clone)]
pub(super) struct OpenConnection {
    pub(super) link: MultiplexedConnection,
    /// Which one it is, in the order in which they were opened.
    number: u64,
}

/// The connection, open or not.
pub(super) struct Connection {
    server: redis::Client,
    login: RedisConnectionInfo,
    config: AsyncConnectionConfig,
    current: Mutex<Option<OpenConnection>>,
    /// Held while one is opened: a store opens one at a time.
    attempts: tokio::sync::Mutex<Attempts>,
}

/// What came of opening connections so far.
#[derive(Default)]
struct Attempts {
    number: u64,
    /// When the last one was opened, or failed.
    last: Option<Instant>,
    /// With what the last one failed, unless it was opened.
    failure: Option<Fault>,
    /// Before the next one.
    pause: Duration,
}

impl Connection {
    /// A connection that is not open yet. An error says what is wrong with the address.
    pub(super) fn new(url: &SecretUrl, ca: Option<&[u8]>) -> RedisResult<Connection> {
        let server = url.expose().as_str().into_connection_info()?;
        // Logging in and choosing the database are ours: the client hides the codes with which a server refuses them.
        let login = server.redis_settings().clone();
        let server = server.set_redis_settings(RedisConnectionInfo::default()).set_tcp_settings(tcp_settings());
        let server = match ca {
            None => redis::Client::open(server),
            Some(ca) => redis::Client::build_with_tls(
                server,
                redis::TlsCertificates { client_tls: None, root_cert: Some(ca.to_vec()) },
            ),
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        Ok(Connection { server: server?, login, config, current: Mutex::default(), attempts: Default::default() })
    }

    /// Returns the open connection, or opens one. Who asks while one is opened shares what comes of it.
    pub(super) async fn get(&self) -> Result<OpenConnection, Fault> {
        if let Some(open) = self.current().clone() {
            return Ok(open);
        }
        let asked_at = Instant::now();
        let mut attempts = self.attempts.lock().await;
        if let Some(open) = self.current().clone() {
            return Ok(open);
        }
        let lasted = attempts.last.map(|last| last.elapsed());
        match &attempts.failure {
            Some(failure) if attempts.last.is_some_and(|last| last >= asked_at) => return Err(failure.clone()),
            None if lasted.is_none_or(|lasted| lasted >= LASTING) => attempts.pause = Duration::ZERO,
            _ => {
                attempts.pause = (attempts.pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
                // Apart from others that lost the same server at the same moment.
                let pause = rand::rng().random_range(attempts.pause / 2..=attempts.pause);
                tokio::time::sleep(pause.saturating_sub(lasted.unwrap_or_default())).await;
            }
        }
        let opened = self.open().await;
        attempts.last = Some(Instant::now());
        match opened {
            Ok(link) => {
                attempts.failure = None;
                attempts.number += 1;
                let open = OpenConnection { link, number: attempts.number };
                *self.current() = Some(open.clone());
                Ok(open)
            }
            Err(fault) => {
                // A login that was good is waited for: passwords are changed on servers before, or after, they are here.
                let fault = if attempts.number > 0 { fault.login_changed() } else { fault };
                attempts.failure = Some(fault.clone());
                Err(fault)
            }
        }
    }

    /// Lets go of a connection, unless another has taken its place. Calls that wait for their answers on it still do.
    pub(super) fn abandon(&self, open: &OpenConnection) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|current| current.number == open.number) {
            *current = None;
        }
    }

    /// Opens a connection to a server that can be used.
    async fn open(&self) -> Result<MultiplexedConnection, Fault> {
        let server = self.locate().await?;
        let link = server.get_multiplexed_async_connection_with_config(&self.config).await;
        let mut link = link.map_err(Fault::Said)?;
        match tokio::time::timeout(CONNECT_TIMEOUT, server::greet(&mut link, &self.login)).await {
            Ok(greeted) => greeted.map(|()| link),
            Err(_) => Err(Fault::Said(std::io::Error::from(std::io::ErrorKind::TimedOut).into())),
        }
    }

    /// Says whom to connect to: the one place that is asked before each connection.
    async fn locate(&self) -> Result<redis::Client, Fault> {
        Ok(self.server.clone())
    }

    fn current(&self) -> MutexGuard<'_, Option<OpenConnection>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(UNACKNOWLEDGED).with_interval(UNACKNOWLEDGED / 3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(UNACKNOWLEDGED);
    settings
}
