//! [`BlobIndex`] in SQLite.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};

use super::SqliteStore;
use super::error::SqliteError;
use super::rows::{digest_bytes, parse_repository};
use crate::{BLOB_GENERATION, BlobIndex, BlobProof, HashedFile, PROOF_TTL, is_proof_valid, proof_hour};
use imgsync_model::batch::{Endpoint, RepositoryLocator};
use imgsync_oci::Digest;
use imgsync_oci::error::Result;

impl SqliteStore {
    /// Returns the current generation of the index.
    fn generation(&self) -> i64 {
        self.0.clock.now().as_second() / i64::try_from(BLOB_GENERATION.as_secs()).unwrap_or(i64::MAX)
    }
}

#[async_trait]
impl BlobIndex for SqliteStore {
    async fn find_blobs(&self, end: &Endpoint, blobs: &[Digest]) -> Result<Vec<Option<RepositoryLocator>>> {
        let (end, blobs, generation) = (end.to_string(), blobs.to_vec(), self.generation());
        self.read_rows("finding blobs", blobs.len(), move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT repository FROM blob JOIN repository_locator ON row_id = blob.locator
                 WHERE blob.digest = ?1 AND blob.endpoint = ?2 AND blob.generation BETWEEN ?3 AND ?4",
            )?;
            let mut homes = Vec::with_capacity(blobs.len());
            for blob in &blobs {
                let row: Option<String> = {
                    let key = (digest_bytes(blob), &end, generation - 1, generation + 1);
                    statement.query_row(key, |row| row.get(0)).optional()?
                };
                homes.push(row.map(|repository| parse_repository(&end, &repository)).transpose()?);
            }
            Ok(homes)
        })
        .await
    }

    async fn record_blobs(&self, home: &RepositoryLocator, blobs: &[Digest]) -> Result<()> {
        let (home, blobs, generation) = (home.clone(), blobs.to_vec(), self.generation());
        self.write("recording blob locations", move |connection| {
            delete_old_generations(connection, generation - 1)?;
            let end = home.endpoint().to_string();
            connection
                .prepare_cached("INSERT OR IGNORE INTO repository_locator (endpoint, repository) VALUES (?1, ?2)")?
                .execute((&end, home.path()))?;
            let no: i64 = connection
                .prepare_cached("SELECT row_id FROM repository_locator WHERE endpoint = ?1 AND repository = ?2")?
                .query_row((&end, home.path()), |row| row.get(0))?;
            let sql = "REPLACE INTO blob (digest, endpoint, locator, generation) VALUES (?1, ?2, ?3, ?4)";
            let mut statement = connection.prepare_cached(sql)?;
            for blob in &blobs {
                statement.execute((digest_bytes(blob), &end, no, generation))?;
            }
            Ok(())
        })
        .await
    }

    async fn is_hashed_file(&self, file: &HashedFile) -> Result<bool> {
        let file = file.clone();
        self.read_rows("looking up a hashed file", 1, move |connection| {
            let known: Option<String> = connection
                .prepare_cached("SELECT version FROM hashed_file WHERE folder = ?1 AND digest = ?2")?
                .query_row((&file.folder, digest_bytes(&file.digest)), |row| row.get(0))
                .optional()?;
            Ok(known.is_some_and(|version| version == file.version))
        })
        .await
    }

    async fn record_hashed_file(&self, file: &HashedFile) -> Result<()> {
        let file = file.clone();
        self.write("recording a hashed file", move |connection| {
            connection
                .prepare_cached("REPLACE INTO hashed_file (folder, digest, version) VALUES (?1, ?2, ?3)")?
                .execute((&file.folder, digest_bytes(&file.digest), &file.version))?;
            Ok(())
        })
        .await
    }

    async fn forget_blob(&self, home: &RepositoryLocator, blob: &Digest) -> Result<()> {
        let (home, blob) = (home.clone(), digest_bytes(blob));
        self.write("deleting a blob location", move |connection| {
            connection
                .prepare_cached(
                    "DELETE FROM blob WHERE digest = ?1 AND endpoint = ?2
                     AND locator = (SELECT row_id FROM repository_locator WHERE endpoint = ?2 AND repository = ?3)",
                )?
                .execute((blob, home.endpoint().to_string(), home.path()))?;
            Ok(())
        })
        .await
    }

    async fn record_proofs(&self, proofs: &[BlobProof]) -> Result<()> {
        let (proofs, hour) = (proofs.to_vec(), proof_hour(self.0.clock.now().as_second()));
        self.write("recording blob proofs", move |connection| {
            delete_expired_proofs(connection, hour)?;
            let mut statement = connection.prepare_cached("REPLACE INTO proof (key, hour) VALUES (?1, ?2)")?;
            for proof in &proofs {
                statement.execute((proof.as_bytes(), hour))?;
            }
            Ok(())
        })
        .await
    }

    async fn check_proofs(&self, proofs: &[BlobProof]) -> Result<Vec<bool>> {
        let (proofs, now) = (proofs.to_vec(), proof_hour(self.0.clock.now().as_second()));
        self.read_rows("reading blob proofs", proofs.len(), move |connection| {
            let mut statement = connection.prepare_cached("SELECT hour FROM proof WHERE key = ?1")?;
            let mut found = Vec::with_capacity(proofs.len());
            for proof in &proofs {
                let given: Option<i64> = statement.query_row([proof.as_bytes()], |row| row.get(0)).optional()?;
                found.push(given.is_some_and(|given| is_proof_valid(given, now)));
            }
            Ok(found)
        })
        .await
    }
}

/// Deletes expired proofs, once a day: it scans all of them.
fn delete_expired_proofs(connection: &Connection, hour: i64) -> Result<(), SqliteError> {
    let day = hour / 24;
    let cleaned_day: Option<i64> = connection
        .prepare_cached("SELECT value FROM counter WHERE name = 'proof day'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    if cleaned_day != Some(day) {
        let oldest = hour - proof_hour(i64::try_from(PROOF_TTL.as_secs()).unwrap_or(i64::MAX));
        connection.execute("DELETE FROM proof WHERE hour <= ?1 OR hour > ?2", [oldest, hour])?;
        connection.execute("REPLACE INTO counter VALUES ('proof day', ?1)", [day])?;
    }
    Ok(())
}

/// Deletes old generations, once per generation: it scans all entries.
fn delete_old_generations(connection: &Connection, generation: i64) -> Result<(), SqliteError> {
    let cleaned_day: Option<i64> = connection
        .prepare_cached("SELECT value FROM counter WHERE name = 'blob generation'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    if cleaned_day.is_none_or(|cleaned_day| cleaned_day != generation) {
        // Entries from the future were written by a wrong clock.
        connection.execute("DELETE FROM blob WHERE generation NOT BETWEEN ?1 AND ?2", (generation, generation + 2))?;
        connection.execute("REPLACE INTO counter VALUES ('blob generation', ?1)", [generation])?;
    }
    Ok(())
}
