//! The images of a bundle as the source of copies. What the bundle leaves out is read from the target, which has it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use imgsync_layout::{Layout, LayoutBlobStream, ReadAt};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, Manifest, MediaType, RegistryName, RepositoryName, Tag};
use imgsync_registry::{Access, BlobStream, Client, Context, ManifestHead, ManifestRef, Repository, TrafficCounters};

use crate::compact::{DigestKey, digest_key};
use crate::index::{BundleIndex, BundledRepository};
use crate::open::OpenedBundle;

/// The images of a bundle. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BundleImages(Arc<Images>);

#[derive(Debug)]
struct Images {
    layout: Layout,
    label: String,
    repositories: HashMap<RepositoryName, KnownContent>,
    carried: HashSet<DigestKey>,
    target: Option<BundleTarget>,
}

/// Registry into which a bundle is loaded.
#[derive(Debug, Clone)]
pub struct BundleTarget {
    /// Registry client.
    pub client: Client,
    /// The registry.
    pub registry: RegistryName,
    /// Prefix of all repositories.
    pub prefix: Option<RepositoryName>,
}

#[derive(Debug, Default)]
struct KnownContent {
    tags: HashMap<Tag, Digest>,
    manifests: HashSet<DigestKey>,
    referrers: HashMap<DigestKey, Vec<Digest>>,
    /// Blobs that are left out, and the repository that has them.
    left_out: HashMap<DigestKey, Option<RepositoryName>>,
    blobs: HashSet<DigestKey>,
}

/// A repository of a bundle, as the source of copies.
#[derive(Debug, Clone)]
pub struct BundleRepository {
    images: BundleImages,
    path: RepositoryName,
    context: Context,
    counters: Arc<TrafficCounters>,
}

/// Content of a blob.
#[derive(Debug)]
pub enum BundleBlobStream {
    /// From the bundle.
    Bundle(LayoutBlobStream),
    /// From the target.
    Target(Box<BlobStream>),
}

impl BundleTarget {
    /// Returns the full path of a repository of a bundle.
    pub fn path(&self, path: &RepositoryName) -> Result<RepositoryName> {
        let full = match &self.prefix {
            Some(prefix) => format!("{prefix}/{path}"),
            None => path.to_string(),
        };
        full.parse().map_err(|error: imgsync_oci::ParseReferenceError| {
            Error::new(ErrorKind::Invalid, format!("naming {full}"), error.to_string())
        })
    }

    /// Opens a repository of the target.
    pub fn repository(
        &self,
        path: &RepositoryName,
        context: &Context,
        counters: &Arc<TrafficCounters>,
    ) -> Result<Repository> {
        self.client.repository(&self.registry, &self.path(path)?, Access::Push, context, counters)
    }
}

impl BundleImages {
    /// Opens the images of a bundle.
    pub async fn open(bundle: &OpenedBundle, target: Option<BundleTarget>) -> Result<BundleImages> {
        let label = bundle.reader.label().to_owned();
        let source: Arc<dyn ReadAt> = bundle.reader.clone();
        let layout = Layout::open_archive(source, &label).await?;
        let index = &bundle.index;
        let repositories =
            index.repositories.iter().map(|entry| (entry.path.clone(), KnownContent::new(entry))).collect();
        let carried = carried_content(index).map(digest_key).collect();
        Ok(BundleImages(Arc::new(Images { layout, label, repositories, carried, target })))
    }

    /// Returns a repository as the source of a copy.
    pub fn repository(
        &self,
        path: &RepositoryName,
        context: &Context,
        counters: &Arc<TrafficCounters>,
    ) -> BundleRepository {
        let (context, counters) = (context.clone(), counters.clone());
        BundleRepository { images: self.clone(), path: path.clone(), context, counters }
    }

    /// Returns the archive as a layout.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }
}

/// Iterates over the digests of all content in a bundle, some of them several times.
pub(crate) fn carried_content(index: &BundleIndex) -> impl Iterator<Item = &Digest> {
    let contents = index.repositories.iter().flat_map(|entry| entry.manifests.iter().chain(&entry.blobs));
    contents.map(|content| &content.digest)
}

impl KnownContent {
    fn new(entry: &BundledRepository) -> KnownContent {
        let mut known = KnownContent::default();
        for tag in &entry.tags {
            known.tags.insert(tag.tag.clone(), tag.digest.clone());
            known.manifests.insert(digest_key(&tag.digest));
        }
        known.manifests.extend(entry.manifests.iter().map(|content| digest_key(&content.digest)));
        known.manifests.extend(entry.left_out_manifests.iter().map(digest_key));
        for (subject, referrer) in &entry.referrers {
            known.referrers.entry(digest_key(subject)).or_default().push(referrer.clone());
        }
        known.blobs = entry.blobs.iter().map(|content| digest_key(&content.digest)).collect();
        let left_out = entry.left_out_blobs.iter();
        known.left_out = left_out.map(|blob| (digest_key(&blob.digest), blob.repository.clone())).collect();
        known
    }
}

impl BundleRepository {
    /// Returns the same repository with another context.
    pub fn with_context(&self, context: &Context) -> BundleRepository {
        BundleRepository { context: context.clone(), ..self.clone() }
    }

    fn known(&self) -> Option<&KnownContent> {
        self.images.0.repositories.get(&self.path)
    }

    fn label(&self) -> String {
        format!("{}:{}", self.images.0.label, self.path)
    }

    /// Returns the description of a read, for messages.
    pub fn read_operation(&self, digest: &Digest) -> String {
        format!("reading {digest} of {}", self.label())
    }

    fn digest(&self, reference: &ManifestRef) -> Option<Digest> {
        let known = self.known()?;
        match reference {
            ManifestRef::Tag(tag) => known.tags.get(tag).cloned(),
            ManifestRef::Digest(digest) => known.manifests.contains(&digest_key(digest)).then(|| digest.clone()),
        }
    }

    /// Returns the digest of a manifest that the index names.
    pub fn head_manifest(&self, reference: &ManifestRef) -> Option<ManifestHead> {
        self.digest(reference).map(|digest| ManifestHead { digest, media_type: MediaType::Missing })
    }

    /// Reads a manifest: from the bundle, or from the target if it is left out.
    pub async fn get_manifest(&self, reference: &ManifestRef) -> Result<Manifest> {
        let digest = match (self.digest(reference), reference) {
            (Some(digest), _) => digest,
            // The target has an image whose root it has: of that one, the bundle names nothing else.
            (None, ManifestRef::Digest(digest)) if self.images.0.target.is_some() => digest.clone(),
            (None, _) => {
                let operation = format!("reading {reference} of {}", self.label());
                return Err(Error::new(ErrorKind::NotFound, operation, "the bundle does not name it"));
            }
        };
        if self.images.0.carried.contains(&digest_key(&digest)) {
            return self.images.0.layout.repository(None).get_manifest(&ManifestRef::Digest(digest)).await;
        }
        let repository = self.target_repository(None, &digest)?;
        repository.get_manifest(&ManifestRef::Digest(digest.clone())).await.map_err(|error| self.left_out(error))
    }

    /// Whether the bundle has a blob, or says that the target has it.
    pub fn has_blob(&self, blob: &Descriptor) -> bool {
        let key = digest_key(&blob.digest);
        self.known().is_some_and(|known| known.blobs.contains(&key) || known.left_out.contains_key(&key))
    }

    /// Opens a blob at an offset or before: from the bundle, or from the target if it is left out.
    pub async fn open_blob(&self, blob: &Descriptor, offset: u64) -> Result<(BundleBlobStream, u64)> {
        let key = digest_key(&blob.digest);
        if self.images.0.carried.contains(&key) {
            let opened = self.images.0.layout.open_blob(blob, offset).await?;
            return Ok((BundleBlobStream::Bundle(opened.stream), opened.offset));
        }
        let holder = self.known().and_then(|known| known.left_out.get(&key)).cloned();
        if holder.is_none() && self.images.0.target.is_none() {
            let operation = self.read_operation(&blob.digest);
            return Err(Error::new(ErrorKind::NotFound, operation, "the bundle does not have it"));
        }
        let repository = self.target_repository(holder.flatten().as_ref(), &blob.digest)?;
        let opened = repository.open_blob(blob, offset).await.map_err(|error| self.left_out(error))?;
        Ok((BundleBlobStream::Target(Box::new(opened.stream)), opened.offset))
    }

    /// Lists the referrers of a manifest that the bundle carries.
    pub fn list_referrers(&self, subject: &Digest) -> Vec<Descriptor> {
        let known = self.known().and_then(|known| known.referrers.get(&digest_key(subject)));
        let describe = |digest: &Digest| Descriptor::new(MediaType::OciManifest, digest.clone(), 0);
        known.map(|referrers| referrers.iter().map(describe).collect()).unwrap_or_default()
    }

    fn target_repository(&self, holder: Option<&RepositoryName>, digest: &Digest) -> Result<Repository> {
        match &self.images.0.target {
            Some(target) => target.repository(holder.unwrap_or(&self.path), &self.context, &self.counters),
            None => Err(Error::new(ErrorKind::NotFound, self.read_operation(digest), "the bundle leaves it out")),
        }
    }

    fn left_out(&self, error: Error) -> Error {
        match error.kind() {
            ErrorKind::NotFound => error.with_hint(
                "the bundle leaves it out because the target had it: make a bundle with a new inventory of the target",
            ),
            _ => error,
        }
    }
}

impl BundleBlobStream {
    /// Reads the next chunk; `None` at the end. Also returns whether it is from the bundle.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        match self {
            BundleBlobStream::Bundle(stream) => stream.next_chunk().await,
            BundleBlobStream::Target(stream) => stream.next_chunk().await,
        }
    }
}
