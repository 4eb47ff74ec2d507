//! Reads blobs. Bytes are not hashed here: the copy hashes them as they stream.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use tokio::task::JoinHandle;

use super::archive::ReadTurn;
use super::error::LayoutError;
use super::read_at::{FolderFile, ReadAt, read_exact_at};
use super::{BLOBS, Layout, LayoutFiles, LayoutInner, run_blocking};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest};

/// Size of a chunk in bytes.
const CHUNK_BYTES: u64 = 128 << 10;

/// Contents of a blob, read in chunks.
#[derive(Debug)]
pub struct LayoutBlobStream {
    file: Arc<dyn ReadAt>,
    offset: u64,
    size: u64,
    operation: String,
    /// The turn to read, in an archive that can only be read forward.
    turn: Option<ReadTurn>,
    /// The next chunk, which is read while the last one is used.
    ahead: Option<JoinHandle<io::Result<Bytes>>>,
}

/// A blob stream and its start offset.
#[derive(Debug)]
pub struct OpenedLayoutBlob {
    /// The stream.
    pub stream: LayoutBlobStream,
    /// Offset of the first byte, as requested.
    pub offset: u64,
}

impl LayoutBlobStream {
    /// Reads the next chunk of at most 128 KiB; `None` at the end. A truncated file fails with
    /// [`ErrorKind::Corrupt`].
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        if self.offset == self.size {
            self.turn = None;
            return Ok(None);
        }
        let read = self.ahead.take().unwrap_or_else(|| self.start_read());
        let chunk = match read.await {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(error)) => return Err(self.read_error(error)),
            Err(error) => return Err(Error::cancelled(&self.operation).with_source(error)),
        };
        self.offset += chunk.len() as u64;
        if self.offset < self.size {
            self.ahead = Some(self.start_read());
        }
        Ok(Some(chunk))
    }

    /// Starts to read the next chunk.
    fn start_read(&self) -> JoinHandle<io::Result<Bytes>> {
        let (file, at) = (self.file.clone(), self.offset);
        let want = usize::try_from((self.size - at).min(CHUNK_BYTES)).unwrap_or_default();
        // Allocated here: the allocator keeps memory for each thread, and there are many for blocking work.
        let mut chunk = vec![0; want];
        tokio::task::spawn_blocking(move || read_exact_at(&*file, &mut chunk, at).map(|()| Bytes::from(chunk)))
    }

    fn read_error(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof if error.get_ref().is_none() => {
                Error::new(ErrorKind::Corrupt, &self.operation, "the file was truncated while it was read")
            }
            io::ErrorKind::UnexpectedEof => Error::new(ErrorKind::Corrupt, &self.operation, error.to_string())
                .with_hint("the program that writes the archive ended early, or the archive is truncated"),
            io::ErrorKind::InvalidData => Error::new(ErrorKind::Corrupt, &self.operation, error.to_string()),
            io::ErrorKind::NotSeekable | io::ErrorKind::TimedOut | io::ErrorKind::ConnectionAborted => {
                LayoutError::reading("", error).into_error(&self.operation)
            }
            _ => Error::new(ErrorKind::Local, &self.operation, error.to_string()).with_source(error),
        }
    }

    /// Converts into a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> + Send {
        futures_util::stream::try_unfold(self, |mut stream| async move {
            Ok(stream.next_chunk().await?.map(|chunk| (chunk, stream)))
        })
    }
}

impl LayoutInner {
    /// Returns what it is, for messages.
    pub(super) fn noun(&self) -> &'static str {
        match &self.files {
            LayoutFiles::Folder(_) => "layout",
            LayoutFiles::Archive(_) => "archive",
        }
    }

    pub(super) fn damaged_hint(&self) -> &'static str {
        match &self.files {
            LayoutFiles::Folder(_) => "the layout is damaged; export it again",
            LayoutFiles::Archive(_) => "the archive is damaged; copy or create it again",
        }
    }

    /// Returns the error of content that was not found, if it may still come out of a pipe.
    pub(super) fn unreached_content(&self) -> Option<LayoutError> {
        match &self.files {
            LayoutFiles::Folder(_) => None,
            LayoutFiles::Archive(archive) => archive.unreached_content(),
        }
    }

    /// Returns the error of content that was not found.
    fn missing_content(&self) -> LayoutError {
        match &self.files {
            LayoutFiles::Folder(_) => LayoutError::new(ErrorKind::NotFound, "not found in the layout")
                .with_hint("the layout is incomplete; export it again"),
            LayoutFiles::Archive(archive) => archive.missing_content(),
        }
    }

    /// Opens a blob's file; `None` if it does not exist.
    pub(super) fn open_blob_file(&self, digest: &Digest) -> Result<Option<Arc<dyn ReadAt>>, LayoutError> {
        let root = match &self.files {
            LayoutFiles::Folder(root) => root,
            LayoutFiles::Archive(archive) => return archive.open_blob(digest),
        };
        let Some(blobs) = root.open_dir(BLOBS)? else { return Ok(None) };
        let Some(folder) = blobs.open_dir(digest.algorithm().as_str())? else { return Ok(None) };
        let Some((file, size)) = folder.open_file(digest.hex())? else { return Ok(None) };
        Ok(Some(Arc::new(FolderFile::new(file, size))))
    }

    /// Opens a blob's file and checks its size.
    pub(super) fn open_blob_file_of_size(&self, digest: &Digest, size: u64) -> Result<Arc<dyn ReadAt>, LayoutError> {
        match self.open_blob_file(digest)? {
            Some(file) if file.len() == size => Ok(file),
            Some(file) => {
                let detail = format!("expected {size} bytes, the file has {}", file.len());
                Err(LayoutError::new(ErrorKind::Corrupt, detail).with_hint(self.damaged_hint()))
            }
            None => Err(self.missing_content()),
        }
    }
}

impl Layout {
    /// Whether blobs can only be read forward, in the order in which they are in the archive.
    pub fn is_sequential(&self) -> bool {
        matches!(&self.0.files, LayoutFiles::Archive(archive) if archive.is_sequential())
    }

    /// Waits for the turn to read a blob of an archive that can only be read forward; `None` for all others. Streams of
    /// the same blob share a turn, so that one that is opened meanwhile does not wait.
    pub async fn take_turn(&self, digest: &Digest) -> Option<ReadTurn> {
        let LayoutFiles::Archive(archive) = &self.0.files else { return None };
        let (turns, offset) = archive.turns_for(digest)?;
        Some(turns.acquire(offset).await)
    }

    /// Returns where a blob is in an archive that can only be read forward: blobs are best read in this order.
    pub fn read_offset(&self, digest: &Digest) -> Option<u64> {
        let LayoutFiles::Archive(archive) = &self.0.files else { return None };
        archive.turns_for(digest).map(|(_, offset)| offset)
    }

    /// Sorts blobs in the order in which an archive is read forward, beginning where it is read now. Blobs that it does
    /// not have come last.
    pub fn sort_for_reading(&self, blobs: &mut [Descriptor]) {
        let LayoutFiles::Archive(archive) = &self.0.files else { return };
        blobs.sort_by_cached_key(|blob| match archive.turns_for(&blob.digest) {
            Some((turns, offset)) => (false, offset < turns.position(), offset),
            None => (true, true, 0),
        });
    }

    /// Returns the description of a blob read, for messages.
    pub fn read_operation(&self, digest: &Digest) -> String {
        format!("reading blob {}@{digest}", self.0.label)
    }

    /// Whether the layout has a blob with the right content. [`Hashing`](super::HashPolicy) says when files are hashed.
    pub async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        let operation = format!("checking blob {}@{}", self.0.label, blob.digest);
        self.is_intact(blob, &operation).await
    }

    /// Whether the layout has a file of the right size for a blob or manifest. Its content is not hashed.
    pub async fn has_file(&self, content: &Descriptor) -> Result<bool> {
        let operation = format!("checking {}@{}", self.0.label, content.digest);
        let (digest, size) = (content.digest.clone(), content.size);
        self.run_blocking(&operation, move |shared| {
            Ok(shared.open_blob_file(&digest)?.is_some_and(|file| file.len() == size))
        })
        .await
    }

    /// Opens a blob at an offset. Fails immediately if the file's size differs from the descriptor's.
    pub async fn open_blob(&self, blob: &Descriptor, offset: u64) -> Result<OpenedLayoutBlob> {
        let operation = self.read_operation(&blob.digest);
        let (digest, size, shared) = (blob.digest.clone(), blob.size, self.0.clone());
        let file = run_blocking(&operation, move || {
            let file = shared.open_blob_file_of_size(&digest, size)?;
            match offset <= size {
                true => Ok(file),
                false => {
                    Err(LayoutError::new(ErrorKind::Corrupt, format!("offset {offset} is past the end ({size} bytes)")))
                }
            }
        })
        .await?;
        let turn = self.take_turn(&blob.digest).await;
        Ok(OpenedLayoutBlob { stream: LayoutBlobStream { file, offset, size, operation, turn, ahead: None }, offset })
    }
}
