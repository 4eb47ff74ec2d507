//! Creates repositories of Amazon's ECR: `CreateRepository` of its own API (Amazon ECR API reference; JSON 1.1,
//! Signature Version 4), which requires AWS keys and not the password for pushing.

use std::sync::Arc;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderName, HeaderValue, Method, header};
use jiff::Timestamp;
use serde_json::json;

use super::super::context::Counted;
use super::super::credentials::Credential;
use super::super::transport::{Outgoing, Payload};
use super::super::{Access, Registry, RegistrySettings, Repository, api, hop, is_loopback};
use super::Says;
use super::aws_keys::{self, Keys};
use super::sigv4::{self, Signed};
use crate::error::{Class, Error, Result};
use crate::vendor::EcrHost;

/// Content type of requests.
const JSON: &str = "application/x-amz-json-1.1";

/// Classifies a refused push. For a missing repository ECR was also seen to drop connections.
pub(super) fn hears(error: &Error) -> Says {
    match (error.code(), error.class()) {
        (Some("NAME_UNKNOWN" | "RepositoryNotFoundException"), _) => Says::Missing,
        (None, Class::Unreachable) if !error.is_unconnected() => Says::Perhaps,
        _ => Says::Nothing,
    }
}

pub(super) async fn make(repository: &Repository, host: &EcrHost, tried: &str) -> Result<()> {
    let name = host.repository(repository.name.as_str());
    let keys = aws_keys::find(repository.client.0.credentials.aws()).await;
    let keys = keys.map_err(|why| Error::new(Class::Local, tried, why))?.ok_or_else(|| no_keys(host, name, tried))?;
    let asked = home(repository, host, &keys, tried)?;
    let body = match &host.account {
        Some(account) => json!({"repositoryName": name, "registryId": account}),
        None => json!({"repositoryName": name}),
    };
    asked.with_retries(|| ask(&asked, host, &keys, body.to_string(), tried)).await
}

fn no_keys(host: &EcrHost, name: &str, tried: &str) -> Error {
    // Short, since reports truncate errors.
    let detail = "no keys of AWS were found, and a helper's password is good for pushing alone";
    let command = if host.account.is_some() { "ecr" } else { "ecr-public" };
    Error::new(Class::Denied, tried, detail).hint(format!(
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; or make it by hand: aws {command} \
         create-repository --repository-name {name} --region {}",
        host.region
    ))
}

/// Returns a handle to ECR's own API, with the registry's connection settings.
fn home(repository: &Repository, host: &EcrHost, keys: &Keys, tried: &str) -> Result<Repository> {
    let settings = &repository.registry.settings;
    let base = settings.api.clone().unwrap_or_else(|| host.api());
    if base.scheme() == "http" && !base.host_str().is_some_and(is_loopback) {
        let detail = format!("a signed request would go in plain HTTP to {}", hop::origin(&base));
        let hint = format!("write `api:` of {} with https://", repository.registry.name);
        return Err(Error::new(Class::Insecure, tried, detail).hint(hint));
    }
    let making = &repository.registry.making;
    let registry = match making.ecr.get() {
        Some(registry) => registry.clone(),
        None => {
            let name = api::host_of(&base)?;
            let own = RegistrySettings {
                endpoint: None,
                mirrors: Vec::new(),
                identity: None,
                // Identifies the rate limit's account only. Requests are signed, and this is never sent.
                credentials: vec![Credential::Basic { username: keys.id.clone(), password: keys.secret.clone() }],
                pull_credentials: Vec::new(),
                ..settings.clone()
            };
            let logins = repository.client.logins_of(&name, &own);
            let found: Arc<Registry> = Arc::new(repository.client.connect(&name, base, own, logins, None)?);
            making.ecr.get_or_init(|| found).clone()
        }
    };
    Ok(Repository { registry, access: Access::Catalog, ..repository.clone() })
}

async fn ask(asked: &Repository, host: &EcrHost, keys: &Keys, body: String, tried: &str) -> Result<()> {
    let base = &asked.registry.base;
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
    let request = Signed { path: base.path(), headers: &headers, body: body.as_bytes() };
    let signature = sigv4::authorization(&request, keys, &date, &host.region, service);
    let mut outgoing = Outgoing::new(Method::POST, base.clone(), tried)
        .header(CONTENT_TYPE, JSON)
        .header(HeaderName::from_static("x-amz-date"), &date)
        .header(HeaderName::from_static("x-amz-target"), target)
        .payload(Payload::Bytes(body.into()))
        .counted(Counted::Request);
    let secret = |text: &str| {
        let mut value = HeaderValue::from_str(text)
            .map_err(|_| Error::new(Class::Invalid, tried, "a key of AWS holds characters that no header can carry"))?;
        value.set_sensitive(true);
        Ok::<_, Error>(value)
    };
    outgoing.headers.insert(header::AUTHORIZATION, secret(&signature)?);
    if let Some(session) = &keys.session {
        outgoing.headers.insert(HeaderName::from_static("x-amz-security-token"), secret(session.expose())?);
    }
    let answer = asked.send_as(outgoing, 0, None).await?;
    if answer.status().is_success() {
        answer.drain().await;
        return Ok(());
    }
    let errand = answer.errand();
    let error = answer.into_error(tried).await.at(&asked.registry.name);
    let code = error.code().map(|code| code.rsplit('#').next().unwrap_or(code).to_owned()).unwrap_or_default();
    let error = match code.as_str() {
        // Created by another client in the meantime.
        "RepositoryAlreadyExistsException" => return Ok(()),
        "ThrottlingException" | "TooManyRequestsException" => error.as_class(Class::RateLimited),
        "ServerException" | "InternalFailure" | "ServiceUnavailable" => error.as_class(Class::ServerError),
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" => error
            .as_class(Class::Denied)
            .hint(format!("allow `{service}:CreateRepository` to these keys of AWS, or make the repository by hand")),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "InvalidSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationToken" => error.as_class(Class::Denied).hint(
            "check the keys of AWS (AWS_ACCESS_KEY_ID and its kin, or the profile in ~/.aws/credentials), and this \
             machine's clock",
        ),
        _ => error,
    };
    Err(asked.mind(errand, error).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(class: Class, code: Option<&str>) -> Error {
        Error::new(class, "writing", "no").answered(404, code.map(str::to_owned))
    }

    #[test]
    fn a_missing_repository_is_told_from_a_missing_blob_and_from_no_connection() {
        assert_eq!(hears(&answered(Class::NotFound, Some("NAME_UNKNOWN"))), Says::Missing);
        assert_eq!(hears(&answered(Class::NotFound, Some("BLOB_UNKNOWN"))), Says::Nothing);
        assert_eq!(hears(&answered(Class::Denied, Some("DENIED"))), Says::Nothing);
        let dropped = || Error::new(Class::Unreachable, "writing", "reset by peer");
        assert_eq!(hears(&dropped()), Says::Perhaps);
        assert_eq!(hears(&dropped().unconnected()), Says::Nothing);
    }
}
