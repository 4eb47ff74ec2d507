//! An archive in a file: written to a hidden file beside it, which replaces it once it is whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use imgsync_layout::{PipeTimeout, lock_file};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::format_duration;
use imgsync_registry::Context;
use imgsync_registry::event::Event;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::partial::verified_length;
use super::plan::ArchivePlan;
use super::sink::{ArchiveSink, Compression, SinkOutput, ThreadSink, write_error};

/// How often the hidden file is opened, if others replace it meanwhile.
const MAX_OPENS: usize = 100;
/// How often a FIFO without a reader is opened.
const READER_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Suffix of the hidden file.
const PARTIAL_SUFFIX: &str = ".imgsync-partial";

/// A file that an archive is written to. Until [`ArchiveOutput::commit`], an existing file stays as it is; dropped before,
/// it leaves the hidden file, which the next writer of the same plan resumes. A pipe or device is written to directly.
#[derive(Debug)]
pub struct ArchiveOutput {
    sink: ThreadSink,
    /// The hidden file and its final path; none for a pipe.
    renamed: Option<(PathBuf, PathBuf)>,
    operation: String,
    resume_from: u64,
}

impl ArchiveOutput {
    /// Opens the hidden file of a plan, waiting for another process that writes it. What it has of the plan, as left by
    /// a killed process, is verified and kept. Fails if the disk has too little space for the rest, or if no program opens a
    /// FIFO for reading within `reader_timeout`.
    pub async fn open(
        path: &Path,
        plan: &ArchivePlan,
        compression: Compression,
        reader_timeout: PipeTimeout,
        context: &Context,
    ) -> Result<ArchiveOutput> {
        let operation = format!("writing {}", path.display());
        // The target of a link is replaced, not the link.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if let Ok(found) = std::fs::metadata(&path)
            && !found.is_file()
            && !found.is_dir()
        {
            let reader_timeout = found.file_type().is_fifo().then_some(reader_timeout);
            let file = open_special(&path, reader_timeout, &operation, context).await?;
            return Ok(ArchiveOutput::pipe(file, compression, operation));
        }
        let partial = partial_path(&path, &operation)?;
        let mut file = open_locked(&partial, &operation, context).await?;
        let local = |error: io::Error| write_error(&operation, error);
        let resume_from = match compression {
            Compression::None => {
                let (checked_plan, cancel) = (plan.clone(), context.cancel.clone());
                let verify = tokio::task::spawn_blocking(move || {
                    file.rewind()?;
                    let verified = verified_length(&mut file, &checked_plan, 0, &cancel);
                    verified.map(|verified| (file, verified))
                });
                let verified = verify.await.map_err(|error| local(io::Error::other(error)))?;
                if context.cancel.is_cancelled() {
                    return Err(Error::cancelled(&operation));
                }
                let (verified_file, length) = verified.map_err(local)?;
                file = verified_file;
                length
            }
            Compression::Gzip => 0,
        };
        file.set_len(resume_from).map_err(local)?;
        file.seek(SeekFrom::Start(resume_from)).map_err(local)?;
        if compression == Compression::None {
            check_free_space(&file, plan.total_size() - resume_from, &path, &operation)?;
        }
        if resume_from > 0 {
            let (known, total) = (ByteSize(resume_from), ByteSize(plan.total_size()));
            let message = format!("resuming {}: {known} of {total} are there", path.display());
            context.events.emit(Event::Notice { message: imgsync_oci::sanitize::sanitize(&message).into_owned() });
        }
        let sink = match compression {
            Compression::None => {
                let operation = operation.clone();
                ThreadSink::new(Box::new(PlainFile { file, operation: operation.clone() }), operation)
            }
            Compression::Gzip => ThreadSink::gzip(file, operation.clone()),
        };
        Ok(ArchiveOutput { sink, renamed: Some((partial, path)), operation, resume_from })
    }

    /// Removes the hidden file of an archive that is not written after all, unless another process writes it.
    pub fn discard_unfinished(path: &Path) {
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if let Ok(partial) = partial_path(&path, "discarding an archive")
            && let Ok(file) = File::open(&partial)
            && file.try_lock().is_ok()
            && is_same_file(&file, &partial)
        {
            // What stays is removed or resumed by the next writer.
            let _ = std::fs::remove_file(&partial);
        }
    }

    /// Writes to a pipe or device, such as stdout.
    pub fn pipe(file: File, compression: Compression, operation: impl Into<String>) -> ArchiveOutput {
        let operation = operation.into();
        let sink = match compression {
            Compression::None => ThreadSink::pipe(file, operation.clone()),
            Compression::Gzip => ThreadSink::gzip(file, operation.clone()),
        };
        ArchiveOutput { sink, renamed: None, operation, resume_from: 0 }
    }

    /// Returns the number of bytes of the plan that are in the file already.
    pub fn resume_from(&self) -> u64 {
        self.resume_from
    }

    /// Syncs the file, and replaces an existing one.
    pub async fn commit(self) -> Result<()> {
        let file = self.sink.finish().await?;
        let (Some((partial, path)), Some(file)) = (self.renamed, file) else { return Ok(()) };
        let rename = tokio::task::spawn_blocking(move || {
            file.sync_all()?;
            std::fs::rename(&partial, &path)?;
            // Without the lock, a waiting writer would write into the new archive.
            drop(file);
            sync_folder(&path)
        });
        let renamed = rename.await.map_err(io::Error::other).and_then(|renamed| renamed);
        renamed.map_err(|error| write_error(&self.operation, error))
    }
}

#[async_trait]
impl ArchiveSink for ArchiveOutput {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.sink.write(bytes).await
    }

    async fn rewind(&mut self, offset: u64) -> Result<bool> {
        self.sink.rewind(offset).await
    }
}

/// A file that can go back.
struct PlainFile {
    file: File,
    operation: String,
}

impl SinkOutput for PlainFile {
    type Output = Option<File>;

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| write_error(&self.operation, error))
    }

    fn rewind(&mut self, offset: u64) -> Result<bool> {
        let rewound = self.file.set_len(offset).and_then(|()| self.file.seek(SeekFrom::Start(offset)));
        rewound.map(|_| true).map_err(|error| write_error(&self.operation, error))
    }

    fn finish(self: Box<Self>) -> Result<Option<File>> {
        Ok(Some(self.file))
    }
}

/// Opens a pipe or device for writing. A FIFO, which has a timeout, waits for its reader until then, or until that is
/// cancelled.
async fn open_special(
    path: &Path,
    reader_timeout: Option<PipeTimeout>,
    operation: &str,
    context: &Context,
) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    let (began, mut is_waiting) = (Instant::now(), false);
    loop {
        let opened = rustix::fs::open(path, flags | OFlags::NONBLOCK, Mode::empty());
        match opened.and_then(|fd| rustix::fs::fcntl_setfl(&fd, OFlags::WRONLY).map(|()| fd)) {
            Ok(fd) => return Ok(File::from(fd)),
            Err(error) => match reader_timeout.filter(|_| error == Errno::NXIO) {
                None => return Err(write_error(operation, error.into())),
                Some(timeout) if began.elapsed() >= timeout.limit => return Err(no_reader(timeout, operation)),
                Some(_) => {}
            },
        }
        if !std::mem::replace(&mut is_waiting, true) {
            let message = format!("waiting for a program that reads {}", path.display());
            context.events.emit(Event::Notice { message: imgsync_oci::sanitize::sanitize(&message).into_owned() });
        }
        tokio::select! {
            () = tokio::time::sleep(READER_POLL_INTERVAL) => {}
            () = context.cancel.cancelled() => return Err(Error::cancelled(operation)),
        }
    }
}

fn no_reader(PipeTimeout { limit, option }: PipeTimeout, operation: &str) -> Error {
    let option = option.map(|option| format!(" ({option})")).unwrap_or_default();
    let detail = format!("no program opened the FIFO for reading within {}{option}", format_duration(limit));
    Error::new(ErrorKind::TimedOut, operation, detail).with_hint("start the program that reads it, and run this again")
}

/// Returns the path of the hidden file beside an archive.
fn partial_path(path: &Path, operation: &str) -> Result<PathBuf> {
    let invalid = |detail: &str| Error::new(ErrorKind::Invalid, operation, detail);
    if path.is_dir() {
        return Err(invalid("it is a folder").with_hint("name a file; for a folder write oci:DIR"));
    }
    let name = path.file_name().ok_or_else(|| invalid("it names no file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(PARTIAL_SUFFIX);
    Ok(path.with_file_name(hidden))
}

/// Opens or creates the hidden file, and locks it. A link in its place is not followed.
async fn open_locked(partial: &Path, operation: &str, context: &Context) -> Result<File> {
    let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    for _ in 0..MAX_OPENS {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(no_follow);
        let file = options.open(partial).map_err(|error| {
            let missing = error.kind() == io::ErrorKind::NotFound;
            let is_link = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
            let error = write_error(operation, error);
            match () {
                () if missing => error.with_hint("make the folder first"),
                () if is_link => error.with_hint(format!("{} is a link: remove it", partial.display())),
                () => error,
            }
        })?;
        let file = lock_file(file, partial, operation, context).await?;
        // The former writer may have renamed it between open and lock.
        if is_same_file(&file, partial) {
            return Ok(file);
        }
    }
    let detail = format!("{} is replaced again and again", partial.display());
    Err(Error::new(ErrorKind::Local, operation, detail))
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::symlink_metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Fails if the disk has too little space for the rest of an archive.
fn check_free_space(file: &File, needed: u64, path: &Path, operation: &str) -> Result<()> {
    // Some file systems do not tell; then a full disk ends the write.
    let Ok(disk) = rustix::fs::fstatvfs(file) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if disk.f_blocks == 0 || needed <= free {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let detail = format!("{} are needed, and {} are free in {}", ByteSize(needed), ByteSize(free), folder.display());
    Err(Error::new(ErrorKind::Local, operation, detail)
        .with_hint("free disk space, or write to another disk; --platform archives one platform only"))
}

/// Makes a rename durable. Some file systems cannot.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        synced => synced,
    }
}
