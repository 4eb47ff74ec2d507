//! [`TagRecorder`] in SQLite.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};

use super::error::SqliteError;
use super::rows::to_sql_integer;
use super::{SqliteStore, cache, provenance};
use crate::{Fence, ProvenanceUpdate, TagRecord, TagRecorder, latest_deadline_ms};
use imgsync_oci::error::Result;

#[async_trait]
impl TagRecorder for SqliteStore {
    async fn record_tag(&self, fence: &Fence, record: TagRecord<'_>) -> Result<bool> {
        let TagRecord { provenance, scope, tags, complete } = record;
        let (fence, scope, whole, now) = (fence.clone(), scope.clone(), complete.cloned(), self.now());
        let update = provenance
            .map(|ProvenanceUpdate { source, target, digest }| (source.clone(), target.clone(), digest.clone()));
        self.write(format!("recording a tag of {}", scope.repository), move |connection| {
            if !is_held(connection, &fence, now)? {
                return Ok(false);
            }
            if let Some((source, target, digest)) = &update {
                provenance::record(connection, source, target, digest)?;
            }
            if let Some(tag) = whole {
                cache::delete_tags(connection, &scope.partial_images(), &[tag])?;
            }
            if !tags.is_empty() {
                cache::put_tags(connection, &scope, &tags)?;
            }
            Ok(true)
        })
        .await
    }
}

/// Whether a lease is held now, by this holder and under this token.
pub(super) fn is_held(connection: &Connection, fence: &Fence, now: i64) -> Result<bool, SqliteError> {
    let sql = "SELECT 1 FROM lease
               WHERE name = ?1 AND holder = ?2 AND token = ?3 AND expires_at > ?4 AND expires_at <= ?5";
    let key = (&fence.name, &fence.holder, to_sql_integer(fence.token), now, latest_deadline_ms(now));
    Ok(connection.prepare_cached(sql)?.query_row(key, |_| Ok(())).optional()?.is_some())
}
