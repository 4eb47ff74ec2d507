//! Index entries. A media type of a manifest is trusted; any other may denote a blob or a manifest, because indexes
//! list configs, SBOMs, signature bundles and plain files. Such an entry is requested as a blob first: registries fail
//! in various ways when asked for a manifest that is none (distribution: 500).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, Manifest, MediaType, retry};
use imgsync_registry::TrafficCounters;

use super::endpoints::CopySource;
use super::transfer::{ImageTransfer, is_large};

/// Content of an index entry.
pub(crate) enum EntryContent {
    Manifest(Manifest),
    /// A blob, with its verified content if it had to be read.
    Blob(Option<Bytes>),
}

impl CopySource {
    /// Resolves an index entry. An entry of unknown type larger than any manifest is a blob if the source has it as
    /// one. A smaller one is read, because registries with a single content store serve manifests as blobs too.
    pub(crate) async fn resolve_entry(
        &self,
        entry: &Descriptor,
        counters: &Arc<TrafficCounters>,
    ) -> Result<EntryContent> {
        if entry.media_type.names_a_manifest() {
            return self.child_manifest(entry).await.map(EntryContent::Manifest);
        }
        if entry.media_type.is_blob_in_index() {
            return Ok(EntryContent::Blob(None));
        }
        let as_blob = match is_large(entry) {
            true => self.has_blob(entry).await.map(|there| there.then_some(None)),
            false => {
                self.read_small_blob(entry, counters, &AtomicBool::new(false)).await.map(|bytes| Some(Some(bytes)))
            }
        };
        let as_blob = match as_blob {
            Ok(Some(Some(bytes))) => {
                return Ok(match self.parse_as_manifest(entry, &bytes).await? {
                    Some(manifest) => EntryContent::Manifest(manifest),
                    None => EntryContent::Blob(Some(bytes)),
                });
            }
            Ok(Some(None)) => return Ok(EntryContent::Blob(None)),
            Ok(None) => None,
            Err(error) if error.is_cancelled() || retry::is_transient(&error) => return Err(error),
            Err(error) => Some(error).filter(|error| error.kind() != ErrorKind::NotFound),
        };
        match (self.child_manifest(entry).await, as_blob) {
            (Ok(manifest), _) => Ok(EntryContent::Manifest(manifest)),
            (Err(error), _) if error.is_cancelled() => Err(error),
            (Err(_), Some(error)) => Err(error),
            (Err(error), None) => Err(error),
        }
    }

    /// Parses blob content as a manifest, if the source also has it as a manifest.
    async fn parse_as_manifest(&self, entry: &Descriptor, bytes: &Bytes) -> Result<Option<Manifest>> {
        let parsed = Manifest::parse_as(bytes.clone(), entry.digest.clone(), &MediaType::Missing);
        let Ok(manifest) = parsed else { return Ok(None) };
        match self {
            CopySource::Registry(_) => match self.child_manifest(entry).await {
                Ok(manifest) => Ok(Some(manifest)),
                Err(error) if error.is_cancelled() || retry::is_transient(&error) => Err(error),
                Err(_) => Ok(None),
            },
            // A layout does not distinguish manifests from blobs: a manifest with all its content present counts as
            // one.
            CopySource::Layout(repository) => {
                for part in manifest.children().into_iter().chain(manifest.blobs()) {
                    if !repository.layout().has_blob(part).await? {
                        return Ok(None);
                    }
                }
                Ok(Some(manifest))
            }
            CopySource::Bundle(repository) => {
                let reference = imgsync_registry::ManifestRef::Digest(entry.digest.clone());
                Ok(repository.head_manifest(&reference).map(|_| manifest))
            }
        }
    }

    /// Reads and verifies a small blob; retries once on a digest mismatch. Sets `is_public` to whether it was read
    /// without credentials.
    pub(crate) async fn read_small_blob(
        &self,
        blob: &Descriptor,
        counters: &Arc<TrafficCounters>,
        is_public: &AtomicBool,
    ) -> Result<Bytes> {
        let mut retry = self.retry();
        let mut read_again = false;
        loop {
            match self.read_small_blob_once(blob, counters, is_public).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.kind() == ErrorKind::Corrupt && !read_again && self.can_read_again() => {
                    read_again = true;
                    self.exclude_mirrors();
                }
                Err(error) => self.pause(&mut retry, error).await?,
            }
        }
    }

    async fn read_small_blob_once(
        &self,
        blob: &Descriptor,
        counters: &Arc<TrafficCounters>,
        is_public: &AtomicBool,
    ) -> Result<Bytes> {
        let operation = self.describe_read(&blob.digest);
        let size = usize::try_from(blob.size).unwrap_or(usize::MAX);
        let (mut stream, _) = self.blob_open(blob, 0, counters).await?;
        is_public.store(stream.is_public(), Ordering::Relaxed);
        let mut whole = Vec::with_capacity(size);
        while let Some(chunk) = stream.next_chunk().await? {
            if whole.len() + chunk.len() > size {
                let detail = format!("longer than the {size} bytes in the manifest");
                return Err(Error::new(ErrorKind::Corrupt, operation, detail));
            }
            whole.extend_from_slice(&chunk);
        }
        if whole.len() < size {
            let detail = format!("the stream ended after {} of {size} bytes", whole.len());
            return Err(Error::new(ErrorKind::Unreachable, operation, detail));
        }
        let found = Digest::from_bytes(blob.digest.algorithm(), &whole);
        if found != blob.digest {
            return Err(Error::new(ErrorKind::Corrupt, operation, format!("the content has the digest {found}")));
        }
        Ok(whole.into())
    }
}

impl ImageTransfer {
    /// Resolves an index entry to its manifest; `None` for a blob, whose content is kept until it is uploaded.
    pub(super) async fn resolve_entry(&self, entry: &Descriptor) -> Result<Option<Manifest>> {
        if entry.media_type.names_a_manifest() {
            return self.child_manifest(entry).await.map(Some);
        }
        match self.source.resolve_entry(entry, &self.source_traffic).await? {
            EntryContent::Manifest(manifest) => {
                self.record_manifest(&manifest);
                Ok(Some(manifest))
            }
            EntryContent::Blob(bytes) => {
                self.record_listed_blob(entry, bytes);
                Ok(None)
            }
        }
    }
}
