//! Archives as sources: written by Debian's docker 20.10, podman 4.3, ctr 1.6 and skopeo, and in the shapes of others.

mod pipes;
mod shapes;
mod stdin;

use std::path::Path;
use std::process::{Command, Stdio};

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::podman::Podman;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{Containerd, DockerEngine, DockerRegistry, DockerRegistryAuth};
use imgsync_tests::skopeo::Skopeo;
use serde_json::Value;

use crate::end_to_end::{configured, run};

const NEW_DIGEST: &str = "this format has no manifests";

fn sync(program: &Imgsync, arguments: &[&str]) -> Imgsync {
    program.again().args(["sync", "--retry-delay", "10ms"]).args(arguments)
}

fn path(program: &Imgsync, file: &str) -> String {
    program.work_dir().join(file).display().to_string()
}

/// Returns the digest of an image's config, as `inspect` shows it.
async fn config_of(program: &Imgsync, image: &str) -> String {
    let output = program.again().args(["inspect", "--json", image]).run().await.assert_code(0);
    let shown: Value = serde_json::from_str(&output.stdout).unwrap();
    shown["image"]["config"]["digest"].as_str().unwrap_or_else(|| panic!("{shown}")).to_owned()
}

/// Copies the only image of an archive in Docker's format, and checks that its content is the image's.
async fn copy_docker_archive(program: &Imgsync, archive: &str, image: &TestImage) {
    let target = FaultRegistry::start().await;
    let to = format!("{}/m/app", target.host());
    let output = sync(program, &[archive, &format!("{to}:1")]).run().await.assert_code(0);
    assert!(output.stderr.contains(NEW_DIGEST), "{}", output.stderr);
    assert_eq!(config_of(program, &format!("{to}:1")).await, image.config());
    // The manifest is always the same.
    let digest = target.tag_digest("m/app", "1").unwrap();
    let again = sync(program, &[archive, &format!("{to}:2")]).run().await.assert_code(0);
    assert_eq!(again.stdout, format!("{to}:2@{digest}\n"));
    program.again().args(["verify", "--deep", archive, &format!("{to}:1")]).run().await.assert_code(0);
}

#[tokio::test]
async fn both_formats_of_skopeo_are_read_in_every_compression() {
    let (source, target) = tokio::join!(FaultRegistry::start(), DockerRegistry::start(DockerRegistryAuth::None));
    let (app, tool) = (images::multi_platform("skopeo-app"), images::single_docker("skopeo-tool"));
    source.push("team/app", "1.0", &app);
    source.push("team/tool", "2", &tool);
    let program = Imgsync::new();
    let (app_name, tool_name) = (format!("{}/team/app:1.0", source.host()), format!("{}/team/tool:2", source.host()));
    let skopeo = Skopeo::new();
    let oci = format!("oci-archive:{}:{app_name}", path(&program, "app.tar"));
    skopeo.copy_any(&format!("docker://{app_name}"), &oci).await.unwrap();
    let docker = format!("docker-archive:{}:{tool_name}", path(&program, "tool.tar"));
    skopeo.copy_docker_archive_to(&format!("docker://{tool_name}"), &docker).await.unwrap();

    copy_docker_archive(&program, "docker-archive:tool.tar", &tool).await;
    for (at, program_name) in ["gzip", "zstd", "xz"].into_iter().enumerate() {
        compress(program_name, &program.work_dir().join("app.tar"), &program.work_dir().join(format!("app.{at}")));
        let to = format!("{}/compressed/{program_name}:1.0", target.host());
        sync(&program, &[&format!("oci-archive:app.{at}"), &to]).run().await.assert_code(0);
        target.assert_holds(&format!("compressed/{program_name}"), "1.0", &app).await;
    }
    let listed = program.again().args(["tags", "oci-archive:app.tar"]).run().await.assert_code(0);
    assert_eq!(listed.stdout, format!("{app_name}\n"));

    // In rules, plain and compressed; a second run has nothing to do.
    let into = configured(&format!(
        "rules:\n- {{from: \"oci-archive:{0}\", to: {1}/m, naming: keep}}\n- {{from: \"docker-archive:{2}\", to: {1}/m, naming: keep}}\n",
        path(&program, "app.1"),
        target.host(),
        path(&program, "tool.tar"),
    ));
    let json = run(&into, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], 2, "{json}");
    target.assert_holds("m/team/app", "1.0", &app).await;
    let json = run(&into, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["unchanged"], 2, "{json}");
}

fn compress(program: &str, from: &Path, to: &Path) {
    let output = Command::new(program)
        .args(["-c", "-k"])
        .arg(from)
        .stdout(Stdio::from(std::fs::File::create(to).unwrap()))
        .status()
        .unwrap_or_else(|error| panic!("{program} must be installed: {error}"));
    assert!(output.success());
}

#[tokio::test]
async fn docker_save_is_read() {
    let engine = match DockerEngine::start().await {
        Ok(engine) => engine,
        Err(reason) => return imgsync_tests::skipped(&format!("docker save: {reason}")),
    };
    let source = FaultRegistry::start().await;
    let tool = images::single_docker("save-tool");
    source.push("team/tool", "2", &tool);
    let program = Imgsync::new();
    let name = format!("{}/team/tool:2", source.host());
    engine.pull(&name).await.unwrap();
    let saved = engine.docker(&["save", "-o", &path(&program, "saved.tar"), &name]).await;
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    copy_docker_archive(&program, "docker-archive:saved.tar", &tool).await;
    let listed = program.again().args(["tags", "docker-archive:saved.tar"]).run().await.assert_code(0);
    assert_eq!(listed.stdout, format!("{name}\n"));
}

#[tokio::test]
async fn podman_save_is_read_in_both_formats() {
    if let Err(reason) = Podman::available() {
        return imgsync_tests::skipped(&format!("podman save: {reason}"));
    }
    let source = FaultRegistry::start().await;
    let tool = images::single("podman-tool");
    source.push("team/tool", "2", &tool);
    let program = Imgsync::new();
    let name = format!("{}/team/tool:2", source.host());
    sync(&program, &[&name, "oci-archive:ours.tar"]).run().await.assert_code(0);
    let podman = Podman::new();
    let loaded = podman.run(&["load", "-i", &path(&program, "ours.tar")]).await;
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    for (format, file) in [("docker-archive", "docker.tar"), ("oci-archive", "oci.tar")] {
        let saved = podman.run(&["save", "--format", format, "-o", &path(&program, file), &name]).await;
        assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
        let listed = program.again().args(["tags", &format!("{format}:{file}")]).run().await.assert_code(0);
        assert_eq!(listed.stdout, format!("{name}\n"));
        assert_eq!(config_of(&program, &format!("{format}:{file}")).await, tool.config());
    }
    copy_docker_archive(&program, "docker-archive:docker.tar", &tool).await;
}

#[tokio::test]
async fn ctr_export_is_read_and_what_it_leaves_out_is_named() {
    let containerd = match Containerd::start().await {
        Ok(containerd) => containerd,
        Err(reason) => return imgsync_tests::skipped(&format!("ctr image export: {reason}")),
    };
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let app = images::multi_platform("ctr-app");
    source.push("team/app", "1.0", &app);
    let program = Imgsync::new();
    let name = format!("{}/team/app:1.0", source.host());
    sync(&program, &[&name, "oci-archive:ours.tar"]).run().await.assert_code(0);
    containerd.import(&program.work_dir().join("ours.tar"), true).await.unwrap();
    let export = async |file: &str, more: &[&str]| {
        let file = path(&program, file);
        let arguments = [&["images", "export"], more, &[&file, &name]].concat();
        let output = containerd.ctr(&arguments).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    export("all.tar", &["--all-platforms"]).await;
    let to = |tag: &str| format!("{}/m/app:{tag}", target.host());
    sync(&program, &["oci-archive:all.tar", &to("all")]).run().await.assert_code(0);
    target.assert_holds("m/app", "all", &app);

    // One platform, under the whole index.
    export("one.tar", &["--platform", "linux/arm64"]).await;
    let failed = sync(&program, &["oci-archive:one.tar", &to("one")]).run().await;
    assert_ne!(failed.code, Some(0));
    assert!(failed.stderr.contains("--platform linux/arm64"), "{}", failed.stderr);
    assert_eq!(target.tag_digest("m/app", "one"), None);
    sync(&program, &["oci-archive:one.tar", &to("one"), "--platform", "linux/arm64"]).run().await.assert_code(0);
    assert!(target.tag_digest("m/app", "one").is_some());
}
