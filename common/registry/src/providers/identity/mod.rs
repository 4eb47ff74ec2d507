//! The identity of the machine: credentials that a cloud issues to the machine, the container or the job in which this
//! process runs, so that nobody writes down a password. `credentials:` of a registry chooses the cloud.
//!
//! Own code and no library of the clouds: `reqsign`, the smallest of those that were compared, has no address of token
//! services from variables, no time limits, skips files that it cannot read, and covers one of the three logins; its
//! parts for all clouds add 45 crates, among them an RSA implementation with an open advisory (RUSTSEC-2023-0071).
//!
//! Metadata services have link-local addresses that [`crate::ssrf`] refuses to every registry. They are contacted here
//! alone, at addresses that are constants or come from documented variables, without proxies and redirects ([`http`]).

mod cache;
mod http;
mod search;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use imgsync_oci::RegistryName;
use imgsync_oci::error::Result;
use imgsync_oci::secret::Secret;

pub(crate) use cache::{LOGIN_TIMEOUT, MachineIdentities, refuse_foreign_realm};
pub(super) use http::{IdentityRequest, IdentityResponse, form};
pub(crate) use http::{MAX_ANSWER_BYTES, METADATA_TIMEOUT, SERVICE_TIMEOUT};
pub(super) use search::{Presence, Search};

use super::{PROVIDERS, Provider};
use crate::credentials::Credential;

/// Where the credentials of a registry come from, `credentials:` in the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum CredentialSource {
    /// Docker's files and helpers; if these have none, the identity of the machine, by the registry's name.
    #[default]
    Auto,
    /// None at all: anonymous.
    Anonymous,
    /// The identity that this provider issues to the machine, before docker's files and helpers.
    Machine(&'static Provider),
}

/// Returns the names of the providers that issue identities, in the configuration.
pub fn identity_names() -> impl Iterator<Item = &'static str> {
    PROVIDERS.into_iter().filter_map(|provider| Some(provider.identity?.key()))
}

impl FromStr for CredentialSource {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<CredentialSource, String> {
        let named = |provider: &&Provider| provider.identity.is_some_and(|identity| identity.key() == text);
        match text {
            "auto" => Ok(CredentialSource::Auto),
            "none" => Ok(CredentialSource::Anonymous),
            _ => PROVIDERS.into_iter().find(named).map(CredentialSource::Machine).ok_or_else(|| {
                let names: Vec<&str> = identity_names().collect();
                // Without the text, which may be a password in the wrong place.
                format!("this is not a source of credentials: use {}, auto or none", names.join(", "))
            }),
        }
    }
}

impl fmt::Display for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CredentialSource::Auto => "auto",
            CredentialSource::Anonymous => "none",
            CredentialSource::Machine(provider) => provider.identity.map(|identity| identity.key()).unwrap_or_default(),
        })
    }
}

/// Returns the provider whose identity `auto` uses for a registry, if its name tells.
fn provider_by_name(registry: &RegistryName) -> Option<&'static Provider> {
    let issues = |provider: &&Provider| provider.identity.is_some_and(|identity| identity.serves(registry));
    PROVIDERS.into_iter().find(issues).filter(|_| registry.port().is_none())
}

/// Issues credentials for registries to the machine.
#[async_trait]
pub(super) trait MachineIdentity: Sync {
    /// Returns its name in the configuration.
    fn key(&self) -> &'static str;

    /// Returns the user name of the credentials that it issues.
    fn username(&self) -> &'static str;

    /// Whether `auto` uses it for a registry without a port, by its name.
    fn serves(&self, registry: &RegistryName) -> bool;

    /// Returns what gives a machine this identity, for hints.
    fn setup_hint(&self) -> &'static str;

    /// Gets a credential for the registry of the search. `None` if this machine has no identity; the search then says
    /// what was looked for.
    async fn log_in(&self, search: &mut Search<'_>) -> Result<Option<MachineLogin>>;
}

/// A credential that a cloud issued.
#[derive(Debug)]
pub(super) struct MachineLogin {
    pub(super) credential: Credential,
    /// For how long it is valid from now on.
    pub(super) lifetime: Duration,
    /// Whose it is, for hints: a role, a service account.
    pub(super) holder: Option<String>,
}

/// Keys that sign requests to the API of a cloud.
#[derive(Debug, Clone)]
pub(super) struct SigningKeys {
    pub(super) id: String,
    pub(super) secret: Secret,
    /// Session token of temporary keys.
    pub(super) session: Option<Secret>,
    /// For how long temporary keys are valid from the time when they were issued.
    pub(super) lifetime: Option<Duration>,
    /// Where they were found, for errors.
    pub(super) origin: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_written_as_it_is_read() {
        for name in identity_names().chain(["auto", "none"]) {
            assert_eq!(name.parse::<CredentialSource>().unwrap().to_string(), name);
        }
        assert_eq!(
            "amazon".parse::<CredentialSource>().unwrap_err(),
            "this is not a source of credentials: use aws, azure, gcp, auto or none"
        );
    }

    #[test]
    fn auto_knows_the_registries_of_clouds_by_their_names_and_no_others() {
        let of = |name: &str| {
            let provider = provider_by_name(&name.parse().unwrap())?;
            Some(provider.identity?.key())
        };
        for (name, key) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", Some("aws")),
            ("europe-docker.pkg.dev", Some("gcp")),
            ("eu.gcr.io", Some("gcp")),
            ("team.azurecr.io", Some("azure")),
            ("team.azurecr.cn", Some("azure")),
            // Without a login it is open to everybody, and a role often may not log in there.
            ("public.ecr.aws", None),
            ("team.azurecr.io:8443", None),
            ("evil-azurecr.io", None),
            ("pkg.dev.example.org", None),
            ("docker.io", None),
        ] {
            assert_eq!(of(name), key, "{name}");
        }
    }
}
