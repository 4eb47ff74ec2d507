//! Copying one image: from a reference to a reference, byte for byte, children before parents, the tag last.

mod backup;
mod blob;
mod choose;
mod ends;
mod feed;
mod inspect;
mod known;
mod survey;
mod to_layout;
mod verify;
mod walk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::Arrival;
use imgsync_common::image::{Digest, Manifest, Platform};
use imgsync_common::naming::BackupName;
use imgsync_common::registry::{Client, Context, ManifestRef, Tally, Traffic};
use imgsync_common::retry::{self, Budget};
use imgsync_common::store::{BlobIndex, Leases};

pub use ends::Location;
pub use inspect::{Inspected, InspectedBlob, inspect};
pub use survey::Survey;
pub use verify::{Check, Finding, Kind, Verified, WhichReferrers};

use self::backup::Backup;
use self::ends::Ends;
use self::known::Known;
use self::walk::Walk;

/// The slowest line on which an image is still waited for when no time limit was given, in bytes a second.
const SLOWEST_RATE: u64 = 64 << 10;

/// The retries that a context has of itself; more blobs in flight than half of them have two each.
const RETRIES: u32 = 20;

/// How much is done at once, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Blobs of one image in flight at once.
    pub blobs: usize,
    /// What an image is given at the least; more where it is large.
    pub time: Duration,
    /// Whether `time` is all it gets, however large it is.
    pub time_is_exact: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { blobs: 8, time: Duration::from_secs(600), time_is_exact: false }
    }
}

/// One image to be copied.
#[derive(Debug, Clone)]
pub struct Job {
    /// From where; a registry's without tag and digest is `latest`.
    pub source: Location,
    /// To where; without a tag it is pushed under the source's tag, or by digest where that has none.
    pub target: Location,
    /// Of an index, less than all of it.
    pub platforms: Platforms,
    /// Push even what is there already.
    pub force: bool,
    /// What the source's tag pointed at when it was listed, shortly ago.
    pub listed: Option<Digest>,
    /// What is known of the target's tag.
    pub target_tag: TargetTag,
    /// What becomes of a target tag that points at something else.
    pub overwrite: Overwrite,
    /// What counts the requests to source and target, of a copy that fails too.
    pub tallies: (Arc<Tally>, Arc<Tally>),
}

/// Which platforms of an index are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Platforms {
    /// All: the index as it is.
    #[default]
    All,
    /// One child in place of the index.
    One(Platform),
    /// An index of these alone, which has a digest of its own.
    Some(Vec<Platform>),
}

/// What is known of a target's tag before it is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TargetTag {
    /// Nothing: ask.
    #[default]
    Unknown,
    /// It is not there.
    Absent,
    /// It is there and is not what the source has now.
    Outdated,
}

/// What becomes of a target tag that points at something else.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Overwrite {
    /// It is moved.
    #[default]
    Allowed,
    /// It stays as it is, and the copy fails.
    Never,
    /// It is moved, and what it pointed to is kept under another tag.
    Keeping(BackupName),
}

impl Job {
    /// A job of which nothing is known yet.
    pub fn new(source: impl Into<Location>, target: impl Into<Location>) -> Job {
        Job {
            source: source.into(),
            target: target.into(),
            platforms: Platforms::All,
            force: false,
            listed: None,
            target_tag: TargetTag::Unknown,
            overwrite: Overwrite::Allowed,
            tallies: (Tally::new(), Tally::new()),
        }
    }
}

/// Asked once, when all that the tag will need is at the target and before the tag is put: an error leaves the tag as it
/// was.
pub trait Gate: Send + Sync {
    /// Whether the tag may be put. `source` is what the source's tag was found to be.
    fn before_tag<'a>(&'a self, source: &'a Digest) -> BoxFuture<'a, Result<()>>;
}

/// Lets every tag pass.
#[derive(Debug)]
pub struct Open;

impl Gate for Open {
    fn before_tag<'a>(&'a self, _source: &'a Digest) -> BoxFuture<'a, Result<()>> {
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
    /// Bytes of blobs.
    pub bytes: Moved,
    /// Numbers of blobs.
    pub blobs: Moved,
    /// Manifests that were put.
    pub manifests: u64,
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
}

/// What is counted while an image is copied.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    bytes: [AtomicU64; 3],
    blobs: [AtomicU64; 3],
    manifests: AtomicU64,
    /// Bytes of all blobs that are known to belong to the image so far.
    expected: AtomicU64,
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
        Copier { client, limits, known: Arc::default() }
    }

    /// The same, which shares with other processes what is known of blobs at the targets.
    pub fn with_index(self, index: Arc<dyn BlobIndex>) -> Copier {
        Copier { known: Arc::new(Known::shared(index)), ..self }
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

    /// Copies an image. Stops within a second when the context is cancelled: the tag is then as it was, and uploads that
    /// were under way are cancelled at the target.
    pub async fn copy(&self, job: &Job, gate: &dyn Gate, context: &Context) -> Result<Done> {
        let started = Instant::now();
        let sums = Arc::new(Sums::default());
        let inner = self.inner(context);
        let ends = Ends::open(&self.client, job, &inner).await?;
        let work = Box::pin(self.run(job, &ends, &sums, gate, &inner));
        let what = || format!("copying {} to {}", job.source, job.target);
        let End { outcome, digest, source_digest } = self.in_time(started, &sums, &inner, what, work).await?;
        Ok(Done {
            outcome,
            digest,
            source_digest,
            bytes: Sums::read(&sums.bytes),
            blobs: Sums::read(&sums.blobs),
            manifests: sums.manifests.load(Ordering::Relaxed),
            source: ends.source_tally.read(),
            target: ends.target_tally.read(),
            elapsed: started.elapsed(),
        })
    }

    /// What copying an image would do, found out by reading alone, within the time that a copy has.
    pub async fn survey(&self, job: &Job, context: &Context) -> Result<Survey> {
        let inner = self.inner(context);
        let ends = Ends::open(&self.client, job, &inner).await?;
        let work = survey::survey(job, &ends, &inner);
        let what = || format!("comparing {} with {}", job.source, job.target);
        self.in_time(Instant::now(), &Arc::default(), &inner, what, work).await
    }

    /// Whether the target has what the source has, found out by reading alone, within the time that a copy has.
    pub async fn verify(&self, job: &Job, check: &Check, context: &Context) -> Result<Verified> {
        let inner = self.inner(context);
        let sums = Arc::new(Sums::default());
        let ends = Ends::open(&self.client, job, &inner).await?;
        let work = Box::pin(verify::verify(job, &ends, check, (self.limits.blobs, &sums), &inner));
        let what = || format!("comparing {} with {}", job.source, job.target);
        self.in_time(Instant::now(), &sums, &inner, what, work).await
    }

    /// The context of one image: it ends with the given one, and its retries suffice for a break of the line that all
    /// blobs in flight have in common.
    fn inner(&self, context: &Context) -> Context {
        let at_once = u32::try_from(self.limits.blobs).unwrap_or(u32::MAX);
        let budget = match at_once.saturating_mul(2) {
            retries if retries <= RETRIES => context.budget.clone(),
            retries => Budget::new(retries),
        };
        Context { budget, ..context.child() }
    }

    /// Does it, unless it takes longer than it may.
    async fn in_time<T>(
        &self,
        started: Instant,
        sums: &Arc<Sums>,
        context: &Context,
        what: impl Fn() -> String,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let late = Arc::new(AtomicBool::new(false));
        let watch = self.deadline(started, sums.clone(), context.clone(), late.clone());
        let (result, ()) = tokio::join!(
            async {
                let result = work.await;
                // Ends the watch too.
                context.cancel.cancel();
                result
            },
            watch
        );
        match result {
            Err(error) if error.is_cancelled() && late.load(Ordering::Relaxed) => {
                let detail = format!("not done within {}", retry::seconds(started.elapsed()));
                Err(Error::new(Class::TimedOut, what(), detail).hint("allow more with --timeout"))
            }
            result => result,
        }
    }

    async fn run(&self, job: &Job, ends: &Ends, sums: &Arc<Sums>, gate: &dyn Gate, context: &Context) -> Result<End> {
        let found = find(job, ends).await?;
        let root = match found.root {
            Root::Unchanged(digest) => {
                let source_digest = found.source_digest.unwrap_or_else(|| digest.clone());
                return Ok(End { outcome: Outcome::Unchanged, digest, source_digest });
            }
            Root::Changed(root) => root,
        };
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
        let walk = Walk::new(self, ends, sums.clone(), context, found.target_has_tag, job.force);
        let backup = Backup::of(job, ends, &digest, gate).filter(|_| found.target_has_tag);
        let gate = backup.as_ref().map_or(gate, |backup| backup as &dyn Gate);
        Box::pin(walk.push(root, place, gate, &source_digest)).await?;
        Ok(End { outcome: Outcome::Copied, digest, source_digest })
    }

    /// What both ends have, if it is the same; found out with as few requests as can be.
    pub async fn compare(&self, job: &Job, context: &Context) -> Result<Option<Seen>> {
        let ends = Ends::open(&self.client, job, context).await?;
        let found = find(job, &ends).await?;
        Ok(match found.root {
            Root::Unchanged(target) => {
                let source = found.source_digest.unwrap_or_else(|| target.clone());
                Some(Seen { source, target })
            }
            Root::Changed(_) => None,
        })
    }

    /// Cancels the copy when its time is over. The time grows with what the image is found to hold.
    async fn deadline(&self, started: Instant, sums: Arc<Sums>, context: Context, late: Arc<AtomicBool>) {
        loop {
            let mut allowed = self.limits.time;
            if !self.limits.time_is_exact {
                allowed += Duration::from_secs(sums.expected.load(Ordering::Relaxed) / SLOWEST_RATE);
            }
            let left = allowed.saturating_sub(started.elapsed());
            if left.is_zero() {
                late.store(true, Ordering::Relaxed);
                context.cancel.cancel();
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = context.cancel.cancelled() => return,
            }
        }
    }
}

/// How a copy ended.
struct End {
    outcome: Outcome,
    digest: Digest,
    source_digest: Digest,
}

/// What the two ends have.
struct Found {
    root: Root,
    /// What the source's tag is, where that is not the root: where platforms were chosen.
    source_digest: Option<Digest>,
    /// Whether the target tag exists, so that part of the image may be there.
    target_has_tag: bool,
}

enum Root {
    Unchanged(Digest),
    Changed(Manifest),
}

/// Finds what to copy with as few requests as can be: the target's tag is asked for first, so that an image that is not
/// there yet costs the source no HEAD. Where platforms are chosen, what the source's tag is says nothing of what the
/// target's should be: the source's manifest is read, and what is chosen of it compared.
async fn find(job: &Job, ends: &Ends) -> Result<Found> {
    let there = match &ends.target_ref {
        Some(reference) if job.target_tag == TargetTag::Unknown => ends.target.manifest_head(reference).await?,
        _ => None,
    };
    let target_has_tag = there.is_some() || job.target_tag == TargetTag::Outdated;
    let tag_now = there.as_ref().map(|head| head.digest.clone());
    let there = there.filter(|_| !job.force).map(|head| head.digest);
    let unchanged = |digest, source_digest| Ok(Found { root: Root::Unchanged(digest), source_digest, target_has_tag });
    let known = job.listed.clone().or_else(|| match &ends.source_ref {
        Some(ManifestRef::Digest(digest)) => Some(digest.clone()),
        _ => None,
    });
    let comparable = there.as_ref().filter(|_| job.platforms == Platforms::All);
    let reference = match (comparable, known) {
        (Some(there), Some(known)) if *there == known => return unchanged(known, None),
        (_, Some(known)) => Some(ManifestRef::Digest(known)),
        (None, None) => ends.source_ref.clone(),
        (Some(there), None) => match &ends.source_ref {
            None => None,
            Some(reference) => {
                let Some(head) = ends.source.manifest_head(reference).await? else { return Err(missing(job)) };
                if head.digest == *there {
                    return unchanged(head.digest, None);
                }
                Some(ManifestRef::Digest(head.digest))
            }
        },
    };
    let root = match ends.source.manifest_get(reference.as_ref()).await {
        // What was listed is gone already: the tag has moved on.
        Err(error) if error.class() == Class::NotFound && job.listed.is_some() => {
            ends.source.manifest_get(ends.source_ref.as_ref()).await?
        }
        root => root?,
    };
    let source_digest = root.digest().clone();
    let root = choose::choose(root, job, ends).await?;
    if there.as_ref() == Some(root.digest()) {
        return unchanged(root.digest().clone(), Some(source_digest));
    }
    if job.overwrite == Overwrite::Never
        && let Some(now) = tag_now.filter(|now| now != root.digest())
    {
        let tried = format!("copying {} to {}", job.source, job.target);
        let detail = format!("the tag never moves, and it is {now} there and {} at the source", root.digest());
        return Err(Error::new(Class::Immutable, tried, detail)
            .hint("find out why the source moved it; if it is to be taken, `imgsync sync` copies it once"));
    }
    Ok(Found { root: Root::Changed(root), source_digest: Some(source_digest), target_has_tag })
}

fn missing(job: &Job) -> Error {
    Error::new(Class::NotFound, format!("reading {}", job.source), "the registry does not have it")
        .hint("check the repository's name and the tag; `imgsync tags` lists them")
}
