//! Copying one platform of an index to a tag that already exists.

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Output};

async fn sync(source: &FaultRegistry, target: &FaultRegistry, from: &str) -> Output {
    let (from, to) = (format!("{}/{from}", source.host()), format!("{}/b:1", target.host()));
    Imgsync::new().args(["sync", &from, &to, "--json", "--platform", "linux/arm64"]).run().await
}

#[tokio::test]
async fn one_platform_replaces_the_whole_index_that_the_target_has() {
    for by_digest in [false, true] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::multi_platform("chosen");
        source.push("a", "1", &image);
        target.push("b", "1", &image);
        let from = if by_digest { format!("a@{}", image.root) } else { "a:1".to_owned() };
        assert_eq!(sync(&source, &target, &from).await.assert_code(0).json()["outcome"], "copied");
        let chosen = image.subtree(&image.children()[1]);
        target.assert_holds("b", "1", &chosen);
        // All content existed: one PUT.
        assert_eq!(source.count(RequestType::BlobGet), 0, "{}", source.describe_requests());
        target.clear_requests();
        assert_eq!(sync(&source, &target, &from).await.assert_code(0).json()["outcome"], "unchanged");
        assert_eq!(target.total(), 1, "{}", target.describe_requests());
    }
}

/// Builds an index of images without a platform, or with `unknown`.
fn unnamed(name: &str, unknown: bool) -> TestImage {
    let image = |n: u32| images::single(&format!("{name}/{n}"));
    match unknown {
        true => TestImage::index(name).child(&image(1), "unknown/unknown").child(&image(2), "unknown/unknown").build(),
        false => TestImage::index(name).bare_child(&image(1)).bare_child(&image(2)).build(),
    }
}

#[tokio::test]
async fn an_index_that_names_no_platform_is_said_to_and_what_it_has_is_shown() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for unknown in [false, true] {
        let image = unnamed("unnamed", unknown);
        source.push("a", "1", &image);
        let output = sync(&source, &target, "a:1").await.assert_code(1);
        assert!(output.stderr.contains("2 entries with no platform"), "{}", output.stderr);
        assert!(image.children().iter().all(|child| output.stderr.contains(child)), "{}", output.stderr);
    }
    // Next to platforms, and for an index with attestations only.
    let (amd64, bare) = (images::single("amd64"), images::single("bare"));
    let mixed =
        TestImage::index("mixed").child(&amd64, "linux/amd64").bare_child(&bare).child(&amd64, "linux/amd64").build();
    source.push("a", "2", &mixed);
    let output = sync(&source, &target, "a:2").await.assert_code(1);
    assert!(output.stderr.contains("available: linux/amd64, and 1 entry with no platform"), "{}", output.stderr);
    let attested = TestImage::index("attested").attestation(&images::single("attestation"), &amd64).build();
    source.push("a", "3", &attested);
    let output = sync(&source, &target, "a:3").await.assert_code(1);
    assert!(output.stderr.contains("available: 1 attestation"), "{}", output.stderr);
    source.push("a", "4", &TestImage::index("empty").build());
    let output = sync(&source, &target, "a:4").await.assert_code(1);
    assert!(output.stderr.contains("the index is empty"), "{}", output.stderr);
    assert!(target.tags("b").is_empty());
}

#[tokio::test]
async fn an_entry_without_a_platform_is_not_left_out_silently() {
    for sparse in [false, true] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::builder().lenient().start());
        let (image, bare) = (images::single("named"), images::single("without"));
        let index = TestImage::index("mixed").child(&image, "linux/amd64").bare_child(&bare);
        source.push("a", "1", &index.attestation(&images::single("about"), &image).build());
        let program = Imgsync::new();
        program.file(
            "imgsync.yaml",
            format!(
                "rules:\n- {{from: {}/a, to: {}/m, naming: keep, platforms: [linux/amd64], sparse: {sparse}}}\n",
                source.host(),
                target.host()
            ),
        );
        let file = program.work_dir().join("imgsync.yaml");
        let output = program.again().args(["run", "-c"]).arg(file).run().await.assert_code(0);
        let said = format!("index entries without a platform are skipped: 1 ({} of type", bare.root);
        assert!(output.stderr.contains(&said), "{}", output.stderr);
        target.assert_holds_untagged("m/a", &image);
        assert!(target.manifest("m/a", &bare.root).is_none());
    }
}
