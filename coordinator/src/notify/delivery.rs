//! Delivery of notifications of a batch's end. The leader retries failed ones, also after a change of leadership; the
//! store records which were delivered.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use imgsync_config::{Config, Rule};
use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::format_duration;
use imgsync_registry::event::{Event, Events};
use imgsync_store::{Batch, Clock, LeaseGuard, Store, TryAcquireResult};
use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio_util::sync::CancellationToken;

use super::notification::Notification;
use super::{Notifier, send_to};
use crate::push_rechecks::are_failures_rechecked;
use crate::report::{Report, ReportLevel};

/// Time after the end of a batch when undelivered notifications are given up.
pub(crate) const DELIVERY_WINDOW: Duration = Duration::from_secs(60 * 60);
/// Pause after the first round with a failure, which doubles with each further one, and the maximum pause.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5 * 60));
/// TTL of the delivery lease, which is renewed: another process continues this long after a crash.
const DELIVERY_LEASE_TTL: Duration = Duration::from_secs(8);
/// Interval between checks whether another process has delivered.
const DELIVERY_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Counters of notifications by result.
static NOTIFICATIONS: LazyLock<Family<[(&'static str, &'static str); 1], Counter>> = LazyLock::new(Family::default);

/// Returns the counters of notifications, for `/metrics`.
pub(crate) fn notification_counters() -> Family<[(&'static str, &'static str); 1], Counter> {
    for result in ["delivered", "failed", "given_up"] {
        drop(NOTIFICATIONS.get_or_create(&[("result", result)]));
    }
    NOTIFICATIONS.clone()
}

fn count_notifications(result: &'static str, notifications: u64) {
    NOTIFICATIONS.get_or_create(&[("result", result)]).inc_by(notifications);
}

/// Mark for all notifications of a batch having been delivered or given up. It contains the run, because a requeued
/// batch ends again.
fn all_delivered_mark(batch: &Batch) -> String {
    batch.run.to_string()
}

/// Sends the undelivered notifications of a batch's end. Returns the failures, or `None` if another process is sending.
/// If the store cannot grant the lease, sends all.
pub async fn deliver_once(
    store: &Arc<dyn Store>,
    report: &Report<'_>,
    notifier: &Notifier,
    level: ReportLevel,
    holder: &str,
) -> Result<Option<Vec<String>>> {
    let id = report.batch.id;
    match LeaseGuard::try_acquire(store.clone(), &format!("notifying:{id}"), holder, DELIVERY_LEASE_TTL).await {
        Err(error) => {
            tracing::warn!("{error}");
            Ok(Some(notifier.send(report, level).await))
        }
        Ok(TryAcquireResult::HeldBy(_)) => Ok(None),
        Ok(TryAcquireResult::Acquired(guard)) => {
            let delivered = guard.run(deliver_round(&**store, report, notifier, level)).await.unwrap_or_else(|| {
                let operation = format!("sending notifications of batch {id}");
                Err(Error::new(ErrorKind::Unreachable, operation, "the lease was lost"))
            });
            guard.release().await;
            delivered.map(Some)
        }
    }
}

async fn deliver_round(
    store: &dyn Store,
    report: &Report<'_>,
    notifier: &Notifier,
    level: ReportLevel,
) -> Result<Vec<String>> {
    let (id, all) = (report.batch.id, all_delivered_mark(&report.batch));
    let sent: BTreeSet<String> = store.sent_notifications(id).await?.into_iter().collect();
    let mut warnings = Vec::new();
    if sent.contains(&all) {
        return Ok(warnings);
    }
    let notification = Notification::BatchEnded { report, level };
    for (name, target) in notifier.targets_for(notification.event()) {
        let mark = format!("{all} {name}");
        if sent.contains(&mark) {
            continue;
        }
        match send_to(target, &notification).await {
            Ok(()) => {
                count_notifications("delivered", 1);
                store.record_notification(id, &mark).await?;
            }
            Err(warning) => {
                count_notifications("failed", 1);
                warnings.push(warning);
            }
        }
    }
    if warnings.is_empty() {
        store.record_notification(id, &all).await?;
    }
    Ok(warnings)
}

/// Returns whether a batch ended recently enough to notify.
pub(crate) fn is_within_delivery_window(batch: &Batch, now: Timestamp) -> bool {
    let limit = SignedDuration::try_from(DELIVERY_WINDOW).unwrap_or(SignedDuration::MAX);
    batch.ended_at.is_some_and(|ended| now.duration_since(ended) < limit)
}

/// Delivers the notifications of a batch's end until none is left. Returns whether all were delivered or given up, and
/// returns at once before the end of the batch or when `stop` is cancelled.
pub(crate) async fn deliver(
    (store, clock): (&Arc<dyn Store>, &dyn Clock),
    id: BatchId,
    current: impl Fn() -> (Arc<Notifier>, Arc<Config>),
    (events, holder): (&Events, &str),
    stop: &CancellationToken,
) -> Result<bool> {
    let mut rounds: u32 = 0;
    while !stop.is_cancelled() {
        let (notifier, config) = current();
        let mut report = Report::load(&**store, id).await?;
        report.dashboard = notifier.dashboard().map(str::to_owned);
        if notifier.is_empty() || report.batch.ended_at.is_none() {
            return Ok(false);
        }
        if report.options.pushed.is_some() && report.is_ok() {
            // There may be thousands a day, and a ping would hide that no run of the whole rule ends.
            return Ok(true);
        }
        if report.options.pushed.is_some() && has_only_rechecked_failures(&**store, clock, &report, &config).await? {
            // Signatures come after the push. The last check is notified of.
            store.record_notification(id, &all_delivered_mark(&report.batch)).await?;
            return Ok(true);
        }
        let pause = match deliver_once(store, &report, &notifier, ReportLevel::Failures, holder).await? {
            None => DELIVERY_POLL_INTERVAL,
            Some(warnings) if warnings.is_empty() => return Ok(true),
            Some(warnings) => {
                rounds += 1;
                let pause = PAUSES.0.saturating_mul(1 << (rounds - 1).min(10)).min(PAUSES.1);
                let is_over = !is_within_delivery_window(&report.batch, clock.now());
                let what_next = match is_over {
                    true => format!("giving up {} after the end of the batch", format_duration(DELIVERY_WINDOW)),
                    false => format!("retrying in {}", format_duration(pause)),
                };
                for warning in &warnings {
                    warn(events, &format!("batch {id}: {warning}; {what_next}"));
                }
                if is_over {
                    count_notifications("given_up", warnings.len() as u64);
                    store.record_notification(id, &all_delivered_mark(&report.batch)).await?;
                    return Ok(true);
                }
                pause
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
    Ok(false)
}

/// Returns whether all that failed in a batch of pushes was refused by policy, and is checked again within minutes.
async fn has_only_rechecked_failures(
    store: &dyn Store,
    clock: &dyn Clock,
    report: &Report<'_>,
    config: &Config,
) -> Result<bool> {
    if !report.has_only_failed_images() {
        return Ok(false);
    }
    let is_of_batch = |rule: &&Rule| report.options.rules.iter().any(|its| its.name == rule.title());
    let rules = config.rules.iter().filter(is_of_batch).map(Rule::id).collect();
    are_failures_rechecked(store, &report.batch, &rules, clock.now()).await
}

fn warn(events: &Events, message: &str) {
    events.emit(Event::Warning { message: message.to_owned() });
}
