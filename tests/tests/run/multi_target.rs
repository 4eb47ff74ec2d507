//! One image to several registries: shared content is read once.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RecordedRequest, RequestMatcher, RequestType};
use imgsync_tests::images::{Layer, TestImage};
use tokio::sync::Semaphore;

use super::end_to_end::{configured, run};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Counts the reads of a blob, in total and from its beginning.
fn reads(source: &FaultRegistry, blob: &str) -> (usize, usize) {
    let gets = source.requests_of_kind(RequestType::BlobGet);
    let its: Vec<&RecordedRequest> = gets.iter().filter(|get| get.reference.as_deref() == Some(blob)).collect();
    (its.len(), its.iter().filter(|get| get.header("range").is_none()).count())
}

#[tokio::test]
async fn each_blob_is_read_once_for_two_registries() {
    let (source, one, two) = tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    let image = TestImage::single("for-two").layer(Layer::Synthetic(5 << 20)).layer(Layer::Synthetic(3 << 20));
    let image = image.layers(3, 2000).build();
    source.push("a", "1", &image);
    let program = configured(&format!(
        "rules:\n- {{from: {}/a, to: [{}/m, {}/m], naming: keep}}\n",
        source.host(),
        one.host(),
        two.host()
    ));
    let output = run(&program, &["--events"]).await.assert_code(0);
    for target in [&one, &two] {
        target.assert_holds("m/a", "1", &image);
    }
    for blob in image.blobs.keys() {
        assert_eq!(reads(&source, blob), (1, 1), "{blob}\n{}", source.describe_requests());
    }
    // The result shows it: both targets were written, and the source was read once for both.
    let events: Vec<serde_json::Value> =
        output.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let sum = |field: &str| -> u64 {
        events.iter().filter(|event| event["event"] == "copied").filter_map(|event| event[field].as_u64()).sum()
    };
    assert_eq!((sum("bytes"), sum("read")), (2 * image.blob_bytes(), image.blob_bytes()), "{}", output.stdout);
}

#[tokio::test]
async fn a_target_that_takes_nothing_does_not_keep_the_other_from_its_end() {
    let (source, quick, stuck) = tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    let image = TestImage::single("for-one-and-another").layer(Layer::Synthetic(24 << 20)).build();
    source.push("a", "1", &image);
    let gate = Arc::new(Semaphore::new(0));
    let blob = image.largest_blob();
    let of_the_blob =
        RequestMatcher::kind(RequestType::UploadPut).when(move |put| put.reference.as_deref() == Some(&*blob));
    stuck.on(of_the_blob).always().act(FaultAction::Gate(gate.clone()));
    let program = configured(&format!(
        "rules:\n- {{from: {}/a, to: [{}/m, {}/m], naming: keep}}\n",
        source.host(),
        quick.host(),
        stuck.host()
    ));
    let later = async {
        quick.wait_until(|quick| quick.tag_digest("m/a", "1").is_some(), WAIT_TIMEOUT).await;
        assert_eq!(stuck.tag_digest("m/a", "1"), None);
        gate.add_permits(1000);
    };
    let (output, ()) = tokio::join!(run(&program, &[]), later);
    output.assert_code(0);
    quick.assert_holds("m/a", "1", &image);
    stuck.assert_holds("m/a", "1", &image);
    let (all, from_the_beginning) = reads(&source, &image.largest_blob());
    assert!(all <= 2, "read again from where it was left: {}", source.describe_requests());
    assert_eq!(from_the_beginning, 1, "{}", source.describe_requests());
}
