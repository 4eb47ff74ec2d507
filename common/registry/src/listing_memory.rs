//! Memory budget of listings, shared by all listings of a process.
//!
//! A listing holds memory from its first page until its tasks are planned. Once the budget is used up, listings wait;
//! the first in order may exceed it up to the limits of one listing, so that a long listing proceeds while the others
//! wait, and never fails because of others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Memory in bytes that all listings of a process take before they wait for each other.
pub(crate) const MAX_LISTINGS_BYTES: u64 = 48 << 20;
/// Memory of an entry besides its text, in bytes: as it is read, selected and planned.
pub(crate) const ENTRY_BYTES: u64 = 600;

static POOL: LazyLock<Arc<Pool>> = LazyLock::new(|| Arc::new(Pool::new(MAX_LISTINGS_BYTES)));

/// Order of listings: by group, then by name, then by age. Group 0 holds listings without dependents: they are dropped
/// as soon as they are read.
type ShareKey = (u64, Box<str>, u64);

#[derive(Debug)]
struct Pool {
    limit: u64,
    state: Mutex<PoolState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct PoolState {
    used: u64,
    last_id: u64,
    last_group: u64,
    shares: BTreeMap<ShareKey, ShareUsage>,
}

/// Memory of one share.
#[derive(Debug)]
struct ShareUsage {
    bytes: u64,
    /// Whether more pages may come.
    is_growing: bool,
    /// Whether shares with a lower key are consumed first.
    is_ordered: bool,
    /// Whether it exceeded the budget.
    is_over_budget: bool,
}

impl Pool {
    fn new(limit: u64) -> Pool {
        Pool { limit, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolState {
    /// Whether a share may take `more` bytes now. Marks the share if that exceeds the budget.
    fn try_reserve(&mut self, key: &ShareKey, more: u64, limit: u64) -> bool {
        if self.used.saturating_add(more) <= limit {
            return true;
        }
        let is_transient = key.0 == 0;
        let rivals = || self.shares.iter().filter(|(other, _)| (other.0 == 0) == is_transient);
        if rivals().find(|(_, holding)| holding.is_growing).is_none_or(|(first, _)| first != key) {
            return false;
        }
        // Waits for shares that are consumed before this one. Shares consumed later may wait for it: those of later
        // groups always, those of the same group if it is ordered.
        let is_ordered = self.shares.get(key).is_some_and(|own| own.is_ordered);
        let waits_for = |other: &ShareKey| other != key && (other < key || (other.0 == key.0 && !is_ordered));
        if rivals().any(|(other, holding)| holding.is_over_budget && waits_for(other)) {
            return false;
        }
        if let Some(own) = self.shares.get_mut(key) {
            own.is_over_budget = true;
        }
        true
    }
}

/// Listings that are consumed one after another, before those of later groups.
#[derive(Debug, Clone, Copy)]
pub struct ListingGroup {
    group: u64,
    is_ordered: bool,
}

impl ListingGroup {
    /// Creates a group after all existing ones. `is_ordered`: its listings are consumed in the order of their names,
    /// else as they complete.
    pub fn new(is_ordered: bool) -> ListingGroup {
        let mut state = POOL.state();
        state.last_group += 1;
        ListingGroup { group: state.last_group, is_ordered }
    }

    /// Registers one listing of the group.
    pub fn new_share(&self, repository: &str) -> ListingShare {
        // Compare the parts of a path one by one.
        let name = repository.replace('/', "\u{1}").into_boxed_str();
        ListingShare::register(&POOL, self.group, name, self.is_ordered)
    }
}

/// Memory share of one listing. Cheap to clone; the last clone releases it when dropped.
#[derive(Debug, Clone)]
pub struct ListingShare(Arc<ListingShareInner>);

#[derive(Debug)]
struct ListingShareInner {
    pool: Arc<Pool>,
    key: ShareKey,
    reserved_bytes: AtomicU64,
}

/// Listings compare equal whatever memory they hold.
impl PartialEq for ListingShare {
    fn eq(&self, _other: &ListingShare) -> bool {
        true
    }
}

impl ListingShare {
    /// Registers a listing that is dropped as soon as it is read.
    pub(crate) fn transient() -> ListingShare {
        ListingShare::register(&POOL, 0, Box::default(), false)
    }

    fn register(pool: &Arc<Pool>, group: u64, name: Box<str>, is_ordered: bool) -> ListingShare {
        let mut state = pool.state();
        state.last_id += 1;
        let key = (group, name, state.last_id);
        let usage = ShareUsage { bytes: 0, is_growing: true, is_ordered, is_over_budget: false };
        state.shares.insert(key.clone(), usage);
        ListingShare(Arc::new(ListingShareInner { pool: pool.clone(), key, reserved_bytes: AtomicU64::new(0) }))
    }

    /// Returns the bytes held.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.0.reserved_bytes.load(Ordering::Relaxed)
    }

    /// Sets the bytes held, waiting for an increase.
    pub(crate) async fn reserve(&self, bytes: u64) {
        let ListingShareInner { pool, key, reserved_bytes } = &*self.0;
        loop {
            let changed = pool.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = pool.state();
                let before = reserved_bytes.load(Ordering::Relaxed);
                if bytes <= before || state.try_reserve(key, bytes - before, pool.limit) {
                    state.used = state.used.saturating_sub(before).saturating_add(bytes);
                    if let Some(own) = state.shares.get_mut(key) {
                        own.bytes = bytes;
                    }
                    reserved_bytes.store(bytes, Ordering::Relaxed);
                    drop(state);
                    if bytes < before {
                        pool.changed.notify_waiters();
                    }
                    return;
                }
            }
            changed.await;
        }
    }

    /// Marks the listing as complete: another one may be the first to exceed the budget.
    pub fn finish(&self) {
        let ListingShareInner { pool, key, .. } = &*self.0;
        if let Some(own) = pool.state().shares.get_mut(key) {
            own.is_growing = false;
        }
        pool.changed.notify_waiters();
    }
}

impl Drop for ListingShareInner {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        if let Some(own) = state.shares.remove(&self.key) {
            state.used = state.used.saturating_sub(own.bytes);
        }
        drop(state);
        self.pool.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn share(pool: &Arc<Pool>, group: u64, name: &str, is_ordered: bool) -> ListingShare {
        ListingShare::register(pool, group, name.into(), is_ordered)
    }

    async fn waits(share: &ListingShare, bytes: u64) -> bool {
        tokio::time::timeout(Duration::from_millis(20), share.reserve(bytes)).await.is_err()
    }

    #[tokio::test]
    async fn the_first_goes_beyond_the_budget_and_the_others_wait_for_it() {
        let pool = Arc::new(Pool::new(100));
        let (a, b, c) = (share(&pool, 1, "a", false), share(&pool, 1, "b", false), share(&pool, 1, "c", false));
        assert!(!waits(&b, 60).await && !waits(&c, 40).await);
        assert!(waits(&b, 61).await, "a may still grow");
        assert!(!waits(&a, 1000).await, "it is wanted first");
        a.finish();
        assert!(waits(&b, 61).await, "the consumer has yet to take what went beyond");
        drop(a);
        assert!(!waits(&b, 500).await);
        assert!(waits(&c, 41).await);
        drop(b);
        assert!(!waits(&c, 100).await);
        c.reserve(10).await;
        assert_eq!(pool.state().used, 10);
        drop(c);
        let state = pool.state();
        assert_eq!((state.used, state.shares.len()), (0, 0));
    }

    #[tokio::test]
    async fn in_order_no_listing_waits_for_one_that_is_consumed_after_it() {
        let pool = Arc::new(Pool::new(100));
        let b = share(&pool, 1, "b", true);
        assert!(!waits(&b, 1000).await);
        b.finish();
        let (a, c) = (share(&pool, 1, "a", true), share(&pool, 1, "c", true));
        assert!(!waits(&a, 500).await, "b is not consumed before a is");
        assert!(waits(&c, 1).await);
        a.finish();
        assert!(waits(&c, 1).await, "a and b are consumed before c is");
        drop((a, b));
        assert!(!waits(&c, 1).await);
    }

    #[tokio::test]
    async fn no_listing_waits_for_a_later_group_which_is_consumed_after_it() {
        let pool = Arc::new(Pool::new(100));
        let later = share(&pool, 2, "a", false);
        assert!(!waits(&later, 1000).await);
        later.finish();
        let (first, last) = (share(&pool, 1, "b", false), share(&pool, 3, "a", false));
        assert!(!waits(&first, 500).await, "the later group is not consumed before this one is");
        first.finish();
        assert!(waits(&last, 1).await, "both are consumed before it is");
        drop((first, later));
        assert!(!waits(&last, 1).await);
    }

    #[tokio::test]
    async fn a_transient_listing_does_not_wait_for_planned_ones() {
        let pool = Arc::new(Pool::new(100));
        let source = share(&pool, 1, "a", false);
        assert!(!waits(&source, 1000).await);
        let (one, other) = (share(&pool, 0, "", false), share(&pool, 0, "", false));
        assert!(!waits(&one, 50).await);
        assert!(waits(&other, 50).await, "one at a time goes beyond");
        drop(one);
        assert!(!waits(&other, 50).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn concurrent_listings_all_finish_within_the_budget_plus_one_listing() {
        let pool = Arc::new(Pool::new(1000));
        let tasks = (0..50).map(|n: u64| {
            let share = share(&pool, 1, &format!("{n:03}"), false);
            let pool = pool.clone();
            tokio::spawn(async move {
                for step in 1..=20 {
                    share.reserve(step * 50).await;
                    assert!(pool.state().used <= 1000 + 1000, "{}", pool.state().used);
                    tokio::task::yield_now().await;
                }
                share.finish();
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
        }
        assert_eq!(pool.state().used, 0);
    }
}
