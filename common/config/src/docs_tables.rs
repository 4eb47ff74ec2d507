//! Tables of `docs/reference/configuration.md`, from the table of keys that the reader uses. A test keeps them current.

use std::fmt::Write as _;

use super::schema_table::{CONFIG, ConfigSection, ValueKind};

/// Markers around the tables; the rest of the page is written by hand.
const BEGIN_MARKER: &str = "<!-- The tables are written by a test: UPDATE_DOCS=1 cargo nextest run reference -->";
const END_MARKER: &str = "<!-- The end of the tables -->";

/// Writes a heading and a table for each section, from the top down.
fn tables() -> String {
    let mut text = String::new();
    let mut known: Vec<*const ConfigSection> = vec![&raw const CONFIG];
    write_table("Top level", &CONFIG, &mut known, &mut text);
    text
}

fn write_table(
    heading: &str,
    section: &'static ConfigSection,
    known: &mut Vec<*const ConfigSection>,
    text: &mut String,
) {
    let _ = writeln!(text, "\n### {heading}\n\n| key | type | meaning |\n|---|---|---|");
    for key in section.keys {
        let _ = writeln!(text, "| `{}` | {} | {} |", key.name, describe_kind(&key.kind), escape_cell(key.description));
    }
    let parent = if heading == "Top level" { String::new() } else { format!("{} ", heading.trim_matches('`')) };
    for key in section.keys {
        for (below, path) in sections(&key.kind) {
            if !known.contains(&std::ptr::from_ref(below)) {
                known.push(below);
                write_table(&format!("`{parent}{}:{path}`", key.name), below, known, text);
            }
        }
    }
}

/// Returns the sections that a value can be, each with the path from the key.
fn sections(kind: &ValueKind) -> Vec<(&'static ConfigSection, &'static str)> {
    match kind {
        ValueKind::Section(section) => vec![(*section, "")],
        ValueKind::List(item) | ValueKind::OneOrMany(item) => sections_below(item, " -"),
        ValueKind::Map(value) => sections_below(value, " NAME:"),
        ValueKind::Either(kinds) => kinds.iter().flat_map(sections).collect(),
        _ => Vec::new(),
    }
}

fn sections_below(kind: &ValueKind, path: &'static str) -> Vec<(&'static ConfigSection, &'static str)> {
    sections(kind).into_iter().map(|(section, _)| (section, path)).collect()
}

fn describe_kind(kind: &ValueKind) -> String {
    match kind {
        ValueKind::Text => "string".to_owned(),
        ValueKind::Flag => "boolean".to_owned(),
        ValueKind::Integer => "integer".to_owned(),
        ValueKind::Number => "number".to_owned(),
        ValueKind::Duration => "duration (90s, 1h30m, 7d)".to_owned(),
        ValueKind::Since => "date, timestamp or age".to_owned(),
        ValueKind::Size => "size (10MiB)".to_owned(),
        ValueKind::Url => "URL".to_owned(),
        ValueKind::Secret => "secret".to_owned(),
        ValueKind::Section(_) => "mapping".to_owned(),
        ValueKind::List(item) => format!("list: {}", describe_kind(item)),
        ValueKind::OneOrMany(item) => format!("{}, or a list", describe_kind(item)),
        ValueKind::Map(value) => format!("mapping of names to {}", describe_kind(value)),
        ValueKind::Either(kinds) => kinds.iter().map(describe_kind).collect::<Vec<_>>().join(", or "),
    }
}

/// Escapes text for a cell of a table; code between backticks needs no escape but that of `|`.
fn escape_cell(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let escaped = parts.map(|(n, part)| if n % 2 == 0 { part.replace("**", "\\*\\*") } else { part.to_owned() });
    escaped.collect::<Vec<_>>().join("`").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_DOCS=1 cargo nextest run reference` rewrites them.
    #[test]
    fn the_reference_of_the_configuration_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/configuration.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once(BEGIN_MARKER).expect("the page says where the tables begin");
        let (_, after) = rest.split_once(END_MARKER).expect("the page says where the tables end");
        let current = format!("{before}{BEGIN_MARKER}\n{}\n{END_MARKER}{after}", tables());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), current, "run the tests with UPDATE_DOCS=1");
    }

    #[test]
    fn every_provider_that_lists_or_creates_is_in_the_tables() {
        use imgsync_registry::providers::{creating_names, listing_names};
        let tables = tables();
        let row = |key: &str| {
            let begin = format!("| `{key}` |");
            tables.lines().find(|line| line.starts_with(&begin)).unwrap_or_default()
        };
        for (key, name) in
            listing_names().map(|name| ("listing", name)).chain(creating_names().map(|name| ("create", name)))
        {
            assert!(row(key).contains(name), "the description of `{key}` in schema_table.rs does not name {name}");
        }
    }

    #[test]
    fn every_key_is_in_the_tables() {
        let tables = tables();
        for section in super::super::schema_table::SECTIONS {
            for key in section.keys {
                assert!(tables.contains(&format!("| `{}` |", key.name)), "{} of {}", key.name, section.title);
            }
        }
    }
}
