//! The failures of a batch by class and by registry, added up once however many look.

use std::sync::Arc;

use imgsync_common::batch::BatchId;
use imgsync_common::error::Result;
use imgsync_common::generational::GenerationalCache;
use imgsync_common::store::{Batch, Store};

use super::shape::GroupsShape;
use crate::report::failure_groups::FailureGroups;

/// Batches of which the groups are kept.
const KEPT: usize = 64;

/// As of how many failures, in which run.
type Key = (u64, u32, usize);

/// What was added up last.
#[derive(Debug)]
pub(super) struct Groups(tokio::sync::Mutex<GenerationalCache<BatchId, (Key, Arc<GroupsShape>)>>);

impl Default for Groups {
    fn default() -> Groups {
        Groups(tokio::sync::Mutex::new(GenerationalCache::new(KEPT)))
    }
}

impl Groups {
    /// The failures of a batch as it stands. One adds up at a time, and the others are given the same.
    pub(super) async fn of(&self, store: &dyn Store, batch: &Batch) -> Result<Arc<GroupsShape>> {
        let mut known = self.0.lock().await;
        let unlisted = store.unlisted(batch.id).await?;
        let key = (batch.counts.failed, batch.run, unlisted.len());
        if let Some((_, groups)) = known.get(&batch.id).filter(|known| known.0 == key) {
            return Ok(groups.clone());
        }
        let groups = FailureGroups::read(store, batch.id, unlisted).await?;
        let groups = Arc::new(GroupsShape { batch: batch.id, groups });
        known.insert(batch.id, (key, groups.clone()));
        Ok(groups)
    }
}
