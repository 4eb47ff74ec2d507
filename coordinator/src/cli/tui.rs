//! The terminal view of a batch. Drawing reads nothing but a [`BatchScreen`].

use std::time::Duration;

use bytesize::ByteSize;
use imgsync_model::batch::BatchOptions;
use imgsync_oci::retry::format_duration;
use imgsync_oci::sanitize::sanitize;
use imgsync_store::{Batch, BatchState, BatchTimeline, FailedTask, Heartbeat, ListingFailure};
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline, Wrap};

use crate::batch_view::{BatchStatus, BatchView};
use crate::humanize::pluralize;

const COPIED: Color = Color::Green;
const UNCHANGED: Color = Color::DarkGray;
const FAILED: Color = Color::Red;
const CANCELLED: Color = Color::Yellow;
const RUNNING: Color = Color::Blue;

/// The data of the view.
pub(crate) struct BatchScreen {
    pub(crate) view: BatchView,
    title: String,
    to: String,
    failures: Vec<FailedTask>,
    unlisted: Vec<ListingFailure>,
    timeline: BatchTimeline,
    workers: Vec<Heartbeat>,
    attention: Vec<String>,
    /// The list that keys scroll.
    pub(crate) focus: Focus,
    /// Pending question.
    pub(crate) prompt: Prompt,
    /// Why the last action or refresh failed.
    pub(crate) message: Option<String>,
    offsets: [usize; 2],
}

/// A list that can be scrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Focus {
    Failures,
    Workers,
}

/// A question that a key answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Prompt {
    #[default]
    Inactive,
    ConfirmCancel,
}

impl BatchScreen {
    pub(crate) fn new(
        view: BatchView,
        (title, options): (String, BatchOptions),
        (failures, unlisted): (Vec<FailedTask>, Vec<ListingFailure>),
        timeline: BatchTimeline,
        workers: Vec<Heartbeat>,
        mut attention: Vec<String>,
    ) -> BatchScreen {
        let mut to: Vec<String> = options.rules.into_iter().flat_map(|rule| rule.to).collect();
        to.sort();
        to.dedup();
        let (to, focus, prompt) = (to.join(", "), Focus::Failures, Prompt::Inactive);
        attention.splice(..0, view.notice());
        BatchScreen {
            view,
            title,
            to,
            failures,
            unlisted,
            timeline,
            workers,
            attention,
            focus,
            prompt,
            message: None,
            offsets: [0, 0],
        }
    }

    /// Replaces the data; keeps focus, question and scroll positions.
    pub(crate) fn update(&mut self, next: BatchScreen) {
        let (focus, prompt, offsets) = (self.focus, self.prompt, self.offsets);
        *self = BatchScreen { focus, prompt, offsets, ..next };
    }

    /// Scrolls the focused list.
    pub(crate) fn scroll(&mut self, lines: isize) {
        let offset = &mut self.offsets[self.focus as usize];
        *offset = offset.saturating_add_signed(lines);
    }

    fn elapsed(&self) -> Duration {
        let end = self.view.batch.ended_at.unwrap_or_else(Timestamp::now);
        Duration::try_from(end.duration_since(self.view.batch.created_at)).unwrap_or_default()
    }
}

/// Draws the view, as much of it as fits.
pub(crate) fn draw(frame: &mut Frame<'_>, screen: &mut BatchScreen) {
    let area = frame.area();
    let attention = u16::try_from(screen.attention.len().min(3)).unwrap_or(3);
    let plot = if area.height >= 40 { 10 } else { 6 };
    let rows = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(attention),
        Constraint::Length(plot),
        Constraint::Min(3),
        Constraint::Length(1),
    ]);
    let [head, bar, counts, notes, plots, lists, foot] = rows.areas(area);
    frame.render_widget(Paragraph::new(header_lines(screen, usize::from(area.width))), head);
    frame.render_widget(Paragraph::new(outcome_bar(&screen.view.batch, usize::from(bar.width))), bar);
    frame.render_widget(Paragraph::new(counter_lines(screen)), counts);
    let lines = screen.attention.iter().take(3).map(|line| Line::from(format!("! {}", sanitize(line))).fg(CANCELLED));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), notes);
    let [images, bytes] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(plots);
    draw_timeline(frame, screen, (images, bytes));
    // Side by side if both fit. Without a cluster, the worker is known to its own process alone.
    let [failures, workers] = match area.width >= 100 {
        _ if screen.workers.is_empty() => [lists, Rect::ZERO],
        true => Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(lists),
        false => Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas(lists),
    };
    let lines = failure_lines(screen);
    draw_list(frame, failures, "Failures", lines, (screen.focus == Focus::Failures, &mut screen.offsets[0]));
    if screen.workers.is_empty() {
        return frame.render_widget(Paragraph::new(footer_line(screen)), foot);
    }
    let lines = worker_lines(screen);
    draw_list(frame, workers, "Workers", lines, (screen.focus == Focus::Workers, &mut screen.offsets[1]));
    frame.render_widget(Paragraph::new(footer_line(screen)), foot);
}

fn header_lines(screen: &BatchScreen, width: usize) -> Vec<Line<'static>> {
    let batch = &screen.view.batch;
    let (state, color) = match screen.view.state {
        BatchStatus::Running if batch.plan_completed_at.is_none() => ("listing", RUNNING),
        BatchStatus::Running => (screen.view.state.as_str(), RUNNING),
        BatchStatus::Paused | BatchStatus::Cancelled | BatchStatus::Superseded => {
            (screen.view.state.as_str(), CANCELLED)
        }
        BatchStatus::Interrupted => (screen.view.state.as_str(), FAILED),
        BatchStatus::Done => (screen.view.state.as_str(), COPIED),
    };
    let title = truncate(&screen.title, width.saturating_sub(state.len() + 3));
    let first = Line::from(vec![
        Span::from(format!(" {state} ")).style(Style::new().fg(Color::Black).bg(color)),
        Span::from(format!(" {title}")).add_modifier(Modifier::BOLD),
    ]);
    let second = format!("{}  {}  to {}", batch.id, format_duration(screen.elapsed()), screen.to);
    vec![first, Line::from(truncate(&second, width)).fg(Color::DarkGray)]
}

/// Draws outcomes as a stacked bar. A count above zero has at least one cell.
fn outcome_bar(batch: &Batch, width: usize) -> Line<'static> {
    let counts = &batch.counts;
    let parts = [
        (counts.copied, "█", COPIED),
        (counts.unchanged, "█", UNCHANGED),
        (counts.failed, "█", FAILED),
        (counts.cancelled, "█", CANCELLED),
        (counts.running, "▓", RUNNING),
    ];
    let mut left = width;
    let mut spans = Vec::new();
    for (count, symbol, color) in parts {
        if count == 0 || counts.total == 0 {
            continue;
        }
        let exact = count as f64 * width as f64 / counts.total as f64;
        let cells = (exact.round() as usize).clamp(1, left.max(1)).min(left);
        left -= cells;
        spans.push(Span::from(symbol.repeat(cells)).fg(color));
    }
    spans.push(Span::from("░".repeat(left)).fg(Color::DarkGray));
    Line::from(spans)
}

fn counter_lines(screen: &BatchScreen) -> Vec<Line<'static>> {
    let batch = &screen.view.batch;
    let counts = &batch.counts;
    let count = |number: u64, what: &str, color: Color| {
        let style = if number > 0 { Style::new().fg(color) } else { Style::new().fg(Color::DarkGray) };
        Span::from(format!("{number} {what}  ")).style(style)
    };
    let of = if batch.plan_completed_at.is_some() { "" } else { " so far" };
    let first = Line::from(vec![
        Span::from(format!("{} of {}{of}  ", counts.ended(), counts.total)).add_modifier(Modifier::BOLD),
        count(counts.copied, "copied", COPIED),
        count(counts.unchanged, "unchanged", Color::Reset),
        count(counts.failed, "failed", FAILED),
        count(counts.cancelled, "cancelled", CANCELLED),
        count(counts.running, "running", RUNNING),
        count(counts.waiting, "waiting", Color::Reset),
    ]);
    let elapsed = screen.elapsed().as_secs_f64().max(0.001);
    let copied = batch.usage.bytes.copied;
    let mut second = format!(
        "{} copied, {}/s  {}",
        ByteSize(copied),
        ByteSize((copied as f64 / elapsed) as u64),
        pluralize(batch.usage.requests.source + batch.usage.requests.target, "request", "requests")
    );
    let done = counts.ended() as f64 / elapsed;
    if batch.plan_completed_at.is_some() && counts.unfinished() > 0 && done > 0.0 {
        let left = Duration::from_secs_f64((counts.unfinished() as f64 / done).min(1e9));
        second.push_str(&format!("  {} left", format_duration(left)));
    }
    vec![first, Line::from(second)]
}

fn draw_timeline(frame: &mut Frame<'_>, screen: &BatchScreen, (images, bytes): (Rect, Rect)) {
    let parts = &screen.timeline.buckets;
    let width = screen.timeline.bucket_width.as_secs_f64().max(0.001);
    let columns = parts.last().map_or(0, |part| part.number as usize + 1);
    let (mut ended, mut moved) = (vec![0_u64; columns], vec![0_u64; columns]);
    for part in parts {
        ended[part.number as usize] = part.copied + part.unchanged + part.failed + part.cancelled;
        moved[part.number as usize] = (part.bytes as f64 / width) as u64;
    }
    let most = ended.iter().max().copied().unwrap_or_default();
    let fastest = moved.iter().max().copied().unwrap_or_default();
    let titles = [
        format!(" images per {}, peak {most} ", format_duration(screen.timeline.bucket_width)),
        format!(" throughput, peak {}/s ", ByteSize(fastest)),
    ];
    let data = [(ended, titles[0].clone(), COPIED, images), (moved, titles[1].clone(), RUNNING, bytes)];
    for (values, title, color, area) in data {
        let block = Block::bordered().border_style(Style::new().fg(Color::DarkGray)).title(title);
        let inner = usize::from(area.width.saturating_sub(2));
        let values = resample(&values, inner);
        frame.render_widget(Sparkline::default().data(&values).style(Style::new().fg(color)).block(block), area);
    }
}

/// Resamples the values to so many columns: merged values become their maximum, or values repeat.
fn resample(values: &[u64], columns: usize) -> Vec<u64> {
    let count = values.len();
    let of = |column: usize| {
        let (from, to) = (column * count / columns, ((column + 1) * count).div_ceil(columns));
        values[from.min(count - 1)..to.clamp(from + 1, count)].iter().max().copied().unwrap_or_default()
    };
    if count == 0 { Vec::new() } else { (0..columns).map(of).collect() }
}

fn failure_lines(screen: &BatchScreen) -> Vec<Line<'static>> {
    let mut kinds: std::collections::BTreeMap<_, usize> = std::collections::BTreeMap::new();
    for failed in &screen.failures {
        *kinds.entry(failed.failure.kind).or_default() += 1;
    }
    let mut lines = Vec::new();
    if !kinds.is_empty() {
        let words: Vec<String> = kinds
            .iter()
            .map(|(kind, count)| format!("{count} {}", crate::report::advice::title(*kind).to_lowercase()))
            .collect();
        lines.push(Line::from(words.join(", ")).add_modifier(Modifier::BOLD));
    }
    for unlisted in &screen.unlisted {
        lines.push(Line::from(format!("{} could not be listed", sanitize(&unlisted.repository))).fg(FAILED));
        lines.push(Line::from(format!("  {}", sanitize(&unlisted.error))));
    }
    for failed in &screen.failures {
        lines.push(Line::from(format!("{}", failed.task.spec.source)).fg(FAILED));
        lines.push(Line::from(format!("  {}", sanitize(&failed.failure.error))));
    }
    if lines.is_empty() {
        lines.push(Line::from("none").fg(Color::DarkGray));
    }
    lines
}

fn worker_lines(screen: &BatchScreen) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for worker in &screen.workers {
        let draining = if worker.draining { ", draining" } else { "" };
        let words = format!("{}: {} of {} slots{draining}", worker.worker, worker.running.len(), worker.slots);
        lines.push(Line::from(words).add_modifier(Modifier::BOLD));
        for doing in worker.running.iter().filter(|doing| doing.batch == screen.view.batch.id) {
            lines.push(Line::from(format!("  {} -> {}", sanitize(&doing.source), sanitize(&doing.target))));
        }
    }
    lines
}

/// Draws a framed list from an offset, which is clamped to the list.
fn draw_list(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    lines: Vec<Line<'static>>,
    (has_focus, offset): (bool, &mut usize),
) {
    let inner = usize::from(area.height.saturating_sub(2)).max(1);
    let total = lines.len();
    *offset = (*offset).min(total.saturating_sub(inner));
    let shown = match total > inner {
        true => format!(" {title} {}-{} of {total} ", *offset + 1, (*offset + inner).min(total)),
        false => format!(" {title} "),
    };
    let border = if has_focus { Style::new().fg(Color::Blue) } else { Style::new().fg(Color::DarkGray) };
    let block = Block::bordered().border_style(border).title(shown);
    let seen: Vec<Line<'static>> = lines.into_iter().skip(*offset).take(inner).collect();
    let text = Paragraph::new(seen).block(block);
    // Long errors are wrapped if there is room for more than a line of each.
    let text = if total * 2 <= inner { text.wrap(Wrap { trim: false }) } else { text };
    frame.render_widget(text, area);
}

fn footer_line(screen: &BatchScreen) -> Line<'static> {
    if screen.prompt == Prompt::ConfirmCancel {
        return Line::from("Cancel the batch? It cannot be resumed. y: yes, any other key: no").fg(CANCELLED);
    }
    if let Some(message) = &screen.message {
        return Line::from(sanitize(message).into_owned()).fg(FAILED);
    }
    let pause = if screen.view.batch.state == BatchState::Paused { "resume" } else { "pause" };
    Line::from(format!("q quit  p {pause}  c cancel  Tab switch list  ↑↓ scroll")).fg(Color::DarkGray)
}

fn truncate(text: &str, width: usize) -> String {
    let text = sanitize(text);
    match text.chars().count() <= width {
        true => text.into_owned(),
        false => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use imgsync_model::batch::{BatchId, TaskCounts};
    use imgsync_oci::Digest;
    use imgsync_oci::error::ErrorKind;
    use imgsync_store::TimeBucket;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn sample_screen() -> BatchScreen {
        let counts = TaskCounts { total: 100, copied: 40, failed: 2, running: 8, waiting: 50, ..TaskCounts::default() };
        let batch = Batch {
            id: BatchId::generate(),
            state: BatchState::Running,
            run: 0,
            rules: Digest::sha256(b""),
            options: String::new(),
            supersedes: None,
            created_at: Timestamp::now(),
            plan_completed_at: Some(Timestamp::now()),
            ended_at: None,
            counts,
            queued: 0,
            retrying: 0,
            usage: Default::default(),
        };
        let part = |number| TimeBucket { number, copied: 4 + u64::from(number), bytes: 1000, ..TimeBucket::default() };
        let timeline = BatchTimeline {
            bucket_width: Duration::from_secs(1),
            buckets: (0..10).map(part).collect(),
            ..BatchTimeline::default()
        };
        let unlisted = (0..30).map(|n| ListingFailure {
            repository: format!("gcr.io/r{n}\u{1b}[31m"),
            kind: ErrorKind::Denied,
            error: "not for you".to_owned(),
        });
        let worker = Heartbeat {
            worker: "here-7".to_owned(),
            host: "here".to_owned(),
            version: "3".to_owned(),
            started_at: Timestamp::now(),
            slots: 4,
            draining: false,
            running: Vec::new(),
            unserved: Vec::new(),
            refused: 0,
            refusal_reason: None,
        };
        let options = BatchOptions::default();
        let title = "gcr.io/distroless/static".to_owned();
        let view = BatchView { batch, state: BatchStatus::Running, owner: Some("run on here-1".to_owned()) };
        BatchScreen::new(view, (title, options), (Vec::new(), unlisted.collect()), timeline, vec![worker], Vec::new())
    }

    fn render(fixture: &mut BatchScreen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, fixture)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_is_there_on_small_and_large_terminals_and_nothing_breaks_on_tiny_ones() {
        for (width, height) in [(80, 24), (200, 50), (40, 12), (10, 3), (1, 1)] {
            let shown = render(&mut sample_screen(), width, height);
            if width >= 80 {
                for wanted in [
                    "running",
                    "gcr.io/distroless/static",
                    "42 of 100",
                    "40 copied",
                    "2 failed",
                    "Failures",
                    "Workers",
                    "q quit",
                ] {
                    assert!(shown.contains(wanted), "{wanted} at {width}x{height}:\n{shown}");
                }
            }
            assert!(!shown.contains('\u{1b}'));
        }
    }

    #[test]
    fn a_list_is_moved_within_its_bounds() {
        let mut fixture = sample_screen();
        fixture.scroll(10_000);
        let shown = render(&mut fixture, 120, 40);
        assert!(shown.contains("of 60 ") && shown.contains("gcr.io/r29"), "{shown}");
        fixture.scroll(-20_000);
        assert!(render(&mut fixture, 120, 40).contains("Failures 1-"));
    }

    #[test]
    fn values_are_spread_over_the_room_that_there_is() {
        assert_eq!(resample(&[1, 5], 4), [1, 1, 5, 5]);
        assert_eq!(resample(&[1, 9, 3, 4], 2), [9, 4]);
        assert!(resample(&[], 3).is_empty());
    }
}
