//! Reading blobs. Their bytes are not hashed here: whoever copies them does so as they pass.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use super::trouble::Trouble;
use super::{BLOBS, Layout, Shared, blocking};
use crate::error::{Class, Error, Result};
use crate::image::{Descriptor, Digest};

/// Bytes of one chunk.
const CHUNK: u64 = 256 << 10;

/// A blob's bytes as they are read.
#[derive(Debug)]
pub struct BlobStream {
    file: Arc<File>,
    at: u64,
    size: u64,
    tried: String,
}

/// A stream, and where in the blob it begins.
#[derive(Debug)]
pub struct Opened {
    /// The bytes.
    pub stream: BlobStream,
    /// What the first of them is the offset of: what was asked for.
    pub offset: u64,
}

impl BlobStream {
    /// The next bytes, at most 256 KiB; `None` at the end. A file that became shorter is [`Class::Corrupt`].
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

    /// The same as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> + Send {
        futures_util::stream::try_unfold(self, |mut stream| async move {
            Ok(stream.chunk().await?.map(|chunk| (chunk, stream)))
        })
    }
}

impl Shared {
    /// A blob's file and its size in bytes; `None` where it is not there.
    pub(super) fn blob_file(&self, digest: &Digest) -> Result<Option<(File, u64)>, Trouble> {
        let Some(blobs) = self.root.folder(BLOBS)? else { return Ok(None) };
        let Some(folder) = blobs.folder(digest.algorithm().as_str())? else { return Ok(None) };
        folder.file(digest.hex())
    }

    /// A blob's file, which must have the size that is wanted of it.
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
    /// What reading a blob is called in messages.
    pub fn reading(&self, digest: &Digest) -> String {
        format!("reading blob {}@{digest}", self.0.label)
    }

    /// Whether a blob is there with the right bytes: see [`Hashing`](super::Hashing) for when they are read.
    pub async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        let tried = format!("asking for blob {}@{}", self.0.label, blob.digest);
        self.is_intact(blob, &tried).await
    }

    /// Opens a blob at an offset. Fails at once where the file has another size than the descriptor says.
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
