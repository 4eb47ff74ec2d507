//! [`ProvenanceStore`] in SQLite.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use std::collections::HashMap;
use std::sync::Arc;

use super::SqliteStore;
use super::error::{SqliteError, corrupt_store};
use super::rows::{digest_bytes, parse_digest, parse_repository};
use crate::{ProvenanceStore, TagProvenance};
use imgsync_model::batch::{RepositoryLocator, TagLocator};
use imgsync_oci::error::Result;
use imgsync_oci::{Digest, Tag};

#[async_trait]
impl ProvenanceStore for SqliteStore {
    async fn record_provenance(&self, source: &TagLocator, target: &TagLocator, digest: &Digest) -> Result<()> {
        let (source, target, digest) = (source.clone(), target.clone(), digest.clone());
        self.write(format!("recording the provenance of {target}"), move |connection| {
            record(connection, &source, &target, &digest)
        })
        .await
    }

    async fn provenance_by_source(&self, source: &RepositoryLocator) -> Result<Vec<TagProvenance>> {
        let source = source.clone();
        self.read(format!("reading the provenance of copies from {source}"), move |connection| {
            let Some(from) = find_repository(connection, &source)? else { return Ok(Vec::new()) };
            let mut statement = connection.prepare_cached(
                "SELECT endpoint, repository, tag, source_tag, digest, missing_since, unclaimed_since
                 FROM provenance JOIN repository_locator ON repository_locator.row_id = provenance.target
                 WHERE source = +?1 ORDER BY endpoint, repository, tag",
            )?;
            let mut rows = statement.query([from])?;
            let mut tag_provenances: Vec<TagProvenance> = Vec::new();
            while let Some(row) = rows.next()? {
                let (end, repository, name): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let its = parse_repository(&end, &repository)?;
                // Records of one repository share it.
                let its = match tag_provenances.last() {
                    Some(last) if *last.target.repository == its => last.target.repository.clone(),
                    _ => Arc::new(its),
                };
                let tag = parse_tag(&name)?;
                let source_tag = match row.get::<_, Option<String>>(3)? {
                    Some(other) => self::parse_tag(&other)?,
                    None => tag.clone(),
                };
                let digest = parse_digest(&row.get::<_, Vec<u8>>(4)?)?;
                // Treating an unreadable time as long ago would prune the tag.
                let since = |at: usize| -> Result<Option<Timestamp>, SqliteError> {
                    let since = row.get::<_, Option<i64>>(at)?.map(Timestamp::from_second).transpose();
                    since.map_err(|_| corrupt_store("invalid timestamp").into())
                };
                let (missing_since, unclaimed_since) = (since(5)?, since(6)?);
                tag_provenances.push(TagProvenance {
                    target: TagLocator { repository: its, tag },
                    source_tag,
                    digest,
                    missing_since,
                    unclaimed_since,
                    is_authentic: true,
                });
            }
            Ok(tag_provenances)
        })
        .await
    }

    async fn written_digests(&self, target: &RepositoryLocator) -> Result<HashMap<Tag, Digest>> {
        let target = target.clone();
        self.read(format!("reading the provenance of {target}"), move |connection| {
            let Some(to) = find_repository(connection, &target)? else { return Ok(HashMap::new()) };
            let mut statement = connection.prepare_cached("SELECT tag, digest FROM provenance WHERE target = ?1")?;
            let mut rows = statement.query([to])?;
            let mut written = HashMap::new();
            while let Some(row) = rows.next()? {
                written.insert(parse_tag(&row.get::<_, String>(0)?)?, parse_digest(&row.get::<_, Vec<u8>>(1)?)?);
            }
            Ok(written)
        })
        .await
    }

    async fn set_missing_since(
        &self,
        source: &RepositoryLocator,
        targets: Vec<(TagLocator, Option<Timestamp>)>,
    ) -> Result<()> {
        let sql = "UPDATE provenance SET missing_since = ?4 WHERE target = ?1 AND tag = ?2 AND source = ?3";
        self.update_timestamps(format!("recording tags missing at {source}"), sql, source, targets).await
    }

    async fn set_unclaimed_since(
        &self,
        source: &RepositoryLocator,
        targets: Vec<(TagLocator, Option<Timestamp>)>,
    ) -> Result<()> {
        let sql = "UPDATE provenance SET unclaimed_since = ?4 WHERE target = ?1 AND tag = ?2 AND source = ?3";
        self.update_timestamps(format!("recording targets of {source} that no rule makes"), sql, source, targets).await
    }

    async fn provenance_sources(&self) -> Result<Vec<RepositoryLocator>> {
        self.read("listing sources with recorded provenance".to_owned(), |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT endpoint, repository FROM repository_locator WHERE row_id IN (SELECT source FROM provenance)
                 ORDER BY endpoint, repository",
            )?;
            let mut rows = statement.query([])?;
            let mut homes = Vec::new();
            while let Some(row) = rows.next()? {
                homes.push(parse_repository(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?)?);
            }
            Ok(homes)
        })
        .await
    }

    async fn forget_provenance(&self, source: &RepositoryLocator, targets: &[TagLocator]) -> Result<()> {
        let (source, targets) = (source.clone(), targets.to_vec());
        self.write(format!("deleting the provenance of copies from {source}"), move |connection| {
            let Some(from) = find_repository(connection, &source)? else { return Ok(()) };
            let sql = "DELETE FROM provenance WHERE target = ?1 AND tag = ?2 AND source = ?3";
            let mut statement = connection.prepare_cached(sql)?;
            for target in &targets {
                let Some(to) = find_repository(connection, &target.repository)? else { continue };
                statement.execute((to, target.tag.as_str(), from))?;
            }
            Ok(())
        })
        .await
    }
}

impl SqliteStore {
    /// Sets a time of target tags.
    async fn update_timestamps(
        &self,
        operation: String,
        sql: &'static str,
        source: &RepositoryLocator,
        targets: Vec<(TagLocator, Option<Timestamp>)>,
    ) -> Result<()> {
        if targets.is_empty() {
            return Ok(());
        }
        let source = source.clone();
        self.write(operation, move |connection| {
            let Some(from) = find_repository(connection, &source)? else { return Ok(()) };
            let mut statement = connection.prepare_cached(sql)?;
            for (target, since) in &targets {
                let Some(to) = find_repository(connection, &target.repository)? else { continue };
                statement.execute((to, target.tag.as_str(), from, since.map(Timestamp::as_second)))?;
            }
            Ok(())
        })
        .await
    }
}

/// Records provenance within the caller's transaction.
pub(super) fn record(
    connection: &Connection,
    source: &TagLocator,
    target: &TagLocator,
    digest: &Digest,
) -> Result<(), SqliteError> {
    let (from, to) =
        (repository_row_id(connection, &source.repository)?, repository_row_id(connection, &target.repository)?);
    let sql = "REPLACE INTO provenance (target, tag, source, source_tag, digest) VALUES (?1, ?2, ?3, ?4, ?5)";
    let other = (source.tag != target.tag).then(|| source.tag.as_str());
    let digest = digest_bytes(digest);
    connection.prepare_cached(sql)?.execute((to, target.tag.as_str(), from, other, digest))?;
    Ok(())
}

fn find_repository(connection: &Connection, home: &RepositoryLocator) -> Result<Option<i64>, SqliteError> {
    let sql = "SELECT row_id FROM repository_locator WHERE endpoint = ?1 AND repository = ?2";
    let key = (home.endpoint().to_string(), home.path());
    Ok(connection.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?)
}

fn repository_row_id(connection: &Connection, home: &RepositoryLocator) -> Result<i64, SqliteError> {
    if let Some(number) = find_repository(connection, home)? {
        return Ok(number);
    }
    let sql = "INSERT INTO repository_locator (endpoint, repository) VALUES (?1, ?2) RETURNING row_id";
    Ok(connection.prepare_cached(sql)?.query_row((home.endpoint().to_string(), home.path()), |row| row.get(0))?)
}

fn parse_tag(text: &str) -> Result<Tag, SqliteError> {
    text.parse().map_err(|_| corrupt_store("invalid tag").into())
}
