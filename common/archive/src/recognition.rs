//! Recognises archives of images by their beginning.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;

use flate2::read::GzDecoder;

/// Magic number of gzip (RFC 1952, section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

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

/// Whether archives of images have a member of this name: image layouts (OCI image specification, "Image Layout"), and
/// what `docker save` writes beside it.
fn is_member_name(name: &[u8]) -> bool {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    matches!(name, b"oci-layout" | b"index.json" | b"manifest.json" | b"repositories")
        || name == b"blobs"
        || name.starts_with(b"blobs/")
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
        for name in ["oci-layout", "index.json", "manifest.json", "blobs/sha256/00"] {
            assert!(begins(&tar(name)[..700]), "{name}");
            assert!(begins(&gzip(&tar(name))[..700]), "{name}");
        }
        for name in ["notes.txt", "blobs.txt", "etc/index.json"] {
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
}
