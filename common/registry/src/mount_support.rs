//! Mount support of a registry: whether it has mounts, and between which repositories it refused them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_oci::RepositoryName;
use imgsync_oci::generational::GenerationalCache;

/// Refusals expire after this time: permissions change, and failing registries recover.
const REFUSAL_TTL: Duration = Duration::from_secs(10 * 60);
/// Cached pairs of repositories.
const MAX_PAIRS: usize = 2048;

/// Source and target repository of a mount.
type Pair = (RepositoryName, RepositoryName);

/// Mount support of one registry.
#[derive(Debug)]
pub(crate) struct MountSupport {
    unsupported: AtomicBool,
    refused: Mutex<GenerationalCache<Pair, Instant>>,
}

impl Default for MountSupport {
    fn default() -> MountSupport {
        MountSupport { unsupported: AtomicBool::new(false), refused: Mutex::new(GenerationalCache::new(MAX_PAIRS)) }
    }
}

impl MountSupport {
    /// Whether the registry does not support mounts at all.
    pub(crate) fn is_unsupported(&self) -> bool {
        self.unsupported.load(Ordering::Relaxed)
    }

    pub(crate) fn mark_unsupported(&self) {
        self.unsupported.store(true, Ordering::Relaxed);
    }

    /// Whether a mount between these repositories is worth trying.
    pub(crate) fn is_allowed(&self, from: &RepositoryName, to: &RepositoryName) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = (from.clone(), to.clone());
        !self.is_unsupported() && refused.get(&pair).is_none_or(|at| at.elapsed() >= REFUSAL_TTL)
    }

    pub(crate) fn record_refusal(&self, from: &RepositoryName, to: &RepositoryName) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.insert((from.clone(), to.clone()), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_of_one_pair_in_one_direction_and_memory_is_bounded() {
        let mounts = MountSupport::default();
        let name = |n: usize| format!("a/n{n}").parse::<RepositoryName>().unwrap();
        mounts.record_refusal(&name(1), &name(2));
        assert!(!mounts.is_allowed(&name(1), &name(2)));
        assert!(mounts.is_allowed(&name(2), &name(1)) && mounts.is_allowed(&name(1), &name(3)));
        for n in 0..5000 {
            mounts.record_refusal(&name(n), &name(0));
        }
        assert!(mounts.refused.lock().unwrap().len() <= MAX_PAIRS);
        mounts.mark_unsupported();
        assert!(!mounts.is_allowed(&name(7), &name(8)));
    }
}
