//! Credentials, challenges and the token service.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::incoming_body::{BodyError, IncomingBody};
use super::options::{AuthMode, Bearer, RefreshPolicy, TokenField};
use super::request_log::RecordedRequest;
use super::request_type::{RequestType, parameter, parameters};
use super::response::FaultResponse;
use super::state::{Inner, now};

/// Content of a token. Tokens are not signed: the registry trusts whatever decodes.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    service: String,
    /// Milliseconds since 1970.
    expires: u64,
    number: u64,
    /// Granted scopes, `repository:name:pull,push`.
    scopes: Vec<String>,
}

/// Checks the credentials of a request. Returns the error response, or `None` if it is allowed.
pub(super) fn check(inner: &Inner, record: &RecordedRequest) -> Option<FaultResponse> {
    let given = record.header("authorization").unwrap_or_default();
    match &inner.options.auth {
        AuthMode::None => None,
        AuthMode::Basic(user, password) => {
            let is_expired = inner.first_valid_token() > 0;
            let now = inner.options.quirks.next_password.filter(|_| is_expired).unwrap_or(password);
            match given {
                given if given == basic(user, now) => None,
                given if given == basic(user, password) => Some(expired(inner, || "Basic realm=\"fault\"".to_owned())),
                _ => Some(unauthorized(inner, record, "Basic realm=\"fault\"")),
            }
        }
        AuthMode::AnyUser if given.starts_with("Basic ") => None,
        AuthMode::AnyUser => Some(unauthorized(inner, record, "Basic realm=\"fault\"")),
        AuthMode::Bearer(bearer) => {
            let wanted = required_scopes(record);
            match check_token(inner, bearer, given, &wanted) {
                TokenCheck::Allowed => None,
                TokenCheck::Expired => Some(expired(inner, || challenge(inner, bearer, &wanted))),
                TokenCheck::Refused => Some(unauthorized(inner, record, &challenge(inner, bearer, &wanted))),
            }
        }
    }
}

/// Result of checking a token.
enum TokenCheck {
    Allowed,
    Expired,
    Refused,
}

fn unauthorized(inner: &Inner, record: &RecordedRequest, challenge: &str) -> FaultResponse {
    if record.kind != RequestType::Ping {
        inner.count_wasted_request();
    }
    let quirks = &inner.options.quirks;
    let answer = FaultResponse::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
    if quirks.bare_401 && record.kind != RequestType::Ping {
        return answer;
    }
    let more = quirks.extra_challenges.map(|more| format!("{more}, ")).unwrap_or_default();
    answer.header(header::WWW_AUTHENTICATE, format!("{more}{challenge}"))
}

/// Builds the response for expired credentials.
fn expired(inner: &Inner, challenge: impl Fn() -> String) -> FaultResponse {
    inner.count_wasted_request();
    match inner.options.quirks.expired_response {
        Some((status, message)) => {
            FaultResponse::error(StatusCode::from_u16(status).expect("a status"), "DENIED", message)
        }
        None if inner.options.quirks.bare_401 => FaultResponse::new(StatusCode::UNAUTHORIZED),
        None => FaultResponse::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "it holds no longer")
            .header(header::WWW_AUTHENTICATE, challenge()),
    }
}

pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Returns the scopes that a request needs, as (type:name, actions).
fn required_scopes(record: &RecordedRequest) -> Vec<(String, Vec<&'static str>)> {
    let actions = match record.kind {
        RequestType::Ping
        | RequestType::Token
        | RequestType::ApiRepositories
        | RequestType::ApiTags
        | RequestType::ApiLogin
        | RequestType::ApiCreate
        | RequestType::Exchange
        | RequestType::Other => {
            return Vec::new();
        }
        RequestType::Catalog => return vec![("registry:catalog".to_owned(), vec!["*"])],
        RequestType::ManifestDelete | RequestType::BlobDelete | RequestType::UploadDelete => vec!["delete"],
        RequestType::ManifestPut
        | RequestType::UploadStart
        | RequestType::UploadMount
        | RequestType::UploadPatch
        | RequestType::UploadPut => {
            vec!["pull", "push"]
        }
        _ => vec!["pull"],
    };
    let repository = record.repository.clone().unwrap_or_default();
    let mut wanted = vec![(format!("repository:{repository}"), actions)];
    if let Some(from) = record.parameter("from").filter(|from| *from != repository) {
        wanted.push((format!("repository:{from}"), vec!["pull"]));
    }
    wanted
}

fn service(inner: &Inner, bearer: &Bearer) -> String {
    bearer.service.clone().unwrap_or_else(|| inner.address.to_string())
}

fn challenge(inner: &Inner, bearer: &Bearer, wanted: &[(String, Vec<&str>)]) -> String {
    let own = || inner.options.quirks.realm.map_or_else(|| format!("{}/token", inner.url()), str::to_owned);
    let realm = bearer.realm.clone().unwrap_or_else(own);
    let scopes: Vec<_> = wanted.iter().map(|(name, actions)| format!("{name}:{}", actions.join(","))).collect();
    let scope = if scopes.is_empty() { String::new() } else { format!(",scope=\"{}\"", scopes.join(" ")) };
    format!("Bearer realm=\"{realm}\",service=\"{}\"{scope}", service(inner, bearer))
}

fn check_token(inner: &Inner, bearer: &Bearer, given: &str, wanted: &[(String, Vec<&str>)]) -> TokenCheck {
    let claims = given.strip_prefix("Bearer ").and_then(|token| URL_SAFE_NO_PAD.decode(token).ok());
    let Some(claims) = claims.and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok()) else {
        return TokenCheck::Refused;
    };
    // Numbers order tokens only if this registry issues them itself.
    let revoked = bearer.realm.is_none() && claims.number < inner.first_valid_token();
    let granted = |name: &str, action: &str| {
        claims.scopes.iter().any(|scope| {
            let Some((granted, actions)) = scope.rsplit_once(':') else {
                return false;
            };
            granted == name && actions.split(',').any(|granted| granted == action)
        })
    };
    let suffices = wanted.iter().all(|(name, actions)| actions.iter().all(|action| granted(name, action)));
    match claims.service == service(inner, bearer) && suffices {
        true if claims.expires <= now() || revoked => TokenCheck::Expired,
        true => TokenCheck::Allowed,
        false => TokenCheck::Refused,
    }
}

/// Token service: GET with or without Basic credentials, POST with an identity token or a password.
pub(super) async fn token(
    inner: &Arc<Inner>,
    record: &RecordedRequest,
    body: &mut IncomingBody,
) -> Result<FaultResponse, BodyError> {
    let form = body.all(64 * 1024).await?.unwrap_or_default();
    let AuthMode::Bearer(bearer) = &inner.options.auth else {
        return Ok(FaultResponse::not_found("NOT_FOUND"));
    };
    let form = String::from_utf8_lossy(&form).into_owned();
    let given = record.header("authorization").unwrap_or_default();
    // Login credentials expire together with tokens, if there is a next password.
    let next = inner.options.quirks.next_password.filter(|_| inner.first_valid_token() > 0);
    let known = |user: &str, password: &str| {
        bearer.user.as_ref().is_some_and(|(name, secret)| name == user && next.unwrap_or(secret) == password)
    };
    let post = record.method == "POST";
    let trusted = if post {
        let field = |name| parameter(&form, name).unwrap_or_default();
        match (&bearer.refresh, field("grant_type").as_str()) {
            (RefreshPolicy::Refuse(status), _) => return Ok(FaultResponse::new(*status)),
            (RefreshPolicy::Accept(identity), "refresh_token") => field("refresh_token") == next.unwrap_or(identity),
            (RefreshPolicy::Accept(_), _) => known(&field("username"), &field("password")),
        }
    } else {
        bearer.user.as_ref().is_some_and(|(user, password)| given == basic(user, next.unwrap_or(password)))
    };
    let anonymous = !post && given.is_empty() && bearer.anonymous_pull;
    if !trusted && !anonymous {
        return Ok(FaultResponse::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "wrong credentials"));
    }
    let source = if post { &form } else { &record.query };
    let asked: Vec<String> =
        parameters(source, "scope").flat_map(|scope| scope.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    let quirks = &inner.options.quirks;
    if let Some(status) = quirks.multi_scope_status.filter(|_| asked.len() > 1) {
        let status = StatusCode::from_u16(status).expect("a status");
        return Ok(FaultResponse::error(status, "DENIED", "one scope at a time"));
    }
    let deletes = asked.iter().any(|scope| scope.rsplit(':').next().is_some_and(|a| a.contains("delete")));
    let offline = parameter(source, "offline_token").is_some();
    if quirks.no_delete_tokens && deletes || quirks.no_offline_token && offline {
        return Ok(FaultResponse::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "no token for that"));
    }
    let mut scopes: Vec<String> =
        if trusted { asked } else { asked.iter().filter_map(|scope| only_pull(scope)).collect() };
    if quirks.needs_projects {
        // A missing project grants nothing, until another token is requested.
        scopes.retain(|scope| scope.split(':').nth(1).is_none_or(|name| inner.store().has_project(name)));
    }
    let claims = Claims {
        service: parameter(source, "service").unwrap_or_default(),
        expires: now() + bearer.ttl.as_millis() as u64,
        number: inner.next(),
        scopes,
    };
    let token = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).expect("claims are JSON"));
    let mut answer = json!({});
    if bearer.say_expiry {
        answer["expires_in"] = json!(bearer.ttl.as_secs());
    }
    if bearer.field != TokenField::AccessToken {
        answer["token"] = json!(token);
    }
    if bearer.field != TokenField::Token {
        answer["access_token"] = json!(token);
    }
    Ok(FaultResponse::json(StatusCode::OK, &answer))
}

/// Returns the user and the password that are valid now.
pub(super) fn current_basic(inner: &Inner) -> Option<(&str, &str)> {
    let (user, password) = match &inner.options.auth {
        AuthMode::Basic(user, password) => (user, password),
        AuthMode::Bearer(Bearer { user: Some((user, password)), .. }) => (user, password),
        _ => return None,
    };
    let next = inner.options.quirks.next_password.filter(|_| inner.first_valid_token() > 0);
    Some((user, next.unwrap_or(password)))
}

/// Exchanges an access token of the provider for a refresh token.
pub(super) async fn exchange(inner: &Arc<Inner>, body: &mut IncomingBody) -> Result<FaultResponse, BodyError> {
    let form = body.all(64 * 1024).await?.unwrap_or_default();
    let form = String::from_utf8_lossy(&form).into_owned();
    let field = |name| parameter(&form, name).unwrap_or_default();
    let (AuthMode::Bearer(bearer), Some(wanted)) = (&inner.options.auth, inner.options.quirks.exchanged_token) else {
        return Ok(FaultResponse::not_found("NOT_FOUND"));
    };
    let RefreshPolicy::Accept(identity) = &bearer.refresh else { return Ok(FaultResponse::not_found("NOT_FOUND")) };
    if field("grant_type") != "access_token" || field("service") != service(inner, bearer) {
        return Ok(FaultResponse::error(StatusCode::BAD_REQUEST, "BAD_REQUEST", "grant_type or service is wrong"));
    }
    if field("access_token") != wanted {
        let message = "CONNECTIVITY_REFRESH_TOKEN_ERROR: the access token was not issued for this registry";
        return Ok(FaultResponse::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message));
    }
    let next = inner.options.quirks.next_password.filter(|_| inner.first_valid_token() > 0);
    Ok(FaultResponse::json(StatusCode::OK, &json!({"refresh_token": next.unwrap_or(identity)})))
}

/// Returns what an anonymous client is granted of a scope.
fn only_pull(scope: &str) -> Option<String> {
    let (name, actions) = scope.rsplit_once(':')?;
    actions.split(',').any(|action| action == "pull").then(|| format!("{name}:pull"))
}
