//! Transfers the graph of one image, children first: the manifests of an index before the index, the blobs of a
//! manifest before the manifest, shared content once.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use imgsync_common::batch::{ForeignLayers, Home, Referrers};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Arrival, Event};
use imgsync_common::image::{Companion, Company, Descriptor, Digest, Kind, Manifest, Tag};
use imgsync_common::registry::{Context, ManifestPut, ManifestRef, Repository, Tally};
use imgsync_common::store::Proof;
use tokio::sync::{OnceCell, Semaphore};

use super::blob::is_large;
use super::ends::{Ends, Source, Target};
use super::known::{Known, Seen};
use super::missing::{Brought, Denials};
use super::{Copier, Gate, Job, Member, Sums};

/// Maximum children of one index processed concurrently; blobs have their own limit.
const CHILDREN_AT_ONCE: usize = 4;
/// Maximum nesting of indexes; real images have two levels.
const MAX_DEPTH: usize = 16;
/// Estimated requests, at both endpoints, of a child with one layer.
const CHILD_COSTS: usize = 8;
/// Minimum estimated requests of an image that justify a request which may turn out to be useless.
const WORTH_A_QUESTION: usize = 20;
/// Config shared by all artifacts without one: its presence proves nothing.
const EMPTY_CONFIG: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// Transfer of one image.
pub(crate) struct Walk {
    pub(super) source: Source,
    pub(super) source_tally: Arc<Tally>,
    /// Repository of the source, under which proofs are stored.
    pub(super) source_home: Option<Home>,
    /// Proofs not yet shared with other processes.
    pub(super) proofs: Mutex<Vec<Proof>>,
    pub(super) target: Target,
    pub(super) known: Arc<Known>,
    pub(super) sums: Arc<Sums>,
    pub(super) slots: Semaphore,
    /// Permits for blobs of all images.
    pub(super) open_blobs: Arc<Semaphore>,
    pub(super) context: Context,
    /// Manifests complete at the target; each is transferred once.
    manifests: Memo<()>,
    blobs: Memo<Arrival>,
    pub(super) brought: Brought,
    /// Manifests read ahead of their turn.
    read: Mutex<HashMap<Digest, Manifest>>,
    /// Index entries that turned out to be blobs. `blobs_read` holds the content read to find that out, until it is
    /// uploaded.
    listed_blobs: Seen,
    blobs_read: Mutex<HashMap<Digest, Bytes>>,
    counted: Seen,
    /// Lower bound of the requests this image costs.
    cost: AtomicUsize,
    /// Whether part of the image may be at the target, so that checks can save requests.
    may_be_there: bool,
    /// Root and selected children, for a sparse index.
    only: Option<(Digest, HashSet<Digest>)>,
    /// Children of the indexes read so far.
    indexes: Mutex<HashMap<Digest, Vec<Descriptor>>>,
    pub(super) referrers: Referrers,
    pub(super) company: Company,
    foreign_layers: bool,
    pub(super) together: Option<Arc<Member>>,
    /// A blob known to be in the target repository.
    pub(super) present: OnceLock<Digest>,
    blobs_at_once: usize,
    pub(super) force: bool,
}

/// Destination of a manifest PUT.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    /// The tag of the copy; the gate runs before each attempt.
    Tag(&'a ManifestRef, &'a dyn Gate),
    /// A tag or digest.
    Reference(&'a ManifestRef),
    /// An untagged image.
    Untagged,
    /// A digest tag.
    Companion(&'a Tag),
}

/// Results by digest; concurrent callers share one computation.
struct Memo<T>(Mutex<HashMap<Digest, Arc<OnceCell<T>>>>);

impl<T: Clone> Memo<T> {
    fn new() -> Memo<T> {
        Memo(Mutex::default())
    }

    async fn get(&self, digest: &Digest, make: impl Future<Output = Result<T>>) -> Result<T> {
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

impl Walk {
    pub(super) fn new(
        copier: &Copier,
        ends: &Ends,
        job: &Job,
        sums: Arc<Sums>,
        context: &Context,
        may_be_there: bool,
    ) -> Walk {
        // Its own token: the first error cancels everything in flight for this image.
        let context = context.child();
        let blobs_at_once = copier.limits.blobs.max(1);
        Walk {
            source: ends.source.within(&context),
            source_tally: ends.source_tally.clone(),
            source_home: ends.source.home(),
            proofs: Mutex::default(),
            target: ends.target.within(&context),
            known: copier.known.clone(),
            sums,
            slots: Semaphore::new(blobs_at_once),
            open_blobs: copier.open_blobs.clone(),
            present: OnceLock::new(),
            blobs_at_once,
            context,
            manifests: Memo::new(),
            blobs: Memo::new(),
            brought: Brought::default(),
            read: Mutex::default(),
            listed_blobs: Seen::default(),
            blobs_read: Mutex::default(),
            counted: Seen::default(),
            cost: AtomicUsize::new(0),
            may_be_there,
            only: None,
            indexes: Mutex::default(),
            referrers: job.referrers.clone(),
            company: job.company,
            foreign_layers: job.foreign_layers == ForeignLayers::Copy,
            together: job.together.clone(),
            force: job.force,
        }
    }

    /// Restricts the transfer to some children of an index.
    pub(super) fn only(mut self, root: &Manifest, children: Option<HashSet<Digest>>) -> Walk {
        self.only = children.map(|children| (root.digest().clone(), children));
        self
    }

    /// Returns the selected children of an index.
    pub(super) fn children_of<'m>(&self, index: &'m Manifest) -> Vec<&'m Descriptor> {
        let only = self.only.as_ref().filter(|(root, _)| root == index.digest()).map(|(_, only)| only);
        let children = index.children().into_iter();
        children.filter(|child| only.is_none_or(|only| only.contains(&child.digest))).collect()
    }

    pub(super) fn blobs_of<'m>(&self, manifest: &'m Manifest) -> Vec<&'m Descriptor> {
        manifest.blobs_with(self.foreign_layers)
    }

    /// Returns the children of an index that was read before.
    pub(super) fn noted_index(&self, digest: &Digest) -> Option<Vec<Descriptor>> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// Transfers the whole image, its root last. Returns whether the tag was written; false if the target denies the
    /// write and already has the image.
    pub(super) async fn push(
        &self,
        root: Manifest,
        place: ManifestRef,
        gate: &dyn Gate,
        source_digest: &Digest,
        is_at_source: bool,
    ) -> Result<bool> {
        self.note(&root);
        // A layout target checks each file, so a shortcut saves nothing.
        if self.force || self.target.repository().is_none() || !self.is_there_already(&root).await? {
            self.bring_children_and_blobs(&root, 0).await?;
        }
        if matches!(place, ManifestRef::Digest(_)) {
            gate.before_tag(source_digest).await?;
            self.put_at(&root, At::Untagged).await?;
            return self.bring_referrers(&root, is_at_source, false).await.map(|_| true);
        }
        self.bring_referrers(&root, is_at_source, true).await?;
        let refers = root.parsed().subject.is_some() && self.target.repository().is_some();
        if refers {
            // The tag marks the image as complete, so the referrer is listed under its subject first.
            self.put(&root, &ManifestRef::Digest(root.digest().clone())).await?;
            gate.before_tag(source_digest).await?;
            return self.is_written(self.put_patiently(&root, At::Tag(&place, gate)).await?);
        }
        gate.before_tag(source_digest).await?;
        self.is_written(self.put_at(&root, At::Tag(&place, gate)).await?)
    }

    /// Returns whether the tag was written. With `force` a denied write is an error.
    fn is_written(&self, put: ManifestPut) -> Result<bool> {
        let is_denied = put.is_denied();
        match put.refused {
            Some(error) if self.force && is_denied => Err(error),
            refused => Ok(refused.is_none()),
        }
    }

    /// Whether the target has the root under another tag. Asks only if the first image's config is already at the
    /// target, so a new image costs no extra request.
    async fn is_there_already(&self, root: &Manifest) -> Result<bool> {
        if self.knows_manifest(root.digest()) {
            return Ok(true);
        }
        let mut leaf = root.clone();
        for _ in 0..MAX_DEPTH {
            let children = self.children_of(&leaf);
            let Some(child) = children.iter().find(|child| child.media_type.names_a_manifest()) else { break };
            let child = (*child).clone();
            leaf = self.child(&child).await?;
        }
        let Some(tell_tale) = self.tell_tale(&leaf) else { return Ok(false) };
        match self.bring(tell_tale).await? {
            Arrival::Reused => self.has_manifest(root.digest()).await,
            // An upload proves nothing at a registry that accepts content it already has. A request pays off if there
            // is much to upload.
            Arrival::Copied if self.blobs_of(&leaf).into_iter().any(is_large) => {
                Ok(!self.mounts_tell().await? && self.has_manifest(root.digest()).await?)
            }
            // Mounted from the source repository in the same registry: says nothing about the rest.
            Arrival::Mounted | Arrival::Copied => Ok(false),
        }
    }

    async fn has_manifest(&self, digest: &Digest) -> Result<bool> {
        Ok(self.target.manifest_head(&ManifestRef::Digest(digest.clone())).await?.is_some())
    }

    /// Transfers the children and blobs of a manifest.
    pub(super) fn bring_children_and_blobs<'a>(
        &'a self,
        manifest: &'a Manifest,
        depth: usize,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match manifest.kind() {
                Kind::Index { .. } => {
                    self.bring_blobs(self.blobs_of(manifest)).await?;
                    self.bring_children(manifest, depth).await
                }
                Kind::Image { .. } => self.bring_blobs(self.blobs_of(manifest)).await,
            }
        })
    }

    async fn bring_children(&self, index: &Manifest, depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            let tried = self.source.reading(index.digest());
            return Err(Error::new(Class::Unsupported, tried, format!("more than {MAX_DEPTH} indexes in each other")));
        }
        let children = futures_util::stream::iter(self.children_of(index).into_iter().cloned())
            .map(|child| async move {
                let digest = child.digest.clone();
                self.manifests.get(&digest, Box::pin(self.bring_child(child, depth))).await
            })
            .buffer_unordered(CHILDREN_AT_ONCE);
        self.all(children).await
    }

    async fn bring_child(&self, child: Descriptor, depth: usize) -> Result<()> {
        if !self.force && self.knows_manifest(&child.digest) {
            return Ok(());
        }
        let Some(manifest) = self.listed(&child).await? else {
            let brought = self.blob(&child).await;
            self.blobs_read().remove(&child.digest);
            return brought;
        };
        // An older version of the image is there, and this child may be unchanged.
        if self.may_be_there
            && !self.force
            && self.target.repository().is_some()
            && let Some(tell_tale) = self.tell_tale(&manifest)
            && self.bring(tell_tale).await? == Arrival::Reused
            && self.has_manifest(&child.digest).await?
        {
            if manifest.parsed().subject.is_none() {
                self.learn_manifest(&child.digest);
                return Ok(());
            }
            // A repeated PUT tells whether the registry lists it under its subject.
            return self.put(&manifest, &ManifestRef::Digest(child.digest)).await;
        }
        self.bring_children_and_blobs(&manifest, depth + 1).await?;
        self.put(&manifest, &ManifestRef::Digest(child.digest)).await
    }

    /// Reads a child from the source, once.
    pub(super) async fn child(&self, child: &Descriptor) -> Result<Manifest> {
        if let Some(manifest) = self.read.lock().unwrap_or_else(PoisonError::into_inner).remove(&child.digest) {
            return Ok(manifest);
        }
        let manifest = self.source.child(child).await?;
        self.note(&manifest);
        // Bounded: only one path from the root to a leaf is read ahead.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.len() < MAX_DEPTH {
            read.insert(child.digest.clone(), manifest.clone());
        }
        Ok(manifest)
    }

    /// Records an index entry that turned out to be a blob, and keeps its content until it is uploaded.
    pub(super) fn note_blob(&self, blob: &Descriptor, bytes: Option<Bytes>) {
        self.listed_blobs.first_time(&blob.digest);
        self.counted.first_time(&blob.digest);
        if let Some(bytes) = bytes {
            self.learn_proof(blob, false);
            self.blobs_read().insert(blob.digest.clone(), bytes);
        }
    }

    /// Whether an index entry turned out to be a blob.
    pub(super) fn is_listed_blob(&self, digest: &Digest) -> bool {
        self.listed_blobs.has(digest)
    }

    /// Returns the content of a blob that was already read.
    pub(super) fn read_already(&self, blob: &Descriptor) -> Option<Bytes> {
        self.blobs_read().get(&blob.digest).cloned()
    }

    fn blobs_read(&self) -> MutexGuard<'_, HashMap<Digest, Bytes>> {
        self.blobs_read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Emits an event for a manifest that was read, and adds its requests to the estimate.
    pub(super) fn note(&self, manifest: &Manifest) {
        if let Kind::Index { manifests } = manifest.kind() {
            let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
            indexes.insert(manifest.digest().clone(), manifests.clone());
        }
        let fresh = || self.blobs_of(manifest).into_iter().filter(|blob| self.counted.first_time(&blob.digest));
        let (mut blobs, mut blob_bytes) = (0, 0);
        for blob in fresh() {
            blobs += 1;
            blob_bytes += blob.size;
        }
        // A blob takes a read and two requests to write; a manifest a read and a PUT. An unread child counts as a
        // config and one layer.
        let itself = match manifest.kind() {
            Kind::Index { .. } => 2 + CHILD_COSTS * self.children_of(manifest).len(),
            Kind::Image { .. } => 2 + 3 * blobs,
        };
        let reckoned = if self.cost.load(Ordering::Relaxed) == 0 { 0 } else { CHILD_COSTS };
        self.cost.fetch_add(itself.saturating_sub(reckoned), Ordering::Relaxed);
        self.context.events.emit(Event::ManifestRead { digest: manifest.digest().clone(), blobs, blob_bytes });
    }

    /// Whether an extra request, which may be useless, costs this image little or may save much.
    pub(super) fn is_worth_a_question(&self) -> bool {
        self.may_be_there || self.cost.load(Ordering::Relaxed) >= WORTH_A_QUESTION
    }

    /// Whether the tag holds an older image, which may share content with this one.
    pub(super) fn may_be_there(&self) -> bool {
        self.may_be_there
    }

    async fn bring_blobs(&self, blobs: Vec<&Descriptor>) -> Result<()> {
        let blobs = futures_util::stream::iter(blobs.into_iter().cloned())
            .map(|blob| async move { self.blob(&blob).await })
            .buffer_unordered(self.blobs_at_once * 2);
        self.all(blobs).await
    }

    /// Ensures that a blob is at the target, once per image. If the target repository already had it, perhaps from
    /// another source, the source must prove that it has it too.
    async fn blob(&self, blob: &Descriptor) -> Result<()> {
        match self.bring(blob).await? {
            Arrival::Reused => self.prove(blob).await,
            Arrival::Mounted | Arrival::Copied => Ok(()),
        }
    }

    /// Ensures that a blob is at the target, without the proof. Used to probe whether the target has the whole image:
    /// then the manifest is the proof, and readers of the repository can read the blob anyway.
    async fn bring(&self, blob: &Descriptor) -> Result<Arrival> {
        self.blobs.get(&blob.digest, Box::pin(self.bring_blob(blob))).await
    }

    async fn all(&self, work: impl futures_util::Stream<Item = Result<()>> + Unpin) -> Result<()> {
        self.gather(work).await.map(drop)
    }

    /// Runs all futures to completion, even after an error, so that each can clean up. Returns the first error that is
    /// not a cancellation.
    pub(super) async fn gather<T>(
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
    /// not. See [`super::missing`] for content the target then reports as missing.
    pub(super) async fn put(&self, manifest: &Manifest, place: &ManifestRef) -> Result<()> {
        self.put_at(manifest, At::Reference(place)).await.map(drop)
    }

    async fn put_at(&self, manifest: &Manifest, at: At<'_>) -> Result<ManifestPut> {
        let put = self.put_manifest(manifest, at).await?;
        if let Some(subject) = &manifest.parsed().subject
            && !put.subject_kept
        {
            self.list_under(&subject.digest, std::slice::from_ref(manifest)).await?;
        }
        Ok(put)
    }

    /// Adds manifests to the fallback index of their subject, if the registry does not list them itself.
    pub(super) async fn list_under(&self, subject: &Digest, referrers: &[Manifest]) -> Result<()> {
        let Some(target) = self.target.repository() else { return Ok(()) };
        let tag = Companion::Referrers.tag_of(subject);
        // A lease serializes the read-modify-write of the index; otherwise concurrent additions get lost.
        let lease = self.known.lease_tag(target.registry(), target.name(), &tag, &self.context.cancel).await?;
        let list = async {
            let mut denials = Denials::new();
            loop {
                match target.add_to_fallback(subject, referrers).await {
                    Err(error) if error.class() == Class::Incomplete => self.wait_out(error, &mut denials).await?,
                    listed => return listed,
                }
            }
        };
        let Some(lease) = lease else { return list.await };
        lease.run(list).await.unwrap_or_else(|| {
            let tried = format!("writing {}/{}:{tag}", target.registry(), target.name());
            Err(Error::new(Class::ServerError, tried, "its lease was lost: another may be writing it"))
        })
    }

    /// Puts a manifest without listing it under its subject.
    pub(super) async fn put_manifest(&self, manifest: &Manifest, at: At<'_>) -> Result<ManifestPut> {
        let put = self.put_patiently(manifest, at).await?;
        self.brought.put(manifest.digest());
        self.learn_manifest(manifest.digest());
        self.sums.manifests.fetch_add(1, Ordering::Relaxed);
        self.context.events.emit(Event::ManifestPut { digest: manifest.digest().clone() });
        Ok(put)
    }

    /// Puts a manifest; sends content the target reports as missing, then retries.
    async fn put_patiently(&self, manifest: &Manifest, at: At<'_>) -> Result<ManifestPut> {
        let put = async || match at {
            At::Tag(place, gate) => {
                gate.before_put().await?;
                self.target.manifest_put(place, manifest).await
            }
            At::Reference(place) => self.target.manifest_put(place, manifest).await,
            At::Untagged => self.target.manifest_put_untagged(manifest).await,
            At::Companion(tag) => self.target.companion_put(tag, manifest).await,
        };
        let mut denials = Denials::new();
        let mut is_second = false;
        loop {
            match put().await {
                // For a sparse index, the missing content is most likely the omitted part.
                Err(error) if error.class() == Class::Incomplete && is_second && self.is_sparse(manifest) => {
                    return Err(error
                        .as_class(Class::Refused)
                        .hint("the target takes no index without all that it lists: leave out `sparse`"));
                }
                Err(error) if error.class() == Class::Incomplete => {
                    is_second = true;
                    self.bring_missing(manifest, error, &mut denials).await?;
                }
                put => return put,
            }
        }
    }

    fn is_sparse(&self, manifest: &Manifest) -> bool {
        self.only.as_ref().is_some_and(|(root, _)| root == manifest.digest())
    }

    fn knows_manifest(&self, digest: &Digest) -> bool {
        let known = |target: &Repository| {
            self.known.has_manifest(target.registry(), target.name(), digest, self.source_home.as_ref())
        };
        self.target.repository().is_some_and(known)
    }

    fn learn_manifest(&self, digest: &Digest) {
        // A sparse index is incomplete.
        if self.only.as_ref().is_some_and(|(root, _)| root == digest) {
            return;
        }
        if let Some(target) = self.target.repository() {
            self.known.add_manifest(target.registry(), target.name(), digest, self.source_home.as_ref());
        }
    }

    /// Returns how a blob got to the target in this copy.
    pub(super) fn arrival(&self, blob: &Digest) -> Option<Arrival> {
        self.blobs.peek(blob)
    }

    /// Forgets that a blob or manifest was transferred.
    pub(super) fn forget_arrival(&self, digest: &Digest) {
        self.blobs.forget(digest);
        self.manifests.forget(digest);
    }

    /// Returns the blob least likely to be at the target unless its whole image is.
    fn tell_tale<'m>(&self, leaf: &'m Manifest) -> Option<&'m Descriptor> {
        self.blobs_of(leaf).into_iter().find(|blob| blob.digest.to_string() != EMPTY_CONFIG)
    }
}
