//! Listing the tags of a repository by pages (OCI distribution-spec, "Listing Tags"), with what Google's registries add:
//! sub-repositories, and digests with their tags and times.

use std::collections::BTreeMap;

use ::http::{Method, StatusCode, header};
use serde::Deserialize;
use url::Url;

use super::transport::Outgoing;
use super::{Repository, hop, link};
use crate::error::{Class, Error, Result};

/// Asked for in the first request. ECR errs above 1000.
const PAGE_SIZE: usize = 1000;
/// Google's registries put everything into one page.
const MAX_PAGE_BYTES: usize = 128 << 20;

/// One page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagPage {
    /// Tags in the order in which the registry gave them, as written: not all need be valid.
    pub tags: Vec<String>,
    /// Repositories directly below this one (Google style).
    pub children: Vec<String>,
    /// Manifests by digest, as written (Google style).
    pub manifests: BTreeMap<String, ListedManifest>,
}

/// What a Google-style listing says of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedManifest {
    /// The tags that point at it.
    #[serde(default)]
    pub tag: Vec<String>,
    /// Its type.
    #[serde(default)]
    pub media_type: String,
    /// When it was made, in milliseconds since 1970.
    #[serde(default, deserialize_with = "millis")]
    pub time_created_ms: Option<i64>,
    /// When it was pushed, in milliseconds since 1970.
    #[serde(default, deserialize_with = "millis")]
    pub time_uploaded_ms: Option<i64>,
}

fn millis<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => text.parse().ok(),
        serde_json::Value::Number(number) => number.as_i64(),
        _ => None,
    })
}

#[derive(Deserialize)]
struct Body {
    /// `null` where there are none, in some registries.
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    child: Option<Vec<String>>,
    #[serde(default)]
    manifest: Option<BTreeMap<String, ListedManifest>>,
}

/// The pages of a listing, one request each.
#[derive(Debug)]
pub struct TagPages {
    repository: Repository,
    next: Option<Url>,
    seen: std::collections::HashSet<Url>,
}

impl Repository {
    /// The tags, by pages.
    pub fn tags(&self) -> TagPages {
        let mut first = self.url("tags/list");
        first.query_pairs_mut().append_pair("n", &PAGE_SIZE.to_string());
        TagPages { repository: self.clone(), next: Some(first), seen: Default::default() }
    }
}

impl TagPages {
    /// The next page; `None` after the last. An error answer is an error, never an empty page. Pages that lead back to
    /// one that was read already end with an error.
    pub async fn next_page(&mut self) -> Result<Option<TagPage>> {
        let Some(url) = self.next.take() else { return Ok(None) };
        let repository = self.repository.clone();
        let tried = format!("listing the tags of {}", repository.label());
        if !self.seen.insert(url.clone()) {
            return Err(Error::new(Class::BadAnswer, &tried, "its pages lead in a circle"));
        }
        let (page, next) = repository.with_retries(|| read_page(&repository, &url, &tried)).await?;
        self.next = next;
        Ok(Some(page))
    }
}

async fn read_page(repository: &Repository, url: &Url, tried: &str) -> Result<(TagPage, Option<Url>)> {
    let answer = repository.send(Outgoing::new(Method::GET, url.clone(), tried)).await?;
    if answer.status() != StatusCode::OK {
        return Err(repository.refusal(answer, tried).await);
    }
    let next = link::next(answer.headers().get_all(header::LINK).iter().filter_map(|value| value.to_str().ok()));
    let next = match next {
        None => None,
        Some(written) => {
            let next = answer.url().join(&written).map_err(|error| {
                Error::new(Class::BadAnswer, tried, "the link to its next page is no URL").because(error)
            })?;
            if !hop::same_origin(&next, answer.url()) {
                let detail = format!("the link to its next page leads to another host, {}", hop::origin(&next));
                return Err(Error::new(Class::Insecure, tried, detail));
            }
            Some(next)
        }
    };
    let bytes = answer.bytes(MAX_PAGE_BYTES, tried).await?;
    let body: Body = serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(Class::BadAnswer, tried, format!("the listing cannot be parsed: {error}")).because(error)
    })?;
    let page = TagPage {
        tags: body.tags.unwrap_or_default(),
        children: body.child.unwrap_or_default(),
        manifests: body.manifest.unwrap_or_default(),
    };
    Ok((page, next))
}
