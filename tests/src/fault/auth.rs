//! Credentials, challenges, and the token service.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::answer::Answer;
use super::options::{Auth, Bearer, Refresh, TokenField};
use super::record::Record;
use super::route::{Kind, parameter, parameters};
use super::state::{Inner, now};
use super::upload_body::{Broken, Incoming};

/// What a token says. It is not signed: the registry trusts whoever can write one.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    service: String,
    /// Milliseconds since 1970.
    expires: u64,
    number: u64,
    /// `repository:name:pull,push`, as it was granted.
    scopes: Vec<String>,
}

/// The answer to a request that may not be; none if it may.
pub(super) fn check(inner: &Inner, record: &Record) -> Option<Answer> {
    let given = record.header("authorization").unwrap_or_default();
    match &inner.options.auth {
        Auth::None => None,
        Auth::Basic(user, password) if given == basic(user, password) => None,
        Auth::AnyUser if given.starts_with("Basic ") => None,
        Auth::Basic(..) | Auth::AnyUser => Some(unauthorized("Basic realm=\"fault\"")),
        Auth::Bearer(bearer) => {
            let wanted = wanted(record);
            if allows(inner, bearer, given, &wanted) {
                None
            } else {
                Some(unauthorized(&challenge(inner, bearer, &wanted)))
            }
        }
    }
}

fn unauthorized(challenge: &str) -> Answer {
    Answer::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required")
        .header(header::WWW_AUTHENTICATE, challenge)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The scopes that a request needs, as (type:name, actions).
fn wanted(record: &Record) -> Vec<(String, Vec<&'static str>)> {
    let actions = match record.kind {
        Kind::Ping | Kind::Token | Kind::Other => return Vec::new(),
        Kind::Catalog => return vec![("registry:catalog".to_owned(), vec!["*"])],
        Kind::ManifestDelete | Kind::BlobDelete | Kind::UploadDelete => vec!["delete"],
        Kind::ManifestPut | Kind::UploadStart | Kind::UploadMount | Kind::UploadPatch | Kind::UploadPut => {
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
    let realm = bearer.realm.clone().unwrap_or_else(|| format!("{}/token", inner.url()));
    let scopes: Vec<_> = wanted.iter().map(|(name, actions)| format!("{name}:{}", actions.join(","))).collect();
    let scope = if scopes.is_empty() { String::new() } else { format!(",scope=\"{}\"", scopes.join(" ")) };
    format!("Bearer realm=\"{realm}\",service=\"{}\"{scope}", service(inner, bearer))
}

fn allows(inner: &Inner, bearer: &Bearer, given: &str, wanted: &[(String, Vec<&str>)]) -> bool {
    let claims = given.strip_prefix("Bearer ").and_then(|token| URL_SAFE_NO_PAD.decode(token).ok());
    let Some(claims) = claims.and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok()) else {
        return false;
    };
    // Numbers tell which tokens came first only where the token service is this registry's own.
    let revoked = bearer.realm.is_none() && claims.number < inner.tokens_since();
    let granted = |name: &str, action: &str| {
        claims.scopes.iter().any(|scope| {
            let Some((granted, actions)) = scope.rsplit_once(':') else {
                return false;
            };
            granted == name && actions.split(',').any(|granted| granted == action)
        })
    };
    claims.service == service(inner, bearer)
        && claims.expires > now()
        && !revoked
        && wanted.iter().all(|(name, actions)| actions.iter().all(|action| granted(name, action)))
}

/// The token service: GET with Basic credentials or without, POST with an identity token or a password.
pub(super) async fn token(inner: &Arc<Inner>, record: &Record, body: &mut Incoming) -> Result<Answer, Broken> {
    let form = body.all(64 * 1024).await?.unwrap_or_default();
    let Auth::Bearer(bearer) = &inner.options.auth else {
        return Ok(Answer::not_found("NOT_FOUND"));
    };
    let form = String::from_utf8_lossy(&form).into_owned();
    let given = record.header("authorization").unwrap_or_default();
    let known = |user: &str, password: &str| {
        bearer.user.as_ref().is_some_and(|(name, secret)| name == user && secret == password)
    };
    let post = record.method == "POST";
    let trusted = if post {
        let field = |name| parameter(&form, name).unwrap_or_default();
        match (&bearer.refresh, field("grant_type").as_str()) {
            (Refresh::Refuse(status), _) => return Ok(Answer::new(*status)),
            (Refresh::Accept(identity), "refresh_token") => field("refresh_token") == *identity,
            (Refresh::Accept(_), _) => known(&field("username"), &field("password")),
        }
    } else {
        bearer.user.as_ref().is_some_and(|(user, password)| given == basic(user, password))
    };
    let anonymous = !post && given.is_empty() && bearer.anonymous_pull;
    if !trusted && !anonymous {
        return Ok(Answer::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "wrong credentials"));
    }
    let source = if post { &form } else { &record.query };
    let asked: Vec<String> =
        parameters(source, "scope").flat_map(|scope| scope.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    let scopes = if trusted { asked } else { asked.iter().filter_map(|scope| only_pull(scope)).collect() };
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
    Ok(Answer::json(StatusCode::OK, &answer))
}

/// What an anonymous client is granted of a scope.
fn only_pull(scope: &str) -> Option<String> {
    let (name, actions) = scope.rsplit_once(':')?;
    actions.split(',').any(|action| action == "pull").then(|| format!("{name}:pull"))
}
