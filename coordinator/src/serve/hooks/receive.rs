//! `POST /hooks/NAME`: checks the sender, reads the notifications, and stores what rules may want before it confirms.
//!
//! A proved sender is answered 202 also if its payload cannot be read: some send the same again for ever, and nothing
//! behind it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use imgsync_model::batch::PushedReference;
use imgsync_oci::error::Error;
use imgsync_oci::sanitize::sanitize_within;
use imgsync_store::{AddedPushes, PushRule, ReceivedPush, hash_push_id, log_throttle};
use jiff::Timestamp;
use serde_json::json;

use super::proof::{HeadCheck, check_head, is_signed};
use crate::hooks::{NotifiedAction, PayloadError, parse};
use crate::orchestrator::push_metrics;
use crate::serve::active_hook::ActiveHook;
use crate::serve::app::AppState;
use crate::serve::auth;
use crate::serve::error_response::ErrorResponse;
use crate::serve::extract::{PathId, read_limited};
use crate::serve::router::with_timeout;

/// Maximum size of the body of a notification.
pub(crate) const MAX_HOOK_BYTES: usize = 1 << 20;
/// Memory for the bodies that are read at a time, in units of [`PERMIT_BYTES`].
pub(in crate::serve) const BODY_PERMITS: usize = 16 << 10;
const PERMIT_BYTES: usize = 1 << 10;
/// The same for the bodies of senders that only their body can prove.
pub(in crate::serve) const UNPROVED_BODY_PERMITS: usize = 4 << 10;
/// How long a body may take, with the wait for memory.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const UNPROVED_READ_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the store may take. Senders wait for seconds at most, and send again.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit for looking at files of images.
const FILES_TIMEOUT: Duration = Duration::from_secs(2);
/// When senders that obey it send again, in seconds.
const RETRY_SECONDS: &str = "10";

/// Returns the route of hooks. They have secrets of their own in place of the API's token.
pub(in crate::serve) fn routes(app: Arc<AppState>) -> Router {
    let guard = from_fn_with_state(app.auth.clone(), auth::guard_hooks);
    Router::new().route("/hooks/{name}", post(receive)).layer(from_fn(with_timeout)).layer(guard).with_state(app)
}

async fn receive(State(app): State<Arc<AppState>>, PathId(name): PathId, request: Request) -> Response {
    let current = app.active_config.borrow().clone();
    let Some(hook) = current.hooks.get(&name) else {
        let name = sanitize_within(&name, 100);
        push_metrics::count("unknown_hook", 1);
        let line = format!("refused a notification to the hook {name}, which the configuration does not have");
        log_throttle::warn("hooks: unknown hook", &line);
        return ErrorResponse::not_found(format!("the configuration has no hook {name}")).into_response();
    };
    match receive_from(&app, &name, hook, request).await {
        Ok(answer) => answer,
        Err(error) => {
            let mut answer = error.into_response();
            if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
            }
            answer
        }
    }
}

async fn receive_from(
    app: &AppState,
    name: &str,
    hook: &ActiveHook,
    request: Request,
) -> Result<Response, ErrorResponse> {
    let (head, body) = request.into_parts();
    let is_local = app.auth.is_from_this_machine(&head.uri, &head.headers);
    let check = check_head(&hook.config.auth, &head.headers, head.uri.query().unwrap_or_default(), is_local);
    if check == HeadCheck::Refused {
        return Err(unproved(name, hook));
    }
    let is_proved = check == HeadCheck::Proved;
    let (permits, read_timeout) = match is_proved {
        true => (&app.hook_permits, READ_TIMEOUT),
        // Whoever cannot prove itself yet does not take the memory of those who can.
        false => (&app.unproved_hook_permits, UNPROVED_READ_TIMEOUT),
    };
    let read = async {
        let _permits = permits.acquire_many(body_permits(&head.headers)).await;
        read_limited(body, MAX_HOOK_BYTES).await
    };
    let body = match tokio::time::timeout(read_timeout, read).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            push_metrics::count("too_large", 1);
            let line = format!("hook {name}: refused a payload of more than {MAX_HOOK_BYTES} bytes");
            log_throttle::warn(&format!("hook {name}: too large"), &line);
            return if is_proved { Ok(unreadable(&error)) } else { Err(error) };
        }
        Ok(Err(error)) => {
            push_metrics::count("malformed", 1);
            return Err(error);
        }
        Err(_) => return Err(read_timed_out(name, read_timeout)),
    };
    if !is_proved && !is_signed(&hook.config.auth, &head.headers, &body) {
        return Err(unproved(name, hook));
    }
    let notifications = match parse(hook.config.kind, &head.headers, &body) {
        Ok(notifications) => notifications,
        Err(error) => return Ok(unreadable(&malformed(name, hook, error))),
    };
    drop(body);
    let (mut pushes, mut unwanted, mut refused, mut is_ping) = (Vec::new(), 0, 0, false);
    let (mut whole, mut is_refreshed) = (WholeRules::default(), false);
    for notification in &notifications {
        match notification.action {
            NotifiedAction::Push => {}
            NotifiedAction::Delete => {
                push_metrics::count("deletion", 1);
                if !hook.follows_deletions() {
                    unwanted += 1;
                    continue;
                }
            }
            NotifiedAction::Ping => {
                push_metrics::count("ping", 1);
                is_ping = true;
                continue;
            }
            NotifiedAction::Confirmation => {
                let line = format!(
                    "hook {name}: the sender asks to confirm a subscription: open the SubscribeURL of its message \
                     yourself (the console of the sender shows it); imgsync requests no URL of a payload"
                );
                log_throttle::warn(&format!("hook {name}: confirmation"), &line);
                push_metrics::count("ping", 1);
                is_ping = true;
                continue;
            }
            NotifiedAction::Other => {
                push_metrics::count("unwanted", 1);
                unwanted += 1;
                continue;
            }
        }
        let (repository, reference) = match notification.push(&hook.config.registry) {
            Ok(push) => push,
            Err(refusal) => {
                push_metrics::count(refusal.as_str(), 1);
                let (host, repository) = (notification.host.as_deref().unwrap_or("?"), &notification.repository);
                let line = format!(
                    "hook {name}: refused a notification ({}): host {}, repository {}, tag {}",
                    refusal.as_str(),
                    sanitize_within(host, 100),
                    sanitize_within(repository, 100),
                    sanitize_within(notification.tag.as_deref().unwrap_or("none"), 100),
                );
                log_throttle::warn(&format!("hook {name}: {}", refusal.as_str()), &line);
                refused += 1;
                continue;
            }
        };
        let mut rules = hook.wanted_by(&repository, &reference);
        if !is_refreshed && reference != PushedReference::Deletion && hook.reads_files_beside(&rules) {
            // A new image may be in the files already.
            if tokio::time::timeout(FILES_TIMEOUT, hook.refresh_images()).await.is_err() {
                log_throttle::warn(
                    "hooks: slow files",
                    "hooks: reading files of images takes long; pushes do not wait",
                );
            }
            is_refreshed = true;
            rules = hook.wanted_by(&repository, &reference);
        }
        let is_whole = reference != PushedReference::Deletion && whole.add(hook.unread_rules());
        if rules.is_empty() && is_whole {
            whole.pushes += 1;
            continue;
        }
        if rules.is_empty() {
            push_metrics::count("unwanted", 1);
            tracing::debug!("hook {name}: no rule selects {repository} {reference:?}");
            unwanted += 1;
            continue;
        }
        let id = notification.id.as_deref().map(|id| hash_push_id(name, id, &repository, &reference));
        pushes.push(ReceivedPush { id, registry: hook.config.registry.clone(), repository, reference, rules });
    }
    let kept = store_pushes(app, name, pushes, whole).await?;
    push_metrics::count("accepted", kept.added);
    push_metrics::count("coalesced", kept.coalesced);
    push_metrics::count("repeated", kept.repeated);
    if kept.added + kept.coalesced > 0 {
        push_metrics::set_last(Timestamp::now().as_second() as f64);
        app.push_arrived.notify_one();
    }
    let status = if is_ping { StatusCode::OK } else { StatusCode::ACCEPTED };
    let answer = json!({
        "accepted": kept.added,
        "coalesced": kept.coalesced,
        "repeated": kept.repeated,
        "unwanted": unwanted,
        "refused": refused,
    });
    Ok((status, Json(answer)).into_response())
}

/// Rules of which all is due, because it is not known yet which images their files name.
#[derive(Default)]
struct WholeRules {
    rules: BTreeSet<PushRule>,
    /// Pushes that only they may want.
    pushes: u64,
}

impl WholeRules {
    /// Adds rules. Returns whether there were any.
    fn add<'a>(&mut self, rules: impl Iterator<Item = &'a PushRule>) -> bool {
        let mut has_any = false;
        for rule in rules {
            has_any = true;
            if !self.rules.contains(rule) {
                self.rules.insert(rule.clone());
            }
        }
        has_any
    }
}

async fn store_pushes(
    app: &AppState,
    name: &str,
    pushes: Vec<ReceivedPush>,
    whole: WholeRules,
) -> Result<AddedPushes, ErrorResponse> {
    let store = async {
        let mut kept = AddedPushes::default();
        if !pushes.is_empty() {
            kept = app.store().add_pushes(pushes).await?;
        }
        if !whole.rules.is_empty() {
            app.store().add_whole_runs(whole.rules.into_iter().collect()).await?;
            kept.added += whole.pushes;
        }
        Ok::<_, Error>(kept)
    };
    let why = match tokio::time::timeout(STORE_TIMEOUT, store).await {
        Ok(Ok(kept)) => return Ok(kept),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the store did not respond within {} s", STORE_TIMEOUT.as_secs()),
    };
    push_metrics::count("store", 1);
    log_throttle::warn(&format!("hook {name}: store"), &format!("hook {name}: nothing was kept: {why}"));
    let message = "the notification was not kept: the store is not available";
    Err(ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, "unreachable", message).hint("send it again"))
}

/// Returns the permits for reading a body. One that does not say its size may have the largest.
fn body_permits(headers: &HeaderMap) -> u32 {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let bytes = length.unwrap_or(MAX_HOOK_BYTES).min(MAX_HOOK_BYTES);
    u32::try_from(bytes.div_ceil(PERMIT_BYTES).max(1)).unwrap_or(u32::MAX)
}

/// Answers a proved sender whose payload cannot be read: with an error status it would send it again.
fn unreadable(error: &ErrorResponse) -> Response {
    let answer = json!({
        "accepted": 0,
        "coalesced": 0,
        "repeated": 0,
        "unwanted": 0,
        "refused": 1,
        "error": error.details(),
    });
    (StatusCode::ACCEPTED, Json(answer)).into_response()
}

fn read_timed_out(name: &str, limit: Duration) -> ErrorResponse {
    push_metrics::count("timed_out", 1);
    let why = format!("the body did not arrive within {} s", limit.as_secs());
    log_throttle::warn(&format!("hook {name}: timed out"), &format!("hook {name}: {why}"));
    ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, "timed_out", why).hint("send it again")
}

fn unproved(name: &str, hook: &ActiveHook) -> ErrorResponse {
    push_metrics::count("secret", 1);
    let wanted = hook.config.auth.describe();
    let line = format!("hook {name}: refused a request without its secret, or with another one (expected: {wanted})");
    log_throttle::warn(&format!("hook {name}: secret"), &line);
    ErrorResponse::new(StatusCode::UNAUTHORIZED, "denied", "the secret is missing or wrong")
}

fn malformed(name: &str, hook: &ActiveHook, error: PayloadError) -> ErrorResponse {
    push_metrics::count("malformed", 1);
    let kind = hook.config.kind;
    let (why, hint) = match error {
        PayloadError::Malformed(why) => (why, "compare the `kind` of the hook with its sender"),
        PayloadError::Form => ("it is a form", "choose the content type application/json at the sender"),
    };
    log_throttle::warn(&format!("hook {name}: malformed"), &format!("hook {name}: refused a payload: {why} ({hint})"));
    ErrorResponse::bad_request(format!("this is not a notification of the kind {kind}: {why}")).hint(hint)
}
