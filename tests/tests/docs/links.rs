//! Links between pages resolve, and so do the names of pages in code, messages and manifests.

use std::path::{Path, PathBuf};

use super::markdown::{all, prose, read, root};

/// Returns the targets of a text's links and pictures.
pub(crate) fn targets(text: &str) -> Vec<String> {
    let mut targets = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("](") {
        rest = &rest[at + 2..];
        let Some(end) = rest.find(')') else { break };
        targets.push(rest[..end].to_owned());
        rest = &rest[end..];
    }
    targets
}

/// Converts a heading to its anchor: lower-case letters and digits, hyphens for spaces, everything else dropped.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    heading
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || matches!(c, '-' | '_') => Some(c),
            _ => None,
        })
        .collect()
}

#[test]
fn every_link_within_the_pages_leads_somewhere() {
    let mut dead = Vec::new();
    let mut seen = 0;
    for page in all() {
        for target in targets(&prose(&read(&page))) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (file, heading) = target.split_once('#').map_or((target.as_str(), None), |(f, h)| (f, Some(h)));
            let from = root().join(&page);
            let path = if file.is_empty() { from } else { from.parent().unwrap().join(file) };
            if !path.exists() {
                dead.push(format!("{page}: {target}"));
                continue;
            }
            if let Some(heading) = heading {
                let text = std::fs::read_to_string(&path).unwrap();
                let known = prose(&text).lines().any(|line| line.starts_with('#') && anchor(line) == heading);
                if !known {
                    dead.push(format!("{page}: {target} (no such heading)"));
                }
            }
        }
    }
    assert!(seen > 3, "the pages link to each other");
    assert!(dead.is_empty(), "links that lead nowhere:\n{}", dead.join("\n"));
}

/// Returns the paths of pages (`docs/…/….md`) that a text names.
fn named_pages(text: &str) -> Vec<&str> {
    let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.');
    let ends = text.match_indices("docs/").map(|(at, _)| {
        let rest = &text[at..];
        &rest[..rest.find(|c: char| !is_path(c)).unwrap_or(rest.len())]
    });
    ends.filter_map(|path| path.find(".md").map(|end| &path[..end + 3])).collect()
}

/// Collects the text files below a folder, without built and hidden ones.
fn text_files(folder: &Path, files: &mut Vec<PathBuf>) {
    const EXTENSIONS: [&str; 10] = ["rs", "toml", "yml", "yaml", "json", "html", "js", "md", "service", "conf"];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                text_files(&path, files);
            }
        } else if path.extension().is_some_and(|extension| EXTENSIONS.contains(&extension.to_str().unwrap())) {
            files.push(path);
        }
    }
}

#[test]
fn every_page_that_any_file_names_exists() {
    let mut files = vec![root().join("Dockerfile")];
    text_files(&root(), &mut files);
    let (mut seen, mut missing) = (0, Vec::new());
    for file in files {
        // This file has examples of names.
        if file.ends_with("tests/docs/links.rs") {
            continue;
        }
        for page in named_pages(&std::fs::read_to_string(&file).unwrap()) {
            seen += 1;
            if !root().join(page).exists() {
                missing.push(format!("{}: {page}", file.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(seen > 50, "{seen} pages are named");
    assert!(missing.is_empty(), "pages that do not exist:\n{}", missing.join("\n"));
}

#[test]
fn the_name_of_a_page_is_found_in_a_message_and_in_a_path() {
    let text = "see docs/how-to/cluster.md#x; include_str!(\"../../docs/a.md\"), docs/*.md, docs.rs/md";
    assert_eq!(named_pages(text), ["docs/how-to/cluster.md", "docs/a.md"]);
}
