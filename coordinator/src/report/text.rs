//! Report as text: totals, and by level the failures and every image.

use std::io::Write;
use std::time::Duration;

use bytesize::ByteSize;
use imgsync_model::batch::TaskState;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::retry::format_duration;
use imgsync_store::{FailedTask, PruneOutcome};

use super::collect::summarize;
use super::{Report, ReportLevel, legacy_text};

/// Words of a text report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextStyle {
    /// Those of all other output.
    Current,
    /// Those of imgsync 2.1.
    Legacy,
}

/// Writes the report as text.
pub async fn write_text(
    report: &Report<'_>,
    level: ReportLevel,
    style: TextStyle,
    out: &mut (dyn Write + Send),
) -> Result<()> {
    let failed = |error: std::io::Error| Error::new(ErrorKind::Local, "writing the report", error.to_string());
    let totals = match style {
        TextStyle::Current => totals(report),
        TextStyle::Legacy => legacy_text::totals(report),
    };
    out.write_all(totals.as_bytes()).map_err(failed)?;
    if !report.empty_rules.is_empty() {
        let mut text = "Rules that selected no tag:\n".to_owned();
        for rule in &report.empty_rules {
            let name = report.rule_name(rule);
            let from = if name == rule.from { String::new() } else { format!(" ({})", rule.from) };
            text.push_str(&format!("  {name}{from}\n    {}\n", rule.reason));
        }
        out.write_all(text.as_bytes()).map_err(failed)?;
    }
    if !report.pruned.is_empty() {
        out.write_all(pruned(report).as_bytes()).map_err(failed)?;
    }
    if level >= ReportLevel::Failures {
        let mut from = 0;
        let mut first = true;
        loop {
            let page = report.failures(from).await?;
            let Some(last) = page.last() else { break };
            from = last.task.index + 1;
            let mut text = String::new();
            if std::mem::take(&mut first) {
                text.push_str(match report.is_verification() {
                    true => "Different or failed images:\n",
                    false => "Failed images:\n",
                });
            }
            page.iter().for_each(|row| text.push_str(&failure(row, style)));
            out.write_all(text.as_bytes()).map_err(failed)?;
        }
        if !report.unlisted.is_empty() {
            let mut text = "Not listed:\n".to_owned();
            for unlisted in &report.unlisted {
                text.push_str(&format!("  {}\n    {}: {}\n", unlisted.repository, unlisted.kind, unlisted.error));
            }
            out.write_all(text.as_bytes()).map_err(failed)?;
        }
    }
    if level >= ReportLevel::Everything {
        out.write_all(b"All images:\n").map_err(failed)?;
        let mut from = 0;
        loop {
            let page = report.tasks(None, from).await?;
            let Some(last) = page.last() else { break };
            from = last.task.index + 1;
            let mut text = String::new();
            for row in &page {
                let planned = &row.task.spec;
                let state = match row.state {
                    TaskState::Unchanged if report.is_verification() => "identical",
                    state => state.as_str(),
                };
                text.push_str(&format!("  {state:<9} {} -> {}\n", planned.source, planned.target));
            }
            out.write_all(text.as_bytes()).map_err(failed)?;
        }
    }
    Ok(())
}

fn failure(row: &FailedTask, style: TextStyle) -> String {
    let planned = &row.task.spec;
    let times = match (row.failure.attempts, style) {
        (0 | 1, _) => String::new(),
        (n, TextStyle::Legacy) => format!(", {n} tries"),
        (n, TextStyle::Current) => format!(", {n} attempts"),
    };
    format!("  {} -> {}\n    {}{times}: {}\n", planned.source, planned.target, row.failure.kind, row.failure.error)
}

/// Lists pruned tags at every level, because no other output names what was removed.
fn pruned(report: &Report<'_>) -> String {
    let mut text = "Gone at the source:\n".to_owned();
    for line in &report.pruned {
        let digest = line.digest.as_ref().map(|digest| format!(" ({digest})")).unwrap_or_default();
        text.push_str(&format!("  {:<7} {} <- {}{digest}\n", line.outcome.as_str(), line.target, line.source));
        if !line.reason.is_empty() {
            text.push_str(&format!("    {}\n", line.reason));
        }
    }
    text
}

fn totals(report: &Report<'_>) -> String {
    let (counts, usage) = (&report.batch.counts, &report.batch.usage);
    let mut lines = vec![format!("Batch: {} ({})", report.batch.id, report.outcome())];
    lines.extend(report.batch_view().notice().map(|notice| format!("Problem: {notice}")));
    if !report.title.is_empty() {
        lines.push(format!("Rules: {}", report.title));
    }
    lines.push(format!("Result: {}", summarize(report, &[]).0));
    let number = group_digits;
    lines.push(format!("Images: {}", number(counts.total)));
    if report.is_verification() {
        lines.push(format!("Identical: {}", number(counts.unchanged)));
        lines.push(format!("Different: {}", number(report.different)));
        lines.push(format!("Failed: {}", number(counts.failed.saturating_sub(report.different))));
    } else {
        let mut moved = vec![ByteSize(usage.bytes.copied).to_string()];
        if usage.bytes.mounted > 0 {
            moved.push(format!("{} mounted", ByteSize(usage.bytes.mounted)));
        }
        if usage.bytes.reused > 0 {
            moved.push(format!("{} already present", ByteSize(usage.bytes.reused)));
        }
        lines.push(format!("Copied: {}", number(counts.copied)));
        lines.push(format!("Unchanged: {}", number(counts.unchanged)));
        lines.push(format!("Failed: {}", number(counts.failed)));
        lines.push(format!("Bytes: {}", moved.join(", ")));
    }
    lines.extend(skipped(report).map(|skipped| format!("Skipped: {skipped}")));
    if counts.unfinished() > 0 {
        lines.push(format!("Not done: {} waiting, {} running", number(counts.waiting), number(counts.running)));
    }
    let removed = report.pruned.iter().filter(|line| line.outcome == PruneOutcome::Removed).count() as u64;
    if removed > 0 {
        lines.push(format!("Removed: {}", pluralize(removed, "tag", "tags")));
    }
    lines.push(format!(
        "Requests: {} to sources, {} to targets, not counting referrers, digest tags, tokens and redirects",
        number(usage.requests.source),
        number(usage.requests.target)
    ));
    lines.push(format!("Time: {}", format_duration(Duration::from_secs_f64(report.seconds().max(0.0)))));
    lines.push(String::new());
    lines.join("\n")
}

/// Describes what was not done, and why; `None` if there is nothing.
fn skipped(report: &Report<'_>) -> Option<String> {
    let parts = [
        (report.batch.counts.cancelled, "image", "images", "cancelled"),
        (report.unlisted.len() as u64, "repository", "repositories", "could not be listed"),
        (report.empty_rules.len() as u64, "rule", "rules", "selected no tag"),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, one, several, why)| format!("{} ({why})", pluralize(count, one, several)))
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}
