//! Where the bytes of a bundle go: parts in a thread of their own, or a pipe.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use imgsync_archive::ArchiveSink;
use imgsync_bundle::{BundlePart, PartWriter};
use imgsync_oci::error::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

const OPERATION: &str = "writing the bundle";
/// Chunks that wait for the writer, so that reading and writing overlap. After a kill, they are read again.
const QUEUED_CHUNKS: usize = 4;

enum Command {
    Write(Bytes),
    Rewind(u64, oneshot::Sender<()>),
}

/// Writes parts in a thread.
pub(crate) struct PartSink {
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<Result<Vec<BundlePart>>>>,
}

impl PartSink {
    /// Starts the thread.
    pub(crate) fn new(mut writer: PartWriter) -> PartSink {
        let (sender, mut commands) = mpsc::channel(QUEUED_CHUNKS);
        let thread = tokio::task::spawn_blocking(move || {
            let mut is_ended = false;
            while let Some(command) = commands.blocking_recv() {
                match command {
                    // The sender marks the end, so that a writer that is dropped leaves its last part incomplete.
                    Command::Write(bytes) if bytes.is_empty() => is_ended = true,
                    Command::Write(bytes) => writer.write(&bytes)?,
                    Command::Rewind(offset, done) => {
                        writer.rewind(offset)?;
                        let _ = done.send(());
                    }
                }
            }
            if is_ended { writer.finish().map(<[BundlePart]>::to_vec) } else { Err(Error::cancelled(OPERATION)) }
        });
        PartSink { commands: Some(sender), thread: Some(thread) }
    }

    /// Makes the last part whole. Returns all parts.
    pub(crate) async fn finish(mut self) -> Result<Vec<BundlePart>> {
        self.send(Command::Write(Bytes::new())).await?;
        self.commands = None;
        self.join().await
    }

    /// Waits until what was sent is written. The last part stays incomplete.
    pub(crate) async fn close(mut self) -> Result<()> {
        self.commands = None;
        self.join().await.map(drop)
    }

    async fn join(&mut self) -> Result<Vec<BundlePart>> {
        match self.thread.take() {
            Some(thread) => thread.await.unwrap_or_else(|error| {
                Err(Error::new(ErrorKind::Local, OPERATION, "the writing thread panicked").with_source(error))
            }),
            None => Err(Error::new(ErrorKind::Local, OPERATION, "an earlier write has failed")),
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
        Err(Error::new(ErrorKind::Local, OPERATION, "the writing thread ended early"))
    }
}

#[async_trait]
impl ArchiveSink for PartSink {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        if bytes.is_empty() { Ok(()) } else { self.send(Command::Write(bytes)).await }
    }

    async fn rewind(&mut self, offset: u64) -> Result<bool> {
        let (done, rewound) = oneshot::channel();
        self.send(Command::Rewind(offset, done)).await?;
        if rewound.await.is_ok() {
            return Ok(true);
        }
        self.commands = None;
        self.join().await.map(|_| false)
    }
}

/// Counts the bytes that go to another sink.
pub(crate) struct CountingSink<'a, S> {
    /// The other sink.
    pub(crate) inner: &'a mut S,
    /// Bytes of the archive that are written.
    pub(crate) written: Arc<AtomicU64>,
}

#[async_trait]
impl<S: ArchiveSink> ArchiveSink for CountingSink<'_, S> {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        self.inner.write(bytes).await?;
        self.written.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    async fn rewind(&mut self, offset: u64) -> Result<bool> {
        let rewound = self.inner.rewind(offset).await?;
        if rewound {
            self.written.store(offset, Ordering::Relaxed);
        }
        Ok(rewound)
    }
}
