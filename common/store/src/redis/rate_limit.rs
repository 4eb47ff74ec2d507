//! [`RateLimitStore`] in Redis.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{RedisStore, ScriptCall, corrupt_store, duration_ms, timestamp};
use crate::{
    Account, ConcurrencyClaim, ConcurrencyGrant, IdempotencyKey, QuotaPeriod, QuotaReport, RateGrant,
    RateLimitCategory, RateLimitStore, RateRequest, latest_deadline_ms,
};
use imgsync_oci::error::Result;

/// A learned rate expires after this many milliseconds, as in `acquire_rate.lua`.
const LEARNED_RATE_TTL_MS: f64 = 600_000.0;

#[async_trait]
impl RateLimitStore for RedisStore {
    async fn block_until(&self, account: &Account, until: Timestamp) -> Result<()> {
        let operation = format!("recording the rate limit of {}", account.registry);
        let call = ScriptCall::new(self.block_key(account)).arg(until.as_millisecond());
        self.run_script::<i64>(&operation, &self.0.scripts.block_until, call).await.map(drop)
    }

    async fn blocked_until(&self, accounts: &[Account]) -> Result<Vec<Option<Timestamp>>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let operation = "reading the rate limits of registries";
        let mut pipe = redis::pipe();
        let command = pipe.cmd("MGET");
        for account in accounts {
            command.arg(self.block_key(account));
        }
        let (ends,): (Vec<Option<i64>>,) = self.query(operation, &pipe).await?;
        let now = self.now(operation).await?;
        Ok(ends
            .into_iter()
            .map(|ends| ends.filter(|ends| *ends > now && *ends <= latest_deadline_ms(now)).map(timestamp))
            .collect())
    }

    async fn learned_rates(&self, accounts: &[Account]) -> Result<Vec<Option<f64>>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let operation = "reading the rate limits of registries";
        let mut pipe = redis::pipe();
        for account in accounts {
            pipe.cmd("HMGET").arg(self.account_key("rate", account)).arg("learned_rate").arg("throttled_at");
        }
        let rates: Vec<(Option<f64>, Option<f64>)> = self.query(operation, &pipe).await?;
        let now = self.now(operation).await? as f64;
        let known = |(learned, refused): (Option<f64>, Option<f64>)| {
            learned.filter(|rate| *rate > 0.0 && refused.is_some_and(|at| now - at < LEARNED_RATE_TTL_MS))
        };
        Ok(rates.into_iter().map(known).collect())
    }

    async fn acquire_rate(&self, account: &Account, ask: &RateRequest) -> Result<RateGrant> {
        let operation = format!("requesting the rate limit of {}", account.registry);
        let answer: Vec<i64> =
            self.run_script(&operation, &self.0.scripts.acquire_rate, self.rate_call(account, ask, None)).await?;
        match answer.split_first() {
            Some((0, [wait])) => Ok(RateGrant::Wait(Duration::from_millis(wait.unsigned_abs()))),
            Some((1, [])) => Ok(RateGrant::Unlimited),
            Some((2, turns)) if !turns.is_empty() => Ok(RateGrant::Scheduled(
                turns.iter().map(|micros| Duration::from_micros(micros.unsigned_abs())).collect(),
            )),
            _ => Err(corrupt_store(&operation, "unexpected reply of the rate script")),
        }
    }

    async fn record_throttled(&self, account: &Account, wait: Duration, ask: &RateRequest) -> Result<()> {
        let operation = format!("recording the rate limit of {}", account.registry);
        let call = self.rate_call(account, ask, Some(wait)).key(self.request_key(IdempotencyKey::generate()));
        self.run_script::<Vec<i64>>(&operation, &self.0.scripts.acquire_rate, call).await.map(drop)
    }

    async fn claim_concurrency(&self, account: &Account, claim: &ConcurrencyClaim) -> Result<ConcurrencyGrant> {
        let operation = format!("sharing the concurrency limit of {}", account.registry);
        let call = ScriptCall::new(self.account_key("concurrency", account))
            .arg(&claim.holder)
            .arg(claim.limit)
            .arg(claim.in_use)
            .arg(claim.wanted)
            .arg(duration_ms(claim.ttl));
        let (permits, contended): (u32, u8) =
            self.run_script(&operation, &self.0.scripts.claim_concurrency, call).await?;
        Ok(ConcurrencyGrant { permits, contended: contended != 0 })
    }

    async fn record_quota(&self, account: &Account, report: &QuotaReport) -> Result<Duration> {
        let operation = format!("recording the quota of {}", account.registry);
        let (how, span) = match report.period {
            QuotaPeriod::ResetsIn(span) => ("reset", span),
            QuotaPeriod::WindowLength(span) => ("length", span),
        };
        let call = ScriptCall::new(self.account_key("quota", account))
            .key(self.block_key(&account.with_category(RateLimitCategory::Pulls)))
            .arg(report.remaining)
            .arg(report.limit.map(|limit| limit.to_string()).unwrap_or_default())
            .arg(report.reserve)
            .arg(how)
            .arg(duration_ms(span));
        let wait: i64 = self.run_script(&operation, &self.0.scripts.record_quota, call).await?;
        Ok(Duration::from_millis(wait.max(0).unsigned_abs()))
    }
}

impl RedisStore {
    fn rate_call(&self, account: &Account, ask: &RateRequest, refused: Option<Duration>) -> ScriptCall {
        ScriptCall::new(self.account_key("rate", account))
            .key(self.block_key(account))
            .arg(ask.limit.map(|limit| limit.to_string()).unwrap_or_default())
            .arg(u8::from(ask.slow_start))
            .arg(ask.wanted)
            .arg(ask.sent)
            .arg(refused.map(|wait| duration_ms(wait).to_string()).unwrap_or_default())
    }

    fn block_key(&self, account: &Account) -> String {
        self.account_key("blocked_until", account)
    }

    fn account_key(&self, what: &str, account: &Account) -> String {
        self.key(&format!("{what}:{}:{}", account.registry, account.key()))
    }
}
