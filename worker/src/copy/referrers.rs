//! Copies what belongs to an image: its referrers (signatures, SBOMs, attestations), their referrers in turn, and the
//! cosign tags named by its digest.
//!
//! They are copied before the tag, so that whoever sees the tag also finds the signature.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use futures_util::StreamExt as _;
use imgsync_common::batch::Referrers;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Companion, Descriptor, Digest, Kind, Manifest};
use imgsync_common::registry::{FallbackTag, ManifestRef};

use super::choose::Chosen;
use super::known::Seen;
use super::listed::Listed;
use super::walk::{At, Walk};

/// Maximum manifests queried, and referrers of one manifest copied, concurrently.
const AT_ONCE: usize = 4;
/// Maximum depth of referrers; real images have two levels.
const MAX_LEVELS: usize = 16;
/// Maximum referrers of one image; more than any has.
const MAX_REFERRERS: usize = 10_000;

/// A manifest whose referrers are copied.
struct Subject {
    digest: Digest,
    /// Whether to look for cosign's tags as well.
    tags: bool,
}

/// Referrers of one manifest.
#[derive(Default)]
struct Found {
    /// Whether there are any, selected or not.
    anything: bool,
    /// Referrers now at the target; they may have referrers themselves.
    referrers: Vec<Digest>,
    /// Number of referrers that were missing at the target.
    brought: u64,
}

/// State shared by all manifests of one image.
struct Company<'a> {
    seen: Seen,
    /// Put by digest before its referrers, if its tag is put later.
    root: Option<&'a Manifest>,
    root_is_put: tokio::sync::OnceCell<()>,
}

impl Walk {
    /// Copies the referrers of an image that was not read yet. Looks at the children of an index only if the index
    /// itself has any.
    pub(super) async fn bring_referrers_of_root<F>(&self, root: &Digest, read: impl FnOnce() -> F) -> Result<u64>
    where
        F: Future<Output = Result<Chosen>>,
    {
        let company = Company { seen: Seen::default(), root: None, root_is_put: tokio::sync::OnceCell::new() };
        let first = Subject { digest: root.clone(), tags: true };
        let found = self.company_of(first, &company).await?;
        if !found.anything {
            return Ok(0);
        }
        let Chosen { root, only, .. } = read().await?;
        let mut children = self.listed_by(&root).await?;
        children.retain(|child| only.as_ref().is_none_or(|only| only.contains(child)));
        let mut next: Vec<Subject> = found.referrers.into_iter().map(|digest| self.subject(digest, false)).collect();
        next.extend(children.into_iter().map(|digest| self.subject(digest, true)));
        Ok(found.brought + self.bring_levels(next, &company).await?)
    }

    /// Copies the referrers of an image and of all its children, and returns the number copied. `is_at_source`: the
    /// source has the image itself, not only its children. `put_first`: the image is not at the target yet.
    pub(super) async fn bring_referrers(&self, root: &Manifest, is_at_source: bool, put_first: bool) -> Result<u64> {
        if !self.referrers.are_wanted() {
            return Ok(0);
        }
        let first = Some(root).filter(|_| put_first);
        let company = Company { seen: Seen::default(), root: first, root_is_put: tokio::sync::OnceCell::new() };
        let mut found = Found::default();
        if is_at_source {
            found = self.company_of(Subject { digest: root.digest().clone(), tags: true }, &company).await?;
        }
        let children = self.listed_by(root).await?;
        let tags = found.anything || !is_at_source;
        let mut next: Vec<Subject> = found.referrers.into_iter().map(|digest| self.subject(digest, false)).collect();
        next.extend(children.into_iter().map(|digest| self.subject(digest, tags)));
        Ok(found.brought + self.bring_levels(next, &company).await?)
    }

    /// Looks for cosign's tags if a listing showed some in the repository, or if `tags` is set.
    fn subject(&self, digest: Digest, tags: bool) -> Subject {
        Subject { digest, tags: tags || self.company.is_listed() }
    }

    /// Lists all manifests below one.
    async fn listed_by(&self, root: &Manifest) -> Result<Vec<Digest>> {
        let mut found: Vec<Digest> = Vec::new();
        let mut seen: HashSet<Digest> = HashSet::new();
        let mut open: Vec<Descriptor> = self.children_of(root).into_iter().cloned().collect();
        while let Some(child) = open.pop() {
            if self.is_listed_blob(&child.digest) || !seen.insert(child.digest.clone()) {
                continue;
            }
            match self.noted_index(&child.digest) {
                Some(children) => open.extend(children),
                None if child.media_type.is_index() => {
                    open.extend(self.child(&child).await?.children().into_iter().cloned());
                }
                None => {}
            }
            found.push(child.digest);
        }
        Ok(found)
    }

    async fn bring_levels(&self, mut level: Vec<Subject>, company: &Company<'_>) -> Result<u64> {
        let (mut brought, mut asked) = (0, 0);
        for _ in 0..MAX_LEVELS {
            if level.is_empty() {
                return Ok(brought);
            }
            asked += level.len();
            if asked > MAX_REFERRERS {
                break;
            }
            let work = futures_util::stream::iter(level)
                .map(|subject| Box::pin(self.company_of(subject, company)))
                .buffer_unordered(AT_ONCE);
            let found: Vec<Found> = self.gather(work).await?;
            brought += found.iter().map(|found| found.brought).sum::<u64>();
            let referrers = found.into_iter().flat_map(|found| found.referrers);
            level = referrers.map(|digest| self.subject(digest, false)).collect();
        }
        let detail = format!("more than {MAX_LEVELS} levels or {MAX_REFERRERS} of them");
        Err(Error::new(Class::Unsupported, "copying what refers to an image", detail)
            .hint("`referrers: false` copies the image alone"))
    }

    /// Copies the referrers and cosign tags of one manifest.
    async fn company_of(&self, subject: Subject, company: &Company<'_>) -> Result<Found> {
        let Subject { digest: subject, tags } = subject;
        let by_tag = async {
            match tags {
                true => self.cosign_tags(&subject, company).await,
                false => Ok(Found::default()),
            }
        };
        let (referring, tagged) = tokio::join!(self.referring(&subject, company), by_tag);
        let (mut found, tagged) = (referring?, tagged?);
        found.anything |= tagged.anything;
        found.brought += tagged.brought;
        found.referrers.extend(tagged.referrers);
        Ok(found)
    }

    /// Copies the referrers found by `subject`.
    async fn referring(&self, subject: &Digest, company: &Company<'_>) -> Result<Found> {
        let fallback = match (self.company.is_listed(), self.company.may_have(Companion::Referrers)) {
            (false, _) => FallbackTag::Unknown,
            (true, true) => FallbackTag::Listed,
            (true, false) => FallbackTag::Absent,
        };
        let (mut listed, index) = self.source.referrers(subject, fallback).await?;
        if let Some(index) = index {
            self.note_companion(Companion::Referrers, subject, &index);
        }
        let mut found = Found { anything: !listed.is_empty(), ..Found::default() };
        listed.retain(|referrer| referrer.digest != *subject && company.seen.first_time(&referrer.digest));
        listed.retain(|referrer| referrer.artifact_type.as_deref().is_none_or(|kind| self.wants_type(kind)));
        if listed.is_empty() {
            return Ok(found);
        }
        self.put_root(company).await?;
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
                    let Some(manifest) = self.referrer(&referrer).await? else { return Ok(None) };
                    self.bring_children_and_blobs(&manifest, 0).await?;
                    let place = ManifestRef::Digest(referrer.digest.clone());
                    let put = self.put_manifest(&manifest, At::Reference(&place)).await.map_err(with_advice)?;
                    if !put.subject_kept {
                        unlisted.lock().unwrap_or_else(PoisonError::into_inner).push(manifest);
                    }
                    self.sums.referrers.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, Error>(Some((referrer.digest, true)))
                })
            })
            .buffered(AT_ONCE);
        for (digest, is_new) in self.gather(work).await?.into_iter().flatten() {
            found.referrers.push(digest);
            found.brought += u64::from(is_new);
        }
        let unlisted = unlisted.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !unlisted.is_empty() {
            self.list_under(subject, &unlisted).await?;
        }
        Ok(found)
    }

    /// Reads a referrer from the source, if it is selected.
    async fn referrer(&self, referrer: &Descriptor) -> Result<Option<Manifest>> {
        match self.source.listed(referrer, &self.source_tally).await {
            Ok(Listed::Manifest(manifest)) => Ok(Some(manifest).filter(|manifest| self.wants(manifest))),
            Ok(Listed::Blob(_)) => {
                let digest = &referrer.digest;
                self.context
                    .warn(format!("{digest} is listed as a referrer and is a blob, which refers to nothing: left out"));
                Ok(None)
            }
            // Pushing clients maintain the fallback index: it can list deleted manifests.
            Err(error) if error.class() == Class::NotFound => {
                self.context.warn(format!("{error}; it is listed as a referrer all the same, and left out"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Copies cosign's digest tags of a manifest.
    async fn cosign_tags(&self, subject: &Digest, company: &Company<'_>) -> Result<Found> {
        let kinds = Companion::COSIGN.into_iter().filter(|kind| self.company.may_have(*kind));
        let work = futures_util::stream::iter(kinds)
            .map(|kind| Box::pin(self.cosign_tag(kind, subject, company)))
            .buffered(Companion::COSIGN.len());
        let found: Vec<Found> = self.gather(work).await?;
        Ok(found.into_iter().fold(Found::default(), |mut all, one| {
            all.anything |= one.anything;
            all.brought += one.brought;
            all.referrers.extend(one.referrers);
            all
        }))
    }

    async fn cosign_tag(&self, kind: Companion, subject: &Digest, company: &Company<'_>) -> Result<Found> {
        let tag = kind.tag_of(subject);
        let mut found = Found::default();
        let Some(at_source) = self.source.companion_head(&tag).await? else { return Ok(found) };
        found.anything = true;
        self.note_companion(kind, subject, &at_source.digest);
        let there = self.target.companion_head(&tag).await?;
        if !self.force && there.is_some_and(|there| there.digest == at_source.digest) {
            found.referrers.push(at_source.digest);
            return Ok(found);
        }
        let manifest = match self.source.by_digest(&at_source.digest).await {
            // The tag has moved meanwhile.
            Err(error) if error.class() == Class::NotFound => {
                self.source.manifest_get(Some(&ManifestRef::Tag(tag.clone()))).await?
            }
            read => read?,
        };
        if !self.wants(&manifest) {
            return Ok(found);
        }
        self.put_root(company).await?;
        self.bring_children_and_blobs(&manifest, 0).await?;
        self.put_manifest(&manifest, At::Companion(&tag)).await.map_err(with_advice)?;
        self.sums.referrers.fetch_add(1, Ordering::Relaxed);
        found.brought = 1;
        found.referrers.push(manifest.digest().clone());
        Ok(found)
    }

    /// Puts the subject before its referrers: some registries require it.
    async fn put_root(&self, company: &Company<'_>) -> Result<()> {
        let Some(root) = company.root else { return Ok(()) };
        let put = || async {
            let place = ManifestRef::Digest(root.digest().clone());
            self.put(root, &place).await
        };
        company.root_is_put.get_or_try_init(put).await.map(drop)
    }

    fn note_companion(&self, kind: Companion, subject: &Digest, found: &Digest) {
        let mut noted = self.sums.companions.lock().unwrap_or_else(PoisonError::into_inner);
        noted.push((kind.tag_of(subject), found.clone()));
    }

    fn wants_all(&self) -> bool {
        self.referrers == Referrers::All
    }

    fn wants_type(&self, kind: &str) -> bool {
        match &self.referrers {
            Referrers::All => true,
            Referrers::None => false,
            Referrers::Types(types) => types.iter().any(|wanted| wanted.eq_ignore_ascii_case(kind)),
        }
    }

    /// Whether the referrer's type is selected. Cosign's tags have no artifact type; their layers' media types count.
    fn wants(&self, manifest: &Manifest) -> bool {
        let of_layers = || match manifest.kind() {
            Kind::Image { layers, .. } => layers.iter().any(|layer| self.wants_type(layer.media_type.as_str())),
            Kind::Index { .. } => false,
        };
        self.wants_all() || manifest.artifact_type().is_some_and(|kind| self.wants_type(kind)) || of_layers()
    }
}

/// Adds a hint for a target that accepts only images.
fn with_advice(error: Error) -> Error {
    match error.class() {
        Class::Refused => error.hint("it belongs to the image, which `referrers: false` copies alone"),
        _ => error,
    }
}
