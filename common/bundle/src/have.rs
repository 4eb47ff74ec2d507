//! What the receiver has, from inventories and from indexes of earlier bundles.

use std::collections::{HashMap, HashSet};

use imgsync_oci::{Digest, RepositoryName, Tag};

use crate::compact::{DigestKey, digest_key};
use crate::index::BundleIndex;
use crate::inventory::Inventory;

/// What the receiver has. Later sources replace the tags of earlier ones.
#[derive(Debug, Default)]
pub struct Have {
    repositories: HashMap<String, HaveRepository>,
    /// A repository with the blob.
    blobs: HashMap<DigestKey, u32>,
    names: Vec<RepositoryName>,
    labels: Vec<String>,
}

#[derive(Debug, Default)]
struct HaveRepository {
    tags: HashMap<Tag, Digest>,
    manifests: HashSet<DigestKey>,
    blobs: HashSet<DigestKey>,
    referrers: HashMap<DigestKey, Vec<Digest>>,
}

impl Have {
    /// Adds what an inventory lists.
    pub fn add_inventory(&mut self, inventory: &Inventory) {
        self.labels.push(format!("inventory of {} from {}", inventory.header.target, inventory.header.created));
        for repository in &inventory.repositories {
            let number = self.add_name(&repository.path);
            let known = self.repositories.entry(repository.path.to_string()).or_default();
            for (tag, digest) in &repository.tags {
                known.tags.insert(tag.clone(), digest.clone());
                known.manifests.insert(digest_key(digest));
            }
            known.manifests.extend(repository.manifests.iter().map(digest_key));
            known.add_referrers(&repository.referrers);
            for blob in repository.blobs.iter().map(digest_key) {
                known.blobs.insert(blob);
                self.blobs.entry(blob).or_insert(number);
            }
        }
    }

    /// Adds what the receiver has once it has loaded an earlier bundle.
    pub fn add_bundle(&mut self, index: &BundleIndex) {
        self.labels.push(format!("bundle `{}` from {}", index.header.title, index.header.created));
        for repository in &index.repositories {
            let number = self.add_name(&repository.path);
            let known = self.repositories.entry(repository.path.to_string()).or_default();
            for tag in &repository.tags {
                known.tags.insert(tag.tag.clone(), tag.digest.clone());
                known.manifests.insert(digest_key(&tag.digest));
            }
            known.manifests.extend(repository.manifests.iter().map(|content| digest_key(&content.digest)));
            known.manifests.extend(repository.left_out_manifests.iter().map(digest_key));
            known.add_referrers(&repository.referrers);
            let carried = repository.blobs.iter().map(|content| &content.digest);
            for blob in carried.chain(repository.left_out_blobs.iter().map(|blob| &blob.digest)).map(digest_key) {
                known.blobs.insert(blob);
                self.blobs.entry(blob).or_insert(number);
            }
        }
    }

    fn add_name(&mut self, path: &RepositoryName) -> u32 {
        self.names.push(path.clone());
        (self.names.len() - 1) as u32
    }

    /// Describes the sources, for the header of a bundle.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Returns the digest of a tag.
    pub fn tag(&self, repository: &str, tag: &Tag) -> Option<&Digest> {
        self.repositories.get(repository)?.tags.get(tag)
    }

    /// Whether a repository has a manifest.
    pub fn has_manifest(&self, repository: &str, digest: &Digest) -> bool {
        self.repositories.get(repository).is_some_and(|known| known.manifests.contains(&digest_key(digest)))
    }

    /// Returns the known referrers of a manifest.
    pub fn referrers(&self, repository: &str, subject: &Digest) -> &[Digest] {
        let known = self.repositories.get(repository).and_then(|known| known.referrers.get(&digest_key(subject)));
        known.map_or(&[], Vec::as_slice)
    }

    /// Returns a repository with the blob: this one, if it has it.
    pub fn repository_with_blob(&self, repository: &RepositoryName, digest: &Digest) -> Option<RepositoryName> {
        let key = digest_key(digest);
        if self.repositories.get(repository.as_str()).is_some_and(|known| known.blobs.contains(&key)) {
            return Some(repository.clone());
        }
        self.blobs.get(&key).and_then(|number| self.names.get(*number as usize)).cloned()
    }
}

impl HaveRepository {
    fn add_referrers(&mut self, referrers: &[(Digest, Digest)]) {
        for (subject, referrer) in referrers {
            let known = self.referrers.entry(digest_key(subject)).or_default();
            if !known.contains(referrer) {
                known.push(referrer.clone());
            }
            self.manifests.insert(digest_key(referrer));
        }
    }
}
