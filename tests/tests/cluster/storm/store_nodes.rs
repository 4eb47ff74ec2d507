//! Redis with two replicas and three Sentinels, each Redis server behind a relay that can stall it.

use std::time::Duration;

use imgsync_tests::RedisServer;
use imgsync_tests::servers::{MASTER_NAME, SentinelOptions, SentinelServers};
use imgsync_tests::tcp_proxy::TcpProxy;

use crate::support::until;

/// Time limit for replicas and Sentinels to be whole again.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(120);

/// The servers. Everyone, also the servers and the Sentinels, reaches a server through its relay only.
#[derive(Debug)]
pub(super) struct StoreNodes {
    options: SentinelOptions,
    first: RedisServer,
    pub(super) group: SentinelServers,
}

impl StoreNodes {
    /// Starts all and waits until they know each other.
    pub(super) async fn start() -> Self {
        let mut relays = Vec::new();
        for _ in 0..3 {
            // It is announced before its server has a port.
            relays.push(TcpProxy::start("127.0.0.1:1").await);
        }
        let extra_config = ["min-replicas-to-write 1", "min-replicas-max-lag 2", "repl-timeout 10"].map(str::to_owned);
        let options = SentinelOptions { extra_config: extra_config.into(), relays, ..SentinelOptions::default() };
        let (first, group) = tokio::task::block_in_place(|| SentinelServers::start(&options));
        let nodes = Self { options, first, group };
        nodes.wait_until_whole().await;
        nodes
    }

    /// Returns the URL for imgsync.
    pub(super) fn url(&self) -> String {
        format!("redis+sentinel://{}/{MASTER_NAME}", self.group.hosts())
    }

    /// Returns the relay to a server.
    pub(super) fn relay(&self, number: usize) -> &TcpProxy {
        &self.options.relays[number]
    }

    /// Returns a server.
    pub(super) fn server(&mut self, number: usize) -> &mut RedisServer {
        match number {
            0 => &mut self.first,
            _ => &mut self.group.replicas[number - 1],
        }
    }

    /// Returns the number of the master.
    pub(super) fn master(&self) -> usize {
        let port = tokio::task::block_in_place(|| self.group.master_port());
        let found = self.options.relays.iter().position(|relay| relay.port() == port);
        found.unwrap_or_else(|| panic!("the Sentinels name port {port}"))
    }

    /// Waits until the master has both replicas, and all Sentinels agree on it and have a quorum.
    pub(super) async fn wait_until_whole(&self) {
        let is_whole = || {
            let port = self.group.master_port();
            let Some(master) = self.options.relays.iter().position(|relay| relay.port() == port) else { return false };
            let master = if master == 0 { &self.first } else { &self.group.replicas[master - 1] };
            let replication = master.cli(&["INFO", "replication"]);
            let agrees = |sentinel: &RedisServer| {
                let named = sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME]);
                let state = sentinel.cli(&["SENTINEL", "MASTER", MASTER_NAME]);
                let quorum = sentinel.cli(&["SENTINEL", "CKQUORUM", MASTER_NAME]);
                named.lines().any(|line| line == port.to_string())
                    && state.lines().any(|line| line == "master")
                    && quorum.starts_with("OK 3 ")
            };
            replication.contains("role:master")
                && replication.matches("state=online").count() == 2
                && self.group.sentinels.iter().all(agrees)
        };
        let is_whole = || tokio::task::block_in_place(is_whole);
        until("the master has both replicas, and the Sentinels agree", WHOLE_TIMEOUT, is_whole).await;
    }
}
