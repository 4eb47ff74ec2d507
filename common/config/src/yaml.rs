//! YAML as a tree in which every node has its location, so that all problems can be shown at once.
//!
//! Scalars stay text (`1.20` is "1.20"); the reader decides on their meaning. Anchors, aliases and `<<` are supported.

use std::collections::HashMap;
use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, Span};

use super::errors::{PendingProblem, Problems};
use super::variables::expand;
use imgsync_oci::sanitize::sanitize;

/// Maximum size of a configuration in bytes. A rule takes some 200.
pub(crate) const MAX_FILE_BYTES: usize = 16 << 20;
/// Maximum number of values in a configuration, including those that aliases add.
pub(crate) const MAX_VALUES: usize = 500_000;
/// Maximum number of values that aliases may add to a file.
const MAX_ALIAS_VALUES: usize = 20_000;
/// Maximum number of bytes that aliases and variables may add to a file.
pub(crate) const MAX_ADDED_BYTES: usize = 8 << 20;
/// Memory of a value beside its text, in bytes.
const VALUE_OVERHEAD_BYTES: usize = 128;
const MAX_DEPTH: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct YamlNode {
    pub(super) at: Range<usize>,
    pub(super) value: YamlValue,
}

#[derive(Clone, Debug)]
pub(super) enum YamlValue {
    Null,
    /// A value with invalid variables, which were reported.
    Invalid,
    Scalar(YamlScalar),
    List(Vec<YamlNode>),
    Map(Vec<YamlEntry>),
}

#[derive(Clone, Debug)]
pub(super) struct YamlScalar {
    /// With variables expanded.
    pub(super) text: String,
    /// As written; messages show only this.
    pub(super) raw: String,
    /// Whether a variable was expanded.
    pub(super) is_expanded: bool,
    /// Ranges of the variables' content in the text.
    pub(super) variables: Vec<Range<usize>>,
}

impl YamlScalar {
    /// Returns whether it is exactly one variable without a default, so that the file contains nothing of its value.
    pub(super) fn is_variable(&self) -> bool {
        let inside = self.raw.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
        self.is_expanded && inside.is_some_and(|inside| !inside.contains('}') && !inside.contains(":-"))
    }

    /// Returns whether it contains a variable without a default.
    pub(super) fn has_variable(&self) -> bool {
        self.is_expanded && self.raw.contains("${") && !self.raw.contains(":-")
    }

    /// Replaces the content of variables in a message by the value as written; returns `None` if a piece of it may
    /// remain. It rather drops a message than shows a piece of a secret, however short.
    pub(super) fn redact(&self, message: &str) -> Option<String> {
        let mut message = message.to_owned();
        for value in [self.text.as_str(), &sanitize(&self.text)] {
            if !value.is_empty() {
                message = message.replace(value, &self.raw);
            }
        }
        let (value, written) = (self.text.to_lowercase(), self.raw.to_lowercase());
        let words = |text: &str| -> Vec<String> {
            let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
            words.map(str::to_owned).collect()
        };
        let (of_value, of_written) = (words(&value), words(&written));
        // Text in backquotes is quoted from somewhere; a longer word may be a part of one of the value's.
        let is_piece = |word: &String| of_value.contains(word) || (word.chars().count() > 2 && value.contains(&**word));
        let shown = words(&message.to_lowercase());
        let mut pieces = shown.iter().filter(|word| !of_written.contains(word)).filter(|word| is_piece(word));
        let mut quoted = message.split('`').skip(1).step_by(2).map(str::to_lowercase);
        let is_safe = pieces.next().is_none()
            && !quoted.any(|quoted| quoted != written && !quoted.is_empty() && value.contains(&quoted));
        is_safe.then_some(message)
    }
}

#[derive(Clone, Debug)]
pub(super) struct YamlEntry {
    pub(super) key: String,
    pub(super) key_at: Range<usize>,
    pub(super) value: YamlNode,
}

impl YamlNode {
    pub(super) fn type_name(&self) -> &'static str {
        match self.value {
            YamlValue::Null | YamlValue::Invalid => "nothing",
            YamlValue::Scalar(_) => "a single value",
            YamlValue::List(_) => "a list",
            YamlValue::Map(_) => "a mapping",
        }
    }

    /// Returns the number of values in it, and the bytes that a copy takes.
    fn size(&self) -> (usize, usize) {
        let add = |sum: (usize, usize), more: (usize, usize)| (sum.0 + more.0, sum.1 + more.1);
        let own = (1, VALUE_OVERHEAD_BYTES);
        match &self.value {
            YamlValue::Null | YamlValue::Invalid => own,
            YamlValue::Scalar(scalar) => add(own, (0, scalar.text.len() + scalar.raw.len())),
            YamlValue::List(items) => items.iter().map(YamlNode::size).fold(own, add),
            YamlValue::Map(entries) => {
                entries.iter().map(|entry| add(entry.value.size(), (0, entry.key.len()))).fold(own, add)
            }
        }
    }
}

/// Parses a text into a tree.
pub(super) fn parse(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> ParsedYaml {
    let mut builder = TreeBuilder {
        text,
        environment,
        problems: Problems::default(),
        secrets: Vec::new(),
        anchors: HashMap::new(),
        value_count: 0,
        alias_values: 0,
        added_bytes: 0,
    };
    let root = match text.len() <= MAX_FILE_BYTES {
        true => builder.document(),
        false => {
            builder.report(0..0, format!("a configuration has at most {} MiB", MAX_FILE_BYTES >> 20), None);
            None
        }
    };
    ParsedYaml { root, problems: builder.problems, secrets: builder.secrets }
}

/// Result of [`parse`].
pub(super) struct ParsedYaml {
    /// `None` if the text is not YAML.
    pub(super) root: Option<YamlNode>,
    pub(super) problems: Problems,
    /// Values whose keys look like secrets, wherever they are.
    pub(super) secrets: Vec<Range<usize>>,
}

struct TreeBuilder<'a> {
    text: &'a str,
    environment: &'a dyn Fn(&str) -> Option<String>,
    problems: Problems,
    secrets: Vec<Range<usize>>,
    anchors: HashMap<usize, YamlNode>,
    /// Number of values so far.
    value_count: usize,
    /// Number of values that aliases have added.
    alias_values: usize,
    /// Bytes that aliases, anchors and variables have added.
    added_bytes: usize,
}

type EventParser<'a> = Parser<'a, granit_parser::StrInput<'a>>;

/// The error was reported.
type Reported<T> = Result<T, ()>;

fn byte_range(span: &Span) -> Range<usize> {
    span.byte_range().unwrap_or(0..0)
}

impl<'a> TreeBuilder<'a> {
    fn document(&mut self) -> Option<YamlNode> {
        let mut parser = Parser::new_from_str(self.text);
        let mut root = None;
        while let Some((event, span)) = self.next(&mut parser).ok()? {
            match event {
                Event::DocumentStart(..) if root.is_some() => {
                    self.report(
                        byte_range(&span),
                        "a configuration is one YAML document; a second one begins here",
                        None,
                    );
                    return root;
                }
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                event => root = Some(self.node(&mut parser, event, &span, 0).ok()?),
            }
        }
        Some(root.unwrap_or(YamlNode { at: 0..0, value: YamlValue::Null }))
    }

    fn report(&mut self, at: Range<usize>, message: impl Into<String>, hint: Option<String>) {
        self.problems.push(PendingProblem { at, message: message.into(), hint });
    }

    fn next(&mut self, parser: &mut EventParser<'a>) -> Reported<Option<(Event<'a>, Span)>> {
        match parser.next_event() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => {
                let at = error.marker().byte_offset().unwrap_or(0).min(self.text.len());
                let line = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
                let line = self.text[line..].lines().next().unwrap_or_default();
                let hint = if line.contains("${") {
                    Some("quote variables inside { } and [ ]: \"${VAR}\"".to_owned())
                } else if line.contains('\t') {
                    Some("YAML is indented with spaces, not with tabs".to_owned())
                } else if line.contains(['*', '&', '%', '@', '`', '!']) {
                    Some("quote values that begin with * & ! % @ or `".to_owned())
                } else {
                    None
                };
                self.report(at..at, format!("this is not YAML: {}", error.info()), hint);
                Err(())
            }
        }
    }

    fn node(
        &mut self,
        parser: &mut EventParser<'a>,
        event: Event<'a>,
        span: &Span,
        depth: usize,
    ) -> Reported<YamlNode> {
        let at = byte_range(span);
        if depth > MAX_DEPTH {
            self.report(at, "this is nested too deeply", None);
            return Err(());
        }
        self.value_count += 1;
        if self.value_count > MAX_VALUES {
            self.report(at, format!("this file has more than {MAX_VALUES} values"), None);
            return Err(());
        }
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, _) => (anchor, self.scalar(&text, style, &at)?),
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id) else {
                    self.report(at, "this alias refers to a node that contains it", None);
                    return Err(());
                };
                let (values, bytes) = node.size();
                self.alias_values += values;
                self.value_count += values;
                if self.alias_values > MAX_ALIAS_VALUES {
                    self.report(at, "aliases make this file too large", None);
                    return Err(());
                }
                self.count_added(bytes, &at)?;
                return self.anchors.get(&id).cloned().ok_or(());
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next(parser)? {
                        None | Some((Event::SequenceEnd, _)) => break,
                        Some((event, span)) => items.push(self.node(parser, event, &span, depth + 1)?),
                    }
                }
                (anchor, YamlValue::List(items))
            }
            Event::MappingStart(_, anchor, _) => (anchor, self.map(parser, depth)?),
            _ => (0, YamlValue::Null),
        };
        let node = YamlNode { at, value };
        if anchor > 0 {
            let at = node.at.clone();
            self.count_added(node.size().1, &at)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// Counts bytes that are in memory and not in the file.
    fn count_added(&mut self, bytes: usize, at: &Range<usize>) -> Reported<()> {
        self.added_bytes = self.added_bytes.saturating_add(bytes);
        if self.added_bytes <= MAX_ADDED_BYTES {
            return Ok(());
        }
        let what = format!("aliases and variables add more than {} MiB to this file", MAX_ADDED_BYTES >> 20);
        self.report(at.clone(), what, None);
        Err(())
    }

    fn map(&mut self, parser: &mut EventParser<'a>, depth: usize) -> Reported<YamlValue> {
        let mut entries: Vec<YamlEntry> = Vec::new();
        let mut merged: Vec<YamlEntry> = Vec::new();
        // Offset of each key.
        let mut keys: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, span) = match self.next(parser)? {
                None | Some((Event::MappingEnd, _)) => break,
                Some(next) => next,
            };
            let key_at = byte_range(&span);
            let key = match event {
                Event::Scalar(text, ..) => Some(text.into_owned()),
                event => {
                    let node = self.node(parser, event, &span, depth + 1)?;
                    self.report(node.at, "a key must be a single word", None);
                    None
                }
            };
            let Some((event, span)) = self.next(parser)? else { break };
            let value = self.node(parser, event, &span, depth + 1)?;
            let Some(key) = key else { continue };
            if looks_secret(&key)
                && let YamlValue::Scalar(scalar) = &value.value
                && !scalar.is_variable()
            {
                self.secrets.push(value.at.clone());
            }
            if key.contains("${") {
                self.report(key_at, "variables are allowed in values, not in keys", None);
            } else if key == "<<" {
                let nodes = match value.value {
                    YamlValue::List(nodes) => nodes,
                    _ => vec![value],
                };
                for node in nodes {
                    match node.value {
                        YamlValue::Map(entries) => merged.extend(entries),
                        _ => self.report(key_at.clone(), "`<<` takes mappings only", None),
                    }
                }
            } else if let Some(first) = keys.get(&key) {
                if self.problems.is_full() {
                    continue;
                }
                let line = super::errors::line_and_column(self.text, *first).0;
                self.report(key_at, format!("`{key}` is written twice, first in line {line}"), None);
            } else {
                keys.insert(key.clone(), key_at.start);
                entries.push(YamlEntry { key, key_at, value });
            }
        }
        for entry in merged {
            if keys.insert(entry.key.clone(), entry.key_at.start).is_none() {
                entries.push(entry);
            }
        }
        Ok(YamlValue::Map(entries))
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, at: &Range<usize>) -> Reported<YamlValue> {
        if style == ScalarStyle::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
            return Ok(YamlValue::Null);
        }
        match expand(text, self.environment) {
            Ok(filled) => {
                if filled.has_variables {
                    self.count_added(filled.text.len(), at)?;
                }
                Ok(YamlValue::Scalar(YamlScalar {
                    raw: text.to_owned(),
                    text: filled.text,
                    is_expanded: filled.has_variables,
                    variables: filled.variables,
                }))
            }
            Err(error) => {
                // The position in the value is the position in the file only if nothing was escaped.
                let at = match self.text.get(at.clone()).and_then(|source| source.find(text)) {
                    Some(offset) => at.start + offset + error.at.start..at.start + offset + error.at.end,
                    None => at.clone(),
                };
                self.report(at, error.message, None);
                Ok(YamlValue::Invalid)
            }
        }
    }
}

fn looks_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["pass", "pwd", "token", "secret", "credential"].iter().any(|word| key.contains(word))
        || key == "key"
        || key.ends_with("_key")
}
