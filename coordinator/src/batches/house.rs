//! What a batch needs around it: a queue, a store, a clock. Chosen here, and nowhere else: the memory queue and SQLite in
//! one process.

use std::path::Path;
use std::sync::Arc;

use imgsync_common::error::Result;
use imgsync_common::queue::{MemoryQueue, TaskQueue};
use imgsync_common::store::{Clock, RunLock, SqliteStore, Store, SystemClock};

/// Queue, store and clock.
#[derive(Clone)]
pub struct House {
    /// Carries tasks to workers.
    pub queue: Arc<dyn TaskQueue>,
    /// Remembers.
    pub store: Arc<dyn Store>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    sqlite: SqliteStore,
}

impl House {
    /// Everything in this process, its state in this folder.
    pub async fn embedded(state: &Path) -> Result<House> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let sqlite = SqliteStore::open(state, clock.clone()).await?;
        Ok(House { queue: Arc::new(MemoryQueue::new()), store: Arc::new(sqlite.clone()), clock, sqlite })
    }

    /// The right to run tasks with this store; one process has it at a time.
    pub fn lock(&self) -> Result<RunLock> {
        self.sqlite.lock_for_run()
    }

    /// How many bytes the store has on disk.
    pub async fn store_bytes(&self) -> Result<u64> {
        self.sqlite.bytes_on_disk().await
    }
}

impl std::fmt::Debug for House {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("House")
    }
}
