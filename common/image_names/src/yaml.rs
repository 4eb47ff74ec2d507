//! YAML and JSON as trees with line numbers, within limits: aliases cannot multiply a document, and nothing is nested
//! without end.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Parser, Span};

/// Maximum number of values in a document, including those that aliases add.
pub(crate) const MAX_VALUES: usize = 2_000_000;
/// Maximum number of values that aliases may add to a document.
pub(crate) const MAX_ALIAS_VALUES: usize = 20_000;
/// Maximum number of bytes that aliases may add to a document.
const MAX_ADDED_BYTES: usize = 8 << 20;
/// Memory of a value beside its text, in bytes.
const VALUE_OVERHEAD_BYTES: usize = 64;
/// Schemas of custom resources are nested deeply.
const MAX_DEPTH: usize = 120;

/// A value with the line where it begins; 0 if the line is unknown.
#[derive(Debug, Clone)]
pub(crate) struct DocumentNode {
    pub(crate) line: usize,
    /// Whether it is a literal block, whose lines are lines of the file.
    is_literal: bool,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Text(Box<str>),
    List(Vec<DocumentNode>),
    Map(Vec<(Box<str>, DocumentNode)>),
}

/// Why a document is not a tree.
#[derive(Debug)]
pub(crate) struct TreeError {
    /// Line in the text, from 1; 0 if it is unknown.
    pub(crate) line: usize,
    pub(crate) message: String,
    /// Whether the text is no YAML, rather than YAML beyond a limit.
    pub(crate) is_syntax: bool,
}

impl DocumentNode {
    /// Returns the line of the file with a line of the text, from 0; the first line if only that is known.
    pub(crate) fn line_at(&self, offset: usize) -> usize {
        if self.is_literal { self.line + offset } else { self.line }
    }

    /// Returns the entries of a mapping; none for any other value.
    pub(crate) fn entries(&self) -> &[(Box<str>, DocumentNode)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Returns the items of a list; none for any other value.
    pub(crate) fn items(&self) -> &[DocumentNode] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// Returns the value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&DocumentNode> {
        self.entries().iter().find(|(name, _)| &**name == key).map(|(_, value)| value)
    }

    /// Returns the text of a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the text of a key's scalar, if it is not empty.
    pub(crate) fn get_text(&self, key: &str) -> Option<&str> {
        self.get(key)?.text().map(str::trim).filter(|text| !text.is_empty())
    }

    /// Returns the number of values in it, and the bytes that a copy takes.
    fn size(&self) -> (usize, usize) {
        let add = |sum: (usize, usize), more: (usize, usize)| (sum.0 + more.0, sum.1 + more.1);
        let own = (1, VALUE_OVERHEAD_BYTES);
        match &self.value {
            Value::Null => own,
            Value::Text(text) => add(own, (0, text.len())),
            Value::List(items) => items.iter().map(DocumentNode::size).fold(own, add),
            Value::Map(entries) => entries.iter().map(|(key, value)| add(value.size(), (0, key.len()))).fold(own, add),
        }
    }
}

/// Parses the documents of a text into trees. After an error, the trees before it are kept.
pub(crate) fn parse(text: &str) -> (Vec<DocumentNode>, Option<TreeError>) {
    let mut builder = TreeBuilder { anchors: HashMap::new(), values: 0, alias_values: 0, added_bytes: 0 };
    let mut parser = Parser::new_from_str(text);
    let mut roots = Vec::new();
    loop {
        match builder.next(&mut parser) {
            Ok(None | Some((Event::StreamEnd, _))) => return (roots, None),
            Ok(Some((Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd, _))) => {}
            Ok(Some((event, span))) => match builder.node(&mut parser, event, &span, 0) {
                Ok(root) => roots.push(root),
                Err(error) => return (roots, Some(error)),
            },
            Err(error) => return (roots, Some(error)),
        }
    }
}

/// Parses a stream of JSON values, for JSON that is not YAML: indented by tabs, or several values in a row. Lines are
/// unknown. After an error, the values before it are kept.
pub(crate) fn parse_json(text: &str) -> (Vec<DocumentNode>, Option<TreeError>) {
    let mut roots = Vec::new();
    // Each value follows one of these. Those in texts count, too: such a file is refused a little earlier.
    if text.bytes().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count() > MAX_VALUES {
        let message = format!("it has more than {MAX_VALUES} values");
        return (roots, Some(TreeError { line: 0, message, is_syntax: false }));
    }
    for value in serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>() {
        match value {
            Ok(value) => roots.push(json_node(value)),
            Err(error) => {
                let error = TreeError { line: error.line(), message: error.to_string(), is_syntax: true };
                return (roots, Some(error));
            }
        }
    }
    (roots, None)
}

fn json_node(value: serde_json::Value) -> DocumentNode {
    let value = match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(flag) => Value::Text(flag.to_string().into()),
        serde_json::Value::Number(number) => Value::Text(number.to_string().into()),
        serde_json::Value::String(text) => Value::Text(text.into()),
        serde_json::Value::Array(items) => Value::List(items.into_iter().map(json_node).collect()),
        serde_json::Value::Object(entries) => {
            Value::Map(entries.into_iter().map(|(key, value)| (key.into(), json_node(value))).collect())
        }
    };
    DocumentNode { line: 0, is_literal: false, value }
}

struct TreeBuilder {
    anchors: HashMap<usize, DocumentNode>,
    values: usize,
    alias_values: usize,
    added_bytes: usize,
}

type EventParser<'a> = Parser<'a, granit_parser::StrInput<'a>>;

impl TreeBuilder {
    fn next<'a>(&mut self, parser: &mut EventParser<'a>) -> Result<Option<(Event<'a>, Span)>, TreeError> {
        parser.next_event().transpose().map_err(|error| TreeError {
            line: error.marker().line(),
            message: error.info().to_owned(),
            is_syntax: true,
        })
    }

    fn node<'a>(
        &mut self,
        parser: &mut EventParser<'a>,
        event: Event<'a>,
        span: &Span,
        depth: usize,
    ) -> Result<DocumentNode, TreeError> {
        let line = span.start.line();
        let beyond = |message: String| TreeError { line, message, is_syntax: false };
        if depth > MAX_DEPTH {
            return Err(beyond(format!("it is nested more than {MAX_DEPTH} levels deep")));
        }
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(beyond(format!("it has more than {MAX_VALUES} values")));
        }
        let mut is_literal = false;
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, _) => {
                is_literal = style == granit_parser::ScalarStyle::Literal;
                let is_null =
                    style == granit_parser::ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                (anchor, if is_null { Value::Null } else { Value::Text(text.into_owned().into()) })
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id) else {
                    return Err(beyond("an alias refers to a node that contains it".to_owned()));
                };
                let (values, bytes) = node.size();
                let node = node.clone();
                self.alias_values += values;
                self.values += values;
                if self.alias_values > MAX_ALIAS_VALUES {
                    return Err(beyond(format!("aliases add more than {MAX_ALIAS_VALUES} values to it")));
                }
                self.count_added(bytes, line)?;
                return Ok(node);
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next(parser)? {
                        None | Some((Event::SequenceEnd, _)) => break,
                        Some((event, span)) => items.push(self.node(parser, event, &span, depth + 1)?),
                    }
                }
                (anchor, Value::List(items))
            }
            Event::MappingStart(_, anchor, _) => (anchor, self.map(parser, depth)?),
            _ => (0, Value::Null),
        };
        let node = DocumentNode { line, is_literal, value };
        if anchor > 0 {
            self.count_added(node.size().1, line)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// Counts bytes that are in memory and not in the file.
    fn count_added(&mut self, bytes: usize, line: usize) -> Result<(), TreeError> {
        self.added_bytes = self.added_bytes.saturating_add(bytes);
        match self.added_bytes <= MAX_ADDED_BYTES {
            true => Ok(()),
            false => {
                let message = format!("anchors and aliases add more than {} MiB to it", MAX_ADDED_BYTES >> 20);
                Err(TreeError { line, message, is_syntax: false })
            }
        }
    }

    /// Reads a mapping. `{{ x }}` without quotes is a mapping with a mapping as its key, and becomes that text.
    fn map(&mut self, parser: &mut EventParser<'_>, depth: usize) -> Result<Value, TreeError> {
        let mut entries: Vec<(Box<str>, DocumentNode)> = Vec::new();
        let mut merged: Vec<(Box<str>, DocumentNode)> = Vec::new();
        let mut templates = 0;
        loop {
            let (event, span) = match self.next(parser)? {
                None | Some((Event::MappingEnd, _)) => break,
                Some(next) => next,
            };
            let (key, is_template): (Box<str>, bool) = match event {
                Event::Scalar(text, ..) => (text.into_owned().into(), false),
                event => template_key(&self.node(parser, event, &span, depth + 1)?),
            };
            let Some((event, span)) = self.next(parser)? else { break };
            let value = self.node(parser, event, &span, depth + 1)?;
            templates += usize::from(is_template && matches!(value.value, Value::Null));
            if &*key == "<<" {
                let nodes = match value.value {
                    Value::List(nodes) => nodes,
                    _ => vec![value],
                };
                for node in nodes {
                    if let Value::Map(more) = node.value {
                        merged.extend(more);
                    }
                }
            } else {
                entries.push((key, value));
            }
        }
        if templates == 1 && entries.len() == 1 && merged.is_empty() {
            return Ok(entries.pop().map_or(Value::Null, |(template, _)| Value::Text(template)));
        }
        if !merged.is_empty() {
            let mut known: HashSet<Box<str>> = entries.iter().map(|(key, _)| key.clone()).collect();
            for (key, value) in merged {
                if known.insert(key.clone()) {
                    entries.push((key, value));
                }
            }
        }
        Ok(Value::Map(entries))
    }
}

/// Returns the text of a key that is no scalar, and whether it is a template without quotes: `{{ x }}`.
fn template_key(key: &DocumentNode) -> (Box<str>, bool) {
    match &key.value {
        Value::Map(entries) if entries.iter().all(|(_, value)| matches!(value.value, Value::Null)) => {
            let words: Vec<&str> = entries.iter().map(|(key, _)| &**key).collect();
            (format!("{{{{ {} }}}}", words.join(", ")).into(), true)
        }
        // `{{{ x }}}`.
        Value::Text(text) => (text.clone(), text.starts_with("{{")),
        _ => ("?".into(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_lines_and_merges_are_applied() {
        let text = "a: &base\n  image: x\n  tag: 1\nb:\n  <<: *base\n  tag: 2\nc: [q, ~]\n";
        let (roots, error) = parse(text);
        assert!(error.is_none());
        let b = roots[0].get("b").unwrap();
        assert_eq!((b.get_text("tag"), b.get_text("image"), b.get("tag").unwrap().line), (Some("2"), Some("x"), 6));
        assert_eq!(roots[0].get("c").unwrap().items().len(), 2);
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", ")));
        }
        let (roots, error) = parse(&bomb);
        assert!(roots.is_empty());
        let error = error.unwrap();
        assert!(error.message.contains("aliases add more than") && !error.is_syntax, "{error:?}");
        let (_, error) = parse("a: &a [*a]");
        assert!(error.is_some());
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(&deep).1.is_some());
        assert!(parse_json(&deep).1.is_some());
    }

    #[test]
    fn what_stands_before_an_error_is_kept() {
        let (roots, error) = parse("a: 1\n---\nb: [\n");
        assert_eq!(roots.len(), 1);
        assert!(error.unwrap().line >= 3);
        assert_eq!(parse_json("{\"a\":1}\n{\"b\":2}").0.len(), 2);
        let (roots, error) = parse_json("{\"a\":1}\n{\"b\":");
        assert_eq!((roots.len(), error.unwrap().line), (1, 2));
    }
}
