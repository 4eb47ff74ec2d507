//! Making and loading bundles: what a bundle holds, where its blobs come from, and what the receiver lacks.

mod completeness;
mod contents;
mod inventory;
mod sink;
mod source;

pub(crate) use completeness::{Completeness, check_completeness};
pub(crate) use contents::{WantedTag, build_index, build_plan, split_by_content};
pub(crate) use inventory::take_inventory;
pub(crate) use sink::{CountingSink, PartOutput};
pub(crate) use source::{BlobSource, PartlyWrittenBlob};
