//! How soon each worker continues after a loss.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use imgsync_tests::program::RunningProgram;
use jiff::Timestamp;
use serde_json::Value;

use super::losses::Loss;

/// Longest time between two tasks of a worker that has work.
const LULL: Duration = Duration::from_secs(4);

/// What a worker did after a loss.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recovery {
    /// Time from the loss to the end of the first task that was started later.
    pub(super) next_task: Duration,
    /// Longest time in which no task ended.
    pub(super) standstill: Duration,
}

impl Recovery {
    /// Reads from a worker's log how it continued, `elapsed` after the loss. Returns `None` if it has not yet.
    pub(super) fn observe(worker: &RunningProgram, lost: Timestamp, elapsed: Duration) -> Option<Self> {
        let tasks = tasks_after(worker, lost);
        let next_task = tasks.iter().filter(|task| task.started_later).map(|task| task.ended).min()?;
        let mut ends: Vec<Duration> = tasks.iter().map(|task| task.ended).collect();
        ends.sort();
        let last = *ends.last()?;
        let before = std::iter::once(Duration::ZERO).chain(ends.iter().copied());
        let standstill = before.zip(&ends).map(|(before, after)| after.saturating_sub(before)).max()?;
        (elapsed.saturating_sub(last) < LULL).then_some(Self { next_task, standstill })
    }
}

/// A finished task.
struct FinishedTask {
    /// Time of its end after the loss.
    ended: Duration,
    /// Whether it was started after the loss.
    started_later: bool,
}

/// Returns the tasks that a worker has finished since a moment. The worker logs JSON.
fn tasks_after(worker: &RunningProgram, lost: Timestamp) -> Vec<FinishedTask> {
    let log = worker.stderr();
    let tasks = log.lines().rev().filter(|line| line.contains(r#""copied "#)).map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let message = line["message"].as_str()?;
        let ended: Timestamp = line["timestamp"].as_str()?.parse().ok()?;
        let took = parse_duration(message.rsplit_once(" bytes in ")?.1)?;
        let started_later = ended - took > lost;
        Some(FinishedTask { ended: (ended - lost).try_into().ok()?, started_later })
    });
    // A negative time ends the list.
    tasks.map_while(|task| task).collect()
}

/// Parses a duration as logs have it, such as `1.2 s` or `3 min`.
fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_once(' ')?;
    let seconds = if unit == "min" { 60.0 } else { 1.0 };
    Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * seconds))
}

/// The recoveries of all workers, by what was lost.
#[derive(Debug, Default)]
pub(super) struct Recoveries {
    by_losses: BTreeMap<Vec<Loss>, Vec<Recovery>>,
}

impl Recoveries {
    /// Records a recovery.
    pub(super) fn record(&mut self, losses: &[Loss], recovery: Recovery) {
        self.by_losses.entry(losses.to_vec()).or_default().push(recovery);
    }

    /// Formats a line for each kind of loss, and one for all with the same aim.
    pub(super) fn table(&self) -> String {
        let mut table = format!("{:<52} {:>5}  {:<18} {:<18} {:>5}\n", "", "", "next task after", "no task for", "aim");
        let _ = writeln!(table, "{:<52} {:>5}  {:<18} {:<18}", "lost", "cases", "median, maximum", "median, maximum");
        let mut all: BTreeMap<Duration, Vec<Recovery>> = BTreeMap::new();
        for (losses, recoveries) in &self.by_losses {
            all.entry(aim(losses)).or_default().extend(recoveries);
            let _ = writeln!(table, "{}", row(&describe(losses), recoveries, aim(losses)));
        }
        for (aim, recoveries) in all {
            let _ = writeln!(table, "{}", row(&format!("all with an aim of {} s", aim.as_secs()), &recoveries, aim));
        }
        table
    }

    /// Reports whether nothing was lost.
    pub(super) fn is_empty(&self) -> bool {
        self.by_losses.is_empty()
    }
}

fn row(what: &str, recoveries: &[Recovery], aim: Duration) -> String {
    let summary = |time: fn(&Recovery) -> Duration| {
        let mut times: Vec<Duration> = recoveries.iter().map(time).collect();
        times.sort();
        let [median, maximum] = [times[times.len() / 2], times[times.len() - 1]].map(|time| time.as_secs_f64());
        format!("{median:.1} s, {maximum:.1} s")
    };
    let (next, standstill) = (summary(|one| one.next_task), summary(|one| one.standstill));
    format!("{what:<52} {:>5}  {next:<18} {standstill:<18} {:>3} s", recoveries.len(), aim.as_secs())
}

/// Returns the time in which work should continue after these losses.
pub(super) fn aim(losses: &[Loss]) -> Duration {
    losses.iter().map(|loss| loss.aim()).max().unwrap_or_default()
}

/// Names losses that came together.
pub(super) fn describe(losses: &[Loss]) -> String {
    losses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
}
