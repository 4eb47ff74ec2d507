//! `Retry-After`: how long a server asks to be left alone.

use std::time::{Duration, SystemTime};

/// The longest delay that is believed: 24 hours.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads a `Retry-After`: seconds (`60`, `1.5`), an HTTP date in any of its three forms, and what else is seen: RFC 3339
/// and e-mail dates. What is past or below zero is zero; what is above [`LONGEST`] is cut to that; `None` if it cannot
/// be read.
pub fn parse(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    seconds(value).or_else(|| {
        let until = date(value)?;
        Some(until.duration_since(now).unwrap_or_default().min(LONGEST))
    })
}

/// A plain number of seconds. Letters are refused first: `inf` and `NaN` are numbers to `f64`.
pub(super) fn seconds(value: &str) -> Option<Duration> {
    if !value.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-')) {
        return None;
    }
    let seconds: f64 = value.parse().ok()?;
    Some(Duration::from_secs_f64(seconds.clamp(0.0, LONGEST.as_secs_f64())))
}

/// A moment, however it is written.
pub(super) fn date(value: &str) -> Option<SystemTime> {
    if let Ok(time) = httpdate::parse_http_date(value) {
        return Some(time);
    }
    let timestamp = match value.parse::<jiff::Timestamp>() {
        Ok(timestamp) => timestamp,
        Err(_) => jiff::fmt::rfc2822::parse(value).ok()?.timestamp(),
    };
    SystemTime::try_from(timestamp).ok()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    /// 1994-11-06 08:49:37 UTC, the date of the RFC's examples.
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    #[test]
    fn seconds_and_dates_in_all_forms() {
        for (value, wait) in [
            ("0", 0.0),
            (" 60 ", 60.0),
            ("1.5", 1.5),
            (".5", 0.5),
            ("-3", 0.0),
            ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
            ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
            ("Sun Nov  6 08:49:47 1994", 10.0),
            ("Sun, 06 Nov 1994 09:49:47 +0100", 10.0),
            ("1994-11-06T08:49:47Z", 10.0),
            ("1994-11-06T09:49:47.5+01:00", 10.5),
            ("Sun, 06 Nov 1994 08:49:27 GMT", 0.0),
            ("1970-01-01T00:00:00Z", 0.0),
        ] {
            let wait = Duration::from_secs_f64(wait);
            assert_eq!(parse(value, now()), Some(wait), "{value:?}");
        }
    }

    #[test]
    fn nothing_is_believed_beyond_a_day() {
        for value in ["86401", "99999999999999999999999999", "Sat, 06 Nov 2094 08:49:37 GMT", "9999-01-01T00:00:00Z"] {
            assert_eq!(parse(value, now()), Some(LONGEST), "{value:?}");
        }
    }

    #[test]
    fn what_says_nothing_is_none() {
        for value in ["", "-", ".", "soon", "inf", "NaN", "1e3", "1-2", "60,60"] {
            assert_eq!(parse(value, now()), None, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_never_exceeds_a_day(value in "([0-9]{1,30}|[-.:+ TZ,]|Sun|Nov|GMT|\\PC){0,10}", secs in 0u64..1 << 40) {
            let now = UNIX_EPOCH + Duration::from_secs(secs);
            if let Some(wait) = parse(&value, now) {
                prop_assert!(wait <= LONGEST);
            }
        }
    }
}
