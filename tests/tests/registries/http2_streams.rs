//! Many HTTP/2 streams on one connection.

use std::time::Duration;

use imgsync_oci::Descriptor;
use imgsync_registry::Access;
use imgsync_tests::images::{Layer, TestImage};

use super::client::{behind_tls, client, repository, settings};

#[tokio::test]
async fn streams_that_stand_still_do_not_hold_up_the_others_of_their_connection() {
    let (registry, authority) = behind_tls().await;
    let layers = (0..24).fold(TestImage::single("standing"), |image, n| image.layer(Layer::Synthetic((4 << 20) + n)));
    let image = layers.build();
    registry.push("a", "1", &image);
    let client = client(settings(&registry, Some(&authority)));
    let repository = repository(&client, &registry, "a", Access::Pull);
    let blobs: Vec<Descriptor> =
        serde_json::from_value(image.root_manifest().json()["layers"].clone()).expect("layers are descriptors");
    let (moving, stalled) = blobs.split_last().unwrap();
    let mut held = Vec::new();
    for blob in stalled {
        let mut opened = repository.open_blob(blob, 0).await.unwrap();
        assert!(opened.stream.next_chunk().await.unwrap().is_some());
        held.push(opened);
    }
    let read = async {
        let mut stream = repository.open_blob(moving, 0).await.unwrap().stream;
        let mut bytes = 0;
        while let Some(chunk) = stream.next_chunk().await.unwrap() {
            bytes += chunk.len() as u64;
        }
        bytes
    };
    let bytes = tokio::time::timeout(Duration::from_secs(20), read).await.expect("the last one moves");
    assert_eq!(bytes, moving.size);
    assert!(registry.requests().iter().all(|request| request.http2));
    assert_eq!(registry.connections(), 1);
}
