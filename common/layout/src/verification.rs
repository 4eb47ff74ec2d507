//! Verifies blob files against their digests. A file from another program or a failing disk can have the right size and
//! wrong content: it is hashed before it is relied on, once for each version of the file.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use super::error::LayoutError;
use super::{Layout, LayoutInner};
use imgsync_oci::error::Result;
use imgsync_oci::{Descriptor, Digest, Hasher};

/// Cache of verified files. Files that are not in it are hashed again.
#[async_trait]
pub trait VerifiedFileCache: Send + Sync {
    /// Whether this version of a blob's file in a layout folder was verified.
    async fn is_verified(&self, folder: &str, digest: &Digest, version: &str) -> bool;

    /// Records this version of a blob's file as verified.
    async fn record_verified(&self, folder: &str, digest: &Digest, version: &str);
}

/// When to hash an existing file before relying on it.
#[derive(Clone, Default)]
pub enum HashPolicy {
    /// Once for each file version, per open layout.
    #[default]
    Once,
    /// Once for each file version, across all users of this cache.
    Shared(Arc<dyn VerifiedFileCache>),
    /// On each use.
    Always,
}

impl fmt::Debug for HashPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HashPolicy::Once => "Once",
            HashPolicy::Shared(_) => "Shared",
            HashPolicy::Always => "Always",
        })
    }
}

/// Returns a key of a file's version: any change to its content changes one of these values.
pub(super) fn file_version_key(file: &File) -> std::io::Result<String> {
    let data = file.metadata()?;
    let (modified, changed) = ((data.mtime(), data.mtime_nsec()), (data.ctime(), data.ctime_nsec()));
    Ok(format!(
        "{}:{}:{}:{}.{:09}:{}.{:09}",
        data.dev(),
        data.ino(),
        data.len(),
        modified.0,
        modified.1,
        changed.0,
        changed.1
    ))
}

/// Returns the canonical path of a folder, so that it has one name.
pub(super) fn canonical_dir_name(dir: &Path) -> String {
    std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned()).to_string_lossy().into_owned()
}

impl Layout {
    /// Whether a blob's file exists with the right size and content.
    pub(super) fn is_intact<'a>(&'a self, blob: &'a Descriptor, operation: &'a str) -> BoxFuture<'a, Result<bool>> {
        Box::pin(self.verify_blob_file(blob, operation))
    }

    async fn verify_blob_file(&self, blob: &Descriptor, operation: &str) -> Result<bool> {
        let (digest, size) = (blob.digest.clone(), blob.size);
        let found = self
            .run_blocking(operation, move |shared| {
                let Some(file) = shared.open_blob_file(&digest)?.filter(|file| file.len() == size) else {
                    return Ok(None);
                };
                let version =
                    file.version().map_err(|error| LayoutError::io(digest.hex().as_ref(), "reading", error))?;
                Ok(Some(version.unwrap_or_default()))
            })
            .await?;
        let Some(version) = found else { return Ok(false) };
        if self.0.is_verified(&blob.digest, &version).await {
            return Ok(true);
        }
        let mut stream = self.open_blob(blob, 0).await?.stream;
        let mut hasher = Hasher::new(blob.digest.algorithm());
        while let Some(chunk) = stream.next_chunk().await? {
            hasher.update(&chunk);
        }
        let is_right = hasher.finish() == blob.digest;
        if is_right {
            self.0.record_verified(&blob.digest, &version).await;
        }
        Ok(is_right)
    }
}

impl LayoutInner {
    async fn is_verified(&self, digest: &Digest, version: &str) -> bool {
        let is_here = || {
            let hashed = self.verified_files.lock().unwrap_or_else(PoisonError::into_inner);
            hashed.get(digest).is_some_and(|known| known == version)
        };
        match &self.hash_policy {
            HashPolicy::Always => false,
            HashPolicy::Once => is_here(),
            HashPolicy::Shared(memory) => is_here() || memory.is_verified(&self.canonical_dir, digest, version).await,
        }
    }

    /// Records a file as verified, after hashing or writing it.
    pub(super) async fn record_verified(&self, digest: &Digest, version: &str) {
        self.verified_files.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone(), version.to_owned());
        if let HashPolicy::Shared(memory) = &self.hash_policy {
            memory.record_verified(&self.canonical_dir, digest, version).await;
        }
    }
}
