//! What is wrong with a configuration: all of it at once, each with its place.

use std::fmt;
use std::ops::Range;

use super::keys::secret_names;
use crate::printable::printable;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, in one line.
    pub message: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What to do, where that is known.
    pub hint: Option<String>,
    snippet: String,
    carets: usize,
}

/// Everything that is wrong with a configuration, in the order of the file. Its text shows each with file, line, column
/// and carets; secrets in the lines shown are masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    file: String,
    problems: Vec<Problem>,
}

impl ConfigErrors {
    /// Each of them.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub(super) fn new(file: &str, text: &str, found: Vec<Found>, secrets: &[Range<usize>]) -> Self {
        let masked = mask(text, secrets);
        let mut problems: Vec<Problem> = found.into_iter().map(|found| found.locate(text, &masked)).collect();
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems.dedup();
        Self { file: file.to_owned(), problems }
    }
}

/// A problem and the bytes that it is about.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) at: Range<usize>,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Found {
    fn locate(self, text: &str, masked: &str) -> Problem {
        let start = floor(text, self.at.start);
        let (line, column, line_start) = place(text, start);
        // `masked` has as many bytes and lines as `text`.
        let snippet = masked[line_start..].lines().next().unwrap_or_default();
        let line_end = line_start + snippet.len();
        let end = floor(text, self.at.end.clamp(start, line_end.max(start)));
        Problem {
            message: printable(&self.message).into_owned(),
            line,
            column,
            hint: self.hint.map(|hint| printable(&hint).into_owned()),
            carets: text[start..end].chars().count().max(1),
            snippet: snippet.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect(),
        }
    }
}

/// Line and column, from 1, and where the line begins.
pub(super) fn place(text: &str, offset: usize) -> (usize, usize, usize) {
    let before = &text[..floor(text, offset)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1, line_start)
}

fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// The text with stars in place of the bytes of secrets, and of passwords in URLs.
fn mask(text: &str, secrets: &[Range<usize>]) -> String {
    let mut hidden: Vec<Range<usize>> = secrets.to_vec();
    for (scheme, _) in text.match_indices("://") {
        let start = scheme + 3;
        let end =
            text[start..].find(|c: char| c.is_whitespace() || "\"'".contains(c)).map_or(text.len(), |end| start + end);
        if let Some(at) = text[start..end].rfind('@')
            && let Some(colon) = text[start..start + at].find(':')
        {
            hidden.push(start + colon + 1..start + at);
        }
    }
    let mut masked = String::with_capacity(text.len());
    for (index, c) in text.char_indices() {
        if c != '\n' && hidden.iter().any(|range| range.contains(&index)) {
            masked.extend(std::iter::repeat_n('*', c.len_utf8()));
        } else {
            masked.push(c);
        }
    }
    masked
}

/// Hides what follows a key of a secret, for a text that could not be read as YAML: to the end of the line, and of a block
/// (`|`) all lines.
pub(super) fn guess_secrets(text: &str) -> Vec<Range<usize>> {
    let mut secrets = Vec::new();
    for key in secret_names() {
        for (index, _) in text.match_indices(key) {
            let after = index + key.len();
            let rest = text[after..].trim_start_matches(['"', '\'', ' ']);
            if let Some(value) = rest.strip_prefix(':') {
                let end = text.len() - value.len() + value.find('\n').unwrap_or(value.len());
                let mut value = value.trim_start_matches([' ', '"']);
                let is_block = value.starts_with(['|', '>']);
                // A variable's name is no secret.
                if value.starts_with("${") {
                    value = value.split_once('}').map_or(value, |(_, rest)| rest);
                }
                let start = text.len() - value.len();
                let end = if is_block { end_of_block(text, index, end) } else { end };
                secrets.push(start.min(end)..end);
            }
        }
    }
    secrets
}

/// Where the lines end that are indented further than the key at `index`, whose line ends at `end`.
fn end_of_block(text: &str, index: usize, end: usize) -> usize {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let (_, _, line_start) = place(text, index);
    let outer = indent(&text[line_start..]);
    let mut end = end;
    for line in text[end..].split_inclusive('\n').skip(1) {
        if !line.trim().is_empty() && indent(line) <= outer {
            break;
        }
        end += line.len();
    }
    end.min(text.len())
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let number = problem.line.to_string();
            let margin = " ".repeat(number.len());
            let before: String =
                problem.snippet.chars().take(problem.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            writeln!(f, "error: {}", problem.message)?;
            writeln!(f, "{margin} --> {}:{}:{}", self.file, problem.line, problem.column)?;
            writeln!(f, "{margin}  |")?;
            writeln!(f, " {number} | {}", problem.snippet)?;
            writeln!(f, "{margin}  | {before}{}", "^".repeat(problem.carets))?;
            if let Some(hint) = &problem.hint {
                writeln!(f, "{margin}  = hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
