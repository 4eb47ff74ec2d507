//! Listing of one repository's tags by its registry, for a source or for a target to compare with.

use std::collections::HashSet;

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Digest, MediaType, RegistryName, RepositoryName};
use imgsync_common::registry::{ListedManifest, ListingShare, Repository, TagPage, TagPages};
use imgsync_common::select::Selection;
use jiff::Timestamp;

use super::vendor;

/// Unix time of the earliest plausible image date. Earlier dates come from programs that set all dates alike (1970,
/// 1980, year 1): Docker was first shown on 2013-03-15. In seconds.
const FIRST_IMAGES: i64 = 1_363_305_600;

/// Listing of a repository's tags.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// The registry.
    pub registry: RegistryName,
    /// The repository's path.
    pub repository: RepositoryName,
    /// Tags in byte order, each once.
    pub tags: Vec<ListedTag>,
    /// Names of the repositories directly below this one, if the registry lists them (Google style).
    pub children: Vec<String>,
    /// Number of listed manifests, tagged or not; 0 if the registry lists tags only.
    pub manifests: usize,
    /// Whether the registry lists Google style, and so also answers for repositories that do not exist.
    pub google: bool,
    /// Reason why dates are temporarily missing.
    pub undated: Option<String>,
    /// Memory share of the listing.
    pub memory: Option<ListingShare>,
}

/// A tag with the properties that its registry lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTag {
    /// Tag as listed; it may be invalid by the specification.
    pub tag: String,
    /// Digest that it points at. `None` also if the listing contradicts itself.
    pub digest: Option<Digest>,
    /// Date of push, else of build.
    pub created: Option<Timestamp>,
    /// Media type of the manifest.
    pub media_type: Option<MediaType>,
}

impl Listing {
    /// Whether the listing is empty. Google-style registries return an empty one for repositories that do not exist.
    pub fn is_nothing(&self) -> bool {
        self.tags.is_empty() && self.children.is_empty() && self.manifests == 0
    }

    /// Returns an error if tags are selected by dates that are temporarily missing: the selection would be empty, as if
    /// there were nothing new.
    pub fn lacks_dates_for(&self, selection: &Selection) -> Option<Error> {
        let why = self.undated.as_ref().filter(|_| selection.needs_created())?;
        let tried = format!("choosing the tags of {}/{}", self.registry, self.repository);
        let detail = format!("`since` and `newest: {{by: date}}` go by dates, and there are none while {why}");
        let hint = "give `registries` a proxy or `api:` that leads there, or choose by version";
        Some(Error::new(Class::Unreachable, tried, detail).hint(hint))
    }

    /// Returns the error for a selection by dates that the registry does not list: the selection would be empty, as if
    /// there were nothing new.
    pub fn has_no_dates(&self) -> Error {
        let tried = format!("choosing the tags of {}/{}", self.registry, self.repository);
        let detail = "`since` and `newest: {by: date}` go by dates, and its list has none (one and the same for all \
                      images, or one before there were any, is none)";
        let hint = "choose by `semver` or `newest` alone; docs/registries.md says which registries list dates";
        Error::new(Class::Unsupported, tried, detail).hint(hint)
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

/// Lists a repository, one request a page: by its vendor's API if there is one, else by the registry's own. A failure
/// is always an error and never an empty list; only Google-style registries answer for repositories that do not exist,
/// see [`Listing::is_nothing`].
pub async fn list(repository: &Repository) -> Result<Listing> {
    const OWN: &str = "its own list of tags is used, which has no digests and no dates";
    let mut undated = vendor::out_of_reach(repository, None, OWN)?;
    let refused = match undated {
        Some(_) => None,
        None => match vendor::tags(repository).await? {
            None => None,
            Some(pages) => match of_vendor(repository, pages, None).await {
                Ok(listing) => return Ok(listing),
                Err(error) if vendor::is_unavailable(&error) => Some(error),
                Err(error) => {
                    undated = vendor::out_of_reach(repository, Some(&error), OWN)?;
                    if undated.is_none() {
                        return Err(error);
                    }
                    None
                }
            },
        },
    };
    let mut contents = Contents::default();
    contents.read_on(&mut repository.tags()).await?;
    match refused {
        Some(error) => vendor::tell(repository, &error, OWN)?,
        None if undated.is_some() => {}
        // The registry's response may have revealed its vendor.
        None if !contents.google => {
            if let Some(pages) = vendor::tags_of_recognised(repository).await? {
                match of_vendor(repository, pages, None).await {
                    Ok(listing) => return Ok(listing),
                    Err(error) if vendor::is_unavailable(&error) => vendor::tell(repository, &error, "it is not used")?,
                    Err(error) => return Err(error),
                }
            }
        }
        None => {}
    }
    Ok(Listing { undated, ..contents.listing(repository) })
}

/// Finds tags and their digests in a repository's list, and stops when all are found, or after as many pages as there
/// are tags to find. Returns `None` if the list has no digests.
pub async fn find(repository: &Repository, wanted: &[&str]) -> Result<Option<Listing>> {
    if vendor::out_of_reach(repository, None, ONE_BY_ONE)?.is_some() {
        return Ok(None);
    }
    if let Some(pages) = vendor::tags(repository).await? {
        return found(repository, of_vendor(repository, pages, Some(wanted)).await);
    }
    let mut pages = repository.tags();
    let Some(first) = pages.next_page().await? else { return Ok(None) };
    if first.google {
        let mut contents = Contents::default();
        contents.take(first);
        contents.read_on(&mut pages).await?;
        return Ok(Some(contents.listing(repository)));
    }
    match vendor::tags_of_recognised(repository).await? {
        Some(pages) => found(repository, of_vendor(repository, pages, Some(wanted)).await),
        None => Ok(None),
    }
}

const ONE_BY_ONE: &str = "its tags are asked for one by one";

fn found(repository: &Repository, listing: Result<Listing>) -> Result<Option<Listing>> {
    match listing {
        Ok(listing) => Ok(Some(listing)),
        Err(error) if error.class() != Class::NotFound && vendor::is_unavailable(&error) => {
            vendor::tell(repository, &error, ONE_BY_ONE)?;
            Ok(None)
        }
        Err(error) if vendor::out_of_reach(repository, Some(&error), ONE_BY_ONE)?.is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads all pages, or as many as are needed to find these tags.
async fn of_vendor(repository: &Repository, mut pages: vendor::TagPages, wanted: Option<&[&str]>) -> Result<Listing> {
    let mut contents = Contents::default();
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
    Ok(contents.listing(repository))
}

/// Accumulates pages.
#[derive(Debug, Default)]
pub(super) struct Contents {
    tags: Vec<ListedTag>,
    pub(super) children: Vec<String>,
    manifests: usize,
    google: bool,
}

impl Contents {
    /// Adds all remaining pages.
    pub(super) async fn read_on(&mut self, pages: &mut TagPages) -> Result<()> {
        while let Some(page) = pages.next_page().await? {
            self.take(page);
        }
        Ok(())
    }

    /// Adds a page.
    pub(super) fn take(&mut self, page: TagPage) {
        self.google |= page.google;
        self.children.extend(page.children);
        self.manifests += page.manifests.len();
        let bare = |tag| ListedTag { tag, digest: None, created: None, media_type: None };
        self.tags.extend(page.tags.into_iter().map(bare));
        for (digest, manifest) in page.manifests {
            let digest: Option<Digest> = digest.parse().ok();
            let created = date(&manifest);
            let media_type = Some(manifest.media_type).filter(|kind| *kind != MediaType::Missing);
            self.tags.extend(manifest.tag.into_iter().map(|tag| ListedTag {
                tag,
                digest: digest.clone(),
                created,
                media_type: media_type.clone(),
            }));
        }
    }

    fn listing(mut self, repository: &Repository) -> Listing {
        self.children.sort_unstable();
        self.children.dedup();
        Listing {
            registry: repository.registry().clone(),
            repository: repository.name().clone(),
            tags: with_real_dates(each_once(self.tags)),
            children: self.children,
            manifests: self.manifests,
            google: self.google,
            undated: None,
            memory: repository.context().listing.clone(),
        }
    }
}

/// Sorts the tags and merges duplicates. A tag can be in the list of tags and at its manifest; one at two manifests was
/// moved during the listing, or the list is wrong: then it has no digest, and must be requested.
fn each_once(mut tags: Vec<ListedTag>) -> Vec<ListedTag> {
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
fn with_real_dates(mut tags: Vec<ListedTag>) -> Vec<ListedTag> {
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
        listed.created = listed.created.filter(|date| !is_constant && date.as_second() >= FIRST_IMAGES);
    }
    tags
}

/// Returns a manifest's date of push, else of build. Reproducible builds set 1970, which is no date.
fn date(manifest: &ListedManifest) -> Option<Timestamp> {
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
            google: true,
            tags: tags.iter().map(ToString::to_string).collect(),
            children: Vec::new(),
            manifests: manifests.iter().map(entry).collect(),
        }
    }

    fn tags(page: TagPage) -> Vec<ListedTag> {
        let mut contents = Contents::default();
        contents.take(page);
        each_once(contents.tags)
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
            with_real_dates(tags).iter().map(|listed| listed.created.is_some()).collect()
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
