//! Paths of the API about rules: the overview, rules with their state and history, schedules, and the search.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, Request, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::api::{ApiResult, SharedState};
use super::app::AppState;
use super::error_response::ErrorResponse;
use super::extract::{PathId, QueryParams, ignore_body};
use super::overview::OverviewResponse;
use super::rules::{MAX_RUNS, RuleResponse, RuleState, count_states};
use super::search::{self, MAX_TEXT_CHARS, MIN_TEXT_CHARS, SearchResponse};

const DEFAULT_RESULTS: usize = 50;
const MAX_RESULTS: usize = 200;
const DEFAULT_HISTORY: usize = 30;
const MAX_HISTORY: usize = 200;

pub(super) async fn overview(State(app): SharedState) -> ApiResult<OverviewResponse> {
    let workers = app.workers().await?;
    let routes = app.routes(&workers).await?;
    Ok(Json(OverviewResponse::load(&app, &workers, &routes).await?))
}

pub(super) async fn rules(State(app): SharedState, RawQuery(query): RawQuery) -> ApiResult<Value> {
    let query = QueryParams::parse(query, &["state", "text", "registry", "from", "limit"])?;
    let states = query.get("state").map(parse_states).transpose()?;
    let text = query.get("text").unwrap_or_default().trim().to_lowercase();
    let registry = query.get("registry").unwrap_or_default().trim().to_lowercase();
    let range = query.page_range()?;
    let rules = app.rules().await?;
    let matches_text = |rule: &RuleResponse| {
        let schedule = &rule.schedule;
        let texts = [&schedule.name, &schedule.from].into_iter().chain(&schedule.to);
        text.is_empty() || texts.into_iter().any(|field| field.to_lowercase().contains(&text))
    };
    let at_registry = |name: &str| name.split_once('/').map_or(name, |(host, _)| host).eq_ignore_ascii_case(&registry);
    let uses_registry = |rule: &RuleResponse| {
        registry.is_empty()
            || at_registry(&rule.schedule.from)
            || rule.schedule.to.iter().any(|to| at_registry(to))
            || app.active_config.borrow().rule(&rule.schedule.rule).is_some_and(|rule| rule.reads_from(&registry))
    };
    let found: Vec<&RuleResponse> = rules
        .iter()
        .filter(|rule| states.as_ref().is_none_or(|states| states.contains(&rule.state)))
        .filter(|rule| matches_text(rule) && uses_registry(rule))
        .collect();
    let (page, next) = range.select(&found);
    Ok(Json(json!({
        "rules": page, "next": next, "total": found.len(), "states": count_states(&rules), "runs_searched": MAX_RUNS,
    })))
}

fn parse_states(text: &str) -> Result<Vec<RuleState>, ErrorResponse> {
    let state = |word: &str| {
        RuleState::ALL.into_iter().find(|state| state.as_str() == word).ok_or_else(|| {
            let all: Vec<&str> = RuleState::ALL.into_iter().map(RuleState::as_str).collect();
            ErrorResponse::bad_request(format!("`state` is a list of {}, with commas", all.join(", ")))
        })
    };
    text.split(',').map(state).collect()
}

pub(super) async fn rule(State(app): SharedState, PathId(id): PathId) -> ApiResult<RuleResponse> {
    find_rule(&app, &id).await.map(Json)
}

pub(super) async fn history(
    State(app): SharedState,
    PathId(id): PathId,
    RawQuery(query): RawQuery,
) -> ApiResult<Value> {
    let query = QueryParams::parse(query, &["before", "limit"])?;
    let before = query.batch_id("before")?;
    let limit = query.parse_integer("limit", 1, MAX_HISTORY)?.unwrap_or(DEFAULT_HISTORY);
    let current = app.active_config.borrow().clone();
    let rule = current.rule(&id).ok_or_else(|| ErrorResponse::no_rule(&id))?;
    let runs = app.rule_cache.history(app.store(), (&current, rule), before, limit).await?;
    let next = runs.last().filter(|_| runs.len() == limit).map(super::rules::HistoryEntry::batch);
    Ok(Json(json!({"rule": rule.id, "runs": runs, "next": next})))
}

pub(super) async fn schedules(State(app): SharedState, RawQuery(query): RawQuery) -> ApiResult<Value> {
    let query = QueryParams::parse(query, &["from", "limit"])?;
    let range = query.page_range()?;
    let rules = app.rules().await?;
    let (page, next) = range.select(&rules);
    let page: Vec<_> = page.iter().map(|rule| &rule.schedule).collect();
    Ok(Json(json!({"schedules": page, "next": next, "total": rules.len()})))
}

pub(super) async fn start(
    State(app): SharedState,
    PathId(rule): PathId,
    request: Request,
) -> Result<(StatusCode, Json<Value>), ErrorResponse> {
    ignore_body(request).await?;
    // Spawned, so that the batch is started and recorded even if the client disconnects.
    let scheduler = app.scheduler.clone();
    let started = tokio::spawn(async move { scheduler.start(&rule).await });
    let id = started.await.map_err(|_| {
        ErrorResponse::new(StatusCode::INTERNAL_SERVER_ERROR, "local", "the batch could not be started")
    })??;
    app.rule_cache.invalidate().await;
    Ok((StatusCode::ACCEPTED, Json(json!({"batch": id}))))
}

pub(super) async fn search(State(app): SharedState, RawQuery(query): RawQuery) -> ApiResult<SearchResponse> {
    let query = QueryParams::parse(query, &["text", "limit"])?;
    let text = query.get("text").unwrap_or_default();
    let limit = query.parse_integer("limit", 1, MAX_RESULTS)?.unwrap_or(DEFAULT_RESULTS);
    if !(MIN_TEXT_CHARS..=MAX_TEXT_CHARS).contains(&text.trim().chars().count()) {
        return Err(ErrorResponse::bad_request(format!(
            "`text` must have {MIN_TEXT_CHARS} to {MAX_TEXT_CHARS} characters: a part of an image or tag"
        )));
    }
    let _turn = app.search_permits.acquire().await;
    Ok(Json(search::search(&app, text, limit).await?))
}

async fn find_rule(app: &Arc<AppState>, id: &str) -> Result<RuleResponse, ErrorResponse> {
    let rules = app.rules().await?;
    let by_id = rules.iter().find(|rule| rule.schedule.rule == id);
    by_id
        .or_else(|| rules.iter().find(|rule| rule.schedule.name == id))
        .cloned()
        .ok_or_else(|| ErrorResponse::no_rule(id))
}
