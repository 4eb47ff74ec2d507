//! When schedules were last begun. See [`Schedules`].

use async_trait::async_trait;
use jiff::Timestamp;

use crate::batch::BatchId;
use crate::error::Result;

/// What is known of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// From when its next time is counted: when it was last begun, or first seen. To the millisecond.
    pub at: Timestamp,
    /// The batch that was begun then.
    pub batch: Option<BatchId>,
}

/// Remembers when schedules were begun, so that what was missed is caught up.
///
/// # Contract
/// The last word on a name stays.
#[async_trait]
pub trait Schedules: Send + Sync {
    /// A schedule of this name was begun, or seen for the first time.
    async fn note_schedule(&self, name: &str, begun: Begun) -> Result<()>;

    /// What is known, by name.
    async fn schedules(&self) -> Result<Vec<(String, Begun)>>;
}
