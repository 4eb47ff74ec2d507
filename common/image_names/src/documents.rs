//! YAML and JSON: splits a file into documents, and finds out what each of them is.

use std::path::Path;

use imgsync_oci::humanize::pluralize;

use crate::recorder::{Certainty, Recorder};
use crate::templates::{has_template, image_line, strip_scheme};
use crate::walker::Walker;
use crate::yaml::{self, DocumentNode, Value};
use crate::{compose, kubernetes, packages};

/// Records the images of all documents of a file.
pub(crate) fn scan(name: &str, text: &str, recorder: &mut Recorder) {
    let name = Path::new(name).file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let mut number = 0;
    for (offset, text) in split(text) {
        if recorder.is_full() {
            break;
        }
        recorder.set_line_offset(offset);
        let (mut roots, mut error) = yaml::parse(text);
        let is_json = text.trim_start().starts_with(['{', '[']);
        if is_json && error.as_ref().is_some_and(|error| error.is_syntax) {
            let (values, json_error) = yaml::parse_json(text);
            let is_valid_json = json_error.as_ref().is_none_or(|error| !error.is_syntax);
            if is_valid_json || values.len() > roots.len() {
                (roots, error) = (values, json_error);
            }
        }
        for root in &roots {
            number += 1;
            let label = if root.line == 0 { format!("document {number}") } else { String::new() };
            document(&name, root, &label, recorder);
        }
        if let Some(error) = error {
            number += 1;
            let what = format!("document {number} is not read: {}", error.message);
            // JSON has `}}` without any template.
            let is_template = if is_json { text.contains("{{") || text.contains("{%") } else { has_template(text) };
            match error.is_syntax && is_template {
                true => {
                    let hint = "it looks like a template; render it first, as with `helm template`";
                    recorder.problem(format!("{what} ({hint})"), error.line, "");
                    scan_template(text, recorder);
                }
                false => recorder.problem(what, error.line, ""),
            }
        }
    }
    recorder.set_line_offset(0);
}

/// Splits a file at its `---` lines, so that an error in one document does not hide the others. Returns each document
/// with the number of lines before it. Such a line ends every value of a document (YAML 1.2.2, "Document Markers").
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut has_content, mut at) = (0, 0, false, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if is_marker && has_content {
            documents.push((start_line, &text[start..at]));
            (start, start_line, has_content) = (at, number, false);
        }
        let content = if is_marker { line[3..].trim() } else { line.trim() };
        // Directives and comments belong to the document that follows.
        has_content |= !(content.is_empty() || content.starts_with('#') || line.starts_with('%'));
        at += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents
}

/// Records what a document that is not YAML says line by line in `image:`.
fn scan_template(text: &str, recorder: &mut Recorder) {
    for (at, line) in text.lines().enumerate() {
        if let Some(value) = image_line(line) {
            recorder.image_field(value, Certainty::Perhaps, at + 1, "");
        }
    }
}

/// Records the images of one document of the file `name`.
fn document(name: &str, root: &DocumentNode, label: &str, recorder: &mut Recorder) {
    match &root.value {
        Value::Null => {}
        Value::Text(text) => recorder.problem(
            format!("it is a single value, and no manifest: `{}`", text.chars().take(40).collect::<String>()),
            root.line,
            label,
        ),
        Value::List(items) => list(name, items, label, recorder),
        Value::Map(_) => mapping(name, root, label, recorder),
    }
}

/// Records the images of a list. Its values are images if all of them look so, or if the name of the file says so.
fn list(name: &str, items: &[DocumentNode], label: &str, recorder: &mut Recorder) {
    let are_images = items.iter().any(|item| item.text().is_some_and(has_name_form))
        && items.iter().all(|item| item.text().is_some_and(|text| has_name_form(text) || has_template(text)));
    let certainty = if are_images || name.contains("image") { Certainty::Sure } else { Certainty::Perhaps };
    let (mut others, mut first) = (0_u64, None);
    for (at, item) in items.iter().enumerate() {
        let label = format!("{label}[{at}]");
        match &item.value {
            Value::Text(text) if certainty == Certainty::Sure || has_name_form(text) || has_template(text) => {
                recorder.image_field(text, certainty, item.line, &label);
            }
            Value::Text(text) => {
                others += 1;
                first = first.or(Some((text, item.line, label)));
            }
            _ => document(name, item, &label, recorder),
        }
    }
    if let Some((text, line, label)) = first {
        let values = pluralize(others, "value of the list has", "values of the list have");
        let reason = format!("{values} no registry, tag or digest, and may name something else");
        recorder.undecided(text, Certainty::Perhaps, reason, line, &label);
    }
}

/// Returns whether a value has the form of a name with a registry, a path, a tag or a digest.
fn has_name_form(text: &str) -> bool {
    let text = strip_scheme(text.trim());
    let is_number = text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(['/', '@']);
    text.contains(['/', ':', '@']) && !text.contains("://") && !text.contains(char::is_whitespace) && !is_number
}

fn mapping(name: &str, root: &DocumentNode, label: &str, recorder: &mut Recorder) {
    if root.get_text("kind").is_some() {
        kubernetes::object(root, None, recorder);
    } else if matches!(name, "chart.yaml" | "chart.yml") || packages::is_chart(root) {
        packages::chart(root, recorder);
    } else if matches!(name, "kustomization.yaml" | "kustomization.yml" | "kustomization") {
        packages::kustomization(root, "kustomization", recorder);
    } else if compose::is_compose(root) {
        compose::scan(root, recorder);
    } else {
        // Helm values, CI pipelines and others: a name may be unused.
        Walker::new(recorder, label, Certainty::Perhaps).walk(root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_at_their_markers() {
        let text = "# head\n---\na: 1\n---\n# only a comment\n---\nb: |\n  --- x\n  y\n--- # next\nc: 2\n";
        let parts: Vec<(usize, &str)> = split(text);
        let lines: Vec<usize> = parts.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [0, 3, 9], "{parts:?}");
        assert_eq!(split("").len(), 1);
        assert_eq!(split("%YAML 1.2\n---\na: 1\n").len(), 1);
        assert_eq!(split("--- {a: 1}\n--- {b: 2}\n").len(), 2);
    }
}
