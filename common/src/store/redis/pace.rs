//! [`Pace`] in Redis.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Call, RedisStore, damaged, millis, time};
use crate::error::Result;
use crate::store::{Account, Ask, Grant, Pace};

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
        Ok(ends.into_iter().map(|ends| ends.filter(|ends| *ends > now).map(time)).collect())
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
        let call = self.pace_call(account, ask, Some(wait));
        self.script::<Vec<i64>>(&tried, &self.0.scripts.pace, call).await.map(drop)
    }
}

impl RedisStore {
    fn pace_call(&self, account: &Account, ask: &Ask, refused: Option<Duration>) -> Call {
        Call::on(self.key(&format!("rl:{}:{}", account.registry, account.who)))
            .key(self.not_before_key(account))
            .arg(ask.limit.map(|limit| limit.to_string()).unwrap_or_default())
            .arg(u8::from(ask.careful))
            .arg(ask.wanted)
            .arg(ask.sent)
            .arg(refused.map(|wait| millis(wait).to_string()).unwrap_or_default())
    }

    fn not_before_key(&self, account: &Account) -> String {
        self.key(&format!("nb:{}:{}", account.registry, account.who))
    }
}
