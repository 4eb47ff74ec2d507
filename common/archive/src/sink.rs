//! Where an archive's bytes go.

use std::fs::File;
use std::io::{self, Write};

use async_trait::async_trait;
use bytes::Bytes;
use flate2::write::GzEncoder;
use imgsync_oci::error::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};

/// Chunks that wait for the writer, so that reading and writing overlap. After a kill, they are read again.
const QUEUED_CHUNKS: usize = 4;

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

/// Destination of a [`ThreadSink`], used in its thread.
pub trait SinkOutput: Send + 'static {
    /// What [`ThreadSink::finish`] returns.
    type Output: Send + 'static;

    /// Writes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Goes back to an offset; see [`ArchiveSink::rewind`].
    fn rewind(&mut self, _offset: u64) -> Result<bool> {
        Ok(false)
    }

    /// Ends the output. If the sink was dropped or closed before, or a write has failed, this is not called: the output
    /// stays incomplete.
    fn finish(self: Box<Self>) -> Result<Self::Output>;
}

/// An output that cannot go back: a pipe.
struct Pipe<W> {
    output: W,
    operation: String,
}

impl<W: Write + Send + 'static> SinkOutput for Pipe<W> {
    type Output = Option<File>;

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(|error| write_error(&self.operation, error))
    }

    fn finish(mut self: Box<Self>) -> Result<Option<File>> {
        self.output.flush().map(|()| None).map_err(|error| write_error(&self.operation, error))
    }
}

/// A compressed file, which cannot go back either.
struct GzipFile {
    /// The encoder writes its end also when it is dropped: then the gate is shut, so that what is incomplete does not look
    /// whole.
    output: GzEncoder<Gate>,
    is_finished: bool,
    operation: String,
}

impl SinkOutput for GzipFile {
    type Output = Option<File>;

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(|error| write_error(&self.operation, error))
    }

    fn finish(mut self: Box<Self>) -> Result<Option<File>> {
        let finished = self.output.try_finish().and_then(|()| self.output.get_ref().file.try_clone());
        self.is_finished = true;
        finished.map(Some).map_err(|error| write_error(&self.operation, error))
    }
}

impl Drop for GzipFile {
    fn drop(&mut self) {
        self.output.get_mut().is_shut = !self.is_finished;
    }
}

/// A file that takes nothing more once it is shut.
struct Gate {
    file: File,
    is_shut: bool,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_shut { Err(io::ErrorKind::BrokenPipe.into()) } else { self.file.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

enum Command {
    Write(Bytes),
    Rewind(u64, oneshot::Sender<bool>),
    Finish,
}

/// Writes in a thread of its own. Dropped before [`ThreadSink::finish`], it leaves the output incomplete.
#[derive(Debug)]
pub struct ThreadSink<T = Option<File>> {
    commands: Option<mpsc::Sender<Command>>,
    /// Returns nothing if the output was not finished.
    thread: Option<tokio::task::JoinHandle<Result<Option<T>>>>,
    operation: String,
}

impl ThreadSink {
    /// Creates a sink over a pipe, such as stdout. `operation` describes the write, for messages.
    pub fn pipe(writer: impl Write + Send + 'static, operation: impl Into<String>) -> ThreadSink {
        let operation = operation.into();
        ThreadSink::new(Box::new(Pipe { output: writer, operation: operation.clone() }), operation)
    }

    /// Creates a sink that compresses into a file. Its end is written by [`ThreadSink::finish`] alone.
    pub(crate) fn gzip(file: File, operation: String) -> ThreadSink {
        let output = GzEncoder::new(Gate { file, is_shut: false }, flate2::Compression::fast());
        ThreadSink::new(Box::new(GzipFile { output, is_finished: false, operation: operation.clone() }), operation)
    }
}

impl<T: Send + 'static> ThreadSink<T> {
    /// Starts the thread. `operation` describes the write, for messages.
    pub fn new(mut output: Box<dyn SinkOutput<Output = T>>, operation: impl Into<String>) -> ThreadSink<T> {
        let (sender, mut commands) = mpsc::channel(QUEUED_CHUNKS);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(command) = commands.blocking_recv() {
                match command {
                    Command::Write(bytes) => output.write(&bytes)?,
                    Command::Rewind(offset, answer) => _ = answer.send(output.rewind(offset)?),
                    Command::Finish => return output.finish().map(Some),
                }
            }
            Ok(None)
        });
        ThreadSink { commands: Some(sender), thread: Some(thread), operation: operation.into() }
    }

    /// Ends the output, and waits until everything is written.
    pub async fn finish(mut self) -> Result<T> {
        self.send(Command::Finish).await?;
        self.join().await?.ok_or_else(|| self.ended_early())
    }

    /// Waits until what was sent is written. The output stays incomplete.
    pub async fn close(mut self) -> Result<()> {
        self.commands = None;
        self.join().await.map(drop)
    }

    fn ended_early(&self) -> Error {
        Error::new(ErrorKind::Local, &self.operation, "the writing thread ended early")
    }

    /// Waits for the thread, which ends when there are no more commands or a write has failed.
    async fn join(&mut self) -> Result<Option<T>> {
        let Some(thread) = self.thread.take() else {
            return Err(Error::new(ErrorKind::Local, &self.operation, "an earlier write has failed"));
        };
        match thread.await {
            Ok(written) => written,
            Err(error) if error.is_cancelled() => Err(Error::cancelled(&self.operation)),
            Err(error) => {
                Err(Error::new(ErrorKind::Local, &self.operation, "the writing thread panicked").with_source(error))
            }
        }
    }

    async fn send(&mut self, command: Command) -> Result<()> {
        if let Some(commands) = &self.commands
            && commands.send(command).await.is_ok()
        {
            return Ok(());
        }
        self.commands = None;
        self.join().await?;
        Err(self.ended_early())
    }
}

#[async_trait]
impl<T: Send + 'static> ArchiveSink for ThreadSink<T> {
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
