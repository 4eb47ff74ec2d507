//! Tasks through plan, queue and ledger, for targets that are known to be up to date: workers take all their usual
//! steps, and send no request to a registry.

use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_model::batch::{BatchId, TaskSpec};
use imgsync_oci::{Digest, DigestTagHints};
use imgsync_store::{CacheScope, CachedTag, DigestCache as _, Ledger as _, PlanSegment, PlanSize, RedisStore};
use imgsync_tests::resource_usage::{CpuTimes, cpu_seconds};
use jiff::Timestamp;

use crate::setup::{self, MIB, SOURCE, TARGET, json_count, repository_locator, tag_locator};

/// Tasks per repository.
const TAGS: usize = 1000;
const SLOTS: usize = 20;

pub(crate) async fn run(tasks: usize) {
    setup::title(&format!(
        "{tasks} tasks through plan → dispatch → consume → finish, {SLOTS} slots per worker (aim: 3,000/s)"
    ));
    println!(
        "{:>7} {:>9} {:>11} {:>11} {:>6}   {:>9} {:>8} {:>7} {:>12}   {:>14} {:>9}",
        "workers",
        "planned/s",
        "dispatched/s",
        "overall/s",
        "idle",
        "broker µs",
        "store µs",
        "workers",
        "coordinator",
        "scripts a task",
        "peak MiB"
    );
    for workers in [1, 2, 4, 8] {
        measure(tasks, workers).await;
    }
}

async fn measure(tasks: usize, workers: usize) {
    let cluster = setup::start_cluster();
    let store = setup::connect_store(&cluster).await;
    let digest = Digest::sha256(b"the image");
    let repositories = tasks.div_ceil(TAGS);
    let tags: Vec<String> = (0..TAGS).map(|tag| format!("v1.{}.{}", tag / 20, tag % 20)).collect();
    let now = Timestamp::now();
    for repository in 0..repositories {
        let scope =
            CacheScope { repository: repository_locator(TARGET, &format!("m/r{repository}")), options: "".into() };
        let known = CachedTag { source: digest.clone(), target: digest.clone(), seen_at: now, referrers_at: Some(now) };
        let known = tags.iter().map(|tag| (tag.parse().unwrap(), known.clone())).collect();
        store.cache_tags(&scope, known).await.unwrap();
    }
    let mut fleet = cluster.start_workers(workers, SLOTS).await;
    let id = setup::new_batch(&store).await;
    let scripts = cluster.store.calls("evalsha");
    let pids: Vec<u32> = fleet.iter().map(imgsync_tests::program::RunningProgram::pid).collect();
    let used = || {
        let of_workers: f64 = pids.iter().copied().map(cpu_seconds).sum();
        [cpu_seconds(cluster.broker.pid().unwrap()), cpu_seconds(cluster.store.pid().unwrap()), of_workers]
    };
    let before = used();
    let processors = CpuTimes::now();
    let began = Instant::now();
    append_plan(&store, id, repositories, &tags, &digest).await;
    let plan_time = began.elapsed();
    let resume = cluster.imgsync("").args(["batch", "resume", &id.to_string(), "--json", "--quiet"]);
    let output = resume.limit(Duration::from_secs(3600)).run().await.assert_code(0);
    let all = began.elapsed();
    let idle = CpuTimes::idle_since(processors);
    let total = repositories * TAGS;
    assert_eq!(json_count(&output, "unchanged"), total as u64, "{}", output.stdout);
    let per_task = |seconds: f64| seconds * 1e6 / total as f64;
    let after = used();
    let rate = |time: Duration| total as f64 / time.as_secs_f64();
    let peak = fleet.iter_mut().map(imgsync_tests::program::RunningProgram::peak_rss_bytes).max().unwrap_or_default();
    println!(
        "{workers:>7} {:>9.0} {:>11.0} {:>11.0} {:>5.0}%   {:>9.0} {:>8.0} {:>7.0} {:>12.0}   {:>14.2} {:>9}",
        rate(plan_time),
        rate(all - plan_time),
        rate(all),
        idle * 100.0,
        per_task(after[0] - before[0]),
        per_task(after[1] - before[1]),
        per_task(after[2] - before[2]),
        per_task(output.cpu_seconds),
        (cluster.store.calls("evalsha") - scripts) as f64 / total as f64,
        format!("{}+{}", output.peak_rss_bytes / MIB, peak / MIB),
    );
}

async fn append_plan(store: &RedisStore, id: BatchId, repositories: usize, tags: &[String], digest: &Digest) {
    for repository in 0..repositories {
        let source = Arc::new(repository_locator(SOURCE, &format!("r{repository}")));
        let target = Arc::new(repository_locator(TARGET, &format!("m/r{repository}")));
        let planned = |tag: &String| TaskSpec {
            rule: 0,
            source: tag_locator(&source, tag),
            digest: Some(digest.clone()),
            target: tag_locator(&target, tag),
            digest_tags: DigestTagHints::default(),
        };
        let tasks = tags.iter().map(|tag| (planned(tag), None)).collect();
        let plan_time = PlanSegment { key: format!("0 {SOURCE}/r{repository}"), listed_at: Timestamp::now(), tasks };
        store.append(id, plan_time).await.unwrap();
    }
    store.complete_plan(id, PlanSize::default()).await.unwrap();
}
