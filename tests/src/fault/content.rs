//! Content, put in and looked at directly.

use super::state::{Held, Stored, now};
use super::{FaultRegistry, Kind};
use crate::images::{Blob, Image, Manifest};

impl FaultRegistry {
    /// Puts an image under a tag.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        self.push_untagged(repository, image);
        self.move_tag(repository, tag, &image.root);
    }

    /// Puts an image in without a tag.
    pub fn push_untagged(&self, repository: &str, image: &Image) {
        let mut store = self.inner.store();
        let here = store.repository(repository);
        for (digest, blob) in &image.blobs {
            here.blobs.insert(digest.clone(), Stored::Kept(blob.clone()));
        }
        for (digest, manifest) in &image.manifests {
            here.manifests.insert(digest.clone(), Held { manifest: manifest.clone(), uploaded: now() });
        }
    }

    /// Puts one blob in.
    pub fn push_blob(&self, repository: &str, digest: &str, blob: &Blob) {
        self.inner.store().repository(repository).blobs.insert(digest.to_owned(), Stored::Kept(blob.clone()));
    }

    /// Puts a manifest in, unchecked: broken ones too.
    pub fn push_manifest(&self, repository: &str, digest: &str, manifest: Manifest) {
        let held = Held { manifest, uploaded: now() };
        self.inner.store().repository(repository).manifests.insert(digest.to_owned(), held);
    }

    /// Sets when a manifest came, in milliseconds since 1970, as Google's lists tell it.
    pub fn set_uploaded(&self, repository: &str, digest: &str, milliseconds: u64) {
        if let Some(held) = self.inner.store().repository(repository).manifests.get_mut(digest) {
            held.uploaded = milliseconds;
        }
    }

    /// Points a tag at a digest, whether that is here or not.
    pub fn move_tag(&self, repository: &str, tag: &str, digest: &str) {
        self.inner.store().repository(repository).tags.insert(tag.to_owned(), digest.to_owned());
    }

    /// Removes a tag; its manifest stays.
    pub fn delete_tag(&self, repository: &str, tag: &str) {
        self.inner.store().repository(repository).tags.remove(tag);
    }

    /// Removes a manifest and the tags that point at it.
    pub fn delete_manifest(&self, repository: &str, digest: &str) {
        let mut store = self.inner.store();
        let here = store.repository(repository);
        here.manifests.remove(digest);
        here.tags.retain(|_, at| at != digest);
    }

    /// Removes a blob.
    pub fn delete_blob(&self, repository: &str, digest: &str) {
        self.inner.store().repository(repository).blobs.remove(digest);
    }

    /// Makes a repository that has nothing in it.
    pub fn create_repository(&self, repository: &str) {
        self.inner.store().repository(repository);
    }

    /// Removes a repository with all in it.
    pub fn delete_repository(&self, repository: &str) {
        self.inner.store().repositories.remove(repository);
    }

    /// Removes all open upload sessions, as a registry that restarts does.
    pub fn forget_uploads(&self) {
        self.inner.store().uploads.clear();
    }

    /// The digest that a tag points at.
    pub fn tag_digest(&self, repository: &str, tag: &str) -> Option<String> {
        self.inner.store().repositories.get(repository)?.tags.get(tag).cloned()
    }

    /// The tags of a repository, sorted.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let store = self.inner.store();
        store.repositories.get(repository).into_iter().flat_map(|here| here.tags.keys().cloned()).collect()
    }

    /// How many tags there are in all repositories.
    pub fn tags_in_all(&self) -> usize {
        self.repositories().iter().map(|repository| self.tags(repository).len()).sum()
    }

    /// The repositories, sorted.
    pub fn repositories(&self) -> Vec<String> {
        self.inner.store().repositories.keys().cloned().collect()
    }

    /// Whether a repository has a blob.
    pub fn has_blob(&self, repository: &str, digest: &str) -> bool {
        self.inner.store().blob(repository, digest).is_some()
    }

    /// A manifest by tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<Manifest> {
        self.inner.store().manifest(repository, reference).map(|(_, held)| held.manifest)
    }

    /// Upload sessions that are open.
    pub fn open_uploads(&self) -> usize {
        self.inner.store().uploads.len()
    }

    /// Repository and digest of every blob, sorted.
    pub fn committed_blobs(&self) -> Vec<(String, String)> {
        let store = self.inner.store();
        let all = store.repositories.iter();
        all.flat_map(|(name, here)| here.blobs.keys().map(|digest| (name.clone(), digest.clone()))).collect()
    }

    /// What of an image is not here as it should be: empty when the whole tree is, byte for byte.
    pub fn differences(&self, repository: &str, tag: &str, image: &Image) -> Vec<String> {
        let mut differences = Vec::new();
        let at = self.tag_digest(repository, tag);
        if at.as_deref() != Some(image.root.as_str()) {
            differences.push(format!("tag {tag} is at {at:?}, not at {}", image.root));
        }
        differences.extend(self.tree_differences(repository, image));
        differences
    }

    fn tree_differences(&self, repository: &str, image: &Image) -> Vec<String> {
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
                Some(Stored::Forgotten(size)) => size == wanted.size(),
                Some(Stored::Kept(found)) => found.size() == wanted.size() && found.pieces().eq(wanted.pieces()),
            };
            if !same {
                differences.push(format!("blob {digest} is another"));
            }
        }
        differences
    }

    /// Demands that a tag holds the whole image, byte for byte.
    ///
    /// # Panics
    /// With what is missing or different.
    #[track_caller]
    pub fn assert_holds(&self, repository: &str, tag: &str, image: &Image) {
        let differences = self.differences(repository, tag, image);
        assert!(differences.is_empty(), "{}/{repository}:{tag}: {}", self.host(), differences.join("; "));
    }

    /// Demands that a repository holds the whole image by digest, whatever its tags.
    ///
    /// # Panics
    /// With what is missing or different.
    #[track_caller]
    pub fn assert_holds_untagged(&self, repository: &str, image: &Image) {
        let differences = self.tree_differences(repository, image);
        assert!(differences.is_empty(), "{}/{repository}: {}", self.host(), differences.join("; "));
    }

    /// Demands that no manifest came before what it names: a registry that is not lenient refuses it then.
    ///
    /// # Panics
    /// With the requests, if one did.
    #[track_caller]
    pub fn assert_order_was_kept(&self) {
        let refused = self.count_where(|request| request.kind == Kind::ManifestPut && request.status == Some(400));
        assert_eq!(refused, 0, "{}", self.describe_requests());
    }

    /// Demands that no tag points at an image that is not complete here.
    ///
    /// # Panics
    /// With the tag and what it lacks.
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
                    let odd = crate::images::odd_entries(&json);
                    let is_blob = |digest: &String| odd.contains(digest) && store.blob(name, digest).is_some();
                    open.extend(crate::images::children(&json).into_iter().filter(|digest| !is_blob(digest)));
                    let missing = super::manifests::missing(&store, name, &json);
                    assert!(missing.is_none(), "{name}:{tag} lacks the {}", missing.unwrap_or_default());
                }
            }
        }
    }
}
