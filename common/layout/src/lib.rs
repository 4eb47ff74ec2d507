//! OCI image layouts (OCI image-spec v1.1, "Image Layout") as a source or target of a copy: a folder with `oci-layout`,
//! `index.json` and `blobs/<algorithm>/<hex>`, which carries images between machines without a network between them.
//!
//! A layout holds images of several repositories, under full names (`gcr.io/distroless/static:nonroot`) or bare tags,
//! as skopeo writes them. Nothing in a layout is trusted: content is checked against its digest, and links are not
//! followed. Writes are atomic, with concurrent writers and after a kill at any point:
//!
//! - A blob is hashed while it is written to a hidden file, which is renamed once it is synced and verified.
//! - `index.json` is replaced by a new file under a lock on `oci-layout` (which always exists and is never replaced).
//!   It never references an incomplete image.
//! - An existing blob file is hashed before it is relied on, once for each version of the file.
//! - A hidden file on which no process holds a lock was left by a killed process. A large one is resumed; the others
//!   are removed when the layout is next opened for writing.
//!
//! An archive is the same in a tar: [`Layout::open_archive`] reads it like a folder, [`Layout::open_stream`] while it
//! comes out of a pipe. It is never written here.

mod archive;
mod archive_reference;
mod blobs;
pub mod docker_manifest;
mod error;
#[cfg(test)]
mod fuzz;
mod hauler;
mod index;
mod index_entry;
mod index_file;
mod limits;
mod lock;
mod manifests;
mod marker_file;
mod open;
mod pipe_reader;
mod read_at;
mod reference;
mod referrers;
mod safe_dir;
mod stream;
#[cfg(test)]
mod tests;
mod verification;
mod writer;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub use archive::ReadTurn;
pub use archive_reference::{ArchiveRef, ParseArchiveRefError};
pub use blobs::{LayoutBlobStream, OpenedLayoutBlob};
pub use index_entry::{DIGEST_TAG_NAME, IndexEntry};
pub use limits::limits;
pub use lock::lock_file;
pub use manifests::LayoutRepository;
pub use pipe_reader::{PipeReader, PipeTimeout, PipeTimeouts};
pub use read_at::{OpenedArchiveFile, ReadAt};
pub use reference::{ImageName, LayoutRef, ParseLayoutRefError, QualifiedRepositoryName};
pub use stream::save_pipe;
pub use verification::{HashPolicy, VerifiedFileCache};
pub use writer::BlobWriter;

use self::archive::ArchiveFiles;
use self::error::LayoutError;
use self::index_file::IndexFile;
use self::lock::LockWait;
use self::safe_dir::SafeDir;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::{ArchiveFormat, Descriptor, Digest};
use imgsync_registry::Context;

const OCI_LAYOUT: &str = "oci-layout";
/// At most one exists at a time, under the lock.
const NEW_INDEX: &str = ".imgsync-index.json";

/// Upper limit for the cached subjects of manifests, per layout.
const MAX_CACHED_SUBJECTS: usize = 100_000;
const BLOBS: &str = "blobs";
/// Prefix of unfinished files, which are in the layout's root: the specification allows nothing else among the blobs.
const PARTIAL_PREFIX: &str = ".imgsync-";
const PARTIAL_SUFFIX: &str = ".partial";

/// Archives that stay open, with their lists of members.
const MAX_OPENED_ARCHIVES: usize = 2;

type OpenedArchive = ((ArchiveFormat, PathBuf, String), Layout);

/// Archives opened last, by format, path and version of the file: each task of a run opens its source.
static OPENED_ARCHIVES: tokio::sync::Mutex<Vec<OpenedArchive>> = tokio::sync::Mutex::const_new(Vec::new());

/// An image layout. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Layout(Arc<LayoutInner>);

#[derive(Debug)]
struct LayoutInner {
    files: LayoutFiles,
    /// `oci:DIR` or `oci-archive:FILE`, for messages.
    label: String,
    /// The folder or file, as given.
    path: PathBuf,
    index: Arc<IndexFile>,
    /// Subjects of manifests without a tag, each read once.
    subjects: Mutex<GenerationalCache<Digest, Option<Digest>>>,
    /// Cancellation and events of a wait for the lock.
    lock_wait: LockWait,
    /// Canonical path of the folder or file.
    canonical_dir: String,
    hash_policy: HashPolicy,
    /// Versions of files whose hash was verified, by digest.
    verified_files: Mutex<HashMap<Digest, String>>,
}

/// Where a layout's files are.
#[derive(Debug)]
enum LayoutFiles {
    Folder(Arc<SafeDir>),
    Archive(ArchiveFiles),
}

impl LayoutInner {
    /// Returns the folder to write to. An archive has none.
    fn folder(&self) -> Result<&Arc<SafeDir>, LayoutError> {
        match &self.files {
            LayoutFiles::Folder(folder) => Ok(folder),
            LayoutFiles::Archive(_) => {
                Err(LayoutError::new(ErrorKind::Unsupported, "an archive that is open for reading cannot be changed"))
            }
        }
    }
}

impl Layout {
    /// Opens a layout. Fails with [`ErrorKind::NotFound`] if the folder is missing, with [`ErrorKind::InvalidResponse`] if it is not
    /// a layout, and with [`ErrorKind::Unsupported`] for another layout version.
    pub async fn open(dir: impl AsRef<Path>) -> Result<Layout> {
        let dir = dir.as_ref().to_owned();
        let operation = format!("opening {}", label(&dir));
        run_blocking(&operation, move || open::open(&dir)).await
    }

    /// Opens the image layout in a tar, for reading only. The label, such as `oci-archive:FILE`, is for messages. Fails
    /// as [`Layout::open`] does; damaged and hostile archives fail with [`ErrorKind::Corrupt`], [`ErrorKind::Insecure`]
    /// or [`ErrorKind::InvalidResponse`].
    pub async fn open_archive(source: Arc<dyn ReadAt>, label: impl Into<String>) -> Result<Layout> {
        let label = label.into();
        let operation = format!("opening {label}");
        run_blocking(&operation, move || open::open_archive(source, ArchiveFormat::Oci, label)).await
    }

    /// Opens a file that may be an archive of either format, and returns its format. One that has an image layout is read as
    /// such. The error of a file that is neither says why it has no layout.
    pub async fn open_any_archive(file: &Path) -> Result<(ArchiveFormat, Layout)> {
        let archive = |format| ArchiveRef { format, file: file.to_owned(), image: None };
        let error = match Layout::open_archive_file(&archive(ArchiveFormat::Oci)).await {
            Ok(layout) => return Ok((ArchiveFormat::Oci, layout)),
            Err(error) if error.kind() == ErrorKind::Invalid => error,
            Err(error) => return Err(error),
        };
        match Layout::open_archive_file(&archive(ArchiveFormat::Docker)).await {
            Ok(layout) => Ok((ArchiveFormat::Docker, layout)),
            Err(other) if other.kind() == ErrorKind::Invalid => Err(error),
            Err(other) => Err(other),
        }
    }

    /// Opens the file of an archive for reading.
    pub async fn open_archive_file(archive: &ArchiveRef) -> Result<Layout> {
        let label = archive.without_image().to_string();
        let operation = format!("opening {label}");
        if archive.is_stdio() {
            let error = Error::new(
                ErrorKind::Unsupported,
                operation,
                "stdin can be read only once, and only `sync`, `inspect`, `tags` and `verify SOURCE TARGET` read an archive \
                 from it",
            );
            return Err(error.with_hint("save it to a file"));
        }
        let (file, format) = (archive.file.clone(), archive.format);
        let opening = file.clone();
        let source = run_blocking(&operation, move || open::open_archive_source(&opening)).await?;
        let Some(version) = source.version().ok().flatten() else {
            return run_blocking(&operation, move || open::open_archive(source, format, label)).await;
        };
        // Held while an archive is opened, so that it is read once for all tasks that need it.
        let mut opened = OPENED_ARCHIVES.lock().await;
        let key = (format, file, version);
        if let Some((_, layout)) = opened.iter().find(|(known, _)| *known == key) {
            return Ok(layout.clone());
        }
        let layout = run_blocking(&operation, move || open::open_archive(source, format, label)).await?;
        opened.retain(|((known_format, known_file, _), _)| (*known_format, known_file) != (key.0, &key.1));
        if opened.len() >= MAX_OPENED_ARCHIVES {
            opened.remove(0);
        }
        opened.push((key, layout.clone()));
        Ok(layout)
    }

    /// Whether the manifests were made while the archive was opened, because its format has none. Their digests differ
    /// from those in a registry, and signatures do not hold for them.
    pub fn has_made_manifests(&self) -> bool {
        matches!(&self.0.files, LayoutFiles::Archive(archive) if archive.has_made_manifests())
    }

    /// Whether the archive, read in Docker's format, also holds an image layout, which keeps digests.
    pub fn also_holds_layout(&self) -> bool {
        matches!(&self.0.files, LayoutFiles::Archive(archive) if archive.also_holds_layout())
    }

    /// Sets when existing files are hashed. Call it before the layout is used.
    pub fn with_hash_policy(self, hash_policy: HashPolicy) -> Layout {
        match Arc::try_unwrap(self.0) {
            Ok(shared) => Layout(Arc::new(LayoutInner { hash_policy, ..shared })),
            // A layout in use keeps its policy.
            Err(shared) => Layout(shared),
        }
    }

    /// Opens a layout for writing, creating it if the folder is missing or empty, and removes files left by killed
    /// processes. A folder with other content is left alone: [`ErrorKind::InvalidResponse`].
    pub async fn open_or_create(dir: impl AsRef<Path>) -> Result<Layout> {
        Layout::open_or_create_with_context(dir, &Context::default()).await
    }

    /// Like [`Layout::open_or_create`], with a context: its cancellation ends a wait for the lock, and its events
    /// report the wait.
    pub async fn open_or_create_with_context(dir: impl AsRef<Path>, context: &Context) -> Result<Layout> {
        let dir = dir.as_ref().to_owned();
        let operation = format!("opening {} for writing", label(&dir));
        let wait = LockWait::from(context);
        run_blocking(&operation, move || open::open_or_create(&dir, wait)).await
    }

    /// Returns what its location begins with: `oci`, `oci-archive` or `docker-archive`.
    pub fn scheme(&self) -> &str {
        self.0.label.split_once(':').map_or("oci", |(scheme, _)| scheme)
    }

    /// Returns the folder, or the archive's file, as given.
    pub fn dir(&self) -> &Path {
        &self.0.path
    }

    /// Lists all images in index order. Fails on an invalid entry: none is skipped silently.
    pub async fn entries(&self) -> Result<Vec<IndexEntry>> {
        let operation = format!("listing {}", self.0.label);
        self.run_blocking(&operation, |shared| shared.read_index()?.all_entries()).await
    }

    /// Lists the images as [`Layout::entries`] does, without their signatures and other referrers, unless there is
    /// nothing else.
    pub async fn images(&self) -> Result<Vec<IndexEntry>> {
        let operation = format!("listing {}", self.0.label);
        self.run_blocking(&operation, |shared| {
            let entries = shared.read_index()?.all_entries()?;
            Ok(shared.without_artifacts(entries.iter().collect()).into_iter().cloned().collect())
        })
        .await
    }

    /// Returns a repository of this layout; `None` selects the images with a bare tag.
    pub fn repository(&self, name: Option<QualifiedRepositoryName>) -> LayoutRepository {
        LayoutRepository::new(self.clone(), name)
    }

    /// Resolves a reference to this layout into the repository and the image's descriptor.
    pub async fn resolve(&self, image: &LayoutRef) -> Result<(LayoutRepository, Descriptor)> {
        let repository = self.repository(image.repository());
        let found = repository.resolve(image.manifest().as_ref()).await?;
        Ok((repository, found))
    }

    /// Runs blocking file operations on a blocking thread.
    async fn run_blocking<T: Send + 'static>(
        &self,
        operation: &str,
        work: impl FnOnce(&Arc<LayoutInner>) -> Result<T, LayoutError> + Send + 'static,
    ) -> Result<T> {
        let shared = self.0.clone();
        run_blocking(operation, move || work(&shared)).await
    }
}

fn label(dir: &Path) -> String {
    format!("oci:{}", dir.display())
}

async fn run_blocking<T: Send + 'static>(
    operation: &str,
    work: impl FnOnce() -> Result<T, LayoutError> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|layout_error| layout_error.into_error(operation)),
        Err(error) if error.is_cancelled() => Err(Error::cancelled(operation)),
        Err(error) => Err(Error::new(ErrorKind::Local, operation, "the blocking task panicked").with_source(error)),
    }
}
