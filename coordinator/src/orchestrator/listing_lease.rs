//! Lease of the process that lists a batch.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_store::{LeaseGuard, TryAcquireResult, listing_lease_name};

use super::backend::Backend;
use super::leader::{
    ACQUIRE_TIMEOUT, LEADER_LEASE_TTL, LEADER_RETRY_INTERVAL, find_active_leader, try_acquire_promptly,
};

/// Interval between looks whether the process that has taken over a listing is gone.
const LEFT_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Marks a batch as being listed by this process. Two processes that list the same batch are safe: each leaves what the
/// other has added to the plan. But only one does, because listings cost requests.
#[derive(Debug)]
pub(super) struct ListingLease {
    backend: Backend,
    batch: BatchId,
    holder: String,
    guard: Option<LeaseGuard>,
}

/// Result of trying to acquire the lease again.
enum Reacquired {
    /// Acquired, or not decided: the store does not respond.
    Continue,
    /// Another process lists the batch, or has completed its plan. Says which.
    Superseded(String),
}

impl ListingLease {
    /// Acquires the lease of a new batch.
    pub(super) async fn acquire(backend: &Backend, batch: BatchId, holder: &str) -> Result<ListingLease> {
        let mut lease = ListingLease { backend: backend.clone(), batch, holder: holder.to_owned(), guard: None };
        lease.try_acquire().await?;
        Ok(lease)
    }

    /// Acquires the lease of a batch whose listing was interrupted. Fails if another process is listing it.
    pub(super) async fn take_over(backend: &Backend, batch: BatchId, holder: &str) -> Result<ListingLease> {
        let mut lease = ListingLease { backend: backend.clone(), batch, holder: holder.to_owned(), guard: None };
        loop {
            lease.try_acquire().await?;
            if lease.guard.is_some() {
                return Ok(lease);
            }
            if let Some(other) = find_active_leader(backend, &listing_lease_name(batch), holder).await? {
                let other = other.replacen(&format!(" {batch}"), "", 1);
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("listing batch {batch}"),
                    format!("{other} is listing it"),
                )
                .with_hint(format!("`imgsync batch watch {batch}` follows it")));
            }
        }
    }

    /// Returns the holder name of this process.
    pub(super) fn holder(&self) -> &str {
        &self.holder
    }

    /// Waits until nobody lists the batch although its plan is incomplete, and acquires the lease.
    pub(super) async fn acquire_when_left(backend: &Backend, batch: BatchId, holder: &str) -> Result<ListingLease> {
        loop {
            tokio::time::sleep(LEFT_POLL_INTERVAL).await;
            let found = backend.store.batch(batch).await?;
            if found.is_some_and(|batch| batch.plan_completed_at.is_none() && batch.ended_at.is_none()) {
                let lease = ListingLease::acquire(backend, batch, holder).await?;
                if lease.guard.is_some() {
                    return Ok(lease);
                }
            }
        }
    }

    /// Holds the lease while `work` runs, then releases it. Returns an error, and drops `work`, if another process has
    /// taken over the listing, which it does when this one was suspended. `is_listed` says that this process has
    /// completed the plan, and only prunes.
    ///
    /// A lost lease is acquired again before `work` goes on. While the store does not respond, `work` does go on, because
    /// it may be what the store's connection waits for; nothing of it takes effect then.
    pub(super) async fn hold_for<T>(
        mut self,
        work: impl Future<Output = T>,
        is_listed: Arc<AtomicBool>,
    ) -> std::result::Result<T, String> {
        let mut work = pin!(work);
        let done = loop {
            if let Some(guard) = &self.guard
                && let Some(done) = guard.run(work.as_mut()).await
            {
                break Ok(done);
            }
            self.guard = None;
            match self.reacquire(&is_listed).await {
                Reacquired::Superseded(by) => break Err(by),
                Reacquired::Continue if self.guard.is_some() => {}
                Reacquired::Continue => tokio::select! {
                    done = work.as_mut() => break Ok(done),
                    () = tokio::time::sleep(LEADER_RETRY_INTERVAL) => {}
                },
            }
        };
        if let Some(guard) = self.guard.take() {
            guard.release().await;
        }
        done
    }

    /// Tries to acquire the lost lease: a restarted store has forgotten it, or this process was suspended.
    async fn reacquire(&mut self, is_listed: &AtomicBool) -> Reacquired {
        let name = listing_lease_name(self.batch);
        match try_acquire_promptly(&self.backend, &name, &self.holder).await {
            Ok(TryAcquireResult::Acquired(guard)) => self.guard = Some(guard),
            Ok(TryAcquireResult::HeldBy(holder)) => {
                let holder = holder.replacen(&format!(" {}", self.batch), "", 1);
                return Reacquired::Superseded(format!("{holder} lists it"));
            }
            Err(error) => {
                tracing::debug!("{error}");
                return Reacquired::Continue;
            }
        }
        if is_listed.load(Ordering::Acquire) {
            return Reacquired::Continue;
        }
        // Another process may have listed the batch to its end meanwhile.
        let batch = tokio::time::timeout(ACQUIRE_TIMEOUT, self.backend.store.batch(self.batch)).await;
        match batch {
            Ok(Ok(Some(batch))) if batch.plan_completed_at.is_some() || batch.ended_at.is_some() => {
                Reacquired::Superseded("its plan is complete".to_owned())
            }
            _ => Reacquired::Continue,
        }
    }

    async fn try_acquire(&mut self) -> Result<()> {
        let (store, name) = (self.backend.store.clone(), listing_lease_name(self.batch));
        self.guard = match LeaseGuard::try_acquire(store, &name, &self.holder, LEADER_LEASE_TTL).await? {
            TryAcquireResult::Acquired(guard) => Some(guard),
            TryAcquireResult::HeldBy(_) => None,
        };
        Ok(())
    }
}
