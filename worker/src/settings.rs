//! From what the configuration says to how registries are spoken to.

use std::path::Path;
use std::time::Duration;

use imgsync_common::config::{self, Config, Pem};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::registry::credentials::Credential;
use imgsync_common::registry::{ClientSettings, RegistrySettings, Reserve, certificates_as_pem};
use imgsync_common::secret::Secret;

/// A longer Retry-After is not slept out with a slot held: the task is given back.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// A draining program waits this long for the copies in progress, then aborts them.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// An aborted program cleans up for this long (uploads are cancelled at the target, tasks are given back), then it ends.
pub const ABORT_LIMIT: Duration = Duration::from_secs(1);
/// How long refusals (429) are waited out with a slot held, in waits that are each no longer than that.
pub const SLOT_PATIENCE: Duration = Duration::from_secs(60);

/// How registries are spoken to. Relative paths begin in `folder`, where the configuration is.
pub fn client_settings(config: &Config, folder: &Path) -> Result<ClientSettings> {
    let mut client = ClientSettings::default();
    for (name, written) in &config.registries {
        client.registries.insert(name.clone(), registry(written, folder)?);
    }
    client.bandwidth = config.bandwidth;
    Ok(client)
}

/// What to say of a configuration file with secrets in it that others than its owner can read.
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

/// Certificates as PEM, also of a file in DER; a relative path begins where the configuration is. The error names the file and
/// what it holds instead.
pub fn certificates(pem: &Pem, folder: &Path) -> Result<Vec<u8>> {
    certificates_as_pem(read(pem, folder)?).map_err(|why| {
        let tried = match pem {
            Pem::Inline(_) => "reading a certificate in the configuration".to_owned(),
            Pem::File(path) => format!("reading the certificate in {}", folder.join(path).display()),
        };
        Error::new(Class::Invalid, tried, why)
    })
}

/// The text of a certificate or key; a relative path begins where the configuration is.
fn read(pem: &Pem, folder: &Path) -> Result<Vec<u8>> {
    match pem {
        Pem::Inline(text) => Ok(text.expose().as_bytes().to_vec()),
        Pem::File(path) => {
            let path = folder.join(path);
            std::fs::read(&path).map_err(|error| {
                // What is not plainly a file's name may be a key or a password in the wrong place.
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
