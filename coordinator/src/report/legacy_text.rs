//! Totals of the text report of imgsync 2.1, line by line.

use bytesize::ByteSize;
use imgsync_oci::humanize::pluralize;
use imgsync_oci::retry::format_duration;
use imgsync_store::PruneOutcome;

use super::Report;

const BANNER: &str = "========================================";

/// Returns the totals with the labels of imgsync 2.1.
pub(super) fn totals(report: &Report<'_>) -> String {
    let (counts, usage) = (&report.batch.counts, &report.batch.usage);
    let mut lines = vec![
        BANNER.to_owned(),
        format!("Batch: {} ({})", report.batch.id, report.outcome()),
        format!("Sync Repo: {}", if report.title.is_empty() { "-" } else { &report.title }),
        format!("Sync Total: {}", counts.total),
        format!("Sync Failed: {}", counts.failed),
        format!("Sync Success: {}", counts.copied + counts.unchanged),
        format!("Manifests CacheHit: {}", counts.unchanged),
        format!("Copied: {}, {}", pluralize(counts.copied, "image", "images"), ByteSize(usage.bytes.copied)),
    ];
    if let Some(notice) = report.batch_view().notice() {
        lines.insert(2, format!("Problem: {notice}"));
    }
    if usage.bytes.mounted + usage.bytes.reused > 0 {
        lines.push(format!(
            "Not transferred: {} mounted, {} already present",
            ByteSize(usage.bytes.mounted),
            ByteSize(usage.bytes.reused)
        ));
    }
    if counts.cancelled > 0 {
        lines.push(format!("Cancelled: {}", counts.cancelled));
    }
    if counts.unfinished() > 0 {
        lines.push(format!("Not done: {} waiting, {} running", counts.waiting, counts.running));
    }
    if !report.unlisted.is_empty() {
        lines.push(format!("Not listed: {}", report.unlisted.len()));
    }
    if !report.empty_rules.is_empty() {
        lines.push(format!("Rules without tags: {}", report.empty_rules.len()));
    }
    let removed = report.pruned.iter().filter(|line| line.outcome == PruneOutcome::Removed).count();
    if removed > 0 {
        lines.push(format!("Removed: {removed}"));
    }
    lines.push(format!("Requests: {} to sources, {} to targets", usage.requests.source, usage.requests.target));
    lines.push(format!("Time: {}", format_duration(std::time::Duration::from_secs_f64(report.seconds().max(0.0)))));
    lines.push(BANNER.to_owned());
    lines.push(String::new());
    lines.join("\n")
}
