//! [`Pace`] in Redis.

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Call, RedisStore, time};
use crate::error::Result;
use crate::store::{Account, Pace};

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
}

impl RedisStore {
    fn not_before_key(&self, account: &Account) -> String {
        self.key(&format!("nb:{}:{}", account.registry, account.who))
    }
}
