//! Asks registries what was pushed, and lists the repository if the pushed tags alone do not decide what is selected.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use imgsync_model::batch::{PushedReference, PushedRepository};
use imgsync_model::select::{TagSelection, Version};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, DigestTag, RegistryName, RepositoryName, Tag};
use imgsync_registry::{ListedTag, ManifestRef, Repository};

use super::super::PlanBuilder;
use super::{MAX_CONCURRENT_REQUESTS, describe_push};
use crate::discovery::RepositoryListing;
use crate::orchestrator::push_metrics;

/// First pause before a tag is asked for again that does not show what was pushed; it doubles up to the maximum. Some
/// registries notify before they set the tag.
const FIRST_TAG_PAUSE: Duration = Duration::from_millis(50);
const MAX_TAG_PAUSE: Duration = Duration::from_secs(1);

/// What was pushed to a repository, as its registry shows it.
#[derive(Debug, Default)]
pub(super) struct ShownPushes {
    /// Pushed tags with their digests; `None` if the tag does not exist.
    pub(super) tags: HashMap<Tag, Option<Digest>>,
    /// Pushed manifests.
    pub(super) manifests: HashSet<Digest>,
    /// Images that have new digest tags or referrers.
    pub(super) images: HashSet<Digest>,
    /// Whether the sender did not say what was pushed.
    pub(super) is_unknown: bool,
    /// Whether something was deleted.
    pub(super) has_deletion: bool,
}

/// Result of one request about a push.
enum Shown {
    Tag(Tag, Option<Digest>),
    /// A manifest without a tag, and the image that it refers to.
    Manifest(Digest, Option<Digest>),
    Nothing,
    Unknown,
    Deletion,
}

impl ShownPushes {
    /// Returns whether nothing of it is there.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_repository() && self.manifests.is_empty()
    }

    /// Returns whether there is something to do for rules that read repositories.
    pub(super) fn has_repository(&self) -> bool {
        self.has_tag() || !self.images.is_empty() || self.is_unknown || self.has_deletion
    }

    /// Returns whether a pushed tag exists.
    pub(super) fn has_tag(&self) -> bool {
        self.tags.values().any(Option::is_some)
    }

    /// Returns whether the pushed tags alone decide what these selections select of them: no other tag counts.
    pub(super) fn decides(&self, selections: [&TagSelection; 2]) -> bool {
        let is_decided = |selection: &TagSelection| {
            let TagSelection { include: _, exclude: _, range, since, newest, min } = selection;
            // Of tags without a version of their own, all tags decide which prefix they have in common.
            let has_version =
                |tag: &Tag| DigestTag::parse_tag(tag.as_str()).is_some() || Version::parse(tag.as_str()).is_some();
            (range.is_none() || self.tags.keys().all(has_version))
                && since.is_none()
                && newest.is_none()
                && min.is_none()
        };
        self.images.is_empty() && !self.is_unknown && selections.into_iter().all(is_decided)
    }

    /// Returns a listing of the pushed tags alone.
    pub(super) fn listing(&self, registry: &RegistryName, repository: &RepositoryName) -> RepositoryListing {
        let is_image = |(tag, _): &(&Tag, &Option<Digest>)| DigestTag::parse_tag(tag.as_str()).is_none();
        let listed = |(tag, digest): (&Tag, &Option<Digest>)| {
            let digest = Some(digest.clone()?);
            Some(ListedTag { tag: tag.to_string(), digest, created: None, media_type: None })
        };
        let tags = self.tags.iter().filter(is_image).filter_map(listed).collect();
        RepositoryListing::from_named_tags(registry.clone(), repository.clone(), tags)
    }

    /// Returns the part of a listing that has the pushed tags and the digest tags.
    pub(super) fn narrow_listing(&self, listing: &RepositoryListing) -> RepositoryListing {
        let names: HashSet<&str> = self.tags.keys().map(Tag::as_str).collect();
        let is_kept =
            |listed: &&ListedTag| names.contains(listed.tag.as_str()) || DigestTag::parse_tag(&listed.tag).is_some();
        RepositoryListing {
            registry: listing.registry.clone(),
            repository: listing.repository.clone(),
            tags: listing.tags.iter().filter(is_kept).cloned().collect(),
            children: Vec::new(),
            manifests: listing.manifests,
            is_named: false,
            is_tree: listing.is_tree,
            missing_dates_reason: listing.missing_dates_reason.clone(),
            memory: listing.memory.clone(),
        }
    }
}

impl PlanBuilder<'_> {
    /// Asks the registry what was pushed. A tag is waited for until `deadline`.
    pub(super) async fn read_pushes(
        &self,
        repository: &Repository,
        pushed: &PushedRepository,
        deadline: Instant,
    ) -> Result<ShownPushes> {
        let PushedRepository { registry, repository: name, references } = pushed;
        let mut reads: Vec<BoxFuture<'_, _>> = Vec::with_capacity(references.len());
        for reference in references {
            reads.push(async move { (reference, self.read_push(repository, reference, deadline).await) }.boxed());
        }
        let mut answers = futures_util::stream::iter(reads).buffer_unordered(MAX_CONCURRENT_REQUESTS);
        let mut pushes = ShownPushes::default();
        while let Some((reference, answer)) = answers.next().await {
            let shown = match answer {
                Ok(shown) => shown,
                Err(error) if error.is_cancelled() => return Err(error),
                // The other pushes of the repository count.
                Err(error) => {
                    self.record_unlisted(describe_push((registry, name), reference), &error).await?;
                    continue;
                }
            };
            match shown {
                Shown::Tag(tag, digest) => {
                    // What is pushed under a digest tag belongs to the image that it names.
                    if DigestTag::parse_tag(tag.as_str()).is_some() {
                        match DigestTag::subject(tag.as_str()) {
                            Some(image) => _ = pushes.images.insert(image),
                            None => self.context.warn(format!(
                                "{registry}/{name}:{tag} was pushed and names only a part of the digest of its image: the next \
                                 run of the rule finds it"
                            )),
                        }
                    }
                    pushes.manifests.extend(digest.clone());
                    pushes.tags.insert(tag, digest);
                }
                Shown::Manifest(digest, image) => {
                    pushes.manifests.insert(digest);
                    pushes.images.extend(image);
                }
                Shown::Nothing => {}
                Shown::Unknown => pushes.is_unknown = true,
                Shown::Deletion => pushes.has_deletion = true,
            }
        }
        Ok(pushes)
    }

    async fn read_push(
        &self,
        repository: &Repository,
        reference: &PushedReference,
        deadline: Instant,
    ) -> Result<Shown> {
        match reference {
            PushedReference::Tag(tag, pushed) => {
                let shown = self.wait_for_tag(repository, tag, pushed.as_ref(), deadline).await?;
                if shown.is_none() || pushed.is_some() && shown != *pushed {
                    self.lagging_pushes.insert(describe_push((repository.registry(), repository.name()), reference));
                }
                Ok(Shown::Tag(tag.clone(), shown))
            }
            PushedReference::Manifest(digest) => {
                // A manifest without a tag is a part of an index, or a referrer, which names its image.
                match repository.get_manifest(&ManifestRef::Digest(digest.clone())).await {
                    Ok(manifest) => {
                        let image = manifest.parsed().subject.as_ref().map(|subject| subject.digest.clone());
                        Ok(Shown::Manifest(digest.clone(), image))
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(Shown::Nothing),
                    // What imgsync cannot read names no image that it copies.
                    Err(error) if is_unreadable(error.kind()) => {
                        self.context.warn(format!("ignored what was pushed: {error}"));
                        Ok(Shown::Nothing)
                    }
                    Err(error) => Err(error),
                }
            }
            PushedReference::Unknown => Ok(Shown::Unknown),
            PushedReference::Deletion => Ok(Shown::Deletion),
        }
    }

    /// Asks the registry for a tag until it shows the digest that was pushed, and returns what it shows at last; `None`
    /// if it does not exist. Mirrors may show what the tag was before, and are not asked.
    async fn wait_for_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        pushed: Option<&Digest>,
        deadline: Instant,
    ) -> Result<Option<Digest>> {
        let mut pause = FIRST_TAG_PAUSE;
        loop {
            let head = repository.head_manifest_at_registry(&ManifestRef::Tag(tag.clone())).await?;
            let shown = head.map(|head| head.digest);
            if shown.is_some() && pushed.is_none_or(|pushed| shown.as_ref() == Some(pushed)) {
                return Ok(shown);
            }
            if Instant::now() + pause > deadline {
                return Ok(shown);
            }
            push_metrics::count_wait();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.context.cancel.cancelled() => return Err(Error::cancelled("waiting for a pushed tag")),
            }
            pause = (pause * 2).min(MAX_TAG_PAUSE);
        }
    }
}

/// Whether a manifest is none that imgsync can read, and will not be one later.
fn is_unreadable(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unsupported | ErrorKind::Outdated | ErrorKind::InvalidResponse | ErrorKind::Corrupt)
}

/// Sets the digests of these tags in a listing, and adds those that it lacks: it may be older than the push. A tag that
/// does not exist is removed.
pub(super) fn pin_tags(listing: &mut RepositoryListing, tags: &HashMap<Tag, Option<Digest>>) {
    for (tag, digest) in tags {
        let found = listing.tags.binary_search_by(|listed| listed.tag.as_str().cmp(tag.as_str()));
        match (found, digest) {
            (Ok(at), Some(digest)) => listing.tags[at].digest = Some(digest.clone()),
            (Ok(at), None) => drop(listing.tags.remove(at)),
            (Err(at), Some(digest)) => {
                let (tag, digest) = (tag.to_string(), Some(digest.clone()));
                listing.tags.insert(at, ListedTag { tag, digest, created: None, media_type: None });
            }
            (Err(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(tag: &str, digest: Option<Digest>) -> ListedTag {
        ListedTag { tag: tag.to_owned(), digest, created: None, media_type: None }
    }

    fn shown(tags: &[(&str, Option<&Digest>)]) -> ShownPushes {
        let tags = tags.iter().map(|(tag, digest)| (tag.parse().unwrap(), digest.cloned())).collect();
        ShownPushes { tags, ..ShownPushes::default() }
    }

    #[test]
    fn a_listing_shows_what_the_tags_show() {
        let (old, new) = (Digest::sha256(b"old"), Digest::sha256(b"new"));
        let mut listing = shown(&[]).listing(&"r.example".parse().unwrap(), &"a".parse().unwrap());
        listing.tags = vec![listed("1", Some(old.clone())), listed("2", None), listed("4", Some(old.clone()))];
        let pushes = shown(&[("1", Some(&new)), ("2", None), ("3", Some(&new)), ("9", None)]);
        pin_tags(&mut listing, &pushes.tags);
        let wanted = [listed("1", Some(new.clone())), listed("3", Some(new)), listed("4", Some(old))];
        assert_eq!(listing.tags, wanted);
    }

    #[test]
    fn a_listing_of_the_pushes_has_the_images_that_exist() {
        let image = Digest::sha256(b"image");
        let signature = format!("{}.sig", image.to_string().replace(':', "-"));
        let pushes = shown(&[("b", Some(&image)), ("a", Some(&image)), ("gone", None), (&signature, Some(&image))]);
        let listing = pushes.listing(&"r.example".parse().unwrap(), &"a".parse().unwrap());
        assert_eq!(listing.tags, [listed("a", Some(image.clone())), listed("b", Some(image))]);
    }

    #[test]
    fn tags_decide_alone_unless_others_count() {
        let image = Digest::sha256(b"image");
        let all = TagSelection::default();
        let named = TagSelection { include: vec!["v*".parse().unwrap()], ..TagSelection::default() };
        let range = TagSelection { range: Some(">=1.0".parse().unwrap()), ..TagSelection::default() };
        let min = TagSelection { min: Some(1), ..TagSelection::default() };
        let versions = shown(&[("v1.2", Some(&image)), ("1.3-alpine", None)]);
        for selection in [&all, &named, &range] {
            assert!(versions.decides([selection, &all]) && versions.decides([&all, selection]), "{selection:?}");
        }
        assert!(!versions.decides([&all, &min]));
        assert!(!shown(&[("app-1.2", None)]).decides([&range, &all]), "the prefix of all tags counts");
        assert!(shown(&[("app-1.2", None)]).decides([&named, &all]));
        assert!(!ShownPushes { is_unknown: true, ..shown(&[]) }.decides([&all, &all]));
        assert!(!ShownPushes { images: HashSet::from([image]), ..shown(&[]) }.decides([&all, &all]));
    }
}
