//! `imgsync batch watch`: follows a batch until it ends, full screen on a terminal, in lines elsewhere.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::format_duration;
use imgsync_registry::Client;
use imgsync_store::{Batch, BatchState, Store};
use jiff::Timestamp;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;

use super::batch_progress::{format_ended, is_verification, progress_line};
use super::exit::{Exit, exit_for_batch};
use super::printer::Printer;
use super::tui::{BatchScreen, Focus, Prompt, draw};
use crate::batch_view::BatchView;
use crate::orchestrator::{
    AbandonmentDetector, BatchWaitResult, CONFIRMATION_TIME, StateChange, WorkerCoverage, rate_limit_messages,
    wait_until_over,
};
use crate::report::Report;

const BATCH_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time to wait for a key before the view is drawn again.
const KEY_POLL_TIMEOUT: Duration = Duration::from_millis(200);
const MAX_FAILURES: usize = 500;

/// Runs the command.
pub(crate) async fn watch(
    store: &Arc<dyn Store>,
    id: BatchId,
    (client, is_cluster): (&Client, bool),
    printer: &Printer,
) -> Result<Exit> {
    let mut confirmation = None;
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let over = match std::io::stdout().is_terminal() && std::io::stdin().is_terminal() && !dumb {
        true => {
            let viewer = (client, is_cluster, printer.is_ascii());
            run_screen(store, id, viewer, &mut confirmation).await?
        }
        false => Some(watch_lines(&**store, id, printer).await?),
    };
    if let Some((wanted, confirmation)) = confirmation {
        let confirmation = async { confirmation.await.unwrap_or_else(|error| Err(lost_confirmation(&error))) };
        confirm_change(id, wanted, confirmation, printer).await?;
    }
    let batch = match over {
        Some(BatchWaitResult::Ended(batch)) => batch,
        Some(BatchWaitResult::Abandoned(view)) => {
            printer.data(&format_progress(&view.batch));
            print_abandoned(&view, printer);
            return Ok(Exit::Interrupted);
        }
        None => {
            printer.line(&format!("batch {id} continues; `imgsync batch watch {id}` follows it"));
            return Ok(Exit::Done);
        }
    };
    printer.data(&format_progress(&batch));
    let report = Report::load(&**store, id).await?;
    let removed_all = !report.pruned.iter().any(|line| line.outcome.needs_attention());
    Ok(exit_for_batch(&batch, report.unlisted.is_empty() && removed_all))
}

/// Reports that a batch is interrupted, and what to do.
pub(super) fn print_abandoned(view: &BatchView, printer: &Printer) {
    printer.error(&format!("batch {} is interrupted: no process runs it", view.batch.id), view.notice().as_deref());
}

/// Prints a line for each change of the counts or the state.
async fn watch_lines(store: &dyn Store, id: BatchId, printer: &Printer) -> Result<BatchWaitResult> {
    let mut before = None;
    let seen = |batch: &Batch| {
        let now = Some((batch.counts, batch.state));
        if before != now {
            printer.data(&format_progress(batch));
        }
        before = now;
    };
    wait_until_over(store, id, seen).await
}

fn format_progress(batch: &Batch) -> String {
    let end = batch.ended_at.unwrap_or_else(Timestamp::now);
    let elapsed = Duration::try_from(end.duration_since(batch.created_at)).unwrap_or_default();
    let line = progress_line(batch, is_verification(batch), batch.usage.bytes.copied, elapsed);
    format!("{}: {line}", format_ended(batch))
}

/// Waits for the confirmation of a change, and reports if the change had to be repeated.
pub(super) async fn confirm_change(
    id: BatchId,
    wanted: BatchState,
    confirmation: impl Future<Output = Result<bool>>,
    printer: &Printer,
) -> Result<()> {
    let time = format_duration(CONFIRMATION_TIME);
    printer.line(&format!("the store has replicas: watching for {time} that no failover loses this (Ctrl-C ends it)"));
    if confirmation.await? {
        printer.line(&format!("the store had lost this: batch {id} is {wanted} again"));
    }
    Ok(())
}

/// Change of the batch's state that a failover of the store may lose, being watched over.
type Confirmation = (BatchState, AbortOnDropHandle<Result<bool>>);

fn lost_confirmation(error: &tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Local, "watching over the change of the batch", error.to_string())
}

/// Changes the state of the batch, and watches over that as long as a failover of the store may lose it. An earlier
/// change is no longer watched over.
async fn change_state(
    store: &Arc<dyn Store>,
    id: BatchId,
    wanted: BatchState,
    confirmation: &mut Option<Confirmation>,
) -> Option<String> {
    *confirmation = None;
    let (change, may_be_lost) = StateChange::by_command(store.clone(), id, wanted);
    match change.apply().await {
        Ok(now) if now == wanted => {
            *confirmation = may_be_lost.then(|| (wanted, AbortOnDropHandle::new(tokio::spawn(change.confirm()))));
            None
        }
        Ok(now) => Some(format!("it is {now}")),
        Err(error) => Some(error.to_string()),
    }
}

/// The terminal, restored on drop.
struct TerminalGuard(ratatui::DefaultTerminal);

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows the view until the batch ends or is abandoned by its process. None if the user quits.
async fn run_screen(
    store: &Arc<dyn Store>,
    id: BatchId,
    (client, is_cluster, is_ascii): (&Client, bool, bool),
    confirmation: &mut Option<Confirmation>,
) -> Result<Option<BatchWaitResult>> {
    let viewer = (client, is_cluster);
    let failed = |error: std::io::Error| Error::new(ErrorKind::Local, "drawing on the terminal", error.to_string());
    let mut screen = load_screen(&**store, id, viewer).await?;
    screen.is_ascii = is_ascii;
    let mut terminal = TerminalGuard(ratatui::try_init().map_err(failed)?);
    let (mut polled_at, mut abandonment) = (Instant::now(), AbandonmentDetector::default());
    loop {
        terminal.0.draw(|frame| draw(frame, &mut screen)).map_err(failed)?;
        if screen.view.batch.ended_at.is_some() {
            return Ok(Some(BatchWaitResult::Ended(screen.view.batch)));
        }
        let key =
            spawn_blocking(poll_key).await.map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)?;
        if let Some(key) = key {
            match handle_key(&mut screen, key) {
                KeyAction::Ignore => {}
                KeyAction::Quit => return Ok(None),
                KeyAction::SetState(control) => {
                    screen.message = change_state(store, id, control, confirmation).await;
                    polled_at -= BATCH_POLL_INTERVAL;
                }
            }
        }
        if polled_at.elapsed() >= BATCH_POLL_INTERVAL {
            polled_at = Instant::now();
            match load_screen(&**store, id, viewer).await {
                Ok(next) => {
                    screen.update(next);
                    if abandonment.is_abandoned(&**store, &screen.view).await.unwrap_or_default() {
                        return Ok(Some(BatchWaitResult::Abandoned(screen.view)));
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
                // The last data stays visible, with the reason why it is old.
                Err(error) => screen.message = Some(error.to_string()),
            }
        }
    }
}

/// Returns the next key, if one is pressed soon.
fn poll_key() -> std::io::Result<Option<(KeyCode, KeyModifiers)>> {
    if !event::poll(KEY_POLL_TIMEOUT)? {
        return Ok(None);
    }
    match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => Ok(Some((key.code, key.modifiers))),
        _ => Ok(None),
    }
}

/// What a key requests.
#[derive(Debug, PartialEq, Eq)]
enum KeyAction {
    Ignore,
    Quit,
    SetState(BatchState),
}

fn handle_key(screen: &mut BatchScreen, (code, modifiers): (KeyCode, KeyModifiers)) -> KeyAction {
    let prompt = std::mem::take(&mut screen.prompt);
    match (prompt, code) {
        (_, KeyCode::Char('c')) if modifiers.contains(KeyModifiers::CONTROL) => return KeyAction::Quit,
        (Prompt::Confirm(state), KeyCode::Char('y')) => return KeyAction::SetState(state),
        (Prompt::Confirm(_), _) => {}
        (Prompt::Inactive, KeyCode::Char('q') | KeyCode::Esc) => return KeyAction::Quit,
        (Prompt::Inactive, KeyCode::Char('p')) => {
            screen.prompt = Prompt::Confirm(match screen.view.batch.state {
                BatchState::Paused => BatchState::Running,
                _ => BatchState::Paused,
            });
        }
        (Prompt::Inactive, KeyCode::Char('c')) => screen.prompt = Prompt::Confirm(BatchState::Cancelled),
        (Prompt::Inactive, KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right) => {
            screen.focus = match screen.focus {
                Focus::Failures => Focus::Workers,
                Focus::Workers => Focus::Failures,
            };
        }
        (Prompt::Inactive, KeyCode::Down | KeyCode::Char('j')) => screen.scroll(1),
        (Prompt::Inactive, KeyCode::Up | KeyCode::Char('k')) => screen.scroll(-1),
        (Prompt::Inactive, KeyCode::PageDown) => screen.scroll(10),
        (Prompt::Inactive, KeyCode::PageUp) => screen.scroll(-10),
        (Prompt::Inactive, _) => {}
    }
    KeyAction::Ignore
}

/// Loads the data of the view.
async fn load_screen(store: &dyn Store, id: BatchId, (client, is_cluster): (&Client, bool)) -> Result<BatchScreen> {
    let report = Report::load(store, id).await?;
    let view = report.batch_view();
    let Report { batch, unlisted, title, options, .. } = report;
    let failures = store.failures(id, 0, MAX_FAILURES).await?;
    let timeline = store.timeline(id).await?;
    let coverage = WorkerCoverage::load(store, &batch).await?;
    let mut attention = rate_limit_messages(store, &batch, client).await?;
    // Without a cluster, the worker is known to its own process alone.
    if is_cluster {
        attention.extend(coverage.problems());
    }
    Ok(BatchScreen::new(view, (title, options), (failures, unlisted), timeline, coverage.workers, attention))
}

#[cfg(test)]
mod tests {
    use super::super::tui::tests::sample_screen;
    use super::*;

    fn press(screen: &mut BatchScreen, key: char) -> KeyAction {
        handle_key(screen, (KeyCode::Char(key), KeyModifiers::NONE))
    }

    #[test]
    fn pausing_resuming_and_cancelling_need_a_second_key() {
        for (key, state, wanted) in [
            ('p', BatchState::Running, BatchState::Paused),
            ('p', BatchState::Paused, BatchState::Running),
            ('c', BatchState::Running, BatchState::Cancelled),
        ] {
            let mut screen = sample_screen();
            screen.view.batch.state = state;
            assert_eq!(press(&mut screen, key), KeyAction::Ignore);
            // Any other key is a no, and then does nothing else.
            assert_eq!(press(&mut screen, 'q'), KeyAction::Ignore);
            assert_eq!(screen.prompt, Prompt::Inactive);
            press(&mut screen, key);
            assert_eq!(press(&mut screen, key), KeyAction::Ignore, "the same key twice is a no");
            press(&mut screen, key);
            assert_eq!(press(&mut screen, 'y'), KeyAction::SetState(wanted));
        }
    }
}
