//! Registries that fail, and workers that may not or cannot serve a route.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::cluster::number;
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::RunningProgram;
use imgsync_tests::servers::free_port;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::shared_batch::{fill, rules};
use crate::support::{ClusterFixture, WAIT_TIMEOUT, assert_sums, kill};

/// Starts a worker, without a key if that is empty.
async fn worker(fixture: &ClusterFixture, config: &str, key: &str, arguments: &[&str]) -> RunningProgram {
    let mut worker = fixture.cluster.worker(config);
    if !key.is_empty() {
        worker = worker.env("IMGSYNC_KEY", key);
    }
    let worker = worker.args(["--concurrency", "4"]).args(arguments).spawn();
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    worker
}

/// Reports whether `batch show` lists this problem.
fn has_problem(shown: &Value, of: &str) -> bool {
    let problems = shown["problems"].as_array().expect("a cluster's batch has them");
    problems.iter().any(|problem| problem.as_str().is_some_and(|problem| problem.contains(of)))
}

#[tokio::test]
async fn a_source_that_only_fails_is_asked_a_bounded_number_of_times() {
    let fixture = ClusterFixture::new(3, 10).await;
    let broken = |request: &imgsync_tests::fault::RecordedRequest| {
        request.repository.as_deref() == Some("r00") && request.kind != RequestType::Tags
    };
    fixture
        .source
        .on(RequestMatcher::any().when(move |request| broken(request) && request.n % 2 == 0))
        .always()
        .act(FaultAction::error(503, "UNAVAILABLE"));
    fixture.source.on(RequestMatcher::any().when(broken)).always().act(FaultAction::CutBefore);
    let _workers =
        [worker(&fixture, "", "", &["--attempts", "3"]).await, worker(&fixture, "", "", &["--attempts", "3"]).await];
    let ended = fixture.run().wait().await;
    let json = ended.json();
    assert_eq!((number(&json, "/counts/copied"), number(&json, "/counts/failed")), (20, 10), "{json}");
    assert_sums(&json);
    let asked = fixture.source.count_where(broken);
    assert!((10 * 3..=10 * 3 * 2).contains(&asked), "{asked} requests for 10 images, 3 tries each");
    assert!(json["failures"][0]["attempts"].as_u64().is_some_and(|attempts| attempts >= 3), "{json}");
}

#[tokio::test]
async fn a_blob_that_is_corrupt_fails_its_image_which_is_never_tagged() {
    let mut fixture = ClusterFixture::new(1, 3).await;
    let blob = fixture.add_large("r00", "corrupt", 3 << 20);
    fixture.images.pop();
    fixture
        .source
        .on(RequestMatcher::kind(RequestType::BlobGet).reference(&blob))
        .always()
        .act(FaultAction::Corrupt { at: 2 << 20 });
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let json = fixture.run().wait().await.assert_code(1).json();
    assert_eq!((number(&json, "/counts/copied"), number(&json, "/counts/failed")), (3, 1), "{json}");
    assert_eq!(fixture.target.tag_digest("m/r00", "corrupt"), None);
    assert!(!fixture.target.has_blob("m/r00", &blob));
    assert!(json["failures"][0]["error"].as_str().is_some_and(|error| error.contains(&blob[..19])), "{json}");
    fixture.assert_target();
}

#[tokio::test]
async fn a_tag_that_moves_during_the_copy_is_one_image_at_the_target() {
    let mut fixture = ClusterFixture::new(1, 2).await;
    let blob = fixture.add_large("r00", "moving", 3 << 20);
    let (_, _, before) = fixture.images.pop().expect("it was added just now");
    let gate = Arc::new(Semaphore::new(0));
    let held = fixture
        .source
        .on(RequestMatcher::kind(RequestType::BlobGet).reference(&blob))
        .act(FaultAction::Gate(gate.clone()));
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let mut run = fixture.run();
    fixture.source.wait_until(|_| held.hits() == 1, WAIT_TIMEOUT).await;
    let after = TestImage::single("moved").layer(Layer::File(5_000)).build();
    fixture.source.push("r00", "moving", &after);
    gate.add_permits(1);
    let json = run.wait().await.assert_code(0).json();
    assert_eq!(number(&json, "/counts/copied"), 3, "{json}");
    fixture.target.assert_tags_complete();
    let differs = [&before, &after].map(|image| fixture.target.differences("m/r00", "moving", image).len());
    assert!(differs.contains(&0), "it is one of the two, whole: {differs:?}");
    // In either case the next run notices that the source has moved.
    fixture.run().wait().await.assert_code(0);
    fixture.target.assert_holds("m/r00", "moving", &after);
}

#[tokio::test]
async fn a_route_that_no_worker_may_serve_is_reported_and_served_when_one_starts() {
    let fixture = ClusterFixture::new(1, 4).await;
    let other = FaultRegistry::start().await;
    let images = fill(&other, 2, 4);
    let route = format!("{}>{}", other.host(), fixture.target.host());
    let config = format!("{}- from: {}/r01\n", fixture.config, other.host());
    let _picky = worker(&fixture, "", "", &["--registries", &fixture.source.host()]).await;
    let mut run = fixture.cluster.imgsync(&config).args(["run", "--json"]).spawn();
    let shown = fixture
        .cluster
        .wait_for_batch(|shown| has_problem(shown, &route) && number(shown, "/counts/copied") == 4, WAIT_TIMEOUT);
    let shown = shown.await;
    assert!(has_problem(&shown, "excluded by --registries of this worker"), "{shown:#}");
    assert_eq!(number(&shown, "/counts/waiting"), 4, "the rest goes on: {shown:#}");
    let words = fixture.cluster.imgsync("").args(["batch", "show"]).run().await.assert_code(0);
    assert!(words.stdout.contains(&format!("Problem: no running worker serves {route}")), "{}", words.stdout);
    let _broad = worker(&fixture, "", "", &[]).await;
    let json = run.wait().await.assert_code(0).json();
    assert_eq!(number(&json, "/counts/copied"), 8, "{json}");
    for (repository, tag, image) in images.iter().filter(|(repository, _, _)| repository == "r01") {
        fixture.target.assert_holds(&format!("m/{repository}"), tag, image);
    }
    fixture.assert_target();
}

#[tokio::test]
async fn a_worker_that_cannot_reach_a_registry_spends_no_attempts_on_it() {
    let fixture = ClusterFixture::new(2, 4).await;
    // A port without a listener.
    let nowhere =
        format!("registries:\n  \"{}\": {{endpoint: \"http://127.0.0.1:{}\"}}\n", fixture.source.host(), free_port());
    let _cut_off = worker(&fixture, &nowhere, "", &["--attempts", "1"]).await;
    let mut run = fixture.run();
    let shown = fixture
        .cluster
        .wait_for_batch(|shown| has_problem(shown, "is unreachable from this worker"), WAIT_TIMEOUT)
        .await;
    assert_eq!(number(&shown, "/counts/waiting") + number(&shown, "/counts/running"), 8, "{shown:#}");
    let _able = worker(&fixture, "", "", &["--attempts", "1"]).await;
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
}

#[tokio::test]
async fn a_message_not_signed_with_a_workers_key_is_refused_reported_and_run_by_another() {
    let fixture = ClusterFixture::new(2, 4).await;
    let mut wrong = worker(&fixture, "", "the key of another cluster", &[]).await;
    let run =
        fixture.cluster.imgsync(&fixture.config).env("IMGSYNC_KEY", "the key of this cluster").args(["run", "--json"]);
    let mut run = run.spawn();
    let shown = fixture.cluster.wait_for_batch(|shown| has_problem(shown, " rejected "), WAIT_TIMEOUT).await;
    assert_eq!(number(&shown, "/counts/copied"), 0, "{shown:#}");
    assert_eq!(fixture.target.total(), 0, "{}", fixture.target.describe_requests());
    kill(&mut wrong).await;
    let _right = worker(&fixture, "", "the key of this cluster", &[]).await;
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
}

#[tokio::test]
async fn what_is_not_signed_at_all_is_refused_by_a_worker_with_a_key() {
    let fixture = ClusterFixture::new(1, 2).await;
    let _strict = worker(&fixture, "", "the key of this cluster", &[]).await;
    let config = rules(&fixture.source, &fixture.target, 1);
    let _run = fixture.cluster.imgsync(&config).args(["run", "--json"]).spawn();
    let shown = fixture.cluster.wait_for_batch(|shown| has_problem(shown, " rejected "), Duration::from_secs(30)).await;
    assert_eq!(number(&shown, "/counts/copied"), 0, "{shown:#}");
    assert_eq!(fixture.target.total(), 0, "{}", fixture.target.describe_requests());
}
