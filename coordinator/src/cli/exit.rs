//! Exit codes, which are an interface: scripts depend on them.

use std::process::ExitCode;

use imgsync_common::error::{Class, Error};

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All was done.
    Done,
    /// Some images failed.
    Failed,
    /// Wrong usage or configuration.
    Usage,
    /// A registry, broker or store is out of reach, so that nothing could start.
    CouldNotStart,
    /// Stopped on request; can be run again.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::CouldNotStart => 3,
            Exit::Interrupted => 4,
        })
    }
}

/// How a command about one image ends with this error.
pub(crate) fn of_error(error: &Error) -> Exit {
    match error.class() {
        Class::Invalid => Exit::Usage,
        Class::Unreachable => Exit::CouldNotStart,
        Class::Cancelled => Exit::Interrupted,
        Class::NotFound
        | Class::Denied
        | Class::TokenExpired
        | Class::RateLimited
        | Class::TimedOut
        | Class::ServerError
        | Class::Corrupt
        | Class::Refused
        | Class::Incomplete
        | Class::Unsupported
        | Class::BadAnswer
        | Class::Insecure
        | Class::Local
        | Class::Collision => Exit::Failed,
    }
}
