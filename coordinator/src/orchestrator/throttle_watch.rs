//! Notifies once of a registry that holds up a batch for long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use imgsync_model::batch::BatchId;
use imgsync_oci::RegistryName;
use imgsync_registry::Client;
use imgsync_registry::event::{Event, Events};
use imgsync_store::{LeaseResult, Store};
use jiff::Timestamp;

use super::coverage::rate_limit_holds;
use crate::notify::{Notifier, ThrottleNotice};

/// Interval between checks of registry holds.
const HOLD_POLL_INTERVAL: Duration = Duration::from_secs(10);
/// TTL of the claim to notify of a hold: longer than the time in which two coordinators may notice the same one.
const NOTIFICATION_CLAIM_TTL: Duration = Duration::from_secs(3600);

/// Notifies of each registry that holds up a batch for longer than the configured time. Runs until dropped. Holds are
/// those of the credentials of `client`; `name` is the holder name of this process.
pub async fn watch_throttling(
    store: &dyn Store,
    id: BatchId,
    client: &Client,
    notifier: &Notifier,
    events: &Events,
    name: &str,
) {
    if !notifier.wants_throttle_notices() {
        return std::future::pending().await;
    }
    let threshold = notifier.throttle_threshold();
    // A process that leads again claims anew: it does not send what it has sent before.
    let name = format!("{name} {}", BatchId::generate());
    let mut since: BTreeMap<RegistryName, Instant> = BTreeMap::new();
    let mut reported: BTreeSet<RegistryName> = BTreeSet::new();
    loop {
        let every = HOLD_POLL_INTERVAL.min(threshold / 4).max(Duration::from_millis(200));
        tokio::time::sleep(every).await;
        // Errors of the store are ignored until the next check.
        let Ok(Some(batch)) = store.batch(id).await else { continue };
        let Ok(held) = rate_limit_holds(store, &batch, client).await else { continue };
        since.retain(|registry, _| held.iter().any(|(known, _)| known == registry));
        for (registry, hold) in held {
            let waits = since.entry(registry.clone()).or_insert_with(Instant::now).elapsed();
            let is_long = hold.wait.max(waits) >= threshold;
            if !is_long
                || !reported.insert(registry.clone())
                || !claim_notification(store, &format!("{id}:{registry}"), &name).await
            {
                continue;
            }
            let until = Timestamp::now().checked_add(hold.wait).unwrap_or(Timestamp::MAX);
            let throttled =
                ThrottleNotice { batch: id, registry, why: hold.reason, until, open: batch.counts.unfinished() };
            for message in notifier.send_throttle_notice(&throttled).await {
                tracing::info!("{message}");
                events.emit(Event::Warning { message });
            }
        }
    }
}

/// Claims a notification, so that one of several coordinators sends it. If the store does not respond, each sends it.
async fn claim_notification(store: &dyn Store, what: &str, name: &str) -> bool {
    !matches!(
        store.acquire(&format!("notified:{what}"), name, NOTIFICATION_CLAIM_TTL).await,
        Ok(LeaseResult::HeldBy { .. })
    )
}
