//! Writes image archives as a stream: an OCI image layout in a tar, with `manifest.json` beside it and the full names
//! in both annotations, so that docker, podman, ctr, skopeo, regctl, crane and hauler all load the same file.
//!
//! An [`ArchivePlan`] lists all members with their sizes before the first byte is written. The bytes of an archive depend on the
//! plan alone: there are no times, and owner and mode are fixed. The order of the members is `oci-layout`, `index.json`,
//! `manifest.json`, other files, manifests, configs, layers, so that readers need one pass. [`write_archive`] streams the
//! content into an [`ArchiveSink`]: a file ([`ArchiveOutput`]), a pipe ([`ThreadSink`]), or any other.

mod docker;
mod file;
mod index;
mod manifest_spool;
mod member;
mod partial;
mod plan;
mod reach;
mod recognition;
mod sink;
#[cfg(test)]
mod tests;
mod write;

pub use docker::{DockerFact, DockerSummary};
pub use file::ArchiveOutput;
pub use index::{ArchiveImage, ArchivedName};
pub use manifest_spool::ManifestSpool;
pub use member::{Member, MemberContent};
pub use partial::{is_whole_archive, verified_length};
pub use plan::{ArchivePlan, ArchivePlanner};
pub use reach::LeftOutImage;
pub use recognition::{begins_as_image_archive, is_cut_image_archive};
pub use sink::{ArchiveSink, Compression, SinkOutput, ThreadSink};
pub use write::{ArchiveSource, ContentStream, MAX_SMALL_BLOB_BYTES, WriteFailure, write_archive};
