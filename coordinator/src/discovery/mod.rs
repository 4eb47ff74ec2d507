//! Discovery of the repositories that a pattern matches, and their tags: streamed, concurrent, in bounded memory.
//!
//! [`discover`] starts a discovery; [`Discovery::next`] returns one repository after another. A slow caller slows
//! down the listing: there are never more open requests or stored listings than [`DiscoveryOptions`] allows. A repository that
//! fails is returned as [`DiscoveryItem::Failed`], and the others continue.
//!
//! Repositories come from the pattern itself, from a tree of tag lists (recognized by the response, not by the host's
//! name), from the catalog (`repository_source`), or from an API of the registry's provider (`provider_lists`), which lists
//! tags with digests and dates too.

mod listing;
mod order;
mod provider_lists;
mod repository_names;
mod repository_source;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use imgsync_model::select::RepositoryPattern;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::RetryBudget;
use imgsync_registry::{Access, Client, Context, ListingGroup, ListingShare, TrafficCounters};
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinSet};

pub use listing::{RepositoryListing, find_tags, list_repository};
pub use order::compare_repositories;

use order::HierarchicalName;
use repository_names::RepositoryNames;
use repository_source::RepositorySource;

/// Upper limit for repositories: a larger tree is considered endless.
const MAX_REPOSITORIES: usize = 1_000_000;

/// Options of a discovery.
#[derive(Debug, Clone, Copy)]
pub struct DiscoveryOptions {
    /// Number of repositories listed concurrently; 20 by default.
    pub query_limit: usize,
    /// Order in which repositories are returned.
    pub order: RepositoryOrder,
}

/// Order in which repositories are returned. Requests are always sent in the order of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RepositoryOrder {
    /// As listings complete: a slow one does not delay the others.
    #[default]
    AsCompleted,
    /// By name ([`compare_repositories`]): early listings are held back, at most four times as many as are listed
    /// concurrently.
    ByName,
}

impl Default for DiscoveryOptions {
    fn default() -> DiscoveryOptions {
        DiscoveryOptions { query_limit: 20, order: RepositoryOrder::default() }
    }
}

/// A discovered repository, or a failure.
#[derive(Debug)]
pub enum DiscoveryItem {
    /// Completely listed.
    Listed(RepositoryListing),
    /// Listing failed.
    Failed(DiscoveryFailure),
}

/// A repository whose listing failed.
#[derive(Debug)]
pub struct DiscoveryFailure {
    /// `registry/repository`, with the name given by the registry.
    pub repository: String,
    /// The cause.
    pub error: Error,
}

/// Creates a discovery of the repositories that a pattern matches. The first request is sent by [`Discovery::next`];
/// dropping the discovery cancels all requests.
pub fn discover(
    client: &Client,
    pattern: &RepositoryPattern,
    options: DiscoveryOptions,
    context: &Context,
    tally: &Arc<TrafficCounters>,
) -> Discovery {
    Discovery {
        client: client.clone(),
        pattern: pattern.clone(),
        options,
        context: context.clone(),
        tally: tally.clone(),
        state: DiscoveryState::New,
        memory: ListingGroup::new(options.order == RepositoryOrder::ByName),
        slots: None,
        pending: RepositoryNames::default(),
        discovered: 0,
        running: JoinSet::new(),
        running_names: HashMap::new(),
        completed: BTreeMap::new(),
        is_tree: false,
        yielded: 0,
    }
}

/// A running discovery.
#[derive(Debug)]
pub struct Discovery {
    client: Client,
    pattern: RepositoryPattern,
    options: DiscoveryOptions,
    context: Context,
    tally: Arc<TrafficCounters>,
    state: DiscoveryState,
    memory: ListingGroup,
    /// Slots for requests that this discovery shares with others.
    slots: Option<Arc<Semaphore>>,
    pending: RepositoryNames,
    /// Number of repositories queued so far.
    discovered: usize,
    running: JoinSet<Result<RepositoryListing>>,
    /// Repositories of the running tasks.
    running_names: HashMap<Id, HierarchicalName>,
    /// Completed listings that wait for one with a lower name.
    completed: BTreeMap<HierarchicalName, DiscoveryItem>,
    is_tree: bool,
    yielded: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiscoveryState {
    New,
    Running,
    Done,
}

impl Discovery {
    /// Makes this discovery list a repository only while one of these slots is free, except for one at a time, so that
    /// it proceeds whatever holds the slots.
    pub fn share_slots(&mut self, slots: Arc<Semaphore>) {
        self.slots = Some(slots);
    }

    /// Sends the first requests, so that [`Discovery::next`] is faster: lists the repositories, or the tags of a pattern
    /// that is one repository. An error ends the discovery.
    pub async fn prepare(&mut self) -> Result<()> {
        if self.state == DiscoveryState::New {
            let found = self.find_repositories().await;
            self.state = if found.is_ok() { DiscoveryState::Running } else { DiscoveryState::Done };
            return found;
        }
        Ok(())
    }

    /// Returns the next repository; `None` after the last. An error ends the discovery: the list of repositories cannot
    /// be read, no repository matches the pattern, or the discovery was cancelled.
    pub async fn next(&mut self) -> Result<Option<DiscoveryItem>> {
        self.prepare().await?;
        if self.state == DiscoveryState::Done {
            return Ok(None);
        }
        let result = self.next_completed().await;
        match &result {
            Ok(Some(_)) => self.yielded += 1,
            Ok(None) | Err(_) => self.state = DiscoveryState::Done,
        }
        result
    }

    async fn find_repositories(&mut self) -> Result<()> {
        let context = self.new_listing_context(self.pattern.prefix());
        let roots = repository_source::find_source(&self.client, &self.pattern, &context, &self.tally).await?;
        context.listing_memory.iter().for_each(ListingShare::finish);
        match roots {
            RepositorySource::Single(listing) => {
                self.completed.insert(HierarchicalName(listing.repository.clone()), DiscoveryItem::Listed(*listing));
            }
            RepositorySource::Tree(names) => {
                self.is_tree = true;
                self.pending = names;
            }
            RepositorySource::Flat(names) => self.pending = names,
        }
        self.discovered = self.pending.valid.len();
        Ok(())
    }

    async fn next_completed(&mut self) -> Result<Option<DiscoveryItem>> {
        loop {
            if let Some(failure) = self.pending.invalid.pop() {
                return Ok(Some(DiscoveryItem::Failed(failure)));
            }
            if let Some(found) = self.take_completed() {
                return Ok(Some(found));
            }
            self.fill_slots()?;
            let ended = tokio::select! {
                biased;
                () = self.context.cancel.cancelled() => return Err(self.cancelled_error()),
                ended = self.running.join_next_with_id() => ended,
            };
            let (id, result) = match ended {
                None if self.yielded == 0 => return Err(self.not_found_error()),
                None => return Ok(None),
                Some(Ok((id, result))) => (id, result),
                Some(Err(error)) => {
                    let operation = format!("listing {}", self.pattern);
                    (error.id(), Err(Error::new(ErrorKind::Local, operation, error.to_string()).with_source(error)))
                }
            };
            if let Some(name) = self.running_names.remove(&id)
                && let Some(found) = self.handle_listing(&name, result)?
            {
                self.completed.insert(name, found);
            }
        }
    }

    /// Returns a completed listing whose turn it is.
    fn take_completed(&mut self) -> Option<DiscoveryItem> {
        let first = self.completed.first_entry()?;
        let before = |name: Option<&HierarchicalName>| name.is_some_and(|name| name < first.key());
        let must_wait = before(self.pending.valid.first()) || before(self.running_names.values().min());
        if self.options.order == RepositoryOrder::ByName && must_wait {
            return None;
        }
        Some(first.remove())
    }

    fn fill_slots(&mut self) -> Result<()> {
        let limit = self.options.query_limit.max(1);
        // The repository with the lowest name is always requested: the others wait for it.
        while self.running.len() < limit && (self.running.is_empty() || self.completed.len() < 4 * limit) {
            let slot = match &self.slots {
                Some(slots) if !self.running.is_empty() => match slots.clone().try_acquire_owned() {
                    Ok(slot) => Some(slot),
                    Err(_) => break,
                },
                _ => None,
            };
            let Some(name) = self.pending.valid.pop_first() else { break };
            let context = self.new_listing_context(name.0.as_str());
            let registry = self.pattern.registry();
            let repository = self.client.repository(registry, &name.0, Access::Pull, &context, &self.tally)?;
            let task = self.running.spawn(async move {
                let listing = list_repository(&repository).await;
                drop(slot);
                repository.context().listing_memory.iter().for_each(ListingShare::finish);
                listing
            });
            self.running_names.insert(task.id(), name);
        }
        Ok(())
    }

    /// Handles a completed listing and queues the repositories below it.
    fn handle_listing(
        &mut self,
        name: &HierarchicalName,
        result: Result<RepositoryListing>,
    ) -> Result<Option<DiscoveryItem>> {
        let mut listing = match result {
            Ok(listing) => listing,
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => {
                let repository = format!("{}/{}", self.pattern.registry(), name.0);
                return Ok(Some(DiscoveryItem::Failed(DiscoveryFailure { repository, error })));
            }
        };
        let before = self.pending.valid.len();
        for child in listing.children.iter().filter(|_| self.is_tree) {
            let child = format!("{}/{child}", name.0);
            if self.pattern.matches(&child) || self.pattern.can_match_below(&child) {
                self.pending.add(&self.pattern, &child);
            }
        }
        self.discovered += self.pending.valid.len() - before;
        if self.discovered > MAX_REPOSITORIES {
            let detail = format!("more than {MAX_REPOSITORIES} repositories: the tree seems endless");
            return Err(Error::new(ErrorKind::InvalidResponse, format!("listing {}", self.pattern), detail));
        }
        // A tree node that only leads to others is not a repository.
        let leads_only = listing.tags.is_empty() && listing.manifests == 0 && !listing.children.is_empty();
        if leads_only || !self.pattern.matches(name.0.as_str()) {
            return Ok(None);
        }
        listing.children.shrink_to_fit();
        Ok(Some(DiscoveryItem::Listed(listing)))
    }

    /// Creates a context with its own retry budget and memory share, so that one repository cannot exhaust those of the
    /// others.
    fn new_listing_context(&self, repository: &str) -> Context {
        let listing_memory = Some(self.memory.new_share(repository));
        Context { budget: RetryBudget::default(), listing_memory, ..self.context.clone() }
    }

    fn cancelled_error(&self) -> Error {
        Error::cancelled(format!("listing {}", self.pattern))
    }

    fn not_found_error(&self) -> Error {
        let registry = self.pattern.registry();
        Error::new(ErrorKind::NotFound, format!("listing {}", self.pattern), "no repository matches").with_hint(format!(
            "check the pattern, and that this user can list repositories of {registry}; `*` matches one level, `**` \
             all levels below"
        ))
    }
}
