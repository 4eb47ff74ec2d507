//! `report:`: file, level and template of a run's report.

use std::path::PathBuf;

use super::reader::ValueReader;
use super::schema_table::REPORT;
use super::yaml::{YamlNode, YamlValue};

/// Settings of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportConfig {
    /// .txt, .json, .md or .html; a relative path is relative to the working directory, as on the command line.
    pub file: PathBuf,
    /// 1 totals, 2 failures, 3 everything; `None` leaves it to the format.
    pub level: Option<u8>,
    /// User-defined template; a relative path is relative to the configuration file.
    pub template: Option<PathBuf>,
}

pub(super) fn read(reader: &ValueReader, node: &YamlNode) -> Option<ReportConfig> {
    let YamlValue::Map(_) = node.value else {
        return Some(ReportConfig { file: read_path(reader, node)?, level: None, template: None });
    };
    let fields = reader.fields(node, &REPORT)?;
    let level = match fields.get("level") {
        Some(node) => u8::try_from(reader.integer(node, 1..=3)?).ok(),
        None => None,
    };
    let template = match fields.get("template") {
        Some(node) => Some(reader.text(node)?.into()),
        None => None,
    };
    let Some(named) = fields.get("file") else {
        reader.report(&fields.at, "`file` is missing");
        return None;
    };
    Some(ReportConfig { file: read_path(reader, named)?, level, template })
}

fn read_path(reader: &ValueReader, node: &YamlNode) -> Option<PathBuf> {
    let path = PathBuf::from(reader.text(node)?);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("txt" | "json" | "md" | "html") => Some(path),
        _ => {
            reader.report(&node.at, "a report's name ends with .txt, .json, .md or .html");
            None
        }
    }
}
