//! The graph of one image, walked children first: an index's manifests before the index, a manifest's blobs before the
//! manifest, what is shared once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Arrival, Event};
use imgsync_common::image::{Descriptor, Digest, Kind, Manifest};
use imgsync_common::registry::{Context, ManifestRef, Tally};
use tokio::sync::{OnceCell, Semaphore};

use super::blob::is_large;
use super::ends::{Ends, Source, Target};
use super::known::{Known, Seen};
use super::{Copier, Gate, Sums};

/// How often what a target says it misses is brought to it.
const MISSING_ROUNDS: usize = 3;

/// Children of one index that are walked at once; blobs have a limit of their own.
const CHILDREN_AT_ONCE: usize = 4;
/// Indexes within indexes; real ones have two.
const MAX_DEPTH: usize = 16;
/// Requests of a child with one layer, at both ends.
const CHILD_COSTS: usize = 8;
/// A question that may turn out to be for nothing is asked of images that cost at least this many requests.
const WORTH_A_QUESTION: usize = 20;
/// Every artifact without a config of its own has this one: that it is there says nothing.
const EMPTY_CONFIG: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// One image on its way.
pub(crate) struct Walk {
    pub(super) source: Source,
    pub(super) source_tally: Arc<Tally>,
    pub(super) target: Target,
    pub(super) known: Arc<Known>,
    pub(super) sums: Arc<Sums>,
    pub(super) slots: Semaphore,
    pub(super) context: Context,
    /// Manifests that are whole at the target, each by whoever came first.
    manifests: Memo<()>,
    blobs: Memo<Arrival>,
    /// Read while looking for what is there, and not to be read again.
    read: Mutex<HashMap<Digest, Manifest>>,
    counted: Seen,
    /// Requests that the image is known to cost by now, at the least.
    cost: AtomicUsize,
    /// Whether part of the image may be at the target, so that asking can pay.
    may_be_there: bool,
    /// A blob that the target repository is known to have.
    pub(super) present: OnceLock<Digest>,
    blobs_at_once: usize,
    force: bool,
}

/// Results by digest, each made once however many want it.
struct Memo<T>(Mutex<HashMap<Digest, Arc<OnceCell<T>>>>);

impl<T: Clone> Memo<T> {
    fn new() -> Memo<T> {
        Memo(Mutex::default())
    }

    async fn get(&self, digest: &Digest, make: impl Future<Output = Result<T>>) -> Result<T> {
        let cell = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(digest.clone()).or_default().clone();
        cell.get_or_try_init(|| make).await.cloned()
    }

    fn forget(&self, digest: &Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }
}

impl Walk {
    pub(super) fn new(
        copier: &Copier,
        ends: &Ends,
        sums: Arc<Sums>,
        context: &Context,
        may_be_there: bool,
        force: bool,
    ) -> Walk {
        // A token of its own, so that the first error stops what else is under way for this image.
        let context = context.child();
        let blobs_at_once = copier.limits.blobs.max(1);
        Walk {
            source: ends.source.within(&context),
            source_tally: ends.source_tally.clone(),
            target: ends.target.within(&context),
            known: copier.known.clone(),
            sums,
            slots: Semaphore::new(blobs_at_once),
            present: OnceLock::new(),
            blobs_at_once,
            context,
            manifests: Memo::new(),
            blobs: Memo::new(),
            read: Mutex::default(),
            counted: Seen::default(),
            cost: AtomicUsize::new(0),
            may_be_there,
            force,
        }
    }

    /// Brings the whole image to the target, its root last.
    pub(super) async fn push(
        &self,
        root: Manifest,
        place: ManifestRef,
        gate: &dyn Gate,
        source_digest: &Digest,
    ) -> Result<()> {
        self.note(&root);
        if self.force || !self.is_there_already(&root).await? {
            self.bring_children_and_blobs(&root, 0).await?;
        }
        let refers = root.parsed().subject.is_some() && self.target.repository().is_some();
        if refers && matches!(place, ManifestRef::Tag(_)) {
            // A tag says that all is done: what refers to another manifest is listed under that first.
            self.put(&root, &ManifestRef::Digest(root.digest().clone()), false).await?;
            gate.before_tag(source_digest).await?;
            return self.target.manifest_put(&place, &root).await.map(drop);
        }
        gate.before_tag(source_digest).await?;
        self.put(&root, &place, true).await
    }

    /// Whether the target has the root under another tag. Asked for only where something hints at it, so that a fresh
    /// image costs no request more: the config of its first image is at the target already.
    async fn is_there_already(&self, root: &Manifest) -> Result<bool> {
        if self.knows_manifest(root.digest()) {
            return Ok(true);
        }
        let mut leaf = root.clone();
        for _ in 0..MAX_DEPTH {
            let Some(child) = leaf.children().first().map(|child| (*child).clone()) else { break };
            leaf = self.child(&child).await?;
        }
        let Some(tell_tale) = tell_tale(&leaf) else { return Ok(false) };
        match self.blob(tell_tale).await? {
            Arrival::Reused => self.has_manifest(root.digest()).await,
            // It was sent, but that says nothing at a registry that takes what it has already. Asking pays where there
            // is much to be sent.
            Arrival::Copied if leaf.blobs().into_iter().any(is_large) => {
                Ok(!self.mounts_tell().await? && self.has_manifest(root.digest()).await?)
            }
            // The blob came from the source's own repository, next door: nothing is known of the rest.
            Arrival::Mounted | Arrival::Copied => Ok(false),
        }
    }

    async fn has_manifest(&self, digest: &Digest) -> Result<bool> {
        Ok(self.target.manifest_head(&ManifestRef::Digest(digest.clone())).await?.is_some())
    }

    /// What a manifest needs, brought to the target.
    fn bring_children_and_blobs<'a>(&'a self, manifest: &'a Manifest, depth: usize) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match manifest.kind() {
                Kind::Index { .. } => self.bring_children(manifest, depth).await,
                Kind::Image { .. } => self.bring_blobs(manifest.blobs()).await,
            }
        })
    }

    async fn bring_children(&self, index: &Manifest, depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            let tried = self.source.reading(index.digest());
            return Err(Error::new(Class::Unsupported, tried, format!("more than {MAX_DEPTH} indexes in each other")));
        }
        let children = futures_util::stream::iter(index.children().into_iter().cloned())
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
        let manifest = self.child(&child).await?;
        // Of an image of which an older one is there, this child may be the same.
        if self.may_be_there
            && !self.force
            && let Some(tell_tale) = tell_tale(&manifest)
            && self.blob(tell_tale).await? == Arrival::Reused
            && self.has_manifest(&child.digest).await?
        {
            if manifest.parsed().subject.is_none() {
                self.learn_manifest(&child.digest);
                return Ok(());
            }
            // Whether its subject lists it is told by putting it once more.
            return self.put(&manifest, &ManifestRef::Digest(child.digest), false).await;
        }
        self.bring_children_and_blobs(&manifest, depth + 1).await?;
        self.put(&manifest, &ManifestRef::Digest(child.digest), false).await
    }

    /// A child from the source, read once.
    async fn child(&self, child: &Descriptor) -> Result<Manifest> {
        if let Some(manifest) = self.read.lock().unwrap_or_else(PoisonError::into_inner).remove(&child.digest) {
            return Ok(manifest);
        }
        let manifest = self.source.child(&child.digest).await?;
        self.note(&manifest);
        // What is looked at before its turn comes is few: one path from the root to a leaf.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.len() < MAX_DEPTH {
            read.insert(child.digest.clone(), manifest.clone());
        }
        Ok(manifest)
    }

    /// Tells of a manifest that was read, and counts what it adds to the image.
    fn note(&self, manifest: &Manifest) {
        let fresh = || manifest.blobs().into_iter().filter(|blob| self.counted.first_time(&blob.digest));
        let (mut blobs, mut blob_bytes) = (0, 0);
        for blob in fresh() {
            blobs += 1;
            blob_bytes += blob.size;
        }
        self.sums.expected.fetch_add(blob_bytes, Ordering::Relaxed);
        // A blob is read, and written in two requests; a manifest is read and put. Of children that are not read yet the
        // least is reckoned: a config and a layer.
        let itself = match manifest.kind() {
            Kind::Index { .. } => 2 + CHILD_COSTS * manifest.children().len(),
            Kind::Image { .. } => 2 + 3 * blobs,
        };
        let reckoned = if self.cost.load(Ordering::Relaxed) == 0 { 0 } else { CHILD_COSTS };
        self.cost.fetch_add(itself.saturating_sub(reckoned), Ordering::Relaxed);
        self.context.events.emit(Event::ManifestRead { digest: manifest.digest().clone(), blobs, blob_bytes });
    }

    /// Whether a request more that may be for nothing hardly matters for this image, or may save much.
    pub(super) fn is_worth_a_question(&self) -> bool {
        self.may_be_there || self.cost.load(Ordering::Relaxed) >= WORTH_A_QUESTION
    }

    /// Whether an older image is there under the tag, so that much of this one may be there too.
    pub(super) fn may_be_there(&self) -> bool {
        self.may_be_there
    }

    async fn bring_blobs(&self, blobs: Vec<&Descriptor>) -> Result<()> {
        let blobs = futures_util::stream::iter(blobs.into_iter().cloned())
            .map(|blob| async move { self.blob(&blob).await.map(drop) })
            .buffer_unordered(self.blobs_at_once * 2);
        self.all(blobs).await
    }

    /// A blob, brought to the target once for the whole image.
    async fn blob(&self, blob: &Descriptor) -> Result<Arrival> {
        self.blobs.get(&blob.digest, Box::pin(self.bring_blob(blob))).await
    }

    /// Waits for all of them, even after one has failed, so that each can tidy up behind itself. The first real error is
    /// the one that counts.
    async fn all(&self, mut work: impl futures_util::Stream<Item = Result<()>> + Unpin) -> Result<()> {
        let mut failure: Option<Error> = None;
        while let Some(result) = work.next().await {
            if let Err(error) = result {
                self.context.cancel.cancel();
                if failure.as_ref().is_none_or(Error::is_cancelled) {
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Puts a manifest whose children and blobs are at the target, and lists it under its subject where the registry does
    /// not do that by itself. Where the target misses what it needs after all, what was believed of that is dropped, and
    /// it is brought once more.
    async fn put(&self, manifest: &Manifest, place: &ManifestRef, is_root: bool) -> Result<()> {
        let put = async || match place {
            ManifestRef::Digest(_) if is_root => self.target.manifest_put_untagged(manifest).await,
            _ => self.target.manifest_put(place, manifest).await,
        };
        let mut rounds = 0;
        let put = loop {
            match put().await {
                // More than once: a registry may for a moment not see a blob that another worker sends it as well.
                Err(error) if error.class() == Class::Incomplete && rounds < MISSING_ROUNDS => {
                    rounds += 1;
                    self.distrust(manifest).await;
                    self.bring_children_and_blobs(manifest, 0).await?;
                }
                put => break put?,
            }
        };
        if let Some(subject) = &manifest.parsed().subject
            && !put.subject_kept
        {
            self.target.add_to_fallback(&subject.digest, manifest).await?;
        }
        self.learn_manifest(manifest.digest());
        self.sums.manifests.fetch_add(1, Ordering::Relaxed);
        self.context.events.emit(Event::ManifestPut { digest: manifest.digest().clone() });
        Ok(())
    }

    fn knows_manifest(&self, digest: &Digest) -> bool {
        self.target.repository().is_some_and(|target| self.known.has_manifest(target.registry(), target.name(), digest))
    }

    fn learn_manifest(&self, digest: &Digest) {
        if let Some(target) = self.target.repository() {
            self.known.add_manifest(target.registry(), target.name(), digest);
        }
    }

    async fn distrust(&self, manifest: &Manifest) {
        let Some(target) = self.target.repository() else { return };
        let (registry, name) = (target.registry(), target.name());
        for blob in manifest.blobs() {
            self.known.forget_blob(registry, name, &blob.digest).await;
            self.blobs.forget(&blob.digest);
        }
        for child in manifest.children() {
            self.known.forget_manifest(registry, name, &child.digest);
            self.manifests.forget(&child.digest);
        }
    }
}

/// The blob that is least likely to be at the target unless its image is.
fn tell_tale(leaf: &Manifest) -> Option<&Descriptor> {
    leaf.blobs().into_iter().find(|blob| blob.digest.to_string() != EMPTY_CONFIG)
}
