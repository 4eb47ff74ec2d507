//! [`Origins`] in Redis: hashes per pair of source and target repository, from target tag to record, each small enough
//! for Redis's compact encoding; a set of targets per source, a set of sources per target, and a set of all sources.
//! Without expiry, because this is no cache. Deleting the last tag of a pair deletes its keys.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use super::cache::{all_buckets, buckets, with_buckets};
use super::{Call, RedisStore, damaged};
use crate::batch::{Home, Place};
use crate::error::Result;
use crate::image::{Algorithm, Digest, Tag};
use crate::store::{Origin, Origins};

/// Fields per call.
const AT_ONCE: usize = 500;
/// Separates the parts of a name.
const PART: char = '\u{1}';
/// Field of a pair's first hash that says that there are bucket hashes; not a valid tag.
const MARKER: &str = "\u{1}";

#[async_trait]
impl Origins for RedisStore {
    async fn note_origin(&self, source: &Place, target: &Place, digest: &Digest) -> Result<()> {
        let tried = format!("remembering where {target} came from");
        let (from, to) = (name(&source.home), name(&target.home));
        let record = self.origin_record(source, target, digest);
        let call = with_buckets(self.pair(&from, &to), target.tag.as_str()).bytes(record);
        let sources: Vec<String> = self.script(&tried, &self.0.scripts.origin_note, call).await?;
        // A tag has one provenance record.
        for other in sources.iter().filter(|other| **other != from) {
            let call = with_buckets(self.pair(other, &to), target.tag.as_str());
            self.script::<i64>(&tried, &self.0.scripts.origin_forget, call).await?;
        }
        Ok(())
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
            let home = Arc::new(home(&to).ok_or_else(|| damaged(&tried, "it names a repository that cannot be"))?);
            let first = origins.len();
            for (tag, bytes) in self.records(&tried, &self.origins_between(&from, &to)).await? {
                let tag: Tag = tag.parse().map_err(|_| damaged(&tried, "it names a tag that cannot be"))?;
                let read = unpack(&bytes).ok_or_else(|| damaged(&tried, "an origin cannot be read"))?;
                let is_authentic = self.provenance_holds((&from, &to, tag.as_str()), read.record, read.tag);
                let Known { digest, missing_since, unclaimed_since, source_tag } = read.known;
                let source_tag = source_tag.unwrap_or_else(|| tag.clone());
                let target = Place { home: home.clone(), tag };
                origins.push(Origin { target, source_tag, digest, missing_since, unclaimed_since, is_authentic });
            }
            origins[first..].sort_by(|a: &Origin, b: &Origin| a.target.tag.cmp(&b.target.tag));
        }
        Ok(origins)
    }

    async fn written(&self, target: &Home) -> Result<HashMap<Tag, Digest>> {
        let tried = format!("reading what was written to {target}");
        let to = name(target);
        let mut pipe = redis::pipe();
        pipe.smembers(self.origins_of("ot", &to));
        let (sources,): (Vec<String>,) = self.query(&tried, &pipe).await?;
        let mut written = HashMap::new();
        for from in sources {
            for (tag, bytes) in self.records(&tried, &self.origins_between(&from, &to)).await? {
                let tag: Tag = tag.parse().map_err(|_| damaged(&tried, "it names a tag that cannot be"))?;
                let read = unpack(&bytes).ok_or_else(|| damaged(&tried, "an origin cannot be read"))?;
                written.insert(tag, read.known.digest);
            }
        }
        Ok(written)
    }

    async fn note_missing(&self, source: &Home, targets: Vec<(Place, Option<Timestamp>)>) -> Result<()> {
        let tried = format!("remembering what {source} lacks");
        self.note_since(&tried, source, targets, |known, since| known.missing_since = since).await
    }

    async fn note_unclaimed(&self, source: &Home, targets: Vec<(Place, Option<Timestamp>)>) -> Result<()> {
        let tried = format!("remembering what no rule makes of {source}");
        self.note_since(&tried, source, targets, |known, since| known.unclaimed_since = since).await
    }

    async fn origin_sources(&self) -> Result<Vec<Home>> {
        let tried = "reading what target tags were made from";
        let (mut names, mut cursor) = (Vec::new(), 0_u64);
        loop {
            let mut pipe = redis::pipe();
            pipe.cmd("SSCAN").arg(self.key("origins")).arg(cursor).arg("COUNT").arg(AT_ONCE);
            let ((next, found),): ((u64, Vec<String>),) = self.query(tried, &pipe).await?;
            names.extend(found);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        // A scan may return a name twice.
        names.sort_unstable();
        names.dedup();
        let read = |name: &String| home(name).ok_or_else(|| damaged(tried, "it names a repository that cannot be"));
        names.iter().map(read).collect()
    }

    async fn forget_origins(&self, source: &Home, targets: &[Place]) -> Result<()> {
        let tried = format!("forgetting what was made of {source}");
        let from = name(source);
        let mut homes: Vec<&Arc<Home>> = targets.iter().map(|target| &target.home).collect();
        homes.sort_unstable();
        homes.dedup();
        for home in homes {
            let tags: Vec<&Tag> =
                targets.iter().filter(|target| target.home == *home).map(|target| &target.tag).collect();
            for tags in tags.chunks(AT_ONCE) {
                let call = self.pair(&from, &name(home));
                let call = tags.iter().fold(call, |call, tag| with_buckets(call, tag.as_str()));
                self.script::<i64>(&tried, &self.0.scripts.origin_forget, call).await?;
            }
        }
        Ok(())
    }
}

impl RedisStore {
    /// Changes a time of this source's records that were written with our key.
    async fn note_since(
        &self,
        tried: &str,
        source: &Home,
        targets: Vec<(Place, Option<Timestamp>)>,
        change: impl Fn(&mut Known, Option<Timestamp>) + Send + Sync,
    ) -> Result<()> {
        let from = name(source);
        for targets in targets.chunks(AT_ONCE) {
            let mut pipe = redis::pipe();
            for (target, _) in targets {
                let key = self.origins_between(&from, &name(&target.home));
                let [small, large] = buckets(target.tag.as_str());
                for key in [key.clone(), format!("{key}:{small}"), format!("{key}:{large}")] {
                    pipe.hget(key, target.tag.as_str());
                }
            }
            let found: Vec<Option<Vec<u8>>> = self.query(tried, &pipe).await?;
            for ((target, since), found) in targets.iter().zip(found.chunks(3)) {
                let Some(bytes) = found.iter().flatten().next() else { continue };
                let Some(read) = unpack(bytes) else { continue };
                let to = name(&target.home);
                // Signing a record of somebody else would make it authentic.
                if !self.provenance_holds((&from, &to, target.tag.as_str()), read.record, read.tag) {
                    continue;
                }
                let mut known = read.known;
                change(&mut known, *since);
                let changed = self.signed(pack(&known), &from, &to, &target.tag);
                let call = Call::on(self.origins_between(&from, &to));
                let call = with_buckets(call, target.tag.as_str()).bytes(bytes.as_slice()).bytes(changed);
                self.script::<i64>(tried, &self.0.scripts.origin_change, call).await?;
            }
        }
        Ok(())
    }

    /// Returns all fields of a pair's hashes.
    async fn records(&self, tried: &str, key: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut pipe = redis::pipe();
        pipe.hgetall(key);
        let (mut records,): (Vec<(String, Vec<u8>)>,) = self.query(tried, &pipe).await?;
        let before = records.len();
        records.retain(|(tag, _)| tag != MARKER);
        if records.len() < before {
            let mut pipe = redis::pipe();
            all_buckets().for_each(|bucket| _ = pipe.hgetall(format!("{key}:{bucket}")));
            let more: Vec<Vec<(String, Vec<u8>)>> = self.query(tried, &pipe).await?;
            records.extend(more.into_iter().flatten());
        }
        Ok(records)
    }

    /// Starts a script call about a source and a target: their hash, the sets that name them, and their names.
    fn pair(&self, from: &str, to: &str) -> Call {
        Call::on(self.origins_between(from, to))
            .key(self.origins_of("os", from))
            .key(self.origins_of("ot", to))
            .key(self.key("origins"))
            .arg(from)
            .arg(to)
    }

    /// Encodes the record of a target tag that was just written.
    pub(super) fn origin_record(&self, source: &Place, target: &Place, digest: &Digest) -> Vec<u8> {
        let source_tag = (source.tag != target.tag).then(|| source.tag.clone());
        let known = Known { digest: digest.clone(), missing_since: None, unclaimed_since: None, source_tag };
        self.signed(pack(&known), &name(&source.home), &name(&target.home), &target.tag)
    }

    /// Signs a record: its bytes, then its tag.
    fn signed(&self, mut record: Vec<u8>, from: &str, to: &str, tag: &Tag) -> Vec<u8> {
        let shown = self.provenance_tag(from, to, tag.as_str(), &record);
        record.extend(shown);
        record
    }

    pub(super) fn origins_of(&self, kind: &str, home: &str) -> String {
        self.key(&format!("{kind}:{}", &Digest::sha256(home.as_bytes()).hex()[..16]))
    }

    pub(super) fn origins_between(&self, from: &str, to: &str) -> String {
        self.origins_of("o", &format!("{from}{PART}{PART}{to}"))
    }
}

pub(super) fn name(home: &Home) -> String {
    format!("{}{PART}{}", home.end(), home.path())
}

fn home(name: &str) -> Option<Home> {
    name.split_once(PART).and_then(|(end, path)| Home::new(end.parse().ok()?, path).ok())
}

/// Decoded provenance of a target tag.
struct Known {
    digest: Digest,
    missing_since: Option<Timestamp>,
    unclaimed_since: Option<Timestamp>,
    /// The source tag, if it differs from the target tag.
    source_tag: Option<Tag>,
}

/// Stored record of a target tag.
struct Record<'a> {
    known: Known,
    /// The authenticated bytes, and their tag.
    record: &'a [u8],
    tag: &'a [u8],
}

/// Flags in the first byte of a record.
const IS_MISSING: u8 = 1;
const IS_UNCLAIMED: u8 = 2;
const IS_SHA512: u8 = 4;
const HAS_SOURCE_TAG: u8 = 8;

/// Encodes flags; missing and unclaimed times as seconds in 4 bytes each; the digest's bytes; and the source tag after
/// its length in one byte. Most records have the digest alone.
fn pack(known: &Known) -> Vec<u8> {
    let digest = hex::decode(known.digest.hex()).unwrap_or_default();
    let bit = |has: bool, bit: u8| if has { bit } else { 0 };
    let mut bytes = vec![
        bit(known.missing_since.is_some(), IS_MISSING)
            | bit(known.unclaimed_since.is_some(), IS_UNCLAIMED)
            | bit(digest.len() == 64, IS_SHA512)
            | bit(known.source_tag.is_some(), HAS_SOURCE_TAG),
    ];
    for since in [known.missing_since, known.unclaimed_since].into_iter().flatten() {
        bytes.extend(u32::try_from(since.as_second()).unwrap_or_default().to_be_bytes());
    }
    bytes.extend(digest);
    if let Some(tag) = &known.source_tag {
        // A tag has at most 128 characters.
        bytes.push(tag.as_str().len() as u8);
        bytes.extend(tag.as_str().as_bytes());
    }
    bytes
}

fn unpack(bytes: &[u8]) -> Option<Record<'_>> {
    let (bits, mut rest) = bytes.split_first()?;
    let mut since = |bit: u8| {
        if bits & bit == 0 {
            return Some(None);
        }
        let (second, left) = rest.split_first_chunk::<4>()?;
        rest = left;
        Some(Some(Timestamp::from_second(u32::from_be_bytes(*second).into()).ok()?))
    };
    let (missing_since, unclaimed_since) = (since(IS_MISSING)?, since(IS_UNCLAIMED)?);
    let (algorithm, length) = match bits & IS_SHA512 {
        0 => (Algorithm::Sha256, 32),
        _ => (Algorithm::Sha512, 64),
    };
    let (digest, mut rest) = rest.split_at_checked(length)?;
    let digest = format!("{}:{}", algorithm.as_str(), hex::encode(digest)).parse().ok()?;
    let mut source_tag = None;
    if bits & HAS_SOURCE_TAG != 0 {
        let (length, left) = rest.split_first()?;
        let (tag, left) = left.split_at_checked(usize::from(*length))?;
        source_tag = Some(std::str::from_utf8(tag).ok()?.parse().ok()?);
        rest = left;
    }
    let known = Known { digest, missing_since, unclaimed_since, source_tag };
    Some(Record { known, record: &bytes[..bytes.len() - rest.len()], tag: rest })
}
