//! Library clients against the fault registry, for behaviour that is hard to see through the whole program.

use std::sync::Arc;

use imgsync_oci::retry::RetryPolicy;
use imgsync_oci::secret::Secret;
use imgsync_registry::credentials::{Credential, CredentialEnvironment};
use imgsync_registry::{Access, Client, ClientSettings, Context, RegistrySettings, Repository, TrafficCounters};
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::tls::Authority;
use imgsync_tls::install_tls_provider;

/// User and password of these tests.
pub(crate) const LOGIN: (&str, &str) = ("me", "secret");

/// Settings for one registry: a user, an optional authority, and short timeouts.
pub(crate) fn settings(registry: &FaultRegistry, authority: Option<&Authority>) -> ClientSettings {
    let password = Secret::new(LOGIN.1);
    let one = RegistrySettings {
        credentials: vec![Credential::Basic { username: LOGIN.0.to_owned(), password }],
        ca: authority.iter().map(|authority| authority.pem().as_bytes().to_vec()).collect(),
        plain_http: Some(authority.is_none()),
        ..RegistrySettings::default()
    };
    let retry = RetryPolicy { first_delay: std::time::Duration::from_millis(10), ..RetryPolicy::default() };
    ClientSettings { registries: [(registry.host().parse().unwrap(), one)].into(), retry, ..ClientSettings::default() }
}

/// Creates a client with these settings.
pub(crate) fn client(settings: ClientSettings) -> Client {
    install_tls_provider();
    Client::new(settings, CredentialEnvironment::default())
}

/// Returns a repository of a registry.
pub(crate) fn repository(client: &Client, registry: &FaultRegistry, name: &str, access: Access) -> Repository {
    let (host, name) = (registry.host().parse().unwrap(), name.parse().unwrap());
    client.repository(&host, &name, access, &Context::default(), &TrafficCounters::new()).unwrap()
}

/// Starts a registry behind TLS. Returns it with its authority.
pub(crate) async fn behind_tls() -> (FaultRegistry, Arc<Authority>) {
    let authority = Arc::new(Authority::new());
    (FaultRegistry::builder().tls(authority.clone()).start().await, authority)
}
