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
            "bytes added to a configuration by aliases and variables",
            config::MAX_ADDED_BYTES as u64,
            "it is refused",
        ),
        Limit::count(
            Security,
            "problems shown for a configuration",
            config::MAX_SHOWN_PROBLEMS as u64,
            "the rest are counted",
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
        "consecutive requests that an HTTP/2 server refuses unprocessed",
        u64::from(retry::MAX_UNPROCESSED_RETRIES),
        "further ones count as attempts",
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
        "the message is refused; its size and digest are kept instead",
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
        "waiting while the process has too many open files",
        retry::OUT_OF_FILES_TIMEOUT,
        "the task fails",
    ));
    limits.push(Limit::time(
        DocsPage::Operating,
        "interval between repeated log messages of one kind",
        log_throttle::MIN_INTERVAL,
        "messages are counted, and the next one gives the number suppressed",
    ));
    limits.push(Limit::time(
        DocsPage::Operating,
        "clock skew tolerated for timestamps in the store",
        CLOCK_TOLERANCE,
        "the timestamp is ignored: the tag is verified again, the rule is due again",
    ));
    limits.push(Limit::time(
        DocsPage::Operating,
        "longest lease or rate-limit hold accepted from the store",
        MAX_DEADLINE_AHEAD,
        "it counts as expired",
    ));
    limits.push(Limit::time(
        DocsPage::Security,
        "validity of a source's proof that it holds a blob",
        PROOF_TTL,
        "the source is asked again",
    ));
    limits.push(Limit::bytes(
        DocsPage::Security,
        "shortest secret masked in external text",
        mask::MIN_SECRET_BYTES as u64,
        "a shorter one is not masked",
    ));
    limits.push(Limit::bytes(
        DocsPage::Security,
        "shortest secret masked inside a word",
        mask::MIN_SUBSTRING_BYTES as u64,
        "a shorter one is masked only as a whole word",
    ));
    limits.push(Limit::count(
        DocsPage::Security,
        "replaced tokens that stay masked",
        mask::MAX_RETIRED_SECRETS as u64,
        "the oldest are forgotten",
    ));
    limits
}
