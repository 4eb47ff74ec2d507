//! Tokens of Microsoft Entra, which a registry exchanges for a refresh token (ACR, "Authenticate with an access token":
//! `POST /oauth2/exchange`). In the order of Azure's libraries (`DefaultAzureCredential`): a workload identity, then the
//! managed identity of an app or container, then that of the machine.

use std::net::IpAddr;
use std::time::Duration;

use ::http::{Method, StatusCode};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;
use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use crate::credentials::Credential;
use crate::providers::identity::{IdentityRequest, IdentityResponse, MachineIdentity, MachineLogin, Presence, Search};
use crate::ssrf;

/// User name beside a refresh token.
const USERNAME: &str = "00000000-0000-0000-0000-000000000000";
/// Resource that the tokens are for, the same in all of Azure's clouds.
const RESOURCE: &str = "https://containerregistry.azure.net";
/// Token service, unless `AZURE_AUTHORITY_HOST` names that of another cloud.
const AUTHORITY: &str = "https://login.microsoftonline.com";
/// Instance metadata service (Azure, "How to use managed identities to acquire an access token").
const METADATA_SERVICE: &str = "http://169.254.169.254";
/// Asset tag of all virtual machines of Azure.
const ASSET_TAG: &str = "7783-7084-3265-9085-8269-3286-77";
/// Hosts of registries in Azure's clouds.
const HOSTS: [&str; 4] = [".azurecr.io", ".azurecr.cn", ".azurecr.us", ".azurecr.de"];
/// Life of a refresh token that does not tell: an hour less than the three that are documented.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(2 * 3600);

pub(super) struct AzureIdentity;

/// A token of Entra's, and whose it is.
struct EntraToken {
    token: Secret,
    holder: String,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: Secret,
}

#[derive(Deserialize)]
struct ExchangeAnswer {
    refresh_token: Secret,
}

/// Errors of Entra, of the metadata service, of apps and of a registry.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ServiceError {
    error: Option<String>,
    #[serde(alias = "message")]
    error_description: Option<String>,
    errors: Vec<RegistryError>,
}

#[derive(Deserialize)]
struct RegistryError {
    code: Option<String>,
    message: Option<String>,
}

#[async_trait]
impl MachineIdentity for AzureIdentity {
    fn key(&self) -> &'static str {
        "azure"
    }

    fn username(&self) -> &'static str {
        USERNAME
    }

    fn serves(&self, registry: &RegistryName) -> bool {
        HOSTS.iter().any(|host| registry.host().ends_with(host))
    }

    fn setup_hint(&self) -> &'static str {
        "give the pod a workload identity, or the machine a managed identity, with the role AcrPull (AcrPush for \
         targets); AZURE_CLIENT_ID chooses one of several"
    }

    async fn log_in(&self, search: &mut Search<'_>) -> Result<Option<MachineLogin>> {
        let found = match from_workload(search).await? {
            Some(found) => found,
            None => match from_app(search).await? {
                Some(found) => found,
                None => match from_metadata(search).await? {
                    Some(found) => found,
                    None => return Ok(None),
                },
            },
        };
        exchange(search, &found).await.map(Some)
    }
}

fn refusal(search: &Search<'_>, answer: &IdentityResponse) -> Error {
    let said: ServiceError = serde_json::from_slice(&answer.body).unwrap_or_default();
    match said.errors.first() {
        Some(first) => answer.error(first.code.as_deref(), first.message.as_deref(), &search.operation),
        None => answer.error(said.error.as_deref(), said.error_description.as_deref(), &search.operation),
    }
}

fn read_token(search: &Search<'_>, answer: &IdentityResponse, holder: String) -> Result<EntraToken> {
    if answer.status != StatusCode::OK {
        return Err(refusal(search, answer));
    }
    let token: TokenAnswer = answer.json("an access token", &search.operation)?;
    Ok(EntraToken { token: token.access_token, holder })
}

/// Exchanges the token that the cluster puts into a file (AKS, "Workload ID"), or a secret of an application.
async fn from_workload(search: &mut Search<'_>) -> Result<Option<EntraToken>> {
    let file = search.path("AZURE_FEDERATED_TOKEN_FILE");
    let secret = search.variable("AZURE_CLIENT_SECRET").map(Secret::from);
    let (client, tenant) = (search.variable("AZURE_CLIENT_ID"), search.variable("AZURE_TENANT_ID"));
    if file.is_none() && (secret.is_none() || tenant.is_none()) {
        search.missed("AZURE_FEDERATED_TOKEN_FILE is not set (workload identity)");
        return Ok(None);
    }
    let with = if file.is_some() { "AZURE_FEDERATED_TOKEN_FILE" } else { "AZURE_CLIENT_SECRET" };
    let (Some(client), Some(tenant)) = (client, tenant) else {
        return Err(search.invalid(format!("{with} is set, but AZURE_CLIENT_ID or AZURE_TENANT_ID is not")));
    };
    let authority = match search.url("AZURE_AUTHORITY_HOST")? {
        Some(url) => url,
        None => Url::parse(AUTHORITY).map_err(|error| search.invalid(error.to_string()))?,
    };
    let mut url = authority;
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend([tenant.as_str(), "oauth2", "v2.0", "token"]);
    }
    let scope = format!("{RESOURCE}/.default");
    let mut fields =
        vec![("grant_type", "client_credentials"), ("client_id", client.as_str()), ("scope", scope.as_str())];
    let assertion = match &file {
        Some(file) => Some(search.read_file(file, "AZURE_FEDERATED_TOKEN_FILE").await?),
        None => None,
    };
    match (&assertion, &secret) {
        (Some(assertion), _) => fields.extend([
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
            ("client_assertion", assertion.expose().trim()),
        ]),
        (None, Some(secret)) => fields.push(("client_secret", secret.expose())),
        (None, None) => {}
    }
    let answer = search.post_form(url, &fields).await?;
    read_token(search, &answer, format!("the application {client}")).map(Some)
}

/// Whether the service of an app or container may be asked there in plain HTTP: App Service, Functions and Container
/// Instances have it at link-local addresses, the latter also at private ones. The secret is this service's own.
fn is_app_service(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_link_local() || v4.octets()[0] == 10)
}

/// Builds the request to the service of an app or container, whose address and secret are in variables.
fn app_request(mut url: Url, secret: &Secret, client: Option<&str>) -> Result<IdentityRequest> {
    // Container Instances write the version into the address, and expect the secret under another name.
    let has_version = url.query_pairs().any(|(name, _)| name == "api-version");
    if !has_version {
        url.query_pairs_mut().append_pair("api-version", "2019-08-01");
    }
    url.query_pairs_mut().append_pair("resource", RESOURCE);
    if let Some(client) = client {
        url.query_pairs_mut().append_pair("client_id", client);
    }
    let name = if has_version { "secret" } else { "x-identity-header" };
    IdentityRequest::new(Method::GET, url).header(name, secret.expose())
}

/// Asks the service of an app or container (App Service, Functions, Container Apps, Container Instances).
async fn from_app(search: &mut Search<'_>) -> Result<Option<EntraToken>> {
    let (url, secret) = match (search.url("IDENTITY_ENDPOINT")?, search.variable("IDENTITY_HEADER")) {
        (Some(url), Some(secret)) => (url, Secret::new(secret)),
        (Some(_), None) => {
            search.missed("IDENTITY_ENDPOINT is set, but IDENTITY_HEADER is not (Azure Arc is not supported)");
            return Ok(None);
        }
        (None, _) => {
            search.missed("IDENTITY_ENDPOINT is not set (App Service, Container Apps)");
            return Ok(None);
        }
    };
    let client = search.variable("AZURE_CLIENT_ID");
    let request = app_request(url, &secret, client.as_deref())?;
    let answer = search.ask_container_service(request, "IDENTITY_ENDPOINT", is_app_service).await?;
    read_token(search, &answer, shown_identity(client.as_deref(), "app")).map(Some)
}

fn shown_identity(client: Option<&str>, of: &str) -> String {
    match client {
        Some(client) => format!("the managed identity {client}"),
        None => format!("the managed identity of the {of}"),
    }
}

async fn from_metadata(search: &mut Search<'_>) -> Result<Option<EntraToken>> {
    let named = search.url("AZURE_POD_IDENTITY_AUTHORITY_HOST")?;
    let presence = search.metadata_presence(named.is_some(), &[("chassis_asset_tag", ASSET_TAG)]).await;
    if presence == Presence::Absent {
        search.missed("this is no machine of Azure's");
        return Ok(None);
    }
    let mut url = match named {
        Some(url) => url,
        None => Url::parse(METADATA_SERVICE).map_err(|error| search.invalid(error.to_string()))?,
    };
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["metadata", "identity", "oauth2", "token"]);
    }
    let client = search.variable("AZURE_CLIENT_ID");
    url.query_pairs_mut().append_pair("api-version", "2018-02-01").append_pair("resource", RESOURCE);
    if let Some(client) = &client {
        url.query_pairs_mut().append_pair("client_id", client);
    }
    let origin = ssrf::origin(&url);
    let request = IdentityRequest::new(Method::GET, url).header("metadata", "true")?;
    let answer = match search.ask_metadata(request, presence).await {
        Ok(answer) => answer,
        Err(why) => {
            search.missed(format!("the instance metadata service at {origin} did not answer: {why}"));
            return Ok(None);
        }
    };
    if answer.status == StatusCode::NOT_FOUND {
        // It is being updated (error handling in the page above).
        return Err(refusal(search, &answer).with_kind(ErrorKind::ServerError));
    }
    read_token(search, &answer, shown_identity(client.as_deref(), "machine")).map(Some)
}

/// Exchanges a token of Entra's for a refresh token of the registry.
async fn exchange(search: &Search<'_>, found: &EntraToken) -> Result<MachineLogin> {
    let mut url = search.registry.base.clone();
    url.set_path("/oauth2/exchange");
    let service = search.name().to_string();
    let mut fields =
        vec![("grant_type", "access_token"), ("service", service.as_str()), ("access_token", found.token.expose())];
    let tenant = search.variable("AZURE_TENANT_ID");
    if let Some(tenant) = &tenant {
        fields.push(("tenant", tenant));
    }
    let answer = search.ask_registry(IdentityRequest::new(Method::POST, url).form(&fields)?).await?;
    if answer.status != StatusCode::OK {
        let error = refusal(search, &answer);
        return Err(match error.kind() {
            ErrorKind::Denied => error.with_hint(format!(
                "give {} the role AcrPull (AcrPush for targets) at {}",
                found.holder,
                search.name()
            )),
            _ => error,
        });
    }
    let answered: ExchangeAnswer = answer.json("a refresh token", &search.operation)?;
    let token = answered.refresh_token;
    if token.expose().is_empty() {
        let detail = format!("{} answered without a refresh token", answer.origin);
        return Err(Error::new(ErrorKind::InvalidResponse, &search.operation, detail));
    }
    let lifetime = lifetime_of(&token);
    let credential = Credential::IdentityToken { username: Some(USERNAME.to_owned()), token };
    Ok(MachineLogin { credential, lifetime, holder: Some(found.holder.clone()) })
}

/// Returns how long a refresh token is valid, as it says itself: it is a JWT. Nothing else of it is read, and a wrong
/// life only means that it is renewed too early, or once more after the registry refused it.
fn lifetime_of(token: &Secret) -> Duration {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = token.expose().split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
    let claims = claims.and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok());
    let left = claims.map(|claims| claims.exp.saturating_sub(Timestamp::now().as_second()));
    match left {
        Some(left) => Duration::from_secs(u64::try_from(left).unwrap_or(60)),
        None => DEFAULT_LIFETIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_asks_at_the_addresses_that_azure_gives_it_and_in_its_words() {
        for address in ["169.254.129.2", "169.254.131.5", "169.254.255.2", "169.254.128.1", "10.92.0.7"] {
            assert!(is_app_service(address.parse().unwrap()), "{address}");
        }
        for address in ["8.8.8.8", "192.168.0.1", "fe80::1", "fd00:ec2::23"] {
            assert!(!is_app_service(address.parse().unwrap()), "{address}");
        }
        let asked = |url: &str, client| {
            let request = app_request(url.parse().unwrap(), &Secret::new("s3cret"), client).unwrap();
            let header = request.headers.iter().map(|(name, value)| (name.to_string(), value.clone())).next().unwrap();
            (request.url.to_string(), header.0, header.1.to_str().unwrap().to_owned())
        };
        let resource = "resource=https%3A%2F%2Fcontainerregistry.azure.net";
        let owned = |url: String, name: &str| (url, name.to_owned(), "s3cret".to_owned());
        assert_eq!(
            asked("http://169.254.129.2:8081/msi/token", Some("c")),
            owned(
                format!("http://169.254.129.2:8081/msi/token?api-version=2019-08-01&{resource}&client_id=c"),
                "x-identity-header"
            )
        );
        let container = "http://169.254.128.1:2377/metadata/identity/oauth2/token?api-version=1.0";
        assert_eq!(asked(container, None), owned(format!("{container}&{resource}"), "secret"));
    }

    #[test]
    fn the_life_of_a_refresh_token_is_read_from_it() {
        let token = |claims: &str| Secret::new(format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims)));
        let exp = Timestamp::now().as_second() + 600;
        let seconds = lifetime_of(&token(&format!("{{\"exp\":{exp}}}"))).as_secs();
        assert!((598..=600).contains(&seconds), "{seconds}");
        assert_eq!(lifetime_of(&token("{\"exp\":1}")).as_secs(), 60);
        assert_eq!(lifetime_of(&token("{}")), DEFAULT_LIFETIME);
        assert_eq!(lifetime_of(&Secret::new("opaque")), DEFAULT_LIFETIME);
    }
}
