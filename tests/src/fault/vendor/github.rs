//! GitHub: `/orgs/…/packages` and `/users/…/packages`.

use http::{StatusCode, header};
use serde_json::{Value, json};

use super::super::request_log::RecordedRequest;
use super::super::request_type::{RequestType, decode};
use super::super::response::FaultResponse;
use super::super::state::Inner;
use super::{manifests, page, query_of_page, repositories_below};

pub(super) fn route(path: &str) -> Option<(RequestType, String)> {
    let (owner, rest) =
        path.strip_prefix("/orgs/").or_else(|| path.strip_prefix("/users/"))?.split_once("/packages")?;
    match rest.strip_prefix("/container/") {
        None => rest.is_empty().then(|| (RequestType::ApiRepositories, owner.to_owned())),
        Some(rest) => {
            let package = rest.strip_suffix("/versions").filter(|package| !package.contains('/'))?;
            Some((RequestType::ApiTags, format!("{owner}/{}", decode(package))))
        }
    }
}

pub(super) fn list(inner: &Inner, record: &RecordedRequest) -> FaultResponse {
    let name = record.repository.as_deref().unwrap_or_default();
    let is_right = record.path.starts_with("/users/") == inner.options.github_users;
    let entries: Option<Vec<Value>> = match record.kind {
        _ if !is_right => None,
        RequestType::ApiRepositories => repositories_below(inner, name).map(|names| {
            let shown = |name| json!({"name": name, "package_type": "container", "visibility": "public"});
            names.into_iter().map(shown).collect()
        }),
        _ => manifests(inner, name).map(|found| {
            let shown = |(at, tags): (super::TagEntry, Vec<String>)| {
                json!({
                    "name": at.digest, "created_at": at.date(), "updated_at": at.date(),
                    "metadata": {"package_type": "container", "container": {"tags": tags}},
                })
            };
            found.into_values().map(shown).collect()
        }),
    };
    if record.kind == RequestType::ApiRepositories && record.parameter("package_type").as_deref() != Some("container") {
        return refusal(StatusCode::BAD_REQUEST, "Invalid argument");
    }
    let Some(entries) = entries else { return refusal(StatusCode::NOT_FOUND, "Not Found") };
    let (entries, next) = page(inner, record, "per_page", entries);
    let answer = FaultResponse::json(StatusCode::OK, &Value::Array(entries));
    match next {
        None => answer,
        Some(next) => {
            let at = |page| format!("<{}{}?{}>", inner.url(), record.path, query_of_page(record, page));
            answer.header(header::LINK, format!("{}; rel=\"first\", {}; rel=\"next\"", at(1), at(next)))
        }
    }
}

pub(super) fn refusal(status: StatusCode, message: &str) -> FaultResponse {
    FaultResponse::json(status, &json!({"message": message, "documentation_url": "https://docs.github.com/rest"}))
}
