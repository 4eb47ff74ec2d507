//! An access token of Google's services, and the host that issues it on machines of Google's.

use std::time::Duration;

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;
use serde::Deserialize;

use crate::providers::identity::IdentityResponse;

/// Host of the metadata server (Compute Engine, "About VM metadata").
pub(super) const METADATA_HOST: &str = "metadata.google.internal";
/// Life of a token whose answer does not tell.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(300);

/// An access token, as Google's services answer.
#[derive(Deserialize)]
pub(super) struct AccessToken {
    pub(super) access_token: Secret,
    #[serde(default)]
    pub(super) expires_in: Option<u64>,
}

impl AccessToken {
    /// Reads the answer of a token service.
    pub(super) fn read(answer: &IdentityResponse, operation: &str) -> Result<AccessToken> {
        let token: AccessToken = answer.json("an access token", operation)?;
        match token.access_token.expose().is_empty() {
            false => Ok(token),
            true => {
                let detail = format!("{} answered without a token", answer.origin);
                Err(Error::new(ErrorKind::InvalidResponse, operation, detail))
            }
        }
    }

    pub(super) fn lifetime(&self) -> Duration {
        self.expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs)
    }
}

/// A token, how long it is valid, and whose it is.
pub(super) type FoundToken = (Secret, Duration, String);
