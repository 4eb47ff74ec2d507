//! Notifications of distribution, and of everything that speaks them (distribution.github.io, "Notifications").

use serde::Deserialize;

use super::{NotifiedAction, PayloadError, RegistryNotification, bounded_list, parse_json};

#[derive(Deserialize)]
struct Envelope {
    #[serde(deserialize_with = "bounded_list")]
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    action: Option<String>,
    #[serde(default)]
    target: Target,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Target {
    #[serde(default)]
    pub(super) media_type: Option<String>,
    #[serde(default)]
    pub(super) repository: Option<String>,
    #[serde(default)]
    pub(super) tag: Option<String>,
    #[serde(default)]
    pub(super) digest: Option<String>,
}

/// The names of hosts in it are those of the pusher and of the registry's configuration: neither need be that of rules.
pub(super) fn parse(body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    let envelope: Envelope = parse_json(body)?;
    Ok(envelope.events.into_iter().map(Event::into_notification).collect())
}

impl Event {
    fn into_notification(self) -> RegistryNotification {
        let Event { id, action, target } = self;
        let action = match action.as_deref() {
            // A blob has a digest, too, and is no image.
            Some("push") if !target.is_blob() => NotifiedAction::Push,
            Some("delete") => NotifiedAction::Delete,
            _ => NotifiedAction::Other,
        };
        target.into_notification(action, id)
    }
}

impl Target {
    fn is_blob(&self) -> bool {
        let is_manifest = |kind: &str| kind.contains("manifest") || kind.contains("image.index");
        self.tag.as_deref().unwrap_or_default().is_empty()
            && self.media_type.as_deref().is_some_and(|kind| !is_manifest(kind))
    }

    pub(super) fn into_notification(self, action: NotifiedAction, id: Option<String>) -> RegistryNotification {
        let repository = self.repository.unwrap_or_default();
        RegistryNotification { action, host: None, repository, tag: self.tag, digest: self.digest, id }
    }
}
