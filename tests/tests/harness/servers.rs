//! Real servers accept, serve and unpack the harness's images.

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::servers::{DockerRegistryAuth, DockerRegistryOptions};
use imgsync_tests::skopeo::Skopeo;
use imgsync_tests::{DockerEngine, DockerRegistry};

#[tokio::test]
async fn skopeo_copies_from_the_fault_registry_to_a_real_one_and_back() {
    let (source, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let real = DockerRegistry::start(DockerRegistryAuth::htpasswd("amy", "pass word")).await;
    let image = images::multi_platform("there-and-back");
    source.push("library/app", "1.0", &image);
    let there = Skopeo::new().target_credentials("amy", "pass word");
    let middle = format!("{}/mirror/app:1.0", real.host());
    there.copy(&format!("{}/library/app:1.0", source.host()), &middle).await.unwrap();
    real.assert_holds("mirror/app", "1.0", &image).await;
    let back = Skopeo::new().source_credentials("amy", "pass word");
    back.copy(&middle, &format!("{}/back/app:1.0", target.host())).await.unwrap();
    target.assert_holds("back/app", "1.0", &image);
    assert_eq!(target.open_uploads(), 0);
    assert_eq!(source.count(RequestType::BlobGet), 6);
    assert!(source.bytes_sent() >= image.blob_bytes());
    assert!(target.bytes_received() >= image.blob_bytes());
}

#[tokio::test]
async fn signed_tokens_let_skopeo_into_a_real_registry() {
    let source = FaultRegistry::start().await;
    let real = DockerRegistry::start(DockerRegistryAuth::token("amy", "secret")).await;
    let image = images::single("signed");
    source.push("app", "1", &image);
    let target = format!("{}/app:1", real.host());
    let from = format!("{}/app:1", source.host());
    assert!(Skopeo::new().target_credentials("amy", "wrong").copy(&from, &target).await.is_err());
    Skopeo::new().target_credentials("amy", "secret").copy(&from, &target).await.unwrap();
    real.assert_holds("app", "1", &image).await;
    assert!(real.tokens().unwrap().requests().iter().any(|request| request.granted));
}

#[tokio::test]
async fn a_real_registry_deletes_restarts_and_is_gone_when_dropped() {
    let mut real =
        DockerRegistry::start_with(DockerRegistryOptions { delete: true, ..DockerRegistryOptions::default() }).await;
    let image = images::single("restart");
    real.push("app", "1", &image).await;
    real.kill();
    real.restart().await;
    real.assert_holds("app", "1", &image).await;
    real.delete_manifest("app", &image.root).await;
    assert_eq!(real.tag_digest("app", "1").await, None);
    let pid = real.pid();
    drop(real);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn docker_engine_pulls_and_unpacks_an_image() {
    if let Err(reason) = DockerEngine::available() {
        eprintln!("skipped: {reason}");
        return;
    }
    let engine = DockerEngine::start().await.unwrap();
    let registry = FaultRegistry::start().await;
    let image = images::single_docker("engine");
    registry.push("app", "1", &image);
    let reference = format!("{}/app:1", registry.host());
    engine.pull(&reference).await.unwrap();
    assert_eq!(engine.image_id(&reference).await.unwrap(), image.config());
}

#[tokio::test]
async fn skopeo_unpacks_what_is_real() {
    let registry = FaultRegistry::start().await;
    let image = TestImage::single("unpack").layer(Layer::File(100_000)).build();
    registry.push("app", "1", &image);
    let folder = tempfile::tempdir().unwrap();
    Skopeo::new().copy_to_dir(&format!("{}/app:1", registry.host()), folder.path()).await.unwrap();
    assert!(folder.path().join("manifest.json").exists());
    let inspected = Skopeo::new().inspect(&format!("{}/app:1", registry.host())).await.unwrap();
    assert_eq!(inspected["Architecture"], "amd64");
}
