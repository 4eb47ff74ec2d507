//! GitHub packages: ghcr.io or GitHub Enterprise. Its API: <https://docs.github.com/rest/packages/packages>. A version of
//! a container is a manifest, and its name is the digest. Organizations and users have different URLs, and the name does
//! not tell which it is.

use async_trait::async_trait;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_oci::{RegistryName, RepositoryName};
use serde::Deserialize;
use url::Url;

use super::Provider;
use super::api::{
    ApiPages, CredentialUse, ListedPages, ListedTag, ListingApi, PAGE_SIZE, PageReader, ProviderApi, parse_date,
    split_namespace,
};
use crate::page_reader::{BoundedList, ListEntry};
use crate::pagination::ListPage;

pub(super) static GITHUB: Provider = Provider {
    name: "GitHub",
    hosts: &["ghcr.io"],
    requests_per_second: Some(33.0),
    source: "https://docs.github.com/en/packages (2,000 requests a minute)",
    listing: Some(&GitHubApi),
    ..Provider::NONE
};

#[derive(Debug)]
struct GitHubApi;

impl ListingApi for GitHubApi {
    fn key(&self) -> &'static str {
        "github"
    }

    fn known_url(&self) -> Option<&'static str> {
        Some("https://api.github.com/")
    }

    fn path(&self) -> &'static str {
        ""
    }

    fn self_hosted_path(&self) -> Option<&'static str> {
        Some("/api/v3")
    }

    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        &[("accept", "application/vnd.github+json"), ("x-github-api-version", "2022-11-28")]
    }

    fn credential_use(&self, _username: &str) -> CredentialUse {
        CredentialUse::Bearer
    }

    fn required_credentials(&self) -> Option<&'static str> {
        Some("GitHub's API lists packages only with a token")
    }

    fn refused_hint(&self, registry: &RegistryName) -> String {
        format!(
            "GitHub's API needs a token with `read:packages`: set `username` and `password` of {registry} under \
             `registries`"
        )
    }

    fn anonymous_hint(&self, registry: &RegistryName) -> String {
        self.refused_hint(registry)
    }

    fn list_repositories(&self, api: &ProviderApi, owner: &str) -> ListedPages<String> {
        let query = [("package_type", "container"), ("per_page", PAGE_SIZE)];
        let description = api.describe_repositories(owner);
        let pages = OrgOrUserPages::<GitHubPackagePage>::new(api, owner, &["packages"], &query, description);
        let owner = owner.to_owned();
        ListedPages::new(pages, move |page| page.into_names(&owner))
    }

    fn list_tags(&self, api: &ProviderApi, name: &RepositoryName) -> ListedPages<ListedTag> {
        let (owner, package) = split_namespace(name.as_str());
        let parts = ["packages", "container", package, "versions"];
        let query = [("per_page", PAGE_SIZE)];
        let pages = OrgOrUserPages::new(api, owner, &parts, &query, api.describe_tags(name));
        ListedPages::new(pages, GitHubVersionPage::into_tags)
    }
}

/// Key of the note whether an owner is an organization or a user.
fn owner_key(owner: &str) -> String {
    format!("owner {owner}")
}

/// Pages of an owner's list: of an organization, or of a user if there is no organization of that name.
struct OrgOrUserPages<P> {
    api: ProviderApi,
    owner: String,
    description: String,
    pages: ApiPages<P>,
    /// URL for a user, until the kind of owner is known.
    user_url: Option<Url>,
}

impl<P: ListPage> OrgOrUserPages<P> {
    fn new(
        api: &ProviderApi,
        owner: &str,
        parts: &[&str],
        query: &[(&str, &str)],
        description: String,
    ) -> OrgOrUserPages<P> {
        let at = |kind: &str| {
            let parts: Vec<&str> = [kind, owner].into_iter().chain(parts.iter().copied()).collect();
            api.url(&parts, query)
        };
        let (first, user_url) = match api.get_note(&owner_key(owner)).as_deref() {
            Some(kind) => (at(kind), None),
            None => (at("orgs"), Some(at("users"))),
        };
        OrgOrUserPages {
            api: api.clone(),
            owner: owner.to_owned(),
            pages: api.pages(first, &description),
            description,
            user_url,
        }
    }
}

#[async_trait]
impl<P: ListPage> PageReader for OrgOrUserPages<P> {
    type Body = P;

    async fn next_page(&mut self) -> Result<Option<P>> {
        let Some(otherwise) = self.user_url.take() else { return self.pages.next_page().await };
        match self.pages.next_page().await {
            Ok(page) => {
                self.api.set_note(&owner_key(&self.owner), "orgs");
                Ok(page)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.pages = self.api.pages(otherwise, &self.description);
                let page = self.pages.next_page().await?;
                self.api.set_note(&owner_key(&self.owner), "users");
                Ok(page)
            }
            Err(error) => Err(error),
        }
    }
}

#[derive(Debug, Deserialize)]
struct GitHubPackagePage(BoundedList<GitHubPackage>);

#[derive(Debug, Deserialize)]
struct GitHubPackage {
    /// Without the owner.
    name: String,
}

#[derive(Debug, Deserialize)]
struct GitHubVersionPage(BoundedList<GitHubVersion>);

#[derive(Debug, Deserialize)]
struct GitHubVersion {
    /// The digest.
    name: String,
    #[serde(default)]
    created_at: Option<String>,
    /// Last pushed or tagged.
    #[serde(default)]
    updated_at: Option<String>,
    #[serde(default)]
    metadata: GitHubMetadata,
}

#[derive(Debug, Default, Deserialize)]
struct GitHubMetadata {
    #[serde(default)]
    container: GitHubContainer,
}

#[derive(Debug, Default, Deserialize)]
struct GitHubContainer {
    #[serde(default)]
    tags: BoundedList<String>,
}

impl ListEntry for GitHubPackage {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl ListEntry for GitHubVersion {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl ListPage for GitHubPackagePage {
    fn is_listing(&self) -> bool {
        true
    }

    fn entries(&self) -> Vec<&str> {
        self.0.iter().map(|package| package.name.as_str()).collect()
    }
}

impl GitHubPackagePage {
    fn into_names(self, owner: &str) -> Vec<String> {
        self.0.into_iter().map(|package| format!("{owner}/{}", package.name)).collect()
    }
}

impl ListPage for GitHubVersionPage {
    fn is_listing(&self) -> bool {
        true
    }

    fn entries(&self) -> Vec<&str> {
        self.0.iter().map(|version| version.name.as_str()).collect()
    }
}

impl GitHubVersionPage {
    fn into_tags(self) -> Vec<ListedTag> {
        let listed = |version: GitHubVersion| {
            let digest = version.name.parse().ok();
            let created =
                parse_date(version.updated_at.as_deref()).or_else(|| parse_date(version.created_at.as_deref()));
            let tags = version.metadata.container.tags.into_iter();
            tags.map(move |tag| ListedTag { tag, digest: digest.clone(), created, media_type: None })
        };
        self.0.into_iter().flat_map(listed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_manifest_and_what_has_no_tag_is_none() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let page: GitHubVersionPage = serde_json::from_value(serde_json::json!([
            {"id": 1, "name": digest, "created_at": "2024-01-01T00:00:00Z", "updated_at": "2025-01-01T00:00:00Z",
             "metadata": {"package_type": "container", "container": {"tags": ["1.0", "latest"]}}},
            {"id": 2, "name": format!("sha256:{}", "b".repeat(64)),
             "metadata": {"package_type": "container", "container": {"tags": []}}},
        ]))
        .unwrap();
        let tags = page.into_tags();
        assert_eq!(tags.len(), 2);
        assert_eq!(tags[1].digest.as_ref().map(ToString::to_string), Some(digest));
        assert_eq!(tags[1].created.unwrap().to_string(), "2025-01-01T00:00:00Z");
    }
}
