//! Amazon Elastic Container Registry (ECR). Repositories are created by `CreateRepository` of its own API (Amazon ECR API
//! reference; JSON 1.1, Signature Version 4), which requires AWS keys and not the password for pushing.

mod keys;
mod sigv4;

use std::sync::Arc;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderName, HeaderValue, Method, header};
use async_trait::async_trait;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{RegistryName, RepositoryName};
use imgsync_rate_limit::RateLimitCategory;
use jiff::Timestamp;
use serde_json::json;
use url::Url;

use super::provisioning::{Provisioner, Provisioning, RefusalKind};
use super::{Provider, api};
use crate::context::RequestKind;
use crate::credentials::Credential;
use crate::request_body::RequestBody;
use crate::transport::RequestSpec;
use crate::{Access, Registry, RegistrySettings, Repository, is_loopback, ssrf};
use keys::{AwsEnvironment, AwsKeys};
use sigv4::SignableRequest;

pub(super) static AMAZON: Provider = Provider {
    name: "ECR",
    hosts: &[".amazonaws.com"],
    per_operation: &[(RateLimitCategory::ManifestPuts, 10.0), (RateLimitCategory::UploadStarts, 100.0)],
    source: "https://docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html (PutImage 10, InitiateLayerUpload 100 a second)",
    secret_variables: &["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"],
    provisioning: Some(&EcrRepositories),
    ..Provider::NONE
};

/// Content type of requests.
const JSON: &str = "application/x-amz-json-1.1";

/// An Amazon registry (ECR) with its account and region, parsed from its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EcrHost {
    /// Account number; `None` for ECR Public, where the first component of a repository is the account's alias.
    account: Option<String>,
    /// The region, such as `eu-west-1`.
    region: String,
    /// Host of the ECR API.
    api: String,
}

impl EcrHost {
    /// Parses `<account>.dkr.ecr.<region>.amazonaws.com` (also `-fips`, also in China), or `public.ecr.aws`.
    fn from_registry(registry: &RegistryName) -> Option<EcrHost> {
        if registry.port().is_some() {
            return None;
        }
        if registry.host() == "public.ecr.aws" {
            let (region, api) = ("us-east-1".to_owned(), "api.ecr-public.us-east-1.amazonaws.com".to_owned());
            return Some(EcrHost { account: None, region, api });
        }
        let (account, rest) = registry.host().split_once(".dkr.")?;
        let (service, rest) = rest.split_once('.')?;
        let (region, domain) = rest.split_once('.')?;
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_account = !account.is_empty() && account.bytes().all(|byte| byte.is_ascii_digit());
        let is_amazons = matches!(domain, "amazonaws.com" | "amazonaws.com.cn");
        let api = match service {
            "ecr" => format!("api.ecr.{region}.{domain}"),
            "ecr-fips" => format!("ecr-fips.{region}.{domain}"),
            _ => return None,
        };
        (is_account && is_amazons && is_plain(region)).then(|| EcrHost {
            account: Some(account.to_owned()),
            region: region.to_owned(),
            api,
        })
    }

    /// Returns the address of the ECR API.
    fn api(&self) -> Url {
        // It consists of letters, digits, dots and hyphens.
        #[allow(clippy::expect_used)]
        Url::parse(&format!("https://{}/", self.api)).expect("a checked host makes a URL")
    }

    /// Returns a repository's name in the API.
    fn repository_name<'a>(&self, path: &'a str) -> &'a str {
        match self.account {
            Some(_) => path,
            None => path.split_once('/').map_or(path, |(_, name)| name),
        }
    }
}

/// Creates repositories.
struct EcrRepositories;

impl Provisioning for EcrRepositories {
    fn serves(&self, registry: &RegistryName) -> bool {
        EcrHost::from_registry(registry).is_some()
    }

    fn open(&self, repository: &Repository) -> Result<Option<Box<dyn Provisioner>>> {
        let settings = &repository.registry.settings;
        // With an `endpoint` it is another server than the name says, unless `api` is set as well.
        let is_known = settings.endpoint.is_none() || settings.api.is_some();
        let host = EcrHost::from_registry(&repository.registry.name).filter(|_| is_known);
        Ok(host.map(|host| Box::new(EcrProvisioner(host)) as Box<dyn Provisioner>))
    }
}

struct EcrProvisioner(EcrHost);

#[async_trait]
impl Provisioner for EcrProvisioner {
    fn resource(&self, name: &RepositoryName) -> String {
        format!("repository {}", self.0.repository_name(name.as_str()))
    }

    fn hinted_resource(&self, _name: &RepositoryName) -> String {
        "repository".to_owned()
    }

    fn classify_refusal(&self, error: &Error) -> RefusalKind {
        classify_refusal(error)
    }

    async fn create(&self, repository: &Repository, operation: &str) -> Result<()> {
        let host = &self.0;
        let name = host.repository_name(repository.name.as_str());
        let keys = keys::find(&AwsEnvironment::new(repository.client.0.credentials.environment())).await;
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
}

/// Classifies a refused push. For a missing repository ECR was also seen to drop connections.
fn classify_refusal(error: &Error) -> RefusalKind {
    match (error.code(), error.kind()) {
        (Some("NAME_UNKNOWN" | "RepositoryNotFoundException"), _) => RefusalKind::Missing,
        (None, ErrorKind::Unreachable) if !error.is_connect_error() => RefusalKind::MaybeMissing,
        _ => RefusalKind::Unrelated,
    }
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
    let registry = match state.api.get() {
        Some(registry) => registry.clone(),
        None => {
            let name = api::api_host_name(&base)?;
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
            state.api.get_or_init(|| found).clone()
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

    #[test]
    fn amazons_registries_are_known_by_their_names() {
        let of = |name: &str| {
            EcrHost::from_registry(&name.parse().unwrap()).map(|host| (host.account.clone(), host.api().to_string()))
        };
        let ecr = of("123456789012.dkr.ecr.eu-west-1.amazonaws.com").unwrap();
        assert_eq!(ecr, (Some("123456789012".to_owned()), "https://api.ecr.eu-west-1.amazonaws.com/".to_owned()));
        let fips = of("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com").unwrap();
        assert_eq!(fips.1, "https://ecr-fips.us-gov-west-1.amazonaws.com/");
        let china = of("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn").unwrap();
        assert_eq!(china.1, "https://api.ecr.cn-north-1.amazonaws.com.cn/");
        assert_eq!(of("public.ecr.aws").unwrap().0, None);
        let public = EcrHost::from_registry(&"public.ecr.aws".parse().unwrap()).unwrap();
        assert_eq!(public.repository_name("alias/team/app"), "team/app");
        for other in [
            "x.dkr.ecr.eu-west-1.amazonaws.com",
            "1.dkr.ecr.eu-west-1.example.com",
            "1.dkr.ecr.eu.amazonaws.com.evil.io",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
