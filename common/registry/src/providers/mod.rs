//! Habits of providers, one file each: hosts, endpoint, documented rate limits, size of upload chunks. They apply to the
//! providers' own hosts, and only where the configuration sets nothing else.

mod amazon;
mod azure;
mod docker_hub;
mod github;
mod google;

use super::settings::RegistrySettings;
use imgsync_oci::RegistryName;
use imgsync_rate_limit::RateLimitCategory;

/// Habits of one provider.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Provider {
    /// Host names; a pattern with a leading dot matches as a suffix.
    hosts: &'static [&'static str],
    /// Base URL, where it is not the host's.
    pub(crate) endpoint: Option<&'static str>,
    /// Requests per second, all kinds together. Set a little below the documented limit, since clocks and counting
    /// differ.
    pub requests_per_second: Option<f64>,
    /// Requests per second of single operations.
    pub per_operation: &'static [(RateLimitCategory, f64)],
    /// Where the limits are documented.
    pub source: &'static str,
    /// Bytes of each PATCH, where whole blobs are cut off.
    pub(crate) chunk_bytes: Option<u64>,
}

/// All providers with habits of their own.
const PROVIDERS: [Provider; 5] = [docker_hub::DOCKER_HUB, github::GITHUB, google::GOOGLE, amazon::AMAZON, azure::AZURE];

impl Provider {
    /// A provider without habits.
    const NONE: Provider = Provider {
        hosts: &[],
        endpoint: None,
        requests_per_second: None,
        per_operation: &[],
        source: "",
        chunk_bytes: None,
    };

    fn serves(&self, host: &str) -> bool {
        self.hosts.iter().any(|pattern| match pattern.starts_with('.') {
            true => host.ends_with(pattern),
            false => host == *pattern,
        })
    }
}

/// Returns the provider of a registry's host.
pub(crate) fn find(name: &RegistryName) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|provider| provider.serves(name.host()))
}

/// Returns the provider whose documented limits apply to a registry. `None` if the registry has another endpoint or a
/// configured limit.
pub fn limits_for_registry(name: &RegistryName, settings: &RegistrySettings) -> Option<&'static Provider> {
    if settings.endpoint.is_some() || settings.requests_per_second.is_some() {
        return None;
    }
    find(name).filter(|provider| provider.requests_per_second.is_some() || !provider.per_operation.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> Option<&'static Provider> {
        limits_for_registry(&name.parse().unwrap(), &RegistrySettings::default())
    }

    #[test]
    fn documented_limits_apply_to_the_real_hosts_unless_configured() {
        assert_eq!(known("ghcr.io").unwrap().requests_per_second, Some(33.0));
        assert_eq!(known("docker.io").unwrap().requests_per_second, Some(33.0));
        assert_eq!(known("europe-docker.pkg.dev").unwrap().requests_per_second, Some(80.0));
        assert_eq!(known("eu.gcr.io").unwrap(), known("gcr.io").unwrap());
        let ecr = known("123456789012.dkr.ecr.eu-west-1.amazonaws.com").unwrap();
        assert_eq!((ecr.requests_per_second, ecr.per_operation[0]), (None, (RateLimitCategory::ManifestPuts, 10.0)));
        for other in ["localhost:5000", "ghcr.io.example.com", "quay.io", "notgcr.io"] {
            assert_eq!(known(other), None, "{other}");
        }
        let mirror = RegistrySettings { endpoint: Some("http://127.0.0.1:1".parse().unwrap()), ..Default::default() };
        assert_eq!(limits_for_registry(&"ghcr.io".parse().unwrap(), &mirror), None);
        let own = RegistrySettings { requests_per_second: Some(5.0), ..Default::default() };
        assert_eq!(limits_for_registry(&"ghcr.io".parse().unwrap(), &own), None);
    }
}
