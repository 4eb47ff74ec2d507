//! Metrics of hooks: what arrived, what became of it, and how long it took.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Outcomes of notifications and pushes.
const OUTCOMES: [&str; 19] = [
    // Received.
    "accepted",
    "coalesced",
    "repeated",
    "unwanted",
    "deletion",
    "ping",
    // Refused.
    "secret",
    "malformed",
    "too_large",
    "foreign_host",
    "invalid_name",
    "store",
    "timed_out",
    "unknown_hook",
    "host",
    // Found later.
    "loop",
    "outdated",
    "rule_gone",
    "given_up",
];

/// Buckets of the time from a push to its copy, in seconds.
const LAG_BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

struct PushMetrics {
    outcomes: Family<[(&'static str, &'static str); 1], Counter>,
    waits: Counter,
    batches: Counter,
    whole_rules: Counter,
    missed: Counter,
    pending: Gauge,
    unreadable: Gauge,
    last: Gauge<f64, AtomicU64>,
    lag: Histogram,
}

static METRICS: LazyLock<PushMetrics> = LazyLock::new(|| PushMetrics {
    outcomes: Family::default(),
    waits: Counter::default(),
    batches: Counter::default(),
    whole_rules: Counter::default(),
    missed: Counter::default(),
    pending: Gauge::default(),
    unreadable: Gauge::default(),
    last: Gauge::default(),
    lag: Histogram::new(LAG_BUCKETS),
});

/// Registers the metrics.
pub(super) fn register(registry: &mut Registry) {
    for outcome in OUTCOMES {
        drop(METRICS.outcomes.get_or_create(&[("outcome", outcome)]));
    }
    let help = "Notifications of hooks by outcome";
    registry.register("hook_notifications", help, METRICS.outcomes.clone());
    let help = "Times that a tag was asked for again because it did not yet show what was pushed";
    registry.register("hook_tag_waits", help, METRICS.waits.clone());
    registry.register("hook_batches", "Batches of pushes", METRICS.batches.clone());
    let help = "Runs of whole rules because of too many pushes";
    registry.register("hook_whole_rules", help, METRICS.whole_rules.clone());
    let help = "Tags that runs of whole rules copied although a hook should have told of them";
    registry.register("hook_missed_tags", help, METRICS.missed.clone());
    registry.register("hook_pending_pushes", "Pushes that wait for their batch", METRICS.pending.clone());
    let help = "Pending pushes in the store that this version cannot read";
    registry.register("hook_unreadable_pushes", help, METRICS.unreadable.clone());
    let help = "When a notification was last accepted";
    registry.register_with_unit("hook_last_notification_timestamp", help, Unit::Seconds, METRICS.last.clone());
    let help = "Time from the first notification of a push to the end of its batch";
    registry.register_with_unit("hook_lag", help, Unit::Seconds, METRICS.lag.clone());
}

/// Counts notifications or pushes by outcome.
pub(crate) fn count(outcome: &'static str, number: u64) {
    debug_assert!(OUTCOMES.contains(&outcome), "{outcome}");
    METRICS.outcomes.get_or_create(&[("outcome", outcome)]).inc_by(number);
}

/// Counts a pause before a tag is asked for again.
pub(crate) fn count_wait() {
    METRICS.waits.inc();
}

/// Counts a batch of pushes.
pub(crate) fn count_batch() {
    METRICS.batches.inc();
}

/// Counts a run of a whole rule because of too many pushes.
pub(crate) fn count_whole_rule() {
    METRICS.whole_rules.inc();
}

/// Counts tags that a run of a whole rule copied.
pub(crate) fn count_missed(tags: u64) {
    METRICS.missed.inc_by(tags);
}

/// Sets the number of pending pushes.
pub(crate) fn set_pending(pushes: usize) {
    METRICS.pending.set(i64::try_from(pushes).unwrap_or(i64::MAX));
}

/// Sets the number of pending pushes that cannot be read.
pub(crate) fn set_unreadable(pushes: u64) {
    METRICS.unreadable.set(i64::try_from(pushes).unwrap_or(i64::MAX));
}

/// Sets the time of the last accepted notification.
pub(crate) fn set_last(seconds: f64) {
    METRICS.last.set(seconds);
}

/// Records the time from a push to the end of its batch.
pub(crate) fn observe_lag(lag: Duration) {
    METRICS.lag.observe(lag.as_secs_f64());
}

/// Returns the number of pending pushes.
pub(crate) fn pending() -> u64 {
    METRICS.pending.get().unsigned_abs()
}

/// Returns when a notification was last accepted, in seconds since 1970; 0 if none was.
pub(crate) fn last() -> i64 {
    METRICS.last.get() as i64
}

/// Returns how many notifications had each outcome since the start.
pub(crate) fn outcomes() -> Vec<(&'static str, u64)> {
    OUTCOMES.map(|outcome| (outcome, METRICS.outcomes.get_or_create(&[("outcome", outcome)]).get())).into()
}
