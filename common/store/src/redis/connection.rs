//! The connection to Redis: one for all calls of a store, replaced when it is unusable.
//!
//! The client's own connection manager replaces only dropped connections. It keeps one to a server that became a
//! replica or stopped answering, and cannot be told to resolve the server again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::io::tcp::socket2::TcpKeepalive;
use ::redis::{AsyncConnectionConfig, IntoConnectionInfo as _, RedisConnectionInfo, RedisResult};
use rand::Rng as _;
use tokio::time::Instant;

use super::error::RedisCallError;
use super::server;
use imgsync_oci::secret_url::SecretUrl;

/// Timeout of a reply: machines may be far apart.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of connecting, and again of the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long sent data may stay unacknowledged before the connection is replaced: after a change of the own address it
/// would otherwise wait for a quarter of an hour. A slow server does not matter: its machine acknowledges.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);
/// Delay after the first connection that failed or did not last. It doubles up to [`MAX_RECONNECT_DELAY`].
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(100);
/// Maximum delay before a connection: a failover takes seconds.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// After a connection that lasted this long, the next is opened at once.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// An open connection.
#[derive(Clone)]
pub(super) struct OpenConnection {
    pub(super) client: MultiplexedConnection,
    /// Sequence number of the connection.
    number: u64,
}

/// The connection, open or not.
pub(super) struct ReconnectingConnection {
    server: redis::Client,
    login: RedisConnectionInfo,
    config: AsyncConnectionConfig,
    current: Mutex<Option<OpenConnection>>,
    /// Locked while connecting: a store opens one connection at a time.
    attempts: tokio::sync::Mutex<ConnectAttempts>,
}

/// History of connection attempts.
#[derive(Default)]
struct ConnectAttempts {
    number: u64,
    /// When the last attempt succeeded or failed.
    last: Option<Instant>,
    /// Error of the last attempt, unless it succeeded.
    failure: Option<RedisCallError>,
    /// Delay before the next attempt.
    delay: Duration,
}

impl ReconnectingConnection {
    /// Creates a connection without opening it. The error says what is wrong with the address.
    pub(super) fn new(url: &SecretUrl, ca: Option<&[u8]>) -> RedisResult<ReconnectingConnection> {
        let server = url.expose().as_str().into_connection_info()?;
        // Login and database selection are ours: the client hides the error codes of a refusal.
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
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        Ok(ReconnectingConnection {
            server: server?,
            login,
            config,
            current: Mutex::default(),
            attempts: Default::default(),
        })
    }

    /// Returns the open connection, or opens one. Concurrent callers share one attempt.
    pub(super) async fn get(&self) -> Result<OpenConnection, RedisCallError> {
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
            None if lasted.is_none_or(|lasted| lasted >= STABLE_AFTER) => attempts.delay = Duration::ZERO,
            _ => {
                attempts.delay = (attempts.delay * 2).clamp(MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY);
                // Spread out over processes that lost the same server at the same moment.
                let pause = rand::rng().random_range(attempts.delay / 2..=attempts.delay);
                tokio::time::sleep(pause.saturating_sub(lasted.unwrap_or_default())).await;
            }
        }
        let opened = self.open().await;
        attempts.last = Some(Instant::now());
        match opened {
            Ok(client) => {
                attempts.failure = None;
                attempts.number += 1;
                let open = OpenConnection { client, number: attempts.number };
                *self.current() = Some(open.clone());
                Ok(open)
            }
            Err(call_error) => {
                // Wait for a login that worked before: a password may change on the server before it changes here.
                let call_error = if attempts.number > 0 { call_error.into_changed_login() } else { call_error };
                attempts.failure = Some(call_error.clone());
                Err(call_error)
            }
        }
    }

    /// Drops a connection, unless it has been replaced. Calls in flight on it still get their replies.
    pub(super) fn abandon(&self, open: &OpenConnection) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|current| current.number == open.number) {
            *current = None;
        }
    }

    /// Opens a connection and checks the server.
    async fn open(&self) -> Result<MultiplexedConnection, RedisCallError> {
        let server = self.resolve_server().await?;
        let link = server.get_multiplexed_async_connection_with_config(&self.config).await;
        let mut link = link.map_err(RedisCallError::Redis)?;
        match tokio::time::timeout(CONNECT_TIMEOUT, server::handshake(&mut link, &self.login)).await {
            Ok(greeted) => greeted.map(|()| link),
            Err(_) => Err(RedisCallError::Redis(std::io::Error::from(std::io::ErrorKind::TimedOut).into())),
        }
    }

    /// Returns the server to connect to. The only place asked before each connection.
    async fn resolve_server(&self) -> Result<redis::Client, RedisCallError> {
        Ok(self.server.clone())
    }

    fn current(&self) -> MutexGuard<'_, Option<OpenConnection>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(TCP_USER_TIMEOUT).with_interval(TCP_USER_TIMEOUT / 3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(TCP_USER_TIMEOUT);
    settings
}
