//! Listings of a rule, from registries, from an image layout, or from files that name images.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use imgsync_config::RuleSource;
use imgsync_layout::{ArchiveRef, Layout};
use imgsync_oci::error::{Error, Result};
use imgsync_registry::{Client, Context, TrafficCounters};
use tokio::sync::Semaphore;

use super::layout_listing::{LocalImages, list_layout};
use super::named_images::{list_digests, list_images};
use crate::discovery::{Discovery, DiscoveryFailure, DiscoveryItem, DiscoveryOptions, discover};
use crate::presets::{SourceSelector, source_selectors};

/// Iterates over the listings of a rule.
pub struct Listings {
    strategy: ListingStrategy,
    context: Context,
    /// Error of [`Listings::prepare`].
    failed: Option<Error>,
}

enum ListingStrategy {
    /// A single source: its error is that of the rule.
    Single(Arc<SourceSelector>, Box<Discovery>),
    /// The parts of a preset.
    Multiple(Box<MultiSourceListing>),
    /// A layout or archive that is not read yet.
    UnreadLayout(LocalImages),
    /// Files that name images, not read yet.
    UnreadFiles(Vec<PathBuf>),
    /// All repositories of a layout, or of images that are named one by one.
    Layout(std::vec::IntoIter<DiscoveryItem>),
}

/// A repository of a rule, or the error of listing it.
#[derive(Debug)]
pub struct RuleListing {
    /// The repository.
    pub item: DiscoveryItem,
    /// Part of the rule's source that it belongs to; `None` in a layout.
    pub selector: Option<Arc<SourceSelector>>,
}

impl Listings {
    /// Creates the listings of a rule's source; no request is sent yet. `folder` is the base directory of relative layout
    /// paths.
    pub fn new(
        source: &RuleSource,
        folder: &Path,
        client: &Client,
        options: DiscoveryOptions,
        context: &Context,
        counters: &Arc<TrafficCounters>,
    ) -> Result<Listings> {
        let begin = {
            let (client, context, counters) = (client.clone(), context.clone(), counters.clone());
            move |part: &SourceSelector| discover(&client, &part.pattern, options, &context, &counters)
        };
        let strategy = match source {
            RuleSource::Layout(path) => ListingStrategy::UnreadLayout(LocalImages::Layout(folder.join(path))),
            RuleSource::Archive(format, path) => {
                let (format, file) = (*format, folder.join(path));
                ListingStrategy::UnreadLayout(LocalImages::Archive(ArchiveRef { format, file, image: None }))
            }
            RuleSource::Images(paths) => {
                ListingStrategy::UnreadFiles(paths.iter().map(|path| folder.join(path)).collect())
            }
            RuleSource::Digests(source) => ListingStrategy::Layout(vec![list_digests(source)].into_iter()),
            RuleSource::Repositories(_) | RuleSource::Preset(_) => {
                match <[SourceSelector; 1]>::try_from(source_selectors(source)?) {
                    Ok([part]) => {
                        let enumeration = begin(&part);
                        ListingStrategy::Single(Arc::new(part), Box::new(enumeration))
                    }
                    Err(parts) => {
                        ListingStrategy::Multiple(Box::new(MultiSourceListing::new(parts, options.query_limit, begin)))
                    }
                }
            }
        };
        Ok(Listings { strategy, context: context.clone(), failed: None })
    }

    /// Creates the listings of an archive that is open.
    pub fn of_layout(layout: Layout, context: &Context) -> Listings {
        let strategy = ListingStrategy::UnreadLayout(LocalImages::Opened(layout));
        Listings { strategy, context: context.clone(), failed: None }
    }

    /// Shares these slots for requests with other listings. Returns whether it does: the parts of a preset have the whole
    /// query limit to themselves.
    pub fn share_slots(&mut self, slots: &Arc<Semaphore>) -> bool {
        match &mut self.strategy {
            ListingStrategy::Single(_, enumeration) => enumeration.share_slots(slots.clone()),
            ListingStrategy::Multiple(_) => return false,
            ListingStrategy::UnreadLayout(_) | ListingStrategy::UnreadFiles(_) | ListingStrategy::Layout(_) => {}
        }
        true
    }

    /// Sends the first requests, at most one at a time. An error is returned by the next call of [`Listings::next`].
    /// The parts of a preset are listed only when they are asked for.
    pub async fn prepare(&mut self) {
        let prepared = match &mut self.strategy {
            ListingStrategy::Single(_, enumeration) => enumeration.prepare().await,
            ListingStrategy::UnreadLayout(_) | ListingStrategy::UnreadFiles(_) => self.read_local().await,
            ListingStrategy::Multiple(_) | ListingStrategy::Layout(_) => Ok(()),
        };
        self.failed = prepared.err();
    }

    /// Reads a layout, an archive, or files that name images.
    async fn read_local(&mut self) -> Result<()> {
        let found = match &self.strategy {
            ListingStrategy::UnreadLayout(path) => list_layout(path).await,
            ListingStrategy::UnreadFiles(paths) => list_images(paths.clone(), &self.context).await,
            ListingStrategy::Single(..) | ListingStrategy::Multiple(_) | ListingStrategy::Layout(_) => return Ok(()),
        };
        // After an error there is nothing more.
        let (found, result) = found.map_or_else(|error| (Vec::new(), Err(error)), |found| (found, Ok(())));
        self.strategy = ListingStrategy::Layout(found.into_iter());
        result
    }

    /// Returns the next repository and warns of oddities in it. An error ends the listing of the rule.
    pub async fn next(&mut self) -> Result<Option<RuleListing>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.read_local().await?;
        let next_listing = match &mut self.strategy {
            ListingStrategy::Single(part, enumeration) => {
                enumeration.next().await?.map(|found| RuleListing { item: found, selector: Some(part.clone()) })
            }
            ListingStrategy::Multiple(several) => several.next().await?,
            ListingStrategy::Layout(found) => found.next().map(|found| RuleListing { item: found, selector: None }),
            ListingStrategy::UnreadLayout(_) | ListingStrategy::UnreadFiles(_) => None,
        };
        if let Some(RuleListing { item: DiscoveryItem::Listed(listing), selector: Some(part) }) = &next_listing {
            part.check_listing(listing).iter().for_each(|remark| self.context.warn(remark));
        }
        Ok(next_listing)
    }
}

type StartEnumeration = Box<dyn Fn(&SourceSelector) -> Discovery + Send + Sync>;

/// Lists the parts of a preset: named repositories concurrently, then patterns one after another. A part that cannot be
/// listed does not stop the others.
struct MultiSourceListing {
    named: BoxStream<'static, (Arc<SourceSelector>, Result<Option<DiscoveryItem>>)>,
    trees: VecDeque<Arc<SourceSelector>>,
    current_tree: Option<(Arc<SourceSelector>, Discovery)>,
    start: Arc<StartEnumeration>,
    /// Whether something was listed.
    has_listed: bool,
    /// Errors, deferred until something is listed.
    deferred_errors: VecDeque<(Arc<SourceSelector>, Error)>,
}

impl MultiSourceListing {
    fn new(
        parts: Vec<SourceSelector>,
        at_once: usize,
        start: impl Fn(&SourceSelector) -> Discovery + Send + Sync + 'static,
    ) -> MultiSourceListing {
        let start: Arc<StartEnumeration> = Arc::new(Box::new(start));
        let parts = parts.into_iter().map(Arc::new);
        let (named, trees): (Vec<_>, Vec<_>) = parts.partition(|part| part.pattern.repository().is_some());
        let list = {
            let start = start.clone();
            move |part: Arc<SourceSelector>| {
                let mut enumeration = start(&part);
                async move { (part, enumeration.next().await) }
            }
        };
        let named = futures_util::stream::iter(named).map(list).buffered(at_once.max(1)).boxed();
        MultiSourceListing {
            named,
            trees: trees.into(),
            current_tree: None,
            start,
            has_listed: false,
            deferred_errors: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<RuleListing>> {
        loop {
            if self.has_listed
                && let Some((part, error)) = self.deferred_errors.pop_front()
            {
                return Ok(Some(to_unlisted(part, error)));
            }
            let (part, result) = match self.next_step().await {
                Some(one) => one,
                // Nothing was listed: the last error is the rule's.
                None if self.deferred_errors.len() == 1 => {
                    return self.deferred_errors.pop_front().map_or(Ok(None), |(_, error)| Err(error));
                }
                None => return Ok(self.deferred_errors.pop_front().map(|(part, error)| to_unlisted(part, error))),
            };
            match result {
                Ok(None) => {}
                Ok(Some(item)) => {
                    self.has_listed = true;
                    return Ok(Some(RuleListing { item, selector: Some(part) }));
                }
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => self.deferred_errors.push_back((part, error)),
            }
        }
    }

    /// Returns the result of the next step, or `None` after the last.
    async fn next_step(&mut self) -> Option<(Arc<SourceSelector>, Result<Option<DiscoveryItem>>)> {
        if let Some(one) = self.named.next().await {
            return Some(one);
        }
        if self.current_tree.is_none() {
            let part = self.trees.pop_front()?;
            let enumeration = (self.start)(&part);
            self.current_tree = Some((part, enumeration));
        }
        let (part, enumeration) = self.current_tree.as_mut()?;
        let (part, result) = (part.clone(), enumeration.next().await);
        if !matches!(result, Ok(Some(_))) {
            self.current_tree = None;
        }
        Some((part, result))
    }
}

fn to_unlisted(part: Arc<SourceSelector>, error: Error) -> RuleListing {
    let repository = part.pattern.to_string();
    RuleListing { item: DiscoveryItem::Failed(DiscoveryFailure { repository, error }), selector: Some(part) }
}
