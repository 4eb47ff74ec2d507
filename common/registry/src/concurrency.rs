//! Concurrency limit for requests to a registry: of this process, or shared by the processes of a cluster.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::resizable_semaphore::{Permit, ResizableSemaphore};
use imgsync_rate_limit::{Account, ConcurrencyClaim, ConcurrencyGrant, RateLimitStore};

/// Claimed permits expire after this time without renewal.
const CLAIM_TTL: Duration = Duration::from_secs(10);
/// Renewal interval.
const CLAIM_RENEW_INTERVAL: Duration = Duration::from_secs(3);
/// Renewal interval while other processes wait for permits.
const CONTENDED_RENEW_INTERVAL: Duration = Duration::from_millis(300);
/// First and longest interval between claims while this process waits for permits.
const CLAIM_RETRY_BACKOFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// Timeout of a call to the shared store.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
/// Permits are claimed in multiples of this.
const CLAIM_STEP: usize = 4;

/// Concurrency limiter of one account at one registry.
#[derive(Debug)]
pub(crate) struct ConcurrencyLimiter {
    limit: usize,
    permits: ResizableSemaphore,
    shared: Option<Arc<SharedConcurrency>>,
}

#[derive(Debug)]
struct SharedConcurrency {
    limit: usize,
    permits: ResizableSemaphore,
    holder: Box<str>,
    /// Whether the sync loop is running.
    is_syncing: Mutex<bool>,
    /// Wakes the sync loop when more permits are needed.
    demand: Notify,
}

impl ConcurrencyLimiter {
    /// Creates a limiter for this process alone, or, with a holder's name, for all processes that share a store.
    pub(crate) fn new(limit: usize, holder: Option<&str>) -> ConcurrencyLimiter {
        let limit = limit.max(1);
        let permits = ResizableSemaphore::new(if holder.is_some() { 0 } else { limit });
        let shared = holder.map(|holder| {
            Arc::new(SharedConcurrency {
                limit,
                permits: permits.clone(),
                holder: holder.into(),
                is_syncing: Mutex::new(false),
                demand: Notify::new(),
            })
        });
        ConcurrencyLimiter { limit, permits, shared }
    }

    /// Acquires a permit, waiting for one.
    pub(crate) async fn acquire(&self, shared: Option<(&Arc<dyn RateLimitStore>, &Account)>) -> Permit {
        if let Some(permit) = self.permits.try_acquire() {
            return permit;
        }
        match (&self.shared, shared) {
            (Some(sharing), Some((store, account))) => sharing.ensure_sync_loop(store, account),
            // The account is not known: use the local limit.
            (Some(_), None) => self.permits.set_limit(self.limit),
            (None, _) => {}
        }
        self.permits.acquire().await
    }

    /// Releases all permits to the store.
    pub(crate) async fn release_all(&self, store: &Arc<dyn RateLimitStore>, account: &Account) {
        if let Some(sharing) = &self.shared {
            sharing.permits.set_limit(0);
            let none = sharing.claim(0, 0);
            let _ = tokio::time::timeout(STORE_TIMEOUT, store.claim_concurrency(account, &none)).await;
        }
    }
}

impl SharedConcurrency {
    /// Starts the sync loop unless it is running, and wakes it.
    fn ensure_sync_loop(self: &Arc<Self>, store: &Arc<dyn RateLimitStore>, account: &Account) {
        let mut keeps = self.is_syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *keeps, true) {
            let (sharing, store, account) = (self.clone(), store.clone(), account.clone());
            tokio::spawn(async move { sharing.sync_loop(&*store, &account).await });
        }
        drop(keeps);
        self.demand.notify_one();
    }

    /// Reports the permits in use and wanted to the store, until there are none.
    async fn sync_loop(&self, store: &dyn RateLimitStore, account: &Account) {
        let mut retry_delay = CLAIM_RETRY_BACKOFF[0];
        loop {
            let (using, wanted) = (self.permits.in_use(), self.permits.take_peak());
            // Round up, so that permits are not claimed one by one.
            let wanted = wanted.next_multiple_of(CLAIM_STEP).min(self.limit);
            let before = using;
            let share =
                match tokio::time::timeout(STORE_TIMEOUT, store.claim_concurrency(account, &self.claim(using, wanted)))
                    .await
                {
                    Ok(Ok(share)) => Some(share),
                    // Without the store the limit stays; a process that has no permit yet uses one.
                    Ok(Err(_)) | Err(_) => {
                        tracing::debug!("the shared concurrency limit of {} is unavailable for now", account.registry);
                        None
                    }
                };
            match share {
                Some(ConcurrencyGrant { permits, .. }) => self.permits.set_limit(permits as usize),
                None if self.permits.in_use() == 0 && wanted > 0 => self.permits.set_limit(1),
                None => {}
            }
            if wanted == 0 {
                let mut keeps = self.is_syncing.lock().unwrap_or_else(PoisonError::into_inner);
                if self.permits.waiters() == 0 && self.permits.in_use() == 0 {
                    *keeps = false;
                    return;
                }
            }
            let waits = self.permits.waiters() > 0;
            let wait = match (waits, share) {
                (true, _) if self.permits.in_use() > before => CLAIM_RETRY_BACKOFF[0],
                (true, _) => retry_delay,
                (false, Some(ConcurrencyGrant { contended: true, .. })) => CONTENDED_RENEW_INTERVAL,
                (false, _) => CLAIM_RENEW_INTERVAL,
            };
            retry_delay = if waits { (retry_delay * 2).min(CLAIM_RETRY_BACKOFF[1]) } else { CLAIM_RETRY_BACKOFF[0] };
            match waits {
                true => tokio::time::sleep(wait).await,
                false => _ = tokio::time::timeout(wait, self.demand.notified()).await,
            }
        }
    }

    fn claim(&self, using: usize, wanted: usize) -> ConcurrencyClaim {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        ConcurrencyClaim {
            holder: self.holder.clone(),
            limit: number(self.limit),
            in_use: number(using),
            wanted: number(wanted),
            ttl: CLAIM_TTL,
        }
    }
}
