//! Takes an inventory of a registry: tags, manifests, referrers and blobs, by reading manifests only.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::iter;
use imgsync_bundle::{Inventory, InventoryHeader, InventoryRepository};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, DigestTag, RepositoryName, Tag};
use imgsync_registry::{Access, Client, Context, ManifestRef, Repository, TrafficCounters};

use crate::discovery::{DiscoveryItem, DiscoveryOptions, RepositoryListing, RepositoryOrder, discover};

/// Maximum number of tags of a repository read at the same time.
const MAX_CONCURRENT_TAGS: usize = 16;
/// Maximum number of manifests of one image.
const MAX_MANIFESTS: usize = 10_000;

/// An inventory, and what could not be listed.
pub(crate) struct TakenInventory {
    pub(crate) inventory: Inventory,
    pub(crate) unlisted: Vec<Error>,
}

/// Content of a tag.
struct TagContent {
    tag: Tag,
    digest: Digest,
    manifests: BTreeSet<Digest>,
    referrers: BTreeSet<(Digest, Digest)>,
    blobs: BTreeSet<Digest>,
}

/// Takes the inventory of all repositories that the patterns match. Names are those below `prefix`.
pub(crate) async fn take_inventory(
    client: &Client,
    patterns: &[imgsync_model::select::RepositoryPattern],
    prefix: Option<&RepositoryName>,
    header: InventoryHeader,
    query_limit: usize,
    context: &Context,
) -> Result<TakenInventory> {
    let counters = TrafficCounters::new();
    let options = DiscoveryOptions { query_limit, order: RepositoryOrder::ByName };
    let mut found: BTreeMap<RepositoryName, InventoryRepository> = BTreeMap::new();
    let mut unlisted = Vec::new();
    let mut known_blobs: HashSet<Digest> = HashSet::new();
    for pattern in patterns {
        let mut discovery = discover(client, pattern, options, context, &counters);
        loop {
            let item = match discovery.next().await {
                Ok(Some(item)) => item,
                Ok(None) => break,
                // What is not there yet has nothing; the count of repositories says so.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    context.warn(format!("{pattern}: there is no repository yet"));
                    break;
                }
                Err(error) => return Err(error),
            };
            let listing = match item {
                DiscoveryItem::Listed(listing) => listing,
                // A repository that is not there yet has nothing.
                DiscoveryItem::Failed(failed) if failed.error.kind() == ErrorKind::NotFound => continue,
                DiscoveryItem::Failed(failed) => {
                    unlisted.push(failed.error);
                    continue;
                }
            };
            let Some(path) = relative_path(&listing.repository, prefix) else { continue };
            if found.contains_key(&path) {
                continue;
            }
            let mut entry = InventoryRepository::new(path.clone());
            for content in read_repository(client, &listing, context, &counters).await {
                match content {
                    Ok(Some(content)) => {
                        entry.tags.push((content.tag, content.digest));
                        entry.manifests.extend(content.manifests);
                        entry.referrers.extend(content.referrers);
                        entry.blobs.extend(content.blobs.into_iter().filter(|blob| !known_blobs.contains(blob)));
                    }
                    Ok(None) => {}
                    Err(error) if error.is_cancelled() => return Err(error),
                    Err(error) => unlisted.push(error),
                }
            }
            known_blobs.extend(entry.blobs.iter().cloned());
            entry.tags.sort();
            entry.referrers.sort();
            entry.referrers.dedup();
            let named: HashSet<&Digest> =
                entry.tags.iter().map(|(_, digest)| digest).chain(entry.referrers.iter().map(|(_, it)| it)).collect();
            entry.manifests.retain(|digest| !named.contains(digest));
            found.insert(path, entry);
        }
    }
    let inventory = Inventory { header, repositories: found.into_values().collect() };
    Ok(TakenInventory { inventory, unlisted })
}

/// Returns the path of a repository below the prefix.
fn relative_path(repository: &RepositoryName, prefix: Option<&RepositoryName>) -> Option<RepositoryName> {
    match prefix {
        None => Some(repository.clone()),
        Some(prefix) => repository.as_str().strip_prefix(prefix.as_str())?.strip_prefix('/')?.parse().ok(),
    }
}

async fn read_repository(
    client: &Client,
    listing: &RepositoryListing,
    context: &Context,
    counters: &Arc<TrafficCounters>,
) -> Vec<Result<Option<TagContent>>> {
    // With the rights of a load: a target may not show its content to others.
    let opened = client.repository(&listing.registry, &listing.repository, Access::Pull, context, counters);
    let repository = match opened {
        Ok(repository) => repository,
        Err(error) => return vec![Err(error)],
    };
    let tags = listing.tags.iter().filter_map(|listed| listed.tag.parse::<Tag>().ok());
    iter(tags).map(|tag| read_tag(&repository, tag)).buffer_unordered(MAX_CONCURRENT_TAGS).collect().await
}

/// Reads the manifests of a tag, and what refers to them; `None` if the tag is gone.
async fn read_tag(repository: &Repository, tag: Tag) -> Result<Option<TagContent>> {
    let root = match repository.get_manifest(&ManifestRef::Tag(tag.clone())).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        root => root?,
    };
    let mut content = TagContent {
        digest: root.digest().clone(),
        manifests: BTreeSet::new(),
        referrers: BTreeSet::new(),
        blobs: BTreeSet::new(),
        tag,
    };
    // Digest tags refer to others, and nothing refers to them.
    let has_referrers = DigestTag::parse_tag(content.tag.as_str()).is_none();
    let mut open = vec![root];
    while let Some(manifest) = open.pop() {
        content.blobs.extend(manifest.blobs().into_iter().map(|blob| blob.digest.clone()));
        if !content.manifests.insert(manifest.digest().clone()) || content.manifests.len() > MAX_MANIFESTS {
            continue;
        }
        let mut next: Vec<Digest> = Vec::new();
        for child in manifest.children() {
            match child.media_type.names_a_manifest() {
                true => next.push(child.digest.clone()),
                false => _ = content.blobs.insert(child.digest.clone()),
            }
        }
        if has_referrers {
            for referrer in repository.list_referrers(manifest.digest()).await? {
                content.referrers.insert((manifest.digest().clone(), referrer.digest.clone()));
                next.push(referrer.digest);
            }
        }
        for digest in next.into_iter().filter(|digest| !content.manifests.contains(digest)).collect::<Vec<_>>() {
            match repository.get_manifest(&ManifestRef::Digest(digest)).await {
                Ok(manifest) => open.push(manifest),
                // A sparse index, or a referrer that was removed: it is not there.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    // A referrer that is listed but gone is not there either.
    let TagContent { manifests, referrers, .. } = &mut content;
    referrers.retain(|(_, referrer)| manifests.contains(referrer));
    Ok(Some(content))
}
