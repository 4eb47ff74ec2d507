//! [`TagRecords`] in SQLite.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};

use super::fault::Fault;
use super::rows::number;
use super::{SqliteStore, cache, origins};
use crate::error::Result;
use crate::store::{Fence, TagOrigin, TagRecord, TagRecords, latest_end};

#[async_trait]
impl TagRecords for SqliteStore {
    async fn record_tag(&self, fence: &Fence, record: TagRecord<'_>) -> Result<bool> {
        let TagRecord { origin, scope, tags, whole } = record;
        let (fence, scope, whole, now) = (fence.clone(), scope.clone(), whole.cloned(), self.now());
        let origin =
            origin.map(|TagOrigin { source, target, digest }| (source.clone(), target.clone(), digest.clone()));
        self.write(format!("recording a tag of {}", scope.home), move |connection| {
            if !is_held(connection, &fence, now)? {
                return Ok(false);
            }
            if let Some((source, target, digest)) = &origin {
                origins::note(connection, source, target, digest)?;
            }
            if let Some(tag) = whole {
                cache::forget(connection, &scope.parts(), &[tag])?;
            }
            if !tags.is_empty() {
                cache::learn(connection, &scope, &tags)?;
            }
            Ok(true)
        })
        .await
    }
}

/// Whether a lease is held now, by this holder and under this token.
fn is_held(connection: &Connection, fence: &Fence, now: i64) -> Result<bool, Fault> {
    let sql = "SELECT 1 FROM lease WHERE name = ?1 AND holder = ?2 AND epoch = ?3 AND until > ?4 AND until <= ?5";
    let key = (&fence.name, &fence.holder, number(fence.token), now, latest_end(now));
    Ok(connection.prepare_cached(sql)?.query_row(key, |_| Ok(())).optional()?.is_some())
}
