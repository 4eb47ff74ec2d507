//! Converts the configuration to client settings.

use std::path::Path;
use std::time::Duration;

use imgsync_config::{Config, PemSource};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;
use imgsync_registry::credentials::Credential;
use imgsync_registry::{ClientSettings, QuotaReserve, RegistrySettings};
use imgsync_tls::certificates_as_pem;

/// Longest Retry-After that is waited out while holding a slot; for a longer one the task is requeued.
pub const MAX_WAIT_IN_SLOT: Duration = Duration::from_secs(30);
/// Time a draining program gives copies in progress, before it aborts them.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Time an aborted program has to clean up (cancel uploads, requeue tasks) before it exits.
pub const ABORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Total time rate limits (429) are waited out while holding a slot, in waits no longer than [`MAX_WAIT_IN_SLOT`].
pub const RATE_LIMIT_DEADLINE_IN_SLOT: Duration = Duration::from_secs(60);

/// Creates the client settings. Relative paths are resolved against `folder`, the folder of the configuration.
pub fn client_settings(config: &Config, folder: &Path) -> Result<ClientSettings> {
    let mut client = ClientSettings::default();
    for (name, written) in &config.registries {
        client.registries.insert(name.clone(), registry_settings(written, folder)?);
    }
    client.bandwidth = config.bandwidth;
    Ok(client)
}

/// Returns a warning if a configuration file contains secrets and is readable by others.
#[must_use]
pub fn readable_secrets_warning(config: &Config, file: &Path) -> Option<String> {
    let name = file.display();
    (config.has_secrets_inline() && others_can_read(file))
        .then(|| format!("{name} contains secrets and is readable by others: chmod 600 {name}"))
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

fn registry_settings(written: &imgsync_config::RegistryConfig, folder: &Path) -> Result<RegistrySettings> {
    let credential = |written: &imgsync_config::CredentialConfig| match written.clone() {
        imgsync_config::CredentialConfig::Basic { username, password } => Credential::Basic { username, password },
        imgsync_config::CredentialConfig::IdentityToken(token) => Credential::IdentityToken { username: None, token },
    };
    let identity = match &written.client_identity {
        None => None,
        Some(identity) => {
            let mut pem = load_certificates(&identity.certificate, folder)?;
            pem.push(b'\n');
            pem.extend(read_pem(&identity.key, folder)?);
            Some(Secret::new(String::from_utf8_lossy(&pem).into_owned()))
        }
    };
    Ok(RegistrySettings {
        endpoint: written.endpoint.clone(),
        listing: written.listing,
        api: written.api.clone(),
        mirrors: written.mirrors.clone(),
        plain_http: written.uses_plain_http(),
        ca: written.ca.iter().map(|pem| load_certificates(pem, folder)).collect::<Result<_>>()?,
        identity,
        insecure: written.insecure,
        http1: written.http1,
        proxy: written.proxy.clone(),
        allow_private: written.allow_private,
        public_only: false,
        allow_metadata: written.allow_metadata.clone(),
        credentials: written.credential.iter().map(credential).collect(),
        credential_source: written.credential_source,
        pull_credentials: written.pull_credentials.iter().map(credential).collect(),
        requests_per_second: written.requests_per_second,
        concurrency: written.concurrency,
        pull_reserve: match written.pull_reserve {
            None => QuotaReserve::default(),
            Some(imgsync_config::PullReserve::Count(count)) => QuotaReserve::Count(count),
            Some(imgsync_config::PullReserve::Percent(percent)) => QuotaReserve::Percent(percent),
        },
        bandwidth: written.bandwidth,
        egress: written.egress.as_deref().map(Into::into),
        create: written.create,
        chunk: written.chunk_size,
    })
}

/// Loads certificates as PEM, also from a DER file; a relative path is resolved against `folder`. The error names the
/// file and what it contains instead.
pub fn load_certificates(pem: &PemSource, folder: &Path) -> Result<Vec<u8>> {
    certificates_as_pem(read_pem(pem, folder)?).map_err(|why| {
        let operation = match pem {
            PemSource::Inline(_) => "reading a certificate in the configuration".to_owned(),
            PemSource::File(path) => format!("reading the certificate in {}", folder.join(path).display()),
        };
        Error::new(ErrorKind::Invalid, operation, why)
    })
}

/// Reads the text of a certificate or key; a relative path is resolved against `folder`.
fn read_pem(pem: &PemSource, folder: &Path) -> Result<Vec<u8>> {
    match pem {
        PemSource::Inline(text) => Ok(text.expose().as_bytes().to_vec()),
        PemSource::File(path) => {
            let path = folder.join(path);
            std::fs::read(&path).map_err(|error| {
                // A value that is clearly no file name may be a misplaced key or password.
                let shown = match pem.to_string().as_str() {
                    "***" => "a certificate or key: the value (***) is neither PEM nor a file name".to_owned(),
                    _ => format!("{}, named in the configuration", path.display()),
                };
                let operation = format!("reading {shown}");
                Error::new(ErrorKind::Invalid, operation, error.to_string()).with_source(error)
            })
        }
    }
}
