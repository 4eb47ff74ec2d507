//! A folder of imgsync in a tar, as people carry it: what other readers make of signatures and referrers.

use std::path::PathBuf;
use std::process::Command;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::podman::Podman;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{Containerd, DockerEngine};
use imgsync_tests::skopeo::Skopeo;

use crate::end_to_end::{configured, run};

/// A layout with a signed image, its referrer, and another image, and a tar of its files.
struct CarriedLayout {
    source: FaultRegistry,
    program: Imgsync,
    app: TestImage,
    tool: TestImage,
    sbom: TestImage,
    tar: PathBuf,
}

impl CarriedLayout {
    async fn write(name: &str) -> CarriedLayout {
        let source = FaultRegistry::start().await;
        let (app, tool) = (images::multi_platform(&format!("{name}-app")), images::single(&format!("{name}-tool")));
        let sbom = images::referrer(&format!("{name}-sbom"), &app);
        source.push("team/app", "1.0", &images::single(&format!("{name}-former")));
        source.push("team/tool", "2", &tool);
        let host = source.host();
        let rules =
            format!("rules:\n- {{from: {host}/team/app, to: oci:bag}}\n- {{from: {host}/team/tool, to: oci:bag}}\n");
        let program = configured(&rules);
        run(&program, &[]).await.assert_code(0);
        // A tag moves, and is signed.
        source.push("team/app", "1.0", &app);
        source.push_untagged("team/app", &sbom);
        source.push("team/app", &app.digest_tag("sig"), &images::cosign(&format!("{name}-signature")));
        run(&program, &[]).await.assert_code(0);
        let tar = program.work_dir().join("bag.tar");
        let folder = program.work_dir().join("bag");
        let packed = Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(&tar).arg(".").status();
        assert!(packed.unwrap().success());
        CarriedLayout { source, program, app, tool, sbom, tar }
    }

    fn name(&self, image: &str) -> String {
        format!("{}/team/{image}", self.source.host())
    }
}

#[tokio::test]
async fn podman_and_docker_load_the_images_alone() {
    let layout = CarriedLayout::write("tar-podman").await;
    let file = layout.tar.display().to_string();
    let expected = [layout.name("app:1.0"), layout.name("tool:2")];
    match Podman::available() {
        Ok(()) => {
            let podman = Podman::new();
            let output = podman.run(&["load", "-i", &file]).await;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let images = podman.images().await;
            let mut names: Vec<&str> = images.iter().map(|image| image["Names"][0].as_str().unwrap()).collect();
            names.sort_unstable();
            assert_eq!(names, expected, "{images:?}");
            let tool = images.iter().find(|image| image["Names"][0] == expected[1].as_str()).unwrap();
            assert_eq!(format!("sha256:{}", tool["Id"].as_str().unwrap()), layout.tool.config());
        }
        Err(reason) => imgsync_tests::skipped(&format!("podman load: {reason}")),
    }
    match DockerEngine::start().await {
        Ok(engine) => {
            let output = engine.docker(&["load", "-i", &file]).await;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(engine.image_id(&layout.name("tool:2")).await.unwrap(), layout.tool.config());
        }
        Err(reason) => imgsync_tests::skipped(&format!("docker load: {reason}")),
    }
}

#[tokio::test]
async fn ctr_imports_the_images_alone_with_their_digests() {
    let containerd = match Containerd::start().await {
        Ok(containerd) => containerd,
        Err(reason) => return imgsync_tests::skipped(&format!("ctr image import: {reason}")),
    };
    let layout = CarriedLayout::write("tar-ctr").await;
    containerd.import(&layout.tar, true).await.unwrap();
    let expected =
        [(layout.name("app:1.0"), layout.app.root.clone()), (layout.name("tool:2"), layout.tool.root.clone())];
    assert_eq!(containerd.images().await, expected);
}

#[tokio::test]
async fn skopeo_and_imgsync_read_it_and_nothing_is_lost() {
    let (layout, target) = tokio::join!(CarriedLayout::write("tar-skopeo"), FaultRegistry::start());
    let from = format!("oci-archive:{}:{}", layout.tar.display(), layout.name("app:1.0"));
    Skopeo::new().copy_any(&from, &format!("docker://{}/skopeo:1.0", target.host())).await.unwrap();
    target.assert_holds("skopeo", "1.0", &layout.app);

    for (from, to) in [("oci-archive:bag.tar", "tar"), ("oci:bag", "folder")] {
        let rules = format!("rules: [{{from: '{from}', to: {}/{to}, naming: keep}}]\n", target.host());
        let config = layout.program.file(&format!("{to}.yaml"), rules);
        layout.program.again().args(["run", "-c"]).arg(config).run().await.assert_code(0);
        target.assert_holds(&format!("{to}/team/app"), "1.0", &layout.app);
        target.assert_holds(&format!("{to}/team/tool"), "2", &layout.tool);
        target.assert_holds_untagged(&format!("{to}/team/app"), &layout.sbom);
        let signature = target.tag_digest(&format!("{to}/team/app"), &layout.app.digest_tag("sig"));
        assert_eq!(signature, layout.source.tag_digest("team/app", &layout.app.digest_tag("sig")));
    }
}
