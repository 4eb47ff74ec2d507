//! Logs in at ECR with the machine's keys: `GetAuthorizationToken` (Amazon ECR API reference) gives a password that is
//! valid for twelve hours.

use std::time::Duration;

use ::http::{Method, StatusCode};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;
use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::api::{self, ApiCall};
use super::keys;
use super::{EcrHost, domain_of, region_of_environment};
use crate::credentials::Credential;
use crate::providers::identity::{
    IdentityRequest, IdentityResponse, MachineIdentity, MachineLogin, Search, SigningKeys,
};

/// User name of the passwords.
const USERNAME: &str = "AWS";

pub(super) struct EcrIdentity;

#[async_trait]
impl MachineIdentity for EcrIdentity {
    fn key(&self) -> &'static str {
        "aws"
    }

    fn username(&self) -> &'static str {
        USERNAME
    }

    fn serves(&self, registry: &RegistryName) -> bool {
        EcrHost::from_registry(registry).is_some_and(|host| host.account.is_some())
    }

    fn setup_hint(&self) -> &'static str {
        "give the pod, task or instance a role that may pull from ECR, or set AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    }

    async fn log_in(&self, search: &mut Search<'_>) -> Result<Option<MachineLogin>> {
        let host = host_or_region(search)?;
        let Some(mut keys) = keys::find(search, &host.region).await? else { return Ok(None) };
        let answer = match request_password(search, &host, &keys).await {
            // Keys that were known may have been revoked since.
            Err(error) if error.code().is_some_and(api::says_keys_ended) => {
                search.remember_keys(None).await;
                let Some(fresh) = keys::find(search, &host.region).await? else { return Ok(None) };
                keys = fresh;
                request_password(search, &host, &keys).await?
            }
            answer => answer?,
        };
        let password = read_password(search, &host, &answer)?;
        Ok(Some(MachineLogin { holder: Some(keys.origin), ..password }))
    }
}

/// Returns the API of a registry: by its name, else by the region of the environment.
fn host_or_region(search: &Search<'_>) -> Result<EcrHost> {
    if let Some(host) = EcrHost::from_registry(search.name()) {
        return Ok(host);
    }
    match region_of_environment(search)? {
        Some(region) => Ok(EcrHost {
            account: Some(String::new()),
            api: format!("api.ecr.{region}.{}", domain_of(&region)),
            region,
        }),
        None => Err(search
            .invalid("the registry's name does not tell its region, and AWS_REGION is not set")
            .with_hint("set AWS_REGION to the region of the registry")),
    }
}

/// Returns the address of ECR's API: `api:` of the registry, the variable of Amazon's SDKs, else that of the region.
pub(super) fn api_url(search: &Search<'_>, host: &EcrHost) -> Result<Url> {
    if let Some(url) = &search.registry.settings.api {
        return Ok(url.clone());
    }
    let own = if host.account.is_some() { "AWS_ENDPOINT_URL_ECR" } else { "AWS_ENDPOINT_URL_ECR_PUBLIC" };
    for name in [own, "AWS_ENDPOINT_URL"] {
        if let Some(url) = search.url(name)? {
            return Ok(url);
        }
    }
    Ok(host.api())
}

async fn request_password(search: &Search<'_>, host: &EcrHost, keys: &SigningKeys) -> Result<IdentityResponse> {
    let url = api_url(search, host)?;
    let (service, target) = match host.account {
        Some(_) => ("ecr", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"),
        None => ("ecr-public", "SpencerFrontendService.GetAuthorizationToken"),
    };
    let call = ApiCall {
        url: &url,
        region: &host.region,
        service,
        content_type: api::JSON,
        target: Some(target),
        body: b"{}",
    };
    let headers = call.headers(keys, &search.operation)?;
    let request = IdentityRequest::new(Method::POST, url.clone()).headers(headers).body(b"{}".to_vec());
    let answer = search.ask_registry(request).await?;
    if answer.status == StatusCode::OK {
        return Ok(answer);
    }
    let said: ApiError = serde_json::from_slice(&answer.body).unwrap_or_default();
    let code = said.code.as_deref().map(api::short_code);
    let error = answer.error(code, said.message.as_deref(), &search.operation);
    let action = format!("{service}:GetAuthorizationToken");
    Err(api::classify(error, code.unwrap_or_default(), &action, &format!(" ({})", keys.origin)))
}

/// An error of ECR's API.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ApiError {
    #[serde(rename = "__type")]
    code: Option<String>,
    #[serde(alias = "Message")]
    message: Option<String>,
}

/// The answer of ECR, which lists one, and of ECR Public, which has one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Passwords {
    authorization_data: OneOrMany,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<Password>),
    One(Password),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Password {
    authorization_token: Secret,
    /// Seconds since 1970.
    #[serde(default)]
    expires_at: Option<f64>,
}

fn read_password(search: &Search<'_>, host: &EcrHost, answer: &IdentityResponse) -> Result<MachineLogin> {
    let passwords: Passwords = answer.json("a password", &search.operation)?;
    let first = match passwords.authorization_data {
        OneOrMany::Many(many) => many.into_iter().next(),
        OneOrMany::One(one) => Some(one),
    };
    let decoded = first.and_then(|first| {
        let bytes = STANDARD.decode(first.authorization_token.expose()).ok()?;
        Some((Secret::new(String::from_utf8(bytes).ok()?), first.expires_at))
    });
    let Some((username, password, ends)) = decoded.as_ref().and_then(|(text, ends)| {
        let (username, password) = text.expose().split_once(':')?;
        (!password.is_empty()).then_some((username, password, *ends))
    }) else {
        let detail = format!("{} answered without a password: {}", answer.origin, answer.describe());
        return Err(Error::new(ErrorKind::InvalidResponse, &search.operation, detail));
    };
    let left = ends.map(|ends| ends - Timestamp::now().as_duration().as_secs_f64());
    // Without an end, and with a clock that is wrong, it is requested again soon.
    let lifetime = left.and_then(|left| Duration::try_from_secs_f64(left).ok()).unwrap_or(Duration::from_secs(60));
    tracing::debug!("logged in at ECR in {} for {}", host.region, imgsync_oci::retry::format_duration(lifetime));
    let credential = Credential::Basic { username: username.to_owned(), password: Secret::new(password) };
    Ok(MachineLogin { credential, lifetime, holder: None })
}
