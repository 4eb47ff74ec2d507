//! Endpoints of a copy: repositories in registries, or in image layouts on this machine.

use std::sync::Arc;

use imgsync_bundle::{BundleRepository, CollectorRepository};
use imgsync_layout::{ArchiveRef, HashPolicy, Layout, LayoutRepository, QualifiedRepositoryName};
use imgsync_model::batch::RepositoryLocator;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::{RetryBudget, RetryPolicy, RetryState};
use imgsync_oci::{ArchiveFormat, Descriptor, Digest, DigestTag, Manifest, Reference, Tag};
use imgsync_registry::wait::WaitClock;
use imgsync_registry::{
    self, Access, Client, Context, FallbackTag, ManifestHead, ManifestPut, ManifestRef, Repository, TrafficCounters,
};
use tokio_util::sync::CancellationToken;

use super::archive_collector::{ArchiveCollector, ArchiveTarget};
use super::bundle::BundleSide;
use super::image_location::ImageLocation;
use super::source_stream::SourceStream;
use super::{CopyRequest, bundle};

/// Endpoint to read from.
#[derive(Debug, Clone)]
pub(crate) enum CopySource {
    Registry(Repository),
    Layout(LayoutRepository),
    Bundle(BundleRepository),
}

/// Endpoint to write to.
#[derive(Debug, Clone)]
pub(crate) enum CopyTarget {
    Registry(Repository),
    Layout(LayoutRepository),
    Archive(ArchiveTarget),
    Bundle(CollectorRepository),
}

/// Both endpoints of one copy.
pub(crate) struct Endpoints {
    pub(crate) source: CopySource,
    /// Manifest to read; `None` selects the only image of a layout.
    pub(crate) source_ref: Option<ManifestRef>,
    pub(crate) target: CopyTarget,
    pub(crate) target_ref: Option<ManifestRef>,
    pub(crate) source_traffic: Arc<TrafficCounters>,
    pub(crate) target_traffic: Arc<TrafficCounters>,
}

impl Endpoints {
    pub(crate) async fn open(
        client: &Client,
        request: &CopyRequest,
        hashing: HashPolicy,
        bundle: Option<&BundleSide>,
        context: &Context,
    ) -> Result<Endpoints> {
        Endpoints::open_with(client, request, hashing, bundle, context, None).await
    }

    /// Opens both endpoints. With a collector, the target only names the image, which is collected.
    pub(crate) async fn open_with(
        client: &Client,
        request: &CopyRequest,
        hashing: HashPolicy,
        bundle: Option<&BundleSide>,
        context: &Context,
        collector: Option<&ArchiveCollector>,
    ) -> Result<Endpoints> {
        let CopyRequest { source, target, traffic: (source_traffic, target_traffic), .. } = request;
        let open = |reference: &Reference, access, counters| {
            client.repository(&reference.registry, &reference.repository, access, context, counters)
        };
        let bundled_source = match source {
            ImageLocation::Layout(image) => bundle.and_then(|bundle| bundle.source(image, context, source_traffic)),
            ImageLocation::Registry(_) | ImageLocation::Archive(_) => None,
        };
        let bundled_target = match target {
            ImageLocation::Registry(image) => bundle.and_then(|bundle| bundle.target(image)),
            ImageLocation::Layout(_) | ImageLocation::Archive(_) => None,
        };
        let known_source = match bundled_source {
            Some(bundled) => Some(CopySource::Bundle(bundled)),
            None => collector.and_then(|collector| shared_source(collector, source)),
        };
        let copy_source = match (known_source, source) {
            (Some(known), _) => known,
            (None, ImageLocation::Registry(reference)) => {
                CopySource::Registry(open(reference, Access::Pull, source_traffic)?)
            }
            (None, ImageLocation::Layout(image)) => {
                CopySource::Layout(Layout::open(&image.dir).await?.repository(image.repository()))
            }
            (None, ImageLocation::Archive(image)) => {
                CopySource::open_archive(image, request.stdin_archive.as_ref(), context).await?
            }
        };
        if let Some(bundled) = bundled_target {
            return Ok(Endpoints::with_target(request, copy_source, CopyTarget::Bundle(bundled)));
        }
        if let Some(collector) = collector {
            if let (CopySource::Layout(opened), Some((place, _))) = (&copy_source, local_place(source)) {
                collector.share_layout(place, opened.layout());
            }
            let target = ArchiveTarget::new(collector, archived_repository(target, source));
            return Ok(Endpoints::with_target(request, copy_source, CopyTarget::Archive(target)));
        }
        let copy_target = match target {
            ImageLocation::Registry(reference) => CopyTarget::Registry(open(reference, Access::Push, target_traffic)?),
            ImageLocation::Layout(image) => {
                // A target that is a whole layout stores images under their full source names.
                let name = image.repository().or_else(|| match (&image.image, source) {
                    (None, ImageLocation::Registry(reference)) => {
                        Some(imgsync_layout::QualifiedRepositoryName::from_reference(reference))
                    }
                    (None, ImageLocation::Layout(source)) => source.repository(),
                    (None, ImageLocation::Archive(source)) => source.repository(),
                    _ => None,
                });
                let layout = Layout::open_or_create_with_context(&image.dir, context).await?;
                CopyTarget::Layout(layout.with_hash_policy(hashing).repository(name))
            }
            // Images are collected for an archive; here it is read, to compare.
            ImageLocation::Archive(image) => match open_archive(image, request.stdin_archive.as_ref()).await {
                Ok(layout) => CopyTarget::Layout(layout.repository(image.repository())),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    CopyTarget::Archive(ArchiveTarget::new(&ArchiveCollector::new(), image.repository()))
                }
                Err(error) => return Err(error),
            },
        };
        Ok(Endpoints::with_target(request, copy_source, copy_target))
    }

    fn with_target(request: &CopyRequest, copy_source: CopySource, copy_target: CopyTarget) -> Endpoints {
        let CopyRequest { source, target, traffic: (source_traffic, target_traffic), .. } = request;
        let wants_tag = match target {
            ImageLocation::Registry(reference) => reference.tag.is_some() || reference.digest.is_none(),
            ImageLocation::Layout(_) | ImageLocation::Archive(_) => target.digest().is_none(),
        };
        let written_tag = match target {
            ImageLocation::Registry(reference) => reference.tag.clone(),
            ImageLocation::Layout(_) | ImageLocation::Archive(_) => target.tag(),
        };
        let tag = written_tag.or_else(|| wants_tag.then(|| source.tag()).flatten());
        Endpoints {
            source: copy_source,
            source_ref: source.manifest_ref(),
            target: copy_target,
            target_ref: tag.map(ManifestRef::Tag),
            source_traffic: source_traffic.clone(),
            target_traffic: target_traffic.clone(),
        }
    }
}

/// Opens an archive: the one from stdin, if that is named and was opened.
async fn open_archive(image: &ArchiveRef, stdin: Option<&Layout>) -> Result<Layout> {
    match stdin {
        Some(opened) if image.is_stdio() => Ok(opened.clone()),
        _ => Layout::open_archive_file(image).await,
    }
}

/// Returns a layout or archive as a text without the image, and the image's repository.
fn local_place(source: &ImageLocation) -> Option<(String, Option<QualifiedRepositoryName>)> {
    match source {
        ImageLocation::Registry(_) => None,
        ImageLocation::Layout(image) => Some((format!("oci:{}", image.dir.display()), image.repository())),
        ImageLocation::Archive(image) => Some((image.without_image().to_string(), image.repository())),
    }
}

/// Returns a source in a layout that an earlier image of the collector has opened.
fn shared_source(collector: &ArchiveCollector, source: &ImageLocation) -> Option<CopySource> {
    let (place, repository) = local_place(source)?;
    Some(CopySource::Layout(collector.shared_layout(&place)?.repository(repository)))
}

/// Returns the repository under which an archive has an image: the target's, else the source's. `None`: its name is a
/// bare tag.
fn archived_repository(target: &ImageLocation, source: &ImageLocation) -> Option<QualifiedRepositoryName> {
    let (repository, is_whole) = match target {
        ImageLocation::Registry(reference) => (Some(QualifiedRepositoryName::from_reference(reference)), false),
        ImageLocation::Layout(layout) => (layout.repository(), layout.image.is_none()),
        ImageLocation::Archive(archive) => (archive.repository(), archive.image.is_none()),
    };
    repository.or_else(|| match source {
        _ if !is_whole => None,
        ImageLocation::Registry(reference) => Some(QualifiedRepositoryName::from_reference(reference)),
        ImageLocation::Layout(layout) => layout.repository(),
        ImageLocation::Archive(archive) => archive.repository(),
    })
}

impl CopySource {
    /// Opens an archive, and warns if its images have no manifests.
    pub(crate) async fn open_archive(
        image: &ArchiveRef,
        stdin: Option<&Layout>,
        context: &Context,
    ) -> Result<CopySource> {
        let layout = open_archive(image, stdin).await?;
        if layout.has_made_manifests() {
            let layout_hint = match layout.also_holds_layout() {
                true => {
                    let beside = ArchiveRef { format: ArchiveFormat::Oci, ..image.without_image() };
                    format!("; the file is also an image layout: {beside} keeps digests and signatures")
                }
                false => String::new(),
            };
            context.warn(format!(
                "{image}: this format has no manifests, so a new one was made: its digest differs from that in a registry, \
                 and signatures do not hold for it{layout_hint}"
            ));
        }
        Ok(CopySource::Layout(layout.repository(image.repository())))
    }

    /// Returns the layout of a source that can only be read forward.
    pub(crate) fn sequential_layout(&self) -> Option<&Layout> {
        match self {
            CopySource::Layout(repository) if repository.layout().is_sequential() => Some(repository.layout()),
            _ => None,
        }
    }

    /// Returns the repository, for a registry.
    pub(crate) fn repository(&self) -> Option<&Repository> {
        match self {
            CopySource::Registry(repository) => Some(repository),
            CopySource::Layout(_) | CopySource::Bundle(_) => None,
        }
    }

    pub(crate) fn with_context(&self, context: &Context) -> CopySource {
        match self {
            CopySource::Registry(repository) => CopySource::Registry(repository.with_context(context)),
            CopySource::Layout(repository) => CopySource::Layout(repository.clone()),
            CopySource::Bundle(repository) => CopySource::Bundle(repository.with_context(context)),
        }
    }

    /// Returns the same source for a shared reader, with its own cancellation token and clock.
    pub(crate) fn for_shared_read(&self, cancel: &CancellationToken, clock: &WaitClock) -> CopySource {
        match self {
            CopySource::Registry(repository) => {
                let context = repository.context().clone();
                self.with_context(&Context { cancel: cancel.clone(), clock: clock.clone(), ..context })
            }
            CopySource::Layout(_) | CopySource::Bundle(_) => self.clone(),
        }
    }

    pub(crate) async fn manifest_head(&self, reference: &ManifestRef) -> Result<Option<ManifestHead>> {
        match self {
            CopySource::Registry(repository) => repository.head_manifest(reference).await,
            CopySource::Layout(repository) => repository.head_manifest(reference).await,
            CopySource::Bundle(repository) => Ok(repository.head_manifest(reference)),
        }
    }

    /// Reads a manifest; `None` selects the only image of a layout.
    pub(crate) async fn manifest_get(&self, reference: Option<&ManifestRef>) -> Result<Manifest> {
        match (self, reference) {
            (CopySource::Registry(repository), Some(reference)) => repository.get_manifest(reference).await,
            (CopySource::Registry(repository), None) => repository.get_manifest(&ManifestRef::Tag(Tag::latest())).await,
            (CopySource::Layout(repository), Some(reference)) => repository.get_manifest(reference).await,
            (CopySource::Bundle(repository), reference) => {
                let latest = ManifestRef::Tag(Tag::latest());
                repository.get_manifest(reference.unwrap_or(&latest)).await
            }
            (CopySource::Layout(repository), None) => {
                let found = repository.resolve(None).await?;
                repository.get_manifest(&ManifestRef::Digest(found.digest)).await
            }
        }
    }

    pub(crate) async fn manifest_by_digest(&self, digest: &Digest) -> Result<Manifest> {
        self.manifest_get(Some(&ManifestRef::Digest(digest.clone()))).await
    }

    /// Reads the manifest of a descriptor; falls back to its inline data if the source lacks it.
    pub(crate) async fn child_manifest(&self, child: &Descriptor) -> Result<Manifest> {
        match self.manifest_by_digest(&child.digest).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let inline = child.inline().ok_or(error)?;
                let operation = self.describe_read(&child.digest);
                Manifest::parse_as(inline, child.digest.clone(), &child.media_type)
                    .map_err(|error| Error::new(ErrorKind::InvalidResponse, operation, error.to_string()))
            }
            read => read,
        }
    }

    pub(crate) async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        match self {
            CopySource::Registry(repository) => repository.head_blob(&blob.digest).await,
            CopySource::Layout(repository) => repository.layout().has_blob(blob).await,
            CopySource::Bundle(repository) => Ok(repository.has_blob(blob)),
        }
    }

    /// Whether the source says that it has a blob. A file is not read.
    pub(crate) async fn mentions_blob(&self, blob: &Descriptor) -> Result<bool> {
        match self {
            CopySource::Registry(repository) => repository.head_blob(&blob.digest).await,
            CopySource::Layout(repository) => repository.layout().has_file(blob).await,
            CopySource::Bundle(repository) => Ok(repository.has_blob(blob)),
        }
    }

    /// Lists the referrers of a manifest. Also returns the digest of the fallback index, if one was read.
    pub(crate) async fn referrers(
        &self,
        subject: &Digest,
        fallback: FallbackTag,
    ) -> Result<(Vec<Descriptor>, Option<Digest>)> {
        match self {
            CopySource::Registry(repository) => repository.list_referrers_with_fallback(subject, fallback).await,
            CopySource::Bundle(repository) => Ok((repository.list_referrers(subject), None)),
            CopySource::Layout(repository) => {
                let mut found = repository.list_referrers(subject).await?;
                let tag = ManifestRef::Tag(DigestTag::Referrers.tag_for(subject));
                if fallback == FallbackTag::Absent || repository.head_manifest(&tag).await?.is_none() {
                    return Ok((found, None));
                }
                // Some tools also write a fallback index to layouts.
                let index = repository.get_manifest(&tag).await?;
                for other in index.children() {
                    if !found.iter().any(|known| known.digest == other.digest) {
                        found.push(other.clone());
                    }
                }
                Ok((found, Some(index.digest().clone())))
            }
        }
    }

    pub(crate) async fn digest_tag_head(&self, tag: &Tag) -> Result<Option<ManifestHead>> {
        match self {
            CopySource::Registry(repository) => repository.head_digest_tag(tag).await,
            CopySource::Layout(repository) => repository.head_manifest(&ManifestRef::Tag(tag.clone())).await,
            CopySource::Bundle(repository) => Ok(repository.head_manifest(&ManifestRef::Tag(tag.clone()))),
        }
    }

    /// Opens a blob at an offset or earlier; also returns the actual offset. Falls back to the descriptor's inline data
    /// if the source lacks the blob or returns no content.
    pub(crate) async fn blob_open(
        &self,
        blob: &Descriptor,
        offset: u64,
        traffic: &Arc<TrafficCounters>,
    ) -> Result<(SourceStream, u64)> {
        let opened = match self {
            CopySource::Registry(repository) => {
                let opened = repository.open_blob(blob, offset).await;
                opened.map(|opened| (SourceStream::Registry(Box::new(opened.stream)), opened.offset))
            }
            CopySource::Layout(repository) => {
                let opened = repository.layout().open_blob(blob, offset).await;
                opened.map(|opened| (SourceStream::Layout(opened.stream, traffic.clone()), opened.offset))
            }
            CopySource::Bundle(repository) => {
                let opened = repository.open_blob(blob, offset).await;
                opened.map(|(stream, offset)| (SourceStream::Bundle(stream, traffic.clone()), offset))
            }
        };
        match (opened, blob.inline()) {
            (opened, None) => opened,
            (Err(error), Some(inline)) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                Ok((SourceStream::InMemory(Some(inline)), 0))
            }
            (Ok((SourceStream::Registry(stream), 0)), inline) => {
                Ok((SourceStream::WithInlineFallback(stream, inline), 0))
            }
            (opened, Some(_)) => opened,
        }
    }

    /// Whether the source proves that it has a blob, without reading the blob.
    pub(crate) async fn proves_blob(&self, blob: &Descriptor) -> Result<bool> {
        match self {
            CopySource::Registry(repository) => repository.confirms_blob(&blob.digest).await,
            CopySource::Layout(repository) => repository.layout().has_blob(blob).await,
            CopySource::Bundle(repository) => Ok(repository.has_blob(blob)),
        }
    }

    /// Returns the repository under which proofs are stored. `None` for a layout: a look at its files is cheaper.
    pub(crate) fn locator(&self) -> Option<RepositoryLocator> {
        self.repository()
            .map(|repository| RepositoryLocator::in_registry(repository.registry().clone(), repository.name()))
    }

    /// Returns where the content comes from, as a bundle records it: `registry/repository`, `oci:FOLDER`, or
    /// the location of an archive.
    pub(crate) fn provenance(&self) -> String {
        match self {
            CopySource::Registry(repository) => format!("{}/{}", repository.registry(), repository.name()),
            CopySource::Layout(repository) => {
                let folder = repository.layout().dir();
                let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
                format!("{}:{}", repository.layout().scheme(), folder.display())
            }
            CopySource::Bundle(_) => imgsync_bundle::BUNDLE_REGISTRY.to_owned(),
        }
    }

    /// Stops using mirrors of the registry, after one of them returned wrong content.
    pub(crate) fn exclude_mirrors(&self) {
        if let CopySource::Registry(repository) = self {
            repository.pause_mirrors();
        }
    }

    pub(crate) fn describe_read(&self, digest: &Digest) -> String {
        match self {
            CopySource::Registry(repository) => repository.read_operation(digest),
            CopySource::Layout(repository) => repository.layout().read_operation(digest),
            CopySource::Bundle(repository) => repository.read_operation(digest),
        }
    }

    pub(crate) fn retry(&self) -> RetryState {
        match self {
            CopySource::Registry(repository) => repository.new_retry(),
            // A read error of a local file is permanent.
            CopySource::Layout(_) | CopySource::Bundle(_) => {
                RetryState::new(RetryPolicy { attempts: 1, ..RetryPolicy::default() }, &RetryBudget::default())
            }
        }
    }

    pub(crate) async fn pause(&self, retry: &mut RetryState, error: Error) -> Result<()> {
        match self {
            CopySource::Registry(repository) => repository.wait_before_retry(retry, error).await,
            CopySource::Layout(_) | CopySource::Bundle(_) => Err(error),
        }
    }
}

impl CopyTarget {
    /// Returns the repository, for a registry.
    pub(crate) fn repository(&self) -> Option<&Repository> {
        match self {
            CopyTarget::Registry(repository) => Some(repository),
            CopyTarget::Layout(_) | CopyTarget::Archive(_) | CopyTarget::Bundle(_) => None,
        }
    }

    pub(crate) fn with_context(&self, context: &Context) -> CopyTarget {
        match self {
            CopyTarget::Registry(repository) => CopyTarget::Registry(repository.with_context(context)),
            CopyTarget::Layout(_) | CopyTarget::Archive(_) | CopyTarget::Bundle(_) => self.clone(),
        }
    }

    pub(crate) async fn manifest_head(&self, reference: &ManifestRef) -> Result<Option<ManifestHead>> {
        match self {
            CopyTarget::Registry(repository) => repository.head_manifest(reference).await,
            CopyTarget::Layout(repository) => repository.head_verified_manifest(reference).await,
            CopyTarget::Archive(_) => Ok(None),
            CopyTarget::Bundle(repository) => Ok(bundle::collected_head(repository, reference)),
        }
    }

    pub(crate) async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        match self {
            CopyTarget::Registry(repository) => repository.head_blob(&blob.digest).await,
            CopyTarget::Layout(repository) => repository.layout().has_blob(blob).await,
            CopyTarget::Archive(_) => Ok(false),
            CopyTarget::Bundle(_) => Ok(false),
        }
    }

    pub(crate) async fn manifest_put(&self, reference: &ManifestRef, manifest: &Manifest) -> Result<ManifestPut> {
        match self {
            CopyTarget::Registry(repository) => repository.put_manifest(reference, manifest).await,
            CopyTarget::Layout(repository) => repository.put_manifest(reference, manifest).await,
            CopyTarget::Archive(target) => target.put_manifest(reference, manifest),
            CopyTarget::Bundle(repository) => bundle::collect_manifest(repository, reference, manifest),
        }
    }

    /// Puts the root manifest of an untagged image.
    pub(crate) async fn manifest_put_untagged(&self, manifest: &Manifest) -> Result<ManifestPut> {
        match self {
            CopyTarget::Registry(repository) => {
                repository.put_manifest(&ManifestRef::Digest(manifest.digest().clone()), manifest).await
            }
            // A layout lists it in its index, or nobody would find it.
            CopyTarget::Layout(repository) => repository.put_untagged_manifest(manifest).await,
            CopyTarget::Archive(target) => target.put_untagged_manifest(manifest),
            CopyTarget::Bundle(repository) => {
                bundle::collect_manifest(repository, &ManifestRef::Digest(manifest.digest().clone()), manifest)
            }
        }
    }

    /// Lists the referrers of a manifest at the target.
    pub(crate) async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        match self {
            CopyTarget::Registry(repository) => repository.list_referrers(subject).await,
            CopyTarget::Layout(repository) => repository.list_referrers(subject).await,
            CopyTarget::Archive(_) => Ok(Vec::new()),
            CopyTarget::Bundle(repository) => Ok(repository.list_referrers(subject)),
        }
    }

    pub(crate) async fn digest_tag_head(&self, tag: &Tag) -> Result<Option<ManifestHead>> {
        match self {
            CopyTarget::Registry(repository) => repository.head_digest_tag(tag).await,
            CopyTarget::Layout(repository) => repository.head_manifest(&ManifestRef::Tag(tag.clone())).await,
            CopyTarget::Archive(_) => Ok(None),
            CopyTarget::Bundle(repository) => Ok(bundle::collected_head(repository, &ManifestRef::Tag(tag.clone()))),
        }
    }

    pub(crate) async fn digest_tag_put(&self, tag: &Tag, manifest: &Manifest) -> Result<ManifestPut> {
        match self {
            CopyTarget::Registry(repository) => repository.put_digest_tag(tag, manifest).await,
            CopyTarget::Layout(repository) => repository.put_manifest(&ManifestRef::Tag(tag.clone()), manifest).await,
            CopyTarget::Archive(target) => target.put_digest_tag(tag, manifest),
            CopyTarget::Bundle(repository) => {
                bundle::collect_manifest(repository, &ManifestRef::Tag(tag.clone()), manifest)
            }
        }
    }
}
