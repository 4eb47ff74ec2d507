//! Notifies once of a registry that holds up a batch for long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use imgsync_common::batch::BatchId;
use imgsync_common::event::{Event, Events};
use imgsync_common::image::RegistryName;
use imgsync_common::registry::Client;
use imgsync_common::store::Store;
use jiff::Timestamp;

use super::{Notifier, Throttled, is_ours};
use crate::batches::holds;

/// Interval between checks of registry holds.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Notifies of each registry that holds up a batch for longer than the configured time. Runs until dropped. Holds are
/// those of the credentials of `client`; `name` is the holder name of this process.
pub async fn watch(store: &dyn Store, id: BatchId, client: &Client, notifier: &Notifier, events: &Events, name: &str) {
    if !notifier.has_listeners() {
        return std::future::pending().await;
    }
    let mut since: BTreeMap<RegistryName, Instant> = BTreeMap::new();
    let mut told: BTreeSet<RegistryName> = BTreeSet::new();
    loop {
        let every = LOOK_EVERY.min(notifier.throttled / 4).max(Duration::from_millis(200));
        tokio::time::sleep(every).await;
        // Errors of the store are ignored until the next check.
        let Ok(Some(batch)) = store.batch(id).await else { continue };
        let Ok(held) = holds(store, &batch, client).await else { continue };
        since.retain(|registry, _| held.iter().any(|(known, _)| known == registry));
        for (registry, hold) in held {
            let waits = since.entry(registry.clone()).or_insert_with(Instant::now).elapsed();
            let is_long = hold.wait.max(waits) >= notifier.throttled;
            if !is_long || !told.insert(registry.clone()) || !is_ours(store, &format!("{id}:{registry}"), name).await {
                continue;
            }
            let until = Timestamp::now().checked_add(hold.wait).unwrap_or(Timestamp::MAX);
            let throttled = Throttled { batch: id, registry, why: hold.why, until, open: batch.counts.open() };
            for message in notifier.tell_throttled(&throttled).await {
                tracing::info!("{message}");
                events.emit(Event::Warning { message });
            }
        }
    }
}
