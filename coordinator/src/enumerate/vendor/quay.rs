//! Quay's API: <https://docs.quay.io/api/swagger/>, operations listRepos and listRepoTags. Without an OAuth token only
//! public repositories are listed. A namespace that does not exist gives an empty list.

use imgsync_common::image::RepositoryName;
use imgsync_common::registry::{Api, Entries, Entry, Next, Page, Pages};
use jiff::Timestamp;
use serde::Deserialize;

use super::{ListedTag, PAGE_SIZE, RepositoryPage, TagPage, date, repositories_of, tags_of};

pub(super) fn repositories(api: &Api, namespace: &str) -> Pages<Repositories> {
    let first = api.url(&["repository"], &[("namespace", namespace), ("public", "true")]);
    api.pages(first, &repositories_of(api, namespace))
}

pub(super) fn tags(api: &Api, name: &RepositoryName) -> Pages<Tags> {
    let mut parts = vec!["repository"];
    parts.extend(name.as_str().split('/'));
    parts.extend(["tag", ""]);
    let first = api.url(&parts, &[("onlyActiveTags", "true"), ("limit", PAGE_SIZE), ("page", "1")]);
    api.pages(first, &tags_of(api, name))
}

#[derive(Debug, Deserialize)]
pub(super) struct Repositories {
    #[serde(default)]
    repositories: Option<Entries<Named>>,
    /// Opaque token.
    #[serde(default)]
    next_page: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tags {
    #[serde(default)]
    tags: Option<Entries<Tag>>,
    #[serde(default)]
    page: u64,
    #[serde(default)]
    has_additional: bool,
}

#[derive(Debug, Deserialize)]
struct Tag {
    name: String,
    #[serde(default)]
    manifest_digest: Option<String>,
    /// Time at which the tag was set to this digest, in Unix seconds.
    #[serde(default)]
    start_ts: Option<i64>,
    #[serde(default)]
    last_modified: Option<String>,
}

impl Entry for Named {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl Entry for Tag {
    fn text_bytes(&self) -> usize {
        self.name.len() + self.manifest_digest.as_ref().map_or(0, String::len)
    }
}

impl Page for Repositories {
    fn is_one(&self) -> bool {
        self.repositories.is_some()
    }

    fn entries(&self) -> Vec<&str> {
        self.repositories.iter().flatten().map(|found| found.name.as_str()).collect()
    }

    fn next(&self) -> Next {
        match &self.next_page {
            Some(token) if !token.is_empty() => Next::With("next_page", token.clone()),
            _ => Next::None,
        }
    }
}

impl RepositoryPage for Repositories {
    fn names(&self, namespace: &str) -> Vec<String> {
        self.repositories.iter().flatten().map(|found| format!("{namespace}/{}", found.name)).collect()
    }
}

impl Page for Tags {
    fn is_one(&self) -> bool {
        self.tags.is_some()
    }

    fn entries(&self) -> Vec<&str> {
        self.tags.iter().flatten().map(|tag| tag.name.as_str()).collect()
    }

    fn next(&self) -> Next {
        match self.has_additional {
            true => Next::With("page", (self.page.max(1) + 1).to_string()),
            false => Next::None,
        }
    }
}

impl TagPage for Tags {
    fn tags(self) -> Vec<ListedTag> {
        let listed = |tag: Tag| ListedTag {
            digest: tag.manifest_digest.as_deref().and_then(|digest| digest.parse().ok()),
            created: tag
                .start_ts
                .filter(|seconds| *seconds > 0)
                .and_then(|seconds| Timestamp::from_second(seconds).ok())
                .or_else(|| date(tag.last_modified.as_deref())),
            // The API tells an index from a manifest, but not OCI from Docker.
            media_type: None,
            tag: tag.name,
        };
        self.tags.into_iter().flatten().map(listed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_with_its_digest_and_its_date() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let page: Tags = serde_json::from_value(serde_json::json!({
            "page": 3, "has_additional": true,
            "tags": [
                {"name": "a", "manifest_digest": digest, "start_ts": 1_707_212_364, "is_manifest_list": true},
                {"name": "b", "manifest_digest": "", "last_modified": "Tue, 06 Feb 2024 09:39:24 -0000"},
            ],
        }))
        .unwrap();
        assert_eq!(page.next(), Next::With("page", "4".to_owned()));
        let tags = page.tags();
        assert_eq!(tags[0].digest.as_ref().map(ToString::to_string), Some(digest));
        assert_eq!(tags[1].digest, None);
        assert_eq!((tags[0].created, tags[0].created.unwrap().as_second()), (tags[1].created, 1_707_212_364));
    }
}
