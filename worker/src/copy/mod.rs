//! Copies one image from a reference to a reference: bytes unchanged, children before parents, the tag last.

mod archive_collector;
mod archive_writing;
mod backup;
mod blob_subscription;
mod bundle;
mod chunk_size;
mod deadline;
mod endpoints;
mod fan_out;
mod image_location;
mod index_entry;
mod inspect;
mod platform_filter;
mod policy;
mod preview;
mod proof;
mod referrers;
mod request;
mod resolve;
mod resumable_body;
mod source_stream;
mod tag_moves;
mod target_cache;
mod to_layout;
mod transfer;
mod verify;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use imgsync_layout::{HashPolicy, VerifiedFileCache};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::RetryBudget;
use imgsync_oci::{Digest, RegistryName, Tag};
use imgsync_registry::event::BlobOutcome;
use imgsync_registry::wait::WaitClock;
use imgsync_registry::{Client, Context, ManifestRef, TrafficSnapshot};
use imgsync_store::{BlobIndex, HashedFile, Leases};
use tokio::sync::Semaphore;

pub use archive_collector::ArchiveCollector;
pub use bundle::BundleSide;
pub(crate) use deadline::MIN_COPY_RATE;
pub use fan_out::FanOutMember;
pub use image_location::ImageLocation;
pub use inspect::{InspectedBlob, ManifestTree, inspect};
pub(crate) use policy::{MAX_SIGNATURE_BYTES, MAX_SIGNATURES};
pub use preview::CopyPreview;
pub use request::{CopyRequest, Overwrite, PlatformSelection, ReferrerRefresh, TargetTagState};
pub(crate) use transfer::CONSISTENCY_WAIT;
pub use verify::{Finding, FindingKind, RequiredReferrers, VerifyReport, VerifySettings};

use self::backup::BackupGate;
use self::endpoints::Endpoints;
use self::fan_out::FanOut;
use self::platform_filter::{SelectedImage, select_platforms};
use self::resolve::{RootStatus, compare_endpoints, refresh_target};
pub(crate) use self::tag_moves::MAX_TAG_MOVES;
use self::tag_moves::TagMoves;
use self::target_cache::TargetCache;
use self::transfer::ImageTransfer;
use crate::file_limit;

/// Age from which a comparison is checked again at the target, before the image is transferred.
const MAX_COMPARISON_AGE: Duration = Duration::from_secs(30);
/// Time to cancel uploads at the target after an image is aborted.
pub const CLEANUP_TIMEOUT: Duration = Duration::from_millis(800);

/// Retry budget of a default context. More than half as many blobs in flight get two retries each.
const DEFAULT_RETRY_BUDGET: u32 = 20;

/// Concurrency and time limits of a copy.
#[derive(Debug, Clone, Copy)]
pub struct CopyLimits {
    /// Maximum blobs of one image in flight.
    pub concurrent_blobs: usize,
    /// Time limit for waiting on registries; extended while bytes flow.
    pub timeout: Duration,
    /// Makes `timeout` a hard limit, even while bytes flow.
    pub timeout_is_exact: bool,
}

impl Default for CopyLimits {
    fn default() -> CopyLimits {
        CopyLimits { concurrent_blobs: 8, timeout: Duration::from_secs(600), timeout_is_exact: false }
    }
}

/// Steps that run before a transfer and before a tag is put. An error leaves the tag unchanged.
pub trait TagGate: Send + Sync {
    /// Runs when source and target are known to differ, or referrers are to be copied, before anything else is read or
    /// written. May run several times.
    fn before_transfer(&self) -> BoxFuture<'_, Result<()>>;

    /// Runs once, when everything the tag needs is at the target. `source_traffic` is the digest to which the source tag was
    /// resolved.
    fn before_tag<'a>(&'a self, source: &'a Digest) -> BoxFuture<'a, Result<()>>;

    /// Runs after [`TagGate::before_tag`], directly before each request that puts the tag.
    fn before_put(&self) -> BoxFuture<'_, Result<()>>;
}

/// Gate that allows every tag.
#[derive(Debug)]
pub struct NoGate;

impl TagGate for NoGate {
    fn before_transfer(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn before_tag<'a>(&'a self, _source: &'a Digest) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn before_put(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Outcome of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyOutcome {
    /// The target was changed.
    Copied,
    /// The target was already up to date.
    Unchanged,
}

/// Digests of source and target, as observed by a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedDigests {
    /// Digest of the source tag.
    pub source: Digest,
    /// Digest of the target tag; differs from the source when platforms are selected.
    pub target: Digest,
}

/// Counts, or bytes, of blobs by how they got to the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct TransferStats {
    /// Transferred through this process.
    pub copied: u64,
    /// Mounted from another repository of the target.
    pub mounted: u64,
    /// Already present.
    pub reused: u64,
}

/// Report of a finished copy.
#[derive(Debug, Clone)]
pub struct CopyReport {
    /// Whether the target was changed.
    pub outcome: CopyOutcome,
    /// Digest of the target.
    pub digest: Digest,
    /// Digest of the source; differs from `digest` when platforms are selected.
    pub source_digest: Digest,
    /// Digest from a HEAD of the source tag, if it differs from the content.
    pub source_head_digest: Option<Digest>,
    /// Bytes of blobs.
    pub bytes: TransferStats,
    /// Number of blobs.
    pub blobs: TransferStats,
    /// Number of manifests pushed.
    pub manifests: u64,
    /// Number of referrers pushed: signatures, SBOMs, attestations.
    pub referrers: u64,
    /// Whether the source was asked for the referrers of the image and of all its children.
    pub referrers_checked: bool,
    /// Whether the target tag was put; false if only referrers were copied.
    pub tag_put: bool,
    /// Digest tags of the image, with their digests at the source.
    pub digest_tags: Vec<(Tag, Digest)>,
    /// Requests and bytes of the source.
    pub source_traffic: TrafficSnapshot,
    /// Requests and bytes of the target.
    pub target_traffic: TrafficSnapshot,
    /// Duration of the copy.
    pub elapsed: Duration,
}

impl CopyReport {
    /// Creates the report of a copy that wrote and counted nothing.
    fn unchanged(digest: Digest, source_digest: Digest) -> CopyReport {
        CopyReport {
            outcome: CopyOutcome::Unchanged,
            digest,
            source_digest,
            source_head_digest: None,
            bytes: TransferStats::default(),
            blobs: TransferStats::default(),
            manifests: 0,
            referrers: 0,
            referrers_checked: false,
            tag_put: false,
            digest_tags: Vec::new(),
            source_traffic: TrafficSnapshot::default(),
            target_traffic: TrafficSnapshot::default(),
            elapsed: Duration::ZERO,
        }
    }
}

/// Copies images. Use one per process: what it learns about the targets saves requests and bytes.
#[derive(Debug, Clone)]
pub struct Copier {
    client: Client,
    limits: CopyLimits,
    target_cache: Arc<TargetCache>,
    fan_out: Arc<FanOut>,
    /// Number of images being copied; they share the bandwidth.
    images_in_flight: Arc<AtomicU64>,
    /// Permits for blobs of all images, because each blob holds open files.
    blob_permits: Arc<Semaphore>,
    hashing: HashPolicy,
    /// A bundle that is made or loaded.
    bundle: Option<BundleSide>,
}

/// Verified layout files, as recorded in the store. If the store fails, files are hashed again.
struct StoredHashes(Arc<dyn BlobIndex>);

#[async_trait]
impl VerifiedFileCache for StoredHashes {
    async fn is_verified(&self, folder: &str, digest: &Digest, version: &str) -> bool {
        self.0.is_hashed_file(&HashedFile::new(folder, digest, version)).await.unwrap_or_default()
    }

    async fn record_verified(&self, folder: &str, digest: &Digest, version: &str) {
        let _ = self.0.record_hashed_file(&HashedFile::new(folder, digest, version)).await;
    }
}

/// Counters of one copy.
#[derive(Debug, Default)]
pub(crate) struct CopyCounters {
    bytes: [AtomicU64; 3],
    blobs: [AtomicU64; 3],
    manifests: AtomicU64,
    referrers: AtomicU64,
    digest_tags: Mutex<Vec<(Tag, Digest)>>,
}

impl CopyCounters {
    fn record_blob(&self, size: u64, arrival: BlobOutcome) {
        let slot = arrival as usize;
        self.bytes[slot].fetch_add(size, Ordering::Relaxed);
        self.blobs[slot].fetch_add(1, Ordering::Relaxed);
    }

    fn snapshot(counters: &[AtomicU64; 3]) -> TransferStats {
        let [copied, mounted, reused] = [0, 1, 2].map(|slot| counters[slot].load(Ordering::Relaxed));
        TransferStats { copied, mounted, reused }
    }
}

impl Copier {
    /// Creates a copier with an empty cache.
    pub fn new(client: Client, limits: CopyLimits) -> Copier {
        let blob_permits = Arc::new(Semaphore::new(file_limit::max_concurrent_blobs()));
        let (target_cache, fan_out, images_in_flight, bundle) = Default::default();
        Copier {
            client,
            limits,
            target_cache,
            fan_out,
            images_in_flight,
            blob_permits,
            hashing: HashPolicy::default(),
            bundle,
        }
    }

    /// Shares the blob locations of the targets with other processes.
    pub fn with_index(self, index: Arc<dyn BlobIndex>) -> Copier {
        let hashing = HashPolicy::Shared(Arc::new(StoredHashes(index.clone())));
        Copier { target_cache: Arc::new(TargetCache::with_index(index)), hashing, ..self }
    }

    /// Lets a bundle take part in the copies.
    pub fn with_bundle(self, bundle: BundleSide) -> Copier {
        Copier { bundle: Some(bundle), ..self }
    }

    /// Returns when the files of a target layout are hashed. A forced copy always hashes them.
    fn hashing_for(&self, request: &CopyRequest) -> HashPolicy {
        if request.force { HashPolicy::Always } else { self.hashing.clone() }
    }

    /// Coordinates with other workers by leases under `name`, which must be unique to this process: one worker uploads
    /// a large blob, the others mount it.
    pub fn with_leases(self, index: Arc<dyn BlobIndex>, leases: Arc<dyn Leases>, name: &str) -> Copier {
        Copier { target_cache: Arc::new(TargetCache::with_leases(index, leases, name)), ..self }
    }

    /// Returns a copier with another time limit.
    pub fn with_time_limit(&self, timeout: Duration, timeout_is_exact: bool) -> Copier {
        Copier { limits: CopyLimits { timeout, timeout_is_exact, ..self.limits }, ..self.clone() }
    }

    /// Joins the copies of one image to different registries, which share one read of the source. Returns `None` if
    /// another copy to the same registry is in progress: its blobs are mounted.
    pub fn join_fan_out(&self, image: &str, target: &RegistryName, expected: usize) -> Option<Arc<FanOutMember>> {
        self.fan_out.join(image, target, expected)
    }

    /// Copies an image. Stops within a second when the context is cancelled: the tag is left unchanged and open uploads
    /// are cancelled at the target.
    pub async fn copy(&self, request: &CopyRequest, gate: &dyn TagGate, context: &Context) -> Result<CopyReport> {
        let counters = Arc::new(CopyCounters::default());
        let image_context = self.image_context(context);
        let endpoints =
            Endpoints::open(&self.client, request, self.hashing_for(request), self.bundle.as_ref(), &image_context)
                .await?;
        let work = Box::pin(self.copy_image(request, &endpoints, &counters, gate, &image_context));
        self.run_to_report(request, &endpoints, &counters, &image_context, work).await
    }

    /// Copies new referrers of an image that is known to be at the target, without a request for its tag.
    pub async fn copy_referrers(
        &self,
        request: &CopyRequest,
        image: &ObservedDigests,
        context: &Context,
    ) -> Result<CopyReport> {
        let counters = Arc::new(CopyCounters::default());
        let image_context = self.image_context(context);
        let endpoints =
            Endpoints::open(&self.client, request, self.hashing_for(request), self.bundle.as_ref(), &image_context)
                .await?;
        let work = Box::pin(async {
            // Without a platform selection the source has the same digest, whatever a HEAD says of its tag.
            let source = match request.platforms {
                PlatformSelection::All | PlatformSelection::Sparse(_) => &image.target,
                PlatformSelection::One(_) | PlatformSelection::Some(_) => &image.source,
            };
            let digests = (image.target.clone(), source.clone());
            self.copy_new_referrers(request, &endpoints, &counters, &image_context, digests, None).await
        });
        self.run_to_report(request, &endpoints, &counters, &image_context, work).await
    }

    async fn run_to_report(
        &self,
        request: &CopyRequest,
        endpoints: &Endpoints,
        counters: &Arc<CopyCounters>,
        context: &Context,
        work: impl Future<Output = Result<CopyReport>>,
    ) -> Result<CopyReport> {
        let started = Instant::now();
        let what = || format!("copying {} to {}", request.source, request.target);
        let report = self.with_deadline(context, what, work).await?;
        Ok(CopyReport {
            bytes: CopyCounters::snapshot(&counters.bytes),
            blobs: CopyCounters::snapshot(&counters.blobs),
            manifests: counters.manifests.load(Ordering::Relaxed),
            referrers: counters.referrers.load(Ordering::Relaxed),
            digest_tags: std::mem::take(&mut *counters.digest_tags.lock().unwrap_or_else(PoisonError::into_inner)),
            source_traffic: endpoints.source_traffic.snapshot(),
            target_traffic: endpoints.target_traffic.snapshot(),
            elapsed: started.elapsed(),
            ..report
        })
    }

    /// Reports what a copy would do, by reading only. The time limit of a copy applies.
    pub async fn preview(&self, request: &CopyRequest, context: &Context) -> Result<CopyPreview> {
        let image_context = self.image_context(context);
        let endpoints =
            Endpoints::open(&self.client, request, self.hashing_for(request), self.bundle.as_ref(), &image_context)
                .await?;
        let work = async {
            let mut moves = TagMoves::default();
            loop {
                match preview::preview(request, &endpoints, &mut moves, &image_context).await {
                    Ok(preview) => return Ok(preview),
                    Err(error) => moves.retry_if_moved(error, request, &endpoints, &image_context).await?,
                }
            }
        };
        let what = || format!("comparing {} with {}", request.source, request.target);
        self.with_deadline(&image_context, what, work).await
    }

    /// Compares target and source by reading only. The time limit of a copy applies.
    pub async fn verify(
        &self,
        request: &CopyRequest,
        settings: &VerifySettings,
        context: &Context,
    ) -> Result<VerifyReport> {
        let image_context = self.image_context(context);
        let endpoints =
            Endpoints::open(&self.client, request, self.hashing_for(request), self.bundle.as_ref(), &image_context)
                .await?;
        let work = Box::pin(async {
            let mut moves = TagMoves::default();
            loop {
                match verify::verify(
                    request,
                    &endpoints,
                    settings,
                    self.limits.concurrent_blobs,
                    &mut moves,
                    &image_context,
                )
                .await
                {
                    Ok(verified) => return Ok(verified),
                    Err(error) => moves.retry_if_moved(error, request, &endpoints, &image_context).await?,
                }
            }
        });
        let what = || format!("comparing {} with {}", request.source, request.target);
        self.with_deadline(&image_context, what, work).await
    }

    /// Creates the context of one image: cancelled with its parent, with enough retries for a connection failure that
    /// hits all blobs in flight.
    fn image_context(&self, context: &Context) -> Context {
        let at_once = u32::try_from(self.limits.concurrent_blobs).unwrap_or(u32::MAX);
        let budget = match at_once.saturating_mul(2) {
            retries if retries <= DEFAULT_RETRY_BUDGET => context.budget.clone(),
            retries => RetryBudget::new(retries),
        };
        Context { budget, clock: WaitClock::default(), ..context.child() }
    }

    /// Copies what the source tag points to. If its old manifest disappears during the copy, resolves the tag again and
    /// starts over.
    async fn copy_image(
        &self,
        request: &CopyRequest,
        endpoints: &Endpoints,
        counters: &Arc<CopyCounters>,
        gate: &dyn TagGate,
        context: &Context,
    ) -> Result<CopyReport> {
        let mut moves = TagMoves::default();
        loop {
            match Box::pin(self.copy_image_once(request, endpoints, counters, gate, context, &mut moves)).await {
                Ok(report) => return Ok(report),
                Err(error) => moves.retry_if_moved(error, request, endpoints, context).await?,
            }
        }
    }

    async fn copy_image_once(
        &self,
        request: &CopyRequest,
        endpoints: &Endpoints,
        counters: &Arc<CopyCounters>,
        gate: &dyn TagGate,
        context: &Context,
        moves: &mut TagMoves,
    ) -> Result<CopyReport> {
        let mut found = compare_endpoints(request, endpoints, moves).await?;
        if matches!(found.root, RootStatus::Changed(_)) || request.copies_referrers() {
            let waited = self.pass_gate(gate, context).await?;
            if waited >= MAX_COMPARISON_AGE {
                refresh_target(request, endpoints, &mut found).await?;
            }
        }
        policy::check_policy(request, endpoints, &found).await?;
        let source_head_digest = found.head_digest;
        let selected = match found.root {
            RootStatus::Unchanged(digest, chosen) => {
                let source_digest = found.source_digest.unwrap_or_else(|| digest.clone());
                let report = self
                    .copy_new_referrers(request, endpoints, counters, context, (digest, source_digest), chosen)
                    .await?;
                return Ok(CopyReport { source_head_digest, ..report });
            }
            RootStatus::Changed(chosen) => chosen,
        };
        selected.warn_without_platform(request, context);
        let SelectedImage { root, selected_children, is_filtered, .. } = selected;
        if let Some(wanted) = request.target.digest()
            && wanted != root.digest()
        {
            let operation = format!("copying {} to {}", request.source, request.target);
            let detail = format!("the source has {}, which does not match the target digest", root.digest());
            return Err(Error::new(ErrorKind::Invalid, operation, detail));
        }
        let reference = endpoints.target_ref.clone().unwrap_or_else(|| ManifestRef::Digest(root.digest().clone()));
        let digest = root.digest().clone();
        let source_digest = found.source_digest.unwrap_or_else(|| digest.clone());
        let transfer = ImageTransfer::new(self, endpoints, request, counters.clone(), context, found.target_has_tag)
            .with_selected_children(&root, selected_children);
        let backup = BackupGate::for_request(request, endpoints, &digest, gate).filter(|_| found.target_has_tag);
        let gate = backup.as_ref().map_or(gate, |backup| backup as &dyn TagGate);
        let transferred = Box::pin(transfer.transfer_image(root, reference, gate, &source_digest, !is_filtered)).await;
        transfer.share_learned().await;
        let tag_put = transferred?;
        let referrers_checked = request.referrers.copies_any();
        let outcome = if tag_put { CopyOutcome::Copied } else { CopyOutcome::Unchanged };
        Ok(CopyReport {
            outcome,
            source_head_digest,
            referrers_checked,
            tag_put,
            ..CopyReport::unchanged(digest, source_digest)
        })
    }

    /// Copies new referrers of an image that is already at the target, if requested. `selected` is the image, if it was
    /// read.
    async fn copy_new_referrers(
        &self,
        request: &CopyRequest,
        endpoints: &Endpoints,
        counters: &Arc<CopyCounters>,
        context: &Context,
        (digest, source_digest): (Digest, Digest),
        selected: Option<SelectedImage>,
    ) -> Result<CopyReport> {
        if !request.copies_referrers() {
            return Ok(CopyReport::unchanged(digest, source_digest));
        }
        let transfer = ImageTransfer::new(self, endpoints, request, counters.clone(), context, true);
        let check_all = request.referrer_refresh == ReferrerRefresh::All;
        let read = || async {
            let root = endpoints.source.manifest_by_digest(&source_digest).await?;
            select_platforms(root, request, endpoints).await
        };
        // What comes out of a pipe is read in its order, referrers too.
        let selected = match (selected, endpoints.source.streamed_layout()) {
            (None, Some(_)) => Some(read().await?),
            (selected, _) => selected,
        };
        let copied = if selected.is_none() && digest == source_digest && !check_all {
            let referrers_result = transfer.copy_referrers_of_unread_root(&digest, read).await;
            transfer.share_learned().await;
            referrers_result?
        } else {
            let SelectedImage { root, selected_children, is_filtered, .. } = match selected {
                Some(chosen) => chosen,
                None => read().await?,
            };
            let transfer = transfer.with_selected_children(&root, selected_children);
            transfer.transfer_streamed(&root, false).await?;
            let referrers_result = transfer.copy_referrers(&root, !is_filtered, false).await;
            transfer.share_learned().await;
            referrers_result?
        };
        let outcome = if copied == 0 { CopyOutcome::Unchanged } else { CopyOutcome::Copied };
        Ok(CopyReport { outcome, referrers_checked: check_all, ..CopyReport::unchanged(digest, source_digest) })
    }

    /// Returns the digests of both endpoints if they are equal, with as few requests as possible, and those that the policy
    /// of the request needs. Fails if it does not allow the image.
    pub async fn compare(&self, request: &CopyRequest, context: &Context) -> Result<Option<ObservedDigests>> {
        let context = self.image_context(context);
        let hashing = self.hashing_for(request);
        let endpoints = Endpoints::open(&self.client, request, hashing, self.bundle.as_ref(), &context).await?;
        let work = Box::pin(async {
            let found = compare_endpoints(request, &endpoints, &mut TagMoves::default()).await?;
            policy::check_policy(request, &endpoints, &found).await?;
            Ok(match found.root {
                RootStatus::Unchanged(target, _) => {
                    let source = found.head_digest.or(found.source_digest).unwrap_or_else(|| target.clone());
                    Some(ObservedDigests { source, target })
                }
                RootStatus::Changed(_) => None,
            })
        });
        let operation = || format!("comparing {} with {}", request.source, request.target);
        self.with_deadline(&context, operation, work).await
    }
}
