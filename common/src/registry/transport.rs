//! One request and its answer: authorization, redirects, classification of what went wrong, counting.

use std::time::{Duration, Instant, SystemTime};

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use reqwest::Body;
use tokio::sync::OwnedSemaphorePermit;
use url::Url;

use super::auth::Authorization;
use super::context::Counted;
use super::http::chain;
use super::{Repository, api_error, hop, ratelimit, retry_after};
use crate::error::{Class, Error, Result};
use crate::event::Event;
use crate::image::RepositoryName;
use crate::retry::{self, Retry};
use crate::store::Account;

/// More hops than this are a loop.
const MAX_REDIRECTS: usize = 10;
/// As much of an error's body as is looked at.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// What a request carries.
#[derive(Debug)]
pub(crate) enum Payload {
    Nothing,
    Bytes(Bytes),
    /// Can be sent once only, and is watched over by who made it: no limit on how long the answer takes.
    Stream(Body),
}

/// A request to be made.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub payload: Payload,
    /// The repository to mount from, which needs access of its own.
    pub from: Option<&'a RepositoryName>,
    pub counted: Counted,
    /// What is being done, for errors.
    pub tried: &'a str,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(method: Method, url: Url, tried: &'a str) -> Outgoing<'a> {
        Outgoing {
            method,
            url,
            headers: HeaderMap::new(),
            payload: Payload::Nothing,
            from: None,
            counted: Counted::Request,
            tried,
        }
    }

    pub(crate) fn header(mut self, name: header::HeaderName, value: &str) -> Outgoing<'a> {
        // Values come from checked types; one that no header can carry is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }

    pub(crate) fn payload(mut self, payload: Payload) -> Outgoing<'a> {
        self.payload = payload;
        self
    }

    pub(crate) fn counted(mut self, counted: Counted) -> Outgoing<'a> {
        self.counted = counted;
        self
    }
}

/// What came back, its body not read yet.
#[derive(Debug)]
pub(crate) struct Answer {
    response: reqwest::Response,
    /// Where it came from, after redirects.
    url: Url,
    stall: Duration,
    with_credentials: bool,
    /// When the request was made.
    began: Instant,
    /// Its place among the requests that may be open at a time.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Repository {
    /// Makes a request, once, but for a fresh token and for redirects (of GET and HEAD).
    pub(crate) async fn send(&self, outgoing: Outgoing<'_>) -> Result<Answer> {
        let Outgoing { method, url, headers, payload, from, counted, tried } = outgoing;
        let scope = self.scope(from);
        let is_home = hop::same_origin(&url, &self.registry.base);
        let http = self.http_for(&url).await;
        let mut authorization = match is_home {
            true => self.authorization(&scope).await?,
            false => None,
        };
        let mut payload = payload;
        let mut renewed = false;
        loop {
            let mut with_login = headers.clone();
            if let Some(authorization) = &authorization {
                with_login.insert(header::AUTHORIZATION, authorization.header.clone());
            }
            // Before it is sent: after an upload of minutes every token is old.
            let doubtful = self.uses_tokens()
                && authorization
                    .as_ref()
                    .is_some_and(|used| used.since.elapsed() > self.client.0.settings.doubtful_age);
            let (body, once) = match &mut payload {
                Payload::Nothing => (None, false),
                Payload::Bytes(bytes) => (Some(Body::from(bytes.clone())), false),
                Payload::Stream(body) => (Some(std::mem::take(body)), true),
            };
            let mut permit = self.permit(is_home, tried).await?;
            self.paced(tried).await?;
            self.tally.count(counted);
            let sent = match once {
                true => self.exchange_stream(&http, method.clone(), url.clone(), with_login, body, tried).await?,
                false => self.exchange(&http, method.clone(), url.clone(), with_login, body, tried).await?,
            };
            let status = sent.status();
            if is_home && !renewed {
                if status.is_client_error() {
                    // A token may have to be fetched first.
                    permit = None;
                }
                let fresh = match status {
                    StatusCode::UNAUTHORIZED => self.challenged(sent.headers(), &scope, authorization.as_ref()).await?,
                    // Some registries answer so to a token that has run out. Whether it was that, only a second try
                    // can tell; what cannot be sent twice ends with the registry's own words.
                    StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN if doubtful => {
                        if let Some(used) = &authorization {
                            self.forget(&scope, used).await;
                        }
                        if once { None } else { self.authorization(&scope).await? }
                    }
                    _ => None,
                };
                if let Some(fresh) = fresh {
                    if once {
                        return Err(Error::new(
                            Class::TokenExpired,
                            tried,
                            "the token ran out before the upload began",
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
                let sent = Answer { with_credentials, ..sent };
                return self.follow(sent, &method, &headers, authorization, tried).await;
            }
            // Of all others the answer's head is the end.
            let permit = permit.filter(|_| method == Method::GET && !self.registry.is_both_ends());
            return Ok(Answer { with_credentials, _permit: permit, ..sent });
        }
    }

    /// Makes a request, once, with this login or with none; redirects of GET and HEAD are followed.
    pub(crate) async fn send_as(&self, outgoing: Outgoing<'_>, login: Option<Authorization>) -> Result<Answer> {
        let Outgoing { method, url, headers, payload, counted, tried, .. } = outgoing;
        let is_home = hop::same_origin(&url, &self.registry.base);
        let mut with_login = headers.clone();
        if let Some(login) = login.as_ref().filter(|_| is_home) {
            with_login.insert(header::AUTHORIZATION, login.header.clone());
        }
        let body = match payload {
            Payload::Nothing => None,
            Payload::Bytes(bytes) => Some(Body::from(bytes)),
            Payload::Stream(body) => Some(body),
        };
        let http = self.http_for(&url).await;
        let permit = self.permit(is_home, tried).await?;
        self.paced(tried).await?;
        self.tally.count(counted);
        let sent = self.exchange(&http, method.clone(), url, with_login, body, tried).await?;
        let with_credentials = login.is_some();
        let sent = Answer { with_credentials, _permit: permit, ..sent };
        match matches!(method, Method::GET | Method::HEAD) {
            true => self.follow(sent, &method, &headers, login, tried).await,
            false => Ok(sent),
        }
    }

    async fn follow(
        &self,
        first: Answer,
        method: &Method,
        headers: &HeaderMap,
        authorization: Option<Authorization>,
        tried: &str,
    ) -> Result<Answer> {
        let mut answer = first;
        for _ in 0..MAX_REDIRECTS {
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let next = self.location(&answer, "redirect", tried).await?;
            let mut headers = headers.clone();
            if hop::same_origin(&next, &self.registry.base)
                && let Some(authorization) = &authorization
            {
                headers.insert(header::AUTHORIZATION, authorization.header.clone());
            }
            let http = self.http_for(&next).await;
            if hop::same_origin(&next, &self.registry.base) {
                self.paced(tried).await?;
            }
            self.tally.count(Counted::Redirect);
            let with_credentials = answer.with_credentials;
            answer = self.exchange(&http, method.clone(), next, headers, None, tried).await?;
            answer.with_credentials = with_credentials;
        }
        Err(Error::new(Class::BadAnswer, tried, format!("it redirected more than {MAX_REDIRECTS} times")))
    }

    /// The checked URL that an answer's `Location` names.
    pub(crate) async fn location(&self, answer: &Answer, what: &str, tried: &str) -> Result<Url> {
        let written = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let Some(written) = written else {
            return Err(Error::new(
                Class::BadAnswer,
                tried,
                format!("the answer ({}) has no Location", answer.status()),
            ));
        };
        let next = answer
            .url
            .join(written)
            .map_err(|error| Error::new(Class::BadAnswer, tried, "the answer's Location is no URL").because(error))?;
        hop::check(&answer.url, next, self.reach().await, self.registry.settings.allow_private, what)
    }

    /// Which network the registry itself is in.
    pub(crate) async fn reach(&self) -> hop::Reach {
        *self.registry.reach.get_or_init(|| hop::reach_of(&self.registry.base)).await
    }

    /// The client for a URL: where a public registry sends us elsewhere, one that connects to public addresses only.
    pub(crate) async fn http_for(&self, url: &Url) -> reqwest::Client {
        if hop::same_origin(url, &self.registry.base) {
            return self.registry.http.clone();
        }
        let guarded = !self.registry.settings.allow_private && self.reach().await == hop::Reach::Public;
        match guarded {
            true => self.registry.http_public_only.clone(),
            false => self.registry.http_elsewhere.clone(),
        }
    }

    /// Waits until the registry's pace allows one more request. A long wait is an error, at once.
    pub(crate) async fn paced(&self, tried: &str) -> Result<()> {
        let pass = async {
            self.registry.pacer.at(|| self.account()).await;
            self.registry.pacer.pass().await
        };
        let passed = tokio::select! {
            passed = pass => passed,
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(tried)),
        };
        passed.map_err(|wait| {
            let detail = format!("it asked to be left alone for {} more", retry::seconds(wait));
            Error::new(Class::RateLimited, tried, detail).retry_after(Some(wait)).at(&self.registry.name)
        })
    }

    /// Whom the registry counts our requests for.
    async fn account(&self) -> Account {
        let registry = self.registry.name.clone();
        let user = self.client.user_of(&registry).await.ok().flatten().map(String::into_boxed_str);
        Account { who: user.or_else(|| self.registry.settings.egress.clone()).unwrap_or_default(), registry }
    }

    /// Waits until one more request to the registry itself may be open.
    async fn permit(&self, is_home: bool, tried: &str) -> Result<Option<OwnedSemaphorePermit>> {
        if !is_home {
            return Ok(None);
        }
        tokio::select! {
            permit = self.registry.pacer.permit() => Ok(permit),
            () = self.context.cancel.cancelled() => Err(Error::cancelled(tried)),
        }
    }

    /// Where an answer says that there were too many requests, others are told.
    pub(crate) async fn mind(&self, error: &Error) {
        if error.class() == Class::RateLimited {
            self.registry.pacer.refused(error.wait()).await;
        }
    }

    /// One exchange of which the answer's head must come within the stall limit.
    pub(crate) async fn exchange(
        &self,
        http: &reqwest::Client,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<Body>,
        tried: &str,
    ) -> Result<Answer> {
        let stall = self.stall();
        match tokio::time::timeout(stall, self.exchange_stream(http, method, url, headers, body, tried)).await {
            Ok(result) => result,
            Err(_) => {
                let detail = format!("no answer within {}", retry::seconds(stall));
                Err(Error::new(Class::TimedOut, tried, detail).at(&self.registry.name))
            }
        }
    }

    async fn exchange_stream(
        &self,
        http: &reqwest::Client,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<Body>,
        tried: &str,
    ) -> Result<Answer> {
        let began = Instant::now();
        let mut request = http.request(method, url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(tried)),
            response = request.send() => response.map_err(|error| transport_error(error, tried).at(&self.registry.name))?,
        };
        Ok(Answer { response, url, stall: self.stall(), with_credentials: false, began, _permit: None })
    }

    /// Does something until it succeeds, fails for good, or has been tried often enough.
    pub(crate) async fn with_retries<T, F>(&self, mut once: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut retry = self.retry();
        loop {
            match once().await {
                Ok(value) => return Ok(value),
                Err(error) => self.pause(&mut retry, error).await?,
            }
        }
    }

    /// Waits before the next try, or gives the error to end with. Who watches is told.
    pub async fn pause(&self, retry: &mut Retry, error: Error) -> Result<()> {
        retry
            .pause(error, &self.context.cancel, |error, attempt, wait| {
                self.tally.retried();
                self.context.events.emit(Event::Retrying {
                    error: error.to_string(),
                    class: error.class(),
                    attempt,
                    wait,
                });
            })
            .await
    }

    /// The error of an answer that is not what was asked for, with what to do about it.
    pub(crate) async fn refusal(&self, answer: Answer, tried: &str) -> Error {
        let (with_credentials, began) = (answer.with_credentials, answer.began);
        let error = answer.into_error(tried).await.at(&self.registry.name);
        self.mind(&error).await;
        match error.class() {
            // Some say in words, and not by a challenge, that what was sent has run out: with a fresh one it may pass.
            Class::Denied | Class::Refused if says_expired(error.detail()) && Box::pin(self.renew(began)).await => {
                let hint = self.login_hint(true);
                error.as_class(Class::TokenExpired).hint(hint)
            }
            Class::Denied => {
                let hint = self.login_hint(with_credentials);
                error.hint(hint)
            }
            Class::RateLimited if !with_credentials => {
                let hint = format!("logging in to {} usually allows more", self.registry.name);
                error.hint(hint)
            }
            _ => error,
        }
    }
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    pub(crate) fn is_with_credentials(&self) -> bool {
        self.with_credentials
    }

    pub(crate) fn text_header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers().get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn content_length(&self) -> Option<u64> {
        self.text_header(header::CONTENT_LENGTH).and_then(|text| text.trim().parse().ok())
    }

    /// The next piece of the body; `None` at its end. A stall is an error.
    pub(crate) async fn chunk(&mut self, tried: &str) -> Result<Option<Bytes>> {
        match tokio::time::timeout(self.stall, self.response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| transport_error(error, tried)),
            Err(_) => Err(Error::new(
                Class::TimedOut,
                tried,
                format!("the answer stood still for {}", retry::seconds(self.stall)),
            )),
        }
    }

    /// The whole body, which must not be larger than `limit` bytes.
    pub(crate) async fn bytes(mut self, limit: usize, tried: &str) -> Result<Bytes> {
        let too_large = || {
            Error::new(Class::BadAnswer, tried, format!("the answer is larger than {} MiB", limit.div_ceil(1 << 20)))
        };
        if self.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunk(tried).await? {
            if whole.len() + chunk.len() > limit {
                return Err(too_large());
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }

    /// Reads the little that is left, so that the connection can be used again.
    pub(crate) async fn drain(mut self) {
        for _ in 0..16 {
            match tokio::time::timeout(Duration::from_secs(1), self.response.chunk()).await {
                Ok(Ok(Some(_))) => {}
                _ => return,
            }
        }
    }

    /// The error that an answer amounts to.
    pub(crate) async fn into_error(mut self, tried: &str) -> Error {
        let status = self.status();
        let mut body = Vec::new();
        while body.len() < MAX_ERROR_BYTES {
            match tokio::time::timeout(Duration::from_secs(5).min(self.stall), self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                _ => break,
            }
        }
        let said = api_error::parse(self.text_header(header::CONTENT_TYPE), &body);
        let now = SystemTime::now();
        let mut wait = self.text_header(header::RETRY_AFTER).and_then(|value| retry_after::parse(value, now));
        let quota = ratelimit::parse(self.headers(), now);
        let exhausted = quota.as_ref().is_some_and(ratelimit::Quota::is_exhausted);
        let class = classify(status, said.code.as_deref(), &said.message, wait.is_some() || exhausted);
        if class == Class::RateLimited && wait.is_none() && exhausted {
            wait = quota.and_then(|quota| quota.reset);
        }
        let mut detail = format!("answered {status}");
        if let Some(code) = &said.code {
            detail.push_str(&format!(" {code}"));
        }
        if !said.message.is_empty() {
            detail.push_str(&format!(": {}", said.message));
        }
        Error::new(class, tried, detail).answered(status.as_u16(), said.code).retry_after(wait)
    }
}

/// Whether a refusal is about a token that is too old: ECR's `Your authorization token has expired. Reauthenticate…`.
fn says_expired(detail: &str) -> bool {
    let detail = detail.to_ascii_lowercase();
    detail.contains("token") && ["expired", "has run out", "no longer valid"].iter().any(|word| detail.contains(word))
}

/// What kind of failure an answer is, by its status and what its body says.
fn classify(status: StatusCode, code: Option<&str>, message: &str, told_to_wait: bool) -> Class {
    let code = code.unwrap_or_default();
    let limited = code == "TOOMANYREQUESTS" || {
        let message = message.to_ascii_lowercase();
        message.contains("rate limit") || message.contains("too many requests")
    };
    match (status.as_u16(), code) {
        (403, _) if told_to_wait || limited => Class::RateLimited,
        (400 | 404, "MANIFEST_BLOB_UNKNOWN") => Class::Incomplete,
        (400 | 404, "BLOB_UNKNOWN") if status == StatusCode::BAD_REQUEST => Class::Incomplete,
        // Tried: distribution answers this to a session that is gone, or whose state was broken by a cut connection.
        (_, "BLOB_UPLOAD_INVALID" | "BLOB_UPLOAD_UNKNOWN") => Class::NotFound,
        (400, _) if limited => Class::RateLimited,
        (status, _) => retry::class_of_status(status),
    }
}

/// The error of a request that got no answer, or whose answer broke off.
pub(crate) fn transport_error(error: reqwest::Error, tried: &str) -> Error {
    // Without the URL: its query may hold a signature.
    let error = error.without_url();
    let text = plain(&words(&error));
    if let Some(tls) = find::<rustls::Error>(&error) {
        return match tls {
            rustls::Error::InvalidMessage(_) => Error::new(Class::Unreachable, tried, format!("no TLS there: {text}"))
                .hint("if the registry speaks plain HTTP, set `tls: off` for it under `registries`"),
            _ => Error::new(Class::Insecure, tried, text).hint(
                "if the certificate is of an authority of your own, set `ca:` for the registry under `registries`",
            ),
        }
        .because(error);
    }
    // HTTP/2 keeps no more than the words of what broke its connection.
    if text.contains("received fatal alert") {
        return Error::new(Class::Insecure, tried, text)
            .hint(
                "the registry ended the TLS connection: it may want a client certificate (`client_cert`, `client_key`)",
            )
            .because(error);
    }
    if find::<hop::NotPublic>(&error).is_some() {
        return Error::new(Class::Insecure, tried, text)
            .hint("if that is meant, set `allow_private: true` for the registry under `registries`")
            .because(error);
    }
    if error.is_builder() {
        return Error::new(Class::Invalid, tried, text).because(error);
    }
    if error.is_timeout() && !error.is_connect() {
        return Error::new(Class::TimedOut, tried, format!("the connection stood still: {text}")).because(error);
    }
    let failed = Error::new(Class::Unreachable, tried, &text);
    let failed = match () {
        () if text.contains("failed to lookup address") || text.contains("dns error") => {
            failed.hint("the host's name does not resolve: check its spelling, DNS, and whether a proxy is needed")
        }
        () if error.is_connect() => {
            failed.hint("check the host, its port, and whether a firewall or proxy is in between")
        }
        () => failed,
    };
    match error.is_connect() {
        true => failed.unconnected().because(error),
        false => failed.because(error),
    }
}

/// Without what the HTTP client says of its own insides.
fn plain(words: &str) -> String {
    let mut text = words;
    for inside in
        ["error sending request: ", "client error (Connect): ", "client error (SendRequest): ", "tcp connect error: "]
    {
        text = text.strip_prefix(inside).unwrap_or(text);
    }
    text.to_owned()
}

/// An error and all below it in one line.
pub(crate) fn words(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error)
}

fn find<'a, E: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // An io::Error hides the error that it was made of from `source`.
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
            && let Some(found) = find::<E>(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(status: u16, code: &str, message: &str, told_to_wait: bool) -> Class {
        classify(StatusCode::from_u16(status).unwrap(), Some(code).filter(|c| !c.is_empty()), message, told_to_wait)
    }

    #[test]
    fn a_rate_limit_in_disguise_is_seen() {
        assert_eq!(class(403, "", "", true), Class::RateLimited);
        assert_eq!(class(403, "DENIED", "API rate limit exceeded", false), Class::RateLimited);
        assert_eq!(class(403, "DENIED", "no", false), Class::Denied);
        assert_eq!(class(429, "", "", false), Class::RateLimited);
    }

    #[test]
    fn missing_content_is_told_from_a_missing_manifest() {
        assert_eq!(class(400, "MANIFEST_BLOB_UNKNOWN", "", false), Class::Incomplete);
        assert_eq!(class(404, "MANIFEST_UNKNOWN", "", false), Class::NotFound);
        assert_eq!(class(400, "MANIFEST_INVALID", "", false), Class::Refused);
        assert_eq!(class(502, "", "", false), Class::ServerError);
        assert_eq!(class(522, "", "", false), Class::ServerError);
        assert_eq!(class(501, "", "", false), Class::BadAnswer);
        assert_eq!(class(405, "UNSUPPORTED", "", false), Class::Refused);
    }
}
