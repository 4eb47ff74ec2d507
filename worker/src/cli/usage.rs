//! Messages of the command-line parsers of both programs: help, version and usage errors.

use std::io::{Result, Write as _};

use clap::error::{ContextKind, Error};
use imgsync_oci::locale::to_ascii;

use crate::locale::is_process_utf8;

/// Prints help and version on stdout, and a usage error with a hint on stderr, in ASCII where the locale has no UTF-8.
/// The hint replaces the parser's guess of a similar word.
pub fn print_parser_message(mut error: Error, hint: Option<&str>) -> Result<()> {
    if hint.is_some() {
        for guess in [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::Suggested] {
            // The usage is that of the guess.
            if error.remove(guess).is_some() {
                error.remove(ContextKind::Usage);
            }
        }
    }
    let text = error.render();
    match (is_process_utf8(), error.use_stderr()) {
        (true, _) => error.print()?,
        (false, true) => std::io::stderr().write_all(to_ascii(&text.to_string()).as_bytes())?,
        (false, false) => {
            let mut stdout = std::io::stdout();
            stdout.write_all(to_ascii(&text.to_string()).as_bytes()).and_then(|()| stdout.flush())?;
        }
    }
    match hint {
        Some(hint) if is_process_utf8() => writeln!(std::io::stderr(), "hint: {hint}"),
        Some(hint) => writeln!(std::io::stderr(), "hint: {}", to_ascii(hint)),
        None => Ok(()),
    }
}
