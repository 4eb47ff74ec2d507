//! [`Pace`] in Redis.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Call, RedisStore, damaged, millis, time};
use crate::error::Result;
use crate::store::{
    Account, AccountPart, Ask, Claim, Grant, Pace, PlaceShare, RequestId, Told, WindowTime, latest_end,
};

/// A learned rate expires after this many milliseconds, as in `pace.lua`.
const LEARNT_FOR: f64 = 600_000.0;

#[async_trait]
impl Pace for RedisStore {
    async fn hold_off(&self, account: &Account, until: Timestamp) -> Result<()> {
        let tried = format!("noting the pace of {}", account.registry);
        let call = Call::on(self.not_before_key(account)).arg(until.as_millisecond());
        self.script::<i64>(&tried, &self.0.scripts.hold_off, call).await.map(drop)
    }

    async fn not_before(&self, accounts: &[Account]) -> Result<Vec<Option<Timestamp>>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let tried = "reading the pace of registries";
        let mut pipe = redis::pipe();
        let command = pipe.cmd("MGET");
        for account in accounts {
            command.arg(self.not_before_key(account));
        }
        let (ends,): (Vec<Option<i64>>,) = self.query(tried, &pipe).await?;
        let now = self.now(tried).await?;
        Ok(ends.into_iter().map(|ends| ends.filter(|ends| *ends > now && *ends <= latest_end(now)).map(time)).collect())
    }

    async fn learnt(&self, accounts: &[Account]) -> Result<Vec<Option<f64>>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let tried = "reading the pace of registries";
        let mut pipe = redis::pipe();
        for account in accounts {
            pipe.cmd("HMGET").arg(self.account_key("rl", account)).arg("learnt").arg("refused");
        }
        let rates: Vec<(Option<f64>, Option<f64>)> = self.query(tried, &pipe).await?;
        let now = self.now(tried).await? as f64;
        let known = |(learnt, refused): (Option<f64>, Option<f64>)| {
            learnt.filter(|rate| *rate > 0.0 && refused.is_some_and(|at| now - at < LEARNT_FOR))
        };
        Ok(rates.into_iter().map(known).collect())
    }

    async fn grant(&self, account: &Account, ask: &Ask) -> Result<Grant> {
        let tried = format!("asking for the pace of {}", account.registry);
        let answer: Vec<i64> = self.script(&tried, &self.0.scripts.pace, self.pace_call(account, ask, None)).await?;
        match answer.split_first() {
            Some((0, [wait])) => Ok(Grant::Wait(Duration::from_millis(wait.unsigned_abs()))),
            Some((1, [])) => Ok(Grant::Free),
            Some((2, turns)) if !turns.is_empty() => {
                Ok(Grant::Turns(turns.iter().map(|micros| Duration::from_micros(micros.unsigned_abs())).collect()))
            }
            _ => Err(damaged(&tried, "it gives no pace")),
        }
    }

    async fn refused(&self, account: &Account, wait: Duration, ask: &Ask) -> Result<()> {
        let tried = format!("noting the pace of {}", account.registry);
        let call = self.pace_call(account, ask, Some(wait)).key(self.request_key(RequestId::generate()));
        self.script::<Vec<i64>>(&tried, &self.0.scripts.pace, call).await.map(drop)
    }

    async fn claim(&self, account: &Account, claim: &Claim) -> Result<PlaceShare> {
        let tried = format!("sharing the requests to {}", account.registry);
        let call = Call::on(self.account_key("pl", account))
            .arg(&claim.holder)
            .arg(claim.limit)
            .arg(claim.using)
            .arg(claim.wanted)
            .arg(millis(claim.lease));
        let (may, contended): (u32, u8) = self.script(&tried, &self.0.scripts.claim, call).await?;
        Ok(PlaceShare { may, contended: contended != 0 })
    }

    async fn quota(&self, account: &Account, told: &Told) -> Result<Duration> {
        let tried = format!("noting the quota of {}", account.registry);
        let (how, span) = match told.time {
            WindowTime::Reset(span) => ("reset", span),
            WindowTime::Length(span) => ("length", span),
        };
        let call = Call::on(self.account_key("qu", account))
            .key(self.not_before_key(&account.of(AccountPart::Pulls)))
            .arg(told.remaining)
            .arg(told.limit.map(|limit| limit.to_string()).unwrap_or_default())
            .arg(told.reserve)
            .arg(how)
            .arg(millis(span));
        let wait: i64 = self.script(&tried, &self.0.scripts.quota, call).await?;
        Ok(Duration::from_millis(wait.max(0).unsigned_abs()))
    }
}

impl RedisStore {
    fn pace_call(&self, account: &Account, ask: &Ask, refused: Option<Duration>) -> Call {
        Call::on(self.account_key("rl", account))
            .key(self.not_before_key(account))
            .arg(ask.limit.map(|limit| limit.to_string()).unwrap_or_default())
            .arg(u8::from(ask.careful))
            .arg(ask.wanted)
            .arg(ask.sent)
            .arg(refused.map(|wait| millis(wait).to_string()).unwrap_or_default())
    }

    fn not_before_key(&self, account: &Account) -> String {
        self.account_key("nb", account)
    }

    fn account_key(&self, what: &str, account: &Account) -> String {
        self.key(&format!("{what}:{}:{}", account.registry, account.key()))
    }
}
