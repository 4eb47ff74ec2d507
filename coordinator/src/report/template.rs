//! Report templates: built-in ones for Markdown and HTML, and those of users. Values are escaped for HTML, Markdown or
//! JSON unless the template says `|safe`.

use std::borrow::Cow;
use std::path::Path;

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::sanitize::sanitize;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};

use super::ReportFormat;
use super::plot::{PlotTimeline, svg};
use super::units::{bytes, duration};
use super::view::ReportData;

const HTML: &str = include_str!("templates/report.html");
const MARKDOWN: &str = include_str!("templates/report.md");
/// Name of the escaping for Markdown.
const FOR_MARKDOWN: AutoEscape = AutoEscape::Custom(Cow::Borrowed("markdown"));

/// A compiled template.
#[derive(Debug, Clone)]
pub struct ReportTemplate {
    environment: Environment<'static>,
    /// Name in messages.
    name: String,
}

impl ReportTemplate {
    /// Returns the built-in template of a format.
    pub(super) fn builtin(form: ReportFormat) -> Result<ReportTemplate> {
        match form {
            ReportFormat::Html => ReportTemplate::new("the built-in template", HTML.to_owned(), form),
            _ => ReportTemplate::new("the built-in template", MARKDOWN.to_owned(), ReportFormat::Markdown),
        }
    }

    /// Reads a user's template and reports its errors now rather than at the end of a batch.
    pub fn read(path: &Path, form: ReportFormat) -> Result<ReportTemplate> {
        let operation = format!("reading the template {}", path.display());
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::new(ErrorKind::Invalid, &operation, error.to_string()).with_source(error))?;
        ReportTemplate::new(&path.display().to_string(), text, form)
    }

    /// Compiles a template and renders it once with an empty batch.
    fn new(name: &str, text: String, form: ReportFormat) -> Result<ReportTemplate> {
        let mut environment = environment(form);
        let wrong = |error: minijinja::Error| template_error(name, &error);
        environment.add_template_owned("report", text).map_err(wrong)?;
        let template = ReportTemplate { environment, name: name.to_owned() };
        template.render(&ReportData::default())?;
        Ok(template)
    }

    /// Renders the report of a batch.
    pub fn render(&self, view: &ReportData) -> Result<String> {
        self.render_with(Value::from(Serde(view)))
    }

    fn render_with(&self, value: Value) -> Result<String> {
        let rendered = self.environment.get_template("report").and_then(|template| template.render(value));
        rendered.map_err(|error| template_error(&self.name, &error))
    }
}

fn template_error(name: &str, error: &minijinja::Error) -> Error {
    let location = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let detail = match error.detail() {
        Some(detail) => format!("{location}{}: {detail}", error.kind()),
        None => format!("{location}{}", error.kind()),
    };
    Error::new(ErrorKind::Invalid, format!("rendering {name}"), detail)
        .with_hint("docs/reference/reports.md lists the fields and filters of templates")
}

fn environment(form: ReportFormat) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(move |_| match form {
        ReportFormat::Html => AutoEscape::Html,
        ReportFormat::Markdown => FOR_MARKDOWN,
        ReportFormat::Json => AutoEscape::Json,
        ReportFormat::Text | ReportFormat::Legacy => AutoEscape::None,
    });
    environment.set_formatter(|out, state, value| {
        let escape: fn(&str) -> String = match state.auto_escape() {
            // The default escaping turns every slash of an image name into `&#x2f;`.
            AutoEscape::Html => html,
            mode if *mode == FOR_MARKDOWN => markdown,
            _ => return minijinja::escape_formatter(out, state, value),
        };
        if value.is_undefined() || value.is_none() {
            // Fails and names what is missing.
            return minijinja::escape_formatter(out, state, value);
        }
        let text = value.to_string();
        out.write_str(&if value.is_safe() { text } else { escape(&text) }).map_err(minijinja::Error::from)
    });
    environment.add_filter("bytes", bytes);
    environment.add_filter("duration", |seconds: f64| duration(seconds));
    environment.add_filter("number", group_digits);
    environment.add_filter("pluralize", |number: u64, one: &str, several: &str| pluralize(number, one, several));
    environment.add_filter("time", |text: &str| time(text));
    environment.add_filter("code", |text: &str| Value::from_safe_string(code(text)));
    environment.add_filter("markdown", |text: &str| Value::from_safe_string(markdown(text)));
    environment.add_filter("share", |part: u64, whole: u64| percentage(part, whole));
    environment.add_filter("plot", |timeline: Serde<PlotTimeline>| Value::from_safe_string(svg(&timeline)));
    environment
}

/// 2026-11-25T15:20:00Z → 2026-11-25 15:20:00 UTC.
fn time(text: &str) -> String {
    match text.strip_suffix('Z').and_then(|text| text.split_once('T')) {
        Some((day, time)) => format!("{day} {time} UTC"),
        None => text.to_owned(),
    }
}

/// Returns a part of a whole in per cent, for widths. Parts above zero stay visible.
fn percentage(part: u64, whole: u64) -> f64 {
    if part == 0 || whole == 0 {
        return 0.0;
    }
    let share = 100.0 * part as f64 / whole as f64;
    (share * 100.0).round().max(1.0) / 100.0
}

/// Escapes text for HTML elements and attributes.
fn html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Escapes text for Markdown.
fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in sanitize(text).chars() {
        if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '~' | '&' | '#' | '@' | '$' | '!') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Formats text as a Markdown code span. Not for tables, in which a `|` ends a cell even in code.
fn code(text: &str) -> String {
    let text = sanitize(text);
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    // A span that starts or ends with a backtick or a space, or is empty, needs spaces around it.
    match text.is_empty() {
        true => "` `".to_owned(),
        false if longest > 0 || text.starts_with(' ') || text.ends_with(' ') => format!("{fence} {text} {fence}"),
        false => format!("{fence}{text}{fence}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::{HOSTILE, view};

    #[test]
    fn spans_of_time_are_short() {
        let shown = [0.0, 0.25, 12.34, 59.96, 75.0, 4000.0, 90_000.0].map(duration);
        assert_eq!(shown, ["0 ms", "250 ms", "12.3 s", "0 min 59 s", "1 min 15 s", "1 h 06 min", "1 d 01 h"]);
    }

    #[test]
    fn whatever_registries_say_stays_text_in_html() {
        let html = ReportTemplate::builtin(ReportFormat::Html).unwrap().render(&view()).unwrap();
        let link = "<a href=\"https://sync.example/#/batches/0190a1b2-0000-7000-8000-000000000001\">";
        assert_eq!(html.matches(link).count(), 1, "the batch on the dashboard");
        let html = html.replace(link, "");
        for tag in ["<script", "<img", "onerror=\"", "href", "</title><script", "http-equiv=\"refresh"] {
            assert!(!html.contains(tag), "{tag} in {html}");
        }
        assert!(html.contains("&lt;script&gt;"), "what was said is shown all the same");
        assert!(html.contains("default-src 'none'"));
        for outside in ["http://", "https://", "url(", "@import", "<link"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn whatever_registries_say_stays_text_in_markdown() {
        let text = ReportTemplate::builtin(ReportFormat::Markdown).unwrap().render(&view()).unwrap();
        // Outside code, every special character is escaped.
        for line in text.lines().filter(|line| line.contains("script")) {
            let fenced = line.contains("`` ") || line.contains("``` ");
            assert!(fenced || line.contains("\\<script"), "{line}");
        }
        assert!(!text.contains("\n\n\n\n"), "{text}");
        assert_eq!(code("a`b"), "`` a`b ``");
        assert_eq!(code("plain"), "`plain`");
        assert_eq!(markdown("a|b_*[x](y)"), "a\\|b\\_\\*\\[x\\](y)");
    }

    #[test]
    fn a_template_of_json_gives_json() {
        let text =
            r#"{"text": {{ headline }}, "who": {{ failures.groups[0].images[0].error }}, "n": {{ counts.failed }}}"#;
        let template =
            ReportTemplate::new("x", text.replace(".groups[0].images[0].error", ".total"), ReportFormat::Json).unwrap();
        let made: serde_json::Value = serde_json::from_str(&template.render(&view()).unwrap()).unwrap();
        assert_eq!(made["n"], view().counts.failed);
        let loops = r#"[{% for group in failures.groups %}{{ group.images[0].error }}{% if not loop.last %},{% endif %}{% endfor %}]"#;
        let template = ReportTemplate::new("x", loops.to_owned(), ReportFormat::Json);
        let made = template.unwrap().render(&view()).unwrap();
        assert!(serde_json::from_str::<Vec<String>>(&made).unwrap()[0].contains(HOSTILE), "{made}");
    }

    #[test]
    fn what_is_wrong_with_a_template_is_said_before_a_batch_is_run() {
        for (text, wanted) in [
            ("{{ nobody }}", "line 1: undefined value"),
            ("a\n{% for x in %}", "line 2: syntax error"),
            ("{{ counts.total|upperlower }}", "unknown filter"),
        ] {
            let said = ReportTemplate::new("mine.html", text.to_owned(), ReportFormat::Html).unwrap_err();
            assert!(said.to_string().contains(wanted), "{said}");
            assert_eq!(said.kind(), ErrorKind::Invalid);
        }
    }
}
