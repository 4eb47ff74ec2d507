//! Docker Hub: `/v2/namespaces`.

use http::StatusCode;
use serde_json::{Value, json};

use super::super::request_log::RecordedRequest;
use super::super::request_type::RequestType;
use super::super::response::FaultResponse;
use super::super::state::Inner;
use super::{TagEntry, page, query_of_page, repositories_below, tags};

pub(super) fn route(path: &str) -> Option<(RequestType, String)> {
    let (namespace, rest) = path.strip_prefix("/v2/namespaces/")?.split_once("/repositories")?;
    match rest.strip_prefix('/') {
        None => Some((RequestType::ApiRepositories, namespace.to_owned())),
        Some(rest) => Some((RequestType::ApiTags, format!("{namespace}/{}", rest.strip_suffix("/tags")?))),
    }
}

pub(super) fn list(inner: &Inner, record: &RecordedRequest) -> FaultResponse {
    let name = record.repository.as_deref().unwrap_or_default();
    let entries: Option<Vec<Value>> = match record.kind {
        RequestType::ApiRepositories => repositories_below(inner, name).map(|names| {
            let names = names.into_iter().filter(|name| !name.contains('/'));
            names.map(|found| json!({"namespace": name, "name": found, "repository_type": "image"})).collect()
        }),
        _ => tags(inner, name).map(|tags| tags.iter().map(tag).collect()),
    };
    let Some(entries) = entries else { return not_found() };
    let count = entries.len();
    let (results, next) = page(inner, record, "page_size", entries);
    let next = next.map(|next| format!("{}{}?{}", inner.url(), record.path, query_of_page(record, next)));
    FaultResponse::json(StatusCode::OK, &json!({"count": count, "next": next, "previous": null, "results": results}))
}

/// Formats a tag. Tags whose name starts with "old" have no digest of their own, only that of another image.
fn tag(tag: &TagEntry) -> Value {
    let mut shown = json!({
        "name": tag.name, "tag_status": "active", "v2": true, "full_size": 1, "content_type": "image",
        "images": [{"architecture": "amd64", "os": "linux", "digest": crate::images::sha256(b"of the image alone")}],
        "tag_last_pushed": tag.date(), "last_updated": tag.date(), "media_type": tag.media_type, "digest": tag.digest,
    });
    if tag.name.starts_with("old") {
        shown["digest"] = Value::Null;
    }
    shown
}

pub(super) fn not_found() -> FaultResponse {
    FaultResponse::json(StatusCode::NOT_FOUND, &json!({"message": "object not found", "errinfo": {}}))
}
