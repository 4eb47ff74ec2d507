//! Lists the repositories of an image layout, and names the images that rules cannot select.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Companion, Digest};
use imgsync_common::layout::{Entry, FullName, Layout};
use imgsync_common::printable::printable_within;
use imgsync_common::registry::ManifestRef;

use crate::enumerate::{Found, ListedTag, Listing, Unlisted};

/// Maximum nesting of indexes, and of referrers.
const MAX_DEPTH: usize = 16;
/// Maximum number of characters of a name in messages.
const LONGEST_NAME: usize = 300;

/// Lists the repositories of a layout. Images without a full name, and those that share a name, are reported as
/// unlisted.
pub(super) async fn of_layout(folder: &Path) -> Result<Vec<Found>> {
    let layout = Layout::open(folder).await?;
    let (mut named, mut nameless) = (BTreeMap::<FullName, BTreeMap<String, Vec<Entry>>>::new(), Vec::new());
    for entry in layout.entries().await? {
        match (entry.repository.clone(), entry.tag.clone()) {
            (Some(name), Some(tag)) => {
                named.entry(name).or_default().entry(tag.to_string()).or_default().push(entry);
            }
            _ => nameless.push(entry),
        }
    }
    let left_out = |image: String, detail: String, hint: String| {
        let error = Error::new(Class::Invalid, format!("listing oci:{}", folder.display()), detail).hint(hint);
        Found::Unlisted(Unlisted { repository: format!("oci:{}{image}", folder.display()), error })
    };
    let mut found = Vec::new();
    if !nameless.is_empty() {
        let tops = named.values().flat_map(BTreeMap::values).flatten();
        let along = comes_along(&layout, tops.map(|entry| entry.descriptor.digest.clone()).collect(), &nameless).await;
        for entry in nameless.iter().filter(|entry| !along.contains(&entry.descriptor.digest)) {
            found.push(match (&entry.tag, &entry.name) {
                (Some(tag), _) => {
                    let detail = format!("`{tag}` has no full name, so that no name at the target follows from it");
                    left_out(
                        format!(":{tag}"),
                        detail,
                        format!("copy it with `imgsync sync oci:{}:{tag} TARGET`", folder.display()),
                    )
                }
                (None, name) => {
                    let digest = &entry.descriptor.digest;
                    let detail = match name {
                        Some(name) => {
                            format!(
                                "{digest} is called `{}`, which is no name with a tag",
                                printable_within(name, LONGEST_NAME)
                            )
                        }
                        None => format!("{digest} has no name, and rules choose by tags"),
                    };
                    let hint = format!("copy it with `imgsync sync oci:{}@{digest} TARGET:TAG`", folder.display());
                    left_out(format!("@{digest}"), detail, hint)
                }
            });
        }
    }
    for (name, tags) in named {
        let mut listed = Vec::with_capacity(tags.len());
        for (tag, entries) in tags {
            let Some(first) = entries.first() else { continue };
            if let Some(other) = entries.iter().find(|entry| entry.descriptor.digest != first.descriptor.digest) {
                let (one, two) = (&first.descriptor.digest, &other.descriptor.digest);
                let detail = format!("two images are called {name}:{tag}: {one} and {two}");
                let hint = "make the layout again, or copy one with `imgsync sync oci:DIR@sha256:… TARGET:TAG`";
                found.push(left_out(format!(":{name}:{tag}"), detail, hint.to_owned()));
                continue;
            }
            listed.push(ListedTag {
                tag,
                digest: Some(first.descriptor.digest.clone()),
                created: None,
                media_type: Some(first.descriptor.media_type.clone()),
            });
        }
        if !listed.is_empty() {
            let manifests = listed.len();
            let (registry, repository) = (name.registry, name.repository);
            let (children, google, undated, memory) = (Vec::new(), false, None, None);
            found.push(Found::Listed(Listing {
                registry,
                repository,
                tags: listed,
                children,
                manifests,
                google,
                undated,
                memory,
            }));
        }
    }
    Ok(found)
}

/// Returns what is copied with these images: the images, what their indexes list, and the unnamed images that refer to
/// these.
async fn comes_along(layout: &Layout, tops: HashSet<Digest>, nameless: &[Entry]) -> HashSet<Digest> {
    let images = layout.repository(None);
    let read = async |digest: &Digest| images.manifest_get(&ManifestRef::Digest(digest.clone())).await.ok();
    let mut open: Vec<(Digest, usize)> = tops.iter().map(|digest| (digest.clone(), 0)).collect();
    let mut along = tops;
    while let Some((digest, depth)) = open.pop() {
        // An unreadable manifest is an error when it is copied.
        let Some(manifest) = read(&digest).await else { continue };
        for child in manifest.children() {
            if along.insert(child.digest.clone()) && depth < MAX_DEPTH {
                open.push((child.digest.clone(), depth + 1));
            }
        }
    }
    for _ in 0..MAX_DEPTH {
        let mut more = false;
        for entry in nameless.iter().filter(|entry| !along.contains(&entry.descriptor.digest)).collect::<Vec<_>>() {
            let digest = &entry.descriptor.digest;
            // Cosign names the image in the tag.
            let named = entry.tag.as_ref().and_then(|tag| Companion::read(tag.as_str())).map(|(stem, _)| stem);
            let belongs = match named {
                Some(stem) => along.iter().any(|known| known.fallback_tag() == *stem),
                None => match read(digest).await.and_then(|manifest| manifest.parsed().subject.clone()) {
                    Some(subject) => along.contains(&subject.digest),
                    None => false,
                },
            };
            if belongs {
                along.insert(digest.clone());
                more = true;
            }
        }
        if !more {
            break;
        }
    }
    along
}
