//! [`DigestCache`] in Redis: hashes per scope, each small enough for Redis's compact encoding.

use std::sync::PoisonError;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{RedisStore, ScriptCall, corrupt_store, is_after};
use crate::{CacheEntry, CacheScope, CachedTag, DigestCache};
use imgsync_model::batch::{Endpoint, RepositoryLocator};
use imgsync_oci::error::Result;
use imgsync_oci::{Algorithm, Digest, Tag};

/// TTL of a scope, in seconds: 180 days.
pub(super) const CACHE_TTL_SECONDS: u64 = 180 * 24 * 60 * 60;
/// Tags per script call.
pub(super) const TAGS_PER_CALL: usize = 500;
/// Separates the parts of a scope's name.
const NAME_SEPARATOR: char = '\u{1}';

/// A scope being exported: its name, and its entries in order.
pub(super) struct ExportPage {
    name: String,
    entries: Vec<CacheEntry>,
}

#[async_trait]
impl DigestCache for RedisStore {
    async fn cached_tags(&self, scope: &CacheScope, tags: &[Tag]) -> Result<Vec<Option<CachedTag>>> {
        let operation = format!("reading cached tags of {}", scope.repository);
        let key = self.scope_key(&scope_name(scope));
        let mut known = Vec::with_capacity(tags.len());
        for tags in tags.chunks(TAGS_PER_CALL) {
            let mut call = ScriptCall::new(&key);
            for tag in tags {
                call = with_buckets(call, tag.as_str());
            }
            let found: Vec<Vec<u8>> = self.run_script(&operation, &self.0.scripts.cached_tags, call).await?;
            for bytes in found {
                known.push(if bytes.is_empty() { None } else { Some(unpack(&operation, &bytes)?) });
            }
        }
        Ok(known)
    }

    async fn cache_tags(&self, scope: &CacheScope, tags: Vec<(Tag, CachedTag)>) -> Result<()> {
        let operation = format!("caching tags of {}", scope.repository);
        self.write_version(&operation).await?;
        let name = scope_name(scope);
        for tags in tags.chunks(TAGS_PER_CALL) {
            let mut call =
                ScriptCall::new(self.scope_key(&name)).key(self.key("scopes")).arg(&name).arg(CACHE_TTL_SECONDS);
            for (tag, known) in tags {
                call = with_buckets(call, tag.as_str()).bytes(pack(known));
            }
            self.run_script::<i64>(&operation, &self.0.scripts.cache_tags, call).await?;
        }
        Ok(())
    }

    async fn forget_tags(&self, scope: &CacheScope, tags: &[Tag]) -> Result<()> {
        let operation = format!("deleting cached tags of {}", scope.repository);
        let name = scope_name(scope);
        for tags in tags.chunks(TAGS_PER_CALL) {
            let mut call = ScriptCall::new(self.scope_key(&name)).key(self.key("scopes")).arg(&name);
            for tag in tags {
                call = with_buckets(call, tag.as_str());
            }
            self.run_script::<i64>(&operation, &self.0.scripts.forget_tags, call).await?;
        }
        Ok(())
    }

    async fn forget_repository(&self, home: &RepositoryLocator) -> Result<u64> {
        self.forget_prefix(&format!("{}{NAME_SEPARATOR}{}{NAME_SEPARATOR}", home.endpoint(), home.path())).await
    }

    async fn forget_endpoint(&self, end: &Endpoint) -> Result<u64> {
        self.forget_prefix(&format!("{end}{NAME_SEPARATOR}")).await
    }

    async fn list_cache_entries(&self, after: Option<&CacheEntry>, limit: usize) -> Result<Vec<CacheEntry>> {
        let mut from = match after {
            Some(entry) => {
                format!("[{}{NAME_SEPARATOR}{}{NAME_SEPARATOR}{}", entry.registry, entry.repository, entry.options)
            }
            None => "-".to_owned(),
        };
        let mut entries: Vec<CacheEntry> = Vec::new();
        while entries.len() < limit {
            let mut pipe = redis::pipe();
            pipe.cmd("ZRANGEBYLEX").arg(self.key("scopes")).arg(&from).arg("+").arg("LIMIT").arg(0).arg(100);
            let (names,): (Vec<String>,) = self.query("reading the digest cache", &pipe).await?;
            let Some(last) = names.last() else { break };
            from = format!("({last}");
            for name in &names {
                let room = limit - entries.len();
                if room == 0 {
                    break;
                }
                let here = self.scope_entries(name).await?;
                entries.extend(here.into_iter().filter(|entry| is_after(entry, after)).take(room));
            }
        }
        Ok(entries)
    }
}

impl RedisStore {
    pub(super) fn scope_key(&self, name: &str) -> String {
        // Scope names are long; the full name is in the index.
        self.key(&format!("tags:{}", &Digest::sha256(name.as_bytes()).hex()[..16]))
    }

    async fn forget_prefix(&self, prefix: &str) -> Result<u64> {
        let operation = "deleting the cached tags of a target";
        let mut forgotten = 0;
        let mut pipe = redis::pipe();
        pipe.cmd("ZRANGEBYLEX").arg(self.key("scopes")).arg(format!("[{prefix}")).arg(format!("({prefix}\u{7f}"));
        let (names,): (Vec<String>,) = self.query(operation, &pipe).await?;
        for name in names {
            let call = ScriptCall::new(self.scope_key(&name)).key(self.key("scopes")).arg(&name);
            forgotten += self.run_script::<u64>(operation, &self.0.scripts.forget_tags, call).await?;
        }
        Ok(forgotten)
    }

    /// Returns the entries of a scope, ordered by tag.
    async fn scope_entries(&self, scope: &str) -> Result<Vec<CacheEntry>> {
        {
            let page = self.0.export_page.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(page) = page.as_ref().filter(|page| page.name == scope) {
                return Ok(page.entries.clone());
            }
        }
        let operation = "reading the digest cache";
        let mut parts = scope.split(NAME_SEPARATOR);
        let (Some(end), Some(path), Some(options)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(corrupt_store(operation, "a cache scope has an invalid name"));
        };
        let end = end.parse().map_err(|_| corrupt_store(operation, "invalid registry name"))?;
        let repository =
            RepositoryLocator::new(end, path).map_err(|_| corrupt_store(operation, "invalid repository name"))?;
        let entry_scope = CacheScope { repository, options: options.into() };
        let key = self.scope_key(scope);
        let mut pipe = redis::pipe();
        pipe.hgetall(&key);
        all_buckets().for_each(|bucket| _ = pipe.hgetall(format!("{key}:{bucket}")));
        let found: Vec<Vec<(String, Vec<u8>)>> = self.query(operation, &pipe).await?;
        let mut entries = Vec::new();
        for (tag, bytes) in found.into_iter().flatten() {
            let tag = tag.parse().map_err(|_| corrupt_store(operation, "invalid tag"))?;
            entries.push(CacheEntry::new(&entry_scope, &tag, &unpack(operation, &bytes)?));
        }
        entries.sort_by(|a, b| a.tag.cmp(&b.tag));
        // An export asks for more of the same scope.
        let page = ExportPage { name: scope.to_owned(), entries: entries.clone() };
        *self.0.export_page.lock().unwrap_or_else(PoisonError::into_inner) = (entries.len() > 1_000).then_some(page);
        Ok(entries)
    }
}

pub(super) fn scope_name(scope: &CacheScope) -> String {
    format!(
        "{}{NAME_SEPARATOR}{}{NAME_SEPARATOR}{}",
        scope.repository.endpoint(),
        scope.repository.path(),
        scope.options
    )
}

/// Adds a tag and the names of its buckets.
pub(super) fn with_buckets(call: ScriptCall, tag: &str) -> ScriptCall {
    let [small, large] = buckets(tag);
    call.arg(tag).arg(small).arg(large)
}

/// Returns the names of a tag's buckets: of 16, and of 256.
pub(super) fn buckets(tag: &str) -> [String; 2] {
    // FNV-1a: any hash that is the same on every machine.
    let hash = tag.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    [format!("{:x}", hash & 0xf), format!("{:02x}", (hash >> 4) & 0xff)]
}

/// Returns the names of all buckets.
pub(super) fn all_buckets() -> impl Iterator<Item = String> {
    (0..16).map(|bucket| format!("{bucket:x}")).chain((0..256).map(|bucket| format!("{bucket:02x}")))
}

/// Encodes the length of the source digest; the times last seen and of referrers, as seconds in 4 bytes each; and the
/// digests' bytes, the target's only if it differs.
pub(super) fn pack(known: &CachedTag) -> Vec<u8> {
    let second = |time: Timestamp| u32::try_from(time.as_second()).unwrap_or_default();
    let bytes_of = |digest: &Digest| hex::decode(digest.hex()).unwrap_or_default();
    let source = bytes_of(&known.source);
    let mut bytes = vec![source.len() as u8 | if known.referrers_at.is_some() { 0x80 } else { 0 }];
    bytes.extend(second(known.seen_at).to_be_bytes());
    bytes.extend(known.referrers_at.map(second).map(u32::to_be_bytes).into_iter().flatten());
    bytes.extend(&source);
    if known.target != known.source {
        bytes.extend(bytes_of(&known.target));
    }
    bytes
}

fn unpack(operation: &str, bytes: &[u8]) -> Result<CachedTag> {
    let read = || {
        let (head, rest) = bytes.split_first()?;
        let time = |rest: &[u8]| {
            let (four, rest) = rest.split_first_chunk::<4>()?;
            Some((Timestamp::from_second(u32::from_be_bytes(*four).into()).ok()?, rest.len()))
        };
        let (seen_at, left) = time(rest)?;
        let mut rest = &rest[rest.len() - left..];
        let mut referrers_at = None;
        if head & 0x80 != 0 {
            let (at, left) = time(rest)?;
            referrers_at = Some(at);
            rest = &rest[rest.len() - left..];
        }
        let (source, target) = rest.split_at_checked(usize::from(head & 0x7f))?;
        let source = digest(source)?;
        let target = if target.is_empty() { source.clone() } else { digest(target)? };
        Some(CachedTag { source, target, seen_at, referrers_at })
    };
    read().ok_or_else(|| corrupt_store(operation, "a cached tag cannot be decoded"))
}

fn digest(bytes: &[u8]) -> Option<Digest> {
    let algorithm = match bytes.len() {
        32 => Algorithm::Sha256,
        64 => Algorithm::Sha512,
        _ => return None,
    };
    format!("{}:{}", algorithm.as_str(), hex::encode(bytes)).parse().ok()
}
