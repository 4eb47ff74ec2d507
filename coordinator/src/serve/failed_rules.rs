//! Rules that failed in a batch of all rules together.

use std::collections::BTreeSet;

use imgsync_oci::Reference;
use imgsync_oci::error::Result;
use imgsync_store::{Batch, RecordCounts, Store};

use super::active_config::ActiveRule;
use crate::batch_view::{has_prune_problems, or_removed};

/// Failures read per query, and their limit.
const ROWS_PER_PAGE: usize = 1_000;
const MAX_FAILURES: u64 = 20_000;

/// Returns the positions of the rules with failed images, or with sources that could not be listed. `None` if that is not
/// known: more images failed than are read, or a failure names no source of a rule.
pub(super) async fn read_failed_rules(
    store: &dyn Store,
    batch: &Batch,
    records: RecordCounts,
    rules: &[ActiveRule],
) -> Result<Option<BTreeSet<usize>>> {
    if batch.counts.failed > MAX_FAILURES || batch.counts.cancelled > 0 {
        return Ok(None);
    }
    if records.pruned > 0 && has_prune_problems(store, batch.id).await? {
        return Ok(None);
    }
    let mut failed = BTreeSet::new();
    if records.unlisted > 0 {
        for failure in or_removed(store.listing_failures(batch.id).await)? {
            let Ok(reference) = failure.repository.parse::<Reference>() else { return Ok(None) };
            let mut readers = rules.iter().enumerate().filter(|(_, rule)| rule.reads_repository(&reference)).peekable();
            if readers.peek().is_none() {
                return Ok(None);
            }
            failed.extend(readers.map(|(number, _)| number));
        }
    }
    if batch.counts.failed == 0 {
        return Ok(Some(failed));
    }
    let mut from = 0;
    loop {
        let page = or_removed(store.failures(batch.id, from, ROWS_PER_PAGE).await)?;
        failed.extend(page.iter().map(|one| one.task.spec.rule as usize));
        let Some(last) = page.last().filter(|_| page.len() == ROWS_PER_PAGE) else { return Ok(Some(failed)) };
        from = last.task.index.saturating_add(1);
    }
}
