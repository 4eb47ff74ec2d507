//! Concurrency allocator: permits of an account shared among processes. The Lua script of the Redis store does the
//! same.

use std::collections::BTreeMap;

use super::{ConcurrencyClaim, ConcurrencyGrant};

/// With more holders than permits, each keeps its permit for this long, in milliseconds.
const ROTATION_INTERVAL_MS: f64 = 1_000.0;

/// Permits of one account by holder. Times are in milliseconds of any one clock.
#[derive(Debug, Default, Clone)]
pub struct ConcurrencyAllocator(BTreeMap<Box<str>, Holder>);

#[derive(Debug, Default, Clone, Copy)]
struct Holder {
    held: u32,
    expires_at: f64,
    /// Since when it waits for more permits, having fewer than its share; 0 if it does not.
    waiting_since: f64,
    /// Since when it holds permits; 0 if it holds none.
    held_since: f64,
}

impl ConcurrencyAllocator {
    /// Grants, renews or returns permits for a claim.
    pub fn claim(&mut self, now: f64, claim: &ConcurrencyClaim) -> ConcurrencyGrant {
        self.0.retain(|_, holder| holder.expires_at > now);
        let own = self.0.remove(&claim.holder).unwrap_or_default();
        if claim.wanted == 0 && claim.in_use == 0 {
            return ConcurrencyGrant { permits: 0, contended: false };
        }
        let others: u32 = self.0.values().map(|other| other.held).sum();
        let waiting_holders = self.0.values().filter(|other| other.waiting_since > 0.0);
        let contended = waiting_holders.clone().next().is_some();
        let starving = self.0.values().any(|other| other.waiting_since > 0.0 && other.held == 0);
        let claimants = self.0.len() as u32 + 1;
        let fair = (claim.limit / claimants).max(1);
        let mut want = claim.wanted.min(claim.limit);
        if contended {
            want = want.min(fair);
        }
        let oldest = self.0.values().filter(|other| other.held > 0).all(|other| own.held_since <= other.held_since);
        if starving
            && claimants > claim.limit
            && own.held_since > 0.0
            && now - own.held_since >= ROTATION_INTERVAL_MS
            && oldest
        {
            want = 0;
        }
        let has = own.held.max(claim.in_use);
        // Free permits go first to those that have waited longer.
        let ahead = waiting_holders
            .filter(|other| own.waiting_since == 0.0 || other.waiting_since < own.waiting_since)
            .count() as u32;
        let room = claim.limit.saturating_sub(others).saturating_sub(has).saturating_sub(ahead);
        let permits = want.min(has + room);
        let held = permits.max(claim.in_use);
        let is_waiting = permits < claim.wanted.min(claim.limit).min(fair);
        let since = |was: f64| if was > 0.0 { was } else { now };
        self.0.insert(
            claim.holder.clone(),
            Holder {
                held,
                expires_at: now + claim.ttl.as_secs_f64() * 1000.0,
                waiting_since: if is_waiting { since(own.waiting_since) } else { 0.0 },
                held_since: if held > 0 { since(own.held_since) } else { 0.0 },
            },
        );
        ConcurrencyGrant { permits, contended }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn claim(holder: &str, limit: u32, in_use: u32, wanted: u32) -> ConcurrencyClaim {
        ConcurrencyClaim { holder: holder.into(), limit, in_use, wanted, ttl: Duration::from_secs(10) }
    }

    #[test]
    fn the_concurrency_limit_holds_and_every_holder_gets_permits() {
        for (limit, holders) in [(3, 4), (8, 3), (1, 5), (20, 4)] {
            let mut sharing = ConcurrencyAllocator::default();
            let mut using = vec![0; holders];
            let mut may = vec![0; holders];
            let mut worked = vec![0; holders];
            for step in 0..4_000 {
                let now = 1e6 + f64::from(step) * 50.0;
                let who = step as usize % holders;
                // Running requests end, and as many start again as allowed.
                using[who] = if step % 3 == 0 { 0 } else { using[who] };
                may[who] = sharing.claim(now, &claim(&who.to_string(), limit, using[who], 20)).permits;
                using[who] = using[who].max(may[who]);
                worked[who] += may[who];
                assert!(using.iter().sum::<u32>() <= limit, "{using:?} of {limit} at {step}");
            }
            let (least, most) = (worked.iter().min().unwrap(), worked.iter().max().unwrap());
            assert!(least * 4 >= *most, "of {limit} places {worked:?}");
        }
    }
}
