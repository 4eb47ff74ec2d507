//! What an index lists. A type that names a manifest is believed; under any other there may be a blob or a manifest: configs,
//! SBOMs, bundles of signatures and plain files are found in indexes. Such an entry is asked for as a blob first, because
//! registries answer requests for a manifest whose bytes are none with errors of their own (distribution: 500).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Descriptor, Digest, Manifest, MediaType};
use imgsync_common::registry::Tally;
use imgsync_common::retry;

use super::blob::is_large;
use super::ends::Source;
use super::walk::Walk;

/// What an entry of an index is.
pub(crate) enum Listed {
    Manifest(Manifest),
    /// A blob; its verified bytes where they had to be read.
    Blob(Option<Bytes>),
}

impl Source {
    /// Finds out what an entry of an index is. One that is larger than any manifest of an unknown type is a blob if the source
    /// has it as one; a smaller one is read, because registries that keep manifests and blobs in one place give both as blobs.
    pub(crate) async fn listed(&self, entry: &Descriptor, tally: &Arc<Tally>) -> Result<Listed> {
        if entry.media_type.names_a_manifest() {
            return self.child(entry).await.map(Listed::Manifest);
        }
        if entry.media_type.is_blob_in_index() {
            return Ok(Listed::Blob(None));
        }
        let as_blob = match is_large(entry) {
            true => self.has_blob(entry).await.map(|there| there.then_some(None)),
            false => self.blob_small(entry, tally, &AtomicBool::new(false)).await.map(|bytes| Some(Some(bytes))),
        };
        let as_blob = match as_blob {
            Ok(Some(Some(bytes))) => {
                return Ok(match self.manifest_of(entry, &bytes).await? {
                    Some(manifest) => Listed::Manifest(manifest),
                    None => Listed::Blob(Some(bytes)),
                });
            }
            Ok(Some(None)) => return Ok(Listed::Blob(None)),
            Ok(None) => None,
            Err(error) if error.is_cancelled() || retry::is_passing(&error) => return Err(error),
            Err(error) => Some(error).filter(|error| error.class() != Class::NotFound),
        };
        match (self.child(entry).await, as_blob) {
            (Ok(manifest), _) => Ok(Listed::Manifest(manifest)),
            (Err(error), _) if error.is_cancelled() => Err(error),
            (Err(_), Some(error)) => Err(error),
            (Err(error), None) => Err(error),
        }
    }

    /// The manifest that a blob's bytes are, where the source has it as a manifest too.
    async fn manifest_of(&self, entry: &Descriptor, bytes: &Bytes) -> Result<Option<Manifest>> {
        let parsed = Manifest::parse_as(bytes.clone(), entry.digest.clone(), &MediaType::Missing);
        let Ok(manifest) = parsed else { return Ok(None) };
        match self {
            Source::Registry(_) => match self.child(entry).await {
                Ok(manifest) => Ok(Some(manifest)),
                Err(error) if error.is_cancelled() || retry::is_passing(&error) => Err(error),
                Err(_) => Ok(None),
            },
            // A layout does not tell manifests from blobs: one of which nothing is missing is a manifest.
            Source::Layout(repository) => {
                for part in manifest.children().into_iter().chain(manifest.blobs()) {
                    if !repository.layout().has_blob(part).await? {
                        return Ok(None);
                    }
                }
                Ok(Some(manifest))
            }
        }
    }

    /// The whole of a small blob, verified; read once more where its bytes are not what they should be.
    /// `is_public` is set to whether it was given without credentials.
    pub(crate) async fn blob_small(
        &self,
        blob: &Descriptor,
        tally: &Arc<Tally>,
        is_public: &AtomicBool,
    ) -> Result<Bytes> {
        let mut retry = self.retry();
        let mut read_again = false;
        loop {
            match self.blob_small_once(blob, tally, is_public).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.class() == Class::Corrupt && !read_again => {
                    read_again = true;
                    self.distrust();
                }
                Err(error) => self.pause(&mut retry, error).await?,
            }
        }
    }

    async fn blob_small_once(&self, blob: &Descriptor, tally: &Arc<Tally>, is_public: &AtomicBool) -> Result<Bytes> {
        let tried = self.reading(&blob.digest);
        let size = usize::try_from(blob.size).unwrap_or(usize::MAX);
        let (mut stream, _) = self.blob_open(blob, 0, tally).await?;
        is_public.store(stream.is_public(), Ordering::Relaxed);
        let mut whole = Vec::with_capacity(size);
        while let Some(chunk) = stream.chunk().await? {
            if whole.len() + chunk.len() > size {
                let detail = format!("it has more than the {size} bytes that the manifest gives it");
                return Err(Error::new(Class::Corrupt, tried, detail));
            }
            whole.extend_from_slice(&chunk);
        }
        if whole.len() < size {
            let detail = format!("the stream ended after {} of {size} bytes", whole.len());
            return Err(Error::new(Class::Unreachable, tried, detail));
        }
        let found = Digest::of(blob.digest.algorithm(), &whole);
        if found != blob.digest {
            return Err(Error::new(Class::Corrupt, tried, format!("its bytes have the digest {found}")));
        }
        Ok(whole.into())
    }
}

impl Walk {
    /// The manifest that an entry of an index is; `None` where it is a blob, whose bytes are kept for when it is sent.
    pub(super) async fn listed(&self, entry: &Descriptor) -> Result<Option<Manifest>> {
        if entry.media_type.names_a_manifest() {
            return self.child(entry).await.map(Some);
        }
        match self.source.listed(entry, &self.source_tally).await? {
            Listed::Manifest(manifest) => {
                self.note(&manifest);
                Ok(Some(manifest))
            }
            Listed::Blob(bytes) => {
                self.note_blob(entry, bytes);
                Ok(None)
            }
        }
    }
}
