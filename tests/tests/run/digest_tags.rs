//! Digest tags and referrers in runs: not listed as tags, free when unchanged, and copied when new.

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;
use serde_json::{Value, json};

use super::end_to_end::{assert_adds_up, configured, run};

fn rule(source: &FaultRegistry, target: &FaultRegistry, more: &str) -> Imgsync {
    configured(&format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep{more}}}\n", source.host(), target.host()))
}

async fn counts(program: &Imgsync) -> (u64, u64, u64) {
    let json = run(program, &[]).await.json();
    assert_adds_up(&json);
    let count = |name: &str| json["counts"][name].as_u64().unwrap();
    (count("copied"), count("unchanged"), count("failed"))
}

/// Pushes this many images of two platforms; the first is signed.
fn fill(source: &FaultRegistry, number: usize) -> Vec<TestImage> {
    let images: Vec<TestImage> = (0..number).map(|n| images::multi_platform(&format!("company-{n}"))).collect();
    for (n, image) in images.iter().enumerate() {
        source.push("a", &format!("v{n}"), image);
    }
    source.push("a", &images[0].digest_tag("sig"), &images::cosign("company-sig"));
    images
}

#[tokio::test]
async fn digest_tags_are_not_copied_as_tags_and_an_unchanged_run_requests_nothing_for_them() {
    for google in [false, true] {
        let builder = FaultRegistry::builder();
        let source = if google { builder.google() } else { builder }.start().await;
        let target = FaultRegistry::builder().without_referrers().start().await;
        let images = fill(&source, 3);
        let attested = images::referrer("company-attested", &images[1]);
        source.push_untagged("a", &attested);
        let program = rule(&source, &target, "");
        assert_eq!(counts(&program).await, (3, 0, 0), "three tags, and what belongs to them");
        let sig = images[0].digest_tag("sig");
        target.assert_holds("m/a", &sig, &images::cosign("company-sig"));
        target.assert_holds_untagged("m/a", &attested);
        for (n, image) in images.iter().enumerate() {
            target.assert_holds("m/a", &format!("v{n}"), image);
        }

        source.clear_requests();
        target.clear_requests();
        assert_eq!(counts(&program).await, (0, 3, 0));
        assert_eq!(source.referrer_requests().len(), 0, "{}", source.describe_requests());
        assert_eq!(target.referrer_requests().len(), 0, "{}", target.describe_requests());
        assert_eq!(source.total(), if google { 1 } else { 1 + 3 }, "{}", source.describe_requests());
        assert_eq!(target.total(), 1, "the handful: {}", target.describe_requests());
    }
}

#[tokio::test]
async fn a_signature_that_a_listing_shows_comes_with_the_next_run_and_costs_the_others_nothing() {
    for google in [false, true] {
        let builder = FaultRegistry::builder();
        let source = if google { builder.google() } else { builder }.start().await;
        let target = FaultRegistry::start().await;
        let images = fill(&source, 4);
        let program = rule(&source, &target, "");
        counts(&program).await;
        let new = images::cosign("company-new");
        source.push("a", &images[2].digest_tag("att"), &new);
        source.clear_requests();
        assert_eq!(counts(&program).await, (1, 3, 0), "what was signed counts as copied");
        target.assert_holds("m/a", &images[2].digest_tag("att"), &new);
        let asked = source.referrer_requests();
        let about_others = asked.iter().filter(|request| {
            let stems = [0, 1, 3].map(|n: usize| images[n].digest_tag(""));
            stems.iter().any(|stem| request.path.contains(stem) || request.path.contains(&stem.replace('-', ":")))
        });
        assert_eq!(about_others.count(), 0, "{}", source.describe_requests());
        // Known now, so nothing is requested.
        source.clear_requests();
        assert_eq!(counts(&program).await, (0, 4, 0));
        assert_eq!(source.referrer_requests().len(), 0, "{}", source.describe_requests());
        if google {
            // Its digest shows that it has changed.
            let signed_again = images::cosign("company-newer");
            source.push("a", &images[2].digest_tag("att"), &signed_again);
            assert_eq!(counts(&program).await, (1, 3, 0));
            target.assert_holds("m/a", &images[2].digest_tag("att"), &signed_again);
        }
    }
}

#[tokio::test]
async fn what_only_the_api_shows_arrives_within_the_time_that_was_set() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let images = fill(&source, 2);
    let program = rule(&source, &target, "");
    counts(&program).await;
    let arm64 = images[1].subtree(&images[1].children()[1]);
    let late = images::referrer("company-late", &arm64);
    source.push_untagged("a", &late);
    assert_eq!(counts(&program).await, (0, 2, 0), "a week has not gone by");
    assert!(target.manifest("m/a", &late.root).is_none());
    // With another interval, each run checks the images that are due.
    let rule = format!("- {{from: {}/a, to: {}/m, naming: keep, referrers_every: 1s}}", source.host(), target.host());
    program.file("imgsync.yaml", format!("rules:\n{rule}\n"));
    let mut arrived = 0;
    for _ in 0..60 {
        arrived += counts(&program).await.0;
        if arrived > 0 {
            break;
        }
    }
    assert_eq!(arrived, 1);
    target.assert_holds_untagged("m/a", &late);
}

#[tokio::test]
async fn none_are_wanted_and_none_are_asked_for() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    fill(&source, 2);
    let program = rule(&source, &target, ", referrers: false");
    assert_eq!(counts(&program).await, (2, 0, 0));
    assert_eq!((source.referrer_requests().len(), target.referrer_requests().len()), (0, 0));
    assert_eq!(target.tags("m/a"), ["v0", "v1"]);
    // Enabled later: images copied without them are checked then.
    let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host());
    program.file("imgsync.yaml", rule);
    assert_eq!(counts(&program).await, (1, 1, 0));
    assert_eq!(target.tags("m/a").len(), 3);
}

#[tokio::test]
async fn platforms_make_a_smaller_index_and_choosing_otherwise_copies_again() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let child = |platform: &str| TestImage::single("chosen").platform(platform).layers(1, 1000).build();
    let (amd64, arm64, s390x) = (child("linux/amd64"), child("linux/arm64/v8"), child("linux/s390x"));
    let index = TestImage::index("chosen").child(&amd64, "linux/amd64").child(&arm64, "linux/arm64/v8");
    let image = index.child(&s390x, "linux/s390x").attestation(&images::artifact("chosen-about"), &amd64).build();
    source.push("a", "1", &image);
    let program = configured("");
    let choose = async |more: &str| {
        let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep{more}}}\n", source.host(), target.host());
        program.file("imgsync.yaml", rule);
        let output = run(&program, &[]).await;
        (output.json(), target.manifest("m/a", "1").map(|manifest| images::children(&manifest.json())))
    };
    let about = images::artifact("chosen-about").root;
    let (json, children) = choose(", platforms: [linux/amd64, linux/arm64/v8]").await;
    assert_eq!(json["counts"]["copied"], 1, "{json}");
    assert_eq!(children.unwrap(), [amd64.root.clone(), arm64.root.clone(), about.clone()]);
    assert_eq!(target.manifest("m/a", &s390x.root), None);
    assert_eq!(choose(", platforms: [linux/amd64, linux/arm64/v8]").await.0["counts"]["unchanged"], 1);

    let (json, children) = choose(", platforms: [linux/s390x]").await;
    assert_eq!(json["counts"]["copied"], 1, "another choice: {json}");
    assert_eq!(children.unwrap(), std::slice::from_ref(&s390x.root));
    let (json, _) = choose("").await;
    assert_eq!(json["counts"]["copied"], 1, "no choice any more: {json}");
    target.assert_holds("m/a", "1", &image);

    let (json, _) = choose(", platforms: [linux/amd64, linux/riscv64]").await;
    assert_eq!(json["failures"][0]["kind"], "unsupported", "{json}");
    let error = json["failures"][0]["error"].as_str().unwrap();
    assert!(error.contains("linux/riscv64") && error.contains("linux/amd64, linux/arm64/v8, linux/s390x"), "{error}");
    target.assert_holds("m/a", "1", &image);
}

#[tokio::test]
async fn a_sparse_index_keeps_its_digest_and_is_made_whole_when_all_is_wanted() {
    let (source, target) =
        tokio::join!(FaultRegistry::start(), async { FaultRegistry::builder().lenient().start().await });
    let image = images::multi_platform("sparse");
    let [amd64, arm64] = [0, 1].map(|n: usize| image.subtree(&image.children()[n]));
    source.push("a", "1", &image);
    source.push("a", &image.digest_tag("sig"), &images::cosign("sparse-sig"));
    let program = configured("");
    let choose = async |more: &str| {
        let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep{more}}}\n", source.host(), target.host());
        program.file("imgsync.yaml", rule);
        run(&program, &[]).await.assert_code(0).json()["counts"].clone()
    };
    assert_eq!(choose(", platforms: linux/amd64, sparse: true").await["copied"], 1);
    assert_eq!(target.tag_digest("m/a", "1"), Some(image.root.clone()), "the digest is the source's");
    target.assert_holds_untagged("m/a", &amd64);
    assert_eq!(target.manifest("m/a", &arm64.root), None);
    assert!(target.tag_digest("m/a", &image.digest_tag("sig")).is_some(), "its signature holds");
    assert_eq!(choose(", platforms: linux/amd64, sparse: true").await["unchanged"], 1);

    assert_eq!(choose(", platforms: [linux/amd64, linux/arm64], sparse: true").await["copied"], 1);
    target.assert_holds("m/a", "1", &image);
    // From a sparse to the complete index, where the tag already has the source's digest.
    target.delete_repository("m/a");
    target.push_untagged("m/a", &amd64);
    target.push_manifest("m/a", &image.root, image.root_manifest().clone());
    target.move_tag("m/a", "1", &image.root);
    assert_eq!(choose("").await["copied"], 1);
    target.assert_holds("m/a", "1", &image);
    assert_eq!(choose("").await["unchanged"], 1);
}

#[tokio::test]
async fn a_target_that_takes_no_sparse_index_is_said_so() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::multi_platform("sparse-refused"));
    let output = run(&rule(&source, &target, ", platforms: linux/amd64, sparse: true"), &[]).await.assert_code(1);
    let failure = &output.json()["failures"][0];
    assert_eq!(failure["kind"], "refused", "{failure}");
    assert!(failure["error"].as_str().unwrap().contains("remove `sparse`"), "{failure}");
    assert_eq!(target.count(RequestType::ManifestPut), 3, "the child, and the index twice to be sure");
    assert_eq!(json!(null), target.tag_digest("m/a", "1").map_or(Value::Null, Value::from));
}
