//! Docker Hub's API: <https://docs.docker.com/reference/api/hub/latest/>, "List repositories" and "List repository
//! tags". 180 requests a minute without a login; high page numbers of a long list are not available to everyone.

use imgsync_common::image::{MediaType, RepositoryName};
use imgsync_common::registry::{Api, Entries, Entry, Next, Page, Pages};
use serde::Deserialize;

use super::{ListedTag, PAGE_SIZE, RepositoryPage, TagPage, date, repositories_of, split, tags_of};

pub(super) fn repositories(api: &Api, namespace: &str) -> Pages<Repositories> {
    let first = api.url(&["namespaces", namespace, "repositories"], &[("page_size", PAGE_SIZE)]);
    api.pages(first, &repositories_of(api, namespace))
}

pub(super) fn tags(api: &Api, name: &RepositoryName) -> Pages<Tags> {
    let (namespace, rest) = split(name.as_str());
    let first = api.url(&["namespaces", namespace, "repositories", rest, "tags"], &[("page_size", PAGE_SIZE)]);
    api.pages(first, &tags_of(api, name))
}

#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de> + Entry"))]
pub(super) struct List<T> {
    results: Entries<T>,
    /// Full URL of the next page.
    #[serde(default)]
    next: Option<String>,
}

pub(super) type Repositories = List<Named>;
pub(super) type Tags = List<Tag>;

#[derive(Debug, Deserialize)]
pub(super) struct Named {
    name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tag {
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
pub(super) trait Listed {
    fn name(&self) -> &str;
}

impl Entry for Named {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl Entry for Tag {
    fn text_bytes(&self) -> usize {
        self.name.len() + self.digest.as_ref().map_or(0, String::len)
    }
}

impl Listed for Named {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Listed for Tag {
    fn name(&self) -> &str {
        &self.name
    }
}

impl<T: Listed + Entry + serde::de::DeserializeOwned + Send + 'static> Page for List<T> {
    fn is_one(&self) -> bool {
        true
    }

    fn entries(&self) -> Vec<&str> {
        self.results.iter().map(Listed::name).collect()
    }

    fn next(&self) -> Next {
        match &self.next {
            Some(address) if !address.is_empty() => Next::At(address.clone()),
            _ => Next::None,
        }
    }
}

impl RepositoryPage for Repositories {
    fn names(&self, namespace: &str) -> Vec<String> {
        self.results.iter().map(|found| format!("{namespace}/{}", found.name)).collect()
    }
}

impl TagPage for Tags {
    fn tags(self) -> Vec<ListedTag> {
        let listed = |tag: Tag| ListedTag {
            digest: tag.digest.as_deref().and_then(|digest| digest.parse().ok()),
            created: date(tag.tag_last_pushed.as_deref()).or_else(|| date(tag.last_updated.as_deref())),
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
        let page: Tags = serde_json::from_value(serde_json::json!({
            "count": 2, "next": null, "previous": null,
            "results": [
                {"name": "old", "images": [{"digest": image}], "last_updated": "2019-01-01T00:00:00Z"},
                {"name": "new", "images": [{"digest": image}], "digest": format!("sha256:{}", "c".repeat(64)),
                 "media_type": "application/vnd.oci.image.index.v1+json",
                 "tag_last_pushed": "2025-01-01T00:00:00.5Z", "last_updated": "2025-02-01T00:00:00Z"},
            ],
        }))
        .unwrap();
        assert_eq!(page.next(), Next::None);
        let tags = page.tags();
        assert_eq!(
            (tags[0].digest.clone(), tags[0].created.unwrap().to_string()),
            (None, "2019-01-01T00:00:00Z".into())
        );
        assert!(tags[1].digest.is_some());
        assert_eq!(tags[1].media_type, Some(MediaType::OciIndex));
        assert_eq!(tags[1].created.unwrap().to_string(), "2025-01-01T00:00:00.5Z");
    }
}
