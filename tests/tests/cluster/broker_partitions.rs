//! Nodes of a broker that respond to some requests only, or are cut off from the others or from clients.

use std::time::Duration;

use imgsync_queue::RouteFilter;
use imgsync_tests::cluster::TestCluster;
use imgsync_tests::dns::DnsServer;
use imgsync_tests::namespace;
use imgsync_tests::program::Imgsync;
use imgsync_tests::tcp_proxy::TcpProxy;
use imgsync_tests::{RabbitMq, RedisServer};

use crate::broker_nodes::{connect, consuming_port, start_relays};
use crate::queue::{publish, route_messages, take};
use crate::support::{ClusterFixture, WAIT_TIMEOUT, until};

/// Class and method of `queue.declare` in AMQP 0-9-1.
const QUEUE_DECLARE: [u8; 4] = [0, 50, 0, 10];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stalls_when_queues_are_declared_is_replaced_by_the_next_one() {
    let broker = RabbitMq::shared();
    let [stalled, fine] = start_relays(&broker).await;
    stalled.freeze_on(&QUEUE_DECLARE);
    let urls = [&stalled, &fine].map(|relay| broker.url_through(&relay.host()));
    // Which node is first is random.
    while stalled.connections() == 0 {
        let queue = connect(&urls).await.unwrap();
        assert_eq!(Vec::from_iter(queue.connected_nodes()), [fine.host()]);
        publish(&queue, &route_messages("gcr.io", 1)).await;
        take(&queue, &RouteFilter::All).await.acknowledge().await.unwrap();
    }
    let error = connect(&urls[..1]).await.unwrap_err();
    assert!(error.to_string().contains("timed out"), "{error}");
}

#[test]
fn each_node_of_a_name_is_tried_however_short_the_wait_is() {
    const TEST: &str = "broker_partitions::each_node_of_a_name_is_tried_however_short_the_wait_is";
    if !namespace::enter(TEST, &[]) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = tokio::task::block_in_place(RabbitMq::start);
        let (store, dns) = (RedisServer::start(), DnsServer::start().await);
        dns.set_answers("broker.example", &[&["127.0.0.2", "127.0.0.3", "127.0.0.1"]]);
        let port = broker.port();
        let mut frozen = Vec::new();
        for address in ["127.0.0.2", "127.0.0.3"] {
            let relay = TcpProxy::start_at(&format!("{address}:{port}"), &format!("127.0.0.1:{port}")).await;
            relay.freeze(true);
            frozen.push(relay);
        }
        let url = broker.url_through(&format!("broker.example:{port}"));
        let tried = || frozen.iter().all(|relay| relay.connections() > 0);
        let mut workers = Vec::new();
        // Which node is first is random.
        while workers.is_empty() || !tried() {
            let worker = Imgsync::worker().env("IMGSYNC_BROKER", &url).env("IMGSYNC_STORE", store.url());
            let worker = worker.args(["--wait", "1s"]).spawn();
            worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
            workers.push(worker);
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_goes_on_when_the_link_to_one_node_goes_silent() {
    let mut fixture = ClusterFixture::new(2, 8).await;
    let relays = start_relays(&fixture.cluster.broker).await;
    let urls = relays.each_ref().map(|relay| fixture.cluster.broker.url_through(&relay.host())).join(",");
    let program = |program: Imgsync| program.env("IMGSYNC_BROKER", &urls);
    let gate = fixture.gate_tags_after(2);
    let worker = program(fixture.cluster.worker("")).args(["--concurrency", "2"]).spawn();
    worker.wait_for_line(|line| line.contains("consuming through the broker node"), WAIT_TIMEOUT).await;
    let config = std::mem::take(&mut fixture.config);
    let mut run = program(fixture.cluster.imgsync(&config)).args(["run", "--json"]).spawn();
    gate.wait_for(2).await;
    let port = consuming_port(&worker);
    let silent = relays.iter().find(|relay| relay.host().ends_with(&port.to_string())).unwrap();
    silent.freeze(true);
    gate.open();
    until("the worker consumes through the other node", WAIT_TIMEOUT, || consuming_port(&worker) != port).await;
    fixture.assert_ended_whole(&run.wait().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_leaves_a_node_that_is_cut_off_from_the_majority_and_does_not_pause() {
    let cluster = tokio::task::block_in_place(TestCluster::with_broker_nodes_that_ignore_partitions);
    let mut fixture = ClusterFixture::with_cluster(cluster, 3, 12).await;
    let gate = fixture.gate_tags_after(4);
    let workers = fixture.cluster.start_workers(2, 2).await;
    let run = fixture.cluster.imgsync(&fixture.config).args(["run", "--json"]);
    let mut run = run.limit(Duration::from_secs(300)).spawn();
    gate.wait_for(4).await;
    let port = consuming_port(&workers[0]);
    {
        let nodes = fixture.cluster.broker_nodes();
        let (minority, others): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.port() == port);
        let others: Vec<&RabbitMq> = others.iter().map(|node| &**node).collect();
        tokio::task::block_in_place(|| minority[0].cut_off_from(&others));
    }
    gate.open();
    until("the worker consumes from another node", WAIT_TIMEOUT, || consuming_port(&workers[0]) != port).await;
    fixture.assert_ended_whole(&run.wait().await);
}
