//! Quay: `/api/v1/repository`.

use http::StatusCode;
use serde_json::json;

use super::super::request_log::RecordedRequest;
use super::super::request_type::RequestType;
use super::super::response::FaultResponse;
use super::super::state::Inner;
use super::{page, repositories_below, tags};

pub(super) fn route(path: &str) -> Option<(RequestType, String)> {
    let rest = path.strip_prefix("/api/v1/repository")?;
    match rest.strip_prefix('/') {
        None => Some((RequestType::ApiRepositories, String::new())),
        Some(rest) => Some((RequestType::ApiTags, rest.strip_suffix("/tag/")?.to_owned())),
    }
}

pub(super) fn list(inner: &Inner, record: &RecordedRequest) -> FaultResponse {
    if record.kind == RequestType::ApiRepositories {
        return repositories(inner, record);
    }
    let name = record.repository.as_deref().unwrap_or_default();
    let Some(tags) = tags(inner, name) else { return refusal(StatusCode::NOT_FOUND, "not_found") };
    let (tags, next) = page(inner, record, "limit", tags);
    let tags: Vec<_> = tags
        .iter()
        .map(|tag| {
            json!({
                "name": tag.name, "reversion": false, "start_ts": tag.pushed / 1000, "manifest_digest": tag.digest,
                "is_manifest_list": tag.media_type.contains("index") || tag.media_type.contains("list"), "size": null,
            })
        })
        .collect();
    let number = record.parameter("page").and_then(|page| page.parse::<u64>().ok()).unwrap_or(1);
    FaultResponse::json(StatusCode::OK, &json!({"tags": tags, "page": number, "has_additional": next.is_some()}))
}

/// Lists repositories. Without a namespace, or with an unknown one, the list is empty. A token names the next page.
fn repositories(inner: &Inner, record: &RecordedRequest) -> FaultResponse {
    let namespace = record.parameter("namespace").unwrap_or_default();
    let names = repositories_below(inner, &namespace).unwrap_or_default();
    let from = record.parameter("next_page").and_then(|token| token.strip_prefix("gAAA+/=")?.parse().ok());
    let from: usize = from.unwrap_or(0);
    let size = inner.options.page.unwrap_or(100);
    let end = (from + size).min(names.len());
    let found: Vec<_> = names[from.min(end)..end]
        .iter()
        .map(|name| json!({"namespace": namespace, "name": name, "is_public": true, "kind": "image"}))
        .collect();
    let mut body = json!({"repositories": found});
    if end < names.len() {
        body["next_page"] = json!(format!("gAAA+/={end}"));
    }
    FaultResponse::json(StatusCode::OK, &body)
}

pub(super) fn refusal(status: StatusCode, kind: &str) -> FaultResponse {
    let body =
        json!({"status": status.as_u16(), "error_type": kind, "error_message": kind, "title": kind, "detail": ""});
    FaultResponse::json(status, &body)
}
