//! [`DigestCache`] in SQLite.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};

use super::SqliteStore;
use super::fault::{Fault, damaged};
use super::rows::{digest, digest_bytes, home, number};
use crate::batch::{End, Home};
use crate::error::Result;
use crate::image::{Digest, Tag};
use crate::store::{CacheEntry, CacheScope, DigestCache, Known};

#[async_trait]
impl DigestCache for SqliteStore {
    async fn known(&self, scope: &CacheScope, tags: &[Tag]) -> Result<Vec<Option<Known>>> {
        let (scope, tags) = (scope.clone(), tags.to_vec());
        self.read(format!("reading what is known of {}", scope.home), move |connection| {
            let Some(scope) = find(connection, &scope)? else { return Ok(vec![None; tags.len()]) };
            let sql = "SELECT digests, seen, referrers FROM tag WHERE scope = ?1 AND tag = ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let mut known = Vec::with_capacity(tags.len());
            for tag in &tags {
                let row = statement.query_row((scope, tag.as_str()), |row| parts(row, 0)).optional()?;
                known.push(row.map(read).transpose()?);
            }
            Ok(known)
        })
        .await
    }

    async fn learn(&self, scope: &CacheScope, tags: Vec<(Tag, Known)>) -> Result<()> {
        if tags.is_empty() {
            return Ok(());
        }
        let scope = scope.clone();
        self.write(format!("remembering tags of {}", scope.home), move |connection| learn(connection, &scope, &tags))
            .await
    }

    async fn forget_tags(&self, scope: &CacheScope, tags: &[Tag]) -> Result<()> {
        let (scope, tags) = (scope.clone(), tags.to_vec());
        self.write(format!("forgetting tags of {}", scope.home), move |connection| forget(connection, &scope, &tags))
            .await
    }

    async fn forget_repository(&self, home: &Home) -> Result<u64> {
        let home = home.clone();
        self.write(format!("forgetting {home}"), move |connection| {
            let sql = "DELETE FROM tag WHERE scope IN (SELECT no FROM scope WHERE end = ?1 AND repository = ?2)";
            let forgotten = connection.prepare_cached(sql)?.execute((home.end().to_string(), home.path()))?;
            Ok(forgotten as u64)
        })
        .await
    }

    async fn forget_end(&self, end: &End) -> Result<u64> {
        let end = end.to_string();
        self.write(format!("forgetting {end}"), move |connection| {
            let sql = "DELETE FROM tag WHERE scope IN (SELECT no FROM scope WHERE end = ?1)";
            Ok(connection.prepare_cached(sql)?.execute([end])? as u64)
        })
        .await
    }

    async fn entries(&self, after: Option<&CacheEntry>, limit: usize) -> Result<Vec<CacheEntry>> {
        let after = after.cloned();
        self.read("reading the cache", move |connection| {
            let from = match &after {
                Some(entry) => (entry.registry.to_string(), &*entry.repository, &*entry.options, &*entry.tag),
                None => (String::new(), "", "", ""),
            };
            let mut statement = connection.prepare_cached(
                "SELECT end, repository, options, tag, digests, seen, referrers
                 FROM scope CROSS JOIN tag ON tag.scope = scope.no
                 WHERE (end, repository, options) >= (?1, ?2, ?3)
                   AND (end, repository, options, tag) > (?1, ?2, ?3, ?4)
                 ORDER BY end, repository, options, tag LIMIT ?5",
            )?;
            let mut rows = statement.query((from.0, from.1, from.2, from.3, number(limit as u64)))?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                let (end, repository): (String, String) = (row.get(0)?, row.get(1)?);
                let scope = CacheScope { home: home(&end, &repository)?, options: row.get(2)? };
                let tag: String = row.get(3)?;
                let tag = tag.parse().map_err(|_| damaged("it names a tag that cannot be"))?;
                entries.push(CacheEntry::new(&scope, &tag, &read(parts(row, 4)?)?));
            }
            Ok(entries)
        })
        .await
    }
}

/// Caches tags within the caller's transaction.
pub(super) fn learn(connection: &Connection, scope: &CacheScope, tags: &[(Tag, Known)]) -> Result<(), Fault> {
    let no = match find(connection, scope)? {
        Some(no) => no,
        None => connection
            .prepare_cached("INSERT INTO scope (end, repository, options) VALUES (?1, ?2, ?3) RETURNING no")?
            .query_row((scope.home.end().to_string(), scope.home.path(), &scope.options), |row| row.get(0))?,
    };
    let sql = "REPLACE INTO tag (scope, tag, digests, seen, referrers) VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut statement = connection.prepare_cached(sql)?;
    for (tag, known) in tags {
        let referrers = known.referrers_at.map(Timestamp::as_second);
        let digests = pack(&known.source, &known.target);
        statement.execute((no, tag.as_str(), digests, known.seen_at.as_second(), referrers))?;
    }
    Ok(())
}

/// Deletes tags within the caller's transaction.
pub(super) fn forget(connection: &Connection, scope: &CacheScope, tags: &[Tag]) -> Result<(), Fault> {
    let Some(no) = find(connection, scope)? else { return Ok(()) };
    let mut statement = connection.prepare_cached("DELETE FROM tag WHERE scope = ?1 AND tag = ?2")?;
    for tag in tags {
        statement.execute((no, tag.as_str()))?;
    }
    Ok(())
}

fn find(connection: &Connection, scope: &CacheScope) -> Result<Option<i64>, Fault> {
    let sql = "SELECT no FROM scope WHERE end = ?1 AND repository = ?2 AND options = ?3";
    let key = (scope.home.end().to_string(), scope.home.path(), &scope.options);
    Ok(connection.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?)
}

type Parts = (Vec<u8>, i64, Option<i64>);

fn parts(row: &Row<'_>, from: usize) -> rusqlite::Result<Parts> {
    Ok((row.get(from)?, row.get(from + 1)?, row.get(from + 2)?))
}

fn read((digests, seen, referrers): Parts) -> Result<Known, Fault> {
    let time = |second| Timestamp::from_second(second).unwrap_or_default();
    let (source, target) = unpack(&digests)?;
    Ok(Known { source, target, seen_at: time(seen), referrers_at: referrers.map(time) })
}

/// Encodes the source digest; then, if it differs, the target digest and one byte with the length of the first.
fn pack(source: &Digest, target: &Digest) -> Vec<u8> {
    let mut bytes = digest_bytes(source);
    if source != target {
        let length = bytes.len();
        bytes.extend(digest_bytes(target));
        bytes.push(length as u8);
    }
    bytes
}

fn unpack(bytes: &[u8]) -> Result<(Digest, Digest), Fault> {
    if let 32 | 64 = bytes.len() {
        let same = digest(bytes)?;
        return Ok((same.clone(), same));
    }
    let (length, both) = bytes.split_last().ok_or_else(|| damaged("a digest is missing"))?;
    let halves = both.split_at_checked(usize::from(*length));
    let (source, target) = halves.ok_or_else(|| damaged("a digest is too short"))?;
    Ok((digest(source)?, digest(target)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Algorithm;

    #[test]
    fn digests_pack_and_unpack() {
        let short = Digest::sha256(b"a");
        let long = Digest::of(Algorithm::Sha512, b"a");
        for (source, target) in [(&short, &short), (&long, &long), (&short, &long), (&long, &short)] {
            assert_eq!(unpack(&pack(source, target)).unwrap(), (source.clone(), target.clone()));
        }
        assert_eq!(pack(&short, &short).len(), 32);
        let other = Digest::sha256(b"b");
        assert_eq!(unpack(&pack(&short, &other)).unwrap(), (short, other));
        for length in [0, 1, 31, 33, 70, 200] {
            assert!(unpack(&vec![0; length]).is_err(), "{length}");
        }
    }
}
