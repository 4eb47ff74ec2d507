//! [`Origins`] in SQLite.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use std::collections::HashMap;
use std::sync::Arc;

use super::SqliteStore;
use super::fault::{Fault, damaged};
use super::rows::{digest, digest_bytes, home};
use crate::batch::{Home, Place};
use crate::error::Result;
use crate::image::{Digest, Tag};
use crate::store::{Origin, Origins};

#[async_trait]
impl Origins for SqliteStore {
    async fn note_origin(&self, source: &Place, target: &Place, digest: &Digest) -> Result<()> {
        let (source, target, digest) = (source.clone(), target.clone(), digest.clone());
        self.write(format!("remembering where {target} came from"), move |connection| {
            note(connection, &source, &target, &digest)
        })
        .await
    }

    async fn origins(&self, source: &Home) -> Result<Vec<Origin>> {
        let source = source.clone();
        self.read(format!("reading what was made of {source}"), move |connection| {
            let Some(from) = find_home(connection, &source)? else { return Ok(Vec::new()) };
            let mut statement = connection.prepare_cached(
                "SELECT home.end, home.repository, tag, source_tag, digest, missing, unclaimed
                 FROM origin JOIN home ON home.no = origin.target
                 WHERE source = ?1 ORDER BY home.end, home.repository, tag",
            )?;
            let mut rows = statement.query([from])?;
            let mut origins: Vec<Origin> = Vec::new();
            while let Some(row) = rows.next()? {
                let (end, repository, name): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let its = home(&end, &repository)?;
                // Records of one repository share it.
                let its = match origins.last() {
                    Some(last) if *last.target.home == its => last.target.home.clone(),
                    _ => Arc::new(its),
                };
                let tag = tag(&name)?;
                let source_tag = match row.get::<_, Option<String>>(3)? {
                    Some(other) => self::tag(&other)?,
                    None => tag.clone(),
                };
                let digest = digest(&row.get::<_, Vec<u8>>(4)?)?;
                // Treating an unreadable time as long ago would prune the tag.
                let since = |at: usize| -> Result<Option<Timestamp>, Fault> {
                    let since = row.get::<_, Option<i64>>(at)?.map(Timestamp::from_second).transpose();
                    since.map_err(|_| damaged("it names a time that cannot be").into())
                };
                let (missing_since, unclaimed_since) = (since(5)?, since(6)?);
                origins.push(Origin {
                    target: Place { home: its, tag },
                    source_tag,
                    digest,
                    missing_since,
                    unclaimed_since,
                    is_authentic: true,
                });
            }
            Ok(origins)
        })
        .await
    }

    async fn written(&self, target: &Home) -> Result<HashMap<Tag, Digest>> {
        let target = target.clone();
        self.read(format!("reading what was written to {target}"), move |connection| {
            let Some(to) = find_home(connection, &target)? else { return Ok(HashMap::new()) };
            let mut statement = connection.prepare_cached("SELECT tag, digest FROM origin WHERE target = ?1")?;
            let mut rows = statement.query([to])?;
            let mut written = HashMap::new();
            while let Some(row) = rows.next()? {
                written.insert(tag(&row.get::<_, String>(0)?)?, digest(&row.get::<_, Vec<u8>>(1)?)?);
            }
            Ok(written)
        })
        .await
    }

    async fn note_missing(&self, source: &Home, targets: Vec<(Place, Option<Timestamp>)>) -> Result<()> {
        let sql = "UPDATE origin SET missing = ?4 WHERE target = ?1 AND tag = ?2 AND source = ?3";
        self.note_since(format!("remembering what {source} lacks"), sql, source, targets).await
    }

    async fn note_unclaimed(&self, source: &Home, targets: Vec<(Place, Option<Timestamp>)>) -> Result<()> {
        let sql = "UPDATE origin SET unclaimed = ?4 WHERE target = ?1 AND tag = ?2 AND source = ?3";
        self.note_since(format!("remembering what no rule makes of {source}"), sql, source, targets).await
    }

    async fn origin_sources(&self) -> Result<Vec<Home>> {
        self.read("reading what target tags were made from".to_owned(), |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT end, repository FROM home WHERE no IN (SELECT source FROM origin) ORDER BY end, repository",
            )?;
            let mut rows = statement.query([])?;
            let mut homes = Vec::new();
            while let Some(row) = rows.next()? {
                homes.push(home(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?)?);
            }
            Ok(homes)
        })
        .await
    }

    async fn forget_origins(&self, source: &Home, targets: &[Place]) -> Result<()> {
        let (source, targets) = (source.clone(), targets.to_vec());
        self.write(format!("forgetting what was made of {source}"), move |connection| {
            let Some(from) = find_home(connection, &source)? else { return Ok(()) };
            let sql = "DELETE FROM origin WHERE target = ?1 AND tag = ?2 AND source = ?3";
            let mut statement = connection.prepare_cached(sql)?;
            for target in &targets {
                let Some(to) = find_home(connection, &target.home)? else { continue };
                statement.execute((to, target.tag.as_str(), from))?;
            }
            Ok(())
        })
        .await
    }
}

impl SqliteStore {
    /// Sets a time of target tags.
    async fn note_since(
        &self,
        tried: String,
        sql: &'static str,
        source: &Home,
        targets: Vec<(Place, Option<Timestamp>)>,
    ) -> Result<()> {
        if targets.is_empty() {
            return Ok(());
        }
        let source = source.clone();
        self.write(tried, move |connection| {
            let Some(from) = find_home(connection, &source)? else { return Ok(()) };
            let mut statement = connection.prepare_cached(sql)?;
            for (target, since) in &targets {
                let Some(to) = find_home(connection, &target.home)? else { continue };
                statement.execute((to, target.tag.as_str(), from, since.map(Timestamp::as_second)))?;
            }
            Ok(())
        })
        .await
    }
}

/// Records provenance within the caller's transaction.
pub(super) fn note(connection: &Connection, source: &Place, target: &Place, digest: &Digest) -> Result<(), Fault> {
    let (from, to) = (home_number(connection, &source.home)?, home_number(connection, &target.home)?);
    let sql = "REPLACE INTO origin (target, tag, source, source_tag, digest) VALUES (?1, ?2, ?3, ?4, ?5)";
    let other = (source.tag != target.tag).then(|| source.tag.as_str());
    let digest = digest_bytes(digest);
    connection.prepare_cached(sql)?.execute((to, target.tag.as_str(), from, other, digest))?;
    Ok(())
}

fn find_home(connection: &Connection, home: &Home) -> Result<Option<i64>, Fault> {
    let sql = "SELECT no FROM home WHERE end = ?1 AND repository = ?2";
    let key = (home.end().to_string(), home.path());
    Ok(connection.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?)
}

fn home_number(connection: &Connection, home: &Home) -> Result<i64, Fault> {
    if let Some(number) = find_home(connection, home)? {
        return Ok(number);
    }
    let sql = "INSERT INTO home (end, repository) VALUES (?1, ?2) RETURNING no";
    Ok(connection.prepare_cached(sql)?.query_row((home.end().to_string(), home.path()), |row| row.get(0))?)
}

fn tag(text: &str) -> Result<Tag, Fault> {
    text.parse().map_err(|_| damaged("it names a tag that cannot be").into())
}
