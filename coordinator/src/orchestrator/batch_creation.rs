//! Creation of a batch.

use std::time::Duration;

use imgsync_model::batch::{BatchId, BatchOptions};
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_store::{LockUse, NewBatch, RunLock};
use tokio_util::sync::CancellationToken;

use super::admission::StartPermit;
use super::backend::Backend;
use super::listing_lease::ListingLease;

/// Interval between attempts to acquire the run lock.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A batch that was created and has to be listed.
#[derive(Debug)]
pub struct CreatedBatch {
    /// Batch id.
    pub id: BatchId,
    pub(super) options: Option<BatchOptions>,
    pub(super) listing_lease: Option<ListingLease>,
    /// Run lock of an embedded store.
    pub lock: Option<RunLock>,
}

/// Creates batches for one process.
pub(super) struct BatchCreator<'a> {
    pub(super) backend: &'a Backend,
    /// Returns the holder name of this process in leases of a batch.
    pub(super) holder_name: &'a (dyn Fn(BatchId) -> String + Sync),
    pub(super) cancel: &'a CancellationToken,
}

impl BatchCreator<'_> {
    /// Creates a batch. This process holds its listing lease from before it is in the store.
    pub(super) async fn create(
        &self,
        permit: &mut StartPermit,
        id: BatchId,
        (rules, options): (Digest, BatchOptions),
    ) -> Result<CreatedBatch> {
        let (backend, holder) = (self.backend, (self.holder_name)(id));
        let batch =
            NewBatch { id, rules, options: options.encode(), supersedes: permit.supersedes, fence: permit.fence() };
        let listing = if permit.awaits_lock {
            // Creating the batch cancels the superseded one, whose process then ends and releases the lock.
            backend.store.create(batch).await?;
            permit.release().await;
            let lock = tokio::select! {
                lock = self.wait_for_lock() => lock,
                () = self.cancel.cancelled() => Err(Error::cancelled(format!("starting batch {id}"))),
            };
            if lock.is_err() {
                backend.store.cancel(id).await?;
            }
            permit.lock = lock?;
            ListingLease::acquire(backend, id, &holder).await?
        } else {
            let listing = ListingLease::acquire(backend, id, &holder).await?;
            backend.store.create(batch).await?;
            listing
        };
        Ok(CreatedBatch { id, options: Some(options), listing_lease: Some(listing), lock: permit.lock.take() })
    }

    async fn wait_for_lock(&self) -> Result<Option<RunLock>> {
        loop {
            if let Ok(lock) = self.backend.try_lock(LockUse::Run).await? {
                return Ok(lock);
            }
            tokio::time::sleep(LOCK_POLL_INTERVAL).await;
        }
    }
}

/// Returns the error of a batch that has vanished from the store.
pub(super) fn batch_lost(id: BatchId) -> Error {
    let detail = "the store no longer has it: it was emptied, or has lost its latest writes, as after a failover";
    Error::new(ErrorKind::NotFound, format!("watching batch {id}"), detail)
        .with_hint("run the rules again: images at the target are not copied again")
}
