//! `create: true`: creates what a push needs and a registry lacks: repositories of Amazon's ECR, projects of Harbor.
//!
//! Nothing is created in advance. When a push is refused the way these registries do for a missing repository, it is
//! created, once for concurrent pushes, and the refused request is sent again without using up an attempt.

mod aws_keys;
mod ecr;
mod harbor;
mod sigv4;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::api::Api;
use super::{Access, MAX_REPOSITORY_NOTES, Registry, Repository};
use crate::error::{Class, Error, Result};
use crate::generational::GenerationalCache;
use crate::retry;
use crate::vendor::{EcrHost, Vendor};

/// Cached results expire after this time: repositories may be removed, and permissions change.
const BELIEVED_FOR: Duration = Duration::from_secs(5 * 60);

/// Results of creating repositories and projects at a registry.
#[derive(Debug)]
pub(super) struct Making {
    /// By name of the repository or project. The entry's lock is held while it is created.
    by_name: Mutex<GenerationalCache<String, Arc<tokio::sync::Mutex<Option<Made>>>>>,
    /// The endpoint of ECR's own API.
    ecr: OnceLock<Arc<Registry>>,
}

impl Default for Making {
    fn default() -> Making {
        Making { by_name: Mutex::new(GenerationalCache::new(MAX_REPOSITORY_NOTES)), ecr: OnceLock::new() }
    }
}

#[derive(Debug)]
struct Made {
    at: Instant,
    /// The error, if it was refused: returned again to later pushes.
    refused: Option<(Class, String, Option<String>)>,
}

/// API that creates it.
#[derive(Debug)]
enum Maker {
    Ecr(EcrHost),
    Harbor(Box<Api>),
}

/// What a refusal means for the repository that is pushed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// It is missing.
    Missing,
    /// It may be missing.
    Perhaps,
    /// The refusal has another cause.
    Nothing,
}

impl Repository {
    /// Runs an operation that needs this repository. If it is missing and may be created, creates it and runs the
    /// operation again.
    pub(super) async fn in_place<T, F>(&self, once: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let began = Instant::now();
        match once().await {
            Err(error) if self.access == Access::Push && !error.is_cancelled() => {
                match Box::pin(self.make_for(&error, began)).await? {
                    true => once().await,
                    false => Err(error),
                }
            }
            done => done,
        }
    }

    /// Creates what a refused request needs. Returns whether it was created after the request began.
    async fn make_for(&self, error: &Error, began: Instant) -> Result<bool> {
        if !self.registry.settings.create {
            return Ok(false);
        }
        let Some(maker) = self.maker()? else { return Ok(false) };
        let says = maker.hears(error);
        if says == Says::Nothing {
            return Ok(false);
        }
        let slot = {
            let mut by_name = self.registry.making.by_name.lock().unwrap_or_else(PoisonError::into_inner);
            by_name.get_or_insert_with(&maker.what(self), Arc::default).clone()
        };
        let mut made = slot.lock().await;
        match made.as_ref().filter(|made| made.at.elapsed() < BELIEVED_FOR) {
            // By another push, after this request began; or long before, so that the refusal has another cause.
            Some(Made { at, refused: None }) => return Ok(*at > began),
            Some(Made { refused: Some(_), .. }) if says == Says::Perhaps => return Ok(false),
            Some(Made { refused: Some((class, detail, hint)), .. }) => {
                let error = Error::new(*class, maker.tried(self), detail).at(&self.registry.name);
                return Err(hint.iter().fold(error, Error::hint));
            }
            None => {}
        }
        match maker.make(self).await {
            Ok(()) => {
                tracing::info!("made {} at {}", maker.what(self), self.registry.name);
                *made = Some(Made { at: Instant::now(), refused: None });
                // Tokens issued before do not cover it.
                self.renew(self.login(), Instant::now()).await;
                Ok(true)
            }
            Err(error) if retry::is_passing(&error) || error.is_cancelled() => Err(error),
            Err(refused) => {
                let why = (refused.class(), refused.detail().to_owned(), refused.advice().map(str::to_owned));
                *made = Some(Made { at: Instant::now(), refused: Some(why) });
                if says == Says::Missing {
                    return Err(refused);
                }
                let advice = refused.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
                self.context.warn(format!("{refused}{advice}"));
                Ok(false)
            }
        }
    }

    /// Returns the API that can create what is missing here, if any.
    fn maker(&self) -> Result<Option<Maker>> {
        let settings = &self.registry.settings;
        if let Some(host) = EcrHost::of(&self.registry.name) {
            // With an `endpoint` it is another server than the name says, unless `api` is set as well.
            let is_known = settings.endpoint.is_none() || settings.api.is_some();
            return Ok(is_known.then_some(Maker::Ecr(host)));
        }
        let api = self.vendor_api()?;
        Ok(api.filter(|api| api.vendor() == Vendor::Harbor).map(|api| Maker::Harbor(Box::new(api))))
    }

    /// Adds the hint for a push that was refused because something may be missing, in place of other hints.
    pub(super) fn unmade(&self, error: Error) -> Error {
        let is_set = self.registry.settings.create;
        let registry = &self.registry.name;
        let maker = self.maker().ok().flatten();
        let by_hand = |what: &str, is_missing: bool| {
            let begin = match is_missing {
                true => format!("the {what} may have to be created first at this registry"),
                false => format!("if there is no {what} yet, it has to be created first"),
            };
            format!("{begin}: `create: true` for {registry} under `registries` does that")
        };
        match (&maker, error.class(), error.status()) {
            (Some(maker), _, _) if is_set || maker.hears(&error) == Says::Nothing => error,
            (Some(Maker::Ecr(_)), _, _) => error.hint(by_hand("repository", true)),
            (Some(maker @ Maker::Harbor(_)), Class::Denied, _) => {
                // First, since a report truncates hints.
                let advice = error.advice().map(|advice| format!("; else {advice}")).unwrap_or_default();
                error.hint(format!("{}{advice}", by_hand(&maker.what(self), false)))
            }
            (Some(maker @ Maker::Harbor(_)), _, _) => error.hint(by_hand(&maker.what(self), true)),
            (None, _, Some(404)) if is_set => error.hint(
                "the repository may have to be created first at this registry; `create: true` does that at ECR and Harbor alone",
            ),
            (None, _, Some(404)) => error.hint("the repository may have to be created first at this registry"),
            _ => error,
        }
    }
}

impl Maker {
    /// Returns what it creates for a repository.
    fn what(&self, repository: &Repository) -> String {
        match self {
            Maker::Ecr(host) => format!("repository {}", host.repository(repository.name.as_str())),
            Maker::Harbor(_) => format!("project {}", harbor::project(&repository.name)),
        }
    }

    fn tried(&self, repository: &Repository) -> String {
        format!("making {} at {}", self.what(repository), repository.registry.name)
    }

    fn hears(&self, error: &Error) -> Says {
        match self {
            Maker::Ecr(_) => ecr::hears(error),
            Maker::Harbor(_) => harbor::hears(error),
        }
    }

    async fn make(&self, repository: &Repository) -> Result<()> {
        let tried = self.tried(repository);
        match self {
            Maker::Ecr(host) => ecr::make(repository, host, &tried).await,
            Maker::Harbor(api) => harbor::make(repository, api, &tried).await,
        }
    }
}
