//! Bytes, sizes and digests that do not match: none of it is ever committed at the target.

use bytes::Bytes;
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Output};

const MIB: u64 = 1 << 20;

async fn sync(source: &FaultRegistry, target: &FaultRegistry) -> Output {
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    Imgsync::new().args(["sync", &from, &to, "--json", "--retry-delay", "10ms"]).run().await
}

fn assert_nothing_was_tagged(target: &FaultRegistry) {
    assert!(target.tags("b").is_empty());
    assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
}

#[tokio::test]
async fn a_corrupt_blob_is_never_committed() {
    for size in [300_000, 8 * MIB] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::big("corrupt", size);
        let blob = image.largest_blob();
        source.push("a", "1", &image);
        source
            .on(RequestMatcher::kind(RequestType::BlobGet).reference(&blob))
            .always()
            .act(FaultAction::Corrupt { at: size - 1 });
        let output = sync(&source, &target).await.assert_code(1);
        assert_eq!(output.json()["kind"], "corrupt");
        assert!(output.stderr.contains(&blob) && output.stderr.contains(&source.host()), "{}", output.stderr);
        assert!(!target.has_blob("b", &blob));
        // The client ends the upload before the registry has all bytes and could reject them.
        let whole = target.count_where(|request| request.kind == RequestType::UploadPut && request.received >= size);
        assert_eq!(whole, 0, "{}", target.describe_requests());
        assert_nothing_was_tagged(&target);
    }
}

#[tokio::test]
async fn a_byte_corrupted_in_transit_once_is_repaired_by_reading_again() {
    for size in [300_000, 8 * MIB] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::big("flipped", size);
        source.push("a", "1", &image);
        source
            .on(RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob()))
            .act(FaultAction::Corrupt { at: size / 2 });
        source.on(RequestType::ManifestGet).act(FaultAction::Corrupt { at: 30 });
        sync(&source, &target).await.assert_code(0);
        target.assert_holds("b", "1", &image);
    }
}

#[tokio::test]
async fn a_blob_that_is_longer_or_shorter_than_its_manifest_says_is_refused() {
    for (size, said) in [(300_000u64, 300_001u64), (300_000, 299_999), (4 * MIB, 4 * MIB + 1), (4 * MIB, 4 * MIB - 1)] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::big("sizes", size);
        let blob = image.largest_blob();
        source.push("a", "1", &image);
        let text = String::from_utf8(image.root_manifest().bytes.to_vec()).unwrap();
        let lying = text.replace(&format!("\"size\": {size}"), &format!("\"size\": {said}"));
        assert_ne!(text, lying);
        source.on(RequestType::ManifestGet).always().act_all([
            FaultAction::ReplaceBody(Bytes::from(lying)),
            FaultAction::RemoveHeader("docker-content-digest".into()),
        ]);
        let output = sync(&source, &target).await.assert_code(1);
        assert_eq!(output.json()["kind"], "corrupt", "{said}: {output:?}");
        assert!(output.stderr.contains(&said.to_string()), "{}", output.stderr);
        assert!(!target.has_blob("b", &blob));
        assert_nothing_was_tagged(&target);
    }
}

#[tokio::test]
async fn a_manifest_that_is_not_the_one_asked_for_is_refused() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (image, other) = (images::single("asked"), images::single("given"));
    source.push("a", "1", &image);
    source.on(RequestType::ManifestGet).always().act(FaultAction::ReplaceBody(other.root_manifest().bytes.clone()));
    let (from, to) = (format!("{}/a@{}", source.host(), image.root), format!("{}/b:1", target.host()));
    let output = Imgsync::new().args(["sync", &from, &to, "--json"]).run().await.assert_code(1);
    assert_eq!(output.json()["kind"], "corrupt");
    assert!(output.stderr.contains(&image.root) && output.stderr.contains(&other.root), "{}", output.stderr);
    assert_nothing_was_tagged(&target);
}

#[tokio::test]
async fn a_digest_header_is_not_believed_over_the_bytes() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("header");
    source.push("a", "1", &image);
    let lie = images::single("other").root;
    source
        .on(RequestType::ManifestGet)
        .always()
        .act(FaultAction::SetHeader("docker-content-digest".into(), lie.clone()));
    let output = sync(&source, &target).await.assert_code(1);
    assert_eq!(output.json()["kind"], "corrupt");
    assert_nothing_was_tagged(&target);
}

#[tokio::test]
async fn a_registry_that_gives_no_digests_is_copied_from_and_to_all_the_same() {
    let (source, target) = tokio::join!(
        FaultRegistry::builder().without_digest_header().start(),
        FaultRegistry::builder().without_digest_header().start()
    );
    let image = images::multi_platform("no-digests");
    source.push("a", "1", &image);
    sync(&source, &target).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(sync(&source, &target).await.assert_code(0).json()["outcome"], "unchanged");
}

#[tokio::test]
async fn a_manifest_of_100_mib_is_refused_and_not_held_in_memory() {
    for announced in [true, false] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &images::single("huge"));
        source.on(RequestType::ManifestGet).always().act(FaultAction::BigBody { mib: 100, announced });
        let output = sync(&source, &target).await.assert_code(1);
        assert!(output.stderr.contains("larger than 8 MiB"), "{}", output.stderr);
        assert!(output.peak_rss_bytes < 64 * MIB, "{} MiB", output.peak_rss_bytes / MIB);
        assert_nothing_was_tagged(&target);
    }
}

#[tokio::test]
async fn what_is_no_manifest_is_named_with_its_place() {
    for (body, words) in [
        ("<html>hello</html>", "cannot be parsed"),
        ("{}", "unknown manifest type"),
        (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
        (
            r#"{"schemaVersion":2,"config":{"digest":"sha256:../../etc/passwd","size":1},"layers":[]}"#,
            "cannot be parsed",
        ),
    ] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &images::single("odd"));
        source.on(RequestType::ManifestGet).always().act_all([
            FaultAction::ReplaceBody(Bytes::from_static(body.as_bytes())),
            FaultAction::RemoveHeader("docker-content-digest".into()),
        ]);
        let output = sync(&source, &target).await.assert_code(1);
        assert!(
            output.stderr.contains(words) && output.stderr.contains(&format!("{}/a:1", source.host())),
            "{output:?}"
        );
        assert_nothing_was_tagged(&target);
    }
}

#[tokio::test]
async fn a_blob_that_the_source_lost_fails_the_image_and_names_it() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = TestImage::single("lost").layers(3, 5000).build();
    source.push("a", "1", &image);
    source.delete_blob("a", &image.layers()[1]);
    let output = sync(&source, &target).await.assert_code(1);
    assert_eq!(output.json()["kind"], "not_found");
    assert!(output.stderr.contains(&image.layers()[1]), "{}", output.stderr);
    assert_nothing_was_tagged(&target);
}

#[tokio::test]
async fn a_session_whose_answer_comes_after_a_neighbour_has_failed_is_cancelled() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = TestImage::single("late-session").layers(3, 5000).build();
    source.push("a", "1", &image);
    let (lost, late) = (image.layers()[0].clone(), image.layers()[1].clone());
    source.delete_blob("a", &lost);
    // The neighbour fails while the target has opened a session for this blob but has not responded yet.
    let asked = RequestMatcher::kind(RequestType::UploadMount)
        .when(move |request| request.parameter("mount").as_ref() == Some(&late));
    target.on(asked).act(FaultAction::Delay(std::time::Duration::from_millis(100)));
    let unanswered = RequestMatcher::kind(RequestType::BlobGet).reference(&lost);
    source.on(unanswered).act(FaultAction::Delay(std::time::Duration::from_millis(50)));
    sync(&source, &target).await.assert_code(1);
    assert_nothing_was_tagged(&target);
}

#[tokio::test]
async fn a_target_that_refuses_the_manifest_is_quoted() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("refused"));
    target.on(RequestType::ManifestPut).always().act(FaultAction::Status {
        code: 400,
        headers: vec![("content-type".into(), "application/json".into())],
        body: Bytes::from_static(br#"{"errors":[{"code":"MANIFEST_INVALID","message":"no \u001b[31mthanks"}]}"#),
    });
    let output = sync(&source, &target).await.assert_code(1);
    assert_eq!(output.json()["kind"], "refused");
    assert!(output.stderr.contains("MANIFEST_INVALID") && output.stderr.contains("thanks"), "{}", output.stderr);
    assert!(!output.stderr.contains('\u{1b}'), "control characters reach no terminal");
    assert_eq!(target.count(RequestType::ManifestPut), 1, "what is final is not tried again");
}
