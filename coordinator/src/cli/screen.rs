//! The terminal view of a batch. Drawing reads nothing but a [`Scene`].

use std::time::Duration;

use bytesize::ByteSize;
use imgsync_common::batch::Options;
use imgsync_common::printable::printable;
use imgsync_common::retry::seconds;
use imgsync_common::store::{Batch, Control, Course, FailedTask, Heartbeat, Unlisted};
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline, Wrap};

use crate::batches::{BatchState, BatchView};
use crate::words::many;

const COPIED: Color = Color::Green;
const UNCHANGED: Color = Color::DarkGray;
const FAILED: Color = Color::Red;
const CANCELLED: Color = Color::Yellow;
const RUNNING: Color = Color::Blue;

/// The data of the view.
pub(crate) struct Scene {
    pub(crate) view: BatchView,
    title: String,
    to: String,
    failures: Vec<FailedTask>,
    unlisted: Vec<Unlisted>,
    course: Course,
    workers: Vec<Heartbeat>,
    attention: Vec<String>,
    /// The list that keys scroll.
    pub(crate) focus: Focus,
    /// Pending question.
    pub(crate) asks: Asks,
    /// Why the last action or refresh failed.
    pub(crate) said: Option<String>,
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
pub(crate) enum Asks {
    #[default]
    Nothing,
    ToCancel,
}

impl Scene {
    pub(crate) fn new(
        view: BatchView,
        (title, options): (String, Options),
        (failures, unlisted): (Vec<FailedTask>, Vec<Unlisted>),
        course: Course,
        workers: Vec<Heartbeat>,
        mut attention: Vec<String>,
    ) -> Scene {
        let mut to: Vec<String> = options.rules.into_iter().flat_map(|rule| rule.to).collect();
        to.sort();
        to.dedup();
        let (to, focus, asks) = (to.join(", "), Focus::Failures, Asks::Nothing);
        attention.splice(..0, view.notice());
        Scene {
            view,
            title,
            to,
            failures,
            unlisted,
            course,
            workers,
            attention,
            focus,
            asks,
            said: None,
            offsets: [0, 0],
        }
    }

    /// Replaces the data; keeps focus, question and scroll positions.
    pub(crate) fn follow(&mut self, next: Scene) {
        let (focus, asks, offsets) = (self.focus, self.asks, self.offsets);
        *self = Scene { focus, asks, offsets, ..next };
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
pub(crate) fn draw(frame: &mut Frame<'_>, scene: &mut Scene) {
    let area = frame.area();
    let attention = u16::try_from(scene.attention.len().min(3)).unwrap_or(3);
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
    frame.render_widget(Paragraph::new(heading(scene, usize::from(area.width))), head);
    frame.render_widget(Paragraph::new(stacked(&scene.view.batch, usize::from(bar.width))), bar);
    frame.render_widget(Paragraph::new(numbers(scene)), counts);
    let lines = scene.attention.iter().take(3).map(|line| Line::from(format!("! {}", printable(line))).fg(CANCELLED));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), notes);
    let [images, bytes] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(plots);
    draw_course(frame, scene, (images, bytes));
    // Side by side if both fit. Without a cluster, the worker is known to its own process alone.
    let [failures, workers] = match area.width >= 100 {
        _ if scene.workers.is_empty() => [lists, Rect::ZERO],
        true => Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(lists),
        false => Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas(lists),
    };
    let lines = failure_lines(scene);
    list(frame, failures, "Failures", lines, (scene.focus == Focus::Failures, &mut scene.offsets[0]));
    if scene.workers.is_empty() {
        return frame.render_widget(Paragraph::new(keys(scene)), foot);
    }
    let lines = worker_lines(scene);
    list(frame, workers, "Workers", lines, (scene.focus == Focus::Workers, &mut scene.offsets[1]));
    frame.render_widget(Paragraph::new(keys(scene)), foot);
}

fn heading(scene: &Scene, width: usize) -> Vec<Line<'static>> {
    let batch = &scene.view.batch;
    let (state, color) = match scene.view.state {
        BatchState::Running if batch.sealed_at.is_none() => ("listing", RUNNING),
        BatchState::Running => (scene.view.state.as_str(), RUNNING),
        BatchState::Paused | BatchState::Cancelled | BatchState::Superseded => (scene.view.state.as_str(), CANCELLED),
        BatchState::Interrupted => (scene.view.state.as_str(), FAILED),
        BatchState::Done => (scene.view.state.as_str(), COPIED),
    };
    let title = cut(&scene.title, width.saturating_sub(state.len() + 3));
    let first = Line::from(vec![
        Span::from(format!(" {state} ")).style(Style::new().fg(Color::Black).bg(color)),
        Span::from(format!(" {title}")).add_modifier(Modifier::BOLD),
    ]);
    let second = format!("{}  {}  to {}", batch.id, seconds(scene.elapsed()), scene.to);
    vec![first, Line::from(cut(&second, width)).fg(Color::DarkGray)]
}

/// Draws outcomes as a stacked bar. A count above zero has at least one cell.
fn stacked(batch: &Batch, width: usize) -> Line<'static> {
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

fn numbers(scene: &Scene) -> Vec<Line<'static>> {
    let batch = &scene.view.batch;
    let counts = &batch.counts;
    let count = |number: u64, what: &str, color: Color| {
        let style = if number > 0 { Style::new().fg(color) } else { Style::new().fg(Color::DarkGray) };
        Span::from(format!("{number} {what}  ")).style(style)
    };
    let of = if batch.sealed_at.is_some() { "" } else { " so far" };
    let first = Line::from(vec![
        Span::from(format!("{} of {}{of}  ", counts.ended(), counts.total)).add_modifier(Modifier::BOLD),
        count(counts.copied, "copied", COPIED),
        count(counts.unchanged, "unchanged", Color::Reset),
        count(counts.failed, "failed", FAILED),
        count(counts.cancelled, "cancelled", CANCELLED),
        count(counts.running, "running", RUNNING),
        count(counts.waiting, "waiting", Color::Reset),
    ]);
    let elapsed = scene.elapsed().as_secs_f64().max(0.001);
    let copied = batch.spent.bytes.copied;
    let mut second = format!(
        "{} copied, {}/s  {}",
        ByteSize(copied),
        ByteSize((copied as f64 / elapsed) as u64),
        many(batch.spent.requests.source + batch.spent.requests.target, "request", "requests")
    );
    let done = counts.ended() as f64 / elapsed;
    if batch.sealed_at.is_some() && counts.open() > 0 && done > 0.0 {
        let left = Duration::from_secs_f64((counts.open() as f64 / done).min(1e9));
        second.push_str(&format!("  {} left", seconds(left)));
    }
    vec![first, Line::from(second)]
}

fn draw_course(frame: &mut Frame<'_>, scene: &Scene, (images, bytes): (Rect, Rect)) {
    let parts = &scene.course.parts;
    let width = scene.course.width.as_secs_f64().max(0.001);
    let columns = parts.last().map_or(0, |part| part.number as usize + 1);
    let (mut ended, mut moved) = (vec![0_u64; columns], vec![0_u64; columns]);
    for part in parts {
        ended[part.number as usize] = part.copied + part.unchanged + part.failed + part.cancelled;
        moved[part.number as usize] = (part.bytes as f64 / width) as u64;
    }
    let most = ended.iter().max().copied().unwrap_or_default();
    let fastest = moved.iter().max().copied().unwrap_or_default();
    let titles = [
        format!(" images in {}, at the most {most} ", seconds(scene.course.width)),
        format!(" throughput, at the most {}/s ", ByteSize(fastest)),
    ];
    let data = [(ended, titles[0].clone(), COPIED, images), (moved, titles[1].clone(), RUNNING, bytes)];
    for (values, title, color, area) in data {
        let block = Block::bordered().border_style(Style::new().fg(Color::DarkGray)).title(title);
        let inner = usize::from(area.width.saturating_sub(2));
        let values = spread(&values, inner);
        frame.render_widget(Sparkline::default().data(&values).style(Style::new().fg(color)).block(block), area);
    }
}

/// Resamples the values to so many columns: merged values become their maximum, or values repeat.
fn spread(values: &[u64], columns: usize) -> Vec<u64> {
    let count = values.len();
    let of = |column: usize| {
        let (from, to) = (column * count / columns, ((column + 1) * count).div_ceil(columns));
        values[from.min(count - 1)..to.clamp(from + 1, count)].iter().max().copied().unwrap_or_default()
    };
    if count == 0 { Vec::new() } else { (0..columns).map(of).collect() }
}

fn failure_lines(scene: &Scene) -> Vec<Line<'static>> {
    let mut classes: std::collections::BTreeMap<_, usize> = std::collections::BTreeMap::new();
    for failed in &scene.failures {
        *classes.entry(failed.failure.class).or_default() += 1;
    }
    let mut lines = Vec::new();
    if !classes.is_empty() {
        let words: Vec<String> = classes
            .iter()
            .map(|(class, count)| format!("{count} {}", crate::report::advice::title(*class).to_lowercase()))
            .collect();
        lines.push(Line::from(words.join(", ")).add_modifier(Modifier::BOLD));
    }
    for unlisted in &scene.unlisted {
        lines.push(Line::from(format!("{} could not be listed", printable(&unlisted.repository))).fg(FAILED));
        lines.push(Line::from(format!("  {}", printable(&unlisted.error))));
    }
    for failed in &scene.failures {
        lines.push(Line::from(format!("{}", failed.task.planned.source)).fg(FAILED));
        lines.push(Line::from(format!("  {}", printable(&failed.failure.error))));
    }
    if lines.is_empty() {
        lines.push(Line::from("none").fg(Color::DarkGray));
    }
    lines
}

fn worker_lines(scene: &Scene) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for worker in &scene.workers {
        let draining = if worker.draining { ", is about to end" } else { "" };
        let words = format!("{}: {} of {} slots{draining}", worker.worker, worker.running.len(), worker.slots);
        lines.push(Line::from(words).add_modifier(Modifier::BOLD));
        for doing in worker.running.iter().filter(|doing| doing.batch == scene.view.batch.id) {
            lines.push(Line::from(format!("  {} -> {}", printable(&doing.source), printable(&doing.target))));
        }
    }
    lines
}

/// Draws a framed list from an offset, which is clamped to the list.
fn list(
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

fn keys(scene: &Scene) -> Line<'static> {
    if scene.asks == Asks::ToCancel {
        return Line::from("Cancel the batch for good? y: yes, any other key: no").fg(CANCELLED);
    }
    if let Some(said) = &scene.said {
        return Line::from(printable(said).into_owned()).fg(FAILED);
    }
    let pause = if scene.view.batch.control == Control::Paused { "resume" } else { "pause" };
    Line::from(format!("q leave  p {pause}  c cancel  Tab the other list  ↑↓ move")).fg(Color::DarkGray)
}

fn cut(text: &str, width: usize) -> String {
    let text = printable(text);
    match text.chars().count() <= width {
        true => text.into_owned(),
        false => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use imgsync_common::batch::{BatchId, Counts};
    use imgsync_common::error::Class;
    use imgsync_common::image::Digest;
    use imgsync_common::store::Part;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn scene() -> Scene {
        let counts = Counts { total: 100, copied: 40, failed: 2, running: 8, waiting: 50, ..Counts::default() };
        let batch = Batch {
            id: BatchId::generate(),
            control: Control::Running,
            run: 0,
            rules: Digest::sha256(b""),
            options: String::new(),
            supersedes: None,
            created_at: Timestamp::now(),
            sealed_at: Some(Timestamp::now()),
            ended_at: None,
            counts,
            queued: 0,
            retrying: 0,
            spent: Default::default(),
        };
        let part = |number| Part { number, copied: 4 + u64::from(number), bytes: 1000, ..Part::default() };
        let course = Course { width: Duration::from_secs(1), parts: (0..10).map(part).collect(), ..Course::default() };
        let unlisted = (0..30).map(|n| Unlisted {
            repository: format!("gcr.io/r{n}\u{1b}[31m"),
            class: Class::Denied,
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
            refused_why: None,
        };
        let options = Options::default();
        let title = "gcr.io/distroless/static".to_owned();
        let view = BatchView { batch, state: BatchState::Running, owner: Some("run on here-1".to_owned()) };
        Scene::new(view, (title, options), (Vec::new(), unlisted.collect()), course, vec![worker], Vec::new())
    }

    fn drawn(scene: &mut Scene, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, scene)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_is_there_on_small_and_large_terminals_and_nothing_breaks_on_tiny_ones() {
        for (width, height) in [(80, 24), (200, 50), (40, 12), (10, 3), (1, 1)] {
            let shown = drawn(&mut scene(), width, height);
            if width >= 80 {
                for wanted in [
                    "running",
                    "gcr.io/distroless/static",
                    "42 of 100",
                    "40 copied",
                    "2 failed",
                    "Failures",
                    "Workers",
                    "q leave",
                ] {
                    assert!(shown.contains(wanted), "{wanted} at {width}x{height}:\n{shown}");
                }
            }
            assert!(!shown.contains('\u{1b}'));
        }
    }

    #[test]
    fn a_list_is_moved_within_its_bounds() {
        let mut scene = scene();
        scene.scroll(10_000);
        let shown = drawn(&mut scene, 120, 40);
        assert!(shown.contains("of 60 ") && shown.contains("gcr.io/r29"), "{shown}");
        scene.scroll(-20_000);
        assert!(drawn(&mut scene, 120, 40).contains("Failures 1-"));
    }

    #[test]
    fn values_are_spread_over_the_room_that_there_is() {
        assert_eq!(spread(&[1, 5], 4), [1, 1, 5, 5]);
        assert_eq!(spread(&[1, 9, 3, 4], 2), [9, 4]);
        assert!(spread(&[], 3).is_empty());
    }
}
