//! The graph of one image, walked children first: an index's manifests before the index, a manifest's blobs before the
//! manifest, what is shared once.

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
    /// The source's repository, for which proofs are remembered.
    pub(super) source_home: Option<Home>,
    /// What the source has shown and others do not know yet.
    pub(super) proofs: Mutex<Vec<Proof>>,
    pub(super) target: Target,
    pub(super) known: Arc<Known>,
    pub(super) sums: Arc<Sums>,
    pub(super) slots: Semaphore,
    /// Permits for blobs of all images.
    pub(super) open_blobs: Arc<Semaphore>,
    pub(super) context: Context,
    /// Manifests that are whole at the target, each by whoever came first.
    manifests: Memo<()>,
    blobs: Memo<Arrival>,
    pub(super) brought: Brought,
    /// Read while looking for what is there, and not to be read again.
    read: Mutex<HashMap<Digest, Manifest>>,
    /// Entries of indexes that turned out to be blobs, and the bytes of those that were read to find that out and that are not
    /// sent yet.
    listed_blobs: Seen,
    blobs_read: Mutex<HashMap<Digest, Bytes>>,
    counted: Seen,
    /// Requests that the image is known to cost by now, at the least.
    cost: AtomicUsize,
    /// Whether part of the image may be at the target, so that asking can pay.
    may_be_there: bool,
    /// Of the children of this index these alone.
    only: Option<(Digest, HashSet<Digest>)>,
    /// What indexes that were read list.
    indexes: Mutex<HashMap<Digest, Vec<Descriptor>>>,
    pub(super) referrers: Referrers,
    pub(super) company: Company,
    foreign_layers: bool,
    pub(super) together: Option<Arc<Member>>,
    /// A blob that the target repository is known to have.
    pub(super) present: OnceLock<Digest>,
    blobs_at_once: usize,
    pub(super) force: bool,
}

/// Where a manifest is put.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    /// Under the tag of the copy, which its gate has to let pass each time.
    Tag(&'a ManifestRef, &'a dyn Gate),
    /// Under a tag or its digest.
    Reference(&'a ManifestRef),
    /// Where an image is found that has no tag.
    Untagged,
    /// Under a tag that is named by another manifest.
    Companion(&'a Tag),
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
        // A token of its own, so that the first error stops what else is under way for this image.
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

    /// The same, for an index of which only some children are wanted.
    pub(super) fn only(mut self, root: &Manifest, children: Option<HashSet<Digest>>) -> Walk {
        self.only = children.map(|children| (root.digest().clone(), children));
        self
    }

    /// What of an index is wanted.
    pub(super) fn children_of<'m>(&self, index: &'m Manifest) -> Vec<&'m Descriptor> {
        let only = self.only.as_ref().filter(|(root, _)| root == index.digest()).map(|(_, only)| only);
        let children = index.children().into_iter();
        children.filter(|child| only.is_none_or(|only| only.contains(&child.digest))).collect()
    }

    pub(super) fn blobs_of<'m>(&self, manifest: &'m Manifest) -> Vec<&'m Descriptor> {
        manifest.blobs_with(self.foreign_layers)
    }

    /// What an index lists that was read before.
    pub(super) fn noted_index(&self, digest: &Digest) -> Option<Vec<Descriptor>> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// Brings the whole image to the target, its root last. Returns whether its tag was written; not where the target refuses
    /// to write it and has it already.
    pub(super) async fn push(
        &self,
        root: Manifest,
        place: ManifestRef,
        gate: &dyn Gate,
        source_digest: &Digest,
        is_at_source: bool,
    ) -> Result<bool> {
        self.note(&root);
        // In a layout nothing is saved by guessing: each file is looked at.
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
            // A tag says that all is done: what refers to another manifest is listed under that first.
            self.put(&root, &ManifestRef::Digest(root.digest().clone())).await?;
            gate.before_tag(source_digest).await?;
            return self.is_written(self.put_patiently(&root, At::Tag(&place, gate)).await?);
        }
        gate.before_tag(source_digest).await?;
        self.is_written(self.put_at(&root, At::Tag(&place, gate)).await?)
    }

    /// Whether a tag was written. Who insists on writing it hears that this was denied.
    fn is_written(&self, put: ManifestPut) -> Result<bool> {
        let is_denied = put.is_denied();
        match put.refused {
            Some(error) if self.force && is_denied => Err(error),
            refused => Ok(refused.is_none()),
        }
    }

    /// Whether the target has the root under another tag. Asked for only where something hints at it, so that a fresh
    /// image costs no request more: the config of its first image is at the target already.
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
            // It was sent, but that says nothing at a registry that takes what it has already. Asking pays where there
            // is much to be sent.
            Arrival::Copied if self.blobs_of(&leaf).into_iter().any(is_large) => {
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
        // Of an image of which an older one is there, this child may be the same.
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
            // Whether its subject lists it is told by putting it once more.
            return self.put(&manifest, &ManifestRef::Digest(child.digest)).await;
        }
        self.bring_children_and_blobs(&manifest, depth + 1).await?;
        self.put(&manifest, &ManifestRef::Digest(child.digest)).await
    }

    /// A child from the source, read once.
    pub(super) async fn child(&self, child: &Descriptor) -> Result<Manifest> {
        if let Some(manifest) = self.read.lock().unwrap_or_else(PoisonError::into_inner).remove(&child.digest) {
            return Ok(manifest);
        }
        let manifest = self.source.child(child).await?;
        self.note(&manifest);
        // What is looked at before its turn comes is few: one path from the root to a leaf.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.len() < MAX_DEPTH {
            read.insert(child.digest.clone(), manifest.clone());
        }
        Ok(manifest)
    }

    /// Counts an entry of an index that turned out to be a blob, and keeps its bytes for when it is sent.
    pub(super) fn note_blob(&self, blob: &Descriptor, bytes: Option<Bytes>) {
        self.listed_blobs.first_time(&blob.digest);
        self.counted.first_time(&blob.digest);
        if let Some(bytes) = bytes {
            self.learn_proof(blob, false);
            self.blobs_read().insert(blob.digest.clone(), bytes);
        }
    }

    /// Whether an entry of an index turned out to be a blob.
    pub(super) fn is_listed_blob(&self, digest: &Digest) -> bool {
        self.listed_blobs.has(digest)
    }

    /// The bytes of a blob that were read already.
    pub(super) fn read_already(&self, blob: &Descriptor) -> Option<Bytes> {
        self.blobs_read().get(&blob.digest).cloned()
    }

    fn blobs_read(&self) -> MutexGuard<'_, HashMap<Digest, Bytes>> {
        self.blobs_read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of a manifest that was read, and counts what it adds to the image.
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
        // A blob is read, and written in two requests; a manifest is read and put. Of children that are not read yet the
        // least is reckoned: a config and a layer.
        let itself = match manifest.kind() {
            Kind::Index { .. } => 2 + CHILD_COSTS * self.children_of(manifest).len(),
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
            .map(|blob| async move { self.blob(&blob).await })
            .buffer_unordered(self.blobs_at_once * 2);
        self.all(blobs).await
    }

    /// A blob, brought to the target once for the whole image. One that was in the target repository already may be
    /// another source's: this source has to show that it holds it.
    async fn blob(&self, blob: &Descriptor) -> Result<()> {
        match self.bring(blob).await? {
            Arrival::Reused => self.prove(blob).await,
            Arrival::Mounted | Arrival::Copied => Ok(()),
        }
    }

    /// The same without that proof, for a blob by which it is found out whether the target has the image as a whole. An image
    /// that is taken as a whole was shown by its manifest, and who reads the repository can read it already.
    async fn bring(&self, blob: &Descriptor) -> Result<Arrival> {
        self.blobs.get(&blob.digest, Box::pin(self.bring_blob(blob))).await
    }

    async fn all(&self, work: impl futures_util::Stream<Item = Result<()>> + Unpin) -> Result<()> {
        self.gather(work).await.map(drop)
    }

    /// Waits for all of them, even after one has failed, so that each can tidy up behind itself. The first real error is
    /// the one that counts.
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

    /// Puts a manifest whose children and blobs are at the target, and lists it under its subject where the registry does
    /// not do that by itself. Where the target misses what it needs after all, see [`super::missing`].
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

    /// Lists manifests under their subject, at a registry that does not do so by itself.
    pub(super) async fn list_under(&self, subject: &Digest, referrers: &[Manifest]) -> Result<()> {
        let Some(target) = self.target.repository() else { return Ok(()) };
        let tag = Companion::Referrers.tag_of(subject);
        // Others read and write the same index: one after the other, or what one has added is lost.
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

    /// The same without listing it.
    pub(super) async fn put_manifest(&self, manifest: &Manifest, at: At<'_>) -> Result<ManifestPut> {
        let put = self.put_patiently(manifest, at).await?;
        self.brought.put(manifest.digest());
        self.learn_manifest(manifest.digest());
        self.sums.manifests.fetch_add(1, Ordering::Relaxed);
        self.context.events.emit(Event::ManifestPut { digest: manifest.digest().clone() });
        Ok(put)
    }

    /// Puts a manifest, and brings what the target then says that it lacks.
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
                // Of an index of which a part is left out it is most likely that part.
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
        // Of what is there in part it is not known that it is whole.
        if self.only.as_ref().is_some_and(|(root, _)| root == digest) {
            return;
        }
        if let Some(target) = self.target.repository() {
            self.known.add_manifest(target.registry(), target.name(), digest, self.source_home.as_ref());
        }
    }

    /// How a blob came to the target in this copy.
    pub(super) fn arrival(&self, blob: &Digest) -> Option<Arrival> {
        self.blobs.peek(blob)
    }

    /// Forgets that a blob or a manifest was brought.
    pub(super) fn forget_arrival(&self, digest: &Digest) {
        self.blobs.forget(digest);
        self.manifests.forget(digest);
    }

    /// The blob that is least likely to be at the target unless its image is.
    fn tell_tale<'m>(&self, leaf: &'m Manifest) -> Option<&'m Descriptor> {
        self.blobs_of(leaf).into_iter().find(|blob| blob.digest.to_string() != EMPTY_CONFIG)
    }
}
