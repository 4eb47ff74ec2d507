//! Documented limits. A test writes the tables of `docs/security.md` and `docs/operating.md` from the constants listed
//! here, so that the documentation has the numbers of the code.

use std::time::Duration;

use crate::batch::MAX_MESSAGE_BYTES;
use crate::config;
use crate::image::Manifest;
use crate::mask;
use crate::store::{CLOCK_TOLERANCE, MAX_DEADLINE_AHEAD, PROOF_TTL};
use crate::{layout, log_throttle, queue, registry, retry};

/// Documentation page that lists a limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DocsPage {
    /// `docs/security.md`: limits on external input.
    Security,
    /// `docs/operating.md`: times and sizes that operators meet.
    Operating,
}

/// A row of a table of limits.
#[derive(Clone, Debug)]
pub struct Limit {
    /// The page with the table.
    pub page: DocsPage,
    /// The limited quantity.
    pub subject: &'static str,
    /// The value with its unit.
    pub value: String,
    /// The effect of reaching the limit.
    pub effect: &'static str,
}

impl Limit {
    /// Creates a limit in bytes, written in the largest binary unit that divides it.
    pub fn bytes(page: DocsPage, subject: &'static str, bytes: u64, effect: &'static str) -> Limit {
        let (unit, name) = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
            .into_iter()
            .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
            .unwrap_or((1, "bytes"));
        Limit { page, subject, value: format!("{} {name}", bytes / unit), effect }
    }

    /// Creates a limit in time, written in the largest unit that divides it.
    pub fn time(page: DocsPage, subject: &'static str, time: Duration, effect: &'static str) -> Limit {
        let millis = time.as_millis();
        let (unit, name) = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")]
            .into_iter()
            .find(|(unit, _)| millis >= *unit && millis.is_multiple_of(*unit))
            .unwrap_or((1, "ms"));
        Limit { page, subject, value: format!("{} {name}", millis / unit), effect }
    }

    /// Creates a numeric limit, written with thousands separators.
    pub fn count(page: DocsPage, subject: &'static str, count: u64, effect: &'static str) -> Limit {
        let digits = count.to_string();
        let mut value = String::new();
        for (at, digit) in digits.char_indices() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                value.push(',');
            }
            value.push(digit);
        }
        Limit { page, subject, value, effect }
    }
}

fn configuration_limits() -> Vec<Limit> {
    use DocsPage::Security;
    vec![
        Limit::bytes(Security, "a configuration", config::MAX_FILE_BYTES as u64, "it is refused"),
        Limit::count(Security, "values in a configuration", config::MAX_VALUES as u64, "it is refused"),
        Limit::bytes(
            Security,
            "what aliases and variables add to a configuration",
            config::MAX_ADDED_BYTES as u64,
            "it is refused",
        ),
        Limit::count(
            Security,
            "problems of a configuration that are shown",
            config::MAX_SHOWN_PROBLEMS as u64,
            "the others are counted",
        ),
        Limit::count(
            Security,
            "characters of a rule's name",
            config::MAX_RULE_NAME as u64,
            "the configuration is refused",
        ),
    ]
}

/// Returns the limits of this crate, in the order of the tables.
pub fn limits() -> Vec<Limit> {
    let mut limits = registry::limits();
    limits.extend(configuration_limits());
    limits.push(Limit::count(
        DocsPage::Operating,
        "requests in a row that an HTTP/2 server refuses untaken",
        u64::from(retry::MAX_UNPROCESSED_RETRIES),
        "the next ones spend attempts",
    ));
    limits.push(Limit::bytes(DocsPage::Security, "a manifest", Manifest::MAX_BYTES as u64, "the task fails"));
    limits.push(Limit::time(
        DocsPage::Operating,
        "waiting for another program's lock on an image layout",
        layout::LOCK_TIMEOUT,
        "the task fails and is tried again",
    ));
    limits.push(Limit::bytes(
        DocsPage::Security,
        "a message on the queue",
        MAX_MESSAGE_BYTES as u64,
        "the message is refused, and a note of its size and digest is kept in its place",
    ));
    limits.push(Limit::count(
        DocsPage::Security,
        "messages in `sync.refused`",
        queue::MAX_REFUSED_MESSAGES.unsigned_abs().into(),
        "the oldest are dropped",
    ));
    limits.push(Limit::bytes(
        DocsPage::Security,
        "all messages in `sync.refused`",
        queue::MAX_REFUSED_BYTES.unsigned_abs().into(),
        "the oldest are dropped",
    ));
    limits.push(Limit::time(
        DocsPage::Operating,
        "a copy waits while the process has too many files open",
        retry::OUT_OF_FILES_TIMEOUT,
        "the task fails",
    ));
    limits.push(Limit::time(
        DocsPage::Operating,
        "between two lines of the log of one kind that repeats",
        log_throttle::MIN_INTERVAL,
        "lines are counted, and the next one says how many were left out",
    ));
    limits.push(Limit::time(
        DocsPage::Operating,
        "a time in the store may lie ahead of the clock",
        CLOCK_TOLERANCE,
        "the time is unknown: what was seen or begun then is verified or due again",
    ));
    limits.push(Limit::time(
        DocsPage::Operating,
        "a lease, or a hold of a registry, may end ahead of the clock",
        MAX_DEADLINE_AHEAD,
        "it counts as ended",
    ));
    limits.push(Limit::time(
        DocsPage::Security,
        "a source's proof that it holds a blob",
        PROOF_TTL,
        "the source is asked again",
    ));
    limits.push(Limit::bytes(
        DocsPage::Security,
        "a secret that is masked in words from outside, at the least",
        mask::MIN_SECRET_BYTES as u64,
        "a shorter one is not masked",
    ));
    limits.push(Limit::bytes(
        DocsPage::Security,
        "a secret that is masked within a word, at the least",
        mask::MIN_SUBSTRING_BYTES as u64,
        "a shorter one is masked where it stands alone",
    ));
    limits.push(Limit::count(
        DocsPage::Security,
        "tokens that are masked after they were replaced",
        mask::MAX_RETIRED_SECRETS as u64,
        "the oldest are forgotten",
    ));
    limits
}
