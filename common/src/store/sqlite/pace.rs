//! [`Pace`] beside SQLite. Blocks and quotas are in the file; rates and concurrency are in memory, because only one
//! process at a time sends requests.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};

use super::SqliteStore;
use super::fault::Fault;
use super::rows::time;
use crate::error::Result;
use crate::generational::GenerationalCache;
use crate::store::pace::{Allowance, QuotaWindow, Sharing};
use crate::store::{Account, AccountPart, Ask, Claim, Grant, Pace, PlaceShare, Told, is_ahead, latest_end};

/// Maximum accounts whose rates and concurrency are kept: one per registry and user.
const MAX_ACCOUNTS: usize = 10_000;

/// A value per account.
#[derive(Debug)]
pub(super) struct ByAccount<T>(Mutex<GenerationalCache<Account, T>>);

/// Rates by account.
pub(super) type Allowances = ByAccount<Allowance>;
/// Concurrency by account.
pub(super) type Sharings = ByAccount<Sharing>;

impl<T> Default for ByAccount<T> {
    fn default() -> ByAccount<T> {
        ByAccount(Mutex::new(GenerationalCache::new(MAX_ACCOUNTS)))
    }
}

impl<T> ByAccount<T> {
    fn lock(&self) -> MutexGuard<'_, GenerationalCache<Account, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Pace for SqliteStore {
    async fn hold_off(&self, account: &Account, until: Timestamp) -> Result<()> {
        let (account, until, now) = (account.clone(), until.as_millisecond(), self.now());
        self.write(format!("noting the pace of {}", account.registry), move |connection| {
            forget_ended(connection, now)?;
            connection
                .prepare_cached(
                    "INSERT INTO pace (registry, who, until) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET until = max(until, excluded.until)",
                )?
                .execute((account.registry.as_str(), account.key(), until))?;
            Ok(())
        })
        .await
    }

    async fn not_before(&self, accounts: &[Account]) -> Result<Vec<Option<Timestamp>>> {
        let (accounts, now) = (accounts.to_vec(), self.now());
        self.read("reading the pace of registries", move |connection| {
            let sql = "SELECT until FROM pace WHERE registry = ?1 AND who = ?2 AND until > ?3 AND until <= ?4";
            let mut statement = connection.prepare_cached(sql)?;
            let mut until = Vec::with_capacity(accounts.len());
            for account in accounts {
                let key = (account.registry.as_str(), account.key(), now, latest_end(now));
                let row = statement.query_row(key, |row| row.get(0)).optional()?;
                until.push(row.map(time));
            }
            Ok(until)
        })
        .await
    }

    async fn learnt(&self, accounts: &[Account]) -> Result<Vec<Option<f64>>> {
        let now = self.0.clock.now().as_microsecond() as f64 / 1000.0;
        let mut allowances = self.0.allowances.lock();
        Ok(accounts.iter().map(|account| allowances.get(account)?.known(now)).collect())
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

    async fn claim(&self, account: &Account, claim: &Claim) -> Result<PlaceShare> {
        let now = self.0.clock.now().as_microsecond() as f64 / 1000.0;
        Ok(self.0.sharings.lock().get_or_insert_with(account, Sharing::default).claim(now, claim))
    }

    async fn quota(&self, account: &Account, told: &Told) -> Result<Duration> {
        let (account, told, now) = (account.clone(), *told, self.now());
        self.write(format!("noting the quota of {}", account.registry), move |connection| {
            let (registry, who, pulls) =
                (account.registry.as_str(), account.key(), account.of(AccountPart::Pulls).key());
            let found = connection
                .prepare_cached("SELECT began, remaining FROM quota WHERE registry = ?1 AND who = ?2")?
                .query_row((registry, &who), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
                .optional()?;
            // A window that started in the future is unknown.
            let found = found.filter(|(began, _)| !is_ahead(time(*began), time(now)));
            let mut window = found.map_or_else(QuotaWindow::default, |(began, left)| QuotaWindow {
                began: began as f64,
                left: left as f64,
            });
            let (ends, is_new) = window.told(now as f64, &told);
            connection
                .prepare_cached("REPLACE INTO quota (registry, who, began, remaining) VALUES (?1, ?2, ?3, ?4)")?
                .execute((registry, &who, window.began as i64, window.left as i64))?;
            if is_new {
                connection
                    .prepare_cached("DELETE FROM pace WHERE registry = ?1 AND who = ?2")?
                    .execute((registry, &pulls))?;
            }
            let ends = ends as i64;
            if told.remaining <= told.reserve && ends > now {
                forget_ended(connection, now)?;
                connection
                    .prepare_cached(
                        "INSERT INTO pace (registry, who, until) VALUES (?1, ?2, ?3)
                         ON CONFLICT DO UPDATE SET until = max(until, excluded.until)",
                    )?
                    .execute((registry, &pulls, ends))?;
            }
            Ok(Duration::from_millis((ends - now).max(0).unsigned_abs()))
        })
        .await
    }
}

/// Deletes blocks that have ended, or that end later than any can: those were written by a wrong clock.
fn forget_ended(connection: &Connection, now: i64) -> Result<(), Fault> {
    let sql = "DELETE FROM pace WHERE until <= ?1 OR until > ?2";
    connection.prepare_cached(sql)?.execute((now, latest_end(now)))?;
    Ok(())
}

impl SqliteStore {
    fn allowance<T>(&self, account: &Account, work: impl FnOnce(&mut Allowance, f64) -> T) -> T {
        let now = self.0.clock.now().as_microsecond() as f64 / 1000.0;
        work(self.0.allowances.lock().get_or_insert_with(account, Allowance::default), now)
    }
}
