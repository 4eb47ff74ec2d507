//! Manifests needed by the tags of a target repository: where a registry deletes only by digest, these must be kept.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use imgsync_model::batch::{RepositoryLocator, TagLocator};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, Manifest, Tag};
use imgsync_registry::{ManifestRef, Repository};
use imgsync_store::{Store, tag_lease_name};

/// Maximum number of tags read concurrently.
const MAX_CONCURRENT_TAGS: usize = 8;
/// In a repository with more tags nothing is deleted by digest, because checking all of them takes too long.
const MAX_TAGS: usize = 5_000;
/// Maximum nesting of indexes.
const MAX_DEPTH: usize = 16;

/// Manifests needed by the tags of one repository, as last read.
#[derive(Default)]
pub(super) struct ManifestUsage {
    /// Manifests that each tag needs, its own first.
    tags: HashMap<Tag, Vec<Digest>>,
    /// Digests that the store has recorded for the tags.
    written: HashMap<Tag, Digest>,
}

/// Use that forbids deleting a digest.
pub(super) enum ManifestUse {
    /// This tag needs it.
    Tag(Tag),
    /// A tag that may need it is being written: the name of its lease.
    Writing(String),
}

impl ManifestUsage {
    /// Returns the use of a digest, after listing the repository again and reading the tags that are new or were
    /// written since. Skips the tags in `going`, which are about to be deleted.
    pub(super) async fn find_use(
        &mut self,
        digest: &Digest,
        store: &dyn Store,
        (target, home): (&Repository, &Arc<RepositoryLocator>),
        going: &BTreeSet<Tag>,
    ) -> Result<Option<ManifestUse>> {
        let first = self.tags.is_empty();
        if first {
            // Read before listing, so that later writes show as differences.
            self.written = store.written_digests(home).await?;
        }
        let listed = list_remaining_tags(target, going).await?;
        self.tags.retain(|tag, _| listed.contains(tag));
        let new: Vec<Tag> = listed.iter().filter(|tag| !self.tags.contains_key(*tag)).cloned().collect();
        self.load_tags(target, new).await?;
        if let Some(user) = self.tag_using(digest) {
            return Ok(Some(ManifestUse::Tag(user)));
        }
        let lease = |tag: &Tag| tag_lease_name(&TagLocator { repository: home.clone(), tag: tag.clone() });
        let leases: Vec<String> = listed.iter().map(lease).collect();
        if let Some((name, _)) = store.first_held(&leases).await? {
            return Ok(Some(ManifestUse::Writing(name)));
        }
        // A later writer holds its lease or has recorded its write.
        let written = store.written_digests(home).await?;
        let since = listed.iter().filter(|tag| written.get(*tag) != self.written.get(*tag)).cloned().collect();
        self.written = written;
        self.load_tags(target, since).await?;
        Ok(self.tag_using(digest).map(ManifestUse::Tag))
    }

    fn tag_using(&self, digest: &Digest) -> Option<Tag> {
        self.tags.iter().find(|(_, needed)| needed.contains(digest)).map(|(tag, _)| tag.clone())
    }

    /// Reads the manifests that these tags need.
    async fn load_tags(&mut self, target: &Repository, tags: Vec<Tag>) -> Result<()> {
        let known = &self.tags;
        let found: Vec<(Tag, Vec<Digest>)> = futures_util::stream::iter(tags)
            .map(|tag| async move {
                let needed = required_manifests(target, &tag, known.get(&tag)).await?;
                Ok::<_, Error>((tag, needed))
            })
            .buffer_unordered(MAX_CONCURRENT_TAGS)
            .try_collect()
            .await?;
        self.tags.extend(found);
        Ok(())
    }
}

/// Lists the tags of a repository without those in `going`.
async fn list_remaining_tags(target: &Repository, going: &BTreeSet<Tag>) -> Result<BTreeSet<Tag>> {
    let operation = format!("finding the manifests used by the tags of {}/{}", target.registry(), target.name());
    let mut tags = BTreeSet::new();
    let mut pages = target.list_tags();
    while let Some(page) = pages.next_page().await? {
        for name in page.tags {
            let tag = name
                .parse::<Tag>()
                .map_err(|error| Error::new(ErrorKind::InvalidResponse, &operation, error.to_string()))?;
            if !going.contains(&tag) {
                tags.insert(tag);
            }
        }
        if tags.len() > MAX_TAGS {
            let detail = format!("it has more than {MAX_TAGS} tags, and deletes only by digest");
            return Err(
                Error::new(ErrorKind::Unsupported, &operation, detail).with_hint("delete the tag there manually")
            );
        }
    }
    Ok(tags)
}

/// Returns the manifests that a tag needs: its own, and those below an index. `known` is the previous result.
async fn required_manifests(target: &Repository, tag: &Tag, known: Option<&Vec<Digest>>) -> Result<Vec<Digest>> {
    let Some(head) = target.head_manifest(&ManifestRef::Tag(tag.clone())).await? else { return Ok(Vec::new()) };
    if let Some(known) = known.filter(|known| known.first() == Some(&head.digest)) {
        return Ok(known.clone());
    }
    let mut needed = vec![head.digest.clone()];
    if head.media_type.is_manifest() {
        return Ok(needed);
    }
    let mut open = vec![(head.digest, true, 0)];
    while let Some((digest, is_manifest, depth)) = open.pop() {
        let manifest: Manifest = match target.get_manifest(&ManifestRef::Digest(digest.clone())).await {
            Ok(manifest) => manifest,
            // A blob needs no manifest. Registries return various errors for a blob requested as a manifest.
            Err(_) if !is_manifest && target.head_blob(&digest).await? => continue,
            // Nothing needs a listed manifest that is missing; an unsupported one lists nothing.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => continue,
            Err(error) => return Err(error),
        };
        for child in manifest.children() {
            needed.push(child.digest.clone());
            if !child.media_type.is_manifest() && depth < MAX_DEPTH {
                open.push((child.digest.clone(), child.media_type.names_a_manifest(), depth + 1));
            }
        }
    }
    Ok(needed)
}
