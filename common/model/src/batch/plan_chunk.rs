//! Packed chunks of tasks: the format in which stores keep the plan.
//!
//! Tasks of a repository differ in their tags and digests only. A chunk consists of: a version byte; the length of the
//! packed part as a varint; the packed part, deflated (RFC 1951); the raw digests, which do not compress. The packed
//! part holds the time of the listing, the repositories, for each task its rule, source, target and a byte for the
//! digest kind and the digest tag hints, and then the tags.

use std::io::{Read, Write};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use jiff::Timestamp;

use super::{RepositoryLocator, TagLocator, TaskSpec};
use imgsync_oci::{Algorithm, Digest, DigestTagHints, Tag};
use serde::{Deserialize, Serialize};

/// Maximum number of tasks in a chunk.
pub const MAX_TASKS: usize = 500;

const VERSION: u8 = 1;
/// Bits of a task's byte that hold the digest kind.
const DIGEST_KIND_BITS: u32 = 2;
/// Upper bound of the unpacked size of a chunk.
const MAX_UNPACKED_BYTES: u64 = 8 << 20;

/// Tasks of one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanChunk {
    /// Time of the listing, to the second.
    pub listed_at: Timestamp,
    /// The tasks, in the order of their indexes.
    pub tasks: Vec<TaskSpec>,
}

/// Identifies a chunk of a batch's plan by its position and content. A store that lost its latest writes fills the same
/// positions anew: the mark tells a message of a lost chunk from one of the chunk that took its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct ChunkMark {
    /// Chunk number, from 0.
    pub number: u32,
    /// Checksum of the stored bytes, plus the index of the first task.
    pub checksum: u32,
}

impl ChunkMark {
    /// Computes the mark of the chunk with this number, first task and [`chunk_checksum`].
    pub fn new(number: u32, first: u32, checksum: u32) -> ChunkMark {
        ChunkMark { number, checksum: checksum.wrapping_add(first) }
    }
}

impl From<(u32, u32)> for ChunkMark {
    fn from((number, checksum): (u32, u32)) -> ChunkMark {
        ChunkMark { number, checksum }
    }
}

impl From<ChunkMark> for (u32, u32) {
    fn from(mark: ChunkMark) -> (u32, u32) {
        (mark.number, mark.checksum)
    }
}

/// Computes the checksum of a chunk's stored bytes.
pub fn chunk_checksum(bytes: &[u8]) -> u32 {
    let digest = Digest::sha256(bytes);
    u32::from_str_radix(digest.hex().get(..8).unwrap_or_default(), 16).unwrap_or_default()
}

/// Error of decoding a chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a chunk of the plan cannot be decoded: {0}")]
pub struct PlanChunkError(&'static str);

/// Packs tasks of one listing. Keeps the digests at positions where `keeps_digest` returns true; those of unchanged tasks
/// are in the digest cache.
pub fn encode_chunk(listed_at: Timestamp, tasks: &[TaskSpec], keeps_digest: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut homes: Vec<&RepositoryLocator> = Vec::new();
    let mut number_of = |home| {
        // There are few, and the last ones are the likeliest.
        let found = homes.iter().rposition(|known| *known == home);
        found.unwrap_or_else(|| {
            homes.push(home);
            homes.len() - 1
        })
    };
    let (mut rows, mut tags, mut digests) = (Vec::new(), Vec::new(), Vec::new());
    for (position, task) in tasks.iter().enumerate() {
        let digest = task.digest.as_ref().filter(|_| keeps_digest(position));
        write_varint(&mut rows, task.rule.into());
        write_varint(&mut rows, number_of(&task.source.repository) as u64);
        write_varint(&mut rows, number_of(&task.target.repository) as u64);
        let kind = match digest.map(Digest::algorithm) {
            None => 0,
            Some(Algorithm::Sha256) => 1,
            Some(Algorithm::Sha512) => 2,
        };
        rows.push(kind | task.digest_tags.bits() << DIGEST_KIND_BITS);
        if let Some(digest) = digest {
            // A digest is valid hexadecimal: it was checked when it was created.
            digests.extend(hex::decode(digest.hex()).unwrap_or_default());
        }
        write_text(&mut tags, task.source.tag.as_str());
        // Tags are never empty: an empty one means the same tag.
        write_text(&mut tags, if task.target.tag == task.source.tag { "" } else { task.target.tag.as_str() });
    }

    let mut packed = Vec::new();
    write_varint(&mut packed, listed_at.as_second().max(0).unsigned_abs());
    write_varint(&mut packed, homes.len() as u64);
    for home in homes {
        write_text(&mut packed, &home.endpoint().to_string());
        write_text(&mut packed, home.path());
    }
    write_varint(&mut packed, tasks.len() as u64);
    packed.extend(rows);
    packed.extend(tags);
    let packed = deflate(&packed);

    let mut bytes = vec![VERSION];
    write_varint(&mut bytes, packed.len() as u64);
    bytes.extend(packed);
    bytes.extend(digests);
    bytes
}

/// Decodes a chunk written by [`encode_chunk`].
pub fn decode_chunk(bytes: &[u8]) -> Result<PlanChunk, PlanChunkError> {
    let mut bytes = ByteReader(bytes);
    if bytes.take(1)? != [VERSION] {
        return Err(PlanChunkError("unknown version"));
    }
    let length = bytes.read_varint()?;
    let packed = inflate(bytes.take(length)?)?;
    let mut digests = bytes;
    let mut packed = ByteReader(&packed);

    let listed_at = i64::try_from(packed.read_varint()?).ok().and_then(|second| Timestamp::from_second(second).ok());
    let listed_at = listed_at.ok_or(PlanChunkError("invalid timestamp"))?;
    let mut homes = Vec::new();
    for _ in 0..packed.read_varint()? {
        let end = packed.read_text()?.parse().map_err(|_| PlanChunkError("invalid registry"))?;
        homes.push(Arc::new(
            RepositoryLocator::new(end, packed.read_text()?).map_err(|_| PlanChunkError("invalid repository"))?,
        ));
    }
    let number = packed.read_varint()?;
    if number > MAX_TASKS {
        return Err(PlanChunkError("too many tasks"));
    }
    let mut rows = Vec::with_capacity(number);
    for _ in 0..number {
        let rule = u32::try_from(packed.read_varint()?).map_err(|_| PlanChunkError("invalid rule number"))?;
        let mut home =
            || homes.get(packed.read_varint()?).cloned().ok_or(PlanChunkError("repository index out of range"));
        let (source, target) = (home()?, home()?);
        let byte = packed.take(1)?[0];
        let digest = match byte & ((1 << DIGEST_KIND_BITS) - 1) {
            0 => None,
            1 => Some(digests.read_digest(Algorithm::Sha256)?),
            2 => Some(digests.read_digest(Algorithm::Sha512)?),
            _ => return Err(PlanChunkError("invalid digest")),
        };
        rows.push((rule, source, target, digest, DigestTagHints::from_bits(byte >> DIGEST_KIND_BITS)));
    }
    let mut tasks = Vec::with_capacity(number);
    for (rule, source, target, digest, digest_tags) in rows {
        let tag: Tag = packed.read_text()?.parse().map_err(|_| PlanChunkError("invalid tag"))?;
        let target_tag = match packed.read_text()? {
            "" => tag.clone(),
            other => other.parse().map_err(|_| PlanChunkError("invalid tag"))?,
        };
        let (source, target) =
            (TagLocator { repository: source, tag }, TagLocator { repository: target, tag: target_tag });
        tasks.push(TaskSpec { rule, source, digest, target, digest_tags });
    }
    Ok(PlanChunk { listed_at, tasks })
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

fn inflate(bytes: &[u8]) -> Result<Vec<u8>, PlanChunkError> {
    let mut unpacked = Vec::new();
    DeflateDecoder::new(bytes)
        .take(MAX_UNPACKED_BYTES)
        .read_to_end(&mut unpacked)
        .map_err(|_| PlanChunkError("invalid deflate stream"))?;
    Ok(unpacked)
}

/// Writes a number as LEB128.
fn write_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number as u8) | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn write_text(bytes: &mut Vec<u8>, text: &str) {
    write_varint(bytes, text.len() as u64);
    bytes.extend(text.as_bytes());
}

/// Reads values from the rest of a byte slice.
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], PlanChunkError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(PlanChunkError("truncated"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn read_varint(&mut self) -> Result<usize, PlanChunkError> {
        let mut number = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return usize::try_from(number).map_err(|_| PlanChunkError("a number is too large"));
            }
        }
        Err(PlanChunkError("a number is too large"))
    }

    fn read_text(&mut self) -> Result<&'a str, PlanChunkError> {
        let length = self.read_varint()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| PlanChunkError("a text is not UTF-8"))
    }

    fn read_digest(&mut self, algorithm: Algorithm) -> Result<Digest, PlanChunkError> {
        let hex = hex::encode(self.take(algorithm.hex_len() / 2)?);
        format!("{}:{hex}", algorithm.as_str()).parse().map_err(|_| PlanChunkError("invalid digest"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use imgsync_oci::DigestTag;

    fn place(home: &Arc<RepositoryLocator>, tag: &str) -> TagLocator {
        TagLocator { repository: home.clone(), tag: tag.parse().unwrap() }
    }

    fn repository(tags: usize) -> Vec<TaskSpec> {
        let source = Arc::new(RepositoryLocator::new("gcr.io".parse().unwrap(), "istio-release/pilot").unwrap());
        let target =
            Arc::new(RepositoryLocator::new("docker.io".parse().unwrap(), "x/gcr.io_istio-release_pilot").unwrap());
        let task = |n: usize| {
            let tag = format!("1.{}.{}-distroless", n / 20, n % 20);
            let digest =
                Some(Digest::from_bytes([Algorithm::Sha256, Algorithm::Sha512][usize::from(n == 3)], tag.as_bytes()));
            let target_tag = if n == 5 { "other" } else { &tag };
            let digest_tags = if n == 4 {
                DigestTagHints::from_listing([DigestTag::Sbom]).with_new()
            } else {
                DigestTagHints::default()
            };
            TaskSpec {
                rule: 300,
                source: place(&source, &tag),
                digest,
                target: place(&target, target_tag),
                digest_tags,
            }
        };
        (0..tags).map(task).collect()
    }

    #[test]
    fn a_chunk_reads_back_as_it_was() {
        let listed_at = Timestamp::from_second(1_767_225_600).unwrap();
        for tags in [0, 1, 7, MAX_TASKS] {
            let tasks = repository(tags);
            let chunk = decode_chunk(&encode_chunk(listed_at, &tasks, |_| true)).unwrap();
            assert_eq!(chunk, PlanChunk { listed_at, tasks });
        }
        let mut tasks = repository(4);
        let chunk = decode_chunk(&encode_chunk(listed_at, &tasks, |position| position == 1)).unwrap();
        for position in [0, 2, 3] {
            tasks[position].digest = None;
        }
        assert_eq!(chunk.tasks, tasks);
    }

    #[test]
    fn a_task_takes_few_bytes() {
        let tasks = repository(MAX_TASKS);
        let bare = encode_chunk(Timestamp::UNIX_EPOCH, &tasks, |_| false).len();
        let whole = encode_chunk(Timestamp::UNIX_EPOCH, &tasks, |_| true).len();
        println!("bytes a task: {:.1} settled, {:.1} to do", bare as f64 / 500.0, whole as f64 / 500.0);
        assert!(bare < MAX_TASKS * 8, "{bare}");
        assert!(whole < MAX_TASKS * 42, "{whole}");
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = encode_chunk(Timestamp::UNIX_EPOCH, &repository(9), |_| true);
        for end in 0..bytes.len() {
            assert!(decode_chunk(&bytes[..end]).is_err(), "{end}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, at in 0usize..200, with: u8) {
            let _ = decode_chunk(&bytes);
            let mut near = encode_chunk(Timestamp::UNIX_EPOCH, &repository(9), |_| true);
            let at = at.min(near.len() - 1);
            near[at] = with;
            let _ = decode_chunk(&near);
        }
    }
}
