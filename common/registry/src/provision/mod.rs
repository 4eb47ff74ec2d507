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

use super::vendor_api::VendorApi;
use super::{Access, MAX_CACHED_REPOSITORIES, Registry, Repository};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::retry;
use imgsync_oci::vendor::{EcrHost, Vendor};

/// Cached results expire after this time: repositories may be removed, and permissions change.
const CACHE_TTL: Duration = Duration::from_secs(5 * 60);

/// Results of creating repositories and projects at a registry.
#[derive(Debug)]
pub(super) struct ProvisionState {
    /// By name of the repository or project. The entry's lock is held while it is created.
    by_name: Mutex<GenerationalCache<String, Arc<tokio::sync::Mutex<Option<ProvisionRecord>>>>>,
    /// The endpoint of ECR's own API.
    ecr: OnceLock<Arc<Registry>>,
}

impl Default for ProvisionState {
    fn default() -> ProvisionState {
        ProvisionState { by_name: Mutex::new(GenerationalCache::new(MAX_CACHED_REPOSITORIES)), ecr: OnceLock::new() }
    }
}

#[derive(Debug)]
struct ProvisionRecord {
    at: Instant,
    /// The error, if it was refused: returned again to later pushes.
    refused: Option<(ErrorKind, String, Option<String>)>,
}

/// API that creates it.
#[derive(Debug)]
enum Provisioner {
    Ecr(EcrHost),
    Harbor(Box<VendorApi>),
}

/// What a refusal means for the repository that is pushed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RefusalKind {
    /// It is missing.
    Missing,
    /// It may be missing.
    MaybeMissing,
    /// The refusal has another cause.
    Unrelated,
}

impl Repository {
    /// Runs an operation that needs this repository. If it is missing and may be created, creates it and runs the
    /// operation again.
    pub(super) async fn with_provisioning<T, F>(&self, once: impl Fn() -> F) -> Result<T>
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
            by_name.get_or_insert_with(&provisioner.resource(self), Arc::default).clone()
        };
        let mut made = slot.lock().await;
        match made.as_ref().filter(|made| made.at.elapsed() < CACHE_TTL) {
            // By another push, after this request began; or long before, so that the refusal has another cause.
            Some(ProvisionRecord { at, refused: None }) => return Ok(*at > began),
            Some(ProvisionRecord { refused: Some(_), .. }) if kind == RefusalKind::MaybeMissing => return Ok(false),
            Some(ProvisionRecord { refused: Some((kind, detail, hint)), .. }) => {
                let error = Error::new(*kind, provisioner.operation(self), detail).with_registry(&self.registry.name);
                return Err(hint.iter().fold(error, Error::with_hint));
            }
            None => {}
        }
        match provisioner.provision(self).await {
            Ok(()) => {
                tracing::info!("created {} at {}", provisioner.resource(self), self.registry.name);
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
    fn provisioner(&self) -> Result<Option<Provisioner>> {
        let settings = &self.registry.settings;
        if let Some(host) = EcrHost::from_registry(&self.registry.name) {
            // With an `endpoint` it is another server than the name says, unless `vendor_api` is set as well.
            let is_known = settings.endpoint.is_none() || settings.api.is_some();
            return Ok(is_known.then_some(Provisioner::Ecr(host)));
        }
        let api = self.vendor_api()?;
        Ok(api.filter(|api| api.vendor() == Vendor::Harbor).map(|api| Provisioner::Harbor(Box::new(api))))
    }

    /// Adds the hint for a push that was refused because something may be missing, in place of other hints.
    pub(super) fn with_create_hint(&self, error: Error) -> Error {
        let is_set = self.registry.settings.create;
        let registry = &self.registry.name;
        let provisioner = self.provisioner().ok().flatten();
        let by_hand = |what: &str, is_missing: bool| {
            let begin = match is_missing {
                true => format!("the {what} may have to be created first at this registry"),
                false => format!("if there is no {what} yet, it has to be created first"),
            };
            format!("{begin}: `create: true` for {registry} under `registries` does that")
        };
        match (&provisioner, error.kind(), error.status()) {
            (Some(provisioner), _, _) if is_set || provisioner.classify_refusal(&error) == RefusalKind::Unrelated => error,
            (Some(Provisioner::Ecr(_)), _, _) => error.with_hint(by_hand("repository", true)),
            (Some(provisioner @ Provisioner::Harbor(_)), ErrorKind::Denied, _) => {
                // First, since a report truncates hints.
                let hint = error.hint().map(|hint| format!("; else {hint}")).unwrap_or_default();
                error.with_hint(format!("{}{hint}", by_hand(&provisioner.resource(self), false)))
            }
            (Some(provisioner @ Provisioner::Harbor(_)), _, _) => error.with_hint(by_hand(&provisioner.resource(self), true)),
            (None, _, Some(404)) if is_set => error.with_hint(
                "the repository may have to be created first at this registry; `create: true` does that at ECR and Harbor alone",
            ),
            (None, _, Some(404)) => error.with_hint("the repository may have to be created first at this registry"),
            _ => error,
        }
    }
}

impl Provisioner {
    /// Returns what it creates for a repository.
    fn resource(&self, repository: &Repository) -> String {
        match self {
            Provisioner::Ecr(host) => format!("repository {}", host.repository_name(repository.name.as_str())),
            Provisioner::Harbor(_) => format!("project {}", harbor::project(&repository.name)),
        }
    }

    fn operation(&self, repository: &Repository) -> String {
        format!("creating {} at {}", self.resource(repository), repository.registry.name)
    }

    fn classify_refusal(&self, error: &Error) -> RefusalKind {
        match self {
            Provisioner::Ecr(_) => ecr::classify_refusal(error),
            Provisioner::Harbor(_) => harbor::classify_refusal(error),
        }
    }

    async fn provision(&self, repository: &Repository) -> Result<()> {
        let operation = self.operation(repository);
        match self {
            Provisioner::Ecr(host) => ecr::create_repository(repository, host, &operation).await,
            Provisioner::Harbor(api) => harbor::create_project(repository, api, &operation).await,
        }
    }
}
