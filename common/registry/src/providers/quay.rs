//! Quay: quay.io or self-hosted. Its API: <https://docs.quay.io/api/swagger/>, operations listRepos and listRepoTags.
//! Without an OAuth token only public repositories are listed. A namespace that does not exist gives an empty list.

use imgsync_oci::{RegistryName, RepositoryName};
use jiff::Timestamp;
use serde::Deserialize;

use super::Provider;
use super::api::{CredentialUse, ListedPages, ListedTag, ListingApi, PAGE_SIZE, ProviderApi, parse_date};
use crate::page_reader::{BoundedList, ListEntry};
use crate::pagination::{ListPage, NextPage};

pub(super) static QUAY: Provider =
    Provider { name: "Quay", hosts: &["quay.io"], listing: Some(&QuayApi), ..Provider::NONE };

/// User name under which Quay takes OAuth tokens for passwords; its API takes nothing else.
const TOKEN_USER: &str = "$oauthtoken";

#[derive(Debug)]
struct QuayApi;

impl ListingApi for QuayApi {
    fn key(&self) -> &'static str {
        "quay"
    }

    fn path(&self) -> &'static str {
        "api/v1/"
    }

    fn self_hosted_path(&self) -> Option<&'static str> {
        Some("/api/v1")
    }

    fn credential_use(&self, username: &str) -> CredentialUse {
        match username {
            TOKEN_USER => CredentialUse::Bearer,
            _ => CredentialUse::Unaccepted,
        }
    }

    fn lists_public_without_credentials(&self) -> bool {
        true
    }

    fn refused_hint(&self, registry: &RegistryName) -> String {
        format!(
            "Quay's API takes OAuth tokens and no robot accounts: set `username: $oauthtoken` and the token as \
             `password` of {registry} under `registries`"
        )
    }

    fn anonymous_hint(&self, registry: &RegistryName) -> String {
        self.refused_hint(registry)
    }

    fn list_repositories(&self, api: &ProviderApi, namespace: &str) -> ListedPages<String> {
        let first = api.url(&["repository"], &[("namespace", namespace), ("public", "true")]);
        let pages = api.pages::<QuayRepositoryPage>(first, &api.describe_repositories(namespace));
        let namespace = namespace.to_owned();
        ListedPages::new(pages, move |page| page.into_names(&namespace))
    }

    fn list_tags(&self, api: &ProviderApi, name: &RepositoryName) -> ListedPages<ListedTag> {
        let mut parts = vec!["repository"];
        parts.extend(name.as_str().split('/'));
        parts.extend(["tag", ""]);
        let first = api.url(&parts, &[("onlyActiveTags", "true"), ("limit", PAGE_SIZE), ("page", "1")]);
        ListedPages::new(api.pages(first, &api.describe_tags(name)), QuayTagPage::into_tags)
    }
}

#[derive(Debug, Deserialize)]
struct QuayRepositoryPage {
    #[serde(default)]
    repositories: Option<BoundedList<QuayRepository>>,
    /// Opaque token.
    #[serde(default)]
    next_page: Option<String>,
}

#[derive(Debug, Deserialize)]
struct QuayRepository {
    name: String,
}

#[derive(Debug, Deserialize)]
struct QuayTagPage {
    #[serde(default)]
    tags: Option<BoundedList<QuayTag>>,
    #[serde(default)]
    page: u64,
    #[serde(default)]
    has_additional: bool,
}

#[derive(Debug, Deserialize)]
struct QuayTag {
    name: String,
    #[serde(default)]
    manifest_digest: Option<String>,
    /// Time at which the tag was set to this digest, in Unix seconds.
    #[serde(default)]
    start_ts: Option<i64>,
    #[serde(default)]
    last_modified: Option<String>,
}

impl ListEntry for QuayRepository {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl ListEntry for QuayTag {
    fn text_bytes(&self) -> usize {
        self.name.len() + self.manifest_digest.as_ref().map_or(0, String::len)
    }
}

impl ListPage for QuayRepositoryPage {
    fn is_listing(&self) -> bool {
        self.repositories.is_some()
    }

    fn entries(&self) -> Vec<&str> {
        self.repositories.iter().flatten().map(|found| found.name.as_str()).collect()
    }

    fn next_page(&self) -> NextPage {
        match &self.next_page {
            Some(token) if !token.is_empty() => NextPage::Parameter("next_page", token.clone()),
            _ => NextPage::None,
        }
    }
}

impl QuayRepositoryPage {
    fn into_names(self, namespace: &str) -> Vec<String> {
        self.repositories.into_iter().flatten().map(|found| format!("{namespace}/{}", found.name)).collect()
    }
}

impl ListPage for QuayTagPage {
    fn is_listing(&self) -> bool {
        self.tags.is_some()
    }

    fn entries(&self) -> Vec<&str> {
        self.tags.iter().flatten().map(|tag| tag.name.as_str()).collect()
    }

    fn next_page(&self) -> NextPage {
        match self.has_additional {
            true => NextPage::Parameter("page", (self.page.max(1) + 1).to_string()),
            false => NextPage::None,
        }
    }
}

impl QuayTagPage {
    fn into_tags(self) -> Vec<ListedTag> {
        let listed = |tag: QuayTag| ListedTag {
            digest: tag.manifest_digest.as_deref().and_then(|digest| digest.parse().ok()),
            created: tag
                .start_ts
                .filter(|seconds| *seconds > 0)
                .and_then(|seconds| Timestamp::from_second(seconds).ok())
                .or_else(|| parse_date(tag.last_modified.as_deref())),
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
        let page: QuayTagPage = serde_json::from_value(serde_json::json!({
            "page": 3, "has_additional": true,
            "tags": [
                {"name": "a", "manifest_digest": digest, "start_ts": 1_707_212_364, "is_manifest_list": true},
                {"name": "b", "manifest_digest": "", "last_modified": "Tue, 06 Feb 2024 09:39:24 -0000"},
            ],
        }))
        .unwrap();
        assert_eq!(page.next_page(), NextPage::Parameter("page", "4".to_owned()));
        let tags = page.into_tags();
        assert_eq!(tags[0].digest.as_ref().map(ToString::to_string), Some(digest));
        assert_eq!(tags[1].digest, None);
        assert_eq!((tags[0].created, tags[0].created.unwrap().as_second()), (tags[1].created, 1_707_212_364));
    }
}
