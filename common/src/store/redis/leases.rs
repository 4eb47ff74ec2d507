//! [`Leases`] in Redis.

use std::time::Duration;

use async_trait::async_trait;

use super::{Call, RedisStore, millis, time};
use crate::error::Result;
use crate::printable::printable;
use crate::store::{Leases, Named, latest_end};

#[async_trait]
impl Leases for RedisStore {
    async fn acquire(&self, name: &str, holder: &str, lease: Duration) -> Result<Named> {
        let tried = format!("leasing {}", printable(name));
        let call = Call::on(self.lease(name)).key(self.key("epoch")).arg(holder).arg(millis(lease));
        let (answer, one, two): (i64, String, String) = self.script(&tried, &self.0.scripts.acquire, call).await?;
        Ok(match answer {
            0 => Named::Yours { epoch: one.parse().unwrap_or_default() },
            _ => Named::Others { holder: one, until: time(two.parse().unwrap_or_default()) },
        })
    }

    async fn first_held(&self, names: &[String]) -> Result<Option<(String, String)>> {
        /// Names per call.
        const AT_ONCE: usize = 500;
        let tried = "looking who holds what";
        let now = self.now(tried).await?;
        for names in names.chunks(AT_ONCE) {
            let mut pipe = redis::pipe();
            for name in names {
                pipe.cmd("HMGET").arg(self.lease(name)).arg("holder").arg("ends");
            }
            let found: Vec<(Option<String>, Option<i64>)> = self.query(tried, &pipe).await?;
            for (name, (holder, ends)) in names.iter().zip(found) {
                if let Some(holder) = holder
                    && ends.is_some_and(|ends| ends > now && ends <= latest_end(now))
                {
                    return Ok(Some((name.clone(), holder)));
                }
            }
        }
        Ok(None)
    }

    async fn release(&self, name: &str, holder: &str) -> Result<()> {
        let tried = format!("letting go of {}", printable(name));
        let call = Call::on(self.lease(name)).arg(holder);
        self.script::<i64>(&tried, &self.0.scripts.release, call).await.map(drop)
    }
}

impl RedisStore {
    pub(super) fn lease(&self, name: &str) -> String {
        self.key(&format!("lk:{name}"))
    }
}
