//! [`Leases`] in SQLite.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::OptionalExtension;

use super::SqliteStore;
use super::rows::{deadline_ms, min_token, timestamp};
use crate::{LeaseResult, Leases, latest_deadline_ms};
use imgsync_oci::error::Result;
use imgsync_oci::sanitize::sanitize;

#[async_trait]
impl Leases for SqliteStore {
    async fn acquire(&self, name: &str, holder: &str, lease: Duration) -> Result<LeaseResult> {
        let (name, holder, now) = (name.to_owned(), holder.to_owned(), self.now());
        self.write(format!("acquiring lease {}", sanitize(&name)), move |connection| {
            // Expired leases of dead holders: few.
            connection
                .prepare_cached("DELETE FROM lease WHERE expires_at <= ?1 OR expires_at > ?2")?
                .execute((now, latest_deadline_ms(now)))?;
            let held: Option<(String, i64, i64)> = connection
                .prepare_cached("SELECT holder, token, expires_at FROM lease WHERE name = ?1")?
                .query_row([&name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            let token = match held {
                Some((its, token, _)) if its == holder => token,
                Some((holder, _, until)) => return Ok(LeaseResult::HeldBy { holder, until: timestamp(until) }),
                None => connection
                    .prepare_cached(
                        "UPDATE counter SET value = max(value + 1, ?1) WHERE name = 'lease token' RETURNING value",
                    )?
                    .query_row([min_token(now)], |row| row.get(0))?,
            };
            connection
                .prepare_cached("REPLACE INTO lease (name, holder, token, expires_at) VALUES (?1, ?2, ?3, ?4)")?
                .execute((name, holder, token, deadline_ms(now, lease)))?;
            Ok(LeaseResult::Acquired { token: token.unsigned_abs() })
        })
        .await
    }

    async fn first_held(&self, names: &[String]) -> Result<Option<(String, String)>> {
        let (names, now) = (names.to_vec(), self.now());
        self.read_rows("reading lease holders", names.len(), move |connection| {
            let sql = "SELECT holder FROM lease WHERE name = ?1 AND expires_at > ?2 AND expires_at <= ?3";
            let mut statement = connection.prepare_cached(sql)?;
            for name in names {
                let key = (&name, now, latest_deadline_ms(now));
                if let Some(holder) = statement.query_row(key, |row| row.get(0)).optional()? {
                    return Ok(Some((name, holder)));
                }
            }
            Ok(None)
        })
        .await
    }

    async fn release(&self, name: &str, holder: &str) -> Result<()> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.write(format!("releasing lease {}", sanitize(&name)), move |connection| {
            connection.prepare_cached("DELETE FROM lease WHERE name = ?1 AND holder = ?2")?.execute((name, holder))?;
            Ok(())
        })
        .await
    }

    async fn may_have_owners(&self) -> Result<bool> {
        self.is_locked().await
    }
}
