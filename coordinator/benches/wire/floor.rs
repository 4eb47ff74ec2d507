//! The floor client: sends the requests of imgsync, in the same order and as many at a time, by hyper alone. It has no
//! retries, no ledger, no limits and no report.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use http_body_util::Full;
use serde_json::Value;
use tokio::sync::{Notify, OnceCell, Semaphore};

use crate::registry::{FetchedManifest, FloorBody, FloorRegistry, HashedBody, read_verified};
use crate::work_list::{RepositoryWork, WorkList};

/// Slots from which as many tags again are compared as images are copied, as by imgsync.
const MIN_SLOTS_TO_COMPARE_AHEAD: usize = 4;
/// Repositories listed concurrently, as by imgsync.
const LISTINGS: usize = 20;
/// Children of an index copied concurrently, as by imgsync.
const CHILDREN: usize = 4;
/// Blobs of an image copied concurrently, as by imgsync.
const BLOBS: usize = 8;
/// Largest blob held in memory, as by imgsync.
const MAX_SMALL_BLOB_BYTES: u64 = 1 << 20;

/// Runs the process: reads the work from standard input.
pub(crate) fn main() {
    let work: WorkList = serde_json::from_reader(std::io::stdin()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ahead = if work.slots < MIN_SLOTS_TO_COMPARE_AHEAD { 0 } else { work.slots };
        let floor = Floor {
            source: FloorRegistry::new(&work.source),
            target: FloorRegistry::new(&work.target),
            compared: Arc::new(Semaphore::new(work.slots + ahead)),
            copied: Semaphore::new(work.slots),
            blobs: Mutex::default(),
            referrers_api: OnceCell::new(),
        };
        Arc::new(floor).run(work).await;
    });
}

struct Floor {
    source: FloorRegistry,
    target: FloorRegistry,
    /// Permits for tags that are compared or copied.
    compared: Arc<Semaphore>,
    /// Permits for images that are copied.
    copied: Semaphore,
    /// Blobs at the target. Each is sent once.
    blobs: Mutex<HashMap<BlobAtTarget, Arc<OnceCell<()>>>>,
    /// Whether the source has the referrers API.
    referrers_api: OnceCell<bool>,
}

/// A repository of the target and the digest of a blob.
type BlobAtTarget = (String, String);

impl Floor {
    async fn run(self: Arc<Self>, work: WorkList) {
        if work.catalog {
            let names = self.source.list("/v2/_catalog?n=1000", "repositories").await;
            assert!(work.repositories.iter().all(|repository| names.contains(&repository.source)));
        }
        let (listed, mut repositories) = tokio::sync::mpsc::channel(LISTINGS);
        let lister = Arc::clone(&self);
        let listings = tokio::spawn(async move {
            let mut lists = futures_util::stream::iter(work.repositories)
                .map(|repository| lister.list_tags(repository))
                .buffer_unordered(LISTINGS);
            while let Some(list) = lists.next().await {
                listed.send(list).await.unwrap();
            }
        });
        let mut images = tokio::task::JoinSet::new();
        while let Some((repository, tags)) = repositories.recv().await {
            let repository = Arc::new(repository);
            for tag in tags {
                let slot = Arc::clone(&self.compared).acquire_owned().await.unwrap();
                let (floor, repository) = (Arc::clone(&self), Arc::clone(&repository));
                images.spawn(async move {
                    floor.sync_tag(&repository, &tag).await;
                    drop(slot);
                });
                while let Some(image) = images.try_join_next() {
                    image.unwrap();
                }
            }
        }
        listings.await.unwrap();
        while let Some(image) = images.join_next().await {
            image.unwrap();
        }
    }

    async fn list_tags(&self, repository: RepositoryWork) -> (RepositoryWork, Vec<String>) {
        let tags = match repository.tags.is_empty() {
            true => self.source.list(&format!("/v2/{}/tags/list", repository.source), "tags").await,
            false => repository.tags.clone(),
        };
        (repository, tags)
    }

    async fn sync_tag(&self, repository: &RepositoryWork, tag: &str) {
        let known = repository.known.get(tag);
        let asks_target = known.is_none() || repository.spot_checked.contains(tag);
        let at_target = match asks_target {
            true => self.target.tag_digest(&repository.target, tag).await,
            false => known.cloned(),
        };
        if at_target.is_some() && self.source.tag_digest(&repository.source, tag).await == at_target {
            return;
        }
        let root = self.source.manifest(&repository.source, tag).await;
        let _slot = self.copied.acquire().await.unwrap();
        let copy = ImageCopy { floor: self, repository, blobs: Semaphore::new(BLOBS), first_child: Mutex::default() };
        copy.run(root, tag).await;
    }
}

struct ImageCopy<'a> {
    floor: &'a Floor,
    repository: &'a RepositoryWork,
    blobs: Semaphore,
    /// The child that was read to probe the target.
    first_child: Mutex<Option<FetchedManifest>>,
}

impl ImageCopy<'_> {
    async fn run(&self, root: FetchedManifest, tag: &str) {
        let json: Value = serde_json::from_slice(&root.bytes).unwrap();
        let children = digests(&json["manifests"]);
        // The config of the first image is offered first: if the target has it, it may have the whole image. All else
        // begins when the target has answered.
        let first = match children.first() {
            Some((first, _)) => {
                let child = self.floor.source.manifest(&self.repository.source, first).await;
                let json: Value = serde_json::from_slice(&child.bytes).unwrap();
                *self.first_child.lock().unwrap() = Some(child);
                json
            }
            None => json.clone(),
        };
        let answered = Notify::new();
        let config = async {
            let config = &first["config"];
            let (digest, size) = (config["digest"].as_str().unwrap(), config["size"].as_u64().unwrap());
            self.copy_blob(digest, size, Some(&answered)).await;
            answered.notify_one();
        };
        let copied = async {
            answered.notified().await;
            let children = futures_util::stream::iter(children.clone())
                .map(|(digest, _)| async move { self.copy_child(&digest).await })
                .buffer_unordered(CHILDREN)
                .collect::<()>();
            tokio::join!(children, self.copy_blobs(&json));
        };
        tokio::join!(config, copied, self.ask_referrers(&root.digest));
        futures_util::stream::iter(children)
            .map(|(digest, _)| async move { self.ask_referrers(&digest).await })
            .buffer_unordered(CHILDREN)
            .collect::<()>()
            .await;
        self.floor.target.put_manifest(&self.repository.target, tag, &root).await;
    }

    async fn copy_child(&self, digest: &str) {
        let read = self.first_child.lock().unwrap().take_if(|child| child.digest == digest);
        let child = match read {
            Some(child) => child,
            None => self.floor.source.manifest(&self.repository.source, digest).await,
        };
        self.copy_blobs(&serde_json::from_slice(&child.bytes).unwrap()).await;
        self.floor.target.put_manifest(&self.repository.target, digest, &child).await;
    }

    async fn copy_blobs(&self, manifest: &Value) {
        let mut blobs = digests(&manifest["layers"]);
        blobs.extend(
            manifest["config"]["digest"]
                .as_str()
                .map(|digest| (digest.to_owned(), manifest["config"]["size"].as_u64().unwrap())),
        );
        futures_util::stream::iter(blobs)
            .map(|(digest, size)| async move { self.copy_blob(&digest, size, None).await })
            .buffer_unordered(2 * BLOBS)
            .collect::<()>()
            .await;
    }

    /// Copies a blob once per target repository. Notifies when its upload has started.
    async fn copy_blob(&self, digest: &str, size: u64, started: Option<&Notify>) {
        let RepositoryWork { source, target, .. } = self.repository;
        let key = (target.clone(), digest.to_owned());
        let once = Arc::clone(self.floor.blobs.lock().unwrap().entry(key).or_default());
        let copy = async {
            let _permit = self.blobs.acquire().await.unwrap();
            let Some(location) = self.floor.target.start_upload(target, digest).await else { return };
            if let Some(started) = started {
                started.notify_one();
            }
            let body = self.floor.source.open_blob(source, digest).await;
            let body = match size <= MAX_SMALL_BLOB_BYTES {
                true => FloorBody::Whole(Full::new(read_verified(body, digest).await)),
                false => FloorBody::Relayed(HashedBody::new(body, digest)),
            };
            self.floor.target.finish_upload(&location, digest, body).await;
        };
        once.get_or_init(|| copy).await;
    }

    /// Asks for referrers, until a registry without the API is known to be one.
    async fn ask_referrers(&self, digest: &str) {
        let ask = || self.floor.source.ask_referrers(&self.repository.source, digest);
        let _ = self.floor.referrers_api.get_or_init(ask).await;
    }
}

/// Returns digest and size of each descriptor of a list.
fn digests(list: &Value) -> Vec<(String, u64)> {
    let descriptors = list.as_array().into_iter().flatten();
    let of = |descriptor: &Value| Some((descriptor["digest"].as_str()?.to_owned(), descriptor["size"].as_u64()?));
    descriptors.filter_map(of).collect()
}
