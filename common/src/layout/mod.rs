//! An OCI image layout (OCI image-spec v1.1, "Image Layout") as an end of a copy: a folder with `oci-layout`,
//! `index.json` and `blobs/<algorithm>/<hex>`, which carries images between machines that no network joins.
//!
//! One layout holds images of several repositories, under full names (`gcr.io/distroless/static:nonroot`) or bare tags, as
//! skopeo writes them. What is there is never believed: content is checked against its digest, links are not followed.
//! What is written appears whole or not at all, whoever else writes at the same time and whatever is killed when:
//!
//! - A blob is hashed as it comes into a hidden file, and gets its name when it is on the disk and right.
//! - `index.json` changes under a lock on `oci-layout` (which always is there and is never replaced), by a new file in its
//!   place. It never points at an image that is not complete.
//! - A blob's file that is there already is hashed before it is relied on, once for each version of the file.
//! - Hidden files of programs that were killed are known by nobody holding a lock on them. A large one is continued, the
//!   rest goes when the layout is next opened for writing.

mod blobs;
mod commit;
mod folder;
mod hashed;
mod index;
mod lock;
mod manifests;
mod open;
mod reference;
mod referrers;
#[cfg(test)]
mod tests;
mod trouble;
mod writer;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

pub use blobs::{BlobStream, Opened};
pub use hashed::{HashMemory, Hashing};
pub use index::Entry;
pub use lock::LOCK_LIMIT;
pub use manifests::LayoutRepository;
pub use reference::{FullName, ImageName, LayoutRef, ParseLayoutRefError};
pub use writer::BlobWriter;

use self::commit::IndexFile;
use self::folder::Folder;
use self::lock::LockWait;
use self::trouble::Trouble;
use crate::error::{Class, Error, Result};
use crate::generational::GenerationalCache;
use crate::image::{Descriptor, Digest};
use crate::registry::Context;

/// Manifests whose subjects are remembered for each layout.
const MAX_SUBJECTS: usize = 100_000;
const BLOBS: &str = "blobs";
/// Of what is not finished, in the layout's own folder: the specification leaves no room for it among the blobs.
const HIDDEN_PREFIX: &str = ".imgsync-";
const HIDDEN_SUFFIX: &str = ".partial";

/// An image layout. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Layout(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    root: Folder,
    /// `oci:DIR`, for messages.
    label: String,
    index: IndexFile,
    /// What manifests without a tag refer to; read once.
    subjects: Mutex<GenerationalCache<Digest, Option<Digest>>>,
    /// How its lock is waited for.
    wait: LockWait,
    /// The folder by its one name.
    folder: String,
    hashing: Hashing,
    /// Files that were hashed and are right, by their versions.
    hashed: Mutex<HashMap<Digest, String>>,
}

impl Layout {
    /// Opens a layout. [`Class::NotFound`] where the folder is missing, [`Class::BadAnswer`] where it is no layout,
    /// [`Class::Unsupported`] where it is of another version.
    pub async fn open(dir: impl AsRef<Path>) -> Result<Layout> {
        let dir = dir.as_ref().to_owned();
        let tried = format!("opening {}", label(&dir));
        blocking(&tried, move || open::open(&dir)).await
    }

    /// Says when files that are found in it are hashed; to be called before it is used.
    pub fn hashing(self, hashing: Hashing) -> Layout {
        match Arc::try_unwrap(self.0) {
            Ok(shared) => Layout(Arc::new(Shared { hashing, ..shared })),
            // It is in use: as it was.
            Err(shared) => Layout(shared),
        }
    }

    /// Opens a layout to write to it, and makes it where the folder is missing or empty. Tidies up behind programs that
    /// were killed. A folder that holds something else is left alone: [`Class::BadAnswer`].
    pub async fn open_or_create(dir: impl AsRef<Path>) -> Result<Layout> {
        Layout::open_or_create_in(dir, &Context::default()).await
    }

    /// The same on behalf of a context: waiting for the lock of another program ends with it, and its events tell of that.
    pub async fn open_or_create_in(dir: impl AsRef<Path>, context: &Context) -> Result<Layout> {
        let dir = dir.as_ref().to_owned();
        let tried = format!("opening {} for writing", label(&dir));
        let wait = LockWait::from(context);
        blocking(&tried, move || open::open_or_create(&dir, wait)).await
    }

    /// Its folder, as it was given.
    pub fn dir(&self) -> &Path {
        self.0.root.path()
    }

    /// All its images, in the order in which they are listed. One that cannot be understood is an error: it is not left
    /// out silently.
    pub async fn entries(&self) -> Result<Vec<Entry>> {
        let tried = format!("listing {}", self.0.label);
        self.blocking(&tried, |shared| shared.read_index()?.all_entries()).await
    }

    /// A repository of this layout; `None` stands for the images with a bare tag.
    pub fn repository(&self, name: Option<FullName>) -> LayoutRepository {
        LayoutRepository::new(self.clone(), name)
    }

    /// What is meant by a reference to this layout: the repository, and the image in it.
    pub async fn find(&self, image: &LayoutRef) -> Result<(LayoutRepository, Descriptor)> {
        let repository = self.repository(image.repository());
        let found = repository.resolve(image.manifest().as_ref()).await?;
        Ok((repository, found))
    }

    /// Runs what may wait for the disk on a thread that may wait.
    async fn blocking<T: Send + 'static>(
        &self,
        tried: &str,
        work: impl FnOnce(&Arc<Shared>) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T> {
        let shared = self.0.clone();
        blocking(tried, move || work(&shared)).await
    }
}

fn label(dir: &Path) -> String {
    format!("oci:{}", dir.display())
}

async fn blocking<T: Send + 'static>(
    tried: &str,
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|trouble| trouble.error(tried)),
        Err(error) if error.is_cancelled() => Err(Error::cancelled(tried)),
        Err(error) => Err(Error::new(Class::Local, tried, "the program failed").because(error)),
    }
}
