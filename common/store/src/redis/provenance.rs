//! [`ProvenanceStore`] in Redis: hashes per pair of source and target repository, from target tag to record, each small
//! enough for Redis's compact encoding; a set of targets per source, a set of sources per target, and a set of all
//! sources. Without expiry, because this is no cache. Deleting the last tag of a pair deletes its keys.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use super::cache::{all_buckets, buckets, with_buckets};
use super::{RedisStore, ScriptCall, corrupt_store};
use crate::{ProvenanceStore, TagProvenance};
use imgsync_model::batch::{RepositoryLocator, TagLocator};
use imgsync_oci::error::Result;
use imgsync_oci::{Algorithm, Digest, Tag};

/// Fields per call.
const TAGS_PER_CALL: usize = 500;
/// Separates the parts of a name.
const NAME_SEPARATOR: char = '\u{1}';
/// Field of a pair's first hash that says that there are bucket hashes; not a valid tag.
const BUCKETS_MARKER: &str = "\u{1}";

#[async_trait]
impl ProvenanceStore for RedisStore {
    async fn record_provenance(&self, source: &TagLocator, target: &TagLocator, digest: &Digest) -> Result<()> {
        let operation = format!("recording the provenance of {target}");
        let (from, to) = (repository_name(&source.repository), repository_name(&target.repository));
        let record = self.encode_provenance(source, target, digest);
        let call = with_buckets(self.pair_call(&from, &to), target.tag.as_str()).bytes(record);
        let sources: Vec<String> = self.run_script(&operation, &self.0.scripts.record_provenance, call).await?;
        // A tag has one provenance record.
        for other in sources.iter().filter(|other| **other != from) {
            let call = with_buckets(self.pair_call(other, &to), target.tag.as_str());
            self.run_script::<i64>(&operation, &self.0.scripts.forget_provenance, call).await?;
        }
        Ok(())
    }

    async fn provenance_by_source(&self, source: &RepositoryLocator) -> Result<Vec<TagProvenance>> {
        let operation = format!("reading the provenance of copies from {source}");
        let from = repository_name(source);
        let mut pipe = redis::pipe();
        pipe.smembers(self.provenance_key("provenance_targets", &from));
        let (mut targets,): (Vec<String>,) = self.query(&operation, &pipe).await?;
        targets.sort_unstable();
        let mut tag_provenances = Vec::new();
        for to in targets {
            let home = Arc::new(
                parse_repository_name(&to).ok_or_else(|| corrupt_store(&operation, "invalid repository name"))?,
            );
            let first = tag_provenances.len();
            for (tag, bytes) in self.read_fields(&operation, &self.pair_key(&from, &to)).await? {
                let tag: Tag = tag.parse().map_err(|_| corrupt_store(&operation, "invalid tag"))?;
                let read =
                    unpack(&bytes).ok_or_else(|| corrupt_store(&operation, "a provenance record cannot be decoded"))?;
                let is_authentic = self.verify_provenance((&from, &to, tag.as_str()), read.record, read.tag);
                let ProvenanceFields { digest, missing_since, unclaimed_since, source_tag } = read.known;
                let source_tag = source_tag.unwrap_or_else(|| tag.clone());
                let target = TagLocator { repository: home.clone(), tag };
                tag_provenances.push(TagProvenance {
                    target,
                    source_tag,
                    digest,
                    missing_since,
                    unclaimed_since,
                    is_authentic,
                });
            }
            tag_provenances[first..].sort_by(|a: &TagProvenance, b: &TagProvenance| a.target.tag.cmp(&b.target.tag));
        }
        Ok(tag_provenances)
    }

    async fn written_digests(&self, target: &RepositoryLocator) -> Result<HashMap<Tag, Digest>> {
        let operation = format!("reading the provenance of {target}");
        let to = repository_name(target);
        let mut pipe = redis::pipe();
        pipe.smembers(self.provenance_key("provenance_sources_of", &to));
        let (sources,): (Vec<String>,) = self.query(&operation, &pipe).await?;
        let mut written = HashMap::new();
        for from in sources {
            for (tag, bytes) in self.read_fields(&operation, &self.pair_key(&from, &to)).await? {
                let tag: Tag = tag.parse().map_err(|_| corrupt_store(&operation, "invalid tag"))?;
                let read =
                    unpack(&bytes).ok_or_else(|| corrupt_store(&operation, "a provenance record cannot be decoded"))?;
                written.insert(tag, read.known.digest);
            }
        }
        Ok(written)
    }

    async fn set_missing_since(
        &self,
        source: &RepositoryLocator,
        targets: Vec<(TagLocator, Option<Timestamp>)>,
    ) -> Result<()> {
        let operation = format!("recording tags missing at {source}");
        self.update_timestamps(&operation, source, targets, |known, since| known.missing_since = since).await
    }

    async fn set_unclaimed_since(
        &self,
        source: &RepositoryLocator,
        targets: Vec<(TagLocator, Option<Timestamp>)>,
    ) -> Result<()> {
        let operation = format!("recording targets of {source} that no rule makes");
        self.update_timestamps(&operation, source, targets, |known, since| known.unclaimed_since = since).await
    }

    async fn provenance_sources(&self) -> Result<Vec<RepositoryLocator>> {
        let operation = "listing sources with recorded provenance";
        let (mut names, mut cursor) = (Vec::new(), 0_u64);
        loop {
            let mut pipe = redis::pipe();
            pipe.cmd("SSCAN").arg(self.key("provenance_sources")).arg(cursor).arg("COUNT").arg(TAGS_PER_CALL);
            let ((next, found),): ((u64, Vec<String>),) = self.query(operation, &pipe).await?;
            names.extend(found);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        // A scan may return a name twice.
        names.sort_unstable();
        names.dedup();
        let read = |name: &String| {
            parse_repository_name(name).ok_or_else(|| corrupt_store(operation, "invalid repository name"))
        };
        names.iter().map(read).collect()
    }

    async fn forget_provenance(&self, source: &RepositoryLocator, targets: &[TagLocator]) -> Result<()> {
        let operation = format!("deleting the provenance of copies from {source}");
        let from = repository_name(source);
        let mut homes: Vec<&Arc<RepositoryLocator>> = targets.iter().map(|target| &target.repository).collect();
        homes.sort_unstable();
        homes.dedup();
        for home in homes {
            let tags: Vec<&Tag> =
                targets.iter().filter(|target| target.repository == *home).map(|target| &target.tag).collect();
            for tags in tags.chunks(TAGS_PER_CALL) {
                let call = self.pair_call(&from, &repository_name(home));
                let call = tags.iter().fold(call, |call, tag| with_buckets(call, tag.as_str()));
                self.run_script::<i64>(&operation, &self.0.scripts.forget_provenance, call).await?;
            }
        }
        Ok(())
    }
}

impl RedisStore {
    /// Changes a time of this source's records that were written with our key.
    async fn update_timestamps(
        &self,
        operation: &str,
        source: &RepositoryLocator,
        targets: Vec<(TagLocator, Option<Timestamp>)>,
        change: impl Fn(&mut ProvenanceFields, Option<Timestamp>) + Send + Sync,
    ) -> Result<()> {
        let from = repository_name(source);
        for targets in targets.chunks(TAGS_PER_CALL) {
            let mut pipe = redis::pipe();
            for (target, _) in targets {
                let key = self.pair_key(&from, &repository_name(&target.repository));
                let [small, large] = buckets(target.tag.as_str());
                for key in [key.clone(), format!("{key}:{small}"), format!("{key}:{large}")] {
                    pipe.hget(key, target.tag.as_str());
                }
            }
            let found: Vec<Option<Vec<u8>>> = self.query(operation, &pipe).await?;
            for ((target, since), found) in targets.iter().zip(found.chunks(3)) {
                let Some(bytes) = found.iter().flatten().next() else { continue };
                let Some(read) = unpack(bytes) else { continue };
                let to = repository_name(&target.repository);
                // Signing a record of somebody else would make it authentic.
                if !self.verify_provenance((&from, &to, target.tag.as_str()), read.record, read.tag) {
                    continue;
                }
                let mut known = read.known;
                change(&mut known, *since);
                let changed = self.sign_record(pack(&known), &from, &to, &target.tag);
                let call = ScriptCall::new(self.pair_key(&from, &to));
                let call = with_buckets(call, target.tag.as_str()).bytes(bytes.as_slice()).bytes(changed);
                self.run_script::<i64>(operation, &self.0.scripts.update_provenance, call).await?;
            }
        }
        Ok(())
    }

    /// Returns all fields of a pair's hashes.
    async fn read_fields(&self, operation: &str, key: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut pipe = redis::pipe();
        pipe.hgetall(key);
        let (mut records,): (Vec<(String, Vec<u8>)>,) = self.query(operation, &pipe).await?;
        let before = records.len();
        records.retain(|(tag, _)| tag != BUCKETS_MARKER);
        if records.len() < before {
            let mut pipe = redis::pipe();
            all_buckets().for_each(|bucket| _ = pipe.hgetall(format!("{key}:{bucket}")));
            let more: Vec<Vec<(String, Vec<u8>)>> = self.query(operation, &pipe).await?;
            records.extend(more.into_iter().flatten());
        }
        Ok(records)
    }

    /// Starts a script call about a source and a target: their hash, the sets that name them, and their names.
    fn pair_call(&self, from: &str, to: &str) -> ScriptCall {
        ScriptCall::new(self.pair_key(from, to))
            .key(self.provenance_key("provenance_targets", from))
            .key(self.provenance_key("provenance_sources_of", to))
            .key(self.key("provenance_sources"))
            .arg(from)
            .arg(to)
    }

    /// Encodes the record of a target tag that was just written.
    pub(super) fn encode_provenance(&self, source: &TagLocator, target: &TagLocator, digest: &Digest) -> Vec<u8> {
        let source_tag = (source.tag != target.tag).then(|| source.tag.clone());
        let known = ProvenanceFields { digest: digest.clone(), missing_since: None, unclaimed_since: None, source_tag };
        self.sign_record(
            pack(&known),
            &repository_name(&source.repository),
            &repository_name(&target.repository),
            &target.tag,
        )
    }

    /// Signs a record: its bytes, then its tag.
    fn sign_record(&self, mut record: Vec<u8>, from: &str, to: &str, tag: &Tag) -> Vec<u8> {
        let shown = self.sign_provenance(from, to, tag.as_str(), &record);
        record.extend(shown);
        record
    }

    pub(super) fn provenance_key(&self, kind: &str, home: &str) -> String {
        self.key(&format!("{kind}:{}", &Digest::sha256(home.as_bytes()).hex()[..16]))
    }

    pub(super) fn pair_key(&self, from: &str, to: &str) -> String {
        self.provenance_key("provenance", &format!("{from}{NAME_SEPARATOR}{NAME_SEPARATOR}{to}"))
    }
}

pub(super) fn repository_name(home: &RepositoryLocator) -> String {
    format!("{}{NAME_SEPARATOR}{}", home.endpoint(), home.path())
}

fn parse_repository_name(name: &str) -> Option<RepositoryLocator> {
    name.split_once(NAME_SEPARATOR).and_then(|(end, path)| RepositoryLocator::new(end.parse().ok()?, path).ok())
}

/// Decoded provenance of a target tag.
struct ProvenanceFields {
    digest: Digest,
    missing_since: Option<Timestamp>,
    unclaimed_since: Option<Timestamp>,
    /// The source tag, if it differs from the target tag.
    source_tag: Option<Tag>,
}

/// Stored record of a target tag.
struct SignedProvenance<'a> {
    known: ProvenanceFields,
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
fn pack(known: &ProvenanceFields) -> Vec<u8> {
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

fn unpack(bytes: &[u8]) -> Option<SignedProvenance<'_>> {
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
    let known = ProvenanceFields { digest, missing_since, unclaimed_since, source_tag };
    Some(SignedProvenance { known, record: &bytes[..bytes.len() - rest.len()], tag: rest })
}
