//! [`Origins`] in Redis: a hash for each pair of a target's and a source's repository, from the target's tag to what is
//! known of it; a set for each source with its targets, and one for each target with its sources. Without expiry: they are
//! no cache.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{RedisStore, damaged};
use crate::batch::{Home, Place};
use crate::error::Result;
use crate::image::{Algorithm, Digest, Tag};
use crate::store::{Origin, Origins};

/// Fields that are written or read at a time.
const AT_ONCE: usize = 500;
/// Between the parts of a name.
const PART: char = '\u{1}';

#[async_trait]
impl Origins for RedisStore {
    async fn note_origin(&self, source: &Place, target: &Place, digest: &Digest) -> Result<()> {
        let tried = format!("remembering where {target} came from");
        let (from, to) = (name(&source.home), name(&target.home));
        let mut pipe = redis::pipe();
        pipe.sadd(self.origins_of("os", &from), &to).ignore();
        pipe.sadd(self.origins_of("ot", &to), &from).ignore();
        let record = pack(digest, None, (source.tag != target.tag).then_some(&source.tag));
        let signed = self.signed(record, &from, &to, &target.tag);
        pipe.hset(self.origins_between(&from, &to), target.tag.as_str(), signed).ignore();
        pipe.smembers(self.origins_of("ot", &to));
        let (sources,): (Vec<String>,) = self.query(&tried, &pipe).await?;
        if sources.len() < 2 {
            return Ok(());
        }
        // A tag has one origin.
        let mut pipe = redis::pipe();
        for other in sources.iter().filter(|other| **other != from) {
            pipe.hdel(self.origins_between(other, &to), target.tag.as_str()).ignore();
        }
        self.query::<()>(&tried, &pipe).await
    }

    async fn origins(&self, source: &Home) -> Result<Vec<Origin>> {
        let tried = format!("reading what was made of {source}");
        let from = name(source);
        let mut pipe = redis::pipe();
        pipe.smembers(self.origins_of("os", &from));
        let (mut targets,): (Vec<String>,) = self.query(&tried, &pipe).await?;
        targets.sort_unstable();
        let mut origins = Vec::new();
        for to in targets {
            let home = to.split_once(PART).and_then(|(end, path)| Home::new(end.parse().ok()?, path).ok());
            let home = Arc::new(home.ok_or_else(|| damaged(&tried, "it names a repository that cannot be"))?);
            let first = origins.len();
            let mut cursor = 0_u64;
            loop {
                let mut pipe = redis::pipe();
                pipe.cmd("HSCAN").arg(self.origins_between(&from, &to)).arg(cursor).arg("COUNT").arg(AT_ONCE);
                let ((next, found),): ((u64, Vec<(String, Vec<u8>)>),) = self.query(&tried, &pipe).await?;
                for (tag, bytes) in found {
                    let tag: Tag = tag.parse().map_err(|_| damaged(&tried, "it names a tag that cannot be"))?;
                    let read = unpack(&bytes).ok_or_else(|| damaged(&tried, "an origin cannot be read"))?;
                    let is_authentic = self.provenance_holds((&from, &to, tag.as_str()), read.record, read.tag);
                    let Record { digest, missing_since, source_tag, .. } = read;
                    let source_tag = source_tag.unwrap_or_else(|| tag.clone());
                    origins.push(Origin {
                        target: Place { home: home.clone(), tag },
                        source_tag,
                        digest,
                        missing_since,
                        is_authentic,
                    });
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
            // A scan may give a field twice.
            let mut here = origins.split_off(first);
            here.sort_by(|a: &Origin, b: &Origin| a.target.tag.cmp(&b.target.tag));
            here.dedup_by(|a, b| a.target.tag == b.target.tag);
            origins.append(&mut here);
        }
        Ok(origins)
    }

    async fn note_missing(&self, source: &Home, targets: Vec<(Place, Option<Timestamp>)>) -> Result<()> {
        let tried = format!("remembering what {source} lacks");
        let from = name(source);
        for targets in targets.chunks(AT_ONCE) {
            let key = |target: &Place| self.origins_between(&from, &name(&target.home));
            let mut pipe = redis::pipe();
            for (target, _) in targets {
                pipe.hget(key(target), target.tag.as_str());
            }
            let known: Vec<Option<Vec<u8>>> = self.query(&tried, &pipe).await?;
            let mut pipe = redis::pipe();
            let mut changes = 0;
            for ((target, since), bytes) in targets.iter().zip(known) {
                let Some(known) = bytes.as_deref().and_then(unpack) else { continue };
                let to = name(&target.home);
                // Signing what somebody else wrote would make it ours.
                if !self.provenance_holds((&from, &to, target.tag.as_str()), known.record, known.tag) {
                    continue;
                }
                let record = pack(&known.digest, *since, known.source_tag.as_ref());
                let signed = self.signed(record, &from, &to, &target.tag);
                pipe.hset(key(target), target.tag.as_str(), signed).ignore();
                changes += 1;
            }
            if changes > 0 {
                self.query::<()>(&tried, &pipe).await?;
            }
        }
        Ok(())
    }

    async fn forget_origins(&self, source: &Home, targets: &[Place]) -> Result<()> {
        let tried = format!("forgetting what was made of {source}");
        let from = name(source);
        for targets in targets.chunks(AT_ONCE) {
            let mut pipe = redis::pipe();
            for target in targets {
                pipe.hdel(self.origins_between(&from, &name(&target.home)), target.tag.as_str()).ignore();
            }
            self.query::<()>(&tried, &pipe).await?;
        }
        Ok(())
    }
}

impl RedisStore {
    /// A record as it is kept: its bytes, then its tag.
    fn signed(&self, mut record: Vec<u8>, from: &str, to: &str, tag: &Tag) -> Vec<u8> {
        let shown = self.provenance_tag(from, to, tag.as_str(), &record);
        record.extend(shown);
        record
    }

    fn origins_of(&self, kind: &str, home: &str) -> String {
        self.key(&format!("{kind}:{}", &Digest::sha256(home.as_bytes()).hex()[..16]))
    }

    fn origins_between(&self, from: &str, to: &str) -> String {
        self.origins_of("o", &format!("{from}{PART}{PART}{to}"))
    }
}

fn name(home: &Home) -> String {
    format!("{}{PART}{}", home.end(), home.path())
}

/// What is kept of a target tag.
struct Record<'a> {
    digest: Digest,
    missing_since: Option<Timestamp>,
    /// The source's tag, where that is another than the target's.
    source_tag: Option<Tag>,
    /// The bytes that all that was read from, and what authenticates them.
    record: &'a [u8],
    tag: &'a [u8],
}

/// Since when the source's tag is missing as seconds of 4 bytes, 0 where it is not; then, each after its length in a byte,
/// the digest's own bytes, and the source's tag where that is another than the target's.
fn pack(digest: &Digest, missing: Option<Timestamp>, source_tag: Option<&Tag>) -> Vec<u8> {
    let second = missing.map_or(0, |time| u32::try_from(time.as_second()).unwrap_or_default().max(1));
    let digest = hex::decode(digest.hex()).unwrap_or_default();
    let mut bytes = second.to_be_bytes().to_vec();
    for part in [digest.as_slice(), source_tag.map_or("", Tag::as_str).as_bytes()] {
        // A tag has no more than 128 characters.
        bytes.push(part.len() as u8);
        bytes.extend(part);
    }
    bytes
}

fn unpack(bytes: &[u8]) -> Option<Record<'_>> {
    let (second, rest) = bytes.split_first_chunk::<4>()?;
    let missing_since = match u32::from_be_bytes(*second) {
        0 => None,
        second => Some(Timestamp::from_second(second.into()).ok()?),
    };
    let (digest, rest) = part(rest)?;
    let (source_tag, tag) = part(rest)?;
    let algorithm = match digest.len() {
        32 => Algorithm::Sha256,
        64 => Algorithm::Sha512,
        _ => return None,
    };
    let digest = format!("{}:{}", algorithm.as_str(), hex::encode(digest)).parse().ok()?;
    let source_tag = match source_tag.is_empty() {
        true => None,
        false => Some(std::str::from_utf8(source_tag).ok()?.parse().ok()?),
    };
    Some(Record { digest, missing_since, source_tag, record: &bytes[..bytes.len() - tag.len()], tag })
}

/// Bytes after their length, and what follows.
fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}
