//! Blob locations at targets, and proofs that a source holds a blob. See [`BlobIndex`].

use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use imgsync_model::batch::{Endpoint, RepositoryLocator};
use imgsync_oci::Digest;
use imgsync_oci::error::Result;

/// Length of a generation of the index. Entries are kept for at least one generation, and dropped after two.
pub const BLOB_GENERATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// TTL of a source repository's proof that it holds a blob: long enough for weekly runs, short enough to notice revoked
/// permissions.
pub const PROOF_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Granularity of proof times.
pub(crate) const PROOF_GRANULARITY: Duration = Duration::from_secs(60 * 60);

/// Proof that a source repository holds a blob, or that the blob is public. A 20-byte hash, whatever the length of the
/// names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlobProof([u8; 20]);

impl BlobProof {
    /// Creates the proof that a repository holds a blob.
    pub fn for_repository(source: &RepositoryLocator, blob: &Digest) -> BlobProof {
        BlobProof::hash(&source.to_string(), blob)
    }

    /// Creates the proof that a blob was read from a public address without credentials.
    pub fn for_public_blob(blob: &Digest) -> BlobProof {
        // No repository has an empty name.
        BlobProof::hash("", blob)
    }

    fn hash(source: &str, blob: &Digest) -> BlobProof {
        let hash = Sha256::new().chain_update(source).chain_update([0]).chain_update(blob.to_string()).finalize();
        let mut short = [0; 20];
        short.copy_from_slice(&hash[..20]);
        BlobProof(short)
    }

    /// Returns its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Returns the hour of a time in seconds since 1970.
pub(crate) fn proof_hour(seconds: i64) -> i64 {
    seconds / i64::try_from(PROOF_GRANULARITY.as_secs()).unwrap_or(i64::MAX)
}

/// Returns whether a proof is still valid. One from the future was written by a wrong clock.
pub(crate) fn is_proof_valid(given: i64, now: i64) -> bool {
    (0..i64::try_from(PROOF_TTL.as_secs() / PROOF_GRANULARITY.as_secs()).unwrap_or(i64::MAX)).contains(&(now - given))
}

/// One version of a blob file in a local image layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashedFile {
    /// Canonical folder of the layout.
    pub folder: String,
    /// Digest that the file should have.
    pub digest: Digest,
    /// Identifies this version of the file.
    pub version: String,
}

impl HashedFile {
    /// Creates a file version.
    pub fn new(folder: &str, digest: &Digest, version: &str) -> HashedFile {
        HashedFile { folder: folder.to_owned(), digest: digest.clone(), version: version.to_owned() }
    }
}

/// Index of blob locations: for each target a repository to mount a blob from, and proofs that source repositories hold
/// a blob, without which it must not be mounted.
///
/// # Contract
/// Locations are hints of bounded age: one that turns out wrong is deleted, and the blob is looked for or uploaded. A
/// proof is valid for [`PROOF_TTL`] and no longer; a lost proof is requested again.
#[async_trait]
pub trait BlobIndex: Send + Sync {
    /// Returns a repository at this registry or layout for each blob, in order.
    async fn find_blobs(&self, end: &Endpoint, blobs: &[Digest]) -> Result<Vec<Option<RepositoryLocator>>>;

    /// Records that these blobs are in a repository.
    async fn record_blobs(&self, home: &RepositoryLocator, blobs: &[Digest]) -> Result<()>;

    /// Returns whether this version of a layout's file was hashed and matched its digest.
    async fn is_hashed_file(&self, file: &HashedFile) -> Result<bool>;

    /// Records that a file was hashed and matched. Replaces earlier versions.
    async fn record_hashed_file(&self, file: &HashedFile) -> Result<()>;

    /// Deletes the location of a blob that turned out not to be in this repository. Other locations stay.
    async fn forget_blob(&self, home: &RepositoryLocator, blob: &Digest) -> Result<()>;

    /// Records proofs as of now.
    async fn record_proofs(&self, proofs: &[BlobProof]) -> Result<()>;

    /// Returns whether each proof was given within [`PROOF_TTL`], in order.
    async fn check_proofs(&self, proofs: &[BlobProof]) -> Result<Vec<bool>>;
}
