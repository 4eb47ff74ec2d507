//! What a template is given: a batch in numbers and short lists. docs/reports.md describes it, field by field.
//!
//! The numbers are exact, the lists are bounded, and each says how many more there are: a report of a million tasks is as
//! small as one of a thousand.

use std::collections::BTreeMap;

use imgsync_common::batch::{Bytes, Counts, Requests, TaskState};
use imgsync_common::error::{Class, Result};
use imgsync_common::store::{FailedTask, Part, TaskRow};
use jiff::Timestamp;
use serde::Serialize;

use super::{Level, Report, advice};

/// Groups of failures, at the most.
const MAX_GROUPS: usize = 50;
/// Groups that are told apart while failures are counted; there are as many as there are classes in lanes.
const MAX_TOLD_APART: usize = 10_000;
/// Unlisted repositories, rules, lanes and workers, at the most.
const MAX_ROWS: usize = 200;
/// Images at level 3, at the most.
const MAX_IMAGES: usize = 1_000;

/// A batch, as templates see it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct View {
    /// Of the program.
    pub version: String,
    /// What was copied, or what `--report-name` calls it.
    pub name: String,
    /// The batch's id.
    pub batch: String,
    /// running, paused, cancelled, superseded or done.
    pub state: String,
    /// How it went, in a sentence.
    pub headline: String,
    /// Whether all is done: nothing failed, was cancelled, is open or could not be listed.
    pub ok: bool,
    /// What to type next; empty where nothing is left to do.
    pub next: String,
    /// How much is told, 1 to 3.
    pub level: u8,
    /// When it was made (RFC 3339).
    pub started: String,
    /// When its last task ended; empty before.
    pub ended: String,
    /// When the report was written.
    pub written: String,
    /// How long it took, or takes until now.
    pub seconds: f64,
    /// How long workers were at tasks, all slots added up.
    pub work_seconds: f64,
    /// Tasks by state.
    pub counts: Counts,
    /// Bytes of blobs.
    pub bytes: Bytes,
    /// Requests that were sent.
    pub requests: Requests,
    /// Outcomes over time.
    pub timeline: Timeline,
    /// What failed.
    pub failures: Failures,
    /// What could not be listed.
    pub unlisted: Listed<Unlisted>,
    /// The tasks that took longest.
    pub slowest: Vec<Slowest>,
    /// By rule.
    pub rules: Listed<Rule>,
    /// By source and target registry.
    pub lanes: Listed<Lane>,
    /// By worker; empty where one process did it all.
    pub workers: Listed<Worker>,
    /// Every image, at level 3.
    pub images: Listed<Image>,
}

/// A list that is cut.
#[derive(Debug, Clone, Serialize)]
pub struct Listed<T> {
    /// How many there are.
    pub total: u64,
    /// The first of them.
    pub items: Vec<T>,
    /// How many are left out.
    pub more: u64,
}

/// Outcomes over time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Timeline {
    /// How long a part is, in seconds.
    pub width: f64,
    /// How many parts the time has.
    pub length: u32,
    /// Those in which something happened.
    pub parts: Vec<TimelinePart>,
}

/// A part of a batch's time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TimelinePart {
    /// When it begins, in seconds after the batch was made.
    pub at: f64,
    /// Tasks that were copied in it.
    pub copied: u64,
    /// Found unchanged.
    pub unchanged: u64,
    /// Failed.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Bytes moved by the tasks that ended in it.
    pub bytes: u64,
}

/// What failed, by kind and registries.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Failures {
    /// How many tasks failed.
    pub total: u64,
    /// The largest first.
    pub groups: Vec<Group>,
    /// Groups that are left out.
    pub more: u64,
}

/// Failures of one class between two registries.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Group {
    /// The class, as in JSON: not_found, denied …
    pub class: String,
    /// The class in words.
    pub title: String,
    /// What to do about it.
    pub advice: String,
    /// The source registry.
    pub source: String,
    /// The target registry.
    pub target: String,
    /// How many there are.
    pub count: u64,
    /// The first of them.
    pub images: Vec<FailedImage>,
    /// How many are left out.
    pub more: u64,
}

/// An image that failed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FailedImage {
    /// The source tag.
    pub source: String,
    /// The target tag.
    pub target: String,
    /// What happened.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
}

/// A repository, or a pattern, that could not be listed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Unlisted {
    /// Which.
    pub repository: String,
    /// The class of the failure.
    pub class: String,
    /// What happened.
    pub error: String,
    /// What to do about it.
    pub advice: String,
}

/// A task that took long.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Slowest {
    /// The source tag.
    pub source: String,
    /// The target tag.
    pub target: String,
    /// How it ended.
    pub state: String,
    /// How long its last attempt took.
    pub seconds: f64,
    /// Bytes that it moved in that.
    pub bytes: u64,
    /// Who did it.
    pub worker: String,
}

/// How many ended how, of some tasks.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Ends {
    /// All.
    pub total: u64,
    /// Copied.
    pub copied: u64,
    /// Found unchanged.
    pub unchanged: u64,
    /// Failed.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Not ended.
    pub open: u64,
}

/// A rule, and what became of its tasks.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Rule {
    /// Its place in the configuration, from 1.
    pub number: u32,
    /// What it copies; empty for batches of versions that did not note it.
    pub from: String,
    /// Where to.
    pub to: Vec<String>,
    /// Its tasks.
    pub counts: Ends,
}

/// Two registries, and what became of the tasks between them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Lane {
    /// The source registry.
    pub source: String,
    /// The target registry.
    pub target: String,
    /// Its tasks.
    pub counts: Ends,
}

/// A worker, and what it did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// Tasks that it ended.
    pub ended: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Bytes that it moved.
    pub bytes: u64,
    /// How long it was at tasks, all its slots added up.
    pub seconds: f64,
}

/// An image, and what became of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Image {
    /// The source tag.
    pub source: String,
    /// The target tag.
    pub target: String,
    /// Where its task stands.
    pub state: String,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Listed { total: 0, items: Vec::new(), more: 0 }
    }
}

impl<T> Listed<T> {
    /// The first so many of these.
    fn cut(mut items: Vec<T>, at: usize) -> Listed<T> {
        let total = items.len() as u64;
        items.truncate(at);
        Listed { total, more: total - items.len() as u64, items }
    }
}

impl Ends {
    fn add(&mut self, state: TaskState) {
        self.total += 1;
        *match state {
            TaskState::Copied => &mut self.copied,
            TaskState::Unchanged => &mut self.unchanged,
            TaskState::Failed => &mut self.failed,
            TaskState::Cancelled => &mut self.cancelled,
            TaskState::New | TaskState::Queued | TaskState::Running | TaskState::Retry => &mut self.open,
        } += 1;
    }
}

impl View {
    /// Reads all that is to be told of a batch: its failures and its tasks once, page by page.
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
            state: batch.control.to_string(),
            ok: counts.failed + counts.cancelled + counts.open() == 0 && unlisted.is_empty(),
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
            slowest,
            rules: Listed::cut(tasks.rules(report), MAX_ROWS),
            lanes: Listed::cut(tasks.lanes(), MAX_ROWS),
            workers: Listed::cut(workers, MAX_ROWS),
            images: tasks.images,
        })
    }
}

/// How a batch went, in a sentence, and what to type next.
fn summary(report: &Report<'_>) -> (String, String) {
    let (id, counts, unlisted) = (report.batch.id, &report.batch.counts, report.unlisted.len());
    let total = counts.total;
    let of = |number: u64, what: &str| match (number, total) {
        (1, 1) => format!("The one image {what}"),
        _ => format!("{} of {} images {what}", thousands(number), thousands(total)),
    };
    let (headline, next) = match () {
        () if counts.failed > 0 => (of(counts.failed, "failed"), format!("imgsync batch requeue {id}")),
        () if counts.open() > 0 => (of(counts.open(), "are still to be done"), format!("imgsync batch resume {id}")),
        () if counts.cancelled > 0 => (of(counts.cancelled, "were cancelled"), "imgsync run".to_owned()),
        () if unlisted == 1 => ("One repository could not be listed".to_owned(), "imgsync run".to_owned()),
        () if unlisted > 0 => (format!("{unlisted} repositories could not be listed"), "imgsync run".to_owned()),
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
    // Up to the end of the batch, also where nothing happened in its last parts.
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

/// Reads all failures; keeps the first few of each group.
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

/// What all tasks add up to, by rule and by lane.
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
        // A rule that found nothing is shown as well.
        let mut numbers: Vec<u32> = (0..options.len() as u32).collect();
        numbers.extend(self.by_rule.keys().filter(|number| **number >= options.len() as u32));
        let rule = |number: u32| {
            let named = options.get(number as usize);
            Rule {
                number: number.saturating_add(1),
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

/// To the second, in UTC.
fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// 1234567 → 1,234,567.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
