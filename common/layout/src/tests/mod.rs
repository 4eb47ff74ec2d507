//! Layouts on a real disk: round trips, corrupt layouts, and concurrent writers.

mod archives;
mod compressed;
mod corrupt_layouts;
mod skopeo;
mod streams;
mod writers;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use imgsync_oci::{Descriptor, Manifest, MediaType};
use imgsync_registry::ManifestRef;

fn layer() -> MediaType {
    MediaType::new("application/vnd.oci.image.layer.v1.tar")
}

fn blob(bytes: &[u8]) -> Descriptor {
    Descriptor::new(layer(), Digest::sha256(bytes), bytes.len() as u64)
}

fn pieces(bytes: &[u8]) -> impl futures_util::Stream<Item = Result<Bytes>> + use<> {
    let pieces: Vec<_> = bytes.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    futures_util::stream::iter(pieces)
}

fn tag(text: &str) -> ManifestRef {
    ManifestRef::Tag(text.parse().unwrap())
}

fn name(text: &str) -> Option<QualifiedRepositoryName> {
    Some(QualifiedRepositoryName::from_reference(&text.parse().unwrap()))
}

/// A manifest of one config and the layers given.
fn manifest(layers: &[&[u8]]) -> Manifest {
    let layers: Vec<_> = layers.iter().map(|bytes| blob(bytes)).collect();
    let json = serde_json::json!({
        "schemaVersion": 2, "mediaType": MediaType::OciManifest, "config": blob(b"{}"), "layers": layers,
    });
    Manifest::parse(json.to_string().into(), &MediaType::OciManifest).unwrap()
}

/// Writes an image with one layer.
async fn put(layout: &Layout, repository: Option<&str>, reference: &str, content: &[u8]) -> Manifest {
    for bytes in [b"{}", content] {
        layout.write_blob(&blob(bytes), pieces(bytes)).await.unwrap();
    }
    let manifest = manifest(&[content]);
    let repository = layout.repository(repository.and_then(name));
    repository.put_manifest(&tag(reference), &manifest).await.unwrap();
    manifest
}

async fn read(layout: &Layout, blob: &Descriptor, offset: u64) -> Result<Vec<u8>> {
    let mut opened = layout.open_blob(blob, offset).await?;
    assert_eq!(opened.offset, offset);
    let mut all = Vec::new();
    while let Some(chunk) = opened.stream.next_chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

/// Copies an image with its children and blobs, as a worker does.
async fn copy(from: &LayoutRepository, to: &LayoutRepository, reference: &ManifestRef) -> Result<()> {
    let root = from.get_manifest(reference).await?;
    let mut images = vec![root.clone()];
    for child in root.children() {
        images.push(from.get_manifest(&ManifestRef::Digest(child.digest.clone())).await?);
    }
    for image in images.iter().rev() {
        for blob in image.blobs() {
            let stream = from.layout().open_blob(blob, 0).await?.stream.into_stream();
            to.layout().write_blob(blob, stream).await?;
        }
        if image.digest() != root.digest() {
            to.put_manifest(&ManifestRef::Digest(image.digest().clone()), image).await?;
        }
    }
    to.put_manifest(reference, &root).await.map(drop)
}

/// Every file below a folder, with its bytes.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

fn hidden(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with('.')).count()
}

#[tokio::test]
async fn what_is_written_is_read_back_and_listed_under_its_names() {
    let dir = TempDir::new().unwrap();
    let layout = Layout::open_or_create(dir.path().join("a b/layout")).await.unwrap();
    let one = put(&layout, Some("gcr.io/a/b"), "1", b"one").await;
    let two = put(&layout, Some("gcr.io/a/c"), "1", &[7; 700_000]).await;
    let three = put(&layout, None, "bare", b"three").await;

    let layout = Layout::open(layout.dir()).await.unwrap();
    let entries = layout.entries().await.unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_deref().unwrap()).collect();
    assert_eq!(names, ["gcr.io/a/b:1", "gcr.io/a/c:1", "bare"]);
    for (repository, reference, image) in
        [(name("gcr.io/a/b"), "1", &one), (name("gcr.io/a/c"), "1", &two), (None, "bare", &three)]
    {
        let repository = layout.repository(repository);
        let found = repository.get_manifest(&tag(reference)).await.unwrap();
        assert_eq!(found.bytes(), image.bytes());
        assert_eq!(repository.head_manifest(&tag(reference)).await.unwrap().unwrap().digest, *image.digest());
    }
    assert_eq!(read(&layout, &blob(&[7; 700_000]), 0).await.unwrap(), [7; 700_000]);
    assert_eq!(read(&layout, &blob(&[7; 700_000]), 699_999).await.unwrap(), [7]);
    assert_eq!(read(&layout, &blob(b"one"), 3).await.unwrap(), b"");
    assert_eq!(hidden(layout.dir()), 0);
}

#[tokio::test]
async fn a_tag_without_repository_means_the_only_image_that_has_it() {
    let dir = TempDir::new().unwrap();
    let layout = Layout::open_or_create(dir.path()).await.unwrap();
    let only = put(&layout, Some("gcr.io/a"), "1", b"one").await;
    let bare = layout.repository(None);
    assert_eq!(bare.resolve(None).await.unwrap().digest, *only.digest());
    assert_eq!(bare.resolve(Some(&tag("1"))).await.unwrap().digest, *only.digest());

    put(&layout, Some("gcr.io/b"), "1", b"two").await;
    let error = bare.resolve(Some(&tag("1"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("gcr.io/a:1, gcr.io/b:1"), "{error}");
    assert_eq!(bare.resolve(None).await.unwrap_err().kind(), ErrorKind::Invalid);

    let exact = put(&layout, None, "1", b"three").await;
    assert_eq!(bare.resolve(Some(&tag("1"))).await.unwrap().digest, *exact.digest());
    let error = layout.repository(name("gcr.io/c")).resolve(Some(&tag("1"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("gcr.io/a:1"), "{error}");
    assert!(layout.repository(name("gcr.io/c")).head_manifest(&tag("1")).await.unwrap().is_none());
}

#[tokio::test]
async fn an_image_is_found_by_its_digest_whether_it_is_listed_or_not() {
    let dir = TempDir::new().unwrap();
    let layout = Layout::open_or_create(dir.path()).await.unwrap();
    put(&layout, None, "1", b"one").await;
    let image = manifest(&[b"one", b"one"]);
    let reference = ManifestRef::Digest(image.digest().clone());
    let repository = layout.repository(name("gcr.io/a"));
    repository.put_manifest(&reference, &image).await.unwrap();
    assert_eq!(layout.entries().await.unwrap().len(), 1);
    assert_eq!(repository.get_manifest(&reference).await.unwrap().bytes(), image.bytes());

    repository.put_untagged_manifest(&image).await.unwrap();
    repository.put_untagged_manifest(&image).await.unwrap();
    let entries = layout.entries().await.unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1].name, Some(format!("gcr.io/a@{}", image.digest())));
    assert_eq!((&entries[1].repository, &entries[1].tag), (&name("gcr.io/a"), &None));
}

#[tokio::test]
async fn a_second_export_writes_nothing_that_is_there() {
    let dir = TempDir::new().unwrap();
    let layout = Layout::open_or_create(dir.path()).await.unwrap();
    put(&layout, Some("gcr.io/a"), "1", b"one").await;
    let version = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().modified().unwrap();
    let one = format!("blobs/sha256/{}", Digest::sha256(b"one").hex());
    let before = (version(&one), version("index.json"), files(dir.path()));
    let again = Layout::open_or_create(dir.path()).await.unwrap();
    assert!(again.start_blob(&blob(b"one")).await.unwrap().is_none());
    put(&again, Some("gcr.io/a"), "1", b"one").await;
    assert_eq!((version(&one), version("index.json"), files(dir.path())), before);
}

#[tokio::test]
async fn an_image_with_a_part_missing_is_not_entered() {
    let dir = TempDir::new().unwrap();
    let layout = Layout::open_or_create(dir.path()).await.unwrap();
    layout.write_blob(&blob(b"{}"), pieces(b"{}")).await.unwrap();
    let image = manifest(&[b"never written"]);
    let error = layout.repository(None).put_manifest(&tag("1"), &image).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incomplete);
    assert_eq!(layout.entries().await.unwrap(), []);
}

#[tokio::test]
async fn referrers_are_kept_and_found() {
    let dir = TempDir::new().unwrap();
    let layout = Layout::open_or_create(dir.path()).await.unwrap();
    let image = put(&layout, Some("gcr.io/a"), "1", b"one").await;
    let json = serde_json::json!({
        "schemaVersion": 2, "mediaType": MediaType::OciManifest, "artifactType": "application/x.signature",
        "config": blob(b"{}"), "layers": [], "subject": image.descriptor(),
        "annotations": {"org.opencontainers.image.ref.name": "1", "by": "me"},
    });
    let signature = Manifest::parse(json.to_string().into(), &MediaType::OciManifest).unwrap();
    let repository = layout.repository(name("gcr.io/a"));
    let reference = ManifestRef::Digest(signature.digest().clone());
    for _ in 0..2 {
        assert!(repository.put_manifest(&reference, &signature).await.unwrap().subject_kept);
    }
    let found = repository.list_referrers(image.digest()).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].artifact_type.as_deref(), Some("application/x.signature"));
    assert_eq!(found[0].annotations.keys().collect::<Vec<_>>(), ["by"]);
    assert!(repository.list_referrers(signature.digest()).await.unwrap().is_empty());
    assert_eq!(repository.head_manifest(&tag("1")).await.unwrap().unwrap().digest, *image.digest());
}

#[tokio::test]
async fn the_example_images_are_whole() {
    let source = Layout::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/images")).await.unwrap();
    let dir = TempDir::new().unwrap();
    let target = Layout::open_or_create(dir.path()).await.unwrap();
    for entry in source.entries().await.unwrap() {
        let reference = ManifestRef::Tag(entry.tag.unwrap());
        let (from, to) = (source.repository(entry.repository.clone()), target.repository(entry.repository));
        copy(&from, &to, &reference).await.unwrap();
    }
    let contents = |entries: Vec<IndexEntry>| -> Vec<_> {
        entries.into_iter().map(|entry| (entry.name, entry.descriptor.digest)).collect()
    };
    assert_eq!(contents(target.entries().await.unwrap()), contents(source.entries().await.unwrap()));
    assert_eq!(files(&dir.path().join("blobs")).len(), files(&source.dir().join("blobs")).len());
}
