//! What grows with the number of tasks, and what does not. At a larger scale: `cargo bench --bench cluster`.

use std::sync::Arc;
use std::time::Duration;

use imgsync_model::batch::Route;
use imgsync_queue::{RabbitQueue, RouteFilter, TaskQueue as _};
use imgsync_store::{ManualClock, SqliteStore, WorkerRegistry};
use imgsync_tests::RabbitMq;
use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;

use crate::queue::{index, route_messages, settings};
use crate::store_contract::secret;
use crate::support::WAIT_TIMEOUT;

/// Queue depth that a coordinator keeps for a route without workers.
const MIN_QUEUE_DEPTH: u64 = 20;

/// Pushes one image per repository, under this many tags.
fn fill(registry: &FaultRegistry, below: &str, repositories: usize, tags: usize) {
    for repository in 0..repositories {
        let image = images::single(&format!("scale-{repository}"));
        let repository = format!("{below}/r{repository}");
        registry.push(&repository, "v1.0.0", &image);
        (1..tags).for_each(|tag| registry.move_tag(&repository, &format!("v1.{}.{}", tag / 20, tag % 20), &image.root));
    }
}

/// Plans tags of plain listings without a worker. Returns the coordinator's peak memory and the bytes of the store per
/// task.
async fn plan(repositories: usize, tags: usize) -> (u64, f64) {
    let cluster = TestCluster::start();
    let source = FaultRegistry::start().await;
    fill(&source, "p", repositories, tags);
    let total = (repositories * tags) as u64;
    let config = format!("defaults: {{to: target.test/m, naming: keep}}\nrules:\n- from: {}/p/**\n", source.host());
    let mut run = cluster.imgsync(&config).args(["run", "--json"]).spawn();
    let is_planned = |shown: &serde_json::Value| number(shown, "/counts/total") == total && !shown["planned"].is_null();
    cluster.wait_for_batch(is_planned, WAIT_TIMEOUT).await;
    let waiting = || cluster.broker.message_counts().values().sum::<u64>();
    let started = std::time::Instant::now();
    let mut before = 0;
    // Until the count stays the same.
    let waits = loop {
        let now = waiting();
        if now > 0 && now == before {
            break now;
        }
        assert!(started.elapsed() < WAIT_TIMEOUT, "{now} messages wait, and it goes on");
        before = now;
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert!(waits <= MIN_QUEUE_DEPTH, "{waits} messages are with the broker");
    let bytes = cluster.store.key_memory_bytes("imgsync:{*") as f64 / total as f64;
    let peak = run.peak_rss_bytes();
    cluster.imgsync("").args(["batch", "cancel"]).run().await.assert_code(0);
    let ended = run.wait().await;
    assert_eq!(number(&ended.json(), "/counts/cancelled"), total, "{}", ended.stderr);
    (peak.max(ended.peak_rss_bytes), bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_tasks_take_a_few_bytes_of_the_store_and_nothing_of_broker_and_coordinator() {
    // More repositories than are listed concurrently, in both cases.
    let (few, _) = plan(40, 1000).await;
    let (many, bytes) = plan(160, 1000).await;
    println!("40,000 tasks: {few} bytes; 160,000 tasks: {many} bytes, {bytes:.2} bytes of the store each");
    assert!(bytes < 12.0, "{bytes:.2} bytes of the store for a task");
    assert!(many < few + (8 << 20), "the coordinator took {few} bytes for 40,000 tasks and {many} for 160,000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_that_listings_show_unchanged_are_never_queued_and_take_less_than_80_bytes_each() {
    let cluster = TestCluster::start();
    let google = || FaultRegistry::builder().google().start();
    let (source, target) = tokio::join!(google(), google());
    fill(&source, "p", 200, 100);
    fill(&target, "m/p", 200, 100);
    let _workers = cluster.start_workers(1, 4).await;
    let config =
        format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n- from: {}/p/**\n", target.host(), source.host());
    for (source_requests, target_requests) in [(201, 200..=200), (201, 1..=50)] {
        source.clear_requests();
        target.clear_requests();
        let json = cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0).json();
        assert_eq!(number(&json, "/counts/unchanged"), 20_000, "{json}");
        assert_eq!(source.total(), source_requests, "a request a repository, and one for the tree");
        assert!(target_requests.contains(&target.total()), "{} requests at the target", target.total());
    }
    let queues = cluster.broker.message_counts();
    assert!(!queues.keys().any(|queue| queue.starts_with("w.")), "nothing was ever published: {queues:?}");
    let bytes = (cluster.store.key_memory_bytes("imgsync:tags:*") + cluster.store.key_memory_bytes("imgsync:scopes"))
        as f64
        / 20_000.0;
    println!("{bytes:.1} bytes a tag");
    assert!(bytes < 80.0, "{bytes:.1} bytes of the store for a known tag");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_in_one_of_fifty_routes_that_were_idle_for_a_day_is_found() {
    let broker = RabbitMq::shared();
    let clock = Arc::new(ManualClock::starting_at(jiff::Timestamp::now()));
    let worker_registry: Arc<dyn WorkerRegistry> = Arc::new(SqliteStore::in_memory(clock.clone()).await.unwrap());
    let of = |n: u32| Route::anonymous(format!("source{n}.test").parse().unwrap(), "target.test".parse().unwrap());
    let routes: Vec<Route> = (0..50).map(of).collect();
    worker_registry.record_routes(&routes).await.unwrap();
    clock.advance(Duration::from_secs(24 * 60 * 60));
    let url = secret(&broker.url());
    let connect = || RabbitQueue::connect(std::slice::from_ref(&url), worker_registry.clone(), settings());
    let (taker, publisher) = tokio::try_join!(connect(), connect()).unwrap();
    let never = tokio_util::sync::CancellationToken::new();
    let taken = tokio::spawn(async move { taker.receive(&RouteFilter::All, &never).await });
    // Each of them has been polled by now.
    let all_are_there = || broker.message_counts().keys().filter(|queue| queue.starts_with("w.")).count() == 50;
    crate::support::until("fifty queues", WAIT_TIMEOUT, all_are_there).await;
    let (_, message) = route_messages("source17.test", 1).remove(0);
    publisher.publish(&[(of(17), message)]).await.unwrap();
    let delivery = tokio::time::timeout(WAIT_TIMEOUT, taken).await.expect("it is found").unwrap().unwrap().unwrap();
    assert_eq!((&delivery.route, index(&delivery.message)), (&of(17), 0));
    delivery.acknowledge().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_overlap_in_many_repositories_plan_each_image_once() {
    let cluster = TestCluster::start();
    let google = || FaultRegistry::builder().google().start();
    let (source, target) = tokio::join!(google(), google());
    fill(&source, "p", 60, 60);
    fill(&target, "m/p", 60, 60);
    let some = "tags: {include: [\"v1.0.*\"]}";
    let config = format!(
        "defaults: {{to: {}/m, naming: keep}}\nrules:\n- from: {host}/p/**\n  {some}\n- from: {host}/p/**\n",
        target.host(),
        host = source.host()
    );
    let json = cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(number(&json, "/counts/total"), 3600, "{json}");
    assert_eq!(number(&json, "/counts/unchanged"), 3600, "{json}");
}
