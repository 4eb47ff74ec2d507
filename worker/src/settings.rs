//! Converts the configuration to client settings.

use std::path::Path;
use std::time::Duration;

use imgsync_common::config::{self, Config, Pem};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::registry::credentials::Credential;
use imgsync_common::registry::{ClientSettings, RegistrySettings, Reserve, certificates_as_pem};
use imgsync_common::secret::Secret;

/// Longest Retry-After that is waited out while holding a slot; for a longer one the task is requeued.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Time a draining program gives copies in progress, before it aborts them.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// Time an aborted program has to clean up (cancel uploads, requeue tasks) before it exits.
pub const ABORT_LIMIT: Duration = Duration::from_secs(1);
/// Total time rate limits (429) are waited out while holding a slot, in waits no longer than [`LONGEST_SLEEP`].
pub const SLOT_PATIENCE: Duration = Duration::from_secs(60);

/// Creates the client settings. Relative paths are resolved against `folder`, the folder of the configuration.
pub fn client_settings(config: &Config, folder: &Path) -> Result<ClientSettings> {
    let mut client = ClientSettings::default();
    for (name, written) in &config.registries {
        client.registries.insert(name.clone(), registry(written, folder)?);
    }
    client.bandwidth = config.bandwidth;
    Ok(client)
}

/// Returns a warning if a configuration file contains secrets and is readable by others.
#[must_use]
pub fn exposed(config: &Config, file: &Path) -> Option<String> {
    let name = file.display();
    (config.has_secrets_inline() && others_can_read(file))
        .then(|| format!("{name} holds secrets and others can read it: chmod 600 {name}"))
}

#[cfg(unix)]
fn others_can_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o044 != 0)
}

#[cfg(not(unix))]
fn others_can_read(_path: &Path) -> bool {
    false
}

fn registry(written: &config::RegistrySettings, folder: &Path) -> Result<RegistrySettings> {
    let credential = |written: &config::Credential| match written.clone() {
        config::Credential::Basic { username, password } => Credential::Basic { username, password },
        config::Credential::IdentityToken(token) => Credential::IdentityToken { username: None, token },
    };
    let identity = match &written.client_identity {
        None => None,
        Some(identity) => {
            let mut pem = certificates(&identity.certificate, folder)?;
            pem.push(b'\n');
            pem.extend(read(&identity.key, folder)?);
            Some(Secret::new(String::from_utf8_lossy(&pem).into_owned()))
        }
    };
    Ok(RegistrySettings {
        endpoint: written.endpoint.clone(),
        listing: written.listing,
        api: written.api.clone(),
        mirrors: written.mirrors.clone(),
        plain_http: written.plain_http,
        ca: written.ca.iter().map(|pem| certificates(pem, folder)).collect::<Result<_>>()?,
        identity,
        insecure: written.insecure,
        http1: written.http1,
        proxy: written.proxy.clone(),
        allow_private: written.allow_private,
        allow_metadata: written.allow_metadata.clone(),
        credentials: written.credential.iter().map(credential).collect(),
        pull_credentials: written.pull_credentials.iter().map(credential).collect(),
        requests_per_second: written.requests_per_second,
        concurrency: written.concurrency,
        pull_reserve: match written.pull_reserve {
            None => Reserve::default(),
            Some(config::PullReserve::Count(count)) => Reserve::Count(count),
            Some(config::PullReserve::Percent(percent)) => Reserve::Percent(percent),
        },
        bandwidth: written.bandwidth,
        egress: written.egress.as_deref().map(Into::into),
        create: written.create,
        chunk: written.chunk,
    })
}

/// Loads certificates as PEM, also from a DER file; a relative path is resolved against `folder`. The error names the
/// file and what it contains instead.
pub fn certificates(pem: &Pem, folder: &Path) -> Result<Vec<u8>> {
    certificates_as_pem(read(pem, folder)?).map_err(|why| {
        let tried = match pem {
            Pem::Inline(_) => "reading a certificate in the configuration".to_owned(),
            Pem::File(path) => format!("reading the certificate in {}", folder.join(path).display()),
        };
        Error::new(Class::Invalid, tried, why)
    })
}

/// Reads the text of a certificate or key; a relative path is resolved against `folder`.
fn read(pem: &Pem, folder: &Path) -> Result<Vec<u8>> {
    match pem {
        Pem::Inline(text) => Ok(text.expose().as_bytes().to_vec()),
        Pem::File(path) => {
            let path = folder.join(path);
            std::fs::read(&path).map_err(|error| {
                // A value that is clearly no file name may be a misplaced key or password.
                let shown = match pem.to_string().as_str() {
                    "***" => "a certificate or key: what is written there (***) is neither PEM nor the name of a file"
                        .to_owned(),
                    _ => format!("{}, named in the configuration", path.display()),
                };
                let tried = format!("reading {shown}");
                Error::new(Class::Invalid, tried, error.to_string()).because(error)
            })
        }
    }
}
