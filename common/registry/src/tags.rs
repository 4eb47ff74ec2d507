//! Lists the tags of a repository page by page (OCI distribution-spec, "Listing Tags"), with the extensions of Google's
//! registries: child repositories, and digests with their tags and times.

use serde::Deserialize;

use super::Repository;
use super::page_reader::{BoundedList, BoundedMap, ListEntry};
use super::pagination::{self, ListPage, Paginator};
use imgsync_oci::MediaType;
use imgsync_oci::error::Result;

/// Page size requested first. ECR fails above 1000.
const PAGE_SIZE: usize = 1000;
/// Size limit of a page: Google's registries put everything into one. Parsed while it is received.
pub(super) const MAX_PAGE_BYTES: usize = 128 << 20;

/// A page of a tag listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagPage {
    /// Whether the listing shows a tree: child repositories and manifests. Told by its content and not by the registry's
    /// name.
    pub is_tree: bool,
    /// Tags in the registry's order, unvalidated.
    pub tags: Vec<String>,
    /// Repositories directly below this one, in a tree.
    pub children: Vec<String>,
    /// Unvalidated digests with their manifests, in a tree.
    pub manifests: Vec<(String, ListedManifest)>,
}

/// A manifest in the listing of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedManifest {
    /// Tags that point at it.
    #[serde(default)]
    pub tag: BoundedList<String>,
    /// Its media type.
    #[serde(default, deserialize_with = "media_type")]
    pub media_type: MediaType,
    /// Creation time in milliseconds since 1970.
    #[serde(default, deserialize_with = "millis")]
    pub time_created_ms: Option<i64>,
    /// Upload time in milliseconds since 1970.
    #[serde(default, deserialize_with = "millis")]
    pub time_uploaded_ms: Option<i64>,
}

fn media_type<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<MediaType, D::Error> {
    String::deserialize(deserializer).map(|text| MediaType::new(&text))
}

impl ListEntry for ListedManifest {
    fn text_bytes(&self) -> usize {
        match &self.media_type {
            MediaType::Other(text) => text.len(),
            _ => 0,
        }
    }
}

fn millis<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => text.parse().ok(),
        serde_json::Value::Number(number) => number.as_i64(),
        _ => None,
    })
}

#[derive(Deserialize)]
struct TagListBody {
    /// `null` if there are none, in some registries.
    #[serde(default, deserialize_with = "pagination::present")]
    tags: Option<Option<BoundedList<String>>>,
    #[serde(default)]
    child: Option<BoundedList<String>>,
    #[serde(default)]
    manifest: Option<BoundedMap<ListedManifest>>,
}

/// The pages of a tag listing, one request each.
#[derive(Debug)]
pub struct TagPages {
    repository: Repository,
    paginator: Paginator,
}

impl Repository {
    /// Lists the tags page by page.
    pub fn list_tags(&self) -> TagPages {
        let mut first = self.url("tags/list");
        first.query_pairs_mut().append_pair("n", &PAGE_SIZE.to_string());
        TagPages { repository: self.with_own_clock(), paginator: Paginator::new(first) }
    }
}

impl TagPages {
    /// Returns the next page; `None` after the last. An error response is an error, never an empty page. Pages that
    /// repeat, form a loop or never end are an error, too.
    pub async fn next_page(&mut self) -> Result<Option<TagPage>> {
        let operation = format!("listing the tags of {}", self.repository.label());
        let page = self.paginator.next_page(&self.repository, MAX_PAGE_BYTES, &operation).await;
        let page = page.map_err(|error| match error.code() == Some("NAME_UNKNOWN") && error.hint().is_none() {
            true => error.with_hint("check the repository's name"),
            false => error,
        })?;
        Ok(page.map(|body: TagListBody| TagPage {
            is_tree: body.child.is_some() || body.manifest.is_some(),
            tags: body.tags.flatten().unwrap_or_default().into_vec(),
            children: body.child.unwrap_or_default().into_vec(),
            manifests: body.manifest.map(|manifests| manifests.0).unwrap_or_default(),
        }))
    }
}

/// Parses a page and describes the result, for fuzzing.
#[cfg(test)]
pub(super) fn fuzz_parse(bytes: &[u8]) -> String {
    match serde_json::from_slice::<TagListBody>(bytes) {
        Ok(body) => format!("{} {:?} {:?} {:?}", body.is_listing(), body.tags, body.child, body.manifest),
        Err(error) => format!("{:?}", error.classify()),
    }
}

impl ListPage for TagListBody {
    fn is_listing(&self) -> bool {
        self.tags.is_some() || self.child.is_some() || self.manifest.is_some()
    }

    fn entries(&self) -> Vec<&str> {
        let tags = self.tags.iter().flatten().flatten().map(String::as_str);
        let manifests = self.manifest.iter().flat_map(|manifests| &manifests.0).map(|(digest, _)| digest.as_str());
        tags.chain(self.child.iter().flatten().map(String::as_str)).chain(manifests).collect()
    }
}
