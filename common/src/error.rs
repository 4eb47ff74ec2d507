//! One error for all that can go wrong with a registry: a class for programs, and words for people that say what was
//! tried, where, how often, and what to do now.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::image::{Digest, RegistryName};
use crate::printable::{printable, visible};

/// What kind of failure it is: the same words in reports, JSON and the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The tag, manifest, blob or repository is not there.
    NotFound,
    /// Credentials are missing, wrong or not enough.
    Denied,
    /// The token ran out in the middle of a stream; passes with a fresh one.
    TokenExpired,
    /// The registry asked to wait.
    RateLimited,
    /// No connection, or it broke.
    Unreachable,
    /// No byte for too long, or the time allowed is over.
    TimedOut,
    /// The registry failed (5xx).
    ServerError,
    /// Content does not have the digest or size that it should have.
    Corrupt,
    /// The target does not take the content.
    Refused,
    /// The target says that content which a manifest needs is missing.
    Incomplete,
    /// Content that cannot be copied.
    Unsupported,
    /// A manifest of Docker's schema 1, which today's registries refuse.
    Outdated,
    /// The registry answered something that the specification does not allow.
    BadAnswer,
    /// Following the answer would be unsafe, a certificate is not to be trusted, or the store was altered.
    Insecure,
    /// Bad input or configuration.
    Invalid,
    /// Something on this machine: a file, a disk, a helper program.
    Local,
    /// Two sources want the same target.
    Collision,
    /// A tag that is not to be moved points at something else.
    Immutable,
    /// The target does not have what the source has: found by comparing, where nothing is copied.
    Differs,
    /// Stopped on request.
    Cancelled,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 20] = [
        Class::NotFound,
        Class::Denied,
        Class::TokenExpired,
        Class::RateLimited,
        Class::Unreachable,
        Class::TimedOut,
        Class::ServerError,
        Class::Corrupt,
        Class::Refused,
        Class::Incomplete,
        Class::Unsupported,
        Class::Outdated,
        Class::BadAnswer,
        Class::Insecure,
        Class::Invalid,
        Class::Local,
        Class::Collision,
        Class::Immutable,
        Class::Differs,
        Class::Cancelled,
    ];

    /// As it is written in JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::NotFound => "not_found",
            Class::Denied => "denied",
            Class::TokenExpired => "token_expired",
            Class::RateLimited => "rate_limited",
            Class::Unreachable => "unreachable",
            Class::TimedOut => "timed_out",
            Class::ServerError => "server_error",
            Class::Corrupt => "corrupt",
            Class::Refused => "refused",
            Class::Incomplete => "incomplete",
            Class::Unsupported => "unsupported",
            Class::Outdated => "outdated",
            Class::BadAnswer => "bad_answer",
            Class::Insecure => "insecure",
            Class::Invalid => "invalid",
            Class::Local => "local",
            Class::Collision => "collision",
            Class::Immutable => "immutable",
            Class::Differs => "differs",
            Class::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure: kind, words, and what is needed to decide what comes next.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    class: Class,
    tried: String,
    detail: String,
    hint: Option<String>,
    registry: Option<RegistryName>,
    unconnected: bool,
    out_of_files: bool,
    untaken: bool,
    status: Option<u16>,
    code: Option<String>,
    missing: Vec<Digest>,
    retry_after: Option<Duration>,
    attempts: u32,
    elapsed: Duration,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What most functions here return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `tried` says what was being done and where ("reading gcr.io/a/b:c"), `detail` what happened. Both may hold words
    /// from outside: they are made safe to print, and known secrets are masked in `detail`.
    pub fn new(class: Class, tried: impl AsRef<str>, detail: impl AsRef<str>) -> Error {
        Error(Box::new(Inner {
            class,
            tried: visible(tried.as_ref()).into_owned(),
            detail: printable(detail.as_ref()).into_owned(),
            hint: None,
            registry: None,
            unconnected: false,
            out_of_files: false,
            untaken: false,
            status: None,
            code: None,
            missing: Vec::new(),
            retry_after: None,
            attempts: 1,
            elapsed: Duration::ZERO,
            source: None,
        }))
    }

    /// The error of something that was stopped on request.
    pub fn cancelled(tried: impl AsRef<str>) -> Error {
        Error::new(Class::Cancelled, tried, "stopped on request")
    }

    /// Adds what to do now.
    #[must_use]
    pub fn hint(mut self, hint: impl AsRef<str>) -> Error {
        self.0.hint = Some(visible(hint.as_ref()).into_owned());
        self
    }

    /// Adds which registry's request failed, where that is not known yet.
    #[must_use]
    pub fn at(mut self, registry: &RegistryName) -> Error {
        self.0.registry.get_or_insert_with(|| registry.clone());
        self
    }

    /// Adds that no connection could be made at all.
    #[must_use]
    pub fn unconnected(mut self) -> Error {
        self.0.unconnected = true;
        self
    }

    /// Adds that the process has as many files open as it may: it passes when others are closed.
    #[must_use]
    pub fn out_of_files(mut self) -> Error {
        self.0.out_of_files = true;
        self.hint("raise the limit of open files (`ulimit -n`, LimitNOFILE), or copy fewer images at a time")
    }

    /// Adds that the server did not take the request at all, and said so: nothing of it was done.
    #[must_use]
    pub fn untaken(mut self) -> Error {
        self.0.untaken = true;
        self
    }

    /// Adds the HTTP status and the registry's own error code.
    #[must_use]
    pub fn answered(mut self, status: u16, code: Option<String>) -> Error {
        self.0.status = Some(status);
        self.0.code = code;
        self
    }

    /// Adds the digests of content that the registry says it lacks.
    #[must_use]
    pub fn naming(mut self, missing: Vec<Digest>) -> Error {
        self.0.missing = missing;
        self
    }

    /// Adds how long the registry asked to wait.
    #[must_use]
    pub fn retry_after(mut self, wait: Option<Duration>) -> Error {
        self.0.retry_after = wait;
        self
    }

    /// Adds the error below.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// Adds how often it was tried, over how long.
    #[must_use]
    pub fn after(mut self, attempts: u32, elapsed: Duration) -> Error {
        self.0.attempts = attempts;
        self.0.elapsed = elapsed;
        self
    }

    /// The same error under another class.
    #[must_use]
    pub fn as_class(mut self, class: Class) -> Error {
        self.0.class = class;
        self
    }

    /// What kind of failure it is.
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// Which registry's request failed, where it was one.
    pub fn registry(&self) -> Option<&RegistryName> {
        self.0.registry.as_ref()
    }

    /// Whether no connection could be made at all: there is no way from here, or nobody there.
    pub fn is_unconnected(&self) -> bool {
        self.0.unconnected
    }

    /// Whether the process had as many files open as it may.
    pub fn is_out_of_files(&self) -> bool {
        self.0.out_of_files
    }

    /// Whether the server said that it did not take the request at all.
    pub fn is_untaken(&self) -> bool {
        self.0.untaken
    }

    /// The HTTP status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// The registry's own code (`MANIFEST_UNKNOWN`), where it gave one.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The digests of content that the registry says it lacks, where it named any.
    pub fn missing(&self) -> &[Digest] {
        &self.0.missing
    }

    /// How long the registry asked to wait.
    pub fn wait(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// How often it was tried.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// What was tried, and where.
    pub fn tried(&self) -> &str {
        &self.0.tried
    }

    /// What happened, without what was tried.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// What to do now.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether it was stopped on request.
    pub fn is_cancelled(&self) -> bool {
        self.0.class == Class::Cancelled
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        write!(f, "{}: {}", inner.tried, inner.detail)?;
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
    fn a_message_says_what_was_tried_how_often_and_is_safe_to_print() {
        let error = Error::new(Class::Unreachable, "reading gcr.io/a:b", "reset\u{1b}[31m by peer")
            .after(5, Duration::from_millis(12_400));
        assert_eq!(error.to_string(), "reading gcr.io/a:b: reset\\u{1b}[31m by peer (failed 5 times in 12.4 s)");
    }

    #[test]
    fn secrets_are_masked_in_what_happened_and_our_own_words_stay() {
        let secret = crate::secret::Secret::new("token");
        let error = Error::new(Class::Denied, "getting a token", "answered 400: bad token").hint("it needs a token");
        assert_eq!(error.to_string(), "getting a token: answered 400: bad ***");
        assert_eq!(error.advice(), Some("it needs a token"));
        drop(secret);
    }

    #[test]
    fn a_class_is_written_alike_everywhere() {
        for class in Class::ALL {
            assert_eq!(serde_json::to_string(&class).unwrap(), format!("\"{class}\""));
        }
    }
}
