//! Scheduled rules.

use std::sync::Arc;
use std::time::Duration;

use imgsync_store::{LastRun, Schedules as _, SqliteStore, SystemClock};
use imgsync_tests::ServeProcess;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::program::Signal;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::support::{ServeFixture, assert_sums, rule};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_rule_is_run_at_once_and_again_at_its_time_and_one_that_fails_harms_no_other() {
    let fixture = ServeFixture::new(&["good"], 3).await;
    let served = fixture.serve(&[("good", "{every: 5s}"), ("missing", "{every: 5s}")]).await;
    let ended = |value: &serde_json::Value| {
        let batches = value["batches"].as_array().unwrap();
        let of = |name: &str| {
            batches.iter().filter(|it| it["title"].as_str().unwrap().ends_with(name) && !it["ended"].is_null()).count()
        };
        of("/good") >= 2 && of("/missing") >= 2
    };
    let batches = served.wait_for("batches", ended).await;
    for batch in batches["batches"].as_array().unwrap() {
        assert_sums(batch);
        let is_good = batch["title"].as_str().unwrap().ends_with("/good");
        if batch["ended"].is_null() {
            continue;
        }
        assert_eq!(batch["unlisted"], if is_good { 0 } else { 1 }, "{batch:#}");
        assert_eq!(batch["counts"]["total"], if is_good { 3 } else { 0 }, "{batch:#}");
    }
    // The second run found everything up to date: three images were put once each.
    assert_eq!(fixture.target.count(RequestType::ManifestPut), 3);
    let (_, schedules) = served.get("schedules").await;
    assert_eq!(rule(&schedules, "good")["schedule"], "every 5s");
    assert!(rule(&schedules, "good")["next"].is_string());
    let output = served.stop().await.assert_code(0);
    assert!(output.stderr.contains("2 of 2 rules are run on their schedules"), "{}", output.stderr);
}

#[tokio::test]
async fn what_was_missed_while_nothing_served_is_caught_up_once() {
    let fixture = ServeFixture::new(&["a", "b"], 1).await;
    let rules = [("a", "{every: 1h}"), ("b", "0 3 * * *")];
    let served = fixture.serve(&rules).await;
    assert_eq!(served.wait_for_ended_batches(1).await.len(), 1, "a pattern waits for its time");
    let (_, schedules) = served.get("schedules").await;
    let names = ["a", "b"].map(|name| rule(&schedules, name)["rule"].as_str().unwrap().to_owned());
    served.stop().await.assert_code(0);

    // Both were last started two days ago: of all the missed times one is caught up.
    let state = fixture.program.state_dir().join("imgsync");
    let store = SqliteStore::open(&state, Arc::new(SystemClock)).await.unwrap();
    let at = Timestamp::now() - jiff::SignedDuration::from_hours(48);
    for name in &names {
        store.record_schedule_run(name, LastRun { at, batch: None, skipped: 0 }).await.unwrap();
    }
    drop(store);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    assert_eq!(served.wait_for_ended_batches(3).await.len(), 3);
    let (_, schedules) = served.get("schedules").await;
    for name in ["a", "b"] {
        let next: Timestamp = rule(&schedules, name)["next"].as_str().unwrap().parse().unwrap();
        assert!(next > Timestamp::now(), "{schedules:#}");
    }
    // A restart does not start them a third time.
    served.stop().await.assert_code(0);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    assert_eq!(served.wait_for_ended_batches(3).await.len(), 3);
}

#[tokio::test]
async fn rules_last_started_in_the_future_are_due_now_with_one_warning() {
    let fixture = ServeFixture::new(&["a", "b"], 1).await;
    let served = fixture.serve(&[("a", "{every: 1h}"), ("b", "0 3 * * *")]).await;
    assert_eq!(served.wait_for_ended_batches(1).await.len(), 1);
    let (_, schedules) = served.get("schedules").await;
    let names = ["a", "b"].map(|name| rule(&schedules, name)["rule"].as_str().unwrap().to_owned());
    served.stop().await.assert_code(0);

    // The clock was 400 days ahead when both were started.
    let state = fixture.program.state_dir().join("imgsync");
    let store = SqliteStore::open(&state, Arc::new(SystemClock)).await.unwrap();
    let at = Timestamp::now() + jiff::SignedDuration::from_hours(400 * 24);
    for name in &names {
        store.record_schedule_run(name, LastRun { at, batch: None, skipped: 0 }).await.unwrap();
    }
    drop(store);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    assert_eq!(served.wait_for_ended_batches(3).await.len(), 3);
    let (_, schedules) = served.get("schedules").await;
    for name in ["a", "b"] {
        let next: Timestamp = rule(&schedules, name)["next"].as_str().unwrap().parse().unwrap();
        let soon = Timestamp::now() + jiff::SignedDuration::from_hours(25);
        assert!(next > Timestamp::now() && next < soon, "{schedules:#}");
    }
    let output = served.stop().await.assert_code(0);
    assert_eq!(output.stderr.matches("the last run is in the future").count(), 2, "{}", output.stderr);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    assert_eq!(served.wait_for_ended_batches(3).await.len(), 3);
    let output = served.stop().await.assert_code(0);
    assert!(!output.stderr.contains("in the future"), "{}", output.stderr);
}

#[tokio::test]
async fn a_rule_that_is_still_running_is_not_started_again() {
    let fixture = ServeFixture::new(&["slow"], 2).await;
    let gate = Arc::new(Semaphore::new(0));
    let puts =
        fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    let served = fixture.serve(&[("slow", "{every: 5s}")]).await;
    let is_skipped = |line: &str| line.contains("skipped its scheduled run (1 time in a row): batch ");
    served.running.wait_for_line(is_skipped, WAIT_TIMEOUT).await;
    let (_, schedules) = served.get("schedules").await;
    assert!(rule(&schedules, "slow")["skipped"].as_u64().is_some_and(|skipped| skipped > 0), "{schedules:#}");
    let (_, batches) = served.get("batches").await;
    assert_eq!(batches["batches"].as_array().unwrap().len(), 1, "{batches:#}");
    let (_, schedules) = served.get("schedules").await;
    assert_eq!(rule(&schedules, "slow")["running"], batches["batches"][0]["batch"]);
    let name = rule(&schedules, "slow")["rule"].as_str().unwrap();
    let (status, error_body) = served.post(&format!("schedules/{name}/start"), &serde_json::json!({})).await;
    assert_eq!(status, 409, "{error_body:#}");
    puts.remove();
    gate.add_permits(100);
    served.wait_for_ended_batches(2).await;
}

#[tokio::test]
async fn a_killed_listing_is_resumed_by_the_next_coordinator() {
    let fixture = ServeFixture::new(&["a"], 2).await;
    let gate = Arc::new(Semaphore::new(0));
    let lists =
        fixture.source.on(RequestMatcher::kind(RequestType::Tags)).always().act(FaultAction::Gate(gate.clone()));
    let mut served = fixture.serve(&[("a", "{every: 1h}")]).await;
    fixture.source.wait_until(|source| source.count(RequestType::Tags) == 1, WAIT_TIMEOUT).await;
    served.running.signal(Signal::KILL);
    served.running.wait().await;
    lists.remove();
    gate.add_permits(100);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    let batches = served.wait_for_ended_batches(1).await;
    assert_eq!(batches.len(), 1, "it is the same batch");
    assert_eq!((&batches[0]["state"], &batches[0]["counts"]["copied"]), (&"done".into(), &2.into()));
}

#[tokio::test]
async fn a_rule_is_started_manually_and_old_batches_are_removed() {
    let fixture = ServeFixture::new(&["a"], 1).await;
    let served = fixture.serve(&[("a", "")]).await;
    assert!(served.running.stderr().contains("no rule has a `schedule:`"));
    let (_, schedules) = served.get("schedules").await;
    let name = rule(&schedules, "a")["rule"].as_str().unwrap();
    let (status, start_response) = served.post(&format!("schedules/{name}/start"), &serde_json::json!({})).await;
    assert_eq!(status, 202, "{start_response:#}");
    let (status, batch) = served.get(&format!("batches/{}", start_response["batch"].as_str().unwrap())).await;
    assert_eq!(status, 200, "it is there as soon as it was answered: {batch:#}");
    let batches = served.wait_for_ended_batches(1).await;
    assert_eq!(batches[0]["batch"], start_response["batch"]);
    served.stop().await.assert_code(0);

    fixture.write(&format!("keep: 1ms\n{}", fixture.config(&[("a", "")])));
    let served = ServeProcess::start(&fixture.program, &[]).await;
    served.wait_for("batches", |value| value["batches"] == serde_json::json!([])).await;
}

#[tokio::test]
async fn one_process_serves_a_state_folder_and_another_controls_its_batch() {
    let fixture = ServeFixture::new(&["a"], 2).await;
    let gate = Arc::new(Semaphore::new(0));
    let puts =
        fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    fixture.target.wait_until(|target| target.count(RequestType::ManifestPut) > 0, WAIT_TIMEOUT).await;
    let second = fixture.program.again().args(["serve", "--listen", "127.0.0.1:0"]).run().await;
    assert_ne!(second.code, Some(0), "{}", second.stderr);
    fixture.program.again().args(["batch", "pause"]).run().await.assert_code(0);
    served.wait_for("batches", |value| value["batches"][0]["state"] == "paused").await;
    // While its images wait at the gate: an ended batch is not resumed.
    let resumed = fixture.program.again().args(["batch", "resume"]).run().await.assert_code(0);
    assert!(resumed.stderr.contains("continues it"), "{}", resumed.stderr);
    puts.remove();
    gate.add_permits(100);
    let batches = served.wait_for_ended_batches(1).await;
    assert_eq!(batches[0]["counts"]["copied"], 2);
}

#[tokio::test]
async fn a_rule_that_chooses_nothing_is_counted_in_the_metrics() {
    let fixture = ServeFixture::new(&[], 0).await;
    for tag in ["edge", "30517284"] {
        fixture.source.push("words", tag, &imgsync_tests::images::single(&format!("words-{tag}")));
    }
    let config = fixture.config(&[("words", "{every: 1h}")]);
    let chosen = config.replace("/words, ", "/words, tags: {newest: 2}, ");
    assert_ne!(chosen, config);
    fixture.write(&chosen);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    let ended =
        |value: &serde_json::Value| value["batches"].as_array().unwrap().iter().any(|batch| !batch["ended"].is_null());
    let batches = served.wait_for("batches", ended).await;
    assert_eq!(batches["batches"][0]["counts"]["total"], 0, "{batches:#}");
    // Store and broker are polled every few seconds.
    let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
    loop {
        let text = served.request_outside_api("/metrics").send().await.unwrap().text().await.unwrap();
        if text.contains("imgsync_last_batch_empty_rules 1\n") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    served.stop().await.assert_code(0);
}
