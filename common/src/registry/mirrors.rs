//! Mirrors of a registry: read first and in order, each under its own name and with its own credentials. What they lack
//! is read from the next, at last from the registry itself.
//!
//! Manifests and blobs are read from mirrors; lists are the registry's own, as a pull-through cache lists only what it
//! happens to have. Nothing is ever written to a mirror.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use url::Url;

use super::{Access, Client, Registry, RegistrySettings, Repository};
use crate::error::{Class, Error, Result};
use crate::image::{RegistryName, RepositoryName};

/// What is known of a mirror; of a registry itself, nothing.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    /// Below which path of it repositories have their names: a proxy project of Harbor's.
    below: Option<RepositoryName>,
    /// Until when it is left alone.
    rests_until: Mutex<Option<Instant>>,
}

impl Mirror {
    fn rests(&self) -> bool {
        self.rests_until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    /// Leaves it alone for a while; says whether it was not already.
    fn rest(&self, time: Duration) -> bool {
        let mut rests_until = self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_new = rests_until.is_none_or(|until| until <= now);
        *rests_until = (*rests_until).max(now.checked_add(time));
        is_new
    }
}

impl Client {
    /// The mirrors of a registry. One that has an entry of its own in the settings is spoken to as that says.
    pub(super) fn mirrors(&self, settings: &RegistrySettings) -> Result<Vec<Arc<Registry>>> {
        settings.mirrors.iter().map(|url| self.mirror(url)).collect()
    }

    fn mirror(&self, url: &Url) -> Result<Arc<Registry>> {
        let host = url.host_str().unwrap_or_default();
        let written = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let name: RegistryName = written.parse().map_err(|error: crate::image::ParseReferenceError| {
            Error::new(Class::Invalid, "reading `mirrors`", format!("{written} is no name of a registry: {error}"))
        })?;
        let own = self.0.settings.registries.get(&name).cloned().unwrap_or_default();
        let (endpoint, below) = split(url)?;
        let settings = RegistrySettings { endpoint: Some(endpoint), mirrors: Vec::new(), ..own };
        Ok(Arc::new(self.build(&name, settings, Some(Mirror { below, ..Mirror::default() }))?))
    }
}

/// Where a mirror's API is, and what goes before the names of repositories there: `https://host/v2/project` has both, as
/// containerd writes it.
fn split(url: &Url) -> Result<(Url, Option<RepositoryName>)> {
    let Some((before, below)) = url.path().split_once("/v2/").filter(|(_, below)| !below.trim_matches('/').is_empty())
    else {
        return Ok((url.clone(), None));
    };
    let below = below.trim_matches('/').parse().map_err(|error: crate::image::ParseReferenceError| {
        Error::new(Class::Invalid, "reading `mirrors`", format!("{url}: {error}"))
    })?;
    let mut endpoint = url.clone();
    endpoint.set_path(before);
    Ok((endpoint, Some(below)))
}

impl Registry {
    /// Of a mirror that failed, that it failed; of a registry itself, nothing.
    pub(super) fn failed(&self, rest: Duration) -> bool {
        self.mirror.as_ref().is_some_and(|mirror| mirror.rest(rest))
    }
}

impl Repository {
    /// Whether there is anything to be read from mirrors.
    pub(super) fn has_mirrors(&self) -> bool {
        self.access == Access::Pull && !self.registry.mirrors.is_empty()
    }

    /// Reads from the mirrors, the first that is not left alone first. `None` where none of them had it. Each is tried
    /// once: there is somebody else to ask.
    pub(super) async fn at_mirrors<T, F>(&self, read: impl Fn(Repository) -> F) -> Result<Option<T>>
    where
        F: Future<Output = Result<T>>,
    {
        for registry in &self.registry.mirrors {
            let Some(mirror) = registry.mirror.as_ref().filter(|mirror| !mirror.rests()) else { continue };
            let name = match &mirror.below {
                None => self.name.clone(),
                // One that would be too long is not there.
                Some(below) => match format!("{below}/{}", self.name).parse() {
                    Ok(name) => name,
                    Err(_) => continue,
                },
            };
            match read(Repository { registry: registry.clone(), name, ..self.clone() }).await {
                Ok(found) => return Ok(Some(found)),
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) if error.class() == Class::NotFound || error.is_untaken() => {}
                Err(error) => {
                    let rest = self.client.0.settings.mirror_rest;
                    if registry.failed(error.wait().unwrap_or(rest).max(rest)) {
                        self.context.warn(format!("{error}; going on without the mirror {} for now", registry.name));
                    }
                }
            }
        }
        Ok(None)
    }

    /// What was read proved to be wrong: for a while all is read from the registry itself.
    pub fn distrust_mirrors(&self) {
        for registry in &self.registry.mirrors {
            registry.failed(self.client.0.settings.mirror_rest);
        }
    }
}
