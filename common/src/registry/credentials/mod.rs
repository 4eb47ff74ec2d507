//! Credentials for registries, found where users of docker and podman keep them. See [`CredentialStore`].

mod docker_config;
mod helper;
mod passed;
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

use docker_config::{HUB_KEY, Scoped, normalise};
pub use helper::HelperProblem;
pub use passed::HelperVariables;
use tokio::io::AsyncReadExt as _;

use crate::{generational::GenerationalCache, printable::printable, secret::Secret};

/// How long a helper may take to answer.
pub(crate) const HELPER_LIMIT: Duration = Duration::from_secs(30);
/// How long an answer is used before files and helpers are asked again: what they give may expire, and users log in.
const KEEP_FOR: Duration = Duration::from_secs(5 * 60);
/// How long a failure is: a helper that is broken would else be asked before nearly every request, and may take its time.
const KEEP_FAILURE_FOR: Duration = Duration::from_secs(2 * 60);
/// Registries whose credentials are remembered.
const MAX_REGISTRIES: usize = 10_000;
/// The largest file of credentials that is read, in bytes.
const LARGEST_FILE: u64 = 4 * 1024 * 1024;

/// What a registry, or its token service, may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user name and a password, or an access token in its place.
    Basic {
        /// The user name, as it was found.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth2 refresh token, to be exchanged at the token service by `grant_type=refresh_token`.
    IdentityToken {
        /// The user name that stood beside it, if any.
        username: Option<String>,
        /// The token.
        token: Secret,
    },
}

/// Why credentials could not be found out. That there are none is no error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A file is there, but cannot be read.
    #[error(
        "cannot read the credentials file {}: {reason}; make it readable for this user, or point to another by DOCKER_CONFIG or REGISTRY_AUTH_FILE",
        file.display()
    )]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file is not what it should be.
    #[error(
        "cannot understand the credentials file {}: {reason}; correct it, or move it away and log in again",
        file.display()
    )]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// The entry for the registry cannot be used.
    #[error("the credentials for {key} in {} cannot be used: {reason}; log in again", file.display())]
    BadEntry {
        /// The file.
        file: PathBuf,
        /// The key of the entry.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A credential helper gave no answer.
    #[error(
        "the credential helper docker-credential-{helper}, which {} names for {registry}, {problem}",
        file.display()
    )]
    Helper {
        /// The helper's name, without `docker-credential-`.
        helper: String,
        /// The registry that it was asked for.
        registry: String,
        /// The file that names the helper.
        file: PathBuf,
        /// What went wrong, and what to do.
        problem: HelperProblem,
    },
}

/// What the process's environment says about where credentials are, taken once.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// The user's home folder.
    pub home: Option<PathBuf>,
    /// `DOCKER_CONFIG`: the folder of docker's `config.json`.
    pub docker_config: Option<PathBuf>,
    /// `REGISTRY_AUTH_FILE`: a file in the form of containers' `auth.json`.
    pub registry_auth_file: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `PATH`, where helpers are looked for.
    pub path: Option<OsString>,
    /// The variables that credential helpers are given besides `PATH` and `HOME`.
    pub helpers: HelperVariables,
    /// Keys of AWS.
    pub aws: AwsEnvironment,
}

/// What the process's environment says of keys of AWS, in the names of Amazon's SDKs.
#[derive(Debug, Clone, Default)]
pub struct AwsEnvironment {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: Option<String>,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: Option<Secret>,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<Secret>,
    /// `AWS_PROFILE`: which part of the file holds.
    pub profile: Option<String>,
    /// `AWS_SHARED_CREDENTIALS_FILE`, else `~/.aws/credentials`.
    pub credentials_file: Option<PathBuf>,
}

impl Environment {
    /// Reads this process's environment. A variable that is empty counts as not set.
    pub fn from_process() -> Self {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
        let aws = AwsEnvironment {
            access_key_id: text("AWS_ACCESS_KEY_ID"),
            secret_access_key: text("AWS_SECRET_ACCESS_KEY").map(Secret::from),
            session_token: text("AWS_SESSION_TOKEN").map(Secret::from),
            profile: text("AWS_PROFILE"),
            credentials_file: variable("AWS_SHARED_CREDENTIALS_FILE")
                .map(PathBuf::from)
                .or_else(|| Some(home.as_ref()?.join(".aws/credentials"))),
        };
        Self {
            aws,
            home,
            docker_config: variable("DOCKER_CONFIG").map(PathBuf::from),
            registry_auth_file: variable("REGISTRY_AUTH_FILE").map(PathBuf::from),
            xdg_runtime_dir: variable("XDG_RUNTIME_DIR").map(PathBuf::from),
            xdg_config_home: variable("XDG_CONFIG_HOME").map(PathBuf::from),
            path: variable("PATH"),
            helpers: HelperVariables::from_process(),
        }
    }

    /// The files that may hold credentials, the first to be asked first.
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

/// Finds the credentials for a registry, as users of docker and podman expect it.
///
/// Asked are, in this order, and the first that has something wins: the configuration; the file of
/// `$REGISTRY_AUTH_FILE`; docker's `config.json` (in `$DOCKER_CONFIG`, else `~/.docker`); `containers/auth.json` in
/// `$XDG_RUNTIME_DIR`; the same in `$XDG_CONFIG_HOME`, else `~/.config`. Within a file the registry's helper
/// (`credHelpers`, else `credsStore`) goes before `auths`, and there the longest namespace before the whole registry.
///
/// All of Docker Hub's names are one. What was found for a registry is used for five minutes, and many who ask for the
/// same registry at once wait for one answer. A failure is used for two minutes.
#[derive(Debug)]
pub struct CredentialStore {
    configured: BTreeMap<String, Vec<Credential>>,
    env: Environment,
    helper_limit: Duration,
    keep_for: Duration,
    keep_failure_for: Duration,
    known: Mutex<GenerationalCache<String, Arc<Slot>>>,
}

/// What is known of one registry. The lock is held while files and helpers are asked.
type Slot = tokio::sync::Mutex<Option<Known>>;

#[derive(Debug)]
struct Known {
    at: Instant,
    found: Arc<Found>,
}

/// What all files together say of a registry.
#[derive(Debug, Default)]
struct Found {
    /// In the order in which they are tried.
    entries: Vec<Scoped>,
    /// What came in between, so that what is below is not known. It concerns those only whom no entry covers.
    failed: Option<CredentialError>,
}

impl CredentialStore {
    /// `configured` has what the configuration gives, by registry; of several for one registry, [`lookup`] takes the
    /// first.
    ///
    /// [`lookup`]: CredentialStore::lookup
    pub fn new(configured: BTreeMap<String, Vec<Credential>>, env: Environment) -> Self {
        let mut by_name: BTreeMap<String, Vec<Credential>> = BTreeMap::new();
        for (registry, credentials) in configured {
            by_name.entry(normalise(&registry)).or_default().extend(credentials);
        }
        Self {
            configured: by_name,
            env,
            helper_limit: HELPER_LIMIT,
            keep_for: KEEP_FOR,
            keep_failure_for: KEEP_FAILURE_FOR,
            known: Mutex::new(GenerationalCache::new(MAX_REGISTRIES)),
        }
    }

    /// With another time limit for helpers than 30 seconds.
    #[must_use]
    pub fn helper_limit(mut self, limit: Duration) -> Self {
        self.helper_limit = limit;
        self
    }

    /// With another time for which answers are used than 5 minutes.
    #[must_use]
    pub fn keep_for(mut self, time: Duration) -> Self {
        self.keep_for = time;
        self
    }

    /// With another time for which failures are used than 2 minutes.
    #[must_use]
    pub fn keep_failure_for(mut self, time: Duration) -> Self {
        self.keep_failure_for = time;
        self
    }

    /// Where keys of AWS are.
    pub(crate) fn aws(&self) -> &AwsEnvironment {
        &self.env.aws
    }

    /// All credentials that the configuration gives for a registry.
    pub fn configured_for(&self, registry: &str) -> &[Credential] {
        let credentials = self.configured.get(&normalise(registry));
        credentials.map(Vec::as_slice).unwrap_or_default()
    }

    /// The credential for a repository of a registry; `None` if there is none, so that the registry is asked
    /// anonymously. `registry` is a host with its port, or any of the forms that stand in docker's files.
    pub async fn lookup(&self, registry: &str, repository: &str) -> Result<Option<Credential>, CredentialError> {
        if let Some(credential) = self.configured_for(registry).first() {
            return Ok(Some(credential.clone()));
        }
        let found = self.found(&normalise(registry)).await;
        let entry = found.entries.iter().find(|entry| entry.covers(repository));
        match (entry, &found.failed) {
            (Some(entry), _) => Ok(Some(entry.credential.clone())),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }

    /// Forgets what was found for a registry before a moment, so that files and helpers are asked again. Failures are
    /// kept. Says whether there is, or was, anything that was found.
    pub async fn forget(&self, registry: &str, before: Instant) -> bool {
        let registry = normalise(registry);
        let slot = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&registry).cloned();
        let Some(slot) = slot else { return false };
        let mut known = slot.lock().await;
        let has_entries = known.as_ref().is_some_and(|known| !known.found.entries.is_empty());
        if has_entries && known.as_ref().is_some_and(|known| known.at < before) {
            *known = None;
        }
        has_entries
    }

    async fn found(&self, registry: &str) -> Arc<Found> {
        let arrived = Instant::now();
        let slot = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get_or_insert_with(&registry.to_owned(), Arc::default).clone()
        };
        let mut known = slot.lock().await;
        if let Some(known) = known.as_ref() {
            let keep_for = if known.found.failed.is_none() { self.keep_for } else { self.keep_failure_for };
            let is_fresh = known.at.elapsed() < keep_for;
            if is_fresh || known.at >= arrived {
                return known.found.clone();
            }
        }
        let found = Arc::new(self.find(registry).await);
        *known = Some(Known { at: Instant::now(), found: found.clone() });
        found
    }

    async fn find(&self, registry: &str) -> Found {
        let mut found = Found::default();
        for file in self.env.files() {
            match self.find_in(&file, registry).await {
                Ok(entries) => found.entries.extend(entries),
                Err(error) => {
                    found.failed = Some(error);
                    break;
                }
            }
            if found.entries.iter().any(|entry| entry.path.is_empty()) {
                break;
            }
        }
        found
    }

    async fn find_in(&self, file: &Path, registry: &str) -> Result<Vec<Scoped>, CredentialError> {
        let Some(bytes) = read(file).await? else {
            return Ok(Vec::new());
        };
        let config = docker_config::parse(&bytes)
            .map_err(|reason| CredentialError::Malformed { file: file.to_owned(), reason })?;
        if let Some(helper) = config.helper_for(registry) {
            let key = match registry {
                "docker.io" => HUB_KEY,
                registry => registry,
            };
            let answer = helper::ask(helper, key, &self.env, self.helper_limit).await;
            let answer = answer.map_err(|problem| CredentialError::Helper {
                helper: printable(helper).into_owned(),
                registry: printable(registry).into_owned(),
                file: file.to_owned(),
                problem,
            })?;
            if let Some(credential) = answer {
                return Ok(vec![Scoped { path: String::new(), credential }]);
            }
        }
        config.entries_for(registry).map_err(|bad| CredentialError::BadEntry {
            file: file.to_owned(),
            key: printable(&bad.key).into_owned(),
            reason: bad.reason,
        })
    }
}

/// The bytes of a file; `None` if there is no such file.
async fn read(file: &Path) -> Result<Option<Vec<u8>>, CredentialError> {
    let unreadable = |error: io::Error| CredentialError::Unreadable {
        file: file.to_owned(),
        reason: printable(&error.to_string()).into_owned(),
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
