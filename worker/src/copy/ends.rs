//! The two ends of a copy: repositories of registries, or of image layouts on this machine.

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

/// Where an image is, or shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a registry.
    Registry(Reference),
    /// In an image layout, on this machine.
    Layout(LayoutRef),
}

impl Location {
    /// The tag that is named; `latest` where neither tag nor digest is and it is a registry's.
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

    /// The digest that is named.
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

    /// Tag or digest; where both stand, the digest says what is meant.
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

/// Where is read from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Registry(Repository),
    Layout(LayoutRepository),
}

/// Where is written to.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Registry(Repository),
    Layout(LayoutRepository),
}

/// A blob's bytes from either kind of source.
pub(crate) enum BlobStream {
    Registry(Box<registry::BlobStream>),
    Layout(layout::BlobStream, Arc<Tally>),
    /// What another copy reads, who counts it.
    Shared(Share),
    /// What was there without being read.
    Held(Option<Bytes>),
    /// What a registry gives, or, where it gives nothing, what the descriptor carries.
    OrInline(Box<registry::BlobStream>, Option<Bytes>),
}

impl BlobStream {
    /// Whether anybody could read it. What another copy reads is not known to be.
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

/// Both ends of one copy, opened.
pub(crate) struct Ends {
    pub(crate) source: Source,
    /// What is asked for; none is the only image of a layout.
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
                // A layout as a whole takes images under the full names that they have at their source.
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
    /// The registry, where it is one.
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

    /// The same source, read on behalf of several: until this token is cancelled, and by this clock.
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

    /// `None` is the only image that a layout has.
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

    /// What a descriptor names; where the source does not have it, what the descriptor carries.
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

    /// What refers to a manifest, and the index of it where one was read.
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
                // Some programs keep an index in layouts too.
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

    /// A blob from an offset on, or from earlier: the second value says from where. What a descriptor carries of it is used
    /// where the source does not have the blob, or has nothing under its digest.
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

    /// Whether it shows that it holds a blob, without the blob being read.
    pub(crate) async fn shows_blob(&self, blob: &Descriptor) -> Result<bool> {
        match self {
            Source::Registry(repository) => repository.shows_blob(&blob.digest).await,
            Source::Layout(repository) => repository.layout().has_blob(blob).await,
        }
    }

    /// Its repository, under the name by which proofs are remembered. What a layout holds is seen sooner than remembered.
    pub(crate) fn home(&self) -> Option<Home> {
        self.repository().map(|repository| Home::in_registry(repository.registry().clone(), repository.name()))
    }

    /// What came from here was wrong: if it came from a mirror, the registry itself is asked from now on.
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
            // A file that cannot be read now cannot be read in a second.
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
    /// The registry, where it is one.
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

    /// Puts the root of an image that has no tag.
    pub(crate) async fn manifest_put_untagged(&self, manifest: &Manifest) -> Result<ManifestPut> {
        match self {
            Target::Registry(repository) => {
                repository.manifest_put(&ManifestRef::Digest(manifest.digest().clone()), manifest).await
            }
            // By digest alone nobody would find it in the layout's index.
            Target::Layout(repository) => repository.manifest_put_untagged(manifest).await,
        }
    }

    /// What refers to a manifest here.
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
