//! Whether the source holds what its manifests name.
//!
//! A digest is no secret: whoever knows one could name a private layer that another source has brought to the target, and
//! have it mounted into a repository of its own. So a blob that does not come from the source's own bytes is used only
//! where the source has shown that it holds it, by a HEAD at the least, or where anybody can read it.

use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Descriptor, Hasher};

use super::blob::is_large;
use super::walk::Walk;

impl Walk {
    /// Whether it is known, without a request, that the source holds a blob.
    pub(super) async fn is_proved(&self, blob: &Descriptor) -> bool {
        match &self.source_home {
            Some(source) => self.known.is_proved(source, &blob.digest).await,
            None => false,
        }
    }

    /// Asks the source whether it holds a blob.
    pub(super) async fn is_shown(&self, blob: &Descriptor) -> Result<bool> {
        let is_shown = self.source.shows_blob(blob).await?;
        if is_shown {
            self.learn_proof(blob, false);
        }
        Ok(is_shown)
    }

    /// The source has shown that it holds a blob.
    pub(super) fn learn_proof(&self, blob: &Descriptor, is_public: bool) {
        if let Some(source) = &self.source_home {
            let proof = self.known.learn_proof(source, &blob.digest, is_public);
            self.proofs.lock().unwrap_or_else(PoisonError::into_inner).push(proof);
        }
    }

    /// Has others know of what the source has shown: once for an image, as each time costs the store a request.
    pub(super) async fn share_proofs(&self) {
        let proofs = std::mem::take(&mut *self.proofs.lock().unwrap_or_else(PoisonError::into_inner));
        self.known.share_proofs(&proofs).await;
    }

    /// Has the source show that it holds a blob which is at the target already. One that answers no HEAD has to give the
    /// bytes; that it cannot is the error.
    pub(super) async fn prove(&self, blob: &Descriptor) -> Result<()> {
        if self.is_proved(blob).await {
            return Ok(());
        }
        // Others of this process that want the same wait here, and find it proved.
        let _flight = match self.target.repository() {
            Some(target) => Some(tokio::select! {
                flight = self.known.flight(target.registry(), &blob.digest) => flight,
                () = self.context.cancel.cancelled() => return Err(Error::cancelled(self.source.reading(&blob.digest))),
            }),
            None => None,
        };
        if self.is_proved(blob).await || self.is_shown(blob).await? {
            return Ok(());
        }
        match is_large(blob) {
            true => self.read_through(blob).await?,
            false => drop(self.read_small(blob, &AtomicBool::new(false)).await?),
        }
        self.learn_proof(blob, false);
        Ok(())
    }

    /// Reads a blob for nothing but its digest.
    async fn read_through(&self, blob: &Descriptor) -> Result<()> {
        let mut retry = self.source.retry();
        loop {
            match self.read_through_once(blob).await {
                Ok(()) => return Ok(()),
                Err(error) => self.source.pause(&mut retry, error).await?,
            }
        }
    }

    async fn read_through_once(&self, blob: &Descriptor) -> Result<()> {
        let (mut stream, _) = self.source.blob_open(blob, 0, &self.source_tally).await?;
        let mut hasher = Hasher::new(blob.digest.algorithm());
        let mut read = 0;
        while let Some(chunk) = stream.chunk().await? {
            read += chunk.len() as u64;
            if read > blob.size {
                break;
            }
            hasher.update(&chunk);
        }
        let (tried, size) = (self.source.reading(&blob.digest), blob.size);
        if read < size {
            let detail = format!("the stream ended after {read} of {size} bytes");
            return Err(Error::new(Class::Unreachable, tried, detail));
        }
        let found = hasher.finish();
        if read > size || found != blob.digest {
            return Err(Error::new(Class::Corrupt, tried, format!("its bytes have the digest {found}")));
        }
        Ok(())
    }
}
