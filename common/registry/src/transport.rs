//! Sends requests: authorization, redirects, error classification, counting.

use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use futures_util::future::BoxFuture;
use reqwest::Body;
use tracing::Instrument as _;
use url::Url;

use super::aimd::OperationKind;
use super::auth::Authorization;
use super::context::RequestKind;
use super::failure::{says_expired, transport_error};
use super::request_body::{ProgressFn, RequestBody};
use super::request_class::RequestClass;
pub(crate) use super::response::Response;
use super::send_progress;
use super::throttling::RequestPermits;
use super::{Repository, ssrf};
use crate::event::{self, Event};
use crate::wait::sleep;
use imgsync_oci::RepositoryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::{self, RetryState};

/// More redirects than this are a loop.
pub(super) const MAX_REDIRECTS: usize = 10;

/// A request to send.
#[derive(Debug)]
pub(crate) struct RequestSpec<'a> {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: RequestBody,
    /// Repository to mount from, which needs access of its own.
    pub mount_from: Option<&'a RepositoryName>,
    /// Network of the host that named the URL, if not the registry itself.
    pub named_by_scope: Option<ssrf::NetworkScope>,
    pub kind: RequestKind,
    /// The operation, for errors.
    pub operation: &'a str,
}

impl<'a> RequestSpec<'a> {
    pub(crate) fn new(method: Method, url: Url, operation: &'a str) -> RequestSpec<'a> {
        RequestSpec {
            method,
            url,
            headers: HeaderMap::new(),
            body: RequestBody::Empty,
            mount_from: None,
            named_by_scope: None,
            kind: RequestKind::Request,
            operation,
        }
    }

    pub(crate) fn header(mut self, name: header::HeaderName, value: &str) -> RequestSpec<'a> {
        // Values come from validated types; an invalid header value is skipped.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }

    pub(crate) fn body(mut self, payload: RequestBody) -> RequestSpec<'a> {
        self.body = payload;
        self
    }

    pub(crate) fn named_by_scope(mut self, reach: ssrf::NetworkScope) -> RequestSpec<'a> {
        self.named_by_scope = Some(reach);
        self
    }

    pub(crate) fn kind(mut self, counted: RequestKind) -> RequestSpec<'a> {
        self.kind = counted;
        self
    }
}

impl Repository {
    /// Sends a request once, apart from a renewed token and redirects (of GET and HEAD). Returns at once on
    /// cancellation, whether it waits for DNS, a token fetched by another request, or the registry.
    pub(crate) async fn send(&self, outgoing: RequestSpec<'_>) -> Result<Response> {
        let operation = outgoing.operation;
        self.or_cancelled(Box::pin(self.send_authorized(outgoing)), operation).await
    }

    async fn or_cancelled<T>(&self, work: BoxFuture<'_, Result<T>>, operation: &str) -> Result<T> {
        tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(Error::cancelled(operation)),
            done = work => done,
        }
    }

    async fn send_authorized(&self, outgoing: RequestSpec<'_>) -> Result<Response> {
        let RequestSpec { method, url, headers, body, mount_from, named_by_scope, kind, operation } = outgoing;
        let class = self.classify_request(&method, &url, &headers);
        let scope = self.scope(mount_from, class.credential_index);
        let is_home = ssrf::same_origin(&url, &self.registry.base);
        let http = self.http_client_for(&url, named_by_scope);
        let mut authorization = match is_home {
            true => self.get_authorization(&scope).await?,
            false => None,
        };
        let mut body = body;
        let mut renewed = false;
        loop {
            let mut with_login = headers.clone();
            if let Some(authorization) = &authorization {
                with_login.insert(header::AUTHORIZATION, authorization.header.clone());
            }
            // Checked before sending: after an upload of minutes every token is old.
            let doubtful = self.uses_tokens()
                && authorization
                    .as_ref()
                    .is_some_and(|used| used.since.elapsed() > self.client.0.settings.suspect_token_age);
            let once = matches!(body, RequestBody::Stream(..));
            let carried = match &body {
                RequestBody::Bytes(bytes) => RequestBody::Bytes(bytes.clone()),
                RequestBody::Empty | RequestBody::Stream(..) => std::mem::replace(&mut body, RequestBody::Empty),
            };
            let mut permits = match is_home {
                true => self.acquire_permits(class, operation).await?,
                false => RequestPermits::default(),
            };
            self.await_rate(class, operation).await?;
            self.counters.count(kind);
            let sent = self.send_once(&http, method.clone(), url.clone(), with_login, carried, operation).await;
            let sent = sent.inspect_err(|error| self.observe_timeout(class, &permits, error))?;
            let sent = Response { class, ..sent };
            let status = sent.status();
            if is_home {
                self.observe_response(class, &permits, status, sent.headers()).await;
            }
            if is_home && !renewed {
                if status.is_client_error() {
                    // The token may have to be fetched first, which needs a permit itself.
                    permits = RequestPermits::default();
                }
                let fresh = match status {
                    StatusCode::UNAUTHORIZED => {
                        self.answer_challenge(sent.headers(), &scope, authorization.as_ref()).await?
                    }
                    // Some registries answer so to an expired token. Only a second attempt can tell; a request that
                    // cannot be repeated fails with the registry's own message.
                    StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN if doubtful => {
                        if let Some(used) = &authorization {
                            self.forget_token(&scope, used).await;
                        }
                        if once { None } else { self.get_authorization(&scope).await? }
                    }
                    _ => None,
                };
                if let Some(fresh) = fresh {
                    if once {
                        return Err(Error::new(
                            ErrorKind::TokenExpired,
                            operation,
                            "the token expired before the upload started",
                        ));
                    }
                    authorization = Some(fresh);
                    renewed = true;
                    continue;
                }
            }
            let with_credentials = authorization.as_ref().is_some_and(|used| used.with_credentials);
            let may_follow = matches!(method, Method::GET | Method::HEAD);
            if may_follow && matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                let sent = Response { with_credentials, ..sent };
                return self.follow_redirects(sent, &method, &headers, authorization, operation).await;
            }
            // Other requests release their permits with the response head.
            let permits = match method == Method::GET && !self.registry.is_source_and_target() {
                true => permits.into_permits(),
                false => Default::default(),
            };
            return Ok(Response { with_credentials, _permits: permits, ..sent });
        }
    }

    /// Sends a request once with the given credential of the pool and the given authorization, or none. Follows
    /// redirects of GET and HEAD.
    pub(crate) async fn send_as(
        &self,
        outgoing: RequestSpec<'_>,
        credential_index: usize,
        login: Option<Authorization>,
    ) -> Result<Response> {
        let operation = outgoing.operation;
        self.or_cancelled(Box::pin(self.send_as_once(outgoing, credential_index, login)), operation).await
    }

    async fn send_as_once(
        &self,
        outgoing: RequestSpec<'_>,
        credential_index: usize,
        login: Option<Authorization>,
    ) -> Result<Response> {
        let RequestSpec { method, url, headers, body, kind, operation, .. } = outgoing;
        let is_home = ssrf::same_origin(&url, &self.registry.base);
        let mut with_login = headers.clone();
        if let Some(login) = login.as_ref().filter(|_| is_home) {
            with_login.insert(header::AUTHORIZATION, login.header.clone());
        }
        let http = self.http_client_for(&url, None);
        let class = RequestClass::auxiliary(credential_index);
        let permits = match is_home {
            true => self.acquire_permits(class, operation).await?,
            false => RequestPermits::default(),
        };
        self.await_rate(class, operation).await?;
        self.counters.count(kind);
        let sent = self.send_once(&http, method.clone(), url, with_login, body, operation).await;
        let sent = sent.inspect_err(|error| self.observe_timeout(class, &permits, error))?;
        if is_home {
            self.observe_response(class, &permits, sent.status(), sent.headers()).await;
        }
        let with_credentials = login.is_some();
        let sent = Response { with_credentials, class, _permits: permits.into_permits(), ..sent };
        match matches!(method, Method::GET | Method::HEAD) {
            true => self.follow_redirects(sent, &method, &headers, login, operation).await,
            false => Ok(sent),
        }
    }

    async fn follow_redirects(
        &self,
        first: Response,
        method: &Method,
        headers: &HeaderMap,
        authorization: Option<Authorization>,
        operation: &str,
    ) -> Result<Response> {
        let mut response = first;
        for _ in 0..MAX_REDIRECTS {
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let (next, named_by_scope) = self.resolve_location(&response, "redirect", operation)?;
            let mut headers = headers.clone();
            if ssrf::same_origin(&next, &self.registry.base)
                && let Some(authorization) = &authorization
            {
                headers.insert(header::AUTHORIZATION, authorization.header.clone());
            }
            let http = self.http_client_for(&next, Some(named_by_scope));
            let class = response.class;
            if ssrf::same_origin(&next, &self.registry.base) {
                self.await_rate(class, operation).await?;
            }
            self.counters.count(RequestKind::Redirect);
            let (with_credentials, was_outside) = (response.with_credentials, response.is_publicly_routed);
            let next = self.send_once(&http, method.clone(), next, headers, RequestBody::Empty, operation).await?;
            let is_publicly_routed = next.is_publicly_routed && was_outside;
            response = Response { with_credentials, class, is_publicly_routed, ..next };
        }
        Err(Error::new(ErrorKind::InvalidResponse, operation, format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Returns the validated URL in a response's `Location`, and the network of the host that named it.
    pub(crate) fn resolve_location(
        &self,
        response: &Response,
        what: &str,
        operation: &str,
    ) -> Result<(Url, ssrf::NetworkScope)> {
        let written = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let Some(written) = written else {
            return Err(Error::new(
                ErrorKind::InvalidResponse,
                operation,
                format!("the response ({}) has no Location", response.status()),
            ));
        };
        let next = response.url.join(written).map_err(|error| {
            Error::new(ErrorKind::InvalidResponse, operation, "the response's Location is not a URL").with_source(error)
        })?;
        let named_by_scope = self.network_scope().min(response.network_scope);
        Ok((
            ssrf::validate_url(&response.url, next, named_by_scope, self.registry.settings.allowed(), what)?,
            named_by_scope,
        ))
    }

    /// Returns the network that the registry itself is in.
    pub(crate) fn network_scope(&self) -> ssrf::NetworkScope {
        self.registry.network_scope()
    }

    /// Returns the HTTP client for a URL: one limited to public addresses if a public host named another host.
    /// `named_by_scope` is the network of the host that named the URL, if not the registry itself.
    pub(crate) fn http_client_for(&self, url: &Url, named_by_scope: Option<ssrf::NetworkScope>) -> reqwest::Client {
        if ssrf::same_origin(url, &self.registry.base) {
            return self.registry.http.clone();
        }
        let named_by_scope = named_by_scope.map_or(self.network_scope(), |named_in| named_in.min(self.network_scope()));
        match !self.registry.settings.allow_private && named_by_scope == ssrf::NetworkScope::Public {
            true => self.registry.http_public_only.clone(),
            false => self.registry.http_redirect.clone(),
        }
    }

    /// Sends one request. The response head must arrive within the stall timeout; for a slow request body, within that
    /// time after the last byte, while bytes must flow at a minimum rate before.
    pub(crate) async fn send_once(
        &self,
        http: &reqwest::Client,
        method: Method,
        url: Url,
        headers: HeaderMap,
        carried: RequestBody,
        operation: &str,
    ) -> Result<Response> {
        let target = self.registry.request_target(&url).map_err(|error| error.with_registry(&self.registry.name))?;
        let (began, stall, purpose) = (Instant::now(), self.stall_timeout(), self.request_purpose(&method, &url));
        let mut headers = headers;
        let (body, progress): (_, Option<ProgressFn>) = match carried {
            RequestBody::Empty => (None, None),
            RequestBody::Bytes(bytes) if bytes.len() <= send_progress::MAX_UNWATCHED_BODY_BYTES => {
                (Some(Body::from(bytes)), None)
            }
            RequestBody::Bytes(bytes) => {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
                let (body, progress) = send_progress::watch_body(bytes);
                (Some(body), Some(Box::new(progress)))
            }
            RequestBody::Stream(body, progress) => (Some(body), Some(progress)),
        };
        let late = async {
            match progress {
                Some(progress) => send_progress::wait_until_stalled(stall, progress).await,
                None => {
                    tokio::time::sleep(stall).await;
                    format!("no response within {}", retry::format_duration(stall))
                }
            }
        };
        tokio::select! {
            result = self.send_once_without_deadline(http, method, url, headers, body, operation) => result,
            detail = late => {
                self.emit_answered(purpose, None, began.elapsed());
                Err(Error::new(ErrorKind::TimedOut, target.with_origin(operation), detail).with_registry(&self.registry.name))
            }
        }
    }

    async fn send_once_without_deadline(
        &self,
        http: &reqwest::Client,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<Body>,
        operation: &str,
    ) -> Result<Response> {
        let began = Instant::now();
        let purpose = self.request_purpose(&method, &url);
        let target = self.registry.request_target(&url).map_err(|error| error.with_registry(&self.registry.name))?;
        let span = tracing::debug_span!(
            "request", registry = %self.registry.name, %method, purpose = purpose.as_str(), status = tracing::field::Empty
        );
        ssrf::refuse_metadata(&url, self.registry.settings.allowed(), operation)?;
        if self.registry.settings.public_only {
            ssrf::refuse_private(&url, operation)?;
        }
        let mut request = http.request(method.clone(), url.clone()).headers(headers);
        // hyper omits the length of an empty body, which some servers answer with 411 (RFC 9110, 8.6).
        let is_empty = body.as_ref().is_none_or(|body| body.as_bytes().is_some_and(<[u8]>::is_empty));
        if is_empty && matches!(method, Method::POST | Method::PUT | Method::PATCH) {
            request = request.header(header::CONTENT_LENGTH, 0);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(operation)),
            response = request.send().instrument(span.clone()) => response,
        };
        let status = response.as_ref().ok().map(|response| response.status().as_u16());
        span.record("status", status);
        self.emit_answered(purpose, status, began.elapsed());
        let response =
            response.map_err(|error| transport_error(error, operation, &target).with_registry(&self.registry.name))?;
        let network_scope = self.registry.record_peer_scope(&url, response.remote_addr());
        let is_publicly_routed = network_scope == ssrf::NetworkScope::Public && !self.registry.is_proxied(&url);
        let response = Response::new(response, url, target, began, self.stall_timeout(), self.context.cancel.clone());
        Ok(Response { network_scope, is_publicly_routed, ..response })
    }

    /// Returns the purpose of a request, for metrics.
    fn request_purpose(&self, method: &Method, url: &Url) -> event::RequestPurpose {
        match ssrf::same_origin(url, &self.registry.base) {
            true => OperationKind::from_request(method, url).into(),
            false => event::RequestPurpose::OtherHost,
        }
    }

    fn emit_answered(&self, purpose: event::RequestPurpose, status: Option<u16>, duration: Duration) {
        let registry = self.registry.name.clone();
        self.context.events.emit(Event::RequestCompleted { registry, purpose, status, duration });
    }

    /// Retries an operation until it succeeds, fails permanently, or the attempts are used up.
    pub(crate) async fn with_retries<T, F>(&self, once: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.with_retry_state(self.new_retry(), once).await
    }

    /// The same, with given retry state.
    pub(crate) async fn with_retry_state<T, F>(&self, mut retry: RetryState, mut once: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        loop {
            match once().await {
                Ok(value) => return Ok(value),
                Err(error) => self.wait_before_retry(&mut retry, error).await?,
            }
        }
    }

    /// Waits before the next attempt, emitting an event, or returns the error if there is none.
    pub async fn wait_before_retry(&self, retry: &mut RetryState, error: Error) -> Result<()> {
        retry
            .wait_before_retry(
                error,
                |delay| sleep(delay, &self.context.cancel),
                |error, attempt, wait| {
                    self.counters.record_retry();
                    self.context.events.emit(Event::Retrying {
                        error: error.to_string(),
                        kind: error.kind(),
                        registry: error.registry().cloned(),
                        attempt,
                        wait,
                    });
                },
            )
            .await
    }

    /// Returns the error of an unexpected response, with a hint.
    pub(crate) async fn error_from_response(&self, response: Response, operation: &str) -> Error {
        let (with_credentials, began, kind) = (response.with_credentials, response.began, response.class);
        let (is_elsewhere, host) = (response.target.is_other_origin, response.target.origin.clone());
        let error = response.into_error(operation).await.with_registry(&self.registry.name);
        let error = self.observe_error(kind, error).await;
        match error.kind() {
            // Some registries report an expired token by message and not by a challenge: a renewed token may help.
            ErrorKind::Denied | ErrorKind::Refused
                if says_expired(error.message())
                    && Box::pin(self.forget_credentials(kind.credential_index, began)).await =>
            {
                let hint = self.login_hint(true);
                error.with_kind(ErrorKind::TokenExpired).with_hint(hint)
            }
            // From the proxy; the error already has a hint.
            ErrorKind::Denied if error.status() == Some(407) => error,
            ErrorKind::Denied if is_elsewhere => error.with_hint(format!(
                "{host} refused, where {} redirected; credentials are not sent to other hosts",
                self.registry.name
            )),
            ErrorKind::Denied => {
                let hint = self.login_hint(with_credentials);
                // With the identity, which is not there for now, it may succeed.
                let is_outage = !with_credentials && self.registry.auth.fallback.has_outage();
                let error = if is_outage { error.with_kind(ErrorKind::Unreachable) } else { error };
                error.with_hint(hint)
            }
            ErrorKind::RateLimited if !with_credentials => {
                let hint = format!("logging in to {} usually allows more", self.registry.name);
                error.with_hint(hint)
            }
            _ => error,
        }
    }
}
