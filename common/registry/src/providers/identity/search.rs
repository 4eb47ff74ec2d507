//! One search for an identity: what may be looked at, and what was missing.

use std::path::{Path, PathBuf};

use ::http::Method;
use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::secret::Secret;
use tokio::io::AsyncReadExt as _;
use url::Url;

use super::http::{IdentityHttp, IdentityRequest, IdentityResponse};
use super::{SigningKeys, http};
use crate::credentials::CredentialEnvironment;
use crate::{Registry, ssrf};

/// Size limit of a file with a token or a key.
const LARGEST_FILE: u64 = 1 << 20;
/// Size limit of what the firmware says.
const LARGEST_FIRMWARE_TEXT: usize = 256;

/// A search for an identity.
pub(in crate::providers) struct Search<'a> {
    /// The registry to log in at.
    pub(in crate::providers) registry: &'a Registry,
    pub(in crate::providers) environment: &'a CredentialEnvironment,
    /// Whether the user named the cloud. Otherwise a metadata service is asked only if the machine seems to be the cloud's.
    pub(in crate::providers) is_explicit: bool,
    /// The operation, for errors.
    pub(in crate::providers) operation: String,
    pub(super) http: &'a IdentityHttp,
    pub(super) keys: &'a tokio::sync::Mutex<Option<super::cache::CachedKeys>>,
    pub(super) missed: Vec<String>,
}

impl Search<'_> {
    /// Returns the registry's name.
    pub(in crate::providers) fn name(&self) -> &RegistryName {
        &self.registry.name
    }

    /// Returns the value of a variable; an empty one counts as unset.
    pub(in crate::providers) fn variable(&self, name: &str) -> Option<String> {
        let value = self.environment.helpers.get(name)?.to_str()?;
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Returns a variable that holds the name of a file.
    pub(in crate::providers) fn path(&self, name: &str) -> Option<PathBuf> {
        self.environment.helpers.get(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// Returns a variable that holds a URL.
    pub(in crate::providers) fn url(&self, name: &str) -> Result<Option<Url>> {
        let Some(text) = self.variable(name) else { return Ok(None) };
        match Url::parse(&text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Some(url)),
            _ => Err(self.invalid(format!("the variable {name} is not a URL of http or https"))),
        }
    }

    /// Records what was looked for and is not there.
    pub(in crate::providers) fn missed(&mut self, what: impl Into<String>) {
        self.missed.push(what.into());
    }

    /// Returns an error of the user's settings.
    pub(in crate::providers) fn invalid(&self, detail: impl AsRef<str>) -> Error {
        Error::new(ErrorKind::Denied, &self.operation, detail)
    }

    /// Reads a file that a variable or another file names. It must exist.
    pub(in crate::providers) async fn read_file(&self, file: &Path, named_by: &str) -> Result<Secret> {
        match self.read_file_if_any(file).await? {
            Some(text) => Ok(text),
            None => Err(self.invalid(format!("the file {}, named by {named_by}, does not exist", file.display()))),
        }
    }

    /// Reads a file; `None` if it does not exist.
    pub(in crate::providers) async fn read_file_if_any(&self, file: &Path) -> Result<Option<Secret>> {
        let failed = |why: String| Err(self.invalid(format!("{} cannot be used: {why}", file.display())));
        let opened = match tokio::fs::File::open(file).await {
            Ok(opened) => opened,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return failed(error.to_string()),
        };
        let mut bytes = Vec::new();
        if let Err(error) = opened.take(LARGEST_FILE + 1).read_to_end(&mut bytes).await {
            return failed(error.to_string());
        }
        match String::from_utf8(bytes) {
            Ok(text) if text.len() as u64 <= LARGEST_FILE => Ok(Some(Secret::new(text))),
            Ok(_) => failed(format!("it is larger than {} MiB", LARGEST_FILE >> 20)),
            Err(_) => failed("it is not text".to_owned()),
        }
    }

    /// Whether a metadata service may be asked. Without a word of the user's, that is so only where the firmware says
    /// that the machine is the cloud's.
    pub(in crate::providers) async fn is_machine_of(&self, file: &str, beginnings: &[&str]) -> bool {
        if self.is_explicit {
            return true;
        }
        let Some(folder) = &self.environment.firmware else { return false };
        let Ok(text) = tokio::fs::read(folder.join(file)).await else { return false };
        let text = String::from_utf8_lossy(&text[..text.len().min(LARGEST_FIRMWARE_TEXT)]).into_owned();
        beginnings.iter().any(|begin| text.trim().starts_with(begin))
    }

    /// Asks a metadata service. The error says why there was no answer.
    pub(in crate::providers) async fn ask_metadata(
        &self,
        request: IdentityRequest,
    ) -> std::result::Result<IdentityResponse, String> {
        self.http.ask_metadata(request).await
    }

    /// Asks the service that hands out credentials to containers, at an address from a variable.
    pub(in crate::providers) async fn ask_container_service(
        &self,
        request: IdentityRequest,
        named_by: &str,
    ) -> Result<IdentityResponse> {
        let origin = ssrf::origin(&request.url);
        if !http::is_container_service(&request.url) {
            let detail =
                format!("{named_by} names {origin}, which is neither https nor a known address of this machine");
            return Err(Error::new(ErrorKind::Insecure, &self.operation, detail));
        }
        let answer = self.http.ask_metadata(request).await;
        answer.map_err(|why| self.invalid(format!("{origin}, named by {named_by}, did not answer: {why}")))
    }

    /// Asks a token service.
    pub(in crate::providers) async fn ask_service(&self, request: IdentityRequest) -> Result<IdentityResponse> {
        self.http.ask_service(request, &self.operation).await
    }

    /// Asks the registry itself, or its provider's API, with the registry's connection settings.
    pub(in crate::providers) async fn ask_registry(&self, request: IdentityRequest) -> Result<IdentityResponse> {
        http::refuse_plain_http(&request.url, &self.operation)?;
        self.registry.request_target(&request.url)?;
        ssrf::refuse_metadata(&request.url, self.registry.settings.allowed(), &self.operation)?;
        let client = match ssrf::same_origin(&request.url, &self.registry.base) {
            true => &self.registry.http,
            false => &self.registry.http_redirect,
        };
        http::ask(client, request, &self.operation).await.map_err(|error| error.with_registry(&self.registry.name))
    }

    /// Posts a form to a token service.
    pub(in crate::providers) async fn post_form(&self, url: Url, fields: &[(&str, &str)]) -> Result<IdentityResponse> {
        self.ask_service(IdentityRequest::new(Method::POST, url).form(fields)?).await
    }

    /// Returns signing keys: known ones, as long as they are valid, else those that `find` returns.
    pub(in crate::providers) async fn known_keys(&self) -> Option<SigningKeys> {
        let known = self.keys.lock().await;
        known.as_ref().filter(|known| known.is_fresh()).map(|known| known.keys.clone())
    }

    /// Remembers signing keys until shortly before they end; `None` forgets them.
    pub(in crate::providers) async fn remember_keys(&self, keys: Option<&SigningKeys>) {
        *self.keys.lock().await = keys.map(|keys| super::cache::CachedKeys::new(keys.clone()));
    }

    /// Returns what was looked for and is not there.
    pub(in crate::providers) fn shown_misses(&self) -> String {
        self.missed.join("; ")
    }

    /// Returns the error of a machine that has no identity.
    pub(super) fn nothing_found(missed: &[String], key: &str, hint: &str, operation: &str) -> Error {
        let missed: Vec<String> = missed.iter().map(|what| sanitize_within(what, 300).into_owned()).collect();
        let detail = format!("this machine has no identity of `{key}`: {}", missed.join("; "));
        Error::new(ErrorKind::Denied, operation, detail).with_hint(hint)
    }
}

impl std::fmt::Debug for Search<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search").field("registry", &self.registry.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::credentials::CredentialEnvironment;
    use crate::{Client, ClientSettings};

    #[tokio::test]
    async fn without_a_word_a_metadata_service_is_asked_only_where_the_firmware_names_the_cloud() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vendor"), "Cloud Machines Inc.\n").unwrap();
        let environment = CredentialEnvironment { firmware: Some(folder.path().to_owned()), ..Default::default() };
        let client = Client::new(ClientSettings::default(), environment);
        let registry = client.registry(&"r.example.com".parse().unwrap()).unwrap();
        let (identities, environment) = (&client.0.identities, client.0.credentials.environment());
        for (is_explicit, file, begin, is_asked) in [
            (false, "vendor", "Cloud Machines", true),
            (false, "vendor", "Machines", false),
            (false, "product", "", false),
            (true, "product", "Cloud Machines", true),
        ] {
            let search = identities.search(&registry, environment, is_explicit, "logging in");
            assert_eq!(search.is_machine_of(file, &[begin]).await, is_asked, "{is_explicit} {file} {begin}");
        }
        let nowhere = CredentialEnvironment::default();
        assert!(!identities.search(&registry, &nowhere, false, "logging in").is_machine_of("vendor", &[""]).await);
    }
}
