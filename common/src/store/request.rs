//! The name of a request that adds to something.

use std::fmt;

use uuid::Uuid;

/// Names a request that adds, so that a store that is asked twice, because the answer was lost, adds once. Remembered for
/// two hours (`REQUEST_KEPT` in prelude.lua).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId(Uuid);

impl RequestId {
    /// A new one.
    pub fn generate() -> RequestId {
        RequestId(Uuid::now_v7())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
