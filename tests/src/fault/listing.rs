//! Paged listings of tags, repositories and referrers.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::{StatusCode, header};
use serde_json::{Value, json};

use super::manifests::{is_index, names};
use super::quirks::NextPageLink;
use super::request_log::RecordedRequest;
use super::response::FaultResponse;
use super::state::{FaultRegistryStore, Inner, StoredRepository};
use crate::images::{TestManifest, media};

pub(super) fn tags(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    let (name, _) = names(record);
    let store = inner.store();
    let tags = store.repositories.get(name).map(|repository| repository.tags.keys().cloned().collect::<Vec<_>>());
    let children = child_names(&store, name);
    let Some(tags) = tags.or_else(|| (inner.options.google && !children.is_empty()).then(Vec::new)) else {
        return FaultResponse::not_found("NAME_UNKNOWN");
    };
    let (page, link) = page(inner, record, tags);
    let mut body = json!({"name": name, "tags": page});
    if inner.options.google {
        body["child"] = json!(children);
        body["manifest"] = store.repositories.get(name).map_or_else(|| json!({}), google_manifests);
    }
    linked(FaultResponse::json(StatusCode::OK, &body), link)
}

/// Returns the names one level below a repository.
fn child_names(store: &FaultRegistryStore, name: &str) -> BTreeSet<String> {
    let prefix = format!("{name}/");
    let below = store.repositories.keys().filter_map(|other| other.strip_prefix(&prefix));
    below.map(|rest| rest.split('/').next().unwrap_or_default().to_owned()).collect()
}

fn google_manifests(repository: &StoredRepository) -> Value {
    let entries = repository.manifests.iter().map(|(digest, held)| {
        let tags: Vec<_> = repository.tags.iter().filter(|(_, at)| *at == digest).map(|(tag, _)| tag).collect();
        let described = json!({
            "imageSizeBytes": image_size(&held.manifest).to_string(),
            "layerId": "",
            "mediaType": held.manifest.media_type,
            "tag": tags,
            "timeCreatedMs": "1704067200000",
            "timeUploadedMs": held.uploaded.to_string(),
        });
        (digest.clone(), described)
    });
    Value::Object(entries.collect())
}

fn image_size(manifest: &TestManifest) -> u64 {
    let json = manifest.json();
    json["layers"].as_array().into_iter().flatten().filter_map(|layer| layer["size"].as_u64()).sum()
}

pub(super) fn catalog(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    let names = inner.store().repositories.keys().cloned().collect();
    let (page, link) = page(inner, record, names);
    linked(FaultResponse::json(StatusCode::OK, &json!({"repositories": page})), link)
}

pub(super) fn referrers(inner: &Arc<Inner>, record: &RecordedRequest) -> FaultResponse {
    if !inner.options.referrers {
        return FaultResponse::not_found("NOT_FOUND");
    }
    let (name, subject) = names(record);
    let wanted = record.parameter("artifactType");
    let store = inner.store();
    let held = store.repositories.get(name).into_iter().flat_map(|repository| &repository.manifests);
    let mut found: Vec<(String, Value)> = Vec::new();
    for (digest, held) in held {
        let json = held.manifest.json();
        let kind = json["artifactType"].as_str().or(json["config"]["mediaType"].as_str()).unwrap_or_default();
        let refers = json["subject"]["digest"] == *subject;
        if !refers || wanted.as_deref().is_some_and(|wanted| wanted != kind) {
            continue;
        }
        let mut descriptor = json!({
            "mediaType": held.manifest.media_type,
            "digest": digest,
            "size": held.manifest.bytes.len(),
        });
        // An index has no config whose media type could stand in.
        let known = !json["artifactType"].is_null() || !is_index(&held.manifest.media_type);
        if known && !kind.is_empty() {
            descriptor["artifactType"] = json!(kind);
        }
        if !json["annotations"].is_null() {
            descriptor["annotations"] = json["annotations"].clone();
        }
        found.push((digest.clone(), descriptor));
    }
    let (page, link) = page(inner, record, found.iter().map(|(digest, _)| digest.clone()).collect());
    let page: Vec<_> = found.into_iter().filter(|(digest, _)| page.contains(digest)).map(|(_, entry)| entry).collect();
    let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": page});
    let answer = FaultResponse::json(StatusCode::OK, &index).header(header::CONTENT_TYPE, media::OCI_INDEX);
    let answer = if wanted.is_some() { answer.header("oci-filters-applied", "artifactType") } else { answer };
    linked(answer, link)
}

/// Returns the entries of one page and the URL of the next.
fn page(inner: &Inner, record: &RecordedRequest, mut entries: Vec<String>) -> (Vec<String>, Option<String>) {
    let quirks = &inner.options.quirks;
    let cursor = if quirks.opaque_cursors { "next_token" } else { "last" };
    let last = record.parameter(cursor).map(|last| if quirks.opaque_cursors { uncover(&last) } else { last });
    if let Some(last) = last {
        entries.retain(|entry| *entry > last);
    }
    let asked = record.parameter("n").and_then(|n| n.parse::<usize>().ok());
    let Some(size) = asked.into_iter().chain(inner.options.page).min() else {
        return (entries, None);
    };
    if entries.len() <= size || size == 0 {
        entries.truncate(size);
        return (entries, None);
    }
    entries.truncate(size);
    let last = entries.last().cloned().unwrap_or_default();
    let filter = record.parameter("artifactType").map(|kind| format!("&artifactType={kind}")).unwrap_or_default();
    let last = if quirks.opaque_cursors { hex::encode(last) } else { last };
    let base = match quirks.links {
        NextPageLink::PlainHttp => inner.url().replace("https://", "http://"),
        _ if inner.options.absolute_links => inner.url(),
        _ => String::new(),
    };
    let path = match (quirks.links, record.path.strip_prefix("/v2/").and_then(|rest| rest.split_once('/'))) {
        (NextPageLink::WithoutPrefix, Some((_, rest))) => format!("/v2/{rest}"),
        _ => record.path.clone(),
    };
    let count = asked.map(|n| format!("n={n}&")).unwrap_or_default();
    (entries, Some(format!("{base}{path}?{count}{cursor}={last}{filter}")))
}

/// Decodes an opaque cursor.
fn uncover(cursor: &str) -> String {
    String::from_utf8(hex::decode(cursor).unwrap_or_default()).unwrap_or_default()
}

fn linked(answer: FaultResponse, link: Option<String>) -> FaultResponse {
    match link {
        Some(link) => answer.header(header::LINK, format!("<{link}>; rel=\"next\"")),
        None => answer,
    }
}
