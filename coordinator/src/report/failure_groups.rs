//! The failures of a batch, grouped by error kind and by registry.

use std::collections::BTreeMap;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_store::{FailedTask, ListingFailure, Store};
use serde::Serialize;

use super::advice;

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
    pub(crate) failed: u64,
    pub(crate) example: FailureRow,
}

/// Failures with a registry as source or target.
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
        let mut by_kind: BTreeMap<ErrorKind, (u64, FailureRow)> = BTreeMap::new();
        let mut by_registry: BTreeMap<String, u64> = BTreeMap::new();
        let mut from = 0;
        let mut failed = 0;
        loop {
            let page = store.failures(batch, from, ROWS_PER_PAGE).await?;
            let Some(last) = page.last() else { break };
            from = last.task.index.saturating_add(1);
            for one in &page {
                failed += 1;
                by_kind.entry(one.failure.kind).or_insert_with(|| (0, FailureRow::new(one))).0 += 1;
                let planned = &one.task.spec;
                let mut registries: Vec<String> =
                    [planned.source.repository.endpoint(), planned.target.repository.endpoint()]
                        .into_iter()
                        .filter_map(|end| end.registry().map(ToString::to_string))
                        .collect();
                registries.dedup();
                for registry in registries {
                    *by_registry.entry(registry).or_default() += 1;
                }
            }
            if page.len() < ROWS_PER_PAGE {
                break;
            }
        }
        let kind = |(kind, (failed, example)): (ErrorKind, (u64, FailureRow))| ErrorKindGroup {
            kind,
            title: advice::title(kind),
            advice: advice::for_kind(kind),
            failed,
            example,
        };
        let mut by_kind: Vec<ErrorKindGroup> = by_kind.into_iter().map(kind).collect();
        by_kind.sort_by_key(|group| std::cmp::Reverse(group.failed));
        let mut by_registry: Vec<RegistryGroup> =
            by_registry.into_iter().map(|(registry, failed)| RegistryGroup { registry, failed }).collect();
        by_registry.sort_by_key(|group| std::cmp::Reverse(group.failed));
        Ok(FailureGroups { failed, by_kind, by_registry, unlisted })
    }
}
