//! Plans and files of archives.

use std::collections::HashMap;
use std::io::Read as _;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use imgsync_layout::PipeTimeout;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, Manifest, MediaType};
use imgsync_registry::Context;

use crate::{
    ArchiveImage, ArchiveOutput, ArchivePlan, ArchivePlanner, ArchiveSink, ArchiveSource, Compression, ContentStream,
    ThreadSink, write_archive,
};

/// Content by digest, and how often each was opened.
#[derive(Default)]
struct Contents {
    bytes: HashMap<Digest, Bytes>,
    opened: std::sync::Mutex<Vec<Digest>>,
}

#[async_trait]
impl ArchiveSource for Contents {
    async fn read_manifest(&self, digest: &Digest) -> Result<Bytes> {
        Ok(self.bytes[digest].clone())
    }

    async fn open_blob(&self, digest: &Digest, _size: u64) -> Result<ContentStream> {
        self.opened.lock().unwrap().push(digest.clone());
        let chunks: Vec<_> = self.bytes[digest].chunks(700).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        Ok(futures_util::stream::iter(chunks).boxed())
    }
}

/// Takes bytes until it breaks.
struct Buffer {
    bytes: Vec<u8>,
    breaks_after: usize,
}

#[async_trait]
impl ArchiveSink for Buffer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let room = self.breaks_after.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        match bytes.len() > room {
            true => Err(Error::new(ErrorKind::Local, "writing", "broken")),
            false => Ok(()),
        }
    }
}

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl Contents {
    fn add(&mut self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::new(MediaType::new(media_type), Digest::sha256(&bytes), bytes.len() as u64);
        self.bytes.insert(descriptor.digest.clone(), bytes);
        descriptor
    }

    fn add_manifest(&mut self, planner: &mut ArchivePlanner, text: &serde_json::Value) -> Manifest {
        let manifest = Manifest::parse(text.to_string().into(), &MediaType::Missing).unwrap();
        self.bytes.insert(manifest.digest().clone(), manifest.bytes().clone());
        planner.add_manifest(&manifest).unwrap();
        manifest
    }

    fn add_image(&mut self, planner: &mut ArchivePlanner, name: &str, config_type: &str) -> Manifest {
        let config = self.add(config_type, format!("{{\"of\":\"{name}\"}}"));
        let layers = [self.add(LAYER, vec![7; 3000]), self.add(LAYER, name.as_bytes().repeat(100))];
        for blob in layers.iter().chain([&config]) {
            planner.add_blob(blob).unwrap();
        }
        self.add_manifest(
            planner,
            &serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config, "layers": layers,
            }),
        )
    }

    fn add_platforms(&mut self, planner: &mut ArchivePlanner, name: &str, architectures: &[&str]) -> Manifest {
        let children: Vec<_> = architectures
            .iter()
            .map(|architecture| {
                let child = self.add_image(planner, &format!("{name}-{architecture}"), CONFIG);
                let mut child = serde_json::to_value(child.descriptor()).unwrap();
                child["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
                child
            })
            .collect();
        let mut manifests = vec![serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::sha256(b"attestation"), "size": 3,
            "platform": {"os": "unknown", "architecture": "unknown"},
        })];
        manifests.extend(children);
        self.add_manifest(
            planner,
            &serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
            }),
        )
    }
}

fn planner() -> ArchivePlanner {
    ArchivePlanner::new("linux/arm64".parse().unwrap())
}

fn image(name: &str, root: &Manifest) -> ArchiveImage {
    ArchiveImage::new(name.parse().unwrap(), root.descriptor())
}

/// Two images, one of them with several platforms, and a signature.
fn two_images() -> (Contents, ArchivePlan) {
    let (mut contents, mut planner) = (Contents::default(), planner());
    let app = contents.add_platforms(&mut planner, "app", &["amd64", "arm64"]);
    let tool = contents.add_image(&mut planner, "tool", CONFIG);
    let signature = contents.add_image(&mut planner, "signature", "application/vnd.example.signature");
    planner.add_image(image("registry.example.com/team/tool:1", &tool));
    planner.add_image(ArchiveImage::referrer(app.digest().clone(), signature.descriptor()));
    planner.add_image(image("docker.io/library/app:2", &app));
    planner.add_file("extra/notes", "something else");
    (contents, planner.build().unwrap())
}

async fn written(plan: &ArchivePlan, contents: &Contents) -> Vec<u8> {
    let mut buffer = Buffer { bytes: Vec::new(), breaks_after: usize::MAX };
    write_archive(plan, contents, &mut buffer, 0).await.unwrap();
    buffer.bytes
}

fn read(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    });
    entries.collect()
}

fn json(members: &[(String, Vec<u8>)], path: &str) -> serde_json::Value {
    let (_, bytes) = members.iter().find(|(name, _)| name == path).unwrap();
    serde_json::from_slice(bytes).unwrap()
}

#[tokio::test]
async fn the_size_is_known_ahead_and_members_come_in_the_order_that_needs_one_pass() {
    let (contents, plan) = two_images();
    let bytes = written(&plan, &contents).await;
    assert_eq!(bytes.len() as u64, plan.total_size());
    let members = read(&bytes);
    let paths: Vec<&str> = members.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths[..4], ["oci-layout", "index.json", "manifest.json", "extra/notes"]);
    for (path, content) in &members[4..] {
        assert_eq!(*path, format!("blobs/sha256/{}", Digest::sha256(content).hex()));
    }
    let kind = |content: &[u8]| match serde_json::from_slice::<serde_json::Value>(content) {
        Ok(value) if value.get("schemaVersion").is_some() => 0,
        Ok(_) => 1,
        Err(_) => 2,
    };
    let kinds: Vec<i32> = members[4..].iter().map(|(_, content)| kind(content)).collect();
    assert!(kinds.is_sorted(), "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == 0).count(), 5);
    // Shared layers are in it, and are read, once.
    let opened = contents.opened.lock().unwrap();
    assert_eq!(opened.len(), opened.iter().collect::<std::collections::HashSet<_>>().len());
    assert_eq!(opened.len(), 4 + 1 + 4);
}

#[tokio::test]
async fn the_bytes_depend_on_the_content_alone_and_not_on_the_order_it_was_added() {
    let (contents, plan) = two_images();
    let again = {
        let (mut contents, mut planner) = (Contents::default(), planner());
        let tool = contents.add_image(&mut planner, "tool", CONFIG);
        planner.add_image(image("registry.example.com/team/tool:1", &tool));
        planner.add_file("extra/notes", "something else");
        let signature = contents.add_image(&mut planner, "signature", "application/vnd.example.signature");
        let app = contents.add_platforms(&mut planner, "app", &["amd64", "arm64"]);
        planner.add_image(image("docker.io/library/app:2", &app));
        planner.add_image(image("docker.io/library/app:2", &app));
        planner.add_image(ArchiveImage::referrer(app.digest().clone(), signature.descriptor()));
        written(&planner.build().unwrap(), &contents).await
    };
    assert!(written(&plan, &contents).await == again);
}

#[tokio::test]
async fn full_names_are_in_both_annotations_and_a_referrer_has_a_subject_in_place_of_a_name() {
    let (contents, plan) = two_images();
    let members = read(&written(&plan, &contents).await);
    let index = json(&members, "index.json");
    let of = |at: usize, key: &str| index["manifests"][at]["annotations"][key].as_str().map(str::to_owned);
    for (at, name) in [(0, "docker.io/library/app:2"), (1, "registry.example.com/team/tool:1")] {
        for key in ["org.opencontainers.image.ref.name", "io.containerd.image.name"] {
            assert_eq!(of(at, key).as_deref(), Some(name));
        }
    }
    assert_eq!(of(2, "io.containerd.manifest.subject"), index["manifests"][0]["digest"].as_str().map(str::to_owned));
    assert_eq!(index["manifests"][2]["annotations"].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn manifest_json_has_one_platform_of_each_image_under_familiar_names() {
    let (contents, plan) = two_images();
    let members = read(&written(&plan, &contents).await);
    let images = json(&members, "manifest.json");
    assert_eq!(images.as_array().unwrap().len(), 2, "the signature is no image");
    assert_eq!(images[0]["RepoTags"], serde_json::json!(["app:2"]));
    assert_eq!(images[1]["RepoTags"], serde_json::json!(["registry.example.com/team/tool:1"]));
    let config = members.iter().find(|(path, _)| path == images[0]["Config"].as_str().unwrap()).unwrap();
    assert_eq!(config.1, b"{\"of\":\"app-arm64\"}");
    for image in images.as_array().unwrap() {
        assert!(image["Layers"].as_array().unwrap().iter().all(|layer| members.iter().any(|(path, _)| layer == path)));
    }
    let summary = plan.docker();
    assert_eq!((summary.images, summary.reduced, summary.left_out), (2, 1, 0));
    assert_eq!(summary.platform.as_ref().unwrap().to_string(), "linux/arm64");
}

#[test]
fn the_platform_in_manifest_json_is_the_preferred_one_else_amd64_else_the_first() {
    for (architectures, chosen) in
        [(["amd64", "arm64"], "arm64"), (["s390x", "amd64"], "amd64"), (["s390x", "ppc64le"], "s390x")]
    {
        let (mut contents, mut planner) = (Contents::default(), planner());
        let root = contents.add_platforms(&mut planner, "x", &architectures);
        planner.add_image(image("a.example/x:1", &root));
        let plan = planner.build().unwrap();
        assert_eq!(plan.docker().platform.as_ref().unwrap().architecture, chosen);
    }
}

#[tokio::test]
async fn two_tags_of_one_image_share_an_entry_and_what_is_not_whole_has_none() {
    let (mut contents, mut planner) = (Contents::default(), planner());
    let one = contents.add_image(&mut planner, "one", CONFIG);
    planner.add_image(image("a.example/one:1", &one));
    planner.add_image(image("a.example/one:latest", &one));
    let layer = contents.add(LAYER, "at the other side");
    let config = contents.add(CONFIG, "{}");
    planner.add_blob(&config).unwrap();
    let thin = contents
        .add_manifest(&mut planner, &serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]}));
    planner.add_image(image("a.example/thin:1", &thin));
    let plan = planner.build().unwrap();
    let members = read(&written(&plan, &contents).await);
    let images = json(&members, "manifest.json");
    assert_eq!(images.as_array().unwrap().len(), 1);
    assert_eq!(images[0]["RepoTags"], serde_json::json!(["a.example/one:1", "a.example/one:latest"]));
    assert_eq!(plan.docker().left_out_names, ["a.example/thin:1"]);
    assert!(!members.iter().any(|(path, _)| path.ends_with(layer.digest.hex())));
}

#[test]
fn one_name_for_two_images_and_two_sizes_of_one_blob_are_refused() {
    let (mut contents, mut first) = (Contents::default(), planner());
    let images = ["one", "two"].map(|name| contents.add_image(&mut first, name, CONFIG));
    for root in &images {
        first.add_image(image("a.example/x:1", root));
    }
    let error = first.build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Collision);
    assert!(error.to_string().contains(&images[1].digest().to_string()), "{error}");

    let mut planner = planner();
    let blob = contents.add(LAYER, "x");
    planner.add_blob(&blob).unwrap();
    let error = planner.add_blob(&Descriptor { size: 2, ..blob }).unwrap_err();
    assert!(error.to_string().contains("1 bytes in one manifest and 2 bytes"), "{error}");
}

#[tokio::test]
async fn a_broken_write_resumes_at_any_offset_with_the_same_bytes() {
    let (contents, plan) = two_images();
    let whole = written(&plan, &contents).await;
    for breaks_after in (0..whole.len()).step_by(611) {
        let mut buffer = Buffer { bytes: Vec::new(), breaks_after };
        write_archive(&plan, &contents, &mut buffer, 0).await.unwrap_err();
        assert_eq!(buffer.bytes.len(), breaks_after);
        buffer.breaks_after = usize::MAX;
        contents.opened.lock().unwrap().clear();
        write_archive(&plan, &contents, &mut buffer, breaks_after as u64).await.unwrap();
        assert!(buffer.bytes == whole, "{breaks_after}");
    }
    assert!(contents.opened.lock().unwrap().len() <= 1, "whole members are not read again");
}

#[tokio::test]
async fn long_digests_and_blobs_over_eight_gib_have_headers_that_tar_reads() {
    let digest = Digest::from_bytes(imgsync_oci::Algorithm::Sha512, b"x");
    let path = format!("blobs/sha512/{}", digest.hex());
    let member = crate::Member { path: path.clone(), size: 9 << 30, content: crate::MemberContent::Blob(digest) };
    let header = member.header();
    assert_eq!(member.archived_size(), header.len() as u64 + (9 << 30));
    let mut archive = tar::Archive::new(header.as_ref());
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!((entry.path().unwrap().display().to_string(), entry.size()), (path, 9 << 30));
}

/// How long to wait for the reader of a FIFO.
const NO_WAIT: PipeTimeout = PipeTimeout { limit: Duration::ZERO, option: Some("--timeout") };

async fn write_file(
    path: &std::path::Path,
    plan: &ArchivePlan,
    contents: &Contents,
    compression: Compression,
) -> Result<u64> {
    let mut file = ArchiveOutput::open(path, plan, compression, NO_WAIT, &Context::default()).await?;
    let resumed = file.resume_from();
    write_archive(plan, contents, &mut file, resumed).await?;
    file.commit().await?;
    Ok(resumed)
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_file_appears_when_it_is_whole_and_a_partial_one_is_verified_and_resumed() {
    let (contents, plan) = two_images();
    let whole = written(&plan, &contents).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    std::fs::write(&path, "the former archive").unwrap();
    let cut = whole.len() - 4000;
    let partial = dir.path().join(".a.tar.imgsync-partial");
    for damage in [None, Some(whole.len() / 2)] {
        let mut bytes = whole[..cut].to_vec();
        if let Some(at) = damage {
            bytes[at] ^= 1;
        }
        std::fs::write(&partial, bytes).unwrap();
        let file = ArchiveOutput::open(&path, &plan, Compression::None, NO_WAIT, &Context::default()).await.unwrap();
        let resumed = file.resume_from();
        let ends: Vec<u64> = plan
            .members()
            .iter()
            .scan(0, |end, member| {
                *end += member.archived_size();
                Some(*end)
            })
            .collect();
        assert!(ends.contains(&resumed) && resumed <= damage.unwrap_or(cut) as u64, "{resumed}");
        assert!(resumed + 4096 > damage.unwrap_or(cut) as u64, "{resumed}");
        assert_eq!(names(dir.path()), [".a.tar.imgsync-partial", "a.tar"]);
        drop(file);
    }
    assert!(write_file(&path, &plan, &contents, Compression::None).await.unwrap() > 0);
    assert!(std::fs::read(&path).unwrap() == whole);
    assert_eq!(names(dir.path()), ["a.tar"]);
}

#[tokio::test]
async fn a_compressed_file_holds_the_same_archive_and_has_always_the_same_bytes() {
    let (contents, plan) = two_images();
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a.gz", "b.gz"].map(|name| dir.path().join(name));
    for path in &paths {
        write_file(path, &plan, &contents, Compression::Gzip).await.unwrap();
    }
    let files = paths.map(|path| std::fs::read(path).unwrap());
    assert!(files[0] == files[1]);
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&files[0][..]).read_to_end(&mut bytes).unwrap();
    assert!(bytes == written(&plan, &contents).await);
}

#[tokio::test]
async fn wrong_content_is_asked_for_once_more_and_never_in_the_file() {
    let (mut contents, plan) = two_images();
    let victim = plan.members().last().unwrap().digest().unwrap().clone();
    let size = contents.bytes[&victim].len();
    contents.bytes.insert(victim.clone(), vec![1; size].into());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let error = write_file(&path, &plan, &contents, Compression::None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(&victim.to_string()), "{error}");
    assert_eq!(contents.opened.lock().unwrap().iter().filter(|digest| **digest == victim).count(), 2);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_no_place_for_a_file_is_refused() {
    let (_, plan) = two_images();
    let dir = tempfile::tempdir().unwrap();
    for (path, reason) in [(dir.path().to_owned(), "is a folder"), (dir.path().join("no/such.tar"), "make the folder")]
    {
        let error =
            ArchiveOutput::open(&path, &plan, Compression::None, NO_WAIT, &Context::default()).await.unwrap_err();
        let text = format!("{error} {}", error.hint().unwrap_or_default());
        assert!(text.contains(reason), "{text}");
    }
}

#[tokio::test]
async fn a_fifo_waits_for_its_reader_as_long_as_it_may() {
    let (contents, plan) = two_images();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let error = write_file(&path, &plan, &contents, Compression::None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(
        error.to_string().contains("no program opened the FIFO") && error.to_string().contains("--timeout"),
        "{error}"
    );
    let reading = path.clone();
    let reader = tokio::task::spawn_blocking(move || std::fs::read(reading).unwrap());
    let timeout = PipeTimeout { limit: Duration::from_secs(60), option: None };
    let mut file = ArchiveOutput::open(&path, &plan, Compression::None, timeout, &Context::default()).await.unwrap();
    write_archive(&plan, &contents, &mut file, 0).await.unwrap();
    file.commit().await.unwrap();
    assert!(reader.await.unwrap() == written(&plan, &contents).await);
}

#[tokio::test]
async fn a_compressed_stream_that_is_given_up_does_not_end_as_if_it_were_whole() {
    let dir = tempfile::tempdir().unwrap();
    let unpack = |path: &std::path::Path| {
        let mut unpacked = Vec::new();
        let file = std::fs::File::open(path).unwrap();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(file), &mut unpacked).map(|_| unpacked)
    };
    for is_finished in [false, true] {
        let path = dir.path().join(format!("{is_finished}.gz"));
        let mut sink = ThreadSink::gzip(std::fs::File::create(&path).unwrap(), "writing".to_owned());
        sink.write(Bytes::from_static(b"the beginning")).await.unwrap();
        if is_finished {
            sink.finish().await.unwrap();
            assert_eq!(unpack(&path).unwrap(), b"the beginning");
        } else {
            sink.close().await.unwrap();
            assert!(unpack(&path).is_err());
        }
    }
}
