//! Links between pages resolve.

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
