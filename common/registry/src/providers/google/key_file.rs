//! Files with credentials of Google: the key of a service account, a workload identity federation (RFC 8693), and what
//! `gcloud auth application-default login` writes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::http::{Method, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use imgsync_oci::error::{Error, Result};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::secret::Secret;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::access_token::{AccessToken, FoundToken, METADATA_HOST};
use crate::providers::identity::{IdentityRequest, IdentityResponse, Search};

/// Scope of the tokens, which Artifact Registry requires; what they may do is decided by roles.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// Token service of keys whose file does not name one.
const TOKEN_SERVICE: &str = "https://oauth2.googleapis.com/token";
/// Requested life of a token in seconds; the maximum.
const LIFETIME_SECONDS: i64 = 3600;

/// A file with credentials.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum KeyFile {
    ServiceAccount {
        client_email: String,
        private_key: Secret,
        #[serde(default)]
        private_key_id: Option<String>,
        #[serde(default)]
        token_uri: Option<String>,
    },
    ExternalAccount {
        audience: String,
        subject_token_type: String,
        token_url: String,
        credential_source: TokenSource,
        #[serde(default)]
        service_account_impersonation_url: Option<String>,
    },
    AuthorizedUser {
        client_id: String,
        client_secret: Secret,
        refresh_token: Secret,
    },
    #[serde(other)]
    Other,
}

/// Where the token of the other side is.
#[derive(Deserialize)]
struct TokenSource {
    /// Which cloud's keys are used in place of a token.
    #[serde(default)]
    environment_id: Option<String>,
    #[serde(default)]
    file: Option<PathBuf>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, Secret>,
    #[serde(default)]
    format: Option<TokenFormat>,
}

#[derive(Deserialize)]
struct TokenFormat {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    subject_token_field_name: Option<String>,
}

/// An error of Google's token services, in both of their formats.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ServiceError {
    error: Value,
    error_description: Option<String>,
}

/// Returns a token by the files of the environment.
pub(super) async fn from_files(search: &mut Search<'_>) -> Result<Option<FoundToken>> {
    if let Some(file) = search.path("GOOGLE_APPLICATION_CREDENTIALS") {
        let text = search.read_file(&file, "GOOGLE_APPLICATION_CREDENTIALS").await?;
        return from_file(search, &file, &text).await.map(Some);
    }
    search.missed("GOOGLE_APPLICATION_CREDENTIALS is not set");
    let folder = search.path("CLOUDSDK_CONFIG").or_else(|| {
        let environment = search.environment;
        let config = environment.xdg_config_home.clone().or_else(|| Some(environment.home.as_ref()?.join(".config")));
        Some(config?.join("gcloud"))
    });
    let Some(file) = folder.map(|folder| folder.join("application_default_credentials.json")) else { return Ok(None) };
    match search.read_file_if_any(&file).await? {
        Some(text) => from_file(search, &file, &text).await.map(Some),
        None => {
            search.missed(format!("{} does not exist", file.display()));
            Ok(None)
        }
    }
}

async fn from_file(search: &mut Search<'_>, file: &Path, text: &Secret) -> Result<FoundToken> {
    let shown = file.display();
    // The parser's error would quote the file.
    let parsed = serde_json::from_str(text.expose()).map_err(|error| {
        let at = format!("line {}, column {}", error.line(), error.column());
        search.invalid(format!("{shown} is not a file with credentials of Google ({at})"))
    })?;
    match parsed {
        KeyFile::ServiceAccount { client_email, private_key, private_key_id, token_uri } => {
            let service = token_uri.as_deref().unwrap_or(TOKEN_SERVICE);
            let url = parse_url(search, service, "token_uri", file)?;
            let key_id = private_key_id.as_deref();
            let assertion = sign(&client_email, &private_key, key_id, service)
                .map_err(|why| search.invalid(format!("the `private_key` in {shown} cannot be used: {why}")))?;
            let fields =
                [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", assertion.expose())];
            let token = post_for_token(search, url, &fields).await?;
            let lifetime = token.lifetime();
            Ok((token.access_token, lifetime, format!("the service account {}", sanitize_within(&client_email, 100))))
        }
        KeyFile::AuthorizedUser { client_id, client_secret, refresh_token } => {
            let url = parse_url(search, TOKEN_SERVICE, "token_uri", file)?;
            let fields = [
                ("grant_type", "refresh_token"),
                ("client_id", client_id.as_str()),
                ("client_secret", client_secret.expose()),
                ("refresh_token", refresh_token.expose()),
            ];
            let token = post_for_token(search, url, &fields).await?;
            let lifetime = token.lifetime();
            Ok((token.access_token, lifetime, format!("the user of {shown}")))
        }
        KeyFile::ExternalAccount {
            audience,
            subject_token_type,
            token_url,
            credential_source,
            service_account_impersonation_url,
        } => {
            let subject = read_subject_token(search, file, &credential_source).await?;
            let url = parse_url(search, &token_url, "token_url", file)?;
            let fields = [
                ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
                ("audience", audience.as_str()),
                ("scope", SCOPE),
                ("subject_token_type", subject_token_type.as_str()),
                ("subject_token", subject.expose()),
            ];
            let token = post_for_token(search, url, &fields).await?;
            match service_account_impersonation_url {
                None => {
                    let lifetime = token.lifetime();
                    Ok((token.access_token, lifetime, format!("the federated identity of {shown}")))
                }
                Some(url) => {
                    let url = parse_url(search, &url, "service_account_impersonation_url", file)?;
                    impersonate(search, url, &token.access_token).await
                }
            }
        }
        KeyFile::Other => Err(search.invalid(format!(
            "{shown} holds another type of credentials than service_account, external_account and authorized_user"
        ))),
    }
}

fn parse_url(search: &Search<'_>, text: &str, key: &str, file: &Path) -> Result<Url> {
    Url::parse(text).map_err(|_| search.invalid(format!("`{key}` in {} is not a URL", file.display())))
}

async fn post_for_token(search: &Search<'_>, url: Url, fields: &[(&str, &str)]) -> Result<AccessToken> {
    let answer = search.post_form(url, fields).await?;
    match answer.status {
        StatusCode::OK => AccessToken::read(&answer, &search.operation),
        _ => Err(refusal(search, &answer)),
    }
}

/// Returns the error of an answer, with the service's own words.
fn refusal(search: &Search<'_>, answer: &IdentityResponse) -> Error {
    let said: ServiceError = serde_json::from_slice(&answer.body).unwrap_or_default();
    let (code, message) = match &said.error {
        Value::String(code) => (Some(code.as_str()), said.error_description.as_deref()),
        error => (error["status"].as_str(), error["message"].as_str()),
    };
    answer.error(code, message, &search.operation)
}

/// Requests a token of a service account, with a token that may do that (IAM Credentials API, `generateAccessToken`).
async fn impersonate(search: &Search<'_>, url: Url, token: &Secret) -> Result<FoundToken> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Impersonated {
        access_token: Secret,
        expire_time: Timestamp,
    }
    let account = url.path().rsplit('/').next().and_then(|last| last.split(':').next()).unwrap_or_default();
    let holder = format!("the service account {}", sanitize_within(account, 100));
    let body = json!({"scope": [SCOPE], "lifetime": format!("{LIFETIME_SECONDS}s")}).to_string();
    let request = IdentityRequest::new(Method::POST, url.clone())
        .header("content-type", "application/json")?
        .header("authorization", &format!("Bearer {}", token.expose()))?
        .body(body.into_bytes());
    let answer = search.ask_service(request).await?;
    if answer.status != StatusCode::OK {
        return Err(refusal(search, &answer));
    }
    let found: Impersonated = answer.json("an access token", &search.operation)?;
    let left = found.expire_time.duration_since(Timestamp::now());
    let lifetime = Duration::try_from(left).unwrap_or(Duration::from_secs(60));
    Ok((found.access_token, lifetime, holder))
}

/// Reads the token of the other side, that is exchanged.
async fn read_subject_token(search: &mut Search<'_>, file: &Path, source: &TokenSource) -> Result<Secret> {
    let shown = file.display();
    if let Some(environment) = &source.environment_id {
        let environment = sanitize_within(environment, 60);
        let detail = format!("{shown} exchanges keys of AWS (`environment_id: {environment}`), which is not supported");
        let hint = "use a provider of the pool that takes OIDC tokens, with `--credential-source-file` of `gcloud iam \
                    workload-identity-pools create-cred-config` (in EKS: a projected token of the service account), or \
                    the key of a service account";
        return Err(search.invalid(detail).with_hint(hint));
    }
    let (text, origin) = match (&source.file, &source.url) {
        (Some(token), _) => {
            let named_by = format!("`credential_source` in {shown}");
            (search.read_file(token, &named_by).await?, token.display().to_string())
        }
        (None, Some(url)) => {
            let mut request = IdentityRequest::new(Method::GET, parse_url(search, url, "credential_source.url", file)?);
            for (name, value) in &source.headers {
                let name: ::http::HeaderName = name.parse().map_err(|_| {
                    search.invalid(format!("`credential_source.headers` in {shown} holds an invalid name"))
                })?;
                request = request.named_header(name, value.expose())?;
            }
            let answer = search.ask_token_source(request, METADATA_HOST).await?;
            if answer.status != StatusCode::OK {
                return Err(refusal(search, &answer));
            }
            (Secret::new(String::from_utf8_lossy(&answer.body)), answer.origin)
        }
        (None, None) => {
            let detail =
                format!("`credential_source` in {shown} names neither a file nor a url; others are not supported");
            return Err(search.invalid(detail));
        }
    };
    let token = match &source.format {
        Some(TokenFormat { kind: Some(kind), subject_token_field_name: Some(field) }) if kind == "json" => {
            let parsed: Value = serde_json::from_str(text.expose()).unwrap_or_default();
            let Some(token) = parsed[field.as_str()].as_str() else {
                let field = sanitize_within(field, 60);
                return Err(search.invalid(format!("{origin} holds no JSON with the text `{field}`")));
            };
            Secret::new(token)
        }
        _ => Secret::new(text.expose().trim()),
    };
    match token.expose().is_empty() {
        true => Err(search.invalid(format!("{origin} holds no token"))),
        false => Ok(token),
    }
}

/// Signs a request for a token with the key of a service account (RFC 7523; RS256).
fn sign(email: &str, key: &Secret, key_id: Option<&str>, audience: &str) -> std::result::Result<Secret, &'static str> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(key.expose().as_bytes()).map_err(|_| "it is no PEM of PKCS #8")?;
    let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| "it is no RSA key of at least 2048 bits")?;
    let now = Timestamp::now().as_second();
    let mut header = json!({"alg": "RS256", "typ": "JWT"});
    if let Some(id) = key_id {
        header["kid"] = json!(id);
    }
    let claims = json!({"iss": email, "scope": SCOPE, "aud": audience, "iat": now, "exp": now + LIFETIME_SECONDS});
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
        .map_err(|_| "signing with it failed")?;
    Ok(Secret::new(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))))
}
