//! Collects images for an archive: a target of copies that keeps manifests and remembers where blobs are. Then the
//! archive is planned, and its blobs are read from their sources, each once.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use imgsync_archive::{
    ArchiveImage, ArchivePlan, ArchivePlanner, ArchivedName, ContentStream, LeftOutImage, ManifestSpool,
};
use imgsync_layout::{Layout, QualifiedRepositoryName};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, DigestTag, Manifest, Reference, Tag};
use imgsync_registry::{Context, ManifestPut, ManifestRef};

/// Images for one archive. Cheap to clone; clones share the content.
#[derive(Clone)]
pub struct ArchiveCollector(Arc<Mutex<CollectedContent>>);

struct CollectedContent {
    planner: Option<ArchivePlanner>,
    manifests: ManifestSpool,
    blobs: HashMap<Digest, Arc<dyn ArchivedBlob>>,
    /// Layouts that images come from, by place: each is opened once, for its index takes memory.
    layouts: HashMap<String, Layout>,
    /// Whether the source of each blob is asked for it while images are collected, so that one image without a blob does
    /// not stop the archive of all.
    checks_presence: bool,
    /// The archive that is replaced. What it has was at the source before, and is not asked for.
    former: Option<Layout>,
    /// Blobs that are read from there, because they could not be read elsewhere.
    from_former: HashSet<Digest>,
}

/// Content of a blob that was not read yet.
#[async_trait]
pub(super) trait ArchivedBlob: Send + Sync {
    /// Opens it at its first byte. The stream verifies it.
    async fn open(&self, digest: &Digest, size: u64, context: &Context) -> Result<ContentStream>;

    /// Whether it comes out of a pipe.
    fn is_streamed(&self, _digest: &Digest) -> bool {
        false
    }

    /// Returns the name of the source and the offset there, for a source that can only be read forward.
    fn position(&self, digest: &Digest) -> Option<(String, u64)>;
}

/// A repository of an archive, as the target of a copy.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveTarget {
    collector: ArchiveCollector,
    /// Repository of the images; without one their names are bare tags.
    name: Option<QualifiedRepositoryName>,
}

impl ArchiveCollector {
    /// Creates an empty collector.
    pub fn new() -> ArchiveCollector {
        let content = CollectedContent {
            planner: Some(ArchivePlanner::for_this_machine()),
            manifests: ManifestSpool::default(),
            blobs: HashMap::new(),
            layouts: HashMap::new(),
            checks_presence: false,
            former: None,
            from_former: HashSet::new(),
        };
        ArchiveCollector(Arc::new(Mutex::new(content)))
    }

    /// Plans an archive of everything collected. `change` can add to the plan, such as files of the caller's.
    pub fn plan(&self, change: impl FnOnce(&mut ArchivePlanner) -> Result<()>) -> Result<ArchivePlan> {
        let mut planner = self.content().planner.take().ok_or_else(already_planned)?;
        change(&mut planner)?;
        planner.build()
    }

    /// Asks the source of each blob for it while images are collected.
    pub fn checking_presence(self) -> ArchiveCollector {
        self.content().checks_presence = true;
        self
    }

    /// Sets the archive that is replaced. What it has was at the source before, and is not asked for.
    pub fn set_former(&self, former: Layout) {
        self.content().former = Some(former);
    }

    pub(super) fn former(&self) -> Option<Layout> {
        self.content().former.clone()
    }

    /// Replaces the place of a blob by the archive that is replaced. Returns `false` if it was before.
    pub(super) fn replace_blob(&self, digest: &Digest, former: impl ArchivedBlob + 'static) -> bool {
        let mut content = self.content();
        let is_first = content.from_former.insert(digest.clone());
        if is_first {
            content.blobs.insert(digest.clone(), Arc::new(former));
        }
        is_first
    }

    /// Plans an archive of the collected images that need none of the content that is missing. Also returns the others.
    pub fn plan_without(&self, missing: &HashSet<Digest>) -> Result<(ArchivePlan, Vec<LeftOutImage>)> {
        let planner = self.content().planner.clone();
        let mut planner = planner.ok_or_else(already_planned)?;
        let left_out = planner.leave_out(missing);
        planner.build().map(|plan| (plan, left_out))
    }

    fn content(&self) -> MutexGuard<'_, CollectedContent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a layout that was opened for an earlier image.
    pub(super) fn shared_layout(&self, place: &str) -> Option<Layout> {
        self.content().layouts.get(place).cloned()
    }

    /// Returns the archive that comes out of a pipe, if images are from there.
    pub(super) fn streamed_layout(&self) -> Option<Layout> {
        self.content().layouts.values().find(|layout| layout.is_stream()).cloned()
    }

    /// Keeps an opened layout for later images.
    pub(super) fn share_layout(&self, place: String, layout: &Layout) {
        self.content().layouts.entry(place).or_insert_with(|| layout.clone());
    }

    /// Returns the bytes of a collected manifest.
    pub(super) fn manifest(&self, digest: &Digest) -> Result<Bytes> {
        self.content().manifests.get(digest)
    }

    /// Returns a collected blob.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Arc<dyn ArchivedBlob>> {
        self.content()
            .blobs
            .get(digest)
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("archiving {digest}"), "the blob was not collected"))
    }

    fn collect_manifest(&self, manifest: &Manifest, image: Option<ArchiveImage>) -> Result<()> {
        let mut content = self.content();
        content.manifests.insert(manifest)?;
        let planner = content.planner.as_mut().ok_or_else(already_planned)?;
        planner.add_manifest(manifest)?;
        if let Some(image) = image {
            planner.add_image(image);
        }
        Ok(())
    }
}

impl Default for ArchiveCollector {
    fn default() -> ArchiveCollector {
        ArchiveCollector::new()
    }
}

impl fmt::Debug for ArchiveCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArchiveCollector")
    }
}

fn already_planned() -> Error {
    Error::new(ErrorKind::Local, "planning an archive", "it is already planned")
}

impl ArchiveTarget {
    pub(crate) fn new(collector: &ArchiveCollector, name: Option<QualifiedRepositoryName>) -> ArchiveTarget {
        ArchiveTarget { collector: collector.clone(), name }
    }

    /// Remembers where a blob is. Returns whether it is new: no other image has named it before.
    pub(super) fn put_blob(&self, blob: &Descriptor, content: impl ArchivedBlob + 'static) -> Result<bool> {
        let mut collected = self.collector.content();
        collected.planner.as_mut().ok_or_else(already_planned)?.add_blob(blob)?;
        let is_new = !collected.blobs.contains_key(&blob.digest);
        if is_new {
            if let (Some((source, offset)), Some(planner)) = (content.position(&blob.digest), &mut collected.planner) {
                planner.set_position(&blob.digest, &source, offset);
            }
            collected.blobs.insert(blob.digest.clone(), Arc::new(content));
        }
        Ok(is_new)
    }

    /// Whether the source must be asked for a blob before it is remembered.
    pub(super) async fn requires_check(&self, blob: &Descriptor) -> bool {
        let former = {
            let collected = self.collector.content();
            if !collected.checks_presence || collected.blobs.contains_key(&blob.digest) {
                return false;
            }
            collected.former.clone()
        };
        match former {
            Some(former) => !former.has_file(blob).await.unwrap_or_default(),
            None => true,
        }
    }

    /// Collects a manifest under a tag, as a referrer, or as a child of another.
    pub(crate) fn put_manifest(&self, reference: &ManifestRef, manifest: &Manifest) -> Result<ManifestPut> {
        let subject = manifest.parsed().subject.as_ref().map(|subject| subject.digest.clone());
        let image = match (reference, subject) {
            (ManifestRef::Tag(tag), _) => {
                Some(ArchiveImage { name: Some(self.name_of(tag)), root: manifest.descriptor(), subject: None })
            }
            (ManifestRef::Digest(_), Some(subject)) => {
                let mut root = manifest.descriptor();
                root.artifact_type = manifest.artifact_type().map(str::to_owned);
                root.annotations = manifest.parsed().annotations.clone();
                Some(ArchiveImage::referrer(subject, root))
            }
            (ManifestRef::Digest(_), None) => None,
        };
        self.collect(manifest, image)
    }

    /// Collects an image that can be found by its digest only.
    pub(crate) fn put_untagged_manifest(&self, manifest: &Manifest) -> Result<ManifestPut> {
        self.collect(manifest, Some(ArchiveImage { name: None, root: manifest.descriptor(), subject: None }))
    }

    /// Collects what cosign stores under a tag. It has a name and a subject.
    pub(crate) fn put_digest_tag(&self, tag: &Tag, manifest: &Manifest) -> Result<ManifestPut> {
        let subject = DigestTag::subject(tag.as_str());
        self.collect(
            manifest,
            Some(ArchiveImage { name: Some(self.name_of(tag)), root: manifest.descriptor(), subject }),
        )
    }

    fn collect(&self, manifest: &Manifest, image: Option<ArchiveImage>) -> Result<ManifestPut> {
        self.collector.collect_manifest(manifest, image)?;
        Ok(ManifestPut { subject_kept: true, refusal: None })
    }

    fn name_of(&self, tag: &Tag) -> ArchivedName {
        match self.name.clone() {
            Some(QualifiedRepositoryName { registry, repository }) => {
                ArchivedName::Full(Reference { registry, repository, tag: Some(tag.clone()), digest: None })
            }
            None => ArchivedName::Tag(tag.clone()),
        }
    }

    /// Returns the error of reading what is only collected.
    pub(crate) fn not_readable(&self) -> Error {
        Error::new(ErrorKind::Unsupported, "reading an archive", "it is not written yet")
    }

    pub(crate) fn describe_write(&self, digest: &Digest) -> String {
        format!("archiving {digest}")
    }
}
