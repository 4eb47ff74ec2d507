//! Documented limits. A test writes the tables of `docs/reference/limits.md` from the constants listed in all crates, so
//! that the documentation has the numbers of the code.

use std::time::Duration;

use crate::{Manifest, mask, retry};

/// Table of the documentation that lists a limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DocsPage {
    /// Limits on external input.
    Security,
    /// Times and sizes that operators meet.
    Operating,
}

/// A row of a table of limits.
#[derive(Clone, Debug)]
pub struct Limit {
    /// The table with the limit.
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

/// Returns the documented limits of this crate.
pub fn limits() -> Vec<Limit> {
    vec![
        Limit::count(
            DocsPage::Operating,
            "consecutive times that an HTTP/2 server refuses a request unprocessed",
            u64::from(retry::MAX_UNPROCESSED_RETRIES),
            "further refusals use up attempts",
        ),
        Limit::bytes(DocsPage::Security, "a manifest", Manifest::MAX_BYTES as u64, "the task fails"),
        Limit::time(
            DocsPage::Operating,
            "waiting while the process has too many open files",
            retry::OUT_OF_FILES_TIMEOUT,
            "the task fails",
        ),
        Limit::bytes(
            DocsPage::Security,
            "shortest secret masked in external text",
            mask::MIN_SECRET_BYTES as u64,
            "a shorter one is not masked",
        ),
        Limit::bytes(
            DocsPage::Security,
            "shortest secret masked inside a word",
            mask::MIN_SUBSTRING_BYTES as u64,
            "a shorter one is masked only as a whole word",
        ),
        Limit::count(
            DocsPage::Security,
            "old tokens that stay masked after their renewal",
            mask::MAX_RETIRED_SECRETS as u64,
            "the oldest are no longer masked",
        ),
    ]
}
