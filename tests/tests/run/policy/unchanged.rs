//! Images that are at the target already, tags that move, and pruning.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::signing::CosignKey;
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;
use tokio::sync::Semaphore;

use super::{assert_refused, counts, rule, sign, signed_rule};
use crate::end_to_end::run;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Replaces the configuration of a program, which keeps its state.
fn reconfigure(program: &Imgsync, source: &FaultRegistry, target: &FaultRegistry, more: &str) {
    let (source, target) = (source.host(), target.host());
    let yaml = format!("rules:\n- {{from: {source}/app, to: {target}/m, naming: keep{more}}}\n");
    program.file("imgsync.yaml", yaml);
}

/// Counts requests of a source for signatures and other referrers.
fn signature_requests(source: &FaultRegistry) -> usize {
    source.referrer_requests().len()
}

#[tokio::test]
async fn an_image_at_the_target_is_checked_once_for_each_policy() {
    for google in [false, true] {
        let builder = || if google { FaultRegistry::builder().google() } else { FaultRegistry::builder() };
        let (source, target) = tokio::join!(builder().start(), builder().start());
        let (key, other) = (CosignKey::new(), CosignKey::new());
        let all = ["1", "2", "3"].map(|tag| {
            let image = images::single(&format!("policy-unchanged-{tag}"));
            source.push("app", tag, &image);
            image
        });
        let program = rule(&source.host(), &target.host(), &[("cosign.pub", &key), ("other.pub", &other)], "");
        assert_eq!(counts(&run(&program, &[]).await.assert_code(0).json()), (3, 0, 0));
        // A policy is added, which none of them satisfies.
        reconfigure(&program, &source, &target, ", policy: {signed: {keys: cosign.pub}}");
        for _ in 0..2 {
            let json = run(&program, &[]).await.assert_code(1).json();
            assert_eq!(counts(&json), (0, 0, 3), "{json:#}");
            assert_refused(&json, "1", "no signature");
        }
        all.iter().for_each(|image| sign(&source, image, &key));
        let json = run(&program, &[]).await.assert_code(0).json();
        assert_eq!(counts(&json).2, 0, "{json:#}");
        for (tag, image) in ["1", "2", "3"].into_iter().zip(&all) {
            target.assert_holds("m/app", tag, image);
        }
        // Accepted: nothing is asked again, not even by a verification in between.
        source.clear_requests();
        assert_eq!(counts(&run(&program, &[]).await.assert_code(0).json()), (0, 3, 0));
        assert_eq!(signature_requests(&source), 0, "{}", source.describe_requests());
        // Another key is another policy.
        reconfigure(&program, &source, &target, ", policy: {signed: {keys: other.pub}}");
        assert_eq!(counts(&run(&program, &[]).await.assert_code(1).json()), (0, 0, 3));
        // A verification records nothing that a policy would rest on.
        let file = program.work_dir().join("imgsync.yaml");
        program.again().args(["verify", "-c"]).arg(&file).run().await.assert_code(0);
        assert_eq!(counts(&run(&program, &[]).await.assert_code(1).json()), (0, 0, 3));
        // The first policy still holds for what it accepted.
        reconfigure(&program, &source, &target, ", policy: {signed: {keys: cosign.pub}}");
        source.clear_requests();
        assert_eq!(counts(&run(&program, &[]).await.assert_code(0).json()), (0, 3, 0));
        assert_eq!(signature_requests(&source), 0, "{}", source.describe_requests());
        // The key itself counts, not the name of its file.
        program.file("cosign.pub", other.public());
        assert_eq!(counts(&run(&program, &[]).await.assert_code(1).json()), (0, 0, 3));
    }
}

#[tokio::test]
async fn a_tag_that_moves_during_the_check_or_the_copy_never_brings_an_unsigned_image() {
    let key = CosignKey::new();
    // During the check: the payload of the signature. During the copy: the largest layer.
    for during_check in [true, false] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let signed = TestImage::single("policy-moving-signed").layers(2, 3000).build();
        let unsigned = TestImage::single("policy-moving-unsigned").layers(2, 3000).build();
        source.push("app", "1", &signed);
        sign(&source, &signed, &key);
        source.push_untagged("app", &unsigned);
        let program = signed_rule(&source.host(), &target.host(), &key);
        let gate = Arc::new(Semaphore::new(0));
        let blob = if during_check { payload_digest(&source, &signed) } else { signed.largest_blob() };
        let reads_blob = RequestMatcher::kind(RequestType::BlobGet).when(move |request| request.path.ends_with(&blob));
        let held = source.on(reads_blob).times(1).act(FaultAction::Gate(gate.clone()));
        let moves = async {
            source.wait_until(|_| held.hits() > 0, WAIT_TIMEOUT).await;
            source.move_tag("app", "1", &unsigned.root);
            gate.add_permits(1);
        };
        let (output, ()) = tokio::join!(run(&program, &[]), moves);
        assert_eq!(counts(&output.assert_code(0).json()), (1, 0, 0), "{during_check}");
        target.assert_holds("m/app", "1", &signed);
        // The next run finds the moved tag, and refuses it.
        let json = run(&program, &[]).await.assert_code(1).json();
        assert_refused(&json, "1", "no signature");
        target.assert_holds("m/app", "1", &signed);
        assert!(target.manifest("m/app", &unsigned.root).is_none());
    }
}

/// Returns the digest of the signed payload of an image.
fn payload_digest(source: &FaultRegistry, image: &TestImage) -> String {
    let manifest = source.manifest("app", &image.digest_tag("sig")).unwrap().json();
    manifest["layers"][0]["digest"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_tag_whose_old_image_is_deleted_during_the_copy_is_checked_again() {
    let key = CosignKey::new();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let signed = images::multi_platform("policy-deleted-signed");
    let unsigned = images::multi_platform("policy-deleted-unsigned");
    source.push("app", "1", &signed);
    sign(&source, &signed, &key);
    source.push_untagged("app", &unsigned);
    // A child of the old image is gone when it is read, and the tag is at another image.
    let child = signed.children()[0].clone();
    let gate = Arc::new(Semaphore::new(0));
    let reads_child = RequestMatcher::kind(RequestType::ManifestGet).reference(&child);
    let held = source.on(reads_child).times(1).act(FaultAction::Gate(gate.clone()));
    let program = signed_rule(&source.host(), &target.host(), &key);
    let moves = async {
        source.wait_until(|_| held.hits() > 0, WAIT_TIMEOUT).await;
        source.move_tag("app", "1", &unsigned.root);
        source.delete_manifest("app", &signed.root);
        source.delete_manifest("app", &child);
        gate.add_permits(1);
    };
    let (output, ()) = tokio::join!(run(&program, &[]), moves);
    assert_refused(&output.assert_code(1).json(), "1", "no signature");
    assert_eq!(target.tag_digest("m/app", "1"), None);
    assert!(target.manifest("m/app", &unsigned.root).is_none());
}

#[tokio::test]
async fn pruning_leaves_what_was_refused_and_removes_what_is_gone() {
    let key = CosignKey::new();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let signed = ["1", "2", "3"].map(|tag| {
        let image = images::single(&format!("policy-prune-{tag}"));
        source.push("app", tag, &image);
        sign(&source, &image, &key);
        image
    });
    let more = "policy: {signed: {keys: cosign.pub}}, prune: {keep_days: 0, limit: 100%}";
    let program = rule(&source.host(), &target.host(), &[("cosign.pub", &key)], more);
    assert_eq!(counts(&run(&program, &[]).await.assert_code(0).json()), (3, 0, 0));
    // One tag is gone, one has moved to an image that is refused.
    source.delete_tag("app", "2");
    source.push("app", "1", &images::single("policy-prune-unsigned"));
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_refused(&json, "1", "no signature");
    assert_eq!(counts(&json), (0, 1, 1), "{json:#}");
    target.assert_holds("m/app", "1", &signed[0]);
    target.assert_holds("m/app", "3", &signed[2]);
    assert_eq!(target.tag_digest("m/app", "2"), None, "{json:#}");
}

#[tokio::test]
async fn an_image_that_grows_old_at_the_target_is_not_refused_whatever_is_known_of_it() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    // Made in 2024.
    let old = images::multi_platform("policy-aged");
    source.push("app", "1", &old);
    let program = rule(&source.host(), &target.host(), &[], "");
    assert_eq!(counts(&run(&program, &[]).await.assert_code(0).json()), (1, 0, 0));
    // A policy that has not seen it, with what the run before has recorded and with nothing recorded.
    reconfigure(&program, &source, &target, ", policy: {max_age: 90d}");
    run(&program, &["--dry-run"]).await.assert_code(0);
    assert_eq!(counts(&run(&program, &[]).await.assert_code(0).json()), (0, 1, 0));
    let fresh = rule(&source.host(), &target.host(), &[], "policy: {max_age: 90d}");
    run(&fresh, &["--dry-run"]).await.assert_code(0);
    assert_eq!(counts(&run(&fresh, &[]).await.assert_code(0).json()), (0, 1, 0));
    // What is copied now must not be old, also under a tag that is there, and when the image is sent again.
    source.push("app", "2", &old);
    source.push("app", "1", &images::single("policy-aged-other"));
    let json = run(&fresh, &[]).await.assert_code(1).json();
    assert_eq!(counts(&json), (0, 0, 2), "{json:#}");
    assert_refused(&json, "1", "`max_age`: it was created at 2024-01-01T00:00:00Z");
    assert_refused(&json, "2", "`max_age`: linux/");
    target.assert_holds("m/app", "1", &old);
}
