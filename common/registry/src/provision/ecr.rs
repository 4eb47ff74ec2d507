//! Creates repositories of Amazon's ECR: `CreateRepository` of its own API (Amazon ECR API reference; JSON 1.1,
//! Signature Version 4), which requires AWS keys and not the password for pushing.

use std::sync::Arc;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderName, HeaderValue, Method, header};
use jiff::Timestamp;
use serde_json::json;

use super::super::context::RequestKind;
use super::super::credentials::Credential;
use super::super::request_body::RequestBody;
use super::super::transport::RequestSpec;
use super::super::{Access, Registry, RegistrySettings, Repository, is_loopback, ssrf, vendor_api};
use super::RefusalKind;
use super::aws_keys::{self, AwsKeys};
use super::sigv4::{self, SignableRequest};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::vendor::EcrHost;

/// Content type of requests.
const JSON: &str = "application/x-amz-json-1.1";

/// Classifies a refused push. For a missing repository ECR was also seen to drop connections.
pub(super) fn classify_refusal(error: &Error) -> RefusalKind {
    match (error.code(), error.kind()) {
        (Some("NAME_UNKNOWN" | "RepositoryNotFoundException"), _) => RefusalKind::Missing,
        (None, ErrorKind::Unreachable) if !error.is_connect_error() => RefusalKind::MaybeMissing,
        _ => RefusalKind::Unrelated,
    }
}

pub(super) async fn create_repository(repository: &Repository, host: &EcrHost, operation: &str) -> Result<()> {
    let name = host.repository_name(repository.name.as_str());
    let keys = aws_keys::find(repository.client.0.credentials.aws()).await;
    let keys = keys
        .map_err(|why| Error::new(ErrorKind::Local, operation, why))?
        .ok_or_else(|| no_keys(host, name, operation))?;
    let api = ecr_api(repository, host, &keys, operation)?;
    let body = match &host.account {
        Some(account) => json!({"repositoryName": name, "registryId": account}),
        None => json!({"repositoryName": name}),
    };
    api.with_retries(|| send_create_request(&api, host, &keys, body.to_string(), operation)).await
}

fn no_keys(host: &EcrHost, name: &str, operation: &str) -> Error {
    // Short, since reports truncate errors.
    let detail = "no AWS keys were found, and a helper's password only allows pushing";
    let command = if host.account.is_some() { "ecr" } else { "ecr-public" };
    Error::new(ErrorKind::Denied, operation, detail).with_hint(format!(
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; or create it manually: aws {command} \
         create-repository --repository-name {name} --region {}",
        host.region
    ))
}

/// Returns a handle to ECR's own API, with the registry's connection settings.
fn ecr_api(repository: &Repository, host: &EcrHost, keys: &AwsKeys, operation: &str) -> Result<Repository> {
    let settings = &repository.registry.settings;
    let base = settings.api.clone().unwrap_or_else(|| host.api());
    if base.scheme() == "http" && !base.host_str().is_some_and(is_loopback) {
        let detail = format!("a signed request would be sent over plain HTTP to {}", ssrf::origin(&base));
        let hint = format!("write `api:` of {} with https://", repository.registry.name);
        return Err(Error::new(ErrorKind::Insecure, operation, detail).with_hint(hint));
    }
    let state = &repository.registry.provision;
    let registry = match state.ecr.get() {
        Some(registry) => registry.clone(),
        None => {
            let name = vendor_api::api_host_name(&base)?;
            let own = RegistrySettings {
                endpoint: None,
                mirrors: Vec::new(),
                identity: None,
                // Identifies the rate limit's account only. Requests are signed, and this is never sent.
                credentials: vec![Credential::Basic { username: keys.id.clone(), password: keys.secret.clone() }],
                pull_credentials: Vec::new(),
                ..settings.clone()
            };
            let pool = repository.client.build_credential_pool(&name, &own);
            let found: Arc<Registry> = Arc::new(repository.client.build_registry_at(&name, base, own, pool, None)?);
            state.ecr.get_or_init(|| found).clone()
        }
    };
    Ok(Repository { registry, access: Access::Catalog, ..repository.clone() })
}

async fn send_create_request(
    api: &Repository,
    host: &EcrHost,
    keys: &AwsKeys,
    body: String,
    operation: &str,
) -> Result<()> {
    let base = &api.registry.base;
    let authority = base.host_str().unwrap_or_default();
    let authority = base.port().map_or_else(|| authority.to_owned(), |port| format!("{authority}:{port}"));
    let (service, target) = match host.account {
        Some(_) => ("ecr", "AmazonEC2ContainerRegistry_V20150921.CreateRepository"),
        None => ("ecr-public", "SpencerFrontendService.CreateRepository"),
    };
    let date = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut headers = vec![
        ("content-type", JSON),
        ("host", authority.as_str()),
        ("x-amz-date", date.as_str()),
        ("x-amz-target", target),
    ];
    if let Some(session) = &keys.session {
        headers.insert(3, ("x-amz-security-token", session.expose()));
    }
    let request = SignableRequest { path: base.path(), headers: &headers, body: body.as_bytes() };
    let signature = sigv4::authorization(&request, keys, &date, &host.region, service);
    let mut outgoing = RequestSpec::new(Method::POST, base.clone(), operation)
        .header(CONTENT_TYPE, JSON)
        .header(HeaderName::from_static("x-amz-date"), &date)
        .header(HeaderName::from_static("x-amz-target"), target)
        .body(RequestBody::Bytes(body.into()))
        .kind(RequestKind::Request);
    let secret = |text: &str| {
        let mut value = HeaderValue::from_str(text).map_err(|_| {
            Error::new(ErrorKind::Invalid, operation, "an AWS key holds characters that no header can carry")
        })?;
        value.set_sensitive(true);
        Ok::<_, Error>(value)
    };
    outgoing.headers.insert(header::AUTHORIZATION, secret(&signature)?);
    if let Some(session) = &keys.session {
        outgoing.headers.insert(HeaderName::from_static("x-amz-security-token"), secret(session.expose())?);
    }
    let response = api.send_as(outgoing, 0, None).await?;
    if response.status().is_success() {
        response.drain().await;
        return Ok(());
    }
    let kind = response.class();
    let error = response.into_error(operation).await.with_registry(&api.registry.name);
    let code = error.code().map(|code| code.rsplit('#').next().unwrap_or(code).to_owned()).unwrap_or_default();
    let error = match code.as_str() {
        // Created by another client in the meantime.
        "RepositoryAlreadyExistsException" => return Ok(()),
        "ThrottlingException" | "TooManyRequestsException" => error.with_kind(ErrorKind::RateLimited),
        "ServerException" | "InternalFailure" | "ServiceUnavailable" => error.with_kind(ErrorKind::ServerError),
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" => error.with_kind(ErrorKind::Denied).with_hint(
            format!("allow `{service}:CreateRepository` for these AWS keys, or create the repository manually"),
        ),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "InvalidSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationToken" => error.with_kind(ErrorKind::Denied).with_hint(
            "check the AWS keys (AWS_ACCESS_KEY_ID and related variables, or the profile in ~/.aws/credentials), and \
             this machine's clock",
        ),
        _ => error,
    };
    Err(api.observe_error(kind, error).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(kind: ErrorKind, code: Option<&str>) -> Error {
        Error::new(kind, "writing", "no").with_status(404, code.map(str::to_owned))
    }

    #[test]
    fn a_missing_repository_is_told_from_a_missing_blob_and_from_no_connection() {
        assert_eq!(classify_refusal(&answered(ErrorKind::NotFound, Some("NAME_UNKNOWN"))), RefusalKind::Missing);
        assert_eq!(classify_refusal(&answered(ErrorKind::NotFound, Some("BLOB_UNKNOWN"))), RefusalKind::Unrelated);
        assert_eq!(classify_refusal(&answered(ErrorKind::Denied, Some("DENIED"))), RefusalKind::Unrelated);
        let dropped = || Error::new(ErrorKind::Unreachable, "writing", "reset by peer");
        assert_eq!(classify_refusal(&dropped()), RefusalKind::MaybeMissing);
        assert_eq!(classify_refusal(&dropped().mark_connect_error()), RefusalKind::Unrelated);
    }
}
