//! The error type of imgsync: a kind for programs, and a message with operation, location, attempts and hint.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sanitize::{escape_hidden, sanitize};
use crate::{Digest, RegistryName};

/// Kind of an error. Reports, JSON and the ledger use the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The tag, manifest, blob or repository does not exist.
    NotFound,
    /// Credentials are missing, wrong or insufficient.
    Denied,
    /// The token expired during a stream; a fresh one helps.
    TokenExpired,
    /// The registry asked to wait.
    RateLimited,
    /// The connection failed or broke.
    Unreachable,
    /// No byte arrived for too long, or the deadline passed.
    TimedOut,
    /// The registry failed (5xx).
    ServerError,
    /// Content does not match its digest or size.
    Corrupt,
    /// The target rejects the content.
    Refused,
    /// The target reports that content which a manifest needs is missing.
    Incomplete,
    /// The content cannot be copied.
    Unsupported,
    /// A Docker schema 1 manifest, which current registries reject.
    Outdated,
    /// The response violates the specification.
    InvalidResponse,
    /// Following the response would be unsafe, a certificate is not trusted, or the store was altered.
    Insecure,
    /// Invalid input or configuration.
    Invalid,
    /// A failure on this machine: a file, a disk, a helper program.
    Local,
    /// Two sources map to the same target.
    Collision,
    /// An immutable tag points at something else.
    Immutable,
    /// The policy of the rule does not allow the image.
    RefusedByPolicy,
    /// The target differs from the source: found by comparing, without copying.
    Differs,
    /// Cancelled on request.
    Cancelled,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [ErrorKind; 21] = [
        ErrorKind::NotFound,
        ErrorKind::Denied,
        ErrorKind::TokenExpired,
        ErrorKind::RateLimited,
        ErrorKind::Unreachable,
        ErrorKind::TimedOut,
        ErrorKind::ServerError,
        ErrorKind::Corrupt,
        ErrorKind::Refused,
        ErrorKind::Incomplete,
        ErrorKind::Unsupported,
        ErrorKind::Outdated,
        ErrorKind::InvalidResponse,
        ErrorKind::Insecure,
        ErrorKind::Invalid,
        ErrorKind::Local,
        ErrorKind::Collision,
        ErrorKind::Immutable,
        ErrorKind::RefusedByPolicy,
        ErrorKind::Differs,
        ErrorKind::Cancelled,
    ];

    /// Returns the word used in JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "not_found",
            ErrorKind::Denied => "denied",
            ErrorKind::TokenExpired => "token_expired",
            ErrorKind::RateLimited => "rate_limited",
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::TimedOut => "timed_out",
            ErrorKind::ServerError => "server_error",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Refused => "refused",
            ErrorKind::Incomplete => "incomplete",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Outdated => "outdated",
            ErrorKind::InvalidResponse => "invalid_response",
            ErrorKind::Insecure => "insecure",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Local => "local",
            ErrorKind::Collision => "collision",
            ErrorKind::Immutable => "immutable",
            ErrorKind::RefusedByPolicy => "refused_by_policy",
            ErrorKind::Differs => "differs",
            ErrorKind::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of an operation: its kind, a message, and the details that retry decisions need.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    operation: String,
    message: String,
    hint: Option<String>,
    registry: Option<RegistryName>,
    connect_failed: bool,
    out_of_files: bool,
    unprocessed: bool,
    status: Option<u16>,
    code: Option<String>,
    missing: Vec<Digest>,
    retry_after: Option<Duration>,
    attempts: u32,
    elapsed: Duration,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result type of most functions in this workspace.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Creates an error. `operation` names operation and location ("reading gcr.io/a/b:c"), `message` the failure. Both may
    /// contain external text: they are made safe to print, and known secrets are masked in `message`.
    pub fn new(kind: ErrorKind, operation: impl AsRef<str>, detail: impl AsRef<str>) -> Error {
        Error(Box::new(Inner {
            kind,
            operation: escape_hidden(operation.as_ref()).into_owned(),
            message: sanitize(detail.as_ref()).into_owned(),
            hint: None,
            registry: None,
            connect_failed: false,
            out_of_files: false,
            unprocessed: false,
            status: None,
            code: None,
            missing: Vec::new(),
            retry_after: None,
            attempts: 1,
            elapsed: Duration::ZERO,
            source: None,
        }))
    }

    /// Creates the error of a cancelled operation.
    pub fn cancelled(operation: impl AsRef<str>) -> Error {
        Error::new(ErrorKind::Cancelled, operation, "cancelled")
    }

    /// Sets the hint: what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl AsRef<str>) -> Error {
        self.0.hint = Some(escape_hidden(hint.as_ref()).into_owned());
        self
    }

    /// Sets the registry whose request failed, unless it is set.
    #[must_use]
    pub fn with_registry(mut self, registry: &RegistryName) -> Error {
        self.0.registry.get_or_insert_with(|| registry.clone());
        self
    }

    /// Marks the error as a failure to connect.
    #[must_use]
    pub fn mark_connect_error(mut self) -> Error {
        self.0.connect_failed = true;
        self
    }

    /// Marks the error as a lack of file descriptors: transient, for other work closes files.
    #[must_use]
    pub fn mark_out_of_files(mut self) -> Error {
        self.0.out_of_files = true;
        self.with_hint("raise the limit of open files (`ulimit -n`, LimitNOFILE), or copy fewer images at a time")
    }

    /// Marks the request as not processed: the server said that it did not act on it.
    #[must_use]
    pub fn mark_unprocessed(mut self) -> Error {
        self.0.unprocessed = true;
        self
    }

    /// Sets the HTTP status and the registry's error code.
    #[must_use]
    pub fn with_status(mut self, status: u16, code: Option<String>) -> Error {
        self.0.status = Some(status);
        self.0.code = code;
        self
    }

    /// Sets the digests of content that the registry reports as missing.
    #[must_use]
    pub fn with_missing_content(mut self, missing: Vec<Digest>) -> Error {
        self.0.missing = missing;
        self
    }

    /// Sets how long the registry asked to wait.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Error {
        self.0.retry_after = wait;
        self
    }

    /// Sets the underlying error.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// Sets the number of attempts and their total duration.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32, elapsed: Duration) -> Error {
        self.0.attempts = attempts;
        self.0.elapsed = elapsed;
        self
    }

    /// Changes the kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.0.kind = kind;
        self
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the registry whose request failed, if any.
    pub fn registry(&self) -> Option<&RegistryName> {
        self.0.registry.as_ref()
    }

    /// Returns whether no connection could be made: no route, or nothing listening.
    pub fn is_connect_error(&self) -> bool {
        self.0.connect_failed
    }

    /// Returns whether the process was out of file descriptors.
    pub fn is_out_of_files(&self) -> bool {
        self.0.out_of_files
    }

    /// Returns whether the server said that it did not process the request.
    pub fn is_unprocessed(&self) -> bool {
        self.0.unprocessed
    }

    /// Returns the HTTP status, if there was a response.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// Returns the registry's error code (`MANIFEST_UNKNOWN`), if any.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// Returns the digests of content that the registry reports as missing.
    pub fn missing_content(&self) -> &[Digest] {
        &self.0.missing
    }

    /// Returns how long the registry asked to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Returns the number of attempts.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Returns the operation and its location.
    pub fn operation(&self) -> &str {
        &self.0.operation
    }

    /// Returns the failure, without the operation.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Returns the hint.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Returns whether the operation was cancelled on request.
    pub fn is_cancelled(&self) -> bool {
        self.0.kind == ErrorKind::Cancelled
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        write!(f, "{}: {}", inner.operation, inner.message)?;
        if inner.attempts > 1 {
            write!(f, " (failed {} times in {:.1} s)", inner.attempts, inner.elapsed.as_secs_f64())?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_operation_and_the_attempts_and_is_safe_to_print() {
        let error = Error::new(ErrorKind::Unreachable, "reading gcr.io/a:b", "reset\u{1b}[31m by peer")
            .with_attempts(5, Duration::from_millis(12_400));
        assert_eq!(error.to_string(), "reading gcr.io/a:b: reset\\u{1b}[31m by peer (failed 5 times in 12.4 s)");
    }

    #[test]
    fn secrets_are_masked_in_what_happened_and_our_own_words_stay() {
        let secret = crate::secret::Secret::new("token");
        let error =
            Error::new(ErrorKind::Denied, "getting a token", "answered 400: bad token").with_hint("it needs a token");
        assert_eq!(error.to_string(), "getting a token: answered 400: bad ***");
        assert_eq!(error.hint(), Some("it needs a token"));
        drop(secret);
    }

    #[test]
    fn every_error_kind_is_listed() {
        for (index, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index, "{kind}");
        }
        assert_eq!(ErrorKind::ALL.len(), ErrorKind::Cancelled as usize + 1, "new kinds go before the last one");
    }

    #[test]
    fn an_error_kind_has_one_spelling() {
        for kind in ErrorKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
    }
}
