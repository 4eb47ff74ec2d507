//! How a batch went: as text in the original's three levels, and as one JSON object.

mod json;
mod text;

use std::io::Write;
use std::path::Path;

use imgsync_common::batch::{BatchId, Options, TaskState};
use imgsync_common::config::{Config, Source};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::store::{Batch, FailedTask, Store, TaskRow, Unlisted};
use jiff::Timestamp;

pub use json::{Json, json_schema, write_json};
pub use text::write_text;

/// Rows that are read from the store at a time.
const PAGE: usize = 1000;

/// How much a report tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Totals.
    Totals,
    /// What failed, too.
    Failures,
    /// Every image.
    Everything,
}

impl Level {
    /// As the original has them: 1, 2, 3.
    pub fn from_number(number: u8) -> Level {
        match number {
            0 | 1 => Level::Totals,
            2 => Level::Failures,
            _ => Level::Everything,
        }
    }
}

/// A batch to be reported on. Rows are read from the store page by page while a report is written.
pub struct Report<'a> {
    store: &'a dyn Store,
    /// As it stood when the report was begun.
    pub batch: Batch,
    /// What could not be listed.
    pub unlisted: Vec<Unlisted>,
    /// What was to be copied, in a few words.
    pub title: String,
}

impl<'a> Report<'a> {
    /// Reads how a batch stands.
    pub async fn of(store: &'a dyn Store, id: BatchId) -> Result<Report<'a>> {
        let tried = format!("reporting on batch {id}");
        let batch = store.batch(id).await?.ok_or_else(|| {
            Error::new(Class::NotFound, tried, "the store does not have it")
                .hint("imgsync batch list shows those that there are")
        })?;
        let unlisted = store.unlisted(id).await?;
        let title = serde_json::from_str::<Options>(&batch.options).map(|options| options.title).unwrap_or_default();
        Ok(Report { store, batch, unlisted, title })
    }

    /// How long it took, or takes until now, in seconds.
    pub fn seconds(&self) -> f64 {
        let end = self.batch.ended_at.unwrap_or_else(Timestamp::now);
        let seconds = end.duration_since(self.batch.created_at).as_secs_f64();
        (seconds * 1000.0).round() / 1000.0
    }

    /// The failures, page by page.
    async fn failures(&self, from: u32) -> Result<Vec<FailedTask>> {
        self.store.failures(self.batch.id, from, PAGE).await
    }

    async fn tasks(&self, state: Option<TaskState>, from: u32) -> Result<Vec<TaskRow>> {
        self.store.tasks(self.batch.id, state, from, PAGE).await
    }
}

/// What the rules copy, in a few words.
pub fn title(config: &Config) -> String {
    let names: Vec<String> = config
        .rules
        .iter()
        .map(|rule| match &rule.source {
            Source::Repositories(pattern) => pattern.to_string(),
            Source::Layout(path) => format!("oci:{}", path.display()),
            Source::Preset(preset) => preset.to_string(),
        })
        .collect();
    match names.len() {
        0..=3 => names.join(", "),
        more => format!("{}, {} and {} more", names[0], names[1], more - 2),
    }
}

/// Writes a report to a file, in the form that its name ends with: `.json`, else text.
pub async fn write_file(report: &Report<'_>, level: Level, path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(Class::Local, format!("writing the report {}", path.display()), error.to_string())
    };
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(failed)?);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => write_json(report, &mut file).await?,
        _ => write_text(report, level, &mut file).await?,
    }
    file.flush().map_err(failed)
}
