//! The text format of indexes and inventories: a line with the format, a line with a JSON header, a line for each entry
//! under the line of its repository, and a last line with the number of lines, which shows that nothing is missing.

use std::fmt::Write as _;

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Format that this version writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;
/// Characters that would end a word.
const BREAKS: &AsciiSet = &CONTROLS.add(b' ').add(b'%');
/// Maximum length of quoted text in messages.
const MAX_QUOTED_CHARS: usize = 80;

/// Writes a file of this format.
pub(crate) struct LineWriter {
    text: String,
    lines: u64,
}

impl LineWriter {
    /// Begins a file.
    pub(crate) fn new(magic: &str, header: &impl Serialize) -> LineWriter {
        // A header has string keys and no maps of other kinds, so that it always serializes.
        let header = serde_json::to_string(header).unwrap_or_default();
        LineWriter { text: format!("{magic} {FORMAT}\n{header}\n"), lines: 0 }
    }

    /// Adds a line of words.
    pub(crate) fn line<'a>(&mut self, kind: &str, words: impl IntoIterator<Item = &'a str>) {
        self.text.push_str(kind);
        for word in words {
            let _ = write!(self.text, " {}", utf8_percent_encode(word, BREAKS));
        }
        self.text.push('\n');
        self.lines += 1;
    }

    /// Ends the file.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let _ = writeln!(self.text, "end {}", self.lines);
        self.text.into_bytes()
    }
}

/// A line: its kind and its words.
pub(crate) struct TextLine<'a> {
    pub(crate) kind: &'a str,
    words: std::str::Split<'a, char>,
    number: usize,
    label: &'a str,
}

impl TextLine<'_> {
    /// Returns the next word, if there is one.
    pub(crate) fn optional(&mut self) -> Option<String> {
        self.words.next().map(|word| percent_decode_str(word).decode_utf8_lossy().into_owned())
    }

    /// Parses the next word.
    pub(crate) fn word<T>(&mut self, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let word = self.optional();
        let parsed = word.as_deref().and_then(parse);
        parsed.ok_or_else(|| {
            let found = sanitize_within(word.as_deref().unwrap_or(""), MAX_QUOTED_CHARS).into_owned();
            self.error(&format!("`{found}` is not what a `{}` line holds here", self.kind))
        })
    }

    /// Returns an error at this line.
    pub(crate) fn error(&self, detail: &str) -> Error {
        damaged(self.label, &format!("line {}: {detail}", self.number))
    }
}

/// Whether a file begins as this format does.
pub(crate) fn has_magic(bytes: &[u8], magic: &str) -> bool {
    bytes.strip_prefix(magic.as_bytes()).is_some_and(|rest| rest.first() == Some(&b' '))
}

/// Reads a file of this format: returns its header, and calls `each` with each line.
pub(crate) fn read_lines<H: DeserializeOwned>(
    bytes: &[u8],
    magic: &str,
    label: &str,
    mut each: impl FnMut(TextLine<'_>) -> Result<()>,
) -> Result<H> {
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(label, &error.to_string()))?;
    let mut lines = text.split_inclusive('\n').enumerate();
    let first = lines.next().map(|(_, line)| line.trim_end_matches('\n')).unwrap_or_default();
    let format = first.strip_prefix(magic).and_then(|rest| rest.strip_prefix(' ')).and_then(|rest| rest.parse().ok());
    let header = lines.next().map(|(_, line)| line.trim_end_matches('\n')).unwrap_or_default();
    match format {
        Some(FORMAT) => {}
        Some(newer) if newer > FORMAT => return Err(too_new(label, newer, header)),
        _ => return Err(damaged(label, &format!("it does not begin with `{magic} {FORMAT}`"))),
    }
    let header = serde_json::from_str(header).map_err(|error| damaged(label, &format!("line 2: {error}")))?;
    // Two lines come before the entries.
    while let Some((at, line)) = lines.next() {
        let (Some(line), number, count) = (line.strip_suffix('\n'), at + 1, at as u64 - 2) else { break };
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        if kind == "end" {
            return match (rest.parse::<u64>() == Ok(count), lines.next()) {
                (true, None) => Ok(header),
                (true, Some(_)) => Err(damaged(label, "there is text after its last line")),
                (false, _) => Err(damaged(label, &format!("it has {count} lines and should have {rest}"))),
            };
        }
        each(TextLine { kind, words: rest.split(' '), number, label })?;
    }
    Err(damaged(label, "its end is missing"))
}

fn damaged(label: &str, detail: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("reading {label}"), detail)
        .with_hint("it is truncated or damaged: carry it over again")
}

/// Returns the error of a newer format, with the version that wrote it.
fn too_new(label: &str, format: u32, header: &str) -> Error {
    #[derive(serde::Deserialize)]
    struct Writer {
        imgsync: String,
    }
    let writer = serde_json::from_str::<Writer>(header).map(|writer| writer.imgsync);
    let writer = writer.map(|version| format!(" by imgsync {}", sanitize_within(&version, MAX_QUOTED_CHARS)));
    let detail = format!(
        "it has format {format}, written{}; this imgsync {} reads format {FORMAT}",
        writer.unwrap_or_default(),
        env!("CARGO_PKG_VERSION")
    );
    Error::new(ErrorKind::Unsupported, format!("reading {label}"), detail)
        .with_hint("use that version of imgsync on this side too (`bundle create --with-program` sends it along)")
}
