//! Collects what a bundle has to carry, as the target of an ordinary run: manifests are stored, and blobs are noted with
//! the repository to read them from. Survives a kill.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use imgsync_oci::error::Result;
use imgsync_oci::{Descriptor, Digest, Manifest, MediaType, RepositoryName, Tag};
use imgsync_registry::ManifestRef;

use crate::compact::{DigestKey, digest_key};
use crate::have::Have;
use crate::journal::{CollectedEntry, Journal};

/// Collects the content of a bundle. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BundleCollector(Arc<Collected>);

#[derive(Debug)]
struct Collected {
    have: Have,
    state: Mutex<CollectorState>,
}

#[derive(Debug)]
struct CollectorState {
    journal: Journal,
    contents: Contents,
}

#[derive(Debug, Default)]
struct Contents {
    /// Offset and size of the bytes.
    manifests: HashMap<DigestKey, (Descriptor, u64)>,
    blobs: HashMap<DigestKey, BlobToCarry>,
    repositories: BTreeMap<RepositoryName, CollectedRepository>,
}

/// What was collected for a repository.
#[derive(Debug, Clone, Default)]
pub struct CollectedRepository {
    /// Tags.
    pub tags: BTreeMap<Tag, Digest>,
    /// Manifests, also those of tags.
    pub manifests: BTreeSet<Digest>,
    /// Referrers: subject and manifest.
    pub referrers: BTreeSet<(Digest, Digest)>,
    /// Blobs.
    pub blobs: BTreeSet<Digest>,
}

/// A blob to read.
#[derive(Debug, Clone)]
pub struct BlobToCarry {
    /// Digest and size, and the content if the manifest holds it.
    pub descriptor: Descriptor,
    /// Repository to read it from: `registry/repository`, or `oci:FOLDER`.
    pub source: String,
}

/// A repository of a collector, as the target of a copy.
#[derive(Debug, Clone)]
pub struct CollectorRepository {
    collector: BundleCollector,
    path: RepositoryName,
}

impl BundleCollector {
    /// Opens a collector whose files are in a folder; goes on with what they hold.
    pub fn open(folder: &Path, have: Have) -> Result<BundleCollector> {
        let mut contents = Contents::default();
        let journal = Journal::open(folder, |entry| contents.apply(entry))?;
        Ok(BundleCollector(Arc::new(Collected { have, state: Mutex::new(CollectorState { journal, contents }) })))
    }

    /// Returns a repository as the target of a copy.
    pub fn repository(&self, path: &RepositoryName) -> CollectorRepository {
        CollectorRepository { collector: self.clone(), path: path.clone() }
    }

    /// Returns what the receiver has.
    pub fn have(&self) -> &Have {
        &self.0.have
    }

    /// Returns the digest of a tag: collected, or else the one that the receiver has.
    pub fn tag(&self, path: &RepositoryName, tag: &Tag) -> Option<Digest> {
        let state = self.state();
        let collected = state.contents.repositories.get(path).and_then(|repository| repository.tags.get(tag)).cloned();
        collected.or_else(|| self.0.have.tag(path.as_str(), tag).cloned())
    }

    /// Returns the names of all repositories.
    pub fn repositories(&self) -> Vec<RepositoryName> {
        self.state().contents.repositories.keys().cloned().collect()
    }

    /// Returns what was collected for a repository.
    pub fn collected(&self, path: &RepositoryName) -> CollectedRepository {
        self.state().contents.repositories.get(path).cloned().unwrap_or_default()
    }

    /// Returns a blob.
    pub fn blob(&self, digest: &Digest) -> Option<BlobToCarry> {
        self.state().contents.blobs.get(&digest_key(digest)).cloned()
    }

    /// Returns the descriptor of a manifest.
    pub fn manifest_descriptor(&self, digest: &Digest) -> Option<Descriptor> {
        self.state().contents.manifests.get(&digest_key(digest)).map(|(descriptor, _)| descriptor.clone())
    }

    /// Reads the bytes of a manifest; `None` if it was not collected.
    pub fn manifest_bytes(&self, digest: &Digest) -> Result<Option<Bytes>> {
        let state = self.state();
        match state.contents.manifests.get(&digest_key(digest)) {
            Some((descriptor, offset)) => state.journal.read(*offset, descriptor.size).map(Some),
            None => Ok(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, CollectorState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CollectorRepository {
    /// Returns the path below the target of `bundle load`.
    pub fn path(&self) -> &RepositoryName {
        &self.path
    }

    /// Returns the digest of a manifest that was collected or that the receiver has.
    pub fn head_manifest(&self, reference: &ManifestRef) -> Option<Digest> {
        match reference {
            ManifestRef::Tag(tag) => self.collector.tag(&self.path, tag),
            ManifestRef::Digest(digest) => {
                let collected = |repository: &CollectedRepository| repository.manifests.contains(digest);
                let is_known = self.collector.state().contents.repositories.get(&self.path).is_some_and(collected)
                    || self.collector.have().has_manifest(self.path.as_str(), digest);
                is_known.then(|| digest.clone())
            }
        }
    }

    /// Reads a manifest that was collected.
    pub fn read_manifest(&self, reference: &ManifestRef) -> Result<Option<Bytes>> {
        match self.head_manifest(reference) {
            Some(digest) => self.collector.manifest_bytes(&digest),
            None => Ok(None),
        }
    }

    /// Returns the referrers of a manifest that were collected or that the receiver has.
    pub fn list_referrers(&self, subject: &Digest) -> Vec<Descriptor> {
        let describe = |digest: &Digest| Descriptor::new(MediaType::OciManifest, digest.clone(), 0);
        let known = self.collector.have().referrers(self.path.as_str(), subject).iter().map(describe);
        let state = self.collector.state();
        let collected = state.contents.repositories.get(&self.path).into_iter();
        let collected = collected.flat_map(|repository| &repository.referrers).filter(|(of, _)| of == subject);
        known.chain(collected.map(|(_, digest)| describe(digest))).collect()
    }

    /// Stores a manifest, under a tag or by its digest.
    pub fn put_manifest(&self, reference: &ManifestRef, manifest: &Manifest) -> Result<()> {
        let (digest, repository) = (manifest.digest(), self.path.clone());
        let mut state = self.collector.state();
        let known = state.contents.manifests.get(&digest_key(digest)).map(|(_, offset)| *offset);
        let offset = match known {
            Some(offset) => offset,
            None => state.journal.spool(manifest.bytes())?,
        };
        let mut descriptor = manifest.descriptor();
        descriptor.artifact_type = manifest.artifact_type().map(str::to_owned);
        let subject = manifest.parsed().subject.as_ref().map(|subject| subject.digest.clone());
        state.record(CollectedEntry::Manifest { repository: repository.clone(), descriptor, offset, subject })?;
        match reference {
            ManifestRef::Tag(tag) => {
                state.record(CollectedEntry::Tag { repository, tag: tag.clone(), digest: digest.clone() })
            }
            ManifestRef::Digest(_) => Ok(()),
        }
    }

    /// Whether an image has named a blob before, or the receiver has it.
    pub fn knows_blob(&self, digest: &Digest) -> bool {
        self.collector.state().contents.blobs.contains_key(&digest_key(digest))
            || self.collector.have().repository_with_blob(&self.path, digest).is_some()
    }

    /// Notes a blob. Returns whether the bundle carries it because of this: the receiver does not have it, and no other
    /// image has named it before.
    pub fn add_blob(&self, blob: &Descriptor, source: &str) -> Result<bool> {
        let mut state = self.collector.state();
        let is_new = !state.contents.blobs.contains_key(&digest_key(&blob.digest));
        state.record(CollectedEntry::Blob {
            repository: self.path.clone(),
            digest: blob.digest.clone(),
            size: blob.size,
            source: source.to_owned(),
            inline: blob.data.clone(),
        })?;
        Ok(is_new && self.collector.have().repository_with_blob(&self.path, &blob.digest).is_none())
    }
}

impl CollectorState {
    fn record(&mut self, entry: CollectedEntry) -> Result<()> {
        if !self.contents.knows(&entry) {
            self.journal.append(&entry)?;
            self.contents.apply(entry);
        }
        Ok(())
    }
}

impl Contents {
    fn knows(&self, entry: &CollectedEntry) -> bool {
        let known = |repository: &RepositoryName| self.repositories.get(repository);
        match entry {
            CollectedEntry::Manifest { repository, descriptor, .. } => {
                known(repository).is_some_and(|known| known.manifests.contains(&descriptor.digest))
            }
            CollectedEntry::Tag { repository, tag, digest } => {
                known(repository).is_some_and(|known| known.tags.get(tag) == Some(digest))
            }
            CollectedEntry::Blob { repository, digest, .. } => {
                known(repository).is_some_and(|known| known.blobs.contains(digest))
            }
        }
    }

    fn apply(&mut self, entry: CollectedEntry) {
        match entry {
            CollectedEntry::Manifest { repository, descriptor, offset, subject } => {
                let digest = descriptor.digest.clone();
                let repository = self.repositories.entry(repository).or_default();
                repository.manifests.insert(digest.clone());
                if let Some(subject) = subject {
                    repository.referrers.insert((subject, digest.clone()));
                }
                self.manifests.insert(digest_key(&digest), (descriptor, offset));
            }
            CollectedEntry::Tag { repository, tag, digest } => {
                self.repositories.entry(repository).or_default().tags.insert(tag, digest);
            }
            CollectedEntry::Blob { repository, digest, size, source, inline } => {
                let key = digest_key(&digest);
                self.repositories.entry(repository).or_default().blobs.insert(digest.clone());
                let mut descriptor = Descriptor::new(MediaType::Missing, digest, size);
                descriptor.data = inline;
                self.blobs.entry(key).or_insert(BlobToCarry { descriptor, source });
            }
        }
    }
}
