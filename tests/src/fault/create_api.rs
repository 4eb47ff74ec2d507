//! APIs that create repositories and projects: ECR's, whose signature is verified by hand and which hands out passwords,
//! too, and Harbor's.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use ring::hmac;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::auth::{self, basic};
use super::incoming_body::{BodyError, IncomingBody};
use super::request_log::RecordedRequest;
use super::response::FaultResponse;
use super::state::Inner;

/// Returns the target of an action of ECR (`ecr`) or ECR Public (`ecr-public`).
fn target(service: &str, action: &str) -> String {
    let api = if service == "ecr" { "AmazonEC2ContainerRegistry_V20150921" } else { "SpencerFrontendService" };
    format!("{api}.{action}")
}

/// API that creates repositories or projects.
#[derive(Clone, Copy, Debug)]
pub enum CreateApi {
    /// `CreateRepository` of ECR or ECR Public.
    Ecr {
        /// Name of the service in signatures: `ecr` or `ecr-public`.
        service: &'static str,
        /// Account number, which `registryId` must match.
        account: &'static str,
        /// Region of the signature.
        region: &'static str,
        /// Access key id and secret key.
        key: (&'static str, &'static str),
        /// Required session token.
        session: &'static str,
    },
    /// `POST /api/v2.0/projects` of Harbor.
    Harbor {
        /// Authorized user.
        user: &'static str,
        /// Password of the user.
        password: &'static str,
    },
}

/// Reports whether a POST to this path creates something.
pub(super) fn is_path(path: &str) -> bool {
    matches!(path, "/" | "/api/v2.0/projects")
}

pub(super) async fn create(
    inner: &Arc<Inner>,
    record: &RecordedRequest,
    body: &mut IncomingBody,
) -> Result<FaultResponse, BodyError> {
    let body = body.all(64 * 1024).await?.unwrap_or_default();
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok(match inner.options.quirks.create_api {
        Some(CreateApi::Ecr { service, account, .. }) => match check(inner, record, &body) {
            Err((code, message)) => ecr_error(code, &message),
            Ok(()) if record.header("x-amz-target") == Some(target(service, "GetAuthorizationToken").as_str()) => {
                password(inner, &json, service)
            }
            Ok(()) if service == "ecr" && json["registryId"] != account => {
                ecr_error("InvalidParameterException", "another registryId")
            }
            Ok(()) => repository(inner, account, json["repositoryName"].as_str().unwrap_or_default()),
        },
        Some(CreateApi::Harbor { user, password }) => {
            if record.header("authorization") != Some(basic(user, password).as_str()) {
                return Ok(FaultResponse::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "unauthorized"));
            }
            project(inner, json["project_name"].as_str().unwrap_or_default())
        }
        None => FaultResponse::not_found("NOT_FOUND"),
    })
}

/// Answers `GetAuthorizationToken` with the password that is valid now.
fn password(inner: &Inner, body: &Value, service: &str) -> FaultResponse {
    if *body != json!({}) {
        return ecr_error("InvalidParameterException", "registryIds is deprecated");
    }
    let Some((user, password)) = auth::current_basic(inner) else {
        return ecr_error("ServerException", "no password is in use");
    };
    let lifetime = inner.options.quirks.password_seconds.unwrap_or(12 * 3600);
    let ends = Timestamp::now().as_duration().as_secs_f64() + lifetime as f64;
    let token = STANDARD.encode(format!("{user}:{password}"));
    let data = match service {
        "ecr" => json!([{"authorizationToken": token, "expiresAt": ends, "proxyEndpoint": inner.url()}]),
        _ => json!({"authorizationToken": token, "expiresAt": ends}),
    };
    FaultResponse::json(StatusCode::OK, &json!({"authorizationData": data}))
}

fn repository(inner: &Inner, account: &str, name: &str) -> FaultResponse {
    let mut store = inner.store();
    if name.is_empty() || name.starts_with('/') {
        return ecr_error("InvalidParameterException", "repositoryName");
    }
    if store.repositories.contains_key(name) {
        let message = format!("The repository with name '{name}' already exists in the registry with id '{account}'");
        return ecr_error("RepositoryAlreadyExistsException", &message);
    }
    store.repository(name);
    FaultResponse::json(StatusCode::OK, &json!({"repository": {"registryId": account, "repositoryName": name}}))
}

fn project(inner: &Inner, name: &str) -> FaultResponse {
    let mut store = inner.store();
    if name.is_empty() || name.contains('/') {
        return FaultResponse::error(StatusCode::BAD_REQUEST, "BAD_REQUEST", "project_name");
    }
    if store.has_project(name) {
        return FaultResponse::error(StatusCode::CONFLICT, "CONFLICT", "The project named so already exists");
    }
    store.projects.insert(name.to_owned());
    FaultResponse::new(StatusCode::CREATED)
}

fn ecr_error(code: &str, message: &str) -> FaultResponse {
    FaultResponse::json(StatusCode::BAD_REQUEST, &json!({"__type": code, "message": message}))
        .header("content-type", "application/x-amz-json-1.1")
}

/// Checks the form and the signature (Signature Version 4) of a request to ECR.
fn check(inner: &Inner, record: &RecordedRequest, body: &[u8]) -> Result<(), (&'static str, String)> {
    let Some(CreateApi::Ecr { service, region, key: (id, secret), session, .. }) = inner.options.quirks.create_api
    else {
        return Err(("InternalFailure", String::new()));
    };
    let header = |name: &str| record.header(name).unwrap_or_default();
    let targets = ["CreateRepository", "GetAuthorizationToken"].map(|action| target(service, action));
    if !targets.iter().any(|target| target == header("x-amz-target")) {
        return Err(("UnknownOperationException", header("x-amz-target").to_owned()));
    }
    if header("content-type") != "application/x-amz-json-1.1" {
        return Err(("SerializationException", header("content-type").to_owned()));
    }
    if header("x-amz-security-token") != session {
        return Err((
            "UnrecognizedClientException",
            "The security token included in the request is invalid".to_owned(),
        ));
    }
    let wrong = |what: &str| ("InvalidSignatureException", what.to_owned());
    let date = header("x-amz-date");
    let when = Timestamp::strptime("%Y%m%dT%H%M%S%z", date.replace('Z', "+0000")).map_err(|_| wrong("x-amz-date"))?;
    if Timestamp::now().duration_since(when).abs() > SignedDuration::from_mins(5) {
        return Err(wrong("Signature expired"));
    }
    let given = header("authorization").strip_prefix("AWS4-HMAC-SHA256 ").ok_or(wrong("no AWS4-HMAC-SHA256"))?;
    let part = |name: &str| {
        let found = given.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        found.ok_or(wrong(name))
    };
    let (credential, names, signature) = (part("Credential")?, part("SignedHeaders")?, part("Signature")?);
    let day = &date[..8];
    let scope = format!("{day}/{region}/{service}/aws4_request");
    if credential != format!("{id}/{scope}") {
        return Err(("UnrecognizedClientException", credential.to_owned()));
    }
    for needed in ["host", "x-amz-date", "x-amz-target", "x-amz-security-token"] {
        if !names.split(';').any(|name| name == needed) {
            return Err(wrong(needed));
        }
    }
    let host = format!("api.{service}.{region}.amazonaws.com");
    let mut canonical = "POST\n/\n\n".to_owned();
    for name in names.split(';') {
        // HTTP/2 has no `Host`.
        let value = if name == "host" { record.header(name).unwrap_or(&host) } else { header(name) };
        canonical.push_str(&format!("{name}:{value}\n"));
    }
    canonical.push_str(&format!("\n{names}\n{}", hex::encode(Sha256::digest(body))));
    let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
    let mac =
        |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec();
    let first = format!("AWS4{secret}").into_bytes();
    let key = [day, region, service, "aws4_request"].iter().fold(first, |key, part| mac(&key, part));
    let right = hex::encode(mac(&key, &format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}")));
    if right == signature { Ok(()) } else { Err(wrong("The request signature does not match")) }
}
