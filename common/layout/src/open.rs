//! Opens and creates layouts, and removes leftovers.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::archive::ArchiveFiles;
use super::error::LayoutError;
use super::index::LayoutIndex;
use super::index_file::IndexFile;
use super::lock::{LockWait, lock};
use super::marker_file::{LAYOUT_VERSION, MAX_OCI_LAYOUT_BYTES, check_version_text};
use super::pipe_reader::PipeReader;
use super::read_at::{OpenedArchiveFile, ReadAt};
use super::safe_dir::SafeDir;
use super::verification::{HashPolicy, canonical_dir_name};
use super::writer::MIN_RESUMABLE_BYTES;
use super::{
    BLOBS, Layout, LayoutFiles, LayoutInner, MAX_CACHED_SUBJECTS, NEW_INDEX, OCI_LAYOUT, PARTIAL_PREFIX,
    PARTIAL_SUFFIX, label,
};
use imgsync_oci::error::ErrorKind;
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::{Algorithm, ArchiveFormat, Digest};

/// Unfinished blobs are kept this long, to be resumed.
const PARTIAL_TTL: Duration = Duration::from_secs(24 * 3600);

pub(super) fn open(dir: &Path) -> Result<Layout, LayoutError> {
    let root = SafeDir::open(dir)?.ok_or_else(|| {
        LayoutError::new(ErrorKind::NotFound, format!("folder {} does not exist", dir.display()))
            .with_hint("check the path")
    })?;
    match root.open_file(OCI_LAYOUT)? {
        Some((mut file, _)) => check_version(&root, &mut file)?,
        None => return Err(not_a_layout(&root)),
    }
    // The index is read now, so that its errors are reported immediately.
    let layout = new_layout(LayoutFiles::Folder(Arc::new(root)), label(dir), dir, LockWait::default());
    layout.0.read_index()?;
    Ok(layout)
}

pub(super) fn open_or_create(dir: &Path, wait: LockWait) -> Result<Layout, LayoutError> {
    std::fs::create_dir_all(dir).map_err(|error| LayoutError::io(dir, "making", error))?;
    let root = SafeDir::open(dir)?.ok_or_else(|| LayoutError::io(dir, "opening", std::io::ErrorKind::NotFound))?;
    let names = root.list_names()?;
    let harmless = |name: &String| name.starts_with('.') || name == "lost+found";
    if !names.iter().any(|name| name == OCI_LAYOUT) && !names.iter().all(harmless) {
        return Err(not_a_layout(&root));
    }
    let mut marker = root.open_or_create_file(OCI_LAYOUT)?;
    lock(&root, &marker, &wait)?;
    let size = marker.metadata().map_err(|error| root.io_error(OCI_LAYOUT, "reading", error))?.len();
    match size {
        // New, or left by a process killed while creating it.
        0 => {
            let text = format!("{{\"imageLayoutVersion\":\"{LAYOUT_VERSION}\"}}");
            let written = marker.write_all(text.as_bytes()).and_then(|()| marker.sync_all());
            written.map_err(|error| root.io_error(OCI_LAYOUT, "writing", error))?;
        }
        _ => check_version(&root, &mut marker)?,
    }
    root.open_or_create_dir(BLOBS)?.open_or_create_dir(Algorithm::Sha256.as_str())?;
    let layout = new_layout(LayoutFiles::Folder(Arc::new(root)), label(dir), dir, wait);
    remove_leftovers(&layout.0)?;
    match layout.0.read_index_or_none()? {
        Some(_) => {}
        None => layout.0.write_index(LayoutIndex::empty(), None)?,
    }
    Ok(layout)
}

/// Opens the file of an archive.
pub(super) fn open_archive_source(path: &Path) -> Result<Arc<dyn ReadAt>, LayoutError> {
    match OpenedArchiveFile::open(path) {
        Ok(file) => Ok(Arc::new(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(LayoutError::new(ErrorKind::NotFound, format!("file {} does not exist", path.display()))
                .with_hint("check the path"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => {
            Err(LayoutError::new(ErrorKind::InvalidResponse, format!("{} is a folder, not an archive", path.display()))
                .with_hint("an image layout in a folder is read as oci:FOLDER"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            Err(LayoutError::new(ErrorKind::Unsupported, format!("{} is not a regular file", path.display()))
                .with_hint("save the archive to a file"))
        }
        Err(error) => Err(LayoutError::io(path, "opening", error)),
    }
}

/// Opens an archive for reading.
pub(super) fn open_archive(
    source: Arc<dyn ReadAt>,
    format: ArchiveFormat,
    label: String,
) -> Result<Layout, LayoutError> {
    let files = ArchiveFiles::open(source, format)?;
    let path = label.split_once(':').map_or(&*label, |(_, path)| path).to_owned();
    Ok(new_layout(LayoutFiles::Archive(files), label, path.as_ref(), LockWait::default()))
}

/// Opens an archive that comes out of a pipe.
pub(super) fn open_stream(input: PipeReader, label: String) -> Result<Layout, LayoutError> {
    let files = ArchiveFiles::open_stream(input)?;
    let path = label.split_once(':').map_or(&*label, |(_, path)| path).to_owned();
    Ok(new_layout(LayoutFiles::Archive(files), label, path.as_ref(), LockWait::default()))
}

fn new_layout(files: LayoutFiles, label: String, dir: &Path, lock_wait: LockWait) -> Layout {
    let index = match &files {
        LayoutFiles::Folder(root) => IndexFile::open(root),
        LayoutFiles::Archive(_) => Arc::default(),
    };
    Layout(Arc::new(LayoutInner {
        files,
        label,
        path: dir.to_owned(),
        index,
        subjects: Mutex::new(GenerationalCache::new(MAX_CACHED_SUBJECTS)),
        lock_wait,
        canonical_dir: canonical_dir_name(dir),
        hash_policy: HashPolicy::default(),
        verified_files: Default::default(),
    }))
}

fn not_a_layout(root: &SafeDir) -> LayoutError {
    let detail = format!("{} is not an OCI image layout: no file `{OCI_LAYOUT}`", root.path().display());
    LayoutError::new(ErrorKind::InvalidResponse, detail)
        .with_hint("use the folder of a layout, or as a target a new or empty folder")
}

fn check_version(root: &SafeDir, file: &mut File) -> Result<(), LayoutError> {
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.take(MAX_OCI_LAYOUT_BYTES).read_to_end(&mut text));
    read.map_err(|error| root.io_error(OCI_LAYOUT, "reading", error))?;
    check_version_text(&text)
}

/// Removes leftovers of killed processes. The caller holds the lock; a writer holds a lock on its unfinished file.
fn remove_leftovers(shared: &LayoutInner) -> Result<(), LayoutError> {
    let root = shared.folder()?;
    root.remove(NEW_INDEX)?;
    for name in root.list_names()? {
        let Some(what) = name.strip_prefix(PARTIAL_PREFIX).and_then(|rest| rest.strip_suffix(PARTIAL_SUFFIX)) else {
            continue;
        };
        let Some((file, size)) = root.open_file(&name)? else { continue };
        // Its writer may have finished between open and lock, and another may have begun.
        if file.try_lock().is_err() || !root.is_same_file(&name, &file)? {
            continue;
        }
        // Only a file named by its digest alone can be resumed; a second writer's name has a suffix.
        let digest = what.replacen('-', ":", 1).parse::<Digest>().ok();
        let age = file.metadata().and_then(|data| data.modified()).ok();
        let age = age.and_then(|modified| SystemTime::now().duration_since(modified).ok()).unwrap_or_default();
        let of_use = match digest {
            Some(digest) => {
                size >= MIN_RESUMABLE_BYTES && age < PARTIAL_TTL && shared.open_blob_file(&digest)?.is_none()
            }
            None => false,
        };
        if !of_use {
            root.remove(&name)?;
        }
    }
    Ok(())
}
