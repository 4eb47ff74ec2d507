//! `--spool DIR`: saves an archive from stdin to a temporary file without a name, because archives whose index comes
//! last are read twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use imgsync_layout::{ArchiveRef, PipeTimeouts, save_pipe};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_worker::copy::ImageLocation;
use tokio_util::sync::CancellationToken;

use super::stdin_archive::{is_stdin, open_pipe};

/// An archive that was saved from stdin. Its file disappears when it is dropped, and when the process ends.
#[derive(Debug)]
pub(crate) struct SpooledArchive {
    file: File,
}

impl SpooledArchive {
    /// Saves stdin to a file in a folder, if one of the sources is an archive from stdin and a folder is given.
    pub(crate) async fn save(
        sources: &[ImageLocation],
        folder: Option<&Path>,
        timeouts: PipeTimeouts,
        cancel: &CancellationToken,
    ) -> Result<Option<SpooledArchive>> {
        let source = sources.iter().find(|source| is_stdin(source));
        let (Some(source), Some(folder)) = (source, folder) else { return Ok(None) };
        let operation = format!("saving {source} in {}", folder.display());
        let failed = |error: io::Error| Error::new(ErrorKind::Local, &operation, error.to_string()).with_source(error);
        let file = create_nameless(folder).map_err(failed)?;
        let copy = file.try_clone().map_err(failed)?;
        save_pipe(open_pipe(&operation)?, copy, timeouts, &operation, cancel).await?;
        Ok(Some(SpooledArchive { file }))
    }

    /// Returns the location of the saved file for a source from stdin, and other sources unchanged.
    pub(crate) fn replace_stdin(&self, source: &ImageLocation) -> ImageLocation {
        match source {
            ImageLocation::Archive(archive) if archive.is_stdio() => {
                let file = PathBuf::from(format!("/dev/fd/{}", self.file.as_raw_fd()));
                ImageLocation::Archive(ArchiveRef { file, ..archive.clone() })
            }
            other => other.clone(),
        }
    }
}

/// Creates a file that is removed whatever happens.
fn create_nameless(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!(".imgsync-spool-{:016x}", rand::random::<u64>()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
