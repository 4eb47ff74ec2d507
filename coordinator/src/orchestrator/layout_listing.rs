//! Lists the repositories of an image layout or archive, and names the images that rules cannot select.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use imgsync_bundle::{BUNDLE_REGISTRY, BundleIndex};
use imgsync_layout::{ArchiveRef, IndexEntry, Layout, QualifiedRepositoryName};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::{Digest, DigestTag, ParseReferenceError, RegistryName};
use imgsync_registry::{ListedTag, ManifestRef};

use crate::discovery::{DiscoveryFailure, DiscoveryItem, RepositoryListing};

/// Maximum nesting of indexes, and of referrers.
const MAX_DEPTH: usize = 16;
/// Maximum number of characters of a name in messages.
const MAX_NAME_CHARS: usize = 300;

/// Images on this machine that a rule reads as a whole.
#[derive(Debug)]
pub(super) enum LocalImages {
    /// In a folder.
    Layout(PathBuf),
    /// In an archive.
    Archive(ArchiveRef),
    /// In an archive that is open.
    Opened(Layout),
}

impl fmt::Display for LocalImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LocalImages::Layout(folder) => write!(f, "oci:{}", folder.display()),
            LocalImages::Archive(archive) => archive.fmt(f),
            LocalImages::Opened(layout) => write!(f, "{}:{}", layout.scheme(), layout.dir().display()),
        }
    }
}

/// Lists the repositories of a layout or archive. Images without a full name, and those that share a name, are reported
/// as unlisted.
pub(super) async fn list_layout(place: &LocalImages) -> Result<Vec<DiscoveryItem>> {
    let layout = match place {
        LocalImages::Layout(folder) if folder.is_file() => return list_bundle(folder),
        LocalImages::Layout(folder) => Layout::open(folder).await?,
        LocalImages::Archive(archive) => Layout::open_archive_file(archive).await?,
        LocalImages::Opened(layout) => layout.clone(),
    };
    let (mut named, mut nameless) =
        (BTreeMap::<QualifiedRepositoryName, BTreeMap<String, Vec<IndexEntry>>>::new(), Vec::new());
    for entry in layout.entries().await? {
        match (entry.repository.clone(), entry.tag.clone()) {
            (Some(name), Some(tag)) => {
                named.entry(name).or_default().entry(tag.to_string()).or_default().push(entry);
            }
            _ => nameless.push(entry),
        }
    }
    let left_out = |image: String, detail: String, hint: String| {
        let error = Error::new(ErrorKind::Invalid, format!("listing {place}"), detail).with_hint(hint);
        DiscoveryItem::Failed(DiscoveryFailure { repository: format!("{place}{image}"), error })
    };
    let mut found = Vec::new();
    if !nameless.is_empty() {
        let tops = named.values().flat_map(BTreeMap::values).flatten();
        let along =
            find_dependents(&layout, tops.map(|entry| entry.descriptor.digest.clone()).collect(), &nameless).await;
        for entry in nameless.iter().filter(|entry| !along.contains(&entry.descriptor.digest)) {
            found.push(match (&entry.tag, &entry.name) {
                (Some(tag), _) => {
                    let detail = format!("`{tag}` has no full image name to derive a target name from");
                    left_out(format!(":{tag}"), detail, format!("copy it with `imgsync sync {place}:{tag} TARGET`"))
                }
                (None, name) => {
                    let digest = &entry.descriptor.digest;
                    let detail = match name {
                        Some(name) => {
                            format!(
                                "{digest} is named `{}`, which is not a reference with a tag",
                                sanitize_within(name, MAX_NAME_CHARS)
                            )
                        }
                        None => format!("{digest} has no name, and rules select by tag"),
                    };
                    let hint = format!("copy it with `imgsync sync {place}@{digest} TARGET:TAG`");
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
                let detail = format!("two images are named {name}:{tag}: {one} and {two}");
                let hint = format!("recreate it, or copy one with `imgsync sync {place}@sha256:… TARGET:TAG`");
                found.push(left_out(format!(":{name}:{tag}"), detail, hint));
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
            let (children, is_tree, missing_dates_reason, memory) = (Vec::new(), false, None, None);
            found.push(DiscoveryItem::Listed(RepositoryListing {
                registry,
                repository,
                tags: listed,
                children,
                manifests,
                is_tree,
                is_named: false,
                missing_dates_reason,
                memory,
            }));
        }
    }
    Ok(found)
}

/// Lists the repositories of a bundle from the file with its index.
fn list_bundle(file: &Path) -> Result<Vec<DiscoveryItem>> {
    let operation = format!("listing {}", file.display());
    let bytes = std::fs::read(file)
        .map_err(|error| Error::new(ErrorKind::Local, &operation, error.to_string()).with_source(error))?;
    let index = BundleIndex::decode(&bytes, &file.display().to_string())?;
    let registry: RegistryName = BUNDLE_REGISTRY
        .parse()
        .map_err(|error: ParseReferenceError| Error::new(ErrorKind::Invalid, &operation, error.to_string()))?;
    let repositories = index.repositories.into_iter().map(|entry| {
        let mut tags: Vec<ListedTag> = entry
            .tags
            .iter()
            .map(|tag| ListedTag {
                tag: tag.tag.to_string(),
                digest: Some(tag.digest.clone()),
                created: None,
                media_type: None,
            })
            .collect();
        tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        DiscoveryItem::Listed(RepositoryListing {
            registry: registry.clone(),
            repository: entry.path,
            manifests: tags.len(),
            tags,
            children: Vec::new(),
            is_tree: false,
            is_named: false,
            missing_dates_reason: None,
            memory: None,
        })
    });
    Ok(repositories.collect())
}

/// Returns what is copied with these images: the images, what their indexes list, and the unnamed images that refer to
/// these.
async fn find_dependents(layout: &Layout, tops: HashSet<Digest>, nameless: &[IndexEntry]) -> HashSet<Digest> {
    let images = layout.repository(None);
    let read = async |digest: &Digest| images.get_manifest(&ManifestRef::Digest(digest.clone())).await.ok();
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
            let named = entry.tag.as_ref().and_then(|tag| DigestTag::parse_tag(tag.as_str())).map(|(stem, _)| stem);
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
