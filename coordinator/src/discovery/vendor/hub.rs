//! Docker Hub's API: <https://docs.docker.com/reference/api/hub/latest/>, "List repositories" and "List repository
//! tags". 180 requests a minute without a login; high page numbers of a long list are not available to everyone.

use imgsync_oci::{MediaType, RepositoryName};
use imgsync_registry::{BoundedList, ListEntry, ListPage, NextPage, VendorApi, VendorApiPages};
use serde::Deserialize;

use super::{
    ListedTag, PAGE_SIZE, VendorRepositoryPage, VendorTagPage, describe_repository_list, describe_tag_list, parse_date,
    split_namespace,
};

pub(super) fn list_repositories(api: &VendorApi, namespace: &str) -> VendorApiPages<HubRepositoryPage> {
    let first = api.url(&["namespaces", namespace, "repositories"], &[("page_size", PAGE_SIZE)]);
    api.pages(first, &describe_repository_list(api, namespace))
}

pub(super) fn list_tags(api: &VendorApi, name: &RepositoryName) -> VendorApiPages<HubTagPage> {
    let (namespace, rest) = split_namespace(name.as_str());
    let first = api.url(&["namespaces", namespace, "repositories", rest, "tags"], &[("page_size", PAGE_SIZE)]);
    api.pages(first, &describe_tag_list(api, name))
}

#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de> + ListEntry"))]
pub(super) struct HubPage<T> {
    results: BoundedList<T>,
    /// Full URL of the next page.
    #[serde(default)]
    next: Option<String>,
}

pub(super) type HubRepositoryPage = HubPage<HubRepository>;
pub(super) type HubTagPage = HubPage<HubTag>;

#[derive(Debug, Deserialize)]
pub(super) struct HubRepository {
    name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct HubTag {
    name: String,
    /// Digest of the manifest or index that the tag points at. Old tags have none, and the digests of their images do
    /// not replace it: an index with one image is not that image.
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    tag_last_pushed: Option<String>,
    #[serde(default)]
    last_updated: Option<String>,
}

/// An entry with a name.
pub(super) trait HubEntry {
    fn name(&self) -> &str;
}

impl ListEntry for HubRepository {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl ListEntry for HubTag {
    fn text_bytes(&self) -> usize {
        self.name.len() + self.digest.as_ref().map_or(0, String::len)
    }
}

impl HubEntry for HubRepository {
    fn name(&self) -> &str {
        &self.name
    }
}

impl HubEntry for HubTag {
    fn name(&self) -> &str {
        &self.name
    }
}

impl<T: HubEntry + ListEntry + serde::de::DeserializeOwned + Send + 'static> ListPage for HubPage<T> {
    fn is_listing(&self) -> bool {
        true
    }

    fn entries(&self) -> Vec<&str> {
        self.results.iter().map(HubEntry::name).collect()
    }

    fn next_page(&self) -> NextPage {
        match &self.next {
            Some(address) if !address.is_empty() => NextPage::Url(address.clone()),
            _ => NextPage::None,
        }
    }
}

impl VendorRepositoryPage for HubRepositoryPage {
    fn repository_names(&self, namespace: &str) -> Vec<String> {
        self.results.iter().map(|found| format!("{namespace}/{}", found.name)).collect()
    }
}

impl VendorTagPage for HubTagPage {
    fn into_tags(self) -> Vec<ListedTag> {
        let listed = |tag: HubTag| ListedTag {
            digest: tag.digest.as_deref().and_then(|digest| digest.parse().ok()),
            created: parse_date(tag.tag_last_pushed.as_deref()).or_else(|| parse_date(tag.last_updated.as_deref())),
            media_type: tag.media_type.filter(|kind| !kind.is_empty()).map(|kind| MediaType::new(&kind)),
            tag: tag.name,
        };
        self.results.into_iter().map(listed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_an_image_is_not_taken_for_that_of_the_tag() {
        let image = format!("sha256:{}", "b".repeat(64));
        let page: HubTagPage = serde_json::from_value(serde_json::json!({
            "count": 2, "next": null, "previous": null,
            "results": [
                {"name": "old", "images": [{"digest": image}], "last_updated": "2019-01-01T00:00:00Z"},
                {"name": "new", "images": [{"digest": image}], "digest": format!("sha256:{}", "c".repeat(64)),
                 "media_type": "application/vnd.oci.image.index.v1+json",
                 "tag_last_pushed": "2025-01-01T00:00:00.5Z", "last_updated": "2025-02-01T00:00:00Z"},
            ],
        }))
        .unwrap();
        assert_eq!(page.next_page(), NextPage::None);
        let tags = page.into_tags();
        assert_eq!(
            (tags[0].digest.clone(), tags[0].created.unwrap().to_string()),
            (None, "2019-01-01T00:00:00Z".into())
        );
        assert!(tags[1].digest.is_some());
        assert_eq!(tags[1].media_type, Some(MediaType::OciIndex));
        assert_eq!(tags[1].created.unwrap().to_string(), "2025-01-01T00:00:00.5Z");
    }
}
