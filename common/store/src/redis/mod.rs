//! The store of a cluster: Redis (7 and later) or Valkey. One server, not a Redis Cluster: scripts touch keys of
//! several hash slots.
//!
//! Only the Lua scripts in `lua` move task states, and they move the counters in the same step. Each script is safe to
//! run twice, because a command in flight when a connection broke may have taken effect. Leases and ages are measured
//! by the server's clock. Unfinished batches have no expiry; caches have, so that `maxmemory-policy volatile-lru`
//! evicts caches first.

mod blob_index;
mod cache;
mod connection;
mod error;
mod error_codes;
mod leases;
mod ledger;
mod provenance;
mod push_inbox;
mod queries;
mod rate_limit;
mod records;
mod schedules;
mod scripts;
mod segment;
mod sentinel;
mod server;
mod signed;
mod timeline;
mod worker_registry;
mod write_loss;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use ::redis::FromRedisValue;

use self::connection::{OpenConnection, ReconnectingConnection};
use self::error::RedisCallError;
use self::scripts::Scripts;
use self::server::Inspection;
use self::write_loss::WriteCounter;
use super::cache::CacheEntry;
use super::clock::Clock;
use super::{IdempotencyKey, StoreReplication, WorkerRegistry as _};
use crate::log_throttle;
use crate::outage::{OutageKind, ServerHealth};
use crate::push_inbox::UnreadablePushes;
use imgsync_model::batch::{BatchId, SigningKey};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::retry::{RetryBudget, RetryPolicy, RetryState};
use imgsync_oci::secret::Secret;
use imgsync_oci::store_url::StoreUrl;

/// Version of the stored format.
const FORMAT_VERSION: u32 = 1;
/// Retries when opening a store. The caller waits longer if it wants to, and says so.
const OPEN_RETRY_POLICY: RetryPolicy = RetryPolicy {
    attempts: 3,
    first_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(1),
    max_retry_after: Duration::from_secs(1),
    rate_limit_timeout: Duration::ZERO,
};

/// How often a store that refused a write is probed.
const WRITE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Batches whose chunk indexes are cached; a process works on a few at a time.
const MAX_CACHED_BATCHES: usize = 64;

/// Options of a store.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Prefix of all keys.
    pub prefix: String,
    /// Retries of a call while the store is unreachable.
    pub retry_policy: RetryPolicy,
    /// Whether to log warnings about the server's configuration when it is opened.
    pub log_warnings: bool,
    /// A CA certificate to trust besides the system's, as PEM.
    pub ca: Option<Vec<u8>>,
    /// Login of the Sentinels, if they require one.
    pub sentinel_login: Option<SentinelLogin>,
    /// Authenticates plans, options and provenance (`cluster.key`); others are rejected.
    pub key: Option<SigningKey>,
    /// Clock for tests. `None`: the server's clock.
    pub clock: Option<Arc<dyn Clock>>,
}

impl Default for RedisOptions {
    fn default() -> RedisOptions {
        RedisOptions {
            prefix: "imgsync:".to_owned(),
            retry_policy: OPEN_RETRY_POLICY,
            log_warnings: false,
            ca: None,
            sentinel_login: None,
            key: None,
            clock: None,
        }
    }
}

impl RedisOptions {
    /// Options for long-running processes, which wait out restarts and outages of some minutes.
    pub fn long_running() -> RedisOptions {
        let retry_policy = RetryPolicy {
            attempts: 200,
            first_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(10),
            max_retry_after: Duration::from_secs(10),
            rate_limit_timeout: Duration::ZERO,
        };
        RedisOptions { retry_policy, log_warnings: true, ..RedisOptions::default() }
    }
}

/// User and password of Sentinels.
#[derive(Debug, Clone)]
pub struct SentinelLogin {
    /// User; `None`: the default user.
    pub username: Option<String>,
    /// Password.
    pub password: Secret,
}

/// A [`Store`](super::Store) in Redis. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct RedisStore(Arc<Inner>);

struct Inner {
    connection: ReconnectingConnection,
    health: ServerHealth,
    /// For messages, without the password.
    name: String,
    options: RedisOptions,
    /// Whether the store has a format version. Opening it for reading must not write.
    has_version: AtomicBool,
    /// Whether opening has finished. Until then the caller reports what it waits for.
    is_open: AtomicBool,
    scripts: Scripts,
    /// First indexes of the chunks of a batch's plan, which only grow.
    chunks: Mutex<GenerationalCache<BatchId, Arc<Vec<u32>>>>,
    /// Known position of the next chunk of a batch's plan. Locked while one is added: its signature covers its
    /// position.
    plan_ends: tokio::sync::Mutex<GenerationalCache<BatchId, PlanEnd>>,
    /// Whether the server had replicas when the store was opened.
    has_replicas: AtomicBool,
    /// Counter of this process, once it watches for lost writes.
    write_counter: OnceLock<WriteCounter>,
    /// Number of times that the store was found to have lost writes.
    write_losses: tokio::sync::watch::Sender<u64>,
    /// The scope that an export is reading, in order.
    export_page: Mutex<Option<cache::ExportPage>>,
    unreadable_pushes: UnreadablePushes,
}

/// Size of a plan: its tasks and its chunks.
#[derive(Debug, Clone, Copy, Default)]
struct PlanEnd {
    tasks: u32,
    chunks: u64,
}

impl RedisStore {
    /// Connects and checks the server. The error says what is wrong with the address, the password or the server; a
    /// transient one is the caller's to wait out.
    pub async fn connect(url: &StoreUrl, options: RedisOptions) -> Result<RedisStore> {
        imgsync_tls::install_tls_provider();
        let health = ServerHealth::new(format!("the store {url}"));
        let connection = ReconnectingConnection::new(url, &options, health.clone()).map_err(|error| {
            Error::new(ErrorKind::Invalid, format!("connecting to the store {url}"), error::message(&error))
        })?;
        let store = RedisStore(Arc::new(Inner {
            connection,
            health,
            name: url.to_string(),
            options,
            has_version: AtomicBool::new(false),
            is_open: AtomicBool::new(false),
            scripts: Scripts::new(),
            chunks: Mutex::new(new_batch_cache()),
            plan_ends: tokio::sync::Mutex::new(new_batch_cache()),
            has_replicas: AtomicBool::new(false),
            write_counter: OnceLock::new(),
            write_losses: tokio::sync::watch::Sender::new(0),
            export_page: Mutex::default(),
            unreadable_pushes: UnreadablePushes::default(),
        }));
        store.check_server().await?;
        store.check_version().await?;
        store.0.is_open.store(true, Ordering::Relaxed);
        Ok(store)
    }

    /// Refuses a server that may evict keys that must not be lost.
    async fn check_server(&self) -> Result<()> {
        let operation = format!("connecting to the store {}", self.0.name);
        let mut retry = open_retry();
        let inspected = loop {
            match self.0.connection.get().await {
                Ok(mut open) => match Inspection::query(&mut open.client).await {
                    Ok(inspected) => break inspected,
                    Err(call_error) => self.wait_before_retry(&mut retry, &operation, Some(&open), &call_error).await?,
                },
                Err(call_error) => self.wait_before_retry(&mut retry, &operation, None, &call_error).await?,
            }
        };
        inspected.check().map_err(|call_error| call_error.to_error(&operation))?;
        // Sentinels watch nothing without replicas.
        let has_replicas = inspected.has_replicas() || self.0.connection.replication().is_some();
        self.0.has_replicas.store(has_replicas, Ordering::Relaxed);
        if self.0.options.log_warnings {
            for warning in inspected.warnings() {
                tracing::warn!("the store {}: {warning}", self.0.name);
            }
        }
        Ok(())
    }

    /// Refuses data of a newer program.
    async fn check_version(&self) -> Result<()> {
        let operation = format!("opening the store {}", self.0.name);
        let mut pipe = redis::pipe();
        pipe.get(self.key("version"));
        let (found,): (Option<u32>,) = self.query_within(open_retry(), &operation, &pipe).await?;
        self.0.has_version.store(found.is_some(), Ordering::Relaxed);
        match found {
            Some(found) if found > FORMAT_VERSION => {
                let detail =
                    format!("a newer imgsync uses it (version {found} of the store, this one knows {FORMAT_VERSION})");
                Err(Error::new(ErrorKind::Local, operation, detail)
                    .with_hint("use that imgsync, or another database of the server"))
            }
            _ => Ok(()),
        }
    }

    /// Writes the format version, if there is none, before lasting data is written.
    async fn write_version(&self, operation: &str) -> Result<()> {
        if self.0.has_version.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        pipe.set_nx(self.key("version"), FORMAT_VERSION).ignore();
        self.query::<()>(operation, &pipe).await?;
        self.0.has_version.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the server's health as seen by the calls of this process.
    pub fn health(&self) -> &ServerHealth {
        &self.0.health
    }

    /// Returns what the Sentinels and the master say of the servers.
    async fn read_replication(&self) -> StoreReplication {
        let known = self.0.connection.replication().unwrap_or_default();
        let mut info = redis::pipe();
        info.cmd("INFO").arg("replication");
        // The master may be away, or not allow the command: what the Sentinels say is known all the same.
        let answer: Result<(String,)> = self.query_once("reading the replicas of the store", &info).await;
        let replicas = answer.ok().map(|(text,)| server::parse_replicas(&text));
        StoreReplication { replicas, ..known }
    }

    /// Sends a pipeline without retries, once to each master.
    async fn query_once<T: FromRedisValue>(&self, operation: &str, pipe: &redis::Pipeline) -> Result<T> {
        loop {
            let mut open = self.0.connection.get().await.map_err(|call_error| call_error.to_error(operation))?;
            let replaced = open.replaced();
            match OpenConnection::reply(&replaced, pipe.query_async(&mut open.client)).await {
                Ok(answer) => return Ok(self.record_success(answer)),
                // This master has not been asked yet.
                Err(RedisCallError::MasterReplaced) => {}
                Err(call_error) => {
                    self.abandon_if_broken(&open, &call_error);
                    return Err(call_error.to_error(operation));
                }
            }
        }
    }

    fn signing_key(&self) -> Option<&SigningKey> {
        self.0.options.key.as_ref()
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.0.options.prefix)
    }

    fn batch_key(&self, batch: BatchId) -> String {
        format!("{}{{{batch}}}", self.0.options.prefix)
    }

    /// Returns the key that marks a request as done.
    fn request_key(&self, request: IdempotencyKey) -> String {
        self.key(&format!("request:{request}"))
    }

    /// Returns the time of the options' clock, if any, in milliseconds since 1970.
    fn clock_override_ms(&self) -> Option<i64> {
        self.0.options.clock.as_ref().map(|clock| clock.now().as_millisecond())
    }

    /// Returns the current time by the server's clock, in milliseconds since 1970.
    async fn now(&self, operation: &str) -> Result<i64> {
        if let Some(now) = self.clock_override_ms() {
            return Ok(now);
        }
        let mut time = redis::pipe();
        time.cmd("TIME");
        let ((seconds, micros),): ((i64, i64),) = self.query(operation, &time).await?;
        Ok(seconds * 1000 + micros / 1000)
    }

    /// Sends a pipeline, retrying by the options' policy.
    async fn query<T: FromRedisValue>(&self, operation: &str, pipe: &redis::Pipeline) -> Result<T> {
        self.query_within(self.new_retry(), operation, pipe).await
    }

    async fn query_within<T: FromRedisValue>(
        &self,
        mut retry: RetryState,
        operation: &str,
        pipe: &redis::Pipeline,
    ) -> Result<T> {
        loop {
            match self.0.connection.get().await {
                Ok(mut open) => {
                    let replaced = open.replaced();
                    match OpenConnection::reply(&replaced, pipe.query_async(&mut open.client)).await {
                        Ok(answer) => return Ok(self.record_success(answer)),
                        Err(call_error) => {
                            self.wait_before_retry(&mut retry, operation, Some(&open), &call_error).await?
                        }
                    }
                }
                Err(call_error) => self.wait_before_retry(&mut retry, operation, None, &call_error).await?,
            }
        }
    }

    /// Runs a script, retrying by the options' policy.
    async fn run_script<T: FromRedisValue>(
        &self,
        operation: &str,
        script: &redis::Script,
        call: ScriptCall,
    ) -> Result<T> {
        let mut invocation = script.prepare_invoke();
        for key in &call.keys {
            invocation.key(key);
        }
        invocation.arg(self.clock_override_ms().map(|time| time.to_string()).unwrap_or_default());
        for arg in &call.args {
            invocation.arg(arg.as_slice());
        }
        let mut retry = self.new_retry();
        loop {
            match self.0.connection.get().await {
                Ok(mut open) => {
                    let replaced = open.replaced();
                    match OpenConnection::reply(&replaced, invocation.invoke_async(&mut open.client)).await {
                        Ok(answer) => return Ok(self.record_success(answer)),
                        Err(call_error) => {
                            self.wait_before_retry(&mut retry, operation, Some(&open), &call_error).await?
                        }
                    }
                }
                Err(call_error) => self.wait_before_retry(&mut retry, operation, None, &call_error).await?,
            }
        }
    }

    fn record_success<T>(&self, answer: T) -> T {
        self.0.health.record_recovery(OutageKind::Unreachable);
        answer
    }

    /// Waits before the next attempt, or returns the final error. Replaces the connection if that may help.
    async fn wait_before_retry(
        &self,
        retry: &mut RetryState,
        operation: &str,
        open: Option<&OpenConnection>,
        call_error: &RedisCallError,
    ) -> Result<()> {
        if matches!(call_error, RedisCallError::MasterReplaced) {
            return Ok(());
        }
        if let Some(open) = open {
            self.abandon_if_broken(open, call_error);
        }
        let (error, is_open) = (call_error.to_error(operation), self.0.is_open.load(Ordering::Relaxed));
        if is_open {
            self.record_outage(&error);
        }
        let (delay, error) = retry.next_delay(error)?;
        if is_open {
            let (kind, line) = (format!("retrying the store: {}", error.kind()), format!("{error}; retrying"));
            // The server answers but refuses, which may need an operator. Whoever follows the outages reports it.
            if error.kind() == ErrorKind::ServerError && !self.0.health.has_subscribers() {
                let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
                log_throttle::warn(&kind, &format!("the store {}: {line}{hint}", self.0.name));
            } else {
                log_throttle::info(&kind, &line);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            // Another call has reached the server.
            () = self.0.connection.wait_until_opened(), if open.is_none() => {}
        }
        Ok(())
    }

    fn abandon_if_broken(&self, open: &OpenConnection, call_error: &RedisCallError) {
        if call_error.ends_connection() {
            self.0.connection.abandon(open);
        }
        if call_error.doubts_master() {
            self.0.connection.check_master();
        }
    }

    /// Distinguishes an outage from an error of this call alone. Only a write shows that a store accepts writes again.
    fn record_outage(&self, error: &Error) {
        match error.kind() {
            ErrorKind::Unreachable => {
                _ = self.0.health.record_failure(OutageKind::Unreachable, error.message(), error.hint())
            }
            ErrorKind::ServerError
                if self.0.health.record_failure(OutageKind::RefusesWrites, error.message(), error.hint()) =>
            {
                tokio::spawn(wait_until_writable(Arc::downgrade(&self.0)));
            }
            _ => {}
        }
    }

    fn new_retry(&self) -> RetryState {
        let RetryPolicy { attempts, .. } = self.0.options.retry_policy;
        RetryState::new(self.0.options.retry_policy, &RetryBudget::new(attempts))
    }
}

/// Probes a store that refused a write until it accepts one.
async fn wait_until_writable(store: Weak<Inner>) {
    loop {
        tokio::time::sleep(WRITE_CHECK_INTERVAL).await;
        let Some(store) = store.upgrade().map(RedisStore) else { return };
        if store.check_writes().await.is_ok() {
            return store.0.health.record_recovery(OutageKind::RefusesWrites);
        }
    }
}

fn new_batch_cache<T>() -> GenerationalCache<BatchId, T> {
    GenerationalCache::new(MAX_CACHED_BATCHES)
}

fn open_retry() -> RetryState {
    RetryState::new(OPEN_RETRY_POLICY, &RetryBudget::new(OPEN_RETRY_POLICY.attempts))
}

/// Keys and arguments of a script.
#[derive(Default)]
struct ScriptCall {
    keys: Vec<String>,
    args: Vec<Vec<u8>>,
}

impl ScriptCall {
    fn new(key: impl Into<String>) -> ScriptCall {
        ScriptCall { keys: vec![key.into()], args: Vec::new() }
    }

    fn key(mut self, key: impl Into<String>) -> ScriptCall {
        self.keys.push(key.into());
        self
    }

    fn arg(mut self, arg: impl fmt::Display) -> ScriptCall {
        self.args.push(arg.to_string().into_bytes());
        self
    }

    fn bytes(mut self, arg: impl Into<Vec<u8>>) -> ScriptCall {
        self.args.push(arg.into());
        self
    }
}

fn corrupt_store(operation: &str, detail: &str) -> Error {
    Error::new(ErrorKind::Local, operation, format!("the store is damaged: {detail}"))
}

fn timestamp(millis: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(millis).unwrap_or_default()
}

fn duration_ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}

impl Inner {
    fn chunks(&self) -> std::sync::MutexGuard<'_, GenerationalCache<BatchId, Arc<Vec<u32>>>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisStore({})", self.0.name)
    }
}

/// Returns whether an entry comes after the last one of an export page.
fn is_after(entry: &CacheEntry, after: Option<&CacheEntry>) -> bool {
    let key = |entry: &CacheEntry| {
        (entry.registry.to_string(), entry.repository.clone(), entry.options.clone(), entry.tag.clone())
    };
    after.is_none_or(|after| key(entry) > key(after))
}
