//! Report as text, with the lines of imgsync 2.1.

use std::io::Write;

use bytesize::ByteSize;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::format_duration;
use imgsync_store::PruneOutcome;

use super::{Report, ReportLevel};
use crate::humanize::pluralize;

const BANNER: &str = "========================================";

/// Writes the report as text.
pub async fn write_text(report: &Report<'_>, level: ReportLevel, out: &mut (dyn Write + Send)) -> Result<()> {
    let failed = |error: std::io::Error| Error::new(ErrorKind::Local, "writing the report", error.to_string());
    let text = totals(report);
    out.write_all(text.as_bytes()).map_err(failed)?;
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
                text.push_str("Failed images:\n");
            }
            for row in &page {
                let planned = &row.task.spec;
                text.push_str(&format!("  {} -> {}\n", planned.source, planned.target));
                let times = match row.failure.attempts {
                    0 | 1 => String::new(),
                    n => format!(", {n} tries"),
                };
                text.push_str(&format!("    {}{times}: {}\n", row.failure.kind, row.failure.error));
            }
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
                text.push_str(&format!("  {:<9} {} -> {}\n", row.state.as_str(), planned.source, planned.target));
            }
            out.write_all(text.as_bytes()).map_err(failed)?;
        }
    }
    Ok(())
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
    let mut lines = vec![
        BANNER.to_owned(),
        format!("Batch: {} ({})", report.batch.id, report.state.as_str()),
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
