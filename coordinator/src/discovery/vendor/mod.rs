//! Vendor APIs: the repositories of a namespace, and tags with digests and dates. Each vendor has a file with its URLs
//! and page formats; requests are made by [`imgsync_registry::VendorApi`].

mod github;
mod harbor;
mod hub;
mod quay;

use std::time::Duration;

use imgsync_model::select::RepositoryPattern;
use imgsync_oci::RepositoryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::vendor::Vendor;
use imgsync_registry::{ListPage, Repository, VendorApi, VendorApiPages};
use imgsync_store::age;
use jiff::Timestamp;

use super::listed_tag::ListedTag;
use super::repository_names::RepositoryNames;

/// Requested entries a page: the maximum of all vendors.
const PAGE_SIZE: &str = "100";

/// A page of a repository's tags.
trait VendorTagPage: ListPage {
    fn into_tags(self) -> Vec<ListedTag>;
}

/// A page of a namespace's repositories.
trait VendorRepositoryPage: ListPage {
    /// Returns the repositories' paths within the registry.
    fn repository_names(&self, namespace: &str) -> Vec<String>;
}

/// Tags of a repository, page by page.
#[derive(Debug)]
pub(super) struct VendorTagPages(VendorTagSource);

#[derive(Debug)]
enum VendorTagSource {
    Quay(VendorApiPages<quay::QuayTagPage>),
    Hub(VendorApiPages<hub::HubTagPage>),
    Harbor(VendorApiPages<harbor::HarborArtifactPage>),
    GitHub(Box<github::OrgOrUserPages<github::GitHubVersionPage>>),
}

impl VendorTagPages {
    fn new(api: &VendorApi, name: &RepositoryName) -> VendorTagPages {
        VendorTagPages(match api.vendor() {
            Vendor::Quay => VendorTagSource::Quay(quay::list_tags(api, name)),
            Vendor::Hub => VendorTagSource::Hub(hub::list_tags(api, name)),
            Vendor::Harbor => VendorTagSource::Harbor(harbor::list_tags(api, name)),
            Vendor::GitHub => VendorTagSource::GitHub(Box::new(github::list_tags(api, name))),
        })
    }

    /// Reads the next page; `None` after the last.
    pub(super) async fn next_page(&mut self) -> Result<Option<Vec<ListedTag>>> {
        Ok(match &mut self.0 {
            VendorTagSource::Quay(pages) => pages.next_page().await?.map(VendorTagPage::into_tags),
            VendorTagSource::Hub(pages) => pages.next_page().await?.map(VendorTagPage::into_tags),
            VendorTagSource::Harbor(pages) => pages.next_page().await?.map(VendorTagPage::into_tags),
            VendorTagSource::GitHub(pages) => pages.next_page().await?.map(VendorTagPage::into_tags),
        })
    }
}

/// Repositories of a namespace, page by page.
enum VendorRepositoryPages {
    Quay(VendorApiPages<quay::QuayRepositoryPage>),
    Hub(VendorApiPages<hub::HubRepositoryPage>),
    Harbor(VendorApiPages<harbor::HarborRepositoryPage>),
    GitHub(Box<github::OrgOrUserPages<github::GitHubPackagePage>>),
}

impl VendorRepositoryPages {
    fn new(api: &VendorApi, namespace: &str) -> VendorRepositoryPages {
        match api.vendor() {
            Vendor::Quay => VendorRepositoryPages::Quay(quay::list_repositories(api, namespace)),
            Vendor::Hub => VendorRepositoryPages::Hub(hub::list_repositories(api, namespace)),
            Vendor::Harbor => VendorRepositoryPages::Harbor(harbor::list_repositories(api, namespace)),
            Vendor::GitHub => VendorRepositoryPages::GitHub(Box::new(github::list_repositories(api, namespace))),
        }
    }

    async fn next_page(&mut self, namespace: &str) -> Result<Option<Vec<String>>> {
        Ok(match self {
            VendorRepositoryPages::Quay(pages) => pages.next_page().await?.map(|page| page.repository_names(namespace)),
            VendorRepositoryPages::Hub(pages) => pages.next_page().await?.map(|page| page.repository_names(namespace)),
            VendorRepositoryPages::Harbor(pages) => {
                pages.next_page().await?.map(|page| page.repository_names(namespace))
            }
            VendorRepositoryPages::GitHub(pages) => {
                pages.next_page().await?.map(|page| page.repository_names(namespace))
            }
        })
    }
}

/// Lists a repository's tags by its vendor's API; `None` if there is none, or it is not available to this user.
pub(super) async fn list_tags(repository: &Repository) -> Result<Option<VendorTagPages>> {
    let Some(api) = repository.vendor_api()? else { return Ok(None) };
    // GitHub's API requires a token: without one no request is made.
    if api.vendor() == Vendor::GitHub && !api.accepts_credentials().await? {
        return Ok(None);
    }
    if api.is_recognised() && api.get_note(&unavailable_key(repository)).is_some() {
        return Ok(None);
    }
    Ok(Some(VendorTagPages::new(&api, repository.name())))
}

/// Like [`tags`], if the vendor was recognized by the registry's responses and not configured.
pub(super) async fn list_tags_if_recognised(repository: &Repository) -> Result<Option<VendorTagPages>> {
    match repository.vendor_api()?.is_some_and(|api| api.is_recognised()) {
        true => list_tags(repository).await,
        false => Ok(None),
    }
}

/// Whether an error of a vendor's API permits a fallback to the registry's own list. Transient errors do not: a
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
        | ErrorKind::Differs
        | ErrorKind::Cancelled => false,
    }
}

/// Warns, once per registry, that a vendor's API did not list a repository, and what is used instead. If the API was
/// not configured, nothing is shown, and the API is not used again for this namespace.
pub(super) fn warn_once(repository: &Repository, error: &Error, instead: &str) -> Result<()> {
    let Some(api) = repository.vendor_api()? else { return Ok(()) };
    if api.is_recognised() {
        tracing::info!("{error}; {instead}");
        if error.kind() != ErrorKind::NotFound {
            api.set_note(&unavailable_key(repository), "");
        }
        return Ok(());
    }
    if api.set_note("told", "").is_none() {
        let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        repository.context().warn(format!("{error}; {instead}{hint}"));
    }
    Ok(())
}

/// Time without requests to an API after a failed connection.
const UNREACHABLE_BACKOFF: Duration = Duration::from_secs(10 * 60);
const UNREACHABLE_KEY: &str = "out of reach";

/// Returns why a vendor's API is not used now: a connection failed a while ago, or `error` is such a failure. Warns
/// once per registry.
pub(super) fn vendor_api_backoff(
    repository: &Repository,
    error: Option<&Error>,
    instead: &str,
) -> Result<Option<String>> {
    let Some(api) = repository.vendor_api()? else { return Ok(None) };
    match error {
        Some(error) if api.is_api_unreachable(error) => {
            let name = api.vendor().name();
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
    format!("withheld {}", split_namespace(repository.name().as_str()).0)
}

/// Lists the repositories that a pattern matches.
pub(super) async fn list_repositories(api: &VendorApi, pattern: &RepositoryPattern) -> Result<RepositoryNames> {
    let namespace = pattern.prefix().split('/').next().unwrap_or_default();
    let vendor = api.vendor();
    if namespace.is_empty() && vendor != Vendor::Harbor {
        let detail = format!("{}'s API lists repositories by namespace, and the pattern has none", vendor.name());
        return Err(Error::new(ErrorKind::Unsupported, format!("listing {pattern}"), detail).with_hint(format!(
            "begin with a namespace, as in {registry}/NAME/**; `listing: registry` for {registry} under `registries` asks \
             for its catalog instead",
            registry = pattern.registry()
        )));
    }
    let is_known = api.accepts_credentials().await?;
    if vendor == Vendor::GitHub && !is_known {
        let operation = format!("listing {}", describe_repository_list(api, namespace));
        let error = Error::new(ErrorKind::Denied, operation, "GitHub's API lists packages only with a token");
        return Err(with_explicit_names_hint(api, error.with_hint(api.denied_hint(false))));
    }
    if vendor == Vendor::Quay && !is_known && api.has_credentials().await? {
        let listed = describe_repository_list(api, namespace);
        api.context().warn(format!("only public repositories are listed for {listed}: {}", api.denied_hint(true)));
    }
    let mut names = RepositoryNames::default();
    let mut pages = VendorRepositoryPages::new(api, namespace);
    while let Some(page) = pages.next_page(namespace).await.map_err(|error| with_explicit_names_hint(api, error))? {
        for name in page.iter().filter(|name| pattern.matches(name)) {
            names.add(pattern, name);
        }
    }
    Ok(names)
}

/// Adds to an error's hint that repositories can be named explicitly, which needs no list.
fn with_explicit_names_hint(api: &VendorApi, error: Error) -> Error {
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

/// Splits a repository's path into the namespace and the rest.
fn split_namespace(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((name, ""))
}

/// Describes a list of tags, for errors.
fn describe_tag_list(api: &VendorApi, name: &RepositoryName) -> String {
    format!("the tags of {}/{name}", api.registry())
}

/// Describes a list of repositories, for errors.
fn describe_repository_list(api: &VendorApi, namespace: &str) -> String {
    match namespace {
        "" => format!("the repositories of {}", api.registry()),
        _ => format!("the repositories of {}/{namespace}", api.registry()),
    }
}

/// Parses a date from JSON. Invalid dates, and the start of 1970 or of the year 1, are `None`.
fn parse_date(text: Option<&str>) -> Option<Timestamp> {
    let text = text?;
    let read = text.parse().ok().or_else(|| Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp()));
    read.filter(|date: &Timestamp| date.as_second() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_however_they_are_written() {
        let seconds = |text| parse_date(Some(text)).map(Timestamp::as_second);
        assert_eq!(seconds("2024-02-06T09:39:24.123456Z"), Some(1_707_212_364));
        assert_eq!(seconds("Tue, 06 Feb 2024 09:39:24 -0000"), Some(1_707_212_364));
        assert_eq!(seconds("0001-01-01T00:00:00.000Z"), None);
        assert_eq!(seconds("yesterday"), None);
    }
}
