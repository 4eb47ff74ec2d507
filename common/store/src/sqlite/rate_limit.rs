//! [`RateLimitStore`] beside SQLite. Blocks and quotas are in the file; rates and concurrency are in memory, because
//! only one process at a time sends requests.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};

use super::SqliteStore;
use super::error::SqliteError;
use super::rows::timestamp;
use crate::{
    Account, ConcurrencyClaim, ConcurrencyGrant, QuotaReport, RateGrant, RateLimitCategory, RateLimitStore,
    RateRequest, is_in_future, latest_deadline_ms,
};
use imgsync_oci::error::Result;
use imgsync_oci::generational::GenerationalCache;
use imgsync_rate_limit::{ConcurrencyAllocator, QuotaWindow, RateAllocator};

/// Maximum accounts whose rates and concurrency are kept: one per registry and user.
const MAX_ACCOUNTS: usize = 10_000;

/// A value per account.
#[derive(Debug)]
pub(super) struct PerAccount<T>(Mutex<GenerationalCache<Account, T>>);

/// Rates by account.
pub(super) type RateAllocators = PerAccount<RateAllocator>;
/// Concurrency by account.
pub(super) type ConcurrencyAllocators = PerAccount<ConcurrencyAllocator>;

impl<T> Default for PerAccount<T> {
    fn default() -> PerAccount<T> {
        PerAccount(Mutex::new(GenerationalCache::new(MAX_ACCOUNTS)))
    }
}

impl<T> PerAccount<T> {
    fn lock(&self) -> MutexGuard<'_, GenerationalCache<Account, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl RateLimitStore for SqliteStore {
    async fn block_until(&self, account: &Account, until: Timestamp) -> Result<()> {
        let (account, until, now) = (account.clone(), until.as_millisecond(), self.now());
        self.write(format!("recording the rate limit of {}", account.registry), move |connection| {
            delete_expired_blocks(connection, now)?;
            connection
                .prepare_cached(
                    "INSERT INTO rate_block (registry, account_key, blocked_until) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET blocked_until = max(blocked_until, excluded.blocked_until)",
                )?
                .execute((account.registry.as_str(), account.key(), until))?;
            Ok(())
        })
        .await
    }

    async fn blocked_until(&self, accounts: &[Account]) -> Result<Vec<Option<Timestamp>>> {
        let (accounts, now) = (accounts.to_vec(), self.now());
        self.read("reading the rate limits of registries", move |connection| {
            let sql = "SELECT blocked_until FROM rate_block
                       WHERE registry = ?1 AND account_key = ?2 AND blocked_until > ?3 AND blocked_until <= ?4";
            let mut statement = connection.prepare_cached(sql)?;
            let mut until = Vec::with_capacity(accounts.len());
            for account in accounts {
                let key = (account.registry.as_str(), account.key(), now, latest_deadline_ms(now));
                let row = statement.query_row(key, |row| row.get(0)).optional()?;
                until.push(row.map(timestamp));
            }
            Ok(until)
        })
        .await
    }

    async fn learned_rates(&self, accounts: &[Account]) -> Result<Vec<Option<f64>>> {
        let now = self.0.clock.now().as_microsecond() as f64 / 1000.0;
        let mut allowances = self.0.rate_allocators.lock();
        Ok(accounts.iter().map(|account| allowances.get(account)?.active_learned_rate(now)).collect())
    }

    async fn acquire_rate(&self, account: &Account, ask: &RateRequest) -> Result<RateGrant> {
        let until = self.blocked_until(std::slice::from_ref(account)).await?.into_iter().next().flatten();
        if let Some(wait) = until.map(|until| until.as_millisecond() - self.now()).filter(|wait| *wait > 0) {
            self.with_rate_allocator(account, |allowance, now| allowance.record_sent(now, ask.sent));
            return Ok(RateGrant::Wait(Duration::from_millis(wait.unsigned_abs())));
        }
        Ok(match self.with_rate_allocator(account, |allowance, now| allowance.allocate(now, ask)) {
            None => RateGrant::Unlimited,
            Some(turns) => {
                RateGrant::Scheduled(turns.into_iter().map(|wait| Duration::from_secs_f64(wait / 1000.0)).collect())
            }
        })
    }

    async fn record_throttled(&self, account: &Account, wait: Duration, ask: &RateRequest) -> Result<()> {
        self.with_rate_allocator(account, |allowance, now| allowance.on_throttled(now, ask));
        let until = self.0.clock.now().checked_add(wait).unwrap_or(Timestamp::MAX);
        self.block_until(account, until).await
    }

    async fn claim_concurrency(&self, account: &Account, claim: &ConcurrencyClaim) -> Result<ConcurrencyGrant> {
        let now = self.0.clock.now().as_microsecond() as f64 / 1000.0;
        Ok(self
            .0
            .concurrency_allocators
            .lock()
            .get_or_insert_with(account, ConcurrencyAllocator::default)
            .claim(now, claim))
    }

    async fn record_quota(&self, account: &Account, report: &QuotaReport) -> Result<Duration> {
        let (account, report, now) = (account.clone(), *report, self.now());
        self.write(format!("recording the quota of {}", account.registry), move |connection| {
            let (registry, user, pulls) =
                (account.registry.as_str(), account.key(), account.with_category(RateLimitCategory::Pulls).key());
            let found = connection
                .prepare_cached("SELECT started_at, remaining FROM quota WHERE registry = ?1 AND account_key = ?2")?
                .query_row((registry, &user), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
                .optional()?;
            // A window that started in the future is unknown.
            let found = found.filter(|(began, _)| !is_in_future(timestamp(*began), timestamp(now)));
            let mut window = found.map_or_else(QuotaWindow::default, |(began, left)| QuotaWindow {
                started_at: began as f64,
                remaining: left as f64,
            });
            let (ends, is_new) = window.update(now as f64, &report);
            connection
                .prepare_cached(
                    "REPLACE INTO quota (registry, account_key, started_at, remaining) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute((registry, &user, window.started_at as i64, window.remaining as i64))?;
            if is_new {
                connection
                    .prepare_cached("DELETE FROM rate_block WHERE registry = ?1 AND account_key = ?2")?
                    .execute((registry, &pulls))?;
            }
            let ends = ends as i64;
            if report.remaining <= report.reserve && ends > now {
                delete_expired_blocks(connection, now)?;
                connection
                    .prepare_cached(
                        "INSERT INTO rate_block (registry, account_key, blocked_until) VALUES (?1, ?2, ?3)
                         ON CONFLICT DO UPDATE SET blocked_until = max(blocked_until, excluded.blocked_until)",
                    )?
                    .execute((registry, &pulls, ends))?;
            }
            Ok(Duration::from_millis((ends - now).max(0).unsigned_abs()))
        })
        .await
    }
}

/// Deletes blocks that have ended, or that end later than any can: those were written by a wrong clock.
fn delete_expired_blocks(connection: &Connection, now: i64) -> Result<(), SqliteError> {
    let sql = "DELETE FROM rate_block WHERE blocked_until <= ?1 OR blocked_until > ?2";
    connection.prepare_cached(sql)?.execute((now, latest_deadline_ms(now)))?;
    Ok(())
}

impl SqliteStore {
    fn with_rate_allocator<T>(&self, account: &Account, work: impl FnOnce(&mut RateAllocator, f64) -> T) -> T {
        let now = self.0.clock.now().as_microsecond() as f64 / 1000.0;
        work(self.0.rate_allocators.lock().get_or_insert_with(account, RateAllocator::default), now)
    }
}
