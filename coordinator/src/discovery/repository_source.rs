//! Sources of a pattern's repositories: the pattern itself, the API of the registry's provider, a tree of tag lists, or
//! the catalog.

use std::sync::Arc;

use imgsync_model::select::RepositoryPattern;
use imgsync_oci::RepositoryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_registry::{Access, Client, Context, TagPage, TagPages, TrafficCounters};

use super::listing::{ListingAccumulator, RepositoryListing, list_repository};
use super::provider_lists;
use super::repository_names::RepositoryNames;

/// Starting point of a discovery.
#[derive(Debug)]
pub(super) enum RepositorySource {
    /// A single repository, already listed.
    Single(Box<RepositoryListing>),
    /// Repositories to list, which may have others below them.
    Tree(RepositoryNames),
    /// All matching repositories.
    Flat(RepositoryNames),
}

/// Queries the registry. An error means that nothing can be listed for the pattern.
pub(super) async fn find_source(
    client: &Client,
    pattern: &RepositoryPattern,
    context: &Context,
    counters: &Arc<TrafficCounters>,
) -> Result<RepositorySource> {
    if let Some(name) = pattern.repository() {
        let repository = client.repository(pattern.registry(), &name, Access::Pull, context, counters)?;
        let listing = list_repository(&repository).await?;
        if listing.is_tree && listing.is_empty() {
            let operation = format!("listing the tags of {pattern}");
            return Err(Error::new(ErrorKind::NotFound, operation, "the repository does not exist or is empty"));
        }
        return Ok(RepositorySource::Single(Box::new(listing)));
    }
    let api = || match pattern.prefix().parse::<RepositoryName>() {
        Ok(name) => client.repository(pattern.registry(), &name, Access::Pull, context, counters)?.provider_api(),
        Err(_) => client.open_catalog(pattern.registry(), context, counters)?.provider_api(),
    };
    if let Some(api) = api()?.filter(|api| !api.is_recognised()) {
        return provider_lists::list_repositories(&api, pattern).await.map(RepositorySource::Flat);
    }
    let mut pages = match pattern.prefix().parse::<RepositoryName>() {
        Ok(name) => client.repository(pattern.registry(), &name, Access::Pull, context, counters)?.list_tags(),
        Err(_) => client.open_catalog(pattern.registry(), context, counters)?.list_tags(),
    };
    let denied = match pages.next_page().await {
        Ok(Some(page)) if page.is_tree => return list_tree(pattern, page, pages).await.map(RepositorySource::Tree),
        Ok(_) => None,
        // A path above repositories may not be one, or not be readable.
        Err(error) if error.kind() == ErrorKind::Denied => Some(error),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Refused | ErrorKind::InvalidResponse) => {
            None
        }
        Err(error) => return Err(error),
    };
    // The registry's response may have revealed its provider.
    if let Some(api) = api()? {
        match provider_lists::list_repositories(&api, pattern).await {
            Ok(names) => return Ok(RepositorySource::Flat(names)),
            Err(error) if provider_lists::permits_fallback(&error) => {
                tracing::info!("{error}; falling back to the catalog")
            }
            Err(error) => return Err(error),
        }
    }
    match (list_catalog(client, pattern, context, counters).await, denied) {
        // Access was denied; an empty catalog is no better answer.
        (Ok(names), Some(denied)) if names.valid.is_empty() && names.invalid.is_empty() => Err(denied),
        (Ok(names), _) => Ok(RepositorySource::Flat(names)),
        (Err(error), Some(denied)) => Err(match error.hint() {
            Some(hint) => denied.with_hint(hint),
            None => denied,
        }),
        (Err(error), None) => Err(error),
    }
}

/// Lists the repositories directly below the pattern's fixed prefix, in a registry that lists trees.
async fn list_tree(pattern: &RepositoryPattern, first: TagPage, mut pages: TagPages) -> Result<RepositoryNames> {
    let prefix = pattern.prefix();
    let mut contents = ListingAccumulator::default();
    contents.add_page(first);
    contents.add_remaining_pages(&mut pages).await?;
    let mut names = RepositoryNames::default();
    for child in &contents.children {
        let name = if prefix.is_empty() { child.clone() } else { format!("{prefix}/{child}") };
        if pattern.matches(&name) || pattern.can_match_below(&name) {
            names.add(pattern, &name);
        }
    }
    Ok(names)
}

async fn list_catalog(
    client: &Client,
    pattern: &RepositoryPattern,
    context: &Context,
    counters: &Arc<TrafficCounters>,
) -> Result<RepositoryNames> {
    let mut pages = client.open_catalog(pattern.registry(), context, counters)?.list_repositories();
    let mut names = RepositoryNames::default();
    while let Some(page) = pages.next_page().await? {
        for name in page.iter().filter(|name| pattern.matches(name)) {
            names.add(pattern, name);
        }
    }
    Ok(names)
}
