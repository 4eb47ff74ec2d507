//! Checks stored credentials without writing, for dry runs: a registry may answer 401 for what is missing, too.

use ::http::{Method, StatusCode};
use imgsync_oci::error::{ErrorKind, Result};

use super::super::Repository;
use super::super::context::RequestKind;
use super::super::transport::RequestSpec;

impl Repository {
    /// Whether the registry rejects the stored credentials as such. False if there are none, if it does not ask for
    /// any, or if the request fails for another reason.
    pub async fn rejects_credentials(&self) -> Result<bool> {
        if self.find_credential(0).await?.is_none() {
            return Ok(false);
        }
        let operation = format!("logging in at {}", self.registry.name);
        // The root of the API belongs to no repository, so that access to one plays no part.
        let mut url = self.registry.base.clone();
        url.set_path(&format!("{}v2/", url.path()));
        match self.send(RequestSpec::new(Method::GET, url, &operation).kind(RequestKind::Token)).await {
            Ok(response) => {
                let is_rejected = response.status() == StatusCode::UNAUTHORIZED;
                response.drain().await;
                Ok(is_rejected)
            }
            Err(error) if error.is_cancelled() => Err(error),
            // The token service.
            Err(error) => Ok(error.kind() == ErrorKind::Denied && error.status() == Some(401)),
        }
    }
}
