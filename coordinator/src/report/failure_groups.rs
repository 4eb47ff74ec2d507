//! The failures of a batch, grouped by error kind and by registry.

use std::collections::BTreeMap;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_store::{FailedTask, ListingFailure, Store};
use serde::Serialize;

use super::advice::{self, NextStep};

/// Failures read per query.
const ROWS_PER_PAGE: usize = 1_000;

/// A failed task and its error.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FailureRow {
    pub(crate) index: u32,
    source: String,
    target: String,
    kind: ErrorKind,
    error: String,
    attempts: u32,
}

impl FailureRow {
    pub(crate) fn new(failed: &FailedTask) -> FailureRow {
        FailureRow {
            index: failed.task.index,
            source: failed.task.spec.source.to_string(),
            target: failed.task.spec.target.to_string(),
            kind: failed.failure.kind,
            error: failed.failure.error.clone(),
            attempts: failed.failure.attempts,
        }
    }

    /// Formats the failure on two lines: the endpoints, then the kind and the error.
    pub(crate) fn to_text(&self) -> String {
        let times = match self.attempts {
            0 | 1 => String::new(),
            n => format!(", {n} attempts"),
        };
        format!("{} -> {}\n    {}{times}: {}", self.source, self.target, self.kind, self.error)
    }
}

/// Failures of one error kind.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ErrorKindGroup {
    pub(crate) kind: ErrorKind,
    pub(crate) title: &'static str,
    pub(crate) advice: &'static str,
    pub(crate) next_step: NextStep,
    pub(crate) failed: u64,
    /// The registries that answered with the errors, the most frequent first.
    pub(crate) registries: Vec<RegistryGroup>,
    pub(crate) example: FailureRow,
}

/// Failures by the registry that answered with the error.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RegistryGroup {
    pub(crate) registry: String,
    pub(crate) failed: u64,
}

/// Failures of a batch by error kind and by registry, the largest groups first, and what could not be listed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FailureGroups {
    pub(crate) failed: u64,
    pub(crate) by_kind: Vec<ErrorKindGroup>,
    pub(crate) by_registry: Vec<RegistryGroup>,
    pub(crate) unlisted: Vec<ListingFailure>,
}

impl FailureGroups {
    /// Reads and groups the failures of a batch. `unlisted` is returned as it is.
    pub(crate) async fn read(
        store: &dyn Store,
        batch: BatchId,
        unlisted: Vec<ListingFailure>,
    ) -> Result<FailureGroups> {
        let mut by_kind: BTreeMap<ErrorKind, (u64, FailureRow, BTreeMap<String, u64>)> = BTreeMap::new();
        let mut by_registry: BTreeMap<String, u64> = BTreeMap::new();
        let mut from = 0;
        let mut failed = 0;
        loop {
            let page = store.failures(batch, from, ROWS_PER_PAGE).await?;
            let Some(last) = page.last() else { break };
            from = last.task.index.saturating_add(1);
            for one in &page {
                failed += 1;
                let group =
                    by_kind.entry(one.failure.kind).or_insert_with(|| (0, FailureRow::new(one), BTreeMap::new()));
                group.0 += 1;
                for registry in answering_registries(one) {
                    *group.2.entry(registry.clone()).or_default() += 1;
                    *by_registry.entry(registry).or_default() += 1;
                }
            }
            if page.len() < ROWS_PER_PAGE {
                break;
            }
        }
        let kind = |(kind, (failed, example, registries))| ErrorKindGroup {
            kind,
            title: advice::title(kind),
            advice: advice::for_kind(kind),
            next_step: advice::next_step(kind),
            failed,
            registries: largest_first(registries),
            example,
        };
        let mut by_kind: Vec<ErrorKindGroup> = by_kind.into_iter().map(kind).collect();
        by_kind.sort_by_key(|group| std::cmp::Reverse(group.failed));
        Ok(FailureGroups { failed, by_kind, by_registry: largest_first(by_registry), unlisted })
    }
}

fn largest_first(registries: BTreeMap<String, u64>) -> Vec<RegistryGroup> {
    let mut groups: Vec<RegistryGroup> =
        registries.into_iter().map(|(registry, failed)| RegistryGroup { registry, failed }).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.failed));
    groups
}

/// Returns the registry that answered with the error of a failed task. If the error does not say: that of its two
/// registries which the message names first, because messages begin with the operation and its place. Both if it names
/// none.
pub(crate) fn answering_registries(failed: &FailedTask) -> Vec<String> {
    if let Some(registry) = &failed.failure.registry {
        return vec![registry.to_string()];
    }
    let planned = &failed.task.spec;
    let mut registries: Vec<String> = [planned.source.repository.endpoint(), planned.target.repository.endpoint()]
        .into_iter()
        .filter_map(|end| end.registry().map(ToString::to_string))
        .collect();
    registries.dedup();
    let place = |registry: &String| find_name(&failed.failure.error, registry);
    match registries.iter().filter(|registry| place(registry).is_some()).min_by_key(|registry| place(registry)) {
        Some(first) => vec![first.clone()],
        None => registries,
    }
}

/// Returns where a text names a registry: not as a part of another host name.
fn find_name(text: &str, registry: &str) -> Option<usize> {
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':');
    text.match_indices(registry).map(|(at, _)| at).find(|at| {
        let (before, after) = (&text[..*at], &text[*at + registry.len()..]);
        let ends = match after.chars().next() {
            // A colon before a space ends the operation.
            Some(':' | '.') => !after[1..].starts_with(|c: char| c.is_ascii_alphanumeric()),
            Some(c) => !is_host(c),
            None => true,
        };
        ends && !before.ends_with(|c: char| is_host(c) && c != ':')
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imgsync_model::batch::{Failure, RepositoryLocator, TagLocator, Task, TaskSpec};
    use imgsync_oci::DigestTagHints;

    use super::*;

    #[test]
    fn a_registry_is_named_as_a_whole_host() {
        assert_eq!(find_name("reading manifest gcr.io/a/b:1: denied (403)", "gcr.io"), Some(17));
        assert_eq!(find_name("reading manifest eu.gcr.io/a/b:1: denied", "gcr.io"), None);
        assert_eq!(find_name("reading r:50001/a from r:5000: no", "r:5000"), Some(23));
        assert_eq!(find_name("https://gcr.io: refused", "gcr.io"), Some(8));
        assert_eq!(find_name("gcr.io.example says no", "gcr.io"), None);
        assert_eq!(find_name("asked gcr.io. It failed", "gcr.io"), Some(6));
    }
    fn failed(error: &str) -> FailedTask {
        let tag = |registry: &str, path: &str| TagLocator {
            repository: Arc::new(RepositoryLocator::new(registry.parse().unwrap(), path).unwrap()),
            tag: "1".parse().unwrap(),
        };
        let (source, target) = (tag("gcr.io", "a"), tag("r.example", "m/a"));
        let spec = TaskSpec { rule: 0, source, digest: None, target, digest_tags: DigestTagHints::default() };
        FailedTask { task: Task { index: 0, spec }, failure: Failure::new(ErrorKind::Denied, error, 1) }
    }

    #[test]
    fn the_registry_of_the_error_counts_before_those_that_its_message_names() {
        let mut one = failed("writing r.example/m/a:1: gcr.io/a:1 was denied");
        assert_eq!(answering_registries(&one), ["r.example"], "the message names it first");
        one.failure.registry = Some("gcr.io".parse().unwrap());
        assert_eq!(answering_registries(&one), ["gcr.io"], "the error says which one answered");
        assert_eq!(answering_registries(&failed("no")), ["gcr.io", "r.example"]);
    }
}
