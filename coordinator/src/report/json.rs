//! Report as one JSON object, as printed by `run --json` and written by `--report=FILE.json`.

use std::io::Write;

use imgsync_model::batch::{BlobBytes, RequestCounts, TaskCounts, TaskState};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_store::{EmptyRule, ListingFailure, PruneRecord};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Report, ReportLevel};

/// JSON report without the failures, which are written page by page.
#[derive(Debug, Serialize)]
pub struct ReportJson<'a> {
    batch: String,
    state: &'static str,
    counts: &'a TaskCounts,
    bytes: &'a BlobBytes,
    requests: &'a RequestCounts,
    seconds: f64,
    unlisted: &'a [ListingFailure],
    rules: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    empty_rules: Vec<NamedEmptyRule<'a>>,
    #[serde(skip_serializing_if = "are_none")]
    pruned: &'a [PruneRecord],
}

#[derive(Debug, Serialize)]
struct NamedEmptyRule<'a> {
    name: &'a str,
    #[serde(flatten)]
    rule: &'a EmptyRule,
}

fn are_none(lines: &&[PruneRecord]) -> bool {
    lines.is_empty()
}

#[derive(Serialize)]
struct FailureJson {
    source: String,
    target: String,
    kind: ErrorKind,
    error: String,
    attempts: u32,
}

#[derive(Serialize)]
struct ImageJson {
    source: String,
    target: String,
    state: &'static str,
}

/// Writes the report as one JSON object on one line, at level 3 with every image.
pub async fn write_json(report: &Report<'_>, level: ReportLevel, out: &mut (dyn Write + Send)) -> Result<()> {
    let failed = |error: std::io::Error| Error::new(ErrorKind::Local, "writing the report", error.to_string());
    let head = ReportJson {
        batch: report.batch.id.to_string(),
        state: report.state.as_str(),
        counts: &report.batch.counts,
        bytes: &report.batch.usage.bytes,
        requests: &report.batch.usage.requests,
        seconds: report.seconds(),
        unlisted: &report.unlisted,
        rules: report.options.rules.iter().map(|rule| rule.name.as_str()).collect(),
        empty_rules: report
            .empty_rules
            .iter()
            .map(|rule| NamedEmptyRule { name: report.rule_name(rule), rule })
            .collect(),
        pruned: &report.pruned,
    };
    let head = serde_json::to_string(&head).map_err(|error| failed(error.into()))?;
    // The closing brace follows the failures, which are not held in memory.
    out.write_all(&head.as_bytes()[..head.len() - 1]).map_err(failed)?;
    out.write_all(b",\"failures\":[").map_err(failed)?;
    let (mut from, mut first) = (0, true);
    loop {
        let page = report.failures(from).await?;
        let Some(last) = page.last() else { break };
        from = last.task.index + 1;
        for row in page {
            if !std::mem::take(&mut first) {
                out.write_all(b",").map_err(failed)?;
            }
            let failure = FailureJson {
                source: row.task.spec.source.to_string(),
                target: row.task.spec.target.to_string(),
                kind: row.failure.kind,
                error: row.failure.error,
                attempts: row.failure.attempts,
            };
            let text = serde_json::to_string(&failure).map_err(|error| failed(error.into()))?;
            out.write_all(text.as_bytes()).map_err(failed)?;
        }
    }
    if level >= ReportLevel::Everything {
        out.write_all(b"],\"images\":[").map_err(failed)?;
        (from, first) = (0, true);
        loop {
            let page = report.tasks(None, from).await?;
            let Some(last) = page.last() else { break };
            from = last.task.index + 1;
            for row in page {
                if !std::mem::take(&mut first) {
                    out.write_all(b",").map_err(failed)?;
                }
                let planned = &row.task.spec;
                let state = row.state.as_str();
                let image = ImageJson { source: planned.source.to_string(), target: planned.target.to_string(), state };
                let text = serde_json::to_string(&image).map_err(|error| failed(error.into()))?;
                out.write_all(text.as_bytes()).map_err(failed)?;
            }
        }
    }
    out.write_all(b"]}\n").map_err(failed)
}

/// Returns the JSON Schema of the report.
pub fn json_schema() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let object = |names: &[&str]| {
        let properties: serde_json::Map<String, Value> =
            names.iter().map(|name| ((*name).to_owned(), count.clone())).collect();
        json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false})
    };
    let text = json!({"type": "string"});
    let states = TaskState::ALL.map(TaskState::as_str);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A batch of imgsync, as `run --json` prints it",
        "type": "object",
        "properties": {
            "batch": {"type": "string", "description": "the batch's id, a UUIDv7"},
            "state": {"enum": ["running", "paused", "cancelled", "superseded", "done", "interrupted"]},
            "counts": object(&["total", "waiting", "running", "copied", "unchanged", "failed", "cancelled"]),
            "bytes": object(&["copied", "mounted", "reused"]),
            "requests": object(&["source", "target"]),
            "seconds": {"type": "number", "minimum": 0},
            "unlisted": {"type": "array", "items": {
                "type": "object",
                "properties": {"repository": text, "kind": text, "error": text},
                "required": ["repository", "kind", "error"],
                "additionalProperties": false
            }},
            "rules": {"description": "rule names, in order", "type": "array", "items": text},
            "empty_rules": {"description": "rules that selected no tag; omitted when empty", "type": "array", "items": {
                "type": "object",
                "properties": {
                    "name": text, "rule": count, "from": text, "repositories": count, "tags": count, "reason": text
                },
                "required": ["name", "rule", "from", "repositories", "tags", "reason"],
                "additionalProperties": false
            }},
            "pruned": {"description": "tags whose source is gone; omitted when empty", "type": "array", "items": {
                "type": "object",
                "properties": {
                    "source": text, "target": text, "digest": text, "reason": text,
                    "outcome": {"enum": ["removed", "left", "failed", "refused"]}
                },
                "required": ["source", "target", "outcome"],
                "additionalProperties": false
            }},
            "failures": {"type": "array", "items": {
                "type": "object",
                "properties": {"source": text, "target": text, "kind": text, "error": text, "attempts": count},
                "required": ["source", "target", "kind", "error", "attempts"],
                "additionalProperties": false
            }},
            "images": {"description": "every image, at level 3", "type": "array", "items": {
                "type": "object",
                "properties": {"source": text, "target": text, "state": {"enum": states}},
                "required": ["source", "target", "state"],
                "additionalProperties": false
            }}
        },
        "required": ["batch", "state", "counts", "bytes", "requests", "seconds", "unlisted", "failures"],
        "additionalProperties": false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_in_the_repository_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/report.schema.json");
        let text = format!("{}\n", serde_json::to_string_pretty(&json_schema()).unwrap());
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), text, "run the tests with UPDATE_SCHEMA=1");
    }
}
