//! Ctrl-C, SIGTERM and SIGKILL in the middle of a copy.

use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn ctrl_c_ends_a_copy_and_leaves_neither_tag_nor_upload() {
    for signal in [Signal::INT, Signal::TERM] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::big("interrupted", 64 * MIB);
        source.push("a", "1", &image);
        source.on(RequestType::BlobGet).always().act(FaultAction::Throttle { bytes_per_second: 4 * MIB });
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        let mut running = Imgsync::new().args(["sync", &from, &to, "--json"]).spawn();
        target.wait_until(|target| target.bytes_received() > MIB, WAIT_TIMEOUT).await;
        running.signal(signal);
        let output = running.wait().await.assert_code(4);
        assert!(source.bytes_sent() < 32 * MIB, "it read on: {} bytes", source.bytes_sent());
        assert_eq!(output.json()["outcome"], "cancelled");
        assert!(target.tags("b").is_empty());
        assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
    }
}

#[tokio::test]
async fn ctrl_c_ends_while_a_registry_does_not_answer() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.on(RequestType::ManifestGet).always().act(FaultAction::StallForever);
    source.push("a", "1", &images::single("mute"));
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let mut running = Imgsync::new().args(["sync", &from, &to]).spawn();
    source.wait_until(|source| source.count(RequestType::ManifestGet) > 0, WAIT_TIMEOUT).await;
    running.signal(Signal::INT);
    running.wait().await.assert_code(4);
    assert_eq!(source.count(RequestType::ManifestGet), 1, "it was not given up and asked again");
}

/// Runs `sync` and kills it after this many responses of the target. Returns whether it was still running: the next
/// request had arrived and waits.
async fn kill_after(target: &FaultRegistry, requests: u64, from: &str, to: &str) -> bool {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let waiting = target.on(RequestMatcher::any()).skip(requests).always().act(FaultAction::Gate(gate));
    let tag = to.rsplit_once(':').unwrap().1;
    let mut running = Imgsync::new().args(["sync", from, to]).spawn();
    let over = |target: &FaultRegistry| {
        waiting.hits() > 0
            || target.count_where(|request| {
                request.kind == RequestType::ManifestPut
                    && request.reference.as_deref() == Some(tag)
                    && request.is_body_complete
            }) > 0
    };
    target.wait_until(over, WAIT_TIMEOUT).await;
    let was_running = waiting.hits() > 0;
    running.signal(Signal::KILL);
    running.wait().await;
    target.clear_rules();
    was_running
}

async fn kill_at_every_request(lenient: bool) {
    let image = images::nested("killed");
    let source = FaultRegistry::start().await;
    source.push("a", "1", &image);
    let from = format!("{}/a:1", source.host());
    let least = images::floor(&image, &images::TargetContents::nothing()).target;
    let mut requests = 0;
    loop {
        let builder = FaultRegistry::builder();
        let target = if lenient { builder.lenient() } else { builder }.start().await;
        let to = format!("{}/b:1", target.host());
        let was_running = kill_after(&target, requests, &from, &to).await;
        target.assert_tags_complete();
        target.assert_children_came_first();
        assert_eq!(target.tags("b").is_empty(), requests < least, "after {requests}: {}", target.describe_requests());
        Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(0);
        target.assert_holds("b", "1", &image);
        target.assert_children_came_first();
        if !was_running {
            break;
        }
        requests += 1;
    }
    assert_eq!(requests, least, "it was killed after every request but the last");
}

#[tokio::test]
async fn whatever_moment_it_is_killed_at_no_tag_is_incomplete_and_the_next_run_completes() {
    kill_at_every_request(false).await;
}

#[tokio::test]
async fn whatever_moment_it_is_killed_at_no_tag_is_incomplete_where_a_registry_takes_anything() {
    kill_at_every_request(true).await;
}

#[tokio::test]
async fn whatever_moment_it_is_killed_at_a_tagged_artifact_is_listed_under_its_subject() {
    let image = images::single("killed-subject");
    let signature = images::referrer("killed-signature", &image);
    let source = FaultRegistry::start().await;
    source.push("a", "sig", &signature);
    let from = format!("{}/a:sig", source.host());
    let fallback = image.root.replace(':', "-");
    let listed = |target: &FaultRegistry| {
        target.manifest("b", &fallback).is_some_and(|index| images::children(&index.json()) == [signature.root.clone()])
    };
    let mut requests = 0;
    loop {
        let target = FaultRegistry::builder().without_referrers().start().await;
        let to = format!("{}/b:sig", target.host());
        let was_running = kill_after(&target, requests, &from, &to).await;
        if target.tag_digest("b", "sig").is_some() {
            assert!(listed(&target), "killed after {requests}: {}", target.describe_requests());
        }
        Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(0);
        target.assert_holds("b", "sig", &signature);
        assert!(listed(&target), "{}", target.describe_requests());
        if !was_running {
            break;
        }
        requests += 1;
    }
}

#[tokio::test]
async fn a_dry_run_ends_when_its_time_is_over_and_at_ctrl_c() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("slow-survey"));
    target.on(RequestType::BlobHead).always().act(FaultAction::StallForever);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let dry = ["sync", &from, &to, "--dry-run", "--json", "--timeout", "1s"];
    let output = Imgsync::new().args(dry).run().await.assert_code(1);
    assert_eq!(output.json()["kind"], "timed_out");
    assert!(output.stderr.contains("--timeout"), "{}", output.stderr);
    assert_eq!(target.count(RequestType::BlobHead), 1, "it was not given up and asked again");

    target.clear_requests();
    let mut running = Imgsync::new().args(["sync", &from, &to, "--dry-run"]).spawn();
    target.wait_until(|target| target.count(RequestType::BlobHead) > 0, WAIT_TIMEOUT).await;
    running.signal(Signal::INT);
    running.wait().await.assert_code(4);
}
