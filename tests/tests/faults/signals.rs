//! The first and the second Ctrl-C, in every phase of a program.

use std::fs::File;
use std::time::{Duration, Instant};

use imgsync_tests::ServeProcess;
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output, RunningProgram, Signal};
use serde_json::json;

const MIB: u64 = 1 << 20;
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time that the program gives copies in progress, before it aborts them.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN_MESSAGE: &str = "finishing copies in progress; press Ctrl-C again to abort";

fn run(source: &FaultRegistry, target: &FaultRegistry) -> Imgsync {
    let run = Imgsync::new().args(["run", "--json"]).limit(WAIT_TIMEOUT);
    run.file("imgsync.yaml", format!("rules:\n  - {{from: {}/a, to: {}/b}}\n", source.host(), target.host()));
    run
}

/// Sends a signal, and asserts that the program ends with this code, and sooner than by draining.
async fn abort(running: &mut RunningProgram, code: i32) -> Output {
    let asked = Instant::now();
    running.signal(Signal::INT);
    let output = running.wait().await.assert_code(code);
    assert!(asked.elapsed() < DRAIN_TIMEOUT / 2, "{:?}: {}", asked.elapsed(), output.stderr);
    output
}

#[tokio::test]
async fn a_lone_copy_of_many_small_blobs_ends_at_the_first_ctrl_c() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::TestImage::single("lone").layers(12, MIB).build());
    source.on(RequestType::BlobGet).always().act(FaultAction::Throttle { bytes_per_second: 64 << 10 });
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let mut running = Imgsync::new().args(["sync", &from, &to]).limit(WAIT_TIMEOUT).spawn();
    source.wait_until(|source| source.bytes_sent() > MIB / 4, WAIT_TIMEOUT).await;
    abort(&mut running, 4).await;
    assert!(target.tags("b").is_empty());
}

#[tokio::test]
async fn a_run_drains_at_the_first_ctrl_c_and_aborts_at_the_second() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::big("drains", 8 * MIB));
    source.on(RequestType::BlobGet).always().act(FaultAction::StallAfter { bytes: MIB });
    let mut running = run(&source, &target).spawn();
    source.wait_until(|source| source.bytes_sent() > MIB / 2, WAIT_TIMEOUT).await;
    running.signal(Signal::INT);
    running.wait_for_line(|line| line.contains(DRAIN_MESSAGE), WAIT_TIMEOUT).await;
    // An abort would have ended it: that takes a second at most.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(running.is_running(), "it did not drain: {}", running.stderr());
    let output = abort(&mut running, 4).await;
    assert!(output.stderr.contains("imgsync batch resume"), "{}", output.stderr);
    assert!(target.tags("b").is_empty());
}

#[tokio::test]
async fn serve_speaks_of_copies_in_progress_only_if_there_are_some() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::big("served", 8 * MIB));
    let program = || {
        let program = Imgsync::new();
        let rule = format!("  - {{name: only, from: {}/a, to: {}/b}}\n", source.host(), target.host());
        program.file("imgsync.yaml", format!("rules:\n{rule}"));
        program
    };
    let idle = ServeProcess::start(&program(), &[]).await.stop().await.assert_code(0);
    assert!(idle.stderr.contains("stopping") && !idle.stderr.contains(DRAIN_MESSAGE), "{}", idle.stderr);
    source.on(RequestType::BlobGet).always().act(FaultAction::StallAfter { bytes: MIB });
    let mut busy = ServeProcess::start(&program(), &[]).await;
    busy.post("schedules/only/start", &json!({})).await;
    source.wait_until(|source| source.bytes_sent() > MIB / 2, WAIT_TIMEOUT).await;
    busy.running.signal(Signal::INT);
    busy.running.wait_for_line(|line| line.contains(DRAIN_MESSAGE), WAIT_TIMEOUT).await;
    busy.running.signal(Signal::INT);
    busy.running.wait().await;
    // After its batch, it is idle again.
    source.clear_rules();
    let served = ServeProcess::start(&program(), &[]).await;
    served.post("schedules/only/start", &json!({})).await;
    served.wait_for_ended_batches(1).await;
    let output = served.stop().await.assert_code(0);
    assert!(!output.stderr.contains(DRAIN_MESSAGE), "{}", output.stderr);
}

#[tokio::test]
async fn a_run_aborts_a_listing_at_the_first_ctrl_c() {
    for kind in [RequestType::Tags, RequestType::Catalog] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &images::single("listed"));
        source.on(kind).always().act(FaultAction::Drip { after: 3, every: Duration::from_secs(1) });
        let run = Imgsync::new().args(["run", "--json"]).limit(WAIT_TIMEOUT);
        let pattern = if kind == RequestType::Tags { "a" } else { "**" };
        let rule = format!("  - {{from: \"{}/{pattern}\", to: {}/b}}\n", source.host(), target.host());
        run.file("imgsync.yaml", format!("rules:\n{rule}"));
        let mut running = run.spawn();
        source.wait_until(|source| source.count(kind) > 0, WAIT_TIMEOUT).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        abort(&mut running, 4).await;
    }
}

#[tokio::test]
async fn a_run_drains_for_half_a_minute_at_the_most() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::big("never-drains", 8 * MIB));
    source.on(RequestType::BlobGet).always().act(FaultAction::StallAfter { bytes: MIB });
    let mut running = run(&source, &target).limit(Duration::from_secs(100)).spawn();
    source.wait_until(|source| source.bytes_sent() > MIB / 2, WAIT_TIMEOUT).await;
    let asked = Instant::now();
    running.signal(Signal::TERM);
    running.wait().await.assert_code(4);
    let took = asked.elapsed();
    assert!((Duration::from_secs(29)..Duration::from_secs(45)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn who_waits_for_the_lock_of_a_layout_is_told_whose_it_is_and_may_stop() {
    let source = FaultRegistry::start().await;
    source.push("a", "1", &images::single("locked"));
    let from = format!("{}/a:1", source.host());
    let sync = |name: &str| Imgsync::new().args(["sync", &from, &format!("oci:{name}:1")]).limit(WAIT_TIMEOUT);
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("layout").display().to_string();
    sync(&name).run().await.assert_code(0);
    let marker = File::open(folder.path().join("layout/oci-layout")).unwrap();
    marker.lock().unwrap();
    let mut running = sync(&name).spawn();
    let lock_line = format!("waiting for the lock of oci:{name}: held by process {} (", std::process::id());
    running.wait_for_line(|line| line.contains(&lock_line), WAIT_TIMEOUT).await;
    abort(&mut running, 4).await;
    drop(marker);
    sync(&name).run().await.assert_code(0);
}
