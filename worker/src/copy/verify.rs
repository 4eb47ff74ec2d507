//! Verifies that a target has everything its source has: the tag, all manifests and blobs below it, and the referrers.
//! Writes nothing. Equal digests imply equal content, so only presence has to be checked, and, for a deep check, that
//! the content matches its digest.

use std::collections::{BTreeMap, HashSet};

use futures_util::StreamExt as _;
use imgsync_common::batch::ForeignLayers;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Descriptor, Digest, Hasher, Manifest, Tag};
use imgsync_common::printable::printable;
use imgsync_common::registry::{Context, ManifestRef, Traffic};
use serde::Serialize;

use super::choose::{Chosen, choose};
use super::ends::{Ends, Source, Target};
use super::find::missing;
use super::listed::Listed;
use super::moves::Moves;
use super::{Job, Platforms};

/// Suffixes of cosign's digest tags.
const COSIGN: [&str; 3] = ["sig", "att", "sbom"];
/// Maximum findings named in an error; the rest is counted.
const NAMED: usize = 3;
/// Maximum depth of nested indexes and referrers.
const MAX_DEPTH: usize = 32;

/// Extent of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    /// Reads all content of the target instead of checking its presence.
    pub deep: bool,
    /// Referrers that must be present.
    pub referrers: WhichReferrers,
}

/// Referrers that must be at the target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum WhichReferrers {
    /// All referrers of the source.
    #[default]
    All,
    /// None.
    None,
    /// Referrers of these artifact types.
    Types(Vec<String>),
}

/// Kind of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The target tag is missing.
    MissingTag,
    /// The target tag has another digest.
    StaleTag,
    /// A manifest of the tree is missing.
    MissingManifest,
    /// A manifest's content does not match its digest.
    CorruptManifest,
    /// A blob is missing.
    MissingBlob,
    /// A blob's content does not match its digest.
    CorruptBlob,
    /// A referrer of the image is missing.
    MissingReferrer,
}

/// A difference between source and target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Kind of the difference.
    pub kind: Kind,
    /// Digest of the affected content at the source.
    pub digest: Digest,
    /// Description, safe to print.
    pub detail: String,
}

/// Report of a verification.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Digest of the source tag.
    pub source_digest: Digest,
    /// Digest expected at the target; differs from the source when platforms are selected.
    pub digest: Digest,
    /// Number of manifests in the tree, including referrers.
    pub manifests: u64,
    /// Number of blobs in the tree.
    pub blobs: u64,
    /// Bytes of the blobs; read in a deep check.
    pub bytes: u64,
    /// Number of referrers in the tree.
    pub referrers: u64,
    /// Differences found.
    pub findings: Vec<Finding>,
    /// Requests and bytes of the source.
    pub source: Traffic,
    /// Requests and bytes of the target.
    pub target: Traffic,
}

impl Verified {
    /// Returns the findings as one error; `None` without findings.
    pub fn error(&self, job: &Job) -> Option<Error> {
        let first = self.findings.first()?;
        let is_corrupt = |kind| matches!(kind, Kind::CorruptBlob | Kind::CorruptManifest);
        let mut words: Vec<String> = self.findings.iter().take(NAMED).map(|finding| finding.detail.clone()).collect();
        if self.findings.len() > NAMED {
            words.push(format!("and {} more", self.findings.len() - NAMED));
        }
        let tried = format!("comparing {} with {}", job.source, job.target);
        let corrupt = self.findings.iter().any(|finding| is_corrupt(finding.kind));
        let class = if corrupt { Class::Corrupt } else { Class::Differs };
        let hint = match (corrupt, first.kind) {
            (true, _) => {
                "the target's storage changed it: it has to be removed there, and `imgsync run --force` brings it again"
            }
            (false, Kind::MissingTag | Kind::StaleTag) => {
                "`imgsync run`, or `imgsync sync` where no rule does, copies it again"
            }
            (false, _) => "`imgsync run --force` brings what is missing",
        };
        Some(Error::new(class, tried, words.join("; ")).hint(hint))
    }
}

/// A manifest still to be checked.
struct Open {
    digest: Digest,
    /// Description of its role.
    what: String,
    depth: usize,
    /// Finding to record if it is missing.
    missing: Kind,
}

/// State of one verification.
struct Look<'a> {
    /// Digest of the image, and its expected children if not all are expected.
    root: Digest,
    only: Option<HashSet<Digest>>,
    with_foreign_layers: bool,
    ends: &'a Ends,
    check: &'a Check,
    findings: Vec<Finding>,
    seen: HashSet<Digest>,
    blobs: BTreeMap<Digest, (Descriptor, String)>,
    manifests: u64,
    referrers: u64,
}

pub(super) async fn verify(
    job: &Job,
    ends: &Ends,
    check: &Check,
    at_once: usize,
    moves: &mut Moves,
    context: &Context,
) -> Result<Verified> {
    let there = match &ends.target_ref {
        Some(reference) => Some(ends.target.manifest_head(reference).await?.map(|head| head.digest)),
        None => None,
    };
    let expected = expected(job, ends, there.as_ref().and_then(Option::as_ref), moves).await?;
    let Expected { source: source_digest, digest, only, said } = expected;
    let mut look = Look {
        root: digest.clone(),
        only,
        with_foreign_layers: job.foreign_layers == ForeignLayers::Copy,
        ends,
        check,
        findings: Vec::new(),
        seen: HashSet::new(),
        blobs: BTreeMap::new(),
        manifests: 0,
        referrers: 0,
    };
    if look.tag(job, there, &digest) {
        let mut open =
            vec![Open { digest: digest.clone(), what: "the image".into(), depth: 0, missing: Kind::MissingManifest }];
        look.cosign(&digest, &mut open).await?;
        while let Some(next) = open.pop() {
            if context.cancel.is_cancelled() {
                return Err(Error::cancelled(format!("comparing {} with {}", job.source, job.target)));
            }
            look.manifest(next, &mut open).await?;
        }
        let blobs: Vec<(Descriptor, String)> = look.blobs.values().cloned().collect();
        let mut found = futures_util::stream::iter(blobs)
            .map(|(blob, of)| async move { blob_differs(&ends.target, &blob, &of, check.deep, context).await })
            .buffer_unordered(at_once.max(1));
        while let Some(finding) = found.next().await {
            look.findings.extend(finding?);
        }
    }
    look.findings.sort();
    Ok(Verified {
        source_digest: said.unwrap_or(source_digest),
        digest,
        manifests: look.manifests,
        blobs: look.blobs.len() as u64,
        bytes: look.blobs.values().map(|(blob, _)| blob.size).sum(),
        referrers: look.referrers,
        findings: look.findings,
        source: ends.source_tally.read(),
        target: ends.target_tally.read(),
    })
}

/// Source digest, expected target digest, and the expected children of a sparse index.
struct Expected {
    source: Digest,
    digest: Digest,
    only: Option<HashSet<Digest>>,
    /// Digest from a HEAD of the source tag, if it differs from the content.
    said: Option<Digest>,
}

async fn expected(job: &Job, ends: &Ends, there: Option<&Digest>, moves: &mut Moves) -> Result<Expected> {
    let mut said = None;
    let root = match (moves.root.take(), &ends.source_ref) {
        (Some(root), _) => root,
        (None, Some(reference)) if job.platforms == Platforms::All => {
            let head = ends.source.manifest_head(reference).await?.ok_or_else(|| missing(job))?.digest;
            // If the target differs, the HEAD may be wrong: read the content.
            if there.is_none_or(|there| *there == head) {
                moves.seen = Some(head.clone());
                return Ok(Expected { source: head.clone(), digest: head, only: None, said: None });
            }
            said = Some(head);
            ends.source.manifest_get(Some(reference)).await?
        }
        (None, reference) => ends.source.manifest_get(reference.as_ref()).await?,
    };
    let source = root.digest().clone();
    moves.seen = Some(source.clone());
    let said = said.filter(|said| *said != source);
    let Chosen { root, only, .. } = choose(root, job, ends).await?;
    Ok(Expected { source, digest: root.digest().clone(), only, said })
}

impl Look<'_> {
    fn found(&mut self, kind: Kind, digest: &Digest, detail: String) {
        self.findings.push(Finding { kind, digest: digest.clone(), detail: printable(&detail).into_owned() });
    }

    /// Checks the target tag; returns whether to check the tree below it. `there` is its digest; the outer `None` means
    /// that no tag is expected.
    fn tag(&mut self, job: &Job, there: Option<Option<Digest>>, digest: &Digest) -> bool {
        match there {
            None => return true,
            Some(Some(there)) if there == *digest => return true,
            Some(Some(there)) => {
                self.found(Kind::StaleTag, digest, format!("{} is {there}, and should be {digest}", job.target));
            }
            Some(None) => {
                self.found(Kind::MissingTag, digest, format!("{} is not there, and should be {digest}", job.target));
            }
        }
        false
    }

    /// Checks one manifest; queues its children and referrers.
    async fn manifest(&mut self, Open { digest, what, depth, missing }: Open, open: &mut Vec<Open>) -> Result<()> {
        if !self.seen.insert(digest.clone()) {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            let tried = self.ends.source.reading(&digest);
            return Err(Error::new(Class::Unsupported, tried, "there is no end to what hangs below it"));
        }
        let Some(manifest) = self.read(&digest, &what, missing).await? else { return Ok(()) };
        self.manifests += 1;
        for blob in manifest.blobs_with(self.with_foreign_layers) {
            self.blobs.entry(blob.digest.clone()).or_insert_with(|| (blob.clone(), what.clone()));
        }
        for child in manifest.children() {
            let is_left_out = |only: &HashSet<Digest>| digest == self.root && !only.contains(&child.digest);
            if self.only.as_ref().is_some_and(is_left_out) {
                continue;
            }
            let what = match &child.platform {
                Some(platform) => format!("{platform} of {what}"),
                None => format!("a part of {what}"),
            };
            if !child.media_type.names_a_manifest() && self.is_blob(child).await? {
                self.blobs.entry(child.digest.clone()).or_insert_with(|| (child.clone(), what));
                continue;
            }
            let digest = child.digest.clone();
            open.push(Open { digest, what, depth: depth + 1, missing: Kind::MissingManifest });
        }
        self.referrers_of(&digest, &what, depth, open).await
    }

    /// Whether an index entry is a blob at the source. A missing entry counts as a manifest.
    async fn is_blob(&self, entry: &Descriptor) -> Result<bool> {
        match self.ends.source.listed(entry, &self.ends.source_tally).await {
            Ok(Listed::Blob(_)) => Ok(true),
            Ok(Listed::Manifest(_)) => Ok(false),
            Err(error) if error.class() == Class::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads a manifest and checks that the target has it. `None` if neither endpoint has it: an index may list missing
    /// manifests.
    async fn read(&mut self, digest: &Digest, what: &str, missing: Kind) -> Result<Option<Manifest>> {
        let reference = ManifestRef::Digest(digest.clone());
        let finding = match self.check.deep {
            // The client verifies the content against the digest.
            true => match target_manifest(&self.ends.target, &reference).await {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(error) if error.class() == Class::NotFound => Some((missing, "is not there".to_owned())),
                Err(error) if error.class() == Class::Corrupt => {
                    Some((Kind::CorruptManifest, format!("has other bytes there: {}", error.detail())))
                }
                Err(error) => return Err(error),
            },
            false => match self.ends.target.manifest_head(&reference).await? {
                Some(_) => None,
                None => Some((missing, "is not there".to_owned())),
            },
        };
        match (self.ends.source.by_digest(digest).await, finding) {
            (Ok(manifest), finding) => {
                if let Some((kind, how)) = finding {
                    self.found(kind, digest, format!("{what} ({digest}) {how}"));
                }
                Ok(Some(manifest))
            }
            (Err(error), Some((kind, _))) if error.class() == Class::NotFound && kind != Kind::CorruptManifest => {
                Ok(None)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Checks the referrers of a manifest.
    async fn referrers_of(&mut self, digest: &Digest, what: &str, depth: usize, open: &mut Vec<Open>) -> Result<()> {
        let wanted = match &self.check.referrers {
            WhichReferrers::None => return Ok(()),
            WhichReferrers::All => None,
            WhichReferrers::Types(types) => Some(types),
        };
        let mut there = source_referrers(&self.ends.source, digest).await?;
        let is_wanted = |referrer: &Descriptor| match wanted {
            None => true,
            Some(types) => types.iter().any(|wanted| referrer.artifact_type.as_deref() == Some(wanted)),
        };
        there.retain(is_wanted);
        if there.is_empty() {
            return Ok(());
        }
        let here: HashSet<Digest> = match &self.ends.target {
            Target::Registry(repository) => repository.referrers(digest).await?,
            Target::Layout(repository) => repository.referrers(digest).await?,
        }
        .into_iter()
        .map(|referrer| referrer.digest)
        .collect();
        for referrer in there {
            self.referrers += 1;
            let kind = referrer.artifact_type.as_deref().unwrap_or("something");
            let name = format!("{kind} about {what}");
            if !here.contains(&referrer.digest) {
                let detail = format!("{name} ({}) is not listed there", referrer.digest);
                self.found(Kind::MissingReferrer, &referrer.digest, detail);
                continue;
            }
            open.push(Open { digest: referrer.digest, what: name, depth: depth + 1, missing: Kind::MissingReferrer });
        }
        Ok(())
    }

    /// Checks cosign's digest tags of an image.
    async fn cosign(&mut self, digest: &Digest, open: &mut Vec<Open>) -> Result<()> {
        if self.check.referrers != WhichReferrers::All || self.ends.source.repository().is_none() {
            return Ok(());
        }
        for kind in COSIGN {
            let Ok(tag) = format!("{}.{kind}", digest.fallback_tag()).parse::<Tag>() else { continue };
            let reference = ManifestRef::Tag(tag.clone());
            let Some(there) = self.ends.source.manifest_head(&reference).await? else { continue };
            self.referrers += 1;
            let here = self.ends.target.manifest_head(&reference).await?;
            match here.is_some_and(|here| here.digest == there.digest) {
                true => open.push(Open {
                    digest: there.digest,
                    what: format!("the tag {tag}"),
                    depth: 1,
                    missing: Kind::MissingReferrer,
                }),
                false => {
                    let detail = format!("the tag {tag} is not what it is at the source ({})", there.digest);
                    self.found(Kind::MissingReferrer, &there.digest, detail);
                }
            }
        }
        Ok(())
    }
}

async fn target_manifest(target: &Target, reference: &ManifestRef) -> Result<Manifest> {
    match target {
        Target::Registry(repository) => repository.manifest_get(reference).await,
        Target::Layout(repository) => repository.manifest_get(reference).await,
    }
}

pub(super) async fn source_referrers(source: &Source, digest: &Digest) -> Result<Vec<Descriptor>> {
    match source {
        Source::Registry(repository) => repository.referrers(digest).await,
        Source::Layout(repository) => repository.referrers(digest).await,
    }
}

/// Checks one blob of the target.
async fn blob_differs(
    target: &Target,
    blob: &Descriptor,
    of: &str,
    deep: bool,
    context: &Context,
) -> Result<Option<Finding>> {
    let finding = |kind, how: &str| {
        let detail = format!("blob {} of {of} {how}", blob.digest);
        Ok(Some(Finding { kind, digest: blob.digest.clone(), detail: printable(&detail).into_owned() }))
    };
    if !deep {
        return match target.has_blob(blob).await? {
            true => Ok(None),
            false => finding(Kind::MissingBlob, "is not there"),
        };
    }
    match read_blob(target, blob, context).await {
        Ok(found) if found == blob.digest => Ok(None),
        Ok(found) => finding(Kind::CorruptBlob, &format!("has other bytes there: they are {found}")),
        Err(error) if error.class() == Class::NotFound => finding(Kind::MissingBlob, "is not there"),
        Err(error) if error.class() == Class::Corrupt => {
            finding(Kind::CorruptBlob, &format!("has other bytes there: {}", error.detail()))
        }
        Err(error) => Err(error),
    }
}

/// Returns the digest of a blob's content. A broken connection is retried from the start.
async fn read_blob(target: &Target, blob: &Descriptor, context: &Context) -> Result<Digest> {
    match target {
        Target::Layout(repository) => {
            let mut stream = repository.layout().blob_open(blob, 0).await?.stream;
            let mut hasher = Hasher::new(blob.digest.algorithm());
            while let Some(chunk) = stream.chunk().await? {
                context.clock.received(chunk.len() as u64);
                hasher.update(&chunk);
            }
            Ok(hasher.finish())
        }
        Target::Registry(repository) => {
            let mut retry = repository.retry();
            loop {
                let read = async {
                    let mut stream = repository.blob_open(blob, 0).await?.stream;
                    let mut hasher = Hasher::new(blob.digest.algorithm());
                    let mut length = 0_u64;
                    while let Some(chunk) = stream.chunk().await? {
                        length += chunk.len() as u64;
                        if length > blob.size {
                            break;
                        }
                        hasher.update(&chunk);
                    }
                    match length {
                        length if length < blob.size => {
                            let detail = format!("it ended after {length} of {} bytes", blob.size);
                            Err(Error::new(Class::Unreachable, repository.reading(&blob.digest), detail))
                        }
                        length if length > blob.size => {
                            let detail = format!("it has more than the {} bytes that it should have", blob.size);
                            Err(Error::new(Class::Corrupt, repository.reading(&blob.digest), detail))
                        }
                        _ => Ok(hasher.finish()),
                    }
                };
                match read.await {
                    Ok(found) => return Ok(found),
                    Err(error) => repository.pause(&mut retry, error).await?,
                }
            }
        }
    }
}
