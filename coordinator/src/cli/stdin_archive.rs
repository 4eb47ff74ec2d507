//! `oci-archive:-` as a source: the archive is copied while it comes out of the pipe.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;

use imgsync_layout::{ArchiveRef, Layout, PipeTimeouts};
use imgsync_oci::ArchiveFormat;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_worker::copy::ImageLocation;
use tokio_util::sync::CancellationToken;

/// Whether a location is an archive from stdin.
pub(crate) fn is_stdin(location: &ImageLocation) -> bool {
    matches!(location, ImageLocation::Archive(archive) if archive.is_stdio())
}

/// Opens the archive from stdin, if one of the sources is there.
pub(crate) async fn open_stdin(
    sources: &[ImageLocation],
    timeouts: PipeTimeouts,
    cancel: &CancellationToken,
) -> Result<Option<Layout>> {
    let archives: Vec<&ArchiveRef> = sources
        .iter()
        .filter_map(|source| match source {
            ImageLocation::Archive(archive) if archive.is_stdio() => Some(archive),
            _ => None,
        })
        .collect();
    let Some(first) = archives.first() else { return Ok(None) };
    // The other format is an error.
    let archive = archives.iter().find(|archive| archive.format == ArchiveFormat::Docker).unwrap_or(first);
    let pipe = open_pipe(&format!("opening {}", archive.without_image()))?;
    Layout::open_stream(pipe, archive, timeouts, cancel).await.map(Some)
}

/// Opens stdin, unless it is a terminal.
pub(crate) fn open_pipe(operation: &str) -> Result<File> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let error = Error::new(ErrorKind::Invalid, operation, "stdin is a terminal");
        return Err(error.with_hint("pipe an archive into the command: `cat FILE | imgsync sync oci-archive:- TARGET`"));
    }
    let pipe = stdin.as_fd().try_clone_to_owned().map(File::from);
    pipe.map_err(|error| Error::new(ErrorKind::Local, operation, error.to_string()).with_source(error))
}
