//! Compares docs/reference/reports.md with the data of templates.

use std::collections::BTreeSet;

use serde_json::Value;

use super::sample::view;

/// Collects the paths of all values: `a.b`, `a[].b`.
fn paths(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                paths(value, &at, found);
            }
        }
        Value::Array(items) => {
            for item in items {
                paths(item, &format!("{at}[]"), found);
            }
        }
        _ => _ = found.insert(at.to_owned()),
    }
}

#[test]
fn the_documentation_names_every_field_of_a_template_s_data_and_no_other() {
    let text = include_str!("../../../docs/reference/reports.md");
    let (_, text) = text.split_once("## What a template is given").unwrap();
    let documented: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(field, _)| field.to_owned())
        .collect();
    let mut there = BTreeSet::new();
    paths(&serde_json::to_value(view()).unwrap(), "", &mut there);
    assert_eq!(documented, there);
}
