//! Fuzz targets: archives, `index.json` and `manifest.json`.

use std::sync::Arc;

use bytes::Bytes;
use imgsync_oci::{ArchiveFormat, Descriptor};

use super::engine::fuzz;
use super::tar_checksums::with_checksums;
use crate::docker_manifest::DockerImage;
use crate::error::LayoutError;
use crate::index::LayoutIndex;
use crate::read_at::{InlineFile, ReadAt};
use crate::{LayoutFiles, LayoutInner, open};

/// Entries, and parts of each, that are read.
const MAX_READ: usize = 16;
/// Bytes that are read of a blob.
const MAX_BLOB_BYTES: usize = 64 << 10;

fn describe(error: LayoutError) -> String {
    let error = error.into_error("fuzzing");
    assert!(!error.message().chars().any(char::is_control), "a message is safe to print: {error}");
    format!("{:?} {}", error.kind(), error.message())
}

/// Opens an archive in a format, and reads what its index leads to.
fn open_archive(input: &[u8], format: ArchiveFormat) -> String {
    let source: Arc<dyn ReadAt> = Arc::new(InlineFile::new(Bytes::copy_from_slice(input)));
    match open::open_archive(source, format, format!("{}fuzz", format.scheme())) {
        Err(error) => describe(error),
        Ok(layout) => {
            if let LayoutFiles::Archive(files) = &layout.0.files {
                for path in files.member_paths() {
                    assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".."), "{path} leads out");
                }
            }
            read_all(&layout.0).unwrap_or_else(describe)
        }
    }
}

fn read_all(layout: &LayoutInner) -> Result<String, LayoutError> {
    let mut answer = String::new();
    for entry in layout.read_index()?.all_entries()?.iter().take(MAX_READ) {
        answer.push_str(if entry.name.is_some() { "named " } else { "nameless " });
        match layout.read_manifest(&entry.descriptor) {
            Err(error) => answer.push_str(&describe(error)),
            Ok(manifest) => {
                for part in manifest.children().into_iter().chain(manifest.blobs()).take(MAX_READ) {
                    answer.push_str(&read_blob(layout, part));
                }
            }
        }
    }
    Ok(answer)
}

fn read_blob(layout: &LayoutInner, blob: &Descriptor) -> String {
    let file = match layout.open_blob_file_of_size(&blob.digest, blob.size) {
        Ok(file) => file,
        Err(error) => return describe(error),
    };
    let mut buffer = vec![0; MAX_BLOB_BYTES];
    match file.read_at(&mut buffer, 0) {
        Ok(read) => {
            assert!(read as u64 <= blob.size);
            if read == 0 { "empty ".to_owned() } else { "read ".to_owned() }
        }
        Err(error) => format!("{:?} ", error.kind()),
    }
}

targets! {
    archives = |input| {
        let mut answer = String::new();
        for bytes in [input.to_vec(), with_checksums(input)] {
            for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
                answer.push_str(&open_archive(&bytes, format));
            }
        }
        answer
    };
    indexes = |input| {
        let index = match LayoutIndex::parse(input) {
            Ok(index) => index,
            Err(error) => return describe(error),
        };
        let entries = index.entries().count();
        let written = index.to_bytes().map_err(describe).unwrap();
        assert_eq!(LayoutIndex::parse(&written).map_err(describe).unwrap().entries().count(), entries);
        let names = index.entries().map(|entry| match (&entry.repository, &entry.tag) {
            (Some(_), Some(_)) => "full ",
            (None, Some(_)) => "tag ",
            (_, None) => "none ",
        });
        names.collect()
    };
    docker_manifests = |input| match serde_json::from_slice::<Vec<DockerImage>>(input) {
        Ok(images) => format!("{} images", images.len()),
        Err(error) => format!("{:?}", error.classify()),
    };
}
