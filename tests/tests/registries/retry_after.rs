//! `Retry-After` as seen in the wild: wrong clocks, unintended units, and no time at all.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use imgsync_oci::error::ErrorKind;
use imgsync_oci::retry::RetryPolicy;
use imgsync_registry::{Access, ManifestRef};
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;

use super::client::{client, repository, settings};
use crate::retry_after::RetryAfterValue::{Exactly, InUnixSeconds, Later};

/// A `Retry-After` value.
enum RetryAfterValue {
    /// A date this long after the response's `Date`, which is this far ahead of our clock.
    Later(i64, Duration),
    /// A time from now in seconds since 1970.
    InUnixSeconds(Duration),
    Exactly(&'static str),
}

fn http_date(since_1970: i64) -> String {
    let time = jiff::Timestamp::from_second(since_1970).unwrap();
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// Builds a response with this status and `Retry-After`.
fn answer(status: u16, said: &RetryAfterValue, more: &[(&str, &str)]) -> FaultAction {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let mut headers: Vec<(String, String)> =
        more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let value = match said {
        Later(ahead, wait) => {
            headers.push(("date".into(), http_date(now + ahead)));
            http_date(now + ahead + wait.as_secs() as i64)
        }
        InUnixSeconds(wait) => (now as u64 + wait.as_secs()).to_string(),
        Exactly(value) => (*value).to_owned(),
    };
    headers.push(("retry-after".into(), value));
    FaultAction::Status { code: status, headers, body: Default::default() }
}

/// Requests a tag from a registry that throttles once. Returns the error if the wait would be too long.
async fn ask(status: u16, said: RetryAfterValue, more: &[(&str, &str)]) -> Result<(), (ErrorKind, Duration)> {
    let registry = FaultRegistry::start().await;
    registry.push("a", "1", &images::single("retry-after"));
    registry.on(RequestType::ManifestGet).act(answer(status, &said, more));
    let mut settings = settings(&registry, None);
    settings.retry = RetryPolicy { max_retry_after: Duration::from_secs(10), ..settings.retry };
    let client = client(settings);
    let asked = repository(&client, &registry, "a", Access::Pull);
    let read = asked.get_manifest(&ManifestRef::Tag("1".parse().unwrap())).await;
    read.map(drop).map_err(|error| (error.kind(), error.retry_after().unwrap_or_default()))
}

#[tokio::test]
async fn moments_are_read_by_the_servers_clock_and_as_what_they_are() {
    for status in [429, 503] {
        for said in [
            Later(3 * 3600, Duration::from_secs(1)),
            Later(-5 * 86_400, Duration::from_secs(1)),
            InUnixSeconds(Duration::from_secs(1)),
        ] {
            ask(status, said, &[]).await.expect("a second is waited for");
        }
    }
}

#[tokio::test]
async fn what_names_no_time_is_waited_for_as_if_nothing_was_said() {
    for status in [429, 503] {
        for said in [
            Exactly("0"),
            Exactly("-30"),
            Exactly("0.001"),
            Exactly("Thu, 01 Jan 1970 00:00:00 GMT"),
            Later(0, Duration::ZERO),
        ] {
            ask(status, said, &[]).await.expect("it is tried again");
        }
    }
}

#[tokio::test]
async fn nobody_is_left_alone_for_more_than_an_hour_unless_a_quota_says_so_too() {
    let about = |wait: Duration, hours: u64| {
        let most = Duration::from_secs(hours * 3600);
        wait <= most && wait + Duration::from_secs(30) > most
    };
    for (said, more, hours) in [
        (Exactly("86400"), &[][..], 1),
        (Later(0, Duration::from_secs(7200)), &[][..], 1),
        (Exactly("7200"), &[("ratelimit-remaining", "0;w=21600"), ("ratelimit-limit", "100;w=21600")][..], 2),
        (Exactly("7200"), &[("ratelimit-remaining", "55;w=21600"), ("ratelimit-limit", "100;w=21600")][..], 1),
        (Exactly("18000"), &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "10800")][..], 3),
    ] {
        let (kind, wait) = ask(429, said, more).await.unwrap_err();
        assert_eq!(kind, ErrorKind::RateLimited);
        assert!(about(wait, hours), "{wait:?}, and not {hours} h: {more:?}");
    }
}
