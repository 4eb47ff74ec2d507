//! Layouts in a tar: read like a folder; damaged and hostile ones are refused with the member's name.

use std::process::Command;
use std::sync::Arc;

use tar::{EntryType, Header};

use super::*;
use crate::read_at::OpenedArchiveFile;

/// Writes a tar, member by member.
pub(super) struct TarFile(Vec<u8>);

impl TarFile {
    pub(super) fn new() -> TarFile {
        TarFile(Vec::new())
    }

    fn header(path: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        // Paths that the crate would refuse to write.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    pub(super) fn file(self, path: &str, content: &[u8]) -> TarFile {
        self.member(path, EntryType::Regular, content)
    }

    fn member(mut self, path: &str, kind: EntryType, content: &[u8]) -> TarFile {
        self.0.extend(TarFile::header(path, kind, content.len() as u64).as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn link(mut self, path: &str, kind: EntryType, target: &str) -> TarFile {
        let mut header = TarFile::header(path, kind, 0);
        header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self
    }

    /// Adds the members of a layout with one image, tag `1`.
    fn layout(self) -> TarFile {
        let image = manifest(&[b"one"]);
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", index_json(&image).as_bytes())
            .blob(image.bytes())
            .blob(b"{}")
            .blob(b"one")
    }

    pub(super) fn blob(self, content: &[u8]) -> TarFile {
        self.file(&blob_path(content), content)
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(super) fn index_json(image: &Manifest) -> String {
    let mut descriptor = image.descriptor();
    descriptor.annotations.insert("org.opencontainers.image.ref.name".to_owned(), "1".to_owned());
    serde_json::json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string()
}

fn blob_path(content: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::sha256(content).hex())
}

#[derive(Debug)]
struct InMemory(Vec<u8>);

impl ReadAt for InMemory {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let rest = self.0.get(offset as usize..).unwrap_or_default();
        // Short reads are allowed.
        let length = rest.len().min(buffer.len()).min(700);
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

async fn open(bytes: Vec<u8>) -> Result<Layout> {
    Layout::open_archive(Arc::new(InMemory(bytes)), "oci-archive:test.tar").await
}

/// Opens an archive and reads its image.
async fn read_image(bytes: Vec<u8>) -> Result<()> {
    let layout = open(bytes).await?;
    let image = layout.repository(None).get_manifest(&tag("1")).await?;
    for blob in image.blobs() {
        assert!(layout.has_blob(blob).await?);
    }
    Ok(())
}

async fn refused(bytes: Vec<u8>) -> (ErrorKind, String) {
    let error = read_image(bytes).await.unwrap_err();
    (error.kind(), format!("{error} {}", error.hint().unwrap_or_default()))
}

#[tokio::test]
async fn the_tar_of_a_layout_is_read_like_its_folder() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/images");
    let folder = Layout::open(examples).await.unwrap();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("images.tar");
    // From within the folder, of the folder, and with long names in both ways.
    let ways: [&[&str]; 4] = [
        &["-C", examples, "."],
        &["-C", concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples"), "images"],
        &["--format=pax", "--transform=s,^,deep/,", "-C", examples, "oci-layout", "index.json", "blobs"],
        &["--format=gnu", "--transform=s,^./,deeper-than-fits-in-the-header-of-a-tar/,", "-C", examples, "."],
    ];
    for way in ways {
        let made = Command::new("tar").arg("-cf").arg(&path).args(way).status().unwrap();
        assert!(made.success());
        let archive =
            Layout::open_archive_file(&format!("oci-archive:{}", path.display()).parse().unwrap()).await.unwrap();
        assert_eq!(archive.entries().await.unwrap(), folder.entries().await.unwrap(), "{way:?}");
        let target = Layout::open_or_create(dir.path().join("out")).await.unwrap();
        for entry in archive.entries().await.unwrap() {
            let (from, to) = (archive.repository(entry.repository.clone()), target.repository(entry.repository));
            copy(&from, &to, &ManifestRef::Tag(entry.tag.unwrap())).await.unwrap();
        }
        assert_eq!(files(&dir.path().join("out/blobs")).len(), files(&Path::new(examples).join("blobs")).len());
        std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    }
}

#[tokio::test]
async fn an_archive_is_never_written() {
    let layout = open(TarFile::new().layout().finish()).await.unwrap();
    let image = manifest(&[b"one"]);
    let error = layout.repository(None).put_manifest(&tag("2"), &image).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = layout.write_blob(&blob(b"new"), pieces(b"new")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("cannot be changed"), "{error}");
}

#[tokio::test]
async fn links_within_the_archive_are_followed() {
    let image = manifest(&[b"one"]);
    for (kind, target) in [(EntryType::Symlink, "../../x/y".to_owned()), (EntryType::Link, "x/y".to_owned())] {
        let tar = TarFile::new()
            .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("./index.json", index_json(&image).as_bytes())
            .blob(image.bytes())
            .blob(b"{}")
            .link(&blob_path(b"one"), kind, &target)
            .file("x/y", b"one");
        read_image(tar.finish()).await.unwrap();
    }
}

#[tokio::test]
async fn hostile_members_are_refused_by_name() {
    for (tar, wanted) in [
        (TarFile::new().layout().file("a/../../etc/passwd", b"x"), "has `..` in its path"),
        (TarFile::new().layout().file("/etc/passwd", b"x"), "has an absolute path"),
        (TarFile::new().layout().link("a", EntryType::Symlink, "/etc/passwd"), "is a link out of the archive"),
        (TarFile::new().layout().link("a/b", EntryType::Symlink, "../../x"), "is a link out of the archive"),
        (TarFile::new().layout().link("a", EntryType::Link, "../x"), "is a link out of the archive"),
        (TarFile::new().layout().member("dev", EntryType::Block, b""), "is a device"),
        (TarFile::new().layout().member("dev", EntryType::Fifo, b""), "is a device"),
    ] {
        let (kind, message) = refused(tar.finish()).await;
        assert_eq!(kind, ErrorKind::Insecure, "{message}");
        assert!(message.contains(wanted), "{message}");
        assert!(message.contains("at offset"), "{message}");
    }
}

#[tokio::test]
async fn links_in_a_circle_are_refused() {
    let tar = TarFile::new().layout().link(&blob_path(b"two"), EntryType::Symlink, "../../a").link(
        "a",
        EntryType::Symlink,
        &blob_path(b"two"),
    );
    let layout = open(tar.finish()).await.unwrap();
    let error = layout.has_blob(&blob(b"two")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Insecure);
    assert!(error.to_string().contains("leads in a circle"), "{error}");
}

#[tokio::test]
async fn two_members_with_one_name_are_refused() {
    let (kind, message) = refused(TarFile::new().layout().file("index.json", b"{}").finish()).await;
    assert_eq!(kind, ErrorKind::InvalidResponse);
    assert!(message.contains("two members with the name `index.json`"), "{message}");
}

#[tokio::test]
async fn an_archive_that_ends_early_is_refused_with_member_and_offset() {
    let whole = TarFile::new().layout().finish();
    // Within the last content, within a header, and at the end of a member.
    let (kind, message) = refused(whole[..whole.len() - 1024 - 500].to_vec()).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains(&format!("truncated in member `{}` at offset", blob_path(b"one"))), "{message}");
    let (kind, message) = refused(whole[..whole.len() - 1024 - 700].to_vec()).await;
    assert_eq!((kind, message.contains("truncated at offset")), (ErrorKind::Corrupt, true), "{message}");
    let layout = open(whole[..whole.len() - 1024 - 1024].to_vec()).await.unwrap();
    let error = read(&layout, &blob(b"one"), 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.hint().unwrap().contains("cut off"), "{error}");
}

#[tokio::test]
async fn sizes_that_lie_are_refused() {
    let mut tar = TarFile::new().layout();
    tar.0.extend(TarFile::header("huge", EntryType::Regular, 1 << 40).as_bytes());
    let (kind, message) = refused(tar.finish()).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("member `huge`"), "{message}");

    let mut tar = TarFile::new().layout();
    tar.0.extend(TarFile::header("long", EntryType::GNULongName, 1 << 40).as_bytes());
    let (kind, message) = refused(tar.finish()).await;
    assert_eq!(kind, ErrorKind::InvalidResponse, "{message}");

    let mut tar = TarFile::new().layout();
    let mut header = TarFile::header("endless", EntryType::Regular, 0);
    header.set_size(u64::MAX - 5);
    header.set_cksum();
    tar.0.extend(header.as_bytes());
    let (kind, message) = refused(tar.finish()).await;
    assert_eq!(kind, ErrorKind::Insecure, "{message}");
    assert!(message.contains("impossible size"), "{message}");
}

#[tokio::test]
async fn damaged_content_and_headers_are_refused() {
    let mut bytes = TarFile::new().layout().finish();
    let at = bytes.len() - 1024 - 512;
    bytes[at] ^= 1;
    let layout = open(bytes).await.unwrap();
    assert!(!layout.has_blob(&blob(b"one")).await.unwrap());

    let mut bytes = TarFile::new().layout().finish();
    let at = bytes.len() - 1024 - 1024;
    bytes[at] ^= 1;
    let (kind, message) = refused(bytes).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("the header of member 5 at offset"), "{message}");
}

#[tokio::test]
async fn what_is_no_image_archive_is_refused() {
    for (bytes, kind, wanted) in [
        (b"".to_vec(), ErrorKind::Invalid, "the file is empty"),
        (vec![b'x'; 2000], ErrorKind::Invalid, "does not begin with the header of a tar"),
        (TarFile::new().file("a", b"b").finish(), ErrorKind::Invalid, "no member `oci-layout`"),
        (TarFile::new().file("manifest.json", b"[]").finish(), ErrorKind::Invalid, "docker-archive:FILE"),
        (
            TarFile::new().file("oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#).finish(),
            ErrorKind::Unsupported,
            "layout version 2.0.0",
        ),
        (
            TarFile::new().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).finish(),
            ErrorKind::InvalidResponse,
            "index.json is missing",
        ),
    ] {
        let (found, message) = refused(bytes).await;
        assert_eq!(found, kind, "{message}");
        assert!(message.contains(wanted), "{message}");
    }
    let dir = TempDir::new().unwrap();
    let opened = |path: &str| format!("oci-archive:{}{path}", dir.path().display()).parse().unwrap();
    let missing = Layout::open_archive_file(&opened("/missing.tar")).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let folder = Layout::open_archive_file(&opened("")).await.unwrap_err();
    assert!(folder.hint().unwrap().contains("oci:FOLDER"), "{folder}");
    let device = Layout::open_archive_file(&"oci-archive:/dev/zero".parse().unwrap()).await.unwrap_err();
    assert_eq!(device.kind(), ErrorKind::Unsupported, "{device}");
}

#[tokio::test]
async fn an_archive_that_changes_while_it_is_read_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("images.tar");
    std::fs::write(&path, TarFile::new().layout().finish()).unwrap();
    let layout = Layout::open_archive_file(&format!("oci-archive:{}", path.display()).parse().unwrap()).await.unwrap();
    std::fs::write(&path, TarFile::new().layout().file("more", b"x").finish()).unwrap();
    let error = read(&layout, &blob(b"one"), 0).await.unwrap_err();
    assert!(error.to_string().contains("was changed while it was read"), "{error}");
}

#[tokio::test]
async fn extended_attributes_may_be_binary_and_damaged_records_are_refused() {
    // As bsdtar writes them: the value holds a newline.
    let value = b"\x00\x01\n\xff=x\n";
    let record = [&b"34 SCHILY.xattr.user.note="[..], value].concat();
    let record = [&record[..], b"\n"].concat();
    assert_eq!(record.len(), 34);
    let pax = |records: &[u8]| TarFile::new().member("PaxHeader", EntryType::XHeader, records).layout().finish();
    read_image(pax(&record)).await.unwrap();
    for damaged in [&b"99 path=x\n"[..], b"x path=y\n", b"5 a\n", b"0 \n", &record[..20]] {
        let (kind, detail) = refused(pax(damaged)).await;
        assert!(kind == ErrorKind::Corrupt && detail.contains("the header of member 1"), "{damaged:?}: {detail}");
    }
}

#[tokio::test]
async fn an_archive_that_is_replaced_while_it_is_read_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (path, new) = (dir.path().join("a.tar"), dir.path().join("new.tar"));
    std::fs::write(&path, TarFile::new().layout().finish()).unwrap();
    let file = OpenedArchiveFile::open(&path).unwrap();
    std::fs::write(&new, b"another one").unwrap();
    std::fs::rename(&new, &path).unwrap();
    let mut bytes = [0; 10];
    file.read_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"oci-layout");
}
