//! What is authenticated with `cluster.key` in Redis, so that who can write there cannot make us copy or delete: segments
//! of the plan, the options of a batch, the provenance of target tags, and the proofs of sources that they hold a blob.
//!
//! A tag is an HMAC-SHA256 over the content and over what the content is bound to. Without a key there are no tags, and
//! nothing is checked.

use super::RedisStore;
use crate::batch::{BatchId, Chunk, SHORT_TAG_BYTES, TAG_BYTES, decode_chunk};
use crate::error::{Class, Error, Result};
use crate::image::Digest;
use crate::store::Proof;

/// Kinds of tags.
const SEGMENT: &str = "plan segment";
const OPTIONS: &str = "batch options";
const PROVENANCE: &str = "provenance";
const PROOF: &str = "blob proof";
/// Bytes of the name under which a proof is kept.
const PROOF_NAME_BYTES: usize = 20;

/// Where a segment stands in the plan of its batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentPlace {
    pub(super) batch: BatchId,
    /// Its number, from 0.
    pub(super) number: u64,
    /// The index of its first task.
    pub(super) first: u32,
    /// Its tasks.
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
    /// A segment as it is kept: its bytes, then its tag.
    pub(super) fn seal_segment(&self, place: SegmentPlace, mut bytes: Vec<u8>) -> Vec<u8> {
        let tag = place.tag_of(self, &bytes);
        bytes.extend(tag);
        bytes
    }

    /// Reads a segment that must stand at this place.
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

    /// The tag of a batch's options, in hexadecimal; empty without a key.
    pub(super) fn options_tag(&self, batch: BatchId, rules: &Digest, options: &str) -> String {
        let (batch, rules) = (batch.to_string(), rules.to_string());
        let parts = [batch.as_bytes(), rules.as_bytes(), options.as_bytes()];
        self.signing_key().map(|key| hex::encode(key.tag(OPTIONS, &parts))).unwrap_or_default()
    }

    /// Whether a batch has the options that it was made with.
    pub(super) fn options_hold(&self, batch: BatchId, rules: &Digest, options: &str, tag: Option<&str>) -> bool {
        let Some(key) = self.signing_key() else { return true };
        let (batch, rules) = (batch.to_string(), rules.to_string());
        let parts = [batch.as_bytes(), rules.as_bytes(), options.as_bytes()];
        tag.and_then(|tag| hex::decode(tag).ok()).is_some_and(|tag| key.tags(OPTIONS, &parts, &tag))
    }

    /// The name under which a proof is kept: with a key one that nobody else can work out, so that no proof is made up.
    pub(super) fn proof_name(&self, proof: &Proof) -> Vec<u8> {
        let Some(key) = self.signing_key() else { return proof.as_bytes().to_vec() };
        let mut name = key.tag(PROOF, &[proof.as_bytes()]);
        name.truncate(PROOF_NAME_BYTES);
        name
    }

    /// The tag of what is known of a target tag; empty without a key. `target` names its repository.
    pub(super) fn provenance_tag(&self, source: &str, target: &str, tag: &str, record: &[u8]) -> Vec<u8> {
        let parts = [source.as_bytes(), target.as_bytes(), tag.as_bytes(), record];
        let mut shown = self.signing_key().map(|key| key.tag(PROVENANCE, &parts)).unwrap_or_default();
        // One is kept for each target tag.
        shown.truncate(SHORT_TAG_BYTES);
        shown
    }

    /// Whether a record of provenance was written with our key.
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

/// What stands in the store is not what was written with our key.
pub(super) fn altered(tried: &str, what: &str) -> Error {
    let detail =
        format!("{what} was not written with this cluster.key: the store was altered, or another key was in use");
    Error::new(Class::Insecure, tried, detail)
        .hint("give all coordinators and workers the same cluster.key, find out who can write to the store, and run the rules again")
}
