//! A broker of several nodes: which one programs use, and what they do when it fails.

use std::time::Duration;

use imgsync_oci::error::ErrorKind;
use imgsync_queue::{RabbitQueue, RouteFilter, TaskQueue as _};
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::free_port;
use imgsync_tests::tcp_proxy::TcpProxy;
use imgsync_tests::{RabbitMq, RedisServer};

use crate::queue::{publish, route_messages, settings, take, worker_registry};
use crate::store_contract::secret;
use crate::support::{ClusterFixture, WAIT_TIMEOUT, until};

/// Connects to these nodes.
async fn connect(urls: &[String]) -> imgsync_oci::error::Result<RabbitQueue> {
    let urls: Vec<_> = urls.iter().map(|url| secret(url)).collect();
    RabbitQueue::connect(&urls, worker_registry().await, settings()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_use_the_nodes_of_a_list_that_respond() {
    let fixture = ClusterFixture::new(1, 4).await;
    let broker = &fixture.cluster.broker;
    let relay = TcpProxy::start(&format!("127.0.0.1:{}", broker.port())).await;
    let dead = format!("127.0.0.1:{}", free_port());
    let nodes = [broker.url_through(&dead), broker.url_through(&relay.host())];
    let store = fixture.cluster.store.url();
    // From options, from the environment and from the configuration.
    let worker = Imgsync::worker().args(["--broker", &nodes[0], "--broker", &nodes[1], "--store", &store]).spawn();
    let second = Imgsync::worker().env("IMGSYNC_BROKER", nodes.join(",")).env("IMGSYNC_STORE", &store).spawn();
    for worker in [&worker, &second] {
        worker.wait_for_line(|line| line.starts_with("worker "), Duration::from_secs(30)).await;
    }
    let run = Imgsync::new().args(["run", "--json"]);
    run.file(
        "imgsync.yaml",
        format!("cluster: {{broker: ['{}', '{}'], store: '{store}'}}\n{}", nodes[0], nodes[1], fixture.config),
    );
    fixture.assert_ended_whole(&run.run().await);
    let what = "those of the run have ended, and each worker has two connections through the relay";
    until(what, WAIT_TIMEOUT, || relay.live_connections() == 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_that_cannot_be_reached_is_named_without_its_password() {
    let store = RedisServer::start();
    let other = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let hosts = [
        format!("127.0.0.1:{}", free_port()),
        format!("localhost:{}", free_port()),
        format!("127.0.0.1:{}", other.local_addr().unwrap().port()),
    ];
    drop(other);
    let urls: Vec<String> = hosts.iter().map(|host| format!("amqp://me:hunter2@{host}/%2f")).collect();
    let worker = Imgsync::worker().env("IMGSYNC_BROKER", urls.join(",")).env("IMGSYNC_STORE", store.url());
    let ended = worker.args(["--wait", "1s"]).run().await.assert_code(3);
    for host in &hosts {
        assert!(ended.stderr.contains(host), "{host}: {}", ended.stderr);
    }
    assert!(ended.stderr.contains("(127.0.0.1)"), "the address of the name, too: {}", ended.stderr);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    let repeated = [urls[0].clone(), urls[0].clone()].join(",");
    let refused = Imgsync::worker().env("IMGSYNC_BROKER", repeated).env("IMGSYNC_STORE", store.url());
    let refused = refused.run().await.assert_code(2);
    assert!(refused.stderr.contains("named twice") && refused.stderr.contains("hint: "), "{}", refused.stderr);
    assert!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_at_one_node_are_reported_although_the_other_is_gone() {
    let broker = RabbitMq::shared();
    let dead = broker.url_through(&format!("127.0.0.1:{}", free_port()));
    let wrong = broker.url().replace("guest:guest", "guest:hunter2");
    let error = connect(&[dead, wrong]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.hint().unwrap().contains("password") && !format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_is_replaced_by_the_next_one_at_once() {
    let broker = RabbitMq::shared();
    let port = format!("127.0.0.1:{}", broker.port());
    let relays = [TcpProxy::start(&port).await, TcpProxy::start(&port).await];
    let queue = connect(&relays.each_ref().map(|relay| broker.url_through(&relay.host()))).await.unwrap();
    let block = route_messages("gcr.io", 4);
    publish(&queue, &block).await;
    for relay in &relays {
        relay.refuse(true);
        relay.cut_all();
        // Without a failed call in between: both connections move to the other node.
        publish(&queue, &block[..1]).await;
        take(&queue, &RouteFilter::All).await.acknowledge().await.unwrap();
        assert_eq!(relay.live_connections(), 0);
        relay.refuse(false);
    }
    assert!(queue.is_alive().await);
}
