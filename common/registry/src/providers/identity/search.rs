//! One search for an identity: what may be looked at, and what was missing.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ::http::Method;
use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::secret::Secret;
use tokio::io::AsyncReadExt as _;
use url::Url;

use super::http::{IdentityHttp, IdentityRequest, IdentityResponse, NoAnswer};
use super::{SigningKeys, http};
use crate::credentials::CredentialEnvironment;
use crate::{Registry, ssrf};

/// Size limit of a file with a token or a key.
const LARGEST_FILE: u64 = 1 << 20;
/// Size limit of what the firmware says.
const LARGEST_FIRMWARE_TEXT: usize = 256;

/// Whether a metadata service is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::providers) enum Presence {
    /// A variable names it, the firmware says that the machine is the cloud's, or the user named the cloud and the
    /// firmware says nothing. If it does not answer, that is an outage.
    Expected,
    /// The user named the cloud, and the firmware names another machine. If it does not answer, there is none.
    Possible,
    /// It is not asked.
    Absent,
}

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
    /// Whether a service that is expected to be there did not answer.
    pub(super) has_outage: bool,
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

    /// Returns the error of an identity that is not there: for now, if a service has an outage.
    pub(in crate::providers) fn unavailable(&self, detail: impl AsRef<str>) -> Error {
        let kind = if self.has_outage { ErrorKind::Unreachable } else { ErrorKind::Denied };
        self.invalid(detail).with_kind(kind)
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

    /// Returns whether the metadata service of a cloud is there. `signs` are files of the firmware and what they contain on
    /// machines of this cloud. Without a word of the user's, the service is asked only on such a machine.
    pub(in crate::providers) async fn metadata_presence(&self, is_named: bool, signs: &[(&str, &str)]) -> Presence {
        match (is_named, self.is_machine_of(signs).await) {
            (true, _) | (false, Some(true)) => Presence::Expected,
            // Sandboxes hide the firmware.
            (false, None) if self.is_explicit => Presence::Expected,
            (false, Some(false)) if self.is_explicit => Presence::Possible,
            (false, _) => Presence::Absent,
        }
    }

    /// Whether the firmware says that this is a machine of a cloud; `None` if it says nothing.
    async fn is_machine_of(&self, signs: &[(&str, &str)]) -> Option<bool> {
        let folder = self.environment.firmware.as_ref()?;
        let mut found = None;
        for (file, words) in signs {
            let Ok(text) = tokio::fs::read(folder.join(file)).await else { continue };
            let text = String::from_utf8_lossy(&text[..text.len().min(LARGEST_FIRMWARE_TEXT)]).into_owned();
            found = Some(found == Some(true) || text.contains(words));
        }
        found
    }

    /// Asks a metadata service. The error says why there was no answer.
    pub(in crate::providers) async fn ask_metadata(
        &mut self,
        request: IdentityRequest,
        presence: Presence,
    ) -> std::result::Result<IdentityResponse, String> {
        let answer = self.http.ask_metadata(request, presence == Presence::Expected).await;
        answer.map_err(|NoAnswer { why, is_outage }| {
            self.has_outage |= is_outage;
            why
        })
    }

    /// Asks the service that hands out credentials to containers or apps, at an address from a variable. In plain HTTP, it
    /// is asked only on this machine and at addresses that its cloud uses.
    pub(in crate::providers) async fn ask_container_service(
        &mut self,
        request: IdentityRequest,
        named_by: &str,
        is_clouds: fn(IpAddr) -> bool,
    ) -> Result<IdentityResponse> {
        let origin = ssrf::origin(&request.url);
        if !http::is_container_service(&request.url, is_clouds) {
            let detail =
                format!("{named_by} names {origin}, which is neither https nor a known address of this machine");
            return Err(Error::new(ErrorKind::Insecure, &self.operation, detail));
        }
        let answer = self.ask_metadata(request, Presence::Expected).await;
        answer.map_err(|why| self.unavailable(format!("{origin}, named by {named_by}, did not answer: {why}")))
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

    /// Asks a service for a token that another one exchanges: a metadata service, also by a name of the cloud, or one on
    /// this machine; else over TLS.
    pub(in crate::providers) async fn ask_token_source(
        &mut self,
        request: IdentityRequest,
        clouds_name: &str,
    ) -> Result<IdentityResponse> {
        if !http::is_metadata_service(&request.url, clouds_name) {
            return self.ask_service(request).await;
        }
        let origin = ssrf::origin(&request.url);
        let answer = self.ask_metadata(request, Presence::Expected).await;
        answer.map_err(|why| self.unavailable(format!("{origin} did not answer: {why}")))
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
    pub(super) fn nothing_found(&self, key: &str, hint: &str) -> Error {
        let missed: Vec<String> = self.missed.iter().map(|what| sanitize_within(what, 300).into_owned()).collect();
        self.unavailable(format!("this machine has no identity of `{key}`: {}", missed.join("; "))).with_hint(hint)
    }
}

impl std::fmt::Debug for Search<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search").field("registry", &self.registry.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, ClientSettings};

    #[tokio::test]
    async fn without_a_word_a_metadata_service_is_asked_only_where_the_firmware_names_the_cloud() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vendor"), "Cloud Machines Inc.\n").unwrap();
        std::fs::write(folder.path().join("version"), "4.2.machines\n").unwrap();
        let firmware = CredentialEnvironment { firmware: Some(folder.path().to_owned()), ..Default::default() };
        let none = CredentialEnvironment::default();
        let theirs = [("vendor", "Cloud Machines")];
        let versioned = [("vendor", "Xen"), ("version", "machines")];
        let (others, hidden) = ([("vendor", "Xen")], [("product", "")]);
        for (environment, is_explicit, is_named, signs, presence) in [
            (&firmware, false, false, &theirs[..], Presence::Expected),
            (&firmware, false, false, &versioned, Presence::Expected),
            (&firmware, false, false, &others, Presence::Absent),
            (&firmware, false, false, &hidden, Presence::Absent),
            (&firmware, false, true, &others, Presence::Expected),
            (&firmware, true, false, &others, Presence::Possible),
            (&firmware, true, false, &hidden, Presence::Expected),
            (&none, false, false, &theirs, Presence::Absent),
            (&none, true, false, &theirs, Presence::Expected),
        ] {
            let client = Client::new(ClientSettings::default(), environment.clone());
            let registry = client.registry(&"r.example.com".parse().unwrap()).unwrap();
            let search = client.0.identities.search(&registry, environment, is_explicit, "logging in");
            let found = search.metadata_presence(is_named, signs).await;
            assert_eq!(found, presence, "{is_explicit} {is_named} {signs:?}");
        }
    }
}
