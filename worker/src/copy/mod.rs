//! Copying one image: from a reference to a reference, byte for byte, children before parents, the tag last.

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

/// The slowest line on which an image has more time than its limit, in bytes a second. The images that are being copied
/// share it. Only bytes that really flow count, whatever a manifest claims.
pub(crate) const MIN_COPY_RATE: u64 = 64 << 10;
/// A target may be silent while it checks what it was sent, for one second for so many bytes.
const MIN_COMMIT_RATE: u64 = 20 << 20;
/// How often the deadline of an image looks at the bytes that flowed.
const DEADLINE_TICK: Duration = Duration::from_secs(1);
/// How long uploads are cancelled at the target after the image was given up.
pub const CLEAN_UP: Duration = Duration::from_millis(800);

/// The retries that a context has of itself; more blobs in flight than half of them have two each.
const RETRIES: u32 = 20;

/// How much is done at once, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Blobs of one image in flight at once.
    pub blobs: usize,
    /// How long registries may be waited for; longer while bytes flow.
    pub time: Duration,
    /// Whether `time` is all it gets, whatever flows.
    pub time_is_exact: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { blobs: 8, time: Duration::from_secs(600), time_is_exact: false }
    }
}

/// Decides whether a tag may be put: an error leaves the tag as it was.
pub trait Gate: Send + Sync {
    /// Asked once, when all that the tag will need is at the target. `source` is what the source's tag was found to be.
    fn before_tag<'a>(&'a self, source: &'a Digest) -> BoxFuture<'a, Result<()>>;

    /// Asked after that, directly before each request that puts the tag.
    fn before_put(&self) -> BoxFuture<'_, Result<()>>;
}

/// Lets every tag pass.
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

/// How a copy went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The target was changed.
    Copied,
    /// The target had it already.
    Unchanged,
}

/// What was seen at both ends of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What the source's tag is.
    pub source: Digest,
    /// What the target's is for it: another digest where platforms were chosen.
    pub target: Digest,
}

/// Blobs and bytes by how they came to the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Moved {
    /// Moved through this process.
    pub copied: u64,
    /// Taken by the target from another of its repositories.
    pub mounted: u64,
    /// There already.
    pub reused: u64,
}

/// What a copy came to.
#[derive(Debug, Clone)]
pub struct Done {
    /// What happened.
    pub outcome: Outcome,
    /// The digest that the target now has.
    pub digest: Digest,
    /// The digest that the source has; another where platforms were chosen.
    pub source_digest: Digest,
    /// What the source says to a HEAD, where its bytes are something else.
    pub source_said: Option<Digest>,
    /// Bytes of blobs.
    pub bytes: Moved,
    /// Numbers of blobs.
    pub blobs: Moved,
    /// Manifests that were put.
    pub manifests: u64,
    /// Referrers that were put: signatures, SBOMs, attestations.
    pub referrers: u64,
    /// Whether the source was asked for all referrers of the image and of what it lists.
    pub referrers_asked: bool,
    /// Whether the target's tag was put; not where only what belongs to the image was brought.
    pub tag_put: bool,
    /// Tags that belong to the image, as the source has them.
    pub companions: Vec<(Tag, Digest)>,
    /// What went over the line to the source.
    pub source: Traffic,
    /// What went over the line to the target.
    pub target: Traffic,
    /// How long it took.
    pub elapsed: Duration,
}

/// Copies images. One for a process: what it learns about the targets saves requests and bytes.
#[derive(Debug, Clone)]
pub struct Copier {
    client: Client,
    limits: Limits,
    known: Arc<Known>,
    together: Arc<Together>,
    /// How many images are being copied, which share the line.
    in_flight: Arc<AtomicU64>,
    /// Permits for blobs, of all images together: each blob has files open.
    open_blobs: Arc<Semaphore>,
    hashing: Hashing,
}

/// Files of layouts that were hashed, as the store remembers them. Without its answer they are hashed again.
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

/// What is counted while an image is copied.
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
    /// A copier that knows nothing yet.
    pub fn new(client: Client, limits: Limits) -> Copier {
        let open_blobs = Arc::new(Semaphore::new(files::max_blobs()));
        let (known, together, in_flight) = Default::default();
        Copier { client, limits, known, together, in_flight, open_blobs, hashing: Hashing::default() }
    }

    /// The same, which shares with other processes what is known of blobs at the targets.
    pub fn with_index(self, index: Arc<dyn BlobIndex>) -> Copier {
        let hashing = Hashing::Shared(Arc::new(Remembered(index.clone())));
        Copier { known: Arc::new(Known::shared(index)), hashing, ..self }
    }

    /// When files of a layout that is written to are hashed: a forced copy relies on nothing.
    fn hashing(&self, job: &Job) -> Hashing {
        if job.force { Hashing::Always } else { self.hashing.clone() }
    }

    /// The same, among other workers under this name, of this process alone: a large blob that several want is moved by
    /// one, and mounted by the others.
    pub fn among_workers(self, index: Arc<dyn BlobIndex>, leases: Arc<dyn Leases>, name: &str) -> Copier {
        Copier { known: Arc::new(Known::among_workers(index, leases, name)), ..self }
    }

    /// The same, which gives images another time.
    pub fn within(&self, time: Duration, time_is_exact: bool) -> Copier {
        Copier { limits: Limits { time, time_is_exact, ..self.limits }, ..self.clone() }
    }

    /// Becomes one of so many copies of one image to different registries: what they want at the same time is read once.
    /// `None` where one to the same registry is under way: blobs are mounted from that.
    pub fn join(&self, image: &str, target: &RegistryName, expected: usize) -> Option<Arc<Member>> {
        self.together.join(image, target, expected)
    }

    /// Copies an image. Stops within a second when the context is cancelled: the tag is then as it was, and uploads that
    /// were under way are cancelled at the target.
    pub async fn copy(&self, job: &Job, gate: &dyn Gate, context: &Context) -> Result<Done> {
        let sums = Arc::new(Sums::default());
        let inner = self.inner(context);
        let ends = Ends::open(&self.client, job, self.hashing(job), &inner).await?;
        let work = Box::pin(self.run(job, &ends, &sums, gate, &inner));
        self.done(job, &ends, &sums, &inner, work).await
    }

    /// Brings new referrers of an image that is known to be at the target, and nothing else: without asking for its tag.
    pub async fn accompany(&self, job: &Job, image: &Seen, context: &Context) -> Result<Done> {
        let sums = Arc::new(Sums::default());
        let inner = self.inner(context);
        let ends = Ends::open(&self.client, job, self.hashing(job), &inner).await?;
        let work = Box::pin(async {
            // The source of what was not cut is the same, whatever a HEAD may say of its tag.
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

    /// What copying an image would do, found out by reading alone, within the time that a copy has.
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

    /// Whether the target has what the source has, found out by reading alone, within the time that a copy has.
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

    /// The context of one image: it ends with the given one, and its retries suffice for a break of the line that all
    /// blobs in flight have in common.
    fn inner(&self, context: &Context) -> Context {
        let at_once = u32::try_from(self.limits.blobs).unwrap_or(u32::MAX);
        let budget = match at_once.saturating_mul(2) {
            retries if retries <= RETRIES => context.budget.clone(),
            retries => Budget::new(retries),
        };
        Context { budget, clock: WaitClock::default(), ..context.child() }
    }

    /// Does it, unless it takes longer than it may. Once it is cancelled, it has a moment to clean up.
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
        // What still runs on behalf of this image ends too.
        context.cancel.cancel();
        match result {
            Err(error) if error.is_cancelled() && late.load(Ordering::Relaxed) => {
                let detail = format!("not done within {}", retry::seconds(started.elapsed()));
                Err(Error::new(Class::TimedOut, what(), detail).hint("allow more with --timeout"))
            }
            result => result,
        }
    }

    /// Copies what the source's tag points at. What the tag pointed at before may go while it is read: then what it points
    /// at now is copied, as a whole.
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

    /// What is to be done for an image that the target has: nothing, or its new referrers. `chosen` is the image, where it
    /// was read.
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

    /// What both ends have, if it is the same; found out with as few requests as can be.
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

    /// Cancels the copy when registries were waited for too long, and returns when it had its time to clean up. Bytes that
    /// flow give it more time; what a manifest claims does not, nor does time count in which imgsync holds itself back.
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

/// Counts an image that is being copied, until it is dropped.
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

/// How a copy ended.
struct End {
    outcome: Outcome,
    digest: Digest,
    source_digest: Digest,
    source_said: Option<Digest>,
    referrers_asked: bool,
    tag_put: bool,
}
