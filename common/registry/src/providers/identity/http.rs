//! Requests to metadata services and token services: bounded in time and size, and never redirected.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderName, Method, StatusCode};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry;
use imgsync_oci::sanitize::sanitize_within;
use serde::de::DeserializeOwned;
use url::{Host, Url};

use crate::failure::{RequestTarget, error_chain, transport_error};
use crate::{is_loopback, ssrf};

/// Time limit for an answer of a metadata service: it is on the same machine. A machine that has none drops the packets.
pub(crate) const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
/// Pauses before a metadata service that is expected to be there is asked again: those of GKE and EKS may not answer in
/// the first seconds of a pod, and others throttle.
const METADATA_PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(1500)];
/// A metadata service that nobody expected, and that did not answer, is not asked again for this long.
const METADATA_SILENCE: Duration = Duration::from_secs(60);
/// The same for one that is expected to be there.
pub(super) const OUTAGE_CACHE_TTL: Duration = Duration::from_secs(5);
/// Time limit for an answer of a token service.
pub(crate) const SERVICE_TIMEOUT: Duration = Duration::from_secs(15);
/// Size limit of an answer: tokens have some kilobytes.
pub(crate) const MAX_ANSWER_BYTES: usize = 128 << 10;
/// Characters quoted of an answer.
const MAX_QUOTED_CHARS: usize = 300;
/// Addresses of metadata services, at which they also issue tokens for other clouds.
const METADATA_SERVICES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];

/// Sends requests for identities.
#[derive(Debug, Default)]
pub(super) struct IdentityHttp {
    metadata: OnceLock<reqwest::Client>,
    /// Metadata services that did not answer, by origin, with the reason. Their addresses come from variables, so there
    /// are few.
    silent: Mutex<HashMap<String, Silence>>,
}

/// A metadata service that did not answer.
#[derive(Debug)]
struct Silence {
    no_answer: NoAnswer,
    until: Instant,
}

/// Why a metadata service gave no answer that can be used.
#[derive(Debug, Clone)]
pub(super) struct NoAnswer {
    pub(super) why: String,
    /// Whether the service is expected to be there, and so may answer soon.
    pub(super) is_outage: bool,
}

/// A request to a metadata service or a token service.
#[derive(Debug, Clone)]
pub(in crate::providers) struct IdentityRequest {
    pub(super) method: Method,
    pub(in crate::providers) url: Url,
    pub(in crate::providers) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// An answer, within the size limit.
#[derive(Debug)]
pub(in crate::providers) struct IdentityResponse {
    pub(in crate::providers) status: StatusCode,
    pub(in crate::providers) headers: HeaderMap,
    pub(in crate::providers) body: Vec<u8>,
    /// Who answered, for errors.
    pub(in crate::providers) origin: String,
}

/// Builds the body of a form.
pub(in crate::providers) fn form(fields: &[(&str, &str)]) -> Vec<u8> {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish().into_bytes()
}

impl IdentityRequest {
    pub(in crate::providers) fn new(method: Method, url: Url) -> IdentityRequest {
        IdentityRequest { method, url, headers: HeaderMap::new(), body: Vec::new() }
    }

    /// Returns who is asked, for errors.
    pub(in crate::providers) fn origin(&self) -> String {
        ssrf::origin(&self.url)
    }

    /// Adds a header. Its value may be a secret.
    pub(in crate::providers) fn header(self, name: &'static str, value: &str) -> Result<IdentityRequest> {
        self.named_header(HeaderName::from_static(name), value)
    }

    /// Adds a header with a name from a file.
    pub(in crate::providers) fn named_header(mut self, name: HeaderName, value: &str) -> Result<IdentityRequest> {
        let mut value = ::http::HeaderValue::from_str(value).map_err(|_| {
            let operation = format!("requesting {}", ssrf::origin(&self.url));
            Error::new(
                ErrorKind::Invalid,
                operation,
                format!("`{name}` would hold characters that no header can carry"),
            )
        })?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(self)
    }

    /// Adds all of these headers.
    pub(in crate::providers) fn headers(mut self, headers: HeaderMap) -> IdentityRequest {
        self.headers.extend(headers);
        self
    }

    pub(in crate::providers) fn body(mut self, body: Vec<u8>) -> IdentityRequest {
        self.body = body;
        self
    }

    /// Sets the body to a form.
    pub(in crate::providers) fn form(self, fields: &[(&str, &str)]) -> Result<IdentityRequest> {
        Ok(self.header("content-type", "application/x-www-form-urlencoded")?.body(form(fields)))
    }
}

impl IdentityHttp {
    /// Asks a metadata service; one that is expected to be there, up to three times. That there was no answer is remembered.
    pub(super) async fn ask_metadata(
        &self,
        request: IdentityRequest,
        is_expected: bool,
    ) -> std::result::Result<IdentityResponse, NoAnswer> {
        let origin = ssrf::origin(&request.url);
        {
            let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = silent.get(&origin).filter(|known| Instant::now() < known.until) {
                return Err(known.no_answer.clone());
            }
        }
        let client = self.metadata.get_or_init(metadata_client);
        let mut pauses = METADATA_PAUSES.iter().filter(|_| is_expected);
        let why = loop {
            let answer = tokio::time::timeout(METADATA_TIMEOUT, send(client, request.clone())).await;
            let pause = pauses.next();
            let why = match answer {
                Ok(Ok(answer)) if pause.is_some() && answer.is_busy() => answer.describe(),
                Ok(Ok(answer)) => {
                    self.silent.lock().unwrap_or_else(PoisonError::into_inner).remove(&origin);
                    return Ok(answer);
                }
                Ok(Err(Failure::TooLarge)) => return Err(NoAnswer { why: too_large(), is_outage: false }),
                Ok(Err(Failure::Transport(error))) => error_chain(&error.without_url()),
                Err(_) => format!("no answer within {}", retry::format_duration(METADATA_TIMEOUT)),
            };
            let Some(pause) = pause else { break why };
            tracing::debug!("{origin} did not answer: {why}; asking it again");
            tokio::time::sleep(*pause).await;
        };
        let until = Instant::now() + if is_expected { OUTAGE_CACHE_TTL } else { METADATA_SILENCE };
        let no_answer = NoAnswer { why, is_outage: is_expected };
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.insert(origin, Silence { no_answer: no_answer.clone(), until });
        Err(no_answer)
    }

    /// Asks a token service over TLS, through the proxy of the environment.
    pub(super) async fn ask_service(&self, request: IdentityRequest, operation: &str) -> Result<IdentityResponse> {
        refuse_plain_http(&request.url, operation)?;
        let client = crate::http::non_registry_client(&request.url)?;
        ask(&client, request, operation).await
    }
}

/// Sends a request with a given client, within the limits of a token service.
pub(super) async fn ask(
    client: &reqwest::Client,
    request: IdentityRequest,
    operation: &str,
) -> Result<IdentityResponse> {
    let origin = ssrf::origin(&request.url);
    match tokio::time::timeout(SERVICE_TIMEOUT, send(client, request)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Failure::TooLarge)) => Err(Error::new(ErrorKind::InvalidResponse, operation, too_large())),
        Ok(Err(Failure::Transport(error))) => {
            let target = RequestTarget { registry: origin.clone(), origin, ..RequestTarget::default() };
            let error = transport_error(error, operation, &target);
            if error.is_out_of_files() || error.message().contains(&target.origin) {
                return Err(error);
            }
            // The operation names only the registry.
            let detail = format!("{} did not answer: {}", target.origin, error.message());
            let named = Error::new(error.kind(), operation, detail);
            Err(error.hint().into_iter().fold(named, Error::with_hint))
        }
        Err(_) => {
            let detail = format!("{origin} did not answer within {}", retry::format_duration(SERVICE_TIMEOUT));
            Err(Error::new(ErrorKind::TimedOut, operation, detail))
        }
    }
}

fn too_large() -> String {
    format!("the answer has more than {} KiB", MAX_ANSWER_BYTES >> 10)
}

fn metadata_client() -> reqwest::Client {
    imgsync_tls::install_tls_provider();
    let builder = reqwest::Client::builder()
        .user_agent(crate::http::USER_AGENT)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .http1_only()
        .connect_timeout(METADATA_TIMEOUT)
        .tls_certs_only(crate::http::system_certificates());
    // It fails only if no TLS is set up, which was done before.
    builder.build().unwrap_or_default()
}

enum Failure {
    Transport(reqwest::Error),
    TooLarge,
}

async fn send(client: &reqwest::Client, request: IdentityRequest) -> std::result::Result<IdentityResponse, Failure> {
    let origin = ssrf::origin(&request.url);
    let mut sent = client.request(request.method.clone(), request.url).headers(request.headers);
    if !matches!(request.method, Method::GET) {
        sent = sent.header(::http::header::CONTENT_LENGTH, request.body.len()).body(request.body);
    }
    let mut response = sent.send().await.map_err(Failure::Transport)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(Failure::Transport)? {
        if body.len() + piece.len() > MAX_ANSWER_BYTES {
            return Err(Failure::TooLarge);
        }
        body.extend_from_slice(&piece);
    }
    Ok(IdentityResponse { status, headers, body, origin })
}

/// Refuses to send a token in plain HTTP, except to this machine.
pub(super) fn refuse_plain_http(url: &Url, operation: &str) -> Result<()> {
    match url.scheme() {
        "https" => Ok(()),
        "http" if url.host_str().is_some_and(is_loopback) => Ok(()),
        _ => {
            let detail = format!("a token would be sent without TLS to {}", ssrf::origin(url));
            Err(Error::new(ErrorKind::Insecure, operation, detail).with_hint("write its address with https://"))
        }
    }
}

/// Whether the credentials of a container or an app may be requested there: over TLS, on this machine, or at the addresses
/// that its cloud uses.
pub(super) fn is_container_service(url: &Url, is_clouds: fn(IpAddr) -> bool) -> bool {
    let is_known = match url.host() {
        Some(Host::Ipv4(address)) => is_clouds(address.into()),
        Some(Host::Ipv6(address)) => is_clouds(address.into()),
        _ => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && (is_known || url.host_str().is_some_and(is_loopback)))
}

/// Whether a URL in plain HTTP leads to a metadata service, by its address or by a name of the cloud, or to this machine.
pub(super) fn is_metadata_service(url: &Url, clouds_name: &str) -> bool {
    let is_known = match url.host() {
        Some(Host::Ipv4(address)) => METADATA_SERVICES.contains(&address.into()),
        Some(Host::Ipv6(address)) => METADATA_SERVICES.contains(&address.into()),
        Some(Host::Domain(name)) => name == clouds_name,
        None => false,
    };
    url.scheme() == "http" && (is_known || url.host_str().is_some_and(is_loopback))
}

impl IdentityResponse {
    /// Whether the service asks to come back. Azure's answers 410 while it is updated (Azure, "How to use managed
    /// identities to acquire an access token", error handling).
    pub(in crate::providers) fn is_busy(&self) -> bool {
        self.status.is_server_error() || matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::GONE)
    }

    /// Parses JSON. The error does not quote the answer, which may hold a secret.
    pub(in crate::providers) fn json<T: DeserializeOwned>(&self, what: &str, operation: &str) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|_| {
            let detail = format!("{} answered with something else than {what}: {}", self.origin, self.describe());
            Error::new(ErrorKind::InvalidResponse, operation, detail)
        })
    }

    /// Describes an unexpected answer without its content: what kind of text, of how many bytes.
    pub(in crate::providers) fn describe(&self) -> String {
        let kind = self.headers.get(::http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_redirect = self.status.is_redirection();
        let redirect = if is_redirect { ", a redirect, which is not followed" } else { "" };
        let kind = kind.map(|kind| format!("{} of ", sanitize_within(kind, 60))).unwrap_or_default();
        format!("{kind}{} bytes (status {}{redirect})", self.body.len(), self.status.as_u16())
    }

    /// Returns the error of an answer that is none of 200, with the service's own words.
    pub(in crate::providers) fn error(&self, code: Option<&str>, message: Option<&str>, operation: &str) -> Error {
        let status = self.status.as_u16();
        let kind = match retry::kind_of_status(status) {
            _ if self.status == StatusCode::GONE => ErrorKind::ServerError,
            kind @ (ErrorKind::RateLimited | ErrorKind::ServerError | ErrorKind::InvalidResponse) => kind,
            _ => ErrorKind::Denied,
        };
        let quoted = |text: &str| sanitize_within(text.trim(), MAX_QUOTED_CHARS).into_owned();
        let said = match (code, message) {
            (Some(code), Some(message)) => format!("{}: {}", quoted(code), quoted(message)),
            (Some(only), None) | (None, Some(only)) => quoted(only),
            (None, None) => self.describe(),
        };
        Error::new(kind, operation, format!("{} refused ({status}): {said}", self.origin))
            .with_status(status, code.map(quoted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_credentials_of_containers_are_requested_in_plain_http_only_where_their_cloud_has_them() {
        let is_clouds = |address: IpAddr| address == IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2));
        let allowed = |text: &str| is_container_service(&text.parse().unwrap(), is_clouds);
        for url in [
            "http://169.254.170.2/v2/credentials",
            "http://127.0.0.1:4000/x",
            "http://localhost/x",
            "https://credentials.example.org/x",
        ] {
            assert!(allowed(url), "{url}");
        }
        for url in ["http://10.0.0.5/x", "http://169.254.169.254/x", "http://credentials.example.org/x", "ftp://h/x"] {
            assert!(!allowed(url), "{url}");
        }
    }

    #[test]
    fn plain_http_is_only_for_the_metadata_services_of_clouds_and_this_machine() {
        let allowed = |text: &str| is_metadata_service(&text.parse().unwrap(), "metadata.cloud.internal");
        for url in [
            "http://169.254.169.254/metadata/identity/oauth2/token?resource=x",
            "http://[fd00:ec2::254]/latest/api/token",
            "http://metadata.cloud.internal/computeMetadata/v1/x",
            "http://127.0.0.1:4000/x",
        ] {
            assert!(allowed(url), "{url}");
        }
        for url in [
            "http://169.254.170.2/v2/credentials",
            "http://10.0.0.5/x",
            "http://metadata.cloud.internal.example.org/x",
            "http://tokens.example.org/x",
            "https://169.254.169.254/x",
        ] {
            assert!(!allowed(url), "{url}");
        }
    }
}
