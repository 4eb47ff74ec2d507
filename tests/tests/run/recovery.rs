//! Failures in a run: one bad image, unlistable repositories, collisions, stores, and signals.

use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;
use rustix::process::Signal;
use serde_json::Value;

use crate::end_to_end::{assert_adds_up, configured, run};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

async fn pair() -> (FaultRegistry, FaultRegistry) {
    tokio::join!(FaultRegistry::start(), FaultRegistry::start())
}

fn program_with_kept_names(source: &FaultRegistry, target: &FaultRegistry, repository: &str) -> Imgsync {
    configured(&format!("rules:\n- {{from: {}/{repository}, to: {}/m, naming: keep}}\n", source.host(), target.host()))
}

/// Runs `imgsync batch …` in a program's home.
async fn batch(program: &Imgsync, arguments: &[&str]) -> imgsync_tests::program::Output {
    program.again().arg("batch").args(arguments).run().await
}

#[tokio::test]
async fn one_bad_image_neither_stops_nor_loops_the_run() {
    let (source, target) = pair().await;
    for n in 0..6 {
        source.push("a", &format!("v{n}"), &images::single(&format!("good-{n}")));
    }
    let bad = TestImage::single("bad").layers(2, 5000).build();
    source.push("a", "bad", &bad);
    source.delete_blob("a", &bad.layers()[0]);
    let json = run(&program_with_kept_names(&source, &target, "a"), &[]).await.assert_code(1).json();
    assert_adds_up(&json);
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&6.into(), &1.into()));
    assert_eq!(json["failures"][0]["kind"], "not_found");
    assert_eq!(json["failures"][0]["source"], format!("{}/a:bad", source.host()));
    assert!(json["failures"][0]["error"].as_str().unwrap().contains(&bad.layers()[0]));
    // The totals include the cost of the failure, and requests to the target that were given up early.
    assert_eq!(json["requests"]["source"], source.total());
    let (counted, seen) = (json["requests"]["target"].as_u64().unwrap(), target.total());
    assert!((seen..=seen + 2).contains(&counted), "{counted} requests were counted, and {seen} seen");
    let gets = source.count_where(|r| r.kind == RequestType::ManifestGet && r.reference.as_deref() == Some("bad"));
    assert_eq!(gets, 2, "the tag is resolved once more, for it may have moved; what is final is not tried again");
}

#[tokio::test]
async fn a_transient_error_is_tried_five_times_and_then_counted() {
    let (source, target) = pair().await;
    source.push("a", "1", &images::single("passing"));
    source.on(RequestMatcher::kind(RequestType::ManifestGet)).always().act(FaultAction::status(503));
    let json = run(&program_with_kept_names(&source, &target, "a"), &[]).await.assert_code(1).json();
    assert_eq!(json["failures"][0]["kind"], "server_error");
    assert_eq!(json["failures"][0]["attempts"], 5);
    assert_eq!(source.count(RequestType::ManifestGet), 5);
}

#[tokio::test]
async fn a_tag_that_vanishes_after_the_listing_fails_alone() {
    let (source, target) = pair().await;
    source.push("a", "stays", &images::single("stays"));
    source.push("a", "goes", &images::single("goes"));
    source
        .on(RequestMatcher::kind(RequestType::ManifestGet).reference("goes"))
        .always()
        .act(FaultAction::error(404, "MANIFEST_UNKNOWN"));
    let json = run(&program_with_kept_names(&source, &target, "a"), &[]).await.assert_code(1).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&1.into(), &1.into()));
    assert_eq!(json["failures"][0]["kind"], "not_found");
}

#[tokio::test]
async fn a_repository_that_cannot_be_listed_is_said_and_the_rest_goes_on() {
    let (source, target) = pair().await;
    for repository in ["a", "b", "c"] {
        source.push(repository, "1", &images::single(&format!("unlisted-{repository}")));
    }
    source.on(RequestMatcher::kind(RequestType::Tags).repository("b")).always().act(FaultAction::error(403, "DENIED"));
    let rules: String = ["a", "b", "c"].iter().map(|r| format!("- from: {}/{r}\n", source.host())).collect();
    let program = configured(&format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", target.host()));
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(json["counts"]["copied"], 2);
    assert_eq!(json["unlisted"][0]["kind"], "denied");
    assert!(json["unlisted"][0]["repository"].as_str().unwrap().ends_with("/b"), "{json}");
}

#[tokio::test]
async fn a_registry_out_of_reach_is_exit_3_and_no_rules_exit_2() {
    let port = imgsync_tests::servers::free_port();
    let program = configured(&format!("rules:\n- {{from: \"127.0.0.1:{port}/a\", to: 127.0.0.1:{port}/m}}\n"));
    let output = run(&program, &["--attempts", "1"]).await.assert_code(3);
    assert!(output.stderr.contains("onnection refused"), "{}", output.stderr);
    let output = run(&program, &["--attempts", "1", "-q"]).await.assert_code(3);
    assert!(
        output.stderr.contains("the batch is incomplete: 1 not listed"),
        "cron sends what is said: {}",
        output.stderr
    );
    let output = run(&program, &["--attempts", "1", "--dry-run"]).await.assert_code(3);
    assert!(output.stderr.contains("0 failing, 1 not listed; nothing was written"), "{}", output.stderr);
    let output = run(&configured("rules: []\n"), &[]).await;
    assert_eq!(output.code, Some(2), "{}", output.stderr);
    let output = Imgsync::new().arg("run").run().await.assert_code(2);
    assert!(output.stderr.contains("no rules"), "{}", output.stderr);
}

#[tokio::test]
async fn rules_that_read_the_same_have_each_its_own_problem() {
    let (source, target) = pair().await;
    source.push("a", "1", &images::single("few"));
    let (from, to) = (format!("{}/a", source.host()), format!("{}/m", target.host()));
    let program = configured(&format!(
        "rules:\n- {{from: {from}, to: {to}, tags: {{min: 5}}}}\n- {{from: {from}, to: {to}, tags: {{since: 90d}}}}\n"
    ));
    let json = run(&program, &[]).await.assert_code(1).json();
    let of: Vec<&str> =
        json["unlisted"].as_array().unwrap().iter().map(|it| it["repository"].as_str().unwrap()).collect();
    assert_eq!(of, [2, 3].map(|line| format!("{from} (by the rule in line {line})")), "{json}");
}

#[tokio::test]
async fn collisions_fail_those_tags_alone_and_certain_ones_at_the_start() {
    let (source, target) = pair().await;
    let (host, to) = (source.host(), target.host());
    // `x/a` and `y/a` both become `a`: colliding tags are known once they are listed.
    for (repository, tag) in [("x/a", "1"), ("x/a", "2"), ("y/a", "2"), ("y/a", "3")] {
        source.push(repository, tag, &images::single(&format!("collide-{repository}-{tag}")));
    }
    let program = configured(&format!(
        "defaults: {{to: {to}/m, naming: basename}}\nrules:\n- from: {host}/x/a\n- from: {host}/y/a\n  tags: {{exclude: [nothing]}}\n"
    ));
    let output = run(&program, &[]).await;
    let json: Value = output.json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&3.into(), &1.into()), "{output:?}");
    assert_eq!(json["failures"][0]["kind"], "collision");
    target.assert_holds("m/a", "2", &images::single("collide-x/a-2"));
    // The same source tags from two places under the same name cannot be intended.
    let program = configured(&format!(
        "defaults: {{to: {to}/m, naming: basename}}\nrules:\n- from: {host}/x/a\n- from: {host}/y/a\n"
    ));
    run(&program, &[]).await.assert_code(2);
}

#[tokio::test]
async fn the_first_signal_drains_running_images_and_the_batch_can_be_resumed() {
    let (source, target) = pair().await;
    for n in 0..30 {
        source.push("a", &format!("v{n:02}"), &TestImage::single(&format!("drain-{n}")).layers(1, 40_000).build());
    }
    source.on(RequestType::BlobGet).always().act(FaultAction::Delay(Duration::from_millis(50)));
    let program = program_with_kept_names(&source, &target, "a");
    let file = program.work_dir().join("imgsync.yaml");
    let mut running = program.again().args(["run", "--json", "--concurrency", "3", "-c"]).arg(&file).spawn();
    target.wait_until(|target| target.count(RequestType::ManifestPut) >= 4, WAIT_TIMEOUT).await;
    running.signal(Signal::INT);
    let json = running.wait().await.assert_code(4).json();
    assert_adds_up(&json);
    assert_eq!(json["counts"]["failed"], 0);
    assert_eq!(json["counts"]["running"], 0, "what ran has ended");
    let copied = json["counts"]["copied"].as_u64().unwrap();
    assert!((4..30).contains(&copied), "{json}");
    target.assert_tags_complete();

    let id = json["batch"].as_str().unwrap();
    let resumed = program.again().args(["batch", "resume", &id[..18], "--json", "-c"]).arg(&file).run().await;
    let json = resumed.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], 30);
    assert_eq!(json["batch"], id);
}

#[tokio::test]
async fn a_batch_is_paused_resumed_and_cancelled_from_another_terminal() {
    let (source, target) = pair().await;
    for n in 0..40 {
        source.push("a", &format!("v{n:02}"), &images::single(&format!("steer-{n}")));
    }
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(8));
    source.on(RequestType::BlobGet).always().act(FaultAction::Gate(gate.clone()));
    let program = program_with_kept_names(&source, &target, "a");
    let file = program.work_dir().join("imgsync.yaml");
    let mut running = program.again().args(["run", "--json", "--concurrency", "2", "-c"]).arg(&file).spawn();
    target.wait_until(|target| target.count(RequestType::ManifestPut) >= 2, WAIT_TIMEOUT).await;

    batch(&program, &["pause"]).await.assert_code(0);
    let listed = batch(&program, &["list", "--json"]).await.assert_code(0);
    assert_eq!(listed.json()["state"], "paused");
    gate.add_permits(1000);
    // Running tasks end; nothing is started.
    let ended = |json: &Value| json["counts"]["running"] == 0;
    let mut json = Value::Null;
    for _ in 0..100 {
        json = batch(&program, &["show", "--json"]).await.assert_code(0).json();
        if ended(&json) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(ended(&json) && json["counts"]["waiting"].as_u64().unwrap() > 20, "{json}");
    batch(&program, &["resume"]).await.assert_code(0);
    target.wait_until(|target| target.count(RequestType::ManifestPut) >= 15, WAIT_TIMEOUT).await;
    batch(&program, &["cancel"]).await.assert_code(0);
    let json = running.wait().await.assert_code(1).json();
    assert_adds_up(&json);
    assert_eq!(json["state"], "cancelled");
    assert!(json["counts"]["cancelled"].as_u64().unwrap() > 0 && json["counts"]["failed"] == 0, "{json}");
    batch(&program, &["resume"]).await.assert_code(2);
}

#[tokio::test]
async fn cancel_stops_in_the_middle_of_a_blob_and_leaves_no_upload() {
    let (source, target) = pair().await;
    source.push("a", "1", &images::big("cancel", 256 << 20));
    source.on(RequestType::BlobGet).always().act(FaultAction::Throttle { bytes_per_second: 4 << 20 });
    let program = program_with_kept_names(&source, &target, "a");
    let file = program.work_dir().join("imgsync.yaml");
    let mut running = program.again().args(["run", "--json", "-c"]).arg(&file).spawn();
    target.wait_until(|target| target.bytes_received() > 1 << 20, WAIT_TIMEOUT).await;
    batch(&program, &["cancel"]).await.assert_code(0);
    let json = running.wait().await.assert_code(1).json();
    assert!(source.bytes_sent() < 128 << 20, "it read on: {} bytes", source.bytes_sent());
    assert_eq!((&json["counts"]["cancelled"], &json["counts"]["failed"]), (&1.into(), &0.into()));
    assert_eq!(target.open_uploads(), 0);
    assert!(target.tags("m/a").is_empty());
}

#[tokio::test]
async fn failures_are_requeued_and_only_what_failed_is_copied() {
    let (source, target) = pair().await;
    for n in 0..9 {
        source.push("a", &format!("v{n}"), &images::single(&format!("requeue-{n}")));
    }
    let odd = RequestMatcher::kind(RequestType::ManifestPut)
        .when(|request| request.reference.as_deref().is_some_and(|tag| ["v0", "v3", "v6"].contains(&tag)));
    let refusal = target.on(odd).always().act(FaultAction::error(400, "MANIFEST_INVALID"));
    let program = program_with_kept_names(&source, &target, "a");
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&6.into(), &3.into()));
    refusal.remove();
    target.clear_requests();
    let file = program.work_dir().join("imgsync.yaml");
    let nothing = program.again().args(["batch", "requeue", "--kind", "denied", "-c"]).arg(&file).run().await;
    nothing.assert_code(0);
    let json = program.again().args(["batch", "requeue", "--json", "-c"]).arg(&file).run().await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&9.into(), &0.into()));
    assert_eq!(target.count(RequestType::ManifestPut), 3);
}

#[tokio::test]
async fn a_later_run_supersedes_an_unfinished_one() {
    let (source, target) = pair().await;
    for n in 0..20 {
        source.push("a", &format!("v{n}"), &images::single(&format!("supersede-{n}")));
    }
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(6));
    source.on(RequestType::BlobGet).always().act(FaultAction::Gate(gate.clone()));
    let program = program_with_kept_names(&source, &target, "a");
    let file = program.work_dir().join("imgsync.yaml");
    let mut running = program.again().args(["run", "--concurrency", "1", "-c"]).arg(&file).spawn();
    target.wait_until(|target| target.count(RequestType::ManifestPut) >= 1, WAIT_TIMEOUT).await;
    // While it runs, a second one on the same store is refused, unless it is to wait.
    let second = run(&program, &["--if-running", "fail"]).await.assert_code(2);
    assert!(second.stderr.contains("hint:"), "{}", second.stderr);
    running.signal(Signal::KILL);
    running.wait().await;
    gate.add_permits(10_000);
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["total"], 20);
    let listed = batch(&program, &["list", "--json"]).await.assert_code(0);
    let states: Vec<Value> = listed
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .inspect(assert_adds_up)
        .map(|batch| batch["state"].clone())
        .collect();
    assert_eq!(states, ["done", "superseded"]);
}

#[tokio::test]
async fn a_damaged_store_is_said_and_left_alone() {
    let (source, target) = pair().await;
    source.push("a", "1", &images::single("store"));
    let program = program_with_kept_names(&source, &target, "a");
    run(&program, &[]).await.assert_code(0);
    let folder = program.state_dir().join("imgsync");
    let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().ends_with("-wal")), "it was closed: {names:?}");
    let file = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3")))
        .unwrap();
    std::fs::write(&file, b"this is no database, and it is long enough to be looked at".repeat(100)).unwrap();
    let output = run(&program, &[]).await.assert_code(3);
    assert!(output.stderr.contains(&*file.to_string_lossy()) && output.stderr.contains("hint:"), "{}", output.stderr);
    assert!(std::fs::read(&file).unwrap().starts_with(b"this is no database"), "it was left alone");
}

#[tokio::test]
async fn reports_have_three_levels_and_a_file_form() {
    let (source, target) = pair().await;
    source.push("a", "good", &images::single("report-good"));
    source.push("a", "bad", &images::single("report-bad"));
    source
        .on(RequestMatcher::kind(RequestType::ManifestGet).reference("bad"))
        .always()
        .act(FaultAction::error(404, "MANIFEST_UNKNOWN"));
    let program = program_with_kept_names(&source, &target, "a");
    let file = program.work_dir().join("imgsync.yaml");
    let report = |more: &'static [&'static str]| {
        let program = program.again().args(["run", "-c"]).arg(&file).args(more);
        async move { program.run().await.assert_code(1).stdout }
    };
    let one = report(&["--report"]).await;
    for line in [
        "Result: 1 of 2 images failed",
        "Images: 2",
        "Copied: 1",
        "Unchanged: 0",
        "Failed: 1",
        "Requests: ",
        "tokens and redirects\n",
        "Time: ",
    ] {
        assert!(one.contains(line), "{line}: {one}");
    }
    assert!(!one.contains("a:bad") && !one.contains("a:good"), "{one}");
    // The report of 2.1 on request; the same batch in the words of today.
    let legacy = report(&["--report", "--report-format", "legacy"]).await;
    for line in ["Sync Repo: ", "Sync Total: 2", "Sync Failed: 1", "Sync Success: 1", "Manifests CacheHit: 1"] {
        assert!(legacy.contains(line) && !one.contains(line), "{line}: {legacy}");
    }
    let two = report(&["--report", "--report-level", "2"]).await;
    assert!(two.contains("a:bad") && two.contains("not_found") && !two.contains("a:good"), "{two}");
    let three = report(&["--report", "--report-level", "3"]).await;
    assert!(three.contains("a:bad") && three.contains("a:good"), "{three}");
    let path = program.work_dir().join("out.json");
    let flag = format!("--report={}", path.display());
    program.again().args(["run", "-c"]).arg(&file).arg(flag).run().await.assert_code(1);
    let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(json["counts"]["failed"], 1);
    let again = batch(&program, &["report", "--report-level", "2"]).await.assert_code(0);
    assert!(again.stdout.contains("a:bad"), "{}", again.stdout);
}

#[tokio::test]
async fn a_blob_that_many_images_want_is_read_once() {
    let (source, target) = pair().await;
    for repository in 0..5 {
        for tag in 0..4 {
            let image = TestImage::single(&format!("shares-{repository}-{tag}"))
                .layer(imgsync_tests::images::Layer::Shared("base".into(), 3 << 20))
                .build();
            source.push(&format!("r{repository}"), &format!("v{tag}"), &image);
        }
    }
    let shared = TestImage::single("probe").layer(imgsync_tests::images::Layer::Shared("base".into(), 3 << 20)).build();
    let rules: String = (0..5).map(|n| format!("- from: {}/r{n}\n", source.host())).collect();
    let program = configured(&format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", target.host()));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], 20);
    let digest = shared.largest_blob();
    let read = source.count_where(|r| r.kind == RequestType::BlobGet && r.reference.as_deref() == Some(&digest));
    assert_eq!(read, 1, "{}", source.describe_requests());
    assert!(json["bytes"]["mounted"].as_u64().unwrap() >= 4 * (3 << 20), "{json}");
}

#[tokio::test]
async fn explain_says_why_a_tag_was_or_was_not_copied() {
    let (source, target) = pair().await;
    for tag in ["1.20.0", "1.21.0-rc1", "1.22.0"] {
        source.push("a", tag, &images::single(&format!("explain-{tag}")));
    }
    source
        .on(RequestMatcher::kind(RequestType::ManifestGet).reference("1.22.0"))
        .always()
        .act(FaultAction::error(404, "MANIFEST_UNKNOWN"));
    let program = configured(&format!(
        "rules:\n- from: {}/a\n  to: {}/m\n  naming: keep\n  tags: {{exclude: [\"*-rc*\"]}}\n",
        source.host(),
        target.host()
    ));
    run(&program, &[]).await.assert_code(1);
    let file = program.work_dir().join("imgsync.yaml");
    let explain = |reference: String| {
        let program = program.again().args(["explain", &reference, "-c"]).arg(&file);
        async move { program.run().await }
    };
    let host = source.host();
    let copied = explain(format!("{host}/a:1.20.0")).await.assert_code(0).stdout;
    assert!(copied.contains("selected") && copied.contains(": copied") && copied.contains("digest cache"), "{copied}");
    let dropped = explain(format!("{host}/a:1.21.0-rc1")).await.assert_code(0).stdout;
    assert!(dropped.contains("not copied: excluded by *-rc*"), "{dropped}");
    let failed = explain(format!("{}/m/a:1.22.0", target.host())).await.assert_code(0).stdout;
    assert!(failed.contains(": failed") && failed.contains("not_found"), "{failed}");
    let unlisted = explain(format!("{host}/a:9")).await.assert_code(0).stdout;
    assert!(unlisted.contains("does not list the tag 9"), "{unlisted}");
    explain(format!("{host}/other:1")).await.assert_code(1);
}

#[tokio::test]
async fn a_registry_that_throttles_is_left_alone_and_other_routes_continue() {
    let (source, target) = pair().await;
    let other = FaultRegistry::start().await;
    for n in 0..30 {
        source.push("a", &format!("v{n:02}"), &images::single(&format!("throttled-{n}")));
        other.push("b", &format!("v{n:02}"), &images::single(&format!("free-{n}")));
    }
    // Longer than a worker waits while it holds a slot.
    let limit = source.on(RequestType::ManifestGet).always().act(FaultAction::too_many_requests("31"));
    let program = configured(&format!(
        "defaults: {{to: {}/m, naming: keep}}\nrules:\n- from: {}/a\n- from: {}/b\n",
        target.host(),
        source.host(),
        other.host()
    ));
    let file = program.work_dir().join("imgsync.yaml");
    let mut running = program.again().args(["run", "--json", "--concurrency", "4", "-c"]).arg(&file).spawn();
    target.wait_until(|target| target.tags("m/b").len() == 30, WAIT_TIMEOUT).await;
    // Requests in flight were refused; then the route was held.
    let refused = limit.hits();
    assert!((1..=8).contains(&refused), "{refused} requests were refused");
    running.signal(Signal::INT);
    let json = running.wait().await.assert_code(4).json();
    assert_adds_up(&json);
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&30.into(), &0.into()));
    assert_eq!(limit.hits(), refused);
    // No attempts were spent.
    limit.remove();
    let resumed = program.again().args(["batch", "resume", "--json", "-c"]).arg(&file).run().await;
    assert_eq!(resumed.assert_code(0).json()["counts"]["copied"], 60);
}

#[tokio::test]
async fn a_registry_gets_no_more_requests_a_second_than_its_entry_says() {
    let (source, target) = pair().await;
    for n in 0..20 {
        source.push("a", &format!("v{n:02}"), &images::single(&format!("paced-{n}")));
    }
    let program = configured(&format!(
        "registries: {{\"{0}\": {{requests_per_second: 40}}}}\nrules:\n- {{from: {0}/a, to: {1}/m, naming: keep}}\n",
        source.host(),
        target.host()
    ));
    run(&program, &[]).await.assert_code(0);
    let times: Vec<_> = source.requests().iter().map(|request| request.at).collect();
    assert!(times.len() > 80, "{}", times.len());
    // From the first request on, never more than one second's burst and what has accrued since; one request is in
    // flight.
    for (number, at) in times.iter().enumerate() {
        let due = 40.0 + at.duration_since(times[0]).as_secs_f64() * 40.0 + 2.0;
        assert!(number as f64 <= due, "request {number} after {:?}", at.duration_since(times[0]));
    }
}

#[tokio::test]
async fn a_quiet_run_says_nothing_unless_something_failed() {
    let (source, target) = pair().await;
    source.push("a", "1", &images::single("quiet"));
    let program = program_with_kept_names(&source, &target, "a");
    let file = program.work_dir().join("imgsync.yaml");
    let quiet = program.again().args(["run", "-q", "-c"]).arg(&file);
    let output = quiet.run().await.assert_code(0);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
    source.push("a", "2", &images::single("quiet-2"));
    source.on(RequestMatcher::kind(RequestType::ManifestGet)).always().act(FaultAction::error(404, "MANIFEST_UNKNOWN"));
    let output = quiet.run().await.assert_code(1);
    assert_eq!(output.stdout, "");
    assert!(
        output.stderr.starts_with("error: the batch is incomplete: 1 failed\nhint: `imgsync batch report "),
        "{}",
        output.stderr
    );
}
