//! Exit codes: a public interface that scripts depend on.

use super::printer::Printer;
use imgsync_store::Batch;
use std::process::ExitCode;

use imgsync_oci::error::{Error, ErrorKind};

/// Result of the program, mapped to an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything succeeded.
    Done,
    /// Some images failed.
    Failed,
    /// Wrong usage or configuration.
    Usage,
    /// A registry, broker or store is unreachable, so that nothing could start.
    CouldNotStart,
    /// Requested output could not be written: stdout, a report, an export.
    OutputLost,
    /// Stopped on request; can be run again.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::CouldNotStart | Exit::OutputLost => 3,
            Exit::Interrupted => 4,
        })
    }
}

/// Returns the exit code of a failed copy of one image. `moved`: data had reached the target, so that a connection
/// error does not mean that nothing could start.
pub(crate) fn for_copy_error(error: &Error, moved: bool) -> Exit {
    match for_error(error) {
        Exit::CouldNotStart if moved => Exit::Failed,
        exit => exit,
    }
}

/// Returns the exit code of a command that failed with this error.
pub(crate) fn for_error(error: &Error) -> Exit {
    match error.kind() {
        ErrorKind::Invalid => Exit::Usage,
        ErrorKind::Unreachable => Exit::CouldNotStart,
        ErrorKind::Cancelled => Exit::Interrupted,
        ErrorKind::NotFound
        | ErrorKind::Denied
        | ErrorKind::TokenExpired
        | ErrorKind::RateLimited
        | ErrorKind::TimedOut
        | ErrorKind::ServerError
        | ErrorKind::Corrupt
        | ErrorKind::Refused
        | ErrorKind::Incomplete
        | ErrorKind::Unsupported
        | ErrorKind::Outdated
        | ErrorKind::InvalidResponse
        | ErrorKind::Insecure
        | ErrorKind::Local
        | ErrorKind::Collision
        | ErrorKind::Immutable
        | ErrorKind::RefusedByPolicy
        | ErrorKind::Differs => Exit::Failed,
    }
}

/// Prints an error that ended a command without counts, and returns the exit code.
pub(crate) fn fail(error: &Error, printer: &Printer) -> Exit {
    printer.failure(error);
    match error.kind() {
        // Mostly errors of store or broker: nothing was started.
        ErrorKind::Local
        | ErrorKind::Denied
        | ErrorKind::Insecure
        | ErrorKind::InvalidResponse
        | ErrorKind::ServerError
        | ErrorKind::RateLimited
        | ErrorKind::TimedOut => Exit::CouldNotStart,
        _ => for_error(error),
    }
}

/// Returns the exit code of an ended batch. `all_listed`: everything could be listed, and every removal succeeded. A
/// stopped batch is never a success, even if it was stopped before its first task was listed.
pub(crate) fn exit_for_batch(batch: &Batch, all_listed: bool) -> Exit {
    let counts = &batch.counts;
    match counts.failed > 0 || counts.cancelled > 0 || batch.state.is_stopped() || !all_listed {
        true => Exit::Failed,
        false => Exit::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_reach_could_not_start_unless_something_was_moved() {
        let lost = Error::new(ErrorKind::Unreachable, "reading x", "reset");
        assert_eq!(for_copy_error(&lost, false), Exit::CouldNotStart);
        assert_eq!(for_copy_error(&lost, true), Exit::Failed);
        assert_eq!(for_copy_error(&Error::cancelled("copying x"), true), Exit::Interrupted);
    }
}
