//! What registries are documented to accept, as data. It holds for the real hosts alone, and where the configuration does
//! not say otherwise.

use super::settings::RegistrySettings;
use crate::image::RegistryName;
use crate::store::AccountPart;

/// Limits of one kind of registry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// Hosts that are one of these, or end with one that begins with a dot.
    hosts: &'static [&'static str],
    /// Requests a second, all together.
    pub requests_per_second: Option<f64>,
    /// Of parts of them.
    pub parts: &'static [(AccountPart, f64)],
    /// Where that is said.
    pub source: &'static str,
}

/// A little below what is documented, as clocks and counting differ.
const KNOWN: [Known; 4] = [
    // Pulls are counted apart, as the answers say.
    Known {
        hosts: &["docker.io"],
        requests_per_second: Some(33.0),
        parts: &[],
        source: "https://docs.docker.com/docker-hub/usage/ (abuse limit: thousands of requests a minute and address)",
    },
    Known {
        hosts: &["ghcr.io"],
        requests_per_second: Some(33.0),
        parts: &[],
        source: "https://docs.github.com/en/packages (2,000 requests a minute)",
    },
    Known {
        hosts: &["gcr.io", ".gcr.io", ".pkg.dev"],
        requests_per_second: Some(80.0),
        parts: &[],
        source: "https://cloud.google.com/artifact-registry/quotas (5,000 requests a minute; GCR: 50,000 in ten minutes)",
    },
    Known {
        hosts: &[".amazonaws.com"],
        requests_per_second: None,
        parts: &[(AccountPart::ManifestPuts, 10.0), (AccountPart::UploadStarts, 100.0)],
        source: "https://docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html (PutImage 10, InitiateLayerUpload 100 a second)",
    },
];

/// What is known of a registry; nothing where it is really elsewhere, or its own limit is configured.
pub fn of(name: &RegistryName, settings: &RegistrySettings) -> Option<&'static Known> {
    if settings.endpoint.is_some() || settings.requests_per_second.is_some() {
        return None;
    }
    let host = name.host();
    KNOWN.iter().find(|known| {
        known.hosts.iter().any(|pattern| match pattern.starts_with('.') {
            true => host.ends_with(pattern),
            false => host == *pattern,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> Option<&'static Known> {
        of(&name.parse().unwrap(), &RegistrySettings::default())
    }

    #[test]
    fn what_is_documented_holds_for_the_real_hosts_where_nothing_else_is_said() {
        assert_eq!(known("ghcr.io").unwrap().requests_per_second, Some(33.0));
        assert_eq!(known("docker.io").unwrap().requests_per_second, Some(33.0));
        assert_eq!(known("europe-docker.pkg.dev").unwrap().requests_per_second, Some(80.0));
        assert_eq!(known("eu.gcr.io").unwrap(), known("gcr.io").unwrap());
        let ecr = known("123456789012.dkr.ecr.eu-west-1.amazonaws.com").unwrap();
        assert_eq!((ecr.requests_per_second, ecr.parts[0]), (None, (AccountPart::ManifestPuts, 10.0)));
        for other in ["localhost:5000", "ghcr.io.example.com", "quay.io", "notgcr.io"] {
            assert_eq!(known(other), None, "{other}");
        }
        let mirror = RegistrySettings { endpoint: Some("http://127.0.0.1:1".parse().unwrap()), ..Default::default() };
        assert_eq!(of(&"ghcr.io".parse().unwrap(), &mirror), None);
        let own = RegistrySettings { requests_per_second: Some(5.0), ..Default::default() };
        assert_eq!(of(&"ghcr.io".parse().unwrap(), &own), None);
    }
}
