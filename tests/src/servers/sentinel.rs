//! A store with replicas under Sentinels: Debian's `redis-server`, several times.

use std::time::{Duration, Instant};

use super::redis::{RedisServer, RedisServerOptions};
use crate::tcp_proxy::TcpProxy;
use crate::tls::Authority;

/// Name that the Sentinels have for the master.
pub const MASTER_NAME: &str = "imgsync-store";

/// How long the master must be silent until it is replaced.
const DOWN_AFTER_MS: u32 = 1500;
/// Time limit of a failover, and of starting the servers.
const LIMIT: Duration = Duration::from_secs(60);

/// Options of the servers.
#[derive(Debug, Default)]
pub struct SentinelOptions {
    /// Password of the servers.
    pub password: Option<String>,
    /// Password of the Sentinels.
    pub sentinel_password: Option<String>,
    /// Authority of the certificates of all servers and Sentinels, which then serve TLS only.
    pub tls: Option<Authority>,
    /// Extra lines of the configuration of each server.
    pub extra_config: Vec<String>,
    /// Relays to the master and the replicas, through which everyone reaches them, also Sentinels and each other; with any
    /// target before the start. None by default.
    pub relays: Vec<TcpProxy>,
}

/// The replicas of a master, and the Sentinels that watch it. Stopped on drop.
#[derive(Debug)]
pub struct SentinelServers {
    /// Two replicas.
    pub replicas: Vec<RedisServer>,
    /// Three Sentinels.
    pub sentinels: Vec<RedisServer>,
}

impl SentinelServers {
    /// Starts a master, two replicas and three Sentinels, and waits until all know each other.
    ///
    /// # Panics
    /// If they do not within a minute.
    pub fn start(options: &SentinelOptions) -> (RedisServer, SentinelServers) {
        let server = |number: usize, replica_of: Option<u16>| {
            // A Sentinel tells servers to write their configuration, so that they start again in their last role.
            let mut extra_config = options.extra_config.clone();
            extra_config.push("repl-diskless-sync-delay 0".to_owned());
            if let Some(relay) = options.relays.get(number) {
                extra_config.push("replica-announce-ip 127.0.0.1".to_owned());
                extra_config.push(format!("replica-announce-port {}", relay.port()));
            }
            extra_config.extend(replica_of.map(|port| format!("replicaof 127.0.0.1 {port}")));
            extra_config.extend(options.password.as_ref().map(|password| format!("masterauth {password}")));
            let server = RedisServer::start_with(RedisServerOptions {
                password: options.password.clone(),
                tls: options.tls.as_ref().map(|authority| authority.server(&["127.0.0.1"])),
                tls_ca: options.tls.as_ref().map(|authority| authority.pem().to_owned()),
                extra_config,
                ..RedisServerOptions::default()
            });
            if let Some(relay) = options.relays.get(number) {
                relay.retarget(&format!("127.0.0.1:{}", server.port()));
            }
            server
        };
        let master = server(0, None);
        let master_port = options.relays.first().map_or(master.port(), TcpProxy::port);
        let replicas: Vec<RedisServer> = (1..3).map(|number| server(number, Some(master_port))).collect();
        wait_until("the replicas follow the master", || {
            let info = master.cli(&["INFO", "replication"]);
            info.matches("state=online").count() == replicas.len()
        });
        let sentinel = || {
            let mut extra_config = vec![
                format!("sentinel monitor {MASTER_NAME} 127.0.0.1 {master_port} 2"),
                format!("sentinel down-after-milliseconds {MASTER_NAME} {DOWN_AFTER_MS}"),
                format!("sentinel failover-timeout {MASTER_NAME} 6000"),
            ];
            let auth = |password| format!("sentinel auth-pass {MASTER_NAME} {password}");
            extra_config.extend(options.password.as_ref().map(auth));
            let own_login = |password| format!("sentinel sentinel-pass {password}");
            extra_config.extend(options.sentinel_password.as_ref().map(own_login));
            RedisServer::start_with(RedisServerOptions {
                password: options.sentinel_password.clone(),
                tls: options.tls.as_ref().map(|authority| authority.server(&["127.0.0.1"])),
                tls_ca: options.tls.as_ref().map(|authority| authority.pem().to_owned()),
                is_sentinel: true,
                extra_config,
                ..RedisServerOptions::default()
            })
        };
        let group = SentinelServers { replicas, sentinels: (0..3).map(|_| sentinel()).collect() };
        for sentinel in &group.sentinels {
            wait_until("each Sentinel knows the others and the replicas", || {
                let fields = group.fields(sentinel);
                (field(&fields, "num-slaves"), field(&fields, "num-other-sentinels")) == (Some("2"), Some("2"))
            });
        }
        (master, group)
    }

    /// Returns `HOST:PORT` of all Sentinels, separated by commas.
    pub fn hosts(&self) -> String {
        let hosts = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port()));
        hosts.collect::<Vec<_>>().join(",")
    }

    /// Returns the port of the master that most Sentinels name.
    pub fn master_port(&self) -> u16 {
        let mut ports: Vec<u16> = self.sentinels.iter().filter_map(|sentinel| self.named_port(sentinel)).collect();
        ports.sort_unstable();
        *ports.get(ports.len() / 2).expect("a Sentinel names the master")
    }

    /// Has the Sentinels replace a healthy master. Returns when they begin.
    ///
    /// # Panics
    /// If they refuse for a minute.
    pub fn fail_over(&self) {
        // They refuse while they do not know how far the replicas are.
        wait_until("a Sentinel begins a failover", || {
            self.sentinels[0].cli(&["SENTINEL", "FAILOVER", MASTER_NAME]).starts_with("OK")
        });
    }

    /// Waits until most Sentinels name another master than that of this port, and returns its port.
    ///
    /// # Panics
    /// If they do not within a minute.
    pub fn wait_for_other_master(&self, port: u16) -> u16 {
        wait_until("there is another master", || self.master_port() != port);
        self.master_port()
    }

    /// Waits until all replicas follow the master that the Sentinels name, and no failover is in progress.
    ///
    /// # Panics
    /// If they do not within a minute.
    pub fn wait_for_replicas(&self) {
        wait_until("all replicas follow the master", || {
            self.sentinels.iter().all(|sentinel| {
                let flags = self.fields(sentinel);
                let replicas = sentinel.cli(&["SENTINEL", "REPLICAS", MASTER_NAME]);
                let (linked, port) = (replicas.matches("master-link-status\nok\n").count(), self.master_port());
                field(&flags, "flags") == Some("master")
                    && linked == self.replicas.len()
                    && replicas.matches(&format!("master-port\n{port}\n")).count() == linked
            })
        });
    }

    fn named_port(&self, sentinel: &RedisServer) -> Option<u16> {
        field(&self.fields(sentinel), "port")?.parse().ok()
    }

    /// Returns names and values of what a Sentinel knows of the master; nothing if it does not answer.
    fn fields(&self, sentinel: &RedisServer) -> Vec<String> {
        let answer = sentinel.cli(&["SENTINEL", "MASTER", MASTER_NAME]);
        answer.lines().map(str::to_owned).collect()
    }
}

fn field<'f>(fields: &'f [String], name: &str) -> Option<&'f str> {
    fields.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str())
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < limit, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
