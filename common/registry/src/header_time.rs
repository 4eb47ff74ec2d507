//! Times and delays in response headers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest delay returned: 24 hours.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Numbers from here on are seconds since 1970, not a delay in seconds.
const MIN_EPOCH_SECONDS: u64 = 1_000_000_000;
/// Numbers from here on are milliseconds since 1970.
const MIN_EPOCH_MILLIS: u64 = 1_000_000_000_000;

/// Parses a time written as a number since 1970.
pub(super) fn parse_epoch(value: &str) -> Option<SystemTime> {
    let whole = value.split('.').next()?;
    if whole.is_empty() || !whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // A number too large for any clock is as far away as possible.
    let since = match whole.parse::<u64>().unwrap_or(u64::MAX) {
        number if number >= MIN_EPOCH_MILLIS => Duration::from_millis(number),
        number if number >= MIN_EPOCH_SECONDS => Duration::from_secs(number),
        _ => return None,
    };
    UNIX_EPOCH.checked_add(since)
}

/// Parses plain seconds. Rejects letters first: `inf` and `NaN` are valid for `f64`.
pub(super) fn parse_seconds(value: &str) -> Option<Duration> {
    if !value.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-')) {
        return None;
    }
    let seconds: f64 = value.parse().ok()?;
    Some(Duration::from_secs_f64(seconds.clamp(0.0, MAX_DELAY.as_secs_f64())))
}

/// Parses a date in any format.
pub(super) fn parse_date(value: &str) -> Option<SystemTime> {
    if let Ok(time) = httpdate::parse_http_date(value) {
        return Some(time);
    }
    let timestamp = match value.parse::<jiff::Timestamp>() {
        Ok(timestamp) => timestamp,
        Err(_) => jiff::fmt::rfc2822::parse(value).ok()?.timestamp(),
    };
    SystemTime::try_from(timestamp).ok()
}
