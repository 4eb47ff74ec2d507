//! Referrers (OCI distribution-spec v1.1, "Listing Referrers"): by the API, or by the fallback tag if a registry lacks
//! it. These requests are counted separately from those of a copy.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ::http::{Method, StatusCode, header};
use bytes::Bytes;
use rand::Rng as _;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::context::RequestKind;
use super::listing_memory::ListingShare;
use super::manifests::{ManifestHead, ManifestPut, ManifestRef};
use super::page_reader::{BoundedList, ListEntry, PageLimits, PageSize, read_page};
use super::transport::RequestSpec;
use super::{Repository, link, ssrf};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, DigestTag, Manifest, ManifestKind, MediaType, Tag, retry};

/// Size limit of a page, which is an index.
const MAX_PAGE_BYTES: usize = 8 << 20;
/// A listing with more pages is considered endless.
const MAX_PAGES: usize = 1000;
/// Limits on the referrers of one manifest, and on the bytes of their annotations.
pub(super) const MAX_REFERRERS: u64 = 10_000;
const MAX_ANNOTATIONS_BYTES: u64 = 16 << 20;

#[derive(Deserialize)]
struct ReferrersIndex {
    #[serde(default)]
    manifests: BoundedList<Descriptor>,
}

impl ListEntry for Descriptor {
    fn text_bytes(&self) -> usize {
        self.annotations.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

/// Parses a page of referrers and describes the result, for fuzzing.
#[cfg(test)]
pub(super) fn fuzz_parse(bytes: &[u8]) -> String {
    match serde_json::from_slice::<ReferrersIndex>(bytes) {
        Ok(index) => format!("{:?}", index.manifests),
        Err(error) => format!("{:?}", error.classify()),
    }
}

/// Number of locks, which limits concurrent writes of fallback indexes in this process.
const FALLBACK_LOCKS: usize = 64;

/// Locks that serialize writers of a fallback index, which is read, changed and written back: concurrent writes would
/// lose one. Several indexes share a lock, so their number is unlimited.
#[derive(Debug)]
pub(super) struct FallbackLocks(Box<[tokio::sync::Mutex<()>]>);

impl Default for FallbackLocks {
    fn default() -> FallbackLocks {
        FallbackLocks((0..FALLBACK_LOCKS).map(|_| tokio::sync::Mutex::default()).collect())
    }
}

impl FallbackLocks {
    fn lock_for(&self, index: impl Hash) -> &tokio::sync::Mutex<()> {
        let mut hasher = DefaultHasher::new();
        index.hash(&mut hasher);
        &self.0[(hasher.finish() % FALLBACK_LOCKS as u64) as usize]
    }
}

/// A repository without the API is asked again after this time: registries are upgraded.
const NO_API_TTL: Duration = Duration::from_secs(3600);
/// Number of attempts to write an index that others write concurrently.
const MAX_FALLBACK_WRITES: usize = 8;
/// Longest pause before a further attempt, in milliseconds.
const MAX_FALLBACK_PAUSE_MS: u64 = 400;

/// What the last answer showed of a repository's referrers API; `None` before the first answer. The first request holds
/// the lock until it is answered, and others wait for it: a repository without the API is asked once, however many of
/// its images are copied at that time.
pub(super) type ReferrersApiSlot = Arc<tokio::sync::Mutex<Option<ReferrersApi>>>;

/// What an answer shows of a repository's referrers API.
#[derive(Debug, Clone, Copy)]
pub(super) enum ReferrersApi {
    /// It listed referrers, or the answer or error does not show whether it can.
    MayHave,
    /// It had no API at this time. By repository: one host can serve several registries.
    Lacks(Instant),
}

/// Answer to a request for a page of referrers.
enum PageAnswer {
    /// Entries, what they hold, and the URL of the next page.
    Page(BoundedList<Descriptor>, PageSize, Option<Url>),
    /// The registry lacks the API.
    NoApi,
    /// No list, for another reason.
    NoList,
}

/// Prior knowledge about the index under the fallback tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallbackTag {
    /// Unknown: read it if the registry lacks the API.
    Unknown,
    /// The repository's tag list contains some: read it whatever the API returns.
    Listed,
    /// The repository's tag list contains none.
    Absent,
}

impl Repository {
    /// Lists the referrers of a manifest: signatures, SBOMs, attestations. Empty if there are none.
    pub async fn list_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        Ok(self.list_referrers_with_fallback(subject, FallbackTag::Unknown).await?.0)
    }

    /// The same with prior knowledge about the fallback tag. Also returns the digest of the fallback index, if it was
    /// read.
    pub async fn list_referrers_with_fallback(
        &self,
        subject: &Digest,
        fallback: FallbackTag,
    ) -> Result<(Vec<Descriptor>, Option<Digest>)> {
        let listed = match self.list_referrers_by_api(subject).await {
            // A mirror serves manifests and blobs, but does not list referrers.
            Err(error) if self.has_mirrors() && retry::is_transient(&error) => {
                self.context.warn(format!("{error}; its referrers are skipped this time"));
                None
            }
            listed => listed?,
        };
        let (has_api, mut found) = (listed.is_some(), listed.unwrap_or_default());
        // With the API, an index may be left from earlier days.
        if fallback == FallbackTag::Absent || (has_api && fallback == FallbackTag::Unknown) {
            return Ok((found, None));
        }
        let Some(index) = self.get_fallback_index(subject).await? else { return Ok((found, None)) };
        if let ManifestKind::Index { manifests } = index.kind() {
            for other in manifests {
                if !found.iter().any(|known| known.digest == other.digest) {
                    found.push(other.clone());
                }
            }
        }
        Ok((found, Some(index.digest().clone())))
    }

    /// Returns `None` if the registry lacks the API.
    async fn list_referrers_by_api(&self, subject: &Digest) -> Result<Option<Vec<Descriptor>>> {
        let operation = format!("listing the referrers of {}@{subject}", self.label());
        let slot = self.referrers_api_slot();
        // The request that is waited for has a deadline of its own.
        let waiting = self.context.clock.pause();
        let known = tokio::select! {
            known = slot.lock() => known,
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(&operation)),
        };
        drop(waiting);
        let mut first = None;
        match *known {
            Some(ReferrersApi::Lacks(seen)) if seen.elapsed() < NO_API_TTL => return Ok(None),
            Some(ReferrersApi::MayHave) => drop(known),
            Some(ReferrersApi::Lacks(_)) | None => first = Some(known),
        }
        let mut found = Vec::new();
        let mut next = Some(self.url(&format!("referrers/{subject}")));
        let mut pages = 0;
        let share = ListingShare::transient();
        let listing_total = PageSize { entries: MAX_REFERRERS, texts: MAX_ANNOTATIONS_BYTES };
        let PageSize { entries, texts } = listing_total;
        let mut left = PageLimits { bytes: MAX_PAGE_BYTES, entries, texts, listing_total };
        while let Some(url) = next {
            pages += 1;
            if pages > MAX_PAGES {
                return Err(Error::new(ErrorKind::InvalidResponse, &operation, "its pages never end"));
            }
            let answer = self.with_retries(|| self.referrers_page(&url, left, &share, &operation)).await;
            let shown = match &answer {
                Ok(PageAnswer::NoApi) => ReferrersApi::Lacks(Instant::now()),
                Ok(PageAnswer::Page(..) | PageAnswer::NoList) | Err(_) => ReferrersApi::MayHave,
            };
            // Another image asks first if this one was cancelled.
            if !answer.as_ref().is_err_and(Error::is_cancelled) {
                match first.take() {
                    Some(mut first) => *first = Some(shown),
                    None => *slot.lock().await = Some(shown),
                }
            }
            let PageAnswer::Page(page, size, after) = answer? else { return Ok(None) };
            left.entries -= size.entries.min(left.entries);
            left.texts -= size.texts.min(left.texts);
            found.extend(page);
            next = after;
        }
        Ok(Some(found))
    }

    fn referrers_api_slot(&self) -> ReferrersApiSlot {
        let mut slots = self.registry.referrers_apis.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get_or_insert_with(&self.name, ReferrersApiSlot::default).clone()
    }

    async fn referrers_page(
        &self,
        url: &Url,
        limits: PageLimits,
        share: &ListingShare,
        operation: &str,
    ) -> Result<PageAnswer> {
        let request = RequestSpec::new(Method::GET, url.clone(), operation)
            .header(header::ACCEPT, MediaType::OciIndex.as_str())
            .kind(RequestKind::Referrers);
        let mut response = self.send(request).await?;
        let status = response.status();
        if status != StatusCode::OK {
            let error = self.error_from_response(response, operation).await;
            let about_content = matches!(error.code(), Some("NAME_UNKNOWN" | "MANIFEST_UNKNOWN"));
            return match status {
                _ if error.kind() == ErrorKind::RateLimited => Err(error),
                StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::BAD_REQUEST
                | StatusCode::NOT_ACCEPTABLE
                | StatusCode::NOT_IMPLEMENTED => Ok(if about_content { PageAnswer::NoList } else { PageAnswer::NoApi }),
                // Some deny access to unknown paths. Denied access to the repository shows with the manifest.
                _ if error.kind() == ErrorKind::Denied => Ok(PageAnswer::NoList),
                _ => Err(error.with_hint("`referrers: false` copies the image without its referrers")),
            };
        }
        // A proxy that answers everything with its own page has no API.
        let content_type = MediaType::new(response.text_header(header::CONTENT_TYPE).unwrap_or_default());
        if !content_type.is_index() && content_type.as_str() != "application/json" {
            return Ok(PageAnswer::NoList);
        }
        let next =
            link::find_next(response.headers().get_all(header::LINK).iter().filter_map(|value| value.to_str().ok()));
        let next = next.and_then(|written| response.url().join(&written).ok());
        if let Some(next) = &next
            && !ssrf::same_origin(next, response.url())
        {
            let detail = format!("the link to its next page points to another host, {}", ssrf::origin(next));
            return Err(Error::new(ErrorKind::Insecure, operation, detail));
        }
        let (index, size): (ReferrersIndex, _) =
            read_page(&mut response, limits, share, &self.context, operation).await?;
        Ok(PageAnswer::Page(index.manifests, size, next))
    }

    async fn get_fallback_index(&self, subject: &Digest) -> Result<Option<Manifest>> {
        let tag = DigestTag::Referrers.tag_for(subject);
        match self.get_manifest_as(&ManifestRef::Tag(tag), RequestKind::Referrers).await {
            Ok(manifest) => Ok(Some(manifest)),
            // Some deny access to missing tags. Denied access to the repository shows with the image.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Denied) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the manifest under a digest tag; counted as a referrers request.
    pub async fn head_digest_tag(&self, tag: &Tag) -> Result<Option<ManifestHead>> {
        // A missing tag at a mirror proves nothing: the registry itself is asked, as for lists.
        match self.head_manifest_here(&ManifestRef::Tag(tag.clone()), RequestKind::Referrers).await {
            Err(error) if error.kind() == ErrorKind::Denied => Ok(None),
            Err(error) if self.has_mirrors() && retry::is_transient(&error) => {
                self.context.warn(format!("{error}; it is skipped this time"));
                Ok(None)
            }
            head => head,
        }
    }

    /// Puts a manifest under its digest tag; counted as a referrers request.
    pub async fn put_digest_tag(&self, tag: &Tag, manifest: &Manifest) -> Result<ManifestPut> {
        self.put_manifest_as(&ManifestRef::Tag(tag.clone()), manifest, RequestKind::Referrers).await
    }

    /// Adds referrers to the index under their subject's fallback tag, for registries that do not maintain referrers
    /// themselves. Entries that exist are not added again, and all other content of the index is kept.
    ///
    /// The index is read, changed and written back, so concurrent writes could lose one. Writers within this process
    /// are serialized by a lock; the caller excludes other imgsync processes. Against all others the index is read
    /// again after the write, and written again if entries are missing.
    pub async fn add_to_fallback_index(&self, subject: &Digest, referrers: &[Manifest]) -> Result<()> {
        let operation = format!("writing the index of referrers of {}@{subject}", self.label());
        let lock = self.client.0.fallback_locks.lock_for((&self.registry.name, &self.name, subject));
        let cancelled = || Error::cancelled(&operation);
        let _alone = tokio::select! {
            alone = lock.lock() => alone,
            () = self.context.cancel.cancelled() => return Err(cancelled()),
        };
        for _ in 0..MAX_FALLBACK_WRITES {
            let found = self
                .get_fallback_index(subject)
                .await?
                .filter(|found| matches!(found.kind(), ManifestKind::Index { .. }));
            let is_listed = |referrer: &Manifest| {
                found.iter().flat_map(Manifest::children).any(|known| known.digest == *referrer.digest())
            };
            let missing: Vec<&Manifest> = referrers.iter().filter(|referrer| !is_listed(referrer)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            let index = with_added(found.as_ref(), &missing)
                .map_err(|error| Error::new(ErrorKind::Invalid, &operation, error))?;
            let tag = DigestTag::Referrers.tag_for(subject);
            self.put_manifest_as(&ManifestRef::Tag(tag.clone()), &index, RequestKind::Referrers).await?;
            // A writer outside those locks may have written at the same time.
            let there = self.head_manifest_as(&ManifestRef::Tag(tag), RequestKind::Referrers).await?;
            if there.is_none_or(|there| there.digest == *index.digest()) {
                return Ok(());
            }
            let pause = Duration::from_millis(rand::rng().random_range(0..MAX_FALLBACK_PAUSE_MS));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.context.cancel.cancelled() => return Err(cancelled()),
            }
        }
        let detail = "other writers keep changing it at the same time";
        Err(Error::new(ErrorKind::ServerError, operation, detail)
            .with_hint("run only one program that writes referrers there"))
    }
}

/// Adds entries to the index. Edits the JSON, so that fields of other writers are kept.
fn with_added(found: Option<&Manifest>, referrers: &[&Manifest]) -> Result<Manifest, String> {
    let (mut index, media_type) = match found {
        Some(found) => {
            let index = serde_json::from_slice(found.bytes()).map_err(|error| error.to_string())?;
            (index, found.media_type().clone())
        }
        None => (
            json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": []}),
            MediaType::OciIndex,
        ),
    };
    let Some(manifests) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return Err("the existing index has no list of manifests".to_owned());
    };
    for referrer in referrers {
        let descriptor = Descriptor {
            artifact_type: referrer.artifact_type().map(str::to_owned),
            annotations: referrer.parsed().annotations.clone(),
            ..referrer.descriptor()
        };
        manifests.push(serde_json::to_value(&descriptor).map_err(|error| error.to_string())?);
    }
    let bytes = serde_json::to_vec(&index).map_err(|error| error.to_string())?;
    Manifest::parse(Bytes::from(bytes), &media_type).map_err(|error| error.to_string())
}
