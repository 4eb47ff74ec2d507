//! Image layouts as sources and targets, and full disks under a store.

use std::path::Path;

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};
use imgsync_tests::skopeo::Skopeo;

use crate::end_to_end::{configured, run};

#[tokio::test]
async fn images_travel_in_a_folder_between_registries_that_no_network_joins() {
    let (source, target) = tokio::join!(FaultRegistry::start(), DockerRegistry::start(DockerRegistryAuth::None));
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
    let bag = out.work_dir().join("bag");
    let name = format!("{}/team/app:1.1", source.host());
    let folder = tempfile::tempdir().unwrap();
    Skopeo::new()
        .copy_any(&format!("oci:{}:{name}", bag.display()), &format!("dir:{}", folder.path().display()))
        .await
        .expect("skopeo reads it");

    // A second export adds only new content.
    source.push("team/app", "1.2", &image("team/app-1.2"));
    source.clear_requests();
    let json = run(&out, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["unchanged"]), (&1.into(), &3.into()));
    assert_eq!(source.count(RequestType::BlobGet), image("team/app-1.2").blobs.len() as u64);

    // On the other side of the gap.
    let into = configured(&format!(
        "rules:\n- from: oci:{}\n  to: {}/mirror\n  naming: keep\n  tags: {{exclude: [\"1.1\"]}}\n",
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

    // With several images one must be named.
    source.push("team/app", "1.1", &images::single("another"));
    sync(&format!("{}/team/app:1.1", source.host()), "oci:bag").run().await.assert_code(0);
    let output = sync("oci:bag", &to).run().await.assert_code(2);
    assert!(output.stderr.contains("several images match"), "{}", output.stderr);
}

#[tokio::test]
async fn a_layout_with_corrupt_content_fails_those_images_and_writes_nothing_of_them() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "good", &images::single("lies-good"));
    let bad = images::single("lies-bad");
    source.push("a", "bad", &bad);
    let out = configured(&format!("rules:\n- {{from: {}/a, to: \"oci:bag\"}}\n", source.host()));
    run(&out, &[]).await.assert_code(0);
    let bag = out.work_dir().join("bag");
    let layer = bag.join("blobs/sha256").join(bad.largest_blob().trim_start_matches("sha256:"));
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let into =
        configured(&format!("rules:\n- {{from: \"oci:{}\", to: {}/m, naming: keep}}\n", bag.display(), target.host()));
    let json = run(&into, &[]).await.assert_code(1).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&1.into(), &1.into()));
    assert_eq!(json["failures"][0]["kind"], "corrupt");
    target.assert_tags_complete();
    assert!(!target.committed_blobs().iter().any(|(_, digest)| *digest == bad.largest_blob()));
}

/// Changes each entry of a layout's `index.json`.
fn rewrite(bag: &Path, change: impl Fn(usize, &mut serde_json::Value)) {
    let path = bag.join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (at, entry) in index["manifests"].as_array_mut().unwrap().iter_mut().enumerate() {
        change(at, entry);
    }
    std::fs::write(path, index.to_string()).unwrap();
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD: &str = "io.containerd.image.name";

#[tokio::test]
async fn what_a_rule_cannot_choose_from_a_layout_is_named_and_the_exit_code_is_one() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = |name: &str| images::single(&format!("nameless-{name}"));
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    for name in names {
        source.push("team/app", name, &image(name));
    }
    let program = configured(&format!("rules:\n- {{from: {}/team/app, to: \"oci:bag\"}}\n", source.host()));
    run(&program, &[]).await.assert_code(0);
    let bag = program.work_dir().join("bag");
    // Names by other tools: invalid, upper case, containerd's only, next to an invalid one, none, and duplicates.
    let annotations = |name: &str| match name {
        "a" => serde_json::json!({REF_NAME: "what+ever"}),
        "b" => serde_json::json!({REF_NAME: "Team/App:1"}),
        "c" => serde_json::json!({CONTAINERD: "quay.io/team/app:c"}),
        "d" => serde_json::json!({CONTAINERD: "quay.io/team/app:d", REF_NAME: "d+1"}),
        "e" => serde_json::json!({}),
        _ => serde_json::json!({REF_NAME: "quay.io/team/app:twice"}),
    };
    rewrite(&bag, |_, entry| {
        let name = entry["annotations"][REF_NAME].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        entry["annotations"] = annotations(&name);
    });
    let into = configured(&format!(
        "rules:\n- {{from: \"oci:{}\", to: {}/m, naming: basename}}\n",
        bag.display(),
        target.host()
    ));
    let json = run(&into, &[]).await.assert_code(1).json();
    assert_eq!(json["counts"]["copied"], 2, "{json}");
    assert_eq!(target.tags("m/app"), ["c", "d"]);
    let errors: Vec<&str> =
        json["unlisted"].as_array().unwrap().iter().map(|line| line["error"].as_str().unwrap()).collect();
    let has_error = |words: &[&str]| errors.iter().any(|error| words.iter().all(|word| error.contains(word)));
    assert!(has_error(&[&image("a").root, "`what+ever`", "not a reference with a tag"]), "{errors:?}");
    assert!(has_error(&[&image("b").root, "`Team/App:1`"]), "{errors:?}");
    assert!(has_error(&[&image("e").root, "has no name", "imgsync sync oci:"]), "{errors:?}");
    assert!(
        has_error(&["two images are named quay.io/team/app:twice", &image("f").root, &image("g").root]),
        "{errors:?}"
    );
    assert_eq!(errors.len(), 4, "{errors:?}");
    let listed = into.again().args(["tags", &format!("oci:{}", bag.display())]).run().await.assert_code(1);
    assert!(listed.stderr.contains("what+ever"), "{}", listed.stderr);

    // One by one they can be copied.
    let from = format!("oci:{}@{}", bag.display(), image("e").root);
    into.again().args(["sync", &from, &format!("{}/m/one:e", target.host())]).run().await.assert_code(0);
    target.assert_holds("m/one", "e", &image("e"));
    let twice = format!("oci:{}:quay.io/team/app:twice", bag.display());
    let output = into.again().args(["sync", &twice, &format!("{}/m/one:t", target.host())]).run().await.assert_code(2);
    assert!(output.stderr.contains("two images have the name"), "{}", output.stderr);
}

#[tokio::test]
async fn an_image_without_a_name_in_a_layout_is_not_left_out_silently() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::multi_platform("by-digest");
    source.push("team/app", "1.0", &image);
    let program = Imgsync::new();
    let from = format!("{}/team/app@{}", source.host(), image.root);
    program.again().args(["sync", &from, "oci:bag"]).run().await.assert_code(0);
    program.file("imgsync.yaml", format!("rules:\n- {{from: \"oci:bag\", to: {}/m}}\n", target.host()));
    let json = run(&program, &[]).await.assert_code(1).json();
    let unlisted = json["unlisted"].as_array().unwrap();
    assert_eq!(unlisted.len(), 1, "{json}");
    let error = unlisted[0]["error"].as_str().unwrap();
    assert!(error.contains(&image.root) && error.contains("TARGET:TAG"), "{error}");
    // An entry with a name and the same digest includes it.
    program.again().args(["sync", &format!("{}/team/app:1.0", source.host()), "oci:bag"]).run().await.assert_code(0);
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["unlisted"]), (&1.into(), &serde_json::json!([])));
}

/// Returns the path of a blob in a layout.
fn blob_path(bag: &Path, digest: &str) -> std::path::PathBuf {
    bag.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
}

/// Changes a byte of a file and keeps its size.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_blob_of_a_layout_is_hashed_before_it_is_relied_on_and_replaced_if_it_is_damaged() {
    let source = FaultRegistry::start().await;
    let image = images::multi_platform("hashed");
    source.push("team/app", "1", &image);
    let program = configured(&format!("rules:\n- {{from: {}/team/app, to: \"oci:bag\"}}\n", source.host()));
    let bag = program.work_dir().join("bag");
    // A prepared folder with the right names and sizes and wrong bytes.
    let bad = image.largest_blob();
    let good = image.blobs.keys().find(|digest| **digest != bad).unwrap();
    std::fs::create_dir_all(bag.join("blobs/sha256")).unwrap();
    std::fs::write(bag.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let bytes = |digest: &str| image.blobs[digest].read(0..image.blobs[digest].size()).to_vec();
    std::fs::write(blob_path(&bag, good), bytes(good)).unwrap();
    std::fs::write(blob_path(&bag, &bad), bytes(&bad)).unwrap();
    damage(&blob_path(&bag, &bad));
    run(&program, &[]).await.assert_code(0);
    assert_eq!(std::fs::read(blob_path(&bag, &bad)).unwrap(), bytes(&bad), "it was replaced");
    let asked = |digest: &str| {
        source.requests_of_kind(RequestType::BlobGet).iter().any(|r| r.reference.as_deref() == Some(digest))
    };
    assert!(asked(&bad) && !asked(good), "{}", source.describe_requests());

    // Damaged later: `--force` reads everything again despite the cache, and so does `verify --deep`.
    damage(&blob_path(&bag, &bad));
    let deep = ["verify", "--deep"];
    let output = program.again().args(deep).run().await.assert_code(1);
    assert!(output.stdout.contains("is corrupt") || output.stderr.contains("is corrupt"), "{}", output.stderr);
    source.clear_requests();
    let json = run(&program, &["--force"]).await.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], 1, "{json}");
    assert_eq!(std::fs::read(blob_path(&bag, &bad)).unwrap(), bytes(&bad));
    assert_eq!(source.count(RequestType::BlobGet), 1, "{}", source.describe_requests());
    program.again().args(deep).run().await.assert_code(0);

    // A file changed without a change in size is a new version and hashed again: here by a copy of another image with
    // the same blob. An unchanged file is not.
    damage(&blob_path(&bag, &bad));
    source.push("team/app", "2", &image);
    source.clear_requests();
    run(&program, &[]).await.assert_code(0);
    assert_eq!(std::fs::read(blob_path(&bag, &bad)).unwrap(), bytes(&bad));
    assert_eq!(source.count(RequestType::BlobGet), 1, "{}", source.describe_requests());
}

#[tokio::test]
async fn what_tags_prints_of_a_layout_names_the_image_there() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in ["1.0", "1.1"] {
        source.push("org/name", tag, &images::single(&format!("printed-{tag}")));
    }
    let program = configured(&format!("rules:\n- {{from: {}/org/name, to: \"oci:bag\"}}\n", source.host()));
    run(&program, &[]).await.assert_code(0);
    // Docker Hub names in the long and short form of skopeo and containerd.
    let bag = program.work_dir().join("bag");
    rewrite(&bag, |at, entry| {
        let name = if at == 0 { "org/name:1.0" } else { "docker.io/library/name:1.1" };
        entry["annotations"] = serde_json::json!({REF_NAME: name});
    });
    let listed = program.again().args(["tags", "oci:bag"]).run().await.assert_code(0);
    let mut lines: Vec<&str> = listed.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["docker.io/library/name:1.1", "docker.io/org/name:1.0"]);
    let short = ["org/name:1.0", "name:1.1"];
    for (at, name) in lines.iter().chain(&short).enumerate() {
        let to = format!("{}/m/x:{at}", target.host());
        program.again().args(["sync", &format!("oci:bag:{name}"), &to]).run().await.assert_code(0);
    }
    assert_eq!(target.tag_digest("m/x", "0"), target.tag_digest("m/x", "3"));
    assert_eq!(target.tag_digest("m/x", "1"), target.tag_digest("m/x", "2"));
    assert_ne!(target.tag_digest("m/x", "0"), target.tag_digest("m/x", "1"));
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
        configured(&format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host()));
    let state = disk.0.display().to_string();
    let output = run(&program, &["--state", &state]).await.assert_code(3);
    assert!(output.stderr.contains("full") && output.stderr.contains("hint:"), "{}", output.stderr);
    assert!(disk.grow("64m"));
    let json = run(&program, &["--state", &state]).await.assert_code(0).json();
    assert_eq!(json["counts"]["unchanged"], 3000);
}

/// A small disk, unmounted on drop.
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

#[tokio::test]
async fn indexes_that_list_each_other_in_many_ways_are_exported() {
    let source = FaultRegistry::start().await;
    let image = images::nested_indexes("layouts-nested", 14, 4, &[images::single("layouts-nested")]);
    source.push("app", "1", &image);
    let program = Imgsync::new();
    let from = format!("{}/app:1", source.host());
    program.again().args(["sync", &from, "oci:there:r.example/app:1"]).run().await.assert_code(0);
    let listed: serde_json::Value =
        serde_json::from_slice(&std::fs::read(program.work_dir().join("there/manifest.json")).unwrap()).unwrap();
    assert_eq!(listed[0]["RepoTags"], serde_json::json!(["r.example/app:1"]), "{listed}");
}
