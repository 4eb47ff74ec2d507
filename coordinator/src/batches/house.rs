//! What a batch needs around it: a queue, a store, a clock. Chosen here, and nowhere else: the memory queue and SQLite in
//! one process; RabbitMQ and Redis in a cluster.

use std::path::Path;
use std::sync::Arc;

use imgsync_common::batch::BatchId;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::outage::ServerHealth;
use imgsync_common::queue::{MemoryQueue, TaskQueue};
use imgsync_common::store::{Clock, LockHolder, LockUse, RunLock, SqliteStore, Store, SystemClock};
use imgsync_worker::cluster::Cluster;

/// Queue, store and clock.
#[derive(Clone)]
pub struct House {
    /// Carries tasks to workers.
    pub queue: Arc<dyn TaskQueue>,
    /// Remembers.
    pub store: Arc<dyn Store>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// How broker and store stand; none in one process.
    pub health: Vec<ServerHealth>,
    /// None in a cluster.
    sqlite: Option<SqliteStore>,
}

impl House {
    /// Everything in this process, its state in this folder.
    pub async fn embedded(state: &Path) -> Result<House> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let sqlite = SqliteStore::open(state, clock.clone()).await?;
        let (queue, store) = (Arc::new(MemoryQueue::new()), Arc::new(sqlite.clone()));
        Ok(House { queue, store, clock, health: Vec::new(), sqlite: Some(sqlite) })
    }

    /// Shared with workers and other coordinators.
    pub fn of_cluster(cluster: &Cluster) -> House {
        let (queue, store) = (Arc::new(cluster.queue.clone()), Arc::new(cluster.store.clone()));
        let health = cluster.health().into();
        House { queue, store, clock: Arc::new(SystemClock), health, sqlite: None }
    }

    /// Returns a new batch id that is later than all in the store, also where a clock that was wrong has made the newest
    /// of them in the future: the newest batch is the one that was made last.
    pub async fn new_batch_id(&self) -> Result<BatchId> {
        let newest = self.store.batches(1).await?;
        Ok(BatchId::generate_after(newest.first().map(|batch| batch.id)))
    }

    /// Whether others work on it too.
    pub fn is_cluster(&self) -> bool {
        self.sqlite.is_none()
    }

    /// The right to run tasks with this store, which one process has at a time; none in a cluster, where all may.
    pub async fn lock(&self, used_for: LockUse) -> Result<Option<RunLock>> {
        match &self.sqlite {
            Some(store) => store.lock_for_run(used_for).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same, or which process has it.
    pub async fn try_lock(&self, used_for: LockUse) -> Result<std::result::Result<Option<RunLock>, LockHolder>> {
        match &self.sqlite {
            Some(store) => Ok(store.try_lock_for_run(used_for).await?.map(Some)),
            None => Ok(Ok(None)),
        }
    }

    /// The error of a command that cannot go on while this process has the right to run tasks.
    pub fn lock_refusal(&self, holder: &LockHolder) -> Error {
        match &self.sqlite {
            Some(store) => store.lock_refusal(holder),
            None => Error::new(Class::Local, "running tasks", format!("{holder} does")),
        }
    }
}

impl std::fmt::Debug for House {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("House")
    }
}
