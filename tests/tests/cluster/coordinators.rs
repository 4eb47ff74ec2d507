//! Coordinators that crash, wait for leadership, cancel, and requeue.

use std::time::Duration;

use imgsync_tests::cluster::number;
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::RunningProgram;

use crate::support::{ClusterFixture, WAIT_TIMEOUT, assert_sums, kill, until};

/// Starts a coordinator and waits until it leads or stands by.
pub(crate) async fn start_coordinator(fixture: &ClusterFixture) -> RunningProgram {
    let serving = fixture.cluster.imgsync("").args(["serve", "--listen", "127.0.0.1:0"]).spawn();
    let is_up = |line: &str| line.ends_with("elected leader") || line.contains("standby");
    serving.wait_for_line(is_up, WAIT_TIMEOUT).await;
    serving
}

#[tokio::test]
async fn a_run_killed_while_it_lists_is_resumed_with_each_image_once() {
    let fixture = ClusterFixture::new(6, 20).await;
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    for late in ["r04", "r05"] {
        let listing = RequestMatcher::kind(RequestType::Tags).repository(late);
        fixture.source.on(listing).always().act(FaultAction::Gate(gate.clone()));
    }
    let mut run = fixture.run();
    fixture.target.wait_until(|target| target.tags_in_all() > 10, WAIT_TIMEOUT).await;
    kill(&mut run).await;
    gate.add_permits(100);
    let resumed = fixture.cluster.imgsync(&fixture.config).args(["batch", "resume", "--json"]).run().await;
    fixture.assert_ended_whole(&resumed);
    for (repository, tag, _) in &fixture.images {
        assert_eq!(fixture.puts(repository, tag), 1, "{repository}:{tag} is written once");
    }
}

/// The plan is larger than the depth of the queue.
#[tokio::test]
async fn a_run_killed_while_it_dispatches_is_resumed_with_each_image_once() {
    let mut fixture = ClusterFixture::new(1, 0).await;
    let image = TestImage::single("same").layer(Layer::File(300)).build();
    for tag in 0..3_000 {
        fixture.source.push("r00", &format!("t{tag}"), &image);
        fixture.images.push(("r00".to_owned(), format!("t{tag}"), image.clone()));
    }
    let mut run = fixture.run();
    let planned = fixture.cluster.wait_for_batch(|shown| !shown["planned"].is_null(), WAIT_TIMEOUT).await;
    assert_eq!(number(&planned, "/counts/total"), 3_000);
    kill(&mut run).await;
    let _workers = fixture.cluster.start_workers(2, 8).await;
    let resume = fixture.cluster.imgsync(&fixture.config).args(["batch", "resume", "--json"]);
    let resumed = resume.limit(Duration::from_secs(200)).run().await;
    fixture.assert_ended_whole(&resumed);
    assert_eq!(number(&resumed.json(), "/counts/copied"), 3_000);
}

#[tokio::test]
async fn of_two_coordinators_one_leads_and_the_other_takes_over_when_it_is_killed() {
    let fixture = ClusterFixture::new(4, 25).await;
    let detach = || fixture.cluster.imgsync(&fixture.config).args(["run", "--detach"]);
    let alone = detach().run().await.assert_code(3);
    assert!(alone.stderr.contains("imgsync serve"), "{}", alone.stderr);
    assert_eq!(fixture.source.total(), 0, "nothing is listed in vain");

    let mut leads = start_coordinator(&fixture).await;
    let stands_by = start_coordinator(&fixture).await;
    assert!(stands_by.stderr().contains("standby: serve on "), "{}", stands_by.stderr());
    let gate = fixture.gate_tags_after(20);
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let detached = detach().run().await.assert_code(0);
    let id = detached.stdout.trim().to_owned();
    gate.wait_for(8).await;
    kill(&mut leads).await;
    stands_by.wait_for_line(|line| line.ends_with("elected leader"), WAIT_TIMEOUT).await;
    gate.open();
    let shown = fixture.cluster.wait_for_batch(|shown| shown["state"] == "done", WAIT_TIMEOUT).await;
    assert_eq!(shown["batch"], *id);
    fixture.assert_whole(&shown);
}

#[tokio::test]
async fn each_batch_is_notified_once_by_its_run_or_by_a_coordinator() {
    let fixture = ClusterFixture::new(1, 5).await;
    let webhook = imgsync_tests::servers::WebhookReceiver::start().await;
    let config = format!("{}notify: {{webhook: {{url: \"{}/hook\"}}}}\n", fixture.config, webhook.url());
    let serving = fixture.cluster.imgsync(&config).args(["serve", "--listen", "127.0.0.1:0"]).spawn();
    serving.wait_for_line(|line| line.ends_with("elected leader"), WAIT_TIMEOUT).await;
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let batch = |number: usize| webhook.received()[number].json()["batch"].as_str().unwrap_or_default().to_owned();

    let ran = fixture.cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0);
    // A coordinator that is sending it may need a moment more.
    until("the first batch is notified", WAIT_TIMEOUT, || webhook.received().len() == 1).await;
    assert_eq!(batch(0), ran.json()["batch"].as_str().unwrap_or_default());

    let detached = fixture.cluster.imgsync(&config).args(["run", "--detach", "--force"]).run().await.assert_code(0);
    until("the second batch is told of", WAIT_TIMEOUT, || webhook.received().len() == 2).await;
    assert_eq!(batch(1), detached.stdout.trim());
    let body = webhook.received()[1].json();
    assert_eq!(
        (&body["event"], &body["counts"]["total"], &body["ok"]),
        (&"batch.ended".into(), &5.into(), &true.into())
    );
    // In a cluster the share of each worker is known.
    let ended: u64 =
        body["workers"]["items"].as_array().into_iter().flatten().filter_map(|it| it["ended"].as_u64()).sum();
    assert!(ended == 5 || body["workers"]["total"] == 0, "{body}");
}

#[tokio::test]
async fn a_batch_is_not_left_to_one_that_was_killed_a_moment_ago() {
    let fixture = ClusterFixture::new(1, 1).await;
    let mut leads = start_coordinator(&fixture).await;
    kill(&mut leads).await;
    let detached = fixture.cluster.imgsync(&fixture.config).args(["run", "--detach"]).run().await.assert_code(3);
    assert!(detached.stderr.contains("imgsync serve"), "{}", detached.stderr);
    assert_eq!(fixture.source.total(), 0, "nothing is listed in vain");
    let _takes_over = start_coordinator(&fixture).await;
    fixture.cluster.imgsync(&fixture.config).args(["run", "--detach"]).run().await.assert_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_says_nothing_of_a_batch_that_a_run_led_to_its_end() {
    let fixture = ClusterFixture::new(2, 10).await;
    let gate = fixture.gate_tags_after(5);
    let serve = fixture.cluster.imgsync("").env("RUST_LOG", "imgsync=info");
    let serve = serve.args(["serve", "--listen", "127.0.0.1:0"]).spawn();
    serve.wait_for_line(|line| line.ends_with("elected leader"), WAIT_TIMEOUT).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let mut run = fixture.run();
    gate.wait_for(4).await;
    serve.wait_for_line(|line| line.contains(" is led by "), WAIT_TIMEOUT).await;
    gate.open();
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    let id = ended.json()["batch"].as_str().unwrap().to_owned();
    // A batch that it leads itself is later than its next look at the other.
    let other = fixture.config.replace("/m,", "/other,");
    let detached = fixture.cluster.imgsync(&other).args(["run", "--detach"]).run().await.assert_code(0);
    let own = format!("batch {}", detached.stdout.trim());
    serve.wait_for_line(|line| line.contains(&own) && line.contains(" copied"), WAIT_TIMEOUT).await;
    let log = serve.stderr();
    let said: Vec<&str> = log.lines().filter(|line| line.contains(&id) && !line.contains(" is led by ")).collect();
    assert_eq!(said, Vec::<&str>::new(), "{log}");
}

#[tokio::test]
async fn a_cancelled_batch_stops_in_the_middle_of_a_blob_and_cleans_up() {
    let mut fixture = ClusterFixture::new(1, 0).await;
    let blob = fixture.add_large("r00", "huge", 1 << 30);
    let slow = RequestMatcher::kind(RequestType::BlobGet).reference(&blob);
    fixture.source.on(slow).always().act(FaultAction::Throttle { bytes_per_second: 8 << 20 });
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let mut run = fixture.run();
    fixture.target.wait_until(|target| target.open_uploads() == 1, WAIT_TIMEOUT).await;
    fixture.source.wait_until(|source| source.bytes_sent() > 1 << 20, WAIT_TIMEOUT).await;
    fixture.cluster.imgsync("").args(["batch", "cancel"]).run().await.assert_code(0);
    until("no upload is open and nothing is read", WAIT_TIMEOUT, || {
        fixture.target.open_uploads() == 0 && fixture.source.in_flight() == 0
    })
    .await;
    assert!(fixture.source.bytes_sent() < 64 << 20, "it read on: {} bytes", fixture.source.bytes_sent());
    assert_eq!(fixture.target.count(RequestType::UploadDelete), 1, "{}", fixture.target.describe_requests());
    let ended = run.wait().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let json = ended.json();
    assert_eq!((number(&json, "/counts/cancelled"), number(&json, "/counts/failed")), (1, 0), "{json}");
    assert_sums(&json);
    assert_eq!(fixture.target.tag_digest("m/r00", "huge"), None);
}

#[tokio::test]
async fn a_small_batch_beside_a_large_one_does_not_wait_for_it() {
    let mut fixture = ClusterFixture::new(1, 0).await;
    let image = TestImage::single("same").layer(Layer::File(300)).build();
    for tag in 0..3_000 {
        fixture.source.push("r00", &format!("t{tag}"), &image);
        fixture.images.push(("r00".to_owned(), format!("t{tag}"), image.clone()));
    }
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let mut large = fixture.run();
    fixture.target.wait_until(|target| target.tags_in_all() > 100, WAIT_TIMEOUT).await;
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    crate::shared_batch::fill(&source, 1, 10);
    let config = crate::shared_batch::rules(&source, &target, 1);
    let small = fixture.cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(number(&small, "/counts/copied"), 10, "{small}");
    let put = fixture.target.tags_in_all();
    assert!(put < 750, "the large one was at {put} of 3000");
    let ended = large.wait().await;
    fixture.assert_ended_whole(&ended);
}

#[tokio::test]
async fn a_requeue_while_others_wait_for_their_retry_ends_whole_with_each_image_once() {
    let fixture = ClusterFixture::new(4, 10).await;
    let writes_to = |repository: &'static str| {
        RequestMatcher::any().when(move |request| {
            request.repository.as_deref() == Some(repository) && !matches!(request.method.as_str(), "GET" | "HEAD")
        })
    };
    let held = fixture.target.on(writes_to("m/r00")).always().act(FaultAction::StallForever);
    let refused = fixture.target.on(writes_to("m/r01")).always().act(FaultAction::error(403, "DENIED"));
    let worker = || fixture.cluster.worker("").args(["--concurrency", "20", "--lease", "6"]).spawn();
    let mut lost = worker();
    let mut run = fixture.run();
    let is_stuck =
        |shown: &serde_json::Value| number(shown, "/counts/copied") == 20 && number(shown, "/counts/failed") == 10;
    fixture
        .cluster
        .wait_for_batch(|shown| is_stuck(shown) && number(shown, "/counts/running") == 10, WAIT_TIMEOUT)
        .await;
    kill(&mut lost).await;
    held.remove();
    refused.remove();
    // The tasks of the lost worker wait until its leases have expired.
    let _next = worker();
    let requeued = fixture.cluster.imgsync(&fixture.config).args(["batch", "requeue"]).run().await.assert_code(0);
    assert!(requeued.stderr.contains("10 failed images"), "{}", requeued.stderr);
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    for (repository, tag, _) in &fixture.images {
        assert_eq!(fixture.puts(repository, tag), 1, "{repository}:{tag} is written once");
    }
}

/// A target that is repaired.
#[tokio::test]
async fn a_requeue_copies_what_failed_and_nothing_else() {
    let fixture = ClusterFixture::new(6, 10).await;
    let refuse = |repository: &'static str| {
        let writes = RequestMatcher::any().when(move |request| {
            request.repository.as_deref() == Some(repository) && !matches!(request.method.as_str(), "GET" | "HEAD")
        });
        fixture.target.on(writes).always().act(FaultAction::error(403, "DENIED"))
    };
    let refused = [refuse("m/r01"), refuse("m/r04")];
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let ended = fixture.run().wait().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let json = ended.json();
    assert_eq!((number(&json, "/counts/copied"), number(&json, "/counts/failed")), (40, 20), "{json}");
    refused.iter().for_each(imgsync_tests::fault::RuleHandle::remove);
    fixture.target.clear_requests();
    let requeued = fixture.cluster.imgsync(&fixture.config).args(["batch", "requeue", "--json"]).run().await;
    fixture.assert_ended_whole(&requeued);
    assert_eq!(number(&requeued.json(), "/counts/copied"), 60);
    let touched = fixture.target.count_where(|request| {
        request.kind == RequestType::ManifestPut && !matches!(request.repository.as_deref(), Some("m/r01" | "m/r04"))
    });
    assert_eq!(touched, 0, "{}", fixture.target.describe_requests());
}
