//! Failures of a batch by error kind and registry, computed once for all clients.

use std::sync::Arc;

use imgsync_common::batch::BatchId;
use imgsync_common::error::Result;
use imgsync_common::generational::GenerationalCache;
use imgsync_common::store::{Batch, Store};

use super::shape::GroupsShape;
use crate::report::failure_groups::FailureGroups;

const KEPT: usize = 64;

/// Failed tasks, run and failed listings: the state that the groups were computed from.
type Key = (u64, u32, usize);

/// Caches the failure groups of batches.
#[derive(Debug)]
pub(super) struct Groups(tokio::sync::Mutex<GenerationalCache<BatchId, (Key, Arc<GroupsShape>)>>);

impl Default for Groups {
    fn default() -> Groups {
        Groups(tokio::sync::Mutex::new(GenerationalCache::new(KEPT)))
    }
}

impl Groups {
    /// Returns the current failure groups of a batch. One caller computes them; concurrent callers get the same
    /// result.
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
