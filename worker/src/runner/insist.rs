//! A store that is out of reach for a while: what was done is not lost for it.

use std::time::Duration;

use imgsync_common::error::Result;
use imgsync_common::retry::{Budget, Policy, Retry};
use tokio_util::sync::CancellationToken;

use super::Runner;

/// How often, and how long in between: some ten minutes in all. Then the broker has another turn.
const PATIENCE: Policy = Policy {
    attempts: 120,
    first_delay: Duration::from_millis(200),
    max_delay: Duration::from_secs(10),
    max_wait: Duration::from_secs(10),
};

impl Runner {
    /// Asks the store until it answers. All that it is asked is safe to ask twice.
    pub(super) async fn insist<T, F>(&self, mut ask: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut retry = Retry::new(PATIENCE, &Budget::new(PATIENCE.attempts));
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    // Who is stopped meanwhile has nothing better to do than to tell what was done.
                    let never = CancellationToken::new();
                    retry
                        .pause(error, &never, |error, attempt, _| {
                            if attempt == 2 {
                                self.warn(&format!("the store does not answer: {error}"));
                            }
                        })
                        .await?;
                }
            }
        }
    }
}
