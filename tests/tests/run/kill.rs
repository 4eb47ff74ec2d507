//! Repeated SIGKILL: nothing is lost or counted twice, and only blobs in flight are uploaded twice.

use std::collections::HashMap;
use std::time::Duration;

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{Layer, TestImage};
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;
use serde_json::Value;

use crate::end_to_end::{assert_adds_up, configured, run};

const REPOSITORIES: usize = 25;
const TAGS: usize = 20;
const KILLS: usize = 20;
const SLOTS: usize = 8;
/// Blobs in flight per image.
const BLOBS: usize = 8;

#[tokio::test]
async fn killed_at_twenty_random_moments_500_tags_end_all_copied() {
    let seed = std::env::var("IMGSYNC_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("IMGSYNC_SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let mut images = Vec::new();
    for repository in 0..REPOSITORIES {
        for tag in 0..TAGS {
            let image = TestImage::single(&format!("kill-{repository}-{tag}"))
                .layer(Layer::Shared(format!("base-{}", repository % 5), 300_000))
                .layer(Layer::File(2_000))
                .build();
            source.push(&format!("r{repository:02}"), &format!("v{tag}"), &image);
            images.push((format!("m/r{repository:02}"), format!("v{tag}"), image));
        }
    }
    let rules: String = (0..REPOSITORIES).map(|n| format!("- from: {}/r{n:02}\n", source.host())).collect();
    let program = configured(&format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", target.host()));
    let file = program.work_dir().join("imgsync.yaml");
    let slots = SLOTS.to_string();
    for kill in 0..KILLS {
        let before = target.total();
        let mut running = program.again().args(["run", "--concurrency", &slots, "-c"]).arg(&file).spawn();
        // After this many requests to the target, or at its end.
        let after = random.random_range(1..150);
        let done = |target: &FaultRegistry| target.tags_in_all() == images.len();
        target.wait_until(|target| target.total() >= before + after || done(target), Duration::from_secs(60)).await;
        running.signal(Signal::KILL);
        running.wait().await;
        target.assert_tags_complete();
        assert!(kill < KILLS);
    }
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["total"], images.len());
    for (repository, tag, image) in &images {
        target.assert_holds(repository, tag, image);
    }
    let listed = program.again().args(["batch", "list", "--json", "--limit", "100"]).run().await.assert_code(0);
    let batches: Vec<Value> = listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(batches.len(), KILLS + 1);
    batches.iter().for_each(assert_adds_up);

    // Complete uploads per blob, in any repository: one, and one more for each kill in flight.
    let mut uploads: HashMap<String, u64> = HashMap::new();
    for put in target
        .requests_of_kind(RequestType::UploadPut)
        .iter()
        .filter(|put| put.status.is_some_and(|status| status == 201))
    {
        *uploads.entry(put.parameter("digest").unwrap_or_default()).or_default() += 1;
    }
    let twice: u64 = uploads.values().map(|count| count - 1).sum();
    let in_flight = (KILLS * SLOTS * BLOBS) as u64;
    let most = uploads.values().max().copied().unwrap_or_default();
    assert!(twice <= in_flight && most <= KILLS as u64, "{twice} more than once, one {most} times");
    println!("{} blobs, {twice} uploads more than one each", uploads.len());
}
