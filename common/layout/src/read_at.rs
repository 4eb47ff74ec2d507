//! Files that are read at any offset.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::verification::file_version_key;

/// A file that can be read at any offset, from several threads at once.
pub trait ReadAt: Send + Sync + Debug {
    /// Returns the size in bytes.
    fn len(&self) -> u64;

    /// Reads bytes from an offset, and returns how many: 0 only at the end, or for an empty buffer.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Whether the file is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a key of the file's version, which any change to its content changes; `None` if there is none.
    fn version(&self) -> io::Result<Option<String>> {
        Ok(None)
    }
}

/// Fills a buffer from an offset. Fails with [`io::ErrorKind::UnexpectedEof`] if the file ends before.
pub(super) fn read_exact_at(source: &dyn ReadAt, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match source.read_at(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                buffer = &mut buffer[length..];
                offset += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a whole file of a known size.
pub(super) fn read_all(source: &dyn ReadAt) -> io::Result<Vec<u8>> {
    let size = usize::try_from(source.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; size];
    read_exact_at(source, &mut bytes, 0)?;
    Ok(bytes)
}

/// A file of a layout's folder.
#[derive(Debug)]
pub(super) struct FolderFile {
    file: File,
    size: u64,
}

impl FolderFile {
    pub(super) fn new(file: File, size: u64) -> FolderFile {
        FolderFile { file, size }
    }
}

impl ReadAt for FolderFile {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn version(&self) -> io::Result<Option<String>> {
        file_version_key(&self.file).map(Some)
    }
}

/// A part of another file.
#[derive(Debug)]
pub(super) struct FileSection {
    source: Arc<dyn ReadAt>,
    start: u64,
    size: u64,
}

impl FileSection {
    pub(super) fn new(source: Arc<dyn ReadAt>, start: u64, size: u64) -> FileSection {
        FileSection { source, start, size }
    }
}

impl ReadAt for FileSection {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.size.saturating_sub(offset);
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.source.read_at(&mut buffer[..wanted], self.start + offset)
    }

    fn version(&self) -> io::Result<Option<String>> {
        Ok(self.source.version()?.map(|version| format!("{version}+{}", self.start)))
    }
}

/// Content in memory.
#[derive(Debug)]
pub(super) struct InlineFile(Bytes);

impl InlineFile {
    pub(super) fn new(bytes: Bytes) -> InlineFile {
        InlineFile(bytes)
    }
}

impl ReadAt for InlineFile {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

/// An archive's file. If its content is changed while it is open, the next read fails with
/// [`io::ErrorKind::ResourceBusy`]. A file that is replaced is read to its end.
#[derive(Debug)]
pub struct OpenedArchiveFile {
    file: File,
    size: u64,
    modified: (i64, i64),
    version: String,
}

impl OpenedArchiveFile {
    /// Opens a file for reading. Fails if it is not a regular file: only that can be read at any offset.
    pub fn open(path: &Path) -> io::Result<OpenedArchiveFile> {
        // A FIFO would block until somebody writes to it.
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
        OpenedArchiveFile::new(File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?))
    }

    /// Reads a file that is open.
    pub(super) fn new(file: File) -> io::Result<OpenedArchiveFile> {
        let data = file.metadata()?;
        if data.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder, not a file"));
        }
        if !data.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let version = file_version_key(&file)?;
        Ok(OpenedArchiveFile { size: data.size(), modified: (data.mtime(), data.mtime_nsec()), version, file })
    }
}

impl ReadAt for OpenedArchiveFile {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let length = self.file.read_at(buffer, offset)?;
        // Not the time of the last change to its inode: a rename, a link or new permissions change that one, too.
        let data = self.file.metadata()?;
        match (data.size(), (data.mtime(), data.mtime_nsec())) == (self.size, self.modified) {
            true => Ok(length),
            false => Err(io::Error::new(io::ErrorKind::ResourceBusy, "the file was changed while it was read")),
        }
    }

    fn version(&self) -> io::Result<Option<String>> {
        Ok(Some(self.version.clone()))
    }
}
