//! Transfers the graph of one image, children first: the manifests of an index before the index, the blobs of a
//! manifest before the manifest, shared content once.

mod blob;
mod missing_content;
mod presence;
mod read_order;
mod sparse_source;
mod stream;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use imgsync_model::batch::{ForeignLayers, Referrers, RepositoryLocator};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, DigestTag, DigestTagHints, Manifest, ManifestKind, Tag};
use imgsync_registry::event::{BlobOutcome, Event};
use imgsync_registry::{Context, ManifestPut, ManifestRef, Repository, TrafficCounters};
use imgsync_store::BlobProof;
use tokio::sync::{Notify, OnceCell, Semaphore};

use self::missing_content::{ContentDenials, TransferHistory};
use super::endpoints::{CopySource, CopyTarget, Endpoints};
use super::target_cache::{DigestSet, TargetCache};
use super::{Copier, CopyCounters, CopyRequest, FanOutMember, TagGate};

pub(crate) use blob::is_large;
pub(crate) use missing_content::CONSISTENCY_WAIT;

/// Maximum children of one index processed concurrently; blobs have their own limit.
const MAX_CONCURRENT_CHILDREN: usize = 4;
/// Maximum nesting of indexes; real images have two levels.
pub(super) const MAX_INDEX_DEPTH: usize = 16;
/// Estimated requests, at both endpoints, of a child with one layer.
const REQUESTS_PER_CHILD: usize = 8;
/// Minimum estimated requests of an image that justify a request which may turn out to be useless.
const MIN_REQUESTS_FOR_PROBE: usize = 20;

/// Referrers that the source listed for the root, while the content was transferred.
pub(super) struct RootReferrers {
    pub(super) root: Digest,
    pub(super) listing: Result<(Vec<Descriptor>, Option<Digest>)>,
}

/// Transfer of one image.
pub(crate) struct ImageTransfer {
    pub(super) source: CopySource,
    pub(super) source_traffic: Arc<TrafficCounters>,
    /// Repository of the source, under which proofs are stored.
    pub(super) source_locator: Option<RepositoryLocator>,
    /// Proofs not yet shared with other processes.
    pub(super) proofs: Mutex<Vec<BlobProof>>,
    /// Small blobs now at the target, not yet shared with other processes.
    pub(super) unshared_blobs: Mutex<Vec<Digest>>,
    pub(super) target: CopyTarget,
    pub(super) target_cache: Arc<TargetCache>,
    pub(super) counters: Arc<CopyCounters>,
    pub(super) blob_slots: Semaphore,
    /// Permits for blobs of all images.
    pub(super) blob_permits: Arc<Semaphore>,
    pub(super) context: Context,
    /// Manifests complete at the target; each is transferred once.
    manifests: OncePerDigest<()>,
    blobs: OncePerDigest<BlobOutcome>,
    /// Blob whose absence shows that the target does not have the image, and the notice that it is absent.
    probe: OnceLock<Digest>,
    probe_absent: Notify,
    pub(super) history: TransferHistory,
    /// Manifests read ahead of their turn.
    prefetched: Mutex<HashMap<Digest, Manifest>>,
    /// Index entries that turned out to be blobs. `prefetched_blobs` holds the content read to find that out, until it is
    /// uploaded.
    listed_blobs: DigestSet,
    prefetched_blobs: Mutex<HashMap<Digest, Bytes>>,
    counted: DigestSet,
    /// Lower bound of the requests this image costs.
    estimated_requests: AtomicUsize,
    /// Whether part of the image may be at the target, so that checks can save requests.
    may_be_present: bool,
    /// Root and selected children, for a sparse index.
    selected_children: Option<(Digest, HashSet<Digest>)>,
    /// Children of the indexes read so far.
    index_children: Mutex<HashMap<Digest, Vec<Descriptor>>>,
    pub(super) referrers: Referrers,
    /// Whether the policy demands signatures, so that no image may pass as a referrer.
    pub(super) is_signature_required: bool,
    pub(super) root_referrers: Mutex<Option<RootReferrers>>,
    pub(super) digest_tag_hints: DigestTagHints,
    foreign_layers: bool,
    pub(super) fan_out: Option<Arc<FanOutMember>>,
    /// A blob known to be in the target repository.
    pub(super) present_blob: OnceLock<Digest>,
    max_concurrent_blobs: usize,
    pub(super) force: bool,
}

/// Destination of a manifest PUT.
#[derive(Clone, Copy)]
pub(super) enum PutTarget<'a> {
    /// The tag of the copy; the gate runs before each attempt.
    Tag(&'a ManifestRef, &'a dyn TagGate),
    /// A tag or digest.
    Reference(&'a ManifestRef),
    /// An untagged image.
    Untagged,
    /// A digest tag.
    DigestTag(&'a Tag),
}

/// Results by digest; concurrent callers share one computation.
struct OncePerDigest<T>(Mutex<HashMap<Digest, Arc<OnceCell<T>>>>);

impl<T: Clone> OncePerDigest<T> {
    fn new() -> OncePerDigest<T> {
        OncePerDigest(Mutex::default())
    }

    async fn get_or_run(&self, digest: &Digest, make: impl Future<Output = Result<T>>) -> Result<T> {
        let cell = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(digest.clone()).or_default().clone();
        cell.get_or_try_init(|| make).await.cloned()
    }

    fn peek(&self, digest: &Digest) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest)?.get().cloned()
    }

    fn forget(&self, digest: &Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }
}

impl ImageTransfer {
    pub(super) fn new(
        copier: &Copier,
        endpoints: &Endpoints,
        request: &CopyRequest,
        counters: Arc<CopyCounters>,
        context: &Context,
        may_be_present: bool,
    ) -> ImageTransfer {
        // Its own token: the first error cancels everything in flight for this image.
        let context = context.child();
        let max_concurrent_blobs = copier.limits.concurrent_blobs.max(1);
        ImageTransfer {
            source: endpoints.source.with_context(&context),
            source_traffic: endpoints.source_traffic.clone(),
            source_locator: endpoints.source.locator(),
            proofs: Mutex::default(),
            unshared_blobs: Mutex::default(),
            target: endpoints.target.with_context(&context),
            target_cache: copier.target_cache.clone(),
            counters,
            blob_slots: Semaphore::new(max_concurrent_blobs),
            blob_permits: copier.blob_permits.clone(),
            present_blob: OnceLock::new(),
            max_concurrent_blobs,
            context,
            manifests: OncePerDigest::new(),
            blobs: OncePerDigest::new(),
            probe: OnceLock::new(),
            probe_absent: Notify::new(),
            history: TransferHistory::default(),
            prefetched: Mutex::default(),
            listed_blobs: DigestSet::default(),
            prefetched_blobs: Mutex::default(),
            counted: DigestSet::default(),
            estimated_requests: AtomicUsize::new(0),
            may_be_present,
            selected_children: None,
            index_children: Mutex::default(),
            referrers: request.referrers.clone(),
            is_signature_required: request.policy.as_ref().is_some_and(|policy| policy.signed.is_some()),
            root_referrers: Mutex::default(),
            digest_tag_hints: request.digest_tag_hints,
            foreign_layers: request.foreign_layers == ForeignLayers::Copy,
            fan_out: request.fan_out.clone(),
            force: request.force,
        }
    }

    /// Restricts the transfer to some children of an index.
    pub(super) fn with_selected_children(
        mut self,
        root: &Manifest,
        children: Option<HashSet<Digest>>,
    ) -> ImageTransfer {
        self.selected_children = children.map(|children| (root.digest().clone(), children));
        self
    }

    /// Returns the selected children of an index.
    pub(super) fn children_of<'m>(&self, index: &'m Manifest) -> Vec<&'m Descriptor> {
        let selected_children =
            self.selected_children.as_ref().filter(|(root, _)| root == index.digest()).map(|(_, only)| only);
        let children = index.children().into_iter();
        children.filter(|child| selected_children.is_none_or(|only| only.contains(&child.digest))).collect()
    }

    pub(super) fn blobs_of<'m>(&self, manifest: &'m Manifest) -> Vec<&'m Descriptor> {
        manifest.blobs_with(self.foreign_layers)
    }

    /// Returns the children of an index that was read before.
    pub(super) fn cached_index(&self, digest: &Digest) -> Option<Vec<Descriptor>> {
        self.index_children.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// Transfers the whole image, its root last. Returns whether the tag was written; false if the target denies the
    /// write and already has the image.
    pub(super) async fn transfer_image(
        &self,
        root: Manifest,
        reference: ManifestRef,
        gate: &dyn TagGate,
        source_digest: &Digest,
        is_at_source: bool,
    ) -> Result<bool> {
        self.record_manifest(&root);
        let content = async {
            self.transfer_in_order(&root).await?;
            self.transfer_streamed(&root, true).await?;
            // A layout target checks each file, so a shortcut saves nothing.
            match self.force || self.target.repository().is_none() {
                true => self.ensure_content(&root, 0).await,
                false => self.ensure_content_unless_present(&root).await,
            }
        };
        let content = async {
            match content.await {
                Err(error) => Err(self.hint_at_present_platforms(&root, error).await),
                done => done,
            }
        };
        self.list_referrers_during(content, root.digest(), is_at_source).await?;
        if matches!(reference, ManifestRef::Digest(_)) {
            gate.before_tag(source_digest).await?;
            self.put_at(&root, PutTarget::Untagged).await?;
            return self.copy_referrers(&root, is_at_source, false).await.map(|_| true);
        }
        self.copy_referrers(&root, is_at_source, true).await?;
        let refers = root.parsed().subject.is_some() && self.target.repository().is_some();
        if refers {
            // The tag marks the image as complete, so the referrer is listed under its subject first.
            self.put_at_reference(&root, &ManifestRef::Digest(root.digest().clone())).await?;
            gate.before_tag(source_digest).await?;
            return self.tag_was_written(self.put_with_missing_content(&root, PutTarget::Tag(&reference, gate)).await?);
        }
        gate.before_tag(source_digest).await?;
        self.tag_was_written(self.put_at(&root, PutTarget::Tag(&reference, gate)).await?)
    }

    /// Returns whether the tag was written. With `force` a denied write is an error.
    fn tag_was_written(&self, put: ManifestPut) -> Result<bool> {
        let is_denied = put.is_denied();
        match put.refusal {
            Some(error) if self.force && is_denied => Err(error),
            refused => Ok(refused.is_none()),
        }
    }

    /// Transfers the children and blobs of a manifest.
    pub(super) fn ensure_content<'a>(&'a self, manifest: &'a Manifest, depth: usize) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match manifest.kind() {
                ManifestKind::Index { .. } => {
                    self.ensure_blobs(self.blobs_of(manifest)).await?;
                    self.ensure_children(manifest, depth).await
                }
                ManifestKind::Image { .. } => self.ensure_blobs(self.blobs_of(manifest)).await,
            }
        })
    }

    async fn ensure_children(&self, index: &Manifest, depth: usize) -> Result<()> {
        if depth >= MAX_INDEX_DEPTH {
            let operation = self.source.describe_read(index.digest());
            return Err(Error::new(
                ErrorKind::Unsupported,
                operation,
                format!("indexes nested more than {MAX_INDEX_DEPTH} deep"),
            ));
        }
        let children = futures_util::stream::iter(self.children_of(index).into_iter().cloned())
            .map(|child| async move {
                let digest = child.digest.clone();
                self.manifests.get_or_run(&digest, Box::pin(self.ensure_child(child, depth))).await
            })
            .buffer_unordered(MAX_CONCURRENT_CHILDREN);
        self.run_all(children).await
    }

    async fn ensure_child(&self, child: Descriptor, depth: usize) -> Result<()> {
        if !self.force && self.is_manifest_cached(&child.digest) {
            return Ok(());
        }
        if self.is_listed_blob(&child.digest) && self.blob_outcome(&child.digest).is_some() {
            return Ok(());
        }
        let Some(manifest) = self.resolve_entry(&child).await? else {
            let ensured = self.ensure_blob(&child).await;
            self.lock_prefetched_blobs().remove(&child.digest);
            return ensured;
        };
        // An older version of the image is there, and this child may be unchanged.
        if self.may_be_present
            && !self.force
            && self.target.repository().is_some()
            && let Some(probe) = self.probe_blob(&manifest)
            && self.ensure_blob_unproved(probe).await? == BlobOutcome::Reused
            && self.has_manifest(&child.digest).await?
        {
            if manifest.parsed().subject.is_none() {
                self.cache_manifest(&child.digest);
                return Ok(());
            }
            // A repeated PUT tells whether the registry lists it under its subject.
            return self.put_at_reference(&manifest, &ManifestRef::Digest(child.digest)).await;
        }
        self.ensure_content(&manifest, depth + 1).await?;
        self.put_at_reference(&manifest, &ManifestRef::Digest(child.digest)).await
    }

    /// Reads a child from the source, once.
    pub(super) async fn child_manifest(&self, child: &Descriptor) -> Result<Manifest> {
        if let Some(manifest) = self.prefetched.lock().unwrap_or_else(PoisonError::into_inner).remove(&child.digest) {
            return Ok(manifest);
        }
        let manifest = self.source.child_manifest(child).await?;
        self.record_manifest(&manifest);
        // Bounded: only one path from the root to a leaf is read ahead.
        let mut prefetched = self.prefetched.lock().unwrap_or_else(PoisonError::into_inner);
        if prefetched.len() < MAX_INDEX_DEPTH {
            prefetched.insert(child.digest.clone(), manifest.clone());
        }
        Ok(manifest)
    }

    /// Records an index entry that turned out to be a blob, and keeps its content until it is uploaded.
    pub(super) fn record_listed_blob(&self, blob: &Descriptor, bytes: Option<Bytes>) {
        self.listed_blobs.insert(&blob.digest);
        self.counted.insert(&blob.digest);
        if let Some(bytes) = bytes {
            self.record_proof(blob, false);
            self.lock_prefetched_blobs().insert(blob.digest.clone(), bytes);
        }
    }

    /// Whether an index entry turned out to be a blob.
    pub(super) fn is_listed_blob(&self, digest: &Digest) -> bool {
        self.listed_blobs.contains(digest)
    }

    /// Returns the content of a blob that was already read.
    pub(super) fn prefetched_blob(&self, blob: &Descriptor) -> Option<Bytes> {
        self.lock_prefetched_blobs().get(&blob.digest).cloned()
    }

    fn lock_prefetched_blobs(&self) -> MutexGuard<'_, HashMap<Digest, Bytes>> {
        self.prefetched_blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Emits an event for a manifest that was read, and adds its requests to the estimate.
    pub(super) fn record_manifest(&self, manifest: &Manifest) {
        if let ManifestKind::Index { manifests } = manifest.kind() {
            let mut indexes = self.index_children.lock().unwrap_or_else(PoisonError::into_inner);
            indexes.insert(manifest.digest().clone(), manifests.clone());
        }
        let fresh = || self.blobs_of(manifest).into_iter().filter(|blob| self.counted.insert(&blob.digest));
        let (mut blobs, mut blob_bytes) = (0, 0);
        for blob in fresh() {
            blobs += 1;
            blob_bytes += blob.size;
        }
        // A blob takes a read and two requests to write; a manifest a read and a PUT. An unread child counts as a
        // config and one layer.
        let own_requests = match manifest.kind() {
            ManifestKind::Index { .. } => 2 + REQUESTS_PER_CHILD * self.children_of(manifest).len(),
            ManifestKind::Image { .. } => 2 + 3 * blobs,
        };
        let already_counted = if self.estimated_requests.load(Ordering::Relaxed) == 0 { 0 } else { REQUESTS_PER_CHILD };
        self.estimated_requests.fetch_add(own_requests.saturating_sub(already_counted), Ordering::Relaxed);
        self.context.events.emit(Event::ManifestRead { digest: manifest.digest().clone(), blobs, blob_bytes });
    }

    /// Whether an extra request, which may be useless, costs this image little or may save much.
    pub(super) fn worth_extra_request(&self) -> bool {
        self.may_be_present || self.estimated_requests.load(Ordering::Relaxed) >= MIN_REQUESTS_FOR_PROBE
    }

    /// Whether the tag holds an older image, which may share content with this one.
    pub(super) fn may_be_present(&self) -> bool {
        self.may_be_present
    }

    async fn ensure_blobs(&self, blobs: Vec<&Descriptor>) -> Result<()> {
        let blobs = futures_util::stream::iter(blobs.into_iter().cloned())
            .map(|blob| async move { self.ensure_blob(&blob).await })
            .buffer_unordered(self.max_concurrent_blobs * 2);
        self.run_all(blobs).await
    }

    /// Ensures that a blob is at the target, once per image. If the target repository already had it, perhaps from
    /// another source, the source must prove that it has it too.
    async fn ensure_blob(&self, blob: &Descriptor) -> Result<()> {
        match self.ensure_blob_unproved(blob).await? {
            BlobOutcome::Reused => self.prove(blob).await,
            BlobOutcome::Mounted | BlobOutcome::Copied => Ok(()),
        }
    }

    /// Ensures that a blob is at the target, without the proof. Used to probe whether the target has the whole image:
    /// then the manifest is the proof, and readers of the repository can read the blob anyway.
    async fn ensure_blob_unproved(&self, blob: &Descriptor) -> Result<BlobOutcome> {
        self.blobs.get_or_run(&blob.digest, Box::pin(self.transfer_blob(blob))).await
    }

    async fn run_all(&self, work: impl futures_util::Stream<Item = Result<()>> + Unpin) -> Result<()> {
        self.collect_all(work).await.map(drop)
    }

    /// Runs all futures to completion, even after an error, so that each can clean up. Returns the first error that is
    /// not a cancellation.
    pub(super) async fn collect_all<T>(
        &self,
        mut work: impl futures_util::Stream<Item = Result<T>> + Unpin,
    ) -> Result<Vec<T>> {
        let mut done = Vec::new();
        let mut failure: Option<Error> = None;
        while let Some(result) = work.next().await {
            match result {
                Ok(value) => done.push(value),
                Err(error) => {
                    self.context.cancel.cancel();
                    if failure.as_ref().is_none_or(Error::is_cancelled) {
                        failure = Some(error);
                    }
                }
            }
        }
        failure.map_or(Ok(done), Err)
    }

    /// Puts a manifest whose children and blobs are at the target, and lists it under its subject if the registry does
    /// not. See [`super::missing_content`] for content the target then reports as missing.
    pub(super) async fn put_at_reference(&self, manifest: &Manifest, reference: &ManifestRef) -> Result<()> {
        self.put_at(manifest, PutTarget::Reference(reference)).await.map(drop)
    }

    async fn put_at(&self, manifest: &Manifest, at: PutTarget<'_>) -> Result<ManifestPut> {
        let put = self.put_manifest(manifest, at).await?;
        if let Some(subject) = &manifest.parsed().subject
            && !put.subject_kept
        {
            self.list_under_subject(&subject.digest, std::slice::from_ref(manifest)).await?;
        }
        Ok(put)
    }

    /// Adds manifests to the fallback index of their subject, if the registry does not list them itself.
    pub(super) async fn list_under_subject(&self, subject: &Digest, referrers: &[Manifest]) -> Result<()> {
        let Some(target) = self.target.repository() else { return Ok(()) };
        let tag = DigestTag::Referrers.tag_for(subject);
        // A lease serializes the read-modify-write of the index; otherwise concurrent additions get lost.
        let lease = self.target_cache.lease_tag(target.registry(), target.name(), &tag, &self.context.cancel).await?;
        let list = async {
            let mut denials = ContentDenials::new();
            loop {
                match target.add_to_fallback_index(subject, referrers).await {
                    Err(error) if error.kind() == ErrorKind::Incomplete => {
                        self.wait_for_consistency(error, &mut denials).await?
                    }
                    listed => return listed,
                }
            }
        };
        let Some(lease) = lease else { return list.await };
        lease.run(list).await.unwrap_or_else(|| {
            let operation = format!("writing {}/{}:{tag}", target.registry(), target.name());
            Err(Error::new(ErrorKind::ServerError, operation, "its lease was lost: another worker may be writing it"))
        })
    }

    /// Puts a manifest without listing it under its subject.
    pub(super) async fn put_manifest(&self, manifest: &Manifest, at: PutTarget<'_>) -> Result<ManifestPut> {
        let put = self.put_with_missing_content(manifest, at).await?;
        self.history.record_put(manifest.digest());
        self.cache_manifest(manifest.digest());
        self.counters.manifests.fetch_add(1, Ordering::Relaxed);
        self.context.events.emit(Event::ManifestPut { digest: manifest.digest().clone() });
        Ok(put)
    }

    /// Puts a manifest; sends content the target reports as missing, then retries.
    async fn put_with_missing_content(&self, manifest: &Manifest, at: PutTarget<'_>) -> Result<ManifestPut> {
        let put = async || match at {
            PutTarget::Tag(place, gate) => {
                gate.before_put().await?;
                self.target.manifest_put(place, manifest).await
            }
            PutTarget::Reference(place) => self.target.manifest_put(place, manifest).await,
            PutTarget::Untagged => self.target.manifest_put_untagged(manifest).await,
            PutTarget::DigestTag(tag) => self.target.digest_tag_put(tag, manifest).await,
        };
        let mut denials = ContentDenials::new();
        let mut is_second = false;
        loop {
            match put().await {
                // For a sparse index, the missing content is most likely the omitted part.
                Err(error) if error.kind() == ErrorKind::Incomplete && is_second && self.is_sparse(manifest) => {
                    return Err(error
                        .with_kind(ErrorKind::Refused)
                        .with_hint("the target rejects an index with missing children: remove `sparse`"));
                }
                Err(error) if error.kind() == ErrorKind::Incomplete => {
                    is_second = true;
                    self.send_missing(manifest, error, &mut denials).await?;
                }
                put => return put,
            }
        }
    }

    fn is_sparse(&self, manifest: &Manifest) -> bool {
        self.selected_children.as_ref().is_some_and(|(root, _)| root == manifest.digest())
    }

    fn is_manifest_cached(&self, digest: &Digest) -> bool {
        let known = |target: &Repository| {
            self.target_cache.has_manifest(target.registry(), target.name(), digest, self.source_locator.as_ref())
        };
        self.target.repository().is_some_and(known)
    }

    fn cache_manifest(&self, digest: &Digest) {
        // A sparse index is incomplete.
        if self.selected_children.as_ref().is_some_and(|(root, _)| root == digest) {
            return;
        }
        if let Some(target) = self.target.repository() {
            self.target_cache.add_manifest(target.registry(), target.name(), digest, self.source_locator.as_ref());
        }
    }

    /// Returns how a blob got to the target in this copy.
    pub(super) fn blob_outcome(&self, blob: &Digest) -> Option<BlobOutcome> {
        self.blobs.peek(blob)
    }

    /// Forgets that a blob or manifest was transferred.
    pub(super) fn forget_transfer(&self, digest: &Digest) {
        self.blobs.forget(digest);
        self.manifests.forget(digest);
    }
}
