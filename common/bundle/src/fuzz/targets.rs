//! Fuzz targets: bundles, indexes, lists of parts, and inventories.

use std::path::Path;

use imgsync_oci::error::Error;

use super::engine::fuzz;
use super::tar_checksums::with_checksums;
use crate::parts::{PartList, PartReader};
use crate::{BundleIndex, Inventory, OpenedBundle};

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
