//! Notifications of Google Artifact Registry, by a push subscription of the Pub/Sub topic `gcr` (cloud.google.com,
//! "Configure notifications").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{NotifiedAction, PayloadError, RegistryNotification, parse_json, split_image};

#[derive(Deserialize)]
struct Envelope {
    message: Message,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    #[serde(default)]
    data: String,
    #[serde(default)]
    message_id: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    action: String,
    /// `HOST/PROJECT/REPOSITORY/IMAGE@sha256:…`
    #[serde(default)]
    digest: Option<String>,
    /// `HOST/PROJECT/REPOSITORY/IMAGE:TAG`
    #[serde(default)]
    tag: Option<String>,
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    let Envelope { message } = parse_json(body)?;
    let data = STANDARD.decode(&message.data).map_err(|_| PayloadError::Malformed("its data is not base64"))?;
    let event: Event = parse_json(&data)?;
    let action = match event.action.as_str() {
        "INSERT" => NotifiedAction::Push,
        "DELETE" => NotifiedAction::Delete,
        _ => NotifiedAction::Other,
    };
    let by_digest = event.digest.as_deref().and_then(split_image);
    let by_tag = event.tag.as_deref().and_then(split_image);
    let digest = by_digest.as_ref().and_then(|(.., digest)| digest.clone());
    let (host, repository, tag, _) = by_tag.or(by_digest).ok_or(PayloadError::Malformed("it names no image"))?;
    Ok(vec![RegistryNotification { action, host: Some(host), repository, tag, digest, id: message.message_id }])
}
