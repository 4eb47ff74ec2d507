//! Bundles without what the receiver has.

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};

use super::{bundle, create, load, rules};

fn image(version: &str) -> TestImage {
    TestImage::single(&format!("differential-{version}"))
        .layer(Layer::Shared("differential-base".to_owned(), 200_000))
        .layer(Layer::File(2_000))
        .build()
}

#[tokio::test]
async fn an_inventory_carried_out_leaves_out_what_is_there() {
    let (source, target) = tokio::join!(FaultRegistry::start(), DockerRegistry::start(DockerRegistryAuth::None));
    let (one, two) = (image("1"), image("2"));
    source.push("team/app", "1", &one);
    let (near, far) = (rules(&source.host(), &["team/*"]), Imgsync::new());
    let to = format!("{}/mirror", target.host());
    let inventory = far.work_dir().join("inventory");
    let take = async || bundle(&far, &["inventory", &to, "--out", "inventory"]).await.assert_code(0);

    // Of an empty registry, all is missing.
    take().await;
    let have = ["--have", inventory.to_str().unwrap()];
    create(&near, "1.tar", &have).await.assert_code(0);
    load(&far, &near.work_dir().join("1.tar"), &to, &[]).await.assert_code(0);
    target.assert_holds("mirror/team/app", "1", &one).await;

    // Of the second image, the base layer is there; another repository mounts it.
    take().await;
    source.push("team/app", "2", &two);
    source.push("team/other", "2", &two);
    source.clear_requests();
    let json = create(&near, "2.tar", &[&have[..], &["--json"]].concat()).await.assert_code(0).json();
    assert_eq!((&json["bundle"]["tags"], &json["bundle"]["unchanged_tags"]), (&3.into(), &1.into()), "{json}");
    assert_eq!((&json["bundle"]["manifests"], &json["bundle"]["blobs"]), (&1.into(), &2.into()), "{json}");
    assert_eq!(source.count(RequestType::BlobGet), 2);
    let json = load(&far, &near.work_dir().join("2.tar"), &to, &["--json"]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["unchanged"]), (&2.into(), &1.into()), "{json}");
    for repository in ["mirror/team/app", "mirror/team/other"] {
        target.assert_holds(repository, "2", &two).await;
    }
}

#[tokio::test]
async fn an_earlier_index_stands_for_what_was_sent_and_a_lost_bundle_is_noticed_before_the_first_push() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &image("1"));
    let (near, far) = (rules(&source.host(), &["a"]), Imgsync::new());
    create(&near, "1.tar", &[]).await.assert_code(0);
    source.push("a", "2", &image("2"));
    create(&near, "2.tar", &["--have", "1.tar.index"]).await.assert_code(0);
    let to = format!("{}/m", target.host());

    // The first one got lost.
    let refused = load(&far, &near.work_dir().join("2.tar"), &to, &[]).await.assert_code(1);
    let base = image("1").blobs.keys().find(|digest| image("2").blobs.contains_key(*digest)).unwrap().clone();
    assert!(refused.stderr.contains(&format!("missing: blob {base}")), "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("image {} for tag 1", image("1").root)), "{}", refused.stderr);
    assert!(refused.stderr.contains("nothing was pushed"), "{}", refused.stderr);
    assert_eq!(target.count(RequestType::UploadStart), 0);
    assert_eq!(target.count(RequestType::ManifestPut), 0);

    for bundle in ["1.tar", "2.tar"] {
        load(&far, &near.work_dir().join(bundle), &to, &[]).await.assert_code(0);
    }
    for tag in ["1", "2"] {
        target.assert_holds("m/a", tag, &image(tag));
    }
    // A bundle stands for its index.
    let json = create(&near, "3.tar", &["--have", "2.tar", "--json"]).await.assert_code(0).json();
    assert_eq!((&json["bundle"]["unchanged_tags"], &json["bundle"]["blobs"]), (&2.into(), &0.into()), "{json}");
}

#[tokio::test]
async fn new_signatures_of_an_image_that_is_there_are_carried_alone() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let one = image("1");
    source.push("a", "1", &one);
    let (near, far) = (rules(&source.host(), &["a"]), Imgsync::new());
    create(&near, "1.tar", &[]).await.assert_code(0);
    let to = format!("{}/m", target.host());
    load(&far, &near.work_dir().join("1.tar"), &to, &[]).await.assert_code(0);
    let (sbom, signature) = (images::referrer("differential-sbom", &one), images::cosign("differential-signature"));
    source.push_untagged("a", &sbom);
    source.push("a", &one.digest_tag("sig"), &signature);
    bundle(&far, &["inventory", &to, "--out", "inventory"]).await.assert_code(0);
    let inventory = far.work_dir().join("inventory");
    let have = ["--have", inventory.to_str().unwrap(), "--json"];
    let json = create(&near, "2.tar", &have).await.assert_code(0).json();
    assert_eq!((&json["bundle"]["manifests"], &json["bundle"]["unchanged_tags"]), (&2.into(), &1.into()), "{json}");
    load(&far, &near.work_dir().join("2.tar"), &to, &[]).await.assert_code(0);
    target.assert_holds_untagged("m/a", &sbom);
    target.assert_holds("m/a", &one.digest_tag("sig"), &signature);

    // Then they are there, too.
    bundle(&far, &["inventory", &to, "--out", "inventory"]).await.assert_code(0);
    let json = create(&near, "3.tar", &have).await.assert_code(0).json();
    assert_eq!((&json["bundle"]["manifests"], &json["bundle"]["blobs"]), (&0.into(), &0.into()), "{json}");
}

#[tokio::test]
async fn a_tag_that_moves_to_an_image_that_is_there_carries_nothing_and_is_moved() {
    let images = [(image("1"), image("2")), (images::multi_platform("moves-1"), images::multi_platform("moves-2"))];
    for (one, two) in images {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &one);
        source.push("a", "2", &two);
        source.push("a", "latest", &one);
        let (near, far) = (rules(&source.host(), &["a"]), Imgsync::new());
        create(&near, "1.tar", &[]).await.assert_code(0);
        let to = format!("{}/m", target.host());
        load(&far, &near.work_dir().join("1.tar"), &to, &[]).await.assert_code(0);
        source.push("a", "latest", &two);
        let json = create(&near, "2.tar", &["--have", "1.tar.index", "--json"]).await.assert_code(0).json();
        assert_eq!((&json["bundle"]["manifests"], &json["bundle"]["blobs"]), (&0.into(), &0.into()), "{json}");
        let changes = bundle(&near, &["diff", "1.tar", "2.tar"]).await.assert_code(0);
        assert_eq!(changes.stdout, format!("~ a:latest {} -> {}\n", one.root, two.root));
        target.clear_requests();
        let json = load(&far, &near.work_dir().join("2.tar"), &to, &["--json"]).await.assert_code(0).json();
        assert_eq!((&json["counts"]["failed"], &json["counts"]["total"]), (&0.into(), &3.into()), "{json}");
        target.assert_holds("m/a", "latest", &two);
        assert_eq!(target.count(RequestType::UploadPut), 0);
    }
}

#[tokio::test]
async fn a_bundle_of_an_unchanged_mirror_takes_at_most_100_bytes_a_tag() {
    const TAGS: usize = 1_000;
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let images: Vec<TestImage> = (0..10).map(|n| images::single(&format!("unchanged-{n}"))).collect();
    for tag in 0..TAGS {
        source.push("library/some-application", &format!("v1.{tag}.0"), &images[tag % 10]);
    }
    let (near, far) = (rules(&source.host(), &["library/some-application"]), Imgsync::new());
    create(&near, "1.tar", &[]).await.assert_code(0);
    let to = format!("{}/m", target.host());
    load(&far, &near.work_dir().join("1.tar"), &to, &[]).await.assert_code(0);
    bundle(&far, &["inventory", &to, "--out", "inventory"]).await.assert_code(0);
    let inventory = far.work_dir().join("inventory");
    source.clear_requests();
    let have = ["--have", inventory.to_str().unwrap(), "--json"];
    let json = create(&near, "2.tar", &have).await.assert_code(0).json();
    assert_eq!((&json["bundle"]["manifests"], &json["bundle"]["blobs"]), (&0.into(), &0.into()), "{json}");
    assert_eq!(json["report"]["counts"]["unchanged"], TAGS);
    assert_eq!(source.count(RequestType::ManifestGet), 0);
    assert_eq!(source.count(RequestType::ManifestHead), TAGS as u64);
    let bytes = std::fs::metadata(near.work_dir().join("2.tar")).unwrap().len();
    assert!(bytes <= 100 * TAGS as u64, "{bytes} bytes");
    let json = load(&far, &near.work_dir().join("2.tar"), &to, &["--json"]).await.assert_code(0).json();
    assert_eq!(json["counts"]["unchanged"], TAGS);
}
