//! `/metrics`: OpenMetrics if the client accepts it, else Prometheus's older text format.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse as _;
use axum::routing::get;
use futures_util::future::BoxFuture;

use super::Metrics;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Updates metrics before they are rendered.
pub type MetricsRefresh = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Returns a router for `/metrics`.
pub fn router(metrics: Arc<Metrics>, refresh: Option<MetricsRefresh>) -> Router {
    let answer = move |headers: HeaderMap| {
        let (metrics, refresh) = (metrics.clone(), refresh.clone());
        async move {
            if let Some(refresh) = &refresh {
                refresh().await;
            }
            let text = metrics.render();
            let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
            match accepted.contains("application/openmetrics-text") {
                true => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
                false => ([(header::CONTENT_TYPE, TEXT_FORMAT)], to_text_format(&text)).into_response(),
            }
        }
    };
    Router::new().route("/metrics", get(answer))
}

/// Converts to the older text format: counters and infos are named like their samples; units and the EOF line are
/// dropped.
fn to_text_format(text: &str) -> String {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            match kind {
                "counter" => names.push((name, "_total")),
                "info" => names.push((name, "_info")),
                _ => {}
            }
        }
    }
    let mut older = String::with_capacity(text.len());
    for line in text.lines() {
        let Some((keyword, rest)) = line.strip_prefix("# ").and_then(|line| line.split_once(' ')) else {
            if line != "# EOF" {
                older.push_str(line);
                older.push('\n');
            }
            continue;
        };
        if keyword == "UNIT" {
            continue;
        }
        let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
        let suffix = names.iter().find(|(known, _)| *known == name).map_or("", |(_, suffix)| suffix);
        let value = if keyword == "TYPE" && value == "info" { "gauge" } else { value };
        older.push_str(&format!("# {keyword} {name}{suffix} {value}\n"));
    }
    older
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_format_names_counters_as_their_samples() {
        let text = "# HELP a_seconds Time.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\na_seconds_total 1\n# TYPE b info\nb_info{v=\"1\"} 1\n# TYPE c gauge\nc 2\n# EOF\n";
        let wanted = "# HELP a_seconds_total Time.\n# TYPE a_seconds_total counter\na_seconds_total 1\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n# TYPE c gauge\nc 2\n";
        assert_eq!(to_text_format(text), wanted);
    }
}
