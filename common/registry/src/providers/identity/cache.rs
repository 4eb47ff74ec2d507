//! Credentials that were issued, renewed before they end, and identities that were not found.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::retry;
use url::Url;

use super::http::{IdentityHttp, OUTAGE_CACHE_TTL};
use super::{CredentialSource, MachineLogin, Provider, Search, SigningKeys, provider_by_name};
use crate::credentials::{Credential, CredentialEnvironment};
use crate::{Registry, RegistrySettings, is_loopback, ssrf};
use imgsync_oci::RegistryName;

/// Registries whose logins are cached.
const MAX_REGISTRIES: usize = 1000;
/// A search that failed for good is not repeated for this long: it may take seconds, and each request would start one. An
/// outage is not, either, once it lasts.
const FAILURE_CACHE_TTL: Duration = Duration::from_secs(60);
/// Time limit of a login as a whole; a login is some requests to services close by.
pub(crate) const LOGIN_TIMEOUT: Duration = Duration::from_secs(45);
/// A credential is renewed this long before it ends, or after three quarters of a shorter life.
const RENEWAL_MARGIN: Duration = Duration::from_secs(5 * 60);
/// Longest life that is believed: that of the longest known, twelve hours.
const MAX_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// While a valid credential cannot be renewed, renewal is tried again after this time.
const RENEWAL_RETRY: Duration = Duration::from_secs(30);
/// A refused credential that was issued less than this ago is not requested again.
const MIN_LOGIN_AGE: Duration = Duration::from_secs(1);

/// The identities of this machine, and the credentials that it was issued with them.
#[derive(Debug)]
pub(crate) struct MachineIdentities {
    http: IdentityHttp,
    keys: tokio::sync::Mutex<Option<CachedKeys>>,
    logins: Mutex<GenerationalCache<RegistryName, Slot>>,
}

/// Login at one registry. The lock is held during a login.
type Slot = Arc<tokio::sync::Mutex<Option<CachedLogin>>>;

#[derive(Debug)]
enum CachedLogin {
    LoggedIn { credential: Credential, at: Instant, renew_at: Instant, ends_at: Instant, holder: Option<String> },
    Failed(FailedLogin),
}

/// A login that failed, which requests share until it is tried again.
#[derive(Debug)]
struct FailedLogin {
    kind: ErrorKind,
    operation: String,
    message: String,
    hint: Option<String>,
    retry_at: Instant,
    /// Logins in a row that failed for a reason that may pass.
    outages: u32,
}

impl FailedLogin {
    /// Remembers a failure, for the longer the more came before: requests would wait for each attempt.
    fn new(error: &Error, outages_before: u32) -> FailedLogin {
        let is_outage = retry::is_transient(error);
        let outages = if is_outage { outages_before + 1 } else { 0 };
        let pause = match is_outage {
            true => OUTAGE_CACHE_TTL * 2_u32.saturating_pow(outages_before).min(16),
            false => FAILURE_CACHE_TTL,
        };
        FailedLogin {
            kind: error.kind(),
            operation: error.operation().to_owned(),
            message: error.message().to_owned(),
            hint: error.hint().map(str::to_owned),
            retry_at: Instant::now() + pause.min(FAILURE_CACHE_TTL),
            outages,
        }
    }

    fn to_error(&self, registry: &RegistryName) -> Error {
        let error = Error::new(self.kind, &self.operation, &self.message).with_registry(registry);
        self.hint.iter().fold(error, Error::with_hint)
    }
}

/// Signing keys, and until when they are used.
#[derive(Debug)]
pub(super) struct CachedKeys {
    pub(super) keys: SigningKeys,
    renew_at: Option<Instant>,
}

impl CachedKeys {
    pub(super) fn new(keys: SigningKeys) -> CachedKeys {
        let renew_at = keys.lifetime.map(|lifetime| Instant::now() + until_renewal(lifetime));
        CachedKeys { keys, renew_at }
    }

    pub(super) fn is_fresh(&self) -> bool {
        // Keys without an end are in the environment or in a file, and are read anew.
        self.renew_at.is_some_and(|at| Instant::now() < at)
    }
}

/// Returns after which time a credential with this life is renewed.
fn until_renewal(lifetime: Duration) -> Duration {
    let lifetime = lifetime.min(MAX_LIFETIME);
    lifetime - RENEWAL_MARGIN.min(lifetime / 4)
}

impl Default for MachineIdentities {
    fn default() -> MachineIdentities {
        MachineIdentities {
            http: IdentityHttp::default(),
            keys: tokio::sync::Mutex::default(),
            logins: Mutex::new(GenerationalCache::new(MAX_REGISTRIES)),
        }
    }
}

impl RegistrySettings {
    /// Returns the provider whose identity a registry's requests use, and whether the user named it. `auto` applies to
    /// the providers' own hosts only, over TLS whose certificates are verified.
    pub(crate) fn identity_provider(&self, name: &RegistryName) -> Option<(&'static Provider, bool)> {
        match self.credential_source {
            CredentialSource::Machine(provider) => Some((provider, true)),
            CredentialSource::Anonymous => None,
            CredentialSource::Auto if self.public_only || !self.leads_to(name) => None,
            CredentialSource::Auto if self.insecure || self.plain_http == Some(true) => None,
            CredentialSource::Auto => provider_by_name(name).map(|provider| (provider, false)),
        }
    }

    /// Whether requests go to the host that a registry's name tells. Mirrors have it as their endpoint.
    fn leads_to(&self, name: &RegistryName) -> bool {
        self.endpoint.as_ref().is_none_or(|endpoint| {
            endpoint.scheme() == "https" && endpoint.port().is_none() && endpoint.host_str() == Some(name.host())
        })
    }
}

impl MachineIdentities {
    /// Begins a search for an identity that is used at a registry.
    pub(in crate::providers) fn search<'a>(
        &'a self,
        registry: &'a Registry,
        environment: &'a CredentialEnvironment,
        is_explicit: bool,
        operation: &str,
    ) -> Search<'a> {
        Search {
            registry,
            environment,
            is_explicit,
            operation: operation.to_owned(),
            http: &self.http,
            keys: &self.keys,
            missed: Vec::new(),
            has_outage: false,
        }
    }

    /// Returns the credential that the machine was issued for a registry. `None` if the user did not name the cloud, and
    /// there is no identity or it is refused. A transient error is an outage of the cloud's services.
    pub(crate) async fn log_in(
        &self,
        registry: &Registry,
        environment: &CredentialEnvironment,
        (provider, is_explicit): (&'static Provider, bool),
    ) -> Result<Option<Credential>> {
        let slot = self.slot(&registry.name);
        let mut known = slot.lock().await;
        let now = Instant::now();
        let valid = match &*known {
            Some(CachedLogin::LoggedIn { credential, renew_at, .. }) if now < *renew_at => {
                return Ok(Some(credential.clone()));
            }
            Some(CachedLogin::LoggedIn { credential, ends_at, .. }) => (now < *ends_at).then(|| credential.clone()),
            Some(CachedLogin::Failed(failed)) if now < failed.retry_at => {
                let error = failed.to_error(&registry.name);
                return if is_explicit || failed.outages > 0 { Err(error) } else { Ok(None) };
            }
            _ => None,
        };
        match self.request(registry, environment, (provider, is_explicit)).await {
            Ok(login) => {
                let (at, lifetime) = (Instant::now(), login.lifetime.min(MAX_LIFETIME));
                *known = Some(CachedLogin::LoggedIn {
                    credential: login.credential.clone(),
                    at,
                    renew_at: at + until_renewal(lifetime),
                    ends_at: at + lifetime,
                    holder: login.holder,
                });
                Ok(Some(login.credential))
            }
            Err(error) => {
                if let (Some(credential), Some(CachedLogin::LoggedIn { renew_at, .. })) = (valid, known.as_mut()) {
                    tracing::warn!("{error}; the credential that is in use is valid for some minutes more");
                    *renew_at = Instant::now() + RENEWAL_RETRY;
                    return Ok(Some(credential));
                }
                if error.is_out_of_files() {
                    return Err(error);
                }
                let outages = match &*known {
                    // The requests of a cloud that was named can only wait.
                    Some(CachedLogin::Failed(failed)) if !is_explicit => failed.outages,
                    _ => 0,
                };
                *known = Some(CachedLogin::Failed(FailedLogin::new(&error, outages)));
                if is_explicit || retry::is_transient(&error) {
                    return Err(error);
                }
                tracing::debug!("{error}; continuing without credentials");
                Ok(None)
            }
        }
    }

    async fn request(
        &self,
        registry: &Registry,
        environment: &CredentialEnvironment,
        (provider, is_explicit): (&'static Provider, bool),
    ) -> Result<MachineLogin> {
        let operation = operation(registry, provider);
        refuse_unverified(registry, &operation)?;
        let Some(identity) = provider.identity else {
            return Err(Error::new(ErrorKind::Invalid, operation, "this provider issues no identities"));
        };
        let mut search = self.search(registry, environment, is_explicit, &operation);
        let login = tokio::time::timeout(LOGIN_TIMEOUT, identity.log_in(&mut search)).await;
        let error = match login {
            Ok(Ok(Some(login))) => return Ok(login),
            Ok(Ok(None)) => search.nothing_found(identity.key(), identity.setup_hint()),
            Ok(Err(error)) => error,
            Err(_) => {
                let limit = retry::format_duration(LOGIN_TIMEOUT);
                Error::new(ErrorKind::TimedOut, operation, format!("the login took longer than {limit}"))
            }
        };
        let error = match (error.kind(), error.hint()) {
            (ErrorKind::Denied, None) => error.with_hint(identity.setup_hint()),
            _ => error,
        };
        Err(error.with_registry(&registry.name))
    }

    /// Drops a credential that was issued before an instant, so that another is requested. Returns whether there was
    /// one, also if another request has dropped or replaced it already.
    pub(crate) async fn forget(&self, registry: &RegistryName, before: Instant) -> bool {
        let slot = self.logins.lock().unwrap_or_else(PoisonError::into_inner).get(registry).cloned();
        let Some(slot) = slot else { return false };
        let mut known = slot.lock().await;
        match &*known {
            Some(CachedLogin::LoggedIn { at, .. }) => {
                if *at < before && at.elapsed() >= MIN_LOGIN_AGE {
                    *known = None;
                }
                true
            }
            None => true,
            Some(CachedLogin::Failed(_)) => false,
        }
    }

    /// Describes the identity that is used at a registry, or why there is none, for hints.
    pub(crate) fn describe(&self, registry: &RegistryName) -> Option<String> {
        let slot = self.logins.lock().unwrap_or_else(PoisonError::into_inner).get(registry).cloned()?;
        let known = slot.try_lock().ok()?;
        match known.as_ref()? {
            CachedLogin::LoggedIn { holder, .. } => holder.clone(),
            CachedLogin::Failed(failed) => Some(failed.message.clone()),
        }
    }

    fn slot(&self, registry: &RegistryName) -> Slot {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.get_or_insert_with(registry, Slot::default).clone()
    }
}

/// Refuses a registry that anybody on the way could play: what the cloud issues is worth more than this registry.
fn refuse_unverified(registry: &Registry, operation: &str) -> Result<()> {
    let base = &registry.base;
    if base.host_str().is_some_and(is_loopback) {
        return Ok(());
    }
    let refused = |detail: String, hint: &str| {
        Err(Error::new(ErrorKind::Insecure, operation, detail).with_registry(&registry.name).with_hint(hint))
    };
    if base.scheme() != "https" {
        let detail = format!("the machine's credentials would be sent without TLS to {}", ssrf::origin(base));
        return refused(detail, "remove `tls: off`, or choose other `credentials` for this registry");
    }
    if registry.settings.insecure {
        let detail = "with `insecure: true`, the machine's credentials could reach somebody else";
        return refused(
            detail.to_owned(),
            "name the certificate authority with `ca`, or choose other `credentials` for this registry",
        );
    }
    Ok(())
}

/// Returns an error if a token service may not get what the cloud issued for a registry: it goes to the registry's own
/// host, or to a host of the cloud.
pub(crate) fn refuse_foreign_realm(registry: &Registry, realm: &Url, operation: &str) -> Result<()> {
    let base = &registry.base;
    let is_here = |url: &Url| url.host_str().is_some_and(is_loopback);
    let is_own = realm.host() == base.host() && realm.scheme() == base.scheme();
    let name: Option<RegistryName> = realm.host_str().and_then(|host| host.parse().ok());
    let identity = registry.settings.identity_provider(&registry.name).and_then(|(provider, _)| provider.identity);
    let is_clouds = realm.scheme() == "https"
        && realm.port().is_none()
        && identity.zip(name).is_some_and(|(identity, name)| identity.serves(&name));
    if is_own || is_clouds || (is_here(base) && is_here(realm)) {
        return Ok(());
    }
    let detail = format!("it asks for the machine's credentials at another host, {}", ssrf::origin(realm));
    Err(Error::new(ErrorKind::Insecure, operation, detail).with_registry(&registry.name).with_hint(
        "credentials that a cloud issues go only to the registry's own host and to hosts of the cloud; choose other \
         `credentials` for this registry",
    ))
}

fn operation(registry: &Registry, provider: &Provider) -> String {
    let key = provider.identity.map(|identity| identity.key()).unwrap_or_default();
    format!("logging in at {} with the machine's identity (`{key}`)", registry.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, ClientSettings};

    fn registry(name: &str, settings: RegistrySettings) -> Arc<Registry> {
        let name: RegistryName = name.parse().unwrap();
        let registries = [(name.clone(), settings)].into_iter().collect();
        let settings = ClientSettings { registries, ..ClientSettings::default() };
        Client::new(settings, CredentialEnvironment::default()).registry(&name).unwrap()
    }

    fn named(cloud: &str) -> RegistrySettings {
        RegistrySettings { credential_source: cloud.parse().unwrap(), ..RegistrySettings::default() }
    }

    #[test]
    fn without_a_word_no_identity_is_used_where_somebody_else_could_answer() {
        let name: RegistryName = "europe-docker.pkg.dev".parse().unwrap();
        let settings = RegistrySettings::default;
        let at = |endpoint: &str| RegistrySettings { endpoint: Some(endpoint.parse().unwrap()), ..settings() };
        for (settings, is_used) in [
            (settings(), true),
            (RegistrySettings { plain_http: Some(false), ..settings() }, true),
            (RegistrySettings { insecure: true, ..settings() }, false),
            (RegistrySettings { plain_http: Some(true), ..settings() }, false),
            (RegistrySettings { public_only: true, ..settings() }, false),
            // A mirror's endpoint.
            (at("https://europe-docker.pkg.dev"), true),
            (at("https://europe-docker.pkg.dev/proxy"), true),
            (at("http://europe-docker.pkg.dev"), false),
            (at("https://europe-docker.pkg.dev:8443"), false),
            (at("https://proxy.example.com"), false),
        ] {
            assert_eq!(settings.identity_provider(&name).is_some(), is_used, "{settings:?}");
        }
    }

    #[tokio::test]
    async fn a_cloud_that_was_named_issues_nothing_for_a_connection_that_is_not_verified() {
        for cloud in ["aws", "gcp", "azure"] {
            for (settings, words) in [
                (RegistrySettings { plain_http: Some(true), ..named(cloud) }, "without TLS to http://r.example.com"),
                (RegistrySettings { insecure: true, ..named(cloud) }, "`insecure: true`"),
            ] {
                let registry = registry("r.example.com", settings);
                let provider = registry.settings.identity_provider(&registry.name).unwrap();
                let environment = CredentialEnvironment::default();
                let identities = MachineIdentities::default();
                let error = identities.log_in(&registry, &environment, provider).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Insecure);
                assert!(error.message().contains(words) && error.hint().is_some(), "{error}");
            }
        }
    }

    #[test]
    fn what_a_cloud_issued_goes_to_the_token_service_of_the_registry_or_of_the_cloud_alone() {
        for (name, cloud, realm, is_allowed) in [
            ("europe-docker.pkg.dev", "auto", "https://europe-docker.pkg.dev/v2/token", true),
            ("europe-docker.pkg.dev", "auto", "https://evil.example/token", false),
            ("europe-docker.pkg.dev", "auto", "http://europe-docker.pkg.dev/v2/token", false),
            ("images.corp.example", "gcp", "https://images.corp.example/v2/token", true),
            ("images.corp.example", "gcp", "https://images.corp.example:8443/v2/token", true),
            ("images.corp.example", "gcp", "https://europe-docker.pkg.dev/v2/token", true),
            ("images.corp.example", "gcp", "https://team.azurecr.io/oauth2/token", false),
            ("images.corp.example", "gcp", "https://auth.corp.example/token", false),
            ("images.corp.example", "gcp", "https://pkg.dev.evil.example/token", false),
            ("127.0.0.1:5000", "gcp", "http://127.0.0.1:5001/token", true),
            ("127.0.0.1:5000", "gcp", "https://evil.example/token", false),
        ] {
            let registry = registry(name, named(cloud));
            let allowed = refuse_foreign_realm(&registry, &realm.parse().unwrap(), "logging in");
            assert_eq!(allowed.is_ok(), is_allowed, "{name} {realm}: {allowed:?}");
        }
    }

    /// Returns the variables of a federation whose token service is at an address.
    fn federation(folder: &tempfile::TempDir, token_service: &str) -> CredentialEnvironment {
        let token = folder.path().join("token");
        std::fs::write(&token, "a.b.c").unwrap();
        let config = serde_json::json!({
            "type": "external_account", "audience": "a", "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": token_service, "credential_source": {"file": token},
        });
        let file = folder.path().join("federation.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let helpers = [("GOOGLE_APPLICATION_CREDENTIALS".into(), file.into())].into_iter().collect();
        CredentialEnvironment { helpers, ..CredentialEnvironment::default() }
    }

    #[tokio::test]
    async fn an_outage_of_a_token_service_is_found_once_by_all_who_wait() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = asked.clone();
        tokio::spawn(async move {
            // Each connection is closed without an answer.
            while let Ok((connection, _)) = listener.accept().await {
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                drop(connection);
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let environment = federation(&folder, &format!("http://{address}/token"));
        for is_explicit in [true, false] {
            asked.store(0, std::sync::atomic::Ordering::Relaxed);
            let registry = registry("europe-docker.pkg.dev", RegistrySettings::default());
            let (provider, _) = registry.settings.identity_provider(&registry.name).unwrap();
            let identities = MachineIdentities::default();
            let logins = (0..50).map(|_| identities.log_in(&registry, &environment, (provider, is_explicit)));
            for login in futures_util::future::join_all(logins).await {
                let error = login.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unreachable);
                assert!(error.message().contains(&format!("http://{address} did not answer")), "{error}");
            }
            assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn an_outage_that_lasts_is_looked_for_ever_more_rarely() {
        let pause = |kind, outages| {
            let failed = FailedLogin::new(&Error::new(kind, "logging in", "no answer"), outages);
            (failed.retry_at.saturating_duration_since(Instant::now()).as_secs_f64().ceil(), failed.outages)
        };
        let down = ErrorKind::Unreachable;
        assert_eq!([0, 1, 2, 3, 4, 99].map(|outages| pause(down, outages).0), [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]);
        assert_eq!((pause(down, 3).1, pause(ErrorKind::Denied, 3)), (4, (60.0, 0)));
    }

    #[test]
    fn a_credential_is_renewed_before_it_ends_however_short_its_life_is() {
        let seconds = |lifetime| until_renewal(Duration::from_secs(lifetime)).as_secs();
        assert_eq!(seconds(12 * 3600), 12 * 3600 - 300);
        assert_eq!(seconds(3600), 3300);
        assert_eq!((seconds(60), seconds(4), seconds(0)), (45, 3, 0));
        assert_eq!(seconds(u64::MAX / 2), 12 * 3600 - 300);
    }
}
