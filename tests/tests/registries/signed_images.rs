//! Signed images: referrers, their referrers, and cosign's digest tags are copied with the image.

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};
use imgsync_tests::skopeo::Skopeo;
use serde_json::{Value, json};

/// An image of two platforms with a BuildKit attestation, signed in every way.
pub(crate) struct SignedImage {
    pub(crate) image: TestImage,
    /// Referrers with their subjects: the index, one of its platforms, a signature.
    pub(crate) referrers: Vec<(TestImage, TestImage)>,
    /// cosign's digest tags of the index and of one platform.
    pub(crate) tagged: Vec<(String, TestImage)>,
}

impl SignedImage {
    pub(crate) fn new(name: &str) -> Self {
        let child = |platform: &str| TestImage::single(name).platform(platform).layers(2, 3000).build();
        let (amd64, arm64) = (child("linux/amd64"), child("linux/arm64"));
        let provenance = images::artifact(&format!("{name}/provenance"));
        let index = TestImage::index(name).child(&amd64, "linux/amd64").child(&arm64, "linux/arm64");
        let image = index.attestation(&provenance, &amd64).build();
        let signature = images::referrer(&format!("{name}/signature"), &image);
        let countersignature = images::referrer(&format!("{name}/countersignature"), &signature);
        let sbom = TestImage::single(&format!("{name}/sbom")).artifact("application/spdx+json").layers(1, 500);
        let sbom = sbom.subject(&arm64).build();
        let tagged = vec![
            (image.digest_tag("sig"), images::cosign(&format!("{name}/sig"))),
            (image.digest_tag("att"), images::cosign(&format!("{name}/att"))),
            (amd64.digest_tag("sbom"), images::cosign(&format!("{name}/child-sbom"))),
        ];
        let referrers = vec![(image.clone(), signature.clone()), (arm64, sbom), (signature, countersignature)];
        Self { image, referrers, tagged }
    }

    /// Pushes everything to a registry, with indexes under the fallback tags if that has no referrers API.
    pub(crate) fn push(&self, registry: &FaultRegistry, repository: &str, tag: &str, has_api: bool) {
        registry.push(repository, tag, &self.image);
        for (subject, referrer) in &self.referrers {
            registry.push_untagged(repository, referrer);
            if !has_api {
                push_referrers_index(registry, repository, subject, &[referrer]);
            }
        }
        for (tag, image) in &self.tagged {
            registry.push(repository, tag, image);
        }
    }

    pub(crate) fn assert_arrived(&self, target: &FaultRegistry, repository: &str, tag: &str, has_api: bool) {
        target.assert_holds(repository, tag, &self.image);
        target.assert_children_came_first();
        for (subject, referrer) in &self.referrers {
            target.assert_holds_untagged(repository, referrer);
            let index = target.manifest(repository, &subject.digest_tag(""));
            match has_api {
                true => assert!(index.is_none(), "where the registry keeps them, we do not"),
                false => assert_eq!(images::children(&index.unwrap().json()), std::slice::from_ref(&referrer.root)),
            }
        }
        for (tag, image) in &self.tagged {
            target.assert_holds(repository, tag, image);
        }
    }
}

/// Pushes an index of referrers under the fallback tag.
pub(crate) fn push_referrers_index(
    registry: &FaultRegistry,
    repository: &str,
    subject: &TestImage,
    referrers: &[&TestImage],
) {
    let descriptors: Vec<Value> = referrers.iter().map(|referrer| referrer.descriptor()).collect();
    let index = json!({"schemaVersion": 2, "mediaType": images::media::OCI_INDEX, "manifests": descriptors});
    let bytes = index.to_string();
    let digest = images::sha256(bytes.as_bytes());
    let manifest = images::TestManifest { media_type: images::media::OCI_INDEX.to_owned(), bytes: bytes.into() };
    registry.push_manifest(repository, &digest, manifest);
    registry.move_tag(repository, &subject.digest_tag(""), &digest);
}

pub(crate) async fn registry(has_api: bool) -> FaultRegistry {
    match has_api {
        true => FaultRegistry::start().await,
        false => FaultRegistry::builder().without_referrers().start().await,
    }
}

async fn sync(source: &FaultRegistry, target: &str, more: &[&str]) -> Output {
    let (from, to) = (format!("{}/a:1", source.host()), format!("{target}/b:1"));
    Imgsync::new().args(["sync", &from, &to, "--json", "--retry-delay", "1ms"]).args(more).run().await
}

#[tokio::test]
async fn a_signed_image_arrives_whole_whichever_end_has_the_api() {
    for (source_has, target_has) in [(true, true), (true, false), (false, true), (false, false)] {
        let (source, target) = tokio::join!(registry(source_has), registry(target_has));
        let signed = SignedImage::new("signed");
        signed.push(&source, "a", "1", source_has);
        let output = sync(&source, &target.host(), &[]).await.assert_code(0).json();
        assert_eq!(output["referrers"], 6, "{source_has} {target_has}: {output}");
        signed.assert_arrived(&target, "b", "1", target_has);
        // The tag came last: whoever sees it finds the signature.
        let puts = target.requests();
        let tag =
            puts.iter().rposition(|put| put.kind == RequestType::ManifestPut && put.reference.as_deref() == Some("1"));
        let last = puts.iter().rposition(|put| put.kind == RequestType::ManifestPut);
        assert_eq!(tag, last, "{}", target.describe_requests());

        // A second run writes nothing.
        target.clear_requests();
        let output = sync(&source, &target.host(), &[]).await.assert_code(0).json();
        assert_eq!((&output["outcome"], &output["referrers"]), (&json!("unchanged"), &json!(0)));
        assert!(target.requests().iter().all(|request| matches!(&*request.method, "HEAD" | "GET")));
    }
}

#[tokio::test]
async fn a_signed_image_arrives_whole_at_a_real_registry_without_the_api() {
    let (source, target) = tokio::join!(registry(true), DockerRegistry::start(DockerRegistryAuth::None));
    let signed = SignedImage::new("signed-real");
    signed.push(&source, "a", "1", true);
    sync(&source, &target.host(), &[]).await.assert_code(0);
    target.assert_holds("b", "1", &signed.image).await;
    for (subject, referrer) in &signed.referrers {
        target.assert_holds("b", &referrer.root, referrer).await;
        let raw = Skopeo::new().inspect_raw(&format!("{}/b:{}", target.host(), subject.digest_tag(""))).await;
        let index: Value = serde_json::from_slice(&raw.unwrap()).unwrap();
        assert_eq!(images::children(&index), std::slice::from_ref(&referrer.root));
        let kind = referrer.root_manifest().json()["artifactType"].clone();
        assert_eq!(index["manifests"][0]["artifactType"], kind);
    }
    for (tag, image) in &signed.tagged {
        target.assert_holds("b", tag, image).await;
    }
    // From there to a registry with the API, which lists the entries of the indexes.
    let modern = registry(true).await;
    let (from, to) = (format!("{}/b:1", target.host()), format!("{}/c:1", modern.host()));
    Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(0);
    signed.assert_arrived(&modern, "c", "1", true);
}

#[tokio::test]
async fn a_signed_image_goes_through_a_layout_and_comes_out_whole() {
    let (source, target) = tokio::join!(registry(false), registry(true));
    let signed = SignedImage::new("signed-layout");
    signed.push(&source, "a", "1", false);
    let folder = tempfile::tempdir().unwrap();
    let layout = format!("oci:{}", folder.path().display());
    Imgsync::new().args(["sync", &format!("{}/a:1", source.host()), &layout]).run().await.assert_code(0);
    // It counts as the only image of the layout: its referrers are not images of their own.
    Imgsync::new().args(["sync", &layout, &format!("{}/b:1", target.host())]).run().await.assert_code(0);
    signed.assert_arrived(&target, "b", "1", true);
}

#[tokio::test]
async fn only_the_types_that_are_wanted_come_along_or_none() {
    let signed = SignedImage::new("filtered");
    let source = registry(true).await;
    signed.push(&source, "a", "1", true);
    for (wanted, there) in [
        ("none", [false, false, false, false]),
        ("application/spdx+json", [false, true, false, false]),
        ("application/vnd.example.signature.v1", [true, false, true, false]),
        ("application/vnd.dev.cosign.simplesigning.v1+json,application/spdx+json", [false, true, false, true]),
    ] {
        let target = registry(true).await;
        source.clear_requests();
        sync(&source, &target.host(), &["--referrers", wanted]).await.assert_code(0);
        target.assert_holds("b", "1", &signed.image);
        let found: Vec<bool> = (signed.referrers.iter())
            .map(|(_, referrer)| target.manifest("b", &referrer.root).is_some())
            .chain([target.tag_digest("b", &signed.tagged[0].0).is_some()])
            .collect();
        assert_eq!(found, there, "{wanted}");
        if wanted == "none" {
            assert_eq!(source.referrer_requests().len(), 0, "{}", source.describe_requests());
        }
    }
}

#[tokio::test]
async fn what_is_signed_later_comes_with_the_next_sync() {
    let (source, target) = tokio::join!(registry(true), registry(false));
    let image = images::multi_platform("later");
    source.push("a", "1", &image);
    let first = sync(&source, &target.host(), &[]).await.assert_code(0).json();
    assert_eq!(first["referrers"], 0);
    let late = images::referrer("late", &image);
    source.push_untagged("a", &late);
    target.clear_requests();
    let second = sync(&source, &target.host(), &[]).await.assert_code(0).json();
    assert_eq!((&second["outcome"], &second["referrers"]), (&json!("copied"), &json!(1)), "{second}");
    target.assert_holds_untagged("b", &late);
    let index = target.manifest("b", &image.digest_tag("")).unwrap().json();
    assert_eq!(images::children(&index), [late.root]);
    let tags = target
        .requests_of_kind(RequestType::ManifestPut)
        .into_iter()
        .filter(|put| put.reference.as_deref() == Some("1"));
    assert_eq!(tags.count(), 0, "the image itself is left alone");
}

#[tokio::test]
async fn a_registry_that_refuses_the_question_is_one_without_the_api() {
    for (status, code) in
        [(400, "UNSUPPORTED"), (401, "UNAUTHORIZED"), (403, "DENIED"), (405, "UNSUPPORTED"), (501, "X")]
    {
        let (source, target) = tokio::join!(registry(false), registry(true));
        let signed = SignedImage::new("refused");
        signed.push(&source, "a", "1", false);
        source.on(RequestType::Referrers).always().act(FaultAction::error(status, code));
        sync(&source, &target.host(), &[]).await.assert_code(0);
        signed.assert_arrived(&target, "b", "1", true);
    }
    // A registry that has the API but fails is different: the image does not count as complete.
    let (source, target) = tokio::join!(registry(true), registry(true));
    source.push("a", "1", &images::single("failing"));
    source.on(RequestType::Referrers).always().act(FaultAction::error(500, "UNKNOWN"));
    let output = sync(&source, &target.host(), &["--attempts", "2"]).await.assert_code(1);
    assert_eq!(output.json()["kind"], "server_error");
    assert!(output.stderr.contains("referrers"), "{}", output.stderr);
    assert_eq!(target.tag_digest("b", "1"), None);
}

#[tokio::test]
async fn a_target_that_takes_images_alone_is_said_so_and_its_tag_is_left_as_it_was() {
    let (source, target) = tokio::join!(registry(true), registry(true));
    let image = images::single("images-alone");
    let signature = images::referrer("images-alone/signature", &image);
    source.push("a", "1", &image);
    source.push_untagged("a", &signature);
    let of_the_signature = RequestMatcher::kind(RequestType::ManifestPut).reference(&signature.root);
    target.on(of_the_signature).always().act(FaultAction::error(400, "MANIFEST_INVALID"));
    let output = sync(&source, &target.host(), &[]).await.assert_code(1);
    assert_eq!(output.json()["kind"], "refused");
    assert!(output.stderr.contains("`referrers: false`"), "{}", output.stderr);
    assert_eq!(target.tag_digest("b", "1"), None);
    sync(&source, &target.host(), &["--referrers", "none"]).await.assert_code(0);
    target.assert_holds("b", "1", &image);
}

#[tokio::test]
async fn an_index_that_lists_what_is_gone_costs_a_warning_and_no_image() {
    let (source, target) = tokio::join!(registry(false), registry(false));
    let image = images::single("dangling");
    let (gone, there) = (images::referrer("gone", &image), images::referrer("there", &image));
    source.push("a", "1", &image);
    source.push_untagged("a", &there);
    push_referrers_index(&source, "a", &image, &[&gone, &there]);
    let output = sync(&source, &target.host(), &[]).await.assert_code(0);
    assert!(output.stderr.contains("it is listed as a referrer: skipped"), "{}", output.stderr);
    let index = target.manifest("b", &image.digest_tag("")).unwrap().json();
    assert_eq!(images::children(&index), [there.root]);
}

#[tokio::test]
async fn an_index_that_somebody_else_writes_at_the_same_moment_keeps_both() {
    let (source, target) = tokio::join!(registry(true), registry(false));
    let image = images::single("raced");
    let (ours, theirs) = (images::referrer("ours", &image), images::referrer("theirs", &image));
    source.push("a", "1", &image);
    source.push_untagged("a", &ours);
    target.push_untagged("b", &theirs);
    // Another client has read the index before our update and writes it afterwards.
    let fallback = image.digest_tag("");
    let index = json!({"schemaVersion": 2, "mediaType": images::media::OCI_INDEX, "manifests": [theirs.descriptor()]});
    let bytes = index.to_string();
    let digest = images::sha256(bytes.as_bytes());
    let manifest = images::TestManifest { media_type: images::media::OCI_INDEX.to_owned(), bytes: bytes.into() };
    target.push_manifest("b", &digest, manifest);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let check = RequestMatcher::kind(RequestType::ManifestHead).reference(&fallback);
    target.on(check).times(1).act(FaultAction::Gate(gate.clone()));
    let writes = async {
        target
            .wait_until(|target| target.tag_digest("b", &fallback).is_some(), std::time::Duration::from_secs(30))
            .await;
        target.move_tag("b", &fallback, &digest);
        gate.add_permits(1);
    };
    let host = target.host();
    let (output, ()) = tokio::join!(sync(&source, &host, &[]), writes);
    output.assert_code(0);
    let mut listed = images::children(&target.manifest("b", &fallback).unwrap().json());
    listed.sort();
    let mut both = [ours.root, theirs.root];
    both.sort();
    assert_eq!(listed, both);
}
