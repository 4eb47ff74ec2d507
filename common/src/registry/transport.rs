//! Sends requests: authorization, redirects, error classification, counting.

use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::Body;
use tracing::Instrument as _;
use url::Url;

pub(crate) use super::answer::Answer;
use super::auth::Authorization;
use super::context::Counted;
use super::failure::{says_expired, transport_error};
use super::pace::{Errand, UnderWay};
use super::sending::{self, Sent};
use super::window::Action;
use super::{Repository, hop};
use crate::error::{Class, Error, Result};
use crate::event::{self, Event};
use crate::image::RepositoryName;
use crate::retry::{self, Retry};

/// More redirects than this are a loop.
pub(super) const MAX_REDIRECTS: usize = 10;

/// Body of a request.
pub(crate) enum Payload {
    Nothing,
    Bytes(Bytes),
    /// Can be sent once only, and reports its progress.
    Stream(Body, Progress),
}

/// Returns the progress of a body.
pub(crate) type Progress = Box<dyn Fn() -> Sent + Send + Sync>;

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Payload::Nothing => f.write_str("Nothing"),
            Payload::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Payload::Stream(..) => f.write_str("Stream"),
        }
    }
}

/// A request to send.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub payload: Payload,
    /// Repository to mount from, which needs access of its own.
    pub from: Option<&'a RepositoryName>,
    /// Network of the host that named the URL, if not the registry itself.
    pub named_in: Option<hop::Reach>,
    pub counted: Counted,
    /// The operation, for errors.
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
            named_in: None,
            counted: Counted::Request,
            tried,
        }
    }

    pub(crate) fn header(mut self, name: header::HeaderName, value: &str) -> Outgoing<'a> {
        // Values come from validated types; an invalid header value is skipped.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }

    pub(crate) fn payload(mut self, payload: Payload) -> Outgoing<'a> {
        self.payload = payload;
        self
    }

    pub(crate) fn named_in(mut self, reach: hop::Reach) -> Outgoing<'a> {
        self.named_in = Some(reach);
        self
    }

    pub(crate) fn counted(mut self, counted: Counted) -> Outgoing<'a> {
        self.counted = counted;
        self
    }
}

impl Repository {
    /// Sends a request once, apart from a renewed token and redirects (of GET and HEAD). Returns at once on
    /// cancellation, whether it waits for DNS, a token fetched by another request, or the registry.
    pub(crate) async fn send(&self, outgoing: Outgoing<'_>) -> Result<Answer> {
        let tried = outgoing.tried;
        self.or_cancelled(Box::pin(self.send_once(outgoing)), tried).await
    }

    async fn or_cancelled<T>(&self, work: BoxFuture<'_, Result<T>>, tried: &str) -> Result<T> {
        tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(Error::cancelled(tried)),
            done = work => done,
        }
    }

    async fn send_once(&self, outgoing: Outgoing<'_>) -> Result<Answer> {
        let Outgoing { method, url, headers, payload, from, named_in, counted, tried } = outgoing;
        let errand = self.errand(&method, &url, &headers);
        let scope = self.scope(from, errand.login);
        let is_home = hop::same_origin(&url, &self.registry.base);
        let http = self.http_for(&url, named_in);
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
            // Checked before sending: after an upload of minutes every token is old.
            let doubtful = self.uses_tokens()
                && authorization
                    .as_ref()
                    .is_some_and(|used| used.since.elapsed() > self.client.0.settings.doubtful_age);
            let once = matches!(payload, Payload::Stream(..));
            let carried = match &payload {
                Payload::Bytes(bytes) => Payload::Bytes(bytes.clone()),
                Payload::Nothing | Payload::Stream(..) => std::mem::replace(&mut payload, Payload::Nothing),
            };
            let mut under_way = match is_home {
                true => self.begin(errand, tried).await?,
                false => UnderWay::default(),
            };
            self.paced(errand, tried).await?;
            self.tally.count(counted);
            let sent = self.exchange(&http, method.clone(), url.clone(), with_login, carried, tried).await;
            let sent = sent.inspect_err(|error| self.heed_failure(errand, &under_way, error))?;
            let sent = Answer { errand, ..sent };
            let status = sent.status();
            if is_home {
                self.heed(errand, &under_way, status, sent.headers()).await;
            }
            if is_home && !renewed {
                if status.is_client_error() {
                    // The token may have to be fetched first, which needs a permit itself.
                    under_way = UnderWay::default();
                }
                let fresh = match status {
                    StatusCode::UNAUTHORIZED => self.challenged(sent.headers(), &scope, authorization.as_ref()).await?,
                    // Some registries answer so to an expired token. Only a second attempt can tell; a request that
                    // cannot be repeated fails with the registry's own message.
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
            // Other requests release their permits with the response head.
            let seats = match method == Method::GET && !self.registry.is_both_ends() {
                true => under_way.into_seats(),
                false => Default::default(),
            };
            return Ok(Answer { with_credentials, _seats: seats, ..sent });
        }
    }

    /// Sends a request once with the given credential of the pool and the given authorization, or none. Follows
    /// redirects of GET and HEAD.
    pub(crate) async fn send_as(
        &self,
        outgoing: Outgoing<'_>,
        who: usize,
        login: Option<Authorization>,
    ) -> Result<Answer> {
        let tried = outgoing.tried;
        self.or_cancelled(Box::pin(self.send_as_once(outgoing, who, login)), tried).await
    }

    async fn send_as_once(&self, outgoing: Outgoing<'_>, who: usize, login: Option<Authorization>) -> Result<Answer> {
        let Outgoing { method, url, headers, payload, counted, tried, .. } = outgoing;
        let is_home = hop::same_origin(&url, &self.registry.base);
        let mut with_login = headers.clone();
        if let Some(login) = login.as_ref().filter(|_| is_home) {
            with_login.insert(header::AUTHORIZATION, login.header.clone());
        }
        let http = self.http_for(&url, None);
        let errand = Errand::aside(who);
        let under_way = match is_home {
            true => self.begin(errand, tried).await?,
            false => UnderWay::default(),
        };
        self.paced(errand, tried).await?;
        self.tally.count(counted);
        let sent = self.exchange(&http, method.clone(), url, with_login, payload, tried).await;
        let sent = sent.inspect_err(|error| self.heed_failure(errand, &under_way, error))?;
        if is_home {
            self.heed(errand, &under_way, sent.status(), sent.headers()).await;
        }
        let with_credentials = login.is_some();
        let sent = Answer { with_credentials, errand, _seats: under_way.into_seats(), ..sent };
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
            let (next, named_in) = self.location(&answer, "redirect", tried)?;
            let mut headers = headers.clone();
            if hop::same_origin(&next, &self.registry.base)
                && let Some(authorization) = &authorization
            {
                headers.insert(header::AUTHORIZATION, authorization.header.clone());
            }
            let http = self.http_for(&next, Some(named_in));
            let errand = answer.errand;
            if hop::same_origin(&next, &self.registry.base) {
                self.paced(errand, tried).await?;
            }
            self.tally.count(Counted::Redirect);
            let (with_credentials, was_outside) = (answer.with_credentials, answer.is_from_outside);
            let next = self.exchange(&http, method.clone(), next, headers, Payload::Nothing, tried).await?;
            let is_from_outside = next.is_from_outside && was_outside;
            answer = Answer { with_credentials, errand, is_from_outside, ..next };
        }
        Err(Error::new(Class::BadAnswer, tried, format!("it redirected more than {MAX_REDIRECTS} times")))
    }

    /// Returns the validated URL in a response's `Location`, and the network of the host that named it.
    pub(crate) fn location(&self, answer: &Answer, what: &str, tried: &str) -> Result<(Url, hop::Reach)> {
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
        let named_in = self.reach().min(answer.reach);
        Ok((hop::check(&answer.url, next, named_in, self.registry.settings.allowed(), what)?, named_in))
    }

    /// Returns the network that the registry itself is in.
    pub(crate) fn reach(&self) -> hop::Reach {
        self.registry.reach()
    }

    /// Returns the HTTP client for a URL: one limited to public addresses if a public host named another host.
    /// `named_in` is the network of the host that named the URL, if not the registry itself.
    pub(crate) fn http_for(&self, url: &Url, named_in: Option<hop::Reach>) -> reqwest::Client {
        if hop::same_origin(url, &self.registry.base) {
            return self.registry.http.clone();
        }
        let named_in = named_in.map_or(self.reach(), |named_in| named_in.min(self.reach()));
        match !self.registry.settings.allow_private && named_in == hop::Reach::Public {
            true => self.registry.http_public_only.clone(),
            false => self.registry.http_elsewhere.clone(),
        }
    }

    /// Sends one request. The response head must arrive within the stall timeout; for a slow request body, within that
    /// time after the last byte, while bytes must flow at a minimum rate before.
    pub(crate) async fn exchange(
        &self,
        http: &reqwest::Client,
        method: Method,
        url: Url,
        headers: HeaderMap,
        carried: Payload,
        tried: &str,
    ) -> Result<Answer> {
        let way = self.registry.way(&url).map_err(|error| error.at(&self.registry.name))?;
        let (began, stall, errand) = (Instant::now(), self.stall(), self.purpose(&method, &url));
        let mut headers = headers;
        let (body, progress): (_, Option<Progress>) = match carried {
            Payload::Nothing => (None, None),
            Payload::Bytes(bytes) if bytes.len() <= sending::WATCHED_BODY => (Some(Body::from(bytes)), None),
            Payload::Bytes(bytes) => {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
                let (body, progress) = sending::watched(bytes);
                (Some(body), Some(Box::new(progress)))
            }
            Payload::Stream(body, progress) => (Some(body), Some(progress)),
        };
        let late = async {
            match progress {
                Some(progress) => sending::too_slow(stall, progress).await,
                None => {
                    tokio::time::sleep(stall).await;
                    format!("no answer within {}", retry::seconds(stall))
                }
            }
        };
        tokio::select! {
            result = self.exchange_at_leisure(http, method, url, headers, body, tried) => result,
            detail = late => {
                self.answered(errand, None, began.elapsed());
                Err(Error::new(Class::TimedOut, way.tried(tried), detail).at(&self.registry.name))
            }
        }
    }

    async fn exchange_at_leisure(
        &self,
        http: &reqwest::Client,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<Body>,
        tried: &str,
    ) -> Result<Answer> {
        let began = Instant::now();
        let errand = self.purpose(&method, &url);
        let way = self.registry.way(&url).map_err(|error| error.at(&self.registry.name))?;
        let span = tracing::debug_span!(
            "request", registry = %self.registry.name, %method, purpose = errand.as_str(), status = tracing::field::Empty
        );
        hop::refuse_metadata(&url, self.registry.settings.allowed(), tried)?;
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
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(tried)),
            response = request.send().instrument(span.clone()) => response,
        };
        let status = response.as_ref().ok().map(|response| response.status().as_u16());
        span.record("status", status);
        self.answered(errand, status, began.elapsed());
        let response = response.map_err(|error| transport_error(error, tried, &way).at(&self.registry.name))?;
        let reach = self.registry.reach_of(&url, response.remote_addr());
        let is_from_outside = reach == hop::Reach::Public && !self.registry.is_proxied(&url);
        let answer = Answer::new(response, url, way, began, self.stall(), self.context.cancel.clone());
        Ok(Answer { reach, is_from_outside, ..answer })
    }

    /// Returns the purpose of a request, for metrics.
    fn purpose(&self, method: &Method, url: &Url) -> event::Errand {
        match hop::same_origin(url, &self.registry.base) {
            true => Action::of(method, url).into(),
            false => event::Errand::Elsewhere,
        }
    }

    fn answered(&self, errand: event::Errand, status: Option<u16>, took: Duration) {
        let registry = self.registry.name.clone();
        self.context.events.emit(Event::Answered { registry, errand, status, took });
    }

    /// Retries an operation until it succeeds, fails permanently, or the attempts are used up.
    pub(crate) async fn with_retries<T, F>(&self, once: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.with_retry(self.retry(), once).await
    }

    /// The same, with given retry state.
    pub(crate) async fn with_retry<T, F>(&self, mut retry: Retry, mut once: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        loop {
            match once().await {
                Ok(value) => return Ok(value),
                Err(error) => self.pause(&mut retry, error).await?,
            }
        }
    }

    /// Waits before the next attempt, emitting an event, or returns the error if there is none.
    pub async fn pause(&self, retry: &mut Retry, error: Error) -> Result<()> {
        retry
            .pause(error, &self.context.cancel, |error, attempt, wait| {
                self.tally.retried();
                self.context.events.emit(Event::Retrying {
                    error: error.to_string(),
                    class: error.class(),
                    registry: error.registry().cloned(),
                    attempt,
                    wait,
                });
            })
            .await
    }

    /// Returns the error of an unexpected response, with a hint.
    pub(crate) async fn refusal(&self, answer: Answer, tried: &str) -> Error {
        let (with_credentials, began, errand) = (answer.with_credentials, answer.began, answer.errand);
        let (is_elsewhere, host) = (answer.way.is_elsewhere, answer.way.host.clone());
        let error = answer.into_error(tried).await.at(&self.registry.name);
        let error = self.mind(errand, error).await;
        match error.class() {
            // Some registries report an expired token by message and not by a challenge: a renewed token may help.
            Class::Denied | Class::Refused
                if says_expired(error.detail()) && Box::pin(self.renew(errand.login, began)).await =>
            {
                let hint = self.login_hint(true);
                error.as_class(Class::TokenExpired).hint(hint)
            }
            // From the proxy; the error already has a hint.
            Class::Denied if error.status() == Some(407) => error,
            Class::Denied if is_elsewhere => error.hint(format!(
                "it is {host} that refuses: {} sent us there, and no login goes along",
                self.registry.name
            )),
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
