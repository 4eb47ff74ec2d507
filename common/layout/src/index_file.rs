//! Reads and changes `index.json`. Concurrent changes are committed together: a run of thousands of tags would
//! otherwise rewrite the growing file once per tag.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use super::docker_manifest::{MANIFEST_JSON, NEW_MANIFEST_JSON};
use super::error::LayoutError;
use super::index::{IndexChange, LayoutIndex};
use super::lock::lock;
use super::safe_dir::SafeDir;
use super::{BLOBS, Layout, LayoutFiles, LayoutInner};
use super::{NEW_INDEX, OCI_LAYOUT};
use imgsync_oci::Algorithm;
use imgsync_oci::error::{Error, ErrorKind, Result};

pub(super) const INDEX_JSON: &str = "index.json";
/// Upper limit for `index.json`: about 200,000 tags.
pub(super) const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Granularity of file timestamps, a tick of the kernel's clock: a file modified this recently may change again without
/// a new timestamp.
const TIMESTAMP_GRANULARITY: Duration = Duration::from_millis(10);

type OpenedIndexes = HashMap<String, Weak<IndexFile>>;

/// Index files of the folders that this process has open, by device and inode of the folder.
static OPENED_INDEXES: Mutex<Option<OpenedIndexes>> = Mutex::new(None);

/// `index.json` of a folder. Each task of a run opens its target: all layouts of this process in a folder share it, so
/// that their changes are committed together.
#[derive(Debug, Default)]
pub(super) struct IndexFile {
    /// The index last read or written.
    cached: Mutex<Option<CachedIndex>>,
    pending: Mutex<Vec<PendingChange>>,
    commit_lock: tokio::sync::Mutex<()>,
    #[cfg(test)]
    pub(super) commits: std::sync::atomic::AtomicUsize,
}

impl IndexFile {
    /// Returns the index file of a folder.
    pub(super) fn open(root: &SafeDir) -> Arc<IndexFile> {
        let Some(identity) = root.identity() else { return Arc::default() };
        let mut opened = OPENED_INDEXES.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.get_or_insert_default();
        if let Some(index) = opened.get(&identity).and_then(Weak::upgrade) {
            return index;
        }
        opened.retain(|_, index| index.strong_count() > 0);
        let index = Arc::default();
        opened.insert(identity, Arc::downgrade(&index));
        index
    }

    /// Returns the number of changes that wait for the task that commits.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether a task commits now.
    #[cfg(test)]
    pub(super) fn is_committing(&self) -> bool {
        self.commit_lock.try_lock().is_err()
    }
}

type CommitSender = oneshot::Sender<Result<(), LayoutError>>;

#[derive(Debug)]
struct PendingChange {
    change: IndexChange,
    done: CommitSender,
}

#[derive(Debug, Clone)]
struct CachedIndex {
    version: FileVersion,
    index: Arc<LayoutIndex>,
    /// Kept open so that its inode number is not reused.
    _file: Arc<File>,
}

/// Identifies a version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileVersion {
    inode: u64,
    size: u64,
    modified: SystemTime,
}

impl FileVersion {
    fn from_file(file: &File) -> std::io::Result<FileVersion> {
        let data = file.metadata()?;
        Ok(FileVersion { inode: data.ino(), size: data.len(), modified: data.modified()? })
    }
}

impl LayoutInner {
    /// Reads the current index.
    pub(super) fn read_index(&self) -> Result<Arc<LayoutIndex>, LayoutError> {
        self.read_index_or_none()?
            .ok_or_else(|| LayoutError::new(ErrorKind::InvalidResponse, format!("{INDEX_JSON} is missing")))
    }

    pub(super) fn read_index_or_none(&self) -> Result<Option<Arc<LayoutIndex>>, LayoutError> {
        let root: &SafeDir = match &self.files {
            LayoutFiles::Folder(root) => root,
            LayoutFiles::Archive(archive) => return Ok(Some(archive.index().clone())),
        };
        let Some((file, size)) = root.open_file(INDEX_JSON)? else { return Ok(None) };
        let file_version =
            FileVersion::from_file(&file).map_err(|error| root.io_error(INDEX_JSON, "reading", error))?;
        let known = self.index.cached.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known
            && known.version == file_version
        {
            return Ok(Some(known.index));
        }
        let index = Arc::new(parse_index(root, &file, size)?);
        if SystemTime::now().duration_since(file_version.modified).is_ok_and(|age| age > TIMESTAMP_GRANULARITY) {
            self.cache_index(Arc::new(file), file_version, index.clone());
        }
        Ok(Some(index))
    }

    fn cache_index(&self, file: Arc<File>, version: FileVersion, index: Arc<LayoutIndex>) {
        let known = CachedIndex { version, index, _file: file };
        *self.index.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }

    /// Replaces `index.json`, and `manifest.json` if it changes. The caller holds the lock.
    pub(super) fn write_index(&self, index: LayoutIndex, docker_manifest: Option<Vec<u8>>) -> Result<(), LayoutError> {
        let bytes = index.to_bytes()?;
        if bytes.len() as u64 > MAX_INDEX_BYTES {
            let detail = format!("{INDEX_JSON} would be larger than {} MiB", MAX_INDEX_BYTES >> 20);
            return Err(LayoutError::new(ErrorKind::Refused, detail).with_hint("split the images into several layouts"));
        }
        let root: &SafeDir = self.folder()?;
        // What the index references must be durable before the index is.
        let mut folders = Vec::new();
        if let Some(blobs) = root.open_dir(BLOBS)? {
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                folders.extend(blobs.open_dir(algorithm.as_str())?);
            }
            folders.push(blobs);
        }
        let create = |hidden, name, bytes| {
            root.remove(hidden)?;
            Ok(NewFile { root, file: Arc::new(root.create_file(hidden)?), hidden, name, bytes, is_in_place: false })
        };
        let docker_manifest =
            docker_manifest.map(|bytes| create(NEW_MANIFEST_JSON, MANIFEST_JSON, bytes)).transpose()?;
        let new_index = create(NEW_INDEX, INDEX_JSON, bytes)?;
        // Together: each would wait for a write of the file system's journal, and one is enough for all.
        std::thread::scope(|scope| {
            let mut syncs: Vec<_> = folders.iter().map(|folder| scope.spawn(|| folder.sync())).collect();
            syncs.extend(docker_manifest.as_ref().map(|file| scope.spawn(|| file.write())));
            let written = new_index.write();
            let panicked = || LayoutError::new(ErrorKind::Local, "syncing a folder or file panicked");
            let synced = syncs.into_iter().try_for_each(|sync| sync.join().unwrap_or_else(|_| Err(panicked())));
            written.and(synced)
        })?;
        // The index counts: what it lists comes first.
        if let Some(file) = docker_manifest {
            file.rename()?;
        }
        let file = new_index.rename()?;
        root.sync()?;
        if let Ok(file_version) = FileVersion::from_file(&file) {
            self.cache_index(file, file_version, Arc::new(index));
        }
        Ok(())
    }

    fn apply_changes(&self, changes: &[&IndexChange]) -> Result<(), LayoutError> {
        // Another process may have removed the layout.
        let missing = || LayoutError::new(ErrorKind::InvalidResponse, format!("`{OCI_LAYOUT}` was removed"));
        let root: &SafeDir = self.folder()?;
        root.open_file(OCI_LAYOUT)?.ok_or_else(missing)?;
        let marker = root.open_or_create_file(OCI_LAYOUT)?;
        lock(root, &marker, &self.lock_wait)?;
        #[cfg(test)]
        self.index.commits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let index = self.read_index_or_none()?;
        let mut index = index.map_or_else(LayoutIndex::empty, Arc::unwrap_or_clone);
        let mut changed = false;
        for change in changes {
            changed |= index.apply(change)?;
        }
        if !changed {
            return Ok(());
        }
        let docker_manifest = self.update_docker_manifest(&index, changes)?;
        self.write_index(index, docker_manifest)
    }
}

/// A hidden file that replaces another one once it is synced. Dropped before, it is removed.
struct NewFile<'a> {
    root: &'a SafeDir,
    file: Arc<File>,
    hidden: &'static str,
    name: &'static str,
    bytes: Vec<u8>,
    is_in_place: bool,
}

impl NewFile<'_> {
    /// Writes and syncs it.
    fn write(&self) -> Result<(), LayoutError> {
        let written = (&*self.file).write_all(&self.bytes).and_then(|()| self.file.sync_all());
        written.map_err(|error| self.root.io_error(self.name, "writing", error))
    }

    /// Puts it in its place, and returns it.
    fn rename(mut self) -> Result<Arc<File>, LayoutError> {
        self.root.rename(self.hidden, self.root, self.name)?;
        self.is_in_place = true;
        Ok(self.file.clone())
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.is_in_place {
            let _ = self.root.remove(self.hidden);
        }
    }
}

fn parse_index(root: &SafeDir, file: &File, size: u64) -> Result<LayoutIndex, LayoutError> {
    let mut bytes = Vec::new();
    if size <= MAX_INDEX_BYTES {
        let read = file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|error| root.io_error(INDEX_JSON, "reading", error))?;
    }
    if size.max(bytes.len() as u64) > MAX_INDEX_BYTES {
        let detail = format!("{INDEX_JSON} is larger than {} MiB", MAX_INDEX_BYTES >> 20);
        return Err(LayoutError::new(ErrorKind::InvalidResponse, detail));
    }
    LayoutIndex::parse(&bytes)
}

impl Layout {
    /// Adds an image to the index, together with all pending changes.
    pub(super) async fn add_to_index(&self, change: IndexChange, operation: &str) -> Result<()> {
        let file = &*self.0.index;
        let (done, mut entered) = oneshot::channel();
        file.pending.lock().unwrap_or_else(PoisonError::into_inner).push(PendingChange { change, done });
        // The task that gets the lock commits all pending changes.
        let turn = tokio::select! {
            biased;
            result = &mut entered => return commit_result(result, operation),
            turn = file.commit_lock.lock() => turn,
        };
        let mut wanted = std::mem::take(&mut *file.pending.lock().unwrap_or_else(PoisonError::into_inner));
        wanted.retain(|wanted| !wanted.done.is_closed());
        if !wanted.is_empty() {
            let shared = self.0.clone();
            let made = tokio::task::spawn_blocking(move || {
                let result = shared.apply_changes(&wanted.iter().map(|wanted| &wanted.change).collect::<Vec<_>>());
                if result.as_ref().is_err_and(LayoutError::is_cancelled) {
                    // This task was cancelled, the others are not: the next of them commits.
                    shared.index.pending.lock().unwrap_or_else(PoisonError::into_inner).append(&mut wanted);
                    return true;
                }
                for PendingChange { done, .. } in wanted {
                    let _ = done.send(result.clone());
                }
                false
            });
            // After a panic the senders are dropped, and the waiting tasks get an error.
            if made.await.unwrap_or_default() {
                // Before the turn ends: the next task leaves out changes that nobody waits for.
                drop(entered);
                return Err(Error::cancelled(operation));
            }
        }
        drop(turn);
        commit_result(entered.await, operation)
    }
}

fn commit_result(result: Result<Result<(), LayoutError>, oneshot::error::RecvError>, operation: &str) -> Result<()> {
    match result {
        Ok(result) => result.map_err(|layout_error| layout_error.into_error(operation)),
        Err(_) => Err(Error::new(ErrorKind::Local, operation, "the task that writes index.json panicked")),
    }
}
