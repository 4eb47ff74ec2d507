//! Images of one repository of a layout, with the operations of a registry repository.

use bytes::Bytes;

use super::error::LayoutError;
use super::index::{IndexChange, LayoutIndex};
use super::index_entry::{IndexEntry, SUBJECT};
use super::read_at::{ReadAt, read_all};
use super::reference::QualifiedRepositoryName;
use super::writer::PartialBlob;
use super::{Layout, LayoutInner};
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{Descriptor, Digest, DigestTag, Manifest, ManifestError, MediaType};
use imgsync_registry::{ManifestHead, ManifestPut, ManifestRef};

/// Upper limit for the names listed in a message.
const MAX_NAMES_IN_MESSAGE: usize = 5;

/// A repository of a layout, or all images with a bare tag. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LayoutRepository {
    pub(super) layout: Layout,
    pub(super) name: Option<QualifiedRepositoryName>,
}

impl LayoutRepository {
    pub(super) fn new(layout: Layout, name: Option<QualifiedRepositoryName>) -> LayoutRepository {
        LayoutRepository { layout, name }
    }

    /// Returns the layout, which holds the blobs of all its repositories.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the repository's full name, if any.
    pub fn name(&self) -> Option<&QualifiedRepositoryName> {
        self.name.as_ref()
    }

    /// Returns a manifest's location as users write it, `oci:DIR:gcr.io/a/b:tag`.
    pub fn display_reference(&self, reference: Option<&ManifestRef>) -> String {
        let mut place = self.layout.0.label.clone();
        if let Some(name) = &self.name {
            place.push_str(&format!(":{name}"));
        }
        match reference {
            Some(ManifestRef::Tag(tag)) => place.push_str(&format!(":{tag}")),
            Some(ManifestRef::Digest(digest)) => place.push_str(&format!("@{digest}")),
            None => {}
        }
        place
    }

    /// Resolves a tag or digest. Without a repository name, a tag selects the image with that bare tag, or else the
    /// only image with it in any repository; without a reference, the only image of the layout or repository. Fails
    /// with [`ErrorKind::NotFound`] if none matches, and with [`ErrorKind::Invalid`] if several do.
    pub async fn resolve(&self, reference: Option<&ManifestRef>) -> Result<Descriptor> {
        let operation = format!("looking for {}", self.display_reference(reference));
        let (name, reference) = (self.name.clone(), reference.cloned());
        self.layout.run_blocking(&operation, move |shared| shared.resolve(name.as_ref(), reference.as_ref())).await
    }

    /// Returns the digest of a manifest; `None` if it does not exist. A listed manifest whose file is missing or
    /// truncated does not exist.
    pub async fn head_manifest(&self, reference: &ManifestRef) -> Result<Option<ManifestHead>> {
        let operation = format!("checking {}", self.display_reference(Some(reference)));
        let (name, reference) = (self.name.clone(), reference.clone());
        let head = self.layout.run_blocking(&operation, move |shared| {
            let found = shared.resolve(name.as_ref(), Some(&reference))?;
            let whole = shared.open_blob_file(&found.digest)?.is_some_and(|file| file.len() == found.size);
            Ok(whole.then_some(ManifestHead { digest: found.digest, media_type: found.media_type }))
        });
        match head.await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            head => head,
        }
    }

    /// Returns the digest of a manifest whose content was verified. `None` also if its content is wrong or the
    /// reference is ambiguous: then it must be written again.
    pub async fn head_verified_manifest(&self, reference: &ManifestRef) -> Result<Option<ManifestHead>> {
        let head = match self.head_manifest(reference).await {
            Err(error) if error.kind() == ErrorKind::Invalid => return Ok(None),
            head => head?,
        };
        let Some(head) = head else { return Ok(None) };
        match self.get_manifest(&ManifestRef::Digest(head.digest.clone())).await {
            Ok(_) => Ok(Some(head)),
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => Ok(None),
            // Content errors are for the reader of the manifest.
            Err(error) if error.kind() != ErrorKind::Local => Ok(Some(head)),
            Err(error) => Err(error),
        }
    }

    /// Reads a manifest and verifies its digest.
    pub async fn get_manifest(&self, reference: &ManifestRef) -> Result<Manifest> {
        let operation = format!("reading {}", self.display_reference(Some(reference)));
        let (name, reference) = (self.name.clone(), reference.clone());
        self.layout
            .run_blocking(&operation, move |shared| {
                let found = shared.resolve(name.as_ref(), Some(&reference))?;
                shared.read_manifest(&found)
            })
            .await
    }

    /// Writes a manifest and adds it to the index: under a tag, or as a referrer if it has a subject. Writing it again
    /// changes nothing. Fails with [`ErrorKind::Incomplete`] if content that it references is missing.
    pub async fn put_manifest(&self, reference: &ManifestRef, manifest: &Manifest) -> Result<ManifestPut> {
        let refers = manifest.parsed().subject.is_some();
        match reference {
            ManifestRef::Tag(_) => self.put(self.name.clone(), Some(reference), manifest).await?,
            ManifestRef::Digest(_) if refers => self.put(None, Some(reference), manifest).await?,
            ManifestRef::Digest(_) => self.put(None, None, manifest).await?,
        }
        Ok(ManifestPut { subject_kept: refers, refusal: None })
    }

    /// Like [`LayoutRepository::put_manifest`], for an image requested by digest: the index lists it under the digest,
    /// so that it can be found.
    pub async fn put_untagged_manifest(&self, manifest: &Manifest) -> Result<ManifestPut> {
        let reference = ManifestRef::Digest(manifest.digest().clone());
        self.put(self.name.clone(), Some(&reference), manifest).await?;
        Ok(ManifestPut { subject_kept: manifest.parsed().subject.is_some(), refusal: None })
    }

    async fn put(
        &self,
        name: Option<QualifiedRepositoryName>,
        enter: Option<&ManifestRef>,
        manifest: &Manifest,
    ) -> Result<()> {
        let digest = ManifestRef::Digest(manifest.digest().clone());
        let operation = format!("writing {}", self.display_reference(Some(enter.unwrap_or(&digest))));
        let copy = manifest.clone();
        self.layout.run_blocking(&operation, move |shared| shared.write_manifest(&copy)).await?;
        let Some(reference) = enter else { return Ok(()) };
        let mut descriptor = manifest.descriptor();
        if manifest.parsed().subject.is_some() {
            descriptor.artifact_type = manifest.artifact_type().map(str::to_owned);
            descriptor.annotations = manifest.parsed().annotations.clone();
            descriptor.annotations.extend(
                manifest.parsed().subject.iter().map(|subject| (SUBJECT.to_owned(), subject.digest.to_string())),
            );
        }
        self.layout
            .add_to_index(IndexChange { repository: name, reference: reference.clone(), descriptor }, &operation)
            .await
    }
}

impl LayoutInner {
    fn resolve(
        &self,
        name: Option<&QualifiedRepositoryName>,
        reference: Option<&ManifestRef>,
    ) -> Result<Descriptor, LayoutError> {
        let index = self.read_index()?;
        let here = |entry: &&IndexEntry| name.is_none() || entry.repository.as_ref() == name;
        let found: Vec<&IndexEntry> = match reference {
            None => self.without_artifacts(index.entries().filter(here).collect()),
            Some(ManifestRef::Tag(tag)) => {
                let tagged = || index.entries().filter(here).filter(|entry| entry.tag.as_ref() == Some(tag));
                let exact: Vec<&IndexEntry> = tagged().filter(|entry| entry.repository.as_ref() == name).collect();
                if let Some(first) = exact.first()
                    && let Some(other) = exact.iter().find(|entry| entry.descriptor.digest != first.descriptor.digest)
                {
                    let (name, digests) = (first.name.clone().unwrap_or_default(), [first, other]);
                    let [one, two] = digests.map(|entry| &entry.descriptor.digest);
                    let detail = format!("two images have the name {}: {one} and {two}", sanitize(&name));
                    return Err(LayoutError::new(ErrorKind::Invalid, detail)
                        .with_hint("use the image's digest, oci:DIR@sha256:…, or export the layout again"));
                }
                if exact.is_empty() { tagged().collect() } else { exact }
            }
            Some(ManifestRef::Digest(digest)) => {
                let listed = index.entries().find(|entry| entry.descriptor.digest == *digest);
                return match listed {
                    Some(entry) => Ok(entry.descriptor.clone()),
                    None => self.find_unlisted(digest, &index),
                };
            }
        };
        let same = |entry: &&IndexEntry| entry.descriptor.digest == found[0].descriptor.digest;
        match found.first() {
            Some(first) if found.iter().all(same) => Ok(first.descriptor.clone()),
            Some(_) => {
                let detail = format!("several images match: {}", join_names(found.iter().copied()));
                Err(LayoutError::new(ErrorKind::Invalid, detail)
                    .with_hint("use the image's full name, as in oci:DIR:gcr.io/a/b:tag"))
            }
            None => {
                index.check_entries()?;
                let detail = match join_names(index.entries()) {
                    holds if holds.is_empty() => format!("the {} holds no images", self.noun()),
                    holds => format!("not found; the {} holds {holds}", self.noun()),
                };
                Err(LayoutError::new(ErrorKind::NotFound, detail))
            }
        }
    }

    /// Drops entries of digest tags and referrers, unless there are no others.
    pub(super) fn without_artifacts<'a>(&self, entries: Vec<&'a IndexEntry>) -> Vec<&'a IndexEntry> {
        if entries.len() < 2 {
            return entries;
        }
        let is_own = |entry: &&IndexEntry| match &entry.tag {
            Some(tag) => DigestTag::parse_tag(tag.as_str()).is_none(),
            None => self.read_subject(&entry.descriptor).is_none(),
        };
        let own: Vec<&IndexEntry> = entries.iter().copied().filter(is_own).collect();
        if own.is_empty() { entries } else { own }
    }

    /// Finds a manifest that only other manifests reference.
    fn find_unlisted(&self, digest: &Digest, index: &LayoutIndex) -> Result<Descriptor, LayoutError> {
        match self.open_blob_file(digest)? {
            Some(file) => Ok(Descriptor::new(MediaType::Missing, digest.clone(), file.len())),
            None => {
                index.check_entries()?;
                Err(self.unreached_content().unwrap_or_else(|| {
                    LayoutError::new(ErrorKind::NotFound, format!("not found in the {}", self.noun()))
                }))
            }
        }
    }

    /// Reads the manifest of a descriptor.
    pub(super) fn read_manifest(&self, found: &Descriptor) -> Result<Manifest, LayoutError> {
        let unfit = |error: ManifestError| {
            let kind = match error {
                ManifestError::Schema1 => ErrorKind::Outdated,
                ManifestError::Unknown(_) => ErrorKind::Unsupported,
                ManifestError::Unparsable(_) | ManifestError::TooLarge => ErrorKind::InvalidResponse,
            };
            LayoutError::new(kind, error.to_string())
        };
        let file = self.open_blob_file_of_size(&found.digest, found.size)?;
        if found.size > Manifest::MAX_BYTES as u64 {
            return Err(unfit(ManifestError::TooLarge));
        }
        let bytes = read_manifest_bytes(&*file)?;
        if !found.digest.verifies(&bytes) {
            let detail = format!("the content has the digest {}", Digest::from_bytes(found.digest.algorithm(), &bytes));
            return Err(LayoutError::new(ErrorKind::Corrupt, detail).with_hint(self.damaged_hint()));
        }
        Manifest::parse_as(bytes, found.digest.clone(), &found.media_type).map_err(unfit)
    }

    /// Writes a manifest's bytes, if all content that it references exists.
    fn write_manifest(self: &std::sync::Arc<LayoutInner>, manifest: &Manifest) -> Result<(), LayoutError> {
        for part in manifest.children().into_iter().chain(manifest.blobs()) {
            match self.open_blob_file(&part.digest)? {
                Some(file) if file.len() == part.size => {}
                Some(_) | None => {
                    let detail = format!("{}, which it references, is not in the layout", part.digest);
                    return Err(LayoutError::new(ErrorKind::Incomplete, detail));
                }
            }
        }
        let (digest, bytes) = (manifest.digest(), manifest.bytes());
        let size = bytes.len() as u64;
        if let Some(file) = self.open_blob_file(digest)?
            && file.len() == size
            && digest.verifies(&read_manifest_bytes(&*file)?)
        {
            return Ok(());
        }
        let mut part = PartialBlob::open(self.clone(), digest.clone(), size, false)?;
        part.write(bytes)?;
        part.commit().map(drop)
    }
}

fn read_manifest_bytes(file: &dyn ReadAt) -> Result<Bytes, LayoutError> {
    match read_all(file) {
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => Err(LayoutError::new(ErrorKind::Local, error.to_string())),
    }
}

/// Joins the first names of images, for a message.
fn join_names<'a>(entries: impl Iterator<Item = &'a IndexEntry>) -> String {
    let names: Vec<String> =
        entries.map(|entry| entry.name.clone().unwrap_or_else(|| entry.descriptor.digest.to_string())).collect();
    let mut listed_names = names[..names.len().min(MAX_NAMES_IN_MESSAGE)].join(", ");
    if names.len() > MAX_NAMES_IN_MESSAGE {
        listed_names.push_str(&format!(" and {} more", names.len() - MAX_NAMES_IN_MESSAGE));
    }
    listed_names
}
