//! Whether images are read anonymously, though the machine has an identity that nobody named.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After the registry refused an identity, also a fresh one, anonymous access is tried before another login for this long.
const REFUSAL_TTL: Duration = Duration::from_secs(10 * 60);

/// What keeps from using the identity at one registry.
#[derive(Debug, Default)]
pub(crate) struct AnonymousFallback {
    /// When the registry refused the identity for what everybody may read.
    refused_at: Mutex<Option<Instant>>,
    /// Whether the identity is not there for now.
    has_outage: AtomicBool,
}

impl AnonymousFallback {
    /// Records whether the identity is not there for now. Returns whether that was so before.
    pub(super) fn record_outage(&self, has_outage: bool) -> bool {
        self.has_outage.swap(has_outage, Ordering::Relaxed)
    }

    /// Whether images are read anonymously since the identity is not there for now.
    pub(crate) fn has_outage(&self) -> bool {
        self.has_outage.load(Ordering::Relaxed)
    }

    /// Records whether the registry refuses the identity for what everybody may read.
    pub(super) fn record_refusal(&self, is_refused: bool) {
        *self.refused_at.lock().unwrap_or_else(PoisonError::into_inner) = is_refused.then(Instant::now);
    }

    /// Whether the registry refused the identity lately.
    pub(super) fn refuses_identity(&self) -> bool {
        let refused_at = *self.refused_at.lock().unwrap_or_else(PoisonError::into_inner);
        refused_at.is_some_and(|at| at.elapsed() < REFUSAL_TTL)
    }
}
