//! Discovery of the repositories that a pattern matches, and their tags: streamed, concurrent, in bounded memory.
//!
//! [`enumerate`] starts a discovery; [`Enumeration::next`] returns one repository after another. A slow caller slows
//! down the listing: there are never more open requests or stored listings than [`Options`] allows. A repository that
//! fails is returned as [`Found::Unlisted`], and the others continue.
//!
//! Repositories come from the pattern itself, from a Google-style tree (recognized by the response, not by the host's
//! name), from the catalog (`roots`), or from the API of the registry's vendor (`vendor`), which lists tags with
//! digests and dates too: Quay, Docker Hub, Harbor, GitHub.

mod listing;
mod order;
mod roots;
mod vendor;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::registry::{Access, Client, Context, ListingGroup, ListingShare, Tally};
use imgsync_common::retry::Budget;
use imgsync_common::select::RepositoryPattern;
use tokio::task::{Id, JoinSet};

pub use listing::{ListedTag, Listing, find, list};
pub use order::compare_repositories;

use order::InOrder;
use roots::{Names, Roots};

/// Upper limit for repositories: a larger tree is considered endless.
const MAX_REPOSITORIES: usize = 1_000_000;

/// Options of a discovery.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Number of repositories listed concurrently; 20 by default.
    pub query_limit: usize,
    /// Order in which repositories are returned.
    pub order: Order,
}

/// Order in which repositories are returned. Requests are always sent in the order of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As listings complete: a slow one does not delay the others.
    #[default]
    AsTheyEnd,
    /// By name ([`compare_repositories`]): early listings are held back, at most four times as many as are listed
    /// concurrently.
    ByName,
}

impl Default for Options {
    fn default() -> Options {
        Options { query_limit: 20, order: Order::default() }
    }
}

/// A discovered repository, or a failure.
#[derive(Debug)]
pub enum Found {
    /// Completely listed.
    Listed(Listing),
    /// Listing failed.
    Unlisted(Unlisted),
}

/// A repository whose listing failed.
#[derive(Debug)]
pub struct Unlisted {
    /// `registry/repository`, with the name given by the registry.
    pub repository: String,
    /// The cause.
    pub error: Error,
}

/// Creates a discovery of the repositories that a pattern matches. The first request is sent by [`Enumeration::next`];
/// dropping the discovery cancels all requests.
pub fn enumerate(
    client: &Client,
    pattern: &RepositoryPattern,
    options: Options,
    context: &Context,
    tally: &Arc<Tally>,
) -> Enumeration {
    Enumeration {
        client: client.clone(),
        pattern: pattern.clone(),
        options,
        context: context.clone(),
        tally: tally.clone(),
        stage: Stage::New,
        memory: ListingGroup::new(options.order == Order::ByName),
        waiting: Names::default(),
        seen: 0,
        running: JoinSet::new(),
        names: HashMap::new(),
        ended: BTreeMap::new(),
        is_tree: false,
        given: 0,
    }
}

/// A running discovery.
#[derive(Debug)]
pub struct Enumeration {
    client: Client,
    pattern: RepositoryPattern,
    options: Options,
    context: Context,
    tally: Arc<Tally>,
    stage: Stage,
    memory: ListingGroup,
    waiting: Names,
    /// Number of repositories queued so far.
    seen: usize,
    running: JoinSet<Result<Listing>>,
    /// Repositories of the running tasks.
    names: HashMap<Id, InOrder>,
    /// Completed listings that wait for one with a lower name.
    ended: BTreeMap<InOrder, Found>,
    is_tree: bool,
    given: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Going,
    Over,
}

impl Enumeration {
    /// Returns the next repository; `None` after the last. An error ends the discovery: the list of repositories cannot
    /// be read, no repository matches the pattern, or the discovery was cancelled.
    pub async fn next(&mut self) -> Result<Option<Found>> {
        let result = match self.stage {
            Stage::Over => return Ok(None),
            Stage::New => match self.begin().await {
                Ok(()) => {
                    self.stage = Stage::Going;
                    self.go_on().await
                }
                Err(error) => Err(error),
            },
            Stage::Going => self.go_on().await,
        };
        match &result {
            Ok(Some(_)) => self.given += 1,
            Ok(None) | Err(_) => self.stage = Stage::Over,
        }
        result
    }

    async fn begin(&mut self) -> Result<()> {
        let context = self.fresh_context(self.pattern.prefix());
        let roots = roots::find(&self.client, &self.pattern, &context, &self.tally).await?;
        context.listing.iter().for_each(ListingShare::end);
        match roots {
            Roots::One(listing) => {
                self.ended.insert(InOrder(listing.repository.clone()), Found::Listed(*listing));
            }
            Roots::Tree(names) => {
                self.is_tree = true;
                self.waiting = names;
            }
            Roots::Flat(names) => self.waiting = names,
        }
        self.seen = self.waiting.good.len();
        Ok(())
    }

    async fn go_on(&mut self) -> Result<Option<Found>> {
        loop {
            if let Some(odd) = self.waiting.odd.pop() {
                return Ok(Some(Found::Unlisted(odd)));
            }
            if let Some(found) = self.take_ended() {
                return Ok(Some(found));
            }
            self.start_more()?;
            let ended = tokio::select! {
                biased;
                () = self.context.cancel.cancelled() => return Err(self.cancelled()),
                ended = self.running.join_next_with_id() => ended,
            };
            let (id, result) = match ended {
                None if self.given == 0 => return Err(self.nothing()),
                None => return Ok(None),
                Some(Ok((id, result))) => (id, result),
                Some(Err(error)) => {
                    let tried = format!("listing {}", self.pattern);
                    (error.id(), Err(Error::new(Class::Local, tried, error.to_string()).because(error)))
                }
            };
            if let Some(name) = self.names.remove(&id)
                && let Some(found) = self.end(&name, result)?
            {
                self.ended.insert(name, found);
            }
        }
    }

    /// Returns a completed listing whose turn it is.
    fn take_ended(&mut self) -> Option<Found> {
        let first = self.ended.first_entry()?;
        let before = |name: Option<&InOrder>| name.is_some_and(|name| name < first.key());
        let must_wait = before(self.waiting.good.first()) || before(self.names.values().min());
        if self.options.order == Order::ByName && must_wait {
            return None;
        }
        Some(first.remove())
    }

    fn start_more(&mut self) -> Result<()> {
        let limit = self.options.query_limit.max(1);
        // The repository with the lowest name is always requested: the others wait for it.
        while self.running.len() < limit && (self.running.is_empty() || self.ended.len() < 4 * limit) {
            let Some(name) = self.waiting.good.pop_first() else { break };
            let context = self.fresh_context(name.0.as_str());
            let registry = self.pattern.registry();
            let repository = self.client.repository(registry, &name.0, Access::Pull, &context, &self.tally)?;
            let task = self.running.spawn(async move {
                let listing = list(&repository).await;
                repository.context().listing.iter().for_each(ListingShare::end);
                listing
            });
            self.names.insert(task.id(), name);
        }
        Ok(())
    }

    /// Handles a completed listing and queues the repositories below it.
    fn end(&mut self, name: &InOrder, result: Result<Listing>) -> Result<Option<Found>> {
        let mut listing = match result {
            Ok(listing) => listing,
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => {
                let repository = format!("{}/{}", self.pattern.registry(), name.0);
                return Ok(Some(Found::Unlisted(Unlisted { repository, error })));
            }
        };
        let before = self.waiting.good.len();
        for child in listing.children.iter().filter(|_| self.is_tree) {
            let child = format!("{}/{child}", name.0);
            if self.pattern.matches(&child) || self.pattern.leads_through(&child) {
                self.waiting.add(&self.pattern, &child);
            }
        }
        self.seen += self.waiting.good.len() - before;
        if self.seen > MAX_REPOSITORIES {
            let detail = format!("there are more than {MAX_REPOSITORIES} repositories: the tree does not seem to end");
            return Err(Error::new(Class::BadAnswer, format!("listing {}", self.pattern), detail));
        }
        // A tree node that only leads to others is not a repository.
        let leads_only = listing.tags.is_empty() && listing.manifests == 0 && !listing.children.is_empty();
        if leads_only || !self.pattern.matches(name.0.as_str()) {
            return Ok(None);
        }
        listing.children.shrink_to_fit();
        Ok(Some(Found::Listed(listing)))
    }

    /// Creates a context with its own retry budget and memory share, so that one repository cannot exhaust those of the
    /// others.
    fn fresh_context(&self, repository: &str) -> Context {
        let listing = Some(self.memory.share(repository));
        Context { budget: Budget::default(), listing, ..self.context.clone() }
    }

    fn cancelled(&self) -> Error {
        Error::cancelled(format!("listing {}", self.pattern))
    }

    fn nothing(&self) -> Error {
        let registry = self.pattern.registry();
        Error::new(Class::NotFound, format!("listing {}", self.pattern), "there is no such repository").hint(format!(
            "check the pattern, and that {registry} shows its repositories to this user; `*` stands for one level, `**` for all below"
        ))
    }
}
