//! Compressed archives: read as plain ones, with damage noticed.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::archives::{TarFile, index_json};
use super::*;

/// Content that does not compress much, so that it spans many checkpoints.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & 0x7f
        })
        .collect()
}

fn archive(layers: &[&[u8]]) -> Vec<u8> {
    let image = manifest(layers);
    let mut tar = TarFile::new().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    for layer in layers {
        tar = tar.blob(layer);
    }
    tar.blob(b"{}").blob(image.bytes()).file("index.json", index_json(&image).as_bytes()).finish()
}

fn compress(program: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{} must be installed: {error}", program[0]));
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

async fn open(dir: &TempDir, bytes: &[u8]) -> Result<Layout> {
    let path = dir.path().join(format!("{}.tar", rand::random::<u64>()));
    std::fs::write(&path, bytes).unwrap();
    Layout::open_archive_file(&format!("oci-archive:{}", path.display()).parse().unwrap()).await
}

const PROGRAMS: [&[&str]; 6] =
    [&["gzip", "-1"], &["gzip", "-9"], &["zstd", "-3"], &["zstd", "--long=27", "-1"], &["xz", "-1"], &["xz", "-T2"]];

#[tokio::test]
async fn compressed_archives_are_read_in_any_order() {
    let dir = TempDir::new().unwrap();
    let (one, two, three) = (noise(4_500_000), noise(100), vec![7; 1 << 19]);
    let tar = archive(&[&one, &two, &three]);
    let mut kinds: Vec<(String, Vec<u8>)> =
        PROGRAMS.iter().map(|program| (program.join(" "), compress(program, &tar))).collect();
    // Of several members, frames or streams.
    for program in [&["gzip"][..], &["zstd"], &["xz"]] {
        let (start, rest) = tar.split_at(1 << 19);
        let joined = [compress(program, start), compress(program, rest)].concat();
        kinds.push((format!("{} twice", program[0]), joined));
    }
    for (kind, bytes) in kinds {
        assert!(bytes.len() < tar.len());
        let layout = open(&dir, &bytes).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        let image = layout.repository(None).get_manifest(&tag("1")).await.unwrap();
        assert_eq!(image.digest(), manifest(&[&one, &two, &three]).digest());
        for content in [&three, &two, &one] {
            assert!(read(&layout, &blob(content), 0).await.unwrap() == *content, "{kind}");
        }
        assert!(read(&layout, &blob(&one), 4_400_000).await.unwrap() == one[4_400_000..], "{kind}");
        assert_eq!(layout.is_sequential(), !kind.starts_with("gzip"));
        // At once.
        let blobs = [blob(&one), blob(&two), blob(&three)];
        let all = blobs.iter().map(|blob| layout.has_blob(blob));
        assert_eq!(futures_util::future::try_join_all(all).await.unwrap(), [true; 3], "{kind}");
    }
}

#[tokio::test]
async fn damaged_and_truncated_compressed_archives_are_refused() {
    let dir = TempDir::new().unwrap();
    let one = noise(1 << 20);
    let tar = archive(&[&one]);
    for program in [&["gzip"][..], &["zstd", "--check"], &["xz"]] {
        let whole = compress(program, &tar);
        for cut in [whole.len() / 2, whole.len() - 2] {
            let error = open(&dir, &whole[..cut]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{program:?} cut at {cut}: {error}");
        }
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x55;
        let error = open(&dir, &damaged).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{program:?}: {error}");
        let followed = [&whole[..], b"garbage"].concat();
        let error = open(&dir, &followed).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{program:?}: {error}");
    }
}

#[tokio::test]
async fn a_compressed_file_of_something_else_is_refused() {
    let dir = TempDir::new().unwrap();
    for program in [&["gzip"][..], &["zstd"], &["xz"]] {
        let error = open(&dir, &compress(program, &noise(5000))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("does not begin with the header of a tar"), "{error}");
    }
}
