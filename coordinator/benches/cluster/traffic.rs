//! Requests and bytes per tag on every connection of a cluster, for capacity planning.

use std::time::Duration;

use imgsync_tests::TestCluster;
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::{Imgsync, RunningProgram};
use imgsync_tests::tcp_proxy::{Direction, TcpProxy};

use crate::setup::{self, json_count};

/// Tags per repository.
const TAGS: usize = 100;
const WORKERS: usize = 2;

pub(crate) async fn run(tags: usize) {
    let tags = tags.div_ceil(TAGS) * TAGS;
    setup::title(&format!(
        "for 1,000 tags ({tags} measured, {TAGS} of a repository; kB are 1,000 bytes; blobs are small)"
    ));
    println!(
        "{:<36} {:>13} {:>15} {:>15} {:>15} {:>15} {:>15} {:>8}",
        "", "requests", "source kB", "target kB", "coord-store kB", "workers-store", "workers-broker", "scripts"
    );
    for google in [false, true] {
        let bench = TrafficBench::new(tags, google).await;
        let kind = if google { "Google style" } else { "plain" };
        bench.measure(&format!("{kind}: fresh, copied"), "copied").await;
        bench.measure(&format!("{kind}: unchanged, known"), "unchanged").await;
        if google {
            bench.cluster.store.command(&["FLUSHALL"]);
            bench.measure(&format!("{kind}: unchanged, nothing known"), "unchanged").await;
            bench.measure_idle().await;
        }
    }
}

/// A cluster with counters on all connections.
struct TrafficBench {
    tags: usize,
    cluster: TestCluster,
    source: FaultRegistry,
    target: FaultRegistry,
    links: RelayLinks,
    config: String,
    _fleet: Vec<RunningProgram>,
}

struct RelayLinks {
    source: TcpProxy,
    target: TcpProxy,
    coordinator_store: TcpProxy,
    coordinator_broker: TcpProxy,
    workers_store: TcpProxy,
    workers_broker: TcpProxy,
}

impl RelayLinks {
    /// Returns the bytes so far, in both directions.
    fn bytes(&self) -> [u64; 6] {
        let RelayLinks { source, target, coordinator_store, coordinator_broker, workers_store, workers_broker } = self;
        [source, target, coordinator_store, coordinator_broker, workers_store, workers_broker]
            .map(|line| line.bytes(Direction::Up) + line.bytes(Direction::Down))
    }
}

fn through_relays(program: Imgsync, store: &TcpProxy, broker: &TcpProxy) -> Imgsync {
    program
        .env("IMGSYNC_BROKER", format!("amqp://guest:guest@{}/%2f", broker.host()))
        .env("IMGSYNC_STORE", format!("redis://{}", store.host()))
}

impl TrafficBench {
    async fn new(tags: usize, google: bool) -> TrafficBench {
        let cluster = setup::start_cluster();
        let start = || async {
            let builder = FaultRegistry::builder();
            if google { builder.google().start().await } else { builder.start().await }
        };
        let (source, target) = tokio::join!(start(), start());
        for tag in 0..tags {
            let image = TestImage::single(&format!("traffic-{google}-{tag}")).layer(Layer::File(2000)).build();
            source.push(&format!("p/r{}", tag / TAGS), &format!("v{}", tag % TAGS), &image);
        }
        let (store, broker) =
            (format!("127.0.0.1:{}", cluster.store.port()), format!("127.0.0.1:{}", cluster.broker.port()));
        let links = RelayLinks {
            source: TcpProxy::start(&source.host()).await,
            target: TcpProxy::start(&target.host()).await,
            coordinator_store: TcpProxy::start(&store).await,
            coordinator_broker: TcpProxy::start(&broker).await,
            workers_store: TcpProxy::start(&store).await,
            workers_broker: TcpProxy::start(&broker).await,
        };
        let config = format!(
            "defaults: {{to: {}/m, naming: keep}}\nrules:\n- from: {}/p/**\n",
            links.target.host(),
            links.source.host()
        );
        let mut fleet = Vec::new();
        for _ in 0..WORKERS {
            fleet.push(through_relays(cluster.worker(""), &links.workers_store, &links.workers_broker).spawn());
        }
        for worker in &fleet {
            worker.wait_for_line(|line| line.starts_with("worker "), Duration::from_secs(60)).await;
        }
        TrafficBench { tags, cluster, source, target, links, config, _fleet: fleet }
    }

    async fn measure(&self, what: &str, outcome: &str) {
        self.source.clear_requests();
        self.target.clear_requests();
        let (bytes, scripts) = (self.links.bytes(), self.cluster.store.calls("evalsha"));
        let program = self.cluster.imgsync(&self.config).args(["run", "--json", "--quiet"]);
        let program = through_relays(program, &self.links.coordinator_store, &self.links.coordinator_broker);
        let output = program.limit(Duration::from_secs(600)).run().await.assert_code(0);
        assert_eq!(json_count(&output, outcome), self.tags as u64, "{}", output.stdout);
        let thousand = |count: u64| count as f64 * 1000.0 / self.tags as f64;
        let after = self.links.bytes();
        let line = |at: usize| format!("{:.0}", thousand(after[at] - bytes[at]) / 1000.0);
        println!(
            "{what:<36} {:>13} {:>15} {:>15} {:>15} {:>15} {:>15} {:>8.0}",
            format!("{:.0} + {:.0}", thousand(self.source.total()), thousand(self.target.total())),
            line(0),
            line(1),
            format!("{} (+{})", line(2), line(3)),
            line(4),
            line(5),
            thousand(self.cluster.store.calls("evalsha") - scripts)
        );
    }

    /// Measures the traffic of idle workers.
    async fn measure_idle(&self) {
        let seconds = 20;
        let (bytes, scripts) = (self.links.bytes(), self.cluster.store.calls("evalsha"));
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let after = self.links.bytes();
        let a_minute = |bytes: u64| bytes as f64 * 60.0 / seconds as f64 / WORKERS as f64 / 1000.0;
        println!(
            "a worker that waits, a minute: store {:.1} kB, broker {:.1} kB, {:.0} scripts",
            a_minute(after[4] - bytes[4]),
            a_minute(after[5] - bytes[5]),
            a_minute((self.cluster.store.calls("evalsha") - scripts) * 1000)
        );
    }
}
