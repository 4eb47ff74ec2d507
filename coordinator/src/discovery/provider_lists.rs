//! Lists of providers' own APIs: the repositories of a namespace, and tags with digests and dates. Decides when such an API
//! is asked, and what its failures mean. The APIs are those of [`imgsync_registry::providers`].

use std::time::Duration;

use imgsync_model::select::RepositoryPattern;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_registry::{ListedPages, ListedTag, ProviderApi, Repository};
use imgsync_store::age;
use jiff::Timestamp;

use super::repository_names::RepositoryNames;

/// Lists a repository's tags by its provider's API; `None` if there is none, or it is not available to this user.
pub(super) async fn list_tags(repository: &Repository) -> Result<Option<ListedPages<ListedTag>>> {
    let Some(api) = repository.provider_api()? else { return Ok(None) };
    // Without them no request is made.
    if api.required_credentials().is_some() && !api.accepts_credentials().await? {
        return Ok(None);
    }
    if api.is_recognised() && api.get_note(&unavailable_key(repository)).is_some() {
        return Ok(None);
    }
    Ok(Some(api.list_tags(repository.name())))
}

/// Like [`list_tags`], if the provider was recognized by the registry's responses and not configured.
pub(super) async fn list_tags_if_recognised(repository: &Repository) -> Result<Option<ListedPages<ListedTag>>> {
    match repository.provider_api()?.is_some_and(|api| api.is_recognised()) {
        true => list_tags(repository).await,
        false => Ok(None),
    }
}

/// Whether an error of a provider's API permits a fallback to the registry's own list. Transient errors do not: a
/// temporary problem would otherwise lead to a selection from a list without dates. Neither do security errors.
pub(super) fn permits_fallback(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Denied
        | ErrorKind::NotFound
        | ErrorKind::Refused
        | ErrorKind::InvalidResponse
        | ErrorKind::Unsupported => true,
        ErrorKind::TokenExpired
        | ErrorKind::RateLimited
        | ErrorKind::Unreachable
        | ErrorKind::TimedOut
        | ErrorKind::ServerError
        | ErrorKind::Corrupt
        | ErrorKind::Incomplete
        | ErrorKind::Outdated
        | ErrorKind::Insecure
        | ErrorKind::Invalid
        | ErrorKind::Local
        | ErrorKind::Collision
        | ErrorKind::Immutable
        | ErrorKind::RefusedByPolicy
        | ErrorKind::Differs
        | ErrorKind::Cancelled => false,
    }
}

/// Warns, once per registry, that a provider's API did not list a repository, and what is used instead. If the API was
/// not configured, nothing is shown, and the API is not used again for this namespace.
pub(super) fn warn_once(repository: &Repository, error: &Error, instead: &str) -> Result<()> {
    let Some(api) = repository.provider_api()? else { return Ok(()) };
    if api.is_recognised() {
        tracing::info!("{error}; {instead}");
        if error.kind() != ErrorKind::NotFound {
            api.set_note(&unavailable_key(repository), "");
        }
        return Ok(());
    }
    if api.set_note(WARNED_KEY, "").is_none() {
        let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        repository.context().warn(format!("{error}; {instead}{hint}"));
    }
    Ok(())
}

/// Time without requests to an API after a failed connection.
const UNREACHABLE_BACKOFF: Duration = Duration::from_secs(10 * 60);
const UNREACHABLE_KEY: &str = "unreachable";
/// Set once a warning about the API was shown.
const WARNED_KEY: &str = "warned";

/// Returns why a provider's API is not used now: a connection failed a while ago, or `error` is such a failure. Warns
/// once per registry.
pub(super) fn provider_api_backoff(
    repository: &Repository,
    error: Option<&Error>,
    instead: &str,
) -> Result<Option<String>> {
    let Some(api) = repository.provider_api()? else { return Ok(None) };
    match error {
        Some(error) if api.is_api_unreachable(error) => {
            let name = api.name();
            api.set_note(UNREACHABLE_KEY, &format!("{} {name}'s API cannot be reached", Timestamp::now()));
            warn_once(repository, error, instead)?;
        }
        Some(_) => return Ok(None),
        None => {}
    }
    let note = api.get_note(UNREACHABLE_KEY).unwrap_or_default();
    let (at, why) = note.split_once(' ').unwrap_or_default();
    let is_fresh = at.parse::<Timestamp>().is_ok_and(|at| age(at, Timestamp::now()) < UNREACHABLE_BACKOFF);
    Ok(is_fresh.then(|| why.to_owned()))
}

fn unavailable_key(repository: &Repository) -> String {
    let namespace = repository.name().as_str().split('/').next().unwrap_or_default();
    format!("unavailable {namespace}")
}

/// Lists the repositories that a pattern matches.
pub(super) async fn list_repositories(api: &ProviderApi, pattern: &RepositoryPattern) -> Result<RepositoryNames> {
    let namespace = pattern.prefix().split('/').next().unwrap_or_default();
    if namespace.is_empty() && !api.lists_all_namespaces() {
        let detail = format!("{}'s API lists repositories by namespace, and the pattern has none", api.name());
        return Err(Error::new(ErrorKind::Unsupported, format!("listing {pattern}"), detail).with_hint(format!(
            "begin with a namespace, as in {registry}/NAME/**; `listing: registry` for {registry} under `registries` asks \
             for its catalog instead",
            registry = pattern.registry()
        )));
    }
    let is_known = api.accepts_credentials().await?;
    if let Some(detail) = api.required_credentials().filter(|_| !is_known) {
        let operation = format!("listing {}", api.describe_repositories(namespace));
        let error = Error::new(ErrorKind::Denied, operation, detail);
        return Err(with_explicit_names_hint(api, error.with_hint(api.denied_hint(false))));
    }
    if api.lists_public_without_credentials() && !is_known && api.has_credentials().await? {
        let listed = api.describe_repositories(namespace);
        api.context().warn(format!("only public repositories are listed for {listed}: {}", api.denied_hint(true)));
    }
    let mut names = RepositoryNames::default();
    let mut pages = api.list_repositories(namespace);
    while let Some(page) = pages.next_page().await.map_err(|error| with_explicit_names_hint(api, error))? {
        for name in page.iter().filter(|name| pattern.matches(name)) {
            names.add(pattern, name);
        }
    }
    Ok(names)
}

/// Adds to an error's hint that repositories can be named explicitly, which needs no list.
fn with_explicit_names_hint(api: &ProviderApi, error: Error) -> Error {
    if !permits_fallback(&error) {
        return error;
    }
    let hint = match (error.kind(), error.hint()) {
        (_, Some(hint)) => format!("{hint}; or "),
        (ErrorKind::NotFound, None) => {
            format!("check the namespace, and that this user can see it on {}; or ", api.registry())
        }
        (_, None) => String::new(),
    };
    error.with_hint(format!("{hint}name the repositories explicitly, without `*`"))
}
