//! Digest cache of target tags. See [`DigestCache`].

use std::io::{BufRead, Write};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use imgsync_model::batch::{Endpoint, RepositoryLocator};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, Tag};

use super::clock::is_in_future;

/// Target tags of one repository written with the same options.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CacheScope {
    /// The target repository.
    pub repository: RepositoryLocator,
    /// Short fingerprint of the options that change what is written, such as platforms; empty if there are none. Not
    /// secret.
    pub options: Box<str>,
}

impl CacheScope {
    /// Returns the scope that records which tags of the repository may lack parts of the image of their digest: for
    /// each, the hashed fingerprint of the options that left something out, as its target digest.
    pub fn partial_images(&self) -> CacheScope {
        CacheScope { repository: self.repository.clone(), options: "parts".into() }
    }
}

/// Cached state of a target tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedTag {
    /// Digest of its source.
    pub source: Digest,
    /// Digest written to the target.
    pub target: Digest,
    /// When it was last seen at the target, to the second.
    pub seen_at: Timestamp,
    /// When its referrers were last listed, to the second.
    pub referrers_at: Option<Timestamp>,
}

/// A cached target tag as one line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheEntry {
    /// The target registry.
    pub registry: Endpoint,
    /// The target repository.
    pub repository: String,
    /// See [`CacheScope::options`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub options: String,
    /// The tag.
    pub tag: String,
    /// Digest of its source.
    pub source: Digest,
    /// Digest written to the target, if it differs from the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Digest>,
    /// When it was last seen at the target, in seconds since 1970.
    pub seen: i64,
    /// When its referrers were last listed, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referrers: Option<i64>,
}

/// Cache of digests written to target tags, so that an unchanged tag needs no request.
///
/// # Contract
/// A hint: an entry was true at `seen_at`. The cache may lose any entry at any time, and never invents one. The last
/// value of a tag wins.
#[async_trait]
pub trait DigestCache: Send + Sync {
    /// Returns the cached state of these tags, in their order.
    async fn cached_tags(&self, scope: &CacheScope, tags: &[Tag]) -> Result<Vec<Option<CachedTag>>>;

    /// Caches these tags.
    async fn cache_tags(&self, scope: &CacheScope, tags: Vec<(Tag, CachedTag)>) -> Result<()>;

    /// Deletes these tags.
    async fn forget_tags(&self, scope: &CacheScope, tags: &[Tag]) -> Result<()>;

    /// Deletes all tags of a target repository, in all scopes. Returns their number.
    async fn forget_repository(&self, home: &RepositoryLocator) -> Result<u64>;

    /// Deletes all tags of a target registry or layout. Returns their number.
    async fn forget_endpoint(&self, end: &Endpoint) -> Result<u64>;

    /// Returns up to `limit` entries after the given one, in an order of the cache's own.
    async fn list_cache_entries(&self, after: Option<&CacheEntry>, limit: usize) -> Result<Vec<CacheEntry>>;
}

/// Result of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheImport {
    /// Number of tags read.
    pub tags: u64,
    /// Line numbers, from 1, and errors of lines that were not understood. The first hundred.
    pub refused: Vec<(u64, String)>,
}

impl CacheEntry {
    /// Creates an entry.
    pub fn new(scope: &CacheScope, tag: &Tag, known: &CachedTag) -> CacheEntry {
        CacheEntry {
            registry: scope.repository.endpoint().clone(),
            repository: scope.repository.path().to_owned(),
            options: scope.options.to_string(),
            tag: tag.as_str().to_owned(),
            source: known.source.clone(),
            target: Some(known.target.clone()).filter(|target| *target != known.source),
            seen: known.seen_at.as_second(),
            referrers: known.referrers_at.map(|time| time.as_second()),
        }
    }

    /// Splits and checks an entry.
    pub fn into_parts(self) -> Result<(CacheScope, Tag, CachedTag), String> {
        let time = |second| Timestamp::from_second(second).map_err(|error| error.to_string());
        let repository = RepositoryLocator::new(self.registry, &self.repository).map_err(|error| error.to_string())?;
        let tag = self.tag.parse().map_err(|error| format!("{error}"))?;
        let target = self.target.unwrap_or_else(|| self.source.clone());
        let known = CachedTag {
            source: self.source,
            target,
            seen_at: time(self.seen)?,
            referrers_at: self.referrers.map(time).transpose()?,
        };
        Ok((CacheScope { repository, options: self.options.into() }, tag, known))
    }
}

/// Exports a cache as lines of JSON. Returns their number.
pub async fn export_cache(cache: &dyn DigestCache, out: &mut (dyn Write + Send)) -> Result<u64> {
    const EXPORT_PAGE_SIZE: usize = 1_000;
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Local, "writing the digest cache", error.to_string()).with_source(error)
    };
    let mut lines = 0;
    let mut last: Option<CacheEntry> = None;
    loop {
        let page = cache.list_cache_entries(last.as_ref(), EXPORT_PAGE_SIZE).await?;
        for entry in &page {
            serde_json::to_writer(&mut *out, entry).map_err(|error| failed(error.into()))?;
            out.write_all(b"\n").map_err(failed)?;
            lines += 1;
        }
        match page.into_iter().next_back() {
            Some(entry) => last = Some(entry),
            None => break,
        }
    }
    out.flush().map_err(failed)?;
    Ok(lines)
}

/// Imports what [`export_cache`] wrote. Keeps cached tags that were seen later.
pub async fn import_cache(cache: &dyn DigestCache, lines: &mut (dyn BufRead + Send)) -> Result<CacheImport> {
    const IMPORT_BATCH_SIZE: usize = 500;
    let mut imported = CacheImport::default();
    let mut scope: Option<CacheScope> = None;
    let mut tags = Vec::new();
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        let read = lines.read_line(&mut line);
        if read.map_err(|error| Error::new(ErrorKind::Local, "reading a digest cache", error.to_string()))? == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        let entry = serde_json::from_str::<CacheEntry>(&line).map_err(|error| error.to_string());
        match entry.and_then(CacheEntry::into_parts) {
            Ok((entry_scope, tag, known)) => {
                if tags.len() >= IMPORT_BATCH_SIZE || scope.as_ref().is_some_and(|scope| *scope != entry_scope) {
                    imported.tags += flush(cache, scope.as_ref(), &mut tags).await?;
                }
                scope = Some(entry_scope);
                tags.push((tag, known));
            }
            Err(reason) if imported.refused.len() < 100 => imported.refused.push((number, reason)),
            Err(_) => {}
        }
    }
    imported.tags += flush(cache, scope.as_ref(), &mut tags).await?;
    Ok(imported)
}

async fn flush(cache: &dyn DigestCache, scope: Option<&CacheScope>, tags: &mut Vec<(Tag, CachedTag)>) -> Result<u64> {
    let Some(scope) = scope else { return Ok(0) };
    let mut tags = std::mem::take(tags);
    let read = tags.len() as u64;
    let names: Vec<Tag> = tags.iter().map(|(tag, _)| tag.clone()).collect();
    let mut known = cache.cached_tags(scope, &names).await?.into_iter();
    let now = Timestamp::now();
    let is_older = |old: &CachedTag, new: &CachedTag| old.seen_at < new.seen_at || is_in_future(old.seen_at, now);
    tags.retain(|(_, new)| known.next().flatten().is_none_or(|old| is_older(&old, new)));
    cache.cache_tags(scope, tags).await?;
    Ok(read)
}
