//! For whom requests are made, and when they may go: what each waits for before it is sent, and what is learnt from how it
//! was answered.

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

/// What is shorter is no wait.
const NOTICED: Duration = Duration::from_millis(1);

/// What a request is, as far as paces and quotas go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Errand {
    /// For whom.
    pub(crate) login: usize,
    pub(crate) action: Action,
    /// What quotas of pulls count.
    pub(crate) reads_manifest: bool,
    /// Counted apart by some.
    pub(crate) part: Option<AccountPart>,
    /// Goes on with a blob that was being read.
    pub(crate) goes_on: bool,
}

impl Errand {
    /// Kinds of which some can be refused while others go well.
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

    /// A request that is none of the copy's: for a token, or for where tokens are.
    pub(crate) fn aside(login: usize) -> Errand {
        Errand { login, action: Action::List, reads_manifest: false, part: None, goes_on: false }
    }
}

/// A request that is under way.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    entry: Option<Entry>,
    place: Option<Seat>,
}

impl UnderWay {
    /// What is kept until the body has ended.
    pub(crate) fn into_seats(self) -> [Option<Seat>; 2] {
        [self.entry.map(|entry| entry.seat), self.place]
    }
}

impl Repository {
    /// What a request to the registry is.
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

    /// Who asks.
    pub(crate) fn login(&self) -> usize {
        match self.access {
            Access::Pull => self.registry.logins.turn(self.turn),
            Access::Push | Access::Delete | Access::Catalog => 0,
        }
    }

    /// Waits until the registry's pace allows one more request. A long wait is an error, at once.
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

    /// Waits until one more request to the registry itself may be open.
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

    /// Tells of a wait, if it was one.
    fn held_back(&self, by: Delay, began: Instant) {
        let time = began.elapsed();
        if time >= NOTICED {
            self.context.events.emit(Event::HeldBack { registry: self.registry.name.clone(), by, time });
        }
    }

    /// Learns from an answer of the registry: from its status, and from what it tells of quotas.
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

    /// Learns from a request that got no answer in time.
    pub(crate) fn heed_failure(&self, errand: Errand, under_way: &UnderWay, error: &Error) {
        if let Some(entry) = under_way.entry.as_ref().filter(|_| error.class() == Class::TimedOut) {
            self.registry.windows.of(errand.action).overloaded(entry, tokio::time::Instant::now());
        }
    }

    /// Where an answer says that there were too many requests, others are told.
    pub(crate) async fn mind(&self, errand: Errand, error: Error) -> Error {
        if error.class() != Class::RateLimited {
            return error;
        }
        let pacer = &self.registry.logins.get(errand.login).pacer;
        // Less than the first wait of our own is none that was said: it would be asked again and again.
        let wait = error.wait().filter(|wait| *wait >= patience::FIRST);
        match pacer.refused(wait, errand.reads_manifest, errand.kind()).await {
            Some(wait) => error.retry_after(Some(wait)),
            None => error.retry_after(wait),
        }
    }
}

impl Client {
    /// Whom a registry counts the requests of one login for.
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

    /// Whom a registry counts our requests for: the one who does everything, or, with `pulls`, all who pull.
    pub async fn accounts(&self, registry: &RegistryName, pulls: bool) -> Vec<Account> {
        let Ok(registry) = self.registry(registry) else { return vec![Account::new(registry, "")] };
        let logins = if pulls { registry.logins.pulling() } else { &[0] };
        let mut accounts = Vec::new();
        for login in logins {
            accounts.push(self.account(&registry, *login).await);
        }
        accounts
    }

    /// Why and for how long nothing is to be begun with a registry, as far as this process knows: with `pulls`, nothing
    /// that reads images there.
    pub fn hold(&self, registry: &RegistryName, pulls: bool) -> Option<Hold> {
        self.registry(registry).ok()?.logins.hold(pulls)
    }

    /// Gives back what it holds of what is shared with others. For the end of a process: others need not wait then.
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

    /// Bytes of blobs that went over the line so far, in both directions together.
    pub fn moved(&self) -> u64 {
        self.0.moved.load(std::sync::atomic::Ordering::Relaxed)
    }
}
