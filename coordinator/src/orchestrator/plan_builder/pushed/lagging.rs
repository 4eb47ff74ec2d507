//! Pushes that a batch has not found, because their tags do not show them yet.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use imgsync_model::batch::BatchId;

/// Pushes of a batch whose tags do not show what was pushed. They are asked for again in another batch. Clones share
/// them.
#[derive(Debug, Clone, Default)]
pub struct LaggingPushes(Arc<Mutex<HashSet<String>>>);

impl LaggingPushes {
    /// Returns whether a push is one of them, by its name ([`describe_push`](super::describe_push)).
    pub(crate) fn contains(&self, push: &str) -> bool {
        self.pushes().contains(push)
    }

    pub(super) fn insert(&self, push: String) {
        self.pushes().insert(push);
    }

    fn pushes(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lagging pushes of batches, for as long as somebody else waits for them: a listing that breaks off goes on with
/// those that it has found before.
#[derive(Debug, Default)]
pub struct LaggingByBatch(HashMap<BatchId, Weak<Mutex<HashSet<String>>>>);

impl LaggingByBatch {
    /// Adds the pushes of a batch, and forgets those that nobody waits for.
    pub fn insert(&mut self, batch: BatchId, lagging: &LaggingPushes) {
        self.0.retain(|_, pushes| pushes.strong_count() > 0);
        self.0.insert(batch, Arc::downgrade(&lagging.0));
    }

    /// Returns the pushes of a batch, or an empty set.
    pub fn find(&self, batch: BatchId) -> LaggingPushes {
        self.0.get(&batch).and_then(Weak::upgrade).map(LaggingPushes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pushes_of_a_batch_are_shared_until_nobody_waits_for_them() {
        let [first, second] = [0, 1].map(|_| BatchId::generate());
        let (mut by_batch, waited_for) = (LaggingByBatch::default(), LaggingPushes::default());
        by_batch.insert(first, &waited_for);
        by_batch.insert(second, &LaggingPushes::default());
        by_batch.find(first).insert("r.example/a:1".to_owned());
        assert!(waited_for.contains("r.example/a:1") && by_batch.find(first).contains("r.example/a:1"));
        assert!(!by_batch.find(second).contains("r.example/a:1"));
        by_batch.insert(second, &LaggingPushes::default());
        assert_eq!(by_batch.0.len(), 2, "{by_batch:?}");
        drop(waited_for);
        assert!(!by_batch.find(first).contains("r.example/a:1"));
        by_batch.insert(second, &LaggingPushes::default());
        assert_eq!(by_batch.0.len(), 1);
    }
}
