//! The failures of a batch by class and by registry, added up once however many look.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use imgsync_common::batch::BatchId;
use imgsync_common::error::{Class, Result};
use imgsync_common::store::{Batch, Store};

use super::shape::{ClassGroup, FailureShape, GroupsShape, RegistryGroup};
use crate::report::advice;

/// Failures that are read at a time.
const PAGE: usize = 1_000;
/// Batches of which the groups are kept.
const KEPT: usize = 64;

/// As of how many failures, in which run.
type Key = (u64, u32, usize);

/// What was added up last.
#[derive(Debug, Default)]
pub(super) struct Groups(tokio::sync::Mutex<HashMap<BatchId, (Key, Arc<GroupsShape>)>>);

impl Groups {
    /// The failures of a batch as it stands. One adds up at a time, and the others are given the same.
    pub(super) async fn of(&self, store: &dyn Store, batch: &Batch) -> Result<Arc<GroupsShape>> {
        let mut known = self.0.lock().await;
        let unlisted = store.unlisted(batch.id).await?;
        let key = (batch.counts.failed, batch.run, unlisted.len());
        if let Some((_, groups)) = known.get(&batch.id).filter(|(at, _)| *at == key) {
            return Ok(groups.clone());
        }
        let mut by_class: BTreeMap<Class, (u64, FailureShape)> = BTreeMap::new();
        let mut by_registry: BTreeMap<String, u64> = BTreeMap::new();
        let mut from = 0;
        let mut failed = 0;
        loop {
            let page = store.failures(batch.id, from, PAGE).await?;
            let Some(last) = page.last() else { break };
            from = last.task.index.saturating_add(1);
            for one in &page {
                failed += 1;
                by_class.entry(one.failure.class).or_insert_with(|| (0, FailureShape::of(one))).0 += 1;
                let planned = &one.task.planned;
                let mut ends: Vec<String> = [planned.source.home.end(), planned.target.home.end()]
                    .into_iter()
                    .filter_map(|end| end.registry().map(ToString::to_string))
                    .collect();
                ends.dedup();
                for registry in ends {
                    *by_registry.entry(registry).or_default() += 1;
                }
            }
            if page.len() < PAGE {
                break;
            }
        }
        let class = |(class, (failed, example)): (Class, (u64, FailureShape))| ClassGroup {
            class,
            title: advice::title(class),
            advice: advice::on(class),
            failed,
            example,
        };
        let mut by_class: Vec<ClassGroup> = by_class.into_iter().map(class).collect();
        by_class.sort_by_key(|group| std::cmp::Reverse(group.failed));
        let mut by_registry: Vec<RegistryGroup> =
            by_registry.into_iter().map(|(registry, failed)| RegistryGroup { registry, failed }).collect();
        by_registry.sort_by_key(|group| std::cmp::Reverse(group.failed));
        let groups = Arc::new(GroupsShape { batch: batch.id, failed, by_class, by_registry, unlisted });
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(batch.id, (key, groups.clone()));
        Ok(groups)
    }
}
