//! Authentication of stored data with `cluster.key`, so that write access to Redis is not enough to make imgsync copy
//! or delete: chunks of the plan, options of a batch, provenance of target tags, and blob proofs.
//!
//! A tag is an HMAC-SHA256 over the content and its context. Without a key there are no tags, and nothing is checked.

use super::RedisStore;
use crate::batch::{BatchId, Chunk, SHORT_TAG_BYTES, TAG_BYTES, decode_chunk};
use crate::error::{Class, Error, Result};
use crate::image::Digest;
use crate::store::Proof;

/// Domain labels of the tags.
const SEGMENT: &str = "plan segment";
const OPTIONS: &str = "batch options";
const PROVENANCE: &str = "provenance";
const PROOF: &str = "blob proof";
/// Bytes of a signed proof name.
const PROOF_NAME_BYTES: usize = 20;

/// Position of a chunk in the plan of its batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentPlace {
    pub(super) batch: BatchId,
    /// Chunk number, from 0.
    pub(super) number: u64,
    /// Index of its first task.
    pub(super) first: u32,
    /// Number of tasks.
    pub(super) tasks: u32,
}

impl SegmentPlace {
    fn tag_of(self, store: &RedisStore, bytes: &[u8]) -> Vec<u8> {
        let Some(key) = store.signing_key() else { return Vec::new() };
        self.with_parts(bytes, |parts| key.tag(SEGMENT, parts))
    }

    fn with_parts<T>(self, bytes: &[u8], use_parts: impl FnOnce(&[&[u8]]) -> T) -> T {
        let SegmentPlace { batch, number, first, tasks } = self;
        let batch = batch.to_string();
        let parts: [&[u8]; 5] =
            [batch.as_bytes(), &number.to_be_bytes(), &first.to_be_bytes(), &tasks.to_be_bytes(), bytes];
        use_parts(&parts)
    }
}

impl RedisStore {
    /// Signs a chunk: its bytes, then its tag.
    pub(super) fn seal_segment(&self, place: SegmentPlace, mut bytes: Vec<u8>) -> Vec<u8> {
        let tag = place.tag_of(self, &bytes);
        bytes.extend(tag);
        bytes
    }

    /// Verifies and decodes the chunk at this position.
    pub(super) fn open_segment(&self, tried: &str, place: SegmentPlace, kept: &[u8]) -> Result<Chunk> {
        let bytes = match self.signing_key() {
            None => kept,
            Some(key) => {
                let altered = || {
                    let SegmentPlace { number, first, .. } = place;
                    altered(tried, &format!("segment {number} of its plan (from task {first} on)"))
                };
                let (bytes, tag) = kept.len().checked_sub(TAG_BYTES).map(|at| kept.split_at(at)).ok_or_else(altered)?;
                if !place.with_parts(bytes, |parts| key.tags(SEGMENT, parts, tag)) {
                    return Err(altered());
                }
                bytes
            }
        };
        decode_chunk(bytes).map_err(|error| super::damaged(tried, &error.to_string()))
    }

    /// Returns the tag of a batch's options in hexadecimal; empty without a key.
    pub(super) fn options_tag(&self, batch: BatchId, rules: &Digest, options: &str) -> String {
        let (batch, rules) = (batch.to_string(), rules.to_string());
        let parts = [batch.as_bytes(), rules.as_bytes(), options.as_bytes()];
        self.signing_key().map(|key| hex::encode(key.tag(OPTIONS, &parts))).unwrap_or_default()
    }

    /// Verifies that a batch has the options it was created with.
    pub(super) fn options_hold(&self, batch: BatchId, rules: &Digest, options: &str, tag: Option<&str>) -> bool {
        let Some(key) = self.signing_key() else { return true };
        let (batch, rules) = (batch.to_string(), rules.to_string());
        let parts = [batch.as_bytes(), rules.as_bytes(), options.as_bytes()];
        tag.and_then(|tag| hex::decode(tag).ok()).is_some_and(|tag| key.tags(OPTIONS, &parts, &tag))
    }

    /// Returns the name that a proof is stored under. With a key, nobody else can compute it, so proofs cannot be
    /// forged.
    pub(super) fn proof_name(&self, proof: &Proof) -> Vec<u8> {
        let Some(key) = self.signing_key() else { return proof.as_bytes().to_vec() };
        let mut name = key.tag(PROOF, &[proof.as_bytes()]);
        name.truncate(PROOF_NAME_BYTES);
        name
    }

    /// Returns the tag of a provenance record; empty without a key. `target` names its repository.
    pub(super) fn provenance_tag(&self, source: &str, target: &str, tag: &str, record: &[u8]) -> Vec<u8> {
        let parts = [source.as_bytes(), target.as_bytes(), tag.as_bytes(), record];
        let mut shown = self.signing_key().map(|key| key.tag(PROVENANCE, &parts)).unwrap_or_default();
        // Short, because there is one per target tag.
        shown.truncate(SHORT_TAG_BYTES);
        shown
    }

    /// Verifies that a provenance record was written with our key.
    pub(super) fn provenance_holds(
        &self,
        (source, target, tag): (&str, &str, &str),
        record: &[u8],
        shown: &[u8],
    ) -> bool {
        let parts = [source.as_bytes(), target.as_bytes(), tag.as_bytes(), record];
        self.signing_key().is_none_or(|key| key.tags_in_short(PROVENANCE, &parts, shown))
    }
}

/// Returns the error of data that was not written with our key.
pub(super) fn altered(tried: &str, what: &str) -> Error {
    let detail =
        format!("{what} was not written with this cluster.key: the store was altered, or another key was in use");
    Error::new(Class::Insecure, tried, detail)
        .hint("give all coordinators and workers the same cluster.key, find out who can write to the store, and run the rules again")
}
