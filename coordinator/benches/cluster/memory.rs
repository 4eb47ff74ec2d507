//! Memory of planned tasks and cached tags: constant in the coordinator, some bytes each in the store, a window in the
//! broker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_model::batch::TaskSpec;
use imgsync_oci::{Digest, DigestTagHints};
use imgsync_store::{Batch, CacheScope, CachedTag, DigestCache as _, Ledger as _, PlanSegment, RedisStore};
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::{TestCluster, images};
use jiff::Timestamp;

use crate::setup::{self, MIB, SOURCE, TARGET, repository_locator, tag_locator};

/// Tags per repository.
const TAGS: usize = 1000;
/// Tasks of which the bytes are measured.
const SAMPLE: usize = 20_000;

pub(crate) async fn run(most: usize) {
    setup::title(
        "planned by `imgsync run` from plain listings of 1,000 tags, no worker yet: the window is full, the rest waits",
    );
    println!(
        "{:>9} {:>9} {:>16} {:>13} {:>11} {:>12} {:>10} {:>11}",
        "tasks", "seconds", "coordinator MiB", "store B/task", "broker has", "broker MiB", "idle MiB", "cancel ms"
    );
    let mut size = 10_000;
    while size <= most {
        measure_planned(size).await;
        size *= 10;
    }
    setup::title("bytes of the store for a planned task");
    println!("{:<42} {:>9} {:>9} {:>9}", "", "10 tags", "100 tags", "1,000 tags");
    for (what, with_digest, hashes) in [
        ("version tags, plain listing", false, false),
        ("commit hashes as tags, plain listing", false, true),
        ("version tags, digests listed, to be copied", true, false),
    ] {
        let cluster = setup::start_cluster();
        let store = setup::connect_store(&cluster).await;
        let mut bytes = Vec::new();
        for tags in [10, 100, 1000] {
            bytes.push(bytes_per_task(&cluster, &store, tags, with_digest, hashes).await);
        }
        println!("{what:<42} {:>9.2} {:>9.2} {:>9.2}", bytes[0], bytes[1], bytes[2]);
    }
    setup::title("bytes of the store for a known tag (aim: 80)");
    println!("{:<42} {:>9} {:>9} {:>9}", "", "10 tags", "100 tags", "1,000 tags");
    let cluster = setup::start_cluster();
    let store = setup::connect_store(&cluster).await;
    let mut bytes = Vec::new();
    for tags in [10, 100, 1000] {
        bytes.push(bytes_per_cached_tag(&cluster, &store, tags).await);
    }
    println!("{:<42} {:>9.1} {:>9.1} {:>9.1}", "version tags", bytes[0], bytes[1], bytes[2]);
}

async fn measure_planned(size: usize) {
    let cluster = setup::start_cluster();
    let store = setup::connect_store(&cluster).await;
    let source = FaultRegistry::start().await;
    let image = images::single("planned");
    for repository in 0..size / TAGS {
        let repository = format!("p/r{repository}");
        source.push(&repository, "v1.0.0", &image);
        (1..TAGS).for_each(|tag| source.move_tag(&repository, &version(tag), &image.root));
    }
    let idle = cluster.broker.memory_bytes();
    let config = format!("defaults: {{to: target.test/m, naming: keep}}\nrules:\n- from: {}/p/**\n", source.host());
    let began = Instant::now();
    let mut run = cluster.imgsync(&config).args(["run", "--json", "--quiet"]).spawn();
    let batch = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let found: Option<Batch> = store.batches(1).await.unwrap().pop();
        if let Some(batch) = found.filter(|batch| batch.plan_completed_at.is_some() && batch.queued > 0) {
            break batch;
        }
        assert!(run.is_running(), "{}", run.stderr());
    };
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(batch.counts.total, size as u64);
    // The broker updates its statistics every few seconds.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let bytes = cluster.store.key_memory_bytes("imgsync:{*");
    let waiting: u64 = cluster.broker.message_counts().values().sum();
    let broker = cluster.broker.memory_bytes();
    let peak = run.peak_rss_bytes();
    // One step of the store, which blocks it.
    let cancel = Instant::now();
    store.cancel(batch.id).await.unwrap();
    let cancel = cancel.elapsed();
    let output = run.wait().await;
    println!(
        "{size:>9} {seconds:>9.1} {:>16} {:>13.2} {waiting:>11} {:>12} {:>10} {:>11}",
        output.peak_rss_bytes.max(peak) / MIB,
        bytes as f64 / size as f64,
        broker / MIB,
        idle / MIB,
        cancel.as_millis()
    );
}

async fn bytes_per_task(
    cluster: &TestCluster,
    store: &RedisStore,
    tags: usize,
    with_digest: bool,
    hashes: bool,
) -> f64 {
    let id = setup::new_batch(store).await;
    for repository in 0..SAMPLE / tags {
        let path = format!("library/app-{repository}");
        let (source, target) = (
            Arc::new(repository_locator(SOURCE, &path)),
            Arc::new(repository_locator(TARGET, &format!("mirror/{path}"))),
        );
        let planned = |tag: usize| {
            let digest = Digest::sha256(format!("{repository} {tag}").as_bytes());
            let name = if hashes { digest.hex()[..12].to_owned() } else { version(tag) };
            let digest = with_digest.then_some(digest);
            let (source, target) = (tag_locator(&source, &name), tag_locator(&target, &name));
            (TaskSpec { rule: 0, source, digest, target, digest_tags: DigestTagHints::default() }, None)
        };
        let tasks = (0..tags).map(planned).collect();
        let segment = PlanSegment { key: format!("0 {SOURCE}/{path}"), listed_at: Timestamp::now(), tasks };
        store.append(id, segment).await.unwrap();
    }
    cluster.store.key_memory_bytes(&format!("imgsync:{{{id}}}*")) as f64 / SAMPLE as f64
}

async fn bytes_per_cached_tag(cluster: &TestCluster, store: &RedisStore, tags: usize) -> f64 {
    let bytes = || cluster.store.key_memory_bytes("imgsync:tags:*") + cluster.store.key_memory_bytes("imgsync:scopes");
    let before = bytes();
    for repository in 0..SAMPLE / tags {
        let scope = CacheScope {
            repository: repository_locator(TARGET, &format!("mirror/app-{repository}-{tags}")),
            options: "".into(),
        };
        let known = |tag: usize| {
            let digest = Digest::sha256(format!("{repository} {tag}").as_bytes());
            let known =
                CachedTag { source: digest.clone(), target: digest, seen_at: Timestamp::now(), referrers_at: None };
            (version(tag).parse().unwrap(), known)
        };
        store.cache_tags(&scope, (0..tags).map(known).collect()).await.unwrap();
    }
    (bytes() - before) as f64 / SAMPLE as f64
}

fn version(tag: usize) -> String {
    format!("v1.{}.{}", tag / 20, tag % 20)
}
