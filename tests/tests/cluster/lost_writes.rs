//! A store that loses acknowledged writes, as after a failover to a replica that lagged behind: all keys go back to
//! what they were a moment ago, in one step.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_model::batch::{BatchId, SigningKey, TaskRef, TaskResult, TaskState};
use imgsync_oci::Digest;
use imgsync_oci::secret::Secret;
use imgsync_store::contract::{segment, tasks};
use imgsync_store::outage::HealthEvent;
use imgsync_store::{
    AppendResult, BatchState, ClaimResult, FinishReply, LEASE_TTL, LeaseResult, LeaseStatus, Leases as _, Ledger as _,
    ManualClock, NewBatch, PlanBlock, ReclaimScope, RedisOptions, RedisStore, TaskHolder, Usage,
};
use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::program::{RunningProgram, Signal};
use imgsync_tests::servers::{find_program, free_port};
use imgsync_tests::{RedisServer, ServeProcess, skipped};
use tokio::sync::{Semaphore, broadcast};

use crate::store_contract::store_url;
use crate::support::{ClusterFixture, WAIT_TIMEOUT, kill, until};

fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A store with a clock of its own, with or without a signing key.
async fn open(server: &RedisServer, has_key: bool) -> (RedisStore, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::starting_at(jiff::Timestamp::now()));
    let key = has_key.then(|| SigningKey::new(&Secret::new("the key of this cluster")));
    let options = RedisOptions { key, clock: Some(clock.clone()), ..RedisOptions::default() };
    (RedisStore::connect(&store_url(&server.url()), options).await.unwrap(), clock)
}

async fn create(store: &RedisStore) -> BatchId {
    let options = r#"{"rules":[]}"#.to_owned();
    let batch =
        NewBatch { id: BatchId::generate(), rules: Digest::sha256(b"rules"), options, supersedes: None, fence: None };
    let id = batch.id;
    store.create(batch).await.unwrap();
    id
}

async fn append(store: &RedisStore, batch: BatchId, name: &str, number: usize) -> u32 {
    match store.append(batch, segment(name, number)).await.unwrap() {
        AppendResult::Appended(first) => first,
        other => panic!("{name}: {other:?}"),
    }
}

/// Returns the publishable tasks by chunk.
async fn blocks(store: &RedisStore, batch: BatchId) -> Vec<PlanBlock> {
    store.list_unpublished(batch, 0, 1_000).await.unwrap()
}

fn sources(block: &PlanBlock) -> Vec<String> {
    block.tasks.iter().map(|(_, task)| task.spec.source.to_string()).collect()
}

async fn claim<'w>(store: &RedisStore, task_ref: TaskRef, worker: &'w str) -> TaskHolder<'w> {
    match store.claim_task(task_ref, None, worker, LEASE_TTL).await.unwrap() {
        ClaimResult::Claimed { token, .. } => TaskHolder { worker, token },
        other => panic!("{worker}: {other:?}"),
    }
}

#[tokio::test]
async fn a_message_of_a_lost_task_claims_no_task_that_took_its_index() {
    for has_key in [false, true] {
        let server = RedisServer::start();
        let (store, _) = open(&server, has_key).await;
        let batch = create(&store).await;
        append(&store, batch, "a", 2).await;
        let snapshot = server.snapshot();
        assert_eq!(append(&store, batch, "lost", 2).await, 2);
        let lost = blocks(&store, batch).await.pop().unwrap();
        assert_eq!(lost.first, 2);
        server.restore(&snapshot);
        let task_ref = |index| TaskRef { batch, run: 0, index };
        let ask = async |index, mark| store.claim_task(task_ref(index), mark, "w", LEASE_TTL).await.unwrap();
        assert_eq!(ask(2, lost.mark).await, ClaimResult::NotInPlan, "nothing has its index yet");
        assert_eq!(append(&store, batch, "other", 2).await, 2, "its index is given out again");
        assert_eq!(ask(2, lost.mark).await, ClaimResult::NotInPlan);
        let found = blocks(&store, batch).await.pop().unwrap();
        assert_eq!(sources(&found), ["gcr.io/other:v0", "gcr.io/other:v1"]);
        assert_ne!(found.mark, lost.mark);
        assert!(matches!(ask(2, found.mark).await, ClaimResult::Claimed { .. }));
        // The same segment at the same place is the same.
        server.restore(&snapshot);
        append(&store, batch, "lost", 2).await;
        assert!(matches!(ask(2, lost.mark).await, ClaimResult::Claimed { .. }));
    }
}

#[tokio::test]
async fn a_plan_is_read_as_it_is_though_a_lost_one_was_read_before() {
    for has_key in [false, true] {
        let server = RedisServer::start();
        let (store, _) = open(&server, has_key).await;
        let batch = create(&store).await;
        let snapshot = server.snapshot();
        let (other, _) = open(&server, has_key).await;
        // The second time, the last of the lost chunks begins where the last of the new ones does.
        for new in [[("d", 3), ("e", 2), ("f", 2)], [("d", 3), ("e", 1), ("f", 2)]] {
            for name in ["a", "b", "c"] {
                append(&store, batch, name, 2).await;
            }
            assert_eq!(blocks(&store, batch).await.len(), 3, "this process knows where they begin");
            server.restore(&snapshot);
            for (name, number) in new {
                append(&other, batch, name, number).await;
            }
            let found: Vec<Vec<String>> = blocks(&store, batch).await.iter().map(sources).collect();
            let expected: Vec<Vec<String>> = new
                .map(|(name, number)| tasks(name, number).iter().map(|task| task.source.to_string()).collect())
                .to_vec();
            assert_eq!(found, expected);
            server.restore(&snapshot);
        }
    }
}

#[tokio::test]
async fn a_lost_claim_leaves_its_worker_without_the_task_and_the_token_is_not_issued_again() {
    let server = RedisServer::start();
    let (store, clock) = open(&server, true).await;
    let batch = create(&store).await;
    append(&store, batch, "a", 1).await;
    let task_ref = TaskRef { batch, run: 0, index: 0 };
    let snapshot = server.snapshot();
    let first = claim(&store, task_ref, "one").await;
    let lease = store.acquire("leader", "one", LEASE_TTL).await.unwrap();
    let LeaseResult::Acquired { token: first_leader } = lease else { panic!("{lease:?}") };
    clock.advance(Duration::from_millis(1));
    server.restore(&snapshot);
    let second = claim(&store, task_ref, "two").await;
    assert!(second.token > first.token);
    let lease = store.acquire("leader", "two", LEASE_TTL).await.unwrap();
    assert!(matches!(lease, LeaseResult::Acquired { token } if token > first_leader), "{lease:?}");
    assert_eq!(store.renew(task_ref, first, LEASE_TTL).await.unwrap(), LeaseStatus::Lost);
    let finish = async |holder| store.finish(task_ref, holder, TaskResult::Copied, Usage::default()).await.unwrap();
    assert_eq!(finish(first).await, FinishReply::Stale);
    assert_eq!(finish(second).await, FinishReply::Counted);
    assert_eq!(finish(first).await, FinishReply::AlreadyDone);
    assert_eq!(store.batch(batch).await.unwrap().unwrap().counts.copied, 1);
}

#[tokio::test]
async fn a_lost_result_is_found_again_and_counted_once() {
    let server = RedisServer::start();
    let (store, clock) = open(&server, true).await;
    let batch = create(&store).await;
    append(&store, batch, "a", 1).await;
    let task_ref = TaskRef { batch, run: 0, index: 0 };
    let first = claim(&store, task_ref, "one").await;
    let snapshot = server.snapshot();
    let finish = async |holder, result| store.finish(task_ref, holder, result, Usage::default()).await.unwrap();
    assert_eq!(finish(first, TaskResult::Copied).await, FinishReply::Counted);
    server.restore(&snapshot);
    assert_eq!(store.task_states(batch, &[0]).await.unwrap(), [TaskState::Running]);
    clock.advance(LEASE_TTL + Duration::from_secs(5));
    let lost = store.reclaim(batch, ReclaimScope::ExpiredLeases { grace: Duration::from_secs(4) }).await.unwrap();
    assert_eq!(lost.leased, 1);
    let second = claim(&store, task_ref, "two").await;
    // A late repetition by the first worker.
    assert_eq!(finish(first, TaskResult::Copied).await, FinishReply::Stale);
    assert_eq!(finish(second, TaskResult::Unchanged).await, FinishReply::Counted);
    let counts = store.batch(batch).await.unwrap().unwrap().counts;
    assert_eq!((counts.copied, counts.unchanged, counts.total), (0, 1, 1));
}

/// Returns the counters by which processes notice lost writes.
fn write_counters(server: &RedisServer) -> BTreeMap<String, u64> {
    let keys = server.command(&["KEYS", "imgsync:writes:*"]);
    let keys = keys.lines().filter(|line| line.starts_with("imgsync:"));
    keys.map(|key| {
        let value = server.command(&["GET", key]);
        (key.to_owned(), value.lines().nth(1).and_then(|value| value.parse().ok()).unwrap_or_default())
    })
    .collect()
}

/// Waits until each of this many processes has counted so many writes more than `before`.
async fn wait_for_counts(server: &RedisServer, processes: usize, more: u64, before: &BTreeMap<String, u64>) {
    let has_grown = |(key, value): (&String, &u64)| *value >= before.get(key).copied().unwrap_or_default() + more;
    until("all count their writes", WAIT_TIMEOUT, || {
        let counters = write_counters(server);
        counters.len() == processes && counters.iter().all(has_grown)
    })
    .await;
}

/// Returns the next loss of a store.
async fn next_loss(events: &mut broadcast::Receiver<HealthEvent>) -> HealthEvent {
    let loss = async {
        loop {
            let event = events.recv().await.unwrap();
            if matches!(event, HealthEvent::WritesLost { .. }) {
                return event;
            }
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, loss).await.expect("the loss is reported")
}

#[tokio::test]
async fn a_loss_is_noticed_once_and_a_restart_that_loses_nothing_is_none() {
    let (mut server, began) = (RedisServer::start(), Instant::now());
    let store = RedisStore::connect(&store_url(&server.url()), RedisOptions::long_running()).await.unwrap();
    let (mut events, losses) = (store.health().subscribe(), store.write_losses().unwrap());
    store.watch_for_write_losses();
    wait_for_counts(&server, 1, 1, &BTreeMap::new()).await;
    let (snapshot, counters) = (server.snapshot(), write_counters(&server));
    wait_for_counts(&server, 1, 3, &counters).await;
    server.kill();
    server.restart();
    wait_for_counts(&server, 1, 5, &counters).await;
    assert_eq!(*losses.borrow(), 0);
    server.restore(&snapshot);
    let HealthEvent::WritesLost { within: Some(within), .. } = next_loss(&mut events).await else {
        panic!("the snapshot has the first write")
    };
    assert!(within <= began.elapsed(), "{within:?}");
    let counters = write_counters(&server);
    wait_for_counts(&server, 1, 2, &counters).await;
    assert_eq!(*losses.borrow(), 1, "once");
    let answer = server.command(&["FLUSHALL"]);
    assert!(answer.starts_with("+OK"), "{answer}");
    let event = next_loss(&mut events).await;
    assert!(event.to_string().contains("all that this process knows of"), "{event}");
}

#[tokio::test]
async fn each_program_logs_and_counts_a_loss() {
    let cluster = TestCluster::start();
    let served = ServeProcess::start(&cluster.imgsync(""), &[]).await;
    let address = free_address();
    let worker = cluster.worker("").args(["--listen", &address]).spawn();
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    wait_for_counts(&cluster.store, 2, 1, &BTreeMap::new()).await;
    let (snapshot, counters) = (cluster.store.snapshot(), write_counters(&cluster.store));
    wait_for_counts(&cluster.store, 2, 2, &counters).await;
    cluster.store.restore(&snapshot);
    worker.wait_for_line(|line| line.contains("has lost writes that it had confirmed"), WAIT_TIMEOUT).await;
    let of_worker = async || reqwest::get(format!("http://{address}/metrics")).await.unwrap().text().await.unwrap();
    let of_serve = async || served.fetch("/metrics").await.text().await.unwrap();
    let counted = |text: &str| text.lines().any(|line| line == "imgsync_store_rollbacks_total 1");
    crate::queue::until("both count the loss", async || counted(&of_worker().await) && counted(&of_serve().await))
        .await;
    let serving = served.stop().await;
    assert!(serving.stderr.contains("has lost writes that it had confirmed"), "{}", serving.stderr);
}

#[tokio::test]
async fn a_task_whose_lease_is_lost_is_queued_again_though_the_queue_is_not_empty() {
    let fixture = ClusterFixture::new(1, 3).await;
    let gate = fixture.gate_tags_after(0);
    let mut run = fixture.run();
    let store = RedisStore::connect(&store_url(&fixture.cluster.store.url()), RedisOptions::default()).await.unwrap();
    let queued = async || store.batches(1).await.unwrap().first().map_or(0, |batch| batch.queued);
    crate::queue::until("all tasks are queued", async || queued().await >= 3).await;
    let snapshot = fixture.cluster.store.snapshot();
    let _workers = fixture.cluster.start_workers(1, 1).await;
    gate.wait_for(1).await;
    let messages = || {
        let counts = fixture.cluster.broker.message_counts();
        counts.iter().filter(|(name, _)| name.starts_with("w.")).map(|(_, count)| count).sum::<u64>()
    };
    // The worker holds one task, whose message is acknowledged.
    until("two messages are left", WAIT_TIMEOUT, || messages() == 2).await;
    fixture.cluster.store.restore(&snapshot);
    until("the leader has published them again", WAIT_TIMEOUT, || messages() >= 3).await;
    gate.open();
    fixture.assert_ended_whole(&run.wait().await);
}

/// Holds the listing of a repository until permits are added.
fn gate_listing(fixture: &ClusterFixture, repository: &str) -> Arc<Semaphore> {
    let gate = Arc::new(Semaphore::new(0));
    let list = RequestMatcher::kind(RequestType::Tags).repository(repository);
    fixture.source.on(list).act(FaultAction::Gate(gate.clone()));
    gate
}

/// Waits until the only batch has this many tasks.
async fn wait_for_total(fixture: &ClusterFixture, total: u64) {
    fixture.cluster.wait_for_batch(|batch| number(batch, "/counts/total") == total, WAIT_TIMEOUT).await;
}

#[tokio::test]
async fn a_repository_lost_from_the_plan_is_listed_again_and_copied() {
    let fixture = ClusterFixture::new(3, 4).await;
    let [second, third] = ["r01", "r02"].map(|name| gate_listing(&fixture, name));
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let mut run = fixture.run();
    wait_for_total(&fixture, 4).await;
    let snapshot = fixture.cluster.store.snapshot();
    second.add_permits(1);
    wait_for_total(&fixture, 8).await;
    until("its images are copied", WAIT_TIMEOUT, || (0..4).all(|n| fixture.puts("r01", &format!("v{n}")) > 0)).await;
    fixture.cluster.store.restore(&snapshot);
    third.add_permits(1);
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    assert!(ended.stderr.contains("the store has lost a part of the plan"), "{}", ended.stderr);
    assert!(ended.stderr.contains("2 of 3 repositories, 8 of 12 tasks"), "{}", ended.stderr);
    assert!(ended.stderr.contains("has lost writes that it had confirmed"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_repository_that_a_resumed_listing_found_and_the_store_lost_is_listed_again() {
    let fixture = ClusterFixture::new(3, 2).await;
    let [second, third] = ["r01", "r02"].map(|name| gate_listing(&fixture, name));
    let mut run = fixture.run();
    wait_for_total(&fixture, 2).await;
    let snapshot = fixture.cluster.store.snapshot();
    second.add_permits(1);
    wait_for_total(&fixture, 4).await;
    kill(&mut run).await;
    // The gate of the third repository held the run that is gone.
    third.add_permits(1);
    let third = gate_listing(&fixture, "r02");
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let resume = ["batch", "resume", "--json"];
    let mut resumed = fixture.cluster.imgsync(&fixture.config).args(resume).spawn();
    let is_listed = |request: &imgsync_tests::fault::RecordedRequest| {
        request.kind == RequestType::Tags && request.repository.as_deref() == Some("r02")
    };
    until("it lists the third, too", WAIT_TIMEOUT, || fixture.source.count_where(is_listed) > 1).await;
    fixture.cluster.store.restore(&snapshot);
    third.add_permits(1);
    let ended = resumed.wait().await;
    fixture.assert_ended_whole(&ended);
    assert!(ended.stderr.contains("2 of 3 repositories, 4 of 6 tasks"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_plan_whose_end_is_lost_is_completed_again() {
    let fixture = ClusterFixture::new(2, 3).await;
    let second = gate_listing(&fixture, "r01");
    let tags = fixture.gate_tags_after(0);
    let _workers = fixture.cluster.start_workers(1, 8).await;
    let mut run = fixture.run();
    wait_for_total(&fixture, 3).await;
    let snapshot = fixture.cluster.store.snapshot();
    second.add_permits(1);
    let store = RedisStore::connect(&store_url(&fixture.cluster.store.url()), RedisOptions::default()).await.unwrap();
    let is_planned = async || store.batches(1).await.unwrap()[0].plan_completed_at.is_some();
    crate::queue::until("the plan is complete", is_planned).await;
    fixture.cluster.store.restore(&snapshot);
    tags.open();
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    assert!(ended.stderr.contains("the store has lost the end of the plan"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("has taken over its listing"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_coordinator_completes_a_plan_again_whose_end_is_lost() {
    let fixture = ClusterFixture::new(2, 3).await;
    let second = gate_listing(&fixture, "r01");
    let tags = fixture.gate_tags_after(0);
    let config = format!(
        "rules:\n- {{name: all, from: {}/r*, to: {}/m, naming: keep}}\n",
        fixture.source.host(),
        fixture.target.host()
    );
    let served = ServeProcess::start(&fixture.cluster.imgsync(&config), &[]).await;
    let _workers = fixture.cluster.start_workers(1, 8).await;
    let (status, answer) = served.post("schedules/all/start", &serde_json::json!({})).await;
    assert_eq!(status, 202, "{answer}");
    wait_for_total(&fixture, 3).await;
    let snapshot = fixture.cluster.store.snapshot();
    second.add_permits(1);
    let store = RedisStore::connect(&store_url(&fixture.cluster.store.url()), RedisOptions::default()).await.unwrap();
    let is_planned = async || store.batches(1).await.unwrap()[0].plan_completed_at.is_some();
    crate::queue::until("the plan is complete", is_planned).await;
    // At once: whether the process has counted its writes by then or not, it completes the plan again.
    fixture.cluster.store.restore(&snapshot);
    crate::queue::until("the plan is complete again", is_planned).await;
    tags.open();
    let shown = fixture.cluster.wait_for_batch(|shown| shown["state"] == "done", WAIT_TIMEOUT).await;
    fixture.assert_whole(&shown);
}

/// A batch whose tasks are held at the target.
async fn start_held_batch(fixture: &ClusterFixture) -> (BatchId, RunningProgram, RedisStore) {
    let run = fixture.run();
    let store = RedisStore::connect(&store_url(&fixture.cluster.store.url()), RedisOptions::default()).await.unwrap();
    let planned = async || store.batches(1).await.unwrap().pop().filter(|batch| batch.plan_completed_at.is_some());
    crate::queue::until("the plan is complete", async || planned().await.is_some()).await;
    let id = planned().await.unwrap().id;
    (id, run, store)
}

async fn wait_for_state(store: &RedisStore, batch: BatchId, wanted: BatchState) {
    let is_wanted = async || store.batch_state(batch).await.unwrap() == Some(wanted);
    crate::queue::until(&format!("the batch is {wanted}"), is_wanted).await;
}

#[tokio::test]
async fn a_pause_or_cancellation_by_the_api_that_is_lost_is_made_again() {
    let fixture = ClusterFixture::new(1, 2).await;
    let (batch, _run, store) = start_held_batch(&fixture).await;
    let served = ServeProcess::start(&fixture.cluster.imgsync(&fixture.config), &[]).await;
    for (path, wanted) in [("pause", BatchState::Paused), ("cancel", BatchState::Cancelled)] {
        let snapshot = fixture.cluster.store.snapshot();
        let (status, answer) = served.post(&format!("batches/{batch}/{path}"), &serde_json::json!({})).await;
        assert_eq!(status, 200, "{answer}");
        // At once, as a failover a moment after the change would.
        fixture.cluster.store.restore(&snapshot);
        wait_for_state(&store, batch, wanted).await;
    }
    let stderr = served.stop().await.stderr;
    assert!(stderr.contains("the store had lost that it is cancelled"), "{stderr}");
}

/// Makes a batch alive again: as if the latest write of its state were lost, and of the process that had no counter
/// before.
fn lose_cancellation(fixture: &ClusterFixture, batch: BatchId, before: &BTreeMap<String, u64>) {
    let counter = write_counters(&fixture.cluster.store).into_keys().find(|key| !before.contains_key(key)).unwrap();
    let key = format!("imgsync:{{{batch}}}");
    let script = "redis.call('HSET', ARGV[1], 'state', 0) redis.call('HDEL', ARGV[1], 'ended_at') \
                  redis.call('SET', ARGV[2], 1)";
    let answer = fixture.cluster.store.command(&["EVAL", script, "0", &key, &counter]);
    assert!(!answer.starts_with('-'), "{answer}");
}

#[tokio::test]
async fn a_cancellation_by_command_is_watched_over_if_the_store_has_a_replica() {
    let fixture = ClusterFixture::new(1, 2).await;
    let (batch, mut run, store) = start_held_batch(&fixture).await;
    let replica = RedisServer::start();
    replica.replicate_from(&fixture.cluster.store);
    until("the replica is connected", WAIT_TIMEOUT, || fixture.cluster.store.info("connected_slaves") == 1).await;
    let counters = write_counters(&fixture.cluster.store);
    let mut cancel = fixture.cluster.imgsync("").args(["batch", "cancel"]).spawn();
    cancel.wait_for_line(|line| line.contains("the store has replicas"), WAIT_TIMEOUT).await;
    run.wait().await;
    until("the command counts its writes", WAIT_TIMEOUT, || {
        write_counters(&fixture.cluster.store).iter().any(|(key, value)| !counters.contains_key(key) && *value > 1)
    })
    .await;
    lose_cancellation(&fixture, batch, &counters);
    let ended = cancel.wait().await.assert_code(0);
    assert!(ended.stderr.contains("is cancelled again"), "{}", ended.stderr);
    assert_eq!(store.batch_state(batch).await.unwrap(), Some(BatchState::Cancelled));
}

#[tokio::test]
async fn a_run_creates_its_batch_again_that_is_lost() {
    let fixture = ClusterFixture::new(2, 3).await;
    let list = gate_listing(&fixture, "r01");
    let tags = fixture.gate_tags_after(1);
    let snapshot = fixture.cluster.store.snapshot();
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let mut run = fixture.run();
    wait_for_total(&fixture, 3).await;
    let lost = fixture.cluster.show_batch().await.unwrap();
    tags.wait_for(1).await;
    fixture.cluster.store.restore(&snapshot);
    run.wait_for_line(|line| line.contains("creating it again"), WAIT_TIMEOUT).await;
    list.add_permits(10);
    tags.open();
    let ended = run.wait().await;
    fixture.assert_ended_whole(&ended);
    assert_eq!(ended.json()["batch"], lost["batch"]);
    assert!(ended.stderr.contains("has lost its latest writes, as after a failover"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_run_whose_batch_is_lost_gives_way_to_another_of_the_same_rules() {
    let fixture = ClusterFixture::new(1, 1).await;
    let tags = fixture.gate_tags_after(0);
    let snapshot = fixture.cluster.store.snapshot();
    let mut run = fixture.run();
    wait_for_total(&fixture, 1).await;
    run.signal(Signal::STOP);
    fixture.cluster.store.restore(&snapshot);
    let mut other = fixture.run();
    wait_for_total(&fixture, 1).await;
    run.signal(Signal::CONT);
    let ended = run.wait().await;
    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("of the same rules is run by"), "{}", ended.stderr);
    tags.open();
    let _workers = fixture.cluster.start_workers(1, 4).await;
    fixture.assert_ended_whole(&other.wait().await);
}

#[tokio::test]
async fn a_cancellation_on_the_screen_is_watched_over_if_the_store_has_a_replica() {
    let Some(script) = find_program("script") else {
        return skipped("the screen (script is not installed: apt install bsdutils)");
    };
    let fixture = ClusterFixture::new(1, 2).await;
    let (batch, mut run, store) = start_held_batch(&fixture).await;
    let replica = RedisServer::start();
    replica.replicate_from(&fixture.cluster.store);
    until("the replica is connected", WAIT_TIMEOUT, || fixture.cluster.store.info("connected_slaves") == 1).await;
    let counters = write_counters(&fixture.cluster.store);
    let program = fixture.cluster.imgsync("");
    let log = program.work_dir().join("typescript");
    let inner = format!("stty rows 24 cols 80; exec {} batch watch", program.path().display());
    let mut command = std::process::Command::new(script);
    command.args(["--quiet", "--flush", "--return", "--command", &inner]).arg(&log).current_dir(program.work_dir());
    command.env("TERM", "xterm-256color").env("XDG_STATE_HOME", program.state_dir());
    command.env("IMGSYNC_BROKER", fixture.cluster.broker_urls()).env("IMGSYNC_STORE", fixture.cluster.store.url());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    let shown = || String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    until("the screen is shown", WAIT_TIMEOUT, || shown().contains("quit")).await;
    keys.write_all(b"cy").unwrap();
    run.wait().await;
    until("the command watches over it", WAIT_TIMEOUT, || shown().contains("the store has replicas")).await;
    until("the command counts its writes", WAIT_TIMEOUT, || {
        write_counters(&fixture.cluster.store).iter().any(|(key, value)| !counters.contains_key(key) && *value > 1)
    })
    .await;
    lose_cancellation(&fixture, batch, &counters);
    let ended = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert!(shown().contains("is cancelled again"), "{ended}: {}", shown());
    assert_eq!(store.batch_state(batch).await.unwrap(), Some(BatchState::Cancelled));
}
