//! Registries that stop responding and keep the connection open.

use imgsync_tests::fault::{Bearer, FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};

const MIB: u64 = 1 << 20;

async fn sync(source: &FaultRegistry, target: &FaultRegistry) -> Output {
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    Imgsync::new()
        .args(["sync", &from, &to, "--json", "--retry-delay", "10ms", "--stall-timeout", "500ms", "--attempts", "3"])
        .run()
        .await
}

#[tokio::test]
async fn a_stream_that_stops_is_given_up_after_the_stall_limit_and_resumed() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("stalls", 16 * MIB);
    source.push("a", "1", &image);
    source
        .on(RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob()))
        .times(2)
        .act(FaultAction::StallAfter { bytes: 5 * MIB });
    sync(&source, &target).await.assert_code(0);
    target.assert_holds("b", "1", &image);
}

#[tokio::test]
async fn a_target_that_takes_no_more_bytes_is_given_up_and_resumed() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("target-stalls", 32 * MIB);
    source.push("a", "1", &image);
    let large = RequestMatcher::kind(RequestType::UploadPut).when(|request| {
        request.header("content-length").and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > MIB)
    });
    target.on(large).act(FaultAction::StallUploadAfter { bytes: 4 * MIB });
    sync(&source, &target).await.assert_code(0);
    target.assert_holds("b", "1", &image);
}

#[tokio::test]
async fn a_slow_blob_is_not_a_stalled_one() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("slow", MIB + MIB / 2);
    source.push("a", "1", &image);
    source.on(RequestType::BlobGet).always().act(FaultAction::Throttle { bytes_per_second: MIB });
    let output = sync(&source, &target).await.assert_code(0).json();
    assert_eq!(output["traffic"]["source"]["retries"], 0);
    target.assert_holds("b", "1", &image);
}

#[tokio::test]
async fn a_registry_that_never_answers_ends_with_what_was_tried_and_how_often() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("mute"));
    source.on(RequestType::ManifestGet).always().act(FaultAction::StallForever);
    let output = sync(&source, &target).await.assert_code(1);
    assert_eq!(output.json()["kind"], "timed_out");
    assert_eq!(output.json()["attempts"], 3);
    let host = source.host();
    assert!(
        output.stderr.contains(&format!("reading {host}/a:1: no response within 0.5 s (failed 3 times")),
        "{output:?}"
    );
}

#[tokio::test]
async fn a_token_service_that_never_answers_ends_too() {
    let source = FaultRegistry::builder().bearer(Bearer::anonymous()).start().await;
    let target = FaultRegistry::start().await;
    source.push("a", "1", &images::single("mute-realm"));
    source.on(RequestType::Token).always().act(FaultAction::StallForever);
    let output = sync(&source, &target).await.assert_code(1);
    assert_eq!(output.json()["kind"], "timed_out");
    assert!(output.stderr.contains("getting a token"), "{}", output.stderr);
}

#[tokio::test]
async fn the_time_that_was_allowed_ends_a_copy_and_leaves_no_tag() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::big("too-slow", 64 * MIB));
    source.on(RequestType::BlobGet).always().act(FaultAction::Throttle { bytes_per_second: MIB });
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let output = Imgsync::new().args(["sync", &from, &to, "--json", "--timeout", "1s"]).run().await.assert_code(1);
    assert_eq!(output.json()["kind"], "timed_out");
    assert!(output.stderr.contains("--timeout"), "{}", output.stderr);
    assert!(target.tags("b").is_empty());
    assert_eq!(target.open_uploads(), 0);
}
