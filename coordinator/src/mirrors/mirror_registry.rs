//! How nodes reach a registry: by the settings that the configuration has for it. Credentials are not among them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use imgsync_config::{Config, RegistryConfig};
use imgsync_oci::RegistryName;
use imgsync_oci::error::Result;
use imgsync_registry::providers;
use imgsync_worker::settings::load_certificates;

const BEGIN_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const END_CERTIFICATE: &str = "-----END CERTIFICATE-----";

/// The registries of a configuration.
#[derive(Debug)]
pub(super) struct MirrorRegistries {
    settings: BTreeMap<RegistryName, RegistryConfig>,
    folder: PathBuf,
}

/// What nodes need to reach a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MirrorRegistry {
    /// The registry.
    pub(super) name: RegistryName,
    /// Base URL, without a slash at its end.
    pub(super) url: String,
    /// Plain HTTP.
    pub(super) is_plain: bool,
    /// TLS with any certificate.
    pub(super) skips_verification: bool,
    /// Certificates to trust, as PEM.
    pub(super) ca: Option<String>,
    /// Where imgsync reaches it instead of its name.
    pub(super) endpoint: Option<String>,
}

impl MirrorRegistries {
    /// Takes the settings of a configuration. `folder`: base of its relative paths.
    pub(super) fn new(config: &Config, folder: &Path) -> MirrorRegistries {
        MirrorRegistries { settings: config.registries.clone(), folder: folder.to_owned() }
    }

    /// Returns a registry.
    pub(super) fn get(&self, name: &RegistryName) -> Result<MirrorRegistry> {
        let settings = self.settings.get(name);
        let is_plain = settings.and_then(|settings| settings.uses_plain_http()).unwrap_or_else(|| name.is_loopback());
        let mut ca = String::new();
        for pem in settings.iter().flat_map(|settings| &settings.ca) {
            ca.push_str(&certificates_alone(&String::from_utf8_lossy(&load_certificates(pem, &self.folder)?)));
        }
        let scheme = if is_plain { "http" } else { "https" };
        let url = providers::endpoint(name).map_or_else(|| format!("{scheme}://{name}"), str::to_owned);
        Ok(MirrorRegistry {
            name: name.clone(),
            url,
            is_plain,
            skips_verification: settings.is_some_and(|settings| settings.insecure),
            ca: Some(ca).filter(|ca| !ca.is_empty()),
            endpoint: settings.and_then(|settings| settings.endpoint.as_ref()).map(ToString::to_string),
        })
    }
}

impl MirrorRegistry {
    /// Returns host and port.
    pub(super) fn host(&self) -> &str {
        self.url.split_once("://").map_or(self.name.as_str(), |(_, host)| host)
    }

    /// Whether it has no TLS, or none to verify.
    pub(super) fn is_insecure(&self) -> bool {
        self.is_plain || self.skips_verification
    }

    /// Returns the name of the file with its certificates.
    pub(super) fn ca_file(&self) -> String {
        format!("ca-{}.pem", self.name.as_str().replace([':', '[', ']'], "_"))
    }
}

/// Returns the certificates of a PEM file, without keys and anything else in it.
fn certificates_alone(pem: &str) -> String {
    let mut certificates = String::new();
    let mut is_inside = false;
    for line in pem.lines().map(str::trim) {
        is_inside |= line == BEGIN_CERTIFICATE;
        if is_inside {
            certificates.push_str(line);
            certificates.push('\n');
        }
        is_inside &= line != END_CERTIFICATE;
    }
    certificates
}

#[cfg(test)]
mod tests {
    use imgsync_config::ConfigFile;

    use super::*;

    #[test]
    fn only_certificates_of_a_pem_file_are_taken() {
        let pem = "notes\n-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\r\n\
                   -----BEGIN CERTIFICATE-----\r\nabc\n-----END CERTIFICATE-----\nmore\n";
        assert_eq!(certificates_alone(pem), "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n");
    }

    #[test]
    fn urls_are_those_of_the_settings() {
        let text = "registries: {a.example: {tls: off}, b.example: {insecure: true}, c.example: {endpoint: \"https://d.example\"}}";
        let config = Config::read(&ConfigFile { name: "", text, environment: &|_| None, presets: None }).unwrap();
        let registries = MirrorRegistries::new(&config, Path::new(""));
        let get = |name: &str| registries.get(&name.parse().unwrap()).unwrap();
        assert_eq!(get("a.example").url, "http://a.example");
        assert_eq!((get("b.example").url.as_str(), get("b.example").skips_verification), ("https://b.example", true));
        assert_eq!(get("c.example").endpoint.as_deref(), Some("https://d.example/"));
        assert_eq!(get("docker.io").url, "https://registry-1.docker.io");
        assert_eq!(get("[::1]:5000").url, "http://[::1]:5000");
        assert_eq!(get("[::1]:5000").ca_file(), "ca-___1__5000.pem");
    }
}
