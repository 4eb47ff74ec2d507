//! Access tokens of Google, in the order of Google's libraries ("How Application Default Credentials works"): the file
//! that `GOOGLE_APPLICATION_CREDENTIALS` names, the file of `gcloud auth application-default login`, the metadata server.
//! A registry takes them as a password.

use ::http::{Method, StatusCode};
use async_trait::async_trait;
use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use url::Url;

use super::access_token::{AccessToken, FoundToken, METADATA_HOST};
use super::{GOOGLE, key_file};
use crate::credentials::Credential;
use crate::providers::identity::{IdentityRequest, MachineIdentity, MachineLogin, Presence, Search};
use crate::ssrf;

/// User name under which a registry takes access tokens (Artifact Registry, "Configure authentication": access token).
const USERNAME: &str = "oauth2accesstoken";
/// Path of the access token of the service account.
const TOKEN_PATH: &str = "computeMetadata/v1/instance/service-accounts/default/token";

pub(super) struct GoogleIdentity;

#[async_trait]
impl MachineIdentity for GoogleIdentity {
    fn key(&self) -> &'static str {
        "gcp"
    }

    fn username(&self) -> &'static str {
        USERNAME
    }

    fn serves(&self, registry: &RegistryName) -> bool {
        GOOGLE.serves(registry.host())
    }

    fn setup_hint(&self) -> &'static str {
        "give the pod or machine a service account that may read from Artifact Registry, or set \
         GOOGLE_APPLICATION_CREDENTIALS to the file of a service account or of a workload identity federation"
    }

    async fn log_in(&self, search: &mut Search<'_>) -> Result<Option<MachineLogin>> {
        let found = match key_file::from_files(search).await? {
            Some(found) => Some(found),
            None => from_metadata(search).await?,
        };
        Ok(found.map(|(token, lifetime, holder)| {
            let credential = Credential::Basic { username: USERNAME.to_owned(), password: token };
            MachineLogin { credential, lifetime, holder: Some(holder) }
        }))
    }
}

async fn from_metadata(search: &mut Search<'_>) -> Result<Option<FoundToken>> {
    let named = search.variable("GCE_METADATA_HOST");
    if search.variable("NO_GCE_CHECK").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        search.missed("NO_GCE_CHECK is true");
        return Ok(None);
    }
    let presence = search.metadata_presence(named.is_some(), &[("product_name", "Google")]).await;
    if presence == Presence::Absent {
        search.missed("this is no machine of Google's");
        return Ok(None);
    }
    let host = named.as_deref().unwrap_or(METADATA_HOST);
    let Some(url) =
        Url::parse(&format!("http://{host}/{TOKEN_PATH}")).ok().filter(|url| url.path().ends_with(TOKEN_PATH))
    else {
        return Err(search.invalid("GCE_METADATA_HOST is not a host with or without a port"));
    };
    let origin = ssrf::origin(&url);
    let request = IdentityRequest::new(Method::GET, url).header("metadata-flavor", "Google")?;
    let answer = match search.ask_metadata(request, presence).await {
        Ok(answer) => answer,
        Err(why) => {
            search.missed(format!("the metadata server at {origin} did not answer: {why}"));
            return Ok(None);
        }
    };
    if answer.is_busy() {
        return Err(answer.error(None, None, &search.operation));
    }
    // By this header a metadata server is told from whatever else answers at the address.
    let flavor = answer.headers.get("metadata-flavor").and_then(|value| value.to_str().ok());
    if flavor != Some("Google") {
        let detail = format!("{origin} is no metadata server: it answered {}", answer.describe());
        return Err(Error::new(ErrorKind::InvalidResponse, &search.operation, detail));
    }
    match answer.status {
        StatusCode::OK => {
            let token = AccessToken::read(&answer, &search.operation)?;
            let lifetime = token.lifetime();
            Ok(Some((token.access_token, lifetime, "the service account of this machine".to_owned())))
        }
        StatusCode::NOT_FOUND => {
            search.missed("the machine has no service account");
            Ok(None)
        }
        _ => {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            Err(answer.error(None, Some(text.trim()).filter(|text| !text.is_empty()), &search.operation))
        }
    }
}
