//! A folder handle that opens entries by a single name: never by a path of several components, never through a symbolic
//! link, and only regular files and folders. So nothing in a layout leads out of it, and nothing in it blocks.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::error::LayoutError;

type Result<T> = std::result::Result<T, LayoutError>;

#[derive(Debug)]
pub(super) struct SafeDir {
    fd: OwnedFd,
    path: PathBuf,
}

const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Without NONBLOCK, opening a FIFO for reading would wait for a writer.
const SAFE_OPEN_FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

impl SafeDir {
    /// Opens a folder that the user named; links on the way to it are followed. Returns `None` if it does not exist.
    pub(super) fn open(path: &Path) -> Result<Option<SafeDir>> {
        match rustix::fs::open(path, DIRECTORY_FLAGS, Mode::empty()) {
            Ok(fd) => Ok(Some(SafeDir { fd, path: path.to_owned() })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR) => {
                let found =
                    rustix::fs::stat(path).map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode));
                Err(LayoutError::WrongKind { path: path.to_owned(), found, expected: "a folder" })
            }
            Err(error) => Err(LayoutError::io(path, "opening", error)),
        }
    }

    /// Returns the path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns device and inode of the folder: as a text, for their types depend on the system.
    pub(super) fn identity(&self) -> Option<String> {
        let stat = rustix::fs::fstat(&self.fd).ok()?;
        Some(format!("{}:{}", stat.st_dev, stat.st_ino))
    }

    /// Opens a file for reading and returns its size in bytes; `None` if it does not exist.
    pub(super) fn open_file(&self, name: &str) -> Result<Option<(File, u64)>> {
        if !self.exists_as(name, FileType::RegularFile, "a file")? {
            return Ok(None);
        }
        match rustix::fs::openat(&self.fd, name, OFlags::RDONLY | SAFE_OPEN_FLAGS, Mode::empty()) {
            Ok(fd) => self.check_opened_file(name, fd).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.io_error(name, "opening", error)),
        }
    }

    /// Opens a file for reading and writing, creating it if it does not exist.
    pub(super) fn open_or_create_file(&self, name: &str) -> Result<File> {
        self.exists_as(name, FileType::RegularFile, "a file")?;
        let flags = OFlags::RDWR | OFlags::CREATE | SAFE_OPEN_FLAGS;
        match rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => self.check_opened_file(name, fd).map(|(file, _)| file),
            Err(error) => Err(self.io_error(name, "opening", error)),
        }
    }

    /// Creates a new file for reading and writing.
    pub(super) fn create_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | SAFE_OPEN_FLAGS;
        match rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => Ok(File::from(fd)),
            Err(error) => Err(self.io_error(name, "making", error)),
        }
    }

    /// Opens a subfolder; `None` if it does not exist.
    pub(super) fn open_dir(&self, name: &str) -> Result<Option<SafeDir>> {
        if !self.exists_as(name, FileType::Directory, "a folder")? {
            return Ok(None);
        }
        match rustix::fs::openat(&self.fd, name, DIRECTORY_FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(SafeDir { fd, path: self.path.join(name) })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.io_error(name, "opening", error)),
        }
    }

    /// Opens a subfolder, creating it if it does not exist.
    pub(super) fn open_or_create_dir(&self, name: &str) -> Result<SafeDir> {
        if let Some(folder) = self.open_dir(name)? {
            return Ok(folder);
        }
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.io_error(name, "making", error)),
        }
        self.open_dir(name)?.ok_or_else(|| self.io_error(name, "opening", Errno::NOENT))
    }

    /// Moves a file of this folder into another, replacing an existing one.
    pub(super) fn rename(&self, name: &str, to: &SafeDir, new_name: &str) -> Result<()> {
        rustix::fs::renameat(&self.fd, name, &to.fd, new_name).map_err(|error| to.io_error(new_name, "writing", error))
    }

    /// Removes a file, if it exists.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.io_error(name, "removing", error)),
        }
    }

    /// Whether an open file is still the one with this name.
    pub(super) fn is_same_file(&self, name: &str, file: &File) -> Result<bool> {
        let open = rustix::fs::fstat(file).map_err(|error| self.io_error(name, "reading", error))?;
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok((stat.st_dev, stat.st_ino) == (open.st_dev, open.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.io_error(name, "reading", error)),
        }
    }

    /// Lists the names of all entries that are valid UTF-8.
    pub(super) fn list_names(&self) -> Result<Vec<String>> {
        let entries =
            rustix::fs::Dir::read_from(&self.fd).map_err(|error| LayoutError::io(&self.path, "reading", error))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| LayoutError::io(&self.path, "reading", error))?;
            if let Ok(name) = entry.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Makes renames into this folder durable. Some file systems cannot.
    pub(super) fn sync(&self) -> Result<()> {
        match rustix::fs::fsync(&self.fd) {
            Ok(()) | Err(Errno::INVAL | Errno::NOTSUP | Errno::BADF) => Ok(()),
            Err(error) => Err(LayoutError::io(&self.path, "syncing", error)),
        }
    }

    /// Creates an I/O error for a file of this folder.
    pub(super) fn io_error(&self, name: &str, doing: &'static str, error: impl Into<std::io::Error>) -> LayoutError {
        LayoutError::io(&self.path.join(name), doing, error)
    }

    /// Whether an entry exists; an entry of another file type is an error.
    fn exists_as(&self, name: &str, wanted: FileType, expected: &'static str) -> Result<bool> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                self.check_file_type(name, FileType::from_raw_mode(stat.st_mode), wanted, expected).map(|()| true)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.io_error(name, "reading", error)),
        }
    }

    fn check_file_type(&self, name: &str, found: FileType, wanted: FileType, expected: &'static str) -> Result<()> {
        match found == wanted {
            true => Ok(()),
            false => Err(LayoutError::WrongKind { path: self.path.join(name), found, expected }),
        }
    }

    /// Checks the open file again: it may have been replaced since.
    fn check_opened_file(&self, name: &str, fd: OwnedFd) -> Result<(File, u64)> {
        let stat = rustix::fs::fstat(&fd).map_err(|error| self.io_error(name, "reading", error))?;
        self.check_file_type(name, FileType::from_raw_mode(stat.st_mode), FileType::RegularFile, "a file")?;
        Ok((File::from(fd), stat.st_size as u64))
    }
}
