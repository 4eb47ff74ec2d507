//! Filters on the rows of a batch. A request reads a bounded number of rows, and says where the next one continues.

use imgsync_model::batch::{BatchId, TaskSpec, TaskState};
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_store::{FailedTask, Store, TaskRow};

use super::error_response::ErrorResponse;
use super::extract::{QueryParams, parse_error_kind};
use crate::report::failure_groups::answering_registries;

/// Rows read per query.
const ROWS_PER_PAGE: usize = 1_000;
/// Limit of rows that a request reads while it looks for matching ones.
const MAX_SCANNED_ROWS: usize = 20_000;

/// Selects rows: those that match every filter.
#[derive(Debug, Default)]
pub(super) struct RowFilter {
    text: String,
    registry: String,
    kind: Option<ErrorKind>,
}

/// A page of matching rows, and the index at which the next page starts.
pub(super) type FilteredPage<T> = (Vec<T>, Option<u32>);

impl RowFilter {
    pub(super) fn parse(query: &QueryParams) -> Result<RowFilter, ErrorResponse> {
        let word = |name: &str| query.get(name).unwrap_or_default().trim().to_lowercase();
        let kind = query.get("kind").map(parse_error_kind).transpose()?;
        Ok(RowFilter { text: word("text"), registry: word("registry"), kind })
    }

    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.registry.is_empty() && self.kind.is_none()
    }

    fn has_text(&self, planned: &TaskSpec) -> bool {
        let contains = |name: String| name.to_lowercase().contains(&self.text);
        self.text.is_empty() || contains(planned.source.to_string()) || contains(planned.target.to_string())
    }

    fn selects_task(&self, row: &TaskRow) -> bool {
        let planned = &row.task.spec;
        let endpoints = [planned.source.repository.endpoint(), planned.target.repository.endpoint()];
        let at_registry = |name: &str| name.eq_ignore_ascii_case(&self.registry);
        let uses_registry =
            endpoints.into_iter().filter_map(|endpoint| endpoint.registry()).any(|name| at_registry(name.as_str()));
        (self.registry.is_empty() || uses_registry) && self.has_text(planned)
    }

    /// The registry of a failure is the one that answered with the error.
    fn selects_failure(&self, failed: &FailedTask) -> bool {
        let at_registry = || answering_registries(failed).iter().any(|name| name.eq_ignore_ascii_case(&self.registry));
        self.kind.is_none_or(|kind| failed.failure.kind == kind)
            && (self.registry.is_empty() || at_registry())
            && self.has_text(&failed.task.spec)
    }

    /// Returns the tasks of a batch in a state that match, from an index on.
    pub(super) async fn tasks(
        &self,
        store: &dyn Store,
        batch: BatchId,
        state: Option<TaskState>,
        from: u32,
        limit: usize,
    ) -> Result<FilteredPage<TaskRow>> {
        let mut scan = Scan::new(from, limit, self.is_empty());
        loop {
            let rows = store.tasks(batch, state, scan.from, scan.page).await?;
            if let Some(next) = scan.add(rows, |row| row.task.index, |row| self.selects_task(row)) {
                return Ok((scan.found, next));
            }
        }
    }

    /// Returns the failures of a batch that match, from an index on.
    pub(super) async fn failures(
        &self,
        store: &dyn Store,
        batch: BatchId,
        from: u32,
        limit: usize,
    ) -> Result<FilteredPage<FailedTask>> {
        let mut scan = Scan::new(from, limit, self.is_empty());
        loop {
            let rows = store.failures(batch, scan.from, scan.page).await?;
            if let Some(next) = scan.add(rows, |failed| failed.task.index, |failed| self.selects_failure(failed)) {
                return Ok((scan.found, next));
            }
        }
    }
}

/// Rows selected so far, page by page: until enough are found, all are read, or too many are.
struct Scan<T> {
    found: Vec<T>,
    scanned: usize,
    /// First index of the next page.
    from: u32,
    /// Rows of a page.
    page: usize,
    limit: usize,
}

impl<T> Scan<T> {
    fn new(from: u32, limit: usize, selects_all: bool) -> Scan<T> {
        let page = if selects_all { limit } else { ROWS_PER_PAGE };
        Scan { found: Vec::new(), scanned: 0, from, page, limit }
    }

    /// Adds the rows of a page. At the end, returns where to continue later, if anything is left.
    fn add(&mut self, rows: Vec<T>, index: impl Fn(&T) -> u32, selects: impl Fn(&T) -> bool) -> Option<Option<u32>> {
        let is_last = rows.len() < self.page;
        for row in rows {
            self.from = index(&row).saturating_add(1);
            self.scanned += 1;
            if selects(&row) {
                self.found.push(row);
            }
            if self.found.len() == self.limit {
                return Some(Some(self.from));
            }
        }
        (is_last || self.scanned >= MAX_SCANNED_ROWS).then(|| (!is_last).then_some(self.from))
    }
}
