//! What the APIs of vendors list: the repositories of a namespace, and tags with digests and dates. One file each says
//! where its lists are and what their pages look like; how they are asked is [`imgsync_common::registry::Api`].

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

/// Entries of a page that are asked for: the most that any of them gives.
const PAGE_SIZE: &str = "100";

/// A page of a repository's tags.
trait TagPage: Page {
    fn tags(self) -> Vec<ListedTag>;
}

/// A page of a namespace's repositories.
trait RepositoryPage: Page {
    /// Their paths, from the registry on.
    fn names(&self, namespace: &str) -> Vec<String>;
}

/// The tags of a repository, by pages.
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

    /// The next page; `None` after the last.
    pub(super) async fn next_page(&mut self) -> Result<Option<Vec<ListedTag>>> {
        Ok(match &mut self.0 {
            TagsOf::Quay(pages) => pages.next_page().await?.map(TagPage::tags),
            TagsOf::Hub(pages) => pages.next_page().await?.map(TagPage::tags),
            TagsOf::Harbor(pages) => pages.next_page().await?.map(TagPage::tags),
            TagsOf::GitHub(pages) => pages.next_page().await?.map(TagPage::tags),
        })
    }
}

/// The repositories of a namespace, by pages.
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

/// The tags of a repository as its registry's vendor lists them; none where no vendor does, or not to us.
pub(super) async fn tags(repository: &Repository) -> Result<Option<TagPages>> {
    let Some(api) = repository.vendor_api()? else { return Ok(None) };
    // GitHub's says nothing to who has no token; nobody is asked in vain.
    if api.vendor() == Vendor::GitHub && !api.takes_our_credentials().await? {
        return Ok(None);
    }
    if api.is_recognised() && api.noted(&withheld(repository)).is_some() {
        return Ok(None);
    }
    Ok(Some(TagPages::of(&api, repository.name())))
}

/// The same, where nobody said whose API it is and the registry's answers did.
pub(super) async fn tags_of_recognised(repository: &Repository) -> Result<Option<TagPages>> {
    match repository.vendor_api()?.is_some_and(|api| api.is_recognised()) {
        true => tags(repository).await,
        false => Ok(None),
    }
}

/// Whether an error of a vendor's API leaves the registry's own list to be tried. What passes is no such error: a list
/// without dates would be chosen from otherwise, for a moment's trouble. Nor is one that tells of danger.
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

/// Tells, once for each registry, that a vendor's API did not list a repository, and what is done without it. Where nobody
/// asked for that API, nobody is told, and it is left alone for this namespace.
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

/// How long an API that could not be connected to is left alone.
const OUT_OF_REACH: Duration = Duration::from_secs(10 * 60);
const REACH: &str = "out of reach";

/// Why a vendor's API is not asked for now: it could not be connected to a while ago, or `error` says so. It is told once
/// for each registry.
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

/// The repositories that a pattern means.
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

/// Adds to an error that names can be written out: what no list is needed for.
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

/// A repository's namespace, and what is left of its path.
fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((name, ""))
}

/// What is listed, for errors.
fn tags_of(api: &Api, name: &RepositoryName) -> String {
    format!("the tags of {}/{name}", api.registry())
}

/// What is listed, for errors.
fn repositories_of(api: &Api, namespace: &str) -> String {
    match namespace {
        "" => format!("the repositories of {}", api.registry()),
        _ => format!("the repositories of {}/{namespace}", api.registry()),
    }
}

/// A date as JSON has them. What cannot be read, and the beginning of 1970 or of the year 1, is none.
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
