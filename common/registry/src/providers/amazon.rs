//! Amazon Elastic Container Registry (ECR). Repositories are created by `CreateRepository` of its own API (Amazon ECR API
//! reference; JSON 1.1, Signature Version 4), which requires AWS keys and not the password for pushing. The same keys log in.

mod api;
mod keys;
mod login;
mod roles;
mod sigv4;

use std::sync::Arc;

use ::http::Method;
use async_trait::async_trait;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{RegistryName, RepositoryName};
use imgsync_rate_limit::RateLimitCategory;
use serde_json::json;
use url::Url;

use self::api::ApiCall;
use super::Provider;
use super::api::api_host_name;
use super::identity::{CredentialSource, Search, SigningKeys};
use super::provisioning::{Provisioner, Provisioning, RefusalKind};
use crate::context::RequestKind;
use crate::credentials::Credential;
use crate::request_body::RequestBody;
use crate::transport::RequestSpec;
use crate::{Access, Registry, RegistrySettings, Repository, is_loopback, ssrf};

pub(super) static AMAZON: Provider = Provider {
    name: "ECR",
    hosts: &[".amazonaws.com", ".amazonaws.com.cn", ".on.aws"],
    per_operation: &[(RateLimitCategory::ManifestPuts, 10.0), (RateLimitCategory::UploadStarts, 100.0)],
    source: "https://docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html (PutImage 10, InitiateLayerUpload 100 a second)",
    secret_variables: &["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"],
    provisioning: Some(&EcrRepositories),
    identity: Some(&login::EcrIdentity),
    ..Provider::NONE
};

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

/// Returns the domain of the APIs of a region.
fn domain_of(region: &str) -> &'static str {
    match region.starts_with("cn-") {
        true => "amazonaws.com.cn",
        false => "amazonaws.com",
    }
}

/// Returns the region that the variables of Amazon's SDKs name.
fn region_of_environment(search: &Search<'_>) -> Result<Option<String>> {
    let region = search.variable("AWS_REGION").or_else(|| search.variable("AWS_DEFAULT_REGION"));
    match &region {
        Some(text) if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') => {
            Err(search.invalid("AWS_REGION or AWS_DEFAULT_REGION is not the name of a region"))
        }
        _ => Ok(region),
    }
}

impl EcrHost {
    /// Parses `<account>.dkr.ecr.<region>.amazonaws.com` (also `-fips`, also in China), `<account>.dkr-ecr.<region>.on.aws`,
    /// or `public.ecr.aws`.
    fn from_registry(registry: &RegistryName) -> Option<EcrHost> {
        if registry.port().is_some() {
            return None;
        }
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_account = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if registry.host() == "public.ecr.aws" {
            let (region, api) = ("us-east-1".to_owned(), "api.ecr-public.us-east-1.amazonaws.com".to_owned());
            return Some(EcrHost { account: None, region, api });
        }
        if let Some((account, rest)) = registry.host().split_once(".dkr-ecr.") {
            // Its name for IPv4 and IPv6.
            let region = rest.strip_suffix(".on.aws").filter(|region| is_plain(region))?;
            let api = format!("ecr.{region}.api.aws");
            let (account, region) = (Some(account.to_owned()), region.to_owned());
            return is_account(account.as_deref()?).then_some(EcrHost { account, region, api });
        }
        let (account, rest) = registry.host().split_once(".dkr.")?;
        let (service, rest) = rest.split_once('.')?;
        let (region, domain) = rest.split_once('.')?;
        let is_amazons = matches!(domain, "amazonaws.com" | "amazonaws.com.cn");
        let api = match service {
            "ecr" => format!("api.ecr.{region}.{domain}"),
            "ecr-fips" => format!("ecr-fips.{region}.{domain}"),
            _ => return None,
        };
        (is_account(account) && is_amazons && is_plain(region)).then(|| EcrHost {
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
        let (identities, environment) =
            (&repository.client.0.identities, repository.client.0.credentials.environment());
        let is_explicit = matches!(repository.registry.settings.credential_source, CredentialSource::Machine(_));
        let mut search = identities.search(&repository.registry, environment, is_explicit, operation);
        let keys = match keys::find(&mut search, &host.region).await? {
            Some(keys) => keys,
            None => return Err(no_keys(host, name, &search, operation)),
        };
        let api = ecr_api(repository, login::api_url(&search, host)?, &keys, operation)?;
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

fn no_keys(host: &EcrHost, name: &str, search: &Search<'_>, operation: &str) -> Error {
    // Short, since reports truncate errors.
    let detail = "no AWS keys were found, and a helper's password only allows pushing";
    let command = if host.account.is_some() { "ecr" } else { "ecr-public" };
    tracing::info!("{operation}: no AWS keys: {}", search.shown_misses());
    search.unavailable(detail).with_hint(format!(
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role; or create it \
         manually: aws {command} create-repository --repository-name {name} --region {}",
        host.region
    ))
}

/// Returns a handle to ECR's own API, with the registry's connection settings.
fn ecr_api(repository: &Repository, base: Url, keys: &SigningKeys, operation: &str) -> Result<Repository> {
    let settings = &repository.registry.settings;
    if base.scheme() == "http" && !base.host_str().is_some_and(is_loopback) {
        let detail = format!("a signed request would be sent over plain HTTP to {}", ssrf::origin(&base));
        let hint = format!("write `api:` of {} with https://", repository.registry.name);
        return Err(Error::new(ErrorKind::Insecure, operation, detail).with_hint(hint));
    }
    let state = &repository.registry.provision;
    let registry = match state.api.get() {
        Some(registry) => registry.clone(),
        None => {
            let name = api_host_name(&base)?;
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
    api_side: &Repository,
    host: &EcrHost,
    keys: &SigningKeys,
    body: String,
    operation: &str,
) -> Result<()> {
    let (service, target) = match host.account {
        Some(_) => ("ecr", "AmazonEC2ContainerRegistry_V20150921.CreateRepository"),
        None => ("ecr-public", "SpencerFrontendService.CreateRepository"),
    };
    let url = &api_side.registry.base;
    let region = &host.region;
    let call = ApiCall { url, region, service, content_type: api::JSON, target: Some(target), body: body.as_bytes() };
    let headers = call.headers(keys, operation)?;
    let mut outgoing = RequestSpec::new(Method::POST, url.clone(), operation)
        .body(RequestBody::Bytes(body.into()))
        .kind(RequestKind::Request);
    outgoing.headers = headers;
    let response = api_side.send_as(outgoing, 0, None).await?;
    if response.status().is_success() {
        response.drain().await;
        return Ok(());
    }
    let kind = response.class();
    let error = response.into_error(operation).await.with_registry(&api_side.registry.name);
    let code = error.code().map(|code| api::short_code(code).to_owned()).unwrap_or_default();
    // Created by another client in the meantime.
    if code == "RepositoryAlreadyExistsException" {
        return Ok(());
    }
    let action = format!("{service}:CreateRepository");
    let error = api::classify(error, &code, &action, ", or create the repository manually");
    Err(api_side.observe_error(kind, error).await)
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
        let both = of("123456789012.dkr-ecr.eu-west-1.on.aws").unwrap();
        assert_eq!(both, (Some("123456789012".to_owned()), "https://ecr.eu-west-1.api.aws/".to_owned()));
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
