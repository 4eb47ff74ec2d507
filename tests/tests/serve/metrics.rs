//! Metrics of rules: success, failures, and out-of-date tags.

use std::time::{Duration, Instant};

use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::images::TestImage;
use imgsync_tests::{ServeProcess, TestCluster};
use serde_json::{Value, json};

use crate::support::{ServeFixture, rule};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits for metrics that match the predicate; they are updated every few seconds.
async fn wait_for_metrics(served: &ServeProcess, wanted: impl Fn(&str) -> bool) -> String {
    let started = Instant::now();
    loop {
        let text = served.fetch("/metrics").await.text().await.unwrap();
        if wanted(&text) {
            return text;
        }
        assert!(started.elapsed() < WAIT_TIMEOUT, "not so within {WAIT_TIMEOUT:?}:\n{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Returns the value of a metric by its name and labels.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

fn rule_sample_value(text: &str, name: &str, rule: &str) -> Option<f64> {
    value(text, &format!("imgsync_rule_{name}{{rule=\"{rule}\"}}"))
}

fn ended(batch: &Value) -> f64 {
    let at: jiff::Timestamp = batch["ended"].as_str().unwrap().parse().unwrap();
    at.as_millisecond() as f64 / 1000.0
}

#[tokio::test]
async fn a_rule_is_good_where_all_was_listed_and_nothing_failed_and_its_tags_out_of_date_are_counted() {
    let fixture = ServeFixture::new(&["a"], 3).await;
    let denied = RequestMatcher::kind(RequestType::ManifestPut).reference("v1");
    let denied = fixture.target.on(denied).always().act(FaultAction::error(403, "DENIED"));
    let served = fixture.serve(&[("a", "{every: 1h}"), ("late", "{every: 2h, jitter: 30m}")]).await;
    let batches = served.wait_for_ended_batches(2).await;
    let (_, schedules) = served.get("schedules").await;
    let name = |repository: &str| rule(&schedules, repository)["name"].as_str().unwrap().to_owned();
    let (failing, unlisted) = (name("a"), name("late"));

    let text = wait_for_metrics(&served, |text| rule_sample_value(text, "last_unlisted", &unlisted) == Some(1.0)).await;
    assert_eq!(value(&text, "imgsync_last_good_batch_end_timestamp_seconds"), Some(0.0), "none was good:\n{text}");
    let info = format!("imgsync_rule_info{{rule=\"{failing}\",from=\"{}/a\"", fixture.source.host());
    assert!(text.lines().any(|line| line.starts_with(&info)), "{info} in\n{text}");
    for (rule, interval) in [(&failing, 3600.0), (&unlisted, 9000.0)] {
        assert_eq!(rule_sample_value(&text, "last_good_end_timestamp_seconds", rule), None, "{text}");
        assert_eq!(rule_sample_value(&text, "interval_seconds", rule), Some(interval), "{text}");
        let began = rule_sample_value(&text, "last_start_timestamp_seconds", rule).unwrap();
        assert!(began <= rule_sample_value(&text, "last_end_timestamp_seconds", rule).unwrap(), "{text}");
        assert_eq!(rule_sample_value(&text, "watched_since_timestamp_seconds", rule), Some(began), "{text}");
    }
    let outcome = |text: &str, outcome: &str| {
        value(text, &format!("imgsync_rule_last_tasks{{rule=\"{failing}\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!((outcome(&text, "copied"), outcome(&text, "failed")), (Some(2.0), Some(1.0)), "{text}");
    assert_eq!(rule_sample_value(&text, "outdated_tags", &failing), Some(1.0), "{text}");

    // The failure is repaired, and the unlisted repository exists.
    denied.remove();
    let bad = batches.iter().find(|batch| batch["counts"]["failed"] == 1).unwrap()["batch"].as_str().unwrap();
    served.post(&format!("batches/{bad}/requeue"), &json!({})).await;
    let is_good = |batch: &Value| batch["counts"]["copied"] == 3 && !batch["ended"].is_null();
    let end = ended(&served.wait_for(&format!("batches/{bad}"), is_good).await);
    let text = wait_for_metrics(&served, |text| {
        rule_sample_value(text, "last_good_end_timestamp_seconds", &failing) == Some(end)
    })
    .await;
    assert_eq!(rule_sample_value(&text, "outdated_tags", &failing), Some(0.0), "{text}");
    assert_eq!(rule_sample_value(&text, "last_good_end_timestamp_seconds", &unlisted), None, "{text}");
    assert_eq!(value(&text, "imgsync_last_good_batch_end_timestamp_seconds"), Some(end), "{text}");
    fixture.source.push("late", "v1", &TestImage::single("late").build());
    let encoded = unlisted.replace('/', "%2F").replace(':', "%3A");
    let (status, answer) = served.post(&format!("schedules/{encoded}/start"), &json!({})).await;
    assert_eq!(status, 202, "{answer}");
    let text = wait_for_metrics(&served, |text| {
        rule_sample_value(text, "last_good_end_timestamp_seconds", &unlisted) > Some(end)
    })
    .await;
    assert_eq!(rule_sample_value(&text, "last_unlisted", &unlisted), Some(0.0), "{text}");
}

#[tokio::test]
async fn a_store_that_is_down_is_told_apart_from_a_broker_that_is() {
    let mut cluster = TestCluster::start();
    let fixture = ServeFixture::new(&["a"], 1).await;
    let served = ServeProcess::start(&cluster.imgsync(&fixture.config(&[("a", "")])), &[]).await;
    let up = |text: &str| [value(text, "imgsync_store_up"), value(text, "imgsync_broker_up")];
    wait_for_metrics(&served, |text| up(text) == [Some(1.0), Some(1.0)]).await;
    cluster.store.kill();
    let text = wait_for_metrics(&served, |text| up(text)[0] == Some(0.0)).await;
    assert_eq!(up(&text), [Some(0.0), Some(1.0)], "{text}");
    cluster.store.restart();
    wait_for_metrics(&served, |text| up(text) == [Some(1.0), Some(1.0)]).await;
}
