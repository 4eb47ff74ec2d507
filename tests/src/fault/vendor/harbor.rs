//! Harbor: `/api/v2.0`. Repository names are escaped twice.

use http::{StatusCode, header};
use serde_json::{Value, json};

use super::super::request_log::RecordedRequest;
use super::super::request_type::{RequestType, decode};
use super::super::response::FaultResponse;
use super::super::state::Inner;
use super::{manifests, page, query_of_page, repositories_below};

pub(super) fn route(path: &str) -> Option<(RequestType, String)> {
    let rest = path.strip_prefix("/api/v2.0/")?;
    if rest == "repositories" {
        return Some((RequestType::ApiRepositories, String::new()));
    }
    let (project, rest) = rest.strip_prefix("projects/")?.split_once("/repositories")?;
    match rest.strip_prefix('/') {
        None => Some((RequestType::ApiRepositories, project.to_owned())),
        Some(rest) => {
            let escaped = rest.strip_suffix("/artifacts")?;
            // The proxy in front of it unescapes once: a name that was escaped only once becomes two path components.
            (!escaped.contains('/') && !escaped.contains("%2F"))
                .then(|| (RequestType::ApiTags, format!("{project}/{}", decode(&decode(escaped)))))
        }
    }
}

pub(super) fn list(inner: &Inner, record: &RecordedRequest) -> FaultResponse {
    let name = record.repository.as_deref().unwrap_or_default();
    let entries: Option<Vec<Value>> = match record.kind {
        RequestType::ApiRepositories if name.is_empty() => {
            let names: Vec<_> = inner.store().repositories.keys().cloned().collect();
            Some(names.into_iter().map(|name| json!({"name": name})).collect())
        }
        RequestType::ApiRepositories => repositories_below(inner, name)
            .map(|names| names.into_iter().map(|found| json!({"name": format!("{name}/{found}")})).collect()),
        _ => artifacts(inner, record, name),
    };
    let Some(entries) = entries else {
        return FaultResponse::error(StatusCode::NOT_FOUND, "NOT_FOUND", &format!("{name} not found"));
    };
    let total = entries.len();
    let (entries, next) = page(inner, record, "page_size", entries);
    let answer = FaultResponse::json(StatusCode::OK, &Value::Array(entries)).header("x-total-count", total);
    match next {
        None => answer,
        Some(next) => {
            let next = format!("<{}?{}>; rel=\"next\"", record.path, query_of_page(record, next));
            answer.header(header::LINK, next)
        }
    }
}

fn artifacts(inner: &Inner, record: &RecordedRequest, name: &str) -> Option<Vec<Value>> {
    let only_tagged = record.parameter("q").as_deref() == Some("tags=*");
    let with_tags = record.parameter("with_tag").as_deref() == Some("true");
    let found = manifests(inner, name)?.into_values();
    let found = found.filter(|(_, tags)| !only_tagged || !tags.is_empty()).map(|(at, tags)| {
        let tags: Vec<_> = tags.iter().map(|tag| json!({"name": tag, "push_time": at.date()})).collect();
        json!({
            "type": "IMAGE", "digest": at.digest, "push_time": at.date(), "manifest_media_type": at.media_type,
            "media_type": "application/vnd.oci.image.config.v1+json",
            "tags": if with_tags && !tags.is_empty() { json!(tags) } else { Value::Null },
        })
    });
    Some(found.collect())
}
