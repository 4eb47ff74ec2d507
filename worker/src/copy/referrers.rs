//! What belongs to an image without being part of it: what refers to it (signatures, SBOMs, attestations), what refers to
//! that in turn, and the tags that cosign names by its digest.
//!
//! It comes before the tag, so that whoever sees the tag finds the signature too.

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

/// Manifests that are asked about at the same time, and referrers of one that are copied at the same time.
const AT_ONCE: usize = 4;
/// Referrers of referrers; real ones have two.
const MAX_LEVELS: usize = 16;
/// More than any image has.
const MAX_REFERRERS: usize = 10_000;

/// A manifest whose referrers are asked for.
struct Subject {
    digest: Digest,
    /// Whether cosign's tags are asked for as well.
    tags: bool,
}

/// What was found for one manifest.
#[derive(Default)]
struct Found {
    /// Whether there was anything, wanted or not.
    anything: bool,
    /// What came along, or was there: it may have referrers of its own.
    referrers: Vec<Digest>,
    /// How many were not at the target.
    brought: u64,
}

/// What all subjects of one image share.
struct Company<'a> {
    seen: Seen,
    /// Is put by its digest before anything that refers to it, where its tag comes later.
    root: Option<&'a Manifest>,
    root_is_put: tokio::sync::OnceCell<()>,
}

impl Walk {
    /// Brings what belongs to an image of which nothing was read, as far as the image itself is asked for. What an index
    /// lists is asked about if the index has anything itself.
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

    /// Brings what belongs to an image and to all that it lists. `is_at_source`: whether the source has the image itself,
    /// and not only what it lists. `put_first`: whether the image is still to be put. Says how many were brought.
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

    /// Cosign's tags are asked for where a listing showed some in the repository, or where there is reason to.
    fn subject(&self, digest: Digest, tags: bool) -> Subject {
        Subject { digest, tags: tags || self.company.is_listed() }
    }

    /// All manifests below one.
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

    /// Brings what belongs to one manifest.
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

    /// What refers to a manifest by its `subject`.
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

    /// A referrer from the source, if it is wanted.
    async fn referrer(&self, referrer: &Descriptor) -> Result<Option<Manifest>> {
        match self.source.listed(referrer, &self.source_tally).await {
            Ok(Listed::Manifest(manifest)) => Ok(Some(manifest).filter(|manifest| self.wants(manifest))),
            Ok(Listed::Blob(_)) => {
                let digest = &referrer.digest;
                self.context
                    .warn(format!("{digest} is listed as a referrer and is a blob, which refers to nothing: left out"));
                Ok(None)
            }
            // An index under a fallback tag is kept by those who push: it can list what was deleted long ago.
            Err(error) if error.class() == Class::NotFound => {
                self.context.warn(format!("{error}; it is listed as a referrer all the same, and left out"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What cosign keeps under tags that are named by a manifest.
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
            // The tag has moved on meanwhile.
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

    /// What is referred to is there before what refers to it: some registries want it so.
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

    /// Whether it is of a type that is wanted. What cosign keeps under tags has no type of its own: its layers have.
    fn wants(&self, manifest: &Manifest) -> bool {
        let of_layers = || match manifest.kind() {
            Kind::Image { layers, .. } => layers.iter().any(|layer| self.wants_type(layer.media_type.as_str())),
            Kind::Index { .. } => false,
        };
        self.wants_all() || manifest.artifact_type().is_some_and(|kind| self.wants_type(kind)) || of_layers()
    }
}

/// What to do where a target takes images and nothing else.
fn with_advice(error: Error) -> Error {
    match error.class() {
        Class::Refused => error.hint("it belongs to the image, which `referrers: false` copies alone"),
        _ => error,
    }
}
