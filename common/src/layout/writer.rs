//! Writes blobs to a hidden file in the layout's folder, hashed while written, and renames them once verified.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use super::hashed::version;
use super::trouble::Trouble;
use super::{BLOBS, HIDDEN_PREFIX, HIDDEN_SUFFIX, Layout, Shared, blocking};
use crate::error::{Class, Error, Result};
use crate::image::{Descriptor, Digest, Hasher};

/// Smallest unfinished file that is worth resuming, in bytes.
pub(super) const WORTH_KEEPING: u64 = 1 << 20;

/// A blob being written. Dropped before [`BlobWriter::commit`], it leaves no blob; a large unfinished file stays hidden
/// and is resumed by the next writer of the same blob.
#[derive(Debug)]
pub struct BlobWriter {
    part: Option<Part>,
    written: u64,
    tried: String,
}

#[derive(Debug)]
pub(super) struct Part {
    shared: Arc<Shared>,
    digest: Digest,
    size: u64,
    /// Locked while open.
    file: File,
    name: String,
    hasher: Hasher,
    written: u64,
    fate: Fate,
}

/// What to do with the hidden file on drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Keep it if it is large enough to resume.
    Continue,
    /// Remove it: its content is wrong, or no writer could find it by its name.
    Remove,
    /// Renamed already; another writer may own the hidden name now.
    Committed,
}

impl Layout {
    /// Returns the description of a blob write, for messages.
    pub fn writing(&self, digest: &Digest) -> String {
        format!("writing blob {}@{digest}", self.0.label)
    }

    /// Starts writing a blob; `None` if it exists. Resumes an unfinished file of an earlier writer:
    /// [`BlobWriter::offset`] is where to continue.
    pub async fn blob_start(&self, blob: &Descriptor) -> Result<Option<BlobWriter>> {
        self.begin(blob, true).await
    }

    /// Writes a whole blob, unless it exists. Content that differs from the descriptor fails with [`Class::Corrupt`]
    /// and leaves nothing behind.
    pub async fn blob_write(&self, blob: &Descriptor, stream: impl Stream<Item = Result<Bytes>>) -> Result<()> {
        let Some(mut writer) = self.begin(blob, false).await? else { return Ok(()) };
        let mut stream = std::pin::pin!(stream);
        while let Some(chunk) = stream.next().await {
            writer.write(chunk?).await?;
        }
        writer.commit().await
    }

    async fn begin(&self, blob: &Descriptor, go_on: bool) -> Result<Option<BlobWriter>> {
        let tried = self.writing(&blob.digest);
        // A damaged blob is replaced.
        if self.is_intact(blob, &tried).await? {
            return Ok(None);
        }
        let (digest, size) = (blob.digest.clone(), blob.size);
        let part = self.blocking(&tried, move |shared| Part::begin(shared.clone(), digest, size, go_on)).await?;
        Ok(Some(BlobWriter { written: part.written, part: Some(part), tried }))
    }
}

impl BlobWriter {
    /// Returns the bytes written so far: the offset of the next one.
    pub fn offset(&self) -> u64 {
        self.written
    }

    /// Writes the next bytes. More bytes than in the descriptor fail with [`Class::Corrupt`].
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let mut part = self.take()?;
        let part = blocking(&self.tried, move || {
            part.write(&bytes)?;
            Ok(part)
        })
        .await?;
        self.written = part.written;
        self.part = Some(part);
        Ok(())
    }

    /// Finishes the blob: it is synced and verified afterwards. Fewer bytes than in the descriptor fail with
    /// [`Class::Unreachable`] (the sender stopped early), other content with [`Class::Corrupt`].
    pub async fn commit(mut self) -> Result<()> {
        let part = self.take()?;
        let (shared, digest) = (part.shared.clone(), part.digest.clone());
        let version = blocking(&self.tried, move || part.commit()).await?;
        if let Some(version) = version {
            shared.learn(&digest, &version).await;
        }
        Ok(())
    }

    fn take(&mut self) -> Result<Part> {
        self.part.take().ok_or_else(|| Error::new(Class::Cancelled, &self.tried, "it was given up before"))
    }
}

impl Part {
    pub(super) fn begin(shared: Arc<Shared>, digest: Digest, size: u64, go_on: bool) -> Result<Part, Trouble> {
        let base = format!("{HIDDEN_PREFIX}{}-{}", digest.algorithm().as_str(), digest.hex());
        let name = format!("{base}{HIDDEN_SUFFIX}");
        let hasher = Hasher::new(digest.algorithm());
        let part = |file, name, fate| Part {
            shared: shared.clone(),
            digest: digest.clone(),
            size,
            file,
            name,
            hasher: hasher.clone(),
            written: 0,
            fate,
        };
        loop {
            let file = shared.root.file_or_new(&name)?;
            match file.try_lock() {
                // Its former writer may have finished between open and lock.
                Ok(()) if !shared.root.holds(&name, &file)? => {}
                Ok(()) => {
                    let mut part = part(file, name, Fate::Continue);
                    part.go_on(go_on)?;
                    return Ok(part);
                }
                Err(TryLockError::WouldBlock) => break,
                // Without file locks nothing can be shared.
                Err(TryLockError::Error(_)) => {
                    shared.root.remove(&name)?;
                    break;
                }
            }
        }
        // Another writer is active: write to a separate file, so that no writer waits for a slow one.
        loop {
            let name = format!("{base}.{:016x}{HIDDEN_SUFFIX}", rand::random::<u64>());
            let file = shared.root.new_file(&name)?;
            let _ = file.try_lock();
            if shared.root.holds(&name, &file)? {
                return Ok(part(file, name, Fate::Remove));
            }
        }
    }

    /// Hashes and keeps the existing content, or truncates the file.
    fn go_on(&mut self, go_on: bool) -> Result<(), Trouble> {
        let found = self.file.metadata().map_err(|error| self.failed(error))?.len();
        if !go_on || found > self.size {
            return self.file.set_len(0).map_err(|error| self.failed(error));
        }
        let mut chunk = vec![0; 256 << 10];
        loop {
            match self.file.read(&mut chunk).map_err(|error| self.failed(error))? {
                0 => break,
                length => {
                    self.hasher.update(&chunk[..length]);
                    self.written += length as u64;
                }
            }
        }
        self.file.seek(SeekFrom::Start(self.written)).map_err(|error| self.failed(error))?;
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        if bytes.len() as u64 > self.size - self.written {
            self.fate = Fate::Remove;
            let detail = format!("it has more than the {} bytes that the manifest gives it", self.size);
            return Err(Trouble::bad(Class::Corrupt, detail));
        }
        self.file.write_all(bytes).map_err(|error| self.failed(error))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Renames the file and returns the key of its version, if available.
    pub(super) fn commit(mut self) -> Result<Option<String>, Trouble> {
        if self.written < self.size {
            let detail = format!("the stream ended after {} of {} bytes", self.written, self.size);
            return Err(Trouble::bad(Class::Unreachable, detail));
        }
        let found = self.hasher.clone().finish();
        if found != self.digest {
            self.fate = Fate::Remove;
            return Err(Trouble::bad(Class::Corrupt, format!("its bytes have the digest {found}")));
        }
        self.file.sync_all().map_err(|error| self.failed(error))?;
        let blobs = self.shared.root.folder_or_new(BLOBS)?;
        let folder = blobs.folder_or_new(self.digest.algorithm().as_str())?;
        self.shared.root.rename(&self.name, &folder, self.digest.hex())?;
        self.fate = Fate::Committed;
        Ok(version(&self.file).ok())
    }

    /// Marks the file for removal: one that cannot be written only fills the disk.
    fn failed(&mut self, error: std::io::Error) -> Trouble {
        self.fate = Fate::Remove;
        self.shared.root.failed(&self.name, "writing", error)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let keep = match self.fate {
            Fate::Continue => self.written >= WORTH_KEEPING,
            Fate::Remove => false,
            Fate::Committed => true,
        };
        if !keep {
            let _ = self.shared.root.remove(&self.name);
        }
    }
}
