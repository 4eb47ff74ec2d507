//! Docker Hub. Its API: <https://docs.docker.com/reference/api/hub/latest/>, "List repositories", "List repository tags"
//! and "Create access token". 180 requests a minute without a login; high page numbers of a long list are not available
//! to everyone.

use ::http::StatusCode;
use async_trait::async_trait;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;
use imgsync_oci::{MediaType, RegistryName, RepositoryName};
use serde::Deserialize;

use super::Provider;
use super::api::{
    CredentialUse, ListedPages, ListedTag, ListingApi, PAGE_SIZE, ProviderApi, TokenExchange, parse_date,
    split_namespace,
};
use crate::page_reader::{BoundedList, ListEntry};
use crate::pagination::{ListPage, NextPage};

/// `docker.io` itself serves a web site. Its pull quota is read from response headers: see
/// `quota_headers.rs`.
pub(super) static DOCKER_HUB: Provider = Provider {
    name: "Docker Hub",
    hosts: &["docker.io"],
    endpoint: Some("https://registry-1.docker.io"),
    requests_per_second: Some(33.0),
    source: "https://docs.docker.com/docker-hub/usage/ (abuse limit: thousands of requests a minute and address)",
    listing: Some(&HubApi),
    ..Provider::NONE
};

/// Size limit of a login response.
const MAX_LOGIN_BYTES: usize = 1 << 20;

#[derive(Debug)]
struct HubApi;

impl ListingApi for HubApi {
    fn key(&self) -> &'static str {
        "hub"
    }

    fn known_url(&self) -> Option<&'static str> {
        Some("https://hub.docker.com/")
    }

    fn path(&self) -> &'static str {
        "v2/"
    }

    fn credential_use(&self, _username: &str) -> CredentialUse {
        CredentialUse::Exchange(&HubApi)
    }

    fn refused_hint(&self, registry: &RegistryName) -> String {
        format!(
            "check the user and the access token for {registry}: an account with a second factor or single sign-on \
             needs an access token in place of its password"
        )
    }

    fn list_repositories(&self, api: &ProviderApi, namespace: &str) -> ListedPages<String> {
        let first = api.url(&["namespaces", namespace, "repositories"], &[("page_size", PAGE_SIZE)]);
        let pages = api.pages::<HubRepositoryPage>(first, &api.describe_repositories(namespace));
        let namespace = namespace.to_owned();
        ListedPages::new(pages, move |page| page.into_names(&namespace))
    }

    fn list_tags(&self, api: &ProviderApi, name: &RepositoryName) -> ListedPages<ListedTag> {
        let (namespace, rest) = split_namespace(name.as_str());
        let first = api.url(&["namespaces", namespace, "repositories", rest, "tags"], &[("page_size", PAGE_SIZE)]);
        ListedPages::new(api.pages(first, &api.describe_tags(name)), HubTagPage::into_tags)
    }
}

/// Tokens for user and password are valid for some minutes.
#[async_trait]
impl TokenExchange for HubApi {
    async fn request_token(
        &self,
        api: &ProviderApi,
        username: &str,
        password: &Secret,
        operation: &str,
    ) -> Result<Secret> {
        let fields = [(["auth", "token"], ["identifier", "secret"]), (["users", "login"], ["username", "password"])];
        let mut response = None;
        for (path, [user, secret]) in fields {
            let body = serde_json::json!({user: username, secret: password.expose()});
            let given = api.post_login(&path, body.to_string(), operation).await?;
            // The older endpoint: a custom API may have only that one.
            let is_unknown = matches!(given.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
            response = Some(given);
            if !is_unknown {
                break;
            }
        }
        let Some(response) = response else {
            return Err(Error::new(ErrorKind::InvalidResponse, operation, "no login endpoint was found"));
        };
        if response.status() != StatusCode::OK {
            return Err(api.error_from_response(response, operation).await);
        }
        let bytes = response.bytes(MAX_LOGIN_BYTES, operation).await?;
        let given: HubToken = serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(ErrorKind::InvalidResponse, operation, format!("the answer cannot be parsed: {error}"))
        })?;
        given
            .access_token
            .or(given.token)
            .ok_or_else(|| Error::new(ErrorKind::InvalidResponse, operation, "the answer holds no token"))
    }
}

#[derive(Deserialize)]
struct HubToken {
    #[serde(default)]
    access_token: Option<Secret>,
    #[serde(default)]
    token: Option<Secret>,
}

#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de> + ListEntry"))]
struct HubPage<T> {
    results: BoundedList<T>,
    /// Full URL of the next page.
    #[serde(default)]
    next: Option<String>,
}

type HubRepositoryPage = HubPage<HubRepository>;
type HubTagPage = HubPage<HubTag>;

#[derive(Debug, Deserialize)]
struct HubRepository {
    name: String,
}

#[derive(Debug, Deserialize)]
struct HubTag {
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
trait HubEntry {
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

impl HubRepositoryPage {
    fn into_names(self, namespace: &str) -> Vec<String> {
        self.results.into_iter().map(|found| format!("{namespace}/{}", found.name)).collect()
    }
}

impl HubTagPage {
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
