//! Tables of `docs/configuration.md`, from the table of keys that the reader uses. A test keeps them current.

use std::fmt::Write as _;

use super::keys::{CONFIG, Kind, Section};

/// Markers around the tables; the rest of the page is written by hand.
const BEGIN: &str = "<!-- The tables are written by a test: UPDATE_DOCS=1 cargo nextest run reference -->";
const END: &str = "<!-- The end of the tables -->";

/// Writes a heading and a table for each section, from the top down.
fn tables() -> String {
    let mut text = String::new();
    let mut known: Vec<*const Section> = vec![&raw const CONFIG];
    table("The top", &CONFIG, &mut known, &mut text);
    text
}

fn table(heading: &str, section: &'static Section, known: &mut Vec<*const Section>, text: &mut String) {
    let _ = writeln!(text, "\n### {heading}\n\n| key | takes | |\n|---|---|---|");
    for key in section.keys {
        let _ = writeln!(text, "| `{}` | {} | {} |", key.name, takes(&key.kind), cell(key.about));
    }
    let parent = if heading == "The top" { String::new() } else { format!("{} ", heading.trim_matches('`')) };
    for key in section.keys {
        for (below, path) in sections(&key.kind) {
            if !known.contains(&std::ptr::from_ref(below)) {
                known.push(below);
                table(&format!("`{parent}{}:{path}`", key.name), below, known, text);
            }
        }
    }
}

/// Returns the sections that a value can be, each with the path from the key.
fn sections(kind: &Kind) -> Vec<(&'static Section, &'static str)> {
    match kind {
        Kind::Section(section) => vec![(*section, "")],
        Kind::List(item) | Kind::Several(item) => within(item, " -"),
        Kind::Map(value) => within(value, " NAME:"),
        Kind::Either(kinds) => kinds.iter().flat_map(sections).collect(),
        _ => Vec::new(),
    }
}

fn within(kind: &Kind, path: &'static str) -> Vec<(&'static Section, &'static str)> {
    sections(kind).into_iter().map(|(section, _)| (section, path)).collect()
}

fn takes(kind: &Kind) -> String {
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Flag => "on or off".to_owned(),
        Kind::Whole => "a whole number".to_owned(),
        Kind::Number => "a number".to_owned(),
        Kind::Duration => "a time (90s, 1h30m, 7d)".to_owned(),
        Kind::Since => "a day, a moment or a time ago".to_owned(),
        Kind::Size => "a size (10MiB)".to_owned(),
        Kind::Url => "a URL".to_owned(),
        Kind::Secret => "a secret: better a variable".to_owned(),
        Kind::Section(_) => "keys, below".to_owned(),
        Kind::List(item) => format!("a list: {}", takes(item)),
        Kind::Several(item) => format!("{}; or a list", takes(item)),
        Kind::Map(value) => format!("names of your own: {}", takes(value)),
        Kind::Either(kinds) => kinds.iter().map(takes).collect::<Vec<_>>().join("; or "),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace("**", "\\*\\*")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_DOCS=1 cargo nextest run reference` rewrites them.
    #[test]
    fn the_reference_of_the_configuration_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once(BEGIN).expect("the page says where the tables begin");
        let (_, after) = rest.split_once(END).expect("the page says where the tables end");
        let current = format!("{before}{BEGIN}\n{}\n{END}{after}", tables());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), current, "run the tests with UPDATE_DOCS=1");
    }

    #[test]
    fn every_key_is_in_the_tables() {
        let tables = tables();
        for section in super::super::keys::SECTIONS {
            for key in section.keys {
                assert!(tables.contains(&format!("| `{}` |", key.name)), "{} of {}", key.name, section.title);
            }
        }
    }
}
