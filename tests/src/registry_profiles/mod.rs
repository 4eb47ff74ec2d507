//! Profiles of known registries, served by the fault registry under their own names and behind TLS, each with all
//! quirks seen in the wild at once.
//!
//! A profile is data, one file each. The suite of the same name runs all of them in both roles and compares the matrix
//! in `docs/reference/registries.md` with the result.

mod acr;
mod artifactory;
mod cdn;
mod docker_hub;
mod ecr;
mod ecr_public;
mod ghcr;
mod gitlab;
mod google;
mod harbor;
mod nexus;
mod pulp;
mod quay;
mod zot;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::json;

use crate::fault::{FaultAction, FaultRegistry, FaultRegistryBuilder, RequestType};
use crate::program::Imgsync;
use crate::proxy::Proxy;
use crate::tls::Authority;

/// Login of a user.
#[derive(Clone, Copy, Debug)]
pub enum ProfileLogin {
    /// No login required.
    None,
    /// User and password, stored by `docker login` under this key.
    Password {
        /// Key in docker's config.json.
        key: &'static str,
        /// The user.
        user: &'static str,
        /// The password.
        password: &'static str,
    },
    /// Refresh token, stored by the registry's own login command.
    IdentityToken(&'static str),
    /// Credential helper that returns one password, and another once the first has expired.
    Helper {
        /// The user.
        user: &'static str,
        /// The first and the second password.
        passwords: [&'static str; 2],
    },
}

/// Response to excess requests.
#[derive(Clone, Copy, Debug)]
pub struct ThrottleResponse {
    /// HTTP status.
    pub status: u16,
    /// Response headers.
    pub headers: &'static [(&'static str, &'static str)],
    /// Response body.
    pub body: &'static str,
    /// Throttled request kind if the profile is the source.
    pub reads: RequestType,
    /// Throttled request kind if the profile is the target.
    pub writes: RequestType,
}

/// Profile of a kind of registry.
#[derive(Clone, Debug)]
pub struct RegistryProfile {
    /// Display name.
    pub name: &'static str,
    /// Name in references.
    pub registry: &'static str,
    /// Host of the API, mostly the same.
    pub api: &'static str,
    /// Its other hosts, for tokens and blobs.
    pub other_hosts: &'static [&'static str],
    /// A repository there.
    pub repository: &'static str,
    /// Another repository there.
    pub other_repository: &'static str,
    /// Login of its user.
    pub login: ProfileLogin,
    /// Settings that its entry under `registries` needs.
    pub settings: &'static str,
    /// Setup that a user has to do, as text for the documentation.
    pub required_setup: &'static str,
    /// Its quirks, as text for the documentation.
    pub quirks: &'static str,
    /// Whether it accepts Docker media types.
    pub takes_docker: bool,
    /// Whether a repository must be created before a push.
    pub makes_repositories: bool,
    /// Whether its credentials or tokens expire.
    pub expires: bool,
    /// Whether it counts manifest GETs even as a target.
    pub counts_pulls_of_targets: bool,
    /// Bytes per PATCH for large blobs, if it needs chunks.
    pub chunk: Option<u64>,
    /// Its response to excess requests.
    pub throttle: ThrottleResponse,
    /// Builder of the fault registry that plays the profile.
    pub builder: fn() -> FaultRegistryBuilder,
}

/// Returns all profiles, in the order of the matrix.
pub fn all() -> Vec<RegistryProfile> {
    vec![
        docker_hub::profile(),
        ecr::profile(),
        ecr_public::profile(),
        google::profile(),
        ghcr::profile(),
        acr::profile(),
        quay::profile(),
        harbor::profile(),
        gitlab::profile(),
        artifactory::profile(),
        nexus::profile(),
        zot::profile(),
        pulp::profile(),
        cdn::profile(),
    ]
}

/// A profile with a running registry.
#[derive(Debug)]
pub struct RunningProfile {
    /// The profile.
    pub profile: RegistryProfile,
    /// The registry that plays it.
    pub registry: FaultRegistry,
    authority: Arc<Authority>,
    proxy: Proxy,
    expired: AtomicBool,
}

impl RegistryProfile {
    /// Starts the profile: all its hosts lead to one fault registry.
    pub async fn start(self) -> RunningProfile {
        let authority = Arc::new(Authority::new());
        let mut builder = (self.builder)().tls(authority.clone());
        let hosts: Vec<&str> = [self.registry, self.api].into_iter().chain(self.other_hosts.iter().copied()).collect();
        for host in &hosts {
            builder = builder.host_name(host);
        }
        let registry = builder.start().await;
        let mut proxy = Proxy::http().await;
        for host in &hosts {
            proxy = proxy.map_host(host, &registry.address().to_string());
        }
        if self.makes_repositories {
            registry.create_repository(self.repository);
            registry.create_repository(self.other_repository);
        }
        RunningProfile { profile: self, registry, authority, proxy, expired: AtomicBool::new(false) }
    }
}

impl ThrottleResponse {
    /// Returns the response as an action.
    pub fn action(&self) -> FaultAction {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let headers = self.headers.iter().map(owned).collect();
        FaultAction::Status { code: self.status, headers, body: Bytes::from_static(self.body.as_bytes()) }
    }
}

impl RunningProfile {
    /// Returns `registry/repository:tag`.
    pub fn reference(&self, tag: &str) -> String {
        format!("{}/{}:{tag}", self.profile.registry, self.profile.repository)
    }

    /// Configures a program with the proxy, the login and the required settings.
    #[must_use]
    pub fn configure(&self, program: Imgsync) -> Imgsync {
        let ca = program.file("ca.pem", self.authority.pem());
        let settings = self.profile.settings;
        if !settings.is_empty() {
            program.file("imgsync.yaml", format!("registries:\n  {}: {{{settings}}}\n", self.profile.registry));
        }
        match self.profile.login {
            ProfileLogin::None => {}
            ProfileLogin::Password { key, user, password } => program.write_docker_config(&[(key, user, password)]),
            ProfileLogin::IdentityToken(token) => {
                // az and docker store this user next to a refresh token.
                let auth = STANDARD.encode("00000000-0000-0000-0000-000000000000:");
                let entry = json!({"auth": auth, "identitytoken": token});
                program.write_docker_json(&json!({"auths": {self.profile.registry: entry}}));
            }
            ProfileLogin::Helper { user, passwords: [first, next] } => {
                write_helper(&program, user);
                let now = if self.expired.load(Ordering::SeqCst) { next } else { first };
                program.file("password", now);
                program.write_docker_json(&json!({"credHelpers": {self.profile.registry: "played"}}));
            }
        }
        let path = format!("{}:/usr/bin:/bin", program.work_dir().display());
        program.env("SSL_CERT_FILE", ca).env("HTTPS_PROXY", self.proxy.url()).env("PATH", path)
    }

    /// Expires all issued credentials. A credential helper returns the next password from then on.
    pub fn expire(&self, program: &Imgsync) {
        if let ProfileLogin::Helper { passwords: [_, next], .. } = self.profile.login {
            program.file("password", next);
        }
        self.expired.store(true, Ordering::SeqCst);
        self.registry.expire_tokens();
    }
}

/// Writes `docker-credential-played`, a program that prints the content of a file.
fn write_helper(program: &Imgsync, user: &str) {
    let password = program.work_dir().join("password");
    let script = format!(
        "#!/bin/sh\ncat >/dev/null\nprintf '{{\"ServerURL\":\"x\",\"Username\":\"{user}\",\"Secret\":\"%s\"}}' \"$(cat '{}')\"\n",
        password.display()
    );
    let helper = program.file("docker-credential-played", script);
    make_executable(&helper);
}

fn make_executable(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("the file is ours");
}
