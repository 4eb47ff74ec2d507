//! Fuzz targets: bundles, indexes, lists of parts, and inventories.

use std::path::Path;

use imgsync_oci::error::Error;

use super::engine::fuzz;
use crate::parts::{PartList, PartReader};
use crate::{BundleIndex, Inventory, OpenedBundle};

const BLOCK_BYTES: usize = 512;

fn describe(error: &Error) -> String {
    assert!(!error.message().chars().any(char::is_control), "a message is safe to print: {error}");
    format!("{:?} {}", error.kind(), error.message())
}

/// Opens a bundle in a file.
fn open_bundle(folder: &Path, input: &[u8]) -> String {
    let path = folder.join("bundle.tar");
    std::fs::write(&path, input).unwrap();
    let opened = PartReader::open(&[path]).and_then(|reader| OpenedBundle::open(reader, None));
    match opened {
        Ok(bundle) => format!("{} tags, signed: {}", bundle.index.tags().count(), bundle.signature.is_some()),
        Err(error) => describe(&error),
    }
}

/// Corrects the checksums of the headers of a tar, without which all that follows a changed header is not read.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (input.to_vec(), 0_usize);
    while let Some(block) = at.checked_add(BLOCK_BYTES).and_then(|end| bytes.get_mut(at..end)) {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        if block.iter().any(|byte| *byte != 0) {
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        let size = header.entry_size().unwrap_or_default().min(input.len() as u64) as usize;
        at += BLOCK_BYTES + size.next_multiple_of(BLOCK_BYTES);
    }
    bytes
}

macro_rules! targets {
    ($($name:ident = $target:expr;)*) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name), $target);
        })*
    };
}

targets! {
    bundle_indexes = |input| match BundleIndex::decode(input, "fuzz") {
        Err(error) => describe(&error),
        Ok(index) => {
            let read = BundleIndex::decode(&index.encode(), "fuzz").map_err(|error| describe(&error)).unwrap();
            assert_eq!(read, index);
            format!("{} repositories {} tags", index.repositories.len(), index.tags().count())
        }
    };
    inventories = |input| match Inventory::decode(input, "fuzz") {
        Err(error) => describe(&error),
        Ok(inventory) => {
            let read = Inventory::decode(&inventory.encode(), "fuzz").map_err(|error| describe(&error)).unwrap();
            assert_eq!(read, inventory);
            format!("{} repositories", inventory.repositories.len())
        }
    };
    part_lists = |input| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.tar.json");
        std::fs::write(&path, input).unwrap();
        std::fs::write(folder.path().join("bundle.tar.001"), "a part").unwrap();
        match PartList::read(&path) {
            Err(error) => describe(&error),
            Ok(list) => {
                for part in &list.parts {
                    let joined = folder.path().join(&part.name);
                    assert_eq!(joined.parent(), Some(folder.path()), "{} leads out", part.name);
                }
                match PartReader::open(&[path]) {
                    Ok(_) => format!("{} parts", list.parts.len()),
                    Err(error) => describe(&error),
                }
            }
        }
    };
    bundles = |input| {
        let folder = tempfile::tempdir().unwrap();
        open_bundle(folder.path(), input) + &open_bundle(folder.path(), &with_checksums(input))
    };
}
