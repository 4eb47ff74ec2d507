//! Opens and creates layouts, and removes leftovers.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::commit::{IndexFile, NEW_INDEX};
use super::folder::Folder;
use super::hashed::{Hashing, folder_name};
use super::index::Index;
use super::lock::{LockWait, lock};
use super::trouble::Trouble;
use super::writer::WORTH_KEEPING;
use super::{BLOBS, HIDDEN_PREFIX, HIDDEN_SUFFIX, Layout, MAX_SUBJECTS, Shared, label};
use crate::error::Class;
use crate::generational::GenerationalCache;
use crate::image::{Algorithm, Digest};
use crate::printable::printable;

pub(super) const OCI_LAYOUT: &str = "oci-layout";
const VERSION: &str = "1.0.0";
/// Upper limit for `oci-layout`, which has thirty bytes.
const MAX_OCI_LAYOUT_BYTES: u64 = 64 << 10;
/// Unfinished blobs are kept this long, to be resumed.
const KEEP_PARTIAL: Duration = Duration::from_secs(24 * 3600);

pub(super) fn open(dir: &Path) -> Result<Layout, Trouble> {
    let root = Folder::open(dir)?.ok_or_else(|| {
        Trouble::bad(Class::NotFound, format!("there is no folder {}", dir.display())).hint("check the path")
    })?;
    match root.file(OCI_LAYOUT)? {
        Some((mut file, _)) => check_version(&root, &mut file)?,
        None => return Err(no_layout(&root)),
    }
    // The index is read now, so that its errors are reported immediately.
    let layout = layout(root, dir, LockWait::default());
    layout.0.read_index()?;
    Ok(layout)
}

pub(super) fn open_or_create(dir: &Path, wait: LockWait) -> Result<Layout, Trouble> {
    std::fs::create_dir_all(dir).map_err(|error| Trouble::io(dir, "making", error))?;
    let root = Folder::open(dir)?.ok_or_else(|| Trouble::io(dir, "opening", std::io::ErrorKind::NotFound))?;
    let names = root.names()?;
    let harmless = |name: &String| name.starts_with('.') || name == "lost+found";
    if !names.iter().any(|name| name == OCI_LAYOUT) && !names.iter().all(harmless) {
        return Err(no_layout(&root));
    }
    let mut marker = root.file_or_new(OCI_LAYOUT)?;
    lock(&root, &marker, &wait)?;
    let size = marker.metadata().map_err(|error| root.failed(OCI_LAYOUT, "reading", error))?.len();
    match size {
        // New, or left by a process killed while creating it.
        0 => {
            let text = format!("{{\"imageLayoutVersion\":\"{VERSION}\"}}");
            let written = marker.write_all(text.as_bytes()).and_then(|()| marker.sync_all());
            written.map_err(|error| root.failed(OCI_LAYOUT, "writing", error))?;
        }
        _ => check_version(&root, &mut marker)?,
    }
    root.folder_or_new(BLOBS)?.folder_or_new(Algorithm::Sha256.as_str())?;
    let layout = layout(root, dir, wait);
    sweep(&layout.0)?;
    match layout.0.read_index_or_none()? {
        Some(_) => {}
        None => layout.0.write_index(Index::empty())?,
    }
    Ok(layout)
}

fn layout(root: Folder, dir: &Path, wait: LockWait) -> Layout {
    Layout(Arc::new(Shared {
        root,
        label: label(dir),
        index: IndexFile::default(),
        subjects: Mutex::new(GenerationalCache::new(MAX_SUBJECTS)),
        wait,
        folder: folder_name(dir),
        hashing: Hashing::default(),
        hashed: Default::default(),
    }))
}

fn no_layout(root: &Folder) -> Trouble {
    let detail = format!("{} is no OCI image layout: it holds no file `{OCI_LAYOUT}`", root.path().display());
    Trouble::bad(Class::BadAnswer, detail).hint("name the folder of a layout; as a target also a new or empty one")
}

fn check_version(root: &Folder, file: &mut File) -> Result<(), Trouble> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.take(MAX_OCI_LAYOUT_BYTES).read_to_end(&mut text));
    read.map_err(|error| root.failed(OCI_LAYOUT, "reading", error))?;
    let marker: Marker = serde_json::from_slice(&text).map_err(|error| {
        Trouble::bad(Class::BadAnswer, format!("its file `{OCI_LAYOUT}` cannot be parsed: {error}"))
    })?;
    match marker.image_layout_version.as_str() {
        VERSION => Ok(()),
        other => {
            let detail = format!("it is a layout of version {}; only {VERSION} is known", printable(other));
            Err(Trouble::bad(Class::Unsupported, detail))
        }
    }
}

/// Removes leftovers of killed processes. The caller holds the lock; a writer holds a lock on its unfinished file.
fn sweep(shared: &Shared) -> Result<(), Trouble> {
    let root = &shared.root;
    root.remove(NEW_INDEX)?;
    for name in root.names()? {
        let Some(what) = name.strip_prefix(HIDDEN_PREFIX).and_then(|rest| rest.strip_suffix(HIDDEN_SUFFIX)) else {
            continue;
        };
        let Some((file, size)) = root.file(&name)? else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        // Only a file named by its digest alone can be resumed; a second writer's name has a suffix.
        let digest = what.replacen('-', ":", 1).parse::<Digest>().ok();
        let age = file.metadata().and_then(|data| data.modified()).ok();
        let age = age.and_then(|modified| SystemTime::now().duration_since(modified).ok()).unwrap_or_default();
        let of_use = match digest {
            Some(digest) => size >= WORTH_KEEPING && age < KEEP_PARTIAL && shared.blob_file(&digest)?.is_none(),
            None => false,
        };
        if !of_use {
            root.remove(&name)?;
        }
    }
    Ok(())
}
