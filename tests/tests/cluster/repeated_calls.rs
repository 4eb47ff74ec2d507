//! Store calls whose response is lost, and calls about a batch that no longer exists.

use std::time::Duration;

use imgsync_model::batch::{BatchId, Failure, RequestCounts, TaskRef, TaskResult};
use imgsync_oci::Digest;
use imgsync_oci::error::ErrorKind;
use imgsync_store::contract::tasks;
use imgsync_store::{
    Account, ClaimResult, EmptyRule, IdempotencyKey, LEASE_TTL, Ledger as _, ListingFailure, NewBatch, PlanSegment,
    PlanSize, PruneOutcome, PruneRecord, RateLimitStore as _, RateRequest, ReclaimScope, RedisOptions, RedisStore,
    RequeueFilter, Store, TaskHolder, Usage, WorkerRegistry as _,
};
use imgsync_tests::RedisServer;
use imgsync_tests::tcp_proxy::{Direction, TcpProxy};
use jiff::Timestamp;

use crate::store_contract::store_url;

/// A store behind a TCP proxy that can cut its responses.
struct RelayedStore {
    server: RedisServer,
    relay: TcpProxy,
    store: RedisStore,
}

impl RelayedStore {
    async fn start() -> RelayedStore {
        let server = RedisServer::start();
        let relay = TcpProxy::start(&format!("127.0.0.1:{}", server.port())).await;
        let url = store_url(&format!("redis://{}", relay.host()));
        let store = RedisStore::connect(&url, RedisOptions::long_running()).await.unwrap();
        RelayedStore { server, relay, store }
    }

    /// Lets the server carry out the next call and drops the response.
    fn lose_the_next_answer(&self) -> u64 {
        self.relay.cut_after(Direction::Down, 0);
        self.relay.connections()
    }

    /// Asserts that a call was repeated on a new connection.
    fn assert_repeated(&self, connections: u64) {
        assert!(self.relay.connections() > connections, "the answer was lost, and the call made again");
    }
}

async fn new_batch(store: &dyn Store) -> BatchId {
    let id = BatchId::generate();
    let rules = Digest::sha256(id.to_string().as_bytes());
    store.create(NewBatch { id, rules, options: "{}".to_owned(), supersedes: None, fence: None }).await.unwrap();
    id
}

fn plan_segment(key: &str, number: usize) -> PlanSegment {
    let tasks = tasks("a/b", number).into_iter().map(|task| (task, None)).collect();
    PlanSegment { key: key.to_owned(), listed_at: Timestamp::now(), tasks }
}

fn empty_rule() -> EmptyRule {
    EmptyRule { rule: 1, from: "gcr.io/b".to_owned(), repositories: 0, tags: 0, reason: "none".to_owned() }
}

fn usage(source: u64) -> Usage {
    Usage { requests: RequestCounts { source, target: 0 }, ..Usage::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_listing_cost_is_counted_once_though_the_call_is_made_twice() {
    let subject = RelayedStore::start().await;
    let id = new_batch(&subject.store).await;
    // The server has cached the script now: one call, one response.
    subject.store.add_usage(id, usage(1)).await.unwrap();
    let connections = subject.lose_the_next_answer();
    subject.store.add_usage(id, usage(10)).await.unwrap();
    subject.assert_repeated(connections);
    subject.store.add_usage(id, usage(100)).await.unwrap();
    assert_eq!(subject.store.batch(id).await.unwrap().unwrap().usage.requests.source, 111);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_machine_moves_is_counted_once_though_the_call_is_made_twice() {
    let subject = RelayedStore::start().await;
    let note = async |bytes, request| subject.store.add_traffic("here", "2026-11", bytes, request).await.unwrap();
    assert_eq!(note(1, IdempotencyKey::generate()).await, 1);
    let connections = subject.lose_the_next_answer();
    let request = IdempotencyKey::generate();
    assert_eq!(note(10, request).await, 11);
    subject.assert_repeated(connections);
    assert_eq!(note(10, request).await, 11, "who gave up asks again with the same request");
    assert_eq!(note(100, IdempotencyKey::generate()).await, 111);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_halves_the_learnt_rate_once_though_the_call_is_made_twice() {
    let subject = RelayedStore::start().await;
    let ask = RateRequest { wanted: 1, sent: 1_000, ..RateRequest::default() };
    let account = Account::new(&"r.example".parse().unwrap(), "one");
    let refuse = async || subject.store.record_throttled(&account, Duration::from_millis(1), &ask).await.unwrap();
    let learnt = async || subject.store.learned_rates(std::slice::from_ref(&account)).await.unwrap()[0].unwrap();
    refuse().await;
    let before = learnt().await;
    // Refusals within one second count once: those of another call and of a repeated call must come later.
    let longer = Duration::from_millis(1_100);
    tokio::time::sleep(longer).await;
    subject.relay.refuse(true);
    let connections = subject.lose_the_next_answer();
    let away = async {
        tokio::time::sleep(longer).await;
        subject.relay.refuse(false);
    };
    tokio::join!(refuse(), away);
    subject.assert_repeated(connections);
    assert_eq!(learnt().await, before / 2.0, "it is halved once");
}

/// Makes every kind of call that a worker or a coordinator may make late.
async fn call_late(store: &RedisStore, id: BatchId) {
    let task_ref = TaskRef { batch: id, run: 0, index: 0 };
    let holder = TaskHolder { worker: "late", token: 1 };
    let pruned = PruneRecord {
        source: "gcr.io/a:v1".to_owned(),
        target: "b.example/x:v1".to_owned(),
        outcome: PruneOutcome::Left,
        digest: None,
        reason: "because".to_owned(),
    };
    let unlisted = ListingFailure { repository: "gcr.io/a".into(), kind: ErrorKind::Denied, error: "no".into() };
    let failure = Failure::new(ErrorKind::Denied, "no", 1);
    let gone = [
        store.record_pruned(id, pruned).await,
        store.record_empty_rule(id, empty_rule()).await,
        store.record_listing_failure(id, unlisted).await,
        store.record_notification(id, "0 webhook").await,
        store.append(id, plan_segment("0 gcr.io/a", 3)).await.map(drop),
        store.complete_plan(id, PlanSize::default()).await.map(drop),
        store.add_usage(id, usage(1)).await,
        store.mark_published(id, vec![task_ref]).await,
        store.pause(id).await.map(drop),
        store.resume(id).await.map(drop),
        store.cancel(id).await.map(drop),
        store.requeue(id, RequeueFilter::default()).await.map(drop),
        store.reclaim(id, ReclaimScope::Everything).await.map(drop),
        store.reclaim(id, ReclaimScope::EmptyQueue { grace: Duration::ZERO }).await.map(drop),
    ];
    for (number, answer) in gone.into_iter().enumerate() {
        let error = answer.expect_err(&format!("call {number} is about a batch that is gone"));
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    assert_eq!(store.claim_task(task_ref, None, "late", LEASE_TTL).await.unwrap(), ClaimResult::Unknown);
    store.renew(task_ref, holder, LEASE_TTL).await.unwrap();
    store.check(task_ref, holder, LEASE_TTL).await.unwrap();
    store.finish(task_ref, holder, TaskResult::Failed(failure), usage(1)).await.unwrap();
    store.reschedule(task_ref, holder, Duration::from_secs(5), true, usage(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_of_a_batch_that_is_gone() {
    let subject = RelayedStore::start().await;
    let store = &subject.store;
    let id = new_batch(store).await;
    store.append(id, plan_segment("0 gcr.io/a", 3)).await.unwrap();
    store.record_empty_rule(id, empty_rule()).await.unwrap();
    store.add_usage(id, usage(1)).await.unwrap();
    assert!(keys_of(&subject.server, id) > 3);
    let later = Timestamp::now().checked_add(jiff::SignedDuration::from_secs(60)).unwrap();
    assert_eq!(store.remove_before(later).await.unwrap(), 1);
    assert_eq!(keys_of(&subject.server, id), 0, "a batch is removed whole");
    call_late(store, id).await;
    assert_eq!(keys_of(&subject.server, id), 0);
    assert_eq!(lasting_keys_of(&subject.server, &id.to_string()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_records_of_an_ended_batch_expire_with_it() {
    let subject = RelayedStore::start().await;
    let store = &subject.store;
    let id = new_batch(store).await;
    store.append(id, plan_segment("0 gcr.io/a", 1)).await.unwrap();
    store.cancel(id).await.unwrap();
    let note = async |repository: &str| {
        let unlisted = ListingFailure { repository: repository.into(), kind: ErrorKind::Denied, error: "no".into() };
        store.record_listing_failure(id, unlisted).await.unwrap();
    };
    note("gcr.io/late").await;
    store.record_empty_rule(id, empty_rule()).await.unwrap();
    store.add_usage(id, usage(1)).await.unwrap();
    store.record_notification(id, "0 webhook").await.unwrap();
    assert_eq!(store.listing_failures(id).await.unwrap().len(), 1, "a late note is kept");
    assert_eq!(lasting_keys_of(&subject.server, &id.to_string()), Vec::<String>::new());
    // A running batch keeps its records.
    let running = new_batch(store).await;
    store.record_empty_rule(running, empty_rule()).await.unwrap();
    assert_eq!(lasting_keys_of(&subject.server, &running.to_string()).len(), 2, "the batch and its note");
    let ended = store.batch(id).await.unwrap().unwrap();
    assert!(ended.ended_at.is_some());
}

/// Counts the keys with a batch's prefix.
fn keys_of(server: &RedisServer, id: BatchId) -> usize {
    scan(server, &format!("*{id}*")).len()
}

/// Returns a batch's keys that never expire, without lists of several batches.
fn lasting_keys_of(server: &RedisServer, id: &str) -> Vec<String> {
    let all = scan(server, &format!("*{id}*"));
    all.into_iter().filter(|key| server.command(&["PTTL", key]).trim() == ":-1").collect()
}

/// Returns the keys that match a pattern.
fn scan(server: &RedisServer, pattern: &str) -> Vec<String> {
    let script = "local found, cursor = {}, '0' repeat local page = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000) \
                  cursor = page[1] for _, key in ipairs(page[2]) do found[#found + 1] = key end until cursor == '0' \
                  return table.concat(found, ' ')";
    let answer = server.command(&["EVAL", script, "0", pattern]);
    let line = answer.lines().nth(1).unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}
