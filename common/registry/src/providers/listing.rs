//! Selects the API that lists a registry's repositories and tags: the registry's own or its provider's. Pure: derived
//! from names and configuration.

use std::fmt;
use std::str::FromStr;

use url::Url;

use super::{PROVIDERS, Provider};
use imgsync_oci::RegistryName;

/// Listing method of a registry, `listing:` in the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum ListingMethod {
    /// By the registry's name.
    #[default]
    Auto,
    /// The distribution API only: `tags/list` and `_catalog`.
    Registry,
    /// This provider's API.
    Provider(&'static Provider),
}

/// A provider's listing API and its address.
#[derive(Debug, Clone, PartialEq)]
pub struct ListingEndpoint {
    /// The provider.
    pub provider: &'static Provider,
    /// Address as configured or well known; `None` means the registry's own. See `Provider::api_base_url`.
    pub url: Option<Url>,
}

impl Provider {
    /// Returns the provider whose API lists a registry, if its name tells.
    fn from_registry(registry: &RegistryName) -> Option<&'static Provider> {
        let serves = |provider: &&Provider| provider.listing.is_some() && provider.serves(registry.host());
        PROVIDERS.into_iter().find(serves).filter(|_| registry.port().is_none())
    }

    /// Returns the provider of an API, if its address tells: by the host, else by the path.
    fn from_api_url(api: &Url) -> Option<&'static Provider> {
        let path = api.path().trim_end_matches('/');
        let has_host = |provider: &&Provider| provider.known_api_url().is_some_and(|known| known.host() == api.host());
        let has_path = |provider: &&Provider| {
            provider.listing.and_then(|listing| listing.self_hosted_path()).is_some_and(|end| path.ends_with(end))
        };
        PROVIDERS.into_iter().find(has_host).or_else(|| PROVIDERS.into_iter().find(has_path))
    }

    /// Returns the well-known address of its listing API, if that is not on the registry's host.
    fn known_api_url(&self) -> Option<Url> {
        Url::parse(self.listing?.known_url()?).ok()
    }

    /// Returns the base URL of requests, with a trailing slash. `at` may be written with the API's own path or without.
    pub(super) fn api_base_url(&self, at: &Url) -> Url {
        let own_path = self.listing.map(|listing| listing.path()).unwrap_or_default();
        let mut base = at.clone();
        let mut path = format!("{}/", at.path().trim_end_matches('/'));
        if !path.ends_with(&format!("/{own_path}")) {
            path.push_str(own_path);
        }
        base.set_path(&path);
        base.set_query(None);
        base
    }
}

/// Returns the names of the providers' listing APIs in the configuration.
pub fn listing_names() -> impl Iterator<Item = &'static str> {
    PROVIDERS.into_iter().filter_map(|provider| Some(provider.listing?.key()))
}

/// Lists the names for messages: `quay, hub, harbor or github`.
fn shown_names() -> String {
    let names: Vec<&str> = listing_names().collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => names.concat(),
    }
}

impl FromStr for ListingMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<ListingMethod, String> {
        let has_name = |provider: &&Provider| provider.listing.is_some_and(|listing| listing.key() == text);
        match text {
            "auto" => Ok(ListingMethod::Auto),
            "registry" => Ok(ListingMethod::Registry),
            other => PROVIDERS
                .into_iter()
                .find(has_name)
                .map(ListingMethod::Provider)
                .ok_or_else(|| format!("unknown listing `{other}`: use auto, registry, {}", shown_names())),
        }
    }
}

impl fmt::Display for ListingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ListingMethod::Auto => "auto",
            ListingMethod::Registry => "registry",
            ListingMethod::Provider(provider) => provider.listing.map(|listing| listing.key()).unwrap_or_default(),
        })
    }
}

/// Selects the provider's API that lists a registry; `None` for the registry's own. An `endpoint` is a server other than
/// the named one, and so disables the provider's API unless `api` gives its address. An error says what is missing.
pub fn resolve_listing(
    registry: &RegistryName,
    by: ListingMethod,
    endpoint: Option<&Url>,
    api: Option<&Url>,
) -> Result<Option<ListingEndpoint>, String> {
    let home = Provider::from_registry(registry);
    let provider = match by {
        ListingMethod::Registry if api.is_some() => {
            return Err("`api` has no effect with `listing: registry`".to_owned());
        }
        ListingMethod::Registry => return Ok(None),
        ListingMethod::Provider(provider) => provider,
        ListingMethod::Auto => match (home, api) {
            (Some(_), None) if endpoint.is_some() => return Ok(None),
            (Some(provider), _) => provider,
            (None, None) => return Ok(None),
            // An API that does not list, but creates repositories.
            (None, Some(_)) if has_creating_api(registry) => return Ok(None),
            (None, Some(api)) => Provider::from_api_url(api).ok_or_else(|| {
                format!("cannot tell the provider from the address of the API: set `listing:` to {}", shown_names())
            })?,
        },
    };
    if let Some(api) = api {
        return Ok(Some(ListingEndpoint { provider, url: Some(api.clone()) }));
    }
    if endpoint.is_some() {
        return Err(format!("`listing: {by}` needs `api:` when `endpoint` is set"));
    }
    let url = provider.known_api_url();
    if url.is_some() && home != Some(provider) {
        return Err(format!("`listing: {by}` needs `api:` for {registry}"));
    }
    Ok(Some(ListingEndpoint { provider, url }))
}

fn has_creating_api(registry: &RegistryName) -> bool {
    PROVIDERS.iter().filter_map(|provider| provider.provisioning).any(|provisioning| provisioning.serves(registry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(registry: &str, by: &str, endpoint: Option<&str>, api: Option<&str>) -> Result<Option<String>, String> {
        let url = |text: Option<&str>| text.map(|text| text.parse::<Url>().unwrap());
        let (endpoint, api) = (url(endpoint), url(api));
        let found = resolve_listing(&registry.parse().unwrap(), by.parse().unwrap(), endpoint.as_ref(), api.as_ref())?;
        Ok(found.map(|found| match &found.url {
            None => format!("{} at home", found.provider.name),
            Some(at) => format!("{} at {}", found.provider.name, found.provider.api_base_url(at)),
        }))
    }

    fn is(registry: &str, by: &str, endpoint: Option<&str>, api: Option<&str>) -> String {
        found(registry, by, endpoint, api).unwrap().unwrap_or("none".to_owned())
    }

    #[test]
    fn the_name_of_a_registry_says_whose_api_lists_it() {
        assert_eq!(is("docker.io", "auto", None, None), "Docker Hub at https://hub.docker.com/v2/");
        assert_eq!(is("ghcr.io", "auto", None, None), "GitHub at https://api.github.com/");
        assert_eq!(is("quay.io", "auto", None, None), "Quay at home");
        assert_eq!(is("gcr.io", "auto", None, None), "none");
        assert_eq!(is("quay.io:8443", "auto", None, None), "none");
        assert_eq!(is("quay.io", "registry", None, None), "none");
        assert_eq!(is("harbor.example.org", "harbor", None, None), "Harbor at home");
    }

    #[test]
    fn an_endpoint_turns_it_off_unless_it_is_said_where_the_api_is() {
        let (mirror, api) = (Some("http://127.0.0.1:1"), Some("http://127.0.0.1:2"));
        assert_eq!(is("docker.io", "auto", mirror, None), "none");
        assert_eq!(is("docker.io", "auto", mirror, api), "Docker Hub at http://127.0.0.1:2/v2/");
        assert!(found("docker.io", "hub", mirror, None).unwrap_err().contains("needs `api:`"));
    }

    #[test]
    fn an_address_is_taken_with_the_path_of_the_api_or_without() {
        for api in ["https://h.example.org", "https://h.example.org/api/v2.0", "https://h.example.org/api/v2.0/"] {
            assert_eq!(
                is("r.example.org", "harbor", None, Some(api)),
                "Harbor at https://h.example.org/api/v2.0/",
                "{api}"
            );
        }
        let github = Some("https://git.example.org/api/v3");
        assert_eq!(is("c.example.org", "auto", None, github), "GitHub at https://git.example.org/api/v3/");
        assert_eq!(is("c.example.org", "auto", None, Some("https://q/api/v1")), "Quay at https://q/api/v1/");
    }

    #[test]
    fn the_host_of_an_api_counts_more_than_its_path() {
        let hub = "https://hub.docker.com/api/v1";
        assert_eq!(is("r.example.org", "auto", None, Some(hub)), "Docker Hub at https://hub.docker.com/api/v1/v2/");
        let github = "https://api.github.com/api/v2.0";
        assert_eq!(is("r.example.org", "auto", None, Some(github)), "GitHub at https://api.github.com/api/v2.0/");
    }

    #[test]
    fn an_api_that_only_creates_repositories_does_not_list_them() {
        let api = Some("https://vpce-1.api.ecr.eu-west-1.vpce.amazonaws.com");
        assert_eq!(is("1.dkr.ecr.eu-west-1.amazonaws.com", "auto", None, api), "none");
    }

    #[test]
    fn a_method_is_written_as_it_is_read() {
        for name in listing_names().chain(["auto", "registry"]) {
            assert_eq!(name.parse::<ListingMethod>().unwrap().to_string(), name);
        }
        assert_eq!(shown_names(), "quay, hub, harbor or github");
    }

    #[test]
    fn what_cannot_be_known_is_asked_for() {
        for (by, api, words) in [
            ("auto", Some("https://somewhere"), "set `listing:`"),
            ("hub", None, "needs `api:`"),
            ("github", None, "needs `api:`"),
            ("registry", Some("https://somewhere"), "has no effect"),
        ] {
            let error = found("r.example.org", by, None, api).unwrap_err();
            assert!(error.contains(words), "{by}: {error}");
        }
        assert!("dockerhub".parse::<ListingMethod>().unwrap_err().contains("use auto"));
    }
}
