//! A minimal Markdown parser for these tests.

use std::path::{Path, PathBuf};

/// Returns the root folder of all pages.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Reads a page by its path from the root.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns all pages: at the root, in docs and in its folders.
pub(crate) fn all() -> Vec<String> {
    let mut pages = Vec::new();
    for folder in ["", "docs", "docs/tutorial", "docs/how-to", "docs/reference", "docs/explanation"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    pages.sort();
    pages
}

/// Returns the fenced blocks, each line without ` #` comments and without blank lines.
pub(crate) fn code(text: &str) -> Vec<Vec<String>> {
    let mut blocks = Vec::new();
    let mut open: Option<Vec<String>> = None;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            match open.take() {
                Some(block) => blocks.push(block),
                None => open = Some(Vec::new()),
            }
        } else if let Some(block) = &mut open {
            let said = if line.trim_start().starts_with('#') { "" } else { line.split("  #").next().unwrap() };
            let said = said.split(" # ").next().unwrap().trim_end();
            if !said.is_empty() {
                block.push(said.to_owned());
            }
        }
    }
    assert!(open.is_none(), "a fence is open at the end");
    blocks
}

/// Returns the text outside of fences.
pub(crate) fn prose(text: &str) -> String {
    let mut inside = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}
