//! Telling of a batch's end until all have heard of it: whoever leads tries again what could not be told, also after another
//! has begun. Whom it was told to is kept with the batch.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use imgsync_common::batch::BatchId;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Event, Events};
use imgsync_common::retry::seconds;
use imgsync_common::store::{Batch, Clock, LeaseGuard, Leased, Store};
use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio_util::sync::CancellationToken;

use super::Notifier;
use crate::report::{Level, Report};

/// For how long after its end it is tried to tell of a batch: who is out of reach for longer looks for himself.
pub(crate) const TELL_FOR: Duration = Duration::from_secs(60 * 60);
/// The pause after the first round in which somebody could not be told, which doubles with each further one, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5 * 60));
/// The term of the lease of who tells, which is renewed: another goes on this long after that was killed.
const TERM: Duration = Duration::from_secs(15);
/// How often it is looked whether another, who tells, has done so.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Notifications of batches' ends, by result.
static NOTIFICATIONS: LazyLock<Family<[(&'static str, &'static str); 1], Counter>> = LazyLock::new(Family::default);

/// The counters of notifications, for `/metrics`.
pub(crate) fn notifications() -> Family<[(&'static str, &'static str); 1], Counter> {
    for result in ["delivered", "failed", "given_up"] {
        drop(NOTIFICATIONS.get_or_create(&[("result", result)]));
    }
    NOTIFICATIONS.clone()
}

fn count(result: &'static str, notifications: u64) {
    NOTIFICATIONS.get_or_create(&[("result", result)]).inc_by(notifications);
}

/// What is noted once all have heard of the end of a batch, or were given up: requeued, it ends again.
fn all_told(batch: &Batch) -> String {
    batch.run.to_string()
}

/// Tells those who have not heard of a batch's end. Says whom it could not tell, and why; none where another is telling.
/// Where the store does not say who tells, nobody stays silent.
pub async fn tell_once(
    store: &Arc<dyn Store>,
    report: &Report<'_>,
    notifier: &Notifier,
    level: Level,
    holder: &str,
) -> Result<Option<Vec<String>>> {
    let id = report.batch.id;
    match LeaseGuard::try_acquire(store.clone(), &format!("telling:{id}"), holder, TERM).await {
        Err(error) => {
            tracing::warn!("{error}");
            Ok(Some(notifier.tell(report, level).await))
        }
        Ok(Leased::HeldBy(_)) => Ok(None),
        Ok(Leased::Acquired(guard)) => {
            let told = tokio::select! {
                told = round(&**store, report, notifier, level) => told,
                () = guard.lost().cancelled() => {
                    Err(Error::new(Class::Unreachable, format!("telling of batch {id}"), "the lease was lost"))
                }
            };
            guard.release().await;
            told.map(Some)
        }
    }
}

async fn round(store: &dyn Store, report: &Report<'_>, notifier: &Notifier, level: Level) -> Result<Vec<String>> {
    let (id, all) = (report.batch.id, all_told(&report.batch));
    let told: BTreeSet<String> = store.told(id).await?.into_iter().collect();
    let mut warnings = Vec::new();
    if told.contains(&all) {
        return Ok(warnings);
    }
    for (name, recipient) in notifier.recipients(report) {
        let mark = format!("{all} {name}");
        if told.contains(&mark) {
            continue;
        }
        match notifier.tell_one(&recipient, report, level).await {
            Ok(()) => {
                count("delivered", 1);
                store.note_told(id, &mark).await?;
            }
            Err(warning) => {
                count("failed", 1);
                warnings.push(warning);
            }
        }
    }
    if warnings.is_empty() {
        store.note_told(id, &all).await?;
    }
    Ok(warnings)
}

/// Whether a batch ended so lately that its end is worth telling.
pub(crate) fn is_news(batch: &Batch, now: Timestamp) -> bool {
    let limit = SignedDuration::try_from(TELL_FOR).unwrap_or(SignedDuration::MAX);
    batch.ended_at.is_some_and(|ended| now.duration_since(ended) < limit)
}

/// Tells of a batch's end until all have heard of it or were given up; returns whether there is nothing more to tell.
/// Before its end, and once `stop` is cancelled, it returns at once.
pub(crate) async fn deliver(
    (store, clock): (&Arc<dyn Store>, &dyn Clock),
    id: BatchId,
    notifier: impl Fn() -> Arc<Notifier>,
    (events, holder): (&Events, &str),
    stop: &CancellationToken,
) -> Result<bool> {
    let mut rounds: u32 = 0;
    while !stop.is_cancelled() {
        let notifier = notifier();
        let report = Report::of(&**store, id).await?;
        if notifier.is_empty() || report.batch.ended_at.is_none() {
            return Ok(false);
        }
        let pause = match tell_once(store, &report, &notifier, Level::Failures, holder).await? {
            None => LOOK_AGAIN,
            Some(warnings) if warnings.is_empty() => return Ok(true),
            Some(warnings) => {
                rounds += 1;
                let pause = PAUSES.0.saturating_mul(1 << (rounds - 1).min(10)).min(PAUSES.1);
                let is_over = !is_news(&report.batch, clock.now());
                let what_next = match is_over {
                    true => format!("given up {} after the batch has ended", seconds(TELL_FOR)),
                    false => format!("again in {}", seconds(pause)),
                };
                for warning in &warnings {
                    warn(events, &format!("batch {id}: {warning}; {what_next}"));
                }
                if is_over {
                    count("given_up", warnings.len() as u64);
                    store.note_told(id, &all_told(&report.batch)).await?;
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

fn warn(events: &Events, message: &str) {
    events.emit(Event::Warning { message: message.to_owned() });
}
