//! A clock that was wrong and is corrected.

use std::sync::Arc;
use std::time::Duration;

use imgsync_model::batch::BatchId;
use imgsync_oci::Digest;
use imgsync_store::{Ledger as _, ManualClock, NewBatch, PlanSize, SqliteStore};
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use jiff::{SignedDuration, Timestamp};

const TAGS: usize = 150;
const LOST: [usize; 3] = [3, 77, 149];

#[tokio::test]
async fn tags_that_were_seen_in_the_future_are_verified_again_which_is_said_once() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("future");
    source.push("a", "v0", &image);
    for number in 1..TAGS {
        source.move_tag("a", &format!("v{number}"), &image.root);
    }
    let program = Imgsync::new();
    let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host());
    program.file("imgsync.yaml", rule);
    let run = || program.again().args(["run", "--json"]);
    assert_eq!(run().run().await.assert_code(0).json()["counts"]["copied"], TAGS);

    // All cached target tags were verified 400 days from now.
    let cache = program.again().args(["cache", "export"]).run().await.assert_code(0).stdout;
    let ahead = (Timestamp::now() + SignedDuration::from_hours(400 * 24)).as_second();
    let cache: String = cache
        .lines()
        .map(|line| {
            let mut entry: serde_json::Value = serde_json::from_str(line).unwrap();
            entry["seen"] = ahead.into();
            format!("{entry}\n")
        })
        .collect();
    assert!(cache.lines().count() >= TAGS);
    program.file("cache.jsonl", cache);
    std::fs::remove_dir_all(program.state_dir().join("imgsync")).unwrap();
    program.again().args(["cache", "import", "cache.jsonl"]).run().await.assert_code(0);
    for number in LOST {
        target.delete_tag("m/a", &format!("v{number}"));
    }

    let output = run().run().await.assert_code(0);
    assert_eq!(output.json()["counts"]["copied"], LOST.len(), "{}", output.stderr);
    assert_eq!(output.stderr.matches("in the future").count(), 1, "{}", output.stderr);
    assert_eq!(target.tags("m/a").len(), TAGS);
    let output = run().run().await.assert_code(0);
    assert_eq!(output.json()["counts"]["unchanged"], TAGS);
    assert!(!output.stderr.contains("in the future"), "{}", output.stderr);
}

#[tokio::test]
async fn the_newest_batch_is_the_one_that_was_made_last_although_another_was_made_in_the_future() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("newest"));
    let program = Imgsync::new();
    let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host());
    program.file("imgsync.yaml", rule);
    let ahead = Timestamp::now() + SignedDuration::from_hours(400 * 24);
    let clock = Arc::new(ManualClock::starting_at(ahead));
    let store = SqliteStore::open(&program.state_dir().join("imgsync"), clock).await.unwrap();
    // The first 48 bits of an id are its time.
    let mut id = *BatchId::generate().as_bytes();
    id[..6].copy_from_slice(&ahead.as_millisecond().to_be_bytes()[2..]);
    let future = BatchId::from_bytes(id);
    let rules = Digest::sha256(b"other rules");
    store
        .create(NewBatch { id: future, rules, options: "{}".to_owned(), supersedes: None, fence: None })
        .await
        .unwrap();
    store.complete_plan(future, PlanSize::default()).await.unwrap();
    drop(store);

    let mut ids = vec![future.to_string()];
    for _ in 0..2 {
        let run = program.again().args(["run", "--json"]).run().await.assert_code(0).json();
        ids.insert(0, run["batch"].as_str().unwrap().to_owned());
        let newest = program.again().args(["batch", "show", "--json"]).run().await.assert_code(0).json();
        assert_eq!(newest["batch"], ids[0].as_str());
        let made: Timestamp = newest["started"].as_str().unwrap().parse().unwrap();
        assert!(Timestamp::now().duration_since(made) < SignedDuration::from_hours(1), "{newest:#}");
    }
    let listed = program.again().args(["batch", "list", "--json"]).run().await.assert_code(0).stdout;
    let listed: Vec<serde_json::Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let listed: Vec<&str> = listed.iter().map(|batch| batch["batch"].as_str().unwrap()).collect();
    assert_eq!(listed, ids);
}

#[tokio::test]
async fn a_lease_and_a_rate_limit_hold_of_the_future_are_not_waited_for() {
    use imgsync_store::{Account, LeaseResult, Leases as _, RateLimitStore as _, tag_lease_name};
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("held");
    source.push("a", "1", &image);
    let program = Imgsync::new();
    let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host());
    program.file("imgsync.yaml", rule);
    let clock = Arc::new(ManualClock::starting_at(Timestamp::now() + SignedDuration::from_hours(400 * 24)));
    let store = SqliteStore::open(&program.state_dir().join("imgsync"), clock.clone()).await.unwrap();
    let home = imgsync_model::batch::RepositoryLocator::new(target.host().parse().unwrap(), "m/a").unwrap();
    let place = imgsync_model::batch::TagLocator { repository: Arc::new(home), tag: "1".parse().unwrap() };
    let minute = Duration::from_secs(60);
    let held = store.acquire(&tag_lease_name(&place), "another", minute).await.unwrap();
    assert!(matches!(held, LeaseResult::Acquired { .. }));
    for host in [source.host(), target.host()] {
        for who in ["", "anonymous"] {
            let account = Account::new(&host.parse().unwrap(), who);
            store
                .block_until(&account, Timestamp::now() + SignedDuration::from_hours(400 * 24) + minute)
                .await
                .unwrap();
        }
    }
    drop(store);
    program.again().args(["run", "--quiet"]).limit(Duration::from_secs(60)).run().await.assert_code(0);
    target.assert_holds("m/a", "1", &image);
}
