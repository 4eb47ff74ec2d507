//! Proofs that the source has the content its manifests name.
//!
//! A digest is no secret: anyone who knows one could name a private layer, copied to the target from another source,
//! and have it mounted into their own repository. So a blob that is not copied from the source's own bytes is used only
//! if the source has proved that it has it (at least by a HEAD), or if the blob is public.

use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Hasher};

use super::transfer::{ImageTransfer, is_large};

impl ImageTransfer {
    /// Whether a proof for a blob is already recorded.
    pub(super) async fn is_proved(&self, blob: &Descriptor) -> bool {
        match &self.source_locator {
            Some(source) => self.target_cache.is_proved(source, &blob.digest).await,
            None => false,
        }
    }

    /// Asks the source whether it has a blob.
    pub(super) async fn prove_by_request(&self, blob: &Descriptor) -> Result<bool> {
        let is_shown = self.source.proves_blob(blob).await?;
        if is_shown {
            self.record_proof(blob, false);
        }
        Ok(is_shown)
    }

    /// Records that the source has proved a blob.
    pub(super) fn record_proof(&self, blob: &Descriptor, is_public: bool) {
        if let Some(source) = &self.source_locator {
            let proof = self.target_cache.record_proof(source, &blob.digest, is_public);
            self.proofs.lock().unwrap_or_else(PoisonError::into_inner).push(proof);
        }
    }

    /// Shares the recorded proofs, and which small blobs are at the target, with other processes: once per image,
    /// because each call is a store request.
    pub(super) async fn share_learned(&self) {
        let proofs = std::mem::take(&mut *self.proofs.lock().unwrap_or_else(PoisonError::into_inner));
        let blobs = std::mem::take(&mut *self.unshared_blobs.lock().unwrap_or_else(PoisonError::into_inner));
        let share_blobs = async {
            if let Some(target) = self.target.repository() {
                self.target_cache.share_blobs(target.registry(), target.name(), &blobs).await;
            }
        };
        tokio::join!(self.target_cache.share_proofs(&proofs), share_blobs);
    }

    /// Requires the source to prove that it has a blob which is already at the target. If it does not answer HEAD, the
    /// blob is read; a failed read is the error.
    pub(super) async fn prove(&self, blob: &Descriptor) -> Result<()> {
        if self.is_proved(blob).await {
            return Ok(());
        }
        // Concurrent copies of the same blob wait here, then find it proved.
        let _single_flight = match self.target.repository() {
            Some(target) => Some(tokio::select! {
                flight = self.target_cache.single_flight(target.registry(), &blob.digest) => flight,
                () = self.context.cancel.cancelled() => return Err(Error::cancelled(self.source.describe_read(&blob.digest))),
            }),
            None => None,
        };
        if self.is_proved(blob).await || self.prove_by_request(blob).await? {
            return Ok(());
        }
        match is_large(blob) {
            true => self.verify_by_reading(blob).await?,
            false => drop(self.read_small(blob, &AtomicBool::new(false)).await?),
        }
        self.record_proof(blob, false);
        Ok(())
    }

    /// Reads a blob only to verify its digest.
    async fn verify_by_reading(&self, blob: &Descriptor) -> Result<()> {
        let mut retry = self.source.retry();
        loop {
            match self.verify_by_reading_once(blob).await {
                Ok(()) => return Ok(()),
                Err(error) => self.source.pause(&mut retry, error).await?,
            }
        }
    }

    async fn verify_by_reading_once(&self, blob: &Descriptor) -> Result<()> {
        let (mut stream, _) = self.source.blob_open(blob, 0, &self.source_traffic).await?;
        let mut hasher = Hasher::new(blob.digest.algorithm());
        let mut read = 0;
        while let Some(chunk) = stream.next_chunk().await? {
            read += chunk.len() as u64;
            if read > blob.size {
                break;
            }
            hasher.update(&chunk);
        }
        let (operation, size) = (self.source.describe_read(&blob.digest), blob.size);
        if read < size {
            let detail = format!("the stream ended after {read} of {size} bytes");
            return Err(Error::new(ErrorKind::Unreachable, operation, detail));
        }
        let found = hasher.finish();
        if read > size || found != blob.digest {
            return Err(Error::new(ErrorKind::Corrupt, operation, format!("the content has the digest {found}")));
        }
        Ok(())
    }
}
