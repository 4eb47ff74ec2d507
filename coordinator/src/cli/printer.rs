//! All output of the program: data on stdout, messages on stderr.

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imgsync_oci::error::Error;
use imgsync_oci::locale::to_ascii;
use imgsync_worker::locale::is_process_utf8;
use indicatif::{MultiProgress, ProgressStyle};
use jiff::Timestamp;

/// Writes to stdout and stderr around the progress bars. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Printer {
    quiet: bool,
    /// Whether messages go to the log, which is then for programs.
    to_log: bool,
    /// Whether the locale shows ASCII only.
    is_ascii: bool,
    bars: MultiProgress,
    /// Whether requested output could not be written.
    output_lost: Arc<AtomicBool>,
}

impl Printer {
    /// Creates a printer. A quiet one prints errors only.
    pub(crate) fn new(quiet: bool) -> Printer {
        let is_ascii = !is_process_utf8();
        Printer { quiet, to_log: false, is_ascii, bars: MultiProgress::new(), output_lost: Arc::default() }
    }

    /// Returns the printer with all messages sent to the log.
    pub(crate) fn with_log(self, to_log: bool) -> Printer {
        Printer { to_log, ..self }
    }

    /// Returns whether messages are left out, except errors.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Returns whether the locale shows ASCII only.
    pub(crate) fn is_ascii(&self) -> bool {
        self.is_ascii
    }

    /// Returns a message in the characters of the locale.
    fn localize<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.is_ascii { to_ascii(text) } else { Cow::Borrowed(text) }
    }

    /// Returns the progress bars, to be used on a terminal only.
    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Returns the style of a progress bar, in the characters of the locale.
    pub(crate) fn bar_style(&self, template: &str) -> ProgressStyle {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let style = style.progress_chars("=> ");
        if self.is_ascii { style.tick_chars("|/-\\ ") } else { style }
    }

    /// Returns whether progress bars can be shown and are wanted.
    pub(crate) fn shows_bars(&self) -> bool {
        !self.quiet
            && !self.to_log
            && std::io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    /// Prints a line on stdout that is for people. Returns false if it could not be written.
    pub(crate) fn text(&self, line: &str) -> bool {
        self.data(&self.localize(line))
    }

    /// Prints a line of data, as it is. Returns false if it could not be written.
    pub(crate) fn data(&self, line: &str) -> bool {
        let written = self.bars.suspend(|| {
            let mut stdout = std::io::stdout();
            writeln!(stdout, "{line}").and_then(|()| stdout.flush())
        });
        written.map_err(|error| self.report_stdout_error(&error)).is_ok()
    }

    /// Reports once that stdout could not be written. A closed pipe (`| head`) is no error.
    pub(crate) fn report_stdout_error(&self, error: &std::io::Error) {
        if error.kind() != std::io::ErrorKind::BrokenPipe && !self.output_lost.swap(true, Ordering::Relaxed) {
            self.error(
                &format!("writing to stdout: {error}"),
                Some("the output is incomplete; free some space or redirect the output, and run the command again"),
            );
        }
    }

    /// Reports that a requested file could not be written.
    pub(crate) fn report_file_error(&self, error: &Error) {
        self.output_lost.store(true, Ordering::Relaxed);
        self.failure(error);
    }

    /// Returns whether requested output could not be written.
    pub(crate) fn output_lost(&self) -> bool {
        self.output_lost.load(Ordering::Relaxed)
    }

    /// Prints a message.
    pub(crate) fn line(&self, line: &str) {
        if self.to_log {
            tracing::info!("{line}");
        } else if !self.quiet {
            self.bars.suspend(|| _ = writeln!(std::io::stderr(), "{}", self.localize(line)));
        }
    }

    /// Prints a message with the time, for later reading.
    pub(crate) fn timestamped(&self, line: &str) {
        match self.to_log {
            true => tracing::info!("{line}"),
            false => self.line(&format!("{} {line}", Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ"))),
        }
    }

    /// Prints a warning with the time, for later reading.
    pub(crate) fn timestamped_warning(&self, message: &str) {
        match self.to_log {
            true => tracing::warn!("{message}"),
            false => self.timestamped(&format!("warning: {message}")),
        }
    }

    /// Prints a warning.
    pub(crate) fn warning(&self, message: &str) {
        match self.to_log {
            true => tracing::warn!("{message}"),
            false => self.line(&format!("warning: {message}")),
        }
    }

    /// Prints an error and its hint.
    pub(crate) fn error(&self, message: &str, hint: Option<&str>) {
        if self.to_log {
            return tracing::error!(hint, "{message}");
        }
        self.bars.suspend(|| {
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "error: {}", self.localize(message));
            if let Some(hint) = hint {
                let _ = writeln!(stderr, "hint: {}", self.localize(hint));
            }
        });
    }

    /// Prints an error that is already formatted: several lines, with carets.
    pub(crate) fn raw(&self, text: &str) {
        if self.to_log {
            return tracing::error!("{}", text.trim_end());
        }
        self.bars.suspend(|| _ = writeln!(std::io::stderr(), "{}", self.localize(text.trim_end())));
    }

    /// Prints a registry's error and its hint.
    pub(crate) fn failure(&self, error: &Error) {
        self.error(&error.to_string(), error.hint());
    }
}
