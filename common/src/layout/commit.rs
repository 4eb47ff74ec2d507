//! Reads and changes `index.json`. Concurrent changes are committed together: a run of thousands of tags would
//! otherwise rewrite the growing file once per tag.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use super::folder::Folder;
use super::index::{Change, Index};
use super::lock::lock;
use super::open::OCI_LAYOUT;
use super::trouble::Trouble;
use super::{BLOBS, Layout, Shared};
use crate::error::{Class, Error, Result};
use crate::image::Algorithm;

const INDEX: &str = "index.json";
/// At most one exists at a time, under the lock.
pub(super) const NEW_INDEX: &str = ".imgsync-index.json";
/// Upper limit for `index.json`: about 200,000 tags.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Granularity of file timestamps, a tick of the kernel's clock: a file modified this recently may change again without
/// a new timestamp.
const TICK: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
pub(super) struct IndexFile {
    /// The index last read or written.
    known: Mutex<Option<Known>>,
    wanted: Mutex<Vec<Wanted>>,
    turn: tokio::sync::Mutex<()>,
}

type Done = oneshot::Sender<Result<(), Trouble>>;

#[derive(Debug)]
struct Wanted {
    change: Change,
    done: Done,
}

#[derive(Debug, Clone)]
struct Known {
    stamp: Stamp,
    index: Arc<Index>,
    /// Kept open so that its inode number is not reused.
    _file: Arc<File>,
}

/// Identifies a version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: SystemTime,
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Stamp> {
        let data = file.metadata()?;
        Ok(Stamp { inode: data.ino(), size: data.len(), modified: data.modified()? })
    }
}

impl Shared {
    /// Reads the current index.
    pub(super) fn read_index(&self) -> Result<Arc<Index>, Trouble> {
        self.read_index_or_none()?.ok_or_else(|| Trouble::bad(Class::BadAnswer, format!("it has no {INDEX}")))
    }

    pub(super) fn read_index_or_none(&self) -> Result<Option<Arc<Index>>, Trouble> {
        let Some((file, size)) = self.root.file(INDEX)? else { return Ok(None) };
        let stamp = Stamp::of(&file).map_err(|error| self.root.failed(INDEX, "reading", error))?;
        let known = self.index.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known
            && known.stamp == stamp
        {
            return Ok(Some(known.index));
        }
        let index = Arc::new(self.parse_index(&file, size)?);
        if SystemTime::now().duration_since(stamp.modified).is_ok_and(|age| age > TICK) {
            self.know(file, stamp, index.clone());
        }
        Ok(Some(index))
    }

    fn know(&self, file: File, stamp: Stamp, index: Arc<Index>) {
        let known = Known { stamp, index, _file: Arc::new(file) };
        *self.index.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }

    fn parse_index(&self, file: &File, size: u64) -> Result<Index, Trouble> {
        let mut bytes = Vec::new();
        if size <= MAX_INDEX_BYTES {
            let read = file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut bytes);
            read.map_err(|error| self.root.failed(INDEX, "reading", error))?;
        }
        if size.max(bytes.len() as u64) > MAX_INDEX_BYTES {
            let detail = format!("its {INDEX} has more than {} MiB", MAX_INDEX_BYTES >> 20);
            return Err(Trouble::bad(Class::BadAnswer, detail));
        }
        Index::parse(&bytes)
    }

    /// Replaces `index.json`. The caller holds the lock.
    pub(super) fn write_index(&self, index: Index) -> Result<(), Trouble> {
        let bytes = index.to_bytes()?;
        if bytes.len() as u64 > MAX_INDEX_BYTES {
            let detail = format!("its {INDEX} would have more than {} MiB", MAX_INDEX_BYTES >> 20);
            return Err(Trouble::bad(Class::Refused, detail).hint("spread the images over several layouts"));
        }
        // What the index references must be durable before the index is.
        if let Some(blobs) = self.root.folder(BLOBS)? {
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                blobs.folder(algorithm.as_str())?.as_ref().map_or(Ok(()), Folder::sync)?;
            }
            blobs.sync()?;
        }
        self.root.remove(NEW_INDEX)?;
        let mut file = self.root.new_file(NEW_INDEX)?;
        let written = file.write_all(&bytes).and_then(|()| file.sync_all());
        let written = written.map_err(|error| self.root.failed(INDEX, "writing", error));
        written.and_then(|()| self.root.rename(NEW_INDEX, &self.root, INDEX)).inspect_err(|_| {
            let _ = self.root.remove(NEW_INDEX);
        })?;
        self.root.sync()?;
        if let Ok(stamp) = Stamp::of(&file) {
            self.know(file, stamp, Arc::new(index));
        }
        Ok(())
    }

    fn commit(&self, changes: &[&Change]) -> Result<(), Trouble> {
        // Another process may have removed the layout.
        let missing = || Trouble::bad(Class::BadAnswer, format!("its file `{OCI_LAYOUT}` is gone"));
        self.root.file(OCI_LAYOUT)?.ok_or_else(missing)?;
        let marker = self.root.file_or_new(OCI_LAYOUT)?;
        lock(&self.root, &marker, &self.wait)?;
        let index = self.read_index_or_none()?;
        let mut index = index.map_or_else(Index::empty, Arc::unwrap_or_clone);
        let mut changed = false;
        for change in changes {
            changed |= index.apply(change)?;
        }
        if changed { self.write_index(index) } else { Ok(()) }
    }
}

impl Layout {
    /// Adds an image to the index, together with all pending changes.
    pub(super) async fn enter(&self, change: Change, tried: &str) -> Result<()> {
        let file = &self.0.index;
        let (done, mut entered) = oneshot::channel();
        file.wanted.lock().unwrap_or_else(PoisonError::into_inner).push(Wanted { change, done });
        // The task that gets the lock commits all pending changes.
        let turn = tokio::select! {
            biased;
            result = &mut entered => return given(result, tried),
            turn = file.turn.lock() => turn,
        };
        let mut wanted = std::mem::take(&mut *file.wanted.lock().unwrap_or_else(PoisonError::into_inner));
        wanted.retain(|wanted| !wanted.done.is_closed());
        if !wanted.is_empty() {
            let shared = self.0.clone();
            let made = tokio::task::spawn_blocking(move || {
                let result = shared.commit(&wanted.iter().map(|wanted| &wanted.change).collect::<Vec<_>>());
                for Wanted { done, .. } in wanted {
                    let _ = done.send(result.clone());
                }
            });
            // After a panic the senders are dropped, and the waiting tasks get an error.
            let _ = made.await;
        }
        drop(turn);
        given(entered.await, tried)
    }
}

fn given(result: Result<Result<(), Trouble>, oneshot::error::RecvError>, tried: &str) -> Result<()> {
    match result {
        Ok(result) => result.map_err(|trouble| trouble.error(tried)),
        Err(_) => Err(Error::new(Class::Local, tried, "the program failed while it wrote index.json")),
    }
}
