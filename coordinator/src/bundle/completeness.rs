//! Checks before a bundle is loaded that every wanted image is complete: what the bundle lists is in it, and what it leaves
//! out is at the target.

use std::collections::{BTreeMap, HashSet};

use futures_util::StreamExt as _;
use futures_util::stream::iter;
use imgsync_bundle::{BundleImages, BundleIndex, BundleTarget};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, MediaType, RepositoryName, Tag};
use imgsync_registry::{Context, ManifestRef, Repository, TrafficCounters};

/// Maximum number of requests at the target at the same time.
const MAX_CONCURRENT_REQUESTS: usize = 16;
/// Maximum number of missing contents that are named.
const MAX_NAMED: usize = 1000;

/// Result of the check.
#[derive(Debug, Default)]
pub(crate) struct Completeness {
    /// What is missing in the bundle, and what at the target.
    pub(crate) missing: Vec<String>,
    /// Number of missing contents, also of those that are not named.
    pub(crate) count: u64,
    /// Blobs that another repository of the target has, by that repository.
    pub(crate) mountable: BTreeMap<RepositoryName, Vec<Digest>>,
    /// Number of requests to the target.
    pub(crate) requests: u64,
}

/// Something that the bundle leaves out.
enum LeftOut<'a> {
    Tag(&'a Tag, &'a Digest),
    Manifest(&'a Digest),
    Blob(&'a Digest),
}

impl Completeness {
    fn add(&mut self, missing: String) {
        self.count += 1;
        if self.missing.len() < MAX_NAMED {
            self.missing.push(missing);
        }
    }
}

/// Checks a bundle. Reads no content.
pub(crate) async fn check_completeness(
    images: &BundleImages,
    index: &BundleIndex,
    target: &BundleTarget,
    context: &Context,
) -> Result<Completeness> {
    let mut result = Completeness::default();
    let mut checked = HashSet::new();
    for repository in &index.repositories {
        for content in repository.manifests.iter().chain(&repository.blobs) {
            if checked.insert(&content.digest) {
                let blob = Descriptor::new(MediaType::Missing, content.digest.clone(), content.size);
                match images.layout().open_blob(&blob, 0).await {
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                        result.add(format!("{} for {} in the bundle", content.digest, repository.path));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
    let counters = TrafficCounters::new();
    let mut left_out = Vec::new();
    for entry in &index.repositories {
        let here = target.repository(&entry.path, context, &counters)?;
        let tags = entry.tags.iter().filter(|tag| !tag.is_carried);
        left_out.extend(tags.map(|tag| (here.clone(), LeftOut::Tag(&tag.tag, &tag.digest))));
        left_out.extend(entry.left_out_manifests.iter().map(|digest| (here.clone(), LeftOut::Manifest(digest))));
        for blob in &entry.left_out_blobs {
            let holder = match &blob.repository {
                Some(path) => {
                    result.mountable.entry(path.clone()).or_default().push(blob.digest.clone());
                    target.repository(path, context, &counters)?
                }
                None => here.clone(),
            };
            left_out.push((holder, LeftOut::Blob(&blob.digest)));
        }
    }
    let mut missing = iter(left_out)
        .map(|(repository, content)| find_missing(repository, content))
        .buffer_unordered(MAX_CONCURRENT_REQUESTS);
    while let Some(missing) = missing.next().await {
        if let Some(missing) = missing? {
            result.add(missing);
        }
    }
    drop(missing);
    result.missing.sort();
    result.requests = counters.snapshot().requests;
    Ok(result)
}

/// Returns what to call a content that the target lacks.
async fn find_missing(repository: Repository, content: LeftOut<'_>) -> Result<Option<String>> {
    let place = format!("{}/{}", repository.registry(), repository.name());
    let has_manifest = async |digest: &Digest| {
        Ok::<_, Error>(repository.head_manifest(&ManifestRef::Digest(digest.clone())).await?.is_some())
    };
    Ok(match content {
        LeftOut::Tag(tag, digest) => {
            let head = repository.head_manifest(&ManifestRef::Tag(tag.clone())).await?;
            let is_there = head.is_some_and(|head| head.digest == *digest) || has_manifest(digest).await?;
            (!is_there).then(|| format!("image {digest} for tag {tag} in {place}"))
        }
        LeftOut::Manifest(digest) => (!has_manifest(digest).await?).then(|| format!("manifest {digest} in {place}")),
        LeftOut::Blob(digest) => (!repository.head_blob(digest).await?).then(|| format!("blob {digest} in {place}")),
    })
}
