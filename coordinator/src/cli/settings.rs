//! What holds for a command, from the configuration file: read once, checked whole, handed on as values.

use std::path::{Path, PathBuf};

use imgsync_common::config::{self, Config, File, Pem};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::registry::credentials::Credential;
use imgsync_common::registry::{ClientSettings, RegistrySettings};
use imgsync_common::secret::Secret;

use super::args::Global;
use super::exit::Exit;
use super::printer::Printer;

/// The file that is read where none was named.
const DEFAULT_FILE: &str = "imgsync.yaml";

/// The configuration, and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What the file means; what no file would mean where there is none.
    pub(crate) config: Config,
    /// The file, if there is one.
    pub(crate) file: Option<PathBuf>,
}

impl Settings {
    /// Reads the file that was named, else `./imgsync.yaml` if it is there. What is wrong with it is printed.
    pub(crate) fn load(global: &Global, printer: &Printer) -> std::result::Result<Settings, Exit> {
        let named = global.config.clone();
        let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => None,
            Err(error) => {
                printer.error(&format!("cannot read the configuration {}: {error}", path.display()), None);
                return Err(Exit::Usage);
            }
        };
        let name = path.display().to_string();
        let file = File {
            name: &name,
            text: text.as_deref().unwrap_or_default(),
            environment: &|name| std::env::var(name).ok(),
            presets: None,
        };
        let config = Config::read(&file).map_err(|errors| {
            printer.raw(&errors.to_string());
            Exit::Usage
        })?;
        if config.has_secrets_inline() && others_can_read(&path) {
            printer.warning(&format!("{name} holds secrets and others can read it: chmod 600 {name}"));
        }
        Ok(Settings { config, file: text.map(|_| path) })
    }

    /// How registries are spoken to.
    pub(crate) fn client(&self) -> Result<ClientSettings> {
        let folder = self.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        let mut client = ClientSettings::default();
        for (name, written) in &self.config.registries {
            client.registries.insert(name.clone(), registry(written, folder)?);
        }
        Ok(client)
    }
}

fn registry(written: &config::RegistrySettings, folder: &Path) -> Result<RegistrySettings> {
    let credential = |written: &config::Credential| match written.clone() {
        config::Credential::Basic { username, password } => Credential::Basic { username, password },
        config::Credential::IdentityToken(token) => Credential::IdentityToken { username: None, token },
    };
    let identity = match &written.client_identity {
        None => None,
        Some(identity) => {
            let mut pem = read(&identity.certificate, folder)?;
            pem.push(b'\n');
            pem.extend(read(&identity.key, folder)?);
            Some(Secret::new(String::from_utf8_lossy(&pem).into_owned()))
        }
    };
    Ok(RegistrySettings {
        endpoint: written.endpoint.clone(),
        plain_http: written.plain_http,
        ca: written.ca.iter().map(|pem| read(pem, folder)).collect::<Result<_>>()?,
        identity,
        insecure: written.insecure,
        http1: written.http1,
        proxy: written.proxy.as_ref().map(|proxy| proxy.expose().clone()),
        allow_private: written.allow_private,
        credentials: written.credential.iter().chain(&written.pull_credentials).map(credential).collect(),
        requests_per_second: written.requests_per_second,
        chunk: written.chunk,
    })
}

/// The text of a certificate or key; a relative path begins where the configuration is.
fn read(pem: &Pem, folder: &Path) -> Result<Vec<u8>> {
    match pem {
        Pem::Inline(text) => Ok(text.expose().as_bytes().to_vec()),
        Pem::File(path) => {
            let path = folder.join(path);
            std::fs::read(&path).map_err(|error| {
                let tried = format!("reading {}, named in the configuration", path.display());
                Error::new(Class::Invalid, tried, error.to_string()).because(error)
            })
        }
    }
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
