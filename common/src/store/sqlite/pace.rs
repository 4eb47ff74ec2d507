//! [`Pace`] beside SQLite. Times to wait until are in the file; rates are in memory, for one process at a time sends.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::OptionalExtension;

use super::SqliteStore;
use super::rows::time;
use crate::error::Result;
use crate::store::pace::Allowance;
use crate::store::{Account, Ask, Grant, Pace};

/// By account.
pub(super) type Allowances = Mutex<HashMap<Account, Allowance>>;

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

    async fn grant(&self, account: &Account, ask: &Ask) -> Result<Grant> {
        let until = self.not_before(std::slice::from_ref(account)).await?.into_iter().next().flatten();
        if let Some(wait) = until.map(|until| until.as_millisecond() - self.now()).filter(|wait| *wait > 0) {
            self.allowance(account, |allowance, now| allowance.count(now, ask.sent));
            return Ok(Grant::Wait(Duration::from_millis(wait.unsigned_abs())));
        }
        Ok(match self.allowance(account, |allowance, now| allowance.grant(now, ask)) {
            None => Grant::Free,
            Some(turns) => Grant::Turns(turns.into_iter().map(|wait| Duration::from_secs_f64(wait / 1000.0)).collect()),
        })
    }

    async fn refused(&self, account: &Account, wait: Duration, ask: &Ask) -> Result<()> {
        self.allowance(account, |allowance, now| allowance.refused(now, ask));
        let until = self.0.clock.now().checked_add(wait).unwrap_or(Timestamp::MAX);
        self.hold_off(account, until).await
    }
}

impl SqliteStore {
    fn allowance<T>(&self, account: &Account, work: impl FnOnce(&mut Allowance, f64) -> T) -> T {
        let now = self.0.clock.now().as_microsecond() as f64 / 1000.0;
        let mut allowances = self.0.allowances.lock().unwrap_or_else(PoisonError::into_inner);
        work(allowances.entry(account.clone()).or_default(), now)
    }
}
