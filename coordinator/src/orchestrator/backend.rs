//! Backend of a batch: queue, store and clock. Embedded, it is the memory queue and SQLite; in a cluster, RabbitMQ and
//! Redis.

use std::path::Path;
use std::sync::Arc;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_queue::{MemoryQueue, TaskQueue};
use imgsync_store::outage::ServerHealth;
use imgsync_store::{Clock, LockHolder, LockUse, RunLock, SqliteStore, Store, SystemClock};
use imgsync_worker::cluster::ClusterConnection;

/// Queue, store and clock, embedded or of a cluster.
#[derive(Clone)]
pub struct Backend {
    /// Task queue.
    pub queue: Arc<dyn TaskQueue>,
    /// State store.
    pub store: Arc<dyn Store>,
    /// Time source.
    pub clock: Arc<dyn Clock>,
    /// Connection health of broker and store; empty when embedded.
    pub health: Vec<ServerHealth>,
    /// `None` in a cluster.
    sqlite: Option<SqliteStore>,
}

impl Backend {
    /// Opens an embedded backend whose state is in the directory `state`.
    pub async fn embedded(state: &Path) -> Result<Backend> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let sqlite = SqliteStore::open(state, clock.clone()).await?;
        let (queue, store) = (Arc::new(MemoryQueue::new()), Arc::new(sqlite.clone()));
        Ok(Backend { queue, store, clock, health: Vec::new(), sqlite: Some(sqlite) })
    }

    /// Creates the backend of a cluster, shared with workers and other coordinators.
    pub fn cluster(cluster: &ClusterConnection) -> Backend {
        let (queue, store) = (Arc::new(cluster.queue.clone()), Arc::new(cluster.store.clone()));
        let health = cluster.health().into();
        Backend { queue, store, clock: Arc::new(SystemClock), health, sqlite: None }
    }

    /// Returns a new batch id that sorts after all ids in the store, even if a wrong clock dated the newest one in the
    /// future.
    pub async fn new_batch_id(&self) -> Result<BatchId> {
        let newest = self.store.batches(1).await?;
        Ok(BatchId::generate_after(newest.first().map(|batch| batch.id)))
    }

    /// Returns whether other processes share this backend.
    pub fn is_cluster(&self) -> bool {
        self.sqlite.is_none()
    }

    /// Acquires the run lock of an embedded store, which one process holds at a time, or fails naming its holder. A
    /// cluster has none.
    pub async fn lock(&self, used_for: LockUse) -> Result<Option<RunLock>> {
        match &self.sqlite {
            Some(store) => store.lock_for_run(used_for).await.map(Some),
            None => Ok(None),
        }
    }

    /// Acquires the run lock, or returns its holder.
    pub async fn try_lock(&self, used_for: LockUse) -> Result<std::result::Result<Option<RunLock>, LockHolder>> {
        match &self.sqlite {
            Some(store) => Ok(store.try_lock_for_run(used_for).await?.map(Some)),
            None => Ok(Ok(None)),
        }
    }

    /// Returns the error of a command that needs the run lock while `holder` has it.
    pub fn lock_refusal(&self, holder: &LockHolder) -> Error {
        match &self.sqlite {
            Some(store) => store.locked_error(holder),
            None => Error::new(ErrorKind::Local, "running tasks", format!("{holder} holds the run lock")),
        }
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}
