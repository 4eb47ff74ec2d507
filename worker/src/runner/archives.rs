//! Archives as targets of tasks. A task collects its image, gives its slot back, and stays leased until the archive is
//! written: only then is its image there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use imgsync_layout::Layout;
use imgsync_model::batch::{BlobBytes, Endpoint, RequestCounts, TagLocator, TaskRef, TaskResult};
use imgsync_model::event::{TaskCompletion, TaskEvent};
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_registry::TrafficCounters;
use imgsync_store::{FinishReply, LeaseStatus, Store, TaskHolder, Usage};
use tokio::sync::OnceCell;

use super::Runner;
use super::task::{CompletedCopy, Disposition, LeasedTask};
use crate::copy::{ArchiveCollector, CopyReport, TransferStats};
use crate::task_events::TaskEvents;

/// Lease of a task whose image is collected. Nothing renews it: the process that holds it either ends the task, or is
/// gone together with the queue, and all its tasks return to the plan.
const COLLECTED_LEASE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Archives that the tasks of a run collect images for. Cheap to clone; clones share them.
#[derive(Debug, Clone, Default)]
pub struct ArchiveTargets(Arc<Mutex<BTreeMap<Endpoint, CollectedArchive>>>);

/// Images for one archive.
#[derive(Debug, Clone)]
pub struct CollectedArchive {
    /// Their content.
    pub collector: ArchiveCollector,
    /// Their tasks.
    pub tasks: Vec<CollectedTask>,
    former_opened: Arc<OnceCell<()>>,
}

/// A task whose image is collected.
#[derive(Debug, Clone)]
pub struct CollectedTask {
    /// The task.
    pub task_ref: TaskRef,
    /// Name of the image in the archive.
    pub target: TagLocator,
    /// Digest of the image.
    pub digest: Digest,
    worker: String,
    token: u64,
    bytes: BlobBytes,
    /// Traffic of the source, which grows while the archive is written.
    traffic: Arc<TrafficCounters>,
    time: Duration,
}

impl ArchiveTargets {
    /// Returns the number of tasks whose images are collected.
    pub fn collected(&self) -> u64 {
        self.archives().values().map(|archive| archive.tasks.len() as u64).sum()
    }

    /// Takes all archives with their tasks.
    pub fn take(&self) -> BTreeMap<Endpoint, CollectedArchive> {
        std::mem::take(&mut *self.archives())
    }

    /// Returns the collector of an archive, and whether its former file is opened.
    fn collector(&self, archive: &Endpoint) -> (ArchiveCollector, Arc<OnceCell<()>>) {
        let new = || CollectedArchive {
            collector: ArchiveCollector::new().checking_presence(),
            tasks: Vec::new(),
            former_opened: Arc::default(),
        };
        let mut archives = self.archives();
        let archive = archives.entry(archive.clone()).or_insert_with(new);
        (archive.collector.clone(), archive.former_opened.clone())
    }

    /// Adds a task. Returns it if the archive was written meanwhile.
    fn add(&self, archive: &Endpoint, task: CollectedTask) -> Option<CollectedTask> {
        match self.archives().get_mut(archive) {
            Some(archive) => {
                archive.tasks.push(task);
                None
            }
            None => Some(task),
        }
    }

    fn archives(&self) -> MutexGuard<'_, BTreeMap<Endpoint, CollectedArchive>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CollectedTask {
    /// Records the result of the task in the ledger.
    pub async fn finish(&self, store: &dyn Store, result: TaskResult, events: &TaskEvents) -> Result<()> {
        let traffic = self.traffic.snapshot();
        let bytes = if result == TaskResult::Copied { self.bytes } else { BlobBytes::default() };
        let requests = RequestCounts { source: traffic.requests, ..RequestCounts::default() };
        let usage = Usage { bytes, requests, time: self.time };
        let reply = store.finish(self.task_ref, self.holder(), result.clone(), usage).await?;
        let completion = match reply {
            FinishReply::Counted => TaskCompletion::Finished { result, bytes: bytes.copied, read: traffic.received },
            FinishReply::Stale | FinishReply::AlreadyDone => TaskCompletion::Stale,
        };
        events.emit_task(TaskEvent::Ended { task: self.task_ref, completion });
        Ok(())
    }

    /// Returns the task to the plan: this process shuts down.
    pub async fn give_back(&self, store: &dyn Store, events: &TaskEvents) -> Result<()> {
        store.reschedule(self.task_ref, self.holder(), Duration::ZERO, false, Usage::default()).await?;
        events.emit_task(TaskEvent::Ended { task: self.task_ref, completion: TaskCompletion::Requeued });
        Ok(())
    }

    fn holder(&self) -> TaskHolder<'_> {
        TaskHolder { worker: &self.worker, token: self.token }
    }
}

impl Runner {
    /// Lets tasks collect images for archives, which the caller writes.
    #[must_use]
    pub fn with_archives(self, archives: ArchiveTargets) -> Runner {
        Runner { archives: Some(archives), ..self }
    }

    /// Returns the collector of a task's archive.
    pub(super) async fn archive_collector(&self, task: &LeasedTask<'_>) -> Result<ArchiveCollector> {
        let archive = task.target.repository.endpoint();
        let found = self.archives.as_ref().map(|archives| archives.collector(archive));
        let (collector, former_opened) = found.ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("writing {archive}"), "this process writes no archives")
                .with_hint("`imgsync run` writes them, without a cluster")
        })?;
        let open_former = async {
            let Endpoint::Archive(_, file) = archive else { return };
            // Whatever else is there has no images to keep.
            if let Ok((_, former)) = Layout::open_any_archive(Path::new(&**file)).await {
                collector.set_former(former);
            }
        };
        former_opened.get_or_init(|| open_former).await;
        Ok(collector)
    }

    /// Keeps a task whose image is collected, until its archive is written.
    pub(super) async fn keep_collected(&self, task: &LeasedTask<'_>, report: &CopyReport) -> Result<Disposition> {
        let LeasedTask { task_ref, holder, target, traffic, .. } = task;
        let status = self.store.renew(*task_ref, *holder, COLLECTED_LEASE).await?;
        let Some(archives) = self.archives.as_ref().filter(|_| matches!(status, LeaseStatus::Held { .. })) else {
            self.emit_end(*task_ref, TaskCompletion::Stale);
            return Ok(Disposition::Done);
        };
        let TransferStats { copied, mounted, reused } = report.bytes;
        let usage = task.usage(BlobBytes { copied, mounted, reused });
        let rejected = archives.add(
            target.repository.endpoint(),
            CollectedTask {
                task_ref: *task_ref,
                target: (*target).clone(),
                digest: report.digest.clone(),
                worker: holder.worker.to_owned(),
                token: holder.token,
                bytes: usage.bytes,
                traffic: traffic.0.clone(),
                time: usage.time,
            },
        );
        if let Some(task) = rejected {
            task.give_back(&*self.store, &self.events).await?;
        }
        Ok(Disposition::Done)
    }
}

impl CompletedCopy {
    /// Creates the result of an attempt that collected an image for an archive.
    pub(super) fn collected(report: CopyReport) -> CompletedCopy {
        let (tags, put, lease, is_whole) = Default::default();
        let TransferStats { copied, mounted, reused } = report.bytes;
        let bytes = BlobBytes { copied, mounted, reused };
        CompletedCopy { outcome: report.outcome, bytes, tags, put, lease, is_whole, collected: Some(report) }
    }
}
