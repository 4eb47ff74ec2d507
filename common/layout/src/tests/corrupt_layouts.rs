//! Corrupt layouts: each fails with a clear error, without a panic, a hang, or partial writes.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use super::*;

/// A layout with the image `1` of the layer `one`.
async fn layout() -> (TempDir, Layout) {
    let dir = TempDir::new().unwrap();
    let layout = Layout::open_or_create(dir.path()).await.unwrap();
    put(&layout, None, "1", b"one").await;
    (dir, layout)
}

fn path_of(dir: &TempDir, content: &[u8]) -> PathBuf {
    dir.path().join("blobs/sha256").join(Digest::sha256(content).hex())
}

/// Returns the error of an operation, which must not take long.
async fn refused<T: std::fmt::Debug>(work: impl Future<Output = Result<T>>) -> (ErrorKind, String) {
    let result = tokio::time::timeout(Duration::from_secs(10), work).await.expect("it hangs");
    let error = result.unwrap_err();
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn a_folder_that_is_no_layout_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    assert_eq!(refused(Layout::open(dir.path().join("missing"))).await.0, ErrorKind::NotFound);
    assert_eq!(refused(Layout::open(dir.path())).await.0, ErrorKind::InvalidResponse);
    std::fs::write(dir.path().join("precious"), "data").unwrap();
    let (kind, message) = refused(Layout::open_or_create(dir.path())).await;
    assert_eq!(kind, ErrorKind::InvalidResponse);
    assert!(message.contains("no file `oci-layout`"), "{message}");
    assert_eq!(files(dir.path()).len(), 1);
    assert_eq!(refused(Layout::open(dir.path().join("precious"))).await.0, ErrorKind::InvalidResponse);
    assert_eq!(refused(Layout::open_or_create(dir.path().join("precious"))).await.0, ErrorKind::Local);
}

#[tokio::test]
async fn a_layout_of_another_version_is_refused() {
    let (dir, _layout) = layout().await;
    for (text, kind) in [
        (r#"{"imageLayoutVersion":"2.0.0"}"#, ErrorKind::Unsupported),
        ("{}", ErrorKind::InvalidResponse),
        ("nonsense", ErrorKind::InvalidResponse),
    ] {
        std::fs::write(dir.path().join("oci-layout"), text).unwrap();
        assert_eq!(refused(Layout::open(dir.path())).await.0, kind);
        assert_eq!(refused(Layout::open_or_create(dir.path())).await.0, kind);
    }
    std::fs::write(dir.path().join("oci-layout"), "").unwrap();
    assert_eq!(refused(Layout::open(dir.path())).await.0, ErrorKind::InvalidResponse);
    // A process killed while creating a layout leaves an empty file.
    Layout::open_or_create(dir.path()).await.unwrap();
    Layout::open(dir.path()).await.unwrap();
}

#[tokio::test]
async fn a_huge_index_is_not_read() {
    let (dir, layout) = layout().await;
    let file = std::fs::File::create(dir.path().join("index.json")).unwrap();
    file.set_len(100 << 20).unwrap();
    let (kind, message) = refused(layout.entries()).await;
    assert_eq!(kind, ErrorKind::InvalidResponse);
    assert!(message.contains("larger than 64 MiB"), "{message}");
    let again = layout.repository(None);
    assert_eq!(refused(again.put_manifest(&tag("2"), &manifest(&[b"one"]))).await.0, ErrorKind::InvalidResponse);
    assert_eq!(refused(Layout::open(dir.path())).await.0, ErrorKind::InvalidResponse);
}

#[tokio::test]
async fn an_index_that_is_missing_or_nonsense_is_refused() {
    let (dir, layout) = layout().await;
    std::fs::write(dir.path().join("index.json"), "[".repeat(100_000)).unwrap();
    assert_eq!(refused(layout.entries()).await.0, ErrorKind::InvalidResponse);
    std::fs::remove_file(dir.path().join("index.json")).unwrap();
    assert_eq!(refused(layout.entries()).await.0, ErrorKind::InvalidResponse);
    assert_eq!(refused(Layout::open(dir.path())).await.0, ErrorKind::InvalidResponse);
}

#[tokio::test]
async fn links_are_not_followed_wherever_they_are() {
    let outside = TempDir::new().unwrap();
    for link in ["oci-layout", "index.json", "blobs", "blobs/sha256", "blob"] {
        let (dir, layout) = layout().await;
        let path = match link {
            "blob" => path_of(&dir, b"one"),
            link => dir.path().join(link),
        };
        let moved = outside.path().join(link.replace('/', "_"));
        std::fs::rename(&path, &moved).unwrap();
        symlink(&moved, &path).unwrap();
        let before = files(outside.path());
        let reading = async {
            let layout = Layout::open(dir.path()).await?;
            layout.repository(None).get_manifest(&tag("1")).await?;
            read(&layout, &blob(b"one"), 0).await
        };
        let (kind, message) = refused(reading).await;
        assert_eq!(kind, ErrorKind::Insecure, "{link}: {message}");
        assert!(message.contains("symbolic link"), "{message}");
        let writing = async {
            for bytes in [&b"{}"[..], b"one", b"two"] {
                layout.write_blob(&blob(bytes), pieces(bytes)).await?;
            }
            layout.repository(None).put_manifest(&tag("2"), &manifest(&[b"one", b"two"])).await
        };
        assert_eq!(refused(writing).await.0, ErrorKind::Insecure, "{link}");
        assert_eq!(files(outside.path()), before, "{link}");
        let _ = std::fs::remove_dir_all(&moved);
        let _ = std::fs::remove_file(&moved);
    }
}

#[tokio::test]
async fn a_link_in_the_place_of_a_hidden_file_is_not_written_through() {
    let (dir, layout) = layout().await;
    let outside = TempDir::new().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let hidden = format!(".imgsync-sha256-{}.partial", Digest::sha256(b"two").hex());
    symlink(&victim, dir.path().join(hidden)).unwrap();
    assert_eq!(refused(layout.write_blob(&blob(b"two"), pieces(b"two"))).await.0, ErrorKind::Insecure);
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
}

#[tokio::test]
async fn folders_and_fifos_in_the_place_of_files_are_refused() {
    for kind in ["folder", "FIFO"] {
        for place in ["oci-layout", "index.json", "blob"] {
            let (dir, layout) = layout().await;
            let path = match place {
                "blob" => path_of(&dir, b"one"),
                place => dir.path().join(place),
            };
            std::fs::remove_file(&path).unwrap();
            match kind {
                "folder" => std::fs::create_dir(&path).unwrap(),
                _ => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
            }
            let reading = async {
                let layout = Layout::open(dir.path()).await?;
                read(&layout, &blob(b"one"), 0).await
            };
            let (error_kind, message) = refused(reading).await;
            assert_eq!(error_kind, ErrorKind::InvalidResponse, "{message}");
            assert!(message.contains(&format!("is a {kind}, not a file")), "{message}");
            let writing = async {
                layout.write_blob(&blob(b"one"), pieces(b"one")).await?;
                layout.repository(None).put_manifest(&tag("2"), &manifest(&[b"one"])).await
            };
            assert_eq!(refused(writing).await.0, ErrorKind::InvalidResponse);
        }
    }
}

#[tokio::test]
async fn content_of_another_size_or_digest_is_corrupt() {
    let (dir, layout) = layout().await;
    let image = manifest(&[b"one"]);
    std::fs::write(path_of(&dir, b"one"), "longer than it was").unwrap();
    let (kind, message) = refused(layout.open_blob(&blob(b"one"), 0)).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("expected 3 bytes, the file has 18"), "{message}");
    assert!(!layout.has_blob(&blob(b"one")).await.unwrap());
    assert_eq!(refused(layout.open_blob(&blob(b"{}"), 3)).await.0, ErrorKind::Corrupt);

    let mut bytes = image.bytes().to_vec();
    bytes[0] = b' ';
    std::fs::write(path_of(&dir, image.bytes()), &bytes).unwrap();
    assert_eq!(refused(layout.repository(None).get_manifest(&tag("1"))).await.0, ErrorKind::Corrupt);
    std::fs::write(path_of(&dir, image.bytes()), "short").unwrap();
    assert_eq!(refused(layout.repository(None).get_manifest(&tag("1"))).await.0, ErrorKind::Corrupt);
    // It must be copied again, and is then intact.
    assert!(layout.repository(None).head_manifest(&tag("1")).await.unwrap().is_none());
    put(&layout, None, "1", b"one").await;
    assert_eq!(layout.repository(None).get_manifest(&tag("1")).await.unwrap().bytes(), image.bytes());
    assert_eq!(read(&layout, &blob(b"one"), 0).await.unwrap(), b"one");
}

#[tokio::test]
async fn a_blob_with_wrong_bytes_does_not_get_from_one_layout_into_another() {
    let (dir, source) = layout().await;
    std::fs::write(path_of(&dir, b"one"), "eno").unwrap();
    let other = TempDir::new().unwrap();
    let target = Layout::open_or_create(other.path()).await.unwrap();
    let (kind, _) = refused(copy(&source.repository(None), &target.repository(None), &tag("1"))).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert_eq!(target.entries().await.unwrap(), []);
    assert!(!target.has_blob(&blob(b"one")).await.unwrap());
    assert_eq!(hidden(other.path()), 0);
}

#[tokio::test]
async fn an_entry_that_cannot_be_understood_hides_no_other() {
    let (dir, layout) = layout().await;
    let text = std::fs::read_to_string(dir.path().join("index.json")).unwrap();
    let bad = r#""manifests":[{"digest":"sha256:../../../etc/passwd","size":1},"#;
    std::fs::write(dir.path().join("index.json"), text.replace(r#""manifests":["#, bad)).unwrap();
    assert_eq!(refused(layout.entries()).await.0, ErrorKind::InvalidResponse);
    layout.repository(None).get_manifest(&tag("1")).await.unwrap();
    assert_eq!(refused(layout.repository(None).get_manifest(&tag("2"))).await.0, ErrorKind::InvalidResponse);
    put(&layout, None, "2", b"two").await;
    assert!(std::fs::read_to_string(dir.path().join("index.json")).unwrap().contains("etc/passwd"));
}
