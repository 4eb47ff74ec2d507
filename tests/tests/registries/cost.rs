//! Request counts of copies, compared with the floor computed from the image.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use imgsync_tests::fault::{FaultAction, FaultRegistry, MountPolicy, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Layer, TargetContents, TestImage, floor};
use imgsync_tests::program::{Imgsync, Output};
use tokio::sync::Semaphore;

const MIB: u64 = 1 << 20;

async fn sync(source: &FaultRegistry, target: &FaultRegistry, from: &str, to: &str) -> Output {
    let (from, to) = (format!("{}/{from}", source.host()), format!("{}/{to}", target.host()));
    let output = Imgsync::new().args(["sync", &from, &to, "--json"]).run().await;
    target.assert_children_came_first();
    output
}

#[tokio::test]
async fn a_fresh_image_costs_the_floor() {
    let images: [(&str, TestImage); 7] = [
        ("single", images::single("cost-single")),
        ("multi", images::multi_platform("cost-multi")),
        ("nested", images::nested("cost-nested")),
        ("shared-child", images::shared_child("cost-shared-child")),
        ("shared-layers", images::shared_layers("cost-shared-layers")),
        ("twice", images::layer_twice("cost-twice")),
        ("artifact", images::artifact("cost-artifact")),
    ];
    for (name, image) in images {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &image);
        let output = sync(&source, &target, "a:1", "b:1").await.assert_code(0).json();
        target.assert_holds("b", "1", &image);
        let least = floor(&image, &TargetContents::nothing());
        assert_eq!(source.total(), least.source, "{name}: {}", source.describe_requests());
        assert_eq!(target.total(), least.target, "{name}: {}", target.describe_requests());
        // Referrers are requested once per manifest and counted separately, as are the three cosign tags of the image,
        // since no listing has shown which exist.
        assert_eq!(
            source.referrer_requests().len(),
            image.manifests.len() + 3,
            "{name}: {}",
            source.describe_requests()
        );
        assert_eq!(target.referrer_requests().len(), 0, "{name}: {}", target.describe_requests());
        // The program's own counts match the registries'.
        assert_eq!(output["traffic"]["source"]["requests"], source.total());
        assert_eq!(output["traffic"]["target"]["requests"], target.total());
        // No slow path: nothing is requested that is known otherwise.
        for kind in [RequestType::BlobHead, RequestType::UploadStatus, RequestType::UploadPatch, RequestType::Ping] {
            assert_eq!(source.count(kind) + target.count(kind), 0, "{name}: {kind:?}");
        }
        assert_eq!(source.count(RequestType::ManifestHead), 0, "{name}");
    }
}

#[tokio::test]
async fn the_rest_of_a_new_image_does_not_wait_for_its_first_config_nor_referrers_for_the_rest() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::multi_platform("at-once");
    source.push("a", "1", &image);
    let child = image.manifests[&image.children()[0]].json();
    let config = child["config"]["digest"].as_str().unwrap();
    // The config whose upload shows that the target lacks the image is read last.
    let gate = Arc::new(Semaphore::new(0));
    let of_config = RequestMatcher::kind(RequestType::BlobGet).reference(config);
    source.on(of_config).always().act(FaultAction::Gate(gate.clone()));
    let others = image.blobs.len() as u64 - 1;
    let children = image.manifests.len() as u64 - 1;
    let (output, ()) = tokio::join!(sync(&source, &target, "a:1", "b:1"), async {
        let limit = Duration::from_secs(60);
        // All other blobs, and the child that has none of its own left to wait for, arrive meanwhile.
        target.wait_until(|target| target.count(RequestType::UploadPut) == others, limit).await;
        target.wait_until(|target| target.count(RequestType::ManifestPut) == children - 1, limit).await;
        source.wait_until(|source| source.count(RequestType::Referrers) == 1, limit).await;
        gate.add_permits(100);
    });
    output.assert_code(0);
    target.assert_holds("b", "1", &image);
    let least = floor(&image, &TargetContents::nothing());
    assert_eq!((source.total(), target.total()), (least.source, least.target), "{}", target.describe_requests());
    assert_eq!(source.count(RequestType::Referrers), image.manifests.len() as u64);
}

#[tokio::test]
async fn an_unchanged_image_costs_two_heads() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::multi_platform("unchanged");
    source.push("a", "1", &image);
    target.push("b", "1", &image);
    let output = sync(&source, &target, "a:1", "b:1").await.assert_code(0).json();
    assert_eq!(output["outcome"], "unchanged");
    assert_eq!((source.total(), source.count(RequestType::ManifestHead)), (1, 1), "{}", source.describe_requests());
    assert_eq!((target.total(), target.count(RequestType::ManifestHead)), (1, 1), "{}", target.describe_requests());
}

#[tokio::test]
async fn a_source_by_digest_that_is_there_costs_the_target_one_head() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("by-digest");
    source.push("a", "1", &image);
    target.push("b", "1", &image);
    let from = format!("a:1@{}", image.root);
    assert_eq!(sync(&source, &target, &from, "b:1").await.assert_code(0).json()["outcome"], "unchanged");
    assert_eq!((source.total(), target.total()), (0, 1));
}

#[tokio::test]
async fn blobs_of_a_neighbour_at_the_same_registry_are_mounted() {
    let registry = FaultRegistry::start().await;
    let image = images::multi_platform("mounted");
    registry.push("a", "1", &image);
    let output = sync(&registry, &registry, "a:1", "b:1").await.assert_code(0).json();
    registry.assert_holds("b", "1", &image);
    assert_eq!(output["bytes"]["copied"], 0);
    assert_eq!(output["bytes"]["mounted"], image.blob_bytes());
    let least = floor(&image, &TargetContents::mountable(&image));
    assert_eq!(registry.count(RequestType::BlobGet) + registry.count(RequestType::UploadPut), 0);
    assert_eq!(output["traffic"]["target"]["requests"], least.target);
}

#[tokio::test]
async fn an_image_that_is_there_under_another_tag_becomes_one_put() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::multi_platform("retag");
    source.push("a", "latest", &image);
    target.push("b", "1.0", &image);
    sync(&source, &target, "a:latest", "b:latest").await.assert_code(0);
    target.assert_holds("b", "latest", &image);
    assert_eq!(target.count(RequestType::ManifestPut), 1, "{}", target.describe_requests());
    assert_eq!(target.count(RequestType::UploadPut), 0);
    // This takes one request for a blob and one for the digest; no blob is read.
    assert_eq!(target.total(), 4, "{}", target.describe_requests());
    assert_eq!(source.count(RequestType::BlobGet), 0);
}

/// Mount policies of registries that never mount.
const WITHOUT_MOUNTS: [MountPolicy; 4] = [
    MountPolicy::Ignore,
    MountPolicy::Refuse(StatusCode::METHOD_NOT_ALLOWED),
    MountPolicy::Refuse(StatusCode::BAD_REQUEST),
    MountPolicy::Refuse(StatusCode::NOT_FOUND),
];

/// Builds an index of two platforms with a layer of 3 MiB each, and one of 2 MiB shared by versions.
fn large(version: &str) -> TestImage {
    let child = |platform: &str| {
        let name = format!("{version}/{platform}");
        let base = Layer::Shared("large-base".to_owned(), 2 * MIB);
        TestImage::single(&name).platform(platform).layer(base).layer(Layer::Synthetic(3 * MIB)).build()
    };
    let index = TestImage::index(version).child(&child("linux/amd64"), "linux/amd64");
    index.child(&child("linux/arm64"), "linux/arm64").build()
}

#[tokio::test]
async fn a_target_that_knows_no_mounts_is_not_sent_again_what_it_has_under_another_tag() {
    for policy in WITHOUT_MOUNTS {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::builder().mounts(policy).start());
        let image = large("no-mounts");
        source.push("a", "latest", &image);
        target.push("b", "1.0", &image);
        let output = sync(&source, &target, "a:latest", "b:latest").await.assert_code(0).json();
        target.assert_holds("b", "latest", &image);
        // Learning the registry's behaviour takes one config at most.
        assert!(output["bytes"]["copied"].as_u64().unwrap() < 4096, "{policy:?}: {}", output["bytes"]);
        assert!(source.count(RequestType::BlobGet) <= 1, "{policy:?}: {}", source.describe_requests());
        assert_eq!(target.count(RequestType::ManifestPut), 1, "{policy:?}: {}", target.describe_requests());
        assert_eq!(target.open_uploads(), 0, "{policy:?}: {}", target.describe_requests());
    }
}

#[tokio::test]
async fn a_target_that_knows_no_mounts_is_sent_of_a_new_version_what_is_new() {
    for policy in WITHOUT_MOUNTS {
        for tag in ["old", "new"] {
            let (source, target) =
                tokio::join!(FaultRegistry::start(), FaultRegistry::builder().mounts(policy).start());
            let (before, after) = (large("before"), large("after"));
            source.push("a", "new", &after);
            target.push("b", tag, &before);
            let output = sync(&source, &target, "a:new", "b:new").await.assert_code(0).json();
            target.assert_holds("b", "new", &after);
            let new = after.blobs.iter().filter(|(digest, _)| !before.blobs.contains_key(*digest));
            let new: u64 = new.map(|(_, blob)| blob.size()).sum();
            assert_eq!(output["bytes"]["copied"], new, "{policy:?} {tag}: {}", target.describe_requests());
            assert_eq!(target.open_uploads(), 0, "{policy:?}: {}", target.describe_requests());
        }
    }
}

#[tokio::test]
async fn a_target_that_knows_no_mounts_gets_a_fresh_image() {
    for policy in WITHOUT_MOUNTS {
        for image in [images::multi_platform("fresh-small"), large("fresh-large")] {
            let (source, target) =
                tokio::join!(FaultRegistry::start(), FaultRegistry::builder().mounts(policy).start());
            source.push("a", "1", &image);
            sync(&source, &target, "a:1", "b:1").await.assert_code(0);
            target.assert_holds("b", "1", &image);
            assert_eq!(target.open_uploads(), 0, "{policy:?}: {}", target.describe_requests());
        }
    }
}

#[tokio::test]
async fn the_first_large_image_at_a_registry_costs_at_most_one_question_whether_it_knows_mounts() {
    let few = TestImage::single("few-large").layer(Layer::Synthetic(3 * MIB)).layer(Layer::Synthetic(2 * MIB)).build();
    for (image, questions) in [(large("first-large"), 1), (few, 0)] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &image);
        sync(&source, &target, "a:1", "b:1").await.assert_code(0);
        target.assert_holds("b", "1", &image);
        let least = floor(&image, &TargetContents::nothing());
        assert_eq!(source.total(), least.source, "{}", source.describe_requests());
        assert_eq!(target.total(), least.target + questions, "{}", target.describe_requests());
        assert_eq!(target.count(RequestType::BlobHead), 0);
        let (all, floor) = ((source.total() + target.total()) as f64, (least.source + least.target) as f64);
        assert!(all / floor <= 1.05, "{all} of {floor}");
    }
}

#[tokio::test]
async fn an_image_of_which_one_platform_changed_moves_that_one_alone() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let [old, new, same] =
        ["part-old", "part-new", "part-same"].map(|name| TestImage::single(name).layers(3, 4000).build());
    let before = TestImage::index("before").child(&same, "linux/amd64").child(&old, "linux/arm64").build();
    let after = TestImage::index("after").child(&same, "linux/amd64").child(&new, "linux/arm64").build();
    target.push("b", "1", &before);
    source.push("a", "1", &after);
    let output = sync(&source, &target, "a:1", "b:1").await.assert_code(0).json();
    target.assert_holds("b", "1", &after);
    assert_eq!(output["bytes"]["copied"], new.blob_bytes());
    let read = source.requests_of_kind(RequestType::BlobGet);
    assert!(read.iter().all(|request| new.blobs.contains_key(request.reference.as_deref().unwrap())), "{read:?}");
}
