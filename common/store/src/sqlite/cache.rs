//! [`DigestCache`] in SQLite.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};

use super::SqliteStore;
use super::error::{SqliteError, corrupt_store};
use super::rows::{digest_bytes, parse_digest, parse_repository, to_sql_integer};
use crate::{CacheEntry, CacheScope, CachedTag, DigestCache};
use imgsync_model::batch::{Endpoint, RepositoryLocator};
use imgsync_oci::error::Result;
use imgsync_oci::{Digest, Tag};

#[async_trait]
impl DigestCache for SqliteStore {
    async fn cached_tags(&self, scope: &CacheScope, tags: &[Tag]) -> Result<Vec<Option<CachedTag>>> {
        let (scope, tags) = (scope.clone(), tags.to_vec());
        let operation = format!("reading cached tags of {}", scope.repository);
        self.read_rows(operation, tags.len(), move |connection| {
            let Some(scope) = find_scope(connection, &scope)? else { return Ok(vec![None; tags.len()]) };
            let sql = "SELECT digests, seen_at, referrers_at FROM tag WHERE scope = ?1 AND tag = ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let mut known = Vec::with_capacity(tags.len());
            for tag in &tags {
                let row = statement.query_row((scope, tag.as_str()), |row| read_columns(row, 0)).optional()?;
                known.push(row.map(decode_tag).transpose()?);
            }
            Ok(known)
        })
        .await
    }

    async fn cache_tags(&self, scope: &CacheScope, tags: Vec<(Tag, CachedTag)>) -> Result<()> {
        if tags.is_empty() {
            return Ok(());
        }
        let scope = scope.clone();
        self.write(format!("caching tags of {}", scope.repository), move |connection| {
            put_tags(connection, &scope, &tags)
        })
        .await
    }

    async fn forget_tags(&self, scope: &CacheScope, tags: &[Tag]) -> Result<()> {
        let (scope, tags) = (scope.clone(), tags.to_vec());
        self.write(format!("deleting cached tags of {}", scope.repository), move |connection| {
            delete_tags(connection, &scope, &tags)
        })
        .await
    }

    async fn forget_repository(&self, home: &RepositoryLocator) -> Result<u64> {
        let home = home.clone();
        self.write(format!("deleting cached tags of {home}"), move |connection| {
            let sql =
                "DELETE FROM tag WHERE scope IN (SELECT row_id FROM scope WHERE endpoint = ?1 AND repository = ?2)";
            let forgotten = connection.prepare_cached(sql)?.execute((home.endpoint().to_string(), home.path()))?;
            Ok(forgotten as u64)
        })
        .await
    }

    async fn forget_endpoint(&self, end: &Endpoint) -> Result<u64> {
        let end = end.to_string();
        self.write(format!("deleting cached tags of {end}"), move |connection| {
            let sql = "DELETE FROM tag WHERE scope IN (SELECT row_id FROM scope WHERE endpoint = ?1)";
            Ok(connection.prepare_cached(sql)?.execute([end])? as u64)
        })
        .await
    }

    async fn list_cache_entries(&self, after: Option<&CacheEntry>, limit: usize) -> Result<Vec<CacheEntry>> {
        let after = after.cloned();
        self.read("reading the digest cache", move |connection| {
            let from = match &after {
                Some(entry) => (entry.registry.to_string(), &*entry.repository, &*entry.options, &*entry.tag),
                None => (String::new(), "", "", ""),
            };
            let mut statement = connection.prepare_cached(
                "SELECT endpoint, repository, options, tag, digests, seen_at, referrers_at
                 FROM scope CROSS JOIN tag ON tag.scope = scope.row_id
                 WHERE (endpoint, repository, options) >= (?1, ?2, ?3)
                   AND (endpoint, repository, options, tag) > (?1, ?2, ?3, ?4)
                 ORDER BY endpoint, repository, options, tag LIMIT ?5",
            )?;
            let mut rows = statement.query((from.0, from.1, from.2, from.3, to_sql_integer(limit as u64)))?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                let (end, repository): (String, String) = (row.get(0)?, row.get(1)?);
                let scope = CacheScope { repository: parse_repository(&end, &repository)?, options: row.get(2)? };
                let tag: String = row.get(3)?;
                let tag = tag.parse().map_err(|_| corrupt_store("invalid tag"))?;
                entries.push(CacheEntry::new(&scope, &tag, &decode_tag(read_columns(row, 4)?)?));
            }
            Ok(entries)
        })
        .await
    }
}

/// Caches tags within the caller's transaction.
pub(super) fn put_tags(
    connection: &Connection,
    scope: &CacheScope,
    tags: &[(Tag, CachedTag)],
) -> Result<(), SqliteError> {
    let no = match find_scope(connection, scope)? {
        Some(no) => no,
        None => connection
            .prepare_cached("INSERT INTO scope (endpoint, repository, options) VALUES (?1, ?2, ?3) RETURNING row_id")?
            .query_row((scope.repository.endpoint().to_string(), scope.repository.path(), &scope.options), |row| {
                row.get(0)
            })?,
    };
    let sql = "REPLACE INTO tag (scope, tag, digests, seen_at, referrers_at) VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut statement = connection.prepare_cached(sql)?;
    for (tag, known) in tags {
        let referrers = known.referrers_at.map(Timestamp::as_second);
        let digests = pack(&known.source, &known.target);
        statement.execute((no, tag.as_str(), digests, known.seen_at.as_second(), referrers))?;
    }
    Ok(())
}

/// Deletes tags within the caller's transaction.
pub(super) fn delete_tags(connection: &Connection, scope: &CacheScope, tags: &[Tag]) -> Result<(), SqliteError> {
    let Some(no) = find_scope(connection, scope)? else { return Ok(()) };
    let mut statement = connection.prepare_cached("DELETE FROM tag WHERE scope = ?1 AND tag = ?2")?;
    for tag in tags {
        statement.execute((no, tag.as_str()))?;
    }
    Ok(())
}

fn find_scope(connection: &Connection, scope: &CacheScope) -> Result<Option<i64>, SqliteError> {
    let sql = "SELECT row_id FROM scope WHERE endpoint = ?1 AND repository = ?2 AND options = ?3";
    let key = (scope.repository.endpoint().to_string(), scope.repository.path(), &scope.options);
    Ok(connection.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?)
}

type TagColumns = (Vec<u8>, i64, Option<i64>);

fn read_columns(row: &Row<'_>, from: usize) -> rusqlite::Result<TagColumns> {
    Ok((row.get(from)?, row.get(from + 1)?, row.get(from + 2)?))
}

fn decode_tag((digests, seen, referrers): TagColumns) -> Result<CachedTag, SqliteError> {
    let time = |second| Timestamp::from_second(second).unwrap_or_default();
    let (source, target) = unpack(&digests)?;
    Ok(CachedTag { source, target, seen_at: time(seen), referrers_at: referrers.map(time) })
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

fn unpack(bytes: &[u8]) -> Result<(Digest, Digest), SqliteError> {
    if let 32 | 64 = bytes.len() {
        let same = parse_digest(bytes)?;
        return Ok((same.clone(), same));
    }
    let (length, both) = bytes.split_last().ok_or_else(|| corrupt_store("a digest is missing"))?;
    let halves = both.split_at_checked(usize::from(*length));
    let (source, target) = halves.ok_or_else(|| corrupt_store("a digest is too short"))?;
    Ok((parse_digest(source)?, parse_digest(target)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use imgsync_oci::Algorithm;

    #[test]
    fn digests_pack_and_unpack() {
        let short = Digest::sha256(b"a");
        let long = Digest::from_bytes(Algorithm::Sha512, b"a");
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
