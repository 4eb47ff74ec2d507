//! Where an archive's bytes go.

use std::fs::File;
use std::io::{self, Write};

use async_trait::async_trait;
use bytes::Bytes;
use flate2::write::GzEncoder;
use imgsync_oci::error::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};

/// Chunks that wait for the writer: a few hundred KiB, so that reading and writing overlap.
const QUEUED_CHUNKS: usize = 16;

/// Compression around a whole archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// None: the only form that all loaders take, and that can be resumed. Layers are compressed anyway.
    #[default]
    None,
    /// gzip.
    Gzip,
}

/// Takes the bytes of an archive in order.
#[async_trait]
pub trait ArchiveSink: Send {
    /// Writes the next bytes.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;

    /// Goes back to an earlier offset of the archive, whose bytes are written again. Returns false if bytes that were written
    /// cannot be taken back.
    async fn rewind(&mut self, _offset: u64) -> Result<bool> {
        Ok(false)
    }
}

/// Destination of a [`ThreadSink`].
pub(crate) trait ByteOutput: Write + Send + 'static {
    /// Goes back to an offset; see [`ArchiveSink::rewind`].
    fn rewind_to(&mut self, offset: u64) -> io::Result<bool>;

    /// Ends the output: nothing is written after it. Returns the file, if there is one, so that its lock can be held.
    fn finish(self: Box<Self>) -> io::Result<Option<File>>;
}

/// An output that cannot go back: a pipe.
struct Pipe<W>(W);

impl<W: Write> Write for Pipe<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write + Send + 'static> ByteOutput for Pipe<W> {
    fn rewind_to(&mut self, _offset: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn finish(mut self: Box<Self>) -> io::Result<Option<File>> {
        self.0.flush().map(|()| None)
    }
}

/// A compressed file, which cannot go back either.
struct GzipFile(GzEncoder<File>);

impl Write for GzipFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl ByteOutput for GzipFile {
    fn rewind_to(&mut self, _offset: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn finish(self: Box<Self>) -> io::Result<Option<File>> {
        self.0.finish().map(Some)
    }
}

enum Command {
    Write(Bytes),
    Rewind(u64, oneshot::Sender<bool>),
}

/// Writes to a file or pipe in a thread of its own. Dropped before [`ThreadSink::finish`], it leaves the output incomplete.
#[derive(Debug)]
pub struct ThreadSink {
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<tokio::task::JoinHandle<io::Result<Option<File>>>>,
    operation: String,
}

impl ThreadSink {
    /// Creates a sink over a pipe, such as stdout. `operation` describes the write, for messages.
    pub fn pipe(writer: impl Write + Send + 'static, operation: impl Into<String>) -> ThreadSink {
        ThreadSink::new(Box::new(Pipe(writer)), operation.into())
    }

    /// Creates a sink that compresses into a file.
    pub(crate) fn gzip(file: File, operation: String) -> ThreadSink {
        ThreadSink::new(Box::new(GzipFile(GzEncoder::new(file, flate2::Compression::fast()))), operation)
    }

    pub(crate) fn new(mut output: Box<dyn ByteOutput>, operation: String) -> ThreadSink {
        let (sender, mut commands) = mpsc::channel(QUEUED_CHUNKS);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(command) = commands.blocking_recv() {
                match command {
                    Command::Write(bytes) => output.write_all(&bytes)?,
                    Command::Rewind(offset, answer) => _ = answer.send(output.rewind_to(offset)?),
                }
            }
            output.finish()
        });
        ThreadSink { commands: Some(sender), thread: Some(thread), operation }
    }

    /// Waits until everything is written.
    pub async fn finish(self) -> Result<()> {
        self.finish_file().await.map(drop)
    }

    /// Waits until everything is written, and returns the file.
    pub(crate) async fn finish_file(mut self) -> Result<Option<File>> {
        self.commands = None;
        self.join().await
    }

    /// Waits for the thread, which ends when there are no more commands or a write has failed.
    async fn join(&mut self) -> Result<Option<File>> {
        let Some(thread) = self.thread.take() else {
            return Err(Error::new(ErrorKind::Local, &self.operation, "an earlier write has failed"));
        };
        match thread.await {
            Ok(written) => written.map_err(|error| write_error(&self.operation, error)),
            Err(error) if error.is_cancelled() => Err(Error::cancelled(&self.operation)),
            Err(error) => {
                Err(Error::new(ErrorKind::Local, &self.operation, "the writing thread panicked").with_source(error))
            }
        }
    }

    async fn send(&mut self, command: Command) -> Result<()> {
        let Some(commands) = &self.commands else { return self.join().await.map(drop) };
        if commands.send(command).await.is_ok() {
            return Ok(());
        }
        self.commands = None;
        self.join().await?;
        Err(Error::new(ErrorKind::Local, &self.operation, "the writing thread ended early"))
    }
}

#[async_trait]
impl ArchiveSink for ThreadSink {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.send(Command::Write(bytes)).await
    }

    async fn rewind(&mut self, offset: u64) -> Result<bool> {
        let (answer, rewound) = oneshot::channel();
        self.send(Command::Rewind(offset, answer)).await?;
        match rewound.await {
            Ok(rewound) => Ok(rewound),
            Err(_) => {
                self.commands = None;
                self.join().await.map(|_| false)
            }
        }
    }
}

/// Creates the error of a failed write, with a hint.
pub(crate) fn write_error(operation: &str, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::BrokenPipe => {
            Some("the reader of the pipe ended before it had read the whole archive: see its messages")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free disk space and run again: what was written is kept and not read again")
        }
        io::ErrorKind::PermissionDenied => Some("check the owner and permissions of the folder"),
        io::ErrorKind::ReadOnlyFilesystem => Some("the file system is mounted read-only"),
        io::ErrorKind::FileTooLarge => Some("the file system cannot hold a file of this size (FAT ends at 4 GiB)"),
        _ => None,
    };
    let detail = match error.kind() {
        io::ErrorKind::BrokenPipe => "the pipe was closed".to_owned(),
        _ => error.to_string(),
    };
    let failed = Error::new(ErrorKind::Local, operation, detail).with_source(error);
    match hint {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    }
}
