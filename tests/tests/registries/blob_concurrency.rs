//! Concurrency of the blobs of one image.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::TestImage;
use imgsync_tests::program::Imgsync;
use tokio::sync::Semaphore;

const RUN_TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_platform_started_while_all_permits_were_taken_gets_them_all_later() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let [first, second] = ["first", "second"].map(|name| TestImage::single(name).layers(12, 500).build());
    let image = TestImage::index("places").child(&first, "linux/amd64").child(&second, "linux/arm64").build();
    source.push("a", "1", &image);
    let layers_of = |image: &TestImage| {
        let layers = image.layers();
        move |digest: Option<&str>| digest.is_some_and(|digest| layers.iter().any(|layer| layer == digest))
    };
    let [first_gate, second_gate, manifest_gate] = [(); 3].map(|()| Arc::new(Semaphore::new(0)));
    for (image, gate) in [(&first, &first_gate), (&second, &second_gate)] {
        let is_layer = layers_of(image);
        let layers =
            RequestMatcher::kind(RequestType::BlobGet).when(move |request| is_layer(request.reference.as_deref()));
        source.on(layers).always().act(FaultAction::Gate(gate.clone()));
    }
    let second_manifest = || RequestMatcher::kind(RequestType::ManifestGet).reference(&second.root);
    source.on(second_manifest()).act(FaultAction::Gate(manifest_gate.clone()));
    let asked_for = |registry: &FaultRegistry, image: &TestImage| {
        let is_layer = layers_of(image);
        registry.count_where(|request| request.kind == RequestType::BlobGet && is_layer(request.reference.as_deref()))
    };

    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let running =
        tokio::spawn(async move { Imgsync::new().args(["sync", &from, &to, "--concurrency", "8"]).run().await });
    source.wait_until(|source| asked_for(source, &first) == 8, RUN_TIMEOUT).await;
    manifest_gate.add_permits(1);
    source
        .wait_until(
            |source| {
                source.count_where(|request| {
                    request.kind == RequestType::ManifestGet
                        && request.reference.as_ref() == Some(&second.root)
                        && request.is_body_complete
                }) > 0
            },
            RUN_TIMEOUT,
        )
        .await;
    first_gate.add_permits(1000);
    source.wait_until(|source| asked_for(source, &second) == 8, RUN_TIMEOUT).await;
    second_gate.add_permits(1000);
    running.await.unwrap().assert_code(0);
    target.assert_holds("b", "1", &image);
}
