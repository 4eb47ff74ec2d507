//! Vendor APIs over the same content: repositories of a namespace and tags with digests and dates, in pages.

mod github;
mod harbor;
mod hub;
mod quay;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::auth::basic;
use super::incoming_body::{BodyError, IncomingBody};
use super::request_log::RecordedRequest;
use super::request_type::{ParsedRequest, RequestType};
use super::response::FaultResponse;
use super::state::{Inner, StoredRepository};

/// Push time of manifests without an upload time: 2024-01-01.
const DEFAULT_PUSH_TIME_MS: u64 = 1_704_067_200_000;
/// Prefix of Docker Hub tokens; a number follows.
const HUB_TOKEN_PREFIX: &str = "hub-";

/// Vendor of an API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum VendorKind {
    Quay,
    Hub,
    Harbor,
    GitHub,
}

/// Parses a request to a vendor API, or returns `None`.
pub(super) fn route(path: &str) -> Option<ParsedRequest> {
    let found = |kind, repository: String| ParsedRequest { kind, repository: Some(repository), reference: None };
    if matches!(path, "/v2/auth/token" | "/v2/users/login") {
        return Some(ParsedRequest { kind: RequestType::ApiLogin, repository: None, reference: None });
    }
    let (kind, repository) = quay::route(path)
        .or_else(|| hub::route(path))
        .or_else(|| harbor::route(path))
        .or_else(|| github::route(path))?;
    Some(found(kind, repository))
}

/// Serves a listing to authorized clients.
pub(super) fn list(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    let Some(vendor) = inner.options.vendor else { return FaultResponse::not_found("NOT_FOUND") };
    if !may_see(inner, vendor, record) {
        return match vendor {
            VendorKind::Quay => quay::refusal(StatusCode::UNAUTHORIZED, "insufficient_scope"),
            VendorKind::Hub => hub::not_found(),
            VendorKind::Harbor => FaultResponse::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "unauthorized"),
            VendorKind::GitHub => github::refusal(StatusCode::UNAUTHORIZED, "Requires authentication"),
        };
    }
    match vendor {
        VendorKind::Quay => quay::list(inner, record),
        VendorKind::Hub => hub::list(inner, record),
        VendorKind::Harbor => harbor::list(inner, record),
        VendorKind::GitHub => github::list(inner, record),
    }
}

fn may_see(inner: &Inner, vendor: VendorKind, record: &RecordedRequest) -> bool {
    let given = record.header("authorization").unwrap_or_default();
    let is_bearer = |token: &str| given.strip_prefix("Bearer ") == Some(token);
    match (&inner.options.vendor_login, vendor) {
        (None, VendorKind::GitHub) => given.starts_with("Bearer "),
        // Public content is listed, but not to a request with unexpected credentials.
        (None, _) => given.is_empty(),
        (Some((_, password)), VendorKind::Quay | VendorKind::GitHub) => is_bearer(password),
        (Some((user, password)), VendorKind::Harbor) => given == basic(user, password),
        (Some(_), VendorKind::Hub) => {
            let number = given.strip_prefix("Bearer ").and_then(|token| token.strip_prefix(HUB_TOKEN_PREFIX));
            number.and_then(|number| number.parse().ok()).is_some_and(|number: u64| number >= inner.first_valid_token())
        }
    }
}

/// Docker Hub login, in both forms.
pub(super) async fn login(inner: &Arc<Inner>, body: &mut IncomingBody) -> Result<FaultResponse, BodyError> {
    let body = body.all(64 * 1024).await?.unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let given = |user: &str, password: &str| {
        let (user, password) = (body[user].as_str(), body[password].as_str());
        user.zip(password).is_some_and(|(user, password)| {
            inner.options.vendor_login.as_ref() == Some(&(user.to_owned(), password.to_owned()))
        })
    };
    let token = format!("{HUB_TOKEN_PREFIX}{}", inner.next());
    Ok(match () {
        () if given("identifier", "secret") => FaultResponse::json(StatusCode::OK, &json!({"access_token": token})),
        () if given("username", "password") => FaultResponse::json(StatusCode::OK, &json!({"token": token})),
        () => FaultResponse::json(StatusCode::UNAUTHORIZED, &json!({"detail": "Incorrect authentication credentials"})),
    })
}

/// A tag with the fields that all vendors report.
struct TagEntry {
    name: String,
    digest: String,
    media_type: String,
    /// Milliseconds since 1970.
    pushed: u64,
}

impl TagEntry {
    fn date(&self) -> String {
        date(self.pushed)
    }
}

fn date(milliseconds: u64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds as i64).expect("a moment").to_string()
}

/// Returns the tags of a repository, or `None` if it does not exist.
fn tags(inner: &Inner, name: &str) -> Option<Vec<TagEntry>> {
    let store = inner.store();
    let here = store.repositories.get(name)?;
    Some(here.tags.iter().map(|(name, digest)| tagged(here, name, digest)).collect())
}

fn tagged(here: &StoredRepository, name: &str, digest: &str) -> TagEntry {
    let held = here.manifests.get(digest);
    TagEntry {
        name: name.to_owned(),
        digest: digest.to_owned(),
        media_type: held.map(|held| held.manifest.media_type.clone()).unwrap_or_default(),
        pushed: held.map_or(DEFAULT_PUSH_TIME_MS, |held| held.uploaded),
    }
}

/// Returns the manifests of a repository with their tags, ordered by digest, or `None` if it does not exist.
fn manifests(inner: &Inner, name: &str) -> Option<BTreeMap<String, (TagEntry, Vec<String>)>> {
    let store = inner.store();
    let here = store.repositories.get(name)?;
    let digests = here.manifests.keys().chain(here.tags.values());
    let mut found: BTreeMap<_, _> =
        digests.map(|digest| (digest.clone(), (tagged(here, "", digest), Vec::new()))).collect();
    for (tag, digest) in &here.tags {
        found.entry(digest.clone()).and_modify(|(_, tags): &mut (_, Vec<String>)| tags.push(tag.clone()));
    }
    Some(found)
}

/// Returns the paths below a namespace, or `None` if it is unknown.
fn repositories_below(inner: &Inner, namespace: &str) -> Option<Vec<String>> {
    let store = inner.store();
    let prefix = format!("{namespace}/");
    let names: Vec<String> =
        store.repositories.keys().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect();
    let is_known = !names.is_empty() || inner.options.namespaces.iter().any(|known| known == namespace);
    is_known.then_some(names)
}

/// Returns the entries of a page numbered from 1, and the next page number if there are more.
fn page<T>(inner: &Inner, record: &RecordedRequest, size: &str, entries: Vec<T>) -> (Vec<T>, Option<u64>) {
    let number = |name: &str| record.parameter(name).and_then(|text| text.parse::<usize>().ok());
    let size = number(size).unwrap_or(25).min(inner.options.page.unwrap_or(100)).min(100);
    let page = number("page").unwrap_or(1).max(1);
    let next = (entries.len() > page * size).then_some(page as u64 + 1);
    (entries.into_iter().skip((page - 1) * size).take(size).collect(), next)
}

/// Builds the query for another page of the same request.
fn query_of_page(record: &RecordedRequest, page: u64) -> String {
    let others = record.query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("page="));
    let mut pairs: Vec<String> = others.map(str::to_owned).collect();
    pairs.push(format!("page={page}"));
    pairs.join("&")
}
