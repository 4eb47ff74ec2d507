//! Reports of batches: text in three levels, JSON, and templates for Markdown, HTML and formats of
//! the user's own.

pub(crate) mod advice;
mod collect;
pub(crate) mod failure_groups;
mod json;
mod legacy_text;
mod plot;
#[cfg(test)]
mod sample;
mod template;
#[cfg(test)]
mod tests;
mod text;
mod units;
mod view;

use std::io::Write;
use std::path::Path;

use imgsync_config::{Config, Rule};
use imgsync_model::batch::{BatchId, BatchOptions, TaskCounts, TaskState};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_store::{
    Batch, BatchTimeline, EmptyRule, FailedTask, ListingFailure, PruneRecord, Store, TaskRow, private_files,
};
use jiff::Timestamp;

use crate::batch_view::{BatchStatus, BatchView};

pub use json::{ReportJson, json_schema, write_json};
pub use template::ReportTemplate;
pub use text::{TextStyle, write_text};
pub use view::ReportData;

/// Rows read from the store per query.
const ROWS_PER_PAGE: usize = 1000;

/// Level of detail of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReportLevel {
    /// Totals.
    Totals,
    /// Totals and failures.
    Failures,
    /// Totals, failures and every image.
    Everything,
}

impl ReportLevel {
    /// Returns the level of a `--report-level`: 1, 2 or 3.
    pub fn from_number(number: u8) -> ReportLevel {
        match number {
            0 | 1 => ReportLevel::Totals,
            2 => ReportLevel::Failures,
            _ => ReportLevel::Everything,
        }
    }

    /// Returns the number of the level.
    pub fn number(self) -> u8 {
        match self {
            ReportLevel::Totals => 1,
            ReportLevel::Failures => 2,
            ReportLevel::Everything => 3,
        }
    }
}

/// Format of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportFormat {
    /// Text.
    Text,
    /// Text with the lines of imgsync 2.1.
    Legacy,
    /// One JSON object on one line.
    Json,
    /// GitHub-flavored Markdown.
    Markdown,
    /// A self-contained HTML page.
    Html,
}

impl ReportFormat {
    /// Returns the format of a file extension, if it is known.
    pub fn from_path(path: &Path) -> Option<ReportFormat> {
        match path.extension()?.to_str()? {
            "txt" => Some(ReportFormat::Text),
            "json" => Some(ReportFormat::Json),
            "md" => Some(ReportFormat::Markdown),
            "html" => Some(ReportFormat::Html),
            _ => None,
        }
    }

    /// Returns the format that a template renders to, by its name: `slack.json`, `chat.md.j2`.
    pub fn from_template_path(path: &Path) -> ReportFormat {
        match path.extension().and_then(|end| end.to_str()) {
            Some("j2" | "jinja" | "jinja2") => {
                path.file_stem().map_or(ReportFormat::Text, |stem| ReportFormat::from_template_path(stem.as_ref()))
            }
            _ => ReportFormat::from_path(path).unwrap_or(ReportFormat::Text),
        }
    }
}

/// Format, level and template of a report.
#[derive(Debug, Clone)]
pub struct ReportSpec {
    /// Format.
    pub format: ReportFormat,
    /// Whether nobody asked for that format by name: then the text of a batch of a command of imgsync 2.1 has the lines
    /// of 2.1.
    pub is_default_format: bool,
    /// Level; `None` selects the default of the format.
    pub level: Option<ReportLevel>,
    /// Template in place of the built-in one.
    pub template: Option<ReportTemplate>,
}

impl ReportSpec {
    /// Returns the words of a text report.
    pub fn text_style(&self, report: &Report<'_>) -> TextStyle {
        match self.format {
            ReportFormat::Legacy => TextStyle::Legacy,
            _ if self.is_default_format => report.text_style(),
            _ => TextStyle::Current,
        }
    }

    /// Returns the level, by default with failures in formats that have room for them.
    pub fn level(&self) -> ReportLevel {
        self.level.unwrap_or(match self.format {
            ReportFormat::Text | ReportFormat::Legacy | ReportFormat::Json => ReportLevel::Totals,
            ReportFormat::Markdown | ReportFormat::Html => ReportLevel::Failures,
        })
    }
}

/// Report of a batch. Rows are read from the store page by page while it is written.
pub struct Report<'a> {
    store: &'a dyn Store,
    /// State of the batch when the report was loaded.
    pub batch: Batch,
    /// Status of the batch at that time.
    pub state: BatchStatus,
    /// Process that listed or led the batch at that time.
    pub owner: Option<String>,
    /// What could not be listed.
    pub unlisted: Vec<ListingFailure>,
    /// Rules that selected no tag.
    pub empty_rules: Vec<EmptyRule>,
    /// Outcomes of target tags whose source is gone.
    pub pruned: Vec<PruneRecord>,
    /// Title: the names of the rules, or `--report-name`.
    pub title: String,
    /// Options of the batch.
    pub options: BatchOptions,
    /// Number of images that a verification found to be different. They count as failed in the batch.
    pub different: u64,
    /// URL of the dashboard, if it is known; the report links to the batch there.
    pub dashboard: Option<String>,
}

impl<'a> Report<'a> {
    /// Loads the state of a batch.
    pub async fn load(store: &'a dyn Store, id: BatchId) -> Result<Report<'a>> {
        let operation = format!("reporting on batch {id}");
        let batch = store.batch(id).await?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, operation, "it is not in the store")
                .with_hint("`imgsync batch list` shows all batches")
        })?;
        let unlisted = store.listing_failures(id).await?;
        let empty_rules = store.empty_rules(id).await?;
        let pruned = store.prune_records(id).await?;
        let options = BatchOptions::decode(&batch.options, &format!("batch {id}"))?;
        let BatchView { batch, state, owner } = BatchView::load(store, batch).await?;
        let title = options.title.clone();
        let mut report = Report {
            store,
            batch,
            state,
            owner,
            unlisted,
            empty_rules,
            pruned,
            title,
            options,
            different: 0,
            dashboard: None,
        };
        if report.is_verification() && report.batch.counts.failed > 0 {
            report.different = report.count_different().await?;
        }
        Ok(report)
    }

    /// Returns whether the batch compares targets with their sources, and copies nothing.
    pub fn is_verification(&self) -> bool {
        self.options.verify.is_some()
    }

    /// Returns the words of text reports on this batch.
    pub fn text_style(&self) -> TextStyle {
        if self.options.legacy_report { TextStyle::Legacy } else { TextStyle::Current }
    }

    async fn count_different(&self) -> Result<u64> {
        let (mut different, mut from) = (0, 0);
        loop {
            let page = self.failures(from).await?;
            let Some(last) = page.last() else { return Ok(different) };
            from = last.task.index.saturating_add(1);
            different +=
                page.iter().filter(|row| matches!(row.failure.kind, ErrorKind::Differs | ErrorKind::Corrupt)).count()
                    as u64;
        }
    }

    /// Returns the batch with its status and owner.
    pub fn batch_view(&self) -> BatchView {
        BatchView { batch: self.batch.clone(), state: self.state, owner: self.owner.clone() }
    }

    /// Returns whether the batch has ended with failed images, and nothing else failed.
    pub(crate) fn has_only_failed_images(&self) -> bool {
        let counts = &self.batch.counts;
        counts.failed > 0 && self.is_ok_but_for(counts.failed)
    }

    /// Returns whether nothing failed: no image, no listing, and nothing that was to be pruned.
    pub(crate) fn is_ok(&self) -> bool {
        self.is_ok_but_for(0)
    }

    fn is_ok_but_for(&self, failed: u64) -> bool {
        let counts = &self.batch.counts;
        counts.failed + counts.cancelled + counts.unfinished() == failed
            && self.unlisted.is_empty()
            && !self.pruned.iter().any(|line| line.outcome.needs_attention())
    }

    /// Returns the state of the batch for people. A batch that is done is `failed` if it did nothing but fail, and
    /// `incomplete` if something failed.
    fn outcome(&self) -> &'static str {
        outcome(self.state, &self.batch.counts, (self.different, self.unlisted.len() as u64))
    }

    /// Returns the URL of the batch on the dashboard, if it is known.
    fn url(&self) -> Option<String> {
        self.dashboard.as_ref().map(|dashboard| format!("{dashboard}/#/batches/{}", self.batch.id))
    }

    /// Returns the name of a rule that selected nothing.
    fn rule_name<'r>(&'r self, empty: &'r EmptyRule) -> &'r str {
        let named = self.options.rules.get(empty.rule as usize).map(|rule| rule.name.as_str());
        named.filter(|name| !name.is_empty()).unwrap_or(&empty.from)
    }

    /// Returns the duration of the batch in seconds, until now if it has not ended.
    pub fn seconds(&self) -> f64 {
        let end = self.batch.ended_at.unwrap_or_else(Timestamp::now);
        let seconds = end.duration_since(self.batch.created_at).as_secs_f64();
        (seconds * 1000.0).round() / 1000.0
    }

    /// Reads a page of failures.
    async fn failures(&self, from: u32) -> Result<Vec<FailedTask>> {
        self.store.failures(self.batch.id, from, ROWS_PER_PAGE).await
    }

    /// Reads the timeline.
    async fn timeline(&self) -> Result<BatchTimeline> {
        self.store.timeline(self.batch.id).await
    }

    /// Reads one task.
    async fn task(&self, index: u32) -> Result<Option<TaskRow>> {
        Ok(self.store.tasks(self.batch.id, None, index, 1).await?.pop().filter(|row| row.task.index == index))
    }

    async fn tasks(&self, state: Option<TaskState>, from: u32) -> Result<Vec<TaskRow>> {
        self.store.tasks(self.batch.id, state, from, ROWS_PER_PAGE).await
    }
}

/// Returns the names of the rules in a few words.
pub fn rules_title(config: &Config) -> String {
    let names: Vec<String> = config.rules.iter().map(Rule::title).collect();
    match names.len() {
        0..=3 => names.join(", "),
        more => format!("{}, {} and {} more", names[0], names[1], more - 2),
    }
}

/// Returns the state of a batch for people, as in reports: `different` images of a verification are no failures, and
/// `unlisted` repositories are.
pub fn outcome(state: BatchStatus, counts: &TaskCounts, (different, unlisted): (u64, u64)) -> &'static str {
    let failed = counts.failed.saturating_sub(different) + counts.cancelled + unlisted;
    match state {
        BatchStatus::Done if failed > 0 && counts.copied + counts.unchanged + different == 0 => "failed",
        BatchStatus::Done if failed > 0 => "incomplete",
        state => state.as_str(),
    }
}

/// Writes a report.
pub async fn write(report: &Report<'_>, shape: &ReportSpec, out: &mut (dyn Write + Send)) -> Result<()> {
    let level = shape.level();
    let template = match (&shape.template, shape.format) {
        (Some(template), _) => template.clone(),
        (None, ReportFormat::Text | ReportFormat::Legacy) => {
            return write_text(report, level, shape.text_style(report), out).await;
        }
        (None, ReportFormat::Json) => return write_json(report, level, out).await,
        (None, ReportFormat::Markdown | ReportFormat::Html) => ReportTemplate::builtin(shape.format)?,
    };
    let text = template.render(&ReportData::load(report, level).await?)?;
    let end = if text.ends_with('\n') { "" } else { "\n" };
    out.write_all(text.as_bytes())
        .and_then(|()| out.write_all(end.as_bytes()))
        .map_err(|error| Error::new(ErrorKind::Local, "writing the report", error.to_string()))
}

/// Writes a report to a file. A new file is readable only by its owner, because it names private repositories.
pub async fn write_file(report: &Report<'_>, shape: &ReportSpec, path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Local, format!("writing the report {}", path.display()), error.to_string())
    };
    let mut file = std::io::BufWriter::new(private_files::create_or_truncate(path).map_err(failed)?);
    write(report, shape, &mut file).await?;
    file.flush().map_err(failed)
}
