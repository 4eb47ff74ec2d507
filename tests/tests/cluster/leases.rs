//! Lease holders that pause for longer than the TTL: the store decides, by its own clock, who owns a tag then. The
//! paused one puts, records and deletes nothing.

use std::sync::Arc;
use std::time::Duration;

use imgsync_model::batch::{RepositoryLocator, TagLocator};
use imgsync_store::{
    LeaseResult, Leases as _, ProvenanceStore as _, RedisOptions, RedisStore, prune_lease_name, tag_lease_name,
};
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{RunningProgram, Signal};
use tokio::sync::Semaphore;

use crate::store_contract::store_url;
use crate::support::{ClusterFixture, WAIT_TIMEOUT, until};

/// TTL of the leases that the test takes over from a paused holder.
const HELD_LEASE_TTL: Duration = Duration::from_secs(600);

async fn open(fixture: &ClusterFixture) -> RedisStore {
    RedisStore::connect(&store_url(&fixture.cluster.store.url()), RedisOptions::default()).await.unwrap()
}

fn repository_locator(registry: &FaultRegistry, path: &str) -> Arc<RepositoryLocator> {
    Arc::new(RepositoryLocator::new(registry.host().parse().unwrap(), path).unwrap())
}

fn tag_locator(registry: &FaultRegistry, path: &str, tag: &str) -> TagLocator {
    TagLocator { repository: repository_locator(registry, path), tag: tag.parse().unwrap() }
}

async fn holder_of(store: &RedisStore, name: &str) -> Option<String> {
    store.first_held(&[name.to_owned()]).await.unwrap().map(|(_, holder)| holder)
}

/// Waits until a held lease has expired, and acquires it.
async fn take_over(store: &RedisStore, name: &str, by: &str) {
    let paused = holder_of(store, name).await.expect("the paused one holds it");
    assert_ne!(paused, by);
    let taken = async {
        while let LeaseResult::HeldBy { .. } = store.acquire(name, by, HELD_LEASE_TTL).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, taken).await.expect("a lease that nobody renews expires");
}

/// Starts a worker whose leases last six seconds.
async fn worker(fixture: &ClusterFixture) -> RunningProgram {
    let broker = format!("{}?heartbeat=5", fixture.cluster.broker.url());
    let worker = fixture.cluster.worker("").env("IMGSYNC_BROKER", broker).args(["--lease", "6"]).spawn();
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    worker
}

/// Prepares a target tag that is about to move, and a worker with the tag's lease that waits at the target in a request
/// of this kind.
async fn paused_worker(
    kind: RequestType,
) -> (ClusterFixture, RedisStore, RunningProgram, RunningProgram, Arc<Semaphore>) {
    let mut fixture = ClusterFixture::new(1, 0).await;
    fixture.config = fixture.config.replace("naming: keep", "naming: keep, backup: '{{tag}}-before'");
    assert!(fixture.config.contains("backup"), "{}", fixture.config);
    let image = images::single("leases-new");
    fixture.source.push("r00", "moves", &image);
    fixture.images.push(("r00".to_owned(), "moves".to_owned(), image));
    fixture.target.push("m/r00", "moves", &images::single("leases-old"));
    let gate = Arc::new(Semaphore::new(0));
    let hits = fixture.target.on(RequestMatcher::kind(kind).reference("moves")).act(FaultAction::Gate(gate.clone()));
    let store = open(&fixture).await;
    let worker = worker(&fixture).await;
    let run = fixture.run();
    until("the worker waits at the target", WAIT_TIMEOUT, || hits.hits() > 0).await;
    worker.signal(Signal::STOP);
    (fixture, store, worker, run, gate)
}

/// Reports whether a worker says that it has stopped at the tag.
fn reports_lost_tag_lease(line: &str) -> bool {
    line.contains(":moves") && (line.contains("requeued ") || line.contains("lease of the target tag was lost"))
}

/// Returns the cached target tags.
async fn cached_tags(fixture: &ClusterFixture) -> String {
    fixture.cluster.imgsync(&fixture.config).args(["cache", "export"]).run().await.assert_code(0).stdout
}

#[tokio::test]
async fn a_worker_paused_before_its_tag_does_not_put_it_once_the_lease_is_anothers() {
    // It reads the current tag: after it has acquired the lease, before it puts the tag.
    let (fixture, store, worker, mut run, gate) = paused_worker(RequestType::ManifestGet).await;
    let name = tag_lease_name(&tag_locator(&fixture.target, "m/r00", "moves"));
    take_over(&store, &name, "another").await;
    gate.add_permits(1);
    worker.signal(Signal::CONT);
    worker.wait_for_line(reports_lost_tag_lease, WAIT_TIMEOUT).await;
    let puts = fixture.target.requests_of_kind(RequestType::ManifestPut);
    let tags: Vec<_> = puts.iter().filter(|put| !put.reference.as_deref().unwrap_or_default().contains(':')).collect();
    assert!(tags.is_empty(), "{tags:?}");
    fixture.target.assert_holds("m/r00", "moves", &images::single("leases-old"));
    assert_eq!(holder_of(&store, &name).await.as_deref(), Some("another"), "nor does it release what is another's");
    // Once the tag is free, it is put once.
    store.release(&name, "another").await.unwrap();
    fixture.assert_ended_whole(&run.wait().await);
    assert_eq!((fixture.puts("r00", "moves"), fixture.puts("r00", "moves-before")), (1, 1));
}

#[tokio::test]
async fn a_worker_paused_while_its_tag_is_put_does_not_record_it_once_the_lease_is_anothers() {
    let (fixture, store, worker, mut run, gate) = paused_worker(RequestType::ManifestPut).await;
    let name = tag_lease_name(&tag_locator(&fixture.target, "m/r00", "moves"));
    take_over(&store, &name, "another").await;
    // The registry carries out the PUT; the paused worker must not record a tag that another has changed since.
    gate.add_permits(1);
    worker.signal(Signal::CONT);
    worker.wait_for_line(reports_lost_tag_lease, WAIT_TIMEOUT).await;
    assert!(!cached_tags(&fixture).await.contains("moves"));
    assert!(store.written_digests(&repository_locator(&fixture.target, "m/r00")).await.unwrap().is_empty());
    store.release(&name, "another").await.unwrap();
    fixture.assert_ended_whole(&run.wait().await);
    assert!(cached_tags(&fixture).await.contains("moves"));
}

/// Starts to prune two tags, in deletion order, at a target that deletes by digest.
async fn start_pruning(fixture: &ClusterFixture) -> ([(&'static str, TestImage); 2], String, Vec<RunningProgram>) {
    let mut going = [("1", images::single("leases-1")), ("2", images::single("leases-2"))];
    for (tag, image) in &going {
        fixture.source.push("app", tag, image);
    }
    fixture.source.push("app", "stays", &images::single("leases-stays"));
    let config = format!(
        "rules:\n- {{from: {}/app, to: {}/m, naming: keep, prune: {{keep_days: 0, limit: 2}}}}\n",
        fixture.source.host(),
        fixture.target.host()
    );
    let workers = fixture.cluster.start_workers(1, 4).await;
    fixture.cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0);
    going.iter().for_each(|(tag, _)| fixture.source.delete_tag("app", tag));
    let is_tag = |request: &imgsync_tests::fault::RecordedRequest| {
        !request.reference.as_deref().unwrap_or_default().contains(':')
    };
    let by_tag = RequestMatcher::kind(RequestType::ManifestDelete).when(is_tag);
    fixture.target.on(by_tag).always().act(FaultAction::error(405, "UNSUPPORTED"));
    fixture.target.clear_requests();
    going.sort_by(|(_, a), (_, b)| a.root.cmp(&b.root));
    (going, config, workers)
}

fn deleted(target: &FaultRegistry) -> Vec<String> {
    let deletes = target.requests_of_kind(RequestType::ManifestDelete).into_iter();
    deletes.filter(|request| request.status == Some(202)).filter_map(|request| request.reference).collect()
}

#[tokio::test]
async fn a_coordinator_paused_while_it_removes_tags_deletes_no_more_once_the_lease_is_anothers() {
    let fixture = ClusterFixture::new(1, 0).await;
    let (going, config, _workers) = start_pruning(&fixture).await;
    let store = open(&fixture).await;
    // It is at the second of two, and has checked that nothing needs it.
    let (tag, image) = &going[1];
    let gate = Arc::new(Semaphore::new(0));
    let head = RequestMatcher::kind(RequestType::ManifestHead).reference(tag);
    let hits = fixture.target.on(head).skip(1).act(FaultAction::Gate(gate.clone()));
    let mut run = fixture.cluster.imgsync(&config).args(["run", "--json"]).spawn();
    until("it looks at the tag once more", WAIT_TIMEOUT, || hits.hits() > 0).await;
    run.signal(Signal::STOP);
    take_over(&store, &prune_lease_name(&repository_locator(&fixture.target, "m/app")), "another").await;
    gate.add_permits(1);
    run.signal(Signal::CONT);
    let json = run.wait().await.assert_code(0).json();
    assert_eq!(deleted(&fixture.target), [going[0].1.root.clone()], "{json}");
    fixture.target.assert_holds("m/app", tag, image);
    let lines: Vec<(&str, bool)> = json["pruned"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| {
            (line["outcome"].as_str().unwrap(), line["reason"].as_str().is_some_and(|why| why.contains("lease")))
        })
        .collect();
    assert_eq!(lines, [("removed", false), ("left", true)], "{json}");
}

#[tokio::test]
async fn a_lease_lost_midway_stops_the_deletes() {
    let fixture = ClusterFixture::new(1, 0).await;
    let (going, config, _workers) = start_pruning(&fixture).await;
    let store = open(&fixture).await;
    let gate = Arc::new(Semaphore::new(0));
    let first = RequestMatcher::kind(RequestType::ManifestDelete).reference(&going[0].1.root);
    let hits = fixture.target.on(first).act(FaultAction::Gate(gate.clone()));
    let mut run = fixture.cluster.imgsync(&config).args(["run", "--json"]).spawn();
    until("the first is deleted", WAIT_TIMEOUT, || hits.hits() > 0).await;
    // As after a failover in which the store lost its latest writes.
    let name = prune_lease_name(&repository_locator(&fixture.target, "m/app"));
    let holder = holder_of(&store, &name).await.expect("it is removing tags");
    store.release(&name, &holder).await.unwrap();
    assert!(matches!(store.acquire(&name, "another", HELD_LEASE_TTL).await.unwrap(), LeaseResult::Acquired { .. }));
    gate.add_permits(1);
    let json = run.wait().await.assert_code(0).json();
    assert_eq!(deleted(&fixture.target), [going[0].1.root.clone()], "{json}");
    fixture.target.assert_holds("m/app", going[1].0, &going[1].1);
    assert!(json.to_string().contains("was lost"), "{json}");
}

#[tokio::test]
async fn a_tag_that_another_run_has_moved_since_the_check_keeps_its_manifest() {
    let fixture = ClusterFixture::new(1, 0).await;
    let (going, config, _workers) = start_pruning(&fixture).await;
    let gate = Arc::new(Semaphore::new(0));
    let first = RequestMatcher::kind(RequestType::ManifestDelete).reference(&going[0].1.root);
    let hits = fixture.target.on(first).act(FaultAction::Gate(gate.clone()));
    let mut run = fixture.cluster.imgsync(&config).args(["run", "--json"]).spawn();
    until("the tags are looked at, and the first is deleted", WAIT_TIMEOUT, || hits.hits() > 0).await;
    // A tag that stays moves to the digest that is deleted next: its name is not new.
    fixture.source.push("other/app", "stays", &going[1].1);
    let other = format!(
        "rules:\n- {{from: {}/other/app, to: {}/m, naming: basename}}\n",
        fixture.source.host(),
        fixture.target.host()
    );
    fixture.cluster.imgsync(&other).args(["run", "--json", "--force"]).run().await.assert_code(0);
    fixture.target.assert_holds("m/app", "stays", &going[1].1);
    gate.add_permits(1);
    let json = run.wait().await.assert_code(0).json();
    assert_eq!(deleted(&fixture.target), [going[0].1.root.clone()], "{json}");
    assert!(json.to_string().contains("the tag stays uses the same image"), "{json}");
    fixture.target.assert_holds("m/app", "stays", &going[1].1);
    fixture.target.assert_holds("m/app", going[1].0, &going[1].1);
}
