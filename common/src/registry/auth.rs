//! Who we are to a registry: challenges answered with basic credentials or with tokens.
//!
//! Tokens are kept per repository and action, fetched once however many requests wait for them, renewed before they
//! run out, and thrown away when the registry says that they no longer hold.

mod token;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ::http::{HeaderMap, HeaderValue, Method, header};
use base64::Engine as _;
use futures_util::future::BoxFuture;
use url::Url;

use super::challenge::{self, Challenge, Scheme};
use super::context::Counted;
use super::credentials::Credential;
use super::hop;
use super::pace::Errand;
use super::transport::Payload;
use super::{Client, Registry, Repository, failure};
use crate::error::{Class, Error, Result};
use crate::generational::GenerationalCache;
use crate::image::RepositoryName;
use crate::secret::Secret;

pub(super) use token::MAX_TOKEN_BYTES;
#[cfg(test)]
pub(super) use token::shape;

/// Tokens that are kept for each registry. A token lives for minutes, so that no more than some hundred are in use at a time.
pub(super) const MAX_TOKENS: usize = 1000;

/// What a repository is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
    /// Removing, which also is what cancelling an upload needs at some registries.
    Delete,
    /// Listing repositories. Only for [`Client::root`]: it is about the registry, whatever the repository.
    Catalog,
}

/// What a token is for: one repository, and one more to mount from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub repository: RepositoryName,
    pub access: Access,
    pub from: Option<RepositoryName>,
    /// For whom it is.
    pub login: usize,
}

impl Scope {
    fn actions(&self) -> &'static str {
        match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
            Access::Delete => "delete",
            Access::Catalog => "*",
        }
    }

    /// What a challenge asks for, and all that we shall need besides: a HEAD is challenged for `pull` alone, and a push
    /// follows.
    fn widened(&self, said: &[String]) -> Vec<String> {
        let widen = |scope: &str| match scope.rsplit_once(':') {
            Some((name, actions)) if name.starts_with("repository:") => {
                let more = self.actions().split(',').filter(|action| !actions.split(',').any(|said| said == *action));
                let actions: Vec<&str> = actions.split(',').chain(more).filter(|action| !action.is_empty()).collect();
                format!("{name}:{}", actions.join(","))
            }
            _ => scope.to_owned(),
        };
        said.iter().flat_map(|scope| scope.split_whitespace()).map(widen).collect()
    }

    fn written(&self) -> Vec<String> {
        let actions = self.actions();
        if self.access == Access::Catalog {
            return vec!["registry:catalog:*".to_owned()];
        }
        let mut scopes = vec![format!("repository:{}:{actions}", self.repository)];
        scopes.extend(self.from.iter().map(|from| format!("repository:{from}:pull")));
        scopes
    }
}

/// What is known of how a registry wants to be spoken to.
#[derive(Debug, Clone, Default)]
enum Known {
    /// It has not asked for anything yet.
    #[default]
    Nothing,
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
    },
}

/// A header to send, and since when we have it.
#[derive(Debug, Clone)]
pub(crate) struct Authorization {
    pub header: HeaderValue,
    pub since: Instant,
    /// Whether it says who we are; a token can be anonymous.
    pub with_credentials: bool,
}

#[derive(Debug)]
struct Token {
    authorization: Authorization,
    renew_at: Instant,
    /// The scopes that the registry named itself, which can differ from ours behind a rewriting proxy.
    scopes: Option<Vec<String>>,
    /// What the header holds, to be masked where it comes back.
    _secret: Secret,
}

type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// One registry's challenges and tokens.
#[derive(Debug)]
pub(crate) struct Auth {
    known: Mutex<Known>,
    tokens: Mutex<GenerationalCache<Scope, Slot>>,
}

impl Default for Auth {
    fn default() -> Auth {
        Auth { known: Mutex::default(), tokens: Mutex::new(GenerationalCache::new(MAX_TOKENS)) }
    }
}

impl Auth {
    fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The name that its token service goes by, once it has said that.
    pub(crate) fn service(&self) -> Option<String> {
        match self.known() {
            Known::Bearer { service, .. } => service,
            Known::Nothing | Known::Basic => None,
        }
    }

    fn slot(&self, scope: &Scope) -> Slot {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get_or_insert_with(scope, Slot::default).clone()
    }
}

impl Repository {
    pub(crate) fn scope(&self, from: Option<&RepositoryName>, login: usize) -> Scope {
        Scope { repository: self.name.clone(), access: self.access, from: from.cloned(), login }
    }

    /// What to send with a request, as far as is known before the registry has asked for anything.
    pub(crate) async fn authorization(&self, scope: &Scope) -> Result<Option<Authorization>> {
        match self.registry.auth.known() {
            Known::Nothing => Ok(None),
            Known::Basic => Ok(self.basic(scope.login).await?),
            Known::Bearer { realm, service } => {
                let slot = self.registry.auth.slot(scope);
                let mut token = slot.lock().await;
                if let Some(token) = &*token
                    && Instant::now() < token.renew_at
                {
                    return Ok(Some(token.authorization.clone()));
                }
                if scope.access == Access::Delete && token.is_none() {
                    // Some token services give nothing at all to who asks for `delete`: ask only when told to.
                    drop(token);
                    return Box::pin(self.authorization(&Scope { access: Access::Push, ..scope.clone() })).await;
                }
                let scopes = token.take().and_then(|token| token.scopes);
                let fresh = self.fetch_token(&realm, service.as_deref(), scope, scopes).await?;
                let authorization = fresh.authorization.clone();
                *token = Some(fresh);
                Ok(Some(authorization))
            }
        }
    }

    /// The registry answered 401. Finds out what it wants and gets it; `used` is what the request had been sent with.
    /// `None` where there is nothing that could be sent.
    pub(crate) async fn challenged(
        &self,
        headers: &HeaderMap,
        scope: &Scope,
        used: Option<&Authorization>,
    ) -> Result<Option<Authorization>> {
        let mut challenges = read_challenges(headers);
        if challenges.is_empty() {
            // Some paths answer 401 without saying what is wanted; the root says it.
            challenges = self.ask_root(scope.login).await?;
        }
        let bearer = challenges.iter().find(|c| c.scheme == Scheme::Bearer && c.realm.is_some());
        let Some(bearer) = bearer else {
            if !challenges.iter().any(|c| c.scheme == Scheme::Basic) {
                return Ok(None);
            }
            *self.registry.auth.known.lock().unwrap_or_else(PoisonError::into_inner) = Known::Basic;
            let Some(used) = used else { return self.basic(scope.login).await };
            // The same credentials would be refused the same way; but a helper may have others by now.
            if !Box::pin(self.forget_credential(scope.login, used.since)).await {
                return Ok(None);
            }
            return Ok(self.basic(scope.login).await?.filter(|fresh| fresh.header != used.header));
        };
        let realm = self.realm(bearer)?;
        let service = bearer.service.clone();
        *self.registry.auth.known.lock().unwrap_or_else(PoisonError::into_inner) =
            Known::Bearer { realm: realm.clone(), service: service.clone() };
        let slot = self.registry.auth.slot(scope);
        let mut token = slot.lock().await;
        if let Some(token) = &*token
            && used.is_none_or(|used| used.since < token.authorization.since)
            && Instant::now() < token.renew_at
        {
            // Another request has renewed it in the meantime.
            return Ok(Some(token.authorization.clone()));
        }
        *token = None;
        // Two scopes at once come only from us (a mount): the registry's challenge would name one alone.
        let said = (!bearer.scope.is_empty() && scope.from.is_none()).then(|| scope.widened(&bearer.scope));
        let fresh = self.fetch_token(&realm, service.as_deref(), scope, said).await?;
        let authorization = fresh.authorization.clone();
        *token = Some(fresh);
        Ok(Some(authorization))
    }

    /// Forgets a token that the registry no longer takes, unless it was replaced already.
    pub(crate) async fn forget(&self, scope: &Scope, used: &Authorization) {
        let slot = self.registry.auth.slot(scope);
        let mut token = slot.lock().await;
        if token.as_ref().is_some_and(|token| token.authorization.since <= used.since) {
            *token = None;
        }
    }

    /// Forgets all that a login had before a moment and that can be had anew: tokens, and passwords of files and helpers. Says
    /// whether there is anything that may be other than it was.
    pub(crate) async fn renew(&self, login: usize, before: Instant) -> bool {
        match self.registry.auth.known() {
            Known::Nothing => false,
            Known::Basic => self.forget_credential(login, before).await,
            Known::Bearer { .. } => {
                self.forget_credential(login, before).await;
                let slots: Vec<Slot> = {
                    let tokens = self.registry.auth.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                    tokens.iter().filter(|(scope, _)| scope.login == login).map(|(_, slot)| slot.clone()).collect()
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

    /// Asks files and helpers again, where the credentials are theirs. Says whether they are.
    async fn forget_credential(&self, login: usize, before: Instant) -> bool {
        if self.registry.logins.get(login).credential.is_some() {
            return false;
        }
        self.client.0.credentials.forget(&host_of(&self.registry), before).await
    }

    /// Whether requests carry tokens that can run out.
    pub(crate) fn uses_tokens(&self) -> bool {
        matches!(self.registry.auth.known(), Known::Bearer { .. })
    }

    async fn basic(&self, login: usize) -> Result<Option<Authorization>> {
        match self.credential(login).await? {
            Some(Credential::Basic { username, password }) => {
                let header = basic_header(&username, &password)?;
                Ok(Some(Authorization { header, since: Instant::now(), with_credentials: true }))
            }
            _ => Ok(None),
        }
    }

    async fn ask_root(&self, login: usize) -> Result<Vec<Challenge>> {
        let mut url = self.registry.base.clone();
        url.set_path(&format!("{}v2/", url.path()));
        let tried = format!("asking {} how to log in", self.registry.name);
        self.paced(Errand::aside(login), &tried).await?;
        self.tally.count(Counted::Token);
        let answer =
            self.exchange(&self.registry.http, Method::GET, url, HeaderMap::new(), Payload::Nothing, &tried).await?;
        Ok(read_challenges(answer.headers()))
    }

    /// The token service that a challenge names, if it may be trusted with credentials.
    fn realm(&self, challenge: &Challenge) -> Result<Url> {
        let written = challenge.realm.as_deref().unwrap_or_default();
        let tried = format!("logging in at {}", self.registry.name);
        let realm = self.registry.base.join(written).map_err(|error| {
            Error::new(Class::BadAnswer, &tried, format!("it names `{written}` as its token service, which is no URL"))
                .because(error)
        })?;
        let home = self.reach();
        let realm = hop::check(&self.registry.base, realm, home, self.registry.settings.allowed(), "token service")?;
        // Where the registry itself is spoken to without TLS, that was decided for this host; but not for sending a
        // password in clear to another. What stays on this machine is seen by nobody.
        let elsewhere = realm.host() != self.registry.base.host();
        let stays_here = home == hop::Reach::Loopback && hop::literal_reach(&realm) == Some(hop::Reach::Loopback);
        if realm.scheme() == "http" && elsewhere && !stays_here {
            return Err(Error::new(
                Class::Insecure,
                &tried,
                format!("it wants credentials sent in plain HTTP to {}", hop::origin(&realm)),
            )
            .hint("the token service of a registry must be reached over TLS"));
        }
        Ok(realm)
    }

    /// What to do when a registry lets us in no further.
    pub(crate) fn login_hint(&self, with_credentials: bool) -> String {
        // Where it really is, its login is looked for by that host.
        let host = host_of(&self.registry);
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
        match with_credentials {
            true => format!(
                "check the user and password for {registry}, and that they may {wants}; some registries answer so for what is \
                 not there, too"
            ),
            false => format!(
                "no credentials for {registry} were found: run `docker login {host}`, or set them{of} under `registries`"
            ),
        }
    }

    /// Returns the credentials for this repository, none where none are configured. A credential helper that fails is an
    /// error also for who only reads: the anonymous view of a registry lacks what is private, and looks complete.
    pub(crate) fn credential(&self, login: usize) -> BoxFuture<'_, Result<Option<Credential>>> {
        // Boxed: a part of nearly every request, whose futures are deep as it is.
        Box::pin(async move {
            let name = if self.access == Access::Catalog { "" } else { self.name.as_str() };
            tokio::select! {
                found = credential(&self.client, &self.registry, name, login) => found,
                () = self.context.cancel.cancelled() => {
                    Err(Error::cancelled(format!("finding credentials for {}", host_of(&self.registry))))
                }
            }
        })
    }
}

/// The credentials for a registry: its settings' own, else what docker and containers have for the host that is really
/// spoken to.
pub(crate) async fn credential(
    client: &Client,
    registry: &Registry,
    repository: &str,
    login: usize,
) -> Result<Option<Credential>> {
    if let Some(credential) = &registry.logins.get(login).credential {
        return Ok(Some(credential.clone()));
    }
    let host = host_of(registry);
    client.0.credentials.lookup(&host, repository).await.map_err(|error| {
        Error::new(Class::Local, format!("finding credentials for {host}"), failure::words(&error)).because(error)
    })
}

/// The host that is really spoken to, as docker's files name it.
fn host_of(registry: &Registry) -> String {
    match &registry.settings.endpoint {
        None => registry.name.to_string(),
        Some(endpoint) => {
            let host = endpoint.host_str().unwrap_or_default();
            endpoint.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
        }
    }
}

/// The user's name, where a credential has one.
pub(crate) fn user(credential: Credential) -> Option<String> {
    match credential {
        Credential::Basic { username, .. } => Some(username),
        Credential::IdentityToken { username, .. } => username,
    }
}

pub(crate) fn basic_header(username: &str, password: &Secret) -> Result<HeaderValue> {
    password.remember();
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{}", password.expose()));
    let mut header = HeaderValue::from_str(&format!("Basic {text}"))
        .map_err(|error| Error::new(Class::Invalid, "making a login", error.to_string()))?;
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
        let auth = Auth::default();
        let scope = |n: usize| {
            let repository = format!("team/app-{n}").parse().unwrap();
            Scope { repository, access: Access::Pull, from: None, login: 0 }
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
        let mut scope = Scope { repository: "a/b".parse().unwrap(), access: Access::Pull, from: None, login: 0 };
        assert_eq!(scope.written(), ["repository:a/b:pull"]);
        scope.access = Access::Push;
        scope.from = Some("c/d".parse().unwrap());
        assert_eq!(scope.written(), ["repository:a/b:pull,push", "repository:c/d:pull"]);
        scope.access = Access::Catalog;
        assert_eq!(scope.written(), ["registry:catalog:*"]);
    }

    #[test]
    fn a_challenge_is_answered_with_all_that_will_be_needed_under_the_name_it_gives() {
        let scope = Scope { repository: "a/b".parse().unwrap(), access: Access::Push, from: None, login: 0 };
        assert_eq!(scope.widened(&["repository:proxied/a/b:pull".to_owned()]), ["repository:proxied/a/b:pull,push"]);
        assert_eq!(scope.widened(&["registry:catalog:*".to_owned()]), ["registry:catalog:*"]);
        let scope = Scope { access: Access::Pull, ..scope };
        assert_eq!(scope.widened(&["repository:a/b:pull repository:c:pull".to_owned()]).len(), 2);
    }
}
