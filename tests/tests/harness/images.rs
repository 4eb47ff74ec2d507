//! Images have the described content, and differences are found.

use imgsync_tests::DockerRegistry;
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{self, Blob, TargetContents, TestImage, floor, sha256};
use imgsync_tests::servers::DockerRegistryAuth;

fn fixtures(name: &str) -> Vec<TestImage> {
    let single = images::single(&format!("{name}/single"));
    vec![
        images::referrer(&format!("{name}/referrer"), &single),
        single,
        images::single_docker(&format!("{name}/docker")),
        images::multi_platform(&format!("{name}/multi")),
        images::nested(&format!("{name}/nested")),
        images::shared_child(&format!("{name}/shared-child")),
        images::shared_layers(&format!("{name}/shared-layers")),
        images::artifact(&format!("{name}/artifact")),
        images::helm_chart(&format!("{name}/odd")),
        images::layer_twice(&format!("{name}/twice")),
        images::inline_data(&format!("{name}/inline")),
        images::foreign_layer(&format!("{name}/foreign"), "http://127.0.0.1:1/layer"),
        images::empty_layer(&format!("{name}/zero")),
    ]
}

#[test]
fn synthetic_content_is_the_same_by_any_range() {
    let blob = Blob::synthetic("ranges", 300_001);
    let whole: Vec<u8> = blob.pieces().flatten().collect();
    assert_eq!(whole.len(), 300_001);
    assert_eq!(sha256(&whole), blob.sha256());
    for (start, end) in [(0, 1), (3, 11), (65_530, 65_545), (65_537, 131_080), (299_999, 300_001)] {
        assert_eq!(blob.read(start..end), whole[start as usize..end as usize], "{start}..{end}");
    }
}

#[test]
fn images_follow_from_their_names() {
    assert_eq!(images::nested("a").root, images::nested("a").root);
    assert_ne!(images::nested("a").root, images::nested("b").root);
    assert_eq!(images::shared_child("a").manifests.len(), 2);
    assert_eq!(images::shared_layers("a").blobs.len(), 5);
    assert_eq!(images::layer_twice("a").layers().len(), 3);
    assert_eq!(images::layer_twice("a").blobs.len(), 3);
    let image = images::multi_platform("a");
    assert_eq!(floor(&image, &TargetContents::nothing()), images::Floor { source: 9, target: 16 });
    assert_eq!(floor(&image, &TargetContents::mountable(&image)), images::Floor { source: 9, target: 10 });
}

#[tokio::test]
async fn both_registries_hold_every_kind_of_image() {
    let fault = FaultRegistry::start().await;
    let real = DockerRegistry::start(DockerRegistryAuth::None).await;
    for (number, image) in fixtures("kinds").iter().enumerate() {
        let tag = format!("v{number}");
        fault.push("some/app", &tag, image);
        fault.assert_holds("some/app", &tag, image);
        real.push("some/app", &tag, image).await;
        real.assert_holds("some/app", &tag, image).await;
    }
    fault.assert_tags_complete();
    assert!(real.storage_bytes() > 10_000);
    assert!(real.requests().iter().any(|request| request.method == "PUT" && request.status == 201));
}

#[tokio::test]
async fn what_differs_is_found() {
    let registry = FaultRegistry::start().await;
    let (image, other) = (images::multi_platform("differs"), images::single("other"));
    registry.push("app", "1", &image);
    registry.assert_holds("app", "1", &image);

    let blob = image.largest_blob();
    registry.push_blob("app", &blob, &Blob::synthetic("wrong", image.blobs[&blob].size()));
    assert_eq!(registry.differences("app", "1", &image), [format!("blob {blob} is another")]);
    registry.delete_blob("app", &blob);
    assert_eq!(registry.differences("app", "1", &image), [format!("blob {blob} is missing")]);

    registry.push("app", "1", &image);
    let child = &image.children()[0];
    registry.push_manifest("app", child, other.root_manifest().clone());
    assert_eq!(registry.differences("app", "1", &image), [format!("manifest {child} is another")]);
    registry.delete_manifest("app", child);
    assert_eq!(registry.differences("app", "1", &image), [format!("manifest {child} is missing")]);

    registry.push("app", "1", &image);
    registry.move_tag("app", "1", &other.root);
    assert_eq!(registry.differences("app", "1", &image).len(), 1);

    let real = DockerRegistry::start(DockerRegistryAuth::None).await;
    real.push("app", "1", &image).await;
    let tree = real.fetch_tree("app", "1").await.unwrap();
    assert!(tree.differences(&image).is_empty());
    assert!(!tree.differences(&other).is_empty());
    assert!(real.fetch_tree("app", "2").await.is_none());
}
