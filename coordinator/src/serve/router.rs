//! All HTTP routes, combined in one place; the one of hooks is with them.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use imgsync_worker::health;

use super::app::{AppState, REQUEST_TIMEOUT};
use super::error_response::ErrorResponse;
use super::{api, assets, auth, hooks, rules_api};

/// Builds the router: health and metrics for probes, the API, hooks, and the dashboard.
pub fn router(app: Arc<AppState>, metrics: Router) -> Router {
    // Probes have no token. On loopback they must use the server's own names, like all requests.
    let probes = from_fn_with_state(app.auth.clone(), auth::guard_probes);
    let open = health::router(app.ready.clone()).merge(metrics).layer(probes);
    let guard = from_fn_with_state(app.auth.clone(), auth::guard);
    let api = api_routes()
        .layer(from_fn(with_timeout))
        .route("/events", get(api::events))
        // The report of a large batch reads all of its tasks.
        .route("/batches/{batch}/report", get(api::batch_report));
    let api = api
        .fallback(api::path_not_found)
        .method_not_allowed_fallback(api::method_not_allowed)
        .layer(guard)
        .with_state(app.clone());
    open.nest("/api/v1", api)
        .merge(hooks::routes(app))
        .merge(assets::routes())
        .layer(from_fn(auth::set_security_headers))
}

fn api_routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/openapi.json", get(api::openapi))
        .route("/status", get(api::status))
        .route("/batches", get(api::batches))
        .route("/batches/{batch}", get(api::batch))
        .route("/batches/{batch}/timeline", get(api::timeline))
        .route("/batches/{batch}/tasks", get(api::tasks))
        .route("/batches/{batch}/failures", get(api::failures))
        .route("/batches/{batch}/failures/groups", get(api::groups))
        .route("/batches/{batch}/pause", post(api::pause))
        .route("/batches/{batch}/resume", post(api::resume))
        .route("/batches/{batch}/cancel", post(api::cancel))
        .route("/batches/{batch}/requeue", post(api::requeue))
        .route("/batches/{batch}/unlisted", get(api::unlisted))
        .route("/overview", get(rules_api::overview))
        .route("/rules", get(rules_api::rules))
        .route("/rules/{rule}", get(rules_api::rule))
        .route("/rules/{rule}/history", get(rules_api::history))
        .route("/rules/{rule}/start", post(rules_api::start))
        .route("/schedules", get(rules_api::schedules))
        .route("/schedules/{rule}/start", post(rules_api::start))
        .route("/search", get(rules_api::search))
        .route("/workers", get(api::workers))
        .route("/routes", get(api::routes))
}

/// Responds with 503 to a request that takes too long.
pub(super) async fn with_timeout(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let why = format!("the store did not respond within {} s", REQUEST_TIMEOUT.as_secs());
            ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, "timed_out", why).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_api_is_described() {
        let document: serde_json::Value = serde_json::from_str(api::OPENAPI).unwrap();
        let (source, _) = include_str!("router.rs").split_once("#[cfg(test)]").unwrap();
        let mut paths = 0;
        for rest in source.split(".route(\"").skip(1) {
            let (path, rest) = rest.split_once("\", ").unwrap();
            let method = rest.split('(').next().unwrap();
            assert!(document["paths"][path][method].is_object(), "{method} {path}");
            paths += 1;
        }
        assert_eq!(paths, document["paths"].as_object().unwrap().len());
    }
}
