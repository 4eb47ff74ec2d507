//! Which credentials are used at a registry.

use super::super::credentials::Credential;
use super::super::providers::CredentialSource;
use super::super::{Client, Registry, Repository, failure};
use imgsync_oci::error::{Error, ErrorKind, Result};

/// A credential, and whether a cloud issued it to this machine.
#[derive(Debug, Default)]
pub(crate) struct FoundLogin {
    pub(crate) credential: Option<Credential>,
    pub(crate) is_issued: bool,
}

impl FoundLogin {
    fn known(credential: Option<Credential>) -> FoundLogin {
        FoundLogin { credential, is_issued: false }
    }

    fn issued(credential: Option<Credential>) -> FoundLogin {
        FoundLogin { is_issued: credential.is_some(), credential }
    }
}

/// Returns the credentials for a registry, as [`find_login`] does.
pub(crate) async fn find_credential(
    client: &Client,
    registry: &Registry,
    repository: &str,
    credential_index: usize,
) -> Result<Option<Credential>> {
    Ok(find_login(client, registry, repository, credential_index).await?.credential)
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
        (None, Some(provider)) => identities.log_in(registry, environment, provider).await.map(FoundLogin::issued),
        (stored, _) => Ok(FoundLogin::known(stored)),
    }
}

impl Repository {
    /// Whether images may be read without the credential in use: nobody asked for it, and the machine happens to have it.
    /// A machine may be allowed less than everybody.
    pub(super) fn may_be_anonymous(&self) -> bool {
        let (settings, name) = (&self.registry.settings, &self.registry.name);
        settings.credential_source == CredentialSource::Auto && self.client.0.identities.has_login(name)
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
