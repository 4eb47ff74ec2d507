//! Copies what belongs to an image: its referrers (signatures, SBOMs, attestations), their referrers in turn, and the
//! cosign tags named by its digest.
//!
//! They are copied before the tag, so that whoever sees the tag also finds the signature. If the policy demands
//! signatures, images among them are left out: an image that nobody signed would be at the target under a digest tag.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use futures_util::StreamExt as _;
use imgsync_model::batch::Referrers;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, DigestTag, Manifest, ManifestKind};
use imgsync_registry::{FallbackTag, ManifestRef};

use super::index_entry::EntryContent;
use super::platform_filter::SelectedImage;
use super::target_cache::DigestSet;
use super::transfer::{ImageTransfer, PutTarget, RootReferrers};

/// Maximum manifests queried, and referrers of one manifest copied, concurrently.
const MAX_CONCURRENT_REFERRERS: usize = 4;
/// Maximum depth of referrers; real images have two levels.
const MAX_LEVELS: usize = 16;
/// Maximum referrers of one image; more than any has.
pub(super) const MAX_REFERRERS: usize = 10_000;
/// Maximum refused referrers that a warning names.
const MAX_NAMED_REFERRERS: usize = 3;

/// A manifest whose referrers are copied.
struct ReferrerSubject {
    digest: Digest,
    /// Whether to look for cosign's tags as well.
    has_cosign_tags: bool,
}

/// Referrers of one manifest.
#[derive(Default)]
struct ReferrersFound {
    /// Whether there are any, selected or not.
    has_any: bool,
    /// Referrers now at the target; they may have referrers themselves.
    referrers: Vec<Digest>,
    /// Number of referrers that were missing at the target.
    copied: u64,
}

/// State shared by all manifests of one image.
struct ReferrerContext<'a> {
    seen: DigestSet,
    /// Put by digest before its referrers, if its tag is put later.
    root: Option<&'a Manifest>,
    root_put: tokio::sync::OnceCell<()>,
    refused: Mutex<RefusedReferrers>,
}

/// Referrers that the policy does not allow.
#[derive(Default)]
struct RefusedReferrers {
    count: usize,
    /// Names of the first few.
    named: Vec<String>,
}

impl<'a> ReferrerContext<'a> {
    fn new(root: Option<&'a Manifest>) -> ReferrerContext<'a> {
        let (seen, root_put, refused) = Default::default();
        ReferrerContext { seen, root, root_put, refused }
    }

    fn record_refused(&self, name: &str, reason: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.count += 1;
        if refused.named.len() < MAX_NAMED_REFERRERS {
            refused.named.push(format!("{name} {reason}"));
        }
    }
}

impl ImageTransfer {
    /// Transfers the content of an image, and lists the referrers of its root at the same time, for
    /// [`ImageTransfer::copy_referrers`].
    pub(super) async fn list_referrers_during(
        &self,
        content: impl Future<Output = Result<()>>,
        root: &Digest,
        is_at_source: bool,
    ) -> Result<()> {
        if !is_at_source || !self.referrers.copies_any() {
            return content.await;
        }
        let mut content = std::pin::pin!(content);
        let mut listing = std::pin::pin!(self.list_source_referrers(root));
        let listing = tokio::select! {
            transferred = &mut content => {
                transferred?;
                listing.await
            }
            listing = &mut listing => {
                content.await?;
                listing
            }
        };
        let listed = RootReferrers { root: root.clone(), listing };
        *self.root_referrers.lock().unwrap_or_else(PoisonError::into_inner) = Some(listed);
        Ok(())
    }

    async fn list_source_referrers(&self, subject: &Digest) -> Result<(Vec<Descriptor>, Option<Digest>)> {
        let fallback = match (self.digest_tag_hints.is_listed(), self.digest_tag_hints.may_have(DigestTag::Referrers)) {
            (false, _) => FallbackTag::Unknown,
            (true, true) => FallbackTag::Listed,
            (true, false) => FallbackTag::Absent,
        };
        self.source.referrers(subject, fallback).await
    }

    /// Copies the referrers of an image that was not read yet. Looks at the children of an index only if the index
    /// itself has any.
    pub(super) async fn copy_referrers_of_unread_root<F>(&self, root: &Digest, read: impl FnOnce() -> F) -> Result<u64>
    where
        F: Future<Output = Result<SelectedImage>>,
    {
        let shared = ReferrerContext::new(None);
        let copied = self.copy_referrers_unread(root, read, &shared).await;
        self.warn_refused(root, &shared);
        copied
    }

    async fn copy_referrers_unread<F>(
        &self,
        root: &Digest,
        read: impl FnOnce() -> F,
        shared: &ReferrerContext<'_>,
    ) -> Result<u64>
    where
        F: Future<Output = Result<SelectedImage>>,
    {
        let first = ReferrerSubject { digest: root.clone(), has_cosign_tags: true };
        let found = self.copy_referrers_of(first, shared).await?;
        if !found.has_any {
            return Ok(0);
        }
        let SelectedImage { root, selected_children, .. } = read().await?;
        let mut children = self.list_descendants(&root).await?;
        children.retain(|child| {
            selected_children.as_ref().is_none_or(|selected_children| selected_children.contains(child))
        });
        let mut next: Vec<ReferrerSubject> =
            found.referrers.into_iter().map(|digest| self.make_subject(digest, false)).collect();
        next.extend(children.into_iter().map(|digest| self.make_subject(digest, true)));
        Ok(found.copied + self.copy_levels(next, shared).await?)
    }

    /// Copies the referrers of an image and of all its children, and returns the number copied. `is_at_source`: the
    /// source has the image itself, not only its children. `put_first`: the image is not at the target yet.
    pub(super) async fn copy_referrers(&self, root: &Manifest, is_at_source: bool, put_first: bool) -> Result<u64> {
        if !self.referrers.copies_any() {
            return Ok(0);
        }
        let shared = ReferrerContext::new(Some(root).filter(|_| put_first));
        let copied = self.copy_all_referrers(root, is_at_source, &shared).await;
        self.warn_refused(root.digest(), &shared);
        copied
    }

    async fn copy_all_referrers(
        &self,
        root: &Manifest,
        is_at_source: bool,
        shared: &ReferrerContext<'_>,
    ) -> Result<u64> {
        let mut found = ReferrersFound::default();
        if is_at_source {
            found = self
                .copy_referrers_of(ReferrerSubject { digest: root.digest().clone(), has_cosign_tags: true }, shared)
                .await?;
        }
        let children = self.list_descendants(root).await?;
        let tags = found.has_any || !is_at_source;
        let mut next: Vec<ReferrerSubject> =
            found.referrers.into_iter().map(|digest| self.make_subject(digest, false)).collect();
        next.extend(children.into_iter().map(|digest| self.make_subject(digest, tags)));
        Ok(found.copied + self.copy_levels(next, shared).await?)
    }

    /// Warns about referrers that the policy does not allow.
    fn warn_refused(&self, root: &Digest, shared: &ReferrerContext<'_>) {
        let refused = shared.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.count == 0 {
            return;
        }
        let more = match refused.count - refused.named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let source = self.source_locator.as_ref().map(|source| format!("{source}@")).unwrap_or_default();
        self.context.warn(format!(
            "{source}{root}: referrers that are images are not copied, because `policy.signed` does not check them: \
             {} ({}{more})",
            refused.count,
            refused.named.join(", ")
        ));
    }

    /// Looks for cosign's tags if a listing showed some in the repository, or if `has_cosign_tags` is set.
    fn make_subject(&self, digest: Digest, tags: bool) -> ReferrerSubject {
        ReferrerSubject { digest, has_cosign_tags: tags || self.digest_tag_hints.is_listed() }
    }

    /// Lists all manifests below one.
    async fn list_descendants(&self, root: &Manifest) -> Result<Vec<Digest>> {
        let mut found: Vec<Digest> = Vec::new();
        let mut seen: HashSet<Digest> = HashSet::new();
        let mut open: Vec<Descriptor> = self.children_of(root).into_iter().cloned().collect();
        while let Some(child) = open.pop() {
            if self.is_listed_blob(&child.digest) || !seen.insert(child.digest.clone()) {
                continue;
            }
            match self.cached_index(&child.digest) {
                Some(children) => open.extend(children),
                None if child.media_type.is_index() => {
                    open.extend(self.child_manifest(&child).await?.children().into_iter().cloned());
                }
                None => {}
            }
            found.push(child.digest);
        }
        Ok(found)
    }

    async fn copy_levels(&self, mut level: Vec<ReferrerSubject>, shared: &ReferrerContext<'_>) -> Result<u64> {
        let (mut copied, mut checked) = (0, 0);
        for _ in 0..MAX_LEVELS {
            if level.is_empty() {
                return Ok(copied);
            }
            checked += level.len();
            if checked > MAX_REFERRERS {
                break;
            }
            let work = futures_util::stream::iter(level)
                .map(|subject| Box::pin(self.copy_referrers_of(subject, shared)))
                .buffer_unordered(MAX_CONCURRENT_REFERRERS);
            let found: Vec<ReferrersFound> = self.collect_all(work).await?;
            copied += found.iter().map(|found| found.copied).sum::<u64>();
            let referrers = found.into_iter().flat_map(|found| found.referrers);
            level = referrers.map(|digest| self.make_subject(digest, false)).collect();
        }
        let detail = format!("more than {MAX_LEVELS} levels or {MAX_REFERRERS} referrers");
        Err(Error::new(ErrorKind::Unsupported, "copying referrers", detail)
            .with_hint("set `referrers: false` to copy the image without them"))
    }

    /// Copies the referrers and cosign tags of one manifest.
    async fn copy_referrers_of(
        &self,
        subject: ReferrerSubject,
        shared: &ReferrerContext<'_>,
    ) -> Result<ReferrersFound> {
        let ReferrerSubject { digest: subject, has_cosign_tags } = subject;
        let by_tag = async {
            match has_cosign_tags {
                true => self.copy_cosign_tags(&subject, shared).await,
                false => Ok(ReferrersFound::default()),
            }
        };
        let (referring, tagged) = tokio::join!(self.copy_by_subject(&subject, shared), by_tag);
        let (mut found, tagged) = (referring?, tagged?);
        found.has_any |= tagged.has_any;
        found.copied += tagged.copied;
        found.referrers.extend(tagged.referrers);
        Ok(found)
    }

    /// Copies the referrers found by `make_subject`.
    async fn copy_by_subject(&self, subject: &Digest, shared: &ReferrerContext<'_>) -> Result<ReferrersFound> {
        let ahead =
            self.root_referrers.lock().unwrap_or_else(PoisonError::into_inner).take_if(|it| it.root == *subject);
        let (mut listed, index) = match ahead {
            Some(ahead) => ahead.listing?,
            None => self.list_source_referrers(subject).await?,
        };
        if let Some(index) = index {
            self.record_digest_tag(DigestTag::Referrers, subject, &index);
        }
        let mut found = ReferrersFound { has_any: !listed.is_empty(), ..ReferrersFound::default() };
        listed.retain(|referrer| referrer.digest != *subject && shared.seen.insert(&referrer.digest));
        listed.retain(|referrer| referrer.artifact_type.as_deref().is_none_or(|kind| self.wants_type(kind)));
        if listed.is_empty() {
            return Ok(found);
        }
        self.put_root_first(shared).await?;
        let there = self.target.referrers(subject).await?;
        let there: HashMap<Digest, Option<String>> =
            there.into_iter().map(|referrer| (referrer.digest, referrer.artifact_type)).collect();
        let unlisted: Mutex<Vec<Manifest>> = Mutex::default();
        let work = futures_util::stream::iter(listed)
            .map(|referrer| {
                let is_there = !self.force
                    && match there.get(&referrer.digest) {
                        Some(kind) => referrer.artifact_type.is_some() || kind.is_some() || self.wants_all(),
                        None => false,
                    };
                let unlisted = &unlisted;
                Box::pin(async move {
                    if is_there {
                        return Ok(Some((referrer.digest, false)));
                    }
                    let Some(manifest) = self.read_referrer(&referrer, shared).await? else { return Ok(None) };
                    self.ensure_content(&manifest, 0).await?;
                    let reference = ManifestRef::Digest(referrer.digest.clone());
                    let put = self
                        .put_manifest(&manifest, PutTarget::Reference(&reference))
                        .await
                        .map_err(with_referrers_hint)?;
                    if !put.subject_kept {
                        unlisted.lock().unwrap_or_else(PoisonError::into_inner).push(manifest);
                    }
                    self.counters.referrers.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, Error>(Some((referrer.digest, true)))
                })
            })
            .buffered(MAX_CONCURRENT_REFERRERS);
        for (digest, is_new) in self.collect_all(work).await?.into_iter().flatten() {
            found.referrers.push(digest);
            found.copied += u64::from(is_new);
        }
        let unlisted = unlisted.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !unlisted.is_empty() {
            self.list_under_subject(subject, &unlisted).await?;
        }
        Ok(found)
    }

    /// Reads a referrer from the source, if it is selected and the policy allows it.
    async fn read_referrer(&self, referrer: &Descriptor, shared: &ReferrerContext<'_>) -> Result<Option<Manifest>> {
        match self.source.resolve_entry(referrer, &self.source_traffic).await {
            Ok(EntryContent::Manifest(manifest)) if self.wants(&manifest) => match self.find_image_in(&manifest) {
                Some(reason) => {
                    shared.record_refused(&referrer.digest.to_string(), reason);
                    Ok(None)
                }
                None => Ok(Some(manifest)),
            },
            Ok(EntryContent::Manifest(_)) => Ok(None),
            Ok(EntryContent::Blob(_)) => {
                let digest = &referrer.digest;
                self.context.warn(format!("{digest} is listed as a referrer but is a blob: skipped"));
                Ok(None)
            }
            // Pushing clients maintain the fallback index: it can list deleted manifests.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.context.warn(format!("{error}; it is listed as a referrer: skipped"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Copies cosign's digest tags of a manifest.
    async fn copy_cosign_tags(&self, subject: &Digest, shared: &ReferrerContext<'_>) -> Result<ReferrersFound> {
        let kinds = DigestTag::COSIGN.into_iter().filter(|kind| self.digest_tag_hints.may_have(*kind));
        let work = futures_util::stream::iter(kinds)
            .map(|kind| Box::pin(self.copy_cosign_tag(kind, subject, shared)))
            .buffered(DigestTag::COSIGN.len());
        let found: Vec<ReferrersFound> = self.collect_all(work).await?;
        Ok(found.into_iter().fold(ReferrersFound::default(), |mut all, one| {
            all.has_any |= one.has_any;
            all.copied += one.copied;
            all.referrers.extend(one.referrers);
            all
        }))
    }

    async fn copy_cosign_tag(
        &self,
        kind: DigestTag,
        subject: &Digest,
        shared: &ReferrerContext<'_>,
    ) -> Result<ReferrersFound> {
        let tag = kind.tag_for(subject);
        let mut found = ReferrersFound::default();
        let Some(at_source) = self.source.digest_tag_head(&tag).await? else { return Ok(found) };
        found.has_any = true;
        self.record_digest_tag(kind, subject, &at_source.digest);
        let there = self.target.digest_tag_head(&tag).await?;
        if !self.force && there.is_some_and(|there| there.digest == at_source.digest) {
            found.referrers.push(at_source.digest);
            return Ok(found);
        }
        let manifest = match self.source.manifest_by_digest(&at_source.digest).await {
            // The tag has moved meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.source.manifest_get(Some(&ManifestRef::Tag(tag.clone()))).await?
            }
            read => read?,
        };
        if !self.wants(&manifest) {
            return Ok(found);
        }
        if let Some(reason) = self.find_image_in(&manifest) {
            shared.record_refused(tag.as_str(), reason);
            return Ok(found);
        }
        self.put_root_first(shared).await?;
        self.ensure_content(&manifest, 0).await?;
        self.put_manifest(&manifest, PutTarget::DigestTag(&tag)).await.map_err(with_referrers_hint)?;
        self.counters.referrers.fetch_add(1, Ordering::Relaxed);
        found.copied = 1;
        found.referrers.push(manifest.digest().clone());
        Ok(found)
    }

    /// Puts the subject before its referrers: some registries require it.
    async fn put_root_first(&self, shared: &ReferrerContext<'_>) -> Result<()> {
        let Some(root) = shared.root else { return Ok(()) };
        let put = || async {
            let reference = ManifestRef::Digest(root.digest().clone());
            self.put_at_reference(root, &reference).await
        };
        shared.root_put.get_or_try_init(put).await.map(drop)
    }

    fn record_digest_tag(&self, kind: DigestTag, subject: &Digest, found: &Digest) {
        let mut digest_tags = self.counters.digest_tags.lock().unwrap_or_else(PoisonError::into_inner);
        digest_tags.push((kind.tag_for(subject), found.clone()));
    }

    fn wants_all(&self) -> bool {
        self.referrers == Referrers::All
    }

    pub(super) fn wants_type(&self, kind: &str) -> bool {
        match &self.referrers {
            Referrers::All => true,
            Referrers::None => false,
            Referrers::Types(types) => types.iter().any(|wanted| wanted.eq_ignore_ascii_case(kind)),
        }
    }

    /// Whether the referrer's type is selected. Cosign's tags have no artifact type; their layers' media types count.
    pub(super) fn wants(&self, manifest: &Manifest) -> bool {
        let of_layers = || match manifest.kind() {
            ManifestKind::Image { layers, .. } => layers.iter().any(|layer| self.wants_type(layer.media_type.as_str())),
            ManifestKind::Index { .. } => false,
        };
        self.wants_all() || manifest.artifact_type().is_some_and(|kind| self.wants_type(kind)) || of_layers()
    }

    /// Returns what shows that a referrer is an image, if the policy demands signatures. The config does not: cosign gives
    /// its signatures that of an image.
    pub(super) fn find_image_in(&self, manifest: &Manifest) -> Option<&'static str> {
        match manifest.kind() {
            _ if !self.is_signature_required => None,
            ManifestKind::Index { .. } => Some("is an index"),
            ManifestKind::Image { layers, .. } => {
                let is_image = layers.iter().any(|layer| layer.media_type.is_image_content());
                is_image.then_some("has layers of an image")
            }
        }
    }
}

/// Adds a hint for a target that accepts only images.
fn with_referrers_hint(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Refused => error.with_hint(
            "the target rejected a referrer of the image; set `referrers: false` to copy the image without them",
        ),
        _ => error,
    }
}
