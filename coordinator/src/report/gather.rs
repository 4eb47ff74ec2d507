//! Collects the data of templates: reads a batch's failures and tasks once, page by page, and keeps totals and short
//! lists.

use std::collections::BTreeMap;

use imgsync_common::error::{Class, Result};
use imgsync_common::store::{FailedTask, Part, TaskRow};
use jiff::Timestamp;

use super::view::{
    EmptyRule, Ends, FailedImage, Failures, Group, Image, Lane, Listed, Pruned, Rule, Slowest, Timeline, TimelinePart,
    Unlisted, View, Worker,
};
use super::{Level, Report, advice};
use crate::words::{many, thousands};

/// Maximum number of failure groups.
const MAX_GROUPS: usize = 50;
/// Maximum number of failure groups while counting. There are as many as error kinds times routes.
const MAX_TOLD_APART: usize = 10_000;
/// Maximum number of unlisted repositories, rules, routes and workers.
const MAX_ROWS: usize = 200;
/// Maximum number of images at level 3.
const MAX_IMAGES: usize = 1_000;

impl View {
    /// Loads the data of a report, reading failures and tasks once, page by page.
    pub async fn of(report: &Report<'_>, level: Level) -> Result<View> {
        let batch = &report.batch;
        let counts = batch.counts;
        let course = report.course().await?;
        let unlisted: Vec<Unlisted> = report
            .unlisted
            .iter()
            .map(|it| Unlisted {
                repository: it.repository.clone(),
                class: it.class.to_string(),
                error: it.error.clone(),
                advice: advice::on(it.class).to_owned(),
            })
            .collect();
        let empty_rules: Vec<EmptyRule> = report
            .empty_rules
            .iter()
            .map(|it| EmptyRule {
                number: it.rule.saturating_add(1),
                name: report.rule_name(it).to_owned(),
                from: it.from.clone(),
                repositories: it.repositories,
                tags: it.tags,
                reason: it.reason.clone(),
            })
            .collect();
        let pruned: Vec<Pruned> = report
            .pruned
            .iter()
            .map(|it| Pruned {
                source: it.source.clone(),
                target: it.target.clone(),
                outcome: it.outcome.as_str().to_owned(),
                digest: it.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
                reason: it.reason.clone(),
            })
            .collect();
        let tasks = Tasks::read(report, level).await?;
        let mut slowest = Vec::new();
        for slow in &course.slowest {
            let Some(row) = report.task(slow.index).await? else { continue };
            slowest.push(Slowest {
                source: row.task.planned.source.to_string(),
                target: row.task.planned.target.to_string(),
                state: row.state.as_str().to_owned(),
                seconds: slow.time.as_secs_f64(),
                bytes: slow.bytes,
                worker: slow.worker.clone(),
            });
        }
        let shares: Vec<Worker> = course
            .shares
            .iter()
            .map(|share| Worker {
                name: share.worker.clone(),
                ended: share.ended,
                failed: share.failed,
                bytes: share.bytes,
                seconds: share.time.as_secs_f64(),
            })
            .collect();
        let workers = if shares.len() > 1 { shares } else { Vec::new() };
        let (headline, next) = summary(report);
        Ok(View {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: report.title.clone(),
            batch: batch.id.to_string(),
            state: report.state.as_str().to_owned(),
            ok: counts.failed + counts.cancelled + counts.open() == 0
                && unlisted.is_empty()
                && !report.pruned.iter().any(|line| line.outcome.is_trouble()),
            headline,
            next,
            level: level.number(),
            started: rfc3339(batch.created_at),
            ended: batch.ended_at.map(rfc3339).unwrap_or_default(),
            written: rfc3339(Timestamp::now()),
            seconds: report.seconds(),
            work_seconds: batch.spent.time.as_secs_f64(),
            counts,
            bytes: batch.spent.bytes,
            requests: batch.spent.requests,
            timeline: timeline(&course.parts, course.width.as_secs_f64(), report.seconds()),
            failures: failures(report, level).await?,
            unlisted: Listed::cut(unlisted, MAX_ROWS),
            empty_rules: Listed::cut(empty_rules, MAX_ROWS),
            pruned: Listed::cut(pruned, MAX_IMAGES),
            slowest,
            rules: Listed::cut(tasks.rules(report), MAX_ROWS),
            lanes: Listed::cut(tasks.lanes(), MAX_ROWS),
            workers: Listed::cut(workers, MAX_ROWS),
            images: tasks.images,
        })
    }
}

/// Returns the result of a batch in one sentence, and the next command.
fn summary(report: &Report<'_>) -> (String, String) {
    let (id, counts, unlisted) = (report.batch.id, &report.batch.counts, report.unlisted.len());
    let total = counts.total;
    let of = |number: u64, what: &str| match (number, total) {
        (1, 1) => format!("The one image {what}"),
        _ => format!("{} of {} {what}", thousands(number), many(total, "image", "images")),
    };
    let (headline, next) = match () {
        () if counts.failed > 0 => (of(counts.failed, "failed"), format!("imgsync batch requeue {id}")),
        () if counts.open() > 0 => (of(counts.open(), "are still to be done"), format!("imgsync batch resume {id}")),
        () if counts.cancelled > 0 => (of(counts.cancelled, "were cancelled"), "imgsync run".to_owned()),
        () if unlisted == 1 => ("One repository could not be listed".to_owned(), "imgsync run".to_owned()),
        () if unlisted > 0 => (format!("{unlisted} repositories could not be listed"), "imgsync run".to_owned()),
        () if total == 0 && !report.empty_rules.is_empty() => {
            ("No tag was chosen".to_owned(), "imgsync tags".to_owned())
        }
        () if total == 0 => ("There was nothing to copy".to_owned(), String::new()),
        () if counts.copied == 0 => (format!("All {} images were there already", thousands(total)), String::new()),
        () => (format!("All {} images are in place", thousands(total)), String::new()),
    };
    let headline = match headline.as_str() {
        "All 1 images are in place" => "The one image is in place".to_owned(),
        "All 1 images were there already" => "The one image was there already".to_owned(),
        _ => headline,
    };
    (headline, next)
}

fn timeline(parts: &[Part], width: f64, seconds: f64) -> Timeline {
    let last = parts.last().map_or(0, |part| part.number + 1);
    // Up to the end of the batch, even if nothing happened in its last parts.
    let until = if width > 0.0 { (seconds / width).ceil().clamp(0.0, 1_000.0) as u32 } else { 0 };
    let part = |part: &Part| TimelinePart {
        at: f64::from(part.number) * width,
        copied: part.copied,
        unchanged: part.unchanged,
        failed: part.failed,
        cancelled: part.cancelled,
        bytes: part.bytes,
    };
    Timeline { width, length: last.max(until), parts: parts.iter().map(part).collect() }
}

/// Groups all failures and keeps the first few of each group.
async fn failures(report: &Report<'_>, level: Level) -> Result<Failures> {
    let each = match level {
        Level::Totals => 1,
        Level::Failures => 20,
        Level::Everything => 100,
    };
    let mut groups: BTreeMap<(Class, String, String), Group> = BTreeMap::new();
    let (mut total, mut left_out, mut from) = (0, 0, 0);
    loop {
        let page = report.failures(from).await?;
        let Some(last) = page.last() else { break };
        from = last.task.index.saturating_add(1);
        for FailedTask { task, failure } in page {
            total += 1;
            let planned = &task.planned;
            let (source, target) = (planned.source.home.end().to_string(), planned.target.home.end().to_string());
            let key = (failure.class, source, target);
            if groups.len() >= MAX_TOLD_APART && !groups.contains_key(&key) {
                left_out += 1;
                continue;
            }
            let group = groups.entry(key).or_default();
            group.count += 1;
            if group.images.len() < each {
                group.images.push(FailedImage {
                    source: planned.source.to_string(),
                    target: planned.target.to_string(),
                    error: failure.error,
                    attempts: failure.attempts,
                });
            }
        }
    }
    let mut groups: Vec<Group> = groups
        .into_iter()
        .map(|((class, source, target), group)| Group {
            class: class.to_string(),
            title: advice::title(class).to_owned(),
            advice: advice::on(class).to_owned(),
            source,
            target,
            more: group.count - group.images.len() as u64,
            ..group
        })
        .collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    let more = groups.len().saturating_sub(MAX_GROUPS) as u64 + left_out;
    groups.truncate(MAX_GROUPS);
    Ok(Failures { total, groups, more })
}

/// Totals of all tasks by rule and by route.
#[derive(Default)]
struct Tasks {
    by_rule: BTreeMap<u32, Ends>,
    by_lane: BTreeMap<(String, String), Ends>,
    images: Listed<Image>,
}

impl Tasks {
    async fn read(report: &Report<'_>, level: Level) -> Result<Tasks> {
        let mut tasks = Tasks::default();
        let mut from = 0;
        loop {
            let page = report.tasks(None, from).await?;
            let Some(last) = page.last() else { break };
            from = last.task.index.saturating_add(1);
            for TaskRow { task, state, .. } in page {
                let planned = &task.planned;
                tasks.by_rule.entry(planned.rule).or_default().add(state);
                let lane = (planned.source.home.end().to_string(), planned.target.home.end().to_string());
                tasks.by_lane.entry(lane).or_default().add(state);
                tasks.images.total += 1;
                if level >= Level::Everything && tasks.images.items.len() < MAX_IMAGES {
                    tasks.images.items.push(Image {
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

    fn rules(&self, report: &Report<'_>) -> Vec<Rule> {
        let options = &report.options.rules;
        // Rules without tasks are included.
        let mut numbers: Vec<u32> = (0..options.len() as u32).collect();
        numbers.extend(self.by_rule.keys().filter(|number| **number >= options.len() as u32));
        let rule = |number: u32| {
            let named = options.get(number as usize);
            Rule {
                number: number.saturating_add(1),
                name: named.map(|rule| rule.name.clone()).unwrap_or_default(),
                from: named.map(|rule| rule.from.clone()).unwrap_or_default(),
                to: named.map(|rule| rule.to.clone()).unwrap_or_default(),
                counts: self.by_rule.get(&number).copied().unwrap_or_default(),
            }
        };
        numbers.into_iter().map(rule).collect()
    }

    fn lanes(&self) -> Vec<Lane> {
        let lane = |((source, target), counts): (&(String, String), &Ends)| Lane {
            source: source.clone(),
            target: target.clone(),
            counts: *counts,
        };
        let mut lanes: Vec<Lane> = self.by_lane.iter().map(lane).collect();
        lanes.sort_by_key(|lane| std::cmp::Reverse(lane.counts.total));
        lanes
    }
}

/// Formats a time as RFC 3339 in UTC, to the second.
fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
