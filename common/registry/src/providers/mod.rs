//! Habits of providers, one file each: hosts, endpoint, documented rate limits, size of upload chunks, the API that lists,
//! the API that creates what a push needs, and their hints. Nothing else in this crate names a provider.
//!
//! Beside the providers is what they share: `api` sends requests to a listing API and reads its pages, `listing`
//! chooses the API, `provisioning` creates what is missing, `identity` logs in with the identity of the machine. Limits and endpoints apply to the providers' own hosts, and
//! only where the configuration sets nothing else.

mod amazon;
pub(crate) mod api;
mod azure;
mod docker_hub;
mod github;
mod google;
mod harbor;
pub(crate) mod identity;
mod listing;
mod nexus;
pub(crate) mod provisioning;
mod quay;

use std::fmt;

pub use identity::{CredentialSource, identity_names};
pub use listing::{ListingEndpoint, ListingMethod, listing_names, resolve_listing};
pub use provisioning::creating_names;

use super::RegistrySettings;
use super::credentials::CredentialEnvironment;
use api::ListingApi;
use identity::MachineIdentity;
pub(crate) use identity::refuse_foreign_realm;
use imgsync_oci::RegistryName;
use imgsync_oci::secret::Secret;
use imgsync_rate_limit::RateLimitCategory;
use provisioning::Provisioning;

/// All providers with habits of their own. Messages list them in this order.
static PROVIDERS: [&Provider; 8] = [
    &amazon::AMAZON,
    &azure::AZURE,
    &google::GOOGLE,
    &nexus::NEXUS,
    &quay::QUAY,
    &docker_hub::DOCKER_HUB,
    &harbor::HARBOR,
    &github::GITHUB,
];

/// Habits of one provider.
pub struct Provider {
    /// Name in messages: "Quay's API".
    pub name: &'static str,
    /// Host names; a pattern with a leading dot matches as a suffix.
    hosts: &'static [&'static str],
    /// Base URL, where it is not the host's.
    endpoint: Option<&'static str>,
    /// Requests per second, all kinds together. Set a little below the documented limit, since clocks and counting
    /// differ.
    pub requests_per_second: Option<f64>,
    /// Requests per second of single operations.
    pub per_operation: &'static [(RateLimitCategory, f64)],
    /// Where the limits are documented.
    pub source: &'static str,
    /// Bytes of each PATCH, where whole blobs are cut off.
    chunk_bytes: Option<u64>,
    /// Begin of the `Server` header of registries that answer HEAD with 404 for manifests that exist.
    server_without_heads: Option<&'static str>,
    /// Service name in challenges by which a registry is recognized, whatever its host.
    token_service: Option<&'static str>,
    /// Variables of the environment that hold its secrets.
    secret_variables: &'static [&'static str],
    /// The API that lists repositories, and tags with digests and dates.
    listing: Option<&'static dyn ListingApi>,
    /// What a push needs there first, and how it is created.
    provisioning: Option<&'static dyn Provisioning>,
    /// How it logs in a machine that has an identity of its own.
    identity: Option<&'static dyn MachineIdentity>,
}

impl Provider {
    /// A provider without habits.
    const NONE: Provider = Provider {
        name: "",
        hosts: &[],
        endpoint: None,
        requests_per_second: None,
        per_operation: &[],
        source: "",
        chunk_bytes: None,
        server_without_heads: None,
        token_service: None,
        secret_variables: &[],
        listing: None,
        provisioning: None,
        identity: None,
    };

    /// Returns the user name of the credentials that it issues to machines.
    pub(crate) fn issued_username(&self) -> Option<&'static str> {
        self.identity.map(|identity| identity.username())
    }

    fn serves(&self, host: &str) -> bool {
        self.hosts.iter().any(|pattern| match pattern.starts_with('.') {
            true => host.ends_with(pattern),
            false => host == *pattern,
        })
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Providers are equal by name: each occurs once.
impl PartialEq for Provider {
    fn eq(&self, other: &Provider) -> bool {
        self.name == other.name
    }
}

/// Returns the provider of a registry's host.
fn find(name: &RegistryName) -> Option<&'static Provider> {
    PROVIDERS.into_iter().find(|provider| provider.serves(name.host()))
}

/// Returns the base URL of a registry, where it is not its host's.
pub fn endpoint(name: &RegistryName) -> Option<&'static str> {
    find(name)?.endpoint
}

/// Returns the bytes of each PATCH to a registry that cuts off whole blobs.
pub(crate) fn chunk_bytes(name: &RegistryName) -> Option<u64> {
    find(name)?.chunk_bytes
}

/// Whether a registry with this `Server` header answers HEAD with 404 for manifests that exist.
pub(crate) fn has_unreliable_heads(server: &str) -> bool {
    PROVIDERS.iter().filter_map(|provider| provider.server_without_heads).any(|begin| server.starts_with(begin))
}

/// Returns the secrets of providers in an environment, which are masked while they are held.
pub(crate) fn environment_secrets(environment: &CredentialEnvironment) -> Vec<Secret> {
    let names = PROVIDERS.iter().flat_map(|provider| provider.secret_variables);
    names.filter_map(|name| environment.helpers.get(name)?.to_str()).map(Secret::new).collect()
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
    use crate::{Client, ClientSettings};
    use imgsync_oci::mask::mask;

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
        for other in ["123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "123456789012.dkr-ecr.eu-west-1.on.aws"] {
            assert_eq!(known(other), Some(ecr), "{other}");
        }
        for other in ["localhost:5000", "ghcr.io.example.com", "quay.io", "notgcr.io"] {
            assert_eq!(known(other), None, "{other}");
        }
        let mirror = RegistrySettings { endpoint: Some("http://127.0.0.1:1".parse().unwrap()), ..Default::default() };
        assert_eq!(limits_for_registry(&"ghcr.io".parse().unwrap(), &mirror), None);
        let own = RegistrySettings { requests_per_second: Some(5.0), ..Default::default() };
        assert_eq!(limits_for_registry(&"ghcr.io".parse().unwrap(), &own), None);
    }

    #[test]
    fn each_provider_has_a_name_of_its_own_and_a_source_for_its_limits() {
        for (at, provider) in PROVIDERS.iter().enumerate() {
            assert!(!provider.name.is_empty(), "the provider at {at} has no name");
            assert!(!PROVIDERS[..at].contains(provider), "{provider:?} is there twice");
            let has_limits = provider.requests_per_second.is_some() || !provider.per_operation.is_empty();
            assert_eq!(has_limits, provider.source.starts_with("https://"), "{provider:?}");
        }
    }

    #[test]
    fn the_secrets_of_providers_are_masked_as_long_as_the_client_lives() {
        let variables =
            [("AWS_SECRET_ACCESS_KEY", "mD8vK2qXw9"), ("AWS_SESSION_TOKEN", "pZ4tN7rLb1"), ("AWS_PROFILE", "work")];
        let helpers = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let environment = CredentialEnvironment { helpers, ..CredentialEnvironment::default() };
        let client = Client::new(ClientSettings::default(), environment);
        assert_eq!(mask("denied: mD8vK2qXw9 of work with pZ4tN7rLb1"), "denied: *** of work with ***");
        drop(client);
    }

    #[test]
    fn only_nexus_answers_heads_wrongly() {
        assert!(has_unreliable_heads("Nexus/3.70.1-02 (OSS)"));
        assert!(!has_unreliable_heads("nginx/1.27"));
    }
}
