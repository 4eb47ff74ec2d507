//! Failures of a batch by error kind and registry, computed once for all clients.

use std::sync::Arc;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::Result;
use imgsync_oci::generational::GenerationalCache;
use imgsync_store::{Batch, Store};

use super::dto::FailureGroupsResponse;
use crate::report::failure_groups::FailureGroups;

const MAX_CACHED_BATCHES: usize = 64;
/// Limit of listing failures in the groups; `/batches/ID/unlisted` returns all of them in pages.
const MAX_UNLISTED: usize = 50;

/// Failed tasks, run and failed listings: the state that the groups were computed from.
type CacheKey = (u64, u32, u64);

/// Caches the failure groups of batches.
#[derive(Debug)]
pub(super) struct FailureGroupCache(
    tokio::sync::Mutex<GenerationalCache<BatchId, (CacheKey, Arc<FailureGroupsResponse>)>>,
);

impl Default for FailureGroupCache {
    fn default() -> FailureGroupCache {
        FailureGroupCache(tokio::sync::Mutex::new(GenerationalCache::new(MAX_CACHED_BATCHES)))
    }
}

impl FailureGroupCache {
    /// Returns the current failure groups of a batch. One caller computes them; concurrent callers get the same
    /// result.
    pub(super) async fn get_or_compute(&self, store: &dyn Store, batch: &Batch) -> Result<Arc<FailureGroupsResponse>> {
        let mut known = self.0.lock().await;
        let unlisted = store.count_records(&[batch.id]).await?.first().copied().unwrap_or_default().unlisted;
        let key = (batch.counts.failed, batch.run, unlisted);
        if let Some((_, groups)) = known.get(&batch.id).filter(|known| known.0 == key) {
            return Ok(groups.clone());
        }
        let unlisted = store.listing_failures(batch.id).await?;
        let unlisted_total = unlisted.len();
        let shown = unlisted.into_iter().take(MAX_UNLISTED).collect();
        let groups = FailureGroups::read(store, batch.id, shown).await?;
        let groups = Arc::new(FailureGroupsResponse { batch: batch.id, unlisted_total, groups });
        known.insert(batch.id, (key, groups.clone()));
        Ok(groups)
    }
}
