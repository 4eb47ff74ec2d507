//! Trace export by OTLP over HTTP (feature `otel`): a span per task, with a child span per request. Disabled unless
//! `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

use imgsync_tls::install_tls_provider;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// Exports the remaining spans when dropped.
#[derive(Debug)]
pub(crate) struct TraceExporter(SdkTracerProvider);

impl Drop for TraceExporter {
    fn drop(&mut self) {
        // An unresponsive collector delays the exit only by the library's timeout.
        let _ = self.0.shutdown();
    }
}

/// Returns the endpoint set in the environment (opentelemetry.io/docs/specs/otel/protocol/exporter).
pub(crate) fn endpoint_from_env() -> Option<String> {
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    named("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        .or_else(|| Some(format!("{}/v1/traces", named("OTEL_EXPORTER_OTLP_ENDPOINT")?.trim_end_matches('/'))))
}

/// Starts the export to an endpoint. Must not be called inside a runtime: the exporter blocks in its own thread.
pub(crate) fn init<S>(
    endpoint: &str,
    process: &[(&'static str, &str)],
) -> Result<(impl Layer<S> + use<S>, TraceExporter), String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    install_tls_provider();
    let exporter =
        SpanExporter::builder().with_http().with_endpoint(endpoint).build().map_err(|error| error.to_string())?;
    let mut resource = Resource::builder();
    for (name, value) in process {
        resource = match *name {
            "program" => resource.with_service_name((*value).to_owned()),
            name => resource.with_attribute(KeyValue::new(name, (*value).to_owned())),
        };
    }
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("imgsync"));
    // A prefix: the targets of all crates begin with it.
    let ours = Targets::new().with_target("imgsync", tracing::Level::DEBUG);
    Ok((layer.with_filter(ours), TraceExporter(provider)))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::TcpListener;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Accepts one request, and returns its first line and body.
    fn collect(listener: TcpListener) -> (String, Vec<u8>) {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
        reader.read_line(&mut first).unwrap();
        while reader.read_line(&mut line).unwrap() > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        (first, body)
    }

    #[test]
    fn spans_of_tasks_and_requests_go_to_the_collector() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let collecting = std::thread::spawn(move || collect(listener));
        let (layer, traces) = init(&endpoint, &[("program", "imgsync-worker"), ("worker", "w-1")]).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let task = tracing::error_span!("task", batch = "batch-0198", task = 7u32).entered();
            drop(tracing::debug_span!("request", registry = "registry-of-the-test").entered());
            drop(task);
        });
        drop(traces);
        let (first, body) = collecting.join().unwrap();
        assert!(first.starts_with("POST /v1/traces "), "{first}");
        let text = String::from_utf8_lossy(&body);
        for part in ["imgsync-worker", "w-1", "task", "batch-0198", "request", "registry-of-the-test"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
