//! Referrers (OCI distribution-spec v1.1, "Listing Referrers"): by the API, and by the fallback tag where a registry
//! lacks it. Requests made here are counted apart from those of a copy.

use ::http::{Method, StatusCode, header};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
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

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    #[serde(default)]
    media_type: MediaType,
    #[serde(default)]
    manifests: Vec<Descriptor>,
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
    /// themselves. Adding what is there already changes nothing.
    pub async fn add_to_fallback(&self, subject: &Digest, referrer: &Manifest) -> Result<()> {
        let mut manifests = self.fallback_referrers(subject).await?;
        if manifests.iter().any(|known| known.digest == *referrer.digest()) {
            return Ok(());
        }
        let mut descriptor = referrer.descriptor();
        let parsed = referrer.parsed();
        descriptor.artifact_type = parsed.artifact_type.clone().or_else(|| match &parsed.kind {
            Kind::Image { config: Some(config), .. } => Some(config.media_type.to_string()),
            _ => None,
        });
        descriptor.annotations = parsed.annotations.clone();
        manifests.push(descriptor);
        let index = Index { schema_version: 2, media_type: MediaType::OciIndex, manifests };
        let bytes = serde_json::to_vec(&index)
            .map_err(|error| Error::new(Class::Invalid, "writing an index of referrers", error.to_string()))?;
        let invalid = |error: String| Error::new(Class::Invalid, "writing an index of referrers", error);
        let index =
            Manifest::parse(Bytes::from(bytes), &MediaType::OciIndex).map_err(|error| invalid(error.to_string()))?;
        let tag: Tag = subject
            .fallback_tag()
            .parse()
            .map_err(|error: crate::image::ParseReferenceError| invalid(error.to_string()))?;
        self.manifest_put_counted(&ManifestRef::Tag(tag), &index, Counted::Referrers).await.map(drop)
    }
}
