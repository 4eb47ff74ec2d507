//! `create: true`: what a push needs and a registry wants made first: repositories of Amazon's ECR, projects of Harbor.
//!
//! Nothing is made ahead. Only when a push was refused with what these registries say where it is missing, it is made,
//! once however many pushes wait for it, and then what was refused is sent again: no attempt is spent on it.

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

/// How long it is believed that something was made, or may not be: it may be removed, and rights change.
const BELIEVED_FOR: Duration = Duration::from_secs(5 * 60);

/// What was made at a registry, or could not be.
#[derive(Debug)]
pub(super) struct Making {
    /// By what is made: a repository, or a project. The lock of one is held while it is made.
    by_name: Mutex<GenerationalCache<String, Arc<tokio::sync::Mutex<Option<Made>>>>>,
    /// Where ECR's own API is.
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
    /// Why it was not: said again to who comes next.
    refused: Option<(Class, String, Option<String>)>,
}

/// Who makes it.
#[derive(Debug)]
enum Maker {
    Ecr(EcrHost),
    Harbor(Box<Api>),
}

/// What a refusal says of what is to be pushed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// It is missing.
    Missing,
    /// It may be.
    Perhaps,
    /// Nothing of the kind.
    Nothing,
}

impl Repository {
    /// Does something that needs this repository to be there. Where it is missing and may be made, that is done, and then
    /// the same once more.
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

    /// Whether, after a refusal of a request that was begun then, what it needs was made.
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
            // By another, after this one had asked; or long before, so that something else is wrong.
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
                // Tokens that were given before do not hold for it.
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

    /// Who makes what is missing here, where somebody can.
    fn maker(&self) -> Result<Option<Maker>> {
        let settings = &self.registry.settings;
        if let Some(host) = EcrHost::of(&self.registry.name) {
            // Another server than the name says, unless that is said as well.
            let is_known = settings.endpoint.is_none() || settings.api.is_some();
            return Ok(is_known.then_some(Maker::Ecr(host)));
        }
        let api = self.vendor_api()?;
        Ok(api.filter(|api| api.vendor() == Vendor::Harbor).map(|api| Maker::Harbor(Box::new(api))))
    }

    /// What to do where a push was refused because what it needs may be missing, in place of what else was advised.
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
                // First, for a report keeps so much of it and no more.
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
    /// What it makes for a repository.
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
