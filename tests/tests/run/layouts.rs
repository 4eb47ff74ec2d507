//! Image layouts as ends of a run, and the disk under a store.

use std::path::Path;

use imgsync_tests::fault::{FaultRegistry, Kind};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{Auth, DockerRegistry};
use imgsync_tests::skopeo::Skopeo;

use crate::whole::{configured, run};

#[tokio::test]
async fn images_travel_in_a_folder_between_registries_that_no_network_joins() {
    let (source, target) = tokio::join!(FaultRegistry::start(), DockerRegistry::start(Auth::None));
    let image = |name: &str| images::multi_platform(&format!("travel-{name}"));
    for (repository, tag) in [("team/app", "1.0"), ("team/app", "1.1"), ("team/tool", "1.0")] {
        source.push(repository, tag, &image(&format!("{repository}-{tag}")));
    }
    let out = configured(&format!(
        "rules:\n- from: {0}/team/app\n  to: oci:bag\n- from: {0}/team/tool\n  to: oci:bag\n",
        source.host()
    ));
    let json = run(&out, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], 3);
    let bag = out.work().join("bag");
    let name = format!("{}/team/app:1.1", source.host());
    let folder = tempfile::tempdir().unwrap();
    Skopeo::new()
        .copy_any(&format!("oci:{}:{name}", bag.display()), &format!("dir:{}", folder.path().display()))
        .await
        .expect("skopeo reads it");

    // A second export adds only what is new.
    source.push("team/app", "1.2", &image("team/app-1.2"));
    source.clear_requests();
    let json = run(&out, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["unchanged"]), (&1.into(), &3.into()));
    assert_eq!(source.count(Kind::BlobGet), image("team/app-1.2").blobs.len() as u64);

    // On the other side.
    let into = configured(&format!(
        "rules:\n- from: oci:{}\n  to: {}/mirror\n  name: keep\n  tags: {{exclude: [\"1.1\"]}}\n",
        bag.display(),
        target.host()
    ));
    let json = run(&into, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], 3, "{json}");
    for (repository, tag) in [("team/app", "1.0"), ("team/app", "1.2"), ("team/tool", "1.0")] {
        target.assert_holds(&format!("mirror/{repository}"), tag, &image(&format!("{repository}-{tag}"))).await;
    }
    assert_eq!(target.tag_digest("mirror/team/app", "1.1").await, None);
    let json = run(&into, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["unchanged"], 3);
}

#[tokio::test]
async fn a_folder_with_one_image_is_that_image_with_its_tag() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("only");
    source.push("team/app", "1.0", &image);
    let program = Imgsync::new();
    let sync = |from: &str, to: &str| program.again().args(["sync", from, to]);
    let from = format!("{}/team/app:1.0", source.host());
    sync(&from, "oci:bag").run().await.assert_code(0);
    let listed = program.again().args(["tags", "oci:bag"]).run().await.assert_code(0);
    assert_eq!(listed.stdout, format!("{from}\n"));
    let to = format!("{}/m/app", target.host());
    let output = sync("oci:bag", &to).run().await.assert_code(0);
    assert_eq!(output.stdout, format!("{to}:1.0@{}\n", image.root));
    target.assert_holds("m/app", "1.0", &image);
    sync("oci:bag", "oci:other").run().await.assert_code(0);
    sync(&format!("oci:other:{from}"), &format!("{to}:again")).run().await.assert_code(0);

    // Of several it has to be said which.
    source.push("team/app", "1.1", &images::single("another"));
    sync(&format!("{}/team/app:1.1", source.host()), "oci:bag").run().await.assert_code(0);
    let output = sync("oci:bag", &to).run().await.assert_code(2);
    assert!(output.stderr.contains("several images are meant"), "{}", output.stderr);
}

#[tokio::test]
async fn a_layout_that_lies_fails_those_images_and_writes_nothing_of_them() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "good", &images::single("lies-good"));
    let bad = images::single("lies-bad");
    source.push("a", "bad", &bad);
    let out = configured(&format!("rules:\n- {{from: {}/a, to: \"oci:bag\"}}\n", source.host()));
    run(&out, &[]).await.assert_code(0);
    let bag = out.work().join("bag");
    let layer = bag.join("blobs/sha256").join(bad.largest_blob().trim_start_matches("sha256:"));
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let into =
        configured(&format!("rules:\n- {{from: \"oci:{}\", to: {}/m, name: keep}}\n", bag.display(), target.host()));
    let json = run(&into, &[]).await.assert_code(1).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&1.into(), &1.into()));
    assert_eq!(json["failures"][0]["class"], "corrupt");
    target.assert_tags_complete();
    assert!(!target.committed_blobs().iter().any(|(_, digest)| *digest == bad.largest_blob()));
}

#[tokio::test]
async fn a_full_disk_under_the_store_is_said_and_nothing_is_lost() {
    let small = tempfile::tempdir().unwrap();
    let Some(disk) = Tmpfs::mount(small.path(), "200k") else {
        return imgsync_tests::skipped("a full disk under the store: a tmpfs cannot be mounted here");
    };
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("full-disk");
    source.push("a", "v0", &image);
    target.push("m/a", "v0", &image);
    for n in 1..3000 {
        source.move_tag("a", &format!("v{n}"), &image.root);
        target.move_tag("m/a", &format!("v{n}"), &image.root);
    }
    let program =
        configured(&format!("rules:\n- {{from: {}/a, to: {}/m, name: keep}}\n", source.host(), target.host()));
    let state = disk.0.display().to_string();
    let output = run(&program, &["--state", &state]).await.assert_code(3);
    assert!(output.stderr.contains("full") && output.stderr.contains("hint:"), "{}", output.stderr);
    assert!(disk.grow("64m"));
    let json = run(&program, &["--state", &state]).await.assert_code(0).json();
    assert_eq!(json["counts"]["unchanged"], 3000);
}

/// A small disk, for as long as it lives.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(at: &Path, size: &str) -> Option<Tmpfs> {
        let mounted = Self::call("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", at.to_str()?]);
        mounted.then(|| Tmpfs(at.to_owned()))
    }

    fn grow(&self, size: &str) -> bool {
        Self::call("mount", &["-o", &format!("remount,size={size}"), self.0.to_str().unwrap_or_default()])
    }

    fn call(program: &str, arguments: &[&str]) -> bool {
        let quiet = std::process::Stdio::null;
        let mut command = std::process::Command::new(program);
        command.args(arguments).stdout(quiet()).stderr(quiet()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        Self::call("umount", &["-l", self.0.to_str().unwrap_or_default()]);
    }
}

#[tokio::test]
async fn the_quickstart_copies_the_examples_and_then_finds_all_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let yaml = std::fs::read_to_string(root.join("examples/quickstart.yaml")).unwrap();
    let yaml = yaml
        .replace("oci:images", &format!("oci:{}", root.join("examples/images").display()))
        .replace("oci:../target/quickstart", &format!("oci:{}", folder.path().join("copy").display()));
    let program: Imgsync = configured(&yaml);
    assert_eq!(run(&program, &[]).await.assert_code(0).json()["counts"]["copied"], 5);
    assert_eq!(run(&program, &[]).await.assert_code(0).json()["counts"]["unchanged"], 5);
}
