//! What is known of target tags. See [`DigestCache`].

use std::io::{BufRead, Write};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::batch::{End, Home};
use crate::error::{Class, Error, Result};
use crate::image::{Digest, Tag};

use super::clock::is_ahead;

/// The target tags of one repository that were made with the same options.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CacheScope {
    /// The target's repository.
    pub home: Home,
    /// A fingerprint of the options that change what is written, such as platforms; empty where there are none. Short,
    /// and not secret.
    pub options: Box<str>,
}

impl CacheScope {
    /// Where is noted which tags of the repository may point at less than all of an image of their digest: for each the
    /// fingerprint of the options that left something out, hashed, as what was put there.
    pub fn parts(&self) -> CacheScope {
        CacheScope { home: self.home.clone(), options: "parts".into() }
    }
}

/// What is known of a target tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What its source was.
    pub source: Digest,
    /// What was put there for it.
    pub target: Digest,
    /// When it was last seen at the target, to the second.
    pub seen_at: Timestamp,
    /// When its referrers were last asked for, to the second.
    pub referrers_at: Option<Timestamp>,
}

/// All about one target tag: a line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheEntry {
    /// The target's registry.
    pub registry: End,
    /// The repository there.
    pub repository: String,
    /// See [`CacheScope::options`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub options: String,
    /// The tag.
    pub tag: String,
    /// What its source was.
    pub source: Digest,
    /// What was put there for it, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Digest>,
    /// When it was last seen at the target; seconds since 1970.
    pub seen: i64,
    /// When its referrers were last asked for; seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referrers: Option<i64>,
}

/// Remembers what was put under target tags, so that an unchanged tag need not be asked for.
///
/// # Contract
/// A hint: what it says was true at `seen_at`. It may forget anything at any time, and never says what it was not told. The
/// last word about a tag stays.
#[async_trait]
pub trait DigestCache: Send + Sync {
    /// What is known of these tags, in their order.
    async fn known(&self, scope: &CacheScope, tags: &[Tag]) -> Result<Vec<Option<Known>>>;

    /// Remembers these tags.
    async fn learn(&self, scope: &CacheScope, tags: Vec<(Tag, Known)>) -> Result<()>;

    /// Forgets these tags.
    async fn forget_tags(&self, scope: &CacheScope, tags: &[Tag]) -> Result<()>;

    /// Forgets a target's repository, whatever the options. Says how many tags those were.
    async fn forget_repository(&self, home: &Home) -> Result<u64>;

    /// Forgets a whole target. Says how many tags those were.
    async fn forget_end(&self, end: &End) -> Result<u64>;

    /// All entries in an order of the cache's own, so many at a time, after the last one that was given.
    async fn entries(&self, after: Option<&CacheEntry>, limit: usize) -> Result<Vec<CacheEntry>>;
}

/// What came of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// How many tags were read.
    pub tags: u64,
    /// Lines that were not understood: their numbers from 1, and why. The first hundred.
    pub refused: Vec<(u64, String)>,
}

impl CacheEntry {
    /// From its parts.
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

    /// Its parts, checked; or why it cannot be.
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

/// Writes all of a cache as lines of JSON. Says how many.
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

/// Reads what [`export_cache`] wrote. What is known already and was seen later stays.
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
