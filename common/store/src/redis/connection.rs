//! The connection to Redis: one for all calls of a store, replaced when it is unusable, or when the Sentinels name
//! another master.
//!
//! The client's own connection manager replaces only dropped connections. It keeps one to a server that became a
//! replica or stopped answering, and cannot be told to resolve the server again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::io::tcp::socket2::TcpKeepalive;
use ::redis::{AsyncConnectionConfig, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo, RedisResult};
use rand::Rng as _;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::RedisOptions;
use super::error::RedisCallError;
use super::sentinel::{Master, MasterReport, Sentinels, at_address, open_client};
use super::server;
use crate::StoreReplication;
use crate::outage::ServerHealth;
use imgsync_oci::store_url::StoreUrl;

/// Timeout of a reply: machines may be far apart.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of connecting, and again of the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long sent data may stay unacknowledged before the connection is replaced: after a change of the own address it
/// would otherwise wait for a quarter of an hour. A slow server does not matter: its machine acknowledges.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);
/// Delay after the first connection that failed or did not last. It doubles up to [`MAX_RECONNECT_DELAY`].
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(100);
/// Maximum delay before a connection: a failover takes seconds, also until a name is that of the new master.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(1);
/// After a connection that lasted this long, the next is opened at once.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// An open connection.
#[derive(Clone)]
pub(super) struct OpenConnection {
    pub(super) client: MultiplexedConnection,
    /// Sequence number of the connection.
    number: u64,
    /// The server, if Sentinels have named it.
    master: Option<Master>,
    /// Cancelled when another server becomes the master: replies of this one do not count any more.
    replaced: CancellationToken,
}

impl OpenConnection {
    /// Waits for the reply to a call, unless another server becomes the master.
    pub(super) async fn reply<T>(
        replaced: &CancellationToken,
        call: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, RedisCallError> {
        match replaced.run_until_cancelled(call).await {
            Some(reply) => reply.map_err(RedisCallError::Redis),
            None => Err(RedisCallError::MasterReplaced),
        }
    }

    /// Returns the token for [`OpenConnection::reply`].
    pub(super) fn replaced(&self) -> CancellationToken {
        self.replaced.clone()
    }
}

/// The connection, open or not.
pub(super) struct ReconnectingConnection {
    server: Server,
    login: RedisConnectionInfo,
    config: AsyncConnectionConfig,
    health: ServerHealth,
    current: Arc<CurrentConnection>,
    /// Locked while connecting: a store opens one connection at a time.
    attempts: tokio::sync::Mutex<ConnectAttempts>,
    /// Notified of each new connection.
    opened: Notify,
}

/// Which server to connect to.
enum Server {
    /// The one of this address, resolved for each connection.
    Fixed(redis::Client),
    /// The one that the Sentinels name.
    Master {
        sentinels: Arc<Sentinels>,
        /// Without its address.
        server: ConnectionInfo,
        ca: Option<Vec<u8>>,
        /// Ends the task that watches the Sentinels.
        _watch: DropGuard,
    },
}

#[derive(Default)]
struct CurrentConnection(Mutex<Option<OpenConnection>>);

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
    pub(super) fn new(
        url: &StoreUrl,
        options: &RedisOptions,
        health: ServerHealth,
    ) -> RedisResult<ReconnectingConnection> {
        let server = url.server().expose().as_str().into_connection_info()?;
        // Login and database selection are ours: the client hides the error codes of a refusal.
        let login = server.redis_settings().clone();
        let tcp_settings = tcp_settings();
        let server = server.set_redis_settings(RedisConnectionInfo::default()).set_tcp_settings(tcp_settings.clone());
        let (current, ca) = (Arc::new(CurrentConnection::default()), options.ca.as_deref());
        let server = match url.sentinels() {
            None => Server::Fixed(open_client(server, ca)?),
            Some(group) => {
                let sentinels = Sentinels::new(url, group, options.sentinel_login.as_ref(), ca, &tcp_settings)?;
                let (sentinels, ended) = (Arc::new(sentinels), CancellationToken::new());
                let (watched, connection, watch) = (sentinels.clone(), current.clone(), ended.clone());
                tokio::spawn(async move {
                    let on_report = |report: &MasterReport| connection.check_master(report, watched.is_paused());
                    watch.run_until_cancelled(watched.watch(on_report)).await
                });
                Server::Master { sentinels, server, ca: options.ca.clone(), _watch: ended.drop_guard() }
            }
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        Ok(ReconnectingConnection {
            server,
            login,
            config,
            health,
            current,
            attempts: Default::default(),
            opened: Notify::new(),
        })
    }

    /// Returns the open connection, or opens one. Concurrent callers share one attempt.
    pub(super) async fn get(&self) -> Result<OpenConnection, RedisCallError> {
        if let Some(open) = self.current.lock().clone() {
            return Ok(open);
        }
        let asked_at = Instant::now();
        let mut attempts = self.attempts.lock().await;
        if let Some(open) = self.current.lock().clone() {
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
            Ok((client, master)) => {
                attempts.failure = None;
                attempts.number += 1;
                if let Some(master) = &master {
                    self.health.record_master(&master.name(), master.epoch);
                }
                let open =
                    OpenConnection { client, number: attempts.number, master, replaced: CancellationToken::new() };
                *self.current.lock() = Some(open.clone());
                self.opened.notify_waiters();
                Ok(open)
            }
            Err(call_error) => {
                let call_error = match &self.server {
                    _ if attempts.number == 0 => call_error,
                    // Wait for a login that worked before: a password may change on the server before it changes here.
                    Server::Fixed(_) => call_error.into_changed_login(),
                    // One Sentinel or server that is set up wrongly must not end what an outage of the others interrupts.
                    Server::Master { .. } => call_error.into_changed_login().into_outage(),
                };
                attempts.failure = Some(call_error.clone());
                Err(call_error)
            }
        }
    }

    /// Drops a connection, unless it has been replaced. Calls in flight on it still get their replies.
    pub(super) fn abandon(&self, open: &OpenConnection) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|current| current.number == open.number) {
            *current = None;
        }
    }

    /// Returns when another connection is opened.
    pub(super) async fn wait_until_opened(&self) {
        self.opened.notified().await;
    }

    /// Asks the Sentinels, if there are any, whether the server is still the master.
    pub(super) fn check_master(&self) {
        if let Server::Master { sentinels, .. } = &self.server {
            sentinels.request_report();
        }
    }

    /// Returns what the Sentinels know, if there are any.
    pub(super) fn replication(&self) -> Option<StoreReplication> {
        match &self.server {
            Server::Fixed(_) => None,
            Server::Master { sentinels, .. } => Some(sentinels.replication()),
        }
    }

    /// Opens a connection and checks the server.
    async fn open(&self) -> Result<(MultiplexedConnection, Option<Master>), RedisCallError> {
        let (sentinels, server, ca) = match &self.server {
            Server::Fixed(server) => return Ok((self.connect(server).await?, None)),
            Server::Master { sentinels, server, ca, .. } => (sentinels, server, ca),
        };
        loop {
            let known = sentinels.newest_epoch();
            let master = sentinels.find_master().await?;
            let known = known.max(master.epoch);
            let client = open_client(at_address(server, &master.host, master.port), ca.as_deref());
            let client = client.map_err(RedisCallError::Redis)?;
            // A frozen master accepts connections and says nothing.
            tokio::select! {
                opened = self.connect(&client) => match opened {
                    // A failover has begun, or ended, meanwhile.
                    Ok(_) if sentinels.is_paused() || sentinels.newest_epoch() > known => {}
                    Ok(link) => return Ok((link, Some(master))),
                    Err(call_error) => return Err(call_error.at_master(&master.name())),
                },
                () = sentinels.wait_for_newer(known) => {}
            }
        }
    }

    async fn connect(&self, server: &redis::Client) -> Result<MultiplexedConnection, RedisCallError> {
        let link = server.get_multiplexed_async_connection_with_config(&self.config).await;
        let mut link = link.map_err(RedisCallError::Redis)?;
        match tokio::time::timeout(CONNECT_TIMEOUT, server::handshake(&mut link, &self.login)).await {
            Ok(greeted) => greeted.map(|()| link),
            Err(_) => Err(RedisCallError::timed_out()),
        }
    }
}

impl CurrentConnection {
    /// Drops the connection if another server is the master, or is becoming it.
    fn check_master(&self, report: &MasterReport, is_paused: bool) {
        let mut current = self.lock();
        let Some(open) = current.as_mut() else { return };
        let Some(master) = open.master.as_mut().filter(|master| report.master.epoch >= master.epoch) else { return };
        // Sentinels may give the same server different names, so only a later epoch shows that there is another.
        let is_later = report.master.epoch > master.epoch;
        if is_paused || is_later && !report.master.is_same_server(master) {
            open.replaced.cancel();
            *current = None;
        } else if is_later {
            master.epoch = report.master.epoch;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<OpenConnection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(TCP_USER_TIMEOUT).with_interval(TCP_USER_TIMEOUT / 3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(TCP_USER_TIMEOUT);
    settings
}
