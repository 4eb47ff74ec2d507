//! Listings of rules that name each image: by digest, or in files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use imgsync_config::DigestsSource;
use imgsync_image_names::{Certainty, ScanProblem};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::{Digest, Reference, RegistryName, RepositoryName, Tag};
use imgsync_registry::{Context, ListedTag};

use crate::discovery::{DiscoveryFailure, DiscoveryItem, RepositoryListing};
use crate::images::ImageSearch;

/// More names that cannot be decided are counted instead of reported.
const MAX_REPORTED_FAILURES: usize = 200;
/// More parts whose images are elsewhere are counted instead of named.
const MAX_NAMED_PARTS: usize = 10;

/// Lists the images of a repository that a rule names by digest.
pub(super) fn list_digests(source: &DigestsSource) -> DiscoveryItem {
    let tags = source.digests.iter().filter_map(pinned).collect();
    DiscoveryItem::Listed(RepositoryListing::from_named_tags(source.registry.clone(), source.repository.clone(), tags))
}

/// Reads files and folders, and lists the images that they name for sure. What cannot be decided or read is a failure of
/// its own.
pub(super) async fn list_images(paths: Vec<PathBuf>, context: &Context) -> Result<Vec<DiscoveryItem>> {
    let label = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let read = move || {
        let mut search = ImageSearch::default();
        paths.iter().try_for_each(|path| search.add_path(path)).map(|()| search)
    };
    let operation = format!("reading the images of {label}");
    let search = tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Error::new(ErrorKind::Local, &operation, error.to_string()))??;
    warn_of_other_images(&search, &label, context);
    let mut repositories: BTreeMap<(RegistryName, RepositoryName), Vec<ListedTag>> = BTreeMap::new();
    let mut failures = Failures { items: Vec::new(), omitted: search.omitted };
    for (image, listed) in search.images.iter(Certainty::Sure) {
        match named_tag(image) {
            Some(tag) => {
                repositories.entry((image.registry.clone(), image.repository.clone())).or_default().push(tag);
            }
            None => {
                let place = listed.places.first().map(|(_, place)| place.to_string()).unwrap_or_default();
                failures.add_name(image.to_string(), format!("no tag has room for a sha512 ({place})"));
            }
        }
    }
    for name in search.undecided(Certainty::Sure) {
        failures.add_name(format!("`{}` at {}", name.text, name.place), name.reason.clone());
    }
    for ScanProblem { reason, place } in &search.problems {
        failures.add(place.to_string(), Error::new(ErrorKind::Invalid, format!("reading {place}"), reason.clone()));
    }
    let mut items = failures.finish(&label);
    if repositories.is_empty() && items.is_empty() {
        let detail = format!("there are none in {}", pluralize(search.files as u64, "file", "files"));
        let hint = format!("`imgsync images {}` shows what is found", label.replace(", ", " "));
        return Err(Error::new(ErrorKind::NotFound, operation, detail).with_hint(hint));
    }
    items.extend(repositories.into_iter().map(|((registry, repository), tags)| {
        DiscoveryItem::Listed(RepositoryListing::from_named_tags(registry, repository, tags))
    }));
    Ok(items)
}

/// Warns of strings that may be images, and of images that are in charts, catalogs or other files.
fn warn_of_other_images(search: &ImageSearch, label: &str, context: &Context) {
    let perhaps = search.images.count(Certainty::Perhaps) + search.undecided(Certainty::Perhaps).count();
    if perhaps > 0 {
        let strings = pluralize(perhaps as u64, "string", "strings");
        context.warn(format!(
            "{label}: {strings} in arguments, variables or ConfigMaps may name images, and are not copied; `imgsync images` \
             lists them"
        ));
    }
    for ScanProblem { reason, place } in search.elsewhere.iter().take(MAX_NAMED_PARTS) {
        context.warn(format!("{place}: {reason}"));
    }
    let more = search.elsewhere.len().saturating_sub(MAX_NAMED_PARTS);
    if more > 0 {
        context.warn(format!("{label}: the images of {} more parts are elsewhere", group_digits(more as u64)));
    }
}

/// Names that cannot be copied and files that cannot be read: the first ones, and the number of the others.
struct Failures {
    items: Vec<DiscoveryItem>,
    omitted: usize,
}

impl Failures {
    /// Adds a name that cannot be copied.
    fn add_name(&mut self, name: String, reason: String) {
        let error = Error::new(ErrorKind::Invalid, format!("copying {name}"), reason)
            .with_hint("write the name of the image, or render the template first");
        self.add(name, error);
    }

    fn add(&mut self, name: String, error: Error) {
        if self.items.len() >= MAX_REPORTED_FAILURES {
            self.omitted += 1;
            return;
        }
        self.items.push(DiscoveryItem::Failed(DiscoveryFailure { repository: name, error }));
    }

    fn finish(mut self, label: &str) -> Vec<DiscoveryItem> {
        if self.omitted > 0 {
            let count = pluralize(self.omitted as u64, "other name or file", "other names and files");
            let detail = format!("{count} cannot be decided or read");
            let error = Error::new(ErrorKind::Invalid, format!("copying the images of {label}"), detail);
            self.items.push(DiscoveryItem::Failed(DiscoveryFailure { repository: label.to_owned(), error }));
        }
        self.items
    }
}

/// Returns an image as a listed tag: the pinned tag for a digest. `None` if the digest is too long for a tag.
fn named_tag(image: &Reference) -> Option<ListedTag> {
    match &image.digest {
        Some(digest) => pinned(digest),
        None => {
            let tag = image.tag.clone().unwrap_or_else(Tag::latest);
            Some(ListedTag { tag: tag.to_string(), digest: None, created: None, media_type: None })
        }
    }
}

fn pinned(digest: &Digest) -> Option<ListedTag> {
    let tag = digest.pinned_tag()?.to_string();
    Some(ListedTag { tag, digest: Some(digest.clone()), created: None, media_type: None })
}
