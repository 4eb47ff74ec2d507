//! Throttling: what a request waits for before it is sent, and what its response teaches the rate limiters and windows.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ::http::{HeaderMap, Method, StatusCode};
use url::Url;

use super::auth::Access;
use super::login::Logins;
use super::seats::Seat;
use super::window::{Action, Entry};
use super::{Client, Hold, Registry, Repository, auth, patience, ratelimit, retry_after};
use crate::error::{Class, Error, Result};
use crate::event::{Delay, Event};
use crate::image::RegistryName;
use crate::retry;
use crate::store::{Account, AccountPart};

/// Shorter waits are not reported.
const NOTICED: Duration = Duration::from_millis(1);

/// Class of a request for rate limits and quotas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Errand {
    /// Index of the credential in the pool.
    pub(crate) login: usize,
    pub(crate) action: Action,
    /// Whether pull quotas count it.
    pub(crate) reads_manifest: bool,
    /// Operation that some registries limit separately.
    pub(crate) part: Option<AccountPart>,
    /// Whether it continues a blob read that was started before.
    pub(crate) goes_on: bool,
}

impl Errand {
    /// Index of the backoff. Registries may reject one kind while others succeed.
    fn kind(&self) -> usize {
        match (self.action, self.part) {
            (Action::Manifests, _) if self.reads_manifest => 0,
            (Action::Manifests, _) => 1,
            (Action::Blobs, _) => 2,
            (Action::List, _) => 3,
            (Action::Push, Some(AccountPart::ManifestPuts)) => 4,
            (Action::Push, _) => 5,
        }
    }

    /// A request that is not part of a copy: for a token or a challenge.
    pub(crate) fn aside(login: usize) -> Errand {
        Errand { login, action: Action::List, reads_manifest: false, part: None, goes_on: false }
    }
}

/// Permits of a request in progress.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    entry: Option<Entry>,
    place: Option<Seat>,
}

impl UnderWay {
    /// Returns the permits to hold until the body ends.
    pub(crate) fn into_seats(self) -> [Option<Seat>; 2] {
        [self.entry.map(|entry| entry.seat), self.place]
    }
}

impl Repository {
    /// Classifies a request to the registry.
    pub(crate) fn errand(&self, method: &Method, url: &Url, headers: &HeaderMap) -> Errand {
        let action = Action::of(method, url);
        let reads_manifest = action == Action::Manifests && *method == Method::GET;
        let part = match *method {
            Method::PUT if url.path().rsplit('/').nth(1) == Some("manifests") => Some(AccountPart::ManifestPuts),
            Method::POST => Some(AccountPart::UploadStarts),
            _ => None,
        };
        let goes_on = headers.contains_key(::http::header::RANGE);
        Errand { login: self.login(), action, reads_manifest, part, goes_on }
    }

    /// Picks the credential to use.
    pub(crate) fn login(&self) -> usize {
        match self.access {
            Access::Pull => self.registry.logins.turn(self.turn),
            Access::Push | Access::Delete | Access::Catalog => 0,
        }
    }

    /// Waits for the rate limit. A long wait is returned as an error at once.
    pub(crate) async fn paced(&self, errand: Errand, tried: &str) -> Result<()> {
        let login = self.registry.logins.get(errand.login);
        let began = Instant::now();
        let pass = async {
            login.pacer.at(|| self.client.account(&self.registry, errand.login)).await;
            login.pacer.pass(errand.reads_manifest, self.registry.mirror.is_some()).await?;
            if let Some((part, pacer)) = login.parts.iter().find(|(part, _)| Some(*part) == errand.part) {
                pacer.at(|| async { self.client.account(&self.registry, errand.login).await.of(*part) }).await;
                pacer.pass(false, false).await?;
            }
            Ok::<(), std::time::Duration>(())
        };
        let _pause = self.context.clock.pause();
        let passed = tokio::select! {
            passed = pass => passed,
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(tried)),
        };
        self.held_back(Delay::Pace, began);
        passed.map_err(|wait| {
            let why = login.pacer.hold(errand.reads_manifest).map(|hold| hold.why);
            let why = why.unwrap_or_else(|| "asked to be left alone".to_owned());
            let detail = format!("it {why}: nothing for {} more", retry::seconds(wait));
            Error::new(Class::RateLimited, tried, detail).retry_after(Some(wait)).at(&self.registry.name)
        })
    }

    /// Acquires permits for one more open request to the registry itself.
    pub(crate) async fn begin(&self, errand: Errand, tried: &str) -> Result<UnderWay> {
        let login = self.registry.logins.get(errand.login);
        let began = Instant::now();
        let begin = async {
            let window = self.registry.windows.of(errand.action);
            let entry = match errand.goes_on {
                true => window.enter_at_once(),
                false => window.enter().await,
            };
            let place = match &login.places {
                None => None,
                Some(places) => {
                    login.pacer.at(|| self.client.account(&self.registry, errand.login)).await;
                    Some(places.take(login.pacer.shared()).await)
                }
            };
            UnderWay { entry: Some(entry), place }
        };
        let _pause = self.context.clock.pause();
        let under_way = tokio::select! {
            under_way = begin => Ok(under_way),
            () = self.context.cancel.cancelled() => Err(Error::cancelled(tried)),
        };
        self.held_back(Delay::Place, began);
        under_way
    }

    /// Reports a wait, if it was long enough.
    fn held_back(&self, by: Delay, began: Instant) {
        let time = began.elapsed();
        if time >= NOTICED {
            self.context.events.emit(Event::HeldBack { registry: self.registry.name.clone(), by, time });
        }
    }

    /// Updates windows and quotas from a response's status and headers.
    pub(crate) async fn heed(&self, errand: Errand, under_way: &UnderWay, status: StatusCode, headers: &HeaderMap) {
        let window = self.registry.windows.of(errand.action);
        let now = tokio::time::Instant::now();
        if let Some(entry) = &under_way.entry {
            match status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => window.overloaded(entry, now),
                _ => window.well(now),
            }
        }
        if status.is_success() || status.is_redirection() || status == StatusCode::NOT_FOUND {
            self.registry.logins.get(errand.login).pacer.went_well(errand.kind());
        }
        let Some(quota) = ratelimit::parse(headers, retry_after::time_of(headers)) else { return };
        let reads_manifest = errand.action == Action::Manifests;
        let login = self.registry.logins.get(errand.login);
        if let Some(Hold { wait, why }) = login.pacer.told(&quota, reads_manifest).await
            && self.registry.logins.pulling().len() > 1
        {
            let who = self.client.account(&self.registry, errand.login).await.who;
            self.context.warn(format!(
                "{} {why} for `{who}`: others go on, this one again in {}",
                self.registry.name,
                retry::seconds(wait)
            ));
        }
    }

    /// Treats a request that timed out as overload.
    pub(crate) fn heed_failure(&self, errand: Errand, under_way: &UnderWay, error: &Error) {
        if let Some(entry) = under_way.entry.as_ref().filter(|_| error.class() == Class::TimedOut) {
            self.registry.windows.of(errand.action).overloaded(entry, tokio::time::Instant::now());
        }
    }

    /// Records a rate limit error, so that other requests wait as well.
    pub(crate) async fn mind(&self, errand: Errand, error: Error) -> Error {
        if error.class() != Class::RateLimited {
            return error;
        }
        let pacer = &self.registry.logins.get(errand.login).pacer;
        // A `Retry-After` below the initial backoff counts as none, or the request would be repeated again and again.
        let wait = error.wait().filter(|wait| *wait >= patience::FIRST);
        match pacer.refused(wait, errand.reads_manifest, errand.kind()).await {
            Some(wait) => error.retry_after(Some(wait)),
            None => error.retry_after(wait),
        }
    }
}

impl Client {
    /// Returns the account that the registry counts requests of one credential for.
    pub(super) async fn account(&self, registry: &Registry, login: usize) -> Account {
        let user = match auth::credential(self, registry, "", login).await.ok().flatten() {
            Some(credential) => {
                let fallback = || registry.logins.get(login).fallback.clone();
                auth::user(credential).map(String::into_boxed_str).or_else(fallback)
            }
            None => None,
        };
        Account::new(&registry.name, user.or_else(|| registry.settings.egress.clone()).unwrap_or_default())
    }

    /// Returns the accounts that the registry counts requests for: the main one, or, with `pulls`, all that pull.
    pub async fn accounts(&self, registry: &RegistryName, pulls: bool) -> Vec<Account> {
        let Ok(registry) = self.registry(registry) else { return vec![Account::new(registry, "")] };
        let logins = if pulls { registry.logins.pulling() } else { &[0] };
        let mut accounts = Vec::new();
        for login in logins {
            accounts.push(self.account(&registry, *login).await);
        }
        accounts
    }

    /// Returns the current hold on a registry, as far as this process knows; with `pulls`, on reading images there.
    pub fn hold(&self, registry: &RegistryName, pulls: bool) -> Option<Hold> {
        self.registry(registry).ok()?.logins.hold(pulls)
    }

    /// Releases shared permits. For shutdown, so that other processes need not wait for them to expire.
    pub async fn let_go(&self) {
        let mut all: Vec<Arc<Logins>> = {
            let logins = self.0.logins.lock().unwrap_or_else(PoisonError::into_inner);
            logins.values().cloned().collect()
        };
        {
            let apis = self.0.apis.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(apis.values().map(|api| api.logins().clone()));
        }
        for logins in all {
            for login in logins.iter() {
                if let (Some(places), Some((store, account))) = (&login.places, login.pacer.shared()) {
                    places.give_back(store, account).await;
                }
            }
        }
    }

    /// Returns the number of blob bytes transferred so far, in both directions together.
    pub fn moved(&self) -> u64 {
        self.0.moved.load(std::sync::atomic::Ordering::Relaxed)
    }
}
