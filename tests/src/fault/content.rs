//! Direct access to the stored content.

use super::state::{StoredBlob, StoredManifest, now};
use super::{FaultRegistry, RequestType};
use crate::images::{Blob, TestImage, TestManifest};

impl FaultRegistry {
    /// Stores an image under a tag.
    pub fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        self.push_untagged(repository, image);
        self.move_tag(repository, tag, &image.root);
    }

    /// Stores an image without a tag.
    pub fn push_untagged(&self, repository: &str, image: &TestImage) {
        let mut store = self.inner.store();
        let here = store.repository(repository);
        for (digest, blob) in &image.blobs {
            here.blobs.insert(digest.clone(), StoredBlob::Kept(blob.clone()));
        }
        for (digest, manifest) in &image.manifests {
            here.manifests.insert(digest.clone(), StoredManifest { manifest: manifest.clone(), uploaded: now() });
        }
    }

    /// Stores a blob.
    pub fn push_blob(&self, repository: &str, digest: &str, blob: &Blob) {
        self.inner.store().repository(repository).blobs.insert(digest.to_owned(), StoredBlob::Kept(blob.clone()));
    }

    /// Stores a manifest without checks, so that it may be broken.
    pub fn push_manifest(&self, repository: &str, digest: &str, manifest: TestManifest) {
        let held = StoredManifest { manifest, uploaded: now() };
        self.inner.store().repository(repository).manifests.insert(digest.to_owned(), held);
    }

    /// Sets the upload time of a manifest in milliseconds since 1970, as Google-style listings report it.
    pub fn set_uploaded(&self, repository: &str, digest: &str, milliseconds: u64) {
        if let Some(held) = self.inner.store().repository(repository).manifests.get_mut(digest) {
            held.uploaded = milliseconds;
        }
    }

    /// Points a tag at a digest, even one that is not stored.
    pub fn move_tag(&self, repository: &str, tag: &str, digest: &str) {
        self.inner.store().repository(repository).tags.insert(tag.to_owned(), digest.to_owned());
    }

    /// Deletes a tag and keeps its manifest.
    pub fn delete_tag(&self, repository: &str, tag: &str) {
        self.inner.store().repository(repository).tags.remove(tag);
    }

    /// Deletes a manifest and its tags.
    pub fn delete_manifest(&self, repository: &str, digest: &str) {
        let mut store = self.inner.store();
        let here = store.repository(repository);
        here.manifests.remove(digest);
        here.tags.retain(|_, at| at != digest);
    }

    /// Deletes a blob.
    pub fn delete_blob(&self, repository: &str, digest: &str) {
        self.inner.store().repository(repository).blobs.remove(digest);
    }

    /// Creates an empty repository.
    pub fn create_repository(&self, repository: &str) {
        self.inner.store().repository(repository);
    }

    /// Deletes a repository with its content.
    pub fn delete_repository(&self, repository: &str) {
        self.inner.store().repositories.remove(repository);
    }

    /// Drops all open upload sessions, as a registry restart does.
    pub fn forget_uploads(&self) {
        self.inner.store().uploads.clear();
    }

    /// Returns the digest of a tag.
    pub fn tag_digest(&self, repository: &str, tag: &str) -> Option<String> {
        self.inner.store().repositories.get(repository)?.tags.get(tag).cloned()
    }

    /// Returns the tags of a repository, sorted.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let store = self.inner.store();
        store.repositories.get(repository).into_iter().flat_map(|here| here.tags.keys().cloned()).collect()
    }

    /// Counts the tags of all repositories.
    pub fn tags_in_all(&self) -> usize {
        self.repositories().iter().map(|repository| self.tags(repository).len()).sum()
    }

    /// Returns the repositories, sorted.
    pub fn repositories(&self) -> Vec<String> {
        self.inner.store().repositories.keys().cloned().collect()
    }

    /// Reports whether a repository has a blob.
    pub fn has_blob(&self, repository: &str, digest: &str) -> bool {
        self.inner.store().blob(repository, digest).is_some()
    }

    /// Returns a manifest by tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<TestManifest> {
        self.inner.store().manifest(repository, reference).map(|(_, held)| held.manifest)
    }

    /// Counts the open upload sessions.
    pub fn open_uploads(&self) -> usize {
        self.inner.store().uploads.len()
    }

    /// Returns repository and digest of every blob, sorted.
    pub fn committed_blobs(&self) -> Vec<(String, String)> {
        let store = self.inner.store();
        let all = store.repositories.iter();
        all.flat_map(|(name, here)| here.blobs.keys().map(|digest| (name.clone(), digest.clone()))).collect()
    }

    /// Compares an image byte for byte with the stored tree. Returns the differences, or an empty list.
    pub fn differences(&self, repository: &str, tag: &str, image: &TestImage) -> Vec<String> {
        let mut differences = Vec::new();
        let at = self.tag_digest(repository, tag);
        if at.as_deref() != Some(image.root.as_str()) {
            differences.push(format!("tag {tag} is at {at:?}, not at {}", image.root));
        }
        differences.extend(self.tree_differences(repository, image));
        differences
    }

    fn tree_differences(&self, repository: &str, image: &TestImage) -> Vec<String> {
        let mut differences = Vec::new();
        for (digest, wanted) in &image.manifests {
            match self.manifest(repository, digest) {
                None => differences.push(format!("manifest {digest} is missing")),
                Some(found) if found != *wanted => differences.push(format!("manifest {digest} is another")),
                Some(_) => {}
            }
        }
        for (digest, wanted) in &image.blobs {
            let same = match self.inner.store().blob(repository, digest) {
                None => {
                    differences.push(format!("blob {digest} is missing"));
                    continue;
                }
                Some(StoredBlob::Forgotten(size)) => size == wanted.size(),
                Some(StoredBlob::Kept(found)) => found.size() == wanted.size() && found.pieces().eq(wanted.pieces()),
            };
            if !same {
                differences.push(format!("blob {digest} is another"));
            }
        }
        differences
    }

    /// Asserts that a tag holds the whole image, byte for byte.
    ///
    /// # Panics
    /// With the missing or different content.
    #[track_caller]
    pub fn assert_holds(&self, repository: &str, tag: &str, image: &TestImage) {
        let differences = self.differences(repository, tag, image);
        assert!(differences.is_empty(), "{}/{repository}:{tag}: {}", self.host(), differences.join("; "));
    }

    /// Asserts that a repository holds the whole image by digest, regardless of tags.
    ///
    /// # Panics
    /// With the missing or different content.
    #[track_caller]
    pub fn assert_holds_untagged(&self, repository: &str, image: &TestImage) {
        let differences = self.tree_differences(repository, image);
        assert!(differences.is_empty(), "{}/{repository}: {}", self.host(), differences.join("; "));
    }

    /// Asserts that no manifest was pushed before its children: a registry that is not lenient refuses that.
    ///
    /// # Panics
    /// With the requests, otherwise.
    #[track_caller]
    pub fn assert_children_came_first(&self) {
        let refused =
            self.count_where(|request| request.kind == RequestType::ManifestPut && request.status == Some(400));
        assert_eq!(refused, 0, "{}", self.describe_requests());
    }

    /// Asserts that no tag points at an incomplete image.
    ///
    /// # Panics
    /// With the tag and its missing content.
    #[track_caller]
    pub fn assert_tags_complete(&self) {
        let store = self.inner.store();
        for (name, here) in &store.repositories {
            for (tag, digest) in &here.tags {
                let mut open = vec![digest.clone()];
                while let Some(digest) = open.pop() {
                    let held = here.manifests.get(&digest);
                    let held = held.unwrap_or_else(|| panic!("{name}:{tag} lacks the manifest {digest}"));
                    let json = held.manifest.json();
                    let odd = crate::images::untyped_entries(&json);
                    let is_blob = |digest: &String| odd.contains(digest) && store.blob(name, digest).is_some();
                    open.extend(crate::images::children(&json).into_iter().filter(|digest| !is_blob(digest)));
                    let missing = super::manifests::missing(&store, name, &json);
                    assert!(missing.is_none(), "{name}:{tag} lacks the {}", missing.unwrap_or_default());
                }
            }
        }
    }
}
