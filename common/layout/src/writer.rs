//! Writes blobs to a hidden file in the layout's folder, hashed while written, and renames them once verified.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use super::error::LayoutError;
use super::safe_dir::SafeDir;
use super::verification::file_version_key;
use super::{BLOBS, Layout, LayoutInner, PARTIAL_PREFIX, PARTIAL_SUFFIX, run_blocking};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, Hasher};

/// Smallest unfinished file that is worth resuming, in bytes.
pub(super) const MIN_RESUMABLE_BYTES: u64 = 1 << 20;

/// Bytes after which the kernel is asked to write them to the disk while more are hashed. Otherwise it would begin when the
/// blob is synced.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// A blob being written. Dropped before [`BlobWriter::commit`], it leaves no blob; a large unfinished file stays hidden
/// and is resumed by the next writer of the same blob.
#[derive(Debug)]
pub struct BlobWriter {
    partial: Option<PartialBlob>,
    written: u64,
    operation: String,
}

#[derive(Debug)]
pub(super) struct PartialBlob {
    shared: Arc<LayoutInner>,
    root: Arc<SafeDir>,
    digest: Digest,
    size: u64,
    /// Locked while open.
    file: File,
    name: String,
    hasher: Hasher,
    written: u64,
    /// How much of it the kernel was asked to write to the disk.
    sent_to_disk: u64,
    disposition: PartialDisposition,
}

/// What to do with the hidden file on drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartialDisposition {
    /// Keep it if it is large enough to resume.
    KeepForResume,
    /// Remove it: its content is wrong, or no writer could find it by its name.
    Remove,
    /// Renamed already; another writer may own the hidden name now.
    Committed,
}

impl Layout {
    /// Returns the description of a blob write, for messages.
    pub fn write_operation(&self, digest: &Digest) -> String {
        format!("writing blob {}@{digest}", self.0.label)
    }

    /// Starts writing a blob; `None` if it exists. Resumes an unfinished file of an earlier writer:
    /// [`BlobWriter::offset`] is where to continue.
    pub async fn start_blob(&self, blob: &Descriptor) -> Result<Option<BlobWriter>> {
        self.start_write(blob, true).await
    }

    /// Writes a whole blob, unless it exists. Content that differs from the descriptor fails with [`ErrorKind::Corrupt`]
    /// and leaves nothing behind.
    pub async fn write_blob(&self, blob: &Descriptor, stream: impl Stream<Item = Result<Bytes>>) -> Result<()> {
        let Some(mut writer) = self.start_write(blob, false).await? else { return Ok(()) };
        let mut stream = std::pin::pin!(stream);
        while let Some(chunk) = stream.next().await {
            writer.write(chunk?).await?;
        }
        writer.commit().await
    }

    async fn start_write(&self, blob: &Descriptor, go_on: bool) -> Result<Option<BlobWriter>> {
        let operation = self.write_operation(&blob.digest);
        // A damaged blob is replaced.
        if self.is_intact(blob, &operation).await? {
            return Ok(None);
        }
        let (digest, size) = (blob.digest.clone(), blob.size);
        let part =
            self.run_blocking(&operation, move |shared| PartialBlob::open(shared.clone(), digest, size, go_on)).await?;
        Ok(Some(BlobWriter { written: part.written, partial: Some(part), operation }))
    }
}

impl BlobWriter {
    /// Returns the bytes written so far: the offset of the next one.
    pub fn offset(&self) -> u64 {
        self.written
    }

    /// Writes the next bytes. More bytes than in the descriptor fail with [`ErrorKind::Corrupt`].
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let mut part = self.take_partial()?;
        let part = run_blocking(&self.operation, move || {
            part.write(&bytes)?;
            Ok(part)
        })
        .await?;
        self.written = part.written;
        self.partial = Some(part);
        Ok(())
    }

    /// Finishes the blob: it is synced and verified afterwards. Fewer bytes than in the descriptor fail with
    /// [`ErrorKind::Unreachable`] (the sender stopped early), other content with [`ErrorKind::Corrupt`].
    pub async fn commit(mut self) -> Result<()> {
        let part = self.take_partial()?;
        let (shared, digest) = (part.shared.clone(), part.digest.clone());
        let version = run_blocking(&self.operation, move || part.commit()).await?;
        if let Some(version) = version {
            shared.record_verified(&digest, &version).await;
        }
        Ok(())
    }

    fn take_partial(&mut self) -> Result<PartialBlob> {
        self.partial
            .take()
            .ok_or_else(|| Error::new(ErrorKind::Cancelled, &self.operation, "the write was already abandoned"))
    }
}

impl PartialBlob {
    pub(super) fn open(
        shared: Arc<LayoutInner>,
        digest: Digest,
        size: u64,
        go_on: bool,
    ) -> Result<PartialBlob, LayoutError> {
        let root = shared.folder()?.clone();
        let base = format!("{PARTIAL_PREFIX}{}-{}", digest.algorithm().as_str(), digest.hex());
        let name = format!("{base}{PARTIAL_SUFFIX}");
        let hasher = Hasher::new(digest.algorithm());
        let part = |file, name, disposition| PartialBlob {
            shared: shared.clone(),
            root: root.clone(),
            digest: digest.clone(),
            size,
            file,
            name,
            hasher: hasher.clone(),
            written: 0,
            sent_to_disk: 0,
            disposition,
        };
        loop {
            let file = root.open_or_create_file(&name)?;
            match file.try_lock() {
                // Its former writer may have finished between open and lock.
                Ok(()) if !root.is_same_file(&name, &file)? => {}
                Ok(()) => {
                    let mut part = part(file, name, PartialDisposition::KeepForResume);
                    part.resume_or_truncate(go_on)?;
                    return Ok(part);
                }
                Err(TryLockError::WouldBlock) => break,
                // Without file locks nothing can be shared.
                Err(TryLockError::Error(_)) => {
                    root.remove(&name)?;
                    break;
                }
            }
        }
        // Another writer is active: write to a separate file, so that no writer waits for a slow one.
        loop {
            let name = format!("{base}.{:016x}{PARTIAL_SUFFIX}", rand::random::<u64>());
            let file = root.create_file(&name)?;
            // Whoever removes leftovers may have been faster.
            let is_taken = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
            if !is_taken && root.is_same_file(&name, &file)? {
                return Ok(part(file, name, PartialDisposition::Remove));
            }
        }
    }

    /// Hashes and keeps the existing content, or truncates the file.
    fn resume_or_truncate(&mut self, go_on: bool) -> Result<(), LayoutError> {
        let found = self.file.metadata().map_err(|error| self.write_error(error))?.len();
        if !go_on || found > self.size {
            return self.file.set_len(0).map_err(|error| self.write_error(error));
        }
        let mut chunk = vec![0; 256 << 10];
        loop {
            match self.file.read(&mut chunk).map_err(|error| self.write_error(error))? {
                0 => break,
                length => {
                    self.hasher.update(&chunk[..length]);
                    self.written += length as u64;
                }
            }
        }
        self.sent_to_disk = self.written;
        self.file.seek(SeekFrom::Start(self.written)).map_err(|error| self.write_error(error))?;
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), LayoutError> {
        if bytes.len() as u64 > self.size - self.written {
            self.disposition = PartialDisposition::Remove;
            let detail = format!("more than the {} bytes of its descriptor", self.size);
            return Err(LayoutError::new(ErrorKind::Corrupt, detail));
        }
        self.file.write_all(bytes).map_err(|error| self.write_error(error))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        if self.written - self.sent_to_disk >= WRITEBACK_BYTES {
            start_writeback(&self.file, self.sent_to_disk, self.written - self.sent_to_disk);
            self.sent_to_disk = self.written;
        }
        Ok(())
    }

    /// Renames the file and returns the key of its version, if available.
    pub(super) fn commit(mut self) -> Result<Option<String>, LayoutError> {
        if self.written < self.size {
            let detail = format!("the stream ended after {} of {} bytes", self.written, self.size);
            return Err(LayoutError::new(ErrorKind::Unreachable, detail));
        }
        let found = self.hasher.clone().finish();
        if found != self.digest {
            self.disposition = PartialDisposition::Remove;
            return Err(LayoutError::new(ErrorKind::Corrupt, format!("the content has the digest {found}")));
        }
        self.file.sync_all().map_err(|error| self.write_error(error))?;
        let blobs = self.root.open_or_create_dir(BLOBS)?;
        let folder = blobs.open_or_create_dir(self.digest.algorithm().as_str())?;
        self.root.rename(&self.name, &folder, self.digest.hex())?;
        self.disposition = PartialDisposition::Committed;
        Ok(file_version_key(&self.file).ok())
    }

    /// Marks the file for removal: one that cannot be written only fills the disk.
    fn write_error(&mut self, error: std::io::Error) -> LayoutError {
        self.disposition = PartialDisposition::Remove;
        self.root.io_error(&self.name, "writing", error)
    }
}

/// Asks the kernel to write a part of a file to the disk, without waiting for it. The sync afterwards reports its errors.
#[cfg(target_os = "linux")]
fn start_writeback(file: &File, offset: u64, length: u64) {
    // Content that will not be read soon: dirty pages are written, and clean ones leave the cache. It is advice: errors
    // do not matter.
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(length), rustix::fs::Advice::DontNeed);
}

/// Other systems have no such advice.
#[cfg(not(target_os = "linux"))]
fn start_writeback(_: &File, _: u64, _: u64) {}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        let keep = match self.disposition {
            PartialDisposition::KeepForResume => self.written >= MIN_RESUMABLE_BYTES,
            PartialDisposition::Remove => false,
            PartialDisposition::Committed => true,
        };
        if !keep {
            let _ = self.root.remove(&self.name);
        }
    }
}
