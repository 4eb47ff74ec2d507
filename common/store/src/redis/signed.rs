//! Authentication of stored data with `cluster.key`, so that write access to Redis is not enough to make imgsync copy
//! or delete: chunks of the plan, options of a batch, provenance of target tags, and blob proofs.
//!
//! A tag is an HMAC-SHA256 over the content and its context. Without a key there are no tags, and nothing is checked.

use super::RedisStore;
use crate::BlobProof;
use imgsync_model::batch::{BatchId, MAC_BYTES, PlanChunk, TRUNCATED_MAC_BYTES, decode_chunk};
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};

/// Domain labels of the tags.
const CHUNK_LABEL: &str = "plan chunk";
const OPTIONS_LABEL: &str = "batch options";
const PROVENANCE_LABEL: &str = "provenance";
const PROOF_LABEL: &str = "blob proof";
/// Bytes of a signed proof name.
const PROOF_NAME_BYTES: usize = 20;

/// Position of a chunk in the plan of its batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkPosition {
    pub(super) batch: BatchId,
    /// Chunk number, from 0.
    pub(super) number: u64,
    /// Index of its first task.
    pub(super) first: u32,
    /// Number of tasks.
    pub(super) tasks: u32,
}

impl ChunkPosition {
    fn sign(self, store: &RedisStore, bytes: &[u8]) -> Vec<u8> {
        let Some(key) = store.signing_key() else { return Vec::new() };
        self.with_signed_parts(bytes, |parts| key.compute_mac(CHUNK_LABEL, parts))
    }

    fn with_signed_parts<T>(self, bytes: &[u8], use_parts: impl FnOnce(&[&[u8]]) -> T) -> T {
        let ChunkPosition { batch, number, first, tasks } = self;
        let batch = batch.to_string();
        let parts: [&[u8]; 5] =
            [batch.as_bytes(), &number.to_be_bytes(), &first.to_be_bytes(), &tasks.to_be_bytes(), bytes];
        use_parts(&parts)
    }
}

impl RedisStore {
    /// Signs a chunk: its bytes, then its tag.
    pub(super) fn sign_chunk(&self, position: ChunkPosition, mut bytes: Vec<u8>) -> Vec<u8> {
        let tag = position.sign(self, &bytes);
        bytes.extend(tag);
        bytes
    }

    /// Verifies and decodes the chunk at this position.
    pub(super) fn verify_chunk(&self, operation: &str, position: ChunkPosition, kept: &[u8]) -> Result<PlanChunk> {
        let bytes = match self.signing_key() {
            None => kept,
            Some(key) => {
                let altered = || {
                    let ChunkPosition { number, first, .. } = position;
                    altered_error(operation, &format!("chunk {number} of its plan (first task {first})"))
                };
                let (bytes, tag) = kept.len().checked_sub(MAC_BYTES).map(|at| kept.split_at(at)).ok_or_else(altered)?;
                if !position.with_signed_parts(bytes, |parts| key.verify_mac(CHUNK_LABEL, parts, tag)) {
                    return Err(altered());
                }
                bytes
            }
        };
        decode_chunk(bytes).map_err(|error| super::corrupt_store(operation, &error.to_string()))
    }

    /// Returns the tag of a batch's options in hexadecimal; empty without a key.
    pub(super) fn sign_options(&self, batch: BatchId, rules: &Digest, options: &str) -> String {
        let (batch, rules) = (batch.to_string(), rules.to_string());
        let parts = [batch.as_bytes(), rules.as_bytes(), options.as_bytes()];
        self.signing_key().map(|key| hex::encode(key.compute_mac(OPTIONS_LABEL, &parts))).unwrap_or_default()
    }

    /// Verifies that a batch has the options it was created with.
    pub(super) fn verify_options(&self, batch: BatchId, rules: &Digest, options: &str, tag: Option<&str>) -> bool {
        let Some(key) = self.signing_key() else { return true };
        let (batch, rules) = (batch.to_string(), rules.to_string());
        let parts = [batch.as_bytes(), rules.as_bytes(), options.as_bytes()];
        tag.and_then(|tag| hex::decode(tag).ok()).is_some_and(|tag| key.verify_mac(OPTIONS_LABEL, &parts, &tag))
    }

    /// Returns the name that a proof is stored under. With a key, nobody else can compute it, so proofs cannot be
    /// forged.
    pub(super) fn proof_name(&self, proof: &BlobProof) -> Vec<u8> {
        let Some(key) = self.signing_key() else { return proof.as_bytes().to_vec() };
        let mut name = key.compute_mac(PROOF_LABEL, &[proof.as_bytes()]);
        name.truncate(PROOF_NAME_BYTES);
        name
    }

    /// Returns the tag of a provenance record; empty without a key. `target` names its repository.
    pub(super) fn sign_provenance(&self, source: &str, target: &str, tag: &str, record: &[u8]) -> Vec<u8> {
        let parts = [source.as_bytes(), target.as_bytes(), tag.as_bytes(), record];
        let mut shown = self.signing_key().map(|key| key.compute_mac(PROVENANCE_LABEL, &parts)).unwrap_or_default();
        // Short, because there is one per target tag.
        shown.truncate(TRUNCATED_MAC_BYTES);
        shown
    }

    /// Verifies that a provenance record was written with our key.
    pub(super) fn verify_provenance(
        &self,
        (source, target, tag): (&str, &str, &str),
        record: &[u8],
        shown: &[u8],
    ) -> bool {
        let parts = [source.as_bytes(), target.as_bytes(), tag.as_bytes(), record];
        self.signing_key().is_none_or(|key| key.verify_truncated_mac(PROVENANCE_LABEL, &parts, shown))
    }
}

/// Returns the error of data that was not written with our key.
pub(super) fn altered_error(operation: &str, what: &str) -> Error {
    let detail =
        format!("{what} was not written with this cluster.key: the store was tampered with, or another key was in use");
    Error::new(ErrorKind::Insecure, operation, detail).with_hint(
        "if you have changed the key, run the rules again; else give all coordinators and workers the same cluster.key, \
         and find out who can write to the store",
    )
}
