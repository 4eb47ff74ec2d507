//! Stdin as a pipe, and `--spool DIR`: saves it to a temporary file without a name, because archives whose index comes
//! last are read twice.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use imgsync_layout::{PipeTimeouts, save_pipe};
use imgsync_oci::error::{Error, ErrorKind, Result};
use tokio_util::sync::CancellationToken;

/// Saves stdin to a file in a folder. The file disappears when it is closed, and when the process ends. `name` is what
/// comes out of stdin, for messages.
pub(crate) async fn spool(
    name: &str,
    folder: &Path,
    timeouts: PipeTimeouts,
    cancel: &CancellationToken,
) -> Result<File> {
    let operation = format!("saving {name} in {}", folder.display());
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "make the folder first",
            _ => "give --spool a folder that you may write to",
        };
        Error::new(ErrorKind::Local, &operation, error.to_string()).with_source(error).with_hint(hint)
    };
    let pipe = open_pipe(&operation, "it")?;
    let file = create_nameless(folder).map_err(failed)?;
    save_pipe(pipe, file, timeouts, &operation, cancel).await
}

/// Creates a file that is removed whatever happens.
fn create_nameless(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!(".imgsync-spool-{:016x}", rand::random::<u64>()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Opens stdin, unless it is a terminal. `what` is what should come out of it.
pub(crate) fn open_pipe(operation: &str, what: &str) -> Result<File> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let error = Error::new(ErrorKind::Invalid, operation, "stdin is a terminal");
        return Err(error.with_hint(format!("pipe {what} into the command: `cat FILE | imgsync …`")));
    }
    let pipe = stdin.as_fd().try_clone_to_owned().map(File::from);
    pipe.map_err(|error| Error::new(ErrorKind::Local, operation, error.to_string()).with_source(error))
}
