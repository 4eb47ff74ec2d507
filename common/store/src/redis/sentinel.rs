//! Sentinels: which server is the master, and when another one becomes it.
//!
//! The client's own Sentinel support does not serve here: it cannot be told its timeouts, does not tell which side
//! refuses a login, needs permissions on the servers, and believes the first Sentinel in the list, which may be cut off
//! together with an old master. Here all Sentinels are asked at once, and the answer with the highest configuration
//! epoch counts.
//!
//! A server that is replaced by `SENTINEL FAILOVER` confirms writes for some ten seconds that are lost afterwards. So
//! each process subscribes to the events of each Sentinel: while a Sentinel replaces the master, nothing is written, and
//! then the new master is used.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion, PushInfo,
    PushKind, RedisConnectionInfo, RedisError, RedisResult, Value,
};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::SentinelLogin;
use super::error::{CERTIFICATE_HINT, RedisCallError};
use super::error_codes::ErrorAction;
use crate::StoreReplication;
use imgsync_oci::error::ErrorKind;
use imgsync_oci::store_url::{SentinelGroup, StoreUrl};

/// Timeout of connecting to a Sentinel, and again of each reply.
const SENTINEL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often each Sentinel is asked, in case that one of its events was lost.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// An answer that is older is not used any more.
const REPORT_TTL: Duration = Duration::from_secs(15);
/// Once most Sentinels have answered, how long the others are waited for.
const STRAGGLER_TIMEOUT: Duration = Duration::from_millis(300);
/// How long nothing is written while a Sentinel replaces the master. Then the master it names is used.
const MAX_FAILOVER_PAUSE: Duration = Duration::from_secs(10);
/// How often Sentinels are asked meanwhile.
const FAILOVER_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Events of a failover, in order: it begins, a replica has become the master, and all clients are to use it. The first
/// comes some tenths of a second before the replica is told.
const EVENTS: [&str; 3] = ["+try-failover", "+promoted-slave", "+switch-master"];
/// How many names of masters an error lists.
const MAX_LISTED_MASTERS: usize = 10;

const SENTINEL_RIGHTS_HINT: &str = "give the user at the Sentinels the permissions that docs/how-to/cluster.md lists";
const SENTINEL_LOGIN_HINT: &str = "set `sentinel_password` (and `sentinel_username`) under `cluster:`, or IMGSYNC_SENTINEL_PASSWORD; user and password \
     in the URL of the store are those of the servers";
const NO_SENTINEL_HINT: &str =
    "Sentinels usually listen on port 26379; the URL of a single server begins with redis://";

/// A master as a Sentinel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Master {
    pub(super) host: String,
    pub(super) port: u16,
    /// Configuration epoch of the Sentinels: it grows with each failover.
    pub(super) epoch: u64,
}

impl Master {
    /// Returns host and port for display.
    pub(super) fn name(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Returns whether this is the same server.
    pub(super) fn is_same_server(&self, other: &Master) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

/// Answer of a Sentinel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MasterReport {
    pub(super) master: Master,
    /// Whether the Sentinel is replacing this master.
    is_failing_over: bool,
    /// Replicas that it knows, also those that are down.
    replicas: u64,
}

impl MasterReport {
    /// Reads the replies to `SENTINEL MASTER` and `SENTINEL GET-MASTER-ADDR-BY-NAME`. During a failover, the second
    /// names the new master first.
    fn parse(fields: &HashMap<String, String>, address: Option<(String, u16)>) -> Option<MasterReport> {
        let number = |name: &str| fields.get(name).and_then(|value| value.parse().ok());
        let old = (fields.get("ip")?.clone(), fields.get("port")?.parse().ok()?);
        let is_replaced = fields.get("flags")?.split(',').any(|flag| flag == "failover_in_progress");
        let (host, port) = address.unwrap_or_else(|| old.clone());
        Some(MasterReport {
            is_failing_over: is_replaced && (&host, port) == (&old.0, old.1),
            master: Master { host, port, epoch: number("config-epoch")? },
            replicas: number("num-slaves").unwrap_or_default(),
        })
    }
}

/// The Sentinels of a master.
pub(super) struct Sentinels {
    nodes: Vec<SentinelNode>,
    master: String,
    /// Highest epoch that a Sentinel has named.
    newest_epoch: watch::Sender<u64>,
    /// Since when a Sentinel is replacing the master.
    failover_since: Mutex<Option<Instant>>,
}

struct SentinelNode {
    /// Host and port, for messages.
    name: String,
    client: redis::Client,
    config: AsyncConnectionConfig,
    /// Connection with a subscription to the events.
    link: tokio::sync::Mutex<Option<MultiplexedConnection>>,
    /// Notified to ask this Sentinel at once: of events of the master, and of requests.
    asked: Arc<Notify>,
    last: Mutex<LastAnswer>,
}

#[derive(Default)]
struct LastAnswer {
    report: Option<(MasterReport, Instant)>,
    /// Whether a failure has been logged.
    is_failing: bool,
}

impl Sentinels {
    /// Creates them without connecting. The error says what is wrong with the address.
    pub(super) fn new(
        url: &StoreUrl,
        group: &SentinelGroup,
        login: Option<&SentinelLogin>,
        ca: Option<&[u8]>,
        tcp_settings: &TcpSettings,
    ) -> RedisResult<Sentinels> {
        let mut settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        if let Some(login) = login {
            settings = settings.set_password(login.password.expose());
            if let Some(username) = &login.username {
                settings = settings.set_username(username);
            }
        }
        let server = url.server().expose().as_str().into_connection_info()?;
        let server = server.set_redis_settings(settings).set_tcp_settings(tcp_settings.clone());
        let nodes = group.nodes.iter().map(|(host, port)| {
            let client = open_client(at_address(&server, host, *port), ca)?;
            let asked = Arc::new(Notify::new());
            let (on_event, master) = (asked.clone(), group.master.clone());
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(SENTINEL_TIMEOUT))
                .set_response_timeout(Some(SENTINEL_TIMEOUT))
                .set_push_sender(move |push: PushInfo| {
                    if concerns(&push, &master) {
                        on_event.notify_one();
                    }
                    Ok::<(), Infallible>(())
                });
            Ok(SentinelNode {
                name: format!("{host}:{port}"),
                client,
                config,
                link: Default::default(),
                asked,
                last: Mutex::default(),
            })
        });
        Ok(Sentinels {
            nodes: nodes.collect::<RedisResult<_>>()?,
            master: group.master.clone(),
            newest_epoch: watch::Sender::new(0),
            failover_since: Mutex::default(),
        })
    }

    /// Asks the Sentinels for the master. While one of them replaces it, waits for the new one.
    pub(super) async fn find_master(&self) -> Result<Master, RedisCallError> {
        loop {
            let best = self.ask_all().await?;
            if !self.is_paused() {
                return Ok(best.master);
            }
            tokio::time::sleep(FAILOVER_POLL_INTERVAL).await;
        }
    }

    /// Returns the latest epoch that a Sentinel has named.
    pub(super) fn newest_epoch(&self) -> u64 {
        *self.newest_epoch.borrow()
    }

    /// Returns when a Sentinel names a later epoch.
    pub(super) async fn wait_for_newer(&self, epoch: u64) {
        let mut newest = self.newest_epoch.subscribe();
        if newest.wait_for(|newest| *newest > epoch).await.is_err() {
            std::future::pending().await
        }
    }

    /// Asks all Sentinels at once now, instead of at the next poll.
    pub(super) fn request_report(&self) {
        self.nodes.iter().for_each(|node| node.asked.notify_one());
    }

    /// Watches the Sentinels until dropped. Calls `on_report` with each answer.
    pub(super) async fn watch(&self, on_report: impl Fn(&MasterReport)) {
        let watch_node = |node| {
            let on_report = &on_report;
            async move {
                loop {
                    if let Ok(report) = self.ask(node).await {
                        on_report(&report);
                    }
                    _ = tokio::time::timeout(POLL_INTERVAL, node.asked.notified()).await;
                }
            }
        };
        join_all(self.nodes.iter().map(watch_node)).await;
    }

    /// Returns whether nothing may be written, because a Sentinel replaces the master.
    pub(super) fn is_paused(&self) -> bool {
        let reports: Vec<MasterReport> = self.nodes.iter().filter_map(SentinelNode::fresh_report).collect();
        // One that is cut off may try again and again to replace an earlier master.
        let newest = reports.iter().map(|report| report.master.epoch).max();
        let is_failing_over =
            reports.iter().any(|report| report.is_failing_over && Some(report.master.epoch) == newest);
        let mut since = self.failover_since.lock().unwrap_or_else(PoisonError::into_inner);
        match is_failing_over {
            true => since.get_or_insert_with(Instant::now).elapsed() < MAX_FAILOVER_PAUSE,
            false => {
                *since = None;
                false
            }
        }
    }

    /// Returns how many Sentinels there are and answer, and how many replicas they know.
    pub(super) fn replication(&self) -> StoreReplication {
        let reports: Vec<MasterReport> = self.nodes.iter().filter_map(SentinelNode::fresh_report).collect();
        StoreReplication {
            sentinels_configured: self.nodes.len() as u64,
            sentinels: reports.len() as u64,
            replicas_known: reports.iter().max_by_key(|report| report.master.epoch).map(|report| report.replicas),
            replicas: None,
        }
    }

    /// Asks all Sentinels at once, and returns the answer of the latest epoch.
    async fn ask_all(&self) -> Result<MasterReport, RedisCallError> {
        let mut answers: FuturesUnordered<_> = self.nodes.iter().map(|node| self.ask(node)).collect();
        let (mut best, mut failures, mut reports) = (None::<MasterReport>, Vec::new(), 0);
        loop {
            let is_majority = reports > self.nodes.len() / 2;
            let next = match is_majority {
                true => tokio::time::timeout(STRAGGLER_TIMEOUT, answers.next()).await.unwrap_or_default(),
                false => answers.next().await,
            };
            match next {
                None => break,
                Some(Ok(report)) => {
                    reports += 1;
                    if best.as_ref().is_none_or(|best| report.master.epoch > best.master.epoch) {
                        best = Some(report);
                    }
                }
                Some(Err(call_error)) => failures.push(call_error),
            }
        }
        let best = best.ok_or_else(|| no_master(&failures))?;
        // One that has not answered this time may have named a later master a moment ago.
        Ok(latest(best, self.nodes.iter().filter_map(SentinelNode::fresh_report)))
    }

    /// Asks a Sentinel, and records its answer.
    async fn ask(&self, node: &SentinelNode) -> Result<MasterReport, RedisCallError> {
        let answer = node.ask(&self.master).await.map_err(|call_error| call_error.at_sentinel(&node.name));
        let mut last = node.last();
        match &answer {
            Ok(report) => {
                if std::mem::take(&mut last.is_failing) {
                    // As loud as the failure that it ends.
                    tracing::warn!("the Sentinel {} of the store answers again", node.name);
                }
                last.report = Some((report.clone(), Instant::now()));
                drop(last);
                self.newest_epoch.send_if_modified(|newest| {
                    let is_newer = report.master.epoch > *newest;
                    *newest = report.master.epoch.max(*newest);
                    is_newer
                });
            }
            Err(call_error) => {
                last.report = None;
                let is_new = !last.is_failing;
                drop(last);
                // If no other names the master, it is part of the error of connecting.
                if is_new && self.nodes.iter().any(|node| node.fresh_report().is_some()) {
                    node.last().is_failing = true;
                    tracing::warn!("{}", call_error.to_error("asking a Sentinel of the store for the master"));
                }
            }
        }
        answer
    }
}

/// Fields of a master, and its address.
type MasterReply = (HashMap<String, String>, Option<(String, u16)>);

impl SentinelNode {
    async fn ask(&self, master: &str) -> Result<MasterReport, RedisCallError> {
        let mut pipe = redis::pipe();
        pipe.cmd("SENTINEL").arg("MASTER").arg(master);
        pipe.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        loop {
            let (mut link, is_reused) = self.open().await?;
            let reply: RedisResult<MasterReply> = pipe.query_async(&mut link).await;
            let call_error = match reply {
                Ok((fields, address)) => {
                    return MasterReport::parse(&fields, address).ok_or_else(|| {
                        sentinel_error(ErrorAction::Fail, ErrorKind::InvalidResponse, "its answer is not understood")
                    });
                }
                Err(error) if says(&error, "No such master") => {
                    return Err(unknown_master(&mut link, master).await);
                }
                Err(error) if says(&error, "unknown command") => {
                    let why = "this is not a Sentinel, but a server that holds data";
                    return Err(sentinel_error(ErrorAction::Fail, ErrorKind::Local, why).with_hint(NO_SENTINEL_HINT));
                }
                Err(error) => RedisCallError::Redis(error),
            };
            if call_error.ends_connection() {
                *self.link.lock().await = None;
                if is_reused && !call_error.is_timeout() {
                    continue;
                }
            }
            return Err(call_error);
        }
    }

    /// Returns the open connection, or opens one with a subscription to the events. Also returns whether it was open.
    async fn open(&self) -> Result<(MultiplexedConnection, bool), RedisCallError> {
        let mut open = self.link.lock().await;
        if let Some(link) = &*open {
            return Ok((link.clone(), true));
        }
        let connect = async {
            let mut link = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
            link.subscribe(&EVENTS[..]).await?;
            Ok(link)
        };
        let link = match tokio::time::timeout(SENTINEL_TIMEOUT, connect).await {
            Ok(link) => link.map_err(RedisCallError::Redis)?,
            Err(_) => return Err(RedisCallError::timed_out()),
        };
        *open = Some(link.clone());
        Ok((link, false))
    }

    fn fresh_report(&self) -> Option<MasterReport> {
        let last = self.last();
        last.report.as_ref().filter(|(_, at)| at.elapsed() < REPORT_TTL).map(|(report, _)| report.clone())
    }

    fn last(&self) -> MutexGuard<'_, LastAnswer> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether a reply has this text. Of a pipeline, the error itself does not show it.
fn says(error: &RedisError, text: &str) -> bool {
    let replies = error.clone().into_server_errors();
    let mut replies = replies.iter().flat_map(|replies| replies.iter());
    replies.any(|(_, reply)| reply.details().is_some_and(|details| details.contains(text)))
}

/// Returns whether a message is an event of this master: its name is one of the words.
fn concerns(push: &PushInfo, master: &str) -> bool {
    let is_named = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).split(' ').any(|word| word == master),
        Value::SimpleString(text) => text.split(' ').any(|word| word == master),
        _ => false,
    };
    push.kind == PushKind::Message && push.data.last().is_some_and(is_named)
}

/// Returns the report of the latest epoch, `answer` if that is one of them.
fn latest(answer: MasterReport, known: impl Iterator<Item = MasterReport>) -> MasterReport {
    let is_later = |report: &MasterReport| report.master.epoch > answer.master.epoch;
    known.filter(is_later).max_by_key(|report| report.master.epoch).unwrap_or(answer)
}

/// Returns the error of a Sentinel that does not know the master, with the names that it knows.
async fn unknown_master(link: &mut MultiplexedConnection, master: &str) -> RedisCallError {
    let mut masters = redis::cmd("SENTINEL");
    masters.arg("MASTERS");
    let known: RedisResult<Vec<HashMap<String, String>>> = masters.query_async(link).await;
    let mut names: Vec<String> = known.into_iter().flatten().filter_map(|mut master| master.remove("name")).collect();
    names.sort_unstable();
    names.truncate(MAX_LISTED_MASTERS);
    let known = match names.is_empty() {
        true => String::new(),
        false => format!("; it knows {}", names.join(", ")),
    };
    let why = format!("it does not know a master with the name {master}{known}");
    sentinel_error(ErrorAction::Fail, ErrorKind::Local, &why)
        .with_hint("the URL of the store ends with the name that `sentinel monitor` gives to the master")
}

fn sentinel_error(action: ErrorAction, kind: ErrorKind, detail: &str) -> RedisCallError {
    RedisCallError::UnsuitableServer { action, kind, detail: detail.to_owned(), hint: "" }
}

/// Combines the errors of all Sentinels. One that needs a person decides what to do.
fn no_master(failures: &[RedisCallError]) -> RedisCallError {
    let errors: Vec<_> = failures.iter().map(|failure| (failure.action(), failure.to_error(""))).collect();
    let Some((action, strongest)) = errors.iter().max_by_key(|(action, _)| *action) else {
        return sentinel_error(ErrorAction::Reconnect, ErrorKind::Unreachable, "no Sentinel is named");
    };
    let details: Vec<&str> = errors.iter().map(|(_, error)| error.message()).collect();
    let hint = match strongest.kind() {
        ErrorKind::Denied if failures.iter().any(RedisCallError::is_login_refused) => SENTINEL_LOGIN_HINT,
        ErrorKind::Denied => SENTINEL_RIGHTS_HINT,
        ErrorKind::Insecure => CERTIFICATE_HINT,
        ErrorKind::Unreachable => "check that the Sentinels are running, and whether a firewall is in between",
        _ => failures.iter().find(|failure| failure.action() == *action).map_or("", RedisCallError::own_hint),
    };
    RedisCallError::UnsuitableServer { action: *action, kind: strongest.kind(), detail: details.join("; "), hint }
}

/// Returns the same connection to another server.
pub(super) fn at_address(server: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    // An IPv6 address has brackets in URLs only.
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let address = match server.addr() {
        ConnectionAddr::TcpTls { .. } => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        _ => ConnectionAddr::Tcp(host, port),
    };
    server.clone().set_addr(address)
}

/// Creates a client that trusts this CA besides the system's.
pub(super) fn open_client(server: ConnectionInfo, ca: Option<&[u8]>) -> RedisResult<redis::Client> {
    match ca {
        None => redis::Client::open(server),
        Some(ca) => redis::Client::build_with_tls(
            server,
            redis::TlsCertificates { client_tls: None, root_cert: Some(ca.to_vec()) },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(flags: &str, address: Option<(&str, u16)>) -> Option<MasterReport> {
        let fields =
            [("ip", "10.0.0.1"), ("port", "6379"), ("flags", flags), ("config-epoch", "7"), ("num-slaves", "2")];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        MasterReport::parse(&fields.into(), address.map(|(host, port)| (host.to_owned(), port)))
    }

    #[test]
    fn a_report_names_the_new_master_as_soon_as_it_is_promoted() {
        let calm = report("master", Some(("10.0.0.1", 6379))).unwrap();
        assert_eq!((calm.master.name().as_str(), calm.master.epoch, calm.replicas), ("10.0.0.1:6379", 7, 2));
        assert!(!calm.is_failing_over);
        assert!(report("master,failover_in_progress", Some(("10.0.0.1", 6379))).unwrap().is_failing_over);
        let promoted = report("master,failover_in_progress", Some(("fe80::2", 6380))).unwrap();
        assert_eq!((promoted.master.name().as_str(), promoted.is_failing_over), ("[fe80::2]:6380", false));
        assert_eq!(report("s_down,o_down,master", None).unwrap().master.name(), "10.0.0.1:6379");
        assert_eq!(MasterReport::parse(&HashMap::new(), None), None);
    }

    #[test]
    fn a_master_that_a_slow_sentinel_named_a_moment_ago_counts_more_than_an_earlier_one() {
        let at_epoch = |port, epoch| {
            let report = report("master", Some(("10.0.0.1", port))).unwrap();
            MasterReport { master: Master { epoch, ..report.master }, ..report }
        };
        let answer = at_epoch(1, 7);
        assert_eq!(latest(answer.clone(), [at_epoch(2, 8), at_epoch(3, 9), at_epoch(4, 6)].into_iter()).master.port, 3);
        assert_eq!(latest(answer, [at_epoch(2, 7), at_epoch(3, 6)].into_iter()).master.port, 1);
    }

    #[test]
    fn a_refused_login_and_a_missing_permission_have_hints_of_their_own() {
        for (reply, wanted) in [
            ("NOAUTH HELLO must be called with the client already authenticated", SENTINEL_LOGIN_HINT),
            ("WRONGPASS invalid username-password pair or user is disabled.", SENTINEL_LOGIN_HINT),
            ("NOPERM User me has no permissions to run the 'subscribe' command", SENTINEL_RIGHTS_HINT),
        ] {
            let reply = redis::parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap();
            let Value::ServerError(error) = reply else { panic!("{reply:?}") };
            let error =
                no_master(&[RedisCallError::Redis(error.into()).at_sentinel("s1:26379")]).to_error("connecting");
            assert_eq!((error.kind(), error.hint()), (ErrorKind::Denied, Some(wanted)));
        }
    }

    #[test]
    fn only_events_of_the_master_are_a_reason_to_ask() {
        let push = |kind, payload: &str| PushInfo {
            kind,
            data: vec![Value::BulkString(b"+switch-master".to_vec()), Value::BulkString(payload.as_bytes().to_vec())],
        };
        assert!(concerns(&push(PushKind::Message, "mymaster 10.0.0.1 6379 10.0.0.2 6379"), "mymaster"));
        assert!(concerns(&push(PushKind::Message, "slave a:1 a 1 @ mymaster 10.0.0.1 6379"), "mymaster"));
        assert!(!concerns(&push(PushKind::Message, "mymaster2 10.0.0.1 6379 10.0.0.2 6379"), "mymaster"));
        assert!(!concerns(&push(PushKind::Subscribe, "mymaster"), "mymaster"));
    }

    #[test]
    fn the_error_of_all_sentinels_names_each_and_fails_if_a_person_must_act() {
        let refused = RedisCallError::Redis(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into());
        let unreachable =
            no_master(&[refused.clone().at_sentinel("s1:26379"), refused.clone().at_sentinel("s2:26379")]);
        assert_eq!(unreachable.action(), ErrorAction::Reconnect);
        let error = unreachable.to_error("connecting");
        assert!(error.kind() == ErrorKind::Unreachable && error.message().contains("s1:26379: "), "{error}");
        assert!(error.message().contains("; the Sentinel s2:26379: "), "{error}");
        let unknown = sentinel_error(ErrorAction::Fail, ErrorKind::Local, "it does not know it").with_hint("name it");
        let mixed = no_master(&[refused.at_sentinel("s1:26379"), unknown.at_sentinel("s2:26379")]);
        assert_eq!(mixed.action(), ErrorAction::Fail);
        assert_eq!(mixed.to_error("connecting").hint(), Some("name it"));
        // When the store has been reached before, this Sentinel does not end what waits for the others.
        let outage = mixed.into_outage();
        assert_eq!(outage.action(), ErrorAction::Reconnect);
        let error = outage.to_error("connecting");
        assert!(imgsync_oci::retry::is_transient(&error), "{error}");
        assert_eq!(error.hint(), Some("name it"));
    }
}
