//! Listing of one repository's tags by its registry, for a source or for a target to compare with.

use std::collections::HashSet;

use imgsync_model::select::TagSelection;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, MediaType, RegistryName, RepositoryName};
use imgsync_registry::{ListedManifest, ListedPages, ListedTag, ListingShare, Repository, TagPage, TagPages};
use jiff::Timestamp;

use super::provider_lists;

/// Unix time of the earliest plausible image date. Earlier dates come from programs that set all dates alike (1970,
/// 1980, year 1): Docker was first shown on 2013-03-15. In seconds.
const FIRST_IMAGE_UNIX_SECONDS: i64 = 1_363_305_600;

/// Listing of a repository's tags.
#[derive(Debug, Clone, PartialEq)]
pub struct RepositoryListing {
    /// The registry.
    pub registry: RegistryName,
    /// The repository's path.
    pub repository: RepositoryName,
    /// Tags in byte order, each once.
    pub tags: Vec<ListedTag>,
    /// Names of the repositories directly below this one, if the registry lists trees.
    pub children: Vec<String>,
    /// Number of listed manifests, tagged or not; 0 if the registry lists tags only.
    pub manifests: usize,
    /// Whether the tags were named one by one, so that the repository may have others.
    pub is_named: bool,
    /// Whether the registry lists trees, and so also answers for repositories that do not exist.
    pub is_tree: bool,
    /// Reason why dates are temporarily missing.
    pub missing_dates_reason: Option<String>,
    /// Memory share of the listing.
    pub memory: Option<ListingShare>,
}

impl RepositoryListing {
    /// Creates a listing of tags that were named one by one.
    pub fn from_named_tags(registry: RegistryName, repository: RepositoryName, mut tags: Vec<ListedTag>) -> Self {
        tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        // The same digest may be written with several tags.
        tags.dedup_by(|a, b| a.tag == b.tag);
        Self {
            registry,
            repository,
            tags,
            children: Vec::new(),
            manifests: 0,
            is_named: true,
            is_tree: false,
            missing_dates_reason: None,
            memory: None,
        }
    }

    /// Whether the listing is empty. Registries that list trees return an empty one for repositories that do not exist.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.children.is_empty() && self.manifests == 0
    }

    /// Returns an error if tags are selected by dates that are temporarily missing: the selection would be empty, as if
    /// there were nothing new.
    pub fn missing_dates_error(&self, selection: &TagSelection) -> Option<Error> {
        let why = self.missing_dates_reason.as_ref().filter(|_| selection.needs_created())?;
        let operation = format!("choosing the tags of {}/{}", self.registry, self.repository);
        let detail = format!("`since` and `newest: {{by: date}}` need dates, which are unavailable: {why}");
        let hint = "set a proxy or `api:` for the registry under `registries`, or select by version";
        Some(Error::new(ErrorKind::Unreachable, operation, detail).with_hint(hint))
    }

    /// Returns the error for a selection by dates that the registry does not list: the selection would be empty, as if
    /// there were nothing new.
    pub fn no_dates_error(&self) -> Error {
        let operation = format!("choosing the tags of {}/{}", self.registry, self.repository);
        let detail = "`since` and `newest: {by: date}` go by dates, and its list has none (one and the same for all \
                      images, or one before there were any, is none)";
        let hint =
            "choose by `semver` or `newest` alone; docs/reference/registries.md says which registries list dates";
        Error::new(ErrorKind::Unsupported, operation, detail).with_hint(hint)
    }

    /// Whether no tag has a date.
    pub fn is_undated(&self) -> bool {
        self.tags.iter().all(|listed| listed.created.is_none())
    }

    /// Returns the digest of a tag, if listed.
    pub fn digest(&self, tag: &str) -> Option<&Digest> {
        self.get(tag)?.digest.as_ref()
    }

    /// Returns a tag's properties; `None` if it is not listed.
    pub fn get(&self, tag: &str) -> Option<&ListedTag> {
        let at = self.tags.binary_search_by(|listed| listed.tag.as_str().cmp(tag)).ok()?;
        Some(&self.tags[at])
    }
}

/// Lists a repository, one request a page: by its provider's API if there is one, else by the registry's own. A failure
/// is always an error and never an empty list; only registries that list trees answer for repositories that do not exist,
/// see [`RepositoryListing::is_empty`].
pub async fn list_repository(repository: &Repository) -> Result<RepositoryListing> {
    const OWN_LIST_FALLBACK: &str = "falling back to the registry's tag list, which has no digests or dates";
    let mut missing_dates_reason = provider_lists::provider_api_backoff(repository, None, OWN_LIST_FALLBACK)?;
    let refused = match missing_dates_reason {
        Some(_) => None,
        None => match provider_lists::list_tags(repository).await? {
            None => None,
            Some(pages) => match list_by_provider(repository, pages, None).await {
                Ok(listing) => return Ok(listing),
                Err(error) if provider_lists::permits_fallback(&error) => Some(error),
                Err(error) => {
                    missing_dates_reason =
                        provider_lists::provider_api_backoff(repository, Some(&error), OWN_LIST_FALLBACK)?;
                    if missing_dates_reason.is_none() {
                        return Err(error);
                    }
                    None
                }
            },
        },
    };
    let mut contents = ListingAccumulator::default();
    contents.add_remaining_pages(&mut repository.list_tags()).await?;
    match refused {
        Some(error) => provider_lists::warn_once(repository, &error, OWN_LIST_FALLBACK)?,
        None if missing_dates_reason.is_some() => {}
        // The registry's response may have revealed its provider.
        None if !contents.is_tree => {
            if let Some(pages) = provider_lists::list_tags_if_recognised(repository).await? {
                match list_by_provider(repository, pages, None).await {
                    Ok(listing) => return Ok(listing),
                    Err(error) if provider_lists::permits_fallback(&error) => {
                        provider_lists::warn_once(repository, &error, "ignoring it")?
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        None => {}
    }
    Ok(RepositoryListing { missing_dates_reason, ..contents.into_listing(repository) })
}

/// Finds tags and their digests in a repository's list, and stops when all are found, or after as many pages as there
/// are tags to find. Returns `None` if the list has no digests.
pub async fn find_tags(repository: &Repository, wanted: &[&str]) -> Result<Option<RepositoryListing>> {
    if provider_lists::provider_api_backoff(repository, None, TAG_BY_TAG_FALLBACK)?.is_some() {
        return Ok(None);
    }
    if let Some(pages) = provider_lists::list_tags(repository).await? {
        return or_tag_by_tag(repository, list_by_provider(repository, pages, Some(wanted)).await);
    }
    let mut pages = repository.list_tags();
    let Some(first) = pages.next_page().await? else { return Ok(None) };
    if first.is_tree {
        let mut contents = ListingAccumulator::default();
        contents.add_page(first);
        contents.add_remaining_pages(&mut pages).await?;
        return Ok(Some(contents.into_listing(repository)));
    }
    match provider_lists::list_tags_if_recognised(repository).await? {
        Some(pages) => or_tag_by_tag(repository, list_by_provider(repository, pages, Some(wanted)).await),
        None => Ok(None),
    }
}

const TAG_BY_TAG_FALLBACK: &str = "falling back to one request per tag";

fn or_tag_by_tag(repository: &Repository, listing: Result<RepositoryListing>) -> Result<Option<RepositoryListing>> {
    match listing {
        Ok(listing) => Ok(Some(listing)),
        Err(error) if error.kind() != ErrorKind::NotFound && provider_lists::permits_fallback(&error) => {
            provider_lists::warn_once(repository, &error, TAG_BY_TAG_FALLBACK)?;
            Ok(None)
        }
        Err(error)
            if provider_lists::provider_api_backoff(repository, Some(&error), TAG_BY_TAG_FALLBACK)?.is_some() =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads all pages, or as many as are needed to find these tags.
async fn list_by_provider(
    repository: &Repository,
    mut pages: ListedPages<ListedTag>,
    wanted: Option<&[&str]>,
) -> Result<RepositoryListing> {
    let mut contents = ListingAccumulator::default();
    let mut missing: Option<HashSet<&str>> = wanted.map(|wanted| wanted.iter().copied().collect());
    let mut left = wanted.map_or(usize::MAX, <[_]>::len);
    while left > 0
        && let Some(tags) = pages.next_page().await?
    {
        if let Some(missing) = &mut missing {
            for listed in tags.iter().filter(|listed| listed.digest.is_some()) {
                missing.remove(listed.tag.as_str());
            }
            left = if missing.is_empty() { 0 } else { left - 1 };
        }
        contents.tags.extend(tags);
    }
    Ok(contents.into_listing(repository))
}

/// Accumulates pages.
#[derive(Debug, Default)]
pub(super) struct ListingAccumulator {
    tags: Vec<ListedTag>,
    pub(super) children: Vec<String>,
    manifests: usize,
    is_tree: bool,
}

impl ListingAccumulator {
    /// Adds all remaining pages.
    pub(super) async fn add_remaining_pages(&mut self, pages: &mut TagPages) -> Result<()> {
        while let Some(page) = pages.next_page().await? {
            self.add_page(page);
        }
        Ok(())
    }

    /// Adds a page.
    pub(super) fn add_page(&mut self, page: TagPage) {
        self.is_tree |= page.is_tree;
        self.children.extend(page.children);
        self.manifests += page.manifests.len();
        let bare = |tag| ListedTag { tag, digest: None, created: None, media_type: None };
        self.tags.extend(page.tags.into_iter().map(bare));
        for (digest, manifest) in page.manifests {
            let digest: Option<Digest> = digest.parse().ok();
            let created = manifest_date(&manifest);
            let media_type = Some(manifest.media_type).filter(|kind| *kind != MediaType::Missing);
            self.tags.extend(manifest.tag.into_iter().map(|tag| ListedTag {
                tag,
                digest: digest.clone(),
                created,
                media_type: media_type.clone(),
            }));
        }
    }

    fn into_listing(mut self, repository: &Repository) -> RepositoryListing {
        self.children.sort_unstable();
        self.children.dedup();
        RepositoryListing {
            registry: repository.registry().clone(),
            repository: repository.name().clone(),
            tags: drop_implausible_dates(dedup_tags(self.tags)),
            children: self.children,
            manifests: self.manifests,
            is_tree: self.is_tree,
            is_named: false,
            missing_dates_reason: None,
            memory: repository.context().listing_memory.clone(),
        }
    }
}

/// Sorts the tags and merges duplicates. A tag can be in the list of tags and at its manifest; one at two manifests was
/// moved during the listing, or the list is wrong: then it has no digest, and must be requested.
fn dedup_tags(mut tags: Vec<ListedTag>) -> Vec<ListedTag> {
    tags.sort_unstable_by(|a, b| a.tag.cmp(&b.tag));
    let mut contradicted = false;
    // In place, because a list can be long.
    tags.dedup_by(|listed, last| {
        if listed.tag != last.tag {
            contradicted = false;
            return false;
        }
        contradicted |= matches!((&last.digest, &listed.digest), (Some(a), Some(b)) if a != b);
        last.created = last.created.max(listed.created);
        last.digest = last.digest.take().or(listed.digest.take()).filter(|_| !contradicted);
        last.media_type = last.media_type.take().or(listed.media_type.take()).filter(|_| !contradicted);
        true
    });
    tags.shrink_to_fit();
    tags
}

/// Drops implausible dates: those before the first images, and one date shared by all images of a repository.
fn drop_implausible_dates(mut tags: Vec<ListedTag>) -> Vec<ListedTag> {
    let is_constant = {
        let mut dates = tags.iter().filter_map(|listed| listed.created);
        let first = dates.next();
        let mut images: HashSet<&str> = HashSet::new();
        for listed in tags.iter().filter(|listed| listed.created.is_some()) {
            images.insert(listed.digest.as_ref().map_or(listed.tag.as_str(), Digest::hex));
        }
        images.len() > 1 && dates.all(|date| Some(date) == first)
    };
    for listed in &mut tags {
        listed.created = listed.created.filter(|date| !is_constant && date.as_second() >= FIRST_IMAGE_UNIX_SECONDS);
    }
    tags
}

/// Returns a manifest's date of push, else of build. Reproducible builds set 1970, which is no date.
fn manifest_date(manifest: &ListedManifest) -> Option<Timestamp> {
    let real = |milliseconds: Option<i64>| milliseconds.filter(|milliseconds| *milliseconds > 0);
    let milliseconds = real(manifest.time_uploaded_ms).or(real(manifest.time_created_ms))?;
    Timestamp::from_millisecond(milliseconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(manifests: &[(&str, &[&str], i64)], tags: &[&str]) -> TagPage {
        let entry = |(digest, tags, uploaded): &(&str, &[&str], i64)| {
            let manifest = ListedManifest {
                tag: serde_json::from_value(serde_json::json!(tags)).unwrap(),
                media_type: MediaType::OciIndex,
                time_created_ms: Some(0),
                time_uploaded_ms: Some(*uploaded),
            };
            (Digest::sha256(digest.as_bytes()).to_string(), manifest)
        };
        TagPage {
            is_tree: true,
            tags: tags.iter().map(ToString::to_string).collect(),
            children: Vec::new(),
            manifests: manifests.iter().map(entry).collect(),
        }
    }

    fn tags(page: TagPage) -> Vec<ListedTag> {
        let mut contents = ListingAccumulator::default();
        contents.add_page(page);
        dedup_tags(contents.tags)
    }

    #[test]
    fn a_tag_is_joined_with_what_stands_at_its_manifest() {
        let tags = tags(page(&[("x", &["b", "latest"], 1000), ("untagged", &[], 0)], &["latest", "b", "plain"]));
        let digest = |tag: &str| tags.iter().find(|listed| listed.tag == tag).unwrap().digest.clone();
        assert_eq!(tags.iter().map(|listed| listed.tag.as_str()).collect::<Vec<_>>(), ["b", "latest", "plain"]);
        assert_eq!(digest("latest"), Some(Digest::sha256(b"x")));
        assert_eq!(digest("plain"), None);
        assert_eq!(tags[0].created.unwrap().as_second(), 1);
    }

    #[test]
    fn a_tag_at_two_manifests_has_no_digest_that_could_be_trusted() {
        let tags = tags(page(&[("x", &["a"], 1000), ("y", &["a"], 5000), ("z", &["a"], 3000)], &["a"]));
        assert_eq!(tags.len(), 1);
        assert_eq!((tags[0].digest.clone(), tags[0].created.unwrap().as_second()), (None, 5));
    }

    #[test]
    fn a_date_that_all_images_have_or_that_is_before_any_is_none() {
        let tag = |tag: &str, digest: &str, date: &str| ListedTag {
            tag: tag.to_owned(),
            digest: Some(Digest::sha256(digest.as_bytes())),
            created: Some(date.parse().unwrap()),
            media_type: None,
        };
        let dated = |tags: Vec<ListedTag>| -> Vec<bool> {
            drop_implausible_dates(tags).iter().map(|listed| listed.created.is_some()).collect()
        };
        for false_date in
            ["1970-01-01T00:00:01Z", "1980-01-01T00:00:01Z", "0001-01-01T00:00:00Z", "2001-09-09T01:46:40Z"]
        {
            assert_eq!(dated(vec![tag("a", "x", false_date)]), [false], "{false_date}");
            let mixed = vec![tag("a", "x", false_date), tag("b", "y", "2024-05-01T00:00:00Z")];
            assert_eq!(dated(mixed), [false, true], "{false_date}");
        }
        let built = "2024-05-01T00:00:00Z";
        assert_eq!(dated(vec![tag("a", "x", built), tag("b", "y", built), tag("c", "z", built)]), [false; 3]);
        assert_eq!(dated(vec![tag("1.0", "x", built), tag("latest", "x", built)]), [true; 2], "one image");
        assert_eq!(dated(vec![tag("a", "x", built), tag("b", "y", "2024-05-02T00:00:00Z")]), [true; 2]);
    }

    #[test]
    fn nothing_before_1970_is_taken_for_a_date() {
        assert_eq!(tags(page(&[("x", &["a"], 0)], &[]))[0].created, None);
    }
}
