//! Makes external text safe for a terminal, a log line or a report.
//!
//! Messages quote what a server or another program says. Such text must not move the cursor, forge a log line, change
//! the direction of the text, hide characters, or show a secret that was sent.

use std::{borrow::Cow, fmt::Write as _};

use crate::mask::mask;

/// Maximum length of the output of [`sanitize`], in characters.
pub const MAX_CHARS: usize = 1000;

/// Sanitizes text to at most [`MAX_CHARS`] characters: see [`sanitize_within`].
pub fn sanitize(text: &str) -> Cow<'_, str> {
    sanitize_within(text, MAX_CHARS)
}

/// Escapes hidden characters in our own text, which may contain external names. It masks nothing.
pub(crate) fn escape_hidden(text: &str) -> Cow<'_, str> {
    escape_hidden_within(text, MAX_CHARS)
}

/// Sanitizes text: masks known secrets, which a registry can send back, then escapes and truncates it.
pub fn sanitize_within(text: &str, limit: usize) -> Cow<'_, str> {
    match mask(text) {
        Cow::Borrowed(text) => escape_hidden_within(text, limit),
        Cow::Owned(masked) => Cow::Owned(escape_hidden_within(&masked, limit).into_owned()),
    }
}

/// Writes characters that are not plainly visible as escapes (`\n`, `\u{1b}`), and truncates to at most `limit`
/// characters, the last of them then `…`. A `limit` of 0 counts as 1. Borrows if nothing changes.
///
/// Escaped are: control characters (C0, DEL, C1), line and paragraph separators, direction marks and overrides,
/// zero-width and other format characters, and the fillers, tags and variation selectors that render as nothing.
/// Backslashes stay, so that sanitizing twice changes nothing.
fn escape_hidden_within(text: &str, limit: usize) -> Cow<'_, str> {
    let limit = limit.max(1);
    // A char takes at least one byte, so most texts need not be counted.
    let fits = text.len() <= limit || text.chars().nth(limit).is_none();
    if fits && !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }

    let mut out = String::with_capacity(text.len().min(limit * 4));
    let mut length = 0;
    // Where to cut if the rest does not fit: the last position that leaves room for the `…`.
    let mut cut = 0;
    let mut escape = String::new();
    for c in text.chars() {
        if length < limit {
            cut = out.len();
        }
        if is_hidden(c) {
            escape.clear();
            match c {
                '\n' => escape.push_str("\\n"),
                '\r' => escape.push_str("\\r"),
                '\t' => escape.push_str("\\t"),
                // Writing to a String does not fail.
                _ => _ = write!(escape, "\\u{{{:x}}}", u32::from(c)),
            }
            out.push_str(&escape);
            length += escape.len();
        } else {
            out.push(c);
            length += 1;
        }
        if length > limit {
            out.truncate(cut);
            out.push('…');
            break;
        }
    }
    Cow::Owned(out)
}

/// Returns whether a character is anything but plainly visible.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{600}'..='\u{605}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}'
            | '\u{180b}'..='\u{180f}'
            // Zero-width, joiners, direction marks; separators and overrides; invisible operators and isolates.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            // Tags and variation selectors, which can hide whole texts.
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_plain_is_borrowed() {
        for text in ["", "denied", "naïve café 镜像 🐳", r"C:\n"] {
            assert!(matches!(sanitize(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn what_moves_the_cursor_or_hides_is_escaped() {
        assert_eq!(sanitize("\u{1b}[2Jgone"), r"\u{1b}[2Jgone");
        assert_eq!(sanitize("one\r\ntwo\tthree\u{7f}"), r"one\r\ntwo\tthree\u{7f}");
        assert_eq!(sanitize("a\u{202e}b\u{200b}c\u{feff}"), r"a\u{202e}b\u{200b}c\u{feff}");
        assert_eq!(sanitize("\u{9b}31m\u{2028}"), r"\u{9b}31m\u{2028}");
        assert_eq!(sanitize("x\u{e0041}"), r"x\u{e0041}");
    }

    #[test]
    fn a_long_text_is_cut_and_says_so() {
        assert_eq!(sanitize_within("abcdef", 6), "abcdef");
        assert_eq!(sanitize_within("abcdefg", 6), "abcde…");
        assert_eq!(sanitize_within("ééé", 2), "é…");
        assert_eq!(sanitize_within("ab", 0), "…");
        assert_eq!(sanitize_within("ab\u{1b}", 5), "ab…", "an escape is whole or absent");
        assert_eq!(sanitize_within("ab\u{1b}", 8), r"ab\u{1b}");
        assert_eq!(sanitize_within("ab\u{1b}", 7), "ab…");
    }

    proptest! {
        #[test]
        fn nothing_hidden_is_left_and_the_length_holds(text in any::<String>(), limit in 0usize..60) {
            let shown = sanitize_within(&text, limit);
            prop_assert!(!shown.chars().any(is_hidden));
            prop_assert!(shown.chars().count() <= limit.max(1));
            prop_assert_eq!(sanitize_within(&shown, limit), shown.as_ref());
            if matches!(shown, Cow::Borrowed(_)) {
                prop_assert_eq!(shown.as_ref(), text.as_str());
            }
        }

        #[test]
        fn what_fits_loses_nothing(text in "[ -~\u{0}-\u{1f}\u{200b}]{0,40}") {
            let shown = sanitize(&text);
            prop_assert!(!shown.contains('…'));
            prop_assert!(shown.chars().count() >= text.chars().count());
        }
    }
}
