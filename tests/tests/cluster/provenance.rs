//! Size and lifetime of the provenance records that `prune` relies on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use imgsync_model::batch::{RepositoryLocator, SigningKey, TagLocator};
use imgsync_oci::Digest;
use imgsync_oci::secret::Secret;
use imgsync_store::{ProvenanceStore as _, RedisOptions, RedisStore};
use imgsync_tests::RedisServer;
use imgsync_tests::cluster::number;

use crate::store_contract::store_url;
use crate::support::ClusterFixture;

/// Maximum bytes per record of a tag such as `v1.12.3-alpine`, as Redis counts them: name, digest, and authentication.
const MAX_BYTES_PER_TAG: u64 = 90;

fn tag_locator(registry: &str, path: &str, tag: &str) -> TagLocator {
    let home = RepositoryLocator::new(registry.parse().unwrap(), path).unwrap();
    TagLocator { repository: Arc::new(home), tag: tag.parse().unwrap() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provenance_of_a_tag_takes_few_bytes_with_many_tags_and_with_a_key() {
    let mut too_much = Vec::new();
    for key in [None, Some(SigningKey::new(&Secret::new("the key of this cluster")))] {
        for tags in [100, 5_000] {
            let server = RedisServer::start_with(imgsync_tests::servers::RedisServerOptions {
                fsync_every_second: true,
                ..Default::default()
            });
            let options = RedisOptions { key: key.clone(), ..RedisOptions::default() };
            let store = RedisStore::connect(&store_url(&server.url()), options).await.unwrap();
            let mut noting = tokio::task::JoinSet::new();
            for n in 0..tags {
                let tag = format!("v1.{}.{}-alpine", n / 100, n % 100);
                let (source, target) = (tag_locator("gcr.io", "a/b", &tag), tag_locator("target.example", "m/b", &tag));
                let store = store.clone();
                noting.spawn(async move {
                    store
                        .record_provenance(&source, &target, &Digest::sha256(target.tag.as_str().as_bytes()))
                        .await
                        .unwrap();
                });
            }
            while let Some(noted) = noting.join_next().await {
                noted.unwrap();
            }
            let source = tag_locator("gcr.io", "a/b", "v1").repository;
            assert_eq!(store.provenance_by_source(&source).await.unwrap().len(), tags);
            let bytes = server.key_memory_bytes("imgsync:provenance*") / tags as u64;
            let line = format!("{tags} tags, {} key: {bytes} bytes a tag", if key.is_some() { "with a" } else { "no" });
            println!("{line}");
            if bytes > MAX_BYTES_PER_TAG {
                too_much.push(line);
            }
        }
    }
    assert!(too_much.is_empty(), "{too_much:?}");
}

/// Returns the provenance keys of a store, sorted: Redis returns them in no fixed order.
fn keys(store: &RedisServer) -> BTreeSet<String> {
    let answer = store.command(&["KEYS", "imgsync:provenance*"]);
    answer.lines().filter(|line| line.starts_with("imgsync:")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provenance_outlives_keep_while_a_rule_makes_the_tag_and_nothing_of_it_is_left_later() {
    // Long enough that a run on a busy machine does not remove its own batch.
    const KEEP: Duration = Duration::from_millis(500);
    let fixture = ClusterFixture::new(2, 3).await;
    let _workers = fixture.cluster.start_workers(1, 4).await;
    let run = async |rules: &str| {
        // Each run starts later than `keep` after the previous one.
        tokio::time::sleep(KEEP).await;
        let config = format!("keep: {}ms\n{rules}", KEEP.as_millis());
        fixture.cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0)
    };
    run(&fixture.config).await;
    let noted = keys(&fixture.cluster.store);
    assert!(!noted.is_empty());
    for _ in 0..3 {
        let again = run(&fixture.config).await;
        assert_eq!(number(&again.json(), "/counts/unchanged"), 6, "{}", again.stdout);
    }
    assert_eq!(keys(&fixture.cluster.store), noted);

    // Other rules: the first run finds that no rule writes those tags any more, a later one drops them.
    fixture.source.push("other", "1", &imgsync_tests::images::single("other"));
    let other = format!("rules:\n- {{from: {}/other, to: {}/n}}\n", fixture.source.host(), fixture.target.host());
    run(&other).await;
    let mut left = keys(&fixture.cluster.store);
    for _ in 0..50 {
        if left.len() < noted.len() {
            break;
        }
        run(&other).await;
        left = keys(&fixture.cluster.store);
    }
    // Records of the other rule: its pair, the names of its source and target, and the list of sources.
    assert_eq!(left.len(), 4, "{left:?}, and before {noted:?}");
    assert!(left.contains("imgsync:provenance_sources"), "{left:?}");
}
