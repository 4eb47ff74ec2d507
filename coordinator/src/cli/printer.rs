//! The one place from which the program writes: data to stdout, words for people to stderr.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imgsync_common::error::Error;
use indicatif::MultiProgress;
use jiff::Timestamp;

/// Writes to stdout and stderr, around the progress bars if there are some. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Printer {
    quiet: bool,
    /// Words go into the log, which is for programs then.
    logs: bool,
    bars: MultiProgress,
    /// Whether something that was asked for could not be written.
    has_lost: Arc<AtomicBool>,
}

impl Printer {
    /// Quiet: errors only.
    pub(crate) fn new(quiet: bool) -> Printer {
        Printer { quiet, logs: false, bars: MultiProgress::new(), has_lost: Arc::default() }
    }

    /// The same, with all words as lines of the log.
    pub(crate) fn into_log(self, logs: bool) -> Printer {
        Printer { logs, ..self }
    }

    /// Where bars are drawn; only to be used on a terminal.
    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Whether bars can be shown and are wanted.
    pub(crate) fn shows_bars(&self) -> bool {
        !self.quiet
            && !self.logs
            && std::io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    /// Data, one line. False if it could not be written.
    pub(crate) fn data(&self, line: &str) -> bool {
        let written = self.bars.suspend(|| {
            let mut stdout = std::io::stdout();
            writeln!(stdout, "{line}").and_then(|()| stdout.flush())
        });
        written.map_err(|error| self.lost_on_stdout(&error)).is_ok()
    }

    /// Notes that stdout could not be written, which is said once. Who closed our stdout does not want the rest: `| head`.
    pub(crate) fn lost_on_stdout(&self, error: &std::io::Error) {
        if error.kind() != std::io::ErrorKind::BrokenPipe && !self.has_lost.swap(true, Ordering::Relaxed) {
            self.error(
                &format!("writing to stdout: {error}"),
                Some("what stands there is not all; make room, or send it elsewhere, and run the command again"),
            );
        }
    }

    /// Says why a file that was asked for could not be written.
    pub(crate) fn lost_file(&self, error: &Error) {
        self.has_lost.store(true, Ordering::Relaxed);
        self.failure(error);
    }

    /// Whether something that was asked for could not be written.
    pub(crate) fn has_lost(&self) -> bool {
        self.has_lost.load(Ordering::Relaxed)
    }

    /// Words for people.
    pub(crate) fn line(&self, line: &str) {
        if self.logs {
            tracing::info!("{line}");
        } else if !self.quiet {
            self.bars.suspend(|| _ = writeln!(std::io::stderr(), "{line}"));
        }
    }

    /// Words for people who read them later: with the time.
    pub(crate) fn stamped(&self, line: &str) {
        match self.logs {
            true => tracing::info!("{line}"),
            false => self.line(&format!("{} {line}", Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ"))),
        }
    }

    /// A warning for people who read it later: with the time.
    pub(crate) fn stamped_warning(&self, message: &str) {
        match self.logs {
            true => tracing::warn!("{message}"),
            false => self.stamped(&format!("warning: {message}")),
        }
    }

    /// Something that people should know.
    pub(crate) fn warning(&self, message: &str) {
        match self.logs {
            true => tracing::warn!("{message}"),
            false => self.line(&format!("warning: {message}")),
        }
    }

    /// Why it did not work, and what to do.
    pub(crate) fn error(&self, message: &str, hint: Option<&str>) {
        if self.logs {
            return tracing::error!(hint, "{message}");
        }
        self.bars.suspend(|| {
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "error: {message}");
            if let Some(hint) = hint {
                let _ = writeln!(stderr, "hint: {hint}");
            }
        });
    }

    /// Errors that bring their own form: several lines, with carets.
    pub(crate) fn raw(&self, text: &str) {
        if self.logs {
            return tracing::error!("{}", text.trim_end());
        }
        self.bars.suspend(|| _ = writeln!(std::io::stderr(), "{}", text.trim_end()));
    }

    /// A registry's failure.
    pub(crate) fn failure(&self, error: &Error) {
        self.error(&error.to_string(), error.advice());
    }
}
