//! Search for an image or tag in the newest batches of every rule.

use std::time::Duration;

use imgsync_model::batch::{BatchId, BatchOptions, TaskState};
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_oci::{Reference, strip_transport};
use imgsync_store::{Batch, CacheScope, Store, TaskRow};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::app::AppState;
use super::overview::RuleName;
use crate::batch_view::or_removed;
use crate::report::advice;

/// Batches of each rule that are searched, the newest ones.
const MAX_RUNS: usize = 3;
/// Limit of tasks that a search reads.
const MAX_TASKS: u64 = 250_000;
/// Time limit of a search, below that of a request.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Why a search stops at its limit of results.
const TOO_MANY_RESULTS: &str = "there are more results: write more of the name";
/// Rows read per query.
const ROWS_PER_PAGE: usize = 1_000;
pub(super) const MIN_TEXT_CHARS: usize = 2;
pub(super) const MAX_TEXT_CHARS: usize = 300;

/// Results of the images whose source or target contains a text.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SearchResponse {
    query: String,
    results: Vec<SearchResult>,
    /// Rules that read this repository, if the text names one.
    read_by: Vec<RuleName>,
    searched: Searched,
}

/// What was searched.
#[derive(Debug, Clone, Serialize)]
struct Searched {
    /// Number of newest batches of each rule.
    runs_per_rule: usize,
    batches: usize,
    tasks: u64,
    /// Whether all of these batches were searched to their ends.
    complete: bool,
    /// Why it is not complete.
    stopped: Option<&'static str>,
}

/// An image, repository or pruned tag that contains the text.
#[derive(Debug, Clone, Serialize)]
struct SearchResult {
    batch: BatchId,
    started: Timestamp,
    rule: Option<String>,
    rule_name: String,
    /// Index of the task; none for what is no task.
    index: Option<u32>,
    source: String,
    target: String,
    /// State of the task, or `not_listed`, or what prune did.
    state: &'static str,
    attempts: u32,
    kind: Option<ErrorKind>,
    error: Option<String>,
    advice: Option<&'static str>,
    /// Digest at the source, and when it was last seen at the target, from the digest cache.
    digest: Option<String>,
    seen_at: Option<Timestamp>,
}

struct Search<'a> {
    app: &'a AppState,
    needle: String,
    limit: usize,
    deadline: Instant,
    results: Vec<SearchResult>,
    searched: Searched,
}

/// Searches the newest batches of every rule, the newest first.
pub(super) async fn search(app: &AppState, text: &str, limit: usize) -> Result<SearchResponse> {
    let text = text.trim();
    let mut search = Search {
        app,
        needle: normalize(text),
        limit,
        deadline: Instant::now() + TIME_LIMIT,
        results: Vec::new(),
        searched: Searched { runs_per_rule: MAX_RUNS, batches: 0, tasks: 0, complete: true, stopped: None },
    };
    let identities = app.active_config.borrow().batch_identities();
    let mut batches = app.store().newest_batches(&identities, None, MAX_RUNS).await?;
    batches.sort_unstable_by_key(|batch| std::cmp::Reverse(batch.id));
    for batch in batches {
        if let Some(reason) = search.batch(&batch).await? {
            search.searched.complete = false;
            search.searched.stopped = Some(reason);
            break;
        }
        search.searched.batches += 1;
    }
    Ok(SearchResponse {
        query: text.to_owned(),
        results: search.results,
        read_by: read_by(app, text),
        searched: search.searched,
    })
}

impl Search<'_> {
    /// Searches a batch. Returns why the search stops.
    async fn batch(&mut self, batch: &Batch) -> Result<Option<&'static str>> {
        let store = self.app.store();
        let options = BatchOptions::decode(&batch.options, "a batch").unwrap_or_default();
        let rule = self.app.active_config.borrow().rule_of_batch(&batch.rules).map(|rule| rule.id.clone());
        let empty = SearchResult {
            batch: batch.id,
            started: batch.created_at,
            rule,
            rule_name: options.title.clone(),
            index: None,
            source: String::new(),
            target: String::new(),
            state: "not_listed",
            attempts: 0,
            kind: None,
            error: None,
            advice: None,
            digest: None,
            seen_at: None,
        };
        for failure in or_removed(store.listing_failures(batch.id).await)? {
            if !self.matches(&failure.repository) && !self.names_tag_of(&failure.repository) {
                continue;
            }
            if self.results.len() >= self.limit {
                return Ok(Some(TOO_MANY_RESULTS));
            }
            self.results.push(SearchResult {
                source: failure.repository,
                kind: Some(failure.kind),
                error: Some(failure.error),
                advice: Some(advice::for_kind(failure.kind)),
                ..empty.clone()
            });
        }
        for record in or_removed(store.prune_records(batch.id).await)? {
            let is_meant = self.matches(&record.source) || self.matches(&record.target);
            if is_meant {
                if self.results.len() >= self.limit {
                    return Ok(Some(TOO_MANY_RESULTS));
                }
                self.results.push(SearchResult {
                    source: record.source,
                    target: record.target,
                    state: record.outcome.as_str(),
                    error: Some(record.reason).filter(|reason| !reason.is_empty()),
                    ..empty.clone()
                });
            }
        }
        let mut from = 0;
        loop {
            if self.searched.tasks >= MAX_TASKS {
                return Ok(Some("too many images: write more of the name"));
            }
            if Instant::now() >= self.deadline {
                return Ok(Some("the time limit was reached: write more of the name"));
            }
            let rows = or_removed(store.tasks(batch.id, None, from, ROWS_PER_PAGE).await)?;
            let Some(last) = rows.last() else { return Ok(None) };
            from = last.task.index.saturating_add(1);
            let is_last = rows.len() < ROWS_PER_PAGE;
            for row in rows {
                self.searched.tasks += 1;
                let (source, target) = (row.task.spec.source.to_string(), row.task.spec.target.to_string());
                if !self.matches(&source) && !self.matches(&target) {
                    continue;
                }
                if self.results.len() >= self.limit {
                    return Ok(Some(TOO_MANY_RESULTS));
                }
                let rule_name = options.rules.get(row.task.spec.rule as usize).map(|rule| rule.name.clone());
                let found = SearchResult {
                    index: Some(row.task.index),
                    source,
                    target,
                    state: row.state.as_str(),
                    attempts: row.attempts,
                    rule_name: rule_name.filter(|name| !name.is_empty()).unwrap_or_else(|| empty.rule_name.clone()),
                    ..empty.clone()
                };
                let found = add_details(found, store, batch, &options, &row).await?;
                self.results.push(found);
            }
            if is_last {
                return Ok(None);
            }
        }
    }

    /// Whether the text names a tag or digest of a repository, which may have it if it could not be listed.
    fn names_tag_of(&self, repository: &str) -> bool {
        self.needle.strip_prefix(&normalize(repository)).is_some_and(|rest| rest.starts_with([':', '@']))
    }

    fn matches(&self, text: &str) -> bool {
        match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => text.to_ascii_lowercase().contains(&self.needle),
            false => text.contains(&self.needle),
        }
    }
}

/// Adds the error of a failed task, and what the digest cache knows of the target tag.
async fn add_details(
    mut found: SearchResult,
    store: &dyn Store,
    batch: &Batch,
    options: &BatchOptions,
    row: &TaskRow,
) -> Result<SearchResult> {
    let planned = &row.task.spec;
    if row.state == TaskState::Failed {
        let failures = or_removed(store.failures(batch.id, row.task.index, 1).await)?;
        if let Some(failed) = failures.into_iter().find(|failed| failed.task.index == row.task.index) {
            found.kind = Some(failed.failure.kind);
            found.advice = Some(advice::for_kind(failed.failure.kind));
            found.attempts = failed.failure.attempts;
            found.error = Some(failed.failure.error);
        }
    }
    let Ok(rule) = options.rule(planned.rule) else { return Ok(found) };
    let scope = CacheScope { repository: (*planned.target.repository).clone(), options: rule.fingerprint().into() };
    let known = store.cached_tags(&scope, std::slice::from_ref(&planned.target.tag)).await?;
    if let Some(known) = known.into_iter().next().flatten() {
        found.digest = Some(known.source.to_string());
        found.seen_at = Some(known.seen_at);
    }
    Ok(found)
}

/// Removes what a pasted name may begin with, and ignores case.
fn normalize(text: &str) -> String {
    let text = text.trim().to_ascii_lowercase();
    let text = strip_transport(&text);
    let bare = ["https://", "http://"].iter().find_map(|prefix| text.strip_prefix(prefix));
    bare.unwrap_or(text).to_owned()
}

/// Returns the rules that read the repository that a text names.
fn read_by(app: &AppState, text: &str) -> Vec<RuleName> {
    let Ok(reference) = normalize(text).parse::<Reference>() else { return Vec::new() };
    let current = app.active_config.borrow().clone();
    let rules = current.rules.iter().filter(|rule| rule.reads_repository(&reference));
    rules.map(|rule| RuleName { rule: rule.id.clone(), name: rule.name.clone() }).collect()
}
