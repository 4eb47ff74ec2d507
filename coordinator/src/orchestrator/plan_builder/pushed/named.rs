//! Pushes of images that rules name: by digest, or in files.

use imgsync_config::RuleSource;
use imgsync_model::batch::PushedRepository;
use imgsync_oci::Tag;
use imgsync_oci::error::Result;
use imgsync_registry::event::Events;
use imgsync_registry::{Context, ListedTag};

use super::super::PlanBuilder;
use super::read::ShownPushes;
use super::{PushPlan, RulePart};
use crate::discovery::{DiscoveryItem, RepositoryListing};
use crate::orchestrator::named_images::{list_digests, list_images};

/// The images of each rule that names them, by the number of the rule.
pub(super) struct NamedListings(Vec<(usize, Vec<RepositoryListing>)>);

impl PlanBuilder<'_> {
    /// Reads the images of the rules that name them. If that fails, all pushes are recorded, and stay pending.
    pub(super) async fn read_named_images(&self, pushed: &[PushedRepository]) -> Result<NamedListings> {
        let mut named = Vec::new();
        // The runs of the rule report what cannot be decided or read.
        let quiet = Context { events: Events::none(), ..self.context.clone() };
        for (number, rule) in self.rules.iter().enumerate() {
            let items = match &rule.source {
                RuleSource::Digests(source) => Ok(vec![list_digests(source)]),
                RuleSource::Images(paths) => {
                    list_images(paths.iter().map(|path| self.folder.join(path)).collect(), &quiet).await
                }
                RuleSource::Repositories(_)
                | RuleSource::Preset(_)
                | RuleSource::Layout(_)
                | RuleSource::Archive(..) => {
                    continue;
                }
            };
            let listed = |item| match item {
                DiscoveryItem::Listed(listing) => Some(listing),
                DiscoveryItem::Failed(_) => None,
            };
            match items {
                Ok(items) => named.push((number, items.into_iter().filter_map(listed).collect())),
                Err(error) => {
                    for PushedRepository { registry, repository, .. } in pushed {
                        self.record_unlisted(format!("{registry}/{repository}"), &error).await?;
                    }
                }
            }
        }
        Ok(NamedListings(named))
    }

    /// Plans the pushes of images that rules name.
    pub(super) async fn plan_named_images(
        &self,
        shared: &PushPlan<'_>,
        pushed: &PushedRepository,
        pushes: &ShownPushes,
    ) -> Result<()> {
        let now = self.backend.clock.now();
        for (number, listings) in &shared.named.0 {
            let is_here = |listing: &&RepositoryListing| {
                listing.registry == pushed.registry && listing.repository == pushed.repository
            };
            let key = format!("{number} {}/{}", pushed.registry, pushed.repository);
            let Some(listing) = listings.iter().find(is_here).filter(|_| !shared.done.contains(&key)) else { continue };
            let part = RulePart { number: *number, rule: &self.rules[*number], selector: None };
            let tags = pin_named_tags(&listing.tags, pushes);
            let listing =
                RepositoryListing::from_named_tags(listing.registry.clone(), listing.repository.clone(), tags);
            self.plan_part(shared, (key, now), &part, &listing, pushes).await?;
        }
        Ok(())
    }
}

/// Returns the named tags with the digests that pushed tags show. One that does not exist is left out.
fn pin_named_tags(named: &[ListedTag], pushes: &ShownPushes) -> Vec<ListedTag> {
    let pin = |listed: &ListedTag| {
        let shown = listed.tag.parse::<Tag>().ok().and_then(|tag| pushes.tags.get(&tag).cloned());
        match shown {
            None => Some(listed.clone()),
            Some(None) => None,
            Some(Some(digest)) => Some(ListedTag { digest: Some(digest), ..listed.clone() }),
        }
    };
    named.iter().filter_map(pin).collect()
}
