//! Reads blobs. Bytes are not hashed here: the copy hashes them as they stream.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use super::trouble::Trouble;
use super::{BLOBS, Layout, Shared, blocking};
use crate::error::{Class, Error, Result};
use crate::image::{Descriptor, Digest};

/// Size of a chunk in bytes.
const CHUNK: u64 = 256 << 10;

/// Contents of a blob, read in chunks.
#[derive(Debug)]
pub struct BlobStream {
    file: Arc<File>,
    at: u64,
    size: u64,
    tried: String,
}

/// A blob stream and its start offset.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub stream: BlobStream,
    /// Offset of the first byte, as requested.
    pub offset: u64,
}

impl BlobStream {
    /// Reads the next chunk of at most 256 KiB; `None` at the end. A file that became shorter fails with
    /// [`Class::Corrupt`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        if self.at == self.size {
            return Ok(None);
        }
        let (file, at) = (self.file.clone(), self.at);
        let want = usize::try_from((self.size - at).min(CHUNK)).unwrap_or_default();
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; want];
            file.read_exact_at(&mut chunk, at).map(|()| Bytes::from(chunk))
        });
        let chunk = match read.await {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Error::new(Class::Corrupt, &self.tried, "the file became shorter while it was read"));
            }
            Ok(Err(error)) => return Err(Error::new(Class::Local, &self.tried, error.to_string()).because(error)),
            Err(error) => return Err(Error::cancelled(&self.tried).because(error)),
        };
        self.at += chunk.len() as u64;
        Ok(Some(chunk))
    }

    /// Converts into a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> + Send {
        futures_util::stream::try_unfold(self, |mut stream| async move {
            Ok(stream.chunk().await?.map(|chunk| (chunk, stream)))
        })
    }
}

impl Shared {
    /// Opens a blob's file and returns its size in bytes; `None` if it does not exist.
    pub(super) fn blob_file(&self, digest: &Digest) -> Result<Option<(File, u64)>, Trouble> {
        let Some(blobs) = self.root.folder(BLOBS)? else { return Ok(None) };
        let Some(folder) = blobs.folder(digest.algorithm().as_str())? else { return Ok(None) };
        folder.file(digest.hex())
    }

    /// Opens a blob's file and checks its size.
    pub(super) fn sized_blob_file(&self, digest: &Digest, size: u64) -> Result<File, Trouble> {
        match self.blob_file(digest)? {
            Some((file, found)) if found == size => Ok(file),
            Some((_, found)) => {
                let detail = format!("it should have {size} bytes, the file has {found}");
                Err(Trouble::bad(Class::Corrupt, detail).hint("the layout is damaged; make it again"))
            }
            None => Err(Trouble::bad(Class::NotFound, "the layout does not hold it")
                .hint("the layout is not complete; make it again")),
        }
    }
}

impl Layout {
    /// Returns the description of a blob read, for messages.
    pub fn reading(&self, digest: &Digest) -> String {
        format!("reading blob {}@{digest}", self.0.label)
    }

    /// Whether the layout has a blob with the right content. [`Hashing`](super::Hashing) says when files are hashed.
    pub async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        let tried = format!("asking for blob {}@{}", self.0.label, blob.digest);
        self.is_intact(blob, &tried).await
    }

    /// Opens a blob at an offset. Fails immediately if the file's size differs from the descriptor's.
    pub async fn blob_open(&self, blob: &Descriptor, offset: u64) -> Result<Opened> {
        let tried = self.reading(&blob.digest);
        let (digest, size, shared) = (blob.digest.clone(), blob.size, self.0.clone());
        let file = blocking(&tried, move || {
            let file = shared.sized_blob_file(&digest, size)?;
            match offset <= size {
                true => Ok(file),
                false => Err(Trouble::bad(Class::Corrupt, format!("it ends before byte {offset}, after {size} bytes"))),
            }
        })
        .await?;
        Ok(Opened { stream: BlobStream { file: Arc::new(file), at: offset, size, tried }, offset })
    }
}
