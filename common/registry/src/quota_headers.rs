//! Parses quota headers: `ratelimit-*` and similar.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::header_time;

/// A quota, as far as the registry reported it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests that a window allows.
    pub limit: Option<u64>,
    /// Requests left in the window.
    pub remaining: Option<u64>,
    /// Length of the window.
    pub window: Option<Duration>,
    /// Time until the count resets, at most 24 hours.
    pub reset: Option<Duration>,
}

impl Quota {
    /// Whether the registry reported that no requests are left.
    pub fn is_exhausted(&self) -> bool {
        self.remaining == Some(0)
    }
}

/// Header prefixes. The first that has values is used: they may count different things, so they are not mixed.
const FAMILIES: [&str; 4] = ["ratelimit-", "x-ratelimit-", "x-rate-limit-", "rate-limit-"];

/// Parses Docker Hub's `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 0;w=21600`, and other registries'
/// `x-ratelimit-limit`, `-remaining` and `-reset` (a delay in seconds, a time since 1970, or a date). Returns `None`
/// without such headers.
///
/// Where a header lists several policies (`100, 100;w=60, 1000;w=3600`), the first is in force.
pub fn parse(headers: &HeaderMap, now: SystemTime) -> Option<Quota> {
    FAMILIES.iter().find_map(|family| {
        let value = |name: &str| headers.get(format!("{family}{name}"))?.to_str().ok();
        let limit = value("limit").and_then(count);
        let remaining = value("remaining").and_then(count);
        let quota = Quota {
            limit: limit.map(|(count, _)| count),
            remaining: remaining.map(|(count, _)| count),
            window: remaining.and_then(|(_, window)| window).or(limit.and_then(|(_, window)| window)),
            reset: value("reset").and_then(|value| parse_reset(value, now)),
        };
        (quota != Quota::default()).then_some(quota)
    })
}

/// Returns a count and its window, if given.
fn count(value: &str) -> Option<(u64, Option<Duration>)> {
    let mut policies = value.split(',').filter_map(|policy| {
        let (number, parameters) = policy.split_once(';').unwrap_or((policy, ""));
        // Some report decimals; a started request counts as used.
        let whole = number.trim().split('.').next()?;
        let digits = whole.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = digits.then(|| whole.parse().ok())??;
        let window = parameters.split(';').find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            let seconds = value.trim().trim_matches('"').parse().ok()?;
            name.trim().eq_ignore_ascii_case("w").then(|| Duration::from_secs(seconds))
        });
        Some((number, window))
    });
    let (number, window) = policies.next()?;
    let window = window.or_else(|| policies.find(|(limit, _)| *limit == number).and_then(|(_, window)| window));
    Some((number, window))
}

fn parse_reset(value: &str, now: SystemTime) -> Option<Duration> {
    if let Some(moment) = header_time::parse_date(value.trim()) {
        let left = moment.duration_since(now).unwrap_or_default();
        return Some(left.min(header_time::MAX_DELAY));
    }
    let value = value.split([',', ';']).next()?.trim();
    let Some(moment) = header_time::parse_epoch(value) else { return header_time::parse_seconds(value) };
    let left = moment.duration_since(now).unwrap_or_default();
    Some(left.min(header_time::MAX_DELAY))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_760_000_000;

    fn quota(headers: &[(&'static str, &str)]) -> Option<Quota> {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect();
        parse(&headers, UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn docker_hub_tells_the_window() {
        let report = quota(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "0;w=21600")]).unwrap();
        assert_eq!(
            report,
            Quota { limit: Some(100), remaining: Some(0), window: Some(Duration::from_secs(21600)), reset: None }
        );
        assert!(report.is_exhausted());
    }

    #[test]
    fn a_reset_is_a_delay_a_moment_or_a_date() {
        for (value, seconds) in [
            ("30", 30),
            ("1760000030", 30),
            ("1760000030000", 30),
            ("1759999999", 0),
            ("2025-10-09T08:53:50Z", 30),
            ("Thu, 09 Oct 2025 08:53:50 GMT", 30),
            ("18446744073709551615", 86400),
        ] {
            let report = quota(&[("x-ratelimit-remaining", "7"), ("x-ratelimit-reset", value)]);
            let report = report.unwrap();
            assert_eq!(report.reset, Some(Duration::from_secs(seconds)), "{value}");
            assert_eq!(report.remaining, Some(7));
            assert!(!report.is_exhausted());
        }
    }

    #[test]
    fn of_several_policies_the_first_is_in_force() {
        let report = quota(&[("ratelimit-limit", "100, 10;w=1, 100;w=60")]).unwrap();
        assert_eq!(report.limit, Some(100));
        assert_eq!(report.window, Some(Duration::from_secs(60)));
    }

    #[test]
    fn families_are_not_mixed() {
        let report =
            quota(&[("ratelimit-limit", "100"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-limit", "5")]).unwrap();
        assert_eq!((report.limit, report.remaining), (Some(100), None));
    }

    #[test]
    fn what_says_nothing_is_none() {
        assert_eq!(quota(&[]), None);
        assert_eq!(quota(&[("ratelimit-limit", "unlimited")]), None);
        assert_eq!(quota(&[("x-ratelimit-remaining", "-1")]), None);
    }

    proptest! {
        #[test]
        fn never_panics(value in "([0-9]{1,25}|[-.;,= w\"]|[ -~]){0,12}", reset in "[0-9]{0,30}|[ -~]{0,12}") {
            quota(&[("ratelimit-limit", &value), ("ratelimit-remaining", &value), ("ratelimit-reset", &reset)]);
        }
    }
}
