//! The store of a cluster: Redis (7 and later) or Valkey. One server, not a Redis Cluster: scripts touch keys of several
//! hash slots.
//!
//! Only the Lua scripts in `lua` move a task's state, and they move the counters in the same step; each is safe to run
//! twice, for a command that was in flight when a connection broke may have been done. Leases and ages are measured by the
//! server's clock. Live batches have no expiry; caches have, so that with `maxmemory-policy volatile-lru` these go first.

mod blob_index;
mod cache;
mod course;
mod leases;
mod ledger;
mod look;
mod origins;
mod pace;
mod roster;
mod schedules;
mod scripts;
mod signed;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::io::tcp::TcpSettings;
use ::redis::io::tcp::socket2::TcpKeepalive;
use ::redis::{ErrorKind, FromRedisValue, IntoConnectionInfo as _, RedisError, ServerErrorKind};

use self::scripts::Scripts;
use super::cache::CacheEntry;
use super::clock::Clock;
use crate::batch::{BatchId, SigningKey};
use crate::config::SecretUrl;
use crate::error::{Class, Error, Result};
use crate::generational::GenerationalCache;
use crate::repeated;
use crate::retry::{Budget, Policy, Retry};

/// The version of what is kept.
const VERSION: u32 = 1;
/// How long an answer is waited for: machines may be far apart.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a connection is waited for.
const CONNECT: Duration = Duration::from_secs(5);
/// How long what was sent may go unacknowledged by the other machine before the connection is made anew: one whose own
/// address has changed would wait for a quarter of an hour. A slow server is no reason: its machine acknowledges.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// Batches whose segments are remembered; a process works on a few at a time.
const MAX_BATCHES: usize = 64;

/// How a store is used.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// What all keys begin with.
    pub prefix: String,
    /// How long a call waits for a store that is out of reach, before it fails: how often it tries, with which pauses.
    pub patience: Policy,
    /// A certificate to trust besides the system's, as PEM.
    pub ca: Option<Vec<u8>>,
    /// Plans, options and provenance are authenticated with it (`cluster.key`), and others refused.
    pub key: Option<SigningKey>,
    /// What time it is; the server's clock where there is none, which is right for all but tests.
    pub clock: Option<Arc<dyn Clock>>,
}

impl Default for RedisOptions {
    fn default() -> RedisOptions {
        let patience = Policy {
            attempts: 3,
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(1),
            max_wait: Duration::from_secs(1),
            patience: Duration::ZERO,
        };
        RedisOptions { prefix: "imgsync:".to_owned(), patience, ca: None, key: None, clock: None }
    }
}

impl RedisOptions {
    /// For what goes on for long: a store that is restarted, or away for some minutes, is waited for.
    pub fn patient() -> RedisOptions {
        let patience = Policy {
            attempts: 200,
            first_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(10),
            max_wait: Duration::from_secs(10),
            patience: Duration::ZERO,
        };
        RedisOptions { patience, ..RedisOptions::default() }
    }
}

/// A [`Store`](super::Store) in Redis. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct RedisStore(Arc<Shared>);

struct Shared {
    connection: ConnectionManager,
    /// For messages: without a password.
    name: String,
    options: RedisOptions,
    scripts: Scripts,
    /// At which indexes the chunks of a batch's plan begin. They are only ever added to.
    chunks: Mutex<GenerationalCache<BatchId, Arc<Vec<u32>>>>,
    /// Where the next segment of a batch's plan goes, as far as is known. Held while one is added: its tag names its place.
    ends: tokio::sync::Mutex<GenerationalCache<BatchId, PlanEnd>>,
    /// What an export is reading, in order.
    page: Mutex<Option<cache::Page>>,
}

/// Where a plan ends: its tasks, and its segments.
#[derive(Debug, Clone, Copy, Default)]
struct PlanEnd {
    tasks: u32,
    segments: u64,
}

impl RedisStore {
    /// Connects. An error says what is wrong with the address, the password or the server.
    pub async fn connect(url: &SecretUrl, options: RedisOptions) -> Result<RedisStore> {
        crate::registry::install_tls_provider();
        let tried = format!("connecting to the store {url}");
        let invalid = |error: RedisError| Error::new(Class::Invalid, &tried, words(&error));
        let server = url.expose().as_str().into_connection_info().map_err(invalid)?.set_tcp_settings(tcp_settings());
        let client = match &options.ca {
            None => redis::Client::open(server),
            Some(ca) => redis::Client::build_with_tls(
                server,
                redis::TlsCertificates { client_tls: None, root_cert: Some(ca.clone()) },
            ),
        };
        let client = client.map_err(invalid)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER))
            .set_number_of_retries(2)
            .set_min_delay(Duration::from_millis(100))
            .set_max_delay(Duration::from_secs(5));
        let connection =
            ConnectionManager::new_with_config(client, config).await.map_err(|error| explain(&tried, &error))?;
        let store = RedisStore(Arc::new(Shared {
            connection,
            name: url.to_string(),
            options,
            scripts: Scripts::new(),
            chunks: Mutex::new(GenerationalCache::new(MAX_BATCHES)),
            ends: tokio::sync::Mutex::new(GenerationalCache::new(MAX_BATCHES)),
            page: Mutex::default(),
        }));
        store.check_version().await?;
        Ok(store)
    }

    /// Refuses what a newer program wrote.
    async fn check_version(&self) -> Result<()> {
        let tried = format!("opening the store {}", self.0.name);
        let key = self.key("version");
        let mut pipe = redis::pipe();
        pipe.set_nx(&key, VERSION).ignore().get(&key);
        let (found,): (u32,) = self.query(&tried, &pipe).await?;
        match found <= VERSION {
            true => Ok(()),
            false => {
                let detail =
                    format!("a newer imgsync uses it (version {found} of the store, this one knows {VERSION})");
                Err(Error::new(Class::Local, tried, detail).hint("use that imgsync, or another database of the server"))
            }
        }
    }

    /// Whether the server answers now; asked once, without patience.
    pub async fn is_alive(&self) -> bool {
        let mut connection = self.0.connection.clone();
        redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
    }

    fn signing_key(&self) -> Option<&SigningKey> {
        self.0.options.key.as_ref()
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.0.options.prefix)
    }

    fn base(&self, batch: BatchId) -> String {
        format!("{}{{{batch}}}", self.0.options.prefix)
    }

    /// The time of a clock of one's own, in milliseconds since 1970.
    fn own_time(&self) -> Option<i64> {
        self.0.options.clock.as_ref().map(|clock| clock.now().as_millisecond())
    }

    /// Now, by the server's clock, in milliseconds since 1970.
    async fn now(&self, tried: &str) -> Result<i64> {
        if let Some(now) = self.own_time() {
            return Ok(now);
        }
        let mut time = redis::pipe();
        time.cmd("TIME");
        let ((seconds, micros),): ((i64, i64),) = self.query(tried, &time).await?;
        Ok(seconds * 1000 + micros / 1000)
    }

    /// Asks until there is an answer, or patience is at its end.
    async fn query<T: FromRedisValue>(&self, tried: &str, pipe: &redis::Pipeline) -> Result<T> {
        let mut retry = self.retry();
        loop {
            match pipe.query_async(&mut self.0.connection.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => pause(&mut retry, explain(tried, &error)).await?,
            }
        }
    }

    /// Runs a script until there is an answer, or patience is at its end.
    async fn script<T: FromRedisValue>(&self, tried: &str, script: &redis::Script, call: Call) -> Result<T> {
        let mut invocation = script.prepare_invoke();
        for key in &call.keys {
            invocation.key(key);
        }
        invocation.arg(self.own_time().map(|time| time.to_string()).unwrap_or_default());
        for arg in &call.args {
            invocation.arg(arg.as_slice());
        }
        let mut retry = self.retry();
        loop {
            match invocation.invoke_async(&mut self.0.connection.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => pause(&mut retry, explain(tried, &error)).await?,
            }
        }
    }

    fn retry(&self) -> Retry {
        let Policy { attempts, .. } = self.0.options.patience;
        Retry::new(self.0.options.patience, &Budget::new(attempts))
    }
}

fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(UNACKNOWLEDGED).with_interval(UNACKNOWLEDGED / 3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(UNACKNOWLEDGED);
    settings
}

/// Waits before the next try, or gives the error to end with.
async fn pause(retry: &mut Retry, error: Error) -> Result<()> {
    let (delay, error) = retry.next_delay(error)?;
    repeated::info(&format!("the store: {}", error.detail()), &format!("{error}; asking again"));
    tokio::time::sleep(delay).await;
    Ok(())
}

/// Keys and arguments of a script.
#[derive(Default)]
struct Call {
    keys: Vec<String>,
    args: Vec<Vec<u8>>,
}

impl Call {
    fn on(key: impl Into<String>) -> Call {
        Call { keys: vec![key.into()], args: Vec::new() }
    }

    fn key(mut self, key: impl Into<String>) -> Call {
        self.keys.push(key.into());
        self
    }

    fn arg(mut self, arg: impl fmt::Display) -> Call {
        self.args.push(arg.to_string().into_bytes());
        self
    }

    fn bytes(mut self, arg: impl Into<Vec<u8>>) -> Call {
        self.args.push(arg.into());
        self
    }
}

/// An error of the client or the server, for people.
fn explain(tried: &str, error: &RedisError) -> Error {
    let text = words(error);
    // Of several commands at once the code is in the words alone.
    let code = error.code().or_else(|| text.contains("\"NOAUTH\"").then_some("NOAUTH")).unwrap_or_default();
    match error.kind() {
        _ if code == "OOM" => Error::new(Class::ServerError, tried, format!("the store is out of memory: {text}"))
            .hint("give it more (maxmemory), or let it forget caches (maxmemory-policy volatile-lru)"),
        _ if code == "MISCONF" => {
            Error::new(Class::ServerError, tried, format!("the store cannot write to its disk: {text}"))
                .hint("see the server's log and the room on its disk")
        }
        _ if code == "NOAUTH" || code == "WRONGPASS" => Error::new(Class::Denied, tried, text)
            .hint("check user and password in the store's URL (redis://user:password@host:6379)"),
        _ if code == "NOPERM" => Error::new(Class::Denied, tried, text)
            .hint("the user needs all commands but administration, on keys that begin with `imgsync:`"),
        ErrorKind::AuthenticationFailed => Error::new(Class::Denied, tried, text)
            .hint("check user and password in the store's URL (redis://user:password@host:6379)"),
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly,
        ) => Error::new(Class::ServerError, tried, text),
        _ if code == "BUSY" || code == "LOADING" => Error::new(Class::ServerError, tried, text),
        ErrorKind::Io if text.contains("invalid peer certificate") => Error::new(Class::Insecure, tried, text)
            .hint("name the authority that signed the store's certificate by `cluster: {ca: FILE}`, and the store by the name that the certificate is for"),
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => Error::new(Class::Unreachable, tried, text)
            .hint("check that Redis or Valkey is running there, and whether a firewall is in between"),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
            Error::new(Class::BadAnswer, tried, text).hint("is that a Redis server?")
        }
        ErrorKind::InvalidClientConfig => Error::new(Class::Invalid, tried, text),
        _ if error.is_connection_dropped() || error.is_timeout() || error.is_connection_refusal() => {
            Error::new(Class::Unreachable, tried, text)
        }
        _ => Error::new(Class::Local, tried, text),
    }
}

/// What is wrong, without what was sent.
fn words(error: &RedisError) -> String {
    match (error.is_timeout(), error.detail()) {
        (true, _) => "no answer in time".to_owned(),
        (false, Some(detail)) => format!("{error}: {detail}").chars().take(300).collect(),
        (false, None) => error.to_string().chars().take(300).collect(),
    }
}

fn damaged(tried: &str, detail: &str) -> Error {
    Error::new(Class::Local, tried, format!("the store is damaged: {detail}"))
}

fn time(millis: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(millis).unwrap_or_default()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}

impl Shared {
    fn chunks(&self) -> std::sync::MutexGuard<'_, GenerationalCache<BatchId, Arc<Vec<u32>>>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisStore({})", self.0.name)
    }
}

/// What a page of an export goes on from.
fn is_after(entry: &CacheEntry, after: Option<&CacheEntry>) -> bool {
    let key = |entry: &CacheEntry| {
        (entry.registry.to_string(), entry.repository.clone(), entry.options.clone(), entry.tag.clone())
    };
    after.is_none_or(|after| key(entry) > key(after))
}
