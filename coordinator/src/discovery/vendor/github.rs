//! GitHub packages: <https://docs.github.com/rest/packages/packages>. A version of a container is a manifest, and its
//! name is the digest. Organizations and users have different URLs, and the name does not tell which it is.

use imgsync_oci::RepositoryName;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_registry::{BoundedList, ListEntry, ListPage, VendorApi, VendorApiPages};
use serde::Deserialize;
use url::Url;

use super::{
    ListedTag, PAGE_SIZE, VendorRepositoryPage, VendorTagPage, describe_repository_list, describe_tag_list, parse_date,
    split_namespace,
};

pub(super) fn list_repositories(api: &VendorApi, owner: &str) -> OrgOrUserPages<GitHubPackagePage> {
    let query = [("package_type", "container"), ("per_page", PAGE_SIZE)];
    OrgOrUserPages::new(api, owner, &["packages"], &query, describe_repository_list(api, owner))
}

pub(super) fn list_tags(api: &VendorApi, name: &RepositoryName) -> OrgOrUserPages<GitHubVersionPage> {
    let (owner, package) = split_namespace(name.as_str());
    let parts = ["packages", "container", package, "versions"];
    OrgOrUserPages::new(api, owner, &parts, &[("per_page", PAGE_SIZE)], describe_tag_list(api, name))
}

/// Pages of an owner's list: of an organization, or of a user if there is no organization of that name.
#[derive(Debug)]
pub(super) struct OrgOrUserPages<P> {
    api: VendorApi,
    owner: String,
    description: String,
    pages: VendorApiPages<P>,
    /// URL for a user, until the kind of owner is known.
    user_url: Option<Url>,
}

impl<P: ListPage> OrgOrUserPages<P> {
    fn new(
        api: &VendorApi,
        owner: &str,
        parts: &[&str],
        query: &[(&str, &str)],
        description: String,
    ) -> OrgOrUserPages<P> {
        let at = |kind: &str| {
            let parts: Vec<&str> = [kind, owner].into_iter().chain(parts.iter().copied()).collect();
            api.url(&parts, query)
        };
        let (first, user_url) = match api.get_note(owner).as_deref() {
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

    pub(super) async fn next_page(&mut self) -> Result<Option<P>> {
        let Some(otherwise) = self.user_url.take() else { return self.pages.next_page().await };
        match self.pages.next_page().await {
            Ok(page) => {
                self.api.set_note(&self.owner, "orgs");
                Ok(page)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.pages = self.api.pages(otherwise, &self.description);
                let page = self.pages.next_page().await?;
                self.api.set_note(&self.owner, "users");
                Ok(page)
            }
            Err(error) => Err(error),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct GitHubPackagePage(BoundedList<GitHubPackage>);

#[derive(Debug, Deserialize)]
struct GitHubPackage {
    /// Without the owner.
    name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct GitHubVersionPage(BoundedList<GitHubVersion>);

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

impl VendorRepositoryPage for GitHubPackagePage {
    fn repository_names(&self, owner: &str) -> Vec<String> {
        self.0.iter().map(|package| format!("{owner}/{}", package.name)).collect()
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

impl VendorTagPage for GitHubVersionPage {
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
