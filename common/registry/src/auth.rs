//! Registry authentication: answers challenges with basic credentials or bearer tokens.
//!
//! Tokens are cached by repository and action, fetched once for concurrent requests, renewed before they expire, and
//! dropped when the registry rejects them.

mod fallback;
mod find;
mod login_check;
mod token;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ::http::{HeaderMap, HeaderValue, Method, header};
use base64::Engine as _;
use futures_util::future::BoxFuture;
use url::Url;

use super::challenge::{self, Challenge, Scheme};
use super::context::RequestKind;
use super::credentials::Credential;
use super::providers::CredentialSource;
use super::request_body::RequestBody;
use super::request_class::RequestClass;
use super::{Repository, ssrf};
use imgsync_oci::RepositoryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::secret::Secret;

use fallback::AnonymousFallback;
use find::credential_host;
pub(crate) use find::{FoundLogin, find_credential, find_login, user};
pub(super) use token::MAX_TOKEN_BYTES;
#[cfg(test)]
pub(super) use token::fuzz_parse;

/// Tokens cached for each registry. A token lives for minutes, so only some hundred are in use at a time.
pub(super) const MAX_TOKENS: usize = 1000;

/// Access to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read.
    Pull,
    /// Read and write.
    Push,
    /// Delete, which some registries also require to cancel an upload.
    Delete,
    /// List repositories. Only for [`Client::open_catalog`](crate::Client::open_catalog): it concerns the registry, whatever
    /// the repository.
    Catalog,
}

/// Scope of a token: one repository, and optionally another to mount from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenScope {
    pub repository: RepositoryName,
    pub access: Access,
    pub mount_from: Option<RepositoryName>,
    /// Index of the credential in the pool.
    pub credential_index: usize,
}

impl TokenScope {
    fn actions(&self) -> &'static str {
        match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
            Access::Delete => "delete",
            Access::Catalog => "*",
        }
    }

    /// Extends the scopes of a challenge by all actions that will be needed: a HEAD is challenged for `pull` alone,
    /// though a push follows.
    fn widen(&self, challenged: &[String]) -> Vec<String> {
        let widen = |scope: &str| match scope.rsplit_once(':') {
            Some((name, actions)) if name.starts_with("repository:") => {
                let more =
                    self.actions().split(',').filter(|action| !actions.split(',').any(|present| present == *action));
                let actions: Vec<&str> = actions.split(',').chain(more).filter(|action| !action.is_empty()).collect();
                format!("{name}:{}", actions.join(","))
            }
            _ => scope.to_owned(),
        };
        challenged.iter().flat_map(|scope| scope.split_whitespace()).map(widen).collect()
    }

    fn to_scopes(&self) -> Vec<String> {
        let actions = self.actions();
        if self.access == Access::Catalog {
            return vec!["registry:catalog:*".to_owned()];
        }
        let mut scopes = vec![format!("repository:{}:{actions}", self.repository)];
        scopes.extend(self.mount_from.iter().map(|from| format!("repository:{from}:pull")));
        scopes
    }
}

/// Authentication scheme that a registry requires.
#[derive(Debug, Clone, Default)]
enum AuthScheme {
    /// No challenge was received yet.
    #[default]
    Unknown,
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
    },
}

/// An `Authorization` header, and when it was obtained.
#[derive(Debug, Clone)]
pub(crate) struct Authorization {
    pub header: HeaderValue,
    pub since: Instant,
    /// Whether it identifies a user; a token can be anonymous.
    pub with_credentials: bool,
}

#[derive(Debug)]
struct CachedToken {
    authorization: Authorization,
    renew_at: Instant,
    /// Scopes that the registry's challenge named, which can differ from ours behind a rewriting proxy.
    scopes: Option<Vec<String>>,
    /// The header's secret, held so that it is masked if echoed.
    _secret: Secret,
}

type TokenSlot = Arc<tokio::sync::Mutex<Option<CachedToken>>>;

/// Authentication state of one registry.
#[derive(Debug)]
pub(crate) struct RegistryAuth {
    scheme: Mutex<AuthScheme>,
    tokens: Mutex<GenerationalCache<TokenScope, TokenSlot>>,
    pub(crate) fallback: AnonymousFallback,
}

impl Default for RegistryAuth {
    fn default() -> RegistryAuth {
        RegistryAuth {
            scheme: Mutex::default(),
            tokens: Mutex::new(GenerationalCache::new(MAX_TOKENS)),
            fallback: AnonymousFallback::default(),
        }
    }
}

impl RegistryAuth {
    fn scheme(&self) -> AuthScheme {
        self.scheme.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the service name of the token service, once a challenge named it.
    pub(crate) fn service(&self) -> Option<String> {
        match self.scheme() {
            AuthScheme::Bearer { service, .. } => service,
            AuthScheme::Unknown | AuthScheme::Basic => None,
        }
    }

    fn slot(&self, scope: &TokenScope) -> TokenSlot {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get_or_insert_with(scope, TokenSlot::default).clone()
    }
}

impl Repository {
    pub(crate) fn scope(&self, from: Option<&RepositoryName>, credential_index: usize) -> TokenScope {
        TokenScope { repository: self.name.clone(), access: self.access, mount_from: from.cloned(), credential_index }
    }

    /// Returns the authorization to send, as far as known before a challenge.
    pub(crate) async fn get_authorization(&self, scope: &TokenScope) -> Result<Option<Authorization>> {
        match self.registry.auth.scheme() {
            AuthScheme::Unknown => Ok(None),
            AuthScheme::Basic => Ok(self.basic(scope.credential_index).await?),
            AuthScheme::Bearer { realm, service } => {
                let slot = self.registry.auth.slot(scope);
                let mut token = slot.lock().await;
                if let Some(token) = &*token
                    && Instant::now() < token.renew_at
                {
                    return Ok(Some(token.authorization.clone()));
                }
                if scope.access == Access::Delete && token.is_none() {
                    // Some token services issue no token at all for `delete`: request it only when challenged.
                    drop(token);
                    return Box::pin(self.get_authorization(&TokenScope { access: Access::Push, ..scope.clone() }))
                        .await;
                }
                let scopes = token.take().and_then(|token| token.scopes);
                let fresh = self.fetch_token(&realm, service.as_deref(), scope, scopes).await?;
                let authorization = fresh.authorization.clone();
                *token = Some(fresh);
                Ok(Some(authorization))
            }
        }
    }

    /// Answers a 401. `used` is the authorization of the failed request. Returns `None` if there is nothing to send.
    pub(crate) async fn answer_challenge(
        &self,
        headers: &HeaderMap,
        scope: &TokenScope,
        used: Option<&Authorization>,
    ) -> Result<Option<Authorization>> {
        let mut challenges = read_challenges(headers);
        if challenges.is_empty() {
            // Some paths answer 401 without a challenge; the API root sends one.
            challenges = self.fetch_challenges(scope.credential_index).await?;
        }
        let bearer = challenges.iter().find(|c| c.scheme == Scheme::Bearer && c.realm.is_some());
        let Some(bearer) = bearer else {
            if !challenges.iter().any(|c| c.scheme == Scheme::Basic) {
                return Ok(None);
            }
            *self.registry.auth.scheme.lock().unwrap_or_else(PoisonError::into_inner) = AuthScheme::Basic;
            let Some(used) = used else { return self.basic(scope.credential_index).await };
            // The same credentials would be refused again, but a helper may return others by now.
            if !Box::pin(self.refresh_credential(scope.credential_index, used.since)).await {
                return Ok(None);
            }
            return Ok(self.basic(scope.credential_index).await?.filter(|fresh| fresh.header != used.header));
        };
        let realm = self.resolve_realm(bearer)?;
        let service = bearer.service.clone();
        *self.registry.auth.scheme.lock().unwrap_or_else(PoisonError::into_inner) =
            AuthScheme::Bearer { realm: realm.clone(), service: service.clone() };
        let slot = self.registry.auth.slot(scope);
        let mut token = slot.lock().await;
        if let Some(token) = &*token
            && used.is_none_or(|used| used.since < token.authorization.since)
            && Instant::now() < token.renew_at
        {
            // Another request renewed it in the meantime.
            return Ok(Some(token.authorization.clone()));
        }
        *token = None;
        if used.is_some_and(|used| !used.with_credentials) {
            // Anonymous access is not enough here: the identity is asked for first.
            self.registry.auth.fallback.record_refusal(false);
        }
        // Two scopes come only from us (a mount); the registry's challenge would name only one.
        let scopes = (!bearer.scope.is_empty() && scope.mount_from.is_none()).then(|| scope.widen(&bearer.scope));
        let fresh = self.fetch_token(&realm, service.as_deref(), scope, scopes).await?;
        let authorization = fresh.authorization.clone();
        *token = Some(fresh);
        Ok(Some(authorization))
    }

    /// Drops a token that the registry rejected, unless it was replaced already.
    pub(crate) async fn forget_token(&self, scope: &TokenScope, used: &Authorization) {
        let slot = self.registry.auth.slot(scope);
        let mut token = slot.lock().await;
        if token.as_ref().is_some_and(|token| token.authorization.since <= used.since) {
            *token = None;
        }
    }

    /// Drops everything a credential obtained before an instant and that can be renewed: tokens, and passwords from
    /// files and helpers. Returns whether the next attempt may use something else.
    pub(crate) async fn forget_credentials(&self, credential_index: usize, before: Instant) -> bool {
        match self.registry.auth.scheme() {
            AuthScheme::Unknown => false,
            AuthScheme::Basic => self.refresh_credential(credential_index, before).await,
            AuthScheme::Bearer { .. } => {
                self.refresh_credential(credential_index, before).await;
                let slots: Vec<TokenSlot> = {
                    let tokens = self.registry.auth.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                    tokens
                        .iter()
                        .filter(|(scope, _)| scope.credential_index == credential_index)
                        .map(|(_, slot)| slot.clone())
                        .collect()
                };
                for slot in slots {
                    let mut token = slot.lock().await;
                    if token.as_ref().is_some_and(|token| token.authorization.since < before) {
                        *token = None;
                    }
                }
                true
            }
        }
    }

    /// Drops a cached credential of a file or helper, so that it is looked up again. Returns whether there was one.
    async fn refresh_credential(&self, credential_index: usize, before: Instant) -> bool {
        if self.registry.credential_pool.get(credential_index).credential.is_some() {
            return false;
        }
        let (registry, client) = (&self.registry, &self.client.0);
        let (may_be_issued, may_be_stored) = match registry.settings.credential_source {
            CredentialSource::Anonymous => (false, false),
            CredentialSource::Machine(_) => (true, false),
            CredentialSource::Auto => (true, true),
        };
        let was_issued = may_be_issued && client.identities.forget(&registry.name, before).await;
        was_issued || (may_be_stored && client.credentials.forget(&credential_host(registry), before).await)
    }

    /// Whether requests carry tokens, which can expire.
    pub(crate) fn uses_tokens(&self) -> bool {
        matches!(self.registry.auth.scheme(), AuthScheme::Bearer { .. })
    }

    async fn basic(&self, credential_index: usize) -> Result<Option<Authorization>> {
        match self.find_credential(credential_index).await? {
            Some(Credential::Basic { username, password }) => {
                let header = basic_header(&username, &password)?;
                Ok(Some(Authorization { header, since: Instant::now(), with_credentials: true }))
            }
            _ => Ok(None),
        }
    }

    async fn fetch_challenges(&self, credential_index: usize) -> Result<Vec<Challenge>> {
        let mut url = self.registry.base.clone();
        url.set_path(&format!("{}v2/", url.path()));
        let operation = format!("fetching the authentication challenge of {}", self.registry.name);
        self.await_rate(RequestClass::auxiliary(credential_index), &operation).await?;
        self.counters.count(RequestKind::Token);
        let response = self
            .send_once(&self.registry.http, Method::GET, url, HeaderMap::new(), RequestBody::Empty, &operation)
            .await?;
        Ok(read_challenges(response.headers()))
    }

    /// Returns the token service that a challenge names, if it may receive credentials.
    fn resolve_realm(&self, challenge: &Challenge) -> Result<Url> {
        let written = challenge.realm.as_deref().unwrap_or_default();
        let operation = format!("logging in at {}", self.registry.name);
        let realm = self.registry.base.join(written).map_err(|error| {
            Error::new(ErrorKind::InvalidResponse, &operation, format!("its token service `{written}` is not a URL"))
                .with_source(error)
        })?;
        let home = self.network_scope();
        let realm =
            ssrf::validate_url(&self.registry.base, realm, home, self.registry.settings.allowed(), "token service")?;
        // If the registry itself uses plain HTTP, the user decided that for its host, but not that a password may be
        // sent in clear to another. On the same machine nobody can read it.
        let elsewhere = realm.host() != self.registry.base.host();
        let stays_here =
            home == ssrf::NetworkScope::Loopback && ssrf::literal_scope(&realm) == Some(ssrf::NetworkScope::Loopback);
        if realm.scheme() == "http" && elsewhere && !stays_here {
            return Err(Error::new(
                ErrorKind::Insecure,
                &operation,
                format!("it asks for credentials over plain HTTP at {}", ssrf::origin(&realm)),
            )
            .with_hint("the token service of a registry must be reached over TLS"));
        }
        Ok(realm)
    }

    /// Returns the hint for denied access.
    pub(crate) fn login_hint(&self, with_credentials: bool) -> String {
        // With an `endpoint`, credentials are looked up by its host.
        let host = credential_host(&self.registry);
        let registry = match self.registry.settings.endpoint {
            Some(_) => format!("{host} (the `endpoint` of {})", self.registry.name),
            None => host.clone(),
        };
        let wants = match self.access {
            Access::Pull => format!("pull from {}", self.name),
            Access::Push => format!("push to {}", self.name),
            Access::Delete => format!("delete from {}", self.name),
            Access::Catalog => "list repositories".to_owned(),
        };
        let of = match self.registry.settings.endpoint {
            Some(_) => format!(" for {}", self.registry.name),
            None => String::new(),
        };
        let is_anonymous = self.registry.settings.credential_source == CredentialSource::Anonymous;
        let identity = self.client.0.identities.describe(&self.registry.name);
        match (with_credentials, identity) {
            (true, Some(holder)) => format!(
                "check that {holder} may {wants} at {registry}; some registries answer like this for what is missing, too"
            ),
            (true, None) => format!(
                "check the user and password for {registry}, and that they may {wants}; some registries answer like \
                 this for what is missing, too"
            ),
            (false, _) if is_anonymous => format!("`credentials: none` of {registry} under `registries` sends none"),
            (false, why) => {
                let why = why.map(|why| format!("; {why}")).unwrap_or_default();
                format!(
                    "no credentials for {registry} were found: run `docker login {host}`, or set them{of} under \
                     `registries`{why}"
                )
            }
        }
    }

    /// Returns the credentials for this repository, `None` if there are none. A failing credential helper is an error
    /// for reads as well: the anonymous view of a registry lacks private repositories and looks complete.
    pub(crate) async fn find_credential(&self, credential_index: usize) -> Result<Option<Credential>> {
        self.find_login(credential_index).await?.into_credential()
    }

    /// Returns the credentials for this repository, and whether a cloud issued them to this machine.
    pub(crate) fn find_login(&self, credential_index: usize) -> BoxFuture<'_, Result<FoundLogin>> {
        // Boxed: part of nearly every request, whose futures are large already.
        Box::pin(async move {
            let name = if self.access == Access::Catalog { "" } else { self.name.as_str() };
            tokio::select! {
                found = find_login(&self.client, &self.registry, name, credential_index) => found,
                () = self.context.cancel.cancelled() => {
                    Err(Error::cancelled(format!("finding credentials for {}", credential_host(&self.registry))))
                }
            }
        })
    }
}

pub(crate) fn basic_header(username: &str, password: &Secret) -> Result<HeaderValue> {
    password.keep_masked();
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{}", password.expose()));
    let mut header = HeaderValue::from_str(&format!("Basic {text}"))
        .map_err(|error| Error::new(ErrorKind::Invalid, "making a login", error.to_string()))?;
    header.set_sensitive(true);
    Ok(header)
}

fn read_challenges(headers: &HeaderMap) -> Vec<Challenge> {
    challenge::parse(headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_100_000_repositories_are_not_all_kept() {
        let auth = RegistryAuth::default();
        let scope = |n: usize| {
            let repository = format!("team/app-{n}").parse().unwrap();
            TokenScope { repository, access: Access::Pull, mount_from: None, credential_index: 0 }
        };
        let first = auth.slot(&scope(0));
        for n in 1..100_000 {
            auth.slot(&scope(n));
            assert!(Arc::ptr_eq(&first, &auth.slot(&scope(0))), "{n}: a token in use is kept");
        }
        assert!(auth.tokens.lock().unwrap().len() <= MAX_TOKENS);
    }

    #[test]
    fn a_scope_asks_for_no_more_than_it_needs() {
        let mut scope = TokenScope {
            repository: "a/b".parse().unwrap(),
            access: Access::Pull,
            mount_from: None,
            credential_index: 0,
        };
        assert_eq!(scope.to_scopes(), ["repository:a/b:pull"]);
        scope.access = Access::Push;
        scope.mount_from = Some("c/d".parse().unwrap());
        assert_eq!(scope.to_scopes(), ["repository:a/b:pull,push", "repository:c/d:pull"]);
        scope.access = Access::Catalog;
        assert_eq!(scope.to_scopes(), ["registry:catalog:*"]);
    }

    #[test]
    fn a_challenge_is_answered_with_all_that_will_be_needed_under_the_name_it_gives() {
        let scope = TokenScope {
            repository: "a/b".parse().unwrap(),
            access: Access::Push,
            mount_from: None,
            credential_index: 0,
        };
        assert_eq!(scope.widen(&["repository:proxied/a/b:pull".to_owned()]), ["repository:proxied/a/b:pull,push"]);
        assert_eq!(scope.widen(&["registry:catalog:*".to_owned()]), ["registry:catalog:*"]);
        let scope = TokenScope { access: Access::Pull, ..scope };
        assert_eq!(scope.widen(&["repository:a/b:pull repository:c:pull".to_owned()]).len(), 2);
    }
}
