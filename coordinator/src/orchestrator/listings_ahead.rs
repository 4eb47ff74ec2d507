//! Listings of all rules, in the order of the rules: the next ones send their first requests while one is consumed.

use std::collections::VecDeque;
use std::iter::Enumerate;
use std::path::Path;
use std::sync::Arc;

use imgsync_config::Rule;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_registry::{Client, Context, TrafficCounters};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::listings::Listings;
use crate::discovery::{DiscoveryOptions, RepositoryOrder};

/// Rules prepared and not yet consumed, as a multiple of the query limit. They hold their listings, within the memory
/// that all listings share.
const MAX_AHEAD: usize = 4;

/// Iterates over the listings of the rules. At most `query_limit` requests are open, and one more for the rule that is
/// consumed, which never waits for the rules behind it. Rules behind a preset of several parts start after it.
pub(super) struct ListingsAhead<'a> {
    rules: Enumerate<std::slice::Iter<'a, Rule>>,
    folder: &'a Path,
    client: &'a Client,
    context: &'a Context,
    counters: &'a Arc<TrafficCounters>,
    options: DiscoveryOptions,
    slots: Arc<Semaphore>,
    started: VecDeque<StartedRule<'a>>,
    /// Whether the last rule that was started, until it is consumed, shares no slots.
    waits_for_last: bool,
}

struct StartedRule<'a> {
    number: usize,
    rule: &'a Rule,
    listings: Result<AbortOnDropHandle<Listings>>,
}

impl<'a> ListingsAhead<'a> {
    /// Creates the listings of the rules; no request is sent yet. `folder` is the base directory of relative paths.
    pub(super) fn new(
        rules: &'a [Rule],
        folder: &'a Path,
        client: &'a Client,
        context: &'a Context,
        counters: &'a Arc<TrafficCounters>,
        query_limit: usize,
        order: RepositoryOrder,
    ) -> ListingsAhead<'a> {
        let query_limit = query_limit.max(1);
        ListingsAhead {
            rules: rules.iter().enumerate(),
            folder,
            client,
            context,
            counters,
            options: DiscoveryOptions { query_limit, order },
            slots: Arc::new(Semaphore::new(query_limit)),
            started: VecDeque::new(),
            waits_for_last: false,
        }
    }

    /// Returns the next rule with its number and its listings; `None` after the last. An error is that of the rule.
    pub(super) async fn next(&mut self) -> Option<(usize, &'a Rule, Result<Listings>)> {
        if self.started.is_empty() {
            // What was returned before is consumed.
            self.waits_for_last = false;
        }
        self.start_more();
        let StartedRule { number, rule, listings } = self.started.pop_front()?;
        let mut preparing = match listings {
            Ok(preparing) => preparing,
            Err(error) => return Some((number, rule, Err(error))),
        };
        let prepared = loop {
            tokio::select! {
                prepared = &mut preparing => break prepared,
                Ok(slot) = self.slots.clone().acquire_owned(), if self.may_start() => self.start(Some(slot)),
            }
        };
        let listings = prepared.map_err(|error| {
            Error::new(ErrorKind::Local, format!("listing {}", rule.source), error.to_string()).with_source(error)
        });
        Some((number, rule, listings))
    }

    /// Starts rules while slots are free. Rules start in order, so that each has its slot before those behind it.
    pub(super) fn start_more(&mut self) {
        while self.may_start() {
            match self.slots.clone().try_acquire_owned() {
                Ok(slot) => self.start(Some(slot)),
                Err(_) if self.started.is_empty() => self.start(None),
                Err(_) => return,
            }
        }
    }

    fn may_start(&self) -> bool {
        !self.waits_for_last && self.rules.len() > 0 && self.started.len() < MAX_AHEAD * self.options.query_limit
    }

    fn start(&mut self, slot: Option<OwnedSemaphorePermit>) {
        let Some((number, rule)) = self.rules.next() else { return };
        let listings = Listings::new(&rule.source, self.folder, self.client, self.options, self.context, self.counters);
        let listings = listings.map(|mut listings| {
            self.waits_for_last = !listings.share_slots(&self.slots);
            AbortOnDropHandle::new(tokio::spawn(async move {
                listings.prepare().await;
                drop(slot);
                listings
            }))
        });
        self.started.push_back(StartedRule { number, rule, listings });
    }
}
