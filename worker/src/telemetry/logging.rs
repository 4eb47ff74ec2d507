//! Log of the process on stderr, as text or as one JSON object per line.
//!
//! Each JSON line has `timestamp`, `level`, `target` and `message`, the process fields (`program`, `worker`), the
//! fields of the event, and those of its spans: `batch` and `task`.

use std::fmt;
use std::io::{IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use imgsync_oci::locale::to_ascii;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::locale::is_process_utf8;

/// Format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human-readable text
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Whether the log is JSON; then everything on stderr goes through the log.
pub fn is_json() -> bool {
    IS_JSON.load(Ordering::Relaxed)
}

/// Keeps the log, and the export of traces, running until dropped.
#[derive(Debug)]
#[must_use = "traces are sent while it is kept"]
pub struct LogGuard {
    #[cfg(feature = "otel")]
    _traces: Option<crate::telemetry::traces::TraceExporter>,
}

/// Initializes the log. `RUST_LOG` overrides `default`; `process` adds fields to each JSON line. Must not be called
/// inside a runtime.
pub fn init(format: LogFormat, default: &str, process: &[(&'static str, &str)]) -> LogGuard {
    IS_JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let is_ascii = format == LogFormat::Text && !is_process_utf8();
    let lines = tracing_subscriber::fmt::layer().with_writer(move || LogWriter { is_ascii });
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => {
            let process = process.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect();
            lines.fmt_fields(JsonFields::new()).event_format(JsonLines { process }).boxed()
        }
    };
    let log = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "otel")]
    {
        let exporter = crate::telemetry::traces::endpoint_from_env()
            .map(|endpoint| crate::telemetry::traces::init(&endpoint, process));
        let (layer, traces, wrong) = match exporter {
            None => (None, None, None),
            Some(Ok((layer, traces))) => (Some(layer), Some(traces), None),
            Some(Err(error)) => (None, None, Some(error)),
        };
        let _ = log.with(layer).try_init();
        if let Some(error) = wrong {
            tracing::warn!("cannot export traces: {error}");
        }
        LogGuard { _traces: traces }
    }
    #[cfg(not(feature = "otel"))]
    {
        let _ = log.try_init();
        LogGuard {}
    }
}

/// Writes log lines to stderr, in ASCII if the locale has no UTF-8. JSON is always UTF-8.
struct LogWriter {
    is_ascii: bool,
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match self.is_ascii {
            true => std::io::stderr().write_all(to_ascii(&String::from_utf8_lossy(line)).as_bytes())?,
            false => std::io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Formats an event, its spans and the process fields as one flat JSON object.
struct JsonLines {
    process: Map<String, Value>,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), Timestamp::now().to_string().into());
        line.insert("level".to_owned(), metadata.level().as_str().to_lowercase().into());
        line.insert("target".to_owned(), metadata.target().into());
        line.extend(self.process.clone());
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && let Ok(Value::Object(fields)) = serde_json::from_str(&fields.fields)
            {
                line.extend(fields);
            }
        }
        event.record(&mut JsonFieldVisitor(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// Collects the fields of an event.
struct JsonFieldVisitor<'a>(&'a mut Map<String, Value>);

impl JsonFieldVisitor<'_> {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for JsonFieldVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

    impl Write for SharedBuffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_has_the_process_the_task_and_its_own_fields() {
        let written = SharedBuffer::default();
        let writer = written.clone();
        let process = Map::from_iter([("worker".to_owned(), Value::from("w-1"))]);
        let lines = tracing_subscriber::fmt::layer().fmt_fields(JsonFields::new()).event_format(JsonLines { process });
        let subscriber = tracing_subscriber::registry().with(lines.with_writer(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let _entered = tracing::error_span!("task", batch = "0198", task = 7u32).entered();
            tracing::warn!(bytes = 5u64, "said \"{}\"\nand more", "this");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        let shown = (&line["worker"], &line["batch"], &line["task"], &line["bytes"], &line["level"]);
        assert_eq!(shown, (&"w-1".into(), &"0198".into(), &7.into(), &5.into(), &"warn".into()));
        assert_eq!(line["message"], "said \"this\"\nand more");
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z') && line["target"].is_string());
    }
}
