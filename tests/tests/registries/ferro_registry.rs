//! Copies with ferro-oci-server, which is independent of docker-registry: see scripts/test-ferro-registry.

use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth, FerroRegistry};
use imgsync_tests::tcp_proxy::{Direction, TcpProxy};

use super::docker_registry::fixtures;

const MIB: u64 = 1 << 20;

async fn other() -> Option<FerroRegistry> {
    let started = FerroRegistry::start().await;
    if started.is_none() {
        imgsync_tests::skipped_unpackaged("copies with ferro-oci-server (scripts/test-ferro-registry)");
    }
    started
}

async fn sync(from: &str, to: &str) -> Output {
    let sync = Imgsync::new().args(["sync", from, to, "--json", "--retry-delay", "10ms"]);
    sync.run().await
}

#[tokio::test]
async fn every_kind_of_image_goes_from_debians_registry_to_the_other_and_back() {
    let Some(other) = other().await else { return };
    let debian = DockerRegistry::start(DockerRegistryAuth::None).await;
    for (tag, image) in fixtures("second") {
        debian.push("some/app", tag, &image).await;
        let there = format!("{}/mirror/app:{tag}", other.host());
        let output = sync(&format!("{}/some/app:{tag}", debian.host()), &there).await.assert_code(0).json();
        assert_eq!((&output["outcome"], &output["digest"]), (&"copied".into(), &image.root.as_str().into()), "{tag}");
        other.assert_holds("mirror/app", tag, &image).await;
        let output = sync(&there, &format!("{}/back/app:{tag}", debian.host())).await.assert_code(0).json();
        assert_eq!(output["outcome"], "copied", "{tag}");
        debian.assert_holds("back/app", tag, &image).await;
    }
}

#[tokio::test]
async fn within_the_other_registry_an_unchanged_image_is_left_alone_and_a_changed_one_is_copied() {
    let Some(other) = other().await else { return };
    let image = images::multi_platform("second-within");
    other.push("a/app", "1", &image).await;
    let (from, to) = (format!("{}/a/app:1", other.host()), format!("{}/b/app:1", other.host()));
    // It answers every mount with a session, which is allowed.
    let output = sync(&from, &to).await.assert_code(0).json();
    other.assert_holds("b/app", "1", &image).await;
    assert_eq!(output["outcome"], "copied");
    assert_eq!(sync(&from, &to).await.assert_code(0).json()["outcome"], "unchanged");
    let next = images::multi_platform("second-next");
    other.push("a/app", "1", &next).await;
    assert_eq!(sync(&from, &to).await.assert_code(0).json()["outcome"], "copied");
    other.assert_holds("b/app", "1", &next).await;
}

#[tokio::test]
async fn a_large_layer_survives_lines_that_are_cut_at_both_ends() {
    let (Some(source), Some(target)) = (other().await, other().await) else { return };
    let image = TestImage::single("second-large").layer(Layer::Synthetic(24 * MIB)).layers(2, 2000).build();
    source.push("a/app", "1", &image).await;
    let (down, up) = (TcpProxy::start(&source.host()).await, TcpProxy::start(&target.host()).await);
    down.cut_after(Direction::Down, 9 * MIB);
    up.cut_after(Direction::Up, 15 * MIB);
    let output =
        sync(&format!("{}/a/app:1", down.host()), &format!("{}/b/app:1", up.host())).await.assert_code(0).json();
    target.assert_holds("b/app", "1", &image).await;
    assert!(output["traffic"]["source"]["retries"].as_u64() > Some(0), "{output}");
}

#[tokio::test]
async fn a_run_lists_the_other_registry_and_a_missing_tag_is_said_so() {
    let (Some(source), Some(target)) = (other().await, other().await) else { return };
    let image = images::single("second-run");
    for tag in ["1.0", "1.1", "2.0"] {
        source.push("team/app", tag, &image).await;
    }
    let run = Imgsync::new().args(["run", "--json"]);
    let rule = format!(
        "  - {{from: {}/team/app, to: {}/mirror, naming: keep, tags: {{include: ['1.*']}}}}",
        source.host(),
        target.host()
    );
    run.file("imgsync.yaml", format!("rules:\n{rule}\n"));
    let output = run.run().await.assert_code(0).json();
    assert_eq!(output["counts"]["copied"], 2, "{output}");
    target.assert_holds("mirror/team/app", "1.1", &image).await;
    assert_eq!(target.tag_digest("mirror/team/app", "2.0").await, None);
    let (from, to) = (format!("{}/team/app:3.0", source.host()), format!("{}/x:1", target.host()));
    assert_eq!(sync(&from, &to).await.assert_code(1).json()["kind"], "not_found");
}
