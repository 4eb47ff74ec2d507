//! The terminal view of a batch. Drawing reads nothing but a [`BatchScreen`].

mod ascii;

use std::time::Duration;

use bytesize::ByteSize;
use imgsync_model::batch::BatchOptions;
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::retry::format_duration;
use imgsync_oci::sanitize::sanitize;
use imgsync_store::{Batch, BatchState, BatchTimeline, FailedTask, Heartbeat, ListingFailure};
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline, Wrap};

use super::batch_progress::{format_ended, time_left};
use crate::batch_view::{BatchStatus, BatchView};

const COPIED: Color = Color::Green;
const UNCHANGED: Color = Color::DarkGray;
const FAILED: Color = Color::Red;
const CANCELLED: Color = Color::Yellow;
const RUNNING: Color = Color::Blue;
/// Space between words.
const GAP: &str = "  ";
/// Width from which the lists are side by side.
const WIDE_COLUMNS: u16 = 100;

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
    /// Whether the locale shows ASCII only.
    pub(crate) is_ascii: bool,
    /// Whether the batch compares targets with their sources.
    is_verification: bool,
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
    /// Whether to bring the batch into this state.
    Confirm(BatchState),
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
        let is_verification = options.verify.is_some();
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
            is_ascii: false,
            is_verification,
            offsets: [0, 0],
        }
    }

    /// Replaces the data; keeps focus, question, characters and scroll positions.
    pub(crate) fn update(&mut self, next: BatchScreen) {
        let (focus, prompt, is_ascii, offsets) = (self.focus, self.prompt, self.is_ascii, self.offsets);
        *self = BatchScreen { focus, prompt, is_ascii, offsets, ..next };
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
    draw_panes(frame, screen);
    if screen.is_ascii {
        ascii::replace_symbols(frame.buffer_mut());
    }
}

fn draw_panes(frame: &mut Frame<'_>, screen: &mut BatchScreen) {
    let area = frame.area();
    let attention = u16::try_from(screen.attention.len().min(3)).unwrap_or(3);
    let plot = if area.height >= 40 { 10 } else { 6 };
    let counters = counter_lines(screen, usize::from(area.width));
    let rows = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Length(u16::try_from(counters.len()).unwrap_or(2)),
        Constraint::Length(attention),
        Constraint::Length(plot),
        Constraint::Min(3),
        Constraint::Length(1),
    ]);
    let [head, bar, counts, notes, plots, lists, foot] = rows.areas(area);
    frame.render_widget(Paragraph::new(header_lines(screen, usize::from(area.width))), head);
    frame.render_widget(Paragraph::new(outcome_bar(&screen.view.batch, usize::from(bar.width))), bar);
    frame.render_widget(Paragraph::new(counters), counts);
    let lines = screen.attention.iter().take(3).map(|line| Line::from(format!("! {}", sanitize(line))).fg(CANCELLED));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), notes);
    let [images, bytes] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(plots);
    draw_timeline(frame, screen, (images, bytes));
    // Side by side if both fit. Without a cluster, the worker is known to its own process alone.
    let [failures, workers] = match area.width >= WIDE_COLUMNS {
        _ if screen.workers.is_empty() => [lists, Rect::ZERO],
        true => Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(lists),
        false => Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas(lists),
    };
    let title = if screen.is_verification { "Different or failed" } else { "Failures" };
    let lines = failure_lines(screen, usize::from(failures.width.saturating_sub(2)));
    draw_list(frame, failures, title, lines, (screen.focus == Focus::Failures, &mut screen.offsets[0]));
    if !screen.workers.is_empty() {
        let lines = worker_lines(screen);
        draw_list(frame, workers, "Workers", lines, (screen.focus == Focus::Workers, &mut screen.offsets[1]));
    }
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

/// Returns the counts, bytes and time left, in as many lines as the width needs: none of them is cut off.
fn counter_lines(screen: &BatchScreen, width: usize) -> Vec<Line<'static>> {
    let batch = &screen.view.batch;
    let counts = &batch.counts;
    let count = |number: u64, what: &str, color: Color| {
        let style = if number > 0 { Style::new().fg(color) } else { Style::new().fg(Color::DarkGray) };
        Span::from(format!("{} {what}", group_digits(number))).style(style)
    };
    let mut parts = vec![Span::from(format_ended(batch)).add_modifier(Modifier::BOLD)];
    match screen.is_verification {
        true => parts.extend([
            count(counts.unchanged, "identical", COPIED),
            count(counts.failed, "different or failed", FAILED),
        ]),
        false => parts.extend([
            count(counts.copied, "copied", COPIED),
            count(counts.unchanged, "unchanged", Color::Reset),
            count(counts.failed, "failed", FAILED),
        ]),
    }
    parts.extend([
        count(counts.cancelled, "cancelled", CANCELLED),
        count(counts.running, "running", RUNNING),
        count(counts.waiting, "waiting", Color::Reset),
    ]);
    let elapsed = screen.elapsed();
    let copied = batch.usage.bytes.copied;
    let rate = copied as f64 / elapsed.as_secs_f64().max(0.001);
    let requests = batch.usage.requests.source + batch.usage.requests.target;
    let mut more = vec![
        Span::from(format!("{} copied, {}/s", ByteSize(copied), ByteSize(rate as u64))),
        // Those for referrers, digest tags, tokens and redirects are not counted.
        Span::from(format!("{} for images", pluralize(requests, "request", "requests"))),
    ];
    more.extend(time_left(batch, elapsed).map(|left| Span::from(format!("{} left", format_duration(left)))));
    let mut lines = flow(parts, width);
    lines.extend(flow(more, width));
    // One line if it has room for everything.
    match &lines[..] {
        [first, second] if first.width() + GAP.len() + second.width() <= width => {
            let spans = first.spans.iter().cloned().chain([Span::from(GAP)]).chain(second.spans.iter().cloned());
            vec![Line::from(spans.collect::<Vec<_>>())]
        }
        _ => lines,
    }
}

/// Fills lines of a width with words.
fn flow(words: Vec<Span<'static>>, width: usize) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'static>> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.width() + GAP.len() + word.width() <= width => {
                line.push_span(Span::from(GAP));
                line.push_span(word);
            }
            _ => lines.push(Line::from(word)),
        }
    }
    lines
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
        format!(" images per {}, peak {} ", format_duration(screen.timeline.bucket_width), group_digits(most)),
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

/// Lists what failed, with the error on the same line if the width has room for both.
fn failure_lines(screen: &BatchScreen, width: usize) -> Vec<Line<'static>> {
    let mut kinds: std::collections::BTreeMap<_, u64> = std::collections::BTreeMap::new();
    for failed in &screen.failures {
        *kinds.entry(failed.failure.kind).or_default() += 1;
    }
    let mut lines = Vec::new();
    if !kinds.is_empty() {
        let words: Vec<String> = kinds
            .iter()
            .map(|(kind, count)| {
                format!("{} {}", group_digits(*count), crate::report::advice::title(*kind).to_lowercase())
            })
            .collect();
        lines.push(Line::from(words.join(", ")).add_modifier(Modifier::BOLD));
    }
    let mut push = |what: String, error: &str| {
        let (what, error) = (Span::from(what).fg(FAILED), Span::from(sanitize(error).into_owned()));
        match what.width() + GAP.len() + error.width() <= width {
            true => lines.push(Line::from(vec![what, Span::from(GAP), error])),
            false => {
                lines.push(Line::from(what));
                lines.push(Line::from(vec![Span::from(GAP), error]));
            }
        }
    };
    for unlisted in &screen.unlisted {
        push(format!("{} could not be listed", sanitize(&unlisted.repository)), &unlisted.error);
    }
    for failed in &screen.failures {
        let spec = &failed.task.spec;
        let (short, long) = (spec.source.to_string(), format!("{} -> {}", spec.source, spec.target));
        push(if long.len() <= width { long } else { short }, &failed.failure.error);
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
        let slots = pluralize(worker.slots.into(), "slot", "slots");
        let words = format!("{}: {} of {slots}{draining}", worker.worker, worker.running.len());
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
    let number = |lines: usize| group_digits(lines as u64);
    let shown = match total > inner {
        true => {
            format!(" {title} {}-{} of {} ", number(*offset + 1), number((*offset + inner).min(total)), number(total))
        }
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
    if let Prompt::Confirm(state) = screen.prompt {
        let question = match state {
            BatchState::Paused => "Pause the batch? Images in progress are finished",
            BatchState::Running => "Resume the batch",
            _ => "Cancel the batch? It cannot be resumed",
        };
        let end = if question.contains('?') { "." } else { "?" };
        return Line::from(format!("{question}{end} y: yes, any other key: no")).fg(CANCELLED);
    }
    if let Some(message) = &screen.message {
        return Line::from(sanitize(message).into_owned()).fg(FAILED);
    }
    let pause = if screen.view.batch.state == BatchState::Paused { "resume" } else { "pause" };
    Line::from(format!("q quit  p {pause}  c cancel  Tab switch list  ↑↓ scroll")).fg(Color::DarkGray)
}

/// Truncates a text to a width, without control characters.
pub(super) fn truncate(text: &str, width: usize) -> String {
    let text = sanitize(text);
    match text.chars().count() <= width {
        true => text.into_owned(),
        false => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
pub(super) mod tests;
