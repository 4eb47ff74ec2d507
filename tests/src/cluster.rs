//! A cluster for tests: a broker, a store, and the programs that use them.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{Imgsync, RunningProgram};
use crate::servers::{MASTER_NAME, RabbitMq, RedisServer, RedisServerOptions, SentinelOptions, SentinelServers};

/// A broker and a store, stopped on drop.
#[derive(Debug)]
pub struct TestCluster {
    /// RabbitMQ.
    pub broker: RabbitMq,
    /// The other nodes of its cluster, if it has several.
    pub more_nodes: Vec<RabbitMq>,
    /// Redis. With Sentinels: the first master.
    pub store: RedisServer,
    /// Replicas and Sentinels, if it has any.
    pub sentinels: Option<SentinelServers>,
}

impl TestCluster {
    /// Takes a virtual host of the broker that the tests of a run share, and starts a store.
    pub fn start() -> Self {
        Self::with_store(RedisServerOptions::default())
    }

    /// Takes a virtual host of the broker that the tests of a run share, and starts a store with options.
    pub fn with_store(store: RedisServerOptions) -> Self {
        Self {
            broker: RabbitMq::shared(),
            more_nodes: Vec::new(),
            store: RedisServer::start_with(store),
            sentinels: None,
        }
    }

    /// Starts a broker for this test alone, and a store. For tests that stop the broker or change it as a whole.
    pub fn with_own_broker() -> Self {
        Self::start_with("", RedisServerOptions::default())
    }

    /// Starts a broker for this test alone, with extra lines of `rabbitmq.conf`, and a store with options.
    pub fn start_with(broker: &str, store: RedisServerOptions) -> Self {
        let (broker, store) = (RabbitMq::start_with(broker), RedisServer::start_with(store));
        Self { broker, more_nodes: Vec::new(), store, sentinels: None }
    }

    /// Starts a broker of three nodes for this test alone, and a store.
    pub fn with_broker_nodes() -> Self {
        Self::with_nodes(RabbitMq::start_cluster(3))
    }

    /// Starts a broker of three nodes for this test alone, which go on when they are cut off from the others, and a
    /// store.
    pub fn with_broker_nodes_that_ignore_partitions() -> Self {
        Self::with_nodes(RabbitMq::start_cluster_with(3, "ignore"))
    }

    fn with_nodes(nodes: Vec<RabbitMq>) -> Self {
        let mut nodes = nodes.into_iter();
        let broker = nodes.next().expect("it has three nodes");
        Self { broker, more_nodes: nodes.collect(), store: RedisServer::start(), sentinels: None }
    }

    /// Takes a virtual host of the broker that the tests of a run share, and starts a store with replicas and Sentinels.
    pub fn with_sentinels(options: &SentinelOptions) -> Self {
        let (store, sentinels) = SentinelServers::start(options);
        Self { broker: RabbitMq::shared(), more_nodes: Vec::new(), store, sentinels: Some(sentinels) }
    }

    /// Returns the URL of the store: with Sentinels, it names them.
    pub fn store_url(&self) -> String {
        let Some(group) = &self.sentinels else { return self.store.url() };
        let url = self.store.url();
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let login = rest.split_once('@').map(|(login, _)| format!("{login}@")).unwrap_or_default();
        format!("{scheme}+sentinel://{login}{}/{MASTER_NAME}", group.hosts())
    }

    /// Returns the server of the store that is the master now.
    ///
    /// # Panics
    /// If no Sentinel names one.
    pub fn master(&mut self) -> &mut RedisServer {
        let port = self.sentinels.as_ref().map_or(self.store.port(), SentinelServers::master_port);
        self.store_server(port)
    }

    /// Returns the server of the store with this port.
    ///
    /// # Panics
    /// If there is none.
    pub fn store_server(&mut self, port: u16) -> &mut RedisServer {
        let replicas = self.sentinels.iter_mut().flat_map(|group| &mut group.replicas);
        let mut servers = std::iter::once(&mut self.store).chain(replicas);
        servers.find(|server| server.port() == port).expect("the store has a server with this port")
    }

    /// Returns all nodes of the broker.
    pub fn broker_nodes(&mut self) -> Vec<&mut RabbitMq> {
        std::iter::once(&mut self.broker).chain(&mut self.more_nodes).collect()
    }

    /// Returns the URLs of all nodes of the broker, separated by commas.
    pub fn broker_urls(&self) -> String {
        let nodes = std::iter::once(&self.broker).chain(&self.more_nodes);
        nodes.map(RabbitMq::url).collect::<Vec<_>>().join(",")
    }

    /// Creates `imgsync` with this configuration, in its own home.
    pub fn imgsync(&self, config: &str) -> Imgsync {
        self.with_config(Imgsync::new(), config)
    }

    /// Creates `imgsync-worker` with this configuration, in its own home.
    pub fn worker(&self, config: &str) -> Imgsync {
        self.with_config(Imgsync::worker(), config)
    }

    fn with_config(&self, program: Imgsync, config: &str) -> Imgsync {
        // An empty file is refused.
        program.file("imgsync.yaml", if config.is_empty() { "registries: {}\n" } else { config });
        program.env("IMGSYNC_BROKER", self.broker_urls()).env("IMGSYNC_STORE", self.store_url())
    }

    /// Starts workers with this many slots.
    pub async fn start_workers(&self, number: usize, slots: usize) -> Vec<RunningProgram> {
        let mut workers = Vec::new();
        for _ in 0..number {
            workers.push(self.worker("").args(["--concurrency", &slots.to_string()]).spawn());
        }
        for worker in &workers {
            worker.wait_for_line(|line| line.starts_with("worker "), Duration::from_secs(30)).await;
        }
        workers
    }

    /// Returns the newest batch from `batch show --json`; `None` if there is none or the store does not respond.
    pub async fn show_batch(&self) -> Option<Value> {
        let shown = self.imgsync("").args(["batch", "show", "--json"]).run().await;
        (shown.code == Some(0)).then(|| shown.json())
    }

    /// Polls the newest batch until the predicate holds, and returns it.
    ///
    /// # Panics
    /// With the batch, on timeout.
    pub async fn wait_for_batch(&self, wanted: impl Fn(&Value) -> bool, limit: Duration) -> Value {
        let started = Instant::now();
        let mut last = None;
        while started.elapsed() < limit {
            if let Some(shown) = self.show_batch().await {
                if wanted(&shown) {
                    return shown;
                }
                last = Some(shown);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not so within {limit:?}; it stands so: {last:#?}");
    }
}

/// Reads a number of `--json` output at a pointer such as `/counts/copied`.
pub fn number(json: &Value, pointer: &str) -> u64 {
    json.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer} is no number in {json}"))
}
