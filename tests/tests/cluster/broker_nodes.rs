//! A broker of several nodes: which one programs use, and what they do when it fails.

use std::time::Duration;

use imgsync_oci::error::ErrorKind;
use imgsync_queue::{RabbitQueue, RabbitSettings, RouteFilter, TaskQueue as _};
use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::program::{Imgsync, RunningProgram};
use imgsync_tests::servers::free_port;
use imgsync_tests::tcp_proxy::TcpProxy;
use imgsync_tests::{RabbitMq, RedisServer, ServeProcess};
use serde_json::json;

use crate::queue::{publish, route_messages, settings, take, worker_registry};
use crate::store_contract::secret;
use crate::support::{ClusterFixture, WAIT_TIMEOUT, until};

/// Connects to these nodes.
pub(crate) async fn connect(urls: &[String]) -> imgsync_oci::error::Result<RabbitQueue> {
    connect_with(urls, settings()).await
}

async fn connect_with(urls: &[String], settings: RabbitSettings) -> imgsync_oci::error::Result<RabbitQueue> {
    let urls: Vec<_> = urls.iter().map(|url| secret(url)).collect();
    RabbitQueue::connect(&urls, worker_registry().await, settings).await
}

/// Starts two relays to a broker, which stand for two of its nodes.
pub(crate) async fn start_relays(broker: &RabbitMq) -> [TcpProxy; 2] {
    let port = format!("127.0.0.1:{}", broker.port());
    [TcpProxy::start(&port).await, TcpProxy::start(&port).await]
}

/// Counts the threads of the broker's client in this process: one for each connection.
fn client_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "lapin-io-loop").count()
}

/// Returns the port of the node from which a worker consumes.
pub(crate) fn consuming_port(worker: &RunningProgram) -> u16 {
    let log = worker.stderr();
    let line = log.lines().rfind(|line| line.contains("consuming through the broker node")).expect("it is connected");
    let node = line.split("broker node 127.0.0.1:").nth(1).expect("the node is named");
    node.split_whitespace().next().unwrap().parse().unwrap()
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
    let relays = start_relays(&broker).await;
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
        let nodes = Vec::from_iter(queue.connected_nodes());
        let others: Vec<String> = relays.iter().map(TcpProxy::host).filter(|host| *host != relay.host()).collect();
        assert_eq!(nodes, others);
    }
    assert!((2..=4).contains(&queue.health().reconnects()), "{}", queue.health().reconnects());
    assert!(queue.is_alive().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_say_to_which_node_they_are_connected_and_count_reconnects() {
    let fixture = ClusterFixture::new(1, 2).await;
    let relays = start_relays(&fixture.cluster.broker).await;
    let urls = relays.each_ref().map(|relay| fixture.cluster.broker.url_through(&relay.host())).join(",");
    let config = &fixture.config;
    let served = fixture.cluster.imgsync(config).env("IMGSYNC_BROKER", &urls);
    let served = ServeProcess::start(&served, &[]).await;
    let listen = format!("127.0.0.1:{}", free_port());
    let worker = fixture.cluster.worker(config).env("IMGSYNC_BROKER", &urls).args(["--listen", &listen]).spawn();
    for purpose in ["publishing", "consuming"] {
        let is_said = |line: &str| line.contains(&format!("{purpose} through the broker node 127.0.0.1:"));
        served.running.wait_for_line(is_said, WAIT_TIMEOUT).await;
        worker.wait_for_line(is_said, WAIT_TIMEOUT).await;
    }
    let (used, other) = match consuming_port(&worker).to_string() {
        port if relays[0].host().ends_with(&port) => (&relays[0], &relays[1]),
        _ => (&relays[1], &relays[0]),
    };
    let reconnects = async |url: &str| -> f64 {
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("imgsync_broker_reconnects_total ")).unwrap();
        line.parse().unwrap()
    };
    let names_the_node = |workers: &serde_json::Value| {
        let nodes = workers["workers"][0]["broker_nodes"].as_array();
        nodes.is_some_and(|nodes| nodes.contains(&json!(used.host())))
    };
    served.wait_for("workers", names_the_node).await;
    let metrics = format!("http://{listen}/metrics");
    assert_eq!(reconnects(&metrics).await, 0.0);

    used.refuse(true);
    used.cut_all();
    let is_said = |line: &str| line.contains(&format!("broker node {} (reconnected)", other.host()));
    worker.wait_for_line(is_said, WAIT_TIMEOUT).await;
    crate::queue::until("the worker counts it", async || reconnects(&metrics).await >= 1.0).await;
    let run = fixture.cluster.imgsync(config).env("IMGSYNC_BROKER", &urls).args(["run", "--json"]).run().await;
    fixture.assert_ended_whole(&run);
    let nodes = |workers: &serde_json::Value| {
        let workers = workers["workers"].as_array().unwrap();
        workers.iter().any(|worker| worker["broker_nodes"] == json!([other.host()]))
    };
    served.wait_for("workers", nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_node_costs_each_connection_of_a_start_one_attempt_and_leaves_nothing_behind() {
    let (broker, store) = (RabbitMq::shared(), RedisServer::start());
    let [frozen, fine] = start_relays(&broker).await;
    frozen.freeze(true);
    let urls = [&frozen, &fine].map(|relay| broker.url_through(&relay.host()));
    let worker = Imgsync::worker().env("IMGSYNC_BROKER", urls.join(",")).env("IMGSYNC_STORE", store.url());
    // The nodes of a list are tried, however short the wait is.
    let worker = worker.args(["--wait", "1s"]).spawn();
    // Which node is first is random.
    let mut starts = 1;
    let mut queues = Vec::new();
    while queues.is_empty() || frozen.connections() == 0 {
        queues.push(connect(&urls).await.unwrap());
        starts += 1;
    }
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    assert!(frozen.connections() <= 2 * starts, "{} attempts by {starts} programs", frozen.connections());
    let connections = 2 * queues.len();
    until("attempts that were given up have ended", WAIT_TIMEOUT, || client_threads() == connections).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_freezes_is_replaced_by_the_next_one() {
    let broker = RabbitMq::shared();
    let relays = start_relays(&broker).await;
    let urls = relays.each_ref().map(|relay| format!("{}?heartbeat=1", broker.url_through(&relay.host())));
    let queue = connect(&urls).await.unwrap();
    let block = route_messages("gcr.io", 1);
    for relay in &relays {
        relay.freeze(true);
        publish(&queue, &block).await;
        take(&queue, &RouteFilter::All).await.acknowledge().await.unwrap();
        relay.freeze(false);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_never_answered_moves_the_connection_to_the_next_node() {
    let broker = RabbitMq::shared();
    let relays = start_relays(&broker).await;
    let urls = relays.each_ref().map(|relay| broker.url_through(&relay.host()));
    let settings = RabbitSettings { confirm_timeout: Duration::from_secs(3), ..settings() };
    let queue = connect_with(&urls, settings).await.unwrap();
    let connections = || relays.iter().map(TcpProxy::connections).sum::<u64>();
    let (dumb, other) = (route_messages("dumb.example", 2), route_messages("other.example", 2));
    publish(&queue, &dumb[..1]).await;
    let name = format!("w.{}", dumb[0].0);
    tokio::task::block_in_place(|| broker.suspend(&name, true));
    assert_eq!(connections(), 2);

    let error = queue.publish(&dumb[1..]).await.unwrap_err();
    assert!(error.to_string().contains("no publisher confirm") && error.to_string().contains("127.0.0.1:"), "{error}");
    publish(&queue, &other).await;
    assert_eq!(connections(), 3, "it publishes by a new connection");
    for _ in 0..2 {
        let delivery = take(&queue, &RouteFilter::All).await;
        assert_eq!(delivery.route, other[0].0);
        delivery.acknowledge().await.unwrap();
    }
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { take(&queue, &RouteFilter::All).await }
    });
    until("it consumes by a new connection", WAIT_TIMEOUT, || connections() >= 4).await;

    tokio::task::block_in_place(|| broker.suspend(&name, false));
    waiting.await.unwrap().acknowledge().await.unwrap();
    until("those that were given up are closed", WAIT_TIMEOUT, || client_threads() == 2).await;
}

/// Returns the command of docs/how-to/cluster.md that begins like this, as words.
fn documented_command(begin: &str) -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/how-to/cluster.md")).unwrap();
    let line = page.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("no line begins: {begin}"));
    // Quoted words contain no spaces.
    line.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_commands_spread_leaders_and_add_replicas() {
    let nodes = tokio::task::block_in_place(|| RabbitMq::start_cluster(3));
    let run = |command: &[String]| {
        let words: Vec<&str> = command.iter().map(|word| if word == "imgsync" { "/" } else { word }).collect();
        tokio::task::block_in_place(|| nodes[0].tool(words[0], &words[1..]))
    };
    // The virtual host is the first `imgsync`; the name of the policy does not matter.
    run(&documented_command("rabbitmqctl set_policy "));
    let queue = connect(&[nodes[0].url()]).await.unwrap();
    for source in ["a", "b", "c", "d", "e", "f"] {
        publish(&queue, &route_messages(&format!("{source}.example"), 1)).await;
    }
    let list = |column| tokio::task::block_in_place(|| nodes[0].list_queues(&["name", column]));
    let leaders = list("leader");
    for node in &nodes {
        assert!(leaders.contains(&node.node_name()), "{}: {leaders}", node.node_name());
    }
    let last = nodes[2].node_name();
    let replicas = || list("members").matches(&last).count();
    let all = replicas();
    assert!(all >= 12, "each queue has one at each node: {}", list("members"));
    tokio::task::block_in_place(|| nodes[0].tool("rabbitmq-queues", &["shrink", &last]));
    assert_eq!(replicas(), 0);
    let mut grow = documented_command("rabbitmq-queues grow ");
    grow[2] = last.clone();
    run(&grow);
    assert_eq!(replicas(), all);
    run(&documented_command("rabbitmq-queues rebalance "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_goes_on_when_the_connected_node_and_then_the_node_of_the_leader_are_killed() {
    let cluster = tokio::task::block_in_place(TestCluster::with_broker_nodes);
    let mut fixture = ClusterFixture::with_cluster(cluster, 3, 12).await;
    let gate = fixture.gate_tags_after(4);
    let workers = fixture.cluster.start_workers(2, 2).await;
    let mut run = fixture.run();
    gate.wait_for(4).await;

    let port = consuming_port(&workers[0]);
    let mut nodes = fixture.cluster.broker_nodes();
    let connected = nodes.iter_mut().find(|node| node.port() == port).unwrap();
    tokio::task::block_in_place(|| {
        connected.sync_metadata();
        connected.kill();
    });
    // Workers that are busy connect when they take the next tasks.
    gate.release(4);
    until("the worker consumes from another node", WAIT_TIMEOUT, || consuming_port(&workers[0]) != port).await;
    tokio::task::block_in_place(|| connected.restart());
    let leader = tokio::task::block_in_place(|| {
        let queue = nodes[0].list_queues(&["name"]);
        let queue = queue.lines().find(|name| name.starts_with("w.")).unwrap().to_owned();
        nodes[0].leader_port(&queue)
    });
    let leading = nodes.iter_mut().find(|node| node.port() == leader).unwrap();
    tokio::task::block_in_place(|| leading.kill());
    gate.open();
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_while_two_of_three_nodes_are_dead_and_says_why() {
    let cluster = tokio::task::block_in_place(TestCluster::with_broker_nodes);
    let mut fixture = ClusterFixture::with_cluster(cluster, 1, 12).await;
    let gate = fixture.gate_tags_after(2);
    let workers = fixture.cluster.start_workers(1, 2).await;
    let mut run = fixture.run();
    gate.wait_for(2).await;
    let mut nodes = fixture.cluster.broker_nodes();
    tokio::task::block_in_place(|| {
        for node in &mut nodes[1..] {
            node.sync_metadata();
            node.kill();
        }
    });
    gate.open();
    // The node that is left pauses.
    let line = workers[0].wait_for_line(|line| line.contains("is unreachable: "), WAIT_TIMEOUT).await;
    let why = line.split("is unreachable: ").nth(1).unwrap();
    for node in &nodes {
        assert!(why.contains(&format!("127.0.0.1:{}", node.port())), "{line}");
    }
    assert!(!line.contains("guest"), "{line}");
    let shown = fixture.cluster.show_batch().await.unwrap();
    assert!(number(&shown, "/counts/waiting") > 0 && shown["state"] == "running", "{shown}");

    let mut nodes = fixture.cluster.broker_nodes();
    tokio::task::block_in_place(|| nodes[1].restart());
    workers[0].wait_for_line(|line| line.contains("is reachable again"), WAIT_TIMEOUT).await;
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
}
