//! Images whose content cannot be read do not stop a bundle of the others.

use std::path::PathBuf;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Output};

use super::{bundle, create, leftovers, load, rules};

const IMAGES: usize = 10;

fn image(number: usize) -> TestImage {
    images::single(&format!("incomplete-{number}"))
}

async fn source() -> FaultRegistry {
    let source = FaultRegistry::start().await;
    for number in 0..IMAGES {
        source.push("a", &format!("v{number}"), &image(number));
    }
    source.push("a", &image(4).digest_tag("sig"), &images::cosign("incomplete-signature"));
    source.push_untagged("a", &images::referrer("incomplete-sbom", &image(4)));
    source
}

/// Loads a bundle that lacks the image 4, and checks that the others are there and that it says so.
async fn assert_others_are_there(near: &Imgsync, made: &Output, host: &str) {
    let missing = format!("{host}/a:v4");
    assert!(made.stderr.contains(&missing), "{}", made.stderr);
    let target = FaultRegistry::start().await;
    let out = near.work_dir().join("b.tar");
    for command in ["list", "verify"] {
        let said = bundle(near, &[command, out.to_str().unwrap()]).await.assert_code(0);
        assert!(said.stderr.contains("the bundle is incomplete: 1 of"), "{}", said.stderr);
        assert!(said.stderr.contains(&missing), "{}", said.stderr);
    }
    let far = Imgsync::new();
    let loaded = load(&far, &out, &format!("{}/m", target.host()), &[]).await.assert_code(0);
    assert!(loaded.stderr.contains("the bundle is incomplete"), "{}", loaded.stderr);
    for number in (0..IMAGES).filter(|number| *number != 4) {
        target.assert_holds("m/a", &format!("v{number}"), &image(number));
    }
    assert_eq!(target.tag_digest("m/a", "v4"), None);
    assert_eq!(target.tag_digest("m/a", &image(4).digest_tag("sig")), None);
    assert_eq!(leftovers(near, &near.work_dir()), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn an_image_without_a_blob_is_counted_as_failed_and_the_others_are_carried() {
    let source = source().await;
    let near = rules(&source.host(), &["a"]);
    source.delete_blob("a", &image(4).largest_blob());
    let made = create(&near, "b.tar", &["--json"]).await.assert_code(1);
    let json = made.json();
    assert_eq!((&json["report"]["counts"]["copied"], &json["report"]["counts"]["failed"]), (&9.into(), &1.into()));
    assert!(made.stderr.contains(&image(4).largest_blob()), "{}", made.stderr);
    // One request for each blob, or two if two images that share it are collected at the same moment.
    let blobs = (0..IMAGES).map(|number| image(number).blobs.len() as u64).sum::<u64>() + 2;
    assert!(source.count(RequestType::BlobHead) <= blobs + 2, "{}", source.describe_requests());
    assert_others_are_there(&near, &made, &source.host()).await;

    // The next call tries again, and replaces what is incomplete, but not what is complete.
    source.push("a", "v4", &image(4));
    create(&near, "b.tar", &[]).await.assert_code(0);
    let listed = bundle(&near, &["list", "b.tar"]).await.assert_code(0);
    assert_eq!(listed.stdout.lines().count(), IMAGES + 1, "{}", listed.stdout);
    assert!(create(&near, "b.tar", &[]).await.assert_code(2).stderr.contains("--overwrite"));
}

#[tokio::test]
async fn wrong_bytes_leave_out_their_image_alone() {
    let source = source().await;
    let near = rules(&source.host(), &["a"]);
    let matcher = RequestMatcher::kind(RequestType::BlobGet).reference(&image(4).largest_blob());
    let rule = source.on(matcher).always().act(FaultAction::Corrupt { at: 20 });
    let made = create(&near, "b.tar", &["--json"]).await.assert_code(1);
    let json = made.json();
    assert_eq!(json["bundle"]["unreadable"], serde_json::json!([format!("{}/a:v4", source.host())]), "{json}");
    assert_eq!(json["bundle"]["tags"], 9, "{json}");
    assert_others_are_there(&near, &made, &source.host()).await;
    rule.remove();
    create(&near, "b.tar", &[]).await.assert_code(0);
}
