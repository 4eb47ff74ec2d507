//! Report flags, which override the configuration.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use imgsync_oci::error::{Error, ErrorKind, Result};

use super::printer::Printer;
use super::settings::Settings;
use crate::report::{ReportFormat, ReportLevel, ReportSpec, ReportTemplate};

/// The report.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct ReportArgs {
    /// Write the report to stdout or to a file (.txt, .json, .md or .html)
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    pub(crate) report: Option<Option<PathBuf>>,
    /// Level of detail: 1 totals, 2 failures too, 3 every image [default: from the configuration, else 1, and 2 for md
    /// and html]
    #[arg(hide_short_help = true)]
    #[arg(long, value_name = "1..3", value_parser = clap::value_parser!(u8).range(1..=3))]
    pub(crate) report_level: Option<u8>,
    /// Format of the report, whatever the extension of the file
    ///
    /// `legacy` is the text format of imgsync 2.1
    #[arg(long, value_name = "FORMAT")]
    pub(crate) report_format: Option<ReportFormatArg>,
    /// Render the report with this Jinja template; docs/reference/reports.md lists its variables
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(crate) report_template: Option<PathBuf>,
    /// Title of the report [default: what the rules copy]
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(crate) report_name: Option<String>,
}

/// `--report-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormatArg {
    Text,
    Legacy,
    Json,
    #[value(alias = "markdown")]
    Md,
    Html,
}

impl From<ReportFormatArg> for ReportFormat {
    fn from(form: ReportFormatArg) -> ReportFormat {
        match form {
            ReportFormatArg::Text => ReportFormat::Text,
            ReportFormatArg::Legacy => ReportFormat::Legacy,
            ReportFormatArg::Json => ReportFormat::Json,
            ReportFormatArg::Md => ReportFormat::Markdown,
            ReportFormatArg::Html => ReportFormat::Html,
        }
    }
}

/// Destination and format of a report. Templates are loaded and validated.
#[derive(Debug)]
pub(crate) struct ReportOptions {
    /// Whether it is printed on stdout.
    pub(crate) on_stdout: bool,
    /// File to write.
    pub(crate) file: Option<PathBuf>,
    /// Format, level and template.
    pub(crate) shape: ReportSpec,
    /// Whether a flag requests it.
    pub(crate) is_explicit: bool,
}

impl ReportArgs {
    /// Resolves the flags, with the configured file if no flag names another destination.
    pub(crate) fn resolve(&self, settings: &Settings) -> Result<ReportOptions> {
        let configured = settings.config.report.as_ref();
        let is_explicit = self.report.is_some() || self.report_format.is_some();
        // A template alone applies to the configured file, if there is one.
        let file = match &self.report {
            Some(file) => file.clone(),
            None if self.report_format.is_some() => None,
            None => configured.map(|report| report.file.clone()),
        };
        let on_stdout = file.is_none() && (is_explicit || self.report_template.is_some());
        let template = match (&self.report_template, configured.and_then(|report| report.template.as_ref())) {
            (Some(typed), _) => Some(typed.clone()),
            // The configured template applies to the configured file.
            (None, Some(path)) if !is_explicit => Some(settings.folder().join(path)),
            _ => None,
        };
        let of_template = template.as_ref().and_then(|path| {
            let name = path.file_name()?.to_str()?;
            // report.html.j2 makes HTML, as report.html does.
            let name = [".j2", ".jinja", ".jinja2"].into_iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            ReportFormat::from_path(name.as_ref())
        });
        if let Some(file) = &file {
            check_writable(file)?;
        }
        let form = match (self.report_format, &file) {
            (Some(form), _) => form.into(),
            (None, Some(file)) => ReportFormat::from_path(file).ok_or_else(|| {
                Error::new(
                    ErrorKind::Invalid,
                    format!("writing the report {}", file.display()),
                    "unknown report format",
                )
                .with_hint("use the extension .txt, .json, .md or .html, or pass --report-format")
            })?,
            (None, None) => of_template.unwrap_or(ReportFormat::Text),
        };
        let template = match template {
            Some(path) => Some(ReportTemplate::read(&path, form)?),
            None => None,
        };
        let level = self.report_level.or(configured.and_then(|report| report.level)).map(ReportLevel::from_number);
        let shape = ReportSpec { format: form, is_default_format: self.report_format.is_none(), level, template };
        Ok(ReportOptions { on_stdout, file, shape, is_explicit })
    }
}

/// Prints a report on stdout: text for people in the characters of the locale, other formats as they are.
pub(crate) fn print_report(report: &str, shape: &ReportSpec, printer: &Printer) {
    match (shape.format, &shape.template) {
        (ReportFormat::Text | ReportFormat::Legacy, None) => printer.text(report.trim_end()),
        _ => printer.data(report.trim_end()),
    };
}

/// Checks that the report's file can be written, before anything is copied.
fn check_writable(file: &Path) -> Result<()> {
    let wrong = |detail: &str| {
        Error::new(ErrorKind::Invalid, format!("writing the report {}", file.display()), detail)
            .with_hint("pass another file with --report=FILE")
    };
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        _ if file.is_dir() => Err(wrong("it is a folder")),
        Some(folder) if !folder.is_dir() => Err(wrong(&format!("there is no folder {}", folder.display()))),
        _ => Ok(()),
    }
}
