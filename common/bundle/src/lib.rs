//! Bundles carry images of many repositories between machines without a network between them.
//!
//! A bundle is an image archive with an index of its own ([`BundleIndex`]), whole or cut into parts ([`PartWriter`],
//! [`PartReader`]). The index names each wanted tag with its digest, and all content that the bundle carries or leaves
//! out because the receiver has it ([`Have`]). A signature covers the index, and so all digests.

mod collector;
mod compact;
mod error;
#[cfg(test)]
mod fuzz;
mod have;
mod images;
mod index;
mod inventory;
mod journal;
mod lines;
mod open;
mod parts;
mod public_key;
mod signature;
mod stream;

pub use collector::{BlobToCarry, BundleCollector, CollectedRepository, CollectorRepository};
pub use have::Have;
pub use images::{BundleBlobStream, BundleImages, BundleRepository, BundleTarget};
pub use index::{BundleHeader, BundleIndex, BundledRepository, BundledTag, ContentSize, LeftOutBlob, MAX_INDEX_BYTES};
pub use inventory::{Inventory, InventoryHeader, InventoryRepository};
pub use open::OpenedBundle;
pub use parts::{
    BundleFiles, BundlePart, PartDamage, PartList, PartReader, PartWriter, WrittenParts, free_space, hash_part,
    is_part_list,
};
pub use public_key::PublicKey;
pub use signature::BundleSigningKey;
pub use stream::{BundleStream, StreamedContents};

/// Registry name of images in a bundle, in locators of tasks. The domain `invalid` is reserved (RFC 2606).
pub const BUNDLE_REGISTRY: &str = "bundle.invalid";
/// Member with the index of a bundle.
pub const INDEX_MEMBER: &str = "imgsync-bundle/index";
/// Member with the signature of the index, in base64.
pub const SIGNATURE_MEMBER: &str = "imgsync-bundle/index.sig";
/// Member with a program for the receiving side.
pub const PROGRAM_MEMBER: &str = "imgsync";
