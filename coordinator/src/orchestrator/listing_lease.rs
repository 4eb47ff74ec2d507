//! Lease of the process that lists a batch.

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_store::{LeaseGuard, TryAcquireResult, listing_lease_name};

use super::backend::Backend;
use super::leader::{LEADER_LEASE_TTL, find_active_leader};

/// Marks a batch as being listed by this process. Two processes that list the same batch are safe: each leaves what the
/// other has added to the plan.
#[derive(Debug)]
pub(super) struct ListingLease {
    backend: Backend,
    batch: BatchId,
    holder: String,
    guard: Option<LeaseGuard>,
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

    /// Holds the lease while `work` runs, then releases it.
    pub(super) async fn hold_for<T>(mut self, work: impl Future<Output = T>) -> T {
        let done = tokio::select! {
            done = work => done,
            () = self.reacquire_when_lost() => unreachable!("it goes on until dropped"),
        };
        if let Some(guard) = self.guard.take() {
            guard.release().await;
        }
        done
    }

    /// Reacquires the lease whenever it is lost: a restarted store has forgotten it.
    async fn reacquire_when_lost(&mut self) {
        loop {
            match &self.guard {
                Some(guard) => guard.lost().cancelled().await,
                None => tokio::time::sleep(LEADER_LEASE_TTL / 3).await,
            }
            self.guard = None;
            if let Err(error) = self.try_acquire().await {
                tracing::debug!("{error}");
            }
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
