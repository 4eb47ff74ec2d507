//! Referrers (OCI distribution-spec v1.1, "Listing Referrers"): by the API, and by the fallback tag where a registry
//! lacks it. Requests made here are counted apart from those of a copy.

use std::hash::{DefaultHasher, Hash, Hasher as _};

use ::http::{Method, StatusCode, header};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::context::Counted;
use super::manifests::ManifestRef;
use super::transport::Outgoing;
use super::{Repository, hop, link};
use crate::error::{Class, Error, Result};
use crate::image::{Descriptor, Digest, Kind, Manifest, MediaType, Tag};

/// A page of referrers is an index.
const MAX_PAGE_BYTES: usize = 8 << 20;
/// More pages than this are not a listing that ends.
const MAX_PAGES: usize = 1000;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// What a list of referrers is read as, for those who try to break that.
#[cfg(test)]
pub(super) fn shape(bytes: &[u8]) -> String {
    match serde_json::from_slice::<Index>(bytes) {
        Ok(index) => format!("{:?}", index.manifests),
        Err(error) => format!("{:?}", error.classify()),
    }
}

/// So many fallback indexes can be written at once in this process.
const FALLBACK_LOCKS: usize = 64;

/// One writer at a time for each fallback index, which is read, changed and written back: of two at once one would be
/// lost. A few indexes share a lock, so that their number does not matter.
#[derive(Debug)]
pub(super) struct FallbackLocks(Box<[tokio::sync::Mutex<()>]>);

impl Default for FallbackLocks {
    fn default() -> FallbackLocks {
        FallbackLocks((0..FALLBACK_LOCKS).map(|_| tokio::sync::Mutex::default()).collect())
    }
}

impl FallbackLocks {
    fn of(&self, index: impl Hash) -> &tokio::sync::Mutex<()> {
        let mut hasher = DefaultHasher::new();
        index.hash(&mut hasher);
        &self.0[(hasher.finish() % FALLBACK_LOCKS as u64) as usize]
    }
}

impl Repository {
    /// What refers to a manifest: signatures, SBOMs, attestations. Empty where there is nothing.
    pub async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let tried = format!("listing the referrers of {}@{subject}", self.label());
        let mut found = Vec::new();
        let mut next = Some(self.url(&format!("referrers/{subject}")));
        let mut pages = 0;
        while let Some(url) = next {
            pages += 1;
            if pages > MAX_PAGES {
                return Err(Error::new(Class::BadAnswer, &tried, "its pages do not end"));
            }
            match self.with_retries(|| self.referrers_page(&url, &tried)).await? {
                Some((page, after)) => {
                    found.extend(page);
                    next = after;
                }
                None => return self.fallback_referrers(subject).await,
            }
        }
        Ok(found)
    }

    /// `None`: the registry does not have the API.
    async fn referrers_page(&self, url: &Url, tried: &str) -> Result<Option<(Vec<Descriptor>, Option<Url>)>> {
        let request = Outgoing::new(Method::GET, url.clone(), tried)
            .header(header::ACCEPT, MediaType::OciIndex.as_str())
            .counted(Counted::Referrers);
        let answer = self.send(request).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => return Ok(None),
            _ => return Err(self.refusal(answer, tried).await),
        }
        // A proxy that answers everything with a page of its own has no API.
        let content_type = MediaType::new(answer.text_header(header::CONTENT_TYPE).unwrap_or_default());
        if !content_type.is_index() && content_type.as_str() != "application/json" {
            return Ok(None);
        }
        let next = link::next(answer.headers().get_all(header::LINK).iter().filter_map(|value| value.to_str().ok()));
        let next = next.and_then(|written| answer.url().join(&written).ok());
        if let Some(next) = &next
            && !hop::same_origin(next, answer.url())
        {
            let detail = format!("the link to its next page leads to another host, {}", hop::origin(next));
            return Err(Error::new(Class::Insecure, tried, detail));
        }
        let bytes = answer.bytes(MAX_PAGE_BYTES, tried).await?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(Class::BadAnswer, tried, format!("the list of referrers cannot be parsed: {error}"))
        })?;
        Ok(Some((index.manifests, next)))
    }

    async fn fallback_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let Some(manifest) = self.fallback_index(subject).await? else { return Ok(Vec::new()) };
        match manifest.kind() {
            Kind::Index { manifests } => Ok(manifests.clone()),
            Kind::Image { .. } => Ok(Vec::new()),
        }
    }

    async fn fallback_index(&self, subject: &Digest) -> Result<Option<Manifest>> {
        let tag: Tag = subject.fallback_tag().parse().map_err(|error: crate::image::ParseReferenceError| {
            Error::new(Class::Invalid, "making a fallback tag", error.to_string())
        })?;
        match self.manifest_get_counted(&ManifestRef::Tag(tag), Counted::Referrers).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if error.class() == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds a referrer to the index under its subject's fallback tag, for registries that do not keep referrers by
    /// themselves. Adding what is there already changes nothing, and what the index holds besides is kept.
    pub async fn add_to_fallback(&self, subject: &Digest, referrer: &Manifest) -> Result<()> {
        let tried = "writing an index of referrers";
        let invalid = |error: String| Error::new(Class::Invalid, tried, error);
        let lock = self.client.0.fallbacks.of((&self.registry.name, &self.name, subject));
        let _alone = tokio::select! {
            alone = lock.lock() => alone,
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(tried)),
        };
        let found = self.fallback_index(subject).await?.filter(|found| matches!(found.kind(), Kind::Index { .. }));
        if found.iter().flat_map(Manifest::children).any(|known| known.digest == *referrer.digest()) {
            return Ok(());
        }
        let mut descriptor = referrer.descriptor();
        let parsed = referrer.parsed();
        descriptor.artifact_type = parsed.artifact_type.clone().or_else(|| match &parsed.kind {
            Kind::Image { config: Some(config), .. } => Some(config.media_type.to_string()),
            _ => None,
        });
        descriptor.annotations = parsed.annotations.clone();
        let descriptor = serde_json::to_value(&descriptor).map_err(|error| invalid(error.to_string()))?;
        // As JSON, not as what we know of it: others write fields there that are not ours to lose.
        let (mut index, media_type) = match &found {
            Some(found) => {
                let index = serde_json::from_slice(found.bytes()).map_err(|error| invalid(error.to_string()))?;
                (index, found.media_type().clone())
            }
            None => (
                json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": []}),
                MediaType::OciIndex,
            ),
        };
        match index.get_mut("manifests").and_then(Value::as_array_mut) {
            Some(manifests) => manifests.push(descriptor),
            None => return Err(invalid("the index there has no list of manifests".to_owned())),
        }
        let bytes = serde_json::to_vec(&index).map_err(|error| invalid(error.to_string()))?;
        let index = Manifest::parse(Bytes::from(bytes), &media_type).map_err(|error| invalid(error.to_string()))?;
        let tag: Tag = subject
            .fallback_tag()
            .parse()
            .map_err(|error: crate::image::ParseReferenceError| invalid(error.to_string()))?;
        self.manifest_put_counted(&ManifestRef::Tag(tag), &index, Counted::Referrers).await.map(drop)
    }
}
