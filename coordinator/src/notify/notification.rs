//! Notifications, and their text for a chat or an email: a title, and the report as text or rendered by a template.

use std::path::Path;

use imgsync_config::NotifyCondition;
use imgsync_model::batch::BatchId;
use imgsync_oci::RegistryName;
use imgsync_oci::error::Result;
use imgsync_oci::humanize::pluralize;
use jiff::Timestamp;

use super::truncating_writer::TruncatingWriter;
use crate::report::{Report, ReportData, ReportFormat, ReportLevel, ReportTemplate, write_text};

/// Maximum bytes of a report in a chat message or an email.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// A notification.
pub(super) enum Notification<'a> {
    /// A batch has ended.
    BatchEnded {
        /// Report of the batch.
        report: &'a Report<'a>,
        /// Level of detail.
        level: ReportLevel,
    },
    /// A registry holds up a batch.
    RegistryThrottled(&'a ThrottleNotice),
    /// A test of the targets.
    Test,
}

/// Text of a test of the targets.
pub(super) const TEST_MESSAGE: &str =
    "This is a test of `notify:` by `imgsync config test-notify`. No batch has ended.";

/// Text of a notification.
#[derive(Debug, Clone)]
pub(super) struct NotificationText {
    /// Title, in one line.
    pub(super) title: String,
    /// Text.
    pub(super) text: String,
    /// The text was rendered by a template and is sent alone, as it is.
    pub(super) is_markup: bool,
}

/// A registry whose rate limit holds up a batch.
#[derive(Debug, Clone)]
pub struct ThrottleNotice {
    /// Batch.
    pub batch: BatchId,
    /// Registry.
    pub registry: RegistryName,
    /// Reason for the hold.
    pub why: String,
    /// End of the hold.
    pub until: Timestamp,
    /// Tasks of the batch that have not ended.
    pub open: u64,
}

impl Notification<'_> {
    /// Returns the event, for the conditions of targets.
    pub(super) fn event(&self) -> NotificationEvent {
        match self {
            Notification::BatchEnded { report, .. } => {
                NotificationEvent::BatchEnded { copied: report.batch.counts.copied > 0, failed: !report.is_ok() }
            }
            Notification::RegistryThrottled(_) => NotificationEvent::RegistryThrottled,
            Notification::Test => NotificationEvent::Test,
        }
    }
}

impl NotificationText {
    /// Renders a notification. The template is for reports only.
    pub(super) async fn render(
        notification: &Notification<'_>,
        template: Option<&ReportTemplate>,
    ) -> Result<NotificationText> {
        match notification {
            Notification::BatchEnded { report, level } => NotificationText::for_report(report, *level, template).await,
            Notification::RegistryThrottled(notice) => Ok(NotificationText::for_throttle(notice)),
            Notification::Test => Ok(NotificationText::for_test()),
        }
    }

    /// Creates the text of a batch's end.
    async fn for_report(
        report: &Report<'_>,
        level: ReportLevel,
        template: Option<&ReportTemplate>,
    ) -> Result<NotificationText> {
        let view = ReportData::load(report, level).await?;
        let title = format!("imgsync: {}", view.headline);
        if let Some(template) = template {
            return Ok(NotificationText { title, text: template.render(&view)?, is_markup: true });
        }
        let mut bounded = TruncatingWriter::with_limit(MAX_TEXT_BYTES);
        write_text(report, level, report.text_style(), &mut bounded).await?;
        Ok(NotificationText {
            title,
            text: String::from_utf8_lossy(&bounded.text).trim_end().to_owned(),
            is_markup: false,
        })
    }

    /// Creates the text of a test of the targets.
    pub(super) fn for_test() -> NotificationText {
        let title = format!("imgsync: test message from {}", imgsync_worker::host_name());
        NotificationText { title, text: TEST_MESSAGE.to_owned(), is_markup: false }
    }

    /// Creates the text of a rate limit that holds up a batch.
    pub(super) fn for_throttle(throttled: &ThrottleNotice) -> NotificationText {
        let ThrottleNotice { batch, registry, why, until, open } = throttled;
        let open = pluralize(*open, "image", "images");
        let until = until.strftime("%Y-%m-%d %H:%M:%S UTC");
        let title = format!("imgsync: a batch is waiting for {registry}");
        let text = format!(
            "{registry} {why}: held until {until}.\nBatch {batch} has {open} pending; images of other registries \
             continue.\nDetails: imgsync batch show {batch}"
        );
        NotificationText { title, text, is_markup: false }
    }
}

/// Reads the template of a notification, if one is configured.
pub(super) fn load_template(path: Option<&Path>, folder: &Path) -> Result<Option<ReportTemplate>> {
    let Some(path) = path else { return Ok(None) };
    Ok(Some(ReportTemplate::read(&folder.join(path), ReportFormat::from_template_path(path))?))
}

/// Truncates text to the lines that fit and counts the rest. `length` measures text as the recipient does.
pub(super) fn truncate_lines(text: &str, most: usize, length: impl Fn(&str) -> usize) -> String {
    let text = text.trim_end();
    if length(text) <= most {
        return text.to_owned();
    }
    let lines: Vec<&str> = text.lines().collect();
    let (mut kept, mut long) = (0, 0);
    // Room for the last line.
    let room = most.saturating_sub(40);
    for line in &lines {
        long += length(line) + 1;
        if long > room {
            break;
        }
        kept += 1;
    }
    match kept {
        // The first line alone is too long.
        0 => {
            let mut cut = String::new();
            for c in text.chars() {
                cut.push(c);
                if length(&cut) > room {
                    cut.pop();
                    break;
                }
            }
            format!("{cut}\n… and more")
        }
        _ => {
            let more = pluralize((lines.len() - kept) as u64, "more line", "more lines");
            format!("{}\n… {more}", lines[..kept].join("\n"))
        }
    }
}

/// Event that targets are notified of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotificationEvent {
    /// A batch has ended.
    BatchEnded {
        /// Whether it copied an image.
        copied: bool,
        /// Whether it did not succeed.
        failed: bool,
    },
    /// A registry holds up a batch.
    RegistryThrottled,
    /// A test of the targets.
    Test,
}

impl NotificationEvent {
    /// Returns whether the event meets the condition of a target. A registry's hold and a test meet every condition.
    pub(super) fn meets(self, condition: NotifyCondition) -> bool {
        match self {
            NotificationEvent::BatchEnded { copied, failed } => condition.is_met(copied, failed),
            NotificationEvent::RegistryThrottled | NotificationEvent::Test => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_lines_and_says_how_many_more_there_are() {
        assert_eq!(truncate_lines("a\nb\n", 100, str::len), "a\nb");
        let long = "0123456789\n".repeat(20);
        assert_eq!(truncate_lines(&long, 75, str::len), "0123456789\n0123456789\n0123456789\n… 17 more lines");
        let one = "镜".repeat(100);
        let cut = truncate_lines(&one, 100, str::len);
        assert_eq!(cut, format!("{}\n… and more", "镜".repeat(20)));
    }
}
