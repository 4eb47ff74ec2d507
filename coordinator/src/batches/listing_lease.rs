//! Lease of the process that lists a batch.

use imgsync_common::batch::BatchId;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::store::{LeaseGuard, Leased, listing};

use super::house::House;
use super::lead::{LEADER_TERM, living_leader};

/// Marks a batch as being listed by this process. Two processes that list the same batch are safe: each leaves what the
/// other has added to the plan.
#[derive(Debug)]
pub(super) struct ListingLease {
    house: House,
    batch: BatchId,
    holder: String,
    guard: Option<LeaseGuard>,
}

impl ListingLease {
    /// Acquires the lease of a new batch.
    pub(super) async fn acquire(house: &House, batch: BatchId, holder: &str) -> Result<ListingLease> {
        let mut lease = ListingLease { house: house.clone(), batch, holder: holder.to_owned(), guard: None };
        lease.ask().await?;
        Ok(lease)
    }

    /// Acquires the lease of a batch whose listing was interrupted. Fails if another process is listing it.
    pub(super) async fn take_over(house: &House, batch: BatchId, holder: &str) -> Result<ListingLease> {
        let mut lease = ListingLease { house: house.clone(), batch, holder: holder.to_owned(), guard: None };
        loop {
            lease.ask().await?;
            if lease.guard.is_some() {
                return Ok(lease);
            }
            if let Some(other) = living_leader(house, &listing(batch), holder).await? {
                let other = other.replacen(&format!(" {batch}"), "", 1);
                return Err(Error::new(Class::Invalid, format!("listing batch {batch}"), format!("{other} lists it"))
                    .hint(format!("`imgsync batch watch {batch}` follows it")));
            }
        }
    }

    /// Holds the lease while `work` runs, then releases it.
    pub(super) async fn hold_for<T>(mut self, work: impl Future<Output = T>) -> T {
        let done = tokio::select! {
            done = work => done,
            () = self.keep() => unreachable!("it goes on until dropped"),
        };
        if let Some(guard) = self.guard.take() {
            guard.release().await;
        }
        done
    }

    /// Reacquires the lease whenever it is lost: a restarted store has forgotten it.
    async fn keep(&mut self) {
        loop {
            match &self.guard {
                Some(guard) => guard.lost().cancelled().await,
                None => tokio::time::sleep(LEADER_TERM / 3).await,
            }
            self.guard = None;
            if let Err(error) = self.ask().await {
                tracing::debug!("{error}");
            }
        }
    }

    async fn ask(&mut self) -> Result<()> {
        let (store, name) = (self.house.store.clone(), listing(self.batch));
        self.guard = match LeaseGuard::try_acquire(store, &name, &self.holder, LEADER_TERM).await? {
            Leased::Acquired(guard) => Some(guard),
            Leased::HeldBy(_) => None,
        };
        Ok(())
    }
}
