//! Several coordinators with the same rules: what the others show and can do, and what happens to the work of a leader
//! that is killed, stopped, or frozen and thawed.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::ServeProcess;
use imgsync_tests::cluster::number;
use imgsync_tests::fault::{FaultAction, RecordedRequest, RequestMatcher, RequestType};
use imgsync_tests::program::{Imgsync, Signal};
use imgsync_tests::servers::WebhookReceiver;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{ClusterFixture, WAIT_TIMEOUT, assert_sums, until};

/// One rule for all repositories, with a schedule or without, and further lines.
fn config(fixture: &ClusterFixture, schedule: &str, more: &str) -> String {
    let (source, target) = (fixture.source.host(), fixture.target.host());
    format!("rules:\n- {{name: all, from: {source}/r*, to: {target}/m, naming: keep{schedule}}}\n{more}")
}

/// Starts two coordinators. The first one leads.
async fn start_pair(programs: [&Imgsync; 2]) -> [ServeProcess; 2] {
    let leader = ServeProcess::start(programs[0], &[]).await;
    leader.running.wait_for_line(|line| line.ends_with("elected leader"), WAIT_TIMEOUT).await;
    let follower = ServeProcess::start(programs[1], &[]).await;
    follower.running.wait_for_line(|line| line.contains("standby: serve on "), WAIT_TIMEOUT).await;
    [leader, follower]
}

async fn wait_until_leading(follower: &ServeProcess) {
    follower.running.wait_for_line(|line| line.ends_with("elected leader"), WAIT_TIMEOUT).await;
}

/// Counts the listings of a repository at the source.
fn listings(fixture: &ClusterFixture, repository: &str) -> u64 {
    fixture.source.count_where(|request: &RecordedRequest| {
        request.kind == RequestType::Tags && request.repository.as_deref() == Some(repository)
    })
}

/// Holds all listings of a repository until permits are added.
fn gate_listings(fixture: &ClusterFixture, repository: &str) -> Arc<Semaphore> {
    let gate = Arc::new(Semaphore::new(0));
    let list = RequestMatcher::kind(RequestType::Tags).repository(repository);
    fixture.source.on(list).always().act(FaultAction::Gate(gate.clone()));
    gate
}

/// Returns the holder of a lease, as the store has it.
fn owner(fixture: &ClusterFixture, lease: &str) -> String {
    fixture.cluster.store.command(&["HGET", &format!("imgsync:lease:{lease}"), "holder"])
}

/// Returns how long a lease lasts unless it is renewed.
fn milliseconds_left(fixture: &ClusterFixture, lease: &str) -> i64 {
    let script = "local time = redis.call('TIME') \
                  return redis.call('HGET', ARGV[1], 'expires_at') - time[1] * 1000 - math.floor(time[2] / 1000)";
    let left = fixture.cluster.store.command(&["EVAL", script, "0", &format!("imgsync:lease:{lease}")]);
    left.trim().trim_start_matches(':').parse().unwrap_or_else(|_| panic!("{lease}: {left}"))
}

/// Asserts that there is one batch, whole, and that it was notified once.
async fn assert_one_batch(fixture: &ClusterFixture, webhook: &WebhookReceiver) {
    let shown = fixture.cluster.wait_for_batch(|shown| shown["state"] == "done", WAIT_TIMEOUT).await;
    fixture.assert_whole(&shown);
    for (repository, tag, _) in &fixture.images {
        assert_eq!(fixture.puts(repository, tag), 1, "{repository}:{tag} is written once");
    }
    until("the end of the batch is notified", WAIT_TIMEOUT, || !webhook.received().is_empty()).await;
    let listed = fixture.cluster.imgsync("").args(["batch", "list", "--json"]).run().await.assert_code(0);
    assert_eq!(listed.stdout.lines().count(), 1, "{}", listed.stdout);
    assert_eq!(webhook.received()[0].json()["batch"], shown["batch"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_that_wakes_after_another_took_over_changes_nothing() {
    let fixture = ClusterFixture::new(4, 5).await;
    let webhook = WebhookReceiver::start().await;
    let notify = format!("notify: {{webhook: {{url: \"{}/hook\"}}}}\n", webhook.url());
    let gate = gate_listings(&fixture, "r02");
    let config = config(&fixture, ", schedule: {every: 1h}", &notify);
    let leader = ServeProcess::start(&fixture.cluster.imgsync(&config), &[]).await;
    let follower = ServeProcess::start(&fixture.cluster.imgsync(&config), &[]).await;
    follower.running.wait_for_line(|line| line.contains("standby: serve on "), WAIT_TIMEOUT).await;
    let _workers = fixture.cluster.start_workers(2, 4).await;
    until("the leader lists", WAIT_TIMEOUT, || listings(&fixture, "r02") > 0).await;
    fixture.cluster.wait_for_batch(|shown| number(shown, "/counts/total") == 15, WAIT_TIMEOUT).await;

    leader.running.signal(Signal::STOP);
    wait_until_leading(&follower).await;
    until("the follower lists", WAIT_TIMEOUT, || listings(&fixture, "r02") > 1).await;
    // The response that the leader waits for is there when it wakes.
    gate.add_permits(1);
    leader.running.signal(Signal::CONT);
    leader.running.wait_for_line(|line| line.contains("no longer leader"), WAIT_TIMEOUT).await;
    leader
        .running
        .wait_for_line(|line| line.contains("another process has taken over its listing"), WAIT_TIMEOUT)
        .await;
    gate.add_permits(100);
    assert_one_batch(&fixture, &webhook).await;
    let (_, status) = leader.get("status").await;
    assert_eq!(status["leader"], false);
    // Both stop in order, and have sent nothing more by then.
    for coordinator in [leader, follower] {
        coordinator.stop().await.assert_code(0);
    }
    assert_eq!(webhook.received().len(), 1);
    assert_eq!(listings(&fixture, "r02"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_listing_and_the_batches_of_a_killed_leader_are_taken_over_when_its_leases_expire() {
    let fixture = ClusterFixture::new(4, 5).await;
    let webhook = WebhookReceiver::start().await;
    let notify = format!("notify: {{webhook: {{url: \"{}/hook\"}}}}\n", webhook.url());
    let gate = gate_listings(&fixture, "r02");
    let config = config(&fixture, "", &notify);
    let programs = [fixture.cluster.imgsync(&config), fixture.cluster.imgsync(&config)];
    let [leader, follower] = start_pair([&programs[0], &programs[1]]).await;
    let (status, _) = leader.post("schedules/all/start", &json!({})).await;
    assert_eq!(status, 202);
    until("the leader lists", WAIT_TIMEOUT, || listings(&fixture, "r02") > 0).await;
    fixture.cluster.wait_for_batch(|shown| number(shown, "/counts/total") == 15, WAIT_TIMEOUT).await;
    let id = fixture.cluster.show_batch().await.unwrap()["batch"].as_str().unwrap().to_owned();
    // What the leader leaves behind is free after this time, and then taken within a second.
    for lease in ["leader:all batches".to_owned(), format!("leader:{id}"), format!("listing:{id}")] {
        let left = milliseconds_left(&fixture, &lease);
        assert!((0..=8_000).contains(&left), "{lease}: {left} ms");
    }
    let mut running = leader.running;
    crate::support::kill(&mut running).await;
    until("the follower lists", WAIT_TIMEOUT, || listings(&fixture, "r02") > 1).await;
    gate.add_permits(100);
    let _workers = fixture.cluster.start_workers(2, 4).await;
    assert_one_batch(&fixture, &webhook).await;
    drop(follower);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_listing_of_a_leader_that_is_stopped_continues_at_once() {
    let fixture = ClusterFixture::new(3, 2).await;
    let gate = gate_listings(&fixture, "r01");
    let config = config(&fixture, "", "");
    let programs = [fixture.cluster.imgsync(&config), fixture.cluster.imgsync(&config)];
    let [leader, follower] = start_pair([&programs[0], &programs[1]]).await;
    leader.post("schedules/all/start", &json!({})).await;
    until("the leader lists", WAIT_TIMEOUT, || listings(&fixture, "r01") > 0).await;
    let id = fixture.cluster.show_batch().await.unwrap()["batch"].as_str().unwrap().to_owned();
    let leases = ["leader:all batches".to_owned(), format!("leader:{id}"), format!("listing:{id}")];
    let owners = leases.clone().map(|lease| owner(&fixture, &lease));
    leader.stop().await.assert_code(0);
    for (lease, before) in leases.iter().zip(owners) {
        assert_ne!(owner(&fixture, lease), before, "{lease} is released");
    }
    until("the follower lists", WAIT_TIMEOUT, || listings(&fixture, "r01") > 1).await;
    gate.add_permits(100);
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let shown = fixture.cluster.wait_for_batch(|shown| shown["state"] == "done", WAIT_TIMEOUT).await;
    fixture.assert_whole(&shown);
    drop(follower);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_outage_longer_than_the_lease_starts_no_second_listing() {
    let mut fixture = ClusterFixture::new(3, 4).await;
    let gate = gate_listings(&fixture, "r01");
    let config = config(&fixture, "", "");
    let programs = [fixture.cluster.imgsync(&config), fixture.cluster.imgsync(&config)];
    let [leader, follower] = start_pair([&programs[0], &programs[1]]).await;
    leader.post("schedules/all/start", &json!({})).await;
    until("the leader lists", WAIT_TIMEOUT, || listings(&fixture, "r01") > 0).await;
    fixture.cluster.wait_for_batch(|shown| number(shown, "/counts/total") == 8, WAIT_TIMEOUT).await;
    fixture.cluster.store.kill();
    leader.running.wait_for_line(|line| line.contains("no longer leader"), WAIT_TIMEOUT).await;
    fixture.cluster.store.restart();
    let has_leader = async || {
        let (one, two) = (leader.get("status").await.1, follower.get("status").await.1);
        one["leader"] == true || two["leader"] == true
    };
    crate::queue::until("one of them leads again", has_leader).await;
    // Longer than the leader waits before it takes over a listing.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(listings(&fixture, "r01"), 1);
    gate.add_permits(100);
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let shown = fixture.cluster.wait_for_batch(|shown| shown["state"] == "done", WAIT_TIMEOUT).await;
    fixture.assert_whole(&shown);
    for repository in ["r00", "r01", "r02"] {
        assert_eq!(listings(&fixture, repository), 1, "{repository}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_shows_and_controls_the_same_as_the_leader() {
    let fixture = ClusterFixture::new(2, 6).await;
    let refused = FaultAction::error(403, "DENIED");
    let writes = RequestMatcher::any().when(|request| {
        request.repository.as_deref() == Some("m/r01") && !matches!(request.method.as_str(), "GET" | "HEAD")
    });
    let refused = fixture.target.on(writes).always().act(refused);
    let config = config(&fixture, "", "");
    let programs = [fixture.cluster.imgsync(&config), fixture.cluster.imgsync(&config)];
    let [leader, follower] = start_pair([&programs[0], &programs[1]]).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let gate = fixture.gate_tags_after(2);
    let (status, started) = follower.post("schedules/all/start", &json!({})).await;
    assert_eq!(status, 202, "{started}");
    let id = started["batch"].as_str().unwrap().to_owned();
    // A second start is refused, by either.
    for coordinator in [&leader, &follower] {
        let (status, refusal) = coordinator.post("schedules/all/start", &json!({})).await;
        assert_eq!(status, 409, "{refusal}");
    }
    gate.wait_for(2).await;
    let order = async |path: &str| follower.post(&format!("batches/{id}/{path}"), &json!({})).await;
    let in_state = |wanted: &'static str| move |batch: &Value| batch["state"] == wanted;
    let path = format!("batches/{id}");
    for (command, state) in [("pause", "paused"), ("resume", "running")] {
        let (status, answer) = order(command).await;
        assert_eq!((status, &answer["state"]), (200, &json!(state)), "{answer}");
        leader.wait_for(&path, in_state(state)).await;
    }
    gate.open();
    let failed = |batch: &Value| batch["state"] == "done" && number(batch, "/counts/failed") == 6;
    leader.wait_for(&path, failed).await;
    refused.remove();
    let (status, answer) = order("requeue").await;
    assert_eq!((status, &answer["requeued"]), (200, &json!(6)), "{answer}");
    let copied = |batch: &Value| batch["state"] == "done" && number(batch, "/counts/copied") == 12;
    let batch = leader.wait_for(&path, copied).await;
    assert_sums(&batch);

    // What both show is the same.
    let same = [path.clone(), format!("{path}/tasks"), format!("{path}/timeline"), "rules/all/history".into()];
    for path in same.iter().map(String::as_str).chain(["batches", "rules", "schedules", "routes"]) {
        let is_same = async || leader.get(path).await == follower.get(path).await;
        crate::queue::until(&format!("both show the same {path}"), is_same).await;
    }
    let metrics = follower.fetch("/metrics").await.text().await.unwrap();
    assert!(metrics.lines().any(|line| line == "imgsync_leader_present 1"), "{metrics}");
    let (_, overview) = follower.get("overview").await;
    assert!(overview["problems"].as_array().is_none_or(Vec::is_empty), "{overview:#}");

    let gate = fixture.gate_tags_after(0);
    let forced = fixture.cluster.imgsync(&config).args(["run", "--detach", "--force"]).run().await.assert_code(0);
    let id = forced.stdout.trim();
    let (status, answer) = follower.post(&format!("batches/{id}/cancel"), &json!({})).await;
    assert_eq!((status, &answer["state"]), (200, &json!("cancelled")), "{answer}");
    leader.wait_for(&format!("batches/{id}"), in_state("cancelled")).await;
    gate.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_shows_the_skipped_runs_of_a_rule_and_counts_on_when_it_leads() {
    let fixture = ClusterFixture::new(1, 1).await;
    let config = config(&fixture, ", schedule: {every: 5s}", "");
    let programs = [fixture.cluster.imgsync(&config), fixture.cluster.imgsync(&config)];
    let [leader, follower] = start_pair([&programs[0], &programs[1]]).await;
    // Without workers, the first batch does not end.
    let skipped = |schedules: &Value| number(schedules, "/schedules/0/skipped");
    let shown = follower.wait_for("schedules", |schedules| skipped(schedules) >= 1).await;
    leader.stop().await.assert_code(0);
    wait_until_leading(&follower).await;
    follower.wait_for("schedules", |schedules| skipped(schedules) > skipped(&shown)).await;
    let (_, batches) = follower.get("batches").await;
    assert_eq!(batches["batches"].as_array().unwrap().len(), 1, "{batches:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_goes_on_with_the_listing_of_a_follower_or_a_detached_run_that_was_killed() {
    let fixture = ClusterFixture::new(3, 2).await;
    let config = config(&fixture, "", "");
    let programs = [fixture.cluster.imgsync(&config), fixture.cluster.imgsync(&config)];
    let [leader, follower] = start_pair([&programs[0], &programs[1]]).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let mut follower = Some(follower);
    for listed in [0, 2] {
        let gate = Arc::new(Semaphore::new(0));
        let list = RequestMatcher::kind(RequestType::Tags).repository("r01");
        let rule = fixture.source.on(list).always().act(FaultAction::Gate(gate.clone()));
        let mut killed = match follower.take() {
            Some(follower) => {
                follower.post("schedules/all/start", &json!({})).await;
                follower.running
            }
            None => fixture.cluster.imgsync(&config).args(["run", "--detach", "--force"]).spawn(),
        };
        until("it lists", WAIT_TIMEOUT, || listings(&fixture, "r01") > listed).await;
        crate::support::kill(&mut killed).await;
        until("the leader lists", WAIT_TIMEOUT, || listings(&fixture, "r01") > listed + 1).await;
        rule.remove();
        gate.add_permits(100);
        let shown = fixture.cluster.wait_for_batch(|shown| shown["state"] == "done", WAIT_TIMEOUT).await;
        fixture.assert_whole(&shown);
    }
    let (_, batches) = leader.get("batches").await;
    assert_eq!(batches["batches"].as_array().unwrap().len(), 2, "{batches:#}");
}
