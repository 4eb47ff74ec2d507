//! Finds credentials for registries where users of docker and podman store them. See [`CredentialStore`].

mod docker_config;
mod helper;
mod helper_env;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use docker_config::{HUB, HUB_KEY, ScopedCredential, normalise};
pub use helper::HelperProblem;
pub use helper_env::HelperVariables;
use tokio::io::AsyncReadExt as _;

use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::secret::Secret;

/// Time limit for a helper.
pub(crate) const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Lookups are cached for this long: credentials may expire, and users log in.
const CACHE_TTL: Duration = Duration::from_secs(5 * 60);
/// Failed lookups are cached for this long: a broken helper would be called before nearly every request, and may be
/// slow.
const FAILURE_CACHE_TTL: Duration = Duration::from_secs(2 * 60);
/// Registries whose lookups are cached.
const MAX_REGISTRIES: usize = 10_000;
/// Size limit of a credentials file in bytes.
const LARGEST_FILE: u64 = 4 * 1024 * 1024;

/// A credential for a registry or its token service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user name and a password, or an access token in its place.
    Basic {
        /// The user name, as found.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth2 refresh token, to be exchanged at the token service by `grant_type=refresh_token`.
    IdentityToken {
        /// The user name next to it, if any.
        username: Option<String>,
        /// The token.
        token: Secret,
    },
}

/// Error of a credential lookup. Missing credentials are no error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A file exists, but cannot be read.
    #[error(
        "cannot read the credentials file {}: {reason}; make it readable for this user, or point to another by DOCKER_CONFIG or REGISTRY_AUTH_FILE",
        file.display()
    )]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// A file cannot be parsed.
    #[error(
        "cannot parse the credentials file {}: {reason}; correct it, or move it away and log in again",
        file.display()
    )]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The parse error, with line and column.
        reason: String,
    },
    /// The registry's entry is invalid.
    #[error("the credentials for {key} in {} cannot be used: {reason}; log in again", file.display())]
    BadEntry {
        /// The file.
        file: PathBuf,
        /// The entry's key.
        key: String,
        /// What is invalid.
        reason: &'static str,
    },
    /// A credential helper failed.
    #[error(
        "the credential helper docker-credential-{helper}, which {} names for {registry}, {problem}",
        file.display()
    )]
    Helper {
        /// The helper's name, without `docker-credential-`.
        helper: String,
        /// The registry.
        registry: String,
        /// The file that names the helper.
        file: PathBuf,
        /// The error, and what to do.
        problem: HelperProblem,
    },
}

/// Environment of the process, as far as it locates credentials; read once.
#[derive(Debug, Clone, Default)]
pub struct CredentialEnvironment {
    /// The user's home folder.
    pub home: Option<PathBuf>,
    /// `DOCKER_CONFIG`: the folder of docker's `config.json`.
    pub docker_config: Option<PathBuf>,
    /// `REGISTRY_AUTH_FILE`: a file in the format of containers' `auth.json`.
    pub registry_auth_file: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `PATH`, where helpers are searched for.
    pub path: Option<OsString>,
    /// Variables passed to credential helpers besides `PATH` and `HOME`.
    pub helpers: HelperVariables,
    /// Folder in which the system shows what the firmware says of the machine, such as its vendor.
    pub firmware: Option<PathBuf>,
}

impl CredentialEnvironment {
    /// Reads the environment of this process. Empty variables count as unset.
    pub fn from_process() -> Self {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
        Self {
            home,
            docker_config: variable("DOCKER_CONFIG").map(PathBuf::from),
            registry_auth_file: variable("REGISTRY_AUTH_FILE").map(PathBuf::from),
            xdg_runtime_dir: variable("XDG_RUNTIME_DIR").map(PathBuf::from),
            xdg_config_home: variable("XDG_CONFIG_HOME").map(PathBuf::from),
            path: variable("PATH"),
            helpers: HelperVariables::from_process(),
            firmware: Some(PathBuf::from("/sys/devices/virtual/dmi/id")),
        }
    }

    /// Returns the files that may hold credentials, in order of precedence.
    fn files(&self) -> Vec<PathBuf> {
        let below_home = |folder: &str| self.home.as_ref().map(|home| home.join(folder));
        let docker = self.docker_config.clone().or(below_home(".docker"));
        let config = self.xdg_config_home.clone().or(below_home(".config"));
        [
            self.registry_auth_file.clone(),
            docker.map(|folder| folder.join("config.json")),
            self.xdg_runtime_dir.as_ref().map(|folder| folder.join("containers/auth.json")),
            config.map(|folder| folder.join("containers/auth.json")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Finds the credentials for a registry, as users of docker and podman expect.
///
/// The sources in order of precedence: the configuration; the file `$REGISTRY_AUTH_FILE`; docker's `config.json` (in
/// `$DOCKER_CONFIG`, else `~/.docker`); `containers/auth.json` in `$XDG_RUNTIME_DIR`; the same in `$XDG_CONFIG_HOME`,
/// else `~/.config`. Within a file the registry's helper (`credHelpers`, else `credsStore`) precedes `auths`, and there
/// the longest namespace precedes the whole registry.
///
/// All names of Docker Hub are equivalent. Lookups are cached for five minutes, failed ones for two. Concurrent lookups
/// for a registry share one call.
#[derive(Debug)]
pub struct CredentialStore {
    configured: BTreeMap<String, Vec<Credential>>,
    env: CredentialEnvironment,
    helper_timeout: Duration,
    cache_ttl: Duration,
    failure_cache_ttl: Duration,
    cache: Mutex<GenerationalCache<String, Arc<CacheSlot>>>,
}

/// Cache entry of one registry. The lock is held while files and helpers are read.
type CacheSlot = tokio::sync::Mutex<Option<CachedLookup>>;

#[derive(Debug)]
struct CachedLookup {
    at: Instant,
    found: Arc<FoundCredentials>,
}

/// Credentials of a registry in all files.
#[derive(Debug, Default)]
struct FoundCredentials {
    /// In order of precedence.
    entries: Vec<ScopedCredential>,
    /// Error that stopped the search, so that later files are not known. It matters only for repositories that no entry
    /// covers.
    error: Option<CredentialError>,
}

impl CredentialStore {
    /// Creates a store. `configured` holds the configuration's credentials by registry; of several for a registry,
    /// [`lookup`] returns the first.
    ///
    /// [`lookup`]: CredentialStore::lookup
    pub fn new(configured: BTreeMap<String, Vec<Credential>>, env: CredentialEnvironment) -> Self {
        let mut by_name: BTreeMap<String, Vec<Credential>> = BTreeMap::new();
        for (registry, credentials) in configured {
            by_name.entry(normalise(&registry)).or_default().extend(credentials);
        }
        Self {
            configured: by_name,
            env,
            helper_timeout: HELPER_TIMEOUT,
            cache_ttl: CACHE_TTL,
            failure_cache_ttl: FAILURE_CACHE_TTL,
            cache: Mutex::new(GenerationalCache::new(MAX_REGISTRIES)),
        }
    }

    /// Sets the time limit for helpers; 30 seconds by default.
    #[must_use]
    pub fn with_helper_timeout(mut self, limit: Duration) -> Self {
        self.helper_timeout = limit;
        self
    }

    /// Sets how long lookups are cached; 5 minutes by default.
    #[must_use]
    pub fn with_cache_ttl(mut self, time: Duration) -> Self {
        self.cache_ttl = time;
        self
    }

    /// Sets how long failed lookups are cached; 2 minutes by default.
    #[must_use]
    pub fn with_failure_cache_ttl(mut self, time: Duration) -> Self {
        self.failure_cache_ttl = time;
        self
    }

    /// Returns where credentials are searched for.
    pub(crate) fn environment(&self) -> &CredentialEnvironment {
        &self.env
    }

    /// Returns all credentials that the configuration contains for a registry.
    pub fn configured_for(&self, registry: &str) -> &[Credential] {
        let credentials = self.configured.get(&normalise(registry));
        credentials.map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the credential for a repository, `None` for anonymous access. `registry` is a host with its port, or any
    /// of the forms used in docker's files.
    pub async fn lookup(&self, registry: &str, repository: &str) -> Result<Option<Credential>, CredentialError> {
        if let Some(credential) = self.configured_for(registry).first() {
            return Ok(Some(credential.clone()));
        }
        let found = self.cached_lookup(&normalise(registry)).await;
        let entry = found.entries.iter().find(|entry| entry.covers(repository));
        match (entry, &found.error) {
            (Some(entry), _) => Ok(Some(entry.credential.clone())),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }

    /// Drops a lookup cached before an instant, so that files and helpers are read again. Failures stay cached. Returns
    /// whether credentials were cached, or dropped by another request.
    pub async fn forget(&self, registry: &str, before: Instant) -> bool {
        let registry = normalise(registry);
        let slot = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&registry).cloned();
        let Some(slot) = slot else { return false };
        let mut known = slot.lock().await;
        let has_entries = known.as_ref().is_none_or(|known| !known.found.entries.is_empty());
        if has_entries && known.as_ref().is_some_and(|known| known.at < before) {
            *known = None;
        }
        has_entries
    }

    async fn cached_lookup(&self, registry: &str) -> Arc<FoundCredentials> {
        let arrived = Instant::now();
        let slot = {
            let mut known = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            known.get_or_insert_with(&registry.to_owned(), Arc::default).clone()
        };
        let mut known = slot.lock().await;
        if let Some(known) = known.as_ref() {
            let keep_for = if known.found.error.is_none() { self.cache_ttl } else { self.failure_cache_ttl };
            let is_fresh = known.at.elapsed() < keep_for;
            if is_fresh || known.at >= arrived {
                return known.found.clone();
            }
        }
        let found = Arc::new(self.find(registry).await);
        *known = Some(CachedLookup { at: Instant::now(), found: found.clone() });
        found
    }

    async fn find(&self, registry: &str) -> FoundCredentials {
        let mut found = FoundCredentials::default();
        for file in self.env.files() {
            match self.find_in(&file, registry).await {
                Ok(entries) => found.entries.extend(entries),
                Err(error) => {
                    found.error = Some(error);
                    break;
                }
            }
            if found.entries.iter().any(|entry| entry.path.is_empty()) {
                break;
            }
        }
        found
    }

    async fn find_in(&self, file: &Path, registry: &str) -> Result<Vec<ScopedCredential>, CredentialError> {
        let Some(bytes) = read(file).await? else {
            return Ok(Vec::new());
        };
        let config = docker_config::parse(&bytes)
            .map_err(|reason| CredentialError::Malformed { file: file.to_owned(), reason })?;
        if let Some(helper) = config.helper_for(registry) {
            let key = match registry {
                HUB => HUB_KEY,
                registry => registry,
            };
            let response = helper::get_credential(helper, key, &self.env, self.helper_timeout).await;
            let response = response.map_err(|problem| CredentialError::Helper {
                helper: sanitize(helper).into_owned(),
                registry: sanitize(registry).into_owned(),
                file: file.to_owned(),
                problem,
            })?;
            if let Some(credential) = response {
                return Ok(vec![ScopedCredential { path: String::new(), credential }]);
            }
        }
        config.entries_for(registry).map_err(|bad| CredentialError::BadEntry {
            file: file.to_owned(),
            key: sanitize(&bad.key).into_owned(),
            reason: bad.reason,
        })
    }
}

/// Reads a file; `None` if it does not exist.
async fn read(file: &Path) -> Result<Option<Vec<u8>>, CredentialError> {
    let unreadable = |error: io::Error| CredentialError::Unreadable {
        file: file.to_owned(),
        reason: sanitize(&error.to_string()).into_owned(),
    };
    let opened = match tokio::fs::File::open(file).await {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = Vec::new();
    let mut opened = opened.take(LARGEST_FILE + 1);
    opened.read_to_end(&mut bytes).await.map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(CredentialError::Malformed {
            file: file.to_owned(),
            reason: format!("it is larger than {} MiB", LARGEST_FILE >> 20),
        });
    }
    Ok(Some(bytes))
}
