//! The shape of the file: what crane, hauler, regctl and containerd look for, and that the bytes depend on the images alone.

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, TestImage, sha256};
use imgsync_tests::program::Imgsync;

use super::{file_names, json_member, members, sync};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD: &str = "io.containerd.image.name";
const SUBJECT: &str = "io.containerd.manifest.subject";

#[tokio::test]
async fn one_file_has_what_each_loader_looks_for() {
    let source = FaultRegistry::start().await;
    let (app, tool) = (images::multi_platform("shape-app"), images::single_docker("shape-tool"));
    let (signature, cosign) = (images::referrer("shape-signature", &app), images::cosign("shape-cosign"));
    source.push("team/app", "1.0", &app);
    source.push("team/tool", "2", &tool);
    source.push_untagged("team/app", &signature);
    source.push("team/app", &app.digest_tag("sig"), &cosign);
    let program = Imgsync::new();
    let (from_app, from_tool) = (format!("{}/team/app:1.0", source.host()), format!("{}/team/tool:2", source.host()));
    let output = sync(&program, &[&from_app, &from_tool, "oci-archive:both.tar"]).run().await.assert_code(0);
    assert_eq!(output.stdout, format!("oci-archive:both.tar@{}\noci-archive:both.tar@{}\n", app.root, tool.root));
    assert!(output.stderr.contains("get linux/"), "the platform is said: {}", output.stderr);
    let members = members(&program.work_dir().join("both.tar"));

    // containerd refuses another version, and readers of a stream need this order.
    let paths: Vec<&str> = members.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths[..3], ["oci-layout", "index.json", "manifest.json"]);
    assert_eq!(json_member(&members, "oci-layout"), serde_json::json!({"imageLayoutVersion": "1.0.0"}));
    for (path, content) in &members[3..] {
        assert_eq!(*path, format!("blobs/sha256/{}", sha256(content).trim_start_matches("sha256:")));
    }
    let expected: std::collections::BTreeSet<&String> = [&app, &tool, &signature, &cosign]
        .into_iter()
        .flat_map(|image| image.manifests.keys().chain(image.blobs.keys()))
        .collect();
    assert_eq!(members.len(), 3 + expected.len(), "each manifest and blob once");

    // skopeo, podman and regctl: `ref.name`, one descriptor an image. containerd, docker and hauler: the full name.
    let index = json_member(&members, "index.json");
    let entries = index["manifests"].as_array().unwrap();
    let named: Vec<_> = entries.iter().filter(|entry| entry["annotations"].get(CONTAINERD).is_some()).collect();
    assert_eq!(named.len(), 2);
    for (entry, (name, root)) in named.iter().zip([(&from_app, &app.root), (&from_tool, &tool.root)]) {
        assert_eq!(entry["annotations"], serde_json::json!({REF_NAME: name, CONTAINERD: name}));
        assert_eq!(entry["digest"], **root);
    }
    let of_app: Vec<_> = entries.iter().filter(|entry| entry["annotations"][SUBJECT] == *app.root).collect();
    assert_eq!(of_app.len(), 2, "the referrer and cosign's tag: {index}");
    // Loaders would take what has one of these names for an image.
    assert!(of_app.iter().all(|entry| entry["annotations"].get(REF_NAME).is_none()), "{index}");
    assert!(of_app.iter().any(|entry| entry["digest"] == *signature.root));

    // docker before 25, podman and crane: one platform, and paths that exist.
    let docker = json_member(&members, "manifest.json");
    assert_eq!(docker.as_array().unwrap().len(), 2);
    for (image, name) in docker.as_array().unwrap().iter().zip([&from_app, &from_tool]) {
        assert_eq!(image["RepoTags"], serde_json::json!([name]));
        let layers = image["Layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2);
        assert!(layers.iter().chain([&image["Config"]]).all(|path| paths.contains(&path.as_str().unwrap())));
    }
}

#[tokio::test]
async fn crane_gets_a_single_image_even_under_two_tags() {
    let source = FaultRegistry::start().await;
    let image = images::single("shape-crane");
    source.push("team/app", "1.0", &image);
    source.move_tag("team/app", "latest", &image.root);
    let program = Imgsync::new();
    let from = ["1.0", "latest"].map(|tag| format!("{}/team/app:{tag}", source.host()));
    sync(&program, &[&from[0], &from[1], "docker-archive:app.tar"]).run().await.assert_code(0);
    let docker = json_member(&members(&program.work_dir().join("app.tar")), "manifest.json");
    assert_eq!(docker.as_array().unwrap().len(), 1);
    assert_eq!(docker[0]["RepoTags"], serde_json::json!(from));
}

#[tokio::test]
async fn the_name_may_be_given_and_docker_hub_is_left_out_of_it_for_docker() {
    let source = FaultRegistry::start().await;
    source.push("team/app", "1.0", &images::single("shape-name"));
    let program = Imgsync::new();
    let from = format!("{}/team/app:1.0", source.host());
    for (given, full, familiar) in [
        (":docker.io/library/alpine:3", Some("docker.io/library/alpine:3"), Some("alpine:3")),
        (":me/alpine:3", Some("docker.io/me/alpine:3"), Some("me/alpine:3")),
        (":3", None, None),
    ] {
        sync(&program, &[&from, &format!("docker-archive:a.tar{given}")]).run().await.assert_code(0);
        let members = members(&program.work_dir().join("a.tar"));
        let annotations = &json_member(&members, "index.json")["manifests"][0]["annotations"];
        assert_eq!(annotations[REF_NAME], full.unwrap_or("3"));
        assert_eq!(annotations.get(CONTAINERD).and_then(|name| name.as_str()), full);
        let tags = familiar.into_iter().collect::<Vec<_>>();
        assert_eq!(json_member(&members, "manifest.json")[0]["RepoTags"], serde_json::json!(tags));
    }
}

#[tokio::test]
async fn the_bytes_are_always_the_same_and_each_blob_is_read_once() {
    let source = FaultRegistry::start().await;
    let (one, two) = (images::shared_layers("shape-shared"), images::multi_platform("shape-two"));
    source.push("a", "1", &one);
    source.push("b", "1", &one);
    source.push("c", "1", &two);
    let names = ["a", "b", "c"].map(|name| format!("{}/{name}:1", source.host()));
    let program = Imgsync::new();
    let target = "oci-archive:x.tar";
    let output = sync(&program, &[&names[0], &names[1], &names[2], target, "--json"]).run().await.assert_code(0);
    let blobs = one.blobs.len() + two.blobs.len();
    assert_eq!(source.count(RequestType::BlobGet), blobs as u64, "{}", source.describe_requests());
    let json = output.json();
    let path = program.work_dir().join("x.tar");
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(json["size"], bytes.len(), "{json}");
    assert_eq!(json["blobs"]["copied"], blobs);
    assert_eq!(json["bytes"]["copied"], one.blob_bytes() + two.blob_bytes());
    assert_eq!(json["traffic"]["source"]["received"], json["bytes"]["copied"]);
    assert_eq!(json["images"].as_array().unwrap().len(), 3);
    assert_eq!(file_names(&program.work_dir()), ["x.tar"]);

    sync(&program, &[&names[2], &names[1], &names[0], "oci-archive:y.tar"]).run().await.assert_code(0);
    assert!(bytes == std::fs::read(program.work_dir().join("y.tar")).unwrap(), "in another order");
}

#[tokio::test]
async fn what_dockers_format_cannot_express_is_refused_for_it_and_said_otherwise() {
    let source = FaultRegistry::start().await;
    source.push("chart", "1", &images::helm_chart("shape-chart"));
    let from = format!("{}/chart:1", source.host());
    let program = Imgsync::new();
    let output = sync(&program, &[&from, "docker-archive:a.tar"]).run().await.assert_code(1);
    assert!(output.stderr.contains(&from) && output.stderr.contains("oci-archive:FILE"), "{}", output.stderr);
    assert_eq!(file_names(&program.work_dir()), Vec::<String>::new());
    let output = sync(&program, &[&from, "oci-archive:a.tar"]).run().await.assert_code(0);
    assert!(output.stderr.contains("docker load and podman load do not get"), "{}", output.stderr);
    assert!(!members(&program.work_dir().join("a.tar")).iter().any(|(path, _)| path == "manifest.json"));
}

#[tokio::test]
async fn one_platform_referrers_and_a_dry_run_are_chosen_as_for_any_target() {
    let source = FaultRegistry::start().await;
    let app = images::multi_platform("shape-platform");
    source.push("app", "1", &app);
    source.push_untagged("app", &images::referrer("shape-left", &app));
    let from = format!("{}/app:1", source.host());
    let program = Imgsync::new();
    let options = ["--platform", "linux/arm64", "--referrers", "none"];
    let output = sync(&program, &[&from, "oci-archive:a.tar", "--dry-run"]).args(options).run().await.assert_code(0);
    assert_eq!(output.stdout, format!("copy {from} oci-archive:a.tar\n"));
    assert_eq!((file_names(&program.work_dir()).len(), source.count(RequestType::BlobGet)), (0, 0));
    sync(&program, &[&from, "oci-archive:a.tar"]).args(options).run().await.assert_code(0);
    let members = members(&program.work_dir().join("a.tar"));
    // A manifest, a config and two layers.
    assert_eq!(members.len(), 3 + 4);
    assert_eq!(json_member(&members, "index.json")["manifests"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn targets_that_make_no_sense_are_refused_with_a_hint() {
    let source = FaultRegistry::start().await;
    let image = images::single("shape-refused");
    source.push("app", "1", &image);
    let (from, by_digest) = (format!("{}/app:1", source.host()), format!("{}/app@{}", source.host(), image.root));
    let digest = format!("oci-archive:a.tar@{}", image.root);
    let program = Imgsync::new();
    for (arguments, reason) in [
        (vec![&*from, &*from, "oci-archive:a.tar:name:1"], "one name was given for several images"),
        (vec![&from, &digest], "named by its tag"),
        (vec![&by_digest, "oci-archive:a.tar"], "name the image"),
        (vec![&from, "oci-archive:-", "--json"], "not both"),
        (vec![&from, &from, "oci:folder"], "not an archive"),
        (vec![&from, "oci:folder", "--archive-compress", "gzip"], "for archives as targets"),
        (vec![&from, "oci-archive:.:x"], "is a folder"),
    ] {
        let output = sync(&program, &arguments).run().await.assert_code(2);
        assert!(output.stderr.contains(reason), "{arguments:?}: {}", output.stderr);
        assert_eq!(file_names(&program.work_dir()), Vec::<String>::new(), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_signed_image_keeps_its_tag_on_the_way_back_and_a_link_in_place_of_the_hidden_file_is_refused() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let app = images::multi_platform("way-back");
    let signature = images::referrer("way-back-signature", &app);
    source.push("team/app", "1.0", &app);
    source.push_untagged("team/app", &signature);
    let program = Imgsync::new();
    let from = format!("{}/team/app:1.0", source.host());
    sync(&program, &[&from, "oci-archive:a.tar"]).run().await.assert_code(0);
    let output = sync(&program, &["oci-archive:a.tar", &format!("{}/b", target.host())]).run().await.assert_code(0);
    assert!(!output.stderr.contains("by digest only"), "{}", output.stderr);
    target.assert_holds("b", "1.0", &app);

    // A signature of which the content is damaged does not get lost silently.
    let file = program.work_dir().join("a.tar");
    let mut bytes = std::fs::read(&file).unwrap();
    let manifest = &signature.root_manifest().bytes;
    let at = bytes.windows(manifest.len()).position(|window| *window == **manifest).unwrap();
    bytes[at + 20] ^= 1;
    std::fs::write(program.work_dir().join("damaged.tar"), bytes).unwrap();
    let to = format!("{}/c", target.host());
    let output = sync(&program, &["oci-archive:damaged.tar", &to]).run().await.assert_code(1);
    assert!(output.stderr.contains(signature.root.trim_start_matches("sha256:")), "{}", output.stderr);

    std::os::unix::fs::symlink("elsewhere", program.work_dir().join(".b.tar.imgsync-partial")).unwrap();
    let output = sync(&program, &[&from, "oci-archive:b.tar"]).run().await;
    assert_ne!(output.code, Some(0));
    assert!(output.stderr.contains("is a link"), "{}", output.stderr);
    assert!(!program.work_dir().join("elsewhere").exists());
}

#[tokio::test]
async fn blobs_of_a_source_that_is_read_forward_are_written_in_its_order() {
    let source = FaultRegistry::start().await;
    let images = ["order-app", "order-tool"].map(|name| TestImage::single(name).layers(3, 40_000).build());
    let program = Imgsync::new();
    for (tag, image) in ["1", "2"].into_iter().zip(&images) {
        source.push("app", tag, image);
    }
    let names = ["1", "2"].map(|tag| format!("{}/app:{tag}", source.host()));
    sync(&program, &[&names[0], &names[1], "oci-archive:a.tar"]).run().await.assert_code(0);
    let mut written = members(&program.work_dir().join("a.tar"));
    // As a tool that orders content by something else has it.
    written.sort_by_key(|(path, _)| (path.starts_with("blobs/"), std::cmp::Reverse(path.clone())));
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in &written {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, &content[..]).unwrap();
    }
    let plain = program.file("b.tar", tar.into_inner().unwrap());
    let is_blob =
        |path: &&String| images.iter().flat_map(|image| &image.blobs).any(|(digest, _)| path.ends_with(&digest[7..]));
    let expected: Vec<&String> = written.iter().map(|(path, _)| path).filter(is_blob).collect();
    for tool in ["zstd", "xz"] {
        let packed = std::process::Command::new(tool).arg("-kq").arg(&plain).status();
        assert!(packed.unwrap().success());
        let suffix = if tool == "zstd" { "zst" } else { "xz" };
        let from = names.clone().map(|name| format!("oci-archive:b.tar.{suffix}:{name}"));
        sync(&program, &[&from[0], &from[1], "oci-archive:c.tar"]).run().await.assert_code(0);
        let copied = members(&program.work_dir().join("c.tar"));
        let found: Vec<&String> = copied.iter().map(|(path, _)| path).filter(is_blob).collect();
        assert_eq!(found, expected, "{tool}");
    }
}
