//! Overlapping runs of the same rules, and batches without a run.

use imgsync_tests::cluster::number;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::{Imgsync, Output, RunningProgram, Signal};
use serde_json::Value;

use crate::coordinators::start_coordinator;
use crate::support::{ClusterFixture, WAIT_TIMEOUT, assert_sums, kill, until};

/// Creates `imgsync run --json` with more arguments.
fn run(fixture: &ClusterFixture, more: &[&str]) -> Imgsync {
    fixture.cluster.imgsync(&fixture.config).args(["run", "--json"]).args(more)
}

async fn wait_for_message(running: &RunningProgram, what: &str) -> String {
    running.wait_for_line(|line| line.contains(what), WAIT_TIMEOUT).await
}

/// Returns the batches of `batch list --json`, newest first.
async fn list(fixture: &ClusterFixture) -> Vec<Value> {
    let listed = fixture.cluster.imgsync("").args(["batch", "list", "--json"]).run().await.assert_code(0);
    listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn states(batches: &[Value]) -> Vec<&str> {
    batches.iter().map(|batch| batch["state"].as_str().unwrap()).collect()
}

/// Starts a run whose copies wait at the gate. Returns it with its batch.
async fn start_gated_run(fixture: &ClusterFixture) -> (crate::support::RequestGate, RunningProgram, String) {
    let gate = fixture.gate_tags_after(1);
    let running = run(fixture, &[]).spawn();
    gate.wait_for(2).await;
    let batch = list(fixture).await[0]["batch"].as_str().unwrap().to_owned();
    (gate, running, batch)
}

fn batch_of(ended: &Output) -> Value {
    ended.json()["batch"].clone()
}

#[tokio::test]
async fn runs_that_overlap_wait_for_their_turn_and_complete() {
    let mut fixture = ClusterFixture::new(2, 4).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let (gate, mut first, id) = start_gated_run(&fixture).await;
    let mut second = run(&fixture, &[]).spawn();
    let line = wait_for_message(&second, "waiting for it to end").await;
    assert!(line.contains(&format!("batch {id} of the same rules is run by run on ")), "{line}");
    assert!(line.contains(" since 2") && line.contains("UTC"), "{line}");
    let mut third = run(&fixture, &[]).spawn();
    let line = wait_for_message(&third, ": joining it").await;
    assert!(line.contains(" is already waiting"), "{line}");
    // The second run lists when its turn comes, and so sees new tags.
    let late = TestImage::single("late").layer(Layer::File(300)).build();
    fixture.source.push("r00", "late", &late);
    assert_eq!(states(&list(&fixture).await), ["running"], "one at a time");
    gate.open();

    let (first, second, third) = tokio::join!(first.wait(), second.wait(), third.wait());
    fixture.assert_ended_whole(&first);
    fixture.images.push(("r00".to_owned(), "late".to_owned(), late));
    for ended in [&second, &third] {
        fixture.assert_ended_whole(ended);
        assert_eq!(number(&ended.json(), "/counts/copied"), 1, "{}", ended.stdout);
    }
    assert_eq!(batch_of(&second), batch_of(&third), "the third has followed the batch of the second");
    assert_eq!(states(&list(&fixture).await), ["done", "done"]);
}

#[tokio::test]
async fn of_runs_that_start_at_the_same_time_each_ends_whole_and_none_is_cancelled() {
    let fixture = ClusterFixture::new(2, 5).await;
    let _workers = fixture.cluster.start_workers(2, 4).await;
    let mut runs: Vec<RunningProgram> = (0..3).map(|_| run(&fixture, &[]).spawn()).collect();
    for run in &mut runs {
        fixture.assert_ended_whole(&run.wait().await);
    }
    let batches = list(&fixture).await;
    assert!(batches.iter().all(|batch| batch["state"] == "done"), "{batches:#?}");
}

#[tokio::test]
async fn a_run_joins_supersedes_or_fails_where_it_is_told_to() {
    let fixture = ClusterFixture::new(2, 4).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let (gate, mut first, id) = start_gated_run(&fixture).await;
    let refused = run(&fixture, &["--if-running", "fail"]).run().await.assert_code(2);
    assert!(refused.stderr.contains(&format!("batch {id} of the same rules is run by run on ")), "{}", refused.stderr);
    for (flags, named) in [
        (&["--force"][..], "--force differ"),
        (&["--download-manifests"], "--download-manifests differ"),
        (&["--batch-size", "3", "--batch-number", "2"], "--batch-size and --batch-number differ"),
    ] {
        let join = [&["--if-running", "join"], flags].concat();
        let refused = run(&fixture, &join).run().await.assert_code(2);
        assert!(refused.stderr.contains(named) && refused.stderr.contains(&id), "{}", refused.stderr);
    }
    let mut joined = run(&fixture, &["--if-running", "join"]).spawn();
    wait_for_message(&joined, ": joining it").await;

    // The configuration sets it as well as the flag.
    let config = format!("{}if_running: supersede\n", fixture.config);
    let mut later = fixture.cluster.imgsync(&config).args(["run", "--json"]).spawn();
    let line = wait_for_message(&later, ": superseding it").await;
    assert!(line.contains(&id), "{line}");
    let (first, joined) = tokio::join!(first.wait(), joined.wait());
    for ended in [&first, &joined] {
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert_eq!(batch_of(ended), *id);
        assert!(ended.stderr.contains("superseded by a later run of the same rules"), "{}", ended.stderr);
    }
    // Running tasks count at once, although the worker still waits at the gate.
    let superseded = list(&fixture).await.pop().unwrap();
    assert_eq!((&superseded["batch"], &superseded["state"]), (&(*id).into(), &"superseded".into()));
    assert_sums(&superseded);
    assert_eq!((number(&superseded, "/counts/running"), number(&superseded, "/counts/waiting")), (0, 0));
    gate.open();
    fixture.assert_ended_whole(&later.wait().await);
    let again = list(&fixture).await.pop().unwrap();
    assert_eq!(again["counts"], superseded["counts"], "what its worker said later counts for nothing");
}

#[tokio::test]
async fn a_paused_batch_is_left_alone_by_every_run() {
    let fixture = ClusterFixture::new(2, 4).await;
    let _workers = fixture.cluster.start_workers(1, 2).await;
    let (gate, mut first, id) = start_gated_run(&fixture).await;
    let mut waiting = run(&fixture, &[]).spawn();
    wait_for_message(&waiting, "waiting for it to end").await;
    fixture.cluster.imgsync("").args(["batch", "pause"]).run().await.assert_code(0);
    // A waiting run reports it, and keeps waiting.
    wait_for_message(&waiting, "is paused").await;
    waiting.signal(Signal::INT);
    assert_eq!(waiting.wait().await.code, Some(4));
    for mode in ["wait", "join", "supersede", "fail"] {
        let refused = run(&fixture, &["--if-running", mode]).run().await.assert_code(2);
        assert!(refused.stderr.contains(&format!("imgsync batch resume {id}")), "{mode}: {}", refused.stderr);
        assert!(refused.stderr.contains(&format!("imgsync batch cancel {id}")), "{mode}: {}", refused.stderr);
    }
    assert_eq!(states(&list(&fixture).await), ["paused"]);
    gate.open();
    fixture.cluster.imgsync(&fixture.config).args(["batch", "resume"]).run().await.assert_code(0);
    fixture.assert_ended_whole(&first.wait().await);
}

#[tokio::test]
async fn a_batch_whose_run_was_killed_is_interrupted_and_a_fresh_run_takes_its_place() {
    let fixture = ClusterFixture::new(2, 4).await;
    let mut workers = fixture.cluster.start_workers(1, 2).await;
    let (gate, mut first, id) = start_gated_run(&fixture).await;
    let mut watch = fixture.cluster.imgsync("").args(["batch", "watch", &id]).spawn();
    kill(&mut first).await;
    kill(&mut workers[0]).await;
    let watched = watch.wait().await;
    assert_eq!(watched.code, Some(4), "{}", watched.stderr);
    assert!(watched.stderr.contains(&format!("imgsync batch resume {id}")), "{}", watched.stderr);
    let shown = fixture.cluster.show_batch().await.unwrap();
    assert_eq!((&shown["state"], &shown["owner"]), (&"interrupted".into(), &Value::Null));
    assert_eq!(shown["resume"], format!("imgsync batch resume {id}"));
    let text = fixture.cluster.imgsync("").args(["batch", "show"]).run().await.assert_code(0).stdout;
    assert!(text.contains("(interrupted)") && text.contains(&format!("`imgsync batch resume {id}`")), "{text}");
    let listed = fixture.cluster.imgsync("").args(["batch", "list"]).run().await.assert_code(0);
    assert!(listed.stdout.contains("  interrupted  "), "{}", listed.stdout);
    assert!(listed.stderr.contains(&format!("imgsync batch resume {id}")), "{}", listed.stderr);

    gate.open();
    let _workers = fixture.cluster.start_workers(1, 2).await;
    let fresh = run(&fixture, &[]).run().await;
    fixture.assert_ended_whole(&fresh);
    assert!(fresh.stderr.contains(&format!("batch {id} of the same rules was interrupted")), "{}", fresh.stderr);
    let batches = list(&fixture).await;
    assert_eq!(states(&batches), ["done", "superseded"]);
    assert_sums(&batches[1]);
    assert_eq!(number(&batches[1], "/counts/running"), 0);
}

#[tokio::test]
async fn a_batch_that_was_left_to_serve_is_interrupted_only_while_none_is_there() {
    let fixture = ClusterFixture::new(2, 4).await;
    let _workers = fixture.cluster.start_workers(1, 2).await;
    let mut leads = start_coordinator(&fixture).await;
    let gate = fixture.gate_tags_after(1);
    let detach = |more: &[&str]| fixture.cluster.imgsync(&fixture.config).args(["run", "--detach"]).args(more);
    let id = detach(&[]).run().await.assert_code(0).stdout.trim().to_owned();
    gate.wait_for(2).await;
    let shown = fixture.cluster.show_batch().await.unwrap();
    assert_eq!((&shown["batch"], &shown["state"]), (&(*id).into(), &"running".into()), "{shown}");
    assert!(shown["owner"].as_str().is_some_and(|owner| owner.starts_with("serve on ")), "{shown}");
    let refused = detach(&["--if-running", "fail"]).run().await.assert_code(2);
    assert!(
        refused.stderr.contains(&format!("batch {id} of the same rules is run by serve on ")),
        "{}",
        refused.stderr
    );
    let joined = detach(&["--if-running", "join"]).run().await.assert_code(0);
    assert_eq!(joined.stdout.trim(), id);

    kill(&mut leads).await;
    fixture.cluster.wait_for_batch(|shown| shown["state"] == "interrupted", WAIT_TIMEOUT).await;
    let text = fixture.cluster.imgsync("").args(["batch", "show"]).run().await.assert_code(0).stdout;
    assert!(text.contains("in a cluster `imgsync serve` does"), "{text}");
    let _next = start_coordinator(&fixture).await;
    fixture.cluster.wait_for_batch(|shown| shown["state"] == "running", WAIT_TIMEOUT).await;
    gate.open();
    let shown = fixture.cluster.wait_for_batch(|shown| shown["state"] == "done", WAIT_TIMEOUT).await;
    fixture.assert_whole(&shown);
}

#[tokio::test]
async fn a_batch_that_is_superseded_or_cancelled_before_it_was_listed_is_no_success() {
    let fixture = ClusterFixture::new(1, 2).await;
    let _workers = fixture.cluster.start_workers(1, 2).await;
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let lists =
        fixture.source.on(RequestMatcher::kind(RequestType::Tags)).always().act(FaultAction::Gate(gate.clone()));
    let listed =
        |count: u64| fixture.source.wait_until(move |source| source.count(RequestType::Tags) >= count, WAIT_TIMEOUT);
    let mut first = run(&fixture, &[]).spawn();
    listed(1).await;
    let mut second = run(&fixture, &["--if-running", "supersede"]).spawn();
    let ended = first.wait().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!((&ended.json()["state"], number(&ended.json(), "/counts/total")), (&"superseded".into(), 0));
    listed(2).await;
    fixture.cluster.imgsync("").args(["batch", "cancel"]).run().await.assert_code(0);
    let ended = second.wait().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("the batch was cancelled"), "{}", ended.stderr);
    lists.remove();
    gate.add_permits(100);
    fixture.assert_ended_whole(&run(&fixture, &[]).run().await);
}

#[tokio::test]
async fn a_run_that_was_killed_while_it_waits_leaves_its_place_to_another() {
    let fixture = ClusterFixture::new(1, 4).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let (gate, mut first, _) = start_gated_run(&fixture).await;
    let mut killed = run(&fixture, &[]).spawn();
    wait_for_message(&killed, "waiting for it to end").await;
    let mut third = run(&fixture, &[]).spawn();
    wait_for_message(&third, ": joining it").await;
    kill(&mut killed).await;
    wait_for_message(&third, "waiting for it to end").await;
    gate.open();
    fixture.assert_ended_whole(&first.wait().await);
    fixture.assert_ended_whole(&third.wait().await);
    until("both batches are there", WAIT_TIMEOUT, || fixture.source.in_flight() == 0).await;
    assert_eq!(states(&list(&fixture).await), ["done", "done"]);
}
