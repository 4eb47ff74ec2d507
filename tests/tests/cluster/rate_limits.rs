//! Several workers at a source with rate limits and quotas.

use std::sync::Arc;
use std::time::Duration;

use imgsync_oci::RegistryName;
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::{
    Access, Client, ClientSettings, Context, ManifestRef, RegistrySettings, SharedRateLimit, TrafficCounters,
};
use imgsync_store::{RedisOptions, RedisStore};
use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::program::RunningProgram;
use imgsync_tests::servers::RedisServer;

use crate::shared_batch::{fill, rules};
use crate::store_contract::store_url;
use crate::support::{WAIT_TIMEOUT, kill};

/// Runs a batch of 60 images with this many workers. Returns requests and refusals at the source.
async fn batch(workers: usize, settings: &str) -> (u64, u64) {
    let cluster = TestCluster::start();
    let source = FaultRegistry::builder().rate((20.0, 20.0)).start().await;
    let target = FaultRegistry::start().await;
    let images = fill(&source, 3, 20);
    let config = match settings {
        "" => String::new(),
        settings => format!("registries: {{\"{}\": {{{settings}}}}}\n", source.host()),
    };
    let mut running = Vec::new();
    for _ in 0..workers {
        running.push(cluster.worker(&config).args(["--concurrency", "2"]).spawn());
    }
    for worker in &running {
        worker.wait_for_line(|line| line.starts_with("worker "), Duration::from_secs(30)).await;
    }
    let config = format!("{config}{}", rules(&source, &target, 3));
    let json = cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(number(&json, "/counts/copied"), 60, "{json}");
    for (repository, tag, image) in &images {
        target.assert_holds(&format!("m/{repository}"), tag, image);
    }
    (source.total_with_pings_and_tokens(), source.count_where(|request| request.status == Some(429)))
}

#[tokio::test]
async fn eight_workers_keep_a_limit_that_is_configured() {
    let (total, refused) = batch(8, "requests_per_second: 20").await;
    assert!(refused * 100 <= total, "{refused} of {total} requests were refused");
}

#[tokio::test]
async fn an_unknown_rate_limit_refuses_eight_workers_no_more_than_one() {
    let ((_, one), (total, eight)) = (batch(1, "").await, batch(8, "").await);
    assert!(one > 0, "the limit was met");
    assert!(eight <= one + 16, "{one} requests of one worker were refused, {eight} (of {total}) of eight");
}

/// Starts workers with a configuration and waits until they take tasks.
async fn workers(cluster: &TestCluster, number: usize, config: &str, more: &[&str]) -> Vec<RunningProgram> {
    let running: Vec<RunningProgram> = (0..number).map(|_| cluster.worker(config).args(more).spawn()).collect();
    for worker in &running {
        worker.wait_for_line(|line| line.starts_with("worker "), Duration::from_secs(30)).await;
    }
    running
}

#[tokio::test]
async fn four_workers_stay_within_the_concurrency_limit_and_a_killed_one_keeps_no_permits() {
    let cluster = TestCluster::start();
    let source = FaultRegistry::builder().latency(Duration::from_millis(10)).start().await;
    let target = FaultRegistry::start().await;
    let images = fill(&source, 4, 20);
    let settings = format!("registries: {{\"{}\": {{concurrency: 3}}}}\n", source.host());
    let mut running = workers(&cluster, 4, &settings, &["--concurrency", "4", "--lease", "6"]).await;
    let config = format!("{settings}{}", rules(&source, &target, 4));
    let mut run = cluster.imgsync(&config).args(["run", "--json"]).limit(Duration::from_secs(170)).spawn();
    target.wait_until(|target| target.tags_in_all() > 15, WAIT_TIMEOUT).await;
    kill(&mut running[0]).await;
    let json = run.wait().await.assert_code(0).json();
    let whole = number(&json, "/counts/copied") + number(&json, "/counts/unchanged");
    assert_eq!((whole, number(&json, "/counts/failed")), (80, 0), "{json}");
    for (repository, tag, image) in &images {
        target.assert_holds(&format!("m/{repository}"), tag, image);
    }
    assert!(source.peak_in_flight() <= 3, "{} requests were open", source.peak_in_flight());
}

#[tokio::test]
async fn workers_wait_for_the_next_window_of_a_quota_and_spend_no_attempt() {
    let cluster = TestCluster::start();
    let source = FaultRegistry::builder().pulls((100, Duration::from_secs(20))).start().await;
    let target = FaultRegistry::start().await;
    let images = fill(&source, 3, 50);
    // With a single attempt, any refused image would fail.
    let _running = workers(&cluster, 4, "", &["--concurrency", "4", "--attempts", "1"]).await;
    let config = rules(&source, &target, 3);
    let mut run =
        cluster.imgsync(&config).args(["run", "--json", "--attempts", "1"]).limit(Duration::from_secs(170)).spawn();
    let host = source.host();
    let shown =
        cluster.wait_for_batch(|shown| shown["rate_limit_messages"].to_string().contains(&host), WAIT_TIMEOUT).await;
    assert!(shown["rate_limit_messages"].to_string().contains("held until 2"), "{shown}");
    let says = |line: &str| line.contains("no running worker serves") && line.contains("held until 2");
    run.wait_for_line(says, Duration::from_secs(30)).await;
    let json = run.wait().await.assert_code(0).json();
    assert_eq!((number(&json, "/counts/copied"), number(&json, "/counts/failed")), (150, 0), "{json}");
    for (repository, tag, image) in &images {
        target.assert_holds(&format!("m/{repository}"), tag, image);
    }
    // Only requests in flight when the quota ran out were refused.
    let refused = source.count_where(|request| request.status == Some(429));
    assert!(refused <= 32, "{refused} were refused");
}

#[tokio::test]
async fn a_machine_that_has_moved_what_a_month_allows_takes_no_more_and_says_so() {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    fill(&source, 2, 4);
    let _one = workers(&cluster, 1, "monthly_quota: 10KB\n", &["--concurrency", "1"]).await;
    let first = rules(&source, &target, 1);
    cluster.imgsync(&first).args(["run", "--json"]).run().await.assert_code(0);
    let says = |shown: &serde_json::Value| shown["workers"].to_string().contains("it takes no tasks until next month");
    cluster.wait_for_batch(says, WAIT_TIMEOUT).await;
    source.clear_requests();
    // Another worker on the same machine shares its quota.
    let _two = workers(&cluster, 1, "monthly_quota: 10KB\n", &["--concurrency", "1"]).await;
    let mut run = cluster.imgsync(&rules(&source, &target, 2)).args(["run", "--json"]).spawn();
    let says = |shown: &serde_json::Value| shown["problems"].to_string().contains("it takes no tasks until next month");
    cluster.wait_for_batch(says, WAIT_TIMEOUT).await;
    assert_eq!(source.count(RequestType::BlobGet), 0, "{}", source.describe_requests());
    cluster.imgsync("").args(["batch", "cancel"]).run().await.assert_code(0);
    run.wait().await.assert_code(1);
}

#[tokio::test]
async fn a_store_that_is_away_costs_no_image_and_no_registry_its_limit() {
    let store = RedisServer::start();
    let url = store_url(&store.url());
    let source = FaultRegistry::builder().rate((20.0, 20.0)).start().await;
    source.push("a", "1", &imgsync_tests::images::single("away"));
    let host: RegistryName = source.host().parse().unwrap();
    let client = async || {
        let store = Arc::new(RedisStore::connect(&url, RedisOptions::long_running()).await.unwrap());
        let one = RegistrySettings { requests_per_second: Some(20.0), concurrency: Some(8), ..Default::default() };
        let shared_rate_limit = Some(SharedRateLimit { store, slow_start: true, exclusive: false });
        let settings =
            ClientSettings { registries: [(host.clone(), one)].into(), shared_rate_limit, ..Default::default() };
        Client::new(settings, CredentialEnvironment::default())
    };
    let clients = [client().await, client().await, client().await];
    let ask = async |times: usize| {
        let asking = clients.iter().map(|client| {
            let (name, host) = ("a".parse().unwrap(), host.clone());
            let repository =
                client.repository(&host, &name, Access::Pull, &Context::default(), &TrafficCounters::new()).unwrap();
            async move {
                for _ in 0..times {
                    repository.head_manifest(&ManifestRef::Tag("1".parse().unwrap())).await.unwrap().unwrap();
                }
            }
        });
        futures_util::future::join_all(asking).await;
    };
    ask(20).await;
    let mut store = store;
    store.kill();
    // Each continues at its last rate, and all together are no faster than before.
    ask(30).await;
    let (total, refused) =
        (source.total_with_pings_and_tokens(), source.count_where(|request| request.status == Some(429)));
    assert!(total >= 150, "{total}");
    assert!(refused * 20 <= total, "{refused} of {total} were refused");
    store.restart();
    ask(10).await;
}
