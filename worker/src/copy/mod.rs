//! Copies one image from a reference to a reference: bytes unchanged, children before parents, the tag last.

mod backup;
mod blob;
mod choose;
mod chunks;
mod ends;
mod feed;
mod find;
mod inspect;
mod job;
mod known;
mod listed;
mod missing;
mod moves;
mod proof;
mod referrers;
mod survey;
mod to_layout;
mod together;
mod verify;
mod walk;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::Arrival;
use imgsync_common::image::{Digest, RegistryName, Tag};
use imgsync_common::layout::{HashMemory, Hashing};
use imgsync_common::registry::{Client, Context, ManifestRef, Traffic};
use imgsync_common::retry::{self, Budget};
use imgsync_common::store::{BlobIndex, HashedFile, Leases};
use imgsync_common::wait::{WaitClock, WaitCredit};
use tokio::sync::Semaphore;

pub use ends::Location;
pub use inspect::{Inspected, InspectedBlob, inspect};
pub use job::{Ask, Job, Overwrite, Platforms, TargetTag};
pub(crate) use missing::CONSISTENCY_WAIT;
pub use survey::Survey;
pub use together::Member;
pub use verify::{Check, Finding, Kind, Verified, WhichReferrers};

use self::backup::Backup;
use self::choose::{Chosen, choose};
use self::ends::Ends;
use self::find::{Root, find};
use self::known::Known;
pub(crate) use self::moves::MAX_MOVES;
use self::moves::Moves;
use self::together::Together;
use self::walk::Walk;
use crate::files;

/// Minimum transfer rate, in bytes per second, that extends an image's time limit. All images in flight share it. Only
/// bytes that are actually transferred count, whatever a manifest claims.
pub(crate) const MIN_COPY_RATE: u64 = 64 << 10;
/// Rate, in bytes per second, at which a target may verify an upload in silence: one second per this many bytes.
const MIN_COMMIT_RATE: u64 = 20 << 20;
/// Interval at which the deadline of an image accounts for transferred bytes.
const DEADLINE_TICK: Duration = Duration::from_secs(1);
/// Time to cancel uploads at the target after an image is aborted.
pub const CLEAN_UP: Duration = Duration::from_millis(800);

/// Retry budget of a default context. More than half as many blobs in flight get two retries each.
const RETRIES: u32 = 20;

/// Concurrency and time limits of a copy.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum blobs of one image in flight.
    pub blobs: usize,
    /// Time limit for waiting on registries; extended while bytes flow.
    pub time: Duration,
    /// Makes `time` a hard limit, even while bytes flow.
    pub time_is_exact: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { blobs: 8, time: Duration::from_secs(600), time_is_exact: false }
    }
}

/// Check that runs before a tag is put. An error leaves the tag unchanged.
pub trait Gate: Send + Sync {
    /// Runs once, when everything the tag needs is at the target. `source` is the digest to which the source tag was
    /// resolved.
    fn before_tag<'a>(&'a self, source: &'a Digest) -> BoxFuture<'a, Result<()>>;

    /// Runs after [`Gate::before_tag`], directly before each request that puts the tag.
    fn before_put(&self) -> BoxFuture<'_, Result<()>>;
}

/// Gate that allows every tag.
#[derive(Debug)]
pub struct Open;

impl Gate for Open {
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
pub enum Outcome {
    /// The target was changed.
    Copied,
    /// The target was already up to date.
    Unchanged,
}

/// Digests of source and target, as observed by a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Digest of the source tag.
    pub source: Digest,
    /// Digest of the target tag; differs from the source when platforms are selected.
    pub target: Digest,
}

/// Counts, or bytes, of blobs by how they got to the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Moved {
    /// Transferred through this process.
    pub copied: u64,
    /// Mounted from another repository of the target.
    pub mounted: u64,
    /// Already present.
    pub reused: u64,
}

/// Report of a finished copy.
#[derive(Debug, Clone)]
pub struct Done {
    /// Whether the target was changed.
    pub outcome: Outcome,
    /// Digest of the target.
    pub digest: Digest,
    /// Digest of the source; differs from `digest` when platforms are selected.
    pub source_digest: Digest,
    /// Digest from a HEAD of the source tag, if it differs from the content.
    pub source_said: Option<Digest>,
    /// Bytes of blobs.
    pub bytes: Moved,
    /// Number of blobs.
    pub blobs: Moved,
    /// Number of manifests pushed.
    pub manifests: u64,
    /// Number of referrers pushed: signatures, SBOMs, attestations.
    pub referrers: u64,
    /// Whether the source was asked for the referrers of the image and of all its children.
    pub referrers_asked: bool,
    /// Whether the target tag was put; false if only referrers were copied.
    pub tag_put: bool,
    /// Digest tags of the image, with their digests at the source.
    pub companions: Vec<(Tag, Digest)>,
    /// Requests and bytes of the source.
    pub source: Traffic,
    /// Requests and bytes of the target.
    pub target: Traffic,
    /// Duration of the copy.
    pub elapsed: Duration,
}

/// Copies images. Use one per process: what it learns about the targets saves requests and bytes.
#[derive(Debug, Clone)]
pub struct Copier {
    client: Client,
    limits: Limits,
    known: Arc<Known>,
    together: Arc<Together>,
    /// Number of images being copied; they share the bandwidth.
    in_flight: Arc<AtomicU64>,
    /// Permits for blobs of all images, because each blob holds open files.
    open_blobs: Arc<Semaphore>,
    hashing: Hashing,
}

/// Verified layout files, as recorded in the store. If the store fails, files are hashed again.
struct Remembered(Arc<dyn BlobIndex>);

#[async_trait]
impl HashMemory for Remembered {
    async fn knows(&self, folder: &str, digest: &Digest, version: &str) -> bool {
        self.0.is_hashed(&HashedFile::new(folder, digest, version)).await.unwrap_or_default()
    }

    async fn learn(&self, folder: &str, digest: &Digest, version: &str) {
        let _ = self.0.note_hashed(&HashedFile::new(folder, digest, version)).await;
    }
}

/// Counters of one copy.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    bytes: [AtomicU64; 3],
    blobs: [AtomicU64; 3],
    manifests: AtomicU64,
    referrers: AtomicU64,
    companions: Mutex<Vec<(Tag, Digest)>>,
}

impl Sums {
    fn arrived(&self, size: u64, arrival: Arrival) {
        let slot = arrival as usize;
        self.bytes[slot].fetch_add(size, Ordering::Relaxed);
        self.blobs[slot].fetch_add(1, Ordering::Relaxed);
    }

    fn read(counters: &[AtomicU64; 3]) -> Moved {
        let [copied, mounted, reused] = [0, 1, 2].map(|slot| counters[slot].load(Ordering::Relaxed));
        Moved { copied, mounted, reused }
    }
}

impl Copier {
    /// Creates a copier with an empty cache.
    pub fn new(client: Client, limits: Limits) -> Copier {
        let open_blobs = Arc::new(Semaphore::new(files::max_blobs()));
        let (known, together, in_flight) = Default::default();
        Copier { client, limits, known, together, in_flight, open_blobs, hashing: Hashing::default() }
    }

    /// Shares the blob locations of the targets with other processes.
    pub fn with_index(self, index: Arc<dyn BlobIndex>) -> Copier {
        let hashing = Hashing::Shared(Arc::new(Remembered(index.clone())));
        Copier { known: Arc::new(Known::shared(index)), hashing, ..self }
    }

    /// Returns when the files of a target layout are hashed. A forced copy always hashes them.
    fn hashing(&self, job: &Job) -> Hashing {
        if job.force { Hashing::Always } else { self.hashing.clone() }
    }

    /// Coordinates with other workers by leases under `name`, which must be unique to this process: one worker uploads
    /// a large blob, the others mount it.
    pub fn among_workers(self, index: Arc<dyn BlobIndex>, leases: Arc<dyn Leases>, name: &str) -> Copier {
        Copier { known: Arc::new(Known::among_workers(index, leases, name)), ..self }
    }

    /// Returns a copier with another time limit.
    pub fn within(&self, time: Duration, time_is_exact: bool) -> Copier {
        Copier { limits: Limits { time, time_is_exact, ..self.limits }, ..self.clone() }
    }

    /// Joins the copies of one image to different registries, which share one read of the source. Returns `None` if
    /// another copy to the same registry is in progress: its blobs are mounted.
    pub fn join(&self, image: &str, target: &RegistryName, expected: usize) -> Option<Arc<Member>> {
        self.together.join(image, target, expected)
    }

    /// Copies an image. Stops within a second when the context is cancelled: the tag is left unchanged and open uploads
    /// are cancelled at the target.
    pub async fn copy(&self, job: &Job, gate: &dyn Gate, context: &Context) -> Result<Done> {
        let sums = Arc::new(Sums::default());
        let inner = self.inner(context);
        let ends = Ends::open(&self.client, job, self.hashing(job), &inner).await?;
        let work = Box::pin(self.run(job, &ends, &sums, gate, &inner));
        self.done(job, &ends, &sums, &inner, work).await
    }

    /// Copies new referrers of an image that is known to be at the target, without a request for its tag.
    pub async fn accompany(&self, job: &Job, image: &Seen, context: &Context) -> Result<Done> {
        let sums = Arc::new(Sums::default());
        let inner = self.inner(context);
        let ends = Ends::open(&self.client, job, self.hashing(job), &inner).await?;
        let work = Box::pin(async {
            // Without a platform selection the source has the same digest, whatever a HEAD says of its tag.
            let source = match job.platforms {
                Platforms::All | Platforms::Sparse(_) => &image.target,
                Platforms::One(_) | Platforms::Some(_) => &image.source,
            };
            let digests = (image.target.clone(), source.clone());
            self.unchanged(job, &ends, &sums, &inner, digests, None).await
        });
        self.done(job, &ends, &sums, &inner, work).await
    }

    async fn done(
        &self,
        job: &Job,
        ends: &Ends,
        sums: &Arc<Sums>,
        context: &Context,
        work: impl Future<Output = Result<End>>,
    ) -> Result<Done> {
        let started = Instant::now();
        let what = || format!("copying {} to {}", job.source, job.target);
        let End { outcome, digest, source_digest, source_said, referrers_asked, tag_put } =
            self.in_time(context, what, work).await?;
        Ok(Done {
            outcome,
            digest,
            source_digest,
            source_said,
            bytes: Sums::read(&sums.bytes),
            blobs: Sums::read(&sums.blobs),
            manifests: sums.manifests.load(Ordering::Relaxed),
            referrers: sums.referrers.load(Ordering::Relaxed),
            referrers_asked,
            tag_put,
            companions: std::mem::take(&mut *sums.companions.lock().unwrap_or_else(PoisonError::into_inner)),
            source: ends.source_tally.read(),
            target: ends.target_tally.read(),
            elapsed: started.elapsed(),
        })
    }

    /// Reports what a copy would do, by reading only. The time limit of a copy applies.
    pub async fn survey(&self, job: &Job, context: &Context) -> Result<Survey> {
        let inner = self.inner(context);
        let ends = Ends::open(&self.client, job, self.hashing(job), &inner).await?;
        let work = async {
            let mut moves = Moves::default();
            loop {
                match survey::survey(job, &ends, &mut moves, &inner).await {
                    Ok(survey) => return Ok(survey),
                    Err(error) => moves.again(error, job, &ends, &inner).await?,
                }
            }
        };
        let what = || format!("comparing {} with {}", job.source, job.target);
        self.in_time(&inner, what, work).await
    }

    /// Compares target and source by reading only. The time limit of a copy applies.
    pub async fn verify(&self, job: &Job, check: &Check, context: &Context) -> Result<Verified> {
        let inner = self.inner(context);
        let ends = Ends::open(&self.client, job, self.hashing(job), &inner).await?;
        let work = Box::pin(async {
            let mut moves = Moves::default();
            loop {
                match verify::verify(job, &ends, check, self.limits.blobs, &mut moves, &inner).await {
                    Ok(verified) => return Ok(verified),
                    Err(error) => moves.again(error, job, &ends, &inner).await?,
                }
            }
        });
        let what = || format!("comparing {} with {}", job.source, job.target);
        self.in_time(&inner, what, work).await
    }

    /// Creates the context of one image: cancelled with its parent, with enough retries for a connection failure that
    /// hits all blobs in flight.
    fn inner(&self, context: &Context) -> Context {
        let at_once = u32::try_from(self.limits.blobs).unwrap_or(u32::MAX);
        let budget = match at_once.saturating_mul(2) {
            retries if retries <= RETRIES => context.budget.clone(),
            retries => Budget::new(retries),
        };
        Context { budget, clock: WaitClock::default(), ..context.child() }
    }

    /// Runs `work` with the time limit. After cancellation it has [`CLEAN_UP`] to clean up.
    async fn in_time<T>(
        &self,
        context: &Context,
        what: impl Fn() -> String,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let late = AtomicBool::new(false);
        let _in_flight = InFlight::begin(&self.in_flight);
        let abandoned = async {
            context.cancel.cancelled().await;
            tokio::time::sleep(CLEAN_UP).await;
        };
        let result = tokio::select! {
            biased;
            result = work => result,
            () = self.deadline(context, &late) => Err(Error::cancelled(what())),
            () = abandoned => Err(Error::cancelled(what())),
        };
        // Stops what still runs for this image.
        context.cancel.cancel();
        match result {
            Err(error) if error.is_cancelled() && late.load(Ordering::Relaxed) => {
                let detail = format!("not done within {}", retry::seconds(started.elapsed()));
                Err(Error::new(Class::TimedOut, what(), detail).hint("allow more with --timeout"))
            }
            result => result,
        }
    }

    /// Copies what the source tag points to. If its old manifest disappears during the copy, resolves the tag again and
    /// starts over.
    async fn run(&self, job: &Job, ends: &Ends, sums: &Arc<Sums>, gate: &dyn Gate, context: &Context) -> Result<End> {
        let mut moves = Moves::default();
        loop {
            match Box::pin(self.run_once(job, ends, sums, gate, context, &mut moves)).await {
                Ok(end) => return Ok(end),
                Err(error) => moves.again(error, job, ends, context).await?,
            }
        }
    }

    async fn run_once(
        &self,
        job: &Job,
        ends: &Ends,
        sums: &Arc<Sums>,
        gate: &dyn Gate,
        context: &Context,
        moves: &mut Moves,
    ) -> Result<End> {
        let found = find(job, ends, moves).await?;
        let source_said = found.said;
        let chosen = match found.root {
            Root::Unchanged(digest, chosen) => {
                let source_digest = found.source_digest.unwrap_or_else(|| digest.clone());
                let end = self.unchanged(job, ends, sums, context, (digest, source_digest), chosen).await?;
                return Ok(End { source_said, ..end });
            }
            Root::Changed(chosen) => chosen,
        };
        chosen.warn_of_unnamed(job, context);
        let Chosen { root, only, is_cut, .. } = chosen;
        if let Some(wanted) = job.target.digest()
            && wanted != root.digest()
        {
            let tried = format!("copying {} to {}", job.source, job.target);
            let detail = format!("the source has {}, which cannot be stored under that digest", root.digest());
            return Err(Error::new(Class::Invalid, tried, detail));
        }
        let place = ends.target_ref.clone().unwrap_or_else(|| ManifestRef::Digest(root.digest().clone()));
        let digest = root.digest().clone();
        let source_digest = found.source_digest.unwrap_or_else(|| digest.clone());
        let walk = Walk::new(self, ends, job, sums.clone(), context, found.target_has_tag).only(&root, only);
        let backup = Backup::of(job, ends, &digest, gate).filter(|_| found.target_has_tag);
        let gate = backup.as_ref().map_or(gate, |backup| backup as &dyn Gate);
        let pushed = Box::pin(walk.push(root, place, gate, &source_digest, !is_cut)).await;
        walk.share_proofs().await;
        let tag_put = pushed?;
        let referrers_asked = job.referrers.are_wanted();
        let outcome = if tag_put { Outcome::Copied } else { Outcome::Unchanged };
        Ok(End { outcome, digest, source_digest, source_said, referrers_asked, tag_put })
    }

    /// Copies new referrers of an image that is already at the target, if requested. `chosen` is the image, if it was
    /// read.
    async fn unchanged(
        &self,
        job: &Job,
        ends: &Ends,
        sums: &Arc<Sums>,
        context: &Context,
        (digest, source_digest): (Digest, Digest),
        chosen: Option<Chosen>,
    ) -> Result<End> {
        if !job.referrers.are_wanted() || job.ask_unchanged == Ask::Nothing {
            return Ok(End {
                outcome: Outcome::Unchanged,
                digest,
                source_digest,
                source_said: None,
                referrers_asked: false,
                tag_put: false,
            });
        }
        let walk = Walk::new(self, ends, job, sums.clone(), context, true);
        let everything = job.ask_unchanged == Ask::All;
        let read = || async {
            let root = ends.source.by_digest(&source_digest).await?;
            choose(root, job, ends).await
        };
        let brought = if chosen.is_none() && digest == source_digest && !everything {
            let brought = walk.bring_referrers_of_root(&digest, read).await;
            walk.share_proofs().await;
            brought?
        } else {
            let Chosen { root, only, is_cut, .. } = match chosen {
                Some(chosen) => chosen,
                None => read().await?,
            };
            let walk = walk.only(&root, only);
            let brought = walk.bring_referrers(&root, !is_cut, false).await;
            walk.share_proofs().await;
            brought?
        };
        let outcome = if brought == 0 { Outcome::Unchanged } else { Outcome::Copied };
        Ok(End { outcome, digest, source_digest, source_said: None, referrers_asked: everything, tag_put: false })
    }

    /// Returns the digests of both endpoints if they are equal, with as few requests as possible.
    pub async fn compare(&self, job: &Job, context: &Context) -> Result<Option<Seen>> {
        let ends = Ends::open(&self.client, job, self.hashing(job), context).await?;
        let found = find(job, &ends, &mut Moves::default()).await?;
        Ok(match found.root {
            Root::Unchanged(target, _) => {
                let source = found.said.or(found.source_digest).unwrap_or_else(|| target.clone());
                Some(Seen { source, target })
            }
            Root::Changed(_) => None,
        })
    }

    /// Cancels the copy when the time limit is used up, then returns after the clean-up time. Transferred bytes extend
    /// the limit; sizes claimed by a manifest do not. Time in which imgsync itself holds requests back does not count.
    async fn deadline(&self, context: &Context, late: &AtomicBool) {
        let clock = &context.clock;
        let mut credit = WaitCredit::new(self.limits.time, MIN_COPY_RATE);
        let (mut at, mut paused, mut flowed) = (Instant::now(), clock.paused(), clock.flowed());
        while !credit.is_spent() {
            let tick = credit.left().clamp(Duration::from_millis(10), DEADLINE_TICK);
            tokio::time::sleep(tick).await;
            let (now, paused_now, flowed_now) = (Instant::now(), clock.paused(), clock.flowed());
            let waited = (now - at).saturating_sub(paused_now.saturating_sub(paused));
            let bytes = if self.limits.time_is_exact { 0 } else { flowed_now - flowed };
            let sharing = self.in_flight.load(Ordering::Relaxed).max(1);
            credit.raise(Duration::from_secs_f64(bytes as f64 / MIN_COMMIT_RATE as f64));
            credit.record(waited, bytes.saturating_mul(sharing));
            (at, paused, flowed) = (now, paused_now, flowed_now);
        }
        late.store(true, Ordering::Relaxed);
        context.cancel.cancel();
        tokio::time::sleep(CLEAN_UP).await;
    }
}

/// Counts an image as in flight until dropped.
struct InFlight<'a>(&'a AtomicU64);

impl InFlight<'_> {
    fn begin(count: &AtomicU64) -> InFlight<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        InFlight(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Outcome of a copy, before its counters are added.
struct End {
    outcome: Outcome,
    digest: Digest,
    source_digest: Digest,
    source_said: Option<Digest>,
    referrers_asked: bool,
    tag_put: bool,
}
