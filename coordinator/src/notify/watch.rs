//! Watches whether a registry leaves a batch waiting for long, and tells of it once.

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

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Tells of each registry that asked for a longer pause than is waited for in silence, or has kept a batch waiting for that
/// long. Goes on until dropped. What is known of registries is known for who asks with the settings of this client; `name` is of
/// this process.
pub async fn watch(store: &dyn Store, id: BatchId, client: &Client, notifier: &Notifier, events: &Events, name: &str) {
    if !notifier.has_listeners() {
        return std::future::pending().await;
    }
    let mut since: BTreeMap<RegistryName, Instant> = BTreeMap::new();
    let mut told: BTreeSet<RegistryName> = BTreeSet::new();
    loop {
        let every = LOOK_EVERY.min(notifier.throttled / 4).max(Duration::from_millis(200));
        tokio::time::sleep(every).await;
        // What cannot be known now may be known the next time.
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
