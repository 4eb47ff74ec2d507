//! `oci-archive:-` as a source: the archive is read while it comes out of the pipe, or saved first.

use std::path::Path;
use std::time::Duration;

use imgsync_layout::{ArchiveRef, Layout, PipeTimeout, PipeTimeouts};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_worker::copy::ImageLocation;
use tokio_util::sync::CancellationToken;

use super::stdin::{open_pipe, spool};

/// How long to wait for the first byte, without `--timeout`.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Options of reading stdin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StdinOptions<'a> {
    /// `--spool`: the folder to save an archive in.
    pub(crate) spool: Option<&'a Path>,
    /// How long to wait for the pipe.
    pub(crate) timeouts: PipeTimeouts,
}

/// Returns the time limits of a pipe for a command with `--stall-timeout`, and perhaps with `--timeout`.
pub(crate) fn pipe_timeouts(timeout: Option<Duration>, stall_timeout: Duration) -> PipeTimeouts {
    PipeTimeouts {
        start: match timeout {
            Some(limit) => PipeTimeout { limit, option: Some("--timeout") },
            None => PipeTimeout { limit: START_TIMEOUT.max(stall_timeout), option: None },
        },
        stall: PipeTimeout { limit: stall_timeout, option: Some("--stall-timeout") },
    }
}

/// Whether a location is an archive from stdin.
pub(crate) fn is_stdin(location: &ImageLocation) -> bool {
    stdin_archive(location).is_some()
}

fn stdin_archive(location: &ImageLocation) -> Option<&ArchiveRef> {
    match location {
        ImageLocation::Archive(archive) if archive.is_stdio() => Some(archive),
        _ => None,
    }
}

/// Opens the archive from stdin, if one of the locations names it.
pub(crate) async fn open_stdin(
    locations: impl IntoIterator<Item = &ImageLocation>,
    options: StdinOptions<'_>,
    cancel: &CancellationToken,
) -> Result<Option<Layout>> {
    let archives: Vec<&ArchiveRef> = locations.into_iter().filter_map(stdin_archive).collect();
    let Some(archive) = archives.first() else { return Ok(None) };
    if let Some(other) = archives.iter().find(|other| other.format != archive.format) {
        let detail = format!("stdin is read in one format, and is named as {archive} and as {other}");
        return Err(Error::new(ErrorKind::Invalid, "reading stdin", detail));
    }
    open_stdin_archive(archive, options, cancel).await.map(Some)
}

/// Opens an archive from stdin.
pub(crate) async fn open_stdin_archive(
    archive: &ArchiveRef,
    options: StdinOptions<'_>,
    cancel: &CancellationToken,
) -> Result<Layout> {
    let whole = archive.without_image();
    match options.spool {
        None => {
            let pipe = open_pipe(&format!("opening {whole}"), "an archive")?;
            Layout::open_stream(pipe, archive, options.timeouts, cancel).await
        }
        Some(folder) => {
            let file = spool(&whole.to_string(), folder, options.timeouts, cancel).await?;
            Layout::open_spooled(file, archive).await
        }
    }
}

/// Reads what was not needed of an archive from stdin, so that its writer can finish.
pub(crate) async fn finish_stdin(archive: Option<&Layout>) -> Result<()> {
    match archive {
        Some(archive) => archive.finish_stream().await,
        None => Ok(()),
    }
}
