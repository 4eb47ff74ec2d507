//! `create: true`: creates what a push needs and a registry lacks: a repository, or the project that it is in.
//!
//! Nothing is created in advance. When a push is refused the way these registries do for a missing repository, it is
//! created, once for concurrent pushes, and the refused request is sent again without using up an attempt.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::PROVIDERS;
use crate::{Access, MAX_CACHED_REPOSITORIES, Registry, Repository};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::retry;
use imgsync_oci::{RegistryName, RepositoryName};

/// Cached results expire after this time: repositories may be removed, and permissions change.
const CACHE_TTL: Duration = Duration::from_secs(5 * 60);

/// Results of creating repositories and projects at a registry.
#[derive(Debug)]
pub(crate) struct ProvisionState {
    /// By name of the repository or project. The entry's lock is held while it is created.
    by_name: Mutex<GenerationalCache<String, Arc<tokio::sync::Mutex<Option<ProvisionRecord>>>>>,
    /// Endpoint of an API that creates them, where that is not the registry's.
    pub(super) api: OnceLock<Arc<Registry>>,
}

impl Default for ProvisionState {
    fn default() -> ProvisionState {
        ProvisionState { by_name: Mutex::new(GenerationalCache::new(MAX_CACHED_REPOSITORIES)), api: OnceLock::new() }
    }
}

#[derive(Debug)]
struct ProvisionRecord {
    at: Instant,
    /// The error, if it was refused: returned again to later pushes.
    refused: Option<(ErrorKind, String, Option<String>)>,
}

/// What a refusal means for the repository that is pushed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RefusalKind {
    /// It is missing.
    Missing,
    /// It may be missing.
    MaybeMissing,
    /// The refusal has another cause.
    Unrelated,
}

/// What a push needs first at a provider, and how it is created.
pub(super) trait Provisioning: Sync {
    /// Whether a registry's name alone says that it can be created there.
    fn serves(&self, _registry: &RegistryName) -> bool {
        false
    }

    /// Returns what creates it for a repository; `None` at other providers.
    fn open(&self, repository: &Repository) -> Result<Option<Box<dyn Provisioner>>>;
}

/// Creates what a push to one repository needs.
#[async_trait]
pub(super) trait Provisioner: Send + Sync {
    /// Returns what it creates for a repository: `project team`.
    fn resource(&self, name: &RepositoryName) -> String;

    /// Returns what hints call it.
    fn hinted_resource(&self, name: &RepositoryName) -> String;

    /// Classifies a refused push.
    fn classify_refusal(&self, error: &Error) -> RefusalKind;

    /// Creates it. That it exists already is no error.
    async fn create(&self, repository: &Repository, operation: &str) -> Result<()>;
}

impl Repository {
    /// Runs an operation that needs this repository. If it is missing and may be created, creates it and runs the
    /// operation again.
    pub(crate) async fn with_provisioning<T, F>(&self, once: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let began = Instant::now();
        match once().await {
            Err(error) if self.access == Access::Push && !error.is_cancelled() => {
                match Box::pin(self.provision_after(&error, began)).await? {
                    true => once().await,
                    false => Err(error),
                }
            }
            done => done,
        }
    }

    /// Creates what a refused request needs. Returns whether it was created after the request began.
    async fn provision_after(&self, error: &Error, began: Instant) -> Result<bool> {
        if !self.registry.settings.create {
            return Ok(false);
        }
        let Some(provisioner) = self.provisioner()? else { return Ok(false) };
        let kind = provisioner.classify_refusal(error);
        if kind == RefusalKind::Unrelated {
            return Ok(false);
        }
        let slot = {
            let mut by_name = self.registry.provision.by_name.lock().unwrap_or_else(PoisonError::into_inner);
            by_name.get_or_insert_with(&provisioner.resource(&self.name), Arc::default).clone()
        };
        let mut made = slot.lock().await;
        match made.as_ref().filter(|made| made.at.elapsed() < CACHE_TTL) {
            // By another push, after this request began; or long before, so that the refusal has another cause.
            Some(ProvisionRecord { at, refused: None }) => return Ok(*at > began),
            Some(ProvisionRecord { refused: Some(_), .. }) if kind == RefusalKind::MaybeMissing => return Ok(false),
            Some(ProvisionRecord { refused: Some((kind, detail, hint)), .. }) => {
                let error = Error::new(*kind, self.provisioning_operation(&*provisioner), detail)
                    .with_registry(&self.registry.name);
                return Err(hint.iter().fold(error, Error::with_hint));
            }
            None => {}
        }
        match provisioner.create(self, &self.provisioning_operation(&*provisioner)).await {
            Ok(()) => {
                tracing::info!("created {} at {}", provisioner.resource(&self.name), self.registry.name);
                *made = Some(ProvisionRecord { at: Instant::now(), refused: None });
                // Tokens issued before do not cover it.
                self.forget_credentials(self.pick_credential(), Instant::now()).await;
                Ok(true)
            }
            Err(error) if retry::is_transient(&error) || error.is_cancelled() => Err(error),
            Err(refused) => {
                let why = (refused.kind(), refused.message().to_owned(), refused.hint().map(str::to_owned));
                *made = Some(ProvisionRecord { at: Instant::now(), refused: Some(why) });
                if kind == RefusalKind::Missing {
                    return Err(refused);
                }
                let hint = refused.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                self.context.warn(format!("{refused}{hint}"));
                Ok(false)
            }
        }
    }

    /// Returns the API that can create what is missing here, if any.
    fn provisioner(&self) -> Result<Option<Box<dyn Provisioner>>> {
        for provider in PROVIDERS {
            if let Some(provisioning) = provider.provisioning
                && let Some(provisioner) = provisioning.open(self)?
            {
                return Ok(Some(provisioner));
            }
        }
        Ok(None)
    }

    fn provisioning_operation(&self, provisioner: &dyn Provisioner) -> String {
        format!("creating {} at {}", provisioner.resource(&self.name), self.registry.name)
    }

    /// Adds the hint for a push that was refused because something may be missing, in place of other hints.
    pub(crate) fn with_create_hint(&self, error: Error) -> Error {
        const UNKNOWN: &str = "the repository may have to be created first at this registry";
        let is_set = self.registry.settings.create;
        let Some(provisioner) = self.provisioner().ok().flatten() else {
            return match error.status() {
                Some(404) if is_set => {
                    let names: Vec<&str> = creating_names().collect();
                    error.with_hint(format!("{UNKNOWN}; `create: true` does that at {} alone", names.join(" and ")))
                }
                Some(404) => error.with_hint(UNKNOWN),
                _ => error,
            };
        };
        if is_set {
            return error;
        }
        let what = provisioner.hinted_resource(&self.name);
        let solution = format!("`create: true` for {} under `registries` does that", self.registry.name);
        match (provisioner.classify_refusal(&error), error.kind()) {
            (RefusalKind::Unrelated, _) => error,
            (RefusalKind::MaybeMissing, ErrorKind::Denied) => {
                // First, since a report truncates hints.
                let hint = error.hint().map(|hint| format!("; else {hint}")).unwrap_or_default();
                error.with_hint(format!("if there is no {what} yet, it has to be created first: {solution}{hint}"))
            }
            _ => error.with_hint(format!("the {what} may have to be created first at this registry: {solution}")),
        }
    }
}

/// Returns the names of the providers where something can be created.
pub fn creating_names() -> impl Iterator<Item = &'static str> {
    PROVIDERS.into_iter().filter(|provider| provider.provisioning.is_some()).map(|provider| provider.name)
}
