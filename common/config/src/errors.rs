//! Errors in a configuration: all at once, each with its location.

use std::fmt;
use std::ops::Range;

use super::masked_line::MaskedLine;
use super::schema_table::secret_names;
use imgsync_oci::humanize::pluralize;
use imgsync_oci::sanitize::sanitize_within;

/// A problem in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The problem, in one line.
    pub message: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What to do, if known.
    pub hint: Option<String>,
    snippet: String,
    /// Text before the carets.
    indent: String,
    carets: usize,
}

/// All problems of a configuration, in the order of the file. Displays each with file, line, column and carets; secrets
/// in the lines shown are masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    file: String,
    problems: Vec<ConfigProblem>,
    /// Number of problems beside these.
    omitted: usize,
}

impl ConfigErrors {
    /// Returns the first problems, at most `MAX_SHOWN_PROBLEMS`.
    pub fn problems(&self) -> &[ConfigProblem] {
        &self.problems
    }

    pub(super) fn new(file: &str, text: &str, found: Problems, secrets: &[Range<usize>]) -> Self {
        let Problems { mut list, mut omitted } = found;
        list.sort_by_key(|found| found.at.start);
        list.dedup();
        omitted += list.len().saturating_sub(MAX_SHOWN_PROBLEMS);
        list.truncate(MAX_SHOWN_PROBLEMS);
        let mut problems: Vec<ConfigProblem> = list.into_iter().map(|found| found.locate(text, secrets)).collect();
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems.dedup();
        Self { file: file.to_owned(), problems, omitted }
    }
}

/// Maximum number of problems collected while reading; those shown are chosen from these.
const MAX_COLLECTED_PROBLEMS: usize = 1000;
/// Maximum number of problems shown; the rest are counted.
pub(crate) const MAX_SHOWN_PROBLEMS: usize = 50;
/// Maximum length of a message or hint in characters: keys and values are quoted in them.
const MAX_MESSAGE_CHARS: usize = 2000;
/// Maximum length in bytes of a configuration line that is shown.
const MAX_LINE_BYTES: usize = 4096;

/// Problems found while reading a configuration, in bounded memory.
#[derive(Debug, Default)]
pub(super) struct Problems {
    list: Vec<PendingProblem>,
    omitted: usize,
}

impl Problems {
    pub(super) fn push(&mut self, found: PendingProblem) {
        match self.is_full() {
            true => self.omitted += 1,
            false => self.list.push(found),
        }
    }

    pub(super) fn add(&mut self, others: Problems) {
        self.omitted += others.omitted;
        others.list.into_iter().for_each(|found| self.push(found));
    }

    /// Returns whether further problems are only counted.
    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= MAX_COLLECTED_PROBLEMS
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn first(&self) -> Option<&PendingProblem> {
        self.list.first()
    }
}

/// A problem with its byte range.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PendingProblem {
    pub(super) at: Range<usize>,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl PendingProblem {
    fn locate(self, text: &str, secrets: &[Range<usize>]) -> ConfigProblem {
        let start = floor_char_boundary(text, self.at.start);
        let (line, column, line_start) = line_and_column(text, start);
        let written = text[line_start..].lines().next().unwrap_or_default();
        let line_end = line_start + written.len();
        let end = floor_char_boundary(text, self.at.end.clamp(start, line_end.max(start)));
        let (snippet, indent, carets) = match written.len() <= MAX_LINE_BYTES {
            true => {
                let line = MaskedLine::new(text, line_start..line_end, secrets);
                let (before, marked) = (line.before(start), line.between(start, end));
                let indent = before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                (line.show(), indent, marked.chars().count().max(1))
            }
            // Masking a part of a long line is unreliable.
            false => (format!("(a line of {})", pluralize(written.len() as u64, "byte", "bytes")), String::new(), 1),
        };
        ConfigProblem {
            message: sanitize_within(&self.message, MAX_MESSAGE_CHARS).into_owned(),
            line,
            column,
            hint: self.hint.map(|hint| sanitize_within(&hint, MAX_MESSAGE_CHARS).into_owned()),
            snippet,
            indent,
            carets,
        }
    }
}

/// Returns line and column, from 1, and the offset where the line begins.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize, usize) {
    let before = &text[..floor_char_boundary(text, offset)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1, line_start)
}

fn floor_char_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// Returns the ranges after keys of secrets in a text that is not valid YAML: to the end of the line, and for a block
/// (`|`) all lines.
pub(super) fn guess_secrets(text: &str) -> Vec<Range<usize>> {
    let mut secrets = Vec::new();
    let mut first = 0;
    for line in text.split_inclusive('\n') {
        // Longer ones are not shown.
        if line.len() <= MAX_LINE_BYTES {
            for key in secret_names() {
                let keys = line.match_indices(key).map(|(at, _)| first + at);
                secrets.extend(keys.filter_map(|index| guess_secret(text, index, key)));
            }
        }
        first += line.len();
    }
    secrets
}

/// Returns the range of the value after a key at `index`.
fn guess_secret(text: &str, index: usize, key: &str) -> Option<Range<usize>> {
    let rest = text[index + key.len()..].trim_start_matches(['"', '\'', ' ']);
    let value = rest.strip_prefix(':')?;
    let end = text.len() - value.len() + value.find('\n').unwrap_or(value.len());
    let mut value = value.trim_start_matches([' ', '"']);
    let is_block = value.starts_with(['|', '>']);
    // A variable's name is no secret, and neither are the brackets around it.
    if value.starts_with("${")
        && let Some(line) = value.lines().next()
        && let Some(close) = line.find('}')
    {
        if line[close + 1..].chars().all(|c| "]}, ".contains(c)) {
            return None;
        }
        value = &value[close + 1..];
    }
    let start = text.len() - value.len();
    let end = if is_block { end_of_block(text, index, end) } else { end };
    Some(start.min(end)..end)
}

/// Returns the end of the lines that are indented further than the key at `index`, whose line ends at `end`.
fn end_of_block(text: &str, index: usize, end: usize) -> usize {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let (_, _, line_start) = line_and_column(text, index);
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
            writeln!(f, "error: {}", problem.message)?;
            writeln!(f, "{margin} --> {}:{}:{}", self.file, problem.line, problem.column)?;
            writeln!(f, "{margin}  |")?;
            writeln!(f, " {number} | {}", problem.snippet)?;
            writeln!(f, "{margin}  | {}{}", problem.indent, "^".repeat(problem.carets))?;
            if let Some(hint) = &problem.hint {
                writeln!(f, "{margin}  = hint: {hint}")?;
            }
        }
        if self.omitted > 0 {
            let (more, is) = (
                pluralize(self.omitted as u64, "more problem", "more problems"),
                if self.omitted == 1 { "is" } else { "are" },
            );
            writeln!(f, "\nerror: {more} {is} not shown")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
