//! The listings of a rule, from registries or from an image layout.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use imgsync_common::config::{Rule, Source};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::layout::Layout;
use imgsync_common::registry::{Client, Context, Tally};

use crate::enumerate::{Enumeration, Found, ListedTag, Listing, Options, Unlisted, enumerate};

/// Listings, one by one.
pub(super) enum Listings {
    /// As the registry gives them.
    Registry(Box<Enumeration>),
    /// All of a layout.
    Layout(std::vec::IntoIter<Found>),
}

impl Listings {
    /// What a rule names, to be listed. `folder` is where relative paths of layouts begin.
    pub(super) async fn of(
        rule: &Rule,
        folder: &Path,
        client: &Client,
        options: Options,
        context: &Context,
        tally: &Arc<Tally>,
    ) -> Result<Listings> {
        match &rule.source {
            Source::Repositories(pattern) => {
                Ok(Listings::Registry(Box::new(enumerate(client, pattern, options, context, tally))))
            }
            Source::Layout(path) => Ok(Listings::Layout(of_layout(&folder.join(path)).await?.into_iter())),
            Source::Preset(name) => {
                let tried = format!("reading the rule in line {}", rule.line);
                Err(Error::new(Class::Invalid, tried, format!("there is no preset `{name}` in this version")))
            }
        }
    }

    /// The next repository; an error ends all of the rule.
    pub(super) async fn next(&mut self) -> Result<Option<Found>> {
        match self {
            Listings::Registry(enumeration) => enumeration.next().await,
            Listings::Layout(found) => Ok(found.next()),
        }
    }
}

/// The repositories of a layout. Images without a full name belong to none, and are said to be left out.
async fn of_layout(folder: &Path) -> Result<Vec<Found>> {
    let layout = Layout::open(folder).await?;
    let mut repositories = BTreeMap::new();
    let mut found = Vec::new();
    for entry in layout.entries().await? {
        match (entry.repository, entry.tag) {
            (Some(name), Some(tag)) => repositories.entry(name).or_insert_with(Vec::new).push(ListedTag {
                tag: tag.as_str().to_owned(),
                digest: Some(entry.descriptor.digest),
                created: None,
                media_type: Some(entry.descriptor.media_type),
            }),
            (None, Some(tag)) => {
                let tried = format!("listing oci:{}", folder.display());
                let detail = format!("`{tag}` has no full name, so that no name at the target follows from it");
                let error = Error::new(Class::Invalid, tried, detail).hint("copy it with `imgsync sync`");
                found.push(Found::Unlisted(Unlisted { repository: format!("oci:{}:{tag}", folder.display()), error }));
            }
            // Found by its digest alone: nothing that rules choose from.
            (_, None) => {}
        }
    }
    found.extend(repositories.into_iter().map(|(name, mut tags)| {
        tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        tags.dedup_by(|a, b| a.tag == b.tag);
        let manifests = tags.len();
        let (registry, repository) = (name.registry, name.repository);
        Found::Listed(Listing { registry, repository, tags, children: Vec::new(), manifests, google: false })
    }));
    Ok(found)
}
