//! CloudEvents of zot (zotregistry.dev, "Event generation").

use axum::http::HeaderMap;
use serde::Deserialize;

use super::cloud_event::{self, CloudEvent};
use super::{NotifiedAction, PayloadError, RegistryNotification};

#[derive(Default, Deserialize)]
struct Image {
    #[serde(default)]
    name: Option<String>,
    /// A tag or a digest.
    #[serde(default)]
    reference: Option<String>,
    #[serde(default)]
    digest: Option<String>,
}

pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    let CloudEvent { kind, id, data } = cloud_event::parse::<Image>(headers, body)?;
    let action = match kind.as_str() {
        "zotregistry.image.updated" => NotifiedAction::Push,
        "zotregistry.image.deleted" => NotifiedAction::Delete,
        _ => return Ok(vec![RegistryNotification::other(NotifiedAction::Other)]),
    };
    let Image { name, reference, digest } = data.ok_or(PayloadError::Malformed("it has no data"))?;
    let repository = name.unwrap_or_default();
    Ok(vec![RegistryNotification { action, host: None, repository, tag: reference, digest, id }])
}
