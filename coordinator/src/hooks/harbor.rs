//! Webhooks of Harbor, with its default payload and as CloudEvents (goharbor.io, "Configure Webhook Notifications").

use serde::Deserialize;

use super::{NotifiedAction, PayloadError, RegistryNotification, bounded_list, check_length, parse_json};

#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "type")]
    kind: String,
    /// Only CloudEvents have one.
    #[serde(default)]
    id: Option<String>,
    #[serde(default, alias = "data")]
    event_data: Option<EventData>,
}

#[derive(Deserialize)]
struct EventData {
    #[serde(default, deserialize_with = "bounded_list")]
    resources: Vec<Resource>,
    #[serde(default)]
    repository: Repository,
}

#[derive(Deserialize)]
struct Resource {
    /// The digest where there is no tag.
    #[serde(default)]
    tag: Option<String>,
    #[serde(default)]
    digest: Option<String>,
}

#[derive(Default, Deserialize)]
struct Repository {
    #[serde(default)]
    repo_full_name: Option<String>,
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    let Payload { kind, id, event_data } = parse_json(body)?;
    let action = match kind.as_str() {
        "PUSH_ARTIFACT" | "harbor.artifact.pushed" => NotifiedAction::Push,
        "DELETE_ARTIFACT" | "harbor.artifact.deleted" => NotifiedAction::Delete,
        _ => return Ok(vec![RegistryNotification::other(NotifiedAction::Other)]),
    };
    let EventData { resources, repository } = event_data.ok_or(PayloadError::Malformed("it has no event data"))?;
    let repository = repository.repo_full_name.unwrap_or_default();
    check_length(&repository)?;
    id.as_deref().map_or(Ok(()), check_length)?;
    let notification = |(number, Resource { tag, digest }): (usize, Resource)| {
        // One id for all of its resources.
        let id = id.as_ref().map(|id| format!("{id} {number}"));
        RegistryNotification { action, host: None, repository: repository.clone(), tag, digest, id }
    };
    Ok(resources.into_iter().enumerate().map(notification).collect())
}
