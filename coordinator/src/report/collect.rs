//! Collects the data of templates: reads a batch's failures and tasks once, page by page, and keeps totals and short
//! lists.

use std::collections::BTreeMap;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_store::{FailedTask, TaskRow, TimeBucket};
use jiff::Timestamp;

use super::advice::{self, NextStep};
use super::failure_groups::answering_registries;
use super::view::{
    OutcomeCounts, ReportData, ReportEmptyRule, ReportFailedImage, ReportFailureGroup, ReportFailures, ReportImage,
    ReportPrunedTag, ReportRoute, ReportRule, ReportSlowTask, ReportTimeline, ReportTimelineBucket, ReportUnlisted,
    ReportWorker, Truncated,
};
use super::{Report, ReportLevel};

/// Maximum number of failure groups.
const MAX_GROUPS: usize = 50;
/// Maximum number of failure groups while counting. There are as many as error kinds times routes.
const MAX_COUNTED_GROUPS: usize = 10_000;
/// Maximum number of unlisted repositories, rules, routes and workers.
const MAX_ROWS: usize = 200;
/// Maximum number of images at level 3.
const MAX_IMAGES: usize = 1_000;

impl ReportData {
    /// Loads the data of a report, reading failures and tasks once, page by page.
    pub async fn load(report: &Report<'_>, level: ReportLevel) -> Result<ReportData> {
        let batch = &report.batch;
        let counts = batch.counts;
        let batch_timeline = report.timeline().await?;
        let unlisted: Vec<ReportUnlisted> = report
            .unlisted
            .iter()
            .map(|it| ReportUnlisted {
                repository: it.repository.clone(),
                kind: it.kind.to_string(),
                error: it.error.clone(),
                advice: advice::for_kind(it.kind).to_owned(),
            })
            .collect();
        let empty_rules: Vec<ReportEmptyRule> = report
            .empty_rules
            .iter()
            .map(|it| ReportEmptyRule {
                number: it.rule.saturating_add(1),
                name: report.rule_name(it).to_owned(),
                from: it.from.clone(),
                repositories: it.repositories,
                tags: it.tags,
                reason: it.reason.clone(),
            })
            .collect();
        let pruned: Vec<ReportPrunedTag> = report
            .pruned
            .iter()
            .map(|it| ReportPrunedTag {
                source: it.source.clone(),
                target: it.target.clone(),
                outcome: it.outcome.as_str().to_owned(),
                digest: it.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
                reason: it.reason.clone(),
            })
            .collect();
        let tasks = TaskTotals::read(report, level).await?;
        let mut slowest = Vec::new();
        for slow in &batch_timeline.slowest {
            let Some(row) = report.task(slow.index).await? else { continue };
            slowest.push(ReportSlowTask {
                source: row.task.spec.source.to_string(),
                target: row.task.spec.target.to_string(),
                state: row.state.as_str().to_owned(),
                seconds: slow.time.as_secs_f64(),
                bytes: slow.bytes,
                worker: slow.worker.clone(),
            });
        }
        let shares: Vec<ReportWorker> = batch_timeline
            .workers
            .iter()
            .map(|share| ReportWorker {
                name: share.worker.clone(),
                ended: share.ended,
                failed: share.failed,
                bytes: share.bytes,
                seconds: share.time.as_secs_f64(),
            })
            .collect();
        let workers = if shares.len() > 1 { shares } else { Vec::new() };
        let failures = group_failures(report, level).await?;
        let (headline, next) = summarize(report, &failures.groups);
        Ok(ReportData {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: report.title.clone(),
            batch: batch.id.to_string(),
            url: report.url().unwrap_or_default(),
            state: report.state.as_str().to_owned(),
            outcome: report.outcome().to_owned(),
            ok: report.is_ok(),
            headline,
            next,
            verification: report.is_verification(),
            level: level.number(),
            started: rfc3339(batch.created_at),
            ended: batch.ended_at.map(rfc3339).unwrap_or_default(),
            written: rfc3339(Timestamp::now()),
            seconds: report.seconds(),
            work_seconds: batch.usage.time.as_secs_f64(),
            counts,
            bytes: batch.usage.bytes,
            requests: batch.usage.requests,
            timeline: build_timeline(
                &batch_timeline.buckets,
                batch_timeline.bucket_width.as_secs_f64(),
                report.seconds(),
            ),
            failures,
            unlisted: Truncated::truncate(unlisted, MAX_ROWS),
            empty_rules: Truncated::truncate(empty_rules, MAX_ROWS),
            pruned: Truncated::truncate(pruned, MAX_IMAGES),
            slowest,
            rules: Truncated::truncate(tasks.rules(report), MAX_ROWS),
            routes: Truncated::truncate(tasks.routes(), MAX_ROWS),
            workers: Truncated::truncate(workers, MAX_ROWS),
            images: tasks.images,
        })
    }
}

/// Returns the result of a batch in one sentence, and the next command, which depends on the groups of failures.
pub(super) fn summarize(report: &Report<'_>, groups: &[ReportFailureGroup]) -> (String, String) {
    let (id, counts, unlisted) = (report.batch.id, &report.batch.counts, report.unlisted.len() as u64);
    let total = counts.total;
    let of = |number: u64, one: &str, several: &str| match (number, total) {
        (1, 1) => format!("The one image {one}"),
        (1, _) => format!("1 of {} {one}", pluralize(total, "image", "images")),
        _ => format!("{} of {} {several}", group_digits(number), pluralize(total, "image", "images")),
    };
    let all = |what: &str| match total {
        1 => format!("The one image is {what}"),
        _ => format!("All {} images are {what}", group_digits(total)),
    };
    let failed = counts.failed.saturating_sub(report.different);
    let not_pruned = report.pruned.iter().filter(|line| line.outcome.needs_attention()).count() as u64;
    match () {
        () if report.different > 0 => {
            let others =
                if failed > 0 { format!(", {} could not be compared", group_digits(failed)) } else { String::new() };
            (of(report.different, "is different", "are different") + &others, RESTORE_COMMAND.to_owned())
        }
        () if failed > 0 && report.is_verification() => {
            (of(failed, "could not be compared", "could not be compared"), next_command(id, groups))
        }
        () if failed > 0 => (of(failed, "failed", "failed"), next_command(id, groups)),
        () if counts.unfinished() > 0 => {
            (of(counts.unfinished(), "is not done", "are not done"), format!("imgsync batch resume {id}"))
        }
        () if counts.cancelled > 0 => {
            (of(counts.cancelled, "was cancelled", "were cancelled"), "imgsync run".to_owned())
        }
        () if unlisted == 1 => ("One repository could not be listed".to_owned(), "imgsync run".to_owned()),
        () if unlisted > 0 => {
            (format!("{} repositories could not be listed", group_digits(unlisted)), "imgsync run".to_owned())
        }
        () if not_pruned > 0 => (
            match not_pruned {
                1 => "One tag or rule could not be pruned".to_owned(),
                _ => format!("{} tags or rules could not be pruned", group_digits(not_pruned)),
            },
            "imgsync run".to_owned(),
        ),
        () if total == 0 && !report.empty_rules.is_empty() => {
            ("No tag was selected".to_owned(), "imgsync tags".to_owned())
        }
        () if total == 0 && report.is_verification() => ("Nothing to compare".to_owned(), String::new()),
        () if total == 0 => ("Nothing to copy".to_owned(), String::new()),
        () if report.is_verification() => (all("identical"), String::new()),
        () if counts.copied == 0 => (all("up to date"), String::new()),
        () => (all("in place"), String::new()),
    }
}

/// Returns the next command for a batch with failures: the largest part of them that a requeue may help decides.
fn next_command(id: BatchId, groups: &[ReportFailureGroup]) -> String {
    let is_requeue = |group: &&ReportFailureGroup| group.next.starts_with("imgsync batch requeue");
    match groups.iter().find(is_requeue) {
        None => groups.first().map_or_else(run_command, |largest| largest.next.clone()),
        Some(_) if groups.iter().all(|group| is_requeue(&group)) => format!("imgsync batch requeue {id}"),
        Some(largest) => largest.next.clone(),
    }
}

fn run_command() -> String {
    "imgsync run".to_owned()
}

/// Command after a verification that found differences: comparing again would find them again.
const RESTORE_COMMAND: &str = "imgsync run --force";

/// Returns the command for images which failed with an error kind, once the cause is gone.
fn retry_command(id: BatchId, kind: ErrorKind, is_verification: bool) -> String {
    match advice::next_step(kind) {
        _ if is_verification && matches!(kind, ErrorKind::Differs | ErrorKind::Corrupt) => RESTORE_COMMAND.to_owned(),
        NextStep::Requeue | NextStep::FixAndRequeue => format!("imgsync batch requeue {id} --kind {kind}"),
        NextStep::ChangeAndRun => run_command(),
    }
}

fn build_timeline(parts: &[TimeBucket], width: f64, seconds: f64) -> ReportTimeline {
    let last = parts.last().map_or(0, |part| part.number + 1);
    // Up to the end of the batch, even if nothing happened in its last parts.
    let until = if width > 0.0 { (seconds / width).ceil().clamp(0.0, 1_000.0) as u32 } else { 0 };
    let part = |part: &TimeBucket| ReportTimelineBucket {
        at: f64::from(part.number) * width,
        copied: part.copied,
        unchanged: part.unchanged,
        failed: part.failed,
        cancelled: part.cancelled,
        bytes: part.bytes,
    };
    ReportTimeline { width, length: last.max(until), buckets: parts.iter().map(part).collect() }
}

/// Groups all failures and keeps the first few of each group.
async fn group_failures(report: &Report<'_>, level: ReportLevel) -> Result<ReportFailures> {
    let each = match level {
        ReportLevel::Totals => 1,
        ReportLevel::Failures => 20,
        ReportLevel::Everything => 100,
    };
    let mut groups: BTreeMap<(ErrorKind, String, String), ReportFailureGroup> = BTreeMap::new();
    let (mut total, mut left_out, mut from) = (0, 0, 0);
    loop {
        let page = report.failures(from).await?;
        let Some(last) = page.last() else { break };
        from = last.task.index.saturating_add(1);
        for failed in page {
            let registries = answering_registries(&failed);
            let FailedTask { task, failure } = failed;
            total += 1;
            let planned = &task.spec;
            let (source, target) =
                (planned.source.repository.endpoint().to_string(), planned.target.repository.endpoint().to_string());
            let key = (failure.kind, source, target);
            if groups.len() >= MAX_COUNTED_GROUPS && !groups.contains_key(&key) {
                left_out += 1;
                continue;
            }
            let group = groups.entry(key).or_default();
            let registry = match registries.as_slice() {
                [one] => one.as_str(),
                _ => "",
            };
            match group.count {
                0 => registry.clone_into(&mut group.registry),
                _ if group.registry != registry => group.registry.clear(),
                _ => {}
            }
            group.count += 1;
            if group.images.len() < each {
                group.images.push(ReportFailedImage {
                    source: planned.source.to_string(),
                    target: planned.target.to_string(),
                    error: failure.error,
                    attempts: failure.attempts,
                });
            }
        }
    }
    let mut groups: Vec<ReportFailureGroup> = groups
        .into_iter()
        .map(|((kind, source, target), group)| ReportFailureGroup {
            kind: kind.to_string(),
            title: advice::title(kind).to_owned(),
            advice: advice::for_kind(kind).to_owned(),
            next: retry_command(report.batch.id, kind, report.is_verification()),
            source,
            target,
            more: group.count - group.images.len() as u64,
            ..group
        })
        .collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    let more = groups.len().saturating_sub(MAX_GROUPS) as u64 + left_out;
    groups.truncate(MAX_GROUPS);
    Ok(ReportFailures { total, groups, more })
}

/// Totals of all tasks by rule and by route.
#[derive(Default)]
struct TaskTotals {
    by_rule: BTreeMap<u32, OutcomeCounts>,
    by_route: BTreeMap<(String, String), OutcomeCounts>,
    images: Truncated<ReportImage>,
}

impl TaskTotals {
    async fn read(report: &Report<'_>, level: ReportLevel) -> Result<TaskTotals> {
        let mut tasks = TaskTotals::default();
        let mut from = 0;
        loop {
            let page = report.tasks(None, from).await?;
            let Some(last) = page.last() else { break };
            from = last.task.index.saturating_add(1);
            for TaskRow { task, state, .. } in page {
                let planned = &task.spec;
                tasks.by_rule.entry(planned.rule).or_default().add(state);
                let route = (
                    planned.source.repository.endpoint().to_string(),
                    planned.target.repository.endpoint().to_string(),
                );
                tasks.by_route.entry(route).or_default().add(state);
                tasks.images.total += 1;
                if level >= ReportLevel::Everything && tasks.images.items.len() < MAX_IMAGES {
                    tasks.images.items.push(ReportImage {
                        source: planned.source.to_string(),
                        target: planned.target.to_string(),
                        state: state.as_str().to_owned(),
                    });
                }
            }
        }
        tasks.images.more = tasks.images.total - tasks.images.items.len() as u64;
        Ok(tasks)
    }

    fn rules(&self, report: &Report<'_>) -> Vec<ReportRule> {
        let options = &report.options.rules;
        // Rules without tasks are included.
        let mut numbers: Vec<u32> = (0..options.len() as u32).collect();
        numbers.extend(self.by_rule.keys().filter(|number| **number >= options.len() as u32));
        let rule = |number: u32| {
            let named = options.get(number as usize);
            ReportRule {
                number: number.saturating_add(1),
                name: named.map(|rule| rule.name.clone()).unwrap_or_default(),
                from: named.map(|rule| rule.from.clone()).unwrap_or_default(),
                to: named.map(|rule| rule.to.clone()).unwrap_or_default(),
                counts: self.by_rule.get(&number).copied().unwrap_or_default(),
            }
        };
        numbers.into_iter().map(rule).collect()
    }

    fn routes(&self) -> Vec<ReportRoute> {
        let to_route = |((source, target), counts): (&(String, String), &OutcomeCounts)| ReportRoute {
            source: source.clone(),
            target: target.clone(),
            counts: *counts,
        };
        let mut routes: Vec<ReportRoute> = self.by_route.iter().map(to_route).collect();
        routes.sort_by_key(|route| std::cmp::Reverse(route.counts.total));
        routes
    }
}

/// Formats a time as RFC 3339 in UTC, to the second.
fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_command_requeues_what_a_requeue_may_help() {
        let id = BatchId::from_bytes([7; 16]);
        let group = |kind| ReportFailureGroup { next: retry_command(id, kind, false), ..ReportFailureGroup::default() };
        let next = |kinds: &[ErrorKind]| next_command(id, &kinds.iter().copied().map(group).collect::<Vec<_>>());
        assert_eq!(next(&[ErrorKind::NotFound, ErrorKind::Unsupported]), "imgsync run", "a requeue repeats both");
        assert_eq!(next(&[ErrorKind::Denied, ErrorKind::TimedOut]), format!("imgsync batch requeue {id}"));
        let mixed = [ErrorKind::NotFound, ErrorKind::TimedOut, ErrorKind::Denied];
        assert_eq!(next(&mixed), format!("imgsync batch requeue {id} --kind timed_out"), "the larger group first");
    }

    #[test]
    fn what_a_verification_found_different_is_restored_by_a_run_and_not_compared_again() {
        let id = BatchId::from_bytes([7; 16]);
        let group = |kind| ReportFailureGroup { next: retry_command(id, kind, true), ..ReportFailureGroup::default() };
        for kind in [ErrorKind::Differs, ErrorKind::Corrupt] {
            assert_eq!(next_command(id, &[group(kind)]), "imgsync run --force", "{kind}");
        }
        assert_eq!(next_command(id, &[group(ErrorKind::TimedOut)]), format!("imgsync batch requeue {id}"));
    }
}
