//! What grows with the number of tasks, and what does not. At a larger scale: `cargo bench --bench cluster`.

use std::sync::Arc;
use std::time::Duration;

use imgsync_common::batch::Lane;
use imgsync_common::queue::{Lanes, RabbitQueue, TaskQueue as _};
use imgsync_common::store::{ManualClock, Roster, SqliteStore};
use imgsync_tests::RabbitMq;
use imgsync_tests::cluster::{Cluster, number};
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;

use crate::queue::{block, index, settings};
use crate::scene::PATIENCE;
use crate::store::secret;

/// Queue depth that a coordinator keeps for a route without workers.
const MIN_DEPTH: u64 = 20;

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
    let cluster = Cluster::start();
    let source = FaultRegistry::start().await;
    fill(&source, "p", repositories, tags);
    let total = (repositories * tags) as u64;
    let config = format!("defaults: {{to: target.test/m, naming: keep}}\nrules:\n- from: {}/p/**\n", source.host());
    let mut run = cluster.imgsync(&config).args(["run", "--json"]).spawn();
    let is_planned = |shown: &serde_json::Value| number(shown, "/counts/total") == total && !shown["sealed"].is_null();
    cluster.wait_for(is_planned, PATIENCE).await;
    let waiting = || cluster.broker.messages().values().sum::<u64>();
    let started = std::time::Instant::now();
    let mut before = 0;
    // Until the count stays the same.
    let waits = loop {
        let now = waiting();
        if now > 0 && now == before {
            break now;
        }
        assert!(started.elapsed() < PATIENCE, "{now} messages wait, and it goes on");
        before = now;
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert!(waits <= MIN_DEPTH, "{waits} messages are with the broker");
    let bytes = cluster.store.bytes_of("imgsync:{*") as f64 / total as f64;
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
async fn tags_that_the_listings_settle_are_never_queued_and_take_less_than_80_bytes_each() {
    let cluster = Cluster::start();
    let google = || FaultRegistry::builder().google().start();
    let (source, target) = tokio::join!(google(), google());
    fill(&source, "p", 200, 100);
    fill(&target, "m/p", 200, 100);
    let _workers = cluster.workers(1, 4).await;
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
    let queues = cluster.broker.messages();
    assert!(!queues.keys().any(|queue| queue.starts_with("w.")), "nothing was ever published: {queues:?}");
    let bytes = (cluster.store.bytes_of("imgsync:t:*") + cluster.store.bytes_of("imgsync:scopes")) as f64 / 20_000.0;
    println!("{bytes:.1} bytes a tag");
    assert!(bytes < 80.0, "{bytes:.1} bytes of the store for a known tag");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_in_one_of_fifty_lanes_that_were_quiet_for_a_day_is_found() {
    let broker = RabbitMq::start();
    let clock = Arc::new(ManualClock::at(jiff::Timestamp::now()));
    let roster: Arc<dyn Roster> = Arc::new(SqliteStore::in_memory(clock.clone()).await.unwrap());
    let of = |n: u32| Lane::anonymous(format!("source{n}.test").parse().unwrap(), "target.test".parse().unwrap());
    let lanes: Vec<Lane> = (0..50).map(of).collect();
    roster.note_lanes(&lanes).await.unwrap();
    clock.advance(Duration::from_secs(24 * 60 * 60));
    let url = secret(&broker.url());
    let connect = || RabbitQueue::connect(&url, roster.clone(), settings());
    let (taker, publisher) = tokio::try_join!(connect(), connect()).unwrap();
    let never = tokio_util::sync::CancellationToken::new();
    let taken = tokio::spawn(async move { taker.take(&Lanes::All, &never).await });
    // Each of them has been polled by now.
    let all_are_there = || broker.messages().keys().filter(|queue| queue.starts_with("w.")).count() == 50;
    crate::scene::until("fifty queues", PATIENCE, all_are_there).await;
    let (_, message) = block("source17.test", 1).remove(0);
    publisher.publish(&[(of(17), message)]).await.unwrap();
    let delivery = tokio::time::timeout(PATIENCE, taken).await.expect("it is found").unwrap().unwrap().unwrap();
    assert_eq!((&delivery.lane, index(&delivery.message)), (&of(17), 0));
    delivery.acknowledge().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_overlap_in_many_repositories_plan_each_image_once() {
    let cluster = Cluster::start();
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
