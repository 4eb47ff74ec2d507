//! GitHub packages: <https://docs.github.com/rest/packages/packages>. A version of a container is a manifest, and its
//! name is the digest. Organizations and users have different URLs, and the name does not tell which it is.

use imgsync_common::error::{Class, Result};
use imgsync_common::image::RepositoryName;
use imgsync_common::registry::{Api, Entries, Entry, Page, Pages};
use serde::Deserialize;
use url::Url;

use super::{ListedTag, PAGE_SIZE, RepositoryPage, TagPage, date, repositories_of, split, tags_of};

pub(super) fn repositories(api: &Api, owner: &str) -> Owned<Packages> {
    let query = [("package_type", "container"), ("per_page", PAGE_SIZE)];
    Owned::new(api, owner, &["packages"], &query, repositories_of(api, owner))
}

pub(super) fn tags(api: &Api, name: &RepositoryName) -> Owned<Versions> {
    let (owner, package) = split(name.as_str());
    let parts = ["packages", "container", package, "versions"];
    Owned::new(api, owner, &parts, &[("per_page", PAGE_SIZE)], tags_of(api, name))
}

/// Pages of an owner's list: of an organization, or of a user if there is no organization of that name.
#[derive(Debug)]
pub(super) struct Owned<P> {
    api: Api,
    owner: String,
    what: String,
    pages: Pages<P>,
    /// URL for a user, until the kind of owner is known.
    otherwise: Option<Url>,
}

impl<P: Page> Owned<P> {
    fn new(api: &Api, owner: &str, parts: &[&str], query: &[(&str, &str)], what: String) -> Owned<P> {
        let at = |kind: &str| {
            let parts: Vec<&str> = [kind, owner].into_iter().chain(parts.iter().copied()).collect();
            api.url(&parts, query)
        };
        let (first, otherwise) = match api.noted(owner).as_deref() {
            Some(kind) => (at(kind), None),
            None => (at("orgs"), Some(at("users"))),
        };
        Owned { api: api.clone(), owner: owner.to_owned(), pages: api.pages(first, &what), what, otherwise }
    }

    pub(super) async fn next_page(&mut self) -> Result<Option<P>> {
        let Some(otherwise) = self.otherwise.take() else { return self.pages.next_page().await };
        match self.pages.next_page().await {
            Ok(page) => {
                self.api.note(&self.owner, "orgs");
                Ok(page)
            }
            Err(error) if error.class() == Class::NotFound => {
                self.pages = self.api.pages(otherwise, &self.what);
                let page = self.pages.next_page().await?;
                self.api.note(&self.owner, "users");
                Ok(page)
            }
            Err(error) => Err(error),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Packages(Entries<Package>);

#[derive(Debug, Deserialize)]
struct Package {
    /// Without the owner.
    name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Versions(Entries<Version>);

#[derive(Debug, Deserialize)]
struct Version {
    /// The digest.
    name: String,
    #[serde(default)]
    created_at: Option<String>,
    /// Last pushed or tagged.
    #[serde(default)]
    updated_at: Option<String>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    container: Container,
}

#[derive(Debug, Default, Deserialize)]
struct Container {
    #[serde(default)]
    tags: Entries<String>,
}

impl Entry for Package {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl Entry for Version {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl Page for Packages {
    fn is_one(&self) -> bool {
        true
    }

    fn entries(&self) -> Vec<&str> {
        self.0.iter().map(|package| package.name.as_str()).collect()
    }
}

impl RepositoryPage for Packages {
    fn names(&self, owner: &str) -> Vec<String> {
        self.0.iter().map(|package| format!("{owner}/{}", package.name)).collect()
    }
}

impl Page for Versions {
    fn is_one(&self) -> bool {
        true
    }

    fn entries(&self) -> Vec<&str> {
        self.0.iter().map(|version| version.name.as_str()).collect()
    }
}

impl TagPage for Versions {
    fn tags(self) -> Vec<ListedTag> {
        let listed = |version: Version| {
            let digest = version.name.parse().ok();
            let created = date(version.updated_at.as_deref()).or_else(|| date(version.created_at.as_deref()));
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
        let page: Versions = serde_json::from_value(serde_json::json!([
            {"id": 1, "name": digest, "created_at": "2024-01-01T00:00:00Z", "updated_at": "2025-01-01T00:00:00Z",
             "metadata": {"package_type": "container", "container": {"tags": ["1.0", "latest"]}}},
            {"id": 2, "name": format!("sha256:{}", "b".repeat(64)),
             "metadata": {"package_type": "container", "container": {"tags": []}}},
        ]))
        .unwrap();
        let tags = page.tags();
        assert_eq!(tags.len(), 2);
        assert_eq!(tags[1].digest.as_ref().map(ToString::to_string), Some(digest));
        assert_eq!(tags[1].created.unwrap().to_string(), "2025-01-01T00:00:00Z");
    }
}
