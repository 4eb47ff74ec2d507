//! [`Leases`] in Redis.

use std::time::Duration;

use async_trait::async_trait;

use super::{RedisStore, ScriptCall, duration_ms, timestamp};
use crate::{LeaseResult, Leases, latest_deadline_ms};
use imgsync_oci::error::Result;
use imgsync_oci::sanitize::sanitize;

#[async_trait]
impl Leases for RedisStore {
    async fn acquire(&self, name: &str, holder: &str, lease: Duration) -> Result<LeaseResult> {
        let operation = format!("acquiring lease {}", sanitize(name));
        let call =
            ScriptCall::new(self.lease_key(name)).key(self.key("last_token")).arg(holder).arg(duration_ms(lease));
        let (answer, one, two): (i64, String, String) =
            self.run_script(&operation, &self.0.scripts.acquire_lease, call).await?;
        Ok(match answer {
            0 => LeaseResult::Acquired { token: one.parse().unwrap_or_default() },
            _ => LeaseResult::HeldBy { holder: one, until: timestamp(two.parse().unwrap_or_default()) },
        })
    }

    async fn first_held(&self, names: &[String]) -> Result<Option<(String, String)>> {
        /// Names per call.
        const NAMES_PER_CALL: usize = 500;
        let operation = "reading lease holders";
        let now = self.now(operation).await?;
        for names in names.chunks(NAMES_PER_CALL) {
            let mut pipe = redis::pipe();
            for name in names {
                pipe.cmd("HMGET").arg(self.lease_key(name)).arg("holder").arg("expires_at");
            }
            let found: Vec<(Option<String>, Option<i64>)> = self.query(operation, &pipe).await?;
            for (name, (holder, ends)) in names.iter().zip(found) {
                if let Some(holder) = holder
                    && ends.is_some_and(|ends| ends > now && ends <= latest_deadline_ms(now))
                {
                    return Ok(Some((name.clone(), holder)));
                }
            }
        }
        Ok(None)
    }

    async fn release(&self, name: &str, holder: &str) -> Result<()> {
        let operation = format!("releasing lease {}", sanitize(name));
        let call = ScriptCall::new(self.lease_key(name)).arg(holder);
        self.run_script::<i64>(&operation, &self.0.scripts.release_lease, call).await.map(drop)
    }
}

impl RedisStore {
    pub(super) fn lease_key(&self, name: &str) -> String {
        self.key(&format!("lease:{name}"))
    }
}
