//! Endpoints of a copy: repositories in registries, or in image layouts on this machine.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use imgsync_common::batch::Home;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Companion, Descriptor, Digest, Manifest, Reference, Tag};
use imgsync_common::layout::{self, Hashing, ImageName, Layout, LayoutRef, LayoutRepository};
use imgsync_common::registry::{
    self, Access, Client, Context, FallbackTag, Head, ManifestPut, ManifestRef, Repository, Tally,
};
use imgsync_common::retry::{Budget, Policy, Retry};
use imgsync_common::wait::WaitClock;
use tokio_util::sync::CancellationToken;

use super::Job;
use super::together::Share;

/// Location of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a registry.
    Registry(Reference),
    /// In an image layout on this machine.
    Layout(LayoutRef),
}

impl Location {
    /// Returns the tag; `latest` for a registry reference without tag and digest.
    pub fn tag(&self) -> Option<Tag> {
        match self {
            Location::Registry(reference) => reference.tag_or_latest(),
            Location::Layout(layout) => match layout.image.as_ref()? {
                ImageName::Tag(tag) => Some(tag.clone()),
                ImageName::Digest(_) => None,
                ImageName::Full(reference) => reference.tag_or_latest(),
            },
        }
    }

    /// Returns the digest, if the location has one.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Location::Registry(reference) => reference.digest.as_ref(),
            Location::Layout(layout) => match layout.image.as_ref()? {
                ImageName::Tag(_) => None,
                ImageName::Digest(digest) => Some(digest),
                ImageName::Full(reference) => reference.digest.as_ref(),
            },
        }
    }

    /// Returns the manifest reference; the digest takes precedence over the tag.
    fn manifest(&self) -> Option<ManifestRef> {
        self.digest().cloned().map(ManifestRef::Digest).or_else(|| self.tag().map(ManifestRef::Tag))
    }
}

impl std::str::FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Location> {
        let invalid = |error: String| Error::new(Class::Invalid, "reading a name", error);
        match LayoutRef::is_meant_by(text) {
            true => text
                .parse()
                .map(Location::Layout)
                .map_err(|error: layout::ParseLayoutRefError| invalid(error.to_string())),
            false => text
                .parse()
                .map(Location::Registry)
                .map_err(|error: imgsync_common::image::ParseReferenceError| invalid(error.to_string())),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Registry(reference) => reference.fmt(f),
            Location::Layout(layout) => layout.fmt(f),
        }
    }
}

impl serde::Serialize for Location {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<Reference> for Location {
    fn from(reference: Reference) -> Location {
        Location::Registry(reference)
    }
}

/// Endpoint to read from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Registry(Repository),
    Layout(LayoutRepository),
}

/// Endpoint to write to.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Registry(Repository),
    Layout(LayoutRepository),
}

/// Stream of a blob's content.
pub(crate) enum BlobStream {
    Registry(Box<registry::BlobStream>),
    Layout(layout::BlobStream, Arc<Tally>),
    /// Chunks from a reader shared with other copies; that reader counts the traffic.
    Shared(Share),
    /// Content that needs no read.
    Held(Option<Bytes>),
    /// Content from a registry or, if that is empty, the descriptor's inline data.
    OrInline(Box<registry::BlobStream>, Option<Bytes>),
}

impl BlobStream {
    /// Whether the blob is known to be public; false for a shared reader, where that is unknown.
    pub(crate) fn is_public(&self) -> bool {
        matches!(self, BlobStream::Registry(stream) if stream.is_public())
    }

    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        match self {
            BlobStream::Registry(stream) => stream.chunk().await,
            BlobStream::Layout(stream, tally) => {
                let chunk = stream.chunk().await?;
                tally.received(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
                Ok(chunk)
            }
            BlobStream::Shared(share) => Ok(share.chunk().await),
            BlobStream::Held(bytes) => Ok(bytes.take()),
            BlobStream::OrInline(stream, inline) => match stream.chunk().await? {
                Some(chunk) => {
                    if !chunk.is_empty() {
                        *inline = None;
                    }
                    Ok(Some(chunk))
                }
                None => Ok(inline.take()),
            },
        }
    }
}

/// Both endpoints of one copy.
pub(crate) struct Ends {
    pub(crate) source: Source,
    /// Manifest to read; `None` selects the only image of a layout.
    pub(crate) source_ref: Option<ManifestRef>,
    pub(crate) target: Target,
    pub(crate) target_ref: Option<ManifestRef>,
    pub(crate) source_tally: Arc<Tally>,
    pub(crate) target_tally: Arc<Tally>,
}

impl Ends {
    pub(crate) async fn open(client: &Client, job: &Job, hashing: Hashing, context: &Context) -> Result<Ends> {
        let Job { source, target, tallies: (source_tally, target_tally), .. } = job;
        let open = |reference: &Reference, access, tally| {
            client.repository(&reference.registry, &reference.repository, access, context, tally)
        };
        let source_end = match source {
            Location::Registry(reference) => Source::Registry(open(reference, Access::Pull, source_tally)?),
            Location::Layout(image) => Source::Layout(Layout::open(&image.dir).await?.repository(image.repository())),
        };
        let target_end = match target {
            Location::Registry(reference) => Target::Registry(open(reference, Access::Push, target_tally)?),
            Location::Layout(image) => {
                // A target that is a whole layout stores images under their full source names.
                let name = image.repository().or_else(|| match (&image.image, source) {
                    (None, Location::Registry(reference)) => Some(layout::FullName::of(reference)),
                    (None, Location::Layout(source)) => source.repository(),
                    _ => None,
                });
                let layout = Layout::open_or_create_in(&image.dir, context).await?;
                Target::Layout(layout.hashing(hashing).repository(name))
            }
        };
        let wants_tag = match target {
            Location::Registry(reference) => reference.tag.is_some() || reference.digest.is_none(),
            Location::Layout(_) => target.digest().is_none(),
        };
        let written_tag = match target {
            Location::Registry(reference) => reference.tag.clone(),
            Location::Layout(_) => target.tag(),
        };
        let tag = written_tag.or_else(|| wants_tag.then(|| source.tag()).flatten());
        Ok(Ends {
            source: source_end,
            source_ref: source.manifest(),
            target: target_end,
            target_ref: tag.map(ManifestRef::Tag),
            source_tally: source_tally.clone(),
            target_tally: target_tally.clone(),
        })
    }
}

impl Source {
    /// Returns the repository, for a registry.
    pub(crate) fn repository(&self) -> Option<&Repository> {
        match self {
            Source::Registry(repository) => Some(repository),
            Source::Layout(_) => None,
        }
    }

    pub(crate) fn within(&self, context: &Context) -> Source {
        match self {
            Source::Registry(repository) => Source::Registry(repository.within(context)),
            Source::Layout(repository) => Source::Layout(repository.clone()),
        }
    }

    /// Returns the same source for a shared reader, with its own cancellation token and clock.
    pub(crate) fn on_behalf_of(&self, cancel: &CancellationToken, clock: &WaitClock) -> Source {
        match self {
            Source::Registry(repository) => {
                let context = repository.context().clone();
                self.within(&Context { cancel: cancel.clone(), clock: clock.clone(), ..context })
            }
            Source::Layout(_) => self.clone(),
        }
    }

    pub(crate) async fn manifest_head(&self, reference: &ManifestRef) -> Result<Option<Head>> {
        match self {
            Source::Registry(repository) => repository.manifest_head(reference).await,
            Source::Layout(repository) => repository.manifest_head(reference).await,
        }
    }

    /// Reads a manifest; `None` selects the only image of a layout.
    pub(crate) async fn manifest_get(&self, reference: Option<&ManifestRef>) -> Result<Manifest> {
        match (self, reference) {
            (Source::Registry(repository), Some(reference)) => repository.manifest_get(reference).await,
            (Source::Registry(repository), None) => repository.manifest_get(&ManifestRef::Tag(Tag::latest())).await,
            (Source::Layout(repository), Some(reference)) => repository.manifest_get(reference).await,
            (Source::Layout(repository), None) => {
                let found = repository.resolve(None).await?;
                repository.manifest_get(&ManifestRef::Digest(found.digest)).await
            }
        }
    }

    pub(crate) async fn by_digest(&self, digest: &Digest) -> Result<Manifest> {
        self.manifest_get(Some(&ManifestRef::Digest(digest.clone()))).await
    }

    /// Reads the manifest of a descriptor; falls back to its inline data if the source lacks it.
    pub(crate) async fn child(&self, child: &Descriptor) -> Result<Manifest> {
        match self.by_digest(&child.digest).await {
            Err(error) if error.class() == Class::NotFound => {
                let inline = child.inline().ok_or(error)?;
                let tried = self.reading(&child.digest);
                Manifest::parse_as(inline, child.digest.clone(), &child.media_type)
                    .map_err(|error| Error::new(Class::BadAnswer, tried, error.to_string()))
            }
            read => read,
        }
    }

    pub(crate) async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        match self {
            Source::Registry(repository) => repository.blob_head(&blob.digest).await,
            Source::Layout(repository) => repository.layout().has_blob(blob).await,
        }
    }

    /// Lists the referrers of a manifest. Also returns the digest of the fallback index, if one was read.
    pub(crate) async fn referrers(
        &self,
        subject: &Digest,
        fallback: FallbackTag,
    ) -> Result<(Vec<Descriptor>, Option<Digest>)> {
        match self {
            Source::Registry(repository) => repository.referrers_beside(subject, fallback).await,
            Source::Layout(repository) => {
                let mut found = repository.referrers(subject).await?;
                let tag = ManifestRef::Tag(Companion::Referrers.tag_of(subject));
                if fallback == FallbackTag::Absent || repository.manifest_head(&tag).await?.is_none() {
                    return Ok((found, None));
                }
                // Some tools also write a fallback index to layouts.
                let index = repository.manifest_get(&tag).await?;
                for other in index.children() {
                    if !found.iter().any(|known| known.digest == other.digest) {
                        found.push(other.clone());
                    }
                }
                Ok((found, Some(index.digest().clone())))
            }
        }
    }

    pub(crate) async fn companion_head(&self, tag: &Tag) -> Result<Option<Head>> {
        match self {
            Source::Registry(repository) => repository.companion_head(tag).await,
            Source::Layout(repository) => repository.manifest_head(&ManifestRef::Tag(tag.clone())).await,
        }
    }

    /// Opens a blob at an offset or earlier; also returns the actual offset. Falls back to the descriptor's inline data
    /// if the source lacks the blob or returns no content.
    pub(crate) async fn blob_open(
        &self,
        blob: &Descriptor,
        offset: u64,
        tally: &Arc<Tally>,
    ) -> Result<(BlobStream, u64)> {
        let opened = match self {
            Source::Registry(repository) => {
                let opened = repository.blob_open(blob, offset).await;
                opened.map(|opened| (BlobStream::Registry(Box::new(opened.stream)), opened.offset))
            }
            Source::Layout(repository) => {
                let opened = repository.layout().blob_open(blob, offset).await;
                opened.map(|opened| (BlobStream::Layout(opened.stream, tally.clone()), opened.offset))
            }
        };
        match (opened, blob.inline()) {
            (opened, None) => opened,
            (Err(error), Some(inline)) if matches!(error.class(), Class::NotFound | Class::Corrupt) => {
                Ok((BlobStream::Held(Some(inline)), 0))
            }
            (Ok((BlobStream::Registry(stream), 0)), inline) => Ok((BlobStream::OrInline(stream, inline), 0)),
            (opened, Some(_)) => opened,
        }
    }

    /// Whether the source proves that it has a blob, without reading the blob.
    pub(crate) async fn shows_blob(&self, blob: &Descriptor) -> Result<bool> {
        match self {
            Source::Registry(repository) => repository.shows_blob(&blob.digest).await,
            Source::Layout(repository) => repository.layout().has_blob(blob).await,
        }
    }

    /// Returns the repository under which proofs are stored. `None` for a layout: a look at its files is cheaper.
    pub(crate) fn home(&self) -> Option<Home> {
        self.repository().map(|repository| Home::in_registry(repository.registry().clone(), repository.name()))
    }

    /// Stops using mirrors of the registry, after one of them returned wrong content.
    pub(crate) fn distrust(&self) {
        if let Source::Registry(repository) = self {
            repository.distrust_mirrors();
        }
    }

    pub(crate) fn reading(&self, digest: &Digest) -> String {
        match self {
            Source::Registry(repository) => repository.reading(digest),
            Source::Layout(repository) => repository.layout().reading(digest),
        }
    }

    pub(crate) fn retry(&self) -> Retry {
        match self {
            Source::Registry(repository) => repository.retry(),
            // A read error of a local file is permanent.
            Source::Layout(_) => Retry::new(Policy { attempts: 1, ..Policy::default() }, &Budget::default()),
        }
    }

    pub(crate) async fn pause(&self, retry: &mut Retry, error: Error) -> Result<()> {
        match self {
            Source::Registry(repository) => repository.pause(retry, error).await,
            Source::Layout(_) => Err(error),
        }
    }
}

impl Target {
    /// Returns the repository, for a registry.
    pub(crate) fn repository(&self) -> Option<&Repository> {
        match self {
            Target::Registry(repository) => Some(repository),
            Target::Layout(_) => None,
        }
    }

    pub(crate) fn within(&self, context: &Context) -> Target {
        match self {
            Target::Registry(repository) => Target::Registry(repository.within(context)),
            Target::Layout(repository) => Target::Layout(repository.clone()),
        }
    }

    pub(crate) async fn manifest_head(&self, reference: &ManifestRef) -> Result<Option<Head>> {
        match self {
            Target::Registry(repository) => repository.manifest_head(reference).await,
            Target::Layout(repository) => repository.manifest_head_intact(reference).await,
        }
    }

    pub(crate) async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        match self {
            Target::Registry(repository) => repository.blob_head(&blob.digest).await,
            Target::Layout(repository) => repository.layout().has_blob(blob).await,
        }
    }

    pub(crate) async fn manifest_put(&self, reference: &ManifestRef, manifest: &Manifest) -> Result<ManifestPut> {
        match self {
            Target::Registry(repository) => repository.manifest_put(reference, manifest).await,
            Target::Layout(repository) => repository.manifest_put(reference, manifest).await,
        }
    }

    /// Puts the root manifest of an untagged image.
    pub(crate) async fn manifest_put_untagged(&self, manifest: &Manifest) -> Result<ManifestPut> {
        match self {
            Target::Registry(repository) => {
                repository.manifest_put(&ManifestRef::Digest(manifest.digest().clone()), manifest).await
            }
            // A layout lists it in its index, or nobody would find it.
            Target::Layout(repository) => repository.manifest_put_untagged(manifest).await,
        }
    }

    /// Lists the referrers of a manifest at the target.
    pub(crate) async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        match self {
            Target::Registry(repository) => repository.referrers(subject).await,
            Target::Layout(repository) => repository.referrers(subject).await,
        }
    }

    pub(crate) async fn companion_head(&self, tag: &Tag) -> Result<Option<Head>> {
        match self {
            Target::Registry(repository) => repository.companion_head(tag).await,
            Target::Layout(repository) => repository.manifest_head(&ManifestRef::Tag(tag.clone())).await,
        }
    }

    pub(crate) async fn companion_put(&self, tag: &Tag, manifest: &Manifest) -> Result<ManifestPut> {
        match self {
            Target::Registry(repository) => repository.companion_put(tag, manifest).await,
            Target::Layout(repository) => repository.manifest_put(&ManifestRef::Tag(tag.clone()), manifest).await,
        }
    }
}
