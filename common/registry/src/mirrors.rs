//! Mirrors of a registry: read first and in order, each under its own name and with its own credentials. Whatever a
//! mirror lacks is read from the next one, finally from the registry itself.
//!
//! Manifests and blobs are read from mirrors; lists come from the registry itself, as a pull-through cache lists only
//! what it happens to have. Nothing is ever written to a mirror.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use url::Url;

use super::{Access, Client, Registry, RegistrySettings, Repository};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{RegistryName, RepositoryName};

/// State of a mirror; registries that are not mirrors have none.
#[derive(Debug, Default)]
pub(super) struct MirrorState {
    /// Path prefix of its repositories, such as a proxy project of Harbor.
    path_prefix: Option<RepositoryName>,
    /// The mirror is skipped until then.
    paused_until: Mutex<Option<Instant>>,
}

impl MirrorState {
    fn is_paused(&self) -> bool {
        self.paused_until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    /// Skips the mirror for a while. Returns whether it was in use until now.
    fn pause(&self, time: Duration) -> bool {
        let mut rests_until = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_new = rests_until.is_none_or(|until| until <= now);
        *rests_until = (*rests_until).max(now.checked_add(time));
        is_new
    }
}

impl Client {
    /// Builds the mirrors of a registry. A mirror with its own entry in the settings uses that entry.
    pub(super) fn build_mirrors(&self, settings: &RegistrySettings) -> Result<Vec<Arc<Registry>>> {
        settings.mirrors.iter().map(|url| self.build_mirror(url)).collect()
    }

    fn build_mirror(&self, url: &Url) -> Result<Arc<Registry>> {
        let host = url.host_str().unwrap_or_default();
        let written = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let name: RegistryName = written.parse().map_err(|error: imgsync_oci::ParseReferenceError| {
            Error::new(ErrorKind::Invalid, "reading `mirrors`", format!("{written} is not a registry name: {error}"))
        })?;
        let own = self.0.settings.registries.get(&name).cloned().unwrap_or_default();
        let (endpoint, path_prefix) = split_endpoint(url)?;
        let settings = RegistrySettings { endpoint: Some(endpoint), mirrors: Vec::new(), ..own };
        Ok(Arc::new(self.build(&name, settings, Some(MirrorState { path_prefix, ..MirrorState::default() }))?))
    }
}

/// Splits a mirror's URL into its endpoint and the prefix of repository names: `https://host/v2/project` has both, as
/// in containerd's configuration.
fn split_endpoint(url: &Url) -> Result<(Url, Option<RepositoryName>)> {
    let Some((before, below)) = url.path().split_once("/v2/").filter(|(_, below)| !below.trim_matches('/').is_empty())
    else {
        return Ok((url.clone(), None));
    };
    let below = below.trim_matches('/').parse().map_err(|error: imgsync_oci::ParseReferenceError| {
        Error::new(ErrorKind::Invalid, "reading `mirrors`", format!("{url}: {error}"))
    })?;
    let mut endpoint = url.clone();
    endpoint.set_path(before);
    Ok((endpoint, Some(below)))
}

impl Registry {
    /// Skips this mirror for a while. Returns whether it was in use until now; false for registries that are not
    /// mirrors.
    pub(super) fn record_mirror_failure(&self, rest: Duration) -> bool {
        self.mirror_state.as_ref().is_some_and(|mirror| mirror.pause(rest))
    }
}

impl Repository {
    /// Whether mirrors are read first.
    pub(super) fn has_mirrors(&self) -> bool {
        self.access == Access::Pull && !self.registry.mirrors.is_empty()
    }

    /// Reads from the mirrors in order, skipping paused ones. Returns `None` if none of them had the content. Each is
    /// tried once, since there is another registry to read from.
    pub(super) async fn try_mirrors<T, F>(&self, read: impl Fn(Repository) -> F) -> Result<Option<T>>
    where
        F: Future<Output = Result<T>>,
    {
        for registry in &self.registry.mirrors {
            let Some(mirror) = registry.mirror_state.as_ref().filter(|mirror| !mirror.is_paused()) else { continue };
            let name = match &mirror.path_prefix {
                None => self.name.clone(),
                // A name that would be too long does not exist there.
                Some(below) => match format!("{below}/{}", self.name).parse() {
                    Ok(name) => name,
                    Err(_) => continue,
                },
            };
            match read(Repository { registry: registry.clone(), name, ..self.clone() }).await {
                Ok(found) => return Ok(Some(found)),
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) if error.kind() == ErrorKind::NotFound || error.is_unprocessed() => {}
                Err(error) => {
                    let rest = self.client.0.settings.mirror_backoff;
                    if registry.record_mirror_failure(error.retry_after().unwrap_or(rest).max(rest)) {
                        self.context.warn(format!("{error}; skipping the mirror {} for now", registry.name));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Skips all mirrors for a while, after content read from one proved wrong.
    pub fn pause_mirrors(&self) {
        for registry in &self.registry.mirrors {
            registry.record_mirror_failure(self.client.0.settings.mirror_backoff);
        }
    }
}
