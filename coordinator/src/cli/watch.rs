//! `imgsync batch watch`: follows a batch until it ends, full screen on a terminal, in lines elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use imgsync_common::batch::BatchId;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::registry::Client;
use imgsync_common::store::{Batch, Control, Store};
use jiff::Timestamp;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::task::spawn_blocking;

use super::exit::Exit;
use super::printer::Printer;
use super::run::exit_of_batch;
use super::screen::{Asks, Focus, Scene, draw};
use super::watching::progress_line;
use crate::batches::{Attendance, BatchView, Crew, Over, until_over, waits};
use crate::report::Report;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time to wait for a key before the view is drawn again.
const KEY_WAIT: Duration = Duration::from_millis(200);
const FAILURES: usize = 500;

/// Runs the command.
pub(crate) async fn watch(
    store: &dyn Store,
    id: BatchId,
    (client, is_cluster): (&Client, bool),
    printer: &Printer,
) -> Result<Exit> {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let over = match std::io::stdout().is_terminal() && std::io::stdin().is_terminal() && !dumb {
        true => view(store, id, (client, is_cluster)).await?,
        false => Some(lines(store, id, printer).await?),
    };
    let batch = match over {
        Some(Over::Ended(batch)) => batch,
        Some(Over::Left(view)) => {
            printer.data(&line(&view.batch));
            print_left(&view, printer);
            return Ok(Exit::Interrupted);
        }
        None => {
            printer.line(&format!("batch {id} goes on; `imgsync batch watch {id}` looks again"));
            return Ok(Exit::Done);
        }
    };
    printer.data(&line(&batch));
    let report = Report::of(store, id).await?;
    let removed_all = !report.pruned.iter().any(|line| line.outcome.is_trouble());
    Ok(exit_of_batch(&batch, report.unlisted.is_empty() && removed_all))
}

/// Reports that a batch is interrupted, and what to do.
pub(super) fn print_left(view: &BatchView, printer: &Printer) {
    printer.error(
        &format!("batch {} has not ended, and nobody runs it any more", view.batch.id),
        view.notice().as_deref(),
    );
}

/// Prints a line for each change.
async fn lines(store: &dyn Store, id: BatchId, printer: &Printer) -> Result<Over> {
    let mut before = None;
    let seen = |batch: &Batch| {
        if before != Some(batch.counts) {
            printer.data(&line(batch));
        }
        before = Some(batch.counts);
    };
    until_over(store, id, seen).await
}

fn line(batch: &Batch) -> String {
    let end = batch.ended_at.unwrap_or_else(Timestamp::now);
    let elapsed = Duration::try_from(end.duration_since(batch.created_at)).unwrap_or_default();
    let line = progress_line(batch, batch.spent.bytes.copied, elapsed);
    format!("{} of {}: {line}", batch.counts.ended(), batch.counts.total)
}

/// The terminal, restored on drop.
struct Terminal(ratatui::DefaultTerminal);

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows the view until the batch ends or is abandoned by its process. None if the user quits.
async fn view(store: &dyn Store, id: BatchId, who: (&Client, bool)) -> Result<Option<Over>> {
    let failed = |error: std::io::Error| Error::new(Class::Local, "drawing on the terminal", error.to_string());
    let mut scene = look(store, id, who).await?;
    let mut terminal = Terminal(ratatui::try_init().map_err(failed)?);
    let (mut looked, mut attendance) = (Instant::now(), Attendance::default());
    loop {
        terminal.0.draw(|frame| draw(frame, &mut scene)).map_err(failed)?;
        if scene.view.batch.ended_at.is_some() {
            return Ok(Some(Over::Ended(scene.view.batch)));
        }
        let key = spawn_blocking(key).await.map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)?;
        if let Some(key) = key {
            match steer(&mut scene, key) {
                Steer::Nothing => {}
                Steer::Leave => return Ok(None),
                Steer::To(control) => {
                    let now = match control {
                        Control::Paused => store.pause(id).await,
                        Control::Running => store.resume(id).await,
                        _ => store.cancel(id).await,
                    };
                    scene.said = match now {
                        Ok(now) if now == control => None,
                        Ok(now) => Some(format!("it is {now}")),
                        Err(error) => Some(error.to_string()),
                    };
                    looked -= LOOK_EVERY;
                }
            }
        }
        if looked.elapsed() >= LOOK_EVERY {
            looked = Instant::now();
            match look(store, id, who).await {
                Ok(next) => {
                    scene.follow(next);
                    if attendance.is_left(store, &scene.view).await.unwrap_or_default() {
                        return Ok(Some(Over::Left(scene.view)));
                    }
                }
                Err(error) if error.class() == Class::NotFound => return Err(error),
                // The last data stays visible, with the reason why it is old.
                Err(error) => scene.said = Some(error.to_string()),
            }
        }
    }
}

/// Returns the next key, if one is pressed soon.
fn key() -> std::io::Result<Option<(KeyCode, KeyModifiers)>> {
    if !event::poll(KEY_WAIT)? {
        return Ok(None);
    }
    match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => Ok(Some((key.code, key.modifiers))),
        _ => Ok(None),
    }
}

/// What a key requests.
enum Steer {
    Nothing,
    Leave,
    To(Control),
}

fn steer(scene: &mut Scene, (code, modifiers): (KeyCode, KeyModifiers)) -> Steer {
    let asked = std::mem::take(&mut scene.asks);
    match (asked, code) {
        (_, KeyCode::Char('c')) if modifiers.contains(KeyModifiers::CONTROL) => return Steer::Leave,
        (Asks::ToCancel, KeyCode::Char('y')) => return Steer::To(Control::Cancelled),
        (Asks::ToCancel, _) => {}
        (Asks::Nothing, KeyCode::Char('q') | KeyCode::Esc) => return Steer::Leave,
        (Asks::Nothing, KeyCode::Char('p')) => {
            return Steer::To(match scene.view.batch.control {
                Control::Paused => Control::Running,
                _ => Control::Paused,
            });
        }
        (Asks::Nothing, KeyCode::Char('c')) => scene.asks = Asks::ToCancel,
        (Asks::Nothing, KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right) => {
            scene.focus = match scene.focus {
                Focus::Failures => Focus::Workers,
                Focus::Workers => Focus::Failures,
            };
        }
        (Asks::Nothing, KeyCode::Down | KeyCode::Char('j')) => scene.scroll(1),
        (Asks::Nothing, KeyCode::Up | KeyCode::Char('k')) => scene.scroll(-1),
        (Asks::Nothing, KeyCode::PageDown) => scene.scroll(10),
        (Asks::Nothing, KeyCode::PageUp) => scene.scroll(-10),
        (Asks::Nothing, _) => {}
    }
    Steer::Nothing
}

/// Loads the data of the view.
async fn look(store: &dyn Store, id: BatchId, (client, is_cluster): (&Client, bool)) -> Result<Scene> {
    let report = Report::of(store, id).await?;
    let view = report.view();
    let Report { batch, unlisted, title, options, .. } = report;
    let failures = store.failures(id, 0, FAILURES).await?;
    let course = store.course(id).await?;
    let crew = Crew::of(store, &batch).await?;
    let mut attention = waits(store, &batch, client).await?;
    // Without a cluster, the worker is known to its own process alone.
    if is_cluster {
        attention.extend(crew.complaints());
    }
    Ok(Scene::new(view, (title, options), (failures, unlisted), course, crew.workers, attention))
}
