//! Parses `Retry-After`.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use super::header_time::{MAX_DELAY, parse_date, parse_epoch, parse_seconds};
use super::quota_headers::Quota;

/// Longest delay accepted from `Retry-After` alone, since clocks and units are often wrong. A quota that is exhausted
/// for longer confirms a longer one.
pub const MAX_UNCONFIRMED_DELAY: Duration = Duration::from_secs(60 * 60);
/// Returns the delay that a response asks for. Dates are relative to `now`, the server's time: see [`server_time`].
pub fn retry_delay(headers: &HeaderMap, quota: Option<&Quota>, now: SystemTime) -> Option<Duration> {
    let requested = parse(headers.get(header::RETRY_AFTER)?.to_str().ok()?, now)?;
    let confirmed = quota.filter(|quota| quota.is_exhausted()).and_then(|quota| quota.reset.or(quota.window));
    Some(requested.min(confirmed.unwrap_or_default().max(MAX_UNCONFIRMED_DELAY)))
}

/// Returns the server's time of a response (`Date`), or the local time without one.
pub fn server_time(headers: &HeaderMap) -> SystemTime {
    let date = headers.get(header::DATE).and_then(|value| value.to_str().ok()).and_then(parse_date);
    date.unwrap_or_else(SystemTime::now)
}

/// Parses a `Retry-After`: seconds (`60`, `1.5`), an HTTP date in any of its three forms, and other forms seen in use:
/// RFC 3339 and e-mail dates, and times in seconds or milliseconds since 1970. Past times and negative delays are zero;
/// delays above 24 hours are capped; `None` if it cannot be parsed.
pub fn parse(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let until = match parse_epoch(value) {
        Some(until) => until,
        None => match parse_seconds(value) {
            Some(wait) => return Some(wait),
            None => parse_date(value)?,
        },
    };
    Some(until.duration_since(now).unwrap_or_default().min(MAX_DELAY))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::time::UNIX_EPOCH;

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
    fn a_number_since_1970_is_a_moment() {
        let now = UNIX_EPOCH + Duration::from_secs(1_764_000_000);
        for (value, wait) in [
            ("1764000045", 45),
            ("1764000045.9", 45),
            ("1764000045000", 45),
            ("1763999999", 0),
            ("1764000000123", 0),
            ("999999999", 86400),
        ] {
            assert_eq!(parse(value, now).map(|wait| wait.as_secs()), Some(wait), "{value:?}");
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_date_is_read_by_the_clock_of_who_wrote_it() {
        // Three hours ahead of our clock, and five years behind it.
        for (date, until) in [
            ("Sun, 06 Nov 1994 11:49:37 GMT", "Sun, 06 Nov 1994 11:50:19 GMT"),
            ("Mon, 06 Nov 1989 08:00:00 GMT", "Mon, 06 Nov 1989 08:00:42 GMT"),
        ] {
            let answer = headers(&[("date", date), ("retry-after", until)]);
            assert_eq!(retry_delay(&answer, None, server_time(&answer)), Some(Duration::from_secs(42)), "{date}");
        }
        let bare = headers(&[("retry-after", "9"), ("date", "nonsense")]);
        assert!(server_time(&bare) >= now());
        assert_eq!(retry_delay(&bare, None, server_time(&bare)), Some(Duration::from_secs(9)));
        assert_eq!(retry_delay(&headers(&[]), None, now()), None);
    }

    #[test]
    fn more_than_an_hour_is_obeyed_only_where_a_quota_is_used_up_for_as_long() {
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        let quota = |remaining, reset, window| Quota { limit: Some(100), remaining: Some(remaining), window, reset };
        for (said, quota, obeyed) in [
            ("10800", None, hours(1)),
            ("10800", Some(quota(0, hours(4), None)), hours(3)),
            ("10800", Some(quota(0, hours(2), None)), hours(2)),
            ("10800", Some(quota(0, None, hours(6))), hours(3)),
            ("10800", Some(quota(0, None, None)), hours(1)),
            ("10800", Some(quota(7, hours(4), None)), hours(1)),
            ("10800", Some(quota(0, Some(Duration::from_secs(30)), None)), hours(1)),
            ("1800", Some(quota(0, Some(Duration::from_secs(30)), None)), Some(Duration::from_secs(1800))),
        ] {
            let answer = headers(&[("retry-after", said)]);
            assert_eq!(retry_delay(&answer, quota.as_ref(), now()), obeyed, "{said} {quota:?}");
        }
    }

    #[test]
    fn nothing_is_believed_beyond_a_day() {
        for value in ["86401", "99999999999999999999999999", "Sat, 06 Nov 2094 08:49:37 GMT", "9999-01-01T00:00:00Z"] {
            assert_eq!(parse(value, now()), Some(MAX_DELAY), "{value:?}");
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
                prop_assert!(wait <= MAX_DELAY);
            }
        }
    }
}
