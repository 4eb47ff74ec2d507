//! Vendor APIs: the repositories of a namespace, and tags with digests and dates. Each vendor has a file with its URLs
//! and page formats; requests are made by [`imgsync_common::registry::Api`].

mod github;
mod harbor;
mod hub;
mod quay;

use std::time::Duration;

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::RepositoryName;
use imgsync_common::registry::{Api, Page, Pages, Repository};
use imgsync_common::select::RepositoryPattern;
use imgsync_common::store::age;
use imgsync_common::vendor::Vendor;
use jiff::Timestamp;

use super::listing::ListedTag;
use super::roots::Names;

/// Requested entries a page: the maximum of all vendors.
const PAGE_SIZE: &str = "100";

/// A page of a repository's tags.
trait TagPage: Page {
    fn tags(self) -> Vec<ListedTag>;
}

/// A page of a namespace's repositories.
trait RepositoryPage: Page {
    /// Returns the repositories' paths within the registry.
    fn names(&self, namespace: &str) -> Vec<String>;
}

/// Tags of a repository, page by page.
#[derive(Debug)]
pub(super) struct TagPages(TagsOf);

#[derive(Debug)]
enum TagsOf {
    Quay(Pages<quay::Tags>),
    Hub(Pages<hub::Tags>),
    Harbor(Pages<harbor::Artifacts>),
    GitHub(Box<github::Owned<github::Versions>>),
}

impl TagPages {
    fn of(api: &Api, name: &RepositoryName) -> TagPages {
        TagPages(match api.vendor() {
            Vendor::Quay => TagsOf::Quay(quay::tags(api, name)),
            Vendor::Hub => TagsOf::Hub(hub::tags(api, name)),
            Vendor::Harbor => TagsOf::Harbor(harbor::tags(api, name)),
            Vendor::GitHub => TagsOf::GitHub(Box::new(github::tags(api, name))),
        })
    }

    /// Reads the next page; `None` after the last.
    pub(super) async fn next_page(&mut self) -> Result<Option<Vec<ListedTag>>> {
        Ok(match &mut self.0 {
            TagsOf::Quay(pages) => pages.next_page().await?.map(TagPage::tags),
            TagsOf::Hub(pages) => pages.next_page().await?.map(TagPage::tags),
            TagsOf::Harbor(pages) => pages.next_page().await?.map(TagPage::tags),
            TagsOf::GitHub(pages) => pages.next_page().await?.map(TagPage::tags),
        })
    }
}

/// Repositories of a namespace, page by page.
enum RepositoryPages {
    Quay(Pages<quay::Repositories>),
    Hub(Pages<hub::Repositories>),
    Harbor(Pages<harbor::Repositories>),
    GitHub(Box<github::Owned<github::Packages>>),
}

impl RepositoryPages {
    fn of(api: &Api, namespace: &str) -> RepositoryPages {
        match api.vendor() {
            Vendor::Quay => RepositoryPages::Quay(quay::repositories(api, namespace)),
            Vendor::Hub => RepositoryPages::Hub(hub::repositories(api, namespace)),
            Vendor::Harbor => RepositoryPages::Harbor(harbor::repositories(api, namespace)),
            Vendor::GitHub => RepositoryPages::GitHub(Box::new(github::repositories(api, namespace))),
        }
    }

    async fn next_page(&mut self, namespace: &str) -> Result<Option<Vec<String>>> {
        Ok(match self {
            RepositoryPages::Quay(pages) => pages.next_page().await?.map(|page| page.names(namespace)),
            RepositoryPages::Hub(pages) => pages.next_page().await?.map(|page| page.names(namespace)),
            RepositoryPages::Harbor(pages) => pages.next_page().await?.map(|page| page.names(namespace)),
            RepositoryPages::GitHub(pages) => pages.next_page().await?.map(|page| page.names(namespace)),
        })
    }
}

/// Lists a repository's tags by its vendor's API; `None` if there is none, or it is not available to this user.
pub(super) async fn tags(repository: &Repository) -> Result<Option<TagPages>> {
    let Some(api) = repository.vendor_api()? else { return Ok(None) };
    // GitHub's API requires a token: without one no request is made.
    if api.vendor() == Vendor::GitHub && !api.takes_our_credentials().await? {
        return Ok(None);
    }
    if api.is_recognised() && api.noted(&withheld(repository)).is_some() {
        return Ok(None);
    }
    Ok(Some(TagPages::of(&api, repository.name())))
}

/// Like [`tags`], if the vendor was recognized by the registry's responses and not configured.
pub(super) async fn tags_of_recognised(repository: &Repository) -> Result<Option<TagPages>> {
    match repository.vendor_api()?.is_some_and(|api| api.is_recognised()) {
        true => tags(repository).await,
        false => Ok(None),
    }
}

/// Whether an error of a vendor's API permits a fallback to the registry's own list. Transient errors do not: a
/// temporary problem would otherwise lead to a selection from a list without dates. Neither do security errors.
pub(super) fn is_unavailable(error: &Error) -> bool {
    match error.class() {
        Class::Denied | Class::NotFound | Class::Refused | Class::BadAnswer | Class::Unsupported => true,
        Class::TokenExpired
        | Class::RateLimited
        | Class::Unreachable
        | Class::TimedOut
        | Class::ServerError
        | Class::Corrupt
        | Class::Incomplete
        | Class::Outdated
        | Class::Insecure
        | Class::Invalid
        | Class::Local
        | Class::Collision
        | Class::Immutable
        | Class::Differs
        | Class::Cancelled => false,
    }
}

/// Warns, once per registry, that a vendor's API did not list a repository, and what is used instead. If the API was
/// not configured, nothing is shown, and the API is not used again for this namespace.
pub(super) fn tell(repository: &Repository, error: &Error, instead: &str) -> Result<()> {
    let Some(api) = repository.vendor_api()? else { return Ok(()) };
    if api.is_recognised() {
        tracing::info!("{error}; {instead}");
        if error.class() != Class::NotFound {
            api.note(&withheld(repository), "");
        }
        return Ok(());
    }
    if api.note("told", "").is_none() {
        let advice = error.advice().map(|advice| format!(" ({advice})")).unwrap_or_default();
        repository.context().warn(format!("{error}; {instead}{advice}"));
    }
    Ok(())
}

/// Time without requests to an API after a failed connection.
const OUT_OF_REACH: Duration = Duration::from_secs(10 * 60);
const REACH: &str = "out of reach";

/// Returns why a vendor's API is not used now: a connection failed a while ago, or `error` is such a failure. Warns
/// once per registry.
pub(super) fn out_of_reach(repository: &Repository, error: Option<&Error>, instead: &str) -> Result<Option<String>> {
    let Some(api) = repository.vendor_api()? else { return Ok(None) };
    match error {
        Some(error) if api.is_out_of_reach(error) => {
            let name = api.vendor().name();
            api.note(REACH, &format!("{} {name}'s API cannot be reached", Timestamp::now()));
            tell(repository, error, instead)?;
        }
        Some(_) => return Ok(None),
        None => {}
    }
    let noted = api.noted(REACH).unwrap_or_default();
    let (at, why) = noted.split_once(' ').unwrap_or_default();
    let is_fresh = at.parse::<Timestamp>().is_ok_and(|at| age(at, Timestamp::now()) < OUT_OF_REACH);
    Ok(is_fresh.then(|| why.to_owned()))
}

fn withheld(repository: &Repository) -> String {
    format!("withheld {}", split(repository.name().as_str()).0)
}

/// Lists the repositories that a pattern matches.
pub(super) async fn repositories(api: &Api, pattern: &RepositoryPattern) -> Result<Names> {
    let namespace = pattern.prefix().split('/').next().unwrap_or_default();
    let vendor = api.vendor();
    if namespace.is_empty() && vendor != Vendor::Harbor {
        let detail =
            format!("{}'s API lists the repositories of a namespace, and the pattern names none", vendor.name());
        return Err(Error::new(Class::Unsupported, format!("listing {pattern}"), detail).hint(format!(
            "begin with a namespace, as in {registry}/NAME/**; `listing: registry` for {registry} under `registries` asks \
             for its catalog instead",
            registry = pattern.registry()
        )));
    }
    let is_known = api.takes_our_credentials().await?;
    if vendor == Vendor::GitHub && !is_known {
        let tried = format!("listing {}", repositories_of(api, namespace));
        let error = Error::new(Class::Denied, tried, "GitHub's API lists packages to who has a token alone");
        return Err(one_by_one(api, error.hint(api.denied(false))));
    }
    if vendor == Vendor::Quay && !is_known && api.has_credentials().await? {
        let listed = repositories_of(api, namespace);
        api.context().warn(format!("of {listed} only public ones are seen: {}", api.denied(true)));
    }
    let mut names = Names::default();
    let mut pages = RepositoryPages::of(api, namespace);
    while let Some(page) = pages.next_page(namespace).await.map_err(|error| one_by_one(api, error))? {
        for name in page.iter().filter(|name| pattern.matches(name)) {
            names.add(pattern, name);
        }
    }
    Ok(names)
}

/// Adds to an error's hint that repositories can be named explicitly, which needs no list.
fn one_by_one(api: &Api, error: Error) -> Error {
    if !is_unavailable(&error) {
        return error;
    }
    let advice = match (error.class(), error.advice()) {
        (_, Some(advice)) => format!("{advice}; or "),
        (Class::NotFound, None) => {
            format!("check the namespace, and that {} shows it to this user; or ", api.registry())
        }
        (_, None) => String::new(),
    };
    error.hint(format!("{advice}name the repositories one by one, without a star"))
}

/// Splits a repository's path into the namespace and the rest.
fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((name, ""))
}

/// Describes a list of tags, for errors.
fn tags_of(api: &Api, name: &RepositoryName) -> String {
    format!("the tags of {}/{name}", api.registry())
}

/// Describes a list of repositories, for errors.
fn repositories_of(api: &Api, namespace: &str) -> String {
    match namespace {
        "" => format!("the repositories of {}", api.registry()),
        _ => format!("the repositories of {}/{namespace}", api.registry()),
    }
}

/// Parses a date from JSON. Invalid dates, and the start of 1970 or of the year 1, are `None`.
fn date(text: Option<&str>) -> Option<Timestamp> {
    let text = text?;
    let read = text.parse().ok().or_else(|| Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp()));
    read.filter(|date: &Timestamp| date.as_second() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_however_they_are_written() {
        let seconds = |text| date(Some(text)).map(Timestamp::as_second);
        assert_eq!(seconds("2024-02-06T09:39:24.123456Z"), Some(1_707_212_364));
        assert_eq!(seconds("Tue, 06 Feb 2024 09:39:24 -0000"), Some(1_707_212_364));
        assert_eq!(seconds("0001-01-01T00:00:00.000Z"), None);
        assert_eq!(seconds("yesterday"), None);
    }
}
