//! Archives that come out of a pipe, such as stdin: read once, forward.

use std::fs::File;
use std::io;
use std::sync::Arc;

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{ArchiveFormat, Digest};
use tokio_util::sync::CancellationToken;

use super::error::{LayoutError, SAVE_STREAM_HINT};
use super::pipe_reader::{PipeReader, PipeTimeouts};
use super::read_at::OpenedArchiveFile;
use super::{ArchiveRef, Layout, LayoutFiles, open, run_blocking};

/// Saves what comes out of a pipe, until its end, and returns the file.
pub async fn save_pipe(
    pipe: File,
    mut file: File,
    timeouts: PipeTimeouts,
    operation: &str,
    cancel: &CancellationToken,
) -> Result<File> {
    let cancel = cancel.clone();
    run_blocking(operation, move || {
        let mut reader = PipeReader::start(pipe, timeouts, cancel).map_err(|error| LayoutError::reading("", error))?;
        let failure = reader.failure();
        let saved = io::copy(&mut reader, &mut file);
        saved.map(|_| file).map_err(|error| match failure.take() {
            Some(failure) => LayoutError::reading("", failure),
            None => LayoutError::new(ErrorKind::Local, error.to_string())
                .with_hint("choose a folder with enough space for the whole archive"),
        })
    })
    .await
}

impl Layout {
    /// Opens an archive that comes out of a pipe, and reads its index and manifests, which must come before the layers.
    /// The blobs are read with [`Layout::next_streamed_blob`], in the order in which they come.
    pub async fn open_stream(
        pipe: File,
        archive: &ArchiveRef,
        timeouts: PipeTimeouts,
        cancel: &CancellationToken,
    ) -> Result<Layout> {
        let label = archive.without_image().to_string();
        let operation = format!("opening {label}");
        if archive.format == ArchiveFormat::Docker {
            let detail =
                "this format has no manifests: they are made from the layers, which are then read a second time";
            return Err(Error::new(ErrorKind::Unsupported, operation, detail).with_hint(SAVE_STREAM_HINT));
        }
        let cancel = cancel.clone();
        let local = operation.clone();
        let input = PipeReader::start(pipe, timeouts, cancel)
            .map_err(|error| Error::new(ErrorKind::Local, local, error.to_string()).with_source(error))?;
        run_blocking(&operation, move || open::open_stream(input, label)).await
    }

    /// Opens an archive whose file has no name any more, under the name that the user knows.
    pub async fn open_spooled(file: File, archive: &ArchiveRef) -> Result<Layout> {
        let label = archive.without_image().to_string();
        let operation = format!("opening {label}");
        let format = archive.format;
        run_blocking(&operation, move || {
            let source = OpenedArchiveFile::new(file).map_err(|error| LayoutError::reading("", error))?;
            open::open_archive(Arc::new(source), format, label)
        })
        .await
    }

    /// Whether the archive comes out of a pipe, so that each blob is read while it passes, or never.
    pub fn is_stream(&self) -> bool {
        matches!(&self.0.files, LayoutFiles::Archive(archive) if archive.is_stream())
    }

    /// Whether a blob of such an archive is in memory, because it came before the first layer.
    pub fn is_in_memory(&self, digest: &Digest) -> bool {
        matches!(&self.0.files, LayoutFiles::Archive(archive) if archive.is_in_memory(digest))
    }

    /// Moves on to the next blob of the pipe, skipping what was not read; `None` at the end, when the whole archive was read.
    pub async fn next_streamed_blob(&self) -> Result<Option<Digest>> {
        self.run_blocking(&format!("reading {}", self.0.label), |shared| {
            let LayoutFiles::Archive(archive) = &shared.files else { return Ok(None) };
            archive.advance_stream()
        })
        .await
    }

    /// Reads the pipe to its end, so that the program at the other side can finish, and checks what was left.
    pub async fn finish_stream(&self) -> Result<()> {
        while self.next_streamed_blob().await?.is_some() {}
        Ok(())
    }

    /// Records that a blob was read from the pipe, and had the right content.
    pub async fn record_streamed_blob(&self, digest: &Digest) {
        self.0.record_verified(digest, "").await;
    }
}
