//! Idempotency key of a request that adds to a counter.

use std::fmt;

use uuid::Uuid;

/// Identifies a request that adds, so that a repeated call, after a lost answer, adds once. Kept for two hours
/// (`REQUEST_TTL_MS` in prelude.lua).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyKey(Uuid);

impl IdempotencyKey {
    /// Generates a new id.
    pub fn generate() -> IdempotencyKey {
        IdempotencyKey(Uuid::now_v7())
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
