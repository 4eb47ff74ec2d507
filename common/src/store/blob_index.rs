//! Where blobs are at targets, and which sources have shown that they hold them. See [`BlobIndex`].

use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use crate::batch::{End, Home};
use crate::error::Result;
use crate::image::Digest;

/// How long a generation of the index is. What is in it is remembered for one, and forgotten after two.
pub const BLOB_GENERATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long a source repository's proof that it holds a blob is believed: long enough for weekly runs, short enough that
/// rights which were withdrawn are noticed.
pub const PROOF_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Proofs are kept by the hour in which they were given.
pub(crate) const PROOF_UNIT: Duration = Duration::from_secs(60 * 60);

/// Says that a source repository holds a blob, or that anybody can read it: a hash, so that a store needs 20 bytes for it,
/// however long the names are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Proof([u8; 20]);

impl Proof {
    /// The proof that a repository holds a blob.
    pub fn held_by(source: &Home, blob: &Digest) -> Proof {
        Proof::hash(&source.to_string(), blob)
    }

    /// The proof that a blob was read without credentials from a public address.
    pub fn public(blob: &Digest) -> Proof {
        // No repository has an empty name.
        Proof::hash("", blob)
    }

    fn hash(source: &str, blob: &Digest) -> Proof {
        let hash = Sha256::new().chain_update(source).chain_update([0]).chain_update(blob.to_string()).finalize();
        let mut short = [0; 20];
        short.copy_from_slice(&hash[..20]);
        Proof(short)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The hour of a time, in seconds since 1970.
pub(crate) fn proof_hour(seconds: i64) -> i64 {
    seconds / i64::try_from(PROOF_UNIT.as_secs()).unwrap_or(i64::MAX)
}

/// Whether a proof of one hour is believed in another. One from the future was written by a clock that was wrong.
pub(crate) fn is_proof_believed(given: i64, now: i64) -> bool {
    (0..i64::try_from(PROOF_TTL.as_secs() / PROOF_UNIT.as_secs()).unwrap_or(i64::MAX)).contains(&(now - given))
}

/// A blob's file in an image layout on this machine, in one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashedFile {
    /// The layout's folder: one name for one folder.
    pub folder: String,
    /// What the file should hold.
    pub digest: Digest,
    /// What tells this state of the file from any other.
    pub version: String,
}

impl HashedFile {
    /// A file by its parts.
    pub fn new(folder: &str, digest: &Digest, version: &str) -> HashedFile {
        HashedFile { folder: folder.to_owned(), digest: digest.clone(), version: version.to_owned() }
    }
}

/// Remembers for each target a repository that has a blob, so that it can be mounted from there, and which source
/// repositories have shown that they hold a blob, without which it must not be.
///
/// # Contract
/// Where a blob is: a hint, of bounded age; where it turns out not to be, it is forgotten, and looked for or uploaded. A
/// proof is believed for [`PROOF_TTL`] and no longer; one that is lost is asked for again.
#[async_trait]
pub trait BlobIndex: Send + Sync {
    /// A repository at this end for each of these blobs, in their order.
    async fn blob_homes(&self, end: &End, blobs: &[Digest]) -> Result<Vec<Option<Home>>>;

    /// These blobs are in this repository.
    async fn learn_blobs(&self, home: &Home, blobs: &[Digest]) -> Result<()>;

    /// Whether the bytes of a layout's file were found to be those of its digest, in just this version of the file.
    async fn is_hashed(&self, file: &HashedFile) -> Result<bool>;

    /// They are. What was known of an earlier version is forgotten.
    async fn note_hashed(&self, file: &HashedFile) -> Result<()>;

    /// A blob is not in this repository, as was thought. What is known of it elsewhere stays.
    async fn forget_blob(&self, home: &Home, blob: &Digest) -> Result<()>;

    /// These were proved now.
    async fn learn_proofs(&self, proofs: &[Proof]) -> Result<()>;

    /// Whether each of these was proved within [`PROOF_TTL`], in their order.
    async fn proofs(&self, proofs: &[Proof]) -> Result<Vec<bool>>;
}
