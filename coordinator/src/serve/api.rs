//! The JSON API under `/api/v1`, described by `schema/openapi.json`. The server serves that file, and a request
//! generator tests the API against it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use imgsync_common::batch::{BatchId, TaskState};
use imgsync_common::error::Class;
use imgsync_common::image::RegistryName;
use imgsync_common::printable::printable_within;
use imgsync_common::store::{Batch, Control, RequeueFilter};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::app::{App, StatusShape};
use super::asked::{MOST_ROWS, Named, Query, body, nothing};
use super::lanes::LanesShape;
use super::shape::{BatchShape, CourseShape, GroupsShape, TaskShape};
use super::timetable::Entry;
use super::trouble::Trouble;
use crate::batches::{BatchView, Crew, waits};
use crate::report::failure_groups::FailureRow;

/// OpenAPI description of this API.
pub(super) const OPENAPI: &str = include_str!("../../schema/openapi.json");

type Shared = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Trouble>;

pub(super) async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], OPENAPI)
}

pub(super) async fn status(State(app): Shared) -> Json<StatusShape> {
    Json(app.status())
}

pub(super) async fn batches(State(app): Shared, RawQuery(query): RawQuery) -> Answer<Value> {
    let query = Query::of(query, &["limit"])?;
    let limit = query.whole("limit", 1, MOST_ROWS)?.unwrap_or(super::live::BATCHES);
    let mut shown = Vec::new();
    for batch in app.store().batches(limit).await? {
        let unlisted = app.store().unlisted(batch.id).await?.len();
        shown.push(BatchShape::of(&BatchView::of(app.store(), batch).await?, unlisted));
    }
    Ok(Json(json!({"batches": shown})))
}

/// A batch with the reasons why it waits.
#[derive(Serialize)]
pub(super) struct Whole {
    #[serde(flatten)]
    batch: BatchShape,
    waits: Vec<String>,
    complaints: Vec<String>,
}

pub(super) async fn batch(State(app): Shared, Named(id): Named) -> Answer<Whole> {
    let batch = find(&app, &id).await?;
    let unlisted = app.store().unlisted(batch.id).await?.len();
    let client = app.current.borrow().client.clone();
    let waits = waits(app.store(), &batch, &client).await?;
    let complaints = match app.house.is_cluster() {
        true => Crew::of(app.store(), &batch).await?.complaints(),
        false => Vec::new(),
    };
    let view = BatchView::of(app.store(), batch).await?;
    let complaints = view.notice().into_iter().chain(complaints).collect();
    Ok(Json(Whole { batch: BatchShape::of(&view, unlisted), waits, complaints }))
}

pub(super) async fn course(State(app): Shared, Named(id): Named) -> Answer<CourseShape> {
    let batch = find(&app, &id).await?;
    Ok(Json(CourseShape::of(batch.id, app.store().course(batch.id).await?)))
}

pub(super) async fn tasks(State(app): Shared, Named(id): Named, RawQuery(query): RawQuery) -> Answer<Value> {
    let query = Query::of(query, &["state", "from", "limit"])?;
    let state = query.get("state").map(|text| {
        TaskState::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let all: Vec<&str> = TaskState::ALL.into_iter().map(TaskState::as_str).collect();
            Trouble::bad(format!("`state` is one of {}", all.join(", ")))
        })
    });
    let (state, from, limit) = (state.transpose()?, query.from()?, query.limit()?);
    let batch = find(&app, &id).await?;
    let rows = app.store().tasks(batch.id, state, from, limit).await?;
    let next = rows.last().filter(|_| rows.len() == limit).map(|last| last.task.index.saturating_add(1));
    let mut shown: Vec<TaskShape> = rows.iter().map(TaskShape::of).collect();
    if state == Some(TaskState::Failed) {
        // Only the failure record counts the last attempt.
        for failed in app.store().failures(batch.id, from, limit).await? {
            let row = shown.iter_mut().find(|row| row.index == failed.task.index);
            row.into_iter().for_each(|row| row.attempts = failed.failure.attempts);
        }
    }
    Ok(Json(json!({"tasks": shown, "next": next})))
}

pub(super) async fn failures(State(app): Shared, Named(id): Named, RawQuery(query): RawQuery) -> Answer<Value> {
    let query = Query::of(query, &["from", "limit"])?;
    let (from, limit) = (query.from()?, query.limit()?);
    let batch = find(&app, &id).await?;
    let failed = app.store().failures(batch.id, from, limit).await?;
    let next = failed.last().filter(|_| failed.len() == limit).map(|last| last.task.index.saturating_add(1));
    let shown: Vec<FailureRow> = failed.iter().map(FailureRow::new).collect();
    Ok(Json(json!({"failures": shown, "next": next})))
}

pub(super) async fn groups(State(app): Shared, Named(id): Named) -> Answer<GroupsShape> {
    let batch = find(&app, &id).await?;
    let groups = app.groups.of(app.store(), &batch).await?;
    Ok(Json(GroupsShape::clone(&groups)))
}

pub(super) async fn pause(State(app): Shared, Named(id): Named, request: Request) -> Answer<Value> {
    nothing(request).await?;
    let id = find(&app, &id).await?.id;
    stands(id, app.store().pause(id).await?, Control::Paused)
}

pub(super) async fn resume(State(app): Shared, Named(id): Named, request: Request) -> Answer<Value> {
    nothing(request).await?;
    let id = find(&app, &id).await?.id;
    let now = app.store().resume(id).await?;
    app.more.notify_one();
    stands(id, now, Control::Running)
}

pub(super) async fn cancel(State(app): Shared, Named(id): Named, request: Request) -> Answer<Value> {
    nothing(request).await?;
    let id = find(&app, &id).await?.id;
    stands(id, app.store().cancel(id).await?, Control::Cancelled)
}

/// Request to requeue failures: those that match every given filter.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wanted {
    class: Option<String>,
    registry: Option<String>,
}

pub(super) async fn requeue(State(app): Shared, Named(id): Named, request: Request) -> Answer<Value> {
    let wanted: Wanted = body(request).await?.unwrap_or_default();
    let registry = |name: String| {
        name.parse::<RegistryName>().map_err(|error| Trouble::bad(format!("`registry` is no registry: {error}")))
    };
    let filter = RequeueFilter {
        class: wanted.class.as_deref().map(class_of).transpose()?,
        registry: wanted.registry.map(registry).transpose()?,
    };
    let id = find(&app, &id).await?.id;
    let requeued = app.store().requeue(id, filter).await?;
    app.more.notify_one();
    Ok(Json(json!({"batch": id, "requeued": requeued})))
}

pub(super) async fn schedules(State(app): Shared) -> Answer<Vec<Entry>> {
    Ok(Json(app.timetable.entries().await?))
}

pub(super) async fn start(
    State(app): Shared,
    Named(rule): Named,
    request: Request,
) -> Result<(StatusCode, Json<Value>), Trouble> {
    nothing(request).await?;
    // Spawned, so that the batch is started and recorded even if the client disconnects.
    let timetable = app.timetable.clone();
    let begun = tokio::spawn(async move { timetable.start(&rule).await });
    let id = begun
        .await
        .map_err(|_| Trouble::new(StatusCode::INTERNAL_SERVER_ERROR, "local", "it could not be begun"))??;
    Ok((StatusCode::ACCEPTED, Json(json!({"batch": id}))))
}

pub(super) async fn workers(State(app): Shared) -> Answer<Value> {
    Ok(Json(json!({"workers": app.store().workers().await?})))
}

pub(super) async fn lanes(State(app): Shared) -> Answer<LanesShape> {
    let workers = app.store().workers().await?;
    Ok(Json(app.lanes(&workers).await?))
}

pub(super) async fn events(State(app): Shared) -> Result<Response, Trouble> {
    let Some(events) = app.live.events(app.stop.clone()) else {
        let why = "too many watch already";
        return Err(Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "local", why));
    };
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store"), (X_ACCEL_BUFFERING, "no")];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// Tells proxies not to buffer the event stream.
const X_ACCEL_BUFFERING: axum::http::HeaderName = axum::http::HeaderName::from_static("x-accel-buffering");

pub(super) async fn nowhere() -> Trouble {
    Trouble::not_found("there is nothing under this path").hint("/api/v1/openapi.json describes what there is")
}

pub(super) async fn not_so() -> Trouble {
    Trouble::new(StatusCode::METHOD_NOT_ALLOWED, "invalid", "this path is not asked so")
        .hint("/api/v1/openapi.json says which methods it has")
}

/// Returns the batch with this id.
async fn find(app: &App, id: &str) -> Result<Batch, Trouble> {
    let missing = || Trouble::not_found(format!("there is no batch {}", printable_within(id, 100)));
    let id: BatchId = id.parse().map_err(|_| missing())?;
    app.store().batch(id).await?.ok_or_else(missing)
}

fn stands(id: BatchId, now: Control, wanted: Control) -> Answer<Value> {
    match now == wanted {
        true => Ok(Json(json!({"batch": id, "state": now}))),
        false => Err(Trouble::conflict(format!("batch {id} is {now}"))),
    }
}

fn class_of(text: &str) -> Result<Class, Trouble> {
    serde_json::from_value(Value::String(text.to_owned()))
        .map_err(|_| Trouble::bad(format!("`class` is no class of failures: {}", printable_within(text, 100))))
}
