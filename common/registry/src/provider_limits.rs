//! Documented rate limits of registry providers. They apply to the providers' own hosts only, and only where the
//! configuration sets no limit.

use super::settings::RegistrySettings;
use imgsync_oci::RegistryName;
use imgsync_rate_limit::RateLimitCategory;

/// Rate limits of one provider.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProviderLimits {
    /// Host names; a pattern with a leading dot matches as a suffix.
    hosts: &'static [&'static str],
    /// Requests per second, all kinds together.
    pub requests_per_second: Option<f64>,
    /// Requests per second of single operations.
    pub per_operation: &'static [(RateLimitCategory, f64)],
    /// Where the limit is documented.
    pub source: &'static str,
}

/// Set a little below the documented limits, since clocks and counting differ.
const PROVIDER_LIMITS: [ProviderLimits; 4] = [
    // Pulls are counted separately, as response headers tell.
    ProviderLimits {
        hosts: &["docker.io"],
        requests_per_second: Some(33.0),
        per_operation: &[],
        source: "https://docs.docker.com/docker-hub/usage/ (abuse limit: thousands of requests a minute and address)",
    },
    ProviderLimits {
        hosts: &["ghcr.io"],
        requests_per_second: Some(33.0),
        per_operation: &[],
        source: "https://docs.github.com/en/packages (2,000 requests a minute)",
    },
    ProviderLimits {
        hosts: &["gcr.io", ".gcr.io", ".pkg.dev"],
        requests_per_second: Some(80.0),
        per_operation: &[],
        source: "https://cloud.google.com/artifact-registry/quotas (5,000 requests a minute; GCR: 50,000 in ten minutes)",
    },
    ProviderLimits {
        hosts: &[".amazonaws.com"],
        requests_per_second: None,
        per_operation: &[(RateLimitCategory::ManifestPuts, 10.0), (RateLimitCategory::UploadStarts, 100.0)],
        source: "https://docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html (PutImage 10, InitiateLayerUpload 100 a second)",
    },
];

/// Returns the limits of a registry. `None` if it has another endpoint or a configured limit.
pub fn for_registry(name: &RegistryName, settings: &RegistrySettings) -> Option<&'static ProviderLimits> {
    if settings.endpoint.is_some() || settings.requests_per_second.is_some() {
        return None;
    }
    let host = name.host();
    PROVIDER_LIMITS.iter().find(|known| {
        known.hosts.iter().any(|pattern| match pattern.starts_with('.') {
            true => host.ends_with(pattern),
            false => host == *pattern,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> Option<&'static ProviderLimits> {
        for_registry(&name.parse().unwrap(), &RegistrySettings::default())
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
        assert_eq!(for_registry(&"ghcr.io".parse().unwrap(), &mirror), None);
        let own = RegistrySettings { requests_per_second: Some(5.0), ..Default::default() };
        assert_eq!(for_registry(&"ghcr.io".parse().unwrap(), &own), None);
    }
}
