//! Keys of roles: by a web identity, by other keys, from the service of the container, from the instance's metadata.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ::http::{Method, StatusCode};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::secret::Secret;
use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::api::{self, ApiCall};
use crate::providers::identity::{IdentityRequest, IdentityResponse, Presence, Search, SigningKeys, form};
use crate::ssrf;

/// Address of the service of containers for a relative address (Amazon ECS developer guide, "Task IAM role").
const CONTAINER_SERVICE: &str = "http://169.254.170.2";
/// Addresses of the services that hand out credentials to containers (AWS SDKs reference guide, "Container credential
/// provider"): ECS, and the agent of EKS.
const CONTAINER_SERVICES: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];
/// What the firmware of instances says: of those of today, and of those on Xen.
const INSTANCE_SIGNS: [(&str, &str); 2] = [("sys_vendor", "Amazon"), ("bios_version", "amazon")];
/// Addresses of the instance metadata service (Amazon EC2 user guide, "Instance metadata").
const INSTANCE_SERVICE: &str = "http://169.254.169.254/";
const INSTANCE_SERVICE_IPV6: &str = "http://[fd00:ec2::254]/";
/// Requested life of a session token of the instance metadata service in seconds. It is used for two requests.
const INSTANCE_TOKEN_SECONDS: &str = "300";
/// Name of the sessions of roles where nobody chose another.
const SESSION: &str = "imgsync";

/// Assumes the role of the environment with the token in a file that the cluster renews (EKS user guide, "IAM roles for
/// service accounts").
pub(super) async fn from_web_identity(search: &mut Search<'_>, region: &str) -> Result<Option<SigningKeys>> {
    let (file, role) = (search.path("AWS_WEB_IDENTITY_TOKEN_FILE"), search.variable("AWS_ROLE_ARN"));
    match (file, role) {
        (Some(file), Some(role)) => {
            let token = search.read_file(&file, "AWS_WEB_IDENTITY_TOKEN_FILE").await?;
            let session = search.variable("AWS_ROLE_SESSION_NAME");
            assume_with_token(search, &role, session, &token, region).await.map(Some)
        }
        (Some(_), None) => Err(search.invalid("AWS_WEB_IDENTITY_TOKEN_FILE is set, but AWS_ROLE_ARN is not")),
        (None, _) => {
            search.missed("AWS_WEB_IDENTITY_TOKEN_FILE is not set (IRSA)");
            Ok(None)
        }
    }
}

/// Assumes a role with a web identity.
pub(super) async fn assume_with_token(
    search: &Search<'_>,
    role: &str,
    session: Option<String>,
    token: &Secret,
    region: &str,
) -> Result<SigningKeys> {
    let (url, _) = sts(search, region)?;
    let fields = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", role),
        ("RoleSessionName", session.as_deref().unwrap_or(SESSION)),
        ("WebIdentityToken", token.expose().trim()),
    ];
    let answer = search.post_form(url, &fields).await?;
    let action = "sts:AssumeRoleWithWebIdentity";
    let hint = format!("check the trust policy of {role}: it must name this service account and the cluster's issuer");
    read_sts(search, &answer, role, action, &hint)
}

/// Assumes a role with other keys.
pub(super) async fn assume(
    search: &Search<'_>,
    keys: &SigningKeys,
    role: &str,
    session: Option<String>,
    external_id: Option<String>,
    region: &str,
) -> Result<SigningKeys> {
    let (url, region) = sts(search, region)?;
    let mut fields = vec![
        ("Action", "AssumeRole"),
        ("Version", "2011-06-15"),
        ("RoleArn", role),
        ("RoleSessionName", session.as_deref().unwrap_or(SESSION)),
    ];
    fields.extend(external_id.as_deref().map(|id| ("ExternalId", id)));
    let body = form(&fields);
    let call =
        ApiCall { url: &url, region: &region, service: "sts", content_type: api::FORM, target: None, body: &body };
    let headers = call.headers(keys, &search.operation)?;
    let answer =
        search.ask_service(IdentityRequest::new(Method::POST, url.clone()).headers(headers).body(body)).await?;
    let hint = format!("allow `sts:AssumeRole` on {role} for {}, and name them in its trust policy", keys.origin);
    read_sts(search, &answer, role, "sts:AssumeRole", &hint)
}

/// Returns the address of the token service, from the variables of Amazon's SDKs or by the region, and the region that
/// signatures for it name: AWS_REGION, else that of the registry.
fn sts(search: &Search<'_>, region: &str) -> Result<(Url, String)> {
    let region = super::region_of_environment(search)?.unwrap_or_else(|| region.to_owned());
    for name in ["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"] {
        if let Some(url) = search.url(name)? {
            return Ok((url, region));
        }
    }
    let url = Url::parse(&format!("https://sts.{region}.{}/", super::domain_of(&region)));
    url.map(|url| (url, region)).map_err(|error| search.invalid(error.to_string()))
}

fn read_sts(
    search: &Search<'_>,
    answer: &IdentityResponse,
    role: &str,
    action: &str,
    hint: &str,
) -> Result<SigningKeys> {
    let text = String::from_utf8_lossy(&answer.body);
    if answer.status != StatusCode::OK {
        let (code, message) = (element(&text, "Code"), element(&text, "Message"));
        let error = answer.error(code.as_deref(), message.as_deref(), &search.operation);
        let is_denied = error.kind() == ErrorKind::Denied;
        let error = if is_denied { error.with_hint(hint) } else { error };
        return Err(match code.as_deref() {
            Some("AccessDenied") | None => error,
            Some(code) => api::classify(error, code, action, ""),
        });
    }
    let (id, secret) = (element(&text, "AccessKeyId"), element(&text, "SecretAccessKey"));
    let (Some(id), Some(secret), Some(session)) = (id, secret, element(&text, "SessionToken")) else {
        let detail = format!("{} answered with something else than keys: {}", answer.origin, answer.describe());
        return Err(Error::new(ErrorKind::InvalidResponse, &search.operation, detail));
    };
    let expiration = element(&text, "Expiration");
    Ok(SigningKeys {
        id,
        secret: Secret::new(secret),
        session: Some(Secret::new(session)),
        lifetime: lifetime(search, expiration.as_deref())?,
        origin: format!("the role {role}"),
    })
}

/// Returns the text of the first XML element with a name. Answers of STS have no attributes there.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let inner = inner.trim();
    let plain = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#39;", "'"), ("&amp;", "&")];
    (!inner.is_empty()).then(|| plain.iter().fold(inner.to_owned(), |text, (from, to)| text.replace(from, to)))
}

/// Returns how long keys are valid from now on.
fn lifetime(search: &Search<'_>, expiration: Option<&str>) -> Result<Option<Duration>> {
    let Some(text) = expiration else { return Ok(None) };
    let wrong = |why: &str| Error::new(ErrorKind::InvalidResponse, &search.operation, why);
    let end: Timestamp = text.parse().map_err(|_| wrong("the keys have an end that is not a date"))?;
    let left = end.duration_since(Timestamp::now());
    Duration::try_from(left)
        .map(Some)
        .map_err(|_| wrong("the keys that were issued have ended already").with_hint("check this machine's clock"))
}

/// Keys as the services of containers and instances issue them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct IssuedKeys {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    access_key_id: String,
    #[serde(default)]
    secret_access_key: Option<Secret>,
    #[serde(default)]
    token: Option<Secret>,
    #[serde(default)]
    expiration: Option<String>,
}

/// The error that the service of a container writes.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerError {
    #[serde(alias = "Code")]
    code: Option<String>,
    #[serde(alias = "Message")]
    message: Option<String>,
}

fn read_keys(search: &Search<'_>, answer: &IdentityResponse, origin: String) -> Result<SigningKeys> {
    let keys: IssuedKeys = answer.json("keys", &search.operation)?;
    if keys.code.as_deref().is_some_and(|code| code != "Success") {
        return Err(answer
            .error(keys.code.as_deref(), keys.message.as_deref(), &search.operation)
            .with_kind(ErrorKind::Denied));
    }
    let secret = keys.secret_access_key.filter(|secret| !secret.expose().is_empty() && !keys.access_key_id.is_empty());
    let Some(secret) = secret else {
        let detail = format!("{} answered without keys: {}", answer.origin, answer.describe());
        return Err(Error::new(ErrorKind::InvalidResponse, &search.operation, detail));
    };
    Ok(SigningKeys {
        id: keys.access_key_id,
        secret,
        session: keys.token,
        lifetime: lifetime(search, keys.expiration.as_deref())?,
        origin,
    })
}

/// Returns the address of the service of the container, and the variable that names it.
fn container_service(search: &Search<'_>) -> Result<Option<(Url, &'static str)>> {
    let (relative, full) = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI");
    let Some(path) = search.variable(relative) else {
        return Ok(search.url(full)?.map(|url| (url, full)));
    };
    let url = Url::parse(CONTAINER_SERVICE).and_then(|base| base.join(&path));
    // `//host` would leave the service.
    let is_there = |url: &Url| path.starts_with('/') && url.origin().ascii_serialization() == CONTAINER_SERVICE;
    match url.ok().filter(is_there) {
        Some(url) => Ok(Some((url, relative))),
        None => Err(search.invalid(format!("{relative} is not a path"))),
    }
}

/// Requests keys from the service of the container.
pub(super) async fn from_container(search: &mut Search<'_>) -> Result<Option<SigningKeys>> {
    let Some((url, named_by)) = container_service(search)? else {
        search.missed("AWS_CONTAINER_CREDENTIALS_FULL_URI is not set (EKS pod identity, ECS)");
        return Ok(None);
    };
    let mut request = IdentityRequest::new(Method::GET, url);
    if let Some(file) = search.path("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        let token = search.read_file(&file, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").await?;
        request = request.header("authorization", token.expose().trim())?;
    } else if let Some(token) = search.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN") {
        request = request.header("authorization", Secret::new(token).expose())?;
    }
    let is_amazons = |address| CONTAINER_SERVICES.contains(&address);
    let answer = search.ask_container_service(request, named_by, is_amazons).await?;
    if answer.status != StatusCode::OK {
        let said: ContainerError = serde_json::from_slice(&answer.body).unwrap_or_default();
        return Err(answer.error(said.code.as_deref(), said.message.as_deref(), &search.operation));
    }
    read_keys(search, &answer, "the role of the container".to_owned()).map(Some)
}

/// Requests keys of the instance's role: a session token first (IMDSv2).
pub(super) async fn from_instance(search: &mut Search<'_>) -> Result<Option<SigningKeys>> {
    if search.variable("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        search.missed("AWS_EC2_METADATA_DISABLED is true");
        return Ok(None);
    }
    let named = search.url("AWS_EC2_METADATA_SERVICE_ENDPOINT")?;
    let presence = search.metadata_presence(named.is_some(), &INSTANCE_SIGNS).await;
    if presence == Presence::Absent {
        search.missed("this is no machine of EC2");
        return Ok(None);
    }
    let is_ipv6 =
        search.variable("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE").is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
    let known = if is_ipv6 { INSTANCE_SERVICE_IPV6 } else { INSTANCE_SERVICE };
    let mut base = match named {
        Some(url) => url,
        None => Url::parse(known).map_err(|error| search.invalid(error.to_string()))?,
    };
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", base.path()));
    }
    let origin = ssrf::origin(&base);
    let request = IdentityRequest::new(Method::PUT, join(search, &base, "latest/api/token")?)
        .header("x-aws-ec2-metadata-token-ttl-seconds", INSTANCE_TOKEN_SECONDS)?;
    let answer = match search.ask_metadata(request, presence).await {
        Ok(answer) => answer,
        Err(why) => {
            // In a container, the answer may be dropped on the way.
            let detail = format!(
                "the instance metadata service at {origin} did not answer: {why} (in a container, its hop limit must be 2)"
            );
            search.missed(detail);
            return Ok(None);
        }
    };
    if answer.is_busy() {
        return Err(answer.error(None, None, &search.operation));
    }
    if answer.status != StatusCode::OK {
        search.missed(format!("the instance metadata service at {origin} gave no session: {}", answer.describe()));
        return Ok(None);
    }
    let session = Secret::new(String::from_utf8_lossy(&answer.body).trim());
    let roles = "latest/meta-data/iam/security-credentials/";
    let request = in_session(search, &base, &session, roles)?;
    let roles = ask_instance(search, request, presence).await?;
    if roles.status == StatusCode::NOT_FOUND {
        search.missed("the instance has no role");
        return Ok(None);
    }
    if roles.is_busy() {
        return Err(roles.error(None, None, &search.operation));
    }
    let text = String::from_utf8_lossy(&roles.body);
    let role = text.lines().next().unwrap_or_default().trim();
    let is_name = |role: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
        !role.is_empty() && role.len() <= 128 && role.bytes().all(is_plain)
    };
    if roles.status != StatusCode::OK || !is_name(role) {
        let detail = format!("the instance metadata service at {origin} named no role: {}", roles.describe());
        return Err(Error::new(ErrorKind::InvalidResponse, &search.operation, detail));
    }
    let path = format!("latest/meta-data/iam/security-credentials/{role}");
    let request = in_session(search, &base, &session, &path)?;
    let answer = ask_instance(search, request, presence).await?;
    if answer.status != StatusCode::OK {
        return Err(answer.error(None, None, &search.operation));
    }
    read_keys(search, &answer, format!("the instance's role {}", sanitize_within(role, 128))).map(Some)
}

fn join(search: &Search<'_>, base: &Url, path: &str) -> Result<Url> {
    base.join(path).map_err(|error| search.invalid(error.to_string()))
}

/// Builds a request within a session of the instance metadata service.
fn in_session(search: &Search<'_>, base: &Url, session: &Secret, path: &str) -> Result<IdentityRequest> {
    IdentityRequest::new(Method::GET, join(search, base, path)?).header("x-aws-ec2-metadata-token", session.expose())
}

async fn ask_instance(
    search: &mut Search<'_>,
    request: IdentityRequest,
    presence: Presence,
) -> Result<IdentityResponse> {
    let origin = request.origin();
    search
        .ask_metadata(request, presence)
        .await
        .map_err(|why| search.unavailable(format!("the instance metadata service at {origin} did not answer: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::CredentialEnvironment;
    use crate::{Client, ClientSettings};

    #[test]
    fn a_signature_for_sts_names_the_region_of_its_address() {
        let endpoint = ("AWS_ENDPOINT_URL_STS", "https://sts.corp.example/");
        for (variables, registry_region, url, region) in [
            (vec![], "eu-west-1", "https://sts.eu-west-1.amazonaws.com/", "eu-west-1"),
            (vec![("AWS_REGION", "us-east-2")], "eu-west-1", "https://sts.us-east-2.amazonaws.com/", "us-east-2"),
            (vec![("AWS_DEFAULT_REGION", "cn-north-1")], "a", "https://sts.cn-north-1.amazonaws.com.cn/", "cn-north-1"),
            (vec![endpoint], "eu-west-1", endpoint.1, "eu-west-1"),
            (vec![endpoint, ("AWS_REGION", "us-east-2")], "eu-west-1", endpoint.1, "us-east-2"),
        ] {
            let (found, signed) = searching(&variables, |search| sts(search, registry_region)).unwrap();
            assert_eq!((found.as_str(), signed.as_str()), (url, region));
        }
        let error = searching(&[("AWS_REGION", "eu/west")], |search| sts(search, "a")).unwrap_err();
        assert!(error.message().contains("not the name of a region"), "{error}");
    }

    /// Runs something with the variables of a process.
    fn searching<T>(variables: &[(&str, &str)], run: impl FnOnce(&Search<'_>) -> T) -> T {
        let helpers = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let environment = CredentialEnvironment { helpers, ..CredentialEnvironment::default() };
        let client = Client::new(ClientSettings::default(), environment);
        let registry = client.registry(&"r.example.com".parse().unwrap()).unwrap();
        run(&client.0.identities.search(&registry, client.0.credentials.environment(), true, "logging in"))
    }

    #[test]
    fn a_container_of_ecs_asks_its_own_service_and_no_other() {
        let relative = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        let found = |variables: &[(&str, &str)]| {
            let found = searching(variables, container_service).map_err(|error| error.message().to_owned())?;
            Ok::<_, String>(found.map(|(url, named_by)| (url.to_string(), named_by)))
        };
        assert_eq!(
            found(&[(relative, "/v2/credentials/7f3c?x=1")]),
            Ok(Some(("http://169.254.170.2/v2/credentials/7f3c?x=1".to_owned(), relative)))
        );
        let full = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials");
        assert_eq!(found(&[full]), Ok(Some((full.1.to_owned(), full.0))));
        assert_eq!(found(&[]), Ok(None));
        for wrong in
            ["//evil.example/x", "/\\evil.example/x", "http://evil.example/x", "@evil.example/", "v2/credentials"]
        {
            assert_eq!(found(&[(relative, wrong)]), Err(format!("{relative} is not a path")), "{wrong}");
        }
    }

    #[tokio::test]
    async fn the_credentials_of_containers_are_requested_nowhere_else_in_plain_http() {
        let client = Client::new(ClientSettings::default(), CredentialEnvironment::default());
        let registry = client.registry(&"r.example.com".parse().unwrap()).unwrap();
        let environment = client.0.credentials.environment();
        let mut search = client.0.identities.search(&registry, environment, true, "logging in");
        for url in ["http://10.0.0.5/x", "http://169.254.169.254/x", "http://credentials.example.org/x"] {
            let request = IdentityRequest::new(Method::GET, url.parse().unwrap());
            let is_amazons = |address| CONTAINER_SERVICES.contains(&address);
            let error = search.ask_container_service(request, "THE_VARIABLE", is_amazons).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Insecure, "{url}");
        }
    }

    #[test]
    fn an_element_is_found_and_unescaped_and_what_is_not_there_is_none() {
        let text = "<R><Error><Code>AccessDenied</Code><Message>Not &quot;a&amp;lt;b&quot; </Message></Error></R>";
        assert_eq!(element(text, "Code").as_deref(), Some("AccessDenied"));
        assert_eq!(element(text, "Message").as_deref(), Some("Not \"a&lt;b\""));
        assert_eq!((element(text, "Token"), element("<A><B>", "B"), element("<A></A>", "A")), (None, None, None));
    }
}
