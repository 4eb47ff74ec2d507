//! Verifies that a target has everything its source has: the tag, all manifests and blobs below it, and the referrers.
//! Writes nothing. Equal digests imply equal content, so only presence has to be checked, and, for a deep check, that
//! the content matches its digest.

mod blobs;

use std::collections::{BTreeMap, HashSet};

use imgsync_model::batch::ForeignLayers;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{Descriptor, Digest, Manifest, Tag};
use imgsync_registry::{Context, ManifestRef, TrafficSnapshot};
use serde::Serialize;

use self::blobs::check_blobs;
use super::endpoints::{CopySource, CopyTarget, Endpoints};
use super::index_entry::EntryContent;
use super::platform_filter::{SelectedImage, select_platforms};
use super::resolve::source_missing_error;
use super::tag_moves::TagMoves;
use super::{CopyRequest, PlatformSelection};

/// Suffixes of cosign's digest tags.
const COSIGN_SUFFIXES: [&str; 3] = ["sig", "att", "sbom"];
/// Maximum findings named in an error; the rest is counted.
const MAX_NAMED_FINDINGS: usize = 3;
/// Maximum depth of nested indexes and referrers.
const MAX_DEPTH: usize = 32;

/// Extent of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifySettings {
    /// Reads all content of the target instead of checking its presence.
    pub deep: bool,
    /// Referrers that must be present.
    pub referrers: RequiredReferrers,
}

/// Referrers that must be at the target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RequiredReferrers {
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
pub enum FindingKind {
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
    pub kind: FindingKind,
    /// Digest of the affected content at the source.
    pub digest: Digest,
    /// Description, safe to print.
    pub detail: String,
}

/// Report of a verification.
#[derive(Debug, Clone)]
pub struct VerifyReport {
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
    pub source_traffic: TrafficSnapshot,
    /// Requests and bytes of the target.
    pub target_traffic: TrafficSnapshot,
}

impl VerifyReport {
    /// Returns the findings as one error; `None` without findings.
    pub fn to_error(&self, request: &CopyRequest) -> Option<Error> {
        let first = self.findings.first()?;
        let is_corrupt = |kind| matches!(kind, FindingKind::CorruptBlob | FindingKind::CorruptManifest);
        let mut parts: Vec<String> =
            self.findings.iter().take(MAX_NAMED_FINDINGS).map(|finding| finding.detail.clone()).collect();
        if self.findings.len() > MAX_NAMED_FINDINGS {
            parts.push(format!("and {} more", self.findings.len() - MAX_NAMED_FINDINGS));
        }
        let operation = format!("comparing {} with {}", request.source, request.target);
        let corrupt = self.findings.iter().any(|finding| is_corrupt(finding.kind));
        let kind = if corrupt { ErrorKind::Corrupt } else { ErrorKind::Differs };
        let hint = match (corrupt, first.kind) {
            (true, _) => {
                "the target's storage is corrupt: delete the content there, then copy again with `imgsync run --force`"
            }
            (false, FindingKind::MissingTag | FindingKind::StaleTag) => {
                "copy it again with `imgsync run` (or `imgsync sync` without a rule)"
            }
            (false, _) => "copy what is missing with `imgsync run --force`",
        };
        Some(Error::new(kind, operation, parts.join("; ")).with_hint(hint))
    }
}

/// A manifest still to be checked.
struct PendingManifest {
    digest: Digest,
    /// Description of its role.
    description: String,
    depth: usize,
    /// Finding to record if it is missing.
    missing_kind: FindingKind,
}

/// State of one verification.
struct Verification<'a> {
    /// Digest of the image, and its expected children if not all are expected.
    root: Digest,
    selected_children: Option<HashSet<Digest>>,
    /// The image, if a platform selection made it: the source does not have it.
    filtered_root: Option<Manifest>,
    with_foreign_layers: bool,
    endpoints: &'a Endpoints,
    settings: &'a VerifySettings,
    findings: Vec<Finding>,
    seen: HashSet<Digest>,
    blobs: BTreeMap<Digest, (Descriptor, String)>,
    manifests: u64,
    referrers: u64,
}

pub(super) async fn verify(
    request: &CopyRequest,
    endpoints: &Endpoints,
    settings: &VerifySettings,
    concurrency: usize,
    moves: &mut TagMoves,
    context: &Context,
) -> Result<VerifyReport> {
    let target_tag = match &endpoints.target_ref {
        Some(reference) => Some(endpoints.target.manifest_head(reference).await?.map(|head| head.digest)),
        None => None,
    };
    let expected = resolve_expected(request, endpoints, target_tag.as_ref().and_then(Option::as_ref), moves).await?;
    let ExpectedImage { source: source_digest, digest, selected_children, filtered_root, head_digest } = expected;
    let mut verification = Verification {
        root: digest.clone(),
        selected_children,
        filtered_root,
        with_foreign_layers: request.foreign_layers == ForeignLayers::Copy,
        endpoints,
        settings,
        findings: Vec::new(),
        seen: HashSet::new(),
        blobs: BTreeMap::new(),
        manifests: 0,
        referrers: 0,
    };
    if verification.check_tag(request, target_tag, &digest) {
        let mut pending = vec![PendingManifest {
            digest: digest.clone(),
            description: "the image".into(),
            depth: 0,
            missing_kind: FindingKind::MissingManifest,
        }];
        for image in verification.signed_images() {
            verification.check_cosign_tags(&image, &mut pending).await?;
        }
        while let Some(next) = pending.pop() {
            if context.cancel.is_cancelled() {
                return Err(Error::cancelled(format!("comparing {} with {}", request.source, request.target)));
            }
            verification.check_manifest(next, &mut pending).await?;
        }
        let blobs: Vec<(Descriptor, String)> = verification.blobs.values().cloned().collect();
        verification.findings.extend(check_blobs(&endpoints.target, blobs, settings.deep, concurrency, context).await?);
    }
    verification.findings.sort();
    Ok(VerifyReport {
        source_digest: head_digest.unwrap_or(source_digest),
        digest,
        manifests: verification.manifests,
        blobs: verification.blobs.len() as u64,
        bytes: verification.blobs.values().map(|(blob, _)| blob.size).sum(),
        referrers: verification.referrers,
        findings: verification.findings,
        source_traffic: endpoints.source_traffic.snapshot(),
        target_traffic: endpoints.target_traffic.snapshot(),
    })
}

/// Source digest, expected target digest, and the expected children of a sparse index.
struct ExpectedImage {
    source: Digest,
    digest: Digest,
    selected_children: Option<HashSet<Digest>>,
    /// The image, if it was filtered to some platforms.
    filtered_root: Option<Manifest>,
    /// Digest from a HEAD of the source tag, if it differs from the content.
    head_digest: Option<Digest>,
}

async fn resolve_expected(
    request: &CopyRequest,
    endpoints: &Endpoints,
    target_tag: Option<&Digest>,
    moves: &mut TagMoves,
) -> Result<ExpectedImage> {
    let mut head_digest = None;
    let root = match (moves.root.take(), &endpoints.source_ref) {
        (Some(root), _) => root,
        (None, Some(reference)) if request.platforms == PlatformSelection::All => {
            let head =
                endpoints.source.manifest_head(reference).await?.ok_or_else(|| source_missing_error(request))?.digest;
            // If the target differs, the HEAD may be wrong: read the content.
            if target_tag.is_none_or(|there| *there == head) {
                moves.current = Some(head.clone());
                return Ok(ExpectedImage {
                    source: head.clone(),
                    digest: head,
                    selected_children: None,
                    filtered_root: None,
                    head_digest: None,
                });
            }
            head_digest = Some(head);
            endpoints.source.manifest_get(Some(reference)).await?
        }
        (None, reference) => endpoints.source.manifest_get(reference.as_ref()).await?,
    };
    let source = root.digest().clone();
    moves.current = Some(source.clone());
    let differing_head = head_digest.filter(|differing_head| *differing_head != source);
    let mut selected = select_platforms(root.clone(), request, endpoints).await?;
    // A rule with one platform writes an index with one entry, `sync --platform` the entry itself.
    if let (PlatformSelection::One(platform), Some(there)) = (&request.platforms, target_tag)
        && there != selected.root.digest()
    {
        let platforms = PlatformSelection::Some(vec![platform.clone()]);
        let as_index = select_platforms(root, &CopyRequest { platforms, ..request.clone() }, endpoints).await?;
        if there == as_index.root.digest() {
            selected = as_index;
        }
    }
    let SelectedImage { root, selected_children, is_filtered, .. } = selected;
    let digest = root.digest().clone();
    let filtered_root = is_filtered.then_some(root);
    Ok(ExpectedImage { source, digest, selected_children, filtered_root, head_digest: differing_head })
}

impl Verification<'_> {
    fn record_finding(&mut self, kind: FindingKind, digest: &Digest, detail: String) {
        self.findings.push(Finding { kind, digest: digest.clone(), detail: sanitize(&detail).into_owned() });
    }

    /// Checks the target tag; returns whether to check the tree below it. `target_tag` is its digest; the outer `None` means
    /// that no tag is expected.
    fn check_tag(&mut self, request: &CopyRequest, there: Option<Option<Digest>>, digest: &Digest) -> bool {
        match there {
            None => return true,
            Some(Some(there)) if there == *digest => return true,
            Some(Some(there)) => {
                self.record_finding(
                    FindingKind::StaleTag,
                    digest,
                    format!("{} is {there}, expected {digest}", request.target),
                );
            }
            Some(None) => {
                self.record_finding(
                    FindingKind::MissingTag,
                    digest,
                    format!("{} is missing, expected {digest}", request.target),
                );
            }
        }
        false
    }

    /// Whether a manifest is the filtered image: the source has neither that nor referrers of it.
    fn is_filtered(&self, digest: &Digest) -> bool {
        self.filtered_root.as_ref().is_some_and(|root| root.digest() == digest)
    }

    /// Returns the images of the source whose digest tags are copied: the image, or all entries of a filtered one.
    fn signed_images(&self) -> Vec<Digest> {
        match &self.filtered_root {
            Some(root) => root.children().into_iter().map(|child| child.digest.clone()).collect(),
            None => vec![self.root.clone()],
        }
    }

    /// Checks one manifest; queues its children and referrers.
    async fn check_manifest(
        &mut self,
        PendingManifest { digest, description, depth, missing_kind }: PendingManifest,
        pending: &mut Vec<PendingManifest>,
    ) -> Result<()> {
        if !self.seen.insert(digest.clone()) {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            let operation = self.endpoints.source.describe_read(&digest);
            return Err(Error::new(ErrorKind::Unsupported, operation, "manifests are nested too deep"));
        }
        let Some(manifest) = self.check_and_read(&digest, &description, missing_kind).await? else { return Ok(()) };
        self.manifests += 1;
        for blob in manifest.blobs_with(self.with_foreign_layers) {
            self.blobs.entry(blob.digest.clone()).or_insert_with(|| (blob.clone(), description.clone()));
        }
        for child in manifest.children() {
            let is_left_out = |only: &HashSet<Digest>| digest == self.root && !only.contains(&child.digest);
            if self.selected_children.as_ref().is_some_and(is_left_out) {
                continue;
            }
            let description = match &child.platform {
                Some(platform) => format!("{platform} of {description}"),
                None => format!("child of {description}"),
            };
            if !child.media_type.names_a_manifest() && self.is_blob(child).await? {
                self.blobs.entry(child.digest.clone()).or_insert_with(|| (child.clone(), description));
                continue;
            }
            let digest = child.digest.clone();
            pending.push(PendingManifest {
                digest,
                description,
                depth: depth + 1,
                missing_kind: FindingKind::MissingManifest,
            });
        }
        self.check_referrers(&digest, &description, depth, pending).await
    }

    /// Whether an index entry is a blob at the source. A missing entry counts as a manifest.
    async fn is_blob(&self, entry: &Descriptor) -> Result<bool> {
        match self.endpoints.source.resolve_entry(entry, &self.endpoints.source_traffic).await {
            Ok(EntryContent::Blob(_)) => Ok(true),
            Ok(EntryContent::Manifest(_)) => Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads a manifest and checks that the target has it. `None` if neither endpoint has it: an index may list missing
    /// manifests.
    async fn check_and_read(
        &mut self,
        digest: &Digest,
        description: &str,
        missing_kind: FindingKind,
    ) -> Result<Option<Manifest>> {
        let reference = ManifestRef::Digest(digest.clone());
        let finding = match self.settings.deep {
            // The client verifies the content against the digest.
            true => match get_target_manifest(&self.endpoints.target, &reference).await {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(error) if error.kind() == ErrorKind::NotFound => Some((missing_kind, "is missing".to_owned())),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    Some((FindingKind::CorruptManifest, format!("is corrupt: {}", error.message())))
                }
                Err(error) => return Err(error),
            },
            false => match self.endpoints.target.manifest_head(&reference).await? {
                Some(_) => None,
                None => Some((missing_kind, "is missing".to_owned())),
            },
        };
        let read = match &self.filtered_root {
            Some(root) if self.is_filtered(digest) => Ok(root.clone()),
            _ => self.endpoints.source.manifest_by_digest(digest).await,
        };
        match (read, finding) {
            (Ok(manifest), finding) => {
                if let Some((kind, how)) = finding {
                    self.record_finding(kind, digest, format!("{description} ({digest}) {how}"));
                }
                Ok(Some(manifest))
            }
            (Err(error), Some((kind, _)))
                if error.kind() == ErrorKind::NotFound && kind != FindingKind::CorruptManifest =>
            {
                Ok(None)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Checks the referrers of a manifest.
    async fn check_referrers(
        &mut self,
        digest: &Digest,
        description: &str,
        depth: usize,
        pending: &mut Vec<PendingManifest>,
    ) -> Result<()> {
        let wanted = match &self.settings.referrers {
            _ if self.is_filtered(digest) => return Ok(()),
            RequiredReferrers::None => return Ok(()),
            RequiredReferrers::All => None,
            RequiredReferrers::Types(types) => Some(types),
        };
        let mut there = list_source_referrers(&self.endpoints.source, digest).await?;
        let is_wanted = |referrer: &Descriptor| match wanted {
            None => true,
            Some(types) => types.iter().any(|wanted| referrer.artifact_type.as_deref() == Some(wanted)),
        };
        there.retain(is_wanted);
        if there.is_empty() {
            return Ok(());
        }
        let here: HashSet<Digest> = match &self.endpoints.target {
            CopyTarget::Registry(repository) => repository.list_referrers(digest).await?,
            CopyTarget::Layout(repository) => repository.list_referrers(digest).await?,
            CopyTarget::Archive(_) => Vec::new(),
            CopyTarget::Bundle(repository) => repository.list_referrers(digest),
        }
        .into_iter()
        .map(|referrer| referrer.digest)
        .collect();
        for referrer in there {
            self.referrers += 1;
            let kind = referrer.artifact_type.as_deref().unwrap_or("referrer");
            let name = format!("{kind} of {description}");
            if !here.contains(&referrer.digest) {
                let detail = format!("{name} ({}) is not listed at the target", referrer.digest);
                self.record_finding(FindingKind::MissingReferrer, &referrer.digest, detail);
                continue;
            }
            pending.push(PendingManifest {
                digest: referrer.digest,
                description: name,
                depth: depth + 1,
                missing_kind: FindingKind::MissingReferrer,
            });
        }
        Ok(())
    }

    /// Checks cosign's digest tags of an image.
    async fn check_cosign_tags(&mut self, digest: &Digest, pending: &mut Vec<PendingManifest>) -> Result<()> {
        if self.settings.referrers != RequiredReferrers::All || self.endpoints.source.repository().is_none() {
            return Ok(());
        }
        for kind in COSIGN_SUFFIXES {
            let Ok(tag) = format!("{}.{kind}", digest.fallback_tag()).parse::<Tag>() else { continue };
            let reference = ManifestRef::Tag(tag.clone());
            let Some(there) = self.endpoints.source.manifest_head(&reference).await? else { continue };
            self.referrers += 1;
            let here = self.endpoints.target.manifest_head(&reference).await?;
            match here.is_some_and(|here| here.digest == there.digest) {
                true => pending.push(PendingManifest {
                    digest: there.digest,
                    description: format!("tag {tag}"),
                    depth: 1,
                    missing_kind: FindingKind::MissingReferrer,
                }),
                false => {
                    let detail = format!("tag {tag} differs from the source ({})", there.digest);
                    self.record_finding(FindingKind::MissingReferrer, &there.digest, detail);
                }
            }
        }
        Ok(())
    }
}

async fn get_target_manifest(target: &CopyTarget, reference: &ManifestRef) -> Result<Manifest> {
    match target {
        CopyTarget::Registry(repository) => repository.get_manifest(reference).await,
        CopyTarget::Layout(repository) => repository.get_manifest(reference).await,
        CopyTarget::Archive(target) => Err(target.not_readable()),
        CopyTarget::Bundle(repository) => super::bundle::read_collected(repository, reference),
    }
}

pub(super) async fn list_source_referrers(source: &CopySource, digest: &Digest) -> Result<Vec<Descriptor>> {
    match source {
        CopySource::Registry(repository) => repository.list_referrers(digest).await,
        CopySource::Layout(repository) => repository.list_referrers(digest).await,
        CopySource::Bundle(repository) => Ok(repository.list_referrers(digest)),
    }
}
