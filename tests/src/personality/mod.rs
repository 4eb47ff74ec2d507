//! Registries as they are known to behave, played by the fault registry under their own names, behind TLS: each with all
//! the habits that were seen of its kind, at once.
//!
//! A personality is data: a file for each. The suite of the same name goes through all of them in both roles and keeps the
//! matrix in `docs/registries.md` equal to what it finds.

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

use crate::fault::{Action, Builder, FaultRegistry, Kind};
use crate::program::Imgsync;
use crate::proxy::Proxy;
use crate::tls::Authority;

/// How a user is known to it.
#[derive(Clone, Copy, Debug)]
pub enum Login {
    /// Anyone may do anything.
    None,
    /// A user and a password, as `docker login` leaves them under this key.
    Password {
        /// The key in docker's config.json.
        key: &'static str,
        /// The user.
        user: &'static str,
        /// The password.
        password: &'static str,
    },
    /// A refresh token, as its own login command leaves it.
    IdentityToken(&'static str),
    /// A credential helper, which gives one password, and another when that has run out.
    Helper {
        /// The user.
        user: &'static str,
        /// First this one, then that.
        passwords: [&'static str; 2],
    },
}

/// How it says that there were too many requests.
#[derive(Clone, Copy, Debug)]
pub struct Throttle {
    /// The status.
    pub status: u16,
    /// Headers.
    pub headers: &'static [(&'static str, &'static str)],
    /// The body, whatever it is.
    pub body: &'static str,
    /// What it says so to: of a source.
    pub reads: Kind,
    /// What it says so to: of a target.
    pub writes: Kind,
}

/// A kind of registry.
#[derive(Clone, Debug)]
pub struct Personality {
    /// What it is called.
    pub name: &'static str,
    /// Its name in references.
    pub registry: &'static str,
    /// Where its API is; the same, mostly.
    pub api: &'static str,
    /// Other hosts of its own: of tokens, of blobs.
    pub others: &'static [&'static str],
    /// A repository there.
    pub repository: &'static str,
    /// Another one.
    pub neighbour: &'static str,
    /// Who may use it.
    pub login: Login,
    /// What its entry under `registries` must say.
    pub settings: &'static str,
    /// What a user has to do, in the words of the documentation.
    pub to_do: &'static str,
    /// What is played, in the words of the documentation.
    pub habits: &'static str,
    /// Whether Docker's media types are taken.
    pub takes_docker: bool,
    /// Whether a repository has to be made before it is pushed to.
    pub makes_repositories: bool,
    /// Whether there is anything that runs out.
    pub expires: bool,
    /// Whether it counts GETs of manifests even where it is the target.
    pub counts_pulls_of_targets: bool,
    /// Bytes of each PATCH that large blobs come in, if they do.
    pub chunk: Option<u64>,
    /// How it says that there were too many requests.
    pub throttle: Throttle,
    /// The registry that plays it.
    pub play: fn() -> Builder,
}

/// All of them, in the order of the matrix.
pub fn all() -> Vec<Personality> {
    vec![
        docker_hub::personality(),
        ecr::personality(),
        ecr_public::personality(),
        google::personality(),
        ghcr::personality(),
        acr::personality(),
        quay::personality(),
        harbor::personality(),
        gitlab::personality(),
        artifactory::personality(),
        nexus::personality(),
        zot::personality(),
        pulp::personality(),
        cdn::personality(),
    ]
}

/// A personality that is being played.
#[derive(Debug)]
pub struct Played {
    /// Which one.
    pub personality: Personality,
    /// By whom.
    pub registry: FaultRegistry,
    authority: Arc<Authority>,
    proxy: Proxy,
    expired: AtomicBool,
}

impl Personality {
    /// Plays it: its hosts lead to one fault registry.
    pub async fn start(self) -> Played {
        let authority = Arc::new(Authority::new());
        let mut builder = (self.play)().tls(authority.clone());
        let hosts: Vec<&str> = [self.registry, self.api].into_iter().chain(self.others.iter().copied()).collect();
        for host in &hosts {
            builder = builder.host_name(host);
        }
        let registry = builder.start().await;
        let mut proxy = Proxy::http().await;
        for host in &hosts {
            proxy = proxy.lead(host, &registry.address().to_string());
        }
        if self.makes_repositories {
            registry.create_repository(self.repository);
            registry.create_repository(self.neighbour);
        }
        Played { personality: self, registry, authority, proxy, expired: AtomicBool::new(false) }
    }
}

impl Throttle {
    /// The answer.
    pub fn action(&self) -> Action {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let headers = self.headers.iter().map(owned).collect();
        Action::Status { code: self.status, headers, body: Bytes::from_static(self.body.as_bytes()) }
    }
}

impl Played {
    /// `registry/repository:tag`.
    pub fn reference(&self, tag: &str) -> String {
        format!("{}/{}:{tag}", self.personality.registry, self.personality.repository)
    }

    /// Gives a program the way there, the login, and what a user has to set.
    #[must_use]
    pub fn introduce(&self, program: Imgsync) -> Imgsync {
        let ca = program.file("ca.pem", self.authority.pem());
        let settings = self.personality.settings;
        if !settings.is_empty() {
            program.file("imgsync.yaml", format!("registries:\n  {}: {{{settings}}}\n", self.personality.registry));
        }
        match self.personality.login {
            Login::None => {}
            Login::Password { key, user, password } => program.write_docker_config(&[(key, user, password)]),
            Login::IdentityToken(token) => {
                // The user that az and docker leave beside a refresh token.
                let auth = STANDARD.encode("00000000-0000-0000-0000-000000000000:");
                let entry = json!({"auth": auth, "identitytoken": token});
                program.write_docker_json(&json!({"auths": {self.personality.registry: entry}}));
            }
            Login::Helper { user, passwords: [first, next] } => {
                write_helper(&program, user);
                let now = if self.expired.load(Ordering::SeqCst) { next } else { first };
                program.file("password", now);
                program.write_docker_json(&json!({"credHelpers": {self.personality.registry: "played"}}));
            }
        }
        let path = format!("{}:/usr/bin:/bin", program.work().display());
        program.env("SSL_CERT_FILE", ca).env("HTTPS_PROXY", self.proxy.url()).env("PATH", path)
    }

    /// What was given out runs out now. A helper has the next password from here on.
    pub fn expire(&self, program: &Imgsync) {
        if let Login::Helper { passwords: [_, next], .. } = self.personality.login {
            program.file("password", next);
        }
        self.expired.store(true, Ordering::SeqCst);
        self.registry.expire_tokens();
    }
}

/// `docker-credential-played`: a program that gives what stands in a file.
fn write_helper(program: &Imgsync, user: &str) {
    let password = program.work().join("password");
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
