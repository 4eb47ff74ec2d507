//! The JSON API under `/api/v1`, described by `schema/openapi.json`. The server serves that file, and a request
//! generator tests the API against it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use imgsync_model::batch::{BatchId, TaskState};
use imgsync_oci::RegistryName;
use imgsync_oci::sanitize::sanitize_within;
use imgsync_store::{Batch, BatchState, RequeueFilter};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::app::{AppState, REQUEST_TIMEOUT, StatusResponse};
use super::dto::{BatchResponse, FailureGroupsResponse, TaskResponse, TimelineResponse};
use super::error_response::ErrorResponse;
use super::extract::{MAX_PAGE_ROWS, PathId, QueryParams, expect_empty_body, parse_error_kind, read_json};
use super::routes::RoutesPage;
use super::row_filter::RowFilter;
use crate::batch_view::{BatchStatus, BatchView};
use crate::orchestrator::{StateChange, WorkerCoverage, rate_limit_messages};
use crate::report::failure_groups::FailureRow;
use crate::report::{self, Report, ReportFormat, ReportSpec};

/// OpenAPI description of this API.
pub(super) const OPENAPI: &str = include_str!("../../schema/openapi.json");

pub(super) type SharedState = State<Arc<AppState>>;
pub(super) type ApiResult<T> = Result<Json<T>, ErrorResponse>;

pub(super) async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], OPENAPI)
}

pub(super) async fn status(State(app): SharedState) -> Json<StatusResponse> {
    Json(app.status())
}

/// Batches read per query while looking for those in a state, and their limit.
const BATCHES_PER_PAGE: usize = 100;
const MAX_SCANNED_BATCHES: usize = 1_000;

pub(super) async fn batches(State(app): SharedState, RawQuery(query): RawQuery) -> ApiResult<Value> {
    let query = QueryParams::parse(query, &["rule", "state", "before", "limit"])?;
    let limit = query.parse_integer("limit", 1, MAX_PAGE_ROWS)?.unwrap_or(super::event_stream::MAX_BATCHES);
    let state = query.get("state").map(parse_status).transpose()?;
    let mut before = query.batch_id("before")?;
    let identities = match query.get("rule") {
        None => None,
        Some(id) => {
            let current = app.active_config.borrow().clone();
            let rule = current.rule(id).ok_or_else(|| ErrorResponse::no_rule(id))?;
            Some(rule.own_identities())
        }
    };
    let page = if state.is_some() { BATCHES_PER_PAGE } else { limit };
    let (mut views, mut scanned) = (Vec::new(), 0);
    let next = loop {
        let batches = match &identities {
            Some(identities) => app.store().newest_batches(identities, before, page).await?,
            None => app.store().batches_before(before, page).await?,
        };
        let is_last = batches.len() < page;
        scanned += batches.len();
        for batch in batches {
            before = Some(batch.id);
            let view = BatchView::load(app.store(), batch).await?;
            if state.is_none_or(|state| state == view.state) {
                views.push(view);
            }
            if views.len() == limit {
                break;
            }
        }
        match () {
            () if views.len() == limit => break before,
            () if is_last => break None,
            () if scanned >= MAX_SCANNED_BATCHES => break before,
            () => {}
        }
    };
    let ids: Vec<BatchId> = views.iter().map(|view| view.batch.id).collect();
    let records = app.store().count_records(&ids).await?;
    let shown = views.iter().zip(records).map(|(view, records)| app.batch_response(view, records.unlisted));
    Ok(Json(json!({"batches": shown.collect::<Vec<_>>(), "next": next})))
}

fn parse_status(text: &str) -> Result<BatchStatus, ErrorResponse> {
    BatchStatus::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
        let all: Vec<&str> = BatchStatus::ALL.into_iter().map(BatchStatus::as_str).collect();
        ErrorResponse::bad_request(format!("`state` is one of {}", all.join(", ")))
    })
}

/// A batch with the reasons why it waits.
#[derive(Serialize)]
pub(super) struct BatchDetailResponse {
    #[serde(flatten)]
    batch: BatchResponse,
    rate_limit_messages: Vec<String>,
    problems: Vec<String>,
}

pub(super) async fn batch(State(app): SharedState, PathId(id): PathId) -> ApiResult<BatchDetailResponse> {
    let batch = find_batch(&app, &id).await?;
    let unlisted = app.unlisted_count(batch.id).await?;
    let client = app.active_config.borrow().client.clone();
    let rate_limit_messages = rate_limit_messages(app.store(), &batch, &client).await?;
    let problems = match app.backend.is_cluster() {
        true => WorkerCoverage::load(app.store(), &batch).await?.problems(),
        false => Vec::new(),
    };
    let view = BatchView::load(app.store(), batch).await?;
    let problems = view.notice().into_iter().chain(problems).collect();
    Ok(Json(BatchDetailResponse { batch: app.batch_response(&view, unlisted), rate_limit_messages, problems }))
}

pub(super) async fn timeline(State(app): SharedState, PathId(id): PathId) -> ApiResult<TimelineResponse> {
    let batch = find_batch(&app, &id).await?;
    Ok(Json(TimelineResponse::from_timeline(batch.id, app.store().timeline(batch.id).await?)))
}

pub(super) async fn tasks(State(app): SharedState, PathId(id): PathId, RawQuery(query): RawQuery) -> ApiResult<Value> {
    let query = QueryParams::parse(query, &["state", "registry", "text", "from", "limit"])?;
    let state = query.get("state").map(|text| {
        TaskState::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let all: Vec<&str> = TaskState::ALL.into_iter().map(TaskState::as_str).collect();
            ErrorResponse::bad_request(format!("`state` is one of {}", all.join(", ")))
        })
    });
    let (state, from, limit) = (state.transpose()?, query.start_index()?, query.limit()?);
    let batch = find_batch(&app, &id).await?;
    let (rows, next) = RowFilter::parse(&query)?.tasks(app.store(), batch.id, state, from, limit).await?;
    let mut shown: Vec<TaskResponse> = rows.iter().map(TaskResponse::from_row).collect();
    if state == Some(TaskState::Failed) {
        // Only the failure record counts the last attempt.
        let mut at = from;
        while shown.last().is_some_and(|last| at <= last.index) {
            let page = app.store().failures(batch.id, at, limit).await?;
            let Some(last) = page.last() else { break };
            at = last.task.index.saturating_add(1);
            for failed in &page {
                let row = shown.binary_search_by_key(&failed.task.index, |row| row.index);
                row.into_iter().for_each(|row| shown[row].attempts = failed.failure.attempts);
            }
        }
    }
    Ok(Json(json!({"tasks": shown, "next": next})))
}

pub(super) async fn failures(
    State(app): SharedState,
    PathId(id): PathId,
    RawQuery(query): RawQuery,
) -> ApiResult<Value> {
    let query = QueryParams::parse(query, &["kind", "registry", "text", "from", "limit"])?;
    let (from, limit) = (query.start_index()?, query.limit()?);
    let batch = find_batch(&app, &id).await?;
    let (failed, next) = RowFilter::parse(&query)?.failures(app.store(), batch.id, from, limit).await?;
    let shown: Vec<FailureRow> = failed.iter().map(FailureRow::new).collect();
    Ok(Json(json!({"failures": shown, "next": next})))
}

pub(super) async fn groups(State(app): SharedState, PathId(id): PathId) -> ApiResult<FailureGroupsResponse> {
    let batch = find_batch(&app, &id).await?;
    let groups = app.failure_groups.get_or_compute(app.store(), &batch).await?;
    Ok(Json(FailureGroupsResponse::clone(&groups)))
}

pub(super) async fn unlisted(
    State(app): SharedState,
    PathId(id): PathId,
    RawQuery(query): RawQuery,
) -> ApiResult<Value> {
    let query = QueryParams::parse(query, &["from", "limit"])?;
    let range = query.page_range()?;
    let batch = find_batch(&app, &id).await?;
    let all = app.store().listing_failures(batch.id).await?;
    let (shown, next) = range.select(&all);
    Ok(Json(json!({"unlisted": shown, "next": next, "total": all.len()})))
}

/// Returns the report of a batch as a page to be saved: its links lead back to the dashboard.
pub(super) async fn batch_report(
    State(app): SharedState,
    PathId(id): PathId,
    headers: HeaderMap,
) -> Result<Response, ErrorResponse> {
    let id = find_batch(&app, &id).await?.id;
    let Ok(_turn) = tokio::time::timeout(REQUEST_TIMEOUT, app.report_permits.acquire()).await else {
        let why = "too many reports are being written: try again later";
        return Err(ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, "timed_out", why));
    };
    let mut report = Report::load(app.store(), id).await?;
    report.dashboard = app.dashboard_url(&headers);
    let mut page = Vec::new();
    let spec = ReportSpec { format: ReportFormat::Html, is_default_format: false, level: None, template: None };
    report::write(&report, &spec, &mut page).await?;
    let name = format!("attachment; filename=\"imgsync-{id}.html\"");
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_DISPOSITION, name),
        (CONTENT_SECURITY_POLICY, REPORT_CSP.to_owned()),
    ];
    Ok((headers, page).into_response())
}

/// The report has its own style, and nothing else.
const REPORT_CSP: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
                          frame-ancestors 'none'; sandbox allow-top-navigation-by-user-activation";

pub(super) async fn pause(State(app): SharedState, PathId(id): PathId, request: Request) -> ApiResult<Value> {
    change_state(&app, &id, request, BatchState::Paused).await
}

pub(super) async fn resume(State(app): SharedState, PathId(id): PathId, request: Request) -> ApiResult<Value> {
    change_state(&app, &id, request, BatchState::Running).await
}

pub(super) async fn cancel(State(app): SharedState, PathId(id): PathId, request: Request) -> ApiResult<Value> {
    change_state(&app, &id, request, BatchState::Cancelled).await
}

async fn change_state(app: &AppState, id: &str, request: Request, wanted: BatchState) -> ApiResult<Value> {
    expect_empty_body(request).await?;
    let id = find_batch(app, id).await?.id;
    let change = StateChange::new(app.backend.store.clone(), id, wanted);
    let now = change.apply().await?;
    app.rule_cache.invalidate().await;
    if wanted == BatchState::Running {
        app.work_available.notify_one();
    }
    app.state_confirmations.start(id, change);
    state_response(id, now, wanted)
}

/// Request to requeue failures: those that match every given filter.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RequeueRequest {
    kind: Option<String>,
    registry: Option<String>,
}

pub(super) async fn requeue(State(app): SharedState, PathId(id): PathId, request: Request) -> ApiResult<Value> {
    let wanted: RequeueRequest = read_json(request).await?.unwrap_or_default();
    let registry = |name: String| {
        name.parse::<RegistryName>()
            .map_err(|error| ErrorResponse::bad_request(format!("`registry` is not a registry name: {error}")))
    };
    let filter = RequeueFilter {
        kind: wanted.kind.as_deref().map(parse_error_kind).transpose()?,
        registry: wanted.registry.map(registry).transpose()?,
    };
    let id = find_batch(&app, &id).await?.id;
    let requeued = app.store().requeue(id, filter).await?;
    app.rule_cache.invalidate().await;
    app.work_available.notify_one();
    Ok(Json(json!({"batch": id, "requeued": requeued})))
}

pub(super) async fn workers(State(app): SharedState, RawQuery(query): RawQuery) -> ApiResult<Value> {
    let query = QueryParams::parse(query, &["from", "limit"])?;
    let range = query.page_range()?;
    let workers = app.workers().await?;
    let (shown, next) = range.select(&workers);
    Ok(Json(json!({"workers": shown, "next": next, "total": workers.len()})))
}

pub(super) async fn routes(State(app): SharedState, RawQuery(query): RawQuery) -> ApiResult<RoutesPage> {
    let query = QueryParams::parse(query, &["from", "limit"])?;
    let range = query.page_range()?;
    let workers = app.workers().await?;
    Ok(Json(app.routes(&workers).await?.page(range)))
}

pub(super) async fn events(State(app): SharedState) -> Result<Response, ErrorResponse> {
    let Some(events) = app.event_hub.subscribe(app.stop.clone()) else {
        let why = "too many event streams are open";
        return Err(ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, "local", why));
    };
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store"), (X_ACCEL_BUFFERING, "no")];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// Tells proxies not to buffer the event stream.
const X_ACCEL_BUFFERING: axum::http::HeaderName = axum::http::HeaderName::from_static("x-accel-buffering");

pub(super) async fn path_not_found() -> ErrorResponse {
    ErrorResponse::not_found("no such path").hint("/api/v1/openapi.json lists the paths")
}

pub(super) async fn method_not_allowed() -> ErrorResponse {
    ErrorResponse::new(StatusCode::METHOD_NOT_ALLOWED, "invalid", "method not allowed")
        .hint("/api/v1/openapi.json lists the methods")
}

/// Returns the batch with this id.
async fn find_batch(app: &AppState, id: &str) -> Result<Batch, ErrorResponse> {
    let missing = || ErrorResponse::not_found(format!("there is no batch {}", sanitize_within(id, 100)));
    let id: BatchId = id.parse().map_err(|_| missing())?;
    app.store().batch(id).await?.ok_or_else(missing)
}

fn state_response(id: BatchId, now: BatchState, wanted: BatchState) -> ApiResult<Value> {
    match now == wanted {
        true => Ok(Json(json!({"batch": id, "state": now}))),
        false => Err(ErrorResponse::conflict(format!("batch {id} is {now}"))),
    }
}

#[cfg(test)]
mod tests {
    use imgsync_oci::error::ErrorKind;

    use super::*;

    #[test]
    fn every_error_kind_is_in_the_api_description() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let described = &document["components"]["schemas"]["ErrorKind"]["enum"];
        assert_eq!(*described, json!(ErrorKind::ALL.map(ErrorKind::as_str)));
    }
}
