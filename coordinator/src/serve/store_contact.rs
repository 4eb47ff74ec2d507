//! How long the store has responded to this process without a gap. After a gap, leases may have expired whose holders
//! are alive: they could not renew them either, and get time to acquire them again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use imgsync_store::{Store, leader_lease_name};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::batch_view::GLOBAL_LEADER;
use crate::orchestrator::LEADER_LEASE_TTL;

/// Interval between requests to the store.
const CONTACT_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two responses that counts as a gap: a lease that was just due for renewal outlasts it.
const MAX_GAP: Duration = Duration::from_secs(3);

/// Contact of this process with the store.
#[derive(Debug)]
pub(super) struct StoreContact(Mutex<Contact>);

#[derive(Debug)]
struct Contact {
    last_response: Instant,
    /// When the store responded again after the last gap.
    gap_ended: Option<Instant>,
}

impl Default for StoreContact {
    fn default() -> StoreContact {
        StoreContact(Mutex::new(Contact { last_response: Instant::now(), gap_ended: None }))
    }
}

impl StoreContact {
    /// Asks the store regularly. Runs until dropped.
    pub(super) async fn watch(&self, store: &dyn Store) {
        let mut losses = store.write_losses();
        loop {
            let response = store.lease_holder(&leader_lease_name(GLOBAL_LEADER)).await;
            if response.is_ok() {
                // A store that has lost its latest writes may have lost leases.
                self.record_response(Instant::now(), losses.as_mut().is_some_and(has_changed));
            }
            tokio::time::sleep(CONTACT_INTERVAL).await;
        }
    }

    fn record_response(&self, now: Instant, has_lost_writes: bool) {
        let mut contact = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if has_lost_writes || now.duration_since(contact.last_response) > MAX_GAP {
            contact.gap_ended = Some(now);
        }
        contact.last_response = now;
    }

    /// Returns whether a lease that nobody holds is free: its holder is gone, or has released it. After a gap, this is
    /// not certain for the term of a lease.
    pub(super) fn is_steady(&self) -> bool {
        self.is_steady_at(Instant::now())
    }

    fn is_steady_at(&self, now: Instant) -> bool {
        let contact = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now.saturating_duration_since(contact.last_response) <= MAX_GAP
            && contact.gap_ended.is_none_or(|ended| now.saturating_duration_since(ended) >= LEADER_LEASE_TTL)
    }
}

fn has_changed(losses: &mut watch::Receiver<u64>) -> bool {
    let has_changed = losses.has_changed().unwrap_or(false);
    losses.mark_unchanged();
    has_changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_lease_is_not_certain_for_a_while_after_a_gap() {
        let contact = StoreContact::default();
        let mut now = Instant::now();
        let mut respond_for = |time: Duration| {
            let until = now + time;
            while now < until {
                now += CONTACT_INTERVAL;
                contact.record_response(now, false);
            }
            now
        };
        let now = respond_for(Duration::from_secs(3));
        assert!(contact.is_steady_at(now));
        assert!(!contact.is_steady_at(now + MAX_GAP * 2), "the store does not respond");
        let now = now + MAX_GAP * 2;
        contact.record_response(now, false);
        assert!(!contact.is_steady_at(now), "holders may acquire their leases again");
        let now = now + LEADER_LEASE_TTL;
        assert!(!contact.is_steady_at(now), "it does not respond again");
        contact.record_response(now, false);
        let now = now + LEADER_LEASE_TTL;
        contact.record_response(now - CONTACT_INTERVAL, false);
        assert!(!contact.is_steady_at(now), "that was another gap");
        for second in 1..=LEADER_LEASE_TTL.as_secs() {
            contact.record_response(now + Duration::from_secs(second), false);
        }
        let now = now + LEADER_LEASE_TTL;
        assert!(contact.is_steady_at(now));
        contact.record_response(now, true);
        assert!(!contact.is_steady_at(now), "the store may have lost leases");
    }
}
