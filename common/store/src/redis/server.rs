//! Server checks: the handshake of each connection, and whether the server is safe for the ledger, when a store is
//! opened.

use std::collections::HashMap;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{InfoDict, RedisConnectionInfo, Value};

use super::error::RedisCallError;
use super::error_codes::ErrorAction;
use crate::StoreReplica;
use imgsync_oci::error::ErrorKind;

/// Scripts need features of Redis 7.
const MIN_MAJOR_VERSION: u32 = 7;
/// Number of replicas that are reported.
const MAX_REPLICAS: usize = 16;

/// Logs in, selects the database, and checks that the server is a master outside of cluster mode.
pub(super) async fn handshake(
    link: &mut MultiplexedConnection,
    login: &RedisConnectionInfo,
) -> Result<(), RedisCallError> {
    let mut hello = redis::cmd("HELLO");
    hello.arg(2);
    if let Some(password) = login.password() {
        hello.arg("AUTH").arg(login.username().unwrap_or("default")).arg(password);
    }
    let greeting: HashMap<String, Value> = hello.query_async(link).await.map_err(RedisCallError::Redis)?;
    let field = |name: &str| match greeting.get(name) {
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        Some(Value::SimpleString(text)) => text.clone(),
        _ => String::new(),
    };
    check_greeting(&field("version"), &field("mode"), &field("role"))?;
    if login.db() != 0 {
        redis::cmd("SELECT").arg(login.db()).query_async::<()>(link).await.map_err(RedisCallError::Redis)?;
    }
    Ok(())
}

fn check_greeting(version: &str, mode: &str, role: &str) -> Result<(), RedisCallError> {
    let unfit = |action, detail: &str, hint| {
        let kind = if action == ErrorAction::Fail { ErrorKind::Local } else { ErrorKind::ServerError };
        Err(RedisCallError::UnsuitableServer { action, kind, detail: detail.to_owned(), hint })
    };
    match (mode, role) {
        ("sentinel", _) => unfit(
            ErrorAction::Fail,
            "this is a Redis Sentinel, not a server that holds data",
            "write redis+sentinel://:PASSWORD@HOST1:26379,HOST2:26379,HOST3:26379/NAME with all Sentinels and the name \
             that they have for the master",
        ),
        ("cluster", _) => unfit(
            ErrorAction::Fail,
            "this is a Redis Cluster: imgsync's scripts use keys of several hash slots",
            "name a server without cluster mode (of a managed service: cluster mode disabled)",
        ),
        (_, "replica" | "slave") => unfit(
            ErrorAction::Reconnect,
            "the server is a read-only replica",
            "name the master (of a managed service: the primary endpoint); after a failover this recovers by itself",
        ),
        _ if version
            .split('.')
            .next()
            .and_then(|major| major.parse().ok())
            .is_some_and(|major: u32| major < MIN_MAJOR_VERSION) =>
        {
            Err(RedisCallError::UnsuitableServer {
                action: ErrorAction::Fail,
                kind: ErrorKind::Local,
                detail: format!("the server is version {version}"),
                hint: "imgsync needs Redis 7 or later, or Valkey",
            })
        }
        _ => Ok(()),
    }
}

/// Server settings that the ledger depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inspection {
    /// Eviction policy.
    eviction_policy: Option<String>,
    /// Whether every change is written to disk.
    append_only: Option<bool>,
    replicas: Option<u32>,
}

impl Inspection {
    /// Reads the settings. Managed services and restricted users may refuse: then all are unknown.
    pub(super) async fn query(link: &mut MultiplexedConnection) -> Result<Inspection, RedisCallError> {
        let info: InfoDict = match redis::cmd("INFO").query_async(link).await.map_err(RedisCallError::Redis) {
            Ok(info) => info,
            Err(call_error) if call_error.action() == ErrorAction::Fail => return Ok(Inspection::default()),
            Err(call_error) => return Err(call_error),
        };
        Ok(Inspection {
            eviction_policy: info.get("maxmemory_policy"),
            append_only: info.get::<u32>("aof_enabled").map(|enabled| enabled > 0),
            replicas: info.get("connected_slaves"),
        })
    }

    /// Returns whether the server is known to have replicas.
    pub(super) fn has_replicas(&self) -> bool {
        self.replicas.is_some_and(|replicas| replicas > 0)
    }

    /// Refuses a server that may evict keys that must not be lost.
    pub(super) fn check(&self) -> Result<(), RedisCallError> {
        match self.eviction_policy.as_deref() {
            Some(policy) if policy.starts_with("allkeys-") => Err(RedisCallError::UnsuitableServer {
                action: ErrorAction::Fail,
                kind: ErrorKind::Local,
                detail: format!(
                    "the server may evict any key when its memory is full (maxmemory-policy {policy}): parts of \
                     batches would be lost"
                ),
                hint: "set `maxmemory-policy volatile-lru`: it evicts caches, which have an expiry, and not batches",
            }),
            _ => Ok(()),
        }
    }

    /// Returns warnings for the operator.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        match self.eviction_policy.as_deref() {
            None => warnings.push(
                "the server's eviction policy is unknown (INFO is not allowed): not checked; \
                 make sure of `maxmemory-policy volatile-lru` or `noeviction`, or allow it (`+info`)"
                    .to_owned(),
            ),
            // These evict keys with the shortest expiry, or any: including leases, which protect tags being written.
            Some(policy @ ("volatile-ttl" | "volatile-random")) => warnings.push(format!(
                "the server may evict leases when its memory is full (maxmemory-policy {policy}): copies would be \
                 interrupted and repeated; set `maxmemory-policy volatile-lru`, which evicts caches first"
            )),
            Some(_) => {}
        }
        if self.append_only == Some(false) && self.replicas == Some(0) {
            warnings.push(
                "the server has no replica and does not write each change to its disk: when it ends, batches are lost; \
                 set `appendonly yes`"
                    .to_owned(),
            );
        }
        warnings
    }
}

/// Reads the replicas from `INFO replication`: `slave0:ip=10.0.0.2,port=6379,state=online,offset=42,lag=0`.
pub(super) fn parse_replicas(info: &str) -> Vec<StoreReplica> {
    let parse = |line: &str| {
        let (name, values) = line.trim().split_once(':')?;
        name.strip_prefix("slave")?.parse::<u32>().ok()?;
        let field = |name: &str| values.split(',').find_map(|value| value.strip_prefix(name)?.strip_prefix('='));
        let host = field("ip")?;
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let lag = Duration::from_secs(field("lag")?.parse().ok()?);
        (field("state")? == "online")
            .then(|| StoreReplica { name: format!("{host}:{}", field("port").unwrap_or("?")), lag })
    };
    info.lines().filter_map(parse).take(MAX_REPLICAS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_those_that_are_online() {
        let info = "# Replication\r\nrole:master\r\nconnected_slaves:3\r\nslave_repl_offset:1\r\n\
                    slave0:ip=10.0.0.2,port=6379,state=online,offset=42,lag=3\r\n\
                    slave1:ip=fe80::2,port=6380,state=online,offset=42,lag=0\r\n\
                    slave2:ip=10.0.0.4,port=6379,state=wait_bgsave,offset=0,lag=0\r\nmaster_failover_state:x\r\n";
        let found: Vec<(String, u64)> =
            parse_replicas(info).into_iter().map(|replica| (replica.name, replica.lag.as_secs())).collect();
        assert_eq!(found, [("10.0.0.2:6379".to_owned(), 3), ("[fe80::2]:6380".to_owned(), 0)]);
    }

    fn refusal(mode: &str, role: &str) -> (ErrorAction, String) {
        let call_error = check_greeting("7.2.4", mode, role).unwrap_err();
        (call_error.action(), call_error.to_error("connecting").message().to_owned())
    }

    #[test]
    fn sentinels_and_clusters_are_refused_and_a_replica_is_reconnected_from() {
        assert!(check_greeting("7.0.15", "standalone", "master").is_ok());
        let (action, words) = refusal("sentinel", "sentinel");
        assert!(action == ErrorAction::Fail && words.contains("Sentinel"), "{words}");
        let (action, words) = refusal("cluster", "master");
        assert!(action == ErrorAction::Fail && words.contains("Redis Cluster"), "{words}");
        for role in ["replica", "slave"] {
            let (action, words) = refusal("standalone", role);
            assert!(action == ErrorAction::Reconnect && words.contains("replica"), "{words}");
        }
        let old = check_greeting("6.2.14", "standalone", "master").unwrap_err();
        assert!(old.to_error("connecting").message().contains("6.2.14"));
        // An absent or unexpected version is no reason to refuse.
        assert!(check_greeting("", "", "").is_ok() && check_greeting("unstable", "standalone", "master").is_ok());
    }

    #[test]
    fn eviction_policies_that_lose_batches_are_refused_and_those_that_lose_leases_are_warned_of() {
        let with = |policy: &str| Inspection { eviction_policy: Some(policy.to_owned()), ..Inspection::default() };
        for policy in ["allkeys-lru", "allkeys-lfu", "allkeys-random"] {
            let call_error = with(policy).check().unwrap_err();
            let error = call_error.to_error("opening the store");
            assert!(call_error.action() == ErrorAction::Fail && error.message().contains(policy), "{error}");
        }
        for (policy, warning_count) in
            [("noeviction", 0), ("volatile-lru", 0), ("volatile-lfu", 0), ("volatile-ttl", 1), ("volatile-random", 1)]
        {
            assert!(with(policy).check().is_ok(), "{policy}");
            assert_eq!(with(policy).warnings().len(), warning_count, "{policy}");
        }
    }

    #[test]
    fn a_server_without_persistence_is_warned_of_unless_it_has_a_replica() {
        let with = |appends, replicas| Inspection {
            eviction_policy: Some("noeviction".to_owned()),
            append_only: Some(appends),
            replicas: Some(replicas),
        };
        assert_eq!([with(false, 0), with(false, 1), with(true, 0)].map(|server| server.warnings().len()), [1, 0, 0]);
        let unknown = Inspection::default().warnings();
        assert!(unknown.len() == 1 && unknown[0].contains("not checked"), "{unknown:?}");
    }
}
