//! Recognises archives of images by their beginning.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom};
use std::path::Path;

use flate2::read::GzDecoder;

/// Magic number of gzip (RFC 1952, section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Size of the blocks of a tar.
const BLOCK_BYTES: u64 = 512;

/// Returns whether a file begins as archives of images do, plain or gzip. If the rest is damaged, it is a damaged archive
/// of images, and not a file of another kind.
///
/// # Errors
/// If the file cannot be opened or read.
pub fn begins_as_image_archive(file: &Path) -> io::Result<bool> {
    let mut file = BufReader::new(File::open(file)?);
    let is_gzip = file.fill_buf()?.starts_with(&GZIP_MAGIC);
    let input: Box<dyn Read> = if is_gzip { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
    let mut archive = tar::Archive::new(input);
    // Raw: without the records for long names, which may be of any size.
    let first = archive.entries()?.raw(true).next();
    Ok(first.is_some_and(|entry| entry.is_ok_and(|entry| is_member_name(&entry.path_bytes()))))
}

/// Returns whether a file begins as a plain archive of images, and its end is missing: a tar ends with a block of zeros. A
/// compressed one without its end cannot be unpacked.
///
/// # Errors
/// If the file cannot be opened or read.
pub fn is_cut_image_archive(path: &Path) -> io::Result<bool> {
    let mut file = BufReader::new(File::open(path)?);
    if file.fill_buf()?.starts_with(&GZIP_MAGIC) {
        return Ok(false);
    }
    let length = file.get_ref().metadata()?.len();
    let mut last = [1; BLOCK_BYTES as usize];
    if length >= BLOCK_BYTES && length.is_multiple_of(BLOCK_BYTES) {
        file.seek(SeekFrom::End(-(BLOCK_BYTES as i64)))?;
        file.read_exact(&mut last)?;
    }
    Ok(last != [0; BLOCK_BYTES as usize] && begins_as_image_archive(path)?)
}

/// Hexadecimal digits of the names in archives of `docker save` without a layout.
const ID_LENGTH: usize = 64;

/// Whether archives of images have a member of this name: image layouts (OCI image specification, "Image Layout"), what
/// `docker save` writes beside it, and what Docker before 25, podman and skopeo write without a layout.
fn is_member_name(name: &[u8]) -> bool {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    matches!(name, b"oci-layout" | b"index.json" | b"manifest.json" | b"repositories")
        || name == b"blobs"
        || name.starts_with(b"blobs/")
        || is_layer_or_config_name(name)
}

/// Whether a name is that of a layer, its folder or a config: `ID.tar`, `ID/layer.tar`, `ID.json`.
fn is_layer_or_config_name(name: &[u8]) -> bool {
    name.split_at_checked(ID_LENGTH).is_some_and(|(id, rest)| {
        let is_id = id.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_id && matches!(rest, b"" | b"/" | b".tar" | b".json" | b"/VERSION" | b"/json" | b"/layer.tar")
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn tar(name: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(3000);
        tar.append_data(&mut header, name, &[b'x'; 3000][..]).unwrap();
        tar.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_cut_archive_of_images_is_one_and_a_cut_archive_of_anything_else_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let begins = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            begins_as_image_archive(&file).unwrap()
        };
        let id = "0a".repeat(32);
        let by_docker = ["/VERSION", "/layer.tar", ".tar", ".json"].map(|rest| format!("{id}{rest}"));
        let layouts = ["oci-layout", "index.json", "manifest.json", "blobs/sha256/00"];
        for name in by_docker.iter().map(String::as_str).chain(layouts) {
            assert!(begins(&tar(name)[..700]), "{name}");
            assert!(begins(&gzip(&tar(name))[..700]), "{name}");
        }
        let others = [format!("{id}.txt"), format!("{id}/notes"), format!("{}.tar", &id[1..])];
        for name in others.iter().map(String::as_str).chain(["notes.txt", "blobs.txt", "etc/index.json"]) {
            assert!(!begins(&tar(name)[..700]), "{name}");
            assert!(!begins(&gzip(&tar(name))[..700]), "{name}");
        }
        let mut damaged = tar("index.json");
        damaged[100] ^= 1;
        for other in [&b"index.json"[..], &damaged, &tar("index.json")[..300], &GZIP_MAGIC, b""] {
            assert!(!begins(other), "{other:?}");
        }
        assert!(begins_as_image_archive(&folder.path().join("none")).is_err());
    }

    #[test]
    fn an_archive_without_its_end_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let is_cut = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            is_cut_image_archive(&file).unwrap()
        };
        // A header, 3,000 bytes in 6 blocks, and two blocks of zeros.
        let whole = tar("index.json");
        assert_eq!(whole.len(), 9 * 512);
        assert!(!is_cut(&whole) && !is_cut(&whole[..8 * 512]));
        assert!(
            is_cut(&whole[..7 * 512]) && is_cut(&whole[..6 * 512]) && is_cut(&whole[..700]) && !is_cut(&whole[..300])
        );
        assert!(!is_cut(&tar("notes.txt")[..7 * 512]) && !is_cut(b""));
        // It may be somebody's archive with a folder `blobs`.
        for length in [gzip(&whole).len(), 700] {
            assert!(!is_cut(&gzip(&whole)[..length]), "{length}");
        }
    }
}
