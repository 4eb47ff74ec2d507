//! Which credentials are used at a registry.

use super::super::credentials::Credential;
use super::super::providers::CredentialSource;
use super::super::{Client, Registry, failure};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry;

/// A credential, and whether a cloud issued it to this machine.
#[derive(Debug, Default)]
pub(crate) struct FoundLogin {
    pub(crate) credential: Option<Credential>,
    pub(crate) is_issued: bool,
    /// Why the identity that `auto` found cannot be used for now.
    pub(crate) outage: Option<Error>,
}

impl FoundLogin {
    fn known(credential: Option<Credential>) -> FoundLogin {
        FoundLogin { credential, ..FoundLogin::default() }
    }

    fn issued(credential: Option<Credential>) -> FoundLogin {
        FoundLogin { is_issued: credential.is_some(), credential, outage: None }
    }

    /// Returns the credential. An outage is an error.
    pub(crate) fn into_credential(self) -> Result<Option<Credential>> {
        match self.outage {
            Some(outage) => Err(outage),
            None => Ok(self.credential),
        }
    }
}

/// Returns the credentials for a registry, as [`find_login`] does. An outage of the identity's services is an error.
pub(crate) async fn find_credential(
    client: &Client,
    registry: &Registry,
    repository: &str,
    credential_index: usize,
) -> Result<Option<Credential>> {
    find_login(client, registry, repository, credential_index).await?.into_credential()
}

/// Returns the credentials for a registry, in this order: from its settings; those that the cloud issues to this machine,
/// if the settings name the cloud; those of docker and containers for the actual host; those of the cloud that the
/// registry's name tells.
pub(crate) async fn find_login(
    client: &Client,
    registry: &Registry,
    repository: &str,
    credential_index: usize,
) -> Result<FoundLogin> {
    if let Some(credential) = &registry.credential_pool.get(credential_index).credential {
        return Ok(FoundLogin::known(Some(credential.clone())));
    }
    let provider = registry.settings.identity_provider(&registry.name);
    let (identities, environment) = (&client.0.identities, client.0.credentials.environment());
    match (registry.settings.credential_source, provider) {
        (CredentialSource::Anonymous, _) => return Ok(FoundLogin::default()),
        (CredentialSource::Machine(_), Some(provider)) => {
            return identities.log_in(registry, environment, provider).await.map(FoundLogin::issued);
        }
        _ => {}
    }
    let host = credential_host(registry);
    let stored = client.0.credentials.lookup(&host, repository).await.map_err(|error| {
        Error::new(ErrorKind::Local, format!("finding credentials for {host}"), failure::error_chain(&error))
            .with_source(error)
    })?;
    match (stored, provider) {
        (None, Some(provider)) => match identities.log_in(registry, environment, provider).await {
            Err(error) if retry::is_transient(&error) && !error.is_out_of_files() => {
                Ok(FoundLogin { outage: Some(error), ..FoundLogin::default() })
            }
            found => found.map(FoundLogin::issued),
        },
        (stored, _) => Ok(FoundLogin::known(stored)),
    }
}

/// Returns the actual host, as docker's files name it.
pub(super) fn credential_host(registry: &Registry) -> String {
    match &registry.settings.endpoint {
        None => registry.name.to_string(),
        Some(endpoint) => {
            let host = endpoint.host_str().unwrap_or_default();
            endpoint.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
        }
    }
}

/// Returns the user name of a credential, if it has one.
pub(crate) fn user(credential: Credential) -> Option<String> {
    match credential {
        Credential::Basic { username, .. } => Some(username),
        Credential::IdentityToken { username, .. } => username,
    }
}
