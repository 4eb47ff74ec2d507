//! Content embedded in descriptors (`data`), where the source has lost the blobs.

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images::{self, Layer, TestImage, TestManifest, sha256};
use imgsync_tests::program::Imgsync;
use serde_json::{Value, json};

/// Builds an image whose manifest embeds all of its blobs.
fn inline(name: &str) -> TestImage {
    TestImage::single(name).layer(Layer::Synthetic(2000)).layer(Layer::Synthetic(31)).inline_data().build()
}

async fn sync(from: &str, to: &str) -> imgsync_tests::program::Output {
    Imgsync::new().args(["sync", from, to, "--json", "--retry-delay", "1ms"]).run().await
}

#[tokio::test]
async fn inline_data_takes_the_place_of_blobs_that_the_source_does_not_have() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = inline("carried");
    source.push("a", "1", &image);
    image.blobs.keys().for_each(|digest| source.delete_blob("a", digest));
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    let folder = tempfile::tempdir().unwrap();
    let layout = format!("oci:{}:1", folder.path().display());
    sync(&format!("{}/a:1", source.host()), &layout).await.assert_code(0);
    // A layout without its blobs is read in the same way.
    for digest in image.blobs.keys() {
        std::fs::remove_file(folder.path().join("blobs").join(digest.replace(':', "/"))).unwrap();
    }
    sync(&layout, &format!("{}/c:1", target.host())).await.assert_code(0);
    target.assert_holds("c", "1", &image);
}

#[tokio::test]
async fn inline_data_takes_the_place_of_blobs_that_are_empty_at_the_source() {
    for announced in [true, false] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = inline("emptied");
        source.push("a", "1", &image);
        let mut actions = vec![FaultAction::Truncate { to: 0 }];
        if !announced {
            actions.push(FaultAction::RemoveHeader("content-length".into()));
        }
        source.on(RequestType::BlobGet).always().act_all(actions);
        sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
        target.assert_holds("b", "1", &image);
    }
}

#[tokio::test]
async fn inline_data_with_another_digest_is_not_used() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = inline("forged");
    let mut forged: Value = image.root_manifest().json();
    forged["layers"][0]["data"] = json!("Zm9yZ2Vk");
    let bytes = forged.to_string();
    let root = sha256(bytes.as_bytes());
    source.push("a", "1", &image);
    source.push_manifest(
        "a",
        &root,
        TestManifest { media_type: images::media::OCI_MANIFEST.to_owned(), bytes: bytes.into() },
    );
    source.move_tag("a", "1", &root);
    // As long as the source has the blob, the embedded content is ignored.
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    source.delete_blob("a", &image.layers()[0]);
    let output = sync(&format!("{}/a:1", source.host()), &format!("{}/c:1", target.host())).await.assert_code(1);
    assert_eq!(output.json()["kind"], "not_found", "{output:?}");
    assert!(output.stderr.contains(&image.layers()[0]), "{}", output.stderr);
    assert!(target.tags("c").is_empty());
}
