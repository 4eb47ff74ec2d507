//! Sources of a pattern's repositories: the pattern itself, the API of the registry's vendor, a Google-style tree, or
//! the catalog.

use std::collections::BTreeSet;
use std::sync::Arc;

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::RepositoryName;
use imgsync_common::printable::printable_within;
use imgsync_common::registry::{Access, Client, Context, TagPage, TagPages, Tally};
use imgsync_common::select::RepositoryPattern;

use super::listing::{Contents, Listing, list};
use super::order::InOrder;
use super::{Unlisted, vendor};

/// Upper limit for the invalid names reported.
const MAX_ODD_NAMES: usize = 100;
/// Upper limit for the characters shown of an invalid name.
const LONGEST_NAME: usize = 300;

/// Starting point of a discovery.
#[derive(Debug)]
pub(super) enum Roots {
    /// A single repository, already listed.
    One(Box<Listing>),
    /// Repositories to list, which may have others below them.
    Tree(Names),
    /// All matching repositories.
    Flat(Names),
}

/// Names of repositories to list.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Valid names in order.
    pub(super) good: BTreeSet<InOrder>,
    /// Matching names that are invalid.
    pub(super) odd: Vec<Unlisted>,
}

impl Names {
    /// Adds a name given by a registry.
    pub(super) fn add(&mut self, pattern: &RepositoryPattern, name: &str) {
        match name.parse::<RepositoryName>() {
            Ok(name) => _ = self.good.insert(InOrder(name)),
            // Each is kept until the end, so their number is limited.
            Err(_) if self.odd.len() > MAX_ODD_NAMES => {}
            Err(_) if self.odd.len() == MAX_ODD_NAMES => {
                let repository = format!("{}/…", pattern.registry());
                let detail = "there are more names that are none of repositories";
                let error = Error::new(Class::BadAnswer, format!("listing {pattern}"), detail);
                self.odd.push(Unlisted { repository, error });
            }
            Err(error) => {
                let name = printable_within(name, LONGEST_NAME);
                let tried = format!("listing {}/{name}", pattern.registry());
                let error = Error::new(Class::BadAnswer, tried, error.to_string());
                self.odd.push(Unlisted { repository: format!("{}/{name}", pattern.registry()), error });
            }
        }
    }
}

/// Queries the registry. An error means that nothing can be listed for the pattern.
pub(super) async fn find(
    client: &Client,
    pattern: &RepositoryPattern,
    context: &Context,
    tally: &Arc<Tally>,
) -> Result<Roots> {
    if let Some(name) = pattern.repository() {
        let repository = client.repository(pattern.registry(), &name, Access::Pull, context, tally)?;
        let listing = list(&repository).await?;
        if listing.google && listing.is_nothing() {
            let tried = format!("listing the tags of {pattern}");
            return Err(Error::new(Class::NotFound, tried, "there is no such repository, or nothing is in it"));
        }
        return Ok(Roots::One(Box::new(listing)));
    }
    let api = || match pattern.prefix().parse::<RepositoryName>() {
        Ok(name) => client.repository(pattern.registry(), &name, Access::Pull, context, tally)?.vendor_api(),
        Err(_) => client.root(pattern.registry(), context, tally)?.vendor_api(),
    };
    if let Some(api) = api()?.filter(|api| !api.is_recognised()) {
        return vendor::repositories(&api, pattern).await.map(Roots::Flat);
    }
    let mut pages = match pattern.prefix().parse::<RepositoryName>() {
        Ok(name) => client.repository(pattern.registry(), &name, Access::Pull, context, tally)?.tags(),
        Err(_) => client.root(pattern.registry(), context, tally)?.tags(),
    };
    let denied = match pages.next_page().await {
        Ok(Some(page)) if page.google => return tree(pattern, page, pages).await.map(Roots::Tree),
        Ok(_) => None,
        // A path above repositories may not be one, or not be readable.
        Err(error) if error.class() == Class::Denied => Some(error),
        Err(error) if matches!(error.class(), Class::NotFound | Class::Refused | Class::BadAnswer) => None,
        Err(error) => return Err(error),
    };
    // The registry's response may have revealed its vendor.
    if let Some(api) = api()? {
        match vendor::repositories(&api, pattern).await {
            Ok(names) => return Ok(Roots::Flat(names)),
            Err(error) if vendor::is_unavailable(&error) => tracing::info!("{error}; the catalog is asked"),
            Err(error) => return Err(error),
        }
    }
    match (catalog(client, pattern, context, tally).await, denied) {
        // Access was denied; an empty catalog is no better answer.
        (Ok(names), Some(denied)) if names.good.is_empty() && names.odd.is_empty() => Err(denied),
        (Ok(names), _) => Ok(Roots::Flat(names)),
        (Err(error), Some(denied)) => Err(match error.advice() {
            Some(advice) => denied.hint(advice),
            None => denied,
        }),
        (Err(error), None) => Err(error),
    }
}

/// Lists the repositories directly below the pattern's fixed prefix, in a Google-style registry.
async fn tree(pattern: &RepositoryPattern, first: TagPage, mut pages: TagPages) -> Result<Names> {
    let prefix = pattern.prefix();
    let mut contents = Contents::default();
    contents.take(first);
    contents.read_on(&mut pages).await?;
    let mut names = Names::default();
    for child in &contents.children {
        let name = if prefix.is_empty() { child.clone() } else { format!("{prefix}/{child}") };
        if pattern.matches(&name) || pattern.leads_through(&name) {
            names.add(pattern, &name);
        }
    }
    Ok(names)
}

async fn catalog(client: &Client, pattern: &RepositoryPattern, context: &Context, tally: &Arc<Tally>) -> Result<Names> {
    let mut pages = client.root(pattern.registry(), context, tally)?.catalog();
    let mut names = Names::default();
    while let Some(page) = pages.next_page().await? {
        for name in page.iter().filter(|name| pattern.matches(name)) {
            names.add(pattern, name);
        }
    }
    Ok(names)
}
