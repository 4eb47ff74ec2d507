//! Archives in the shapes of crane, regctl, hauler and newer versions of Docker, written member by member.

use std::collections::BTreeSet;
use std::io::Read as _;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{self, Blob, Layer, TestImage};
use imgsync_tests::program::Imgsync;
use serde_json::{Value, json};

use super::{compress, config_of, copy_docker_archive, sync};
use crate::end_to_end::{configured, run};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD: &str = "io.containerd.image.name";
const LAYOUT_TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes an archive.
struct ArchiveFile {
    tar: tar::Builder<Vec<u8>>,
    written: BTreeSet<String>,
}

impl ArchiveFile {
    fn new() -> ArchiveFile {
        ArchiveFile { tar: tar::Builder::new(Vec::new()), written: BTreeSet::new() }
    }

    /// Adds a member, unless it is there.
    fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> ArchiveFile {
        if self.written.insert(path.to_owned()) {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.as_ref().len() as u64);
            header.set_mode(0o644);
            self.tar.append_data(&mut header, path, content.as_ref()).unwrap();
        }
        self
    }

    fn json(self, path: &str, content: &Value) -> ArchiveFile {
        self.file(path, content.to_string())
    }

    fn folder(mut self, path: &str) -> ArchiveFile {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        self.tar.append_data(&mut header, path, &b""[..]).unwrap();
        self
    }

    /// Adds `oci-layout` and `index.json`.
    fn layout(self, entries: &[Value]) -> ArchiveFile {
        self.json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))
            .json("index.json", &json!({"schemaVersion": 2, "manifests": entries}))
    }

    /// Adds all manifests and blobs of an image, as in a layout.
    fn blobs(mut self, image: &TestImage) -> ArchiveFile {
        for (digest, manifest) in &image.manifests {
            self = self.file(&blob_path(digest), &manifest.bytes);
        }
        for (digest, blob) in &image.blobs {
            self = self.file(&blob_path(digest), blob.read(0..blob.size()));
        }
        self
    }

    fn save(self, program: &Imgsync, name: &str) {
        program.file(name, self.tar.into_inner().unwrap());
    }
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

fn blob_path(digest: &str) -> String {
    format!("blobs/sha256/{}", hex(digest))
}

/// Returns an image's descriptor with annotations, as in `index.json`.
fn entry(image: &TestImage, annotations: Value) -> Value {
    let mut descriptor = image.descriptor();
    descriptor["annotations"] = annotations;
    descriptor
}

/// Returns an image's entry in `manifest.json` whose paths are those of a layout.
fn docker_entry(image: &TestImage, names: &[&str]) -> Value {
    let layers: Vec<String> = image.layers().iter().map(|layer| blob_path(layer)).collect();
    json!({"Config": blob_path(&image.config()), "RepoTags": names, "Layers": layers})
}

/// Returns the layers that an entry of `manifest.json` describes, by diff id.
fn layer_sources(image: &TestImage) -> Value {
    let layers = image.root_manifest().json()["layers"].clone();
    let described = layers.as_array().unwrap().iter();
    described
        .map(|layer| (layer["digest"].as_str().unwrap().to_owned(), layer.clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Builds an image whose layers are not compressed, as Docker keeps them.
fn plain_layers(name: &str) -> TestImage {
    let layer = |number: usize| {
        let (compressed, diff_id) = images::tarball(&format!("{name}-{number}"), 3000);
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&compressed.read(0..compressed.size())[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(images::sha256(&plain), diff_id);
        Layer::Blob(Blob::from(plain))
    };
    TestImage::single(name).layer(layer(1)).layer(layer(2)).layer_type(LAYOUT_TAR_LAYER).build()
}

/// Lists the images of an archive.
async fn listed(program: &Imgsync, archive: &str) -> String {
    program.again().args(["tags", archive]).run().await.assert_code(0).stdout
}

#[tokio::test]
async fn cranes_tarball_keeps_its_layers_byte_for_byte() {
    let program = Imgsync::new();
    let (app, twice) = (images::single_docker("crane-app"), images::layer_twice("crane-twice"));
    let mut archive = ArchiveFile::new();
    let mut entries = Vec::new();
    for (image, name) in [(&app, "gcr.io/team/app:1.0"), (&twice, "gcr.io/team/twice:1.0")] {
        let config = image.config();
        archive = archive.file(&config, image.blobs[&config].read(0..image.blobs[&config].size()));
        let layers = image.layers();
        for layer in &layers {
            let blob = &image.blobs[layer];
            archive = archive.file(&format!("{}.tar.gz", hex(layer)), blob.read(0..blob.size()));
        }
        let paths: Vec<String> = layers.iter().map(|layer| format!("{}.tar.gz", hex(layer))).collect();
        entries.push(json!({"Config": config, "RepoTags": [name], "Layers": paths}));
    }
    archive.json("manifest.json", &json!(entries)).save(&program, "crane.tar");

    assert_eq!(listed(&program, "docker-archive:crane.tar").await, "gcr.io/team/app:1.0\ngcr.io/team/twice:1.0\n");
    for (image, name) in [(&app, "gcr.io/team/app:1.0"), (&twice, "gcr.io/team/twice:1.0")] {
        let archive = format!("docker-archive:crane.tar:{name}");
        copy_docker_archive(&program, &archive, image).await;
        let target = FaultRegistry::start().await;
        sync(&program, &[&archive, &format!("{}/m/app:1", target.host())]).run().await.assert_code(0);
        let manifest = target.manifest("m/app", "1").unwrap().json();
        let layers: Vec<&str> =
            manifest["layers"].as_array().unwrap().iter().map(|l| l["digest"].as_str().unwrap()).collect();
        assert_eq!(layers, image.layers());
        assert!(image.blobs.keys().all(|digest| target.has_blob("m/app", digest)));
    }
}

#[tokio::test]
async fn cranes_layout_has_no_names_and_every_command_says_so() {
    let target = FaultRegistry::start().await;
    let app = images::multi_platform("crane-layout");
    let program = Imgsync::new();
    ArchiveFile::new().folder("blobs/").layout(&[app.descriptor()]).blobs(&app).save(&program, "crane.tar");
    let whole = "oci-archive:crane.tar";
    let hint = format!("crane.tar@{} TARGET:TAG`", app.root);

    let tags = program.again().args(["tags", whole]).run().await.assert_code(1);
    assert!(tags.stderr.contains("has no name") && tags.stderr.contains(&hint), "{}", tags.stderr);
    assert!(!tags.stderr.contains("0 repositories"), "{}", tags.stderr);
    let rules = configured(&format!("rules:\n- {{from: \"{whole}\", to: {}/m, naming: keep}}\n", target.host()));
    std::fs::copy(program.work_dir().join("crane.tar"), rules.work_dir().join("crane.tar")).unwrap();
    let output = run(&rules, &[]).await.assert_code(1);
    assert!(output.stderr.contains(&hint), "{}", output.stderr);

    // The only image needs no name, but the target a tag.
    let to = format!("{}/m/app", target.host());
    sync(&program, &[whole, &format!("{to}:1.0")]).run().await.assert_code(0);
    target.assert_holds("m/app", "1.0", &app);
    sync(&program, &[&format!("{whole}@{}", app.root), &format!("{to}:2.0")]).run().await.assert_code(0);
    target.assert_holds("m/app", "2.0", &app);
    program.again().args(["verify", "--deep", whole, &format!("{to}:1.0")]).run().await.assert_code(0);
    assert_eq!(target.tags("m/app"), ["1.0", "2.0"]);
}

#[tokio::test]
async fn regctls_export_is_read_in_both_formats() {
    let target = FaultRegistry::start().await;
    let (app, tool) = (images::multi_platform("regctl-app"), images::single("regctl-tool"));
    let program = Imgsync::new();
    // Of all platforms: the tag only, and the full name.
    ArchiveFile::new()
        .layout(&[entry(&app, json!({REF_NAME: "1.0", CONTAINERD: "quay.io/team/app:1.0"}))])
        .blobs(&app)
        .save(&program, "app.tar");
    // With `--platform`: the digest follows the tag.
    let mut docker = docker_entry(&tool, &["quay.io/team/tool:2"]);
    docker["LayerSources"] = layer_sources(&tool);
    let name = format!("quay.io/team/tool:2@{}", tool.root);
    ArchiveFile::new()
        .layout(&[entry(&tool, json!({REF_NAME: "2", CONTAINERD: name}))])
        .json("manifest.json", &json!([docker]))
        .blobs(&tool)
        .save(&program, "tool.tar");
    // By older versions: nothing but the tag.
    ArchiveFile::new().layout(&[entry(&tool, json!({REF_NAME: "2"}))]).blobs(&tool).save(&program, "bare.tar");

    assert_eq!(listed(&program, "oci-archive:app.tar").await, "quay.io/team/app:1.0\n");
    assert_eq!(listed(&program, "oci-archive:tool.tar").await, "quay.io/team/tool:2\n");
    assert_eq!(listed(&program, "docker-archive:tool.tar").await, "quay.io/team/tool:2\n");
    let to = |tag: &str| format!("{}/m/x:{tag}", target.host());
    for (archive, tag, image) in [
        ("oci-archive:app.tar", "a", &app),
        ("oci-archive:app.tar:1.0", "b", &app),
        ("oci-archive:app.tar:quay.io/team/app:1.0", "c", &app),
        ("oci-archive:tool.tar:quay.io/team/tool:2", "d", &tool),
        ("oci-archive:tool.tar:2", "e", &tool),
        ("oci-archive:bare.tar:2", "f", &tool),
    ] {
        sync(&program, &[archive, &to(tag)]).run().await.assert_code(0);
        target.assert_holds("m/x", tag, image);
    }
    copy_docker_archive(&program, "docker-archive:tool.tar", &tool).await;
    let bare = program.again().args(["tags", "oci-archive:bare.tar"]).run().await.assert_code(1);
    assert!(bare.stderr.contains("bare.tar:2 TARGET`"), "{}", bare.stderr);
}

#[tokio::test]
async fn newer_versions_of_docker_save_a_layout_with_plain_layers() {
    let target = FaultRegistry::start().await;
    let app = plain_layers("docker-25");
    let program = Imgsync::new();
    // Two names of one image are two descriptors, and one entry in `manifest.json`.
    let annotations = |tag: &str| json!({CONTAINERD: format!("docker.io/team/app:{tag}"), REF_NAME: tag});
    let mut docker = docker_entry(&app, &["team/app:1.0", "team/app:latest"]);
    docker["LayerSources"] = layer_sources(&app);
    let top = app.layers().pop().unwrap();
    ArchiveFile::new()
        .folder("blobs/")
        .folder("blobs/sha256/")
        .blobs(&app)
        .layout(&[entry(&app, annotations("1.0")), entry(&app, annotations("latest"))])
        .json("manifest.json", &json!([docker]))
        .json("repositories", &json!({"team/app": {"1.0": hex(&top), "latest": hex(&top)}}))
        .save(&program, "saved.tar");

    let names = "docker.io/team/app:latest\ndocker.io/team/app:1.0\n";
    for format in ["oci-archive", "docker-archive"] {
        assert_eq!(listed(&program, &format!("{format}:saved.tar")).await, names);
        assert_eq!(config_of(&program, &format!("{format}:saved.tar:1.0")).await, app.config());
    }
    let to = format!("{}/m/app", target.host());
    sync(&program, &["oci-archive:saved.tar:team/app:1.0", &format!("{to}:kept")]).run().await.assert_code(0);
    target.assert_holds("m/app", "kept", &app);

    // The other format has no digests to keep, and this file also has the one that does.
    let output = sync(&program, &["docker-archive:saved.tar:latest", &format!("{to}:made")]).run().await.assert_code(0);
    assert!(output.stderr.contains("oci-archive:saved.tar keeps"), "{}", output.stderr);
    let made = target.manifest("m/app", "made").unwrap().json();
    assert_eq!(made["config"]["digest"], app.config());
    let layers = made["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|layer| layer["digest"].as_str().unwrap()).collect::<Vec<_>>(), app.layers());
    assert!(layers.iter().all(|layer| layer["mediaType"] == LAYOUT_TAR_LAYER));
    copy_docker_archive(&program, "docker-archive:saved.tar:1.0", &app).await;
}

#[tokio::test]
async fn what_docker_wrote_before_it_had_manifests_is_refused_with_the_way_out() {
    let program = Imgsync::new();
    let id = images::sha256(b"layer");
    ArchiveFile::new()
        .folder(&format!("{}/", hex(&id)))
        .file(&format!("{}/VERSION", hex(&id)), "1.0")
        .json(&format!("{}/json", hex(&id)), &json!({"id": hex(&id), "os": "linux"}))
        .file(&format!("{}/layer.tar", hex(&id)), [0; 1024])
        .json("repositories", &json!({"team/app": {"1.0": hex(&id)}}))
        .save(&program, "old.tar");
    for format in ["docker-archive", "oci-archive"] {
        for command in ["tags", "inspect"] {
            let output = program.again().args([command, &format!("{format}:old.tar")]).run().await;
            assert_ne!(output.code, Some(0));
            for part in ["does not contain a manifest.json", "Docker before 1.10", "save it again"] {
                assert!(output.stderr.contains(part), "{format} {command}: {}", output.stderr);
            }
        }
    }
}

/// Writes an archive as `hauler store save` does: members by name, and artifacts under the name of their image.
fn save_haul(program: &Imgsync, entries: &[Value], docker: &[Value], images: &[&TestImage], prefix: &str) {
    let mut archive = ArchiveFile::new().folder("blobs/").folder("blobs/sha256/");
    for image in images {
        archive = archive.blobs(image);
    }
    archive = archive.json("index.json", &json!({"schemaVersion": 2, "manifests": entries}));
    archive = archive.json("manifest.json", &json!(docker));
    archive
        .json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))
        .json("store.json", &json!({"store-id": "b7f6ae0c-53e9-4d28-a4f5-0d1f5f5a7b52"}))
        .save(program, &format!("{prefix}.tar"));
    let path = |name: String| program.work_dir().join(name);
    compress("zstd", &path(format!("{prefix}.tar")), &path(format!("{prefix}.tar.zst")));
}

#[tokio::test]
async fn haulers_archive_holds_images_and_their_signatures_under_one_name() {
    let target = FaultRegistry::start().await;
    let (app, tool) = (images::multi_platform("haul-app"), images::single_docker("haul-tool"));
    let (signature, attestation) = (images::cosign("haul-sig"), images::cosign("haul-att"));
    let (child_signature, referrer) = (images::cosign("haul-child"), images::referrer("haul-referrer", &app));
    let child = app.subtree(&app.children()[0]);
    let program = Imgsync::new();
    let named = |image: &TestImage, name: &str, kind: &str| {
        entry(image, json!({"kind": kind, REF_NAME: name, CONTAINERD: format!("quay.io/{name}")}))
    };
    let with_subject = |mut entry: Value, subject: &str| {
        entry["annotations"]["hauler.dev/subject-digest"] = json!(subject);
        entry
    };
    // Version 1 has other kinds, and says nothing of the subject.
    for (prefix, kinds) in [("v1", "dev.cosignproject.cosign"), ("v2", "dev.hauler")] {
        let kind = |kind: &str| format!("{kinds}/{kind}");
        let mut entries = vec![
            named(&app, "team/app:1.0", &kind("imageIndex")),
            named(&tool, "team/tool:2", &kind("image")),
            named(&signature, "team/app:1.0", &kind("sigs")),
            named(&attestation, "team/app:1.0", &kind("atts")),
        ];
        if prefix == "v2" {
            let of_child = named(&child_signature, "team/app:1.0", &kind(&format!("sigs/{}", hex(&child.root))));
            entries.push(with_subject(of_child, &child.root));
            let referrer = named(&referrer, "team/app:1.0", &kind(&format!("referrers/{}", hex(&referrer.root))));
            entries.push(with_subject(referrer, &app.root));
        }
        let docker = [docker_entry(&child, &["quay.io/team/app:1.0"]), docker_entry(&tool, &["quay.io/team/tool:2"])];
        let images = [&app, &tool, &signature, &attestation, &child_signature, &referrer];
        save_haul(&program, &entries, &docker, &images, prefix);

        let archive = format!("oci-archive:{prefix}.tar.zst");
        assert_eq!(listed(&program, &archive).await, "quay.io/team/app:1.0\nquay.io/team/tool:2\n");
        let repository = format!("{prefix}/app");
        let to = format!("{}/{repository}:1.0", target.host());
        sync(&program, &[&format!("{archive}:quay.io/team/app:1.0"), &to]).run().await.assert_code(0);
        target.assert_holds(&repository, "1.0", &app);
        assert_eq!(target.tag_digest(&repository, &app.digest_tag("sig")), Some(signature.root.clone()));
        assert_eq!(target.tag_digest(&repository, &app.digest_tag("att")), Some(attestation.root.clone()));
        if prefix == "v2" {
            assert_eq!(target.tag_digest(&repository, &child.digest_tag("sig")), Some(child_signature.root.clone()));
            assert!(target.manifest(&repository, &referrer.root).is_some());
        }

        let path = program.work_dir().join(format!("{prefix}.tar.zst"));
        let rules = configured(&format!(
            "rules:\n- {{from: \"oci-archive:{}\", to: {}/{prefix}-run, naming: keep}}\n",
            path.display(),
            target.host()
        ));
        let json = run(&rules, &[]).await.assert_code(0).json();
        assert_eq!(json["counts"]["copied"], 2, "{json}");
        target.assert_holds(&format!("{prefix}-run/team/tool"), "2", &tool);
        let of_app = format!("{prefix}-run/team/app");
        target.assert_holds(&of_app, "1.0", &app);
        assert_eq!(target.tag_digest(&of_app, &app.digest_tag("sig")), Some(signature.root.clone()));
    }
}
