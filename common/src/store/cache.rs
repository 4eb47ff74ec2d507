//! Digest cache of target tags. See [`DigestCache`].

use std::io::{BufRead, Write};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::batch::{End, Home};
use crate::error::{Class, Error, Result};
use crate::image::{Digest, Tag};

use super::clock::is_ahead;

/// Target tags of one repository written with the same options.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CacheScope {
    /// The target repository.
    pub home: Home,
    /// Short fingerprint of the options that change what is written, such as platforms; empty if there are none. Not
    /// secret.
    pub options: Box<str>,
}

impl CacheScope {
    /// Returns the scope that records which tags of the repository may lack parts of the image of their digest: for
    /// each, the hashed fingerprint of the options that left something out, as its target digest.
    pub fn parts(&self) -> CacheScope {
        CacheScope { home: self.home.clone(), options: "parts".into() }
    }
}

/// Cached state of a target tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
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
    pub registry: End,
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
    async fn known(&self, scope: &CacheScope, tags: &[Tag]) -> Result<Vec<Option<Known>>>;

    /// Caches these tags.
    async fn learn(&self, scope: &CacheScope, tags: Vec<(Tag, Known)>) -> Result<()>;

    /// Deletes these tags.
    async fn forget_tags(&self, scope: &CacheScope, tags: &[Tag]) -> Result<()>;

    /// Deletes all tags of a target repository, in all scopes. Returns their number.
    async fn forget_repository(&self, home: &Home) -> Result<u64>;

    /// Deletes all tags of a target registry or layout. Returns their number.
    async fn forget_end(&self, end: &End) -> Result<u64>;

    /// Returns up to `limit` entries after the given one, in an order of the cache's own.
    async fn entries(&self, after: Option<&CacheEntry>, limit: usize) -> Result<Vec<CacheEntry>>;
}

/// Result of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Number of tags read.
    pub tags: u64,
    /// Line numbers, from 1, and errors of lines that were not understood. The first hundred.
    pub refused: Vec<(u64, String)>,
}

impl CacheEntry {
    /// Creates an entry.
    pub fn new(scope: &CacheScope, tag: &Tag, known: &Known) -> CacheEntry {
        CacheEntry {
            registry: scope.home.end().clone(),
            repository: scope.home.path().to_owned(),
            options: scope.options.to_string(),
            tag: tag.as_str().to_owned(),
            source: known.source.clone(),
            target: Some(known.target.clone()).filter(|target| *target != known.source),
            seen: known.seen_at.as_second(),
            referrers: known.referrers_at.map(|time| time.as_second()),
        }
    }

    /// Splits and checks an entry.
    pub fn parts(self) -> Result<(CacheScope, Tag, Known), String> {
        let time = |second| Timestamp::from_second(second).map_err(|error| error.to_string());
        let home = Home::new(self.registry, &self.repository).map_err(|error| error.to_string())?;
        let tag = self.tag.parse().map_err(|error| format!("{error}"))?;
        let target = self.target.unwrap_or_else(|| self.source.clone());
        let known = Known {
            source: self.source,
            target,
            seen_at: time(self.seen)?,
            referrers_at: self.referrers.map(time).transpose()?,
        };
        Ok((CacheScope { home, options: self.options.into() }, tag, known))
    }
}

/// Exports a cache as lines of JSON. Returns their number.
pub async fn export_cache(cache: &dyn DigestCache, out: &mut (dyn Write + Send)) -> Result<u64> {
    const PAGE: usize = 1_000;
    let failed =
        |error: std::io::Error| Error::new(Class::Local, "writing the cache", error.to_string()).because(error);
    let mut lines = 0;
    let mut last: Option<CacheEntry> = None;
    loop {
        let page = cache.entries(last.as_ref(), PAGE).await?;
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
pub async fn import_cache(cache: &dyn DigestCache, lines: &mut (dyn BufRead + Send)) -> Result<Imported> {
    const AT_ONCE: usize = 500;
    let mut imported = Imported::default();
    let mut scope: Option<CacheScope> = None;
    let mut tags = Vec::new();
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        let read = lines.read_line(&mut line);
        if read.map_err(|error| Error::new(Class::Local, "reading a cache", error.to_string()))? == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        let entry = serde_json::from_str::<CacheEntry>(&line).map_err(|error| error.to_string());
        match entry.and_then(CacheEntry::parts) {
            Ok((its, tag, known)) => {
                if tags.len() >= AT_ONCE || scope.as_ref().is_some_and(|scope| *scope != its) {
                    imported.tags += flush(cache, scope.as_ref(), &mut tags).await?;
                }
                scope = Some(its);
                tags.push((tag, known));
            }
            Err(reason) if imported.refused.len() < 100 => imported.refused.push((number, reason)),
            Err(_) => {}
        }
    }
    imported.tags += flush(cache, scope.as_ref(), &mut tags).await?;
    Ok(imported)
}

async fn flush(cache: &dyn DigestCache, scope: Option<&CacheScope>, tags: &mut Vec<(Tag, Known)>) -> Result<u64> {
    let Some(scope) = scope else { return Ok(0) };
    let mut tags = std::mem::take(tags);
    let read = tags.len() as u64;
    let names: Vec<Tag> = tags.iter().map(|(tag, _)| tag.clone()).collect();
    let mut known = cache.known(scope, &names).await?.into_iter();
    let now = Timestamp::now();
    let is_older = |old: &Known, new: &Known| old.seen_at < new.seen_at || is_ahead(old.seen_at, now);
    tags.retain(|(_, new)| known.next().flatten().is_none_or(|old| is_older(&old, new)));
    cache.learn(scope, tags).await?;
    Ok(read)
}
