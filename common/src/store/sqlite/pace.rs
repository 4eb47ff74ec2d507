//! [`Pace`] in SQLite.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::OptionalExtension;

use super::SqliteStore;
use super::rows::time;
use crate::error::Result;
use crate::store::{Account, Pace};

#[async_trait]
impl Pace for SqliteStore {
    async fn hold_off(&self, account: &Account, until: Timestamp) -> Result<()> {
        let (account, until, now) = (account.clone(), until.as_millisecond(), self.now());
        self.write(format!("noting the pace of {}", account.registry), move |connection| {
            connection.prepare_cached("DELETE FROM pace WHERE until <= ?1")?.execute([now])?;
            connection
                .prepare_cached(
                    "INSERT INTO pace (registry, who, until) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET until = max(until, excluded.until)",
                )?
                .execute((account.registry.as_str(), &account.who, until))?;
            Ok(())
        })
        .await
    }

    async fn not_before(&self, accounts: &[Account]) -> Result<Vec<Option<Timestamp>>> {
        let (accounts, now) = (accounts.to_vec(), self.now());
        self.read("reading the pace of registries", move |connection| {
            let sql = "SELECT until FROM pace WHERE registry = ?1 AND who = ?2 AND until > ?3";
            let mut statement = connection.prepare_cached(sql)?;
            let mut until = Vec::with_capacity(accounts.len());
            for Account { registry, who } in accounts {
                let row = statement.query_row((registry.as_str(), who, now), |row| row.get(0)).optional()?;
                until.push(row.map(time));
            }
            Ok(until)
        })
        .await
    }
}
