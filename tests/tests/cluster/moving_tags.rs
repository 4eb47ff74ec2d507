//! Tags that move during copies by workers.

use std::sync::Arc;

use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{Layer, TestImage};
use tokio::sync::Semaphore;

use crate::support::WAIT_TIMEOUT;

/// The image of a tag before and after it moves, with no content in common.
fn version(tag: usize, n: u32) -> TestImage {
    let name = format!("moves-{tag}-{n}");
    TestImage::single(&name).layer(Layer::Synthetic((2 << 20) + tag as u64)).layers(2, 1200).build()
}

#[tokio::test]
async fn tags_that_move_while_workers_copy_them_are_copied_as_what_they_are_now() {
    const TAGS: usize = 6;
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    (0..TAGS).for_each(|tag| source.push("a", &format!("v{tag}"), &version(tag, 1)));
    let _workers = cluster.start_workers(2, TAGS / 2).await;
    let gate = Arc::new(Semaphore::new(0));
    let large: Vec<String> = (0..TAGS).map(|tag| version(tag, 1).largest_blob()).collect();
    let of_old = RequestMatcher::kind(RequestType::BlobGet)
        .when(move |get| get.reference.as_ref().is_some_and(|blob| large.contains(blob)));
    let rule = source.on(of_old).always().act(FaultAction::Gate(gate.clone()));
    let config = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host());
    let run = cluster.imgsync(&config).args(["run", "--json", "--attempts", "1"]);
    let moving = async {
        source.wait_until(|_| rule.hits() >= TAGS as u64, WAIT_TIMEOUT).await;
        for tag in 0..TAGS {
            let old = version(tag, 1);
            old.manifests.keys().for_each(|digest| source.delete_manifest("a", digest));
            old.blobs.keys().for_each(|digest| source.delete_blob("a", digest));
            source.push("a", &format!("v{tag}"), &version(tag, 2));
        }
        gate.add_permits(1000);
    };
    let (ended, ()) = tokio::join!(run.run(), moving);
    let json = ended.assert_code(0).json();
    assert_eq!(number(&json, "/counts/copied"), TAGS as u64, "{json}");
    (0..TAGS).for_each(|tag| target.assert_holds("m/a", &format!("v{tag}"), &version(tag, 2)));
    target.assert_tags_complete();
    // The cache has the current digests.
    let json = cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(number(&json, "/counts/unchanged"), TAGS as u64, "{json}");
}
