//! Debian's docker 20.10, podman 4.3, ctr 1.6 and skopeo load what imgsync writes.

use std::path::PathBuf;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::podman::Podman;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{Containerd, DockerEngine};
use imgsync_tests::skopeo::Skopeo;

use super::sync;

/// Archives with one image and with two, the first of which has a referrer and a tag of cosign.
struct Archives {
    program: Imgsync,
    source: FaultRegistry,
    app: TestImage,
    tool: TestImage,
}

impl Archives {
    async fn write(name: &str) -> Archives {
        let source = FaultRegistry::start().await;
        let app = images::multi_platform(&format!("{name}-app"));
        let tool = images::single_docker(&format!("{name}-tool"));
        source.push("team/app", "1.0", &app);
        source.push("team/tool", "2", &tool);
        source.push_untagged("team/app", &images::referrer(&format!("{name}-signature"), &app));
        source.push("team/app", &app.digest_tag("sig"), &images::cosign(&format!("{name}-cosign")));
        let archives = Archives { program: Imgsync::new(), source, app, tool };
        let (app, tool) = (archives.name("app:1.0"), archives.name("tool:2"));
        sync(&archives.program, &[&app, "oci-archive:one.tar"]).run().await.assert_code(0);
        sync(&archives.program, &[&app, &tool, "docker-archive:two.tar"]).run().await.assert_code(0);
        archives
    }

    fn name(&self, image: &str) -> String {
        format!("{}/team/{image}", self.source.host())
    }

    fn path(&self, file: &str) -> PathBuf {
        self.program.work_dir().join(file)
    }

    /// Returns the config that docker's format has of the image with several platforms.
    fn app_config(&self) -> String {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let index = self.app.root_manifest().json();
        let children = index["manifests"].as_array().unwrap();
        let child = children.iter().find(|child| child["platform"]["architecture"] == architecture).unwrap();
        let manifest = self.app.manifests[child["digest"].as_str().unwrap()].json();
        manifest["config"]["digest"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn docker_load_loads_them_from_a_file_and_from_a_pipe() {
    let engine = match DockerEngine::start().await {
        Ok(engine) => engine,
        Err(reason) => return imgsync_tests::skipped(&format!("docker load: {reason}")),
    };
    let archives = Archives::write("docker").await;
    let (app, tool) = (archives.name("app:1.0"), archives.name("tool:2"));
    let load = async |file: &str| {
        let output = engine.docker(&["load", "-i", &archives.path(file).display().to_string()]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = load("one.tar").await;
    assert!(said.contains(&app) && !said.contains(&tool), "{said}");
    assert_eq!(engine.image_id(&app).await.unwrap(), archives.app_config());
    let said = load("two.tar").await;
    assert!(said.contains(&tool), "{said}");
    assert_eq!(engine.image_id(&tool).await.unwrap(), archives.tool.config());
    assert_eq!(engine.docker(&["images", "-q"]).await.stdout.split(|byte| *byte == b'\n').count(), 3, "no signatures");

    // As a stream, compressed.
    for (compression, name) in [("none", "piped:plain"), ("gzip", "piped:gzip")] {
        let script = format!(
            "'{}' sync {tool} docker-archive:-:localhost:1/{name} --archive-compress {compression} | docker --host unix://{} load",
            archives.program.path().display(),
            engine.socket().display(),
        );
        let output = Imgsync::at("/bin/sh").args(["-c", &script]).run().await.assert_code(0);
        assert!(output.stdout.contains(name), "{} {}", output.stdout, output.stderr);
        assert_eq!(engine.image_id(&format!("localhost:1/{name}")).await.unwrap(), archives.tool.config());
    }
}

#[tokio::test]
async fn podman_load_loads_them() {
    if let Err(reason) = Podman::available() {
        return imgsync_tests::skipped(&format!("podman load: {reason}"));
    }
    let archives = Archives::write("podman").await;
    let (app, tool) = (archives.name("app:1.0"), archives.name("tool:2"));
    for (file, expected) in [
        ("one.tar", vec![(&app, archives.app_config())]),
        ("two.tar", vec![(&app, archives.app_config()), (&tool, archives.tool.config())]),
    ] {
        let podman = Podman::new();
        let output = podman.run(&["load", "-i", &archives.path(file).display().to_string()]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let images = podman.images().await;
        assert_eq!(images.len(), expected.len(), "{images:?}");
        for (name, config) in expected {
            let image = images.iter().find(|image| image["Names"][0] == **name).unwrap_or_else(|| panic!("{images:?}"));
            assert_eq!(format!("sha256:{}", image["Id"].as_str().unwrap()), config);
        }
    }
}

#[tokio::test]
async fn ctr_imports_them_with_their_digests_and_all_platforms() {
    let containerd = match Containerd::start().await {
        Ok(containerd) => containerd,
        Err(reason) => return imgsync_tests::skipped(&format!("ctr image import: {reason}")),
    };
    let archives = Archives::write("ctr").await;
    let app = (archives.name("app:1.0"), archives.app.root.clone());
    let tool = (archives.name("tool:2"), archives.tool.root.clone());
    containerd.import(&archives.path("one.tar"), true).await.unwrap();
    assert_eq!(containerd.images().await, std::slice::from_ref(&app), "no images of signatures");
    containerd.import(&archives.path("two.tar"), true).await.unwrap();
    assert_eq!(containerd.images().await, [app, tool]);
}

#[tokio::test]
async fn skopeo_copies_them_in_both_formats() {
    let (archives, target) = tokio::join!(Archives::write("skopeo"), FaultRegistry::start());
    let two = archives.path("two.tar").display().to_string();
    let skopeo = Skopeo::new();
    // As an OCI archive, the image by its name and byte for byte. skopeo finds only OCI media types in OCI archives.
    let from = format!("oci-archive:{two}:{}", archives.name("app:1.0"));
    skopeo.copy_any(&from, &format!("docker://{}/app:1.0", target.host())).await.unwrap();
    target.assert_holds("app", "1.0", &archives.app);
    // As Docker's, one platform: the manifest is made anew by skopeo.
    let from = format!("docker-archive:{two}:{}", archives.name("tool:2"));
    skopeo.copy_docker_archive(&from, &format!("docker://{}/docker:2", target.host())).await.unwrap();
    assert!(target.tag_digest("docker", "2").is_some());
}

#[tokio::test]
async fn imgsync_copies_them_back_with_signatures() {
    let (archives, target) = tokio::join!(Archives::write("imgsync"), FaultRegistry::start());
    let from = format!("oci-archive:two.tar:{}", archives.name("app:1.0"));
    sync(&archives.program, &[&from, &format!("{}/m/app:1.0", target.host())]).run().await.assert_code(0);
    target.assert_holds("m/app", "1.0", &archives.app);
    assert!(target.tag_digest("m/app", &archives.app.digest_tag("sig")).is_some(), "cosign's tag");
    let verify = ["verify", &archives.name("app:1.0"), &from];
    archives.program.again().args(verify).run().await.assert_code(0);
}
