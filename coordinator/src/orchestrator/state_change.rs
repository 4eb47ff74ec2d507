//! Changes of a batch's state by a user: pause, resume, cancel. A store that fails over may lose the change after it has
//! confirmed it. So whoever made it watches over it for a while, and makes it again.

use std::sync::Arc;
use std::time::Duration;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::Result;
use imgsync_store::{BatchState, Store};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// How long a change is watched over: a master that was replaced may confirm writes for some ten seconds more.
pub(crate) const CONFIRMATION_TIME: Duration = Duration::from_secs(15);

/// A change of a batch's state.
pub(crate) struct StateChange {
    store: Arc<dyn Store>,
    batch: BatchId,
    wanted: BatchState,
    losses: Option<watch::Receiver<u64>>,
}

impl StateChange {
    /// Prepares the change of a batch to paused, running or cancelled.
    pub(crate) fn new(store: Arc<dyn Store>, batch: BatchId, wanted: BatchState) -> StateChange {
        let losses = store.write_losses();
        StateChange { store, batch, wanted, losses }
    }

    /// Prepares the change for a command. Returns with it whether a failover of the store may lose it, so that the command
    /// has to [`confirm`](StateChange::confirm) it before it ends.
    pub(crate) fn by_command(store: Arc<dyn Store>, batch: BatchId, wanted: BatchState) -> (StateChange, bool) {
        let may_be_lost = store.has_replicas();
        if may_be_lost {
            store.watch_for_write_losses();
        }
        (StateChange::new(store, batch, wanted), may_be_lost)
    }

    /// Makes the change. Returns the state afterwards, which is another one if the batch has ended.
    pub(crate) async fn apply(&self) -> Result<BatchState> {
        match self.wanted {
            BatchState::Paused => self.store.pause(self.batch).await,
            BatchState::Running => self.store.resume(self.batch).await,
            BatchState::Cancelled | BatchState::Superseded | BatchState::Done => self.store.cancel(self.batch).await,
        }
    }

    /// Watches over the change for [`CONFIRMATION_TIME`], and makes it again if the store loses it. Returns whether it
    /// did.
    pub(crate) async fn confirm(mut self) -> Result<bool> {
        let Some(mut losses) = self.losses.take() else { return Ok(false) };
        let until = Instant::now() + CONFIRMATION_TIME;
        // A loss before the store counted the change leaves no other trace.
        let mut was_lost = self.repeat_if_lost().await?;
        while let Ok(Ok(())) = timeout_at(until, losses.changed()).await {
            was_lost |= self.repeat_if_lost().await?;
        }
        // Nobody else makes a cancelled batch live again. A store that is just failing over answers when it has.
        if self.wanted == BatchState::Cancelled {
            was_lost |= self.repeat_if_lost().await?;
        }
        Ok(was_lost)
    }

    async fn repeat_if_lost(&self) -> Result<bool> {
        let state = self.store.batch_state(self.batch).await?;
        let is_lost = state.is_some_and(|state| state.is_live() && state != self.wanted);
        if is_lost {
            self.apply().await?;
            tracing::warn!(
                "batch {}: the store had lost that it is {}, as after a failover: it is {} again",
                self.batch,
                self.wanted,
                self.wanted
            );
        }
        Ok(is_lost)
    }
}
