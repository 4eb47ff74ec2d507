//! Checks when a store is opened: the kind of server, and whether the ledger is safe there.

use std::time::Duration;

use imgsync_oci::error::{Error, ErrorKind};
use imgsync_store::{Ledger as _, RedisOptions as Options, RedisStore};
use imgsync_tests::RedisServer;
use imgsync_tests::cluster::TestCluster;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::RedisServerOptions;

use crate::store_contract::store_url;
use crate::support::{ClusterFixture, WAIT_TIMEOUT};

fn start_server(more: &[&str]) -> RedisServer {
    RedisServer::start_with(RedisServerOptions {
        extra_config: more.iter().map(|line| (*line).to_owned()).collect(),
        ..RedisServerOptions::default()
    })
}

async fn refused(url: &str) -> Error {
    RedisStore::connect(&store_url(url), Options::default()).await.unwrap_err()
}

/// Asserts that a run and a worker exit at once, with an error and a hint.
async fn assert_refused(store: &str, words: &str) {
    for program in [Imgsync::new().args(["batch", "resume"]), Imgsync::worker()] {
        program.file("imgsync.yaml", "registries: {}\n");
        let program = program.env("IMGSYNC_BROKER", "amqp://127.0.0.1:1").env("IMGSYNC_STORE", store);
        let output = program.run().await;
        assert_eq!(output.code, Some(3), "{}", output.stderr);
        assert!(output.stderr.contains(words) && output.stderr.contains("hint: "), "{words}: {}", output.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_may_evict_batches_is_refused() {
    for policy in ["allkeys-lru", "allkeys-lfu", "allkeys-random"] {
        let server = start_server(&[&format!("maxmemory-policy {policy}"), "maxmemory 100mb"]);
        let error = refused(&server.url()).await;
        assert!(error.kind() == ErrorKind::Local && error.message().contains(policy), "{error}");
        assert!(error.hint().unwrap().contains("volatile-lru"), "{error}");
        // It needs no restart: once the setting is corrected, the store can be used.
        server.set("maxmemory-policy", "volatile-lru");
        RedisStore::connect(&store_url(&server.url()), Options::default()).await.unwrap().batches(1).await.unwrap();
    }
    let server = start_server(&["maxmemory-policy allkeys-lru"]);
    assert_refused(&server.url(), "may evict any key").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_cluster_is_refused() {
    let server = start_server(&["cluster-enabled yes"]);
    let error = refused(&server.url()).await;
    assert!(error.kind() == ErrorKind::Local && error.message().contains("Redis Cluster"), "{error}");
    assert_refused(&server.url(), "this is a Redis Cluster").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_is_refused() {
    let server = RedisServer::start_with(RedisServerOptions { is_sentinel: true, ..RedisServerOptions::default() });
    for database in ["", "/3"] {
        let error = refused(&format!("{}{database}", server.url())).await;
        assert!(error.kind() == ErrorKind::Local && error.message().contains("Sentinel"), "{error}");
        assert!(error.hint().unwrap().contains("redis+sentinel://"), "{error}");
    }
    assert_refused(&server.url(), "this is a Redis Sentinel").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_user_may_not_ask_is_said_and_the_work_goes_on() {
    let rights = "user imgsync on >secret resetchannels ~imgsync:* +@all -@admin -@dangerous";
    let store = RedisServerOptions { extra_config: vec![rights.to_owned()], ..RedisServerOptions::default() };
    let fixture = ClusterFixture::with_cluster(TestCluster::with_store(store), 1, 3).await;
    let _workers = fixture.cluster.start_workers(1, 2).await;
    let url = format!("redis://imgsync:secret@127.0.0.1:{}", fixture.cluster.store.port());
    let run = fixture.cluster.imgsync(&fixture.config).env("IMGSYNC_STORE", url).args(["run", "--json"]).run().await;
    fixture.assert_ended_whole(&run);
    assert!(run.stderr.contains("not checked") && run.stderr.contains("+info"), "{}", run.stderr);
    assert!(!run.stderr.contains("secret"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_waits_for_a_master_as_long_as_it_is_told_to() {
    let (cluster, master) = (TestCluster::start(), RedisServer::start());
    cluster.store.replicate_from(&master);
    let output = cluster.worker("").args(["--wait", "2s"]).limit(WAIT_TIMEOUT).run().await.assert_code(3);
    let lines: Vec<&str> = output.stderr.lines().filter(|line| line.contains("read-only replica")).collect();
    assert!(lines.len() >= 2, "what it waits for, and what it ends with: {}", output.stderr);
    assert!(lines[0].contains("retrying for") && lines[0].contains("name the master"), "{}", output.stderr);
    assert!(output.stderr.contains("(failed "), "how often is said: {}", output.stderr);

    // And continues once there is one.
    let worker = cluster.worker("").args(["--wait", "2m"]).spawn();
    worker.wait_for_line(|line| line.contains("read-only replica"), WAIT_TIMEOUT).await;
    cluster.store.promote();
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_says_that_it_waits_for_a_master_and_begins_when_there_is_one() {
    let (fixture, master) = (ClusterFixture::new(1, 3).await, RedisServer::start());
    let _workers = fixture.cluster.start_workers(1, 2).await;
    fixture.cluster.store.replicate_from(&master);
    // Commands that only read report it at once.
    let looked = fixture.cluster.imgsync("").args(["batch", "list"]).run().await;
    assert!(looked.code != Some(0) && looked.stderr.contains("read-only replica"), "{}", looked.stderr);
    let mut run = fixture.run();
    run.wait_for_line(|line| line.contains("read-only replica"), WAIT_TIMEOUT).await;
    fixture.cluster.store.promote();
    fixture.assert_ended_whole(&run.wait().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_silent_does_not_hold_a_worker_for_longer_than_told() {
    let mut cluster = TestCluster::start();
    cluster.store.freeze();
    let output = cluster.worker("").args(["--wait", "1s"]).limit(Duration::from_secs(60)).run().await.assert_code(3);
    assert!(output.stderr.contains("timed out"), "{}", output.stderr);
    cluster.store.thaw();
}
