//! Generates the tables of limits in the documentation from the constants of all crates.

use std::fmt::Write as _;

use imgsync_oci::limits::{DocsPage, Limit};

use crate::orchestrator::{MAX_DEPTH, MAX_RULES};

/// Returns the limits of the coordinator.
fn coordinator_limits() -> Vec<Limit> {
    let tasks = "queued tasks per route and priority, over all batches";
    let rules = "rules of `imgsync serve` with their own metrics";
    vec![
        Limit::count(DocsPage::Operating, tasks, MAX_DEPTH, "the rest stays in the plan"),
        Limit::count(DocsPage::Operating, rules, MAX_RULES as u64, "the others are counted by `imgsync_rules_omitted`"),
        Limit::time(
            DocsPage::Operating,
            "sending notifications after the end of a batch",
            crate::notify::DELIVERY_WINDOW,
            "undelivered notifications are dropped, with a warning",
        ),
        Limit::bytes(
            DocsPage::Security,
            "the body of a notification of a registry",
            crate::serve::MAX_HOOK_BYTES as u64,
            "the notification is refused, with a warning",
        ),
        Limit::count(
            DocsPage::Security,
            "notifications in a request",
            crate::hooks::MAX_NOTIFICATIONS as u64,
            "the request is refused, with a warning",
        ),
    ]
}

const END: &str = "<!-- End of the limits -->";

/// Returns the line before a table in the page.
fn begin(table: &str) -> String {
    format!("<!-- Limits of {table}, written by a test: UPDATE_DOCS=1 cargo nextest run limits -->")
}

/// `UPDATE_DOCS=1 cargo nextest run limits` regenerates the tables.
#[test]
fn the_documented_limits_are_the_constants() {
    let limits: Vec<Limit> = [
        imgsync_registry::limits(),
        imgsync_config::limits(),
        imgsync_oci::limits::limits(),
        imgsync_layout::limits(),
        imgsync_image_names::limits(),
        imgsync_model::limits::limits(),
        imgsync_queue::limits(),
        imgsync_store::limits(),
        imgsync_worker::limits::limits(),
        coordinator_limits(),
    ]
    .concat();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/limits.md");
    let mut current = std::fs::read_to_string(path).unwrap();
    for (page, name) in [(DocsPage::Security, "external input"), (DocsPage::Operating, "operation")] {
        let mut table = String::from("\n| limit | value | effect |\n|---|---|---|\n");
        for limit in limits.iter().filter(|limit| limit.page == page) {
            let _ = writeln!(table, "| {} | {} | {} |", limit.subject, limit.value, limit.effect);
        }
        let begin = begin(name);
        let (before, rest) = current.split_once(&begin).expect("the page marks where the table begins");
        let (_, after) = rest.split_once(END).expect("the page marks where the table ends");
        current = format!("{before}{begin}\n{table}\n{END}{after}");
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &current).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), current, "run the tests with UPDATE_DOCS=1");
}
