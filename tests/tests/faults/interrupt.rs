//! Ctrl-C, SIGTERM and SIGKILL in the middle of a copy.

use std::time::{Duration, Instant};

use imgsync_tests::fault::{Action, FaultRegistry, Kind};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn ctrl_c_ends_within_a_second_and_leaves_neither_tag_nor_upload() {
    for signal in [Signal::INT, Signal::TERM] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::big("interrupted", 64 * MIB);
        source.push("a", "1", &image);
        source.on(Kind::BlobGet).always().act(Action::Throttle { bytes_per_second: 4 * MIB });
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        let mut running = Imgsync::new().args(["sync", &from, &to, "--json"]).spawn();
        target.wait_until(|target| target.bytes_received() > MIB, LIMIT).await;
        let asked = Instant::now();
        running.signal(signal);
        let output = running.wait().await.assert_code(4);
        assert!(asked.elapsed() < Duration::from_millis(1500), "{:?}", asked.elapsed());
        assert_eq!(output.json()["outcome"], "cancelled");
        assert!(target.tags("b").is_empty());
        assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
    }
}

#[tokio::test]
async fn ctrl_c_ends_while_a_registry_does_not_answer() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.on(Kind::ManifestGet).always().act(Action::StallForever);
    source.push("a", "1", &images::single("mute"));
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let mut running = Imgsync::new().args(["sync", &from, &to]).spawn();
    source.wait_until(|source| source.count(Kind::ManifestGet) > 0, LIMIT).await;
    let asked = Instant::now();
    running.signal(Signal::INT);
    running.wait().await.assert_code(4);
    assert!(asked.elapsed() < Duration::from_millis(1500), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn whatever_moment_it_is_killed_at_no_tag_is_incomplete_and_the_next_run_completes() {
    let image = images::nested("killed");
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &image);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    // After the first request to the target, after the second, and so on to the last.
    for requests in (1..40).step_by(4) {
        target.clear_requests();
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        target.on(imgsync_tests::fault::Match::any()).skip(requests).always().act(Action::Gate(gate.clone()));
        let mut running = Imgsync::new().args(["sync", &from, &to]).spawn();
        target.wait_until(|target| target.total() > requests || target.tags("b") == ["1"], LIMIT).await;
        running.signal(Signal::KILL);
        running.wait().await;
        target.clear_rules();
        gate.add_permits(10_000);
        target.assert_tags_complete();
    }
    Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
}
