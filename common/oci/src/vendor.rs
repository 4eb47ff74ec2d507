//! Selects the API that lists a registry's repositories and tags: the registry's own or its vendor's. Pure: derived
//! from names and configuration.

use std::fmt;
use std::str::FromStr;

use url::Url;

use crate::RegistryName;

/// Address of Docker Hub's API, which is not on its registry's host.
const HUB_API_URL: &str = "https://hub.docker.com/";
/// Address of GitHub's API.
const GITHUB_API_URL: &str = "https://api.github.com/";

/// A vendor with an API that lists repositories, and tags with digests and dates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// Quay: quay.io or self-hosted (`/api/v1`).
    Quay,
    /// Docker Hub (`/v2` at hub.docker.com).
    Hub,
    /// Harbor (`/api/v2.0`).
    Harbor,
    /// GitHub packages: ghcr.io or GitHub Enterprise.
    GitHub,
}

/// Listing method of a registry, `listing:` in the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ListingMethod {
    /// By the registry's name.
    #[default]
    Auto,
    /// The distribution API only: `tags/list` and `_catalog`.
    Registry,
    /// This vendor's API.
    Vendor(Vendor),
}

/// A vendor's API and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VendorEndpoint {
    /// The vendor.
    pub vendor: Vendor,
    /// Address as configured or well known; `None` means the registry's own. See [`Vendor::api_base_url`].
    pub url: Option<Url>,
}

/// An Amazon registry (ECR) with its account and region, parsed from its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcrHost {
    /// Account number; `None` for ECR Public, where the first component of a repository is the account's alias.
    pub account: Option<String>,
    /// The region, such as `eu-west-1`.
    pub region: String,
    /// Host of the ECR API.
    api: String,
}

impl EcrHost {
    /// Parses `<account>.dkr.ecr.<region>.amazonaws.com` (also `-fips`, also in China), or `public.ecr.aws`.
    pub fn from_registry(registry: &RegistryName) -> Option<EcrHost> {
        if registry.port().is_some() {
            return None;
        }
        if registry.host() == "public.ecr.aws" {
            let (region, api) = ("us-east-1".to_owned(), "api.ecr-public.us-east-1.amazonaws.com".to_owned());
            return Some(EcrHost { account: None, region, api });
        }
        let (account, rest) = registry.host().split_once(".dkr.")?;
        let (service, rest) = rest.split_once('.')?;
        let (region, domain) = rest.split_once('.')?;
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_account = !account.is_empty() && account.bytes().all(|byte| byte.is_ascii_digit());
        let is_amazons = matches!(domain, "amazonaws.com" | "amazonaws.com.cn");
        let api = match service {
            "ecr" => format!("api.ecr.{region}.{domain}"),
            "ecr-fips" => format!("ecr-fips.{region}.{domain}"),
            _ => return None,
        };
        (is_account && is_amazons && is_plain(region)).then(|| EcrHost {
            account: Some(account.to_owned()),
            region: region.to_owned(),
            api,
        })
    }

    /// Returns the address of the ECR API.
    pub fn api(&self) -> Url {
        // It consists of letters, digits, dots and hyphens.
        #[allow(clippy::expect_used)]
        Url::parse(&format!("https://{}/", self.api)).expect("a checked host makes a URL")
    }

    /// Returns a repository's name in the API.
    pub fn repository_name<'a>(&self, path: &'a str) -> &'a str {
        match self.account {
            Some(_) => path,
            None => path.split_once('/').map_or(path, |(_, name)| name),
        }
    }
}

impl Vendor {
    /// Returns the name for messages: "Quay's API".
    pub fn name(self) -> &'static str {
        match self {
            Vendor::Quay => "Quay",
            Vendor::Hub => "Docker Hub",
            Vendor::Harbor => "Harbor",
            Vendor::GitHub => "GitHub",
        }
    }

    /// Returns the vendor of a registry, if its name tells.
    fn from_registry(registry: &RegistryName) -> Option<Vendor> {
        match registry.as_str() {
            _ if registry.is_docker_hub() => Some(Vendor::Hub),
            "ghcr.io" => Some(Vendor::GitHub),
            "quay.io" => Some(Vendor::Quay),
            _ => None,
        }
    }

    /// Returns the vendor of an API, if its address tells.
    fn from_api_url(api: &Url) -> Option<Vendor> {
        let path = api.path().trim_end_matches('/');
        match api.host_str() {
            Some("hub.docker.com") => Some(Vendor::Hub),
            Some("api.github.com") => Some(Vendor::GitHub),
            _ if path.ends_with("/api/v1") => Some(Vendor::Quay),
            _ if path.ends_with("/api/v2.0") => Some(Vendor::Harbor),
            _ if path.ends_with("/api/v3") => Some(Vendor::GitHub),
            _ => None,
        }
    }

    fn api_path(self) -> &'static str {
        match self {
            Vendor::Quay => "api/v1/",
            Vendor::Hub => "v2/",
            Vendor::Harbor => "api/v2.0/",
            Vendor::GitHub => "",
        }
    }

    /// Returns the base URL of requests, with a trailing slash. `at` may be written with the API's own path or without.
    pub fn api_base_url(self, at: &Url) -> Url {
        let mut base = at.clone();
        let mut path = format!("{}/", at.path().trim_end_matches('/'));
        if !path.ends_with(&format!("/{}", self.api_path())) {
            path.push_str(self.api_path());
        }
        base.set_path(&path);
        base.set_query(None);
        base
    }
}

impl FromStr for ListingMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<ListingMethod, String> {
        Ok(match text {
            "auto" => ListingMethod::Auto,
            "registry" => ListingMethod::Registry,
            "quay" => ListingMethod::Vendor(Vendor::Quay),
            "hub" => ListingMethod::Vendor(Vendor::Hub),
            "harbor" => ListingMethod::Vendor(Vendor::Harbor),
            "github" => ListingMethod::Vendor(Vendor::GitHub),
            other => return Err(format!("unknown listing `{other}`: use auto, registry, quay, hub, harbor or github")),
        })
    }
}

impl fmt::Display for ListingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ListingMethod::Auto => "auto",
            ListingMethod::Registry => "registry",
            ListingMethod::Vendor(Vendor::Quay) => "quay",
            ListingMethod::Vendor(Vendor::Hub) => "hub",
            ListingMethod::Vendor(Vendor::Harbor) => "harbor",
            ListingMethod::Vendor(Vendor::GitHub) => "github",
        })
    }
}

/// Selects the vendor's API that lists a registry; `None` for the registry's own. An `endpoint` is a server other than
/// the named one, and so disables the vendor's API unless `api` gives its address. An error says what is missing.
pub fn resolve_listing(
    registry: &RegistryName,
    by: ListingMethod,
    endpoint: Option<&Url>,
    api: Option<&Url>,
) -> Result<Option<VendorEndpoint>, String> {
    let vendor = match by {
        ListingMethod::Registry if api.is_some() => {
            return Err("`api` has no effect with `listing: registry`".to_owned());
        }
        ListingMethod::Registry => return Ok(None),
        ListingMethod::Vendor(vendor) => vendor,
        ListingMethod::Auto => match (Vendor::from_registry(registry), api) {
            (Some(_), None) if endpoint.is_some() => return Ok(None),
            (Some(vendor), _) => vendor,
            (None, None) => return Ok(None),
            // ECR's API does not list, but creates repositories.
            (None, Some(_)) if EcrHost::from_registry(registry).is_some() => return Ok(None),
            (None, Some(api)) => Vendor::from_api_url(api).ok_or(
                "cannot tell the vendor from the address of the API: set `listing:` to quay, hub, harbor or github",
            )?,
        },
    };
    if let Some(api) = api {
        return Ok(Some(VendorEndpoint { vendor, url: Some(api.clone()) }));
    }
    if endpoint.is_some() {
        return Err(format!("`listing: {by}` needs `api:` when `endpoint` is set"));
    }
    let known = |address: &str, is_home: bool| match is_home {
        true => Ok(Url::parse(address).ok()),
        false => Err(format!("`listing: {by}` needs `api:` for {registry}")),
    };
    let at = match vendor {
        Vendor::Quay | Vendor::Harbor => None,
        Vendor::Hub => known(HUB_API_URL, Vendor::from_registry(registry) == Some(vendor))?,
        Vendor::GitHub => known(GITHUB_API_URL, Vendor::from_registry(registry) == Some(vendor))?,
    };
    Ok(Some(VendorEndpoint { vendor, url: at }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(registry: &str, by: &str, endpoint: Option<&str>, api: Option<&str>) -> Result<Option<String>, String> {
        let url = |text: Option<&str>| text.map(|text| text.parse::<Url>().unwrap());
        let (endpoint, api) = (url(endpoint), url(api));
        let found = resolve_listing(&registry.parse().unwrap(), by.parse().unwrap(), endpoint.as_ref(), api.as_ref())?;
        Ok(found.map(|found| match &found.url {
            None => format!("{} at home", found.vendor.name()),
            Some(at) => format!("{} at {}", found.vendor.name(), found.vendor.api_base_url(at)),
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
    fn amazons_registries_are_known_by_their_names() {
        let of = |name: &str| {
            EcrHost::from_registry(&name.parse().unwrap()).map(|host| (host.account.clone(), host.api().to_string()))
        };
        let ecr = of("123456789012.dkr.ecr.eu-west-1.amazonaws.com").unwrap();
        assert_eq!(ecr, (Some("123456789012".to_owned()), "https://api.ecr.eu-west-1.amazonaws.com/".to_owned()));
        let fips = of("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com").unwrap();
        assert_eq!(fips.1, "https://ecr-fips.us-gov-west-1.amazonaws.com/");
        let china = of("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn").unwrap();
        assert_eq!(china.1, "https://api.ecr.cn-north-1.amazonaws.com.cn/");
        assert_eq!(of("public.ecr.aws").unwrap().0, None);
        let public = EcrHost::from_registry(&"public.ecr.aws".parse().unwrap()).unwrap();
        assert_eq!(public.repository_name("alias/team/app"), "team/app");
        for other in [
            "x.dkr.ecr.eu-west-1.amazonaws.com",
            "1.dkr.ecr.eu-west-1.example.com",
            "1.dkr.ecr.eu.amazonaws.com.evil.io",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        let api = Some("https://vpce-1.api.ecr.eu-west-1.vpce.amazonaws.com");
        assert_eq!(is("1.dkr.ecr.eu-west-1.amazonaws.com", "auto", None, api), "none");
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
